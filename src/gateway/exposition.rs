//! Renders the state for a scrape, chunk by chunk, from one snapshot, ordered by family name and
//! labels. Memory for text is bounded by the chunk size, not by the number of series.
//!
//! Every series keeps the name that it has in the text format, also in `OpenMetrics`: a family that
//! does not meet the rules for its type has the type `unknown` there (see [`openmetrics`]).

use std::ops::Bound;

use super::metric::{Block, SeriesValue};
use super::names::{NameEscaping, write_label_name};
use super::openmetrics::{self, OpenMetricsForm};
use super::page_names::{FamilyName, PageNames};
use super::state::{FAILURE_TIME, MetricGroup, Name, Owner, PUSH_TIME, Snapshot};
use crate::metrics::text_format::{ExpositionFormat, OPENMETRICS_EOF, write_float, write_label_value};

/// A chunk of any page ends at the first series past this size.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// One of the two times of a group.
type Time = fn(&MetricGroup) -> f64;

/// The families of the times of groups, with their help texts.
pub(super) const TIMES: [(&str, &str, Time); 2] = [
    (FAILURE_TIME, "Last Unix time when changing this group in the Pushgateway failed.", |group| {
        group.last_failure_s
    }),
    (PUSH_TIME, "Last Unix time when changing this group in the Pushgateway succeeded.", |group| {
        group.last_success_s
    }),
];

/// The position of the next series to render.
#[derive(Debug)]
pub(super) enum ExpositionPosition {
    /// After so many series of the block with this key; `None` is before the first block.
    Blocks(Option<((Name, Owner), usize)>),
    /// After the group with this key, in the family of [`TIMES`] with this index.
    Times(usize, Option<std::sync::Arc<str>>),
    End,
}

#[derive(Debug)]
pub struct Exposition {
    snapshot: Snapshot,
    format: ExpositionFormat,
    names: PageNames,
    position: ExpositionPosition,
    /// The family whose header was written last.
    family: Option<CurrentFamily>,
}

/// The family that is being rendered.
#[derive(Debug)]
struct CurrentFamily {
    name: Name,
    written: FamilyName,
    /// Its first block.
    first: (Name, Owner),
    /// The suffixes of the parts that are families of their own. Empty if the family is written as
    /// a whole.
    parts: &'static [&'static str],
    /// The index of the part that is being rendered.
    part: usize,
}

impl CurrentFamily {
    /// The suffix of the lines to write; none for all lines.
    fn part(&self) -> Option<&'static str> {
        self.parts.get(self.part).copied()
    }
}

impl Exposition {
    pub fn new(snapshot: Snapshot, format: ExpositionFormat, escaping: NameEscaping) -> Self {
        let names = PageNames::new(&snapshot, escaping);
        Self { snapshot, format, names, position: ExpositionPosition::Blocks(None), family: None }
    }

    /// Appends the next chunk. Returns whether there may be more.
    pub fn write_chunk(&mut self, out: &mut String) -> bool {
        let end = out.len() + CHUNK_BYTES;
        while out.len() < end {
            match &self.position {
                ExpositionPosition::Blocks(_) => self.write_blocks(out, end),
                ExpositionPosition::Times(..) => self.write_times(out, end),
                ExpositionPosition::End => return false,
            }
        }
        true
    }

    fn write_blocks(&mut self, out: &mut String, end: usize) {
        let ExpositionPosition::Blocks(position) = &mut self.position else { return };
        let position = position.take();
        let (from, mut skip) = match position {
            None => (Bound::Unbounded, 0),
            Some((key, series)) => (Bound::Included(key), series),
        };
        // A copy of a few words.
        let blocks = self.snapshot.blocks.clone();
        for (key, block) in blocks.range((from, Bound::Unbounded)) {
            let (name, _) = key;
            if self.family.as_ref().is_none_or(|family| family.name != *name) {
                if let Some(first) = self.family.as_mut().and_then(next_part) {
                    self.position = ExpositionPosition::Blocks(Some((first, 0)));
                    self.write_part_header(out);
                    return;
                }
                self.begin_family(out, key, block);
            }
            let Some(family) = &self.family else { return };
            let part = family.part();
            for (nth, series) in block.series.iter().enumerate().skip(skip) {
                if out.len() >= end {
                    self.position = ExpositionPosition::Blocks(Some((key.clone(), nth)));
                    return;
                }
                let labels = self.names.labels(&series.labels);
                write_series(out, self.format, (&family.written, part), &labels, &series.value);
            }
            skip = 0;
        }
        if let Some(first) = self.family.as_mut().and_then(next_part) {
            self.position = ExpositionPosition::Blocks(Some((first, 0)));
            self.write_part_header(out);
        } else {
            self.position = ExpositionPosition::Times(0, None);
        }
    }

    fn begin_family(&mut self, out: &mut String, first: &(Name, Owner), block: &Block) {
        let (name, kind) = (&first.0, block.kind);
        let mut family = CurrentFamily {
            name: name.clone(),
            written: self.names.family(name),
            first: first.clone(),
            parts: &[],
            part: 0,
        };
        let form = match self.format {
            ExpositionFormat::Text => None,
            ExpositionFormat::OpenMetrics => Some(openmetrics::form(&self.snapshot, first, kind)),
        };
        match form {
            None => self.format.write_header(out, &family.written.header(""), kind.name(), &block.help),
            Some(OpenMetricsForm::Whole { removed, kind }) => {
                self.format.write_header(out, &family.written.header(removed), kind, &block.help);
            }
            Some(OpenMetricsForm::Parts(parts)) => family.parts = parts,
        }
        self.family = Some(family);
        self.write_part_header(out);
    }

