//! Daily partitions: creates them ahead of time and drains the default partition into them.
//!
//! The day of an event is the day of its id, which begins with the event's time. Names and bounds
//! are functions of the day. `sweep` drops partitions.

use std::collections::BTreeSet;
use std::time::Duration;

use postgres::Client;
use postgres::types::Type;

use super::advisory_lock::PARTITION;
use super::connect::{Connections, TxnOptions};
use super::error;
use super::types::PgUuid;
use crate::event::{EventId, Timestamp};
use crate::storage::{Day, DrainReport, StoreError};

/// Days before and after today that have a partition: events may be late, clocks may be ahead, and
/// a database that was unreachable for a week still has partitions when it returns.
const DAYS_BEFORE: i64 = 1;
const DAYS_AFTER: i64 = 7;

/// Maximum number of days that one call drains from the default partition.
const DRAIN_DAYS_MAX: usize = 64;

/// Options of catalog reads, which take milliseconds. The writer runs one per minute, so a silent
/// database must not block it for long.
fn quick_txn() -> TxnOptions {
    let begin_sql = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'".to_owned();
    TxnOptions { begin_sql, io_timeout: Duration::from_secs(13) }
}

/// Options of ATTACH. It waits for queries on the default partition, and later lock requests queue
/// behind it, so the lock timeout is short.
fn attach_txn() -> TxnOptions {
    let begin_sql = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '60s'".to_owned();
    TxnOptions { begin_sql, io_timeout: Duration::from_secs(70) }
}

/// All columns of `events`, to move rows unchanged.
const COLUMNS: &str = "id, event_id, timestamp, ingested_at, created_at, service, message, metadata";

impl Day {
    /// Returns `events_YYYYMMDD`, which is safe to insert into SQL.
    pub(super) fn partition_name(self) -> String {
        let date = chrono::DateTime::from_timestamp_micros(self.start().micros())
            .expect("a day within 48 bits of milliseconds is a date");
        format!("events_{}", date.format("%Y%m%d")).replace('+', "")
    }

    /// Returns the bounds as SQL. The upper bound of the last day is MAXVALUE.
    fn bounds(self) -> (String, String) {
        let to = if self < Self::LAST {
            format!("'{}'", Self::from_number(self.number() + 1).first_id())
        } else {
            "MAXVALUE".to_owned()
        };
        (format!("'{}'", self.first_id()), to)
    }
}

/// Lists the days that have a partition. Ignores partitions with other names or bounds.
pub(super) fn days(client: &mut Client) -> Result<Vec<Day>, StoreError> {
    let rows = client
        .query_typed(
            "SELECT c.relname::text, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i \
             JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'events'::regclass",
            &[],
        )
        .map_err(|error| error::from_postgres("listing partitions", &error))?;
    let day = |row: &postgres::Row| {
        let (name, bound): (&str, &str) = (row.get(0), row.get(1));
        let low = bound.strip_prefix("FOR VALUES FROM ('")?.split('\'').next()?;
        let day = Day::from_id(low.parse().ok()?);
        let (from, to) = day.bounds();
        (name == day.partition_name() && bound == format!("FOR VALUES FROM ({from}) TO ({to})"))
            .then_some(day)
    };
    Ok(rows.iter().filter_map(day).collect())
}

/// Lists the days around `now` that need a partition.
fn required_days(now: Timestamp) -> impl Iterator<Item = Day> {
    let today = Day::from_timestamp(now).number();
    let days = today - DAYS_BEFORE..=today + DAYS_AFTER;
    days.filter(|day| (0..=Day::LAST.number()).contains(day)).map(Day::from_number)
}

/// Creates the missing partitions around `now`.
pub(super) fn ensure_partitions(connections: &Connections, now: Timestamp) -> Result<(), StoreError> {
    let existing = connections.transaction(&quick_txn(), partition_names)?;
    for day in required_days(now).filter(|day| !existing.contains(&day.partition_name())) {
        create_partition(connections, day)?;
    }
    Ok(())
}

/// Creates a partition for each day that has rows in the default partition, oldest first, and moves
/// the rows.
pub(super) fn drain_default(connections: &Connections) -> Result<DrainReport, StoreError> {
    let mut report = DrainReport::default();
    for _ in 0..DRAIN_DAYS_MAX {
        let (first, remaining) = connections.transaction(&quick_txn(), inspect_default)?;
        report.remaining = remaining;
        let Some(id) = first else { break };
        match create_partition(connections, Day::from_id(id))? {
            CreatePartitionOutcome::Created(rows) => report.moved += rows,
            // The rows remain until an operator attaches or drops the detached table.
            CreatePartitionOutcome::NameTaken => break,
        }
    }
    Ok(report)
}

/// Returns the first id of the default partition and its row count, up to the counted maximum.
fn inspect_default(client: &mut Client) -> Result<(Option<EventId>, u64), StoreError> {
    let row = client
        .query_typed_one(
            "SELECT (SELECT event_id FROM events_default ORDER BY event_id LIMIT 1), \
                    (SELECT count(*) FROM (SELECT event_id FROM events_default LIMIT $1) AS found)",
            &[(&i64::try_from(DrainReport::REMAINING_MAX).unwrap_or(i64::MAX), Type::INT8)],
        )
        .map_err(|error| error::from_postgres("reading the default partition", &error))?;
    let id: Option<PgUuid> = row.get(0);
    Ok((id.map(|id| id.0), u64::try_from(row.get::<_, i64>(1)).unwrap_or(0)))
}

