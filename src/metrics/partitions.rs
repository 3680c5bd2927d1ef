//! The state of the partitions, as the partition maintenance last found it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;
use crate::event::Timestamp;
use crate::storage::Day;

#[derive(Debug, Default)]
pub struct PartitionMetrics {
    /// Failed runs of the maintenance and failed requests of the writer.
    pub failures: AtomicU64,
    /// Rows moved out of the default partition.
    pub default_moved: AtomicU64,
    /// Rows in the default partition at the last check, counted up to a bound.
    pub default_rows: AtomicU64,
    /// The number of the first day, from the day of the last check on, without a partition, plus
    /// one; zero before the first check.
    first_missing: AtomicI64,
}

impl PartitionMetrics {
    /// Records the first day without a partition.
    pub fn set_first_missing(&self, day: Day) {
        self.first_missing.store(day.number() + 1, Ordering::Release);
    }

    /// The number of days from `now` on that have a partition, without a gap, today included. It
    /// decreases with time even while the database cannot be asked. None before the first check.
    pub fn days_ahead(&self, now: Timestamp) -> Option<u64> {
        let first_missing = match self.first_missing.load(Ordering::Acquire) {
            0 => return None,
            after => after - 1,
        };
        Some(u64::try_from(first_missing - Day::from_timestamp(now).number()).unwrap_or(0))
    }

    pub(super) fn families(&self, now: Timestamp) -> Vec<MetricFamily> {
        let value = |count: &AtomicU64| to_f64(count.load(Ordering::Relaxed));
        let ahead = self.days_ahead(now).map(|days| {
            let help = "Days without a gap that have a partition, today included. At 0 today's events enter \
                        the default partition.";
            ("partitions_ahead_days", help, MetricValue::Gauge(to_f64(days)))
        });
        [
            (
                "partition_failures_total",
                "Failed attempts to create a partition or to drain the default partition.",
                MetricValue::Counter(value(&self.failures)),
            ),
            (
                "events_default_moved_total",
                "Events moved from the default partition to the partitions of their days.",
                MetricValue::Counter(value(&self.default_moved)),
            ),
            (
                "events_default_partition_rows",
                "Events in the default partition, counted up to 10000 once a minute.",
                MetricValue::Gauge(value(&self.default_rows)),
            ),
        ]
        .into_iter()
        .chain(ahead)
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_ahead_decrease_with_time_and_are_unknown_before_the_first_check() {
        const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000);
        let metrics = PartitionMetrics::default();
        assert_eq!(metrics.days_ahead(NOON), None);
        let today = Day::from_timestamp(NOON);
        metrics.set_first_missing(Day::from_number(today.number() + 3));
        let after = |days: i64| metrics.days_ahead(Timestamp::from_millis(NOON.millis() + days * 86_400_000));
        assert_eq!([after(0), after(1), after(2), after(3), after(9)].map(Option::unwrap), [3, 2, 1, 0, 0]);
    }
}
