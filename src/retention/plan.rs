//! Computes what a sweep deletes. Pure: time and partitions are arguments.

use std::time::Duration;

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

/// The difference from which on two clocks are not both right. As much as a producer's clock may be
/// ahead by default (`MAX_CLOCK_SKEW_MS`): synchronized clocks differ by far less than a second, an
/// unsynchronized one drifts by seconds a day, and a wrong time zone or date exceeds it.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_mins(5);

/// The clocks of the server and of the database disagree, so nothing may be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nothing is deleted, since the clock of this machine ({local}) and that of the database ({database}) \
     differ by more than {} s",
    CLOCK_DIFFERENCE_MAX.as_secs()
)]
pub struct ClockDisagreementError {
    pub local: Timestamp,
    pub database: Timestamp,
}

/// The time by which a sweep decides: the earlier one of two clocks that agree, so that no event is
/// deleted early.
pub fn agreed_time(local: Timestamp, database: Timestamp) -> Result<Timestamp, ClockDisagreementError> {
    let difference = Duration::from_micros(local.micros().abs_diff(database.micros()));
    if difference > CLOCK_DIFFERENCE_MAX {
        return Err(ClockDisagreementError { local, database });
    }
    Ok(local.min(database))
}

impl Plan {
    /// The plan of a sweep at `now`. The partition of that day and later ones are never dropped.
    pub fn new(partitions: &[Day], cutoff: Timestamp, now: Timestamp) -> Self {
        let today = Day::from_timestamp(now);
        let is_expired = |day: &Day| day.end() <= cutoff && *day < today;
        let mut days: Vec<_> = partitions.iter().copied().filter(is_expired).collect();
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
        let now = Timestamp::from_micros(100 * DAY_MICROS);
        let plan = Plan::new(&days(partitions), Timestamp::from_micros(cutoff_micros), now);
        assert_eq!(plan.days, days(expected), "{cutoff_micros}");
    }

    #[test]
    fn plan_never_drops_the_day_of_now_or_a_later_one() {
        let days = [8, 9, 10, 11].map(Day::from_number);
        let now = Timestamp::from_micros(10 * DAY_MICROS);
        for cutoff in [now, Timestamp::from_micros(i64::MAX)] {
            assert_eq!(Plan::new(&days, cutoff, now).days, days[..2]);
        }
    }

    #[test]
    fn clocks_agree_within_the_bound_on_the_earlier_time() {
        let at = |seconds: i64| Timestamp::from_millis(1_767_268_800_000 + seconds * 1000);
        for (local, database) in [(0, 300), (300, 0), (-300, 0), (0, 0)] {
            assert_eq!(agreed_time(at(local), at(database)), Ok(at(local.min(database))));
        }
        let month = 45 * 86_400;
        for (local, database) in [(0, 301), (301, 0), (month, 0), (0, month), (-month, 0)] {
            let error = agreed_time(at(local), at(database)).unwrap_err();
            assert_eq!(error, ClockDisagreementError { local: at(local), database: at(database) });
        }
        let extreme = agreed_time(Timestamp::from_micros(i64::MIN), Timestamp::from_micros(i64::MAX));
        assert!(extreme.unwrap_err().to_string().contains("differ by more than 300 s"));
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
        let plan = Plan::new(&[], Timestamp::from_micros(1_999), Timestamp::from_micros(1_999));
        assert_eq!(plan.row_cutoff, EventId::floor(1));
    }

    #[test]
    fn cutoff_is_days_before_now_and_never_before_the_epoch() {
        let now = Timestamp::from_millis(1_767_268_800_000);
        assert_eq!(cutoff(now, 30).to_string(), "2025-12-02T12:00:00.000000Z");
        assert_eq!(cutoff(now, 36_500), Timestamp::default());
    }
}
