//! Names outside of the older grammar: what a push may hold, and the forms that a page shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::exposition::{render_all, render_escaped};
use super::grouping_key::GroupingKey;
use super::idempotency::{IdempotencyKeys, KeyLimits};
use super::metric::{ParsedSample, SeriesValue};
use super::names::{NameEscaping, NameKind, escape_name, is_valid_name};
use super::state::GatewayState;
use super::validate::{NAME_BYTES_MAX, ParseLimits, validate_push};
use super::*;
use crate::metrics::text_format::ExpositionFormat;

const EMPTY_KEYS: KeyLimits = KeyLimits { count_max: 1, age_max: Duration::from_secs(1) };

fn pushed(path: &str, body: &str) -> Result<GatewayState, String> {
    let mut state = GatewayState::new(IdempotencyKeys::new(EMPTY_KEYS));
    let parsed = text::parse(body.as_bytes(), ParseLimits::NONE).map_err(|error| error.reason)?;
    let grouping_key = Arc::new(GroupingKey::parse(path).map_err(|error| error.to_string())?);
    let families =
        validate_push(&grouping_key, parsed, (Moment::ZERO, 1.0)).map_err(|error| error.to_string())?;
    state.push(&grouping_key, families, true, (Moment::ZERO, 1.0)).map_err(|error| error.to_string())?;
    Ok(state)
}

/// The lines of the page without those of the server's own series.
#[track_caller]
fn check(body: &str, format: ExpositionFormat, escaping: NameEscaping, expected: &[&str]) {
    let page = render_escaped(pushed("job/j", body).unwrap().snapshot(), format, escaping);
    let lines: Vec<_> = page
        .lines()
        .filter(|line| !line.contains("push_"))
        .map(|line| line.replace("instance=\"\",job=\"j\"", "@"))
        .collect();
    assert_eq!(lines, expected, "{escaping:?}");
}

const BODY: &str = "# HELP \"a.b\" Help.\n# TYPE \"a.b\" histogram\n{\"a.b_bucket\",\"x.y\"=\"1\",le=\"+Inf\"} 2\n\
                    {\"a.b_sum\",\"x.y\"=\"1\"} 3\n{\"a.b_count\",\"x.y\"=\"1\"} 2\n";

#[test]
fn page_has_names_in_the_form_that_was_asked_for() {
    check(
        BODY,
        ExpositionFormat::Text,
        NameEscaping::AllowUtf8,
        &[
            "# HELP \"a.b\" Help.",
            "# TYPE \"a.b\" histogram",
            "{\"a.b_bucket\",@,\"x.y\"=\"1\",le=\"+Inf\"} 2",
            "{\"a.b_sum\",@,\"x.y\"=\"1\"} 3",
            "{\"a.b_count\",@,\"x.y\"=\"1\"} 2",
        ],
    );
    check(
        BODY,
        ExpositionFormat::Text,
        NameEscaping::Values,
        &[
            "# HELP U__a_2e_b Help.",
            "# TYPE U__a_2e_b histogram",
            "U__a_2e_b_bucket{@,U__x_2e_y=\"1\",le=\"+Inf\"} 2",
            "U__a_2e_b_sum{@,U__x_2e_y=\"1\"} 3",
            "U__a_2e_b_count{@,U__x_2e_y=\"1\"} 2",
        ],
    );
    let counter = "# TYPE \"a.b_total\" counter\n{\"a.b_total\"} 1\n";
    for (escaping, family, series) in [
        (NameEscaping::AllowUtf8, "\"a.b\"", "{\"a.b_total\",@}"),
        (NameEscaping::Underscores, "a_b", "a_b_total{@}"),
        (NameEscaping::Dots, "a_dot_b_", "a_dot_b__total{@}"),
        (NameEscaping::Values, "U__a_2e_b_", "U__a_2e_b__total{@}"),
    ] {
        let lines = [format!("# TYPE {family} counter"), format!("{series} 1"), "# EOF".to_owned()];
        check(counter, ExpositionFormat::OpenMetrics, escaping, &lines.each_ref().map(String::as_str));
    }
    let page = render_escaped(
        pushed("job/j/U__x_2e_y/1", "a 1\n").unwrap().snapshot(),
        ExpositionFormat::Text,
        NameEscaping::Values,
    );
    assert!(page.contains("\npush_time_seconds{instance=\"\",job=\"j\",U__x_2e_y=\"1\"} 1\n"), "{page}");
}

