//! Encodes metric families as OpenMetrics 1.0 text. Differences to the Prometheus text format:
//! counter families are named without `_total`, bucket bounds are floats, and the text ends with `#
//! EOF`.

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, MetricFamily, MetricType};

/// # Panics
/// If a family is neither counter, gauge nor histogram, or a counter's name does not end in
/// `_total`.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    for family in families {
        write_family(&mut out, family).expect("a write to a String does not fail");
    }
    out.push_str("# EOF\n");
    out
}

fn write_family(out: &mut String, family: &MetricFamily) -> std::fmt::Result {
    let name = family.name();
    let (kind, base) = match family.get_field_type() {
        MetricType::COUNTER => {
            ("counter", name.strip_suffix("_total").expect("BUG: a counter without the suffix _total"))
        }
        MetricType::GAUGE => ("gauge", name),
        MetricType::HISTOGRAM => ("histogram", name),
        MetricType::SUMMARY | MetricType::UNTYPED => unreachable!("BUG: no metric has this type"),
    };
    writeln!(out, "# TYPE {base} {kind}")?;
    writeln!(out, "# HELP {base} {}", escaped(family.help()))?;
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match family.get_field_type() {
            MetricType::COUNTER => {
                sample(out, name, labels, None, &metric.get_counter().get_value().to_string())?;
            }
            MetricType::GAUGE => {
                sample(out, name, labels, None, &metric.get_gauge().get_value().to_string())?;
            }
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let bucket = format!("{name}_bucket");
                for at in histogram.get_bucket() {
                    let bound = format!("{:?}", at.upper_bound());
                    sample(out, &bucket, labels, Some(&bound), &at.cumulative_count().to_string())?;
                }
                let count = histogram.get_sample_count().to_string();
                sample(out, &bucket, labels, Some("+Inf"), &count)?;
                sample(out, &format!("{name}_count"), labels, None, &count)?;
                sample(out, &format!("{name}_sum"), labels, None, &histogram.get_sample_sum().to_string())?;
            }
            MetricType::SUMMARY | MetricType::UNTYPED => {}
        }
    }
    Ok(())
}

fn sample(
    out: &mut String,
    name: &str,
    labels: &[LabelPair],
    bound: Option<&str>,
    value: &str,
) -> std::fmt::Result {
    out.push_str(name);
    let pairs = labels.iter().map(|pair| (pair.name(), pair.value()));
    for (nth, (name, value)) in pairs.chain(bound.map(|bound| ("le", bound))).enumerate() {
        out.push(if nth == 0 { '{' } else { ',' });
        write!(out, "{name}=\"{}\"", escaped(value))?;
    }
    if bound.is_some() || !labels.is_empty() {
        out.push('}');
    }
    writeln!(out, " {value}")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::family::{MetricValue, family};

    #[test]
    fn encode_writes_openmetrics_names_bounds_and_eof() {
        let mut histogram = prometheus::proto::Histogram::default();
        let mut bucket = prometheus::proto::Bucket::default();
        bucket.set_upper_bound(1.0);
        bucket.set_cumulative_count(2);
        histogram.set_bucket(vec![bucket]);
        histogram.set_sample_count(3);
        histogram.set_sample_sum(7.5);
        let families = [
            family("a_total", "A \"b\"\\", vec![(vec![("s", "x\n\"")], MetricValue::Counter(3.0))]),
            family("g", "G", vec![(vec![], MetricValue::Gauge(0.5))]),
            family("h", "H", vec![(vec![], MetricValue::Histogram(histogram))]),
        ];
        assert_eq!(
            encode(&families),
            "# TYPE a counter\n# HELP a A \\\"b\\\"\\\\\na_total{s=\"x\\n\\\"\"} 3\n\
             # TYPE g gauge\n# HELP g G\ng 0.5\n\
             # TYPE h histogram\n# HELP h H\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 3\nh_count 3\n\
             h_sum 7.5\n# EOF\n"
        );
    }
}
