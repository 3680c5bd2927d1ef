//! Renders the JSON of `/api/v1/metrics` and `/api/v1/status` in Pushgateway's format.

use std::ops::Bound;
use std::sync::Arc;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::exposition::{CHUNK_BYTES, TIMES, group_labels};
use super::metric::{Block, BlockIndex, MetricKind, Series, SeriesValue, rendered_labels};
use super::state::{MetricGroup, Name, Owner, Snapshot, families_of};
use crate::event::Timestamp;
use crate::metrics::text_format::format_float;

#[derive(serde::Serialize)]
struct Envelope<T> {
    status: &'static str,
    data: T,
}

fn success(data: impl Serialize) -> String {
    sonic_rs::to_string(&Envelope { status: "success", data })
        .expect("BUG: strings and maps with string keys are serializable")
}

/// All groups with their metrics, chunk by chunk, from one snapshot. Memory for text is bounded by the
/// chunk size, not by the number of series.
#[derive(Debug)]
pub struct GroupsPage {
    snapshot: Snapshot,
    position: GroupsPosition,
}

/// The next part to render.
#[derive(Debug)]
enum GroupsPosition {
    Start,
    /// The group after the one with this key.
    Group(Arc<str>),
    /// The family of the group after the one with this name.
    Family(Arc<str>, Name),
    /// The series with this index of a family of the group.
    Series(Arc<str>, Name, usize),
    End,
}

impl GroupsPage {
    pub fn new(snapshot: Snapshot) -> Self {
        Self { snapshot, position: GroupsPosition::Start }
    }

    /// Appends the next chunk. Returns whether there may be more.
    pub fn write_chunk(&mut self, out: &mut Vec<u8>) -> bool {
        let end = out.len() + CHUNK_BYTES;
        while out.len() < end {
            let position = std::mem::replace(&mut self.position, GroupsPosition::End);
            self.position = match position {
                GroupsPosition::Start => {
                    out.extend_from_slice(br#"{"status":"success","data":["#);
                    self.begin_group(out, None)
                }
                GroupsPosition::Group(key) => self.begin_group(out, Some(&key)),
                GroupsPosition::Family(key, name) => self.begin_family(out, key, &name),
                GroupsPosition::Series(key, name, nth) => self.write_series(out, end, (key, name, nth)),
                GroupsPosition::End => return false,
            };
        }
        true
    }

    fn begin_group(&self, out: &mut Vec<u8>, after: Option<&Arc<str>>) -> GroupsPosition {
        let from = after.cloned().map_or(Bound::Unbounded, Bound::Excluded);
        let Some((key, group)) = self.snapshot.groups.range((from, Bound::Unbounded)).next() else {
            out.extend_from_slice(b"]}");
            return GroupsPosition::End;
        };
        if after.is_some() {
            out.push(b',');
        }
        let labels = group.grouping_key.labels.iter().map(|(name, value)| (&**name, &**value));
        out.extend_from_slice(b"{\"labels\":");
        write_json(out, &Pairs(labels.collect()));
        out.extend_from_slice(b",\"last_push_successful\":");
        write_json(out, &(group.last_success_s > group.last_failure_s));
        GroupsPosition::Family(key.clone(), "".into())
    }

    fn begin_family(&self, out: &mut Vec<u8>, key: Arc<str>, after: &Name) -> GroupsPosition {
        let next = families_of(&self.snapshot.group_families, &key, Bound::Excluded(after)).next();
        let Some(name) = next else {
            let group = &self.snapshot.groups[&key];
            for (name, help, time) in TIMES {
                let block = time_block(group, help, time(group));
                write_family_head(out, name, &block);
                write_json(out, &Sample(&block.series[0]));
                out.extend_from_slice(b"]}");
            }
            out.push(b'}');
            return GroupsPosition::Group(key);
        };
        write_family_head(out, &name, self.block(&key, &name));
        GroupsPosition::Series(key, name, 0)
    }

    fn write_series(
        &self,
        out: &mut Vec<u8>,
        end: usize,
        (key, name, from): (Arc<str>, Name, usize),
    ) -> GroupsPosition {
        for (nth, series) in self.block(&key, &name).series.iter().enumerate().skip(from) {
            if out.len() >= end {
                return GroupsPosition::Series(key, name, nth);
            }
            if nth > 0 {
                out.push(b',');
            }
            write_json(out, &Sample(series));
        }
        out.extend_from_slice(b"]}");
        GroupsPosition::Family(key, name)
    }

    fn block(&self, key: &Arc<str>, name: &Name) -> &Block {
        &self.snapshot.blocks[&(name.clone(), Owner::Group(key.clone()))]
    }
}

fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let json = sonic_rs::to_vec(value).expect("BUG: strings and maps with string keys are serializable");
    out.extend_from_slice(&json);
}

