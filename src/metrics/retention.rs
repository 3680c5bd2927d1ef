//! Counters of the retention sweeps since the start.

use std::sync::atomic::{AtomicI64, AtomicU64};

#[derive(Debug, Default)]
pub struct RetentionMetrics {
    /// Completed sweeps.
    pub runs: AtomicU64,
    pub failures: AtomicU64,
    /// Events dropped with their partition or deleted row by row.
    pub events: AtomicU64,
    pub dead: AtomicU64,
    pub partitions: AtomicU64,
    /// End of the last completed sweep in seconds since 1970; 0: none.
    pub last_run_s: AtomicI64,
}
