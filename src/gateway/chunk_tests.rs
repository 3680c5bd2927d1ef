//! Pages that are rendered chunk by chunk: each chunk is small, and together they have every series.

use std::sync::Arc;

use super::api_v1::GroupsPage;
use super::exposition::render_all;
use super::grouping_key::GroupingKey;
use super::idempotency::{IdempotencyKeys, KeyLimits};
use super::metric::{Histogram, MetricKind, ParsedBody, ParsedFamily, ParsedSample, SeriesValue};
use super::names::NameEscaping;
use super::native::tests::{float, integer};
use super::protobuf_page::ProtobufPage;
use super::state::{GatewayState, Snapshot};
use super::validate::{ParseLimits, validate_push};
use super::*;
use crate::metrics::text_format::ExpositionFormat;

/// The size of a chunk and of the longest series that begins within it.
const CHUNK_MAX: usize = 65 * 1024;

fn snapshot_of(bodies: Vec<ParsedBody<'_>>) -> Snapshot {
    let keys = IdempotencyKeys::new(KeyLimits { count_max: 1, age_max: Duration::from_secs(1) });
    let mut state = GatewayState::new(keys);
    for (nth, parsed) in bodies.into_iter().enumerate() {
        let grouping_key = Arc::new(GroupingKey::parse(&format!("job/j{nth}/U__x_2e_y/1")).unwrap());
        let families = validate_push(&grouping_key, parsed, (Moment::ZERO, 1.0)).unwrap();
        state.push(&grouping_key, families, true, (Moment::ZERO, 1.0)).unwrap();
    }
    state.snapshot()
}

#[track_caller]
fn chunks(mut next: impl FnMut(&mut Vec<u8>) -> bool) -> (Vec<u8>, usize) {
    let (mut all, mut count, mut more) = (Vec::new(), 0, true);
    while more {
        let mut chunk = Vec::new();
        more = next(&mut chunk);
        assert!(chunk.len() <= CHUNK_MAX, "a chunk of {} bytes", chunk.len());
        all.extend_from_slice(&chunk);
        count += 1;
    }
    (all, count)
}

#[test]
fn listing_and_protobuf_page_of_100_000_series_are_rendered_in_small_chunks() {
    let body = (0..100_000).fold(String::new(), |body, nth| body + &format!("m{{n=\"{nth}\"}} {nth}\n"));
    let parsed = text::parse(body.as_bytes(), ParseLimits::NONE).unwrap();
    let small =
        text::parse(b"m{a=\"\"} 1\n# HELP h H\n# TYPE h histogram\nh_count 0\n", ParseLimits::NONE).unwrap();
    let snapshot = snapshot_of(vec![parsed, small, ParsedBody::default()]);

    let mut page = GroupsPage::new(snapshot.clone());
    let (json, count) = chunks(|out| page.write_chunk(out));
    assert!(count > 50, "{count} chunks of {} bytes", json.len());
    let listed: sonic_rs::Value = sonic_rs::from_slice(&json).unwrap();
    let groups = &listed["data"];
    let series = |group: usize, name: &str| {
        sonic_rs::to_string(&groups[group][name]["metrics"]).unwrap().matches("\"labels\"").count()
    };
    assert_eq!(
        (series(0, "m"), series(1, "m"), series(1, "h"), series(2, "push_time_seconds")),
        (100_000, 1, 1, 1)
    );

    let mut page = ProtobufPage::new(snapshot, NameEscaping::Values);
    let (bytes, count) = chunks(|out| page.write_chunk(out));
    assert!(count > 50, "{count} chunks of {} bytes", bytes.len());
    let families = protobuf::parse(&bytes, ParseLimits::NONE).unwrap().families;
    let series: Vec<_> = families.iter().map(|family| (&*family.name, family.samples.len())).collect();
    assert_eq!(
        series,
        [("h", 1), ("m", 100_001), ("push_failure_time_seconds", 3), ("push_time_seconds", 3)]
    );
    assert!(families[0].samples[0].labels.iter().any(|(name, _)| name == "U__x_2e_y"));
}

#[test]
fn empty_state_has_an_empty_listing_and_an_empty_page() {
    let snapshot = snapshot_of(Vec::new());
    let mut page = GroupsPage::new(snapshot.clone());
    assert_eq!(chunks(|out| page.write_chunk(out)).0, br#"{"status":"success","data":[]}"#);
    let mut page = ProtobufPage::new(snapshot, NameEscaping::Values);
    assert_eq!(chunks(|out| page.write_chunk(out)).0, b"");
}

#[test]
fn native_histograms_are_whole_in_protobuf_and_classic_in_text() {
    let family = |name: &'static str, native, count| ParsedFamily {
        name: name.into(),
        help: "".into(),
        kind: MetricKind::Histogram,
        samples: vec![ParsedSample {
            labels: Vec::new(),
            value: SeriesValue::Histogram(Box::new(Histogram {
                buckets: Vec::new(),
                sum: 2.5,
                count,
                native: Some(Box::new(native)),
            })),
        }],
    };
    let families = vec![family("a.b", float(), 4), family("i", integer(), 7)];
    let snapshot = snapshot_of(vec![ParsedBody { families: families.clone(), ..ParsedBody::default() }]);
    let mut page = ProtobufPage::new(snapshot.clone(), NameEscaping::AllowUtf8);
    let (bytes, _) = chunks(|out| page.write_chunk(out));
    let found = protobuf::parse(&bytes, ParseLimits::NONE).unwrap().families;
    for (found, pushed) in found.iter().zip(&families) {
        assert_eq!((&found.name, &found.samples[0].value), (&pushed.name, &pushed.samples[0].value));
        assert!(found.samples[0].labels.contains(&("x.y".into(), "1".into())));
    }
    let page = render_all(snapshot, ExpositionFormat::Text);
    let lines: Vec<_> = page.lines().filter(|line| !line.contains("push_")).collect();
    let labels = "instance=\"\",job=\"j0\",\"x.y\"=\"1\"";
    assert_eq!(
        lines,
        [
            "# TYPE \"a.b\" histogram".to_owned(),
            format!("{{\"a.b_bucket\",{labels},le=\"+Inf\"}} 4.5"),
            format!("{{\"a.b_sum\",{labels}}} 2.5"),
            format!("{{\"a.b_count\",{labels}}} 4.5"),
            "# TYPE i histogram".to_owned(),
            format!("i_bucket{{{labels},le=\"+Inf\"}} 7"),
            format!("i_sum{{{labels}}} 2.5"),
            format!("i_count{{{labels}}} 7"),
        ]
    );
    let invalid = ParsedBody { families: vec![family("i", integer(), 8)], ..ParsedBody::default() };
    let error =
        validate_push(&GroupingKey::parse("job/j").unwrap(), invalid, (Moment::ZERO, 1.0)).unwrap_err();
    assert_eq!(error.to_string(), "native histogram \"i\": its count must be the sum of its buckets");
}
