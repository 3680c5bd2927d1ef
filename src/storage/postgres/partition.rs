//! Daily partitions: lists them, creates them, and moves rows of the default partition into them.
//!
//! The day of an event is the day of its id, which begins with the event's time. Names and bounds
//! are functions of the day. The caller decides which days get a partition and when; `sweep` drops
//! partitions.

use std::time::Duration;

use postgres::Client;
use postgres::types::Type;

use super::advisory_lock::PARTITION;
use super::connect::{OwnConnection, TxnOptions};
use super::error;
use super::types::PgUuid;
use crate::event::EventId;
use crate::storage::{CreatePartitionLimits, CreatePartitionOutcome, Day, DefaultPartition, StoreError};

/// Maximum wait for another server that creates partitions. No table is locked meanwhile.
const TURN_TIMEOUT: &str = "1s";
/// Maximum wait for the table locks. Later lock requests queue behind the waiting one, so this is
/// short: a query or a batch takes some 50 ms, and the caller tries again.
const LOCK_TIMEOUT: &str = "200ms";
/// Releases the locks of a server that stopped in the middle of creating a partition.
const IDLE_TIMEOUT: &str = "10s";
/// Time allowed for the response in addition to the statement timeout.
const RESPONSE_GRACE: Duration = Duration::from_secs(5);

/// Options of catalog reads, which take milliseconds.
pub(super) fn quick_txn() -> TxnOptions {
    let begin_sql = "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'".to_owned();
    TxnOptions { begin_sql, io_timeout: Duration::from_secs(13) }
}

fn create_txn(locked_max: Duration) -> TxnOptions {
    let begin_sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{TURN_TIMEOUT}'; SET LOCAL statement_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}'",
        locked_max.as_millis()
    );
    TxnOptions { begin_sql, io_timeout: locked_max + RESPONSE_GRACE }
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

    /// Returns a condition on `event_id` that holds for the events of the day.
    fn condition(self) -> String {
        let (from, to) = self.bounds();
        let upper = if to == "MAXVALUE" { String::new() } else { format!(" AND event_id < {to}") };
        format!("event_id >= {from}{upper}")
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

/// Lists the days with rows in the default partition, and counts its rows, both up to a bound.
pub(super) fn inspect_default(connection: &OwnConnection) -> Result<DefaultPartition, StoreError> {
    let to_error = |error| error::from_postgres("reading the default partition", &error);
    connection.transaction(&quick_txn(), |client| {
        let rows_max = i64::try_from(DefaultPartition::ROWS_MAX).unwrap_or(i64::MAX);
        let row = client
            .query_typed_one(
                "SELECT count(*) FROM (SELECT event_id FROM events_default LIMIT $1) AS found",
                &[(&rows_max, Type::INT8)],
            )
            .map_err(to_error)?;
        let rows = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        let mut days = Vec::new();
        // One index probe per day.
        let mut next = Some(EventId::floor(0));
        while let Some(from) = next.filter(|_| days.len() < DefaultPartition::DAYS_MAX) {
            let found = client
                .query_typed(
                    "SELECT event_id FROM events_default WHERE event_id >= $1 ORDER BY event_id LIMIT 1",
                    &[(&PgUuid(from), Type::UUID)],
                )
                .map_err(to_error)?;
            let day = found.first().map(|row| Day::from_id(row.get::<_, PgUuid>(0).0));
            next =
                day.filter(|day| *day < Day::LAST).map(|day| Day::from_number(day.number() + 1).first_id());
            days.extend(day);
        }
        Ok(DefaultPartition { days, rows })
    })
}

/// Creates the partition of `day` and moves the day's rows from the default partition into it, in
/// one transaction.
pub(super) fn create(
    connection: &OwnConnection,
    day: Day,
    limits: CreatePartitionLimits,
) -> Result<CreatePartitionOutcome, StoreError> {
    let table = day.partition_name();
    let (from, to) = day.bounds();
    let to_error =
        |error: postgres::Error| error::from_postgres(&format!("creating the partition {table}"), &error);
    connection.transaction(&create_txn(limits.locked_max), |client| {
        client.batch_execute(&format!("SELECT pg_advisory_xact_lock({PARTITION})")).map_err(to_error)?;
        match state_of_name(client, &table).map_err(to_error)? {
            NameState::Partition => return Ok(CreatePartitionOutcome::Exists),
            NameState::OtherTable => {
                log::warn!(table = table.as_str(); "partition not created: a detached table has its name");
                return Ok(CreatePartitionOutcome::NameTaken);
            }
            NameState::Free => {}
        }
        if count_in_default(client, day, limits.moved_rows_max).map_err(to_error)? > limits.moved_rows_max {
            return Ok(CreatePartitionOutcome::TooManyRows);
        }
        // CREATE and ATTACH do not block users of other partitions; PARTITION OF would lock all of
        // them. ATTACH requires the checks and generated columns of `events`, so LIKE copies them;
        // ATTACH itself creates indexes and triggers. A role that may not create tables fails here,
        // before it locks the default partition. LIKE locks `events` first, as COPY and DETACH do,
        // so none of them can deadlock with this transaction.
        client
            .batch_execute(&format!(
                "CREATE TABLE {table} (LIKE events INCLUDING CONSTRAINTS INCLUDING DEFAULTS \
                 INCLUDING GENERATED INCLUDING STORAGE)"
            ))
            .map_err(to_error)?;
        client.batch_execute(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")).map_err(to_error)?;
        client.batch_execute("LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE").map_err(to_error)?;
        let moved = client
            .execute_typed(
                &format!(
                    "WITH moved AS (DELETE FROM events_default WHERE {} RETURNING {COLUMNS}) \
                     INSERT INTO {table} ({COLUMNS}) SELECT {COLUMNS} FROM moved",
                    day.condition()
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
        Ok(CreatePartitionOutcome::Created { moved })
    })
}

/// What has the name of a partition.
enum NameState {
    Free,
    /// A partition of `events`.
    Partition,
    /// A table that is not attached: an operator detached it.
    OtherTable,
}

fn state_of_name(client: &mut Client, table: &str) -> Result<NameState, postgres::Error> {
    let row = client.query_typed_one(
        "SELECT to_regclass($1) IS NOT NULL, EXISTS (SELECT FROM pg_inherits \
         WHERE inhrelid = to_regclass($1) AND inhparent = 'events'::regclass)",
        &[(&table, Type::TEXT)],
    )?;
    Ok(match (row.get(0), row.get(1)) {
        (_, true) => NameState::Partition,
        (true, false) => NameState::OtherTable,
        (false, false) => NameState::Free,
    })
}

/// Counts the rows of `day` in the default partition, up to one more than `rows_max`.
fn count_in_default(client: &mut Client, day: Day, rows_max: u64) -> Result<u64, postgres::Error> {
    let limit = i64::try_from(rows_max).unwrap_or(i64::MAX).saturating_add(1);
    let row = client.query_typed_one(
        &format!(
            "SELECT count(*) FROM (SELECT event_id FROM events_default WHERE {} LIMIT $1) AS found",
            day.condition()
        ),
        &[(&limit, Type::INT8)],
    )?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000); // 2026-01-01T12:00:00Z

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
    }
}
