//! The data model: metric families, their series and values, and the text form of labels and
//! numbers. Labels are rendered once, sorted and escaped as in both text formats; the rendered text
//! identifies a series within its family.

use std::borrow::Cow;
use std::sync::Arc;

use super::names::{NameKind, is_legacy_name, write_label_name};
use super::native::{NativeCounts, NativeHistogram};
use crate::clock::Moment;
use crate::metrics::text_format::{format_float, write_label_value};

/// The type of a family, as in `# TYPE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MetricKind {
    Counter,
    Gauge,
    Summary,
    Untyped,
    Histogram,
}

impl MetricKind {
    /// Ordered by the numbers of the protobuf enum `MetricType`.
    pub const ALL: [Self; 5] = [Self::Counter, Self::Gauge, Self::Summary, Self::Untyped, Self::Histogram];

    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Summary => "summary",
            Self::Untyped => "untyped",
            Self::Histogram => "histogram",
        }
    }

    /// The suffixes of the series of a family of this kind, besides the bare name.
    pub fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Summary => &["_count", "_sum"],
            Self::Histogram => &["_count", "_sum", "_bucket"],
            Self::Counter | Self::Gauge | Self::Untyped => &[],
        }
    }
}

/// Cumulative counts by ascending upper bound. The bucket `+Inf` may be absent here; the exposition
/// always has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub buckets: Vec<(f64, u64)>,
    pub sum: f64,
    /// Without its fraction if the native part counts in fractions.
    pub count: u64,
    pub native: Option<Box<NativeHistogram>>,
}

impl Histogram {
    /// The count with its fraction.
    #[expect(clippy::cast_precision_loss, reason = "counts are floats in both formats")]
    pub fn total(&self) -> f64 {
        match self.native.as_ref().map(|native| &native.counts) {
            Some(NativeCounts::Float { count, .. }) => *count,
            Some(NativeCounts::Integer { .. }) | None => self.count as f64,
        }
    }

    pub fn has_infinity(&self) -> bool {
        self.buckets.iter().any(|(bound, _)| *bound == f64::INFINITY)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Quantile and value.
    pub quantiles: Vec<(f64, f64)>,
    pub sum: f64,
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum SeriesValue {
    /// A counter, a gauge or an untyped metric.
    Number(f64),
    Histogram(Box<Histogram>),
    Summary(Box<Summary>),
}

impl SeriesValue {
    /// Series as Prometheus counts them: one per bucket or quantile, plus sum and count.
    pub fn samples(&self) -> usize {
        match self {
            Self::Number(_) => 1,
            Self::Histogram(histogram) => {
                histogram.buckets.len() + usize::from(!histogram.has_infinity()) + 2
            }
            Self::Summary(summary) => summary.quantiles.len() + 2,
        }
    }

    /// Approximate heap memory.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Number(_) => 0,
            Self::Histogram(histogram) => {
                let native = histogram.native.as_ref().map_or(0, |native| native.heap_bytes());
                size_of::<Histogram>() + 16 * histogram.buckets.len() + native
            }
            Self::Summary(summary) => size_of::<Summary>() + 16 * summary.quantiles.len(),
        }
    }
}

/// One number, or all series of one histogram or summary with the same labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// As written by [`render_labels`], without the braces.
    pub labels: Arc<str>,
    pub value: SeriesValue,
}

impl Series {
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.labels.len() + self.value.heap_bytes()
    }
}

/// All series of one name in one group, or one aggregated series.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub kind: MetricKind,
    pub help: Arc<str>,
    /// Sorted by labels, each once.
    pub series: Vec<Series>,
    /// The monotonic time of the last push.
    pub last_push: Moment,
    /// The wall clock at the last push, in seconds since 1970.
    pub last_push_wall_s: f64,
    pub index: BlockIndex,
}

/// What the state needs of all series of a block. It is computed before the lock is taken, so that
/// the lock is not held for the time it takes to read the series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BlockIndex {
    /// The hash of each series.
    pub hashes: Vec<u64>,
    /// Series as Prometheus counts them.
    pub samples: usize,
    pub bytes: usize,
}

impl Block {
    pub(super) fn samples(&self) -> usize {
        self.series.iter().map(|series| series.value.samples()).sum()
    }

    /// Approximate memory, with the entries in the maps.
    pub(super) fn bytes(&self) -> usize {
        const PLACE: usize = 160;
        let series = self.series.iter().map(|series| series.bytes() + size_of::<u64>());
        PLACE + size_of::<Self>() + self.help.len() + series.sum::<usize>()
    }
}

/// Name and value of a label, as parsed from a body or a path.
pub type Label<'a> = (Cow<'a, str>, Cow<'a, str>);

/// One metric, as parsed from a body.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedSample<'a> {
    pub labels: Vec<Label<'a>>,
    pub value: SeriesValue,
}

/// A family, as parsed from a body: its samples in order, with unsorted labels.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedFamily<'a> {
    pub name: Cow<'a, str>,
    pub help: Cow<'a, str>,
    pub kind: MetricKind,
    pub samples: Vec<ParsedSample<'a>>,
}

