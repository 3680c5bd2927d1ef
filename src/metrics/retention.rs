//! What sweeps have removed, since the start.

use std::sync::atomic::{AtomicI64, AtomicU64};

#[derive(Debug, Default)]
pub struct RetentionFigures {
    /// Sweeps that came to their end.
    pub runs: AtomicU64,
    pub failures: AtomicU64,
    /// With their partition or row by row.
    pub events: AtomicU64,
    pub dead: AtomicU64,
    pub partitions: AtomicU64,
    /// Moved out of the default partition.
    pub default_moved: AtomicU64,
    /// In the default partition, when last looked at, up to a bound.
    pub default_rows: AtomicU64,
    /// When the last sweep came to its end, in seconds since 1970. 0 when none has.
    pub last_run_s: AtomicI64,
}
