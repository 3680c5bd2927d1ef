//! What a sweep has to do: pure, told the time and what there is.

use crate::event::{EventId, Timestamp};
use crate::storage::Day;

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// What goes: whole days with their partitions, and of the rest every event before the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Events of this time and later stay.
    pub edge: Timestamp,
    /// Days whose partitions lie wholly before the edge, oldest first.
    pub days: Vec<Day>,
    /// What is left before this id goes row by row: the day that the edge lies in, and the default partition.
    pub rest: EventId,
}

impl Plan {
    pub fn new(partitions: &[Day], edge: Timestamp) -> Self {
        let mut days: Vec<_> = partitions.iter().copied().filter(|day| day.end() <= edge).collect();
        days.sort_unstable();
        // An id tells milliseconds: the edge's own stays, so nothing goes before its time.
        Self { edge, days, rest: EventId::floor(u64::try_from(edge.millis()).unwrap_or(0)) }
    }
}

/// Where the time of events ends that are kept for `days`.
pub fn edge(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_micros(now.micros().saturating_sub(i64::from(days) * DAY_MICROS).max(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(edge_micros: i64, partitions: &[i64], expected: &[i64]) {
        let days = |numbers: &[i64]| numbers.iter().map(|day| Day::numbered(*day)).collect::<Vec<_>>();
        let plan = Plan::new(&days(partitions), Timestamp::from_micros(edge_micros));
        assert_eq!(plan.days, days(expected), "{edge_micros}");
    }

    #[test]
    fn a_day_goes_whole_only_when_its_last_moment_is_past() {
        check(10 * DAY_MICROS, &[12, 9, 8, 10], &[8, 9]);
        check(10 * DAY_MICROS - 1, &[8, 9, 10], &[8]);
        check(10 * DAY_MICROS + 1, &[8, 9, 10], &[8, 9]);
        check(0, &[0, 1], &[]);
        check(DAY_MICROS, &[0, 1], &[0]);
        check(DAY_MICROS, &[], &[]);
    }

    #[test]
    fn the_rest_goes_up_to_the_edges_millisecond() {
        let plan = Plan::new(&[], Timestamp::from_micros(1_999));
        assert_eq!(plan.rest, EventId::floor(1));
    }

    #[test]
    fn the_edge_is_days_back_and_never_before_time_began() {
        let now = Timestamp::from_millis(1_767_268_800_000);
        assert_eq!(edge(now, 30).to_string(), "2025-12-02T12:00:00.000000Z");
        assert_eq!(edge(now, 36_500), Timestamp::default());
    }
}