    /// Writes the header of the current part of a family that is not written as a whole.
    fn write_part_header(&self, out: &mut String) {
        let Some(family) = &self.family else { return };
        let Some(part) = family.part() else { return };
        let help = self.snapshot.blocks.get(&family.first).map_or("", |block| &block.help);
        self.format.write_header(out, &family.written.part_header(part), "unknown", help);
    }

    fn write_times(&mut self, out: &mut String, end: usize) {
        let ExpositionPosition::Times(nth, after) = &mut self.position else { return };
        let (nth, after) = (*nth, after.take());
        let Some((name, help, of)) = TIMES.get(nth).filter(|_| !self.snapshot.groups.is_empty()) else {
            if self.format == ExpositionFormat::OpenMetrics {
                out.push_str(OPENMETRICS_EOF);
            }
            self.position = ExpositionPosition::End;
            return;
        };
        let from = match after {
            None => {
                self.format.write_header(out, name, "gauge", help);
                Bound::Unbounded
            }
            Some(key) => Bound::Excluded(key),
        };
        for (key, group) in self.snapshot.groups.range((from, Bound::Unbounded)) {
            out.push_str(name);
            out.push('{');
            out.push_str(&self.names.labels(&group_labels(group)));
            out.push_str("} ");
            write_float(out, of(group));
            out.push('\n');
            if out.len() >= end {
                self.position = ExpositionPosition::Times(nth, Some(key.clone()));
                return;
            }
        }
        self.position = ExpositionPosition::Times(nth + 1, None);
    }
}

/// The rendered labels that all series of a group have.
pub(super) fn group_labels(group: &MetricGroup) -> String {
    let labels = &group.grouping_key.labels;
    // An empty `instance` is inserted at its sorted position.
    let at = labels.partition_point(|(name, _)| name.as_str() < "instance");
    let has = labels.get(at).is_some_and(|(name, _)| name == "instance");
    let own = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let (front, back) = (own.clone().take(at), own.skip(at));
    let all = front.chain((!has).then_some(("instance", ""))).chain(back);
    let mut out = String::with_capacity(group.grouping_key.rendered.len() + 16);
    for (nth, (name, value)) in all.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write_label_name(&mut out, name);
        write_label_value(&mut out, value);
    }
    out
}

/// Moves to the next part of a family, if it has one. Returns the family's first block.
fn next_part(family: &mut CurrentFamily) -> Option<(Name, Owner)> {
    family.part += 1;
    (family.part < family.parts.len()).then(|| family.first.clone())
}

/// Writes the lines of a series; with `part` only those of the name with this suffix.
fn write_series(
    out: &mut String,
    format: ExpositionFormat,
    (name, part): (&FamilyName, Option<&str>),
    labels: &str,
    value: &SeriesValue,
) {
    let mut line = |suffix: &str, extra: Option<(&str, &str)>, value: f64| {
        if part.is_none_or(|part| part == suffix) {
            name.write_sample(out, suffix, labels, extra, value);
        }
    };
    match value {
        SeriesValue::Number(number) => line("", None, *number),
        SeriesValue::Histogram(histogram) => {
            for (bound, count) in &histogram.buckets {
                line("_bucket", Some(("le", &format.format_bound(*bound))), count_to_float(*count));
            }
            if !histogram.has_infinity() {
                line("_bucket", Some(("le", "+Inf")), histogram.total());
            }
            line("_sum", None, histogram.sum);
            line("_count", None, histogram.total());
        }
        SeriesValue::Summary(summary) => {
            for (quantile, value) in &summary.quantiles {
                line("", Some(("quantile", &format.format_bound(*quantile))), *value);
            }
            line("_sum", None, summary.sum);
            line("_count", None, count_to_float(summary.count));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are floats in both formats")]
fn count_to_float(count: u64) -> f64 {
    count as f64
}

/// The whole page with unescaped names, for small states.
pub fn render_all(snapshot: Snapshot, format: ExpositionFormat) -> String {
    render_escaped(snapshot, format, NameEscaping::AllowUtf8)
}

/// The whole page, for small states.
pub fn render_escaped(snapshot: Snapshot, format: ExpositionFormat, escaping: NameEscaping) -> String {
    let (mut exposition, mut out) = (Exposition::new(snapshot, format, escaping), String::new());
    while exposition.write_chunk(&mut out) {}
    out
}

/// The family of a block in the text format, with unescaped names.
pub fn render_block(name: &str, block: &Block) -> String {
    let (mut out, name) = (String::new(), FamilyName::unescaped(name));
    let format = ExpositionFormat::Text;
    format.write_header(&mut out, &name.header(""), block.kind.name(), &block.help);
    for series in &block.series {
        write_series(&mut out, format, (&name, None), &series.labels, &series.value);
    }
    out
}
