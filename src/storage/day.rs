//! A UTC day: the unit of partitioning.

use std::fmt;
use std::ops::Range;

use crate::event::{EventId, Timestamp};

const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
/// The last day whose milliseconds fit the 48 bits of an id.
const LAST: i64 = ((1 << 48) - 1) / DAY_MILLIS;

/// A day in UTC, counted from 1970-01-01. **Invariant:** its milliseconds fit an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(i64);

impl Day {
    pub const LAST: Self = Self(LAST);

    pub fn from_timestamp(time: Timestamp) -> Self {
        Self::from_number(time.millis().div_euclid(DAY_MILLIS))
    }

    pub fn from_id(id: EventId) -> Self {
        Self::from_number(i64::try_from(id.millis()).map_or(LAST, |millis| millis / DAY_MILLIS))
    }

    /// The day with this number, clamped to the valid range.
    pub fn from_number(number: i64) -> Self {
        Self(number.clamp(0, LAST))
    }

    pub fn number(self) -> i64 {
        self.0
    }

    pub fn start(self) -> Timestamp {
        Timestamp::from_millis(self.0 * DAY_MILLIS)
    }

    /// The start of the next day (exclusive end).
    pub fn end(self) -> Timestamp {
        Timestamp::from_millis((self.0 + 1) * DAY_MILLIS)
    }

    /// The milliseconds of the ids of the day.
    pub fn millis(self) -> Range<u64> {
        let millis = |day: i64| u64::try_from(day * DAY_MILLIS).unwrap_or(0);
        millis(self.0)..if self == Self::LAST { u64::MAX } else { millis(self.0 + 1) }
    }

    /// The lowest id of the day.
    pub fn first_id(self) -> EventId {
        EventId::floor(u64::try_from(self.0 * DAY_MILLIS).unwrap_or(0))
    }
}

impl fmt::Display for Day {
    /// Formats as RFC 3339's full-date, such as 2026-01-31.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.start().to_string();
        f.write_str(start.split('T').next().unwrap_or(&start))
    }
}
