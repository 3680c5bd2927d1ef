//! The rules of `OpenMetrics` that the text format does not have: names that a family of a type
//! implies, and values that its type allows. A family that does not meet them is exposed with the
//! type `unknown`, so that every series keeps its name and value and a strict parser accepts the
//! page.
//!
//! Names clash although the state keeps all names apart: a counter `foo_total` is the family `foo`
//! there, which a gauge `foo` may be already, and counters, histograms and summaries imply a series
//! `foo_created`, which Python's and Java's clients push as a gauge.

use super::metric::{Histogram, MetricKind, Series, SeriesValue, Summary};
use super::state::{FAILURE_TIME, Name, Owner, PUSH_TIME, Snapshot};

/// How a family is exposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMetricsForm {
    /// As one family of this type; its name is without `removed` at its end.
    Whole { removed: &'static str, kind: &'static str },
    /// As a family of type `unknown` for each of these suffixes.
    Parts(&'static [&'static str]),
}

/// The form of the family whose first block has the key `first`.
pub fn form(snapshot: &Snapshot, first: &(Name, Owner), kind: MetricKind) -> OpenMetricsForm {
    let name = &*first.0;
    let unknown = OpenMetricsForm::Whole { removed: "", kind: "unknown" };
    let conforms = |is_valid: fn(&Series) -> bool| {
        let blocks = snapshot.blocks.range(first.clone()..).take_while(|((found, _), _)| **found == *name);
        blocks.flat_map(|(_, block)| &block.series).all(is_valid)
    };
    let has_created = || has_family(snapshot, &format!("{name}_created"));
    match kind {
        MetricKind::Untyped => unknown,
        MetricKind::Counter => match name.strip_suffix("_total") {
            Some(base)
                if !base.is_empty() && !is_base_in_use(snapshot, base) && conforms(is_valid_counter) =>
            {
                OpenMetricsForm::Whole { removed: "_total", kind: kind.name() }
            }
            Some(_) | None => unknown,
        },
        MetricKind::Histogram if has_created() || !conforms(is_valid_histogram) => {
            OpenMetricsForm::Parts(&["_bucket", "_sum", "_count"])
        }
        MetricKind::Summary if has_created() || !conforms(is_valid_summary) => {
            OpenMetricsForm::Parts(&["", "_sum", "_count"])
        }
        MetricKind::Gauge | MetricKind::Histogram | MetricKind::Summary => {
            OpenMetricsForm::Whole { removed: "", kind: kind.name() }
        }
    }
}

/// Whether a name that the counter `base` implies, `base` or `base_created`, is in use or implied by
/// another family.
fn is_base_in_use(snapshot: &Snapshot, base: &str) -> bool {
    let created = format!("{base}_created");
    is_in_use(snapshot, base)
        || is_in_use(snapshot, &created)
        || has_family(snapshot, &format!("{created}_total"))
}

/// Whether a family has this name, or a histogram or summary has or implies a series of this name.
fn is_in_use(snapshot: &Snapshot, name: &str) -> bool {
    let is_part = |suffix: &str| {
        let kind = name.strip_suffix(suffix).and_then(|base| kind_of(snapshot, base));
        kind.is_some_and(|kind| {
            kind.suffixes().contains(&suffix) || (suffix == "_created" && !kind.suffixes().is_empty())
        })
    };
    // The server adds these two.
    name == PUSH_TIME
        || name == FAILURE_TIME
        || has_family(snapshot, name)
        || ["_count", "_sum", "_bucket", "_created"].into_iter().any(is_part)
}

fn has_family(snapshot: &Snapshot, name: &str) -> bool {
    kind_of(snapshot, name).is_some()
}

fn kind_of(snapshot: &Snapshot, name: &str) -> Option<MetricKind> {
    let first = (Name::from(name), Owner::Aggregated("".into()));
    let ((found, _), block) = snapshot.blocks.range(first..).next()?;
    (**found == *name).then_some(block.kind)
}

/// Neither NaN nor negative, as all values that count something.
fn is_valid_sum(value: f64) -> bool {
    value >= 0.0
}

