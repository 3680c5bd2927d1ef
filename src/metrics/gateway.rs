//! The gateway's own counters and gauges, and their metric families.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;

/// The value of the label `api` of `gateway_pushes_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushApi {
    /// `POST /metrics/push`
    Push,
    /// Pushgateway's protocol.
    Group,
}

/// The value of the label `reason` of `gateway_refused_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// The body cannot be parsed, or its names, labels or values are not valid.
    Invalid,
    Timestamps,
    Duplicate,
    Type,
    OwnName,
    /// `PUSHED_SERIES_MAX` or `PUSHED_MAX_BYTES` is reached.
    Full,
    /// The log cannot be written.
    Log,
}

impl RefusalReason {
    const ALL: [Self; 7] =
        [Self::Invalid, Self::Timestamps, Self::Duplicate, Self::Type, Self::OwnName, Self::Full, Self::Log];

    fn label(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Timestamps => "timestamps",
            Self::Duplicate => "duplicate",
            Self::Type => "type",
            Self::OwnName => "own_name",
            Self::Full => "full",
            Self::Log => "log_unavailable",
        }
    }
}

#[derive(Debug, Default)]
pub struct GatewayMetrics {
    pushes: [AtomicU64; 2],
    refusals: [AtomicU64; RefusalReason::ALL.len()],
    pub deletes: AtomicU64,
    /// Pushes whose idempotency key is known.
    pub duplicate_pushes: AtomicU64,
    pub expired: AtomicU64,
    pub series: AtomicU64,
    pub bytes: AtomicU64,
    pub groups: AtomicU64,
    pub log_bytes: AtomicU64,
    pub log_records: AtomicU64,
    pub log_failures: AtomicU64,
    pub snapshots: AtomicU64,
    pub corrupt_ranges: AtomicU64,
    pub torn_bytes: AtomicU64,
    pub forward: ForwardMetrics,
}

/// Counters and gauges of the forwarding to a Pushgateway.
#[derive(Debug, Default)]
pub struct ForwardMetrics {
    pub queued: AtomicU64,
    pub sent: AtomicU64,
    pub retries: AtomicU64,
    pub dropped: AtomicU64,
    pub refused: AtomicU64,
    /// Series that differ; negative while unknown.
    pub mismatched: AtomicI64,
    pub compare_failures: AtomicU64,
}

impl GatewayMetrics {
    pub fn record_push(&self, api: PushApi) {
        self.pushes[api as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn record_refused(&self, reason: RefusalReason, metrics: u64) {
        self.refusals[reason as usize].fetch_add(metrics, Ordering::Relaxed);
    }

    /// All metric families; those of the forwarding only if it is configured.
    pub fn families(&self, forwards: bool) -> Vec<MetricFamily> {
        let load = |metric: &AtomicU64| to_f64(metric.load(Ordering::Relaxed));
        let (counter, gauge) = (
            |metric: &AtomicU64| MetricValue::Counter(load(metric)),
            |metric: &AtomicU64| MetricValue::Gauge(load(metric)),
        );
        let refused = RefusalReason::ALL.into_iter().zip(&self.refusals);
        let refused = refused.map(|(reason, metric)| (vec![("reason", reason.label())], counter(metric)));
        let pushes = ["push", "group"].into_iter().zip(&self.pushes);
        let pushes = pushes.map(|(api, metric)| (vec![("api", api)], counter(metric)));
        let mut families = vec![
            family("gateway_pushes_total", "Accepted pushes, by API.", pushes.collect()),
            family(
                "gateway_refused_total",
                "Refused metrics of /metrics/push and refused pushes to groups, by reason.",
                refused.collect(),
            ),
        ];
        let plain = |name, help, value| family(name, help, vec![(Vec::new(), value)]);
        families.extend([
            plain("gateway_deletes_total", "Groups and series deleted on request.", counter(&self.deletes)),
            plain(
                "gateway_duplicate_pushes_total",
                "Retried pushes with a known idempotency key, not applied again.",
                counter(&self.duplicate_pushes),
            ),
            plain(
                "gateway_expired_total",
                "Series and groups deleted after their TTL.",
                counter(&self.expired),
            ),
            plain("gateway_series", "Series exposed on /metrics/pushed.", gauge(&self.series)),
            plain("gateway_bytes", "Approximate memory of the exposed series, in bytes.", gauge(&self.bytes)),
            plain("gateway_groups", "Groups of Pushgateway's protocol.", gauge(&self.groups)),
            plain(
                "gateway_log_bytes",
                "Bytes of the gateway log since the last snapshot.",
                gauge(&self.log_bytes),
            ),
            plain(
                "gateway_log_records_total",
                "Records written to the gateway log.",
                counter(&self.log_records),
            ),
            plain(
                "gateway_log_failures_total",
                "Failed writes or syncs of the gateway log or a snapshot.",
                counter(&self.log_failures),
            ),
            plain("gateway_snapshots_total", "Gateway snapshots written.", counter(&self.snapshots)),
            plain(
                "gateway_corrupt_ranges_total",
                "Corrupt ranges of gateway logs or snapshots skipped by recovery.",
                counter(&self.corrupt_ranges),
            ),
            plain(
                "gateway_torn_bytes_total",
                "Bytes of incomplete writes at the end of gateway logs.",
                counter(&self.torn_bytes),
            ),
        ]);
        if forwards {
            let forward = &self.forward;
            families.extend([
                plain("gateway_forward_queue", "Pushes queued for forwarding.", gauge(&forward.queued)),
                plain(
                    "gateway_forward_sent_total",
                    "Pushes accepted by the Pushgateway.",
                    counter(&forward.sent),
                ),
                plain(
                    "gateway_forward_retries_total",
                    "Retries of forwarded pushes.",
                    counter(&forward.retries),
                ),
                plain(
                    "gateway_forward_dropped_total",
                    "Pushes dropped because the forward queue was full.",
                    counter(&forward.dropped),
                ),
                plain(
                    "gateway_forward_refused_total",
                    "Pushes refused by the Pushgateway.",
                    counter(&forward.refused),
                ),
                plain(
                    "gateway_compare_failures_total",
                    "Failed comparisons with the Pushgateway.",
                    counter(&forward.compare_failures),
                ),
            ]);
            if let Ok(mismatched) = u64::try_from(forward.mismatched.load(Ordering::Relaxed)) {
                families.push(plain(
                    "gateway_mismatched_series",
                    "Series that differed from the Pushgateway in the last comparison.",
                    MetricValue::Gauge(to_f64(mismatched)),
                ));
            }
        }
        families
    }
}
