//! Metric families made by hand, for figures that are worked out when they are asked for. Whoever adds figures to the
//! exposition makes its families here.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::http::{BUCKETS_MS, Requests};
use super::rates::float;

pub(crate) enum Value {
    Counter(f64),
    Gauge(f64),
    Histogram(Histogram),
}

impl Value {
    pub(super) fn histogram(requests: &Requests) -> Self {
        let mut histogram = Histogram::default();
        let mut cumulative = 0;
        let buckets = BUCKETS_MS.iter().zip(requests.buckets).map(|(bound, count)| {
            cumulative += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(requests.count());
        histogram.set_sample_sum(float(requests.sum_nanos) / 1e6);
        Self::Histogram(histogram)
    }
}

/// All values of a family are of one kind.
pub(crate) fn family(name: &str, help: &str, metrics: Vec<(Vec<(&str, &str)>, Value)>) -> MetricFamily {
    let kind = match metrics.first() {
        Some((_, Value::Counter(_))) => MetricType::COUNTER,
        Some((_, Value::Histogram(_))) => MetricType::HISTOGRAM,
        Some((_, Value::Gauge(_))) | None => MetricType::GAUGE,
    };
    let metrics = metrics.into_iter().map(|(labels, value)| {
        let pairs = labels.into_iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut metric = Metric::from_label(pairs.collect());
        match value {
            Value::Counter(value) => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Value::Gauge(value) => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            Value::Histogram(histogram) => metric.set_histogram(histogram),
        }
        metric
    });
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics.collect());
    family
}
