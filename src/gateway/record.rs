//! Encodes changes as records for the log and the snapshots. A record contains the new values, not
//! the differences, so that replay is idempotent: a record may be replayed twice, or after a
//! snapshot that includes its change.
//!
//! ```text
//! record  kind (1) | fields of the kind
//! text    bytes (4) | UTF-8
//! block   kind (1) | help | wall, s (8) | series (4) | series...
//! series  labels | value kind (1) | number (8), or sum (8) | count (8) | pairs (4) | pairs of 8 + 8 [| native]
//! native  schema (4) | zero threshold (8) | spans | spans | float (1) | zero (8) | [count (8)] | counts | counts
//! spans   number (4) | offset (4), length (4) of each
//! counts  number (4) | 8 of each
//! ```
//! All numbers are little-endian. `file` adds framing and checksums.

use std::sync::Arc;

use super::grouping_key::GroupingKey;
use super::idempotency::{KeyHash, PushCounts};
use super::metric::{Block, BlockIndex, Histogram, MetricKind, Series, SeriesValue, Summary};
use super::native::{NativeCounts, NativeHistogram, Span};
use super::state::Name;
use crate::clock::Moment;

const GROUP: u8 = 1;
const DELETE: u8 = 2;
const AGGREGATED: u8 = 3;
const REMOVE: u8 = 4;
const WIPE: u8 = 5;
const END: u8 = 6;

/// A decoded record.
#[derive(Clone, Debug, PartialEq)]
pub enum WalRecord {
    Group {
        grouping_key: GroupingKey,
        push_s: f64,
        failure_s: f64,
        /// The group has no other families.
        replace: bool,
        families: Vec<(String, Block)>,
    },
    Delete {
        key: String,
    },
    Aggregated {
        key: Option<(KeyHash, PushCounts)>,
        series: Vec<(String, Block)>,
    },
    Remove {
        name: String,
        labels: Arc<str>,
    },
    Wipe,
    /// The last record of a snapshot, with the number of records before it.
    End {
        records: u64,
    },
}

/// Encodes families of a group and the times of its last accepted and last refused push; NaN leaves
/// a time unchanged. With `replace` the group has no other families.
pub fn encode_group<'a>(
    out: &mut Vec<u8>,
    grouping_key: &GroupingKey,
    (push_s, failure_s): (f64, f64),
    replace: bool,
    families: impl ExactSizeIterator<Item = (&'a str, &'a Block)>,
) {
    out.push(GROUP);
    count(out, grouping_key.labels.len());
    for (name, value) in &grouping_key.labels {
        text(out, name);
        text(out, value);
    }
    out.extend_from_slice(&push_s.to_le_bytes());
    out.extend_from_slice(&failure_s.to_le_bytes());
    out.push(u8::from(replace));
    count(out, families.len());
    for (name, family) in families {
        text(out, name);
        block(out, family);
    }
}

pub fn encode_delete(out: &mut Vec<u8>, key: &str) {
    out.push(DELETE);
    text(out, key);
}

/// Begins a record of aggregated series. Series follow by [`encode_series`]; [`finish_aggregated`]
/// sets their number.
pub fn begin_aggregated(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[AGGREGATED, 0, 0, 0, 0]);
    start
}

pub fn encode_series(out: &mut Vec<u8>, name: &str, series: &Block) {
    text(out, name);
    block(out, series);
}

/// Ends a record of aggregated series with their number and the idempotency key of the push.
pub fn finish_aggregated(out: &mut Vec<u8>, start: usize, series: u32, key: Option<(KeyHash, PushCounts)>) {
    out[start + 1..start + 5].copy_from_slice(&series.to_le_bytes());
    match key {
        None => out.push(0),
        Some((key, counts)) => {
            out.push(1);
            out.extend_from_slice(&key);
            out.extend_from_slice(&counts.accepted.to_le_bytes());
            out.extend_from_slice(&counts.rejected.to_le_bytes());
        }
    }
}

pub fn encode_remove(out: &mut Vec<u8>, name: &str, labels: &str) {
    out.push(REMOVE);
    text(out, name);
    text(out, labels);
}

