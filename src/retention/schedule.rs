//! The schedule of the sweep: a cron expression as in crontab(5), in UTC: five fields, six with
//! seconds first, or a nickname like `@daily`. Pure: the time is an argument.
//!
//! The rules are those of Vixie cron. A field is a list of numbers, names, ranges and `*`; a step
//! follows a range or `*`. Sunday is 0 and 7. If neither day field begins with `*`, a time matches
//! that matches one of them; otherwise it must match both. The crate `cron` finds the times; it is
//! given lists of numbers only, since its own rules differ.

use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::event::Timestamp;

/// 02:00 UTC, a time of low load.
pub const DEFAULT: &str = "0 2 * * *";

/// A cron expression that matches at least one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    times: cron::Schedule,
    /// The times of the day of the week, if a match of either day field suffices; `times` has those
    /// of the day of the month then.
    times_by_weekday: Option<cron::Schedule>,
}

/// The text is not a valid schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseScheduleError {
    #[error("a schedule as in crontab(5): it has {0} fields instead of 5, or 6 with seconds first")]
    FieldCount(usize),
    #[error(
        "a schedule as in crontab(5): {0} {1:?} is not a list of values, ranges and steps within {2} to {3}"
    )]
    Field(&'static str, String, u8, u8),
    #[error(
        "a schedule as in crontab(5): {0} {1:?} has a step after a single value; a step follows a range or *, as \
         in {2}"
    )]
    StepWithoutRange(&'static str, String, String),
    #[error(
        "a schedule as in crontab(5): the nicknames are @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly"
    )]
    Nickname,
    #[error("a schedule that matches any time")]
    NeverMatches,
}

const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A field of an expression: its name, its values, and the names of its values from `low` on.
struct Field {
    name: &'static str,
    low: u8,
    high: u8,
    value_names: &'static [&'static str],
}

const fn field(
    name: &'static str,
    values: RangeInclusive<u8>,
    value_names: &'static [&'static str],
) -> Field {
    Field { name, low: *values.start(), high: *values.end(), value_names }
}

