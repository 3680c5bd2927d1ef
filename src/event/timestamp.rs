//! Parses the two formats of a timestamp, RFC 3339 with an offset and an integer of epoch
//! milliseconds, and checks its bounds. It must not depend on the JSON scanner.

use std::fmt;
use std::time::Duration;

use crate::event::{MILLIS_END, Timestamp};

/// A timestamp is malformed or out of bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTimestampError {
    #[error(
        "must be an RFC 3339 time with an offset, as \"2026-11-23T12:00:00.123Z\", or an integer of epoch milliseconds"
    )]
    InvalidFormat,
    #[error("must be a whole number of epoch milliseconds, without fraction or exponent")]
    NotAnInteger,
    #[error("must be epoch milliseconds; the number looks like epoch {unit}: {}", .unit.conversion())]
    WrongUnit { unit: EpochUnit },
    #[error("must be an RFC 3339 time with an offset, or a number of seconds to nanoseconds since 1970")]
    InvalidTime,
    #[error("is before 1970")]
    BeforeEpoch,
    #[error("is older than the {} days of the retention", days(.0))]
    TooOld(Duration),
    #[error("is more than {} ms ahead of the server's clock", .0.as_millis())]
    TooFarAhead(Duration),
}

/// A unit of time since 1970 that a client may send in place of milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochUnit {
    Seconds,
    Microseconds,
    Nanoseconds,
}

impl EpochUnit {
    /// The unit in which `number` is a time from 2001 to 2286. These are numbers of 10, 16 and 19
    /// digits; as milliseconds they are times before May 1970, or after all ids.
    fn of(number: f64) -> Option<Self> {
        match number {
            1e9..1e10 => Some(Self::Seconds),
            1e15..1e16 => Some(Self::Microseconds),
            1e18..1e19 => Some(Self::Nanoseconds),
            _ => None,
        }
    }

    fn conversion(self) -> &'static str {
        match self {
            Self::Seconds => "multiply it by 1000",
            Self::Microseconds => "divide it by 1000",
            Self::Nanoseconds => "divide it by 1000000",
        }
    }
}

impl fmt::Display for EpochUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds => "seconds",
            Self::Microseconds => "microseconds",
            Self::Nanoseconds => "nanoseconds",
        })
    }
}

fn days(retention: &Duration) -> u64 {
    retention.as_secs() / 86_400
}

/// The range of accepted timestamps at one moment.
#[derive(Clone, Copy, Debug)]
pub struct TimestampBounds {
    oldest: i64,
    newest: i64,
    retention: Duration,
    skew: Duration,
}

impl TimestampBounds {
    pub fn new(now: Timestamp, retention: Duration, skew: Duration) -> Self {
        let micros = |span: Duration| i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Self {
            oldest: now.micros().saturating_sub(micros(retention)),
            newest: now.micros().saturating_add(micros(skew)).min(MILLIS_END * 1000 - 1),
            retention,
            skew,
        }
    }

    /// Returns `time` if it is within the bounds.
    #[inline]
    pub fn check(&self, time: Timestamp) -> Result<Timestamp, ParseTimestampError> {
        if time.micros() < 0 {
            Err(ParseTimestampError::BeforeEpoch)
        } else if time.micros() < self.oldest {
            Err(ParseTimestampError::TooOld(self.retention))
        } else if time.micros() > self.newest {
            Err(ParseTimestampError::TooFarAhead(self.skew))
        } else {
            Ok(time)
        }
    }
}

/// Parses epoch milliseconds: a JSON number without fraction and exponent. `-0` is 0. A number
/// beyond 64 bits saturates and is thus out of every range. A number that is a present time in
/// another unit is an error at whatever place: a time in the first months of 1970 must be given in
/// RFC 3339.
pub fn parse_epoch_millis(number: &[u8]) -> Result<Timestamp, ParseTimestampError> {
    let (negative, digits) = match number.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, number),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(wrong_unit(number).unwrap_or(ParseTimestampError::NotAnInteger));
    }
    if matches!(digits.len(), 10 | 16 | 19)
        && let Some(error) = wrong_unit(number)
    {
        return Err(error);
    }
    let size = digits
        .iter()
        .fold(0_i64, |size, digit| size.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
    Ok(Timestamp::from_millis(if negative { -size } else { size }))
}

