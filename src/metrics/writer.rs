//! Metrics of the writer's batches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts};

/// Upper bounds of the buckets in milliseconds: from one row on a fast disk to a batch on a slow
/// one.
const BUCKETS_MS: [f64; 14] =
    [1.0, 2.5, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 250.0, 500.0, 1000.0, 5000.0, 30_000.0];

#[derive(Debug)]
pub struct WriterMetrics {
    pub batches: AtomicU64,
    pub events: AtomicU64,
    insert_nanos: AtomicU64,
    total_nanos: AtomicU64,
    /// Time from the batch's removal from the buffer to its commit, including retries and waits.
    pub processing_ms: Histogram,
    /// Database time of successful attempts.
    pub insert_ms: Histogram,
    pub retries: AtomicU64,
}

/// Durations of a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct BatchTimes {
    pub insert: Duration,
    pub total: Duration,
}

impl Default for WriterMetrics {
    fn default() -> Self {
        let histogram = |name: &str, help: &str| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(BUCKETS_MS.to_vec()))
                .expect("BUG: the name is valid and the buckets are sorted")
        };
        Self {
            batches: AtomicU64::new(0),
            events: AtomicU64::new(0),
            insert_nanos: AtomicU64::new(0),
            total_nanos: AtomicU64::new(0),
            processing_ms: histogram(
                "batch_processing_time_ms",
                "Milliseconds from taking a batch out of the buffer to its commit.",
            ),
            insert_ms: histogram("batch_insert_time_ms", "Milliseconds a batch took within the database."),
            retries: AtomicU64::new(0),
        }
    }
}

impl WriterMetrics {
    pub fn record_batch(&self, events: u64, times: BatchTimes) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.events.fetch_add(events, Ordering::Relaxed);
        for (total, time) in [(&self.insert_nanos, times.insert), (&self.total_nanos, times.total)] {
            total.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.processing_ms.observe(times.total.as_secs_f64() * 1e3);
        self.insert_ms.observe(times.insert.as_secs_f64() * 1e3);
    }

    /// Insert time and total time over all batches, in milliseconds.
    pub fn totals_ms(&self) -> (f64, f64) {
        let ms = |nanos: &AtomicU64| super::rates::to_f64(nanos.load(Ordering::Relaxed)) / 1e6;
        (ms(&self.insert_nanos), ms(&self.total_nanos))
    }
}
