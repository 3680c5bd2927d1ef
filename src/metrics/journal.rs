//! Counters and gauges of the journal. The journal's threads update them; the exposition reads
//! them.

use std::sync::atomic::{AtomicBool, AtomicU64};

/// A file operation that can fail: the label `operation` of `journal_failures_total`.
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