/// Parses an RFC 3339 time, or a decimal number of seconds, milliseconds, microseconds or nanoseconds
/// since 1970, whose magnitude tells the unit: below 10^11 seconds, below 10^14 milliseconds, below
/// 10^17 microseconds.
pub fn parse_any(text: &[u8]) -> Result<Timestamp, ParseTimestampError> {
    if let Ok(time) = parse_rfc3339(text) {
        return Ok(time);
    }
    let text = text.trim_ascii();
    parse_epoch_decimal(text).or_else(|| parse_epoch_float(text)).ok_or(ParseTimestampError::InvalidTime)
}

/// The time that is `whole` units and a fraction of a unit after 1970. None if `whole` is out of
/// range.
fn epoch_micros(whole: u64, fraction: &[u8]) -> Option<i64> {
    let (decimals, micros) = match whole {
        0..100_000_000_000 => (6, whole * 1_000_000),
        100_000_000_000..100_000_000_000_000 => (3, whole * 1000),
        100_000_000_000_000..100_000_000_000_000_000 => (0, whole),
        _ => (0, whole / 1000),
    };
    let part = (0..decimals)
        .fold(0, |part, at| part * 10 + fraction.get(at).map_or(0, |digit| u64::from(digit - b'0')));
    i64::try_from(micros + part).ok()
}

/// A number with an optional fraction, without an exponent. It is exact.
fn parse_epoch_decimal(number: &[u8]) -> Option<Timestamp> {
    let (negative, number) = match number.strip_prefix(b"-") {
        Some(number) => (true, number),
        None => (false, number),
    };
    let point = memchr::memchr(b'.', number).unwrap_or(number.len());
    let (whole, fraction) = (&number[..point], number.get(point + 1..).unwrap_or_default());
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let whole = whole
        .iter()
        .try_fold(0_u64, |size, digit| size.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
    let micros = epoch_micros(whole, fraction)?;
    Some(Timestamp::from_micros(if negative { -micros } else { micros }))
}

/// A number with an exponent, which some serializers write for seconds with a fraction.
#[cold]
fn parse_epoch_float(number: &[u8]) -> Option<Timestamp> {
    let is_number = number.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte));
    let number: f64 = str::from_utf8(number).ok().filter(|_| is_number)?.parse().ok()?;
    let decimal = format!("{number:.6}");
    parse_epoch_decimal(decimal.as_bytes())
}

/// The error of a number that looks like a time in another unit. Clients send seconds with a
/// fraction, too.
#[cold]
fn wrong_unit(number: &[u8]) -> Option<ParseTimestampError> {
    let is_number = number.iter().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(byte));
    let number = str::from_utf8(number).ok().filter(|_| is_number)?.parse().ok()?;
    EpochUnit::of(number).map(|unit| ParseTimestampError::WrongUnit { unit })
}

/// Parses RFC 3339; a space or `t` is allowed for `T`, as in the RFC. Digits beyond microseconds
/// are truncated. A leap second (`:60`, in any minute, as in PostgreSQL) is the first second of the
/// next minute.
pub fn parse_rfc3339(text: &[u8]) -> Result<Timestamp, ParseTimestampError> {
    try_parse_rfc3339(text).ok_or(ParseTimestampError::InvalidFormat)
}

#[inline]
fn try_parse_rfc3339(text: &[u8]) -> Option<Timestamp> {
    let (head, rest) = text.split_first_chunk::<19>()?;
    // All digits and separators are checked before the first branch: one branch instead of
    // nineteen.
    let mut wrong = 0_u8;
    let mut digit = |at: usize| {
        let value = head[at].wrapping_sub(b'0');
        wrong |= u8::from(value > 9);
        i64::from(value)
    };
    let year = digit(0) * 1000 + digit(1) * 100 + digit(2) * 10 + digit(3);
    let month = digit(5) * 10 + digit(6);
    let day = digit(8) * 10 + digit(9);
    let hour = digit(11) * 10 + digit(12);
    let minute = digit(14) * 10 + digit(15);
    let second = digit(17) * 10 + digit(18);
    let marks = head[4] == b'-'
        && head[7] == b'-'
        && matches!(head[10], b'T' | b't' | b' ')
        && head[13] == b':'
        && head[16] == b':';
    if wrong != 0 || !marks || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if !(1..=12).contains(&month) || day < 1 || day > days_of_month(year, month) {
        return None;
    }
    let (micros, zone) = parse_fraction(rest)?;
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Timestamp::from_micros((seconds - parse_offset_seconds(zone)?) * 1_000_000 + micros))
}

