//! Partitions: a day of events each, made before their day begins, and the default partition emptied into them.
//!
//! The day of an event is the day of its id, which begins with its time. Names and bounds come from days alone.
//! Dropping partitions is `sweep`'s business.

use std::collections::BTreeSet;
use std::time::Duration;

use postgres::Client;
use postgres::types::Type;

use super::connect::{Connections, Terms};
use super::error;
use super::types::Uuid;
use crate::event::{EventId, Timestamp};
use crate::storage::{Day, StoreError, Tidied};

/// Days before and after today that have a partition: events may be late and clocks may be ahead, and a server that
/// cannot reach its database for a week finds partitions when it can again.
const DAYS_BEFORE: i64 = 1;
const DAYS_AFTER: i64 = 7;

/// Days that one call empties out of the default partition. The rest waits for the next call.
const MOVED_DAYS_MAX: usize = 64;

/// The key of the advisory lock under which one server at a time makes partitions.
const LOCK: i64 = 0x6175_726f_7265_0002;

/// For a look that takes milliseconds. The writer waits for it once a minute, so a silent database must not hold it.
fn glance() -> Terms {
    let begin = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'".to_owned();
    Terms { begin, patience: Duration::from_secs(13) }
}

/// Attaching waits for queries that read the default partition, and everybody else waits behind it: not for long.
fn terms() -> Terms {
    let begin = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '60s'".to_owned();
    Terms { begin, patience: Duration::from_secs(70) }
}

/// The columns of `events`, for moving rows unchanged.
const MOVED: &str = "id, event_id, timestamp, ingested_at, created_at, service, message, metadata";

impl Day {
    /// `events_YYYYMMDD`. Digits and nothing else, so that it may stand in a statement.
    pub(super) fn table(self) -> String {
        let date = chrono::DateTime::from_timestamp_micros(self.begin().micros())
            .expect("a day within 48 bits of milliseconds is a date");
        format!("events_{}", date.format("%Y%m%d")).replace('+', "")
    }

    /// The bounds as they stand in a statement. There is none above the last day.
    fn bounds(self) -> (String, String) {
        let to = if self < Self::LAST {
            format!("'{}'", Self::numbered(self.number() + 1).floor())
        } else {
            "MAXVALUE".to_owned()
        };
        (format!("'{}'", self.floor()), to)
    }
}

/// The days that have a partition. One of another name or with other bounds is somebody else's affair.
pub(super) fn days(client: &mut Client) -> Result<Vec<Day>, StoreError> {
    let rows = client
        .query_typed(
            "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i \
             JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'events'::regclass",
            &[],
        )
        .map_err(|error| error::of("listing partitions", &error))?;
    let day = |row: &postgres::Row| {
        let (name, bound): (&str, &str) = (row.get(0), row.get(1));
        let low = bound.strip_prefix("FOR VALUES FROM ('")?.split('\'').next()?;
        let day = Day::of_id(low.parse().ok()?);
        let (from, to) = day.bounds();
        (name == day.table() && bound == format!("FOR VALUES FROM ({from}) TO ({to})")).then_some(day)
    };
    Ok(rows.iter().filter_map(day).collect())
}

/// The days around `now` that should have a partition.
fn needed(now: Timestamp) -> impl Iterator<Item = Day> {
    let today = Day::of(now).number();
    let wanted = today - DAYS_BEFORE..=today + DAYS_AFTER;
    wanted.filter(|day| (0..=Day::LAST.number()).contains(day)).map(Day::numbered)
}

/// Makes the partitions around `now` that are missing.
pub(super) fn ensure(connections: &Connections, now: Timestamp) -> Result<(), StoreError> {
    let existing = connections.transaction(&glance(), existing)?;
    for day in needed(now).filter(|day| !existing.contains(&day.table())) {
        make(connections, day)?;
    }
    Ok(())
}

/// Gives every day of which rows lie in the default partition a partition of its own, the oldest first.
pub(super) fn empty_default(connections: &Connections) -> Result<Tidied, StoreError> {
    let mut tidied = Tidied::default();
    for _ in 0..MOVED_DAYS_MAX {
        let (first, left) = connections.transaction(&glance(), look_into_default)?;
        tidied.left = left;
        let Some(id) = first else { break };
        match make(connections, Day::of_id(id))? {
            Made::Moved(rows) => tidied.moved += rows,
            // The rest waits until somebody attaches or drops what stands in the way.
            Made::InTheWay => break,
        }
    }
    Ok(tidied)
}

