//! Renders the JSON of `/api/v1/metrics` and `/api/v1/status` in Pushgateway's format.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::exposition::{FAILURE_HELP, PUSH_HELP};
use super::metric::{Block, BlockIndex, MetricKind, Series, SeriesValue, render_labels, rendered_labels};
use super::state::{FAILURE_TIME, MetricGroup, Name, Owner, PUSH_TIME, Snapshot, families_of};
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

/// All groups with their metrics.
pub fn metrics_json(snapshot: &Snapshot) -> String {
    success(Groups(snapshot))
}

struct Groups<'a>(&'a Snapshot);

impl Serialize for Groups<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let snapshot = self.0;
        serializer.collect_seq(snapshot.groups.iter().map(|(key, group)| {
            let owner = Owner::Group(key.clone());
            let names = families_of(&snapshot.group_families, key);
            let families =
                names.map(|name| (name.clone(), &*snapshot.blocks[&(name, owner.clone())])).collect();
            Group { group, families }
        }))
    }
}

struct Group<'a> {
    group: &'a MetricGroup,
    families: Vec<(Name, &'a Block)>,
}

impl Serialize for Group<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let group = self.group;
        let mut map = serializer.serialize_map(None)?;
        let labels = group.grouping_key.labels.iter().map(|(name, value)| (&**name, &**value));
        map.serialize_entry("labels", &Pairs(labels.collect()))?;
        map.serialize_entry("last_push_successful", &(group.last_success_s > group.last_failure_s))?;
        for (name, block) in &self.families {
            map.serialize_entry(&**name, &Family(block))?;
        }
        map.serialize_entry(FAILURE_TIME, &Family(&time_block(group, FAILURE_HELP, group.last_failure_s)))?;
        map.serialize_entry(PUSH_TIME, &Family(&time_block(group, PUSH_HELP, group.last_success_s)))?;
        map.end()
    }
}

/// The family of a time of `group`.
fn time_block(group: &MetricGroup, help: &str, time_s: f64) -> Block {
    let mut labels = Vec::new();
    group.grouping_key.apply_to(&mut labels);
    let labels = render_labels(&mut labels).into();
    Block {
        kind: MetricKind::Gauge,
        help: help.into(),
        series: vec![Series { labels, value: SeriesValue::Number(time_s) }],
        last_push: group.last_push,
        last_push_wall_s: group.last_success_s.max(group.last_failure_s),
        index: BlockIndex::default(),
    }
}

struct Family<'a>(&'a Block);

impl Serialize for Family<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let block = self.0;
        #[expect(clippy::cast_possible_truncation, reason = "times of this era")]
        let time = Timestamp::from_micros((block.last_push_wall_s * 1e6) as i64);
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("time_stamp", &time.to_string())?;
        map.serialize_entry("type", &block.kind.name().to_ascii_uppercase())?;
        if !block.help.is_empty() {
            map.serialize_entry("help", &*block.help)?;
        }
        map.serialize_entry("metrics", &block.series.iter().map(Sample).collect::<Vec<_>>())?;
        map.end()
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
                (summary.count, summary.sum)
            }
            SeriesValue::Histogram(histogram) => {
                let buckets = histogram.buckets.iter();
                let pairs = buckets.map(|(bound, count)| (format_float(*bound), count.to_string()));
                map.serialize_entry("buckets", &Pairs(pairs.collect()))?;
                (histogram.count, histogram.sum)
            }
        };
        map.serialize_entry("count", &count.to_string())?;
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