/// Writes a member of a group up to the beginning of the list of series.
fn write_family_head(out: &mut Vec<u8>, name: &str, block: &Block) {
    #[expect(clippy::cast_possible_truncation, reason = "times of this era")]
    let time = Timestamp::from_micros((block.last_push_wall_s * 1e6) as i64);
    out.push(b',');
    write_json(out, name);
    out.extend_from_slice(b":{\"time_stamp\":");
    write_json(out, &time.to_string());
    out.extend_from_slice(b",\"type\":");
    write_json(out, &block.kind.name().to_ascii_uppercase());
    if !block.help.is_empty() {
        out.extend_from_slice(b",\"help\":");
        write_json(out, &*block.help);
    }
    out.extend_from_slice(b",\"metrics\":[");
}

/// The family of a time of `group`.
fn time_block(group: &MetricGroup, help: &str, time_s: f64) -> Block {
    let labels = group_labels(group).into();
    Block {
        kind: MetricKind::Gauge,
        help: help.into(),
        series: vec![Series { labels, value: SeriesValue::Number(time_s) }],
        last_push: group.last_push,
        last_push_wall_s: group.last_success_s.max(group.last_failure_s),
        index: BlockIndex::default(),
    }
}

struct Sample<'a>(&'a Series);

impl Serialize for Sample<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("labels", &Pairs(rendered_labels(&self.0.labels).collect()))?;
        let (count, sum) = match &self.0.value {
            SeriesValue::Number(number) => {
                map.serialize_entry("value", &format_float(*number))?;
                return map.end();
            }
            SeriesValue::Summary(summary) => {
                let quantiles = summary.quantiles.iter();
                let pairs =
                    quantiles.map(|(quantile, value)| (format_float(*quantile), format_float(*value)));
                map.serialize_entry("quantiles", &Pairs(pairs.collect()))?;
                (summary.count.to_string(), summary.sum)
            }
            SeriesValue::Histogram(histogram) => {
                let buckets = histogram.buckets.iter();
                let pairs = buckets.map(|(bound, count)| (format_float(*bound), count.to_string()));
                map.serialize_entry("buckets", &Pairs(pairs.collect()))?;
                let fraction = histogram.total().fract();
                let count = if fraction > 0.0 {
                    format_float(histogram.total())
                } else {
                    histogram.count.to_string()
                };
                (count, histogram.sum)
            }
        };
        map.serialize_entry("count", &count)?;
        map.serialize_entry("sum", &format_float(sum))?;
        map.end()
    }
}

/// An object with these members, in this order.
struct Pairs<N, V>(Vec<(N, V)>);

impl<N: Serialize, V: Serialize> Serialize for Pairs<N, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[derive(serde::Serialize)]
struct StatusData<'a> {
    build_information: BuildInformation,
    flags: Pairs<&'a str, &'a str>,
    start_time: String,
}

/// Pushgateway's fields; all but the version are about a build by Go.
#[derive(Default, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildInformation {
    version: &'static str,
    branch: &'static str,
    build_date: &'static str,
    build_user: &'static str,
    go_version: &'static str,
    revision: &'static str,
}

/// Version, start time and settings. The settings contain no secrets.
pub fn status_json(started_at: Timestamp, flags: &[String]) -> String {
    success(StatusData {
        build_information: BuildInformation {
            version: env!("CARGO_PKG_VERSION"),
            ..BuildInformation::default()
        },
        flags: Pairs(flags.iter().filter_map(|flag| flag.split_once('=')).collect()),
        start_time: started_at.to_string(),
    })
}
