//! The schedule of the sweep: a cron expression of five fields, or six with seconds first, in UTC.
//! Pure: the time is an argument.

use std::str::FromStr;

use crate::event::Timestamp;

/// 02:00 UTC, a time of low load.
pub const DEFAULT: &str = "0 2 * * *";

/// A cron expression that matches at least one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(cron::Schedule);

/// The text is not a valid schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cron expression of 5 or 6 fields that matches any time")]
pub struct ParseScheduleError;

impl Schedule {
    /// The first matching time after `now`, if there is one.
    pub fn after(&self, now: Timestamp) -> Option<Timestamp> {
        let now = chrono::DateTime::from_timestamp_micros(now.micros())?;
        let next = self.0.after(&now).next()?;
        Some(Timestamp::from_micros(next.timestamp_micros()))
    }
}

impl Default for Schedule {
    fn default() -> Self {
        DEFAULT.parse().expect("BUG: the default schedule is valid")
    }
}

impl FromStr for Schedule {
    type Err = ParseScheduleError;

    fn from_str(text: &str) -> Result<Self, ParseScheduleError> {
        let mut fields: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
        match fields.len() {
            5 => fields.insert(0, "0".to_owned()),
            6 => {}
            _ => return Err(ParseScheduleError),
        }
        fields[5] = days_of_week(&fields[5]).ok_or(ParseScheduleError)?;
        let schedule = Self(fields.join(" ").parse().map_err(|_why: cron::error::Error| ParseScheduleError)?);
        // The parser accepts 30 February.
        schedule.after(Timestamp::default()).ok_or(ParseScheduleError)?;
        Ok(schedule)
    }
}

/// Converts days of the week from cron's numbers (0 and 7 are Sunday) to the crate's (1 is Sunday).
/// Ranges become lists, since a range that ends on Sunday would run backwards. Names and `*` need
/// no conversion.
fn days_of_week(field: &str) -> Option<String> {
    let parts = field.split(',').map(|part| {
        let (days, step) = part.split_once('/').unwrap_or((part, "1"));
        let Some((first, last)) = range(days) else { return Some(part.to_owned()) };
        let step = step.parse::<usize>().ok().filter(|step| *step > 0)?;
        if first > last || last > 7 {
            return None;
        }
        // As in cron, a step after a single day extends to the end of the week.
        let last = if part.contains('/') && !days.contains('-') { 6.max(last) } else { last };
        let days: Vec<_> = (first..=last).step_by(step).map(|day| (day % 7 + 1).to_string()).collect();
        Some(days.join(","))
    });
    Some(parts.collect::<Option<Vec<_>>>()?.join(","))
}

/// Parses `5` or `1-5`; None if it is not numeric.
fn range(days: &str) -> Option<(u8, u8)> {
    let (first, last) = days.split_once('-').unwrap_or((days, days));
    Some((first.parse().ok()?, last.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-01T12:00:00Z, a Thursday.
    const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000);

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let schedule: Schedule = text.parse().unwrap();
        assert_eq!(schedule.after(NOON).unwrap().to_string(), format!("{expected}.000000Z"), "{text}");
    }

    #[test]
    fn schedule_has_five_fields_or_six_with_seconds_first() {
        check(DEFAULT, "2026-01-02T02:00:00");
        check("0 0 2 * * *", "2026-01-02T02:00:00");
        check("30 0 2 * * *", "2026-01-02T02:00:30");
        check("*/5 * * * *", "2026-01-01T12:05:00");
        check("* * * * * *", "2026-01-01T12:00:01");
        check("0 12 1 1 *", "2027-01-01T12:00:00");
    }

    #[test]
    fn schedule_numbers_days_of_the_week_as_cron_does() {
        check("0 2 * * 0", "2026-01-04T02:00:00");
        check("0 2 * * 7", "2026-01-04T02:00:00");
        check("0 2 * * 1", "2026-01-05T02:00:00");
        check("0 2 * * 1-3", "2026-01-05T02:00:00");
        check("0 2 * * 6-7", "2026-01-03T02:00:00");
        check("0 2 * * 1-7/2", "2026-01-02T02:00:00");
        check("0 2 * * MON-WED", "2026-01-05T02:00:00");
        check("0 2 * * 3,SAT", "2026-01-03T02:00:00");
    }

    #[test]
    fn parse_rejects_invalid_and_never_matching_schedules() {
        for text in [
            "",
            "x",
            "* * * *",
            "* * * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "0 2 30 2 *",
            "0 2 * * 8",
            "0 2 * * 5-1",
            "0 2 * * 1/0",
            "@daily",
        ] {
            assert_eq!(text.parse::<Schedule>(), Err(ParseScheduleError), "{text}");
        }
    }
}
