//! The metrics of tails: clients that read events as they are admitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;

#[derive(Debug, Default)]
pub struct TailMetrics {
    /// Open now. Acceptors read it, so it has an allocation of its own.
    pub open: Arc<AtomicUsize>,
    pub sent: AtomicU64,
    pub skipped: AtomicU64,
}

pub(super) fn tail_families(tails: &TailMetrics) -> Vec<MetricFamily> {
    let count = |count: &AtomicU64| MetricValue::Counter(to_f64(count.load(Ordering::Relaxed)));
    let open = to_f64(tails.open.load(Ordering::Relaxed) as u64);
    [
        ("tails_open", "Tails open now.", MetricValue::Gauge(open)),
        ("tail_events_sent_total", "Events sent to tails, once for each tail.", count(&tails.sent)),
        (
            "tail_events_skipped_total",
            "Events that a tail did not examine, since its client reads too slowly or too many arrive; once \
             for each tail.",
            count(&tails.skipped),
        ),
    ]
    .into_iter()
    .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
    .collect()
}
