//! Changes to the state as bytes, for the log and the snapshot. Each says how things are after it and not by how much
//! they changed, so that one replayed twice, or after a snapshot that has seen it, does no harm.
//!
//! ```text
//! record  kind (1) | what the kind has
//! text    bytes (4) | UTF-8
//! block   kind (1) | help | wall, s (8) | series (4) | series...
//! series  labels | value kind (1) | number (8), or sum (8) | count (8) | pairs (4) | pairs of 8 + 8
//! ```
//! All numbers are little-endian. Framing and checksums are the log's affair.

use std::sync::Arc;

use super::keys::{Key, Verdict};
use super::metric::{Block, Histogram, Kind, Series, Summary, Value};
use super::state::Name;
use super::target::Target;
use crate::clock::Moment;

const GROUP: u8 = 1;
const DELETE: u8 = 2;
const SUM: u8 = 3;
const REMOVE: u8 = 4;
const WIPE: u8 = 5;
const END: u8 = 6;

/// A record read back.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Group {
        target: Target,
        push_s: f64,
        failure_s: f64,
        /// Whether the group has no other families.
        replace: bool,
        families: Vec<(String, Block)>,
    },
    Delete {
        key: String,
    },
    Sum {
        key: Option<(Key, Verdict)>,
        series: Vec<(String, Block)>,
    },
    Remove {
        name: String,
        labels: Arc<str>,
    },
    Wipe,
    /// The last of a snapshot, which has so many before it.
    End {
        records: u64,
    },
}

