//! Computes what a sweep deletes. Pure: time and partitions are arguments.

use crate::event::{DAY_MICROS, EventId, Timestamp};
use crate::storage::Day;

/// What a sweep deletes: the partitions of whole days, and single rows before the cutoff.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Events at or after this time are kept.
    pub cutoff: Timestamp,
    /// Days that end at or before the cutoff, oldest first. Their partitions are dropped.
    pub days: Vec<Day>,
    /// Rows with a smaller id are deleted one by one: from the partition of the cutoff's day and
    /// the default partition.
    pub row_cutoff: EventId,
}

impl Plan {
    pub fn new(partitions: &[Day], cutoff: Timestamp) -> Self {
        let mut days: Vec<_> = partitions.iter().copied().filter(|day| day.end() <= cutoff).collect();
        days.sort_unstable();
        // Ids have a resolution of milliseconds. Events of the cutoff's own millisecond are kept,
        // so none is deleted early.
        Self { cutoff, days, row_cutoff: EventId::floor(u64::try_from(cutoff.millis()).unwrap_or(0)) }
    }
}

/// The cutoff of a retention of `days`.
pub fn cutoff(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_micros(now.micros().saturating_sub(i64::from(days) * DAY_MICROS).max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(cutoff_micros: i64, partitions: &[i64], expected: &[i64]) {
        let days = |numbers: &[i64]| numbers.iter().map(|day| Day::from_number(*day)).collect::<Vec<_>>();
        let plan = Plan::new(&days(partitions), Timestamp::from_micros(cutoff_micros));
        assert_eq!(plan.days, days(expected), "{cutoff_micros}");
    }

    #[test]
    fn plan_drops_a_day_only_when_all_of_it_is_before_the_cutoff() {
        check(10 * DAY_MICROS, &[12, 9, 8, 10], &[8, 9]);
        check(10 * DAY_MICROS - 1, &[8, 9, 10], &[8]);
        check(10 * DAY_MICROS + 1, &[8, 9, 10], &[8, 9]);
        check(0, &[0, 1], &[]);
        check(DAY_MICROS, &[0, 1], &[0]);
        check(DAY_MICROS, &[], &[]);
    }

    #[test]
    fn row_cutoff_is_the_floor_id_of_the_cutoff_millisecond() {
        let plan = Plan::new(&[], Timestamp::from_micros(1_999));
        assert_eq!(plan.row_cutoff, EventId::floor(1));
    }

    #[test]
    fn cutoff_is_days_before_now_and_never_before_the_epoch() {
        let now = Timestamp::from_millis(1_767_268_800_000);
        assert_eq!(cutoff(now, 30).to_string(), "2025-12-02T12:00:00.000000Z");
        assert_eq!(cutoff(now, 36_500), Timestamp::default());
    }
}