fn is_valid_counter(series: &Series) -> bool {
    matches!(series.value, SeriesValue::Number(value) if is_valid_sum(value))
}

/// Whether the buckets are cumulative and agree with the count. A histogram of negative bounds may
/// have no sum.
fn is_valid_histogram(series: &Series) -> bool {
    let SeriesValue::Histogram(histogram) = &series.value else { return false };
    let Histogram { buckets, sum, count, native: _ } = &**histogram;
    let cumulative = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
    let agrees = buckets
        .last()
        .is_none_or(|(bound, below)| if *bound == f64::INFINITY { below == count } else { below <= count });
    let is_whole = histogram.total().fract() <= 0.0;
    is_valid_sum(*sum)
        && is_whole
        && cumulative
        && agrees
        && buckets.first().is_none_or(|(bound, _)| *bound >= 0.0)
}

fn is_valid_summary(series: &Series) -> bool {
    let SeriesValue::Summary(summary) = &series.value else { return false };
    let Summary { quantiles, sum, .. } = &**summary;
    // A quantile of no observation is NaN.
    let is_valid =
        |(quantile, value): &(f64, f64)| (0.0..=1.0).contains(quantile) && (value.is_nan() || *value >= 0.0);
    is_valid_sum(*sum) && quantiles.iter().all(is_valid)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crate::clock::Moment;
    use crate::gateway::exposition::render_all;
    use crate::gateway::grouping_key::GroupingKey;
    use crate::gateway::idempotency::{IdempotencyKeys, KeyLimits};
    use crate::gateway::state::GatewayState;
    use crate::gateway::text;
    use crate::gateway::validate::{ParseLimits, validate_push};
    use crate::metrics::text_format::ExpositionFormat;

    /// The types and the samples of the page after a push of `body`, joined by `|`. Samples are
    /// listed without the labels of the group.
    #[track_caller]
    fn check(body: &str, expected: &str) {
        let keys = IdempotencyKeys::new(KeyLimits { count_max: 1, age_max: Duration::from_secs(1) });
        let mut state = GatewayState::new(keys);
        for job in ["a", "b"] {
            let grouping_key = Arc::new(GroupingKey::parse(&format!("job/{job}")).unwrap());
            let parsed = text::parse(body.as_bytes(), ParseLimits::NONE).unwrap();
            let families = validate_push(&grouping_key, parsed, (Moment::ZERO, 1.0)).unwrap();
            state.push(&grouping_key, families, true, (Moment::ZERO, 1.0)).unwrap();
        }
        let page = render_all(state.snapshot(), ExpositionFormat::OpenMetrics);
        let end = page.find("# HELP push_failure_time_seconds").unwrap();
        let lines = page[..end].lines().map(|line| {
            let line = line.replace("instance=\"\",job=", "");
            line.strip_prefix("# TYPE ").map_or_else(|| line.clone(), |typed| format!("+{typed}"))
        });
        assert_eq!(lines.collect::<Vec<_>>().join("|"), expected);
    }

    #[test]
    fn a_counter_is_renamed_only_where_its_names_are_free() {
        const COUNTER: &str = "# TYPE f_total counter\nf_total 1\n";
        check(COUNTER, "+f counter|f_total{\"a\"} 1|f_total{\"b\"} 1");
        let unknown = "+f_total unknown|f_total{\"a\"} 1|f_total{\"b\"} 1";
        check(&format!("{COUNTER}f 1\n"), &format!("+f unknown|f{{\"a\"}} 1|f{{\"b\"}} 1|{unknown}"));
        check(
            &format!("# TYPE f_created gauge\nf_created 1\n{COUNTER}"),
            &format!("+f_created gauge|f_created{{\"a\"}} 1|f_created{{\"b\"}} 1|{unknown}"),
        );
        check(
            &format!("# TYPE f_info gauge\nf_info 1\n{COUNTER}"),
            "+f_info gauge|f_info{\"a\"} 1|f_info{\"b\"} 1|+f counter|f_total{\"a\"} 1|f_total{\"b\"} 1",
        );
        // Both would have the series `f_created`.
        check(
            &format!("# TYPE f_created_total counter\nf_created_total 1\n{COUNTER}"),
            &format!("+f_created counter|f_created_total{{\"a\"}} 1|f_created_total{{\"b\"}} 1|{unknown}"),
        );
        for (value, shown) in [("-1", "-1"), ("NaN", "NaN")] {
            check(
                &format!("# TYPE f_total counter\nf_total {value}\n"),
                &format!("+f_total unknown|f_total{{\"a\"}} {shown}|f_total{{\"b\"}} {shown}"),
            );
        }
        check("# TYPE f counter\nf 1\n", "+f unknown|f{\"a\"} 1|f{\"b\"} 1");
        check(
            "# TYPE push_time_seconds_total counter\npush_time_seconds_total 1\n",
            "+push_time_seconds_total unknown|push_time_seconds_total{\"a\"} 1|push_time_seconds_total{\"b\"} 1",
        );
    }

    #[test]
    fn a_histogram_or_summary_that_breaks_a_rule_is_written_as_its_parts() {
        let histogram = |bucket: &str, sum: &str, count: &str| {
            format!(
                "# TYPE h histogram\nh_bucket{{{bucket}}} 2\nh_bucket{{le=\"+Inf\"}} 3\nh_sum {sum}\nh_count {count}\n"
            )
        };
        let both = |line: &str| format!("{}|{}", line.replace('@', "\"a\""), line.replace('@', "\"b\""));
        check(
            &histogram("le=\"1\"", "4", "3"),
            &format!(
                "+h histogram|{}",
                both("h_bucket{@,le=\"1.0\"} 2|h_bucket{@,le=\"+Inf\"} 3|h_sum{@} 4|h_count{@} 3")
            ),
        );
        let parts = |le: &str, sum: &str, count: &str| {
            let buckets = both(&format!("h_bucket{{@,le=\"{le}\"}} 2|h_bucket{{@,le=\"+Inf\"}} 3"));
            let (sum, count) = (both(&format!("h_sum{{@}} {sum}")), both(&format!("h_count{{@}} {count}")));
            format!("+h_bucket unknown|{buckets}|+h_sum unknown|{sum}|+h_count unknown|{count}")
        };
        check(&histogram("le=\"1\"", "4", "5"), &parts("1.0", "4", "5"));
        check(&histogram("le=\"1\"", "NaN", "3"), &parts("1.0", "NaN", "3"));
        check(&histogram("le=\"-1\"", "4", "3"), &parts("-1.0", "4", "3"));
        check(
            &format!("{}# TYPE h_created gauge\nh_created 1\n", histogram("le=\"1\"", "4", "3")),
            &format!("{}|+h_created gauge|{}", parts("1.0", "4", "3"), both("h_created{@} 1")),
        );
        let summary = |quantile: &str, value: &str| {
            format!("# TYPE s summary\ns{{quantile=\"{quantile}\"}} {value}\ns_sum 4\ns_count 3\n")
        };
        check(
            &summary("0.5", "NaN"),
            &format!("+s summary|{}", both("s{@,quantile=\"0.5\"} NaN|s_sum{@} 4|s_count{@} 3")),
        );
        for (quantile, shown, value) in [("2", "2.0", "1"), ("0.5", "0.5", "-1")] {
            let quantiles = both(&format!("s{{@,quantile=\"{shown}\"}} {value}"));
            let (sum, count) = (both("s_sum{@} 4"), both("s_count{@} 3"));
            check(
                &summary(quantile, value),
                &format!("+s unknown|{quantiles}|+s_sum unknown|{sum}|+s_count unknown|{count}"),
            );
        }
        // A counter whose family would have the name of a part.
        check(
            &format!("{}# TYPE h_sum_total counter\nh_sum_total 1\n", histogram("le=\"1\"", "4", "3")),
            &format!(
                "+h histogram|{}|+h_sum_total unknown|{}",
                both("h_bucket{@,le=\"1.0\"} 2|h_bucket{@,le=\"+Inf\"} 3|h_sum{@} 4|h_count{@} 3"),
                both("h_sum_total{@} 1")
            ),
        );
    }
}