pub fn encode_wipe(out: &mut Vec<u8>) {
    out.push(WIPE);
}

pub fn encode_end(out: &mut Vec<u8>, records: u64) {
    out.push(END);
    out.extend_from_slice(&records.to_le_bytes());
}

fn count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("BUG: the limits of a push are far below 2^32");
    out.extend_from_slice(&count.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn block(out: &mut Vec<u8>, block: &Block) {
    out.push(block.kind as u8);
    text(out, &block.help);
    out.extend_from_slice(&block.last_push_wall_s.to_le_bytes());
    count(out, block.series.len());
    for series in &block.series {
        text(out, &series.labels);
        match &series.value {
            SeriesValue::Number(number) => {
                out.push(0);
                out.extend_from_slice(&number.to_le_bytes());
            }
            SeriesValue::Histogram(histogram) => {
                out.push(if histogram.native.is_some() { NATIVE } else { 1 });
                out.extend_from_slice(&histogram.sum.to_le_bytes());
                out.extend_from_slice(&histogram.count.to_le_bytes());
                count(out, histogram.buckets.len());
                for (bound, below) in &histogram.buckets {
                    out.extend_from_slice(&bound.to_le_bytes());
                    out.extend_from_slice(&below.to_le_bytes());
                }
                if let Some(histogram) = &histogram.native {
                    native(out, histogram);
                }
            }
            SeriesValue::Summary(summary) => {
                out.push(2);
                out.extend_from_slice(&summary.sum.to_le_bytes());
                out.extend_from_slice(&summary.count.to_le_bytes());
                count(out, summary.quantiles.len());
                for (quantile, value) in &summary.quantiles {
                    out.extend_from_slice(&quantile.to_le_bytes());
                    out.extend_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
}

/// The kind of a histogram with a native part.
const NATIVE: u8 = 3;

fn native(out: &mut Vec<u8>, native: &NativeHistogram) {
    out.extend_from_slice(&native.schema.to_le_bytes());
    out.extend_from_slice(&native.zero_threshold.to_le_bytes());
    for spans in [&native.positive_spans, &native.negative_spans] {
        count(out, spans.len());
        for span in spans {
            out.extend_from_slice(&span.offset.to_le_bytes());
            out.extend_from_slice(&span.length.to_le_bytes());
        }
    }
    match &native.counts {
        NativeCounts::Integer { zero, positive, negative } => {
            out.push(0);
            out.extend_from_slice(&zero.to_le_bytes());
            for deltas in [positive, negative] {
                count(out, deltas.len());
                out.extend(deltas.iter().flat_map(|delta| delta.to_le_bytes()));
            }
        }
        NativeCounts::Float { count: all, zero, positive, negative } => {
            out.push(1);
            out.extend_from_slice(&zero.to_le_bytes());
            out.extend_from_slice(&all.to_le_bytes());
            for counts in [positive, negative] {
                count(out, counts.len());
                out.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
            }
        }
    }
}

/// The checksum matches, but the record is malformed or of an unknown kind: written by a bug or by
/// a newer version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record or unknown record kind")]
pub struct DecodeWalRecordError;

impl WalRecord {
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeWalRecordError> {
        let mut bytes = RecordReader(bytes);
        let record = match bytes.byte()? {
            GROUP => {
                let labels =
                    (0..bytes.count()?).map(|_| Ok((bytes.text()?.to_owned(), bytes.text()?.to_owned())));
                let grouping_key = GroupingKey::from_labels(labels.collect::<Result<_, _>>()?);
                let (push_s, failure_s) = (bytes.float()?, bytes.float()?);
                let replace = bytes.byte()? == 1;
                let families = (0..bytes.count()?).map(|_| Ok((bytes.text()?.to_owned(), bytes.block()?)));
                Self::Group {
                    grouping_key,
                    push_s,
                    failure_s,
                    replace,
                    families: families.collect::<Result<_, _>>()?,
                }
            }
            DELETE => Self::Delete { key: bytes.text()?.to_owned() },
            AGGREGATED => {
                let series = (0..bytes.count()?).map(|_| Ok((bytes.text()?.to_owned(), bytes.block()?)));
                let series: Vec<(String, Block)> = series.collect::<Result<_, _>>()?;
                if series.iter().any(|(_, block)| block.series.len() != 1) {
                    return Err(DecodeWalRecordError);
                }
                let key = if bytes.byte()? == 0 {
                    None
                } else {
                    let key = bytes.take(16)?.try_into().expect("take returns this many bytes");
                    let (accepted, rejected) = (bytes.number()?, bytes.number()?);
                    Some((key, PushCounts { accepted, rejected }))
                };
                Self::Aggregated { key, series }
            }
            REMOVE => Self::Remove { name: bytes.text()?.to_owned(), labels: bytes.text()?.into() },
            WIPE => Self::Wipe,
            END => Self::End { records: bytes.long()? },
            _ => return Err(DecodeWalRecordError),
        };
        if bytes.0.is_empty() { Ok(record) } else { Err(DecodeWalRecordError) }
    }
}

struct RecordReader<'a>(&'a [u8]);

impl<'a> RecordReader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeWalRecordError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DecodeWalRecordError)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, DecodeWalRecordError> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, DecodeWalRecordError> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("take returns this many bytes")))
    }

    fn long(&mut self) -> Result<u64, DecodeWalRecordError> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("take returns this many bytes")))
    }

    fn float(&mut self) -> Result<f64, DecodeWalRecordError> {
        self.long().map(f64::from_bits)
    }

    /// A number of items that follow, each of at least one byte.
    fn count(&mut self) -> Result<usize, DecodeWalRecordError> {
        let count = self.number()? as usize;
        if count <= self.0.len() { Ok(count) } else { Err(DecodeWalRecordError) }
    }

    fn text(&mut self) -> Result<&'a str, DecodeWalRecordError> {
        let length = self.count()?;
        str::from_utf8(self.take(length)?).map_err(|_not_utf8| DecodeWalRecordError)
    }

    fn block(&mut self) -> Result<Block, DecodeWalRecordError> {
        let kind = *MetricKind::ALL.get(usize::from(self.byte()?)).ok_or(DecodeWalRecordError)?;
        let help: Name = self.text()?.into();
        let wall_s = self.float()?;
        let series =
            (0..self.count()?).map(|_| Ok(Series { labels: self.text()?.into(), value: self.value()? }));
        let series = series.collect::<Result<_, _>>()?;
        let index = BlockIndex::default();
        Ok(Block { kind, help, series, last_push: Moment::ZERO, last_push_wall_s: wall_s, index })
    }

    fn value(&mut self) -> Result<SeriesValue, DecodeWalRecordError> {
        let kind = self.byte()?;
        let first = self.float()?;
        if kind == 0 {
            return Ok(SeriesValue::Number(first));
        }
        let all = self.long()?;
        let pairs = (0..self.count()?).map(|_| Ok((self.float()?, self.long()?)));
        let pairs: Vec<(f64, u64)> = pairs.collect::<Result<_, _>>()?;
        Ok(match kind {
            1 | NATIVE => {
                let native = if kind == NATIVE { Some(Box::new(self.native()?)) } else { None };
                SeriesValue::Histogram(Box::new(Histogram { buckets: pairs, sum: first, count: all, native }))
            }
            2 => {
                let quantiles =
                    pairs.into_iter().map(|(quantile, value)| (quantile, f64::from_bits(value))).collect();
                SeriesValue::Summary(Box::new(Summary { quantiles, sum: first, count: all }))
            }
            _ => return Err(DecodeWalRecordError),
        })
    }

    fn native(&mut self) -> Result<NativeHistogram, DecodeWalRecordError> {
        let schema = self.number()?.cast_signed();
        let zero_threshold = self.float()?;
        let [positive_spans, negative_spans] = [self.spans()?, self.spans()?];
        let is_float = self.byte()? == 1;
        let zero = self.long()?;
        let counts = if is_float {
            let (zero, count) = (f64::from_bits(zero), self.float()?);
            NativeCounts::Float { count, zero, positive: self.floats()?, negative: self.floats()? }
        } else {
            let deltas = |longs: Vec<u64>| longs.into_iter().map(u64::cast_signed).collect();
            NativeCounts::Integer { zero, positive: deltas(self.longs()?), negative: deltas(self.longs()?) }
        };
        Ok(NativeHistogram { schema, zero_threshold, positive_spans, negative_spans, counts })
    }

    fn spans(&mut self) -> Result<Vec<Span>, DecodeWalRecordError> {
        let spans = (0..self.count()?)
            .map(|_| Ok(Span { offset: self.number()?.cast_signed(), length: self.number()? }));
        spans.collect()
    }

    fn longs(&mut self) -> Result<Vec<u64>, DecodeWalRecordError> {
        (0..self.count()?).map(|_| self.long()).collect()
    }

    fn floats(&mut self) -> Result<Vec<f64>, DecodeWalRecordError> {
        (0..self.count()?).map(|_| self.float()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::native::tests::{float, integer};

    fn blocks() -> Vec<(String, Block)> {
        let series = |value| vec![Series { labels: "a=\"b\"".into(), value }];
        let block = |kind, value| Block {
            kind,
            help: "help".into(),
            series: series(value),
            last_push: Moment::ZERO,
            last_push_wall_s: 7.5,
            index: BlockIndex::default(),
        };
        let classic =
            Histogram { buckets: vec![(0.5, 1), (f64::INFINITY, 2)], sum: -1.0, count: 2, native: None };
        let native = |native| Histogram { native: Some(Box::new(native)), ..classic.clone() };
        let histogram = |histogram| block(MetricKind::Histogram, SeriesValue::Histogram(Box::new(histogram)));
        let summary = Summary { quantiles: vec![(0.9, 1.5)], sum: 3.0, count: 9 };
        vec![
            ("n".into(), block(MetricKind::Gauge, SeriesValue::Number(1.0))),
            ("h".into(), histogram(classic.clone())),
            ("ni".into(), histogram(native(integer()))),
            ("nf".into(), histogram(native(float()))),
            ("s".into(), block(MetricKind::Summary, SeriesValue::Summary(Box::new(summary)))),
        ]
    }

    fn all() -> Vec<(WalRecord, Vec<u8>)> {
        let grouping_key = GroupingKey::parse("job/a/x/1").unwrap();
        let of = grouping_key.clone();
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out
        };
        let families = blocks();
        let counts = PushCounts { accepted: 3, rejected: 1 };
        vec![
            (
                WalRecord::Group {
                    grouping_key,
                    push_s: 1.0,
                    failure_s: 2.0,
                    replace: true,
                    families: blocks(),
                },
                written(&|out| {
                    encode_group(
                        out,
                        &of,
                        (1.0, 2.0),
                        true,
                        families.iter().map(|(name, block)| (name.as_str(), block)),
                    );
                }),
            ),
            (WalRecord::Delete { key: "k".into() }, written(&|out| encode_delete(out, "k"))),
            (
                WalRecord::Aggregated { key: Some(([7; 16], counts)), series: blocks() },
                written(&|out| {
                    let start = begin_aggregated(out);
                    for (name, block) in &blocks() {
                        encode_series(out, name, block);
                    }
                    finish_aggregated(out, start, 5, Some(([7; 16], counts)));
                }),
            ),
            (
                WalRecord::Remove { name: "n".into(), labels: "l".into() },
                written(&|out| encode_remove(out, "n", "l")),
            ),
            (WalRecord::Wipe, written(&encode_wipe)),
            (WalRecord::End { records: 5 }, written(&|out| encode_end(out, 5))),
        ]
    }

    #[test]
    fn records_decode_to_the_encoded_values() {
        for (record, bytes) in all() {
            assert_eq!(WalRecord::decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn decoder_refuses_truncated_records_and_trailing_bytes() {
        for (_, mut bytes) in all() {
            for end in 0..bytes.len() {
                assert_eq!(WalRecord::decode(&bytes[..end]), Err(DecodeWalRecordError));
            }
            bytes.push(0);
            assert_eq!(WalRecord::decode(&bytes), Err(DecodeWalRecordError));
        }
        assert_eq!(WalRecord::decode(&[99]), Err(DecodeWalRecordError));
    }
}