fn partition_names(client: &mut Client) -> Result<BTreeSet<String>, StoreError> {
    let rows = client
        .query_typed(
            "SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'events'::regclass",
            &[],
        )
        .map_err(|error| error::from_postgres("listing partitions", &error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The result of creating a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CreatePartitionOutcome {
    /// The partition exists; the number of rows moved into it.
    Created(u64),
    /// A table with the name exists and is not attached: an operator detached it. It is not
    /// changed.
    NameTaken,
}

/// Creates the partition of `day` and moves the day's rows from the default partition into it, in
/// one transaction.
fn create_partition(connections: &Connections, day: Day) -> Result<CreatePartitionOutcome, StoreError> {
    let table = day.partition_name();
    let (from, to) = day.bounds();
    let to_error =
        |error: postgres::Error| error::from_postgres(&format!("creating the partition {table}"), &error);
    connections.transaction(&attach_txn(), |client| {
        client.batch_execute(&format!("SELECT pg_advisory_xact_lock({PARTITION})")).map_err(to_error)?;
        if partition_names(client)?.contains(&table) {
            return Ok(CreatePartitionOutcome::Created(0));
        }
        let name = &table;
        let name_taken: bool = client
            .query_typed_one("SELECT to_regclass($1) IS NOT NULL", &[(name, Type::TEXT)])
            .map_err(to_error)?
            .get(0);
        if name_taken {
            log::warn!(table = table.as_str(); "partition not created: a detached table has its name");
            return Ok(CreatePartitionOutcome::NameTaken);
        }
        // CREATE and ATTACH do not block users of other partitions; PARTITION OF would lock all of
        // them. The lock order is that of COPY. ATTACH requires the checks and generated columns of
        // `events`, so LIKE copies them; ATTACH itself creates indexes and triggers.
        client
            .batch_execute(&format!(
                "LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE; \
                 LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE; \
                 CREATE TABLE {table} (LIKE events INCLUDING CONSTRAINTS INCLUDING DEFAULTS \
                 INCLUDING GENERATED INCLUDING STORAGE)"
            ))
            .map_err(to_error)?;
        let upper = if to == "MAXVALUE" { String::new() } else { format!(" AND event_id < {to}") };
        let moved = client
            .execute_typed(
                &format!(
                    "WITH moved AS (DELETE FROM events_default WHERE event_id >= {from}{upper} \
                     RETURNING {COLUMNS}) INSERT INTO {table} ({COLUMNS}) SELECT {COLUMNS} FROM moved"
                ),
                &[],
            )
            .map_err(to_error)?;
        client
            .batch_execute(&format!(
                "ALTER TABLE events ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to})"
            ))
            .map_err(to_error)?;
        if moved > 0 {
            log::info!(
                partition = table.as_str(),
                rows = moved;
                "rows moved from the default partition into a new partition"
            );
        }
        Ok(CreatePartitionOutcome::Created(moved))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000); // 2026-01-01T12:00:00Z

    #[test]
    fn partitions_are_required_from_yesterday_to_a_week_ahead() {
        let tables: Vec<_> = required_days(NOON).map(Day::partition_name).collect();
        assert_eq!(tables.len(), 9);
        assert_eq!(tables[0], "events_20251231");
        assert_eq!(tables[1], "events_20260101");
        assert_eq!(tables[8], "events_20260108");
    }

    #[test]
    fn day_begins_at_its_first_millisecond_in_utc() {
        let day = Day::from_timestamp(NOON);
        let midnight = Timestamp::from_millis(1_767_225_600_000);
        assert_eq!(Day::from_timestamp(midnight), day);
        assert_eq!(
            Day::from_timestamp(Timestamp::from_micros(midnight.micros() - 1)),
            Day::from_number(day.number() - 1)
        );
        assert_eq!(day.first_id(), EventId::floor(1_767_225_600_000));
        assert_eq!(Day::from_id(EventId::keyed(1_767_225_600_000, [0; 10])), day);
        assert_eq!(
            Day::from_id(EventId::keyed(1_767_225_599_999, [0xff; 10])),
            Day::from_number(day.number() - 1)
        );
    }

    #[test]
    fn day_clamps_times_outside_the_id_range() {
        let last = Day::from_timestamp(Timestamp::from_micros(i64::MAX));
        assert_eq!((last, last.bounds().1.as_str()), (Day::LAST, "MAXVALUE"));
        assert_eq!(last.partition_name(), "events_108890802");
        assert_eq!(Day::from_id(EventId::from_bytes([0xff; 16])), last);
        let first = Day::from_timestamp(Timestamp::from_micros(i64::MIN));
        assert_eq!((first, first.partition_name().as_str()), (Day::from_number(0), "events_19700101"));
        assert_eq!(required_days(Timestamp::from_micros(0)).count(), 8);
    }
}
