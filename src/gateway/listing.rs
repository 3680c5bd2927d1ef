//! `/api/v1/metrics` and `/api/v1/status` as Pushgateway writes them.

use super::metric::{Block, Kind, Series, Value, float, rendered};
use super::state::{FAILURE_TIME, Group, Name, Owner, PUSH_TIME, View, families_of};
use crate::event::Timestamp;
use crate::json::text::quote;

/// All groups with their metrics.
pub fn groups(view: &View) -> String {
    let mut out = br#"{"status":"success","data":["#.to_vec();
    for (nth, (key, group)) in view.groups.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        let owner = Owner::Group(key.clone());
        let names: Vec<Name> = families_of(&view.members, key).collect();
        let blocks = names.iter().map(|name| (&**name, &*view.blocks[&(name.clone(), owner.clone())]));
        write_group(&mut out, group, blocks);
    }
    out.extend_from_slice(b"]}");
    String::from_utf8(out).expect("JSON is written as UTF-8")
}

fn write_group<'a>(out: &mut Vec<u8>, group: &Group, blocks: impl Iterator<Item = (&'a str, &'a Block)>) {
    out.extend_from_slice(b"{\"labels\":{");
    for (nth, (name, value)) in group.target.labels.iter().enumerate() {
        member(out, nth, name);
        quote(out, value);
    }
    let good = group.push_s > group.failure_s;
    out.extend_from_slice(format!("}},\"last_push_successful\":{good}").as_bytes());
    for (name, block) in blocks {
        member(out, 1, name);
        write_family(out, block);
    }
    for (name, help, value) in [
        (FAILURE_TIME, super::exposition::FAILURE_HELP, group.failure_s),
        (PUSH_TIME, super::exposition::PUSH_HELP, group.push_s),
    ] {
        member(out, 1, name);
        let mut labels = Vec::new();
        group.target.bind(&mut labels);
        let labels = super::metric::render(&mut labels).into();
        let series = vec![Series { labels, value: Value::Number(value) }];
        let wall_s = group.push_s.max(group.failure_s);
        let touched = group.touched;
        write_family(out, &Block { kind: Kind::Gauge, help: help.into(), series, touched, wall_s });
    }
    out.push(b'}');
}

fn write_family(out: &mut Vec<u8>, block: &Block) {
    #[expect(clippy::cast_possible_truncation, reason = "times of this era")]
    let time = Timestamp::from_micros((block.wall_s * 1e6) as i64);
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
        for (nth, (name, value)) in rendered(&series.labels).enumerate() {
            member(out, nth, name);
            quote(out, &value);
        }
        out.push(b'}');
        let mut pairs = |name: &str, pairs: Vec<(f64, String)>| {
            member(out, 1, name);
            out.push(b'{');
            for (nth, (place, value)) in pairs.iter().enumerate() {
                member(out, nth, &float(*place));
                quote(out, value);
            }
            out.push(b'}');
        };
        match &series.value {
            Value::Number(number) => write_values(out, &[("value", float(*number))]),
            Value::Summary(summary) => {
                pairs("quantiles", summary.quantiles.iter().map(|(q, value)| (*q, float(*value))).collect());
                write_values(out, &[("count", summary.count.to_string()), ("sum", float(summary.sum))]);
            }
            Value::Histogram(histogram) => {
                pairs(
                    "buckets",
                    histogram.buckets.iter().map(|(b, count)| (*b, count.to_string())).collect(),
                );
                write_values(out, &[("count", histogram.count.to_string()), ("sum", float(histogram.sum))]);
            }
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

fn write_values(out: &mut Vec<u8>, values: &[(&str, String)]) {
    for (name, value) in values {
        member(out, 1, name);
        quote(out, value);
    }
}

fn member(out: &mut Vec<u8>, nth: usize, name: &str) {
    if nth > 0 {
        out.push(b',');
    }
    quote(out, name);
    out.push(b':');
}

/// What runs here, since when. Flags are told as the settings are, which have no secrets in them.
pub fn status(started_at: Timestamp, flags: &[String]) -> String {
    let mut out = br#"{"status":"success","data":{"build_information":{"version":"#.to_vec();
    quote(&mut out, env!("CARGO_PKG_VERSION"));
    out.extend_from_slice(
        br#","branch":"","buildDate":"","buildUser":"","goVersion":"","revision":""},"flags":{"#,
    );
    for (nth, (name, value)) in flags.iter().filter_map(|flag| flag.split_once('=')).enumerate() {
        member(&mut out, nth, name);
        quote(&mut out, value);
    }
    out.extend_from_slice(b"},\"start_time\":");
    quote(&mut out, &started_at.to_string());
    out.extend_from_slice(b"}}");
    String::from_utf8(out).expect("JSON is written as UTF-8")
}