/// The families of a body, before validation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParsedBody<'a> {
    pub families: Vec<ParsedFamily<'a>>,
    /// A sample has a timestamp, so the push must be refused.
    pub has_timestamps: bool,
    /// A body that is well-formed but contradicts itself, with the reason.
    pub inconsistency: Option<String>,
}

/// Label names with this prefix are reserved by Prometheus.
pub fn is_reserved_label(name: &str) -> bool {
    name.starts_with("__")
}

/// Sorts the labels by name and renders them: `a="1",b="x\"y"`. A name that is not of the older
/// grammar is in quotes: `"a.b"="1"`.
pub fn render_labels(labels: &mut [Label<'_>]) -> String {
    labels.sort_unstable();
    let mut out =
        String::with_capacity(labels.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for (nth, (name, value)) in labels.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write_label_name(&mut out, name);
        write_label_value(&mut out, value);
    }
    out
}

/// Splits the output of [`render_labels`] into names and values, which stay escaped.
pub fn escaped_labels(labels: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = labels;
    std::iter::from_fn(move || {
        let (name, after) = match rest.strip_prefix('"') {
            None => rest.split_once("=\"")?,
            Some(quoted) => {
                let (name, after) = split_quoted(quoted);
                (name, after.strip_prefix("=\"")?)
            }
        };
        let (value, after) = split_quoted(after);
        rest = after.strip_prefix(',').unwrap_or(after);
        Some((name, value))
    })
}

/// Splits text after an opening quote at the closing one.
fn split_quoted(text: &str) -> (&str, &str) {
    let bytes = text.as_bytes();
    let mut end = 0;
    while bytes.get(end).is_some_and(|byte| *byte != b'"') {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    (&text[..end.min(text.len())], text.get(end + 1..).unwrap_or(""))
}

/// Parses the output of [`render_labels`].
pub fn rendered_labels(labels: &str) -> impl Iterator<Item = Label<'_>> {
    escaped_labels(labels).map(|(name, value)| (unescape(name), unescape(value)))
}

/// Whether a rendered label has a name in quotes.
pub fn has_quoted_name(labels: &str) -> bool {
    // A value that ends with a comma looks like a quoted name too.
    (labels.starts_with('"') || labels.contains(",\""))
        && rendered_labels(labels).any(|(name, _)| !is_legacy_name(&name, NameKind::Label))
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        out.push(match char {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            other => other,
        });
    }
    Cow::Owned(out)
}

/// Parses a number as Go does: no hexadecimal, no underscores, nothing out of range, no signed NaN.
pub fn parse_float(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    let word = text.trim_start_matches(['+', '-']);
    let named = word.starts_with(['i', 'I', 'n', 'N']);
    if named == value.is_finite() || (value.is_nan() && word.len() != text.len()) {
        None
    } else {
        Some(value)
    }
}

/// The reason for refusing a count that [`whole_count`] does not accept.
pub fn not_a_count(name: &str, kind: MetricKind, value: f64) -> String {
    let (kind, value) = (kind.name(), format_float(value));
    format!("a count of the {kind} {name:?} is {value}; counts must be whole numbers, 0 or more")
}

/// A count given as a float, as all numbers of the text format are. None if it is not a whole number
/// of 64 bits.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a whole number in range")]
pub fn whole_count(value: f64) -> Option<u64> {
    const END: f64 = 18_446_744_073_709_551_616.0;
    ((0.0..END).contains(&value) && value.fract() <= 0.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendered_labels_are_sorted_and_escaped_and_parse_back() {
        let mut labels: Vec<Label<'_>> =
            vec![("b".into(), "x\"\\\n,=ä".into()), ("a".into(), "".into()), ("c".into(), "}".into())];
        let text = render_labels(&mut labels);
        assert_eq!(text, "a=\"\",b=\"x\\\"\\\\\\n,=ä\",c=\"}\"");
        assert_eq!(rendered_labels(&text).collect::<Vec<_>>(), labels);
        assert!(!has_quoted_name(&text) && !has_quoted_name("a=\",\",b=\"\""));
        labels.push(("a\"\\\n,.b=".into(), "=\"".into()));
        let text = render_labels(&mut labels);
        assert!(text.starts_with("a=\"\",\"a\\\"\\\\\\n,.b=\"=\"=\\\"\",b="), "{text}");
        assert!(has_quoted_name(&text));
        assert_eq!(rendered_labels(&text).collect::<Vec<_>>(), labels);
        assert_eq!(rendered_labels("").count(), 0);
    }

    #[test]
    fn floats_are_parsed_in_go_format() {
        for (text, value) in [
            ("1", 1.0),
            ("+1.5e3", 1500.0),
            (".5", 0.5),
            ("1.", 1.0),
            ("inf", f64::INFINITY),
            ("-Infinity", f64::NEG_INFINITY),
        ] {
            assert_eq!(parse_float(text), Some(value), "{text}");
        }
        assert!(parse_float("NaN").is_some_and(f64::is_nan));
        for bad in ["", "x", "1e400", "-1e400", "0x1p3", "1_0", "+nan", "1 ", "--1"] {
            assert_eq!(parse_float(bad), None, "{bad}");
        }
    }
}