/// The first id there, and how many there are.
fn look_into_default(client: &mut Client) -> Result<(Option<EventId>, u64), StoreError> {
    let row = client
        .query_typed_one(
            "SELECT (SELECT event_id FROM events_default ORDER BY event_id LIMIT 1), \
                    (SELECT count(*) FROM (SELECT event_id FROM events_default LIMIT $1) AS found)",
            &[(&i64::try_from(Tidied::LEFT_MAX).unwrap_or(i64::MAX), Type::INT8)],
        )
        .map_err(|error| error::of("looking into the default partition", &error))?;
    let id: Option<Uuid> = row.get(0);
    Ok((id.map(|id| id.0), u64::try_from(row.get::<_, i64>(1)).unwrap_or(0)))
}

fn existing(client: &mut Client) -> Result<BTreeSet<String>, StoreError> {
    let rows = client
        .query_typed(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'events'::regclass",
            &[],
        )
        .map_err(|error| error::of("listing partitions", &error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What came of making a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    /// It is there, and so many rows were moved into it.
    Moved(u64),
    /// There is a table of that name which is not attached: somebody took it out, and that is left alone.
    InTheWay,
}

/// Makes the partition of `day`, moving what the default partition holds of it, in one transaction.
fn make(connections: &Connections, day: Day) -> Result<Made, StoreError> {
    let table = day.table();
    let (from, to) = day.bounds();
    let told = |error: postgres::Error| error::of(&format!("making the partition {table}"), &error);
    connections.transaction(&terms(), |client| {
        client
            .batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK})"))
            .map_err(told)?;
        if existing(client)?.contains(&table) {
            return Ok(Made::Moved(0));
        }
        let name = &table;
        let taken: bool = client
            .query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(name, Type::TEXT)])
            .map_err(told)?
            .get(0);
        if taken {
            log::warn!(table = table.as_str(); "a detached table stands where a partition should be made");
            return Ok(Made::InTheWay);
        }
        // A table made beside and attached holds up nobody who uses other partitions; PARTITION OF would lock all.
        // The order of the locks is the one in which a COPY takes them. Checks and generated columns that somebody has
        // added to `events` have to be there before it is attached; indexes and triggers come with that.
        client
            .batch_execute(&format!(
                "LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE; \
                 LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE; \
                 CREATE TABLE {table} (LIKE events INCLUDING CONSTRAINTS INCLUDING DEFAULTS \
                 INCLUDING GENERATED INCLUDING STORAGE)"
            ))
            .map_err(told)?;
        let upper = if to == "MAXVALUE" { String::new() } else { format!(" AND event_id < {to}") };
        let moved = client
            .execute_typed(
                &format!(
                    "WITH moved AS (DELETE FROM events_default WHERE event_id >= {from}{upper} RETURNING {MOVED}) \
                     INSERT INTO {table} ({MOVED}) SELECT {MOVED} FROM moved"
                ),
                &[],
            )
            .map_err(told)?;
        client
            .batch_execute(&format!("ALTER TABLE events ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})"))
            .map_err(told)?;
        if moved > 0 {
            log::info!(partition = table.as_str(), rows = moved; "partition made from the default partition");
        }
        Ok(Made::Moved(moved))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000); // 2026-01-01T12:00:00Z

    #[test]
    fn the_days_from_yesterday_to_a_week_ahead_are_needed() {
        let tables: Vec<_> = needed(NOON).map(Day::table).collect();
        assert_eq!(tables.len(), 9);
        assert_eq!(tables[0], "events_20251231");
        assert_eq!(tables[1], "events_20260101");
        assert_eq!(tables[8], "events_20260108");
    }

    #[test]
    fn a_day_begins_at_its_first_millisecond_in_utc() {
        let day = Day::of(NOON);
        let midnight = Timestamp::from_millis(1_767_225_600_000);
        assert_eq!(Day::of(midnight), day);
        assert_eq!(Day::of(Timestamp::from_micros(midnight.micros() - 1)), Day::numbered(day.number() - 1));
        assert_eq!(day.floor(), EventId::floor(1_767_225_600_000));
        assert_eq!(Day::of_id(EventId::keyed(1_767_225_600_000, [0; 10])), day);
        assert_eq!(
            Day::of_id(EventId::keyed(1_767_225_599_999, [0xff; 10])),
            Day::numbered(day.number() - 1)
        );
    }

    #[test]
    fn the_ends_of_time_have_days_too() {
        let last = Day::of(Timestamp::from_micros(i64::MAX));
        assert_eq!((last, last.bounds().1.as_str()), (Day::LAST, "MAXVALUE"));
        assert_eq!(last.table(), "events_108890802");
        assert_eq!(Day::of_id(EventId::from_bytes([0xff; 16])), last);
        let first = Day::of(Timestamp::from_micros(i64::MIN));
        assert_eq!((first, first.table().as_str()), (Day::numbered(0), "events_19700101"));
        assert_eq!(needed(Timestamp::from_micros(0)).count(), 8);
    }
}
