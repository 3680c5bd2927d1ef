//! Renders the state for a scrape, chunk by chunk, from one snapshot, ordered by family name and
//! labels. Memory for text is bounded by the chunk size, not by the number of series.
//!
//! Every series keeps the name that it has in the text format: a counter whose name does not end in
//! `_total` has the type `unknown` in `OpenMetrics`, which would rename it.

use std::ops::Bound;

use super::metric::{Block, MetricKind, Series, SeriesValue};
use super::state::{FAILURE_TIME, MetricGroup, Name, Owner, PUSH_TIME, Snapshot};
use crate::metrics::text_format::{
    ExpositionFormat, OPENMETRICS_EOF, write_float, write_label, write_sample,
};

/// A chunk ends at the first series past this size.
const CHUNK_BYTES: usize = 64 * 1024;
pub const PUSH_HELP: &str = "Last Unix time when changing this group in the Pushgateway succeeded.";
pub const FAILURE_HELP: &str = "Last Unix time when changing this group in the Pushgateway failed.";

/// One of the two times of a group.
type Time = fn(&MetricGroup) -> f64;

/// The position of the next series to render.
#[derive(Debug)]
enum ExpositionPosition {
    /// After so many series of the block with this key; `None` is before the first block.
    Blocks(Option<((Name, Owner), usize)>),
    /// After the group with this key, in the time family with this index.
    Times(usize, Option<std::sync::Arc<str>>),
    End,
}

#[derive(Debug)]
pub struct Exposition {
    snapshot: Snapshot,
    format: ExpositionFormat,
    position: ExpositionPosition,
    /// The name of the last family whose header was written.
    last_header: Option<Name>,
}

impl Exposition {
    pub fn new(snapshot: Snapshot, format: ExpositionFormat) -> Self {
        Self { snapshot, format, position: ExpositionPosition::Blocks(None), last_header: None }
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
        for (key, block) in self.snapshot.blocks.range((from, Bound::Unbounded)) {
            let (name, _) = key;
            let header = FamilyHeader::of(self.format, name, block.kind, &self.snapshot);
            if self.last_header.as_ref() != Some(name) {
                self.format.write_header(out, header.name, header.kind, &block.help);
                self.last_header = Some(name.clone());
            }
            for (nth, series) in block.series.iter().enumerate().skip(skip) {
                if out.len() >= end {
                    self.position = ExpositionPosition::Blocks(Some((key.clone(), nth)));
                    return;
                }
                write_series(out, self.format, name, series);
            }
            skip = 0;
        }
        self.position = ExpositionPosition::Times(0, None);
    }

    fn write_times(&mut self, out: &mut String, end: usize) {
        const FAMILIES: [(&str, &str, Time); 2] = [
            (FAILURE_TIME, FAILURE_HELP, |group| group.last_failure_s),
            (PUSH_TIME, PUSH_HELP, |group| group.last_success_s),
        ];
        let ExpositionPosition::Times(nth, after) = &mut self.position else { return };
        let (nth, after) = (*nth, after.take());
        let Some((name, help, of)) = FAMILIES.get(nth).filter(|_| !self.snapshot.groups.is_empty()) else {
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
            write_group_labels(out, group);
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

/// Writes the labels that all series of a group have.
fn write_group_labels(out: &mut String, group: &MetricGroup) {
    let labels = &group.grouping_key.labels;
    // An empty `instance` is inserted at its sorted position.
    let at = labels.partition_point(|(name, _)| name.as_str() < "instance");
    let has = labels.get(at).is_some_and(|(name, _)| name == "instance");
    let own = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let (front, back) = (own.clone().take(at), own.skip(at));
    let all = front.chain((!has).then_some(("instance", ""))).chain(back);
    for (nth, (name, value)) in all.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write_label(out, name, value);
    }
}

/// The name and type of a family in `# TYPE` and `# HELP`.
struct FamilyHeader<'a> {
    name: &'a str,
    kind: &'static str,
}

impl<'a> FamilyHeader<'a> {
    fn of(format: ExpositionFormat, name: &'a str, kind: MetricKind, snapshot: &Snapshot) -> Self {
        if format == ExpositionFormat::Text {
            return Self { name, kind: kind.name() };
        }
        match kind {
            MetricKind::Counter => match name.strip_suffix("_total") {
                Some(base) if !base.is_empty() && !has_family(snapshot, base) => {
                    Self { name: base, kind: "counter" }
                }
                Some(_) | None => Self { name, kind: "unknown" },
            },
            MetricKind::Untyped => Self { name, kind: "unknown" },
            MetricKind::Gauge | MetricKind::Summary | MetricKind::Histogram => {
                Self { name, kind: kind.name() }
            }
        }
    }
}

fn has_family(snapshot: &Snapshot, name: &str) -> bool {
    let first = (Name::from(name), Owner::Aggregated("".into()));
    snapshot.blocks.range(first..).next().is_some_and(|((found, _), _)| **found == *name)
}

fn write_series(out: &mut String, format: ExpositionFormat, name: &str, series: &Series) {
    let labels = &*series.labels;
    match &series.value {
        SeriesValue::Number(number) => write_sample(out, (name, ""), labels, None, *number),
        SeriesValue::Histogram(histogram) => {
            for (bound, count) in &histogram.buckets {
                write_sample(
                    out,
                    (name, "_bucket"),
                    labels,
                    Some(("le", &format.format_bound(*bound))),
                    count_to_float(*count),
                );
            }
            if !histogram.has_infinity() {
                write_sample(
                    out,
                    (name, "_bucket"),
                    labels,
                    Some(("le", "+Inf")),
                    count_to_float(histogram.count),
                );
            }
            write_sample(out, (name, "_sum"), labels, None, histogram.sum);
            write_sample(out, (name, "_count"), labels, None, count_to_float(histogram.count));
        }
        SeriesValue::Summary(summary) => {
            for (quantile, value) in &summary.quantiles {
                write_sample(
                    out,
                    (name, ""),
                    labels,
                    Some(("quantile", &format.format_bound(*quantile))),
                    *value,
                );
            }
            write_sample(out, (name, "_sum"), labels, None, summary.sum);
            write_sample(out, (name, "_count"), labels, None, count_to_float(summary.count));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are floats in both formats")]
fn count_to_float(count: u64) -> f64 {
    count as f64
}

/// The whole page, for small states.
pub fn render_all(snapshot: Snapshot, format: ExpositionFormat) -> String {
    let (mut exposition, mut out) = (Exposition::new(snapshot, format), String::new());
    while exposition.write_chunk(&mut out) {}
    out
}

/// The series of a block in the text format.
pub fn render_block(name: &str, block: &Block) -> String {
    let mut out = String::new();
    block.series.iter().for_each(|series| write_series(&mut out, ExpositionFormat::Text, name, series));
    out
}
