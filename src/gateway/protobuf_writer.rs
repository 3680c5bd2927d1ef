//! Writes the fields of protobuf messages, and series as `io.prometheus.client.Metric`.

use super::metric::{Label, MetricKind, SeriesValue};
use super::native::NativeCounts;
use super::native_protobuf::write_native;

pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// A string, bytes, or a nested message.
pub(super) fn bytes(out: &mut Vec<u8>, number: u64, value: &[u8]) {
    varint(out, number << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

pub(super) fn double(out: &mut Vec<u8>, number: u64, value: f64) {
    varint(out, number << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

pub(super) fn integer(out: &mut Vec<u8>, number: u64, value: u64) {
    varint(out, number << 3);
    varint(out, value);
}

/// Writes the fields of a `MetricFamily` before its metrics.
pub(super) fn family_head(out: &mut Vec<u8>, name: &str, help: &str, kind: MetricKind) {
    bytes(out, 1, name.as_bytes());
    bytes(out, 2, help.as_bytes());
    integer(out, 3, kind as u64);
}

/// Writes the fields of a `Metric`.
pub(super) fn metric<'a>(
    out: &mut Vec<u8>,
    labels: impl Iterator<Item = Label<'a>>,
    kind: MetricKind,
    value: &SeriesValue,
) {
    for (name, value) in labels {
        let mut label = Vec::with_capacity(name.len() + value.len() + 8);
        bytes(&mut label, 1, name.as_bytes());
        bytes(&mut label, 2, value.as_bytes());
        bytes(out, 1, &label);
    }
    let mut inner = Vec::new();
    let number = match value {
        SeriesValue::Number(value) => {
            double(&mut inner, 1, *value);
            match kind {
                MetricKind::Gauge => 2,
                MetricKind::Counter => 3,
                MetricKind::Untyped | MetricKind::Summary | MetricKind::Histogram => 5,
            }
        }
        SeriesValue::Summary(summary) => {
            integer(&mut inner, 1, summary.count);
            double(&mut inner, 2, summary.sum);
            for (quantile, value) in &summary.quantiles {
                let mut pair = Vec::with_capacity(18);
                double(&mut pair, 1, *quantile);
                double(&mut pair, 2, *value);
                bytes(&mut inner, 3, &pair);
            }
            4
        }
        SeriesValue::Histogram(histogram) => {
            match histogram.native.as_ref().map(|native| &native.counts) {
                Some(NativeCounts::Float { count, .. }) => double(&mut inner, 4, *count),
                Some(NativeCounts::Integer { .. }) | None => integer(&mut inner, 1, histogram.count),
            }
            double(&mut inner, 2, histogram.sum);
            for (bound, count) in &histogram.buckets {
                let mut pair = Vec::with_capacity(20);
                integer(&mut pair, 1, *count);
                double(&mut pair, 2, *bound);
                bytes(&mut inner, 3, &pair);
            }
            if let Some(native) = &histogram.native {
                write_native(&mut inner, native);
            }
            7
        }
    };
    bytes(out, number, &inner);
}
