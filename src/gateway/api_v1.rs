//! Renders the JSON of `/api/v1/metrics` and `/api/v1/status` in Pushgateway's format.

use super::metric::{Block, MetricKind, Series, SeriesValue, format_float, rendered_labels};
use super::state::{FAILURE_TIME, MetricGroup, Name, Owner, PUSH_TIME, Snapshot, families_of};
use crate::event::Timestamp;
use crate::json::text::quote;

/// All groups with their metrics.
pub fn metrics_json(snapshot: &Snapshot) -> String {
    let mut out = br#"{"status":"success","data":["#.to_vec();
    for (nth, (key, group)) in snapshot.groups.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        let owner = Owner::Group(key.clone());
        let names: Vec<Name> = families_of(&snapshot.group_families, key).collect();
        let blocks = names.iter().map(|name| (&**name, &*snapshot.blocks[&(name.clone(), owner.clone())]));
        write_group(&mut out, group, blocks);
    }
    out.extend_from_slice(b"]}");
    String::from_utf8(out).expect("the JSON is UTF-8")
}

fn write_group<'a>(
    out: &mut Vec<u8>,
    group: &MetricGroup,
    blocks: impl Iterator<Item = (&'a str, &'a Block)>,
) {
    out.extend_from_slice(b"{\"labels\":{");
    for (nth, (name, value)) in group.grouping_key.labels.iter().enumerate() {
        write_key(out, nth, name);
        quote(out, value);
    }
    let good = group.last_success_s > group.last_failure_s;
    out.extend_from_slice(format!("}},\"last_push_successful\":{good}").as_bytes());
    for (name, block) in blocks {
        write_key(out, 1, name);
        write_family(out, block);
    }
    for (name, help, value) in [
        (FAILURE_TIME, super::exposition::FAILURE_HELP, group.last_failure_s),
        (PUSH_TIME, super::exposition::PUSH_HELP, group.last_success_s),
    ] {
        write_key(out, 1, name);
        let mut labels = Vec::new();
        group.grouping_key.apply_to(&mut labels);
        let labels = super::metric::render_labels(&mut labels).into();
        let series = vec![Series { labels, value: SeriesValue::Number(value) }];
        let wall_s = group.last_success_s.max(group.last_failure_s);
        let touched = group.last_push;
        write_family(
            out,
            &Block {
                kind: MetricKind::Gauge,
                help: help.into(),
                series,
                last_push: touched,
                last_push_wall_s: wall_s,
            },
        );
    }
    out.push(b'}');
}

fn write_family(out: &mut Vec<u8>, block: &Block) {
    #[expect(clippy::cast_possible_truncation, reason = "times of this era")]
    let time = Timestamp::from_micros((block.last_push_wall_s * 1e6) as i64);
    out.extend_from_slice(b"{\"time_stamp\":");
    quote(out, &time.to_string());
    out.extend_from_slice(b",\"type\":");
    quote(out, &block.kind.name().to_ascii_uppercase());
    if !block.help.is_empty() {
        out.extend_from_slice(b",\"help\":");
        quote(out, &block.help);
    }
    out.extend_from_slice(b",\"metrics\":[");
    for (nth, series) in block.series.iter().enumerate() {
        out.extend_from_slice(if nth == 0 { b"{\"labels\":{" } else { b",{\"labels\":{" });
        for (nth, (name, value)) in rendered_labels(&series.labels).enumerate() {
            write_key(out, nth, name);
            quote(out, &value);
        }
        out.push(b'}');
        let mut pairs = |name: &str, pairs: Vec<(f64, String)>| {
            write_key(out, 1, name);
            out.push(b'{');
            for (nth, (bound, value)) in pairs.iter().enumerate() {
                write_key(out, nth, &format_float(*bound));
                quote(out, value);
            }
            out.push(b'}');
        };
        match &series.value {
            SeriesValue::Number(number) => write_values(out, &[("value", format_float(*number))]),
            SeriesValue::Summary(summary) => {
                pairs(
                    "quantiles",
                    summary.quantiles.iter().map(|(q, value)| (*q, format_float(*value))).collect(),
                );
                write_values(
                    out,
                    &[("count", summary.count.to_string()), ("sum", format_float(summary.sum))],
                );
            }
            SeriesValue::Histogram(histogram) => {
                pairs(
                    "buckets",
                    histogram.buckets.iter().map(|(b, count)| (*b, count.to_string())).collect(),
                );
                write_values(
                    out,
                    &[("count", histogram.count.to_string()), ("sum", format_float(histogram.sum))],
                );
            }
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

fn write_values(out: &mut Vec<u8>, values: &[(&str, String)]) {
    for (name, value) in values {
        write_key(out, 1, name);
        quote(out, value);
    }
}

fn write_key(out: &mut Vec<u8>, nth: usize, name: &str) {
    if nth > 0 {
        out.push(b',');
    }
    quote(out, name);
    out.push(b':');
}

/// Version, start time and settings. The settings contain no secrets.
pub fn status_json(started_at: Timestamp, flags: &[String]) -> String {
    let mut out = br#"{"status":"success","data":{"build_information":{"version":"#.to_vec();
    quote(&mut out, env!("CARGO_PKG_VERSION"));
    out.extend_from_slice(
        br#","branch":"","buildDate":"","buildUser":"","goVersion":"","revision":""},"flags":{"#,
    );
    for (nth, (name, value)) in flags.iter().filter_map(|flag| flag.split_once('=')).enumerate() {
        write_key(&mut out, nth, name);
        quote(&mut out, value);
    }
    out.extend_from_slice(b"},\"start_time\":");
    quote(&mut out, &started_at.to_string());
    out.extend_from_slice(b"}}");
    String::from_utf8(out).expect("the JSON is UTF-8")
}
