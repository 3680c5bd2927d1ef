//! What is pushed, as it is kept: families of one name and kind, and their series. Labels are rendered once, sorted and
//! escaped as both text formats want them, and that text is the series' identity.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::clock::Moment;

/// The type of a family, as `# TYPE` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Counter,
    Gauge,
    Summary,
    Untyped,
    Histogram,
}

impl Kind {
    /// In the order of the numbers that the protobuf format gives them.
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

    /// The suffixes under which a family of this kind shows series besides its own name.
    pub fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Summary => &["_count", "_sum"],
            Self::Histogram => &["_count", "_sum", "_bucket"],
            Self::Counter | Self::Gauge | Self::Untyped => &[],
        }
    }
}

/// Cumulative counts at ascending upper bounds. The bucket of +Inf may be among them; what is shown has it always.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    pub buckets: Vec<(f64, u64)>,
    pub sum: f64,
    pub count: u64,
}

impl Histogram {
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
pub enum Value {
    /// Of a counter, a gauge or what has no type.
    Number(f64),
    Histogram(Box<Histogram>),
    Summary(Box<Summary>),
}

impl Value {
    /// Series as Prometheus counts them: each bucket and quantile is one.
    pub fn samples(&self) -> usize {
        match self {
            Self::Number(_) => 1,
            Self::Histogram(histogram) => {
                histogram.buckets.len() + usize::from(!histogram.has_infinity()) + 2
            }
            Self::Summary(summary) => summary.quantiles.len() + 2,
        }
    }

    /// About what it takes on the heap.
    fn heap_bytes(&self) -> usize {
        match self {
            Self::Number(_) => 0,
            Self::Histogram(histogram) => size_of::<Histogram>() + 16 * histogram.buckets.len(),
            Self::Summary(summary) => size_of::<Summary>() + 16 * summary.quantiles.len(),
        }
    }
}

/// One series, or the several of one histogram or summary.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// As [`render`] writes them, without the braces.
    pub labels: Arc<str>,
    pub value: Value,
}

impl Series {
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.labels.len() + self.value.heap_bytes()
    }
}

/// All series of one name that belong to one group, or one series that is added up.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub kind: Kind,
    pub help: Arc<str>,
    /// Sorted by labels, each once.
    pub series: Vec<Series>,
    /// When it was last pushed.
    pub touched: Moment,
    /// The same by the clock on the wall, in seconds since 1970.
    pub wall_s: f64,
}

impl Block {
    pub fn samples(&self) -> usize {
        self.series.iter().map(|series| series.value.samples()).sum()
    }

    /// About what it takes in memory, with its place in the maps.
    pub fn bytes(&self) -> usize {
        const PLACE: usize = 160;
        PLACE + size_of::<Self>() + self.series.iter().map(Series::bytes).sum::<usize>()
    }
}

/// A label as it is read from a body or a path.
pub type Label<'a> = (Cow<'a, str>, Cow<'a, str>);

/// One metric as it is read from a body.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<'a> {
    pub labels: Vec<Label<'a>>,
    pub value: Value,
}

/// A family as it is read from a body: its samples in their order, with labels as they were sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Family<'a> {
    pub name: Cow<'a, str>,
    pub help: Cow<'a, str>,
    pub kind: Kind,
    pub samples: Vec<Sample<'a>>,
}

/// What a body came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed<'a> {
    pub families: Vec<Family<'a>>,
    /// Whether a sample says when it was taken, which no push may.
    pub timestamps: bool,
    /// What makes it inconsistent in itself, where a body can be that and still be read.
    pub flaw: Option<String>,
}

