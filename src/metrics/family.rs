//! Builds metric families for values computed at scrape time. Every module that adds metrics to the
//! exposition builds its families here.

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};

use super::http::{BUCKETS_MS, RequestCounts};
use super::rates::to_f64;

pub(crate) enum MetricValue {
    Counter(f64),
    Gauge(f64),
    Histogram(Histogram),
}

impl MetricValue {
    pub(super) fn histogram(requests: &RequestCounts) -> Self {
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
        histogram.set_sample_sum(to_f64(requests.sum_nanos) / 1e6);
        Self::Histogram(histogram)
    }
}

/// Builds a family; all of its values must be of the same type.
pub(crate) fn family(name: &str, help: &str, metrics: Vec<(Vec<(&str, &str)>, MetricValue)>) -> MetricFamily {
    let kind = match metrics.first() {
        Some((_, MetricValue::Counter(_))) => MetricType::COUNTER,
        Some((_, MetricValue::Histogram(_))) => MetricType::HISTOGRAM,
        Some((_, MetricValue::Gauge(_))) | None => MetricType::GAUGE,
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
            MetricValue::Counter(value) => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            MetricValue::Gauge(value) => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            MetricValue::Histogram(histogram) => metric.set_histogram(histogram),
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