/// A group with these of its families, and when it was last pushed and refused; NaN leaves a time as it was. With
/// `replace` the group has no other families.
pub fn group<'a>(
    out: &mut Vec<u8>,
    target: &Target,
    (push_s, failure_s): (f64, f64),
    replace: bool,
    families: impl ExactSizeIterator<Item = (&'a str, &'a Block)>,
) {
    out.push(GROUP);
    count(out, target.labels.len());
    for (name, value) in &target.labels {
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

pub fn delete(out: &mut Vec<u8>, key: &str) {
    out.push(DELETE);
    text(out, key);
}

/// Begins a record of series that were added up. What follows is each [`summed`], counted by [`finish_sum`].
pub fn begin_sum(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[SUM, 0, 0, 0, 0]);
    start
}

pub fn summed(out: &mut Vec<u8>, name: &str, series: &Block) {
    text(out, name);
    block(out, series);
}

/// Ends it: how many series there were, and the key of the push if it had one.
pub fn finish_sum(out: &mut Vec<u8>, start: usize, series: u32, key: Option<(Key, Verdict)>) {
    out[start + 1..start + 5].copy_from_slice(&series.to_le_bytes());
    match key {
        None => out.push(0),
        Some((key, verdict)) => {
            out.push(1);
            out.extend_from_slice(&key);
            out.extend_from_slice(&verdict.accepted.to_le_bytes());
            out.extend_from_slice(&verdict.rejected.to_le_bytes());
        }
    }
}

pub fn remove(out: &mut Vec<u8>, name: &str, labels: &str) {
    out.push(REMOVE);
    text(out, name);
    text(out, labels);
}

pub fn wipe(out: &mut Vec<u8>) {
    out.push(WIPE);
}

pub fn end(out: &mut Vec<u8>, records: u64) {
    out.push(END);
    out.extend_from_slice(&records.to_le_bytes());
}

fn count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("BUG: a push is bounded far below 2^32 of anything");
    out.extend_from_slice(&count.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn block(out: &mut Vec<u8>, block: &Block) {
    out.push(block.kind as u8);
    text(out, &block.help);
    out.extend_from_slice(&block.wall_s.to_le_bytes());
    count(out, block.series.len());
    for series in &block.series {
        text(out, &series.labels);
        match &series.value {
            Value::Number(number) => {
                out.push(0);
                out.extend_from_slice(&number.to_le_bytes());
            }
            Value::Histogram(histogram) => {
                out.push(1);
                out.extend_from_slice(&histogram.sum.to_le_bytes());
                out.extend_from_slice(&histogram.count.to_le_bytes());
                count(out, histogram.buckets.len());
                for (bound, below) in &histogram.buckets {
                    out.extend_from_slice(&bound.to_le_bytes());
                    out.extend_from_slice(&below.to_le_bytes());
                }
            }
            Value::Summary(summary) => {
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

/// Bytes whose checksum holds and that are no record: of a mistake, or of a newer program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a record of a kind that is known")]
pub struct Unknown;

impl Record {
    pub fn decode(bytes: &[u8]) -> Result<Self, Unknown> {
        let mut bytes = Bytes(bytes);
        let record = match bytes.byte()? {
            GROUP => {
                let labels =
                    (0..bytes.count()?).map(|_| Ok((bytes.text()?.to_owned(), bytes.text()?.to_owned())));
                let target = Target::of(labels.collect::<Result<_, _>>()?);
                let (push_s, failure_s) = (bytes.float()?, bytes.float()?);
                let replace = bytes.byte()? == 1;
                let families = (0..bytes.count()?).map(|_| Ok((bytes.text()?.to_owned(), bytes.block()?)));
                Self::Group {
                    target,
                    push_s,
                    failure_s,
                    replace,
                    families: families.collect::<Result<_, _>>()?,
                }
            }
            DELETE => Self::Delete { key: bytes.text()?.to_owned() },
            SUM => {
                let series = (0..bytes.count()?).map(|_| Ok((bytes.text()?.to_owned(), bytes.block()?)));
                let series: Vec<(String, Block)> = series.collect::<Result<_, _>>()?;
                if series.iter().any(|(_, block)| block.series.len() != 1) {
                    return Err(Unknown);
                }
                let key = if bytes.byte()? == 0 {
                    None
                } else {
                    let key = bytes.take(16)?.try_into().expect("as many were asked for");
                    let (accepted, rejected) = (bytes.number()?, bytes.number()?);
                    Some((key, Verdict { accepted, rejected }))
                };
                Self::Sum { key, series }
            }
            REMOVE => Self::Remove { name: bytes.text()?.to_owned(), labels: bytes.text()?.into() },
            WIPE => Self::Wipe,
            END => Self::End { records: bytes.long()? },
            _ => return Err(Unknown),
        };
        if bytes.0.is_empty() { Ok(record) } else { Err(Unknown) }
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Unknown> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Unknown)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Unknown> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> Result<u32, Unknown> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("as many were asked for")))
    }

    fn long(&mut self) -> Result<u64, Unknown> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("as many were asked for")))
    }

    fn float(&mut self) -> Result<f64, Unknown> {
        self.long().map(f64::from_bits)
    }

    /// How many things follow, of which each takes a byte at least.
    fn count(&mut self) -> Result<usize, Unknown> {
        let count = self.number()? as usize;
        if count <= self.0.len() { Ok(count) } else { Err(Unknown) }
    }

    fn text(&mut self) -> Result<&'a str, Unknown> {
        let length = self.count()?;
        str::from_utf8(self.take(length)?).map_err(|_not_utf8| Unknown)
    }

    fn block(&mut self) -> Result<Block, Unknown> {
        let kind = *Kind::ALL.get(usize::from(self.byte()?)).ok_or(Unknown)?;
        let help: Name = self.text()?.into();
        let wall_s = self.float()?;
        let series =
            (0..self.count()?).map(|_| Ok(Series { labels: self.text()?.into(), value: self.value()? }));
        let series = series.collect::<Result<_, _>>()?;
        Ok(Block { kind, help, series, touched: Moment::ZERO, wall_s })
    }

    fn value(&mut self) -> Result<Value, Unknown> {
        let kind = self.byte()?;
        let first = self.float()?;
        if kind == 0 {
            return Ok(Value::Number(first));
        }
        let all = self.long()?;
        let mut pairs = (0..self.count()?).map(|_| Ok((self.float()?, self.long()?)));
        Ok(match kind {
            1 => {
                let buckets = pairs.collect::<Result<_, _>>()?;
                Value::Histogram(Box::new(Histogram { buckets, sum: first, count: all }))
            }
            2 => {
                let quantiles = pairs
                    .by_ref()
                    .map(|pair| pair.map(|(quantile, value)| (quantile, f64::from_bits(value))))
                    .collect::<Result<_, _>>()?;
                Value::Summary(Box::new(Summary { quantiles, sum: first, count: all }))
            }
            _ => return Err(Unknown),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks() -> Vec<(String, Block)> {
        let series = |value| vec![Series { labels: "a=\"b\"".into(), value }];
        let block = |kind, value| Block {
            kind,
            help: "help".into(),
            series: series(value),
            touched: Moment::ZERO,
            wall_s: 7.5,
        };
        let histogram = Histogram { buckets: vec![(0.5, 1), (f64::INFINITY, 2)], sum: -1.0, count: 2 };
        let summary = Summary { quantiles: vec![(0.9, 1.5)], sum: 3.0, count: 9 };
        vec![
            ("n".into(), block(Kind::Gauge, Value::Number(1.0))),
            ("h".into(), block(Kind::Histogram, Value::Histogram(Box::new(histogram)))),
            ("s".into(), block(Kind::Summary, Value::Summary(Box::new(summary)))),
        ]
    }

    fn all() -> Vec<(Record, Vec<u8>)> {
        let target = Target::parse("job/a/x/1").unwrap();
        let of = target.clone();
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            out
        };
        let families = blocks();
        let verdict = Verdict { accepted: 3, rejected: 1 };
        vec![
            (
                Record::Group { target, push_s: 1.0, failure_s: 2.0, replace: true, families: blocks() },
                written(&|out| {
                    group(
                        out,
                        &of,
                        (1.0, 2.0),
                        true,
                        families.iter().map(|(name, block)| (name.as_str(), block)),
                    );
                }),
            ),
            (Record::Delete { key: "k".into() }, written(&|out| delete(out, "k"))),
            (
                Record::Sum { key: Some(([7; 16], verdict)), series: blocks() },
                written(&|out| {
                    let start = begin_sum(out);
                    for (name, block) in &blocks() {
                        summed(out, name, block);
                    }
                    finish_sum(out, start, 3, Some(([7; 16], verdict)));
                }),
            ),
            (Record::Remove { name: "n".into(), labels: "l".into() }, written(&|out| remove(out, "n", "l"))),
            (Record::Wipe, written(&wipe)),
            (Record::End { records: 5 }, written(&|out| end(out, 5))),
        ]
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        for (record, bytes) in all() {
            assert_eq!(Record::decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn what_is_cut_off_or_goes_on_is_no_record() {
        for (_, mut bytes) in all() {
            for end in 0..bytes.len() {
                assert_eq!(Record::decode(&bytes[..end]), Err(Unknown));
            }
            bytes.push(0);
            assert_eq!(Record::decode(&bytes), Err(Unknown));
        }
        assert_eq!(Record::decode(&[99]), Err(Unknown));
    }
}