/// Parses an optional fraction. Returns its microseconds and the rest of the text.
#[inline]
fn parse_fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    const SCALE: [i64; 7] = [1_000_000, 100_000, 10_000, 1000, 100, 10, 1];
    let Some(digits) = rest.strip_prefix(b".") else {
        return Some((0, rest));
    };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let (digits, zone) = digits.split_at(count);
    let kept = &digits[..count.min(6)];
    let value = kept.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
    Some((value * SCALE[kept.len()], zone))
}

/// Seconds east of UTC.
#[inline]
fn parse_offset_seconds(zone: &[u8]) -> Option<i64> {
    match *zone {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            if ![h1, h2, m1, m2].iter().all(u8::is_ascii_digit) {
                return None;
            }
            let hours = i64::from(h1 - b'0') * 10 + i64::from(h2 - b'0');
            let minutes = i64::from(m1 - b'0') * 10 + i64::from(m2 - b'0');
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            Some(if sign == b'-' { -seconds } else { seconds })
        }
        _ => None,
    }
}

fn days_of_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Years begin in March here, so that the
/// leap day is the last day of its year.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&str>) {
        let actual = parse_rfc3339(text.as_bytes()).ok().map(|time| time.to_string());
        assert_eq!(actual.as_deref(), expected, "{text}");
    }

    #[test]
    fn parse_rfc3339_accepts_each_form() {
        check("2026-11-23T12:00:00Z", Some("2026-11-23T12:00:00.000000Z"));
        check("2026-11-23t12:00:00z", Some("2026-11-23T12:00:00.000000Z"));
        check("2026-11-23 12:00:00Z", Some("2026-11-23T12:00:00.000000Z"));
        check("2026-11-23T12:00:00.1Z", Some("2026-11-23T12:00:00.100000Z"));
        check("2026-11-23T12:00:00.1234569999Z", Some("2026-11-23T12:00:00.123456Z"));
        check("2026-11-23T12:00:00+05:30", Some("2026-11-23T06:30:00.000000Z"));
        check("2026-11-23T12:00:00.5-23:59", Some("2026-11-24T11:59:00.500000Z"));
        check("2026-11-23T12:00:00-00:00", Some("2026-11-23T12:00:00.000000Z"));
        check("2024-02-29T00:00:00Z", Some("2024-02-29T00:00:00.000000Z"));
        check("2000-02-29T00:00:00Z", Some("2000-02-29T00:00:00.000000Z"));
        check("1969-12-31T23:59:59.999999Z", Some("1969-12-31T23:59:59.999999Z"));
        check("0000-01-01T00:00:00Z", Some("0000-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn leap_second_is_the_first_second_of_the_next_minute() {
        check("2016-12-31T23:59:60Z", Some("2017-01-01T00:00:00.000000Z"));
        check("2016-12-31T12:10:60.999Z", Some("2016-12-31T12:11:00.999000Z"));
        check("2016-12-31T12:10:61Z", None);
    }

    #[test]
    fn parse_rfc3339_rejects_malformed_times() {
        for text in [
            "",
            "2026",
            "2026-11-23",
            "2026-11-23T12:00:00",
            "2026-11-23T12:00Z",
            "2026-11-23T12:00:00.Z",
            "2026-11-23T12:00:00,5Z",
            "2026-11-23T12:00:00+0530",
            "2026-11-23T12:00:00+05",
            "2026-11-23T12:00:00+24:00",
            "2026-11-23T12:00:00+05:60",
            "2026-11-23T12:00:00ZZ",
            "2026-11-23T12:00:00 Z",
            " 2026-11-23T12:00:00Z",
            "2026-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-04-31T00:00:00Z",
            "2026-01-32T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T12:60:00Z",
            "294277-01-01T00:00:00Z",
            "-001-01-01T00:00:00Z",
            "+2026-01-01T00:00:00Z",
            "2026-11-23_12:00:00Z",
            "2026/11/23T12:00:00Z",
            "2026-11-2\u{661}T12:00:00Z",
            "now",
        ] {
            check(text, None);
        }
    }

    #[track_caller]
    fn check_millis(number: &str, expected: Result<i64, ParseTimestampError>) {
        assert_eq!(parse_epoch_millis(number.as_bytes()).map(Timestamp::micros), expected, "{number}");
    }

    #[test]
    fn parse_epoch_millis_accepts_only_integers() {
        check_millis("1700000000123", Ok(1_700_000_000_123_000));
        check_millis("0", Ok(0));
        check_millis("-0", Ok(0));
        check_millis("-1", Ok(-1000));
        check_millis("99999999999999999999999999", Ok(i64::MAX));
        for number in ["1.0", "1e3", "1E3", "", "-", "1700000000123.5"] {
            check_millis(number, Err(ParseTimestampError::NotAnInteger));
        }
    }

    #[test]
    fn parse_epoch_millis_names_the_unit_of_a_present_time() {
        use EpochUnit::{Microseconds, Nanoseconds, Seconds};
        let wrong = |number: &str, unit| check_millis(number, Err(ParseTimestampError::WrongUnit { unit }));
        for number in ["1000000000", "1795435200", "9999999999", "1795435200.123", "1.7954352e9", "1.8E+9"] {
            wrong(number, Seconds);
        }
        for number in ["1000000000000000", "1795435200123456", "9999999999999000", "1795435200123456.5"] {
            wrong(number, Microseconds);
        }
        for number in ["1000000000000000000", "1795435200123456789", "9000000000000000000", "1.795435200e18"]
        {
            wrong(number, Nanoseconds);
        }
        for millis in [0, 999_999_999, 10_000_000_000, 1_795_435_200_123, 281_474_976_710_655] {
            check_millis(&millis.to_string(), Ok(millis * 1000));
        }
        check_millis("-1795435200", Ok(-1_795_435_200_000));
        check_millis("99999999999999999", Ok(i64::MAX));
        for number in ["1795435200123.5", "1.795e12", "1e400", "1795435200s", "1..5"] {
            check_millis(number, Err(ParseTimestampError::NotAnInteger));
        }
        let error = parse_epoch_millis(b"1795435200").unwrap_err().to_string();
        assert_eq!(
            error,
            "must be epoch milliseconds; the number looks like epoch seconds: multiply it by 1000"
        );
    }

    #[test]
    fn timestamp_bounds_are_inclusive() {
        let day = Duration::from_hours(24);
        let now = Timestamp::from_millis(1_800_000_000_000);
        let window = TimestampBounds::new(now, day * 30, Duration::from_millis(500));
        let at = |micros: i64| window.check(Timestamp::from_micros(now.micros() + micros)).map(|_| ());
        let retention = 30 * 86_400 * 1_000_000;
        assert_eq!(at(-retention), Ok(()));
        assert_eq!(at(-retention - 1), Err(ParseTimestampError::TooOld(day * 30)));
        assert_eq!(at(500_000), Ok(()));
        assert_eq!(at(500_001), Err(ParseTimestampError::TooFarAhead(Duration::from_millis(500))));
        let endless = TimestampBounds::new(now, Duration::MAX, Duration::MAX);
        assert_eq!(endless.check(Timestamp::from_micros(-1)), Err(ParseTimestampError::BeforeEpoch));
        assert!(endless.check(Timestamp::from_micros(0)).is_ok());
        assert!(endless.check(Timestamp::from_millis(MILLIS_END - 1)).is_ok());
        assert!(endless.check(Timestamp::from_millis(MILLIS_END)).is_err());
    }

    proptest! {
        #[test]
        fn parse_rfc3339_agrees_with_chrono_on_valid_times(
            micros in -62_167_219_200_000_000_i64..253_402_300_800_000_000,
            offset in -86_340_i32..=86_340,
            decimals in 0_usize..10,
        ) {
            let zone = chrono::FixedOffset::east_opt(offset / 60 * 60).unwrap();
            let time = chrono::DateTime::from_timestamp_micros(micros).unwrap().with_timezone(&zone);
            let local = time.naive_local();
            prop_assume!((0..=9999).contains(&chrono::Datelike::year(&local)));
            let digits = format!("{:09}", chrono::Timelike::nanosecond(&local));
            let fraction = if decimals == 0 { String::new() } else { format!(".{}", &digits[..decimals]) };
            let text = format!("{}{fraction}{}", local.format("%Y-%m-%dT%H:%M:%S"), time.format("%:z"));
            let expected = chrono::DateTime::parse_from_rfc3339(&text).unwrap().timestamp_micros();
            prop_assert_eq!(parse_rfc3339(text.as_bytes()).map(Timestamp::micros), Ok(expected), "{}", text);
        }

        #[test]
        fn parse_rfc3339_agrees_with_chrono_on_generated_text(text in "[0-9]{4}-[0-1][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|z|[+-][0-2][0-9]:[0-6][0-9])") {
            let expected = chrono::DateTime::parse_from_rfc3339(&text).ok().map(|time| time.timestamp_micros());
            prop_assert_eq!(parse_rfc3339(text.as_bytes()).ok().map(Timestamp::micros), expected, "{}", text);
        }
    }
}
