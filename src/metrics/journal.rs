//! Counters and gauges of the journal. The journal's threads update them; the exposition reads
//! them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;

/// A file operation that can fail: the label `op` of `journal_failures_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum JournalOp {
    Create,
    Write,
    Sync,
    Remove,
    Read,
}

impl JournalOp {
    pub const ALL: [Self; 5] = [Self::Create, Self::Write, Self::Sync, Self::Remove, Self::Read];

    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Remove => "remove",
            Self::Read => "read",
        }
    }
}

/// Counters and gauges of the journal.
#[derive(Debug, Default)]
pub struct JournalMetrics {
    pub segments: AtomicU64,
    pub bytes: AtomicU64,
    /// Segments whose events are all committed.
    pub retained_segments: AtomicU64,
    pub retained_bytes: AtomicU64,
    pub events_written: AtomicU64,
    pub events_synced: AtomicU64,
    pub events_recovered: AtomicU64,
    /// Corrupt ranges of segments that were skipped, and corrupt segment headers.
    pub corrupt_ranges: AtomicU64,
    pub torn_bytes: AtomicU64,
    pub failures: [AtomicU64; JournalOp::ALL.len()],
    /// Age of the oldest unwritten block when the last write began, in nanoseconds.
    pub lag_nanos: AtomicU64,
    /// Segments of earlier processes that recovery has not read.
    pub segments_pending: AtomicU64,
    /// Recovery or refill has waited for capacity in the buffer for at least 1 s.
    pub refill_stalled: AtomicBool,
}

pub(super) fn journal_families(metrics: &JournalMetrics) -> Vec<MetricFamily> {
    let load = |counter: &AtomicU64| to_f64(counter.load(Ordering::Relaxed));
    let failures = JournalOp::ALL.into_iter().zip(&metrics.failures);
    let failures =
        failures.map(|(op, count)| (vec![("op", op.label())], MetricValue::Counter(load(count)))).collect();
    let mut families: Vec<_> = [
        ("journal_segments", "Journal segments.", MetricValue::Gauge(load(&metrics.segments))),
        ("journal_bytes", "Bytes of the journal segments.", MetricValue::Gauge(load(&metrics.bytes))),
        (
            "journal_retained_segments",
            "Segments with committed events, kept for a failover of the database.",
            MetricValue::Gauge(load(&metrics.retained_segments)),
        ),
        (
            "journal_retained_bytes",
            "Bytes of the retained segments.",
            MetricValue::Gauge(load(&metrics.retained_bytes)),
        ),
        (
            "journal_segments_pending",
            "Segments from before the start that are not replayed yet.",
            MetricValue::Gauge(load(&metrics.segments_pending)),
        ),
        (
            "journal_written_total",
            "Events written to the journal.",
            MetricValue::Counter(load(&metrics.events_written)),
        ),
        (
            "journal_synced_total",
            "Events synced to disk, without those committed to PostgreSQL before the sync.",
            MetricValue::Counter(load(&metrics.events_synced)),
        ),
        (
            "journal_recovered_total",
            "Events replayed from the journal after the start.",
            MetricValue::Counter(load(&metrics.events_recovered)),
        ),
        (
            "journal_corrupt_ranges_total",
            "Corrupt ranges of the journal that were skipped.",
            MetricValue::Counter(load(&metrics.corrupt_ranges)),
        ),
        (
            "journal_torn_bytes_total",
            "Bytes truncated at the end of segments: records torn when the process ended.",
            MetricValue::Counter(load(&metrics.torn_bytes)),
        ),
        (
            "journal_lag_ms",
            "Wait of the oldest event at the last write to the journal.",
            MetricValue::Gauge(load(&metrics.lag_nanos) / 1e6),
        ),
    ]
    .into_iter()
    .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
    .collect();
    families.push(family("journal_failures_total", "Failed file operations of the journal.", failures));
    families
}
