//! Counters of the failovers of the database, and what is known about the last one. The failover
//! thread updates them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;
use crate::event::Timestamp;
use crate::storage::wal::WalPosition;

#[derive(Debug, Default)]
pub struct FailoverMetrics {
    /// Failovers that were noticed.
    pub failovers: AtomicU64,
    /// Events and dead letters that the database had lost and that were stored again.
    pub restored: AtomicU64,
    /// Events of replayed segments that the database had.
    pub present: AtomicU64,
    /// Segments to be replayed.
    pending: AtomicI64,
    last: Mutex<Option<FailoverReport>>,
}

/// The last failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailoverReport {
    pub noticed_at: Timestamp,
    pub from: WalPosition,
    pub to: WalPosition,
    /// Whether the segments that were retained at that time are replayed.
    pub is_replayed: bool,
    /// Set if events may be lost for good.
    pub lost: Option<LostWindow>,
}

/// The time in which lost events were received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostWindow {
    /// When the newest stored event was received. None: nothing is stored.
    pub from: Option<Timestamp>,
    /// When the oldest retained event was received.
    pub to: Timestamp,
}

impl FailoverReport {
    pub fn new(noticed_at: Timestamp, from: WalPosition, to: WalPosition) -> Self {
        Self { noticed_at, from, to, is_replayed: false, lost: None }
    }
}

impl FailoverMetrics {
    fn lock(&self) -> MutexGuard<'_, Option<FailoverReport>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a failover, after which `segments` are replayed.
    pub fn begin(&self, report: FailoverReport, segments: u64) {
        self.failovers.fetch_add(1, Ordering::Relaxed);
        self.add_pending(i64::try_from(segments).unwrap_or(i64::MAX));
        *self.lock() = Some(report);
    }

    /// Records that the segments are replayed.
    pub fn finish(&self, lost: Option<LostWindow>) {
        if let Some(report) = &mut *self.lock() {
            (report.is_replayed, report.lost) = (true, lost);
        }
    }

    fn add_pending(&self, segments: i64) {
        self.pending.fetch_add(segments, Ordering::Relaxed);
    }

    /// Records that one segment was replayed. One that was not announced does not count.
    pub fn segment_replayed(&self) {
        let one_less = |pending: i64| (pending > 0).then(|| pending - 1);
        _ = self.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }

    pub fn pending(&self) -> u64 {
        u64::try_from(self.pending.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// The last failover. The lock is held for a copy.
    pub fn last(&self) -> Option<FailoverReport> {
        *self.lock()
    }
}

pub(super) fn failover_families(metrics: &FailoverMetrics) -> Vec<MetricFamily> {
    let count = |counter: &AtomicU64| MetricValue::Counter(to_f64(counter.load(Ordering::Relaxed)));
    [
        (
            "database_failovers_total",
            "Failovers of the database, and restores and crashes that set it back.",
            count(&metrics.failovers),
        ),
        (
            "events_restored_total",
            "Events that the database had lost in a failover and that were stored again from the journal.",
            count(&metrics.restored),
        ),
        (
            "database_failover_segments_pending",
            "Retained journal segments to be replayed after a failover.",
            MetricValue::Gauge(to_f64(metrics.pending())),
        ),
        (
            "database_failover_events_lost",
            "1 if events from before the last failover may be lost for good; see /health/database.",
            MetricValue::Gauge(if metrics.last().is_some_and(|last| last.lost.is_some()) {
                1.0
            } else {
                0.0
            }),
        ),
    ]
    .into_iter()
    .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
    .collect()
}
