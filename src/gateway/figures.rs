//! What the gateway counts of itself.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus::proto::MetricFamily;

use crate::metrics::family::{Value, family};
use crate::metrics::rates::float;

/// Which of its two ways in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `POST /metrics/push`
    Push,
    /// Pushgateway's.
    Group,
}

/// Why metrics are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be read, or its names, labels or values are not valid.
    Invalid,
    Timestamps,
    Duplicate,
    Type,
    OwnName,
    /// `PUSHED_SERIES_MAX` or `PUSHED_MAX_BYTES`.
    Full,
    /// The change log does not work.
    Log,
}

impl Reason {
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
pub struct Figures {
    pushes: [AtomicU64; 2],
    refused: [AtomicU64; Reason::ALL.len()],
    pub deletes: AtomicU64,
    /// Pushes that had a key which was known.
    pub repeated: AtomicU64,
    pub expired: AtomicU64,
    pub series: AtomicU64,
    pub bytes: AtomicU64,
    pub groups: AtomicU64,
    pub log_bytes: AtomicU64,
    pub log_records: AtomicU64,
    pub log_failures: AtomicU64,
    pub snapshots: AtomicU64,
    pub damaged: AtomicU64,
    pub torn_bytes: AtomicU64,
    pub forward: ForwardFigures,
}

/// What the forwarding to a Pushgateway counts.
#[derive(Debug, Default)]
pub struct ForwardFigures {
    pub queued: AtomicU64,
    pub sent: AtomicU64,
    pub retries: AtomicU64,
    pub dropped: AtomicU64,
    pub refused: AtomicU64,
    /// Series that differ; negative while that is not known.
    pub mismatched: AtomicI64,
    pub compare_failures: AtomicU64,
}

impl Figures {
    pub fn pushed(&self, api: Api) {
        self.pushes[api as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self, reason: Reason, metrics: u64) {
        self.refused[reason as usize].fetch_add(metrics, Ordering::Relaxed);
    }

    /// As metric families; those of the forwarding only where there is one.
    pub fn families(&self, forwards: bool) -> Vec<MetricFamily> {
        let load = |figure: &AtomicU64| float(figure.load(Ordering::Relaxed));
        let (counter, gauge) = (
            |figure: &AtomicU64| Value::Counter(load(figure)),
            |figure: &AtomicU64| Value::Gauge(load(figure)),
        );
        let refused = Reason::ALL.into_iter().zip(&self.refused);
        let refused = refused.map(|(reason, figure)| (vec![("reason", reason.label())], counter(figure)));
        let pushes = ["push", "group"].into_iter().zip(&self.pushes);
        let pushes = pushes.map(|(api, figure)| (vec![("api", api)], counter(figure)));
        let mut families = vec![
            family("gateway_pushes_total", "Pushes taken, by way in.", pushes.collect()),
            family(
                "gateway_refused_total",
                "Metrics of /metrics/push, and whole pushes to groups, that were refused.",
                refused.collect(),
            ),
        ];
        let plain = |name, help, value| family(name, help, vec![(Vec::new(), value)]);
        families.extend([
            plain("gateway_deletes_total", "Groups and series deleted on request.", counter(&self.deletes)),
            plain(
                "gateway_duplicate_pushes_total",
                "Pushes sent again with a key that was known, and not counted again.",
                counter(&self.repeated),
            ),
            plain(
                "gateway_expired_total",
                "Series and groups that nobody pushed for too long.",
                counter(&self.expired),
            ),
            plain("gateway_series", "Series on /metrics/pushed.", gauge(&self.series)),
            plain("gateway_bytes", "Bytes that they take in memory, about.", gauge(&self.bytes)),
            plain("gateway_groups", "Groups pushed by Pushgateway's protocol.", gauge(&self.groups)),
            plain(
                "gateway_log_bytes",
                "Bytes of the change log since the last snapshot.",
                gauge(&self.log_bytes),
            ),
            plain("gateway_log_records_total", "Changes written to the log.", counter(&self.log_records)),
            plain(
                "gateway_log_failures_total",
                "Failures to write or sync the log or a snapshot.",
                counter(&self.log_failures),
            ),
            plain("gateway_snapshots_total", "Snapshots written.", counter(&self.snapshots)),
            plain(
                "gateway_corrupt_ranges_total",
                "Damaged stretches of log or snapshot that were skipped.",
                counter(&self.damaged),
            ),
            plain(
                "gateway_torn_bytes_total",
                "Bytes cut off at the end of logs: what was being written.",
                counter(&self.torn_bytes),
            ),
        ]);
        if forwards {
            let forward = &self.forward;
            families.extend([
                plain("gateway_forward_queue", "Pushes that wait to be forwarded.", gauge(&forward.queued)),
                plain(
                    "gateway_forward_sent_total",
                    "Pushes that the Pushgateway took.",
                    counter(&forward.sent),
                ),
                plain(
                    "gateway_forward_retries_total",
                    "Tries to forward that failed and were made again.",
                    counter(&forward.retries),
                ),
                plain(
                    "gateway_forward_dropped_total",
                    "Pushes dropped since the queue was full.",
                    counter(&forward.dropped),
                ),
                plain(
                    "gateway_forward_refused_total",
                    "Pushes that the Pushgateway refused.",
                    counter(&forward.refused),
                ),
                plain(
                    "gateway_compare_failures_total",
                    "Comparisons with the Pushgateway that could not be made.",
                    counter(&forward.compare_failures),
                ),
            ]);
            if let Ok(mismatched) = u64::try_from(forward.mismatched.load(Ordering::Relaxed)) {
                families.push(plain(
                    "gateway_mismatched_series",
                    "Series that the Pushgateway has otherwise than we do, when last compared.",
                    Value::Gauge(float(mismatched)),
                ));
            }
        }
        families
    }
}
