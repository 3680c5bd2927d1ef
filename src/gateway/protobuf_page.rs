//! Renders the state as delimited `io.prometheus.client.MetricFamily` messages, chunk by chunk, from one
//! snapshot. A message begins with its length, so that the series of a family are encoded twice, first
//! for their length: memory is bounded by the chunk size, not by the size of a family.

use std::ops::Bound;

use super::exposition::{CHUNK_BYTES, ExpositionPosition, TIMES, group_labels};
use super::metric::{MetricKind, SeriesValue, rendered_labels};
use super::names::NameEscaping;
use super::page_names::PageNames;
use super::protobuf_writer as write;
use super::state::{MetricGroup, Name, Owner, Snapshot};

#[derive(Debug)]
pub struct ProtobufPage {
    snapshot: Snapshot,
    names: PageNames,
    position: ExpositionPosition,
    /// The family whose head was written last.
    family: Option<Name>,
}

impl ProtobufPage {
    pub fn new(snapshot: Snapshot, escaping: NameEscaping) -> Self {
        let names = PageNames::new(&snapshot, escaping);
        Self { snapshot, names, position: ExpositionPosition::Blocks(None), family: None }
    }

    /// Appends the next chunk. Returns whether there may be more.
    pub fn write_chunk(&mut self, out: &mut Vec<u8>) -> bool {
        let end = out.len() + CHUNK_BYTES;
        while out.len() < end {
            match &mut self.position {
                ExpositionPosition::Blocks(after) => {
                    let after = after.take();
                    self.write_blocks(out, end, after);
                }
                ExpositionPosition::Times(nth, after) => {
                    let (nth, after) = (*nth, after.take());
                    self.write_times(out, end, nth, after);
                }
                ExpositionPosition::End => return false,
            }
        }
        true
    }

    fn write_blocks(&mut self, out: &mut Vec<u8>, end: usize, after: Option<((Name, Owner), usize)>) {
        let (from, mut skip) = after.map_or((Bound::Unbounded, 0), |(key, nth)| (Bound::Included(key), nth));
        // A copy of a few words.
        let blocks = self.snapshot.blocks.clone();
        for (key, block) in blocks.range((from, Bound::Unbounded)) {
            let name = &key.0;
            if self.family.as_ref() != Some(name) {
                let of_family = blocks.range(key.clone()..).take_while(|((other, _), _)| other == name);
                let series = of_family.flat_map(|(_, block)| &block.series);
                let length =
                    series.map(|series| self.metric_field(block.kind, &series.labels, &series.value).len());
                let length = length.sum();
                write_head(out, &self.names.family(name).text, &block.help, block.kind, length);
                self.family = Some(name.clone());
            }
            for (nth, series) in block.series.iter().enumerate().skip(skip) {
                if out.len() >= end {
                    self.position = ExpositionPosition::Blocks(Some((key.clone(), nth)));
                    return;
                }
                out.extend_from_slice(&self.metric_field(block.kind, &series.labels, &series.value));
            }
            skip = 0;
        }
        self.position = ExpositionPosition::Times(0, None);
    }

    fn write_times(&mut self, out: &mut Vec<u8>, end: usize, nth: usize, after: Option<std::sync::Arc<str>>) {
        let Some((name, help, of)) = TIMES.get(nth).filter(|_| !self.snapshot.groups.is_empty()) else {
            self.position = ExpositionPosition::End;
            return;
        };
        let field = |group: &MetricGroup| {
            self.metric_field(MetricKind::Gauge, &group_labels(group), &SeriesValue::Number(of(group)))
        };
        let from = match after {
            None => {
                let length = self.snapshot.groups.values().map(|group| field(group).len()).sum();
                write_head(out, name, help, MetricKind::Gauge, length);
                Bound::Unbounded
            }
            Some(key) => Bound::Excluded(key),
        };
        for (key, group) in self.snapshot.groups.range((from, Bound::Unbounded)) {
            out.extend_from_slice(&field(group));
            if out.len() >= end {
                self.position = ExpositionPosition::Times(nth, Some(key.clone()));
                return;
            }
        }
        self.position = ExpositionPosition::Times(nth + 1, None);
    }

    /// A series as a field of its family.
    fn metric_field(&self, kind: MetricKind, labels: &str, value: &SeriesValue) -> Vec<u8> {
        let (mut metric, mut field) = (Vec::with_capacity(128), Vec::with_capacity(128));
        write::metric(&mut metric, rendered_labels(&self.names.labels(labels)), kind, value);
        write::bytes(&mut field, 4, &metric);
        field
    }
}

/// Writes the length of a family and its fields before the metrics, which have `metrics_len` bytes.
fn write_head(out: &mut Vec<u8>, name: &str, help: &str, kind: MetricKind, metrics_len: usize) {
    let mut head = Vec::with_capacity(name.len() + help.len() + 16);
    write::family_head(&mut head, name, help, kind);
    write::varint(out, (head.len() + metrics_len) as u64);
    out.extend_from_slice(&head);
}