const FIELDS: [Field; 6] = [
    field("the second", 0..=59, &[]),
    field("the minute", 0..=59, &[]),
    field("the hour", 0..=23, &[]),
    field("the day of the month", 1..=31, &[]),
    field(
        "the month",
        1..=12,
        &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    ),
    field("the day of the week", 0..=7, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];
const DAY_OF_MONTH: usize = 3;
const DAY_OF_WEEK: usize = 5;

/// The values that match, one bit each.
type Values = u64;

impl Schedule {
    /// The first matching time after `now`, if there is one.
    pub fn after(&self, now: Timestamp) -> Option<Timestamp> {
        let now = chrono::DateTime::from_timestamp_micros(now.micros())?;
        let next = |times: &cron::Schedule| times.after(&now).next();
        let by_weekday = self.times_by_weekday.as_ref().and_then(next);
        let next = next(&self.times).into_iter().chain(by_weekday).min()?;
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
        let text = text.trim_ascii();
        let expression = if text.starts_with('@') {
            let known = NICKNAMES.iter().find(|(nickname, _)| *nickname == text);
            known.ok_or(ParseScheduleError::Nickname)?.1
        } else {
            text
        };
        let mut texts: Vec<_> = expression.split_ascii_whitespace().collect();
        match texts.len() {
            5 => texts.insert(0, "0"),
            6 => {}
            count => return Err(ParseScheduleError::FieldCount(count)),
        }
        let mut values = [0; FIELDS.len()];
        for ((field, text), values) in FIELDS.iter().zip(&texts).zip(&mut values) {
            *values = field.parse(text)?;
        }
        // Both numbers of Sunday mean both.
        if values[DAY_OF_WEEK] & 0b1000_0001 != 0 {
            values[DAY_OF_WEEK] |= 0b1000_0001;
        }
        let schedule = if [DAY_OF_MONTH, DAY_OF_WEEK].iter().any(|day| texts[*day].starts_with('*')) {
            Self { times: compile(values), times_by_weekday: None }
        } else {
            let with_all = |day: usize| {
                let mut values = values;
                values[day] = FIELDS[day].all();
                compile(values)
            };
            Self { times: with_all(DAY_OF_WEEK), times_by_weekday: Some(with_all(DAY_OF_MONTH)) }
        };
        // 30 February is an expression, and no time.
        schedule.after(Timestamp::default()).ok_or(ParseScheduleError::NeverMatches)?;
        Ok(schedule)
    }
}

impl Field {
    fn all(&self) -> Values {
        (self.low..=self.high).fold(0, |values, value| values | 1 << value)
    }

    fn parse(&self, text: &str) -> Result<Values, ParseScheduleError> {
        text.split(',').try_fold(0, |values, element| Ok(values | self.parse_element(text, element)?))
    }

    /// Parses `*`, `A`, `A-B`, `*/STEP` or `A-B/STEP`.
    fn parse_element(&self, text: &str, element: &str) -> Result<Values, ParseScheduleError> {
        let invalid = || ParseScheduleError::Field(self.name, text.to_owned(), self.low, self.high);
        let (range, step) = match element.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (element, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (self.low, self.high),
            Some((first, last)) => {
                (self.value(first).ok_or_else(invalid)?, self.value(last).ok_or_else(invalid)?)
            }
            None => {
                let value = self.value(range).ok_or_else(invalid)?;
                if let Some(step) = step {
                    let range = format!("{value}-{}/{step}", self.high);
                    return Err(ParseScheduleError::StepWithoutRange(self.name, text.to_owned(), range));
                }
                (value, value)
            }
        };
        let step = match step {
            None => 1,
            Some(step) => number(step).filter(|step| *step > 0).ok_or_else(invalid)?,
        };
        if first > last {
            return Err(invalid());
        }
        Ok((first..=last).step_by(step).fold(0, |values, value| values | 1 << value))
    }

    fn value(&self, text: &str) -> Option<u8> {
        let named = || {
            let position = self.value_names.iter().position(|name| name.eq_ignore_ascii_case(text))?;
            Some(position + usize::from(self.low))
        };
        let value = number(text).or_else(named)?;
        u8::try_from(value).ok().filter(|value| (self.low..=self.high).contains(value))
    }
}

/// Parses digits, which may have leading zeros.
fn number(text: &str) -> Option<usize> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// The schedule of the times that match each of the fields.
fn compile(values: [Values; FIELDS.len()]) -> cron::Schedule {
    let mut expression = String::new();
    for (nth, (field, values)) in FIELDS.iter().zip(values).enumerate() {
        if values == field.all() {
            expression.push_str("* ");
            continue;
        }
        // The crate numbers the days of the week from 1, Sunday.
        let (high, offset) = if nth == DAY_OF_WEEK { (6, 1) } else { (field.high, 0) };
        for value in (field.low..=high).filter(|value| values & 1 << value != 0) {
            write!(expression, "{},", value + offset).expect("a string takes all");
        }
        expression.pop();
        expression.push(' ');
    }
    expression.parse().expect("BUG: lists of numbers within their bounds are an expression")
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, Timelike};
    use proptest::prelude::*;

    use super::*;

    /// 2026-01-01T12:00:00Z, a Thursday.
    const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000);

    /// Checks the first times after [`NOON`], each with as much of it as is given.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let schedule: Schedule = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut now = NOON;
        for expected in expected {
            now = schedule.after(now).unwrap();
            assert!(now.to_string().starts_with(expected), "{text}: {now}, not {expected}");
        }
    }

    #[track_caller]
    fn check_equal(text: &str, other: &str) {
        assert_eq!(text.parse::<Schedule>(), Ok(other.parse().unwrap()), "{text}");
    }

    #[track_caller]
    fn check_invalid(text: &str, part: &str) {
        let error = text.parse::<Schedule>().expect_err(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }

    #[test]
    fn schedule_has_five_fields_or_six_with_seconds_first() {
        check(DEFAULT, &["2026-01-02T02:00:00", "2026-01-03T02:00:00"]);
        check("0 0 2 * * *", &["2026-01-02T02:00:00"]);
        check("30 0 2 * * *", &["2026-01-02T02:00:30"]);
        check("* * * * * *", &["2026-01-01T12:00:01", "2026-01-01T12:00:02"]);
        check("0 12 1 1 *", &["2027-01-01T12:00:00"]);
        check(" 0\t12  1 1 * ", &["2027-01-01T12:00:00"]);
        check("0 0 29 2 *", &["2028-02-29", "2032-02-29"]);
    }

    #[test]
    fn ranges_steps_lists_and_zero_padding_are_as_in_crontab() {
        check("*/5 * * * *", &["2026-01-01T12:05", "2026-01-01T12:10"]);
        check("*/7 * * * *", &["2026-01-01T12:07"]);
        check("0 9-17/3 * * *", &["2026-01-01T15:00", "2026-01-02T09:00", "2026-01-02T12:00"]);
        check("5,10-12,58-59 12 * * *", &["2026-01-01T12:05", "2026-01-01T12:10", "2026-01-01T12:11"]);
        check("0 0 */10 * *", &["2026-01-11", "2026-01-21", "2026-01-31", "2026-02-01"]);
        check("0 0 1 */5 *", &["2026-06-01", "2026-11-01", "2027-01-01"]);
        check("05 02 03 04 *", &["2026-04-03T02:05:00"]);
        check_equal("00 002 * * 00", "0 2 * * 0");
        check_equal("1-1 2 * * *", "1 2 * * *");
        check_equal("*/100 2 * * *", "0 2 * * *");
        check_equal("0 2 1,1,1 * *", "0 2 1 * *");
        check_equal("0-59 0-23 * 1-12 *", "* * * * *");
    }

    #[test]
    fn days_of_the_week_and_months_have_numbers_and_names() {
        check("0 2 * * 0", &["2026-01-04T02:00:00"]);
        check_equal("0 2 * * 7", "0 2 * * 0");
        check_equal("0 2 * * sun", "0 2 * * 0");
        check("0 2 * * 1", &["2026-01-05"]);
        check("0 2 * * 1-3", &["2026-01-05", "2026-01-06", "2026-01-07", "2026-01-12"]);
        check_equal("0 2 * * MON-Wed", "0 2 * * 1-3");
        check_equal("0 2 * * 5-7", "0 2 * * 0,5,6");
        check_equal("0 2 * * 1-7/2", "0 2 * * 0,1,3,5");
        check_equal("0 2 * * */7", "0 2 * * */8");
        check("0 2 * * 3,SAT", &["2026-01-03", "2026-01-07"]);
        check_equal("0 2 1 jan-mar,Dec *", "0 2 1 1-3,12 *");
    }

    #[test]
    fn either_day_field_suffices_if_both_are_restricted() {
        check("0 0 13 * 5", &["2026-01-02", "2026-01-09", "2026-01-13", "2026-01-16"]);
        // A range of all days is a restriction; a step after `*` is none.
        check("0 0 1-31 * 5", &["2026-01-02", "2026-01-03"]);
        check("0 0 */2 * 5", &["2026-01-09", "2026-01-23"]);
        check("0 0 13 * */2", &["2026-01-13", "2026-06-13"]);
        check("0 0 30 2 1", &["2026-02-02", "2026-02-09"]);
    }

    #[test]
    fn nicknames_are_those_of_crontab() {
        check("@daily", &["2026-01-02T00:00:00", "2026-01-03T00:00:00"]);
        check_equal("@midnight", "@daily");
        check("@hourly", &["2026-01-01T13:00:00", "2026-01-01T14:00:00"]);
        check("@weekly", &["2026-01-04T00:00:00", "2026-01-11T00:00:00"]);
        check("@monthly", &["2026-02-01T00:00:00", "2026-03-01T00:00:00"]);
        check("@yearly", &["2027-01-01T00:00:00", "2028-01-01T00:00:00"]);
        check_equal("@annually", "@yearly");
        for other in ["@reboot", "@Daily", "@every 1h", "@daily 0", "@"] {
            check_invalid(other, "@daily");
        }
    }

    #[test]
    fn parse_rejects_invalid_and_never_matching_schedules() {
        for (text, part) in [
            ("", "0 fields"),
            ("x", "1 fields"),
            ("* * * *", "4 fields"),
            ("* * * * * * *", "7 fields"),
            ("60 * * * *", "the minute"),
            ("60 0 0 * * *", "the second"),
            ("* 24 * * *", "the hour"),
            ("* * 0 * *", "the day of the month"),
            ("* * 32 * *", "within 1 to 31"),
            ("* * L * *", "the day of the month"),
            ("* * ? * *", "the day of the month"),
            ("* * 15W * *", "the day of the month"),
            ("* * * 0 *", "the month"),
            ("* * * 13 *", "the month"),
            ("* * * january *", "the month"),
            ("0 2 * * 8", "the day of the week"),
            ("0 2 * * 5-1", "the day of the week"),
            ("0 2 * * fri-sun", "the day of the week"),
            ("0 2 * * 5#2", "the day of the week"),
            ("0 2 * * monday", "the day of the week"),
            ("0 2 * * 1,", "the day of the week"),
            ("0 2 * * ,1", "the day of the week"),
            ("0 2 * * 1,,2", "the day of the week"),
            ("0 2 * * -1", "the day of the week"),
            ("0 2 * * 1-", "the day of the week"),
            ("0 2 * * 1-2-3", "the day of the week"),
            ("0 2 * * */0", "the day of the week"),
            ("0 2 * * */", "the day of the week"),
            ("0 2 * * */mon", "the day of the week"),
            ("0 2 * * 1-5/-1", "the day of the week"),
            ("0 2 * * +1", "the day of the week"),
            ("0 2 * * **", "the day of the week"),
            ("0 2 * * 1*", "the day of the week"),
            ("mon 2 * * *", "the minute"),
            ("5/10 * * * *", "5-59/10"),
            ("0 2 30 2 *", "matches any time"),
            ("0 2 31 4,6,9,11 */2", "matches any time"),
        ] {
            check_invalid(text, part);
        }
    }

    proptest! {
        /// Lists of numbers, compared with a search for the next minute that matches the rule.
        #[test]
        fn next_time_is_the_first_minute_that_matches(
            minutes in prop::collection::btree_set(0_u32..60, 1..4),
            hours in prop::collection::btree_set(0_u32..24, 1..4),
            days in prop::option::of(prop::collection::btree_set(1_u32..32, 1..4)),
            weekdays in prop::option::of(prop::collection::btree_set(0_u32..8, 1..4)),
            now in 0_i64..60 * 24 * 365 * 10,
        ) {
            let list = |values: &std::collections::BTreeSet<u32>| {
                values.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
            };
            let day_list = |days: &Option<_>| days.as_ref().map_or("*".to_owned(), list);
            let text =
                format!("{} {} {} * {}", list(&minutes), list(&hours), day_list(&days), day_list(&weekdays));
            let matches = |time: chrono::DateTime<chrono::Utc>| {
                let by_month = days.as_ref().map(|days| days.contains(&time.day()));
                let weekday = time.weekday().num_days_from_sunday();
                let by_week = weekdays
                    .as_ref()
                    .map(|days| days.contains(&weekday) || weekday == 0 && days.contains(&7));
                let by_day = match (by_month, by_week) {
                    (Some(month), Some(week)) => month || week,
                    (one, other) => one.or(other).unwrap_or(true),
                };
                by_day && minutes.contains(&time.minute()) && hours.contains(&time.hour())
            };
            let minute = |number: i64| chrono::DateTime::from_timestamp(number * 60, 0).unwrap();
            // Every weekday, day and time of day occurs within two months.
            let mut later = (now + 1..now + 60 * 24 * 62).map(minute);
            let expected = later.find(|time| matches(*time)).unwrap();
            let schedule: Schedule = text.parse().unwrap();
            let next = schedule.after(Timestamp::from_millis(now * 60_000)).unwrap();
            prop_assert_eq!(next.micros(), expected.timestamp_micros(), "{}", text);
        }

        #[test]
        fn parse_never_panics(text in "[@*0-9/,a-z -]{0,30}") {
            drop(text.parse::<Schedule>());
        }
    }
}