/// `[a-zA-Z_:][a-zA-Z0-9_:]*`
pub fn is_metric_name(name: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
    name.first().is_some_and(|first| !first.is_ascii_digit()) && name.iter().all(good)
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`
pub fn is_label_name(name: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    name.first().is_some_and(|first| !first.is_ascii_digit()) && name.iter().all(good)
}

/// Names that begin so are Prometheus' own.
pub fn is_reserved_label(name: &str) -> bool {
    name.starts_with("__")
}

/// The labels sorted by name, as text: `a="1",b="x\"y"`.
pub fn render(labels: &mut [Label<'_>]) -> String {
    labels.sort_unstable();
    let mut out =
        String::with_capacity(labels.iter().map(|(name, value)| name.len() + value.len() + 4).sum());
    for (nth, (name, value)) in labels.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape(&mut out, value, true);
        out.push('"');
    }
    out
}

/// Escapes a label's value, or without `quotes` the text of `# HELP`.
pub fn escape(out: &mut String, text: &str, quotes: bool) {
    let special = |byte: u8| byte == b'\\' || byte == b'\n' || (quotes && byte == b'"');
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if special(byte) {
            out.push_str(&text[from..at]);
            out.push('\\');
            out.push(if byte == b'\n' { 'n' } else { char::from(byte) });
            from = at + 1;
        }
    }
    out.push_str(&text[from..]);
}

/// The labels that [`render`] wrote, one by one.
pub fn rendered(labels: &str) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
    let mut rest = labels;
    std::iter::from_fn(move || {
        let (name, after) = rest.split_once("=\"")?;
        let bytes = after.as_bytes();
        let mut end = 0;
        while bytes.get(end).is_some_and(|byte| *byte != b'"') {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        rest = after.get(end + 1..).unwrap_or("");
        rest = rest.strip_prefix(',').unwrap_or(rest);
        Some((name, unescape(&after[..end.min(after.len())])))
    })
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

/// Appends a number as Go's shortest form of the verb `g` does, which is how Prometheus' own programs write them.
pub fn write_float(out: &mut String, value: f64) {
    let text = |out: &mut String, arguments: std::fmt::Arguments<'_>| {
        out.write_fmt(arguments).expect("a string takes all that is written");
    };
    if value.is_nan() {
        out.push_str("NaN");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else if value == 0.0 {
        // Without the sign that it may have.
        out.push('0');
    } else if (1e-4..1e6).contains(&value.abs()) {
        // From 21 digits on the exponent would be shorter for an integer; below it, never.
        text(out, format_args!("{value}"));
    } else {
        // Rust writes 1e-7 where Go writes 1e-07.
        let start = out.len();
        text(out, format_args!("{value:e}"));
        let exponent = start + out[start..].find('e').expect("it was asked for") + 1;
        let digits = exponent + usize::from(out[exponent..].starts_with('-'));
        if out.len() - digits < 2 {
            out.insert(digits, '0');
        }
        if digits == exponent {
            out.insert(exponent, '+');
        }
    }
}

/// [`write_float`] into text of its own.
pub fn float(value: f64) -> String {
    let mut out = String::new();
    write_float(&mut out, value);
    out
}

/// Reads a number as Go does: no hexadecimal, no underscores, nothing out of range, `nan` without a sign.
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

/// A count that came as a float, as every number of the text format does.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, which is what is wanted"
)]
pub fn count_of(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_sorted_and_escaped_and_can_be_read_back() {
        let mut labels: Vec<Label<'_>> =
            vec![("b".into(), "x\"\\\n,=ä".into()), ("a".into(), "".into()), ("c".into(), "}".into())];
        let text = render(&mut labels);
        assert_eq!(text, "a=\"\",b=\"x\\\"\\\\\\n,=ä\",c=\"}\"");
        let back: Vec<_> = rendered(&text).map(|(name, value)| (name.to_owned().into(), value)).collect();
        assert_eq!(back, labels);
        assert_eq!(rendered("").count(), 0);
    }

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        for (value, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1.0, "1"),
            (-2.5, "-2.5"),
            (123_456.0, "123456"),
            (999_999.5, "999999.5"),
            (1_000_000.0, "1e+06"),
            (1_234_567.0, "1.234567e+06"),
            (1_583_872_347.716_605_7, "1.5838723477166057e+09"),
            (1e300, "1e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.5e-7, "-1.5e-07"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn numbers_are_read_as_go_reads_them() {
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

    #[test]
    fn names_are_of_the_grammar() {
        assert!(is_metric_name(b"a:b_9") && is_metric_name(b":") && is_label_name(b"_9"));
        for bad in [&b""[..], b"9a", b"a-b", b"a b", "ä".as_bytes()] {
            assert!(!is_metric_name(bad) && !is_label_name(bad));
        }
        assert!(!is_label_name(b"a:b"));
    }
}
