//! Encodes the server's own metric families as `OpenMetrics` 1.0 text.

use prometheus::proto::{LabelPair, MetricFamily, MetricType};

use super::rates::to_f64;
use super::text_format::{ExpositionFormat, OPENMETRICS_EOF, write_label, write_sample};

const FORMAT: ExpositionFormat = ExpositionFormat::OpenMetrics;

/// # Panics
/// If a family is neither counter, gauge nor histogram, or a counter's name does not end in
/// `_total`.
pub(super) fn encode(families: &[MetricFamily]) -> String {
    let mut out = String::with_capacity(16 * 1024);
    for family in families {
        write_family(&mut out, family);
    }
    out.push_str(OPENMETRICS_EOF);
    out
}

fn write_family(out: &mut String, family: &MetricFamily) {
    let name = family.name();
    let (kind, base) = match family.get_field_type() {
        MetricType::COUNTER => {
            ("counter", name.strip_suffix("_total").expect("BUG: a counter without the suffix _total"))
        }
        MetricType::GAUGE => ("gauge", name),
        MetricType::HISTOGRAM => ("histogram", name),
        MetricType::SUMMARY | MetricType::UNTYPED => unreachable!("BUG: no metric has this type"),
    };
    FORMAT.write_header(out, base, kind, family.help());
    for metric in family.get_metric() {
        let labels = render_labels(metric.get_label());
        match family.get_field_type() {
            MetricType::COUNTER => {
                write_sample(out, (name, ""), &labels, None, metric.get_counter().get_value());
            }
            MetricType::GAUGE => {
                write_sample(out, (name, ""), &labels, None, metric.get_gauge().get_value());
            }
            MetricType::HISTOGRAM => {
                let histogram = metric.get_histogram();
                let count = to_f64(histogram.get_sample_count());
                for at in histogram.get_bucket() {
                    let bound = FORMAT.format_bound(at.upper_bound());
                    let below = to_f64(at.cumulative_count());
                    write_sample(out, (name, "_bucket"), &labels, Some(("le", &bound)), below);
                }
                write_sample(out, (name, "_bucket"), &labels, Some(("le", "+Inf")), count);
                write_sample(out, (name, "_count"), &labels, None, count);
                write_sample(out, (name, "_sum"), &labels, None, histogram.get_sample_sum());
            }
            MetricType::SUMMARY | MetricType::UNTYPED => {}
        }
    }
}

fn render_labels(labels: &[LabelPair]) -> String {
    let mut out = String::new();
    for (nth, pair) in labels.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write_label(&mut out, pair.name(), pair.value());
    }
    out
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
            "# HELP a A \\\"b\\\"\\\\\n# TYPE a counter\na_total{s=\"x\\n\\\"\"} 3\n\
             # HELP g G\n# TYPE g gauge\ng 0.5\n\
             # HELP h H\n# TYPE h histogram\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 3\nh_count 3\n\
             h_sum 7.5\n# EOF\n"
        );
    }
}