#[test]
fn names_that_would_become_one_are_written_by_their_values() {
    let body = "a_b 1\n{\"a.b\"} 2\n{\"c.d\"} 3\n{\"e.f\",\"x.y\"=\"1\",x_y=\"2\"} 4\n# TYPE \"a.h\" summary\n{\"a.h_sum\"} 5\n# TYPE a_h_sum gauge\na_h_sum 6\n";
    check(
        body,
        ExpositionFormat::Text,
        NameEscaping::Underscores,
        &[
            "# TYPE U__a_2e_b untyped",
            "U__a_2e_b{@} 2",
            "# TYPE U__a_2e_h summary",
            "U__a_2e_h_sum{@} 5",
            "U__a_2e_h_count{@} 0",
            "# TYPE a_b untyped",
            "a_b{@} 1",
            "# TYPE a_h_sum gauge",
            "a_h_sum{@} 6",
            "# TYPE c_d untyped",
            "c_d{@} 3",
            "# TYPE e_f untyped",
            "e_f{@,U__x_2e_y=\"1\",x_y=\"2\"} 4",
        ],
    );
    check(
        "{\"a.b\"} 1\n{\"a-b\"} 2\n",
        ExpositionFormat::Text,
        NameEscaping::Underscores,
        &["# TYPE U__a_2d_b untyped", "U__a_2d_b{@} 2", "# TYPE U__a_2e_b untyped", "U__a_2e_b{@} 1"],
    );
}

#[test]
fn names_are_bounded_and_must_not_look_escaped() {
    let refused = |body: &str, reason: &str| {
        let error = pushed("job/j", body).map(drop).unwrap_err();
        assert!(error.contains(reason), "{body}: {error}");
    };
    refused("U__a 1\n", "\"U__a\" is not a valid metric name");
    refused("a{U__b=\"1\"} 1\n", "label with an invalid name: \"U__b\"");
    refused("{\"\"} 1\n", "invalid metric name");
    refused("a{\"\"=\"1\"} 1\n", "invalid label name");
    refused("a{\"__b.c\"=\"1\"} 1\n", "label with an invalid name");
    refused(&format!("{{\"{}\"}} 1\n", "ä".repeat(NAME_BYTES_MAX / 2 + 1)), "is longer than 1024 bytes");
    assert!(pushed("job/j", &format!("{{\"{}\"}} 1\n", "ä".repeat(NAME_BYTES_MAX / 2))).is_ok());
    assert!(pushed("job/j", "{\"a\\\"\\\\\\n {b\",\"=,\\\"\"=\"=,\\\"\"} 1\n").is_ok());
}

proptest! {
    #[test]
    fn pages_of_any_names_parse_back_to_the_series(
        series in prop::collection::btree_map(
            "[a_.\"\\\\\\n =,}]{1,5}|\\PC{1,6}",
            prop::collection::btree_map("[a_.\"\\\\\\n =,}]{1,5}|\\PC{1,6}", "[a\"\\\\,=]{1,3}", 0..3),
            1..4,
        ),
    ) {
        let usable = |name: &str| is_valid_name(name) && !name.starts_with("__");
        let mut body = String::new();
        let mut wanted = BTreeMap::new();
        for (name, labels) in series.iter().filter(|(name, _)| usable(name) && !name.starts_with("push_")) {
            let mut labels: Vec<metric::Label<'_>> = labels
                .iter()
                .filter(|(name, _)| usable(name) && !matches!(name.as_str(), "job" | "instance"))
                .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
                .collect();
            let rendered = metric::render_labels(&mut labels);
            names::write_quoted(&mut body, &[name]);
            body = format!("{body}{{{rendered}}} 1\n");
            labels.extend([("job".into(), "j".into()), ("instance".into(), "".into())]);
            labels.sort();
            wanted.insert(name.clone(), labels);
        }
        let snapshot = pushed("job/j", &body).unwrap().snapshot();
        for escaping in [NameEscaping::AllowUtf8, NameEscaping::Values] {
            let page = render_escaped(snapshot.clone(), ExpositionFormat::Text, escaping);
            let parsed = text::parse(page.as_bytes(), ParseLimits::NONE).unwrap();
            let found: BTreeMap<_, _> = parsed.families.iter()
                .filter(|family| !family.name.starts_with("push_"))
                .map(|family| {
                    let ParsedSample { labels, value } = &family.samples[0];
                    assert!(*value == SeriesValue::Number(1.0));
                    let mut labels = labels.clone();
                    labels.sort();
                    (family.name.to_string(), labels)
                })
                .collect();
            let wanted: BTreeMap<_, _> = wanted.iter().map(|(name, labels)| {
                let form = |name: &str, kind| escape_name(name, kind, escaping).into_owned();
                let mut labels: Vec<metric::Label<'_>> = labels.iter()
                    .map(|(name, value)| (form(name, NameKind::Label).into(), value.clone()))
                    .collect();
                labels.sort();
                (form(name, NameKind::Metric), labels)
            }).collect();
            prop_assert_eq!(found, wanted);
        }
        prop_assert!(render_all(snapshot, ExpositionFormat::OpenMetrics).ends_with("# EOF\n"));
    }
}
