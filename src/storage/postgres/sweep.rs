//! Deletes expired rows and drops expired partitions, one transaction per step.
//!
//! A sweep holds an advisory lock in an open transaction on a dedicated connection. That
//! transaction has no snapshot and no transaction id, so it does not hold back VACUUM. If its
//! connection is lost and a second sweep starts, each step is still correct on its own.
//!
//! A partition is detached in one transaction and dropped in a second one. DETACH ... CONCURRENTLY
//! would avoid the lock on `events`, but PostgreSQL does not support it with a default partition.
//! So the lock is held only to change a few catalog rows: the counts of the day are deleted before,
//! under a lock on the partition, and the files are removed after, when no query uses the table.
//! The wait for the lock is limited to `DETACH_LOCK_TIMEOUT`; while a long query holds it, the step
//! fails and the caller retries later.
//!
//! The same transaction renames the detached table to `events_YYYYMMDD_retired`. The suffix
//! distinguishes a table that a crash left behind from one that an operator detached to keep.

use postgres::Client;
use postgres::types::{ToSql, Type};
use std::time::Duration;

use super::advisory_lock::SWEEP;
use super::connect::{Connections, TxnOptions};
use super::error;
use super::types::{PgTimestamp, PgUuid};
use crate::event::{EventId, Timestamp};
use crate::storage::{Day, DeletedChunk, RetentionSweep, StoreError, SweepConditions};

/// Later lock requests queue behind the waiting DETACH, so this is short. A batch takes about 50
/// ms.
const DETACH_LOCK_TIMEOUT: &str = "150ms";

/// Maximum number of rows in `retention_runs`.
const RUNS_MAX: i64 = 1000;

/// Statement timeout of a step; the I/O timeout is a little longer.
const STEP_TIMEOUT: &str = "60s";
const STEP_IO_TIMEOUT: Duration = Duration::from_secs(70);

/// Deletes events and lowers the counts by the deleted rows, in the lock order of all writers.
const DELETE_EVENTS: &str = "\
    gone AS (DELETE FROM events WHERE event_id > $1 AND event_id <= $2 RETURNING service, timestamp), \
    lowered AS (\
        INSERT INTO event_counts AS c (service, hour, count) \
        SELECT service, date_trunc('hour', timestamp, 'UTC') AS hour, -count(*) FROM gone \
        GROUP BY 1, 2 ORDER BY 1, 2 \
        ON CONFLICT (service, hour) DO UPDATE SET count = c.count + excluded.count) \
    SELECT count(*) FROM gone";

#[derive(Debug)]
pub(super) struct PostgresSweep<'a> {
    connections: &'a Connections,
    lock: SweepLock,
    cutoff: Timestamp,
    /// The row of this sweep in `retention_runs`.
    run_id: i64,
}

/// The connection whose transaction holds the sweep lock.
struct SweepLock(Client);

impl std::fmt::Debug for SweepLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SweepLock")
    }
}

/// Begins a sweep. Returns None while another server holds the lock.
pub(super) fn begin(
    connections: &Connections,
    cutoff: Timestamp,
) -> Result<Option<PostgresSweep<'_>>, StoreError> {
    let mut connection = connections.dedicated()?.client;
    let to_error = |error| error::from_postgres("acquiring the sweep lock", &error);
    connection
        .batch_execute(&format!(
            "BEGIN; SET LOCAL statement_timeout = '{STEP_TIMEOUT}'; \
             SET LOCAL idle_in_transaction_session_timeout = 0"
        ))
        .map_err(to_error)?;
    let row = connection
        .query_typed_one(&format!("SELECT pg_try_advisory_xact_lock({SWEEP})"), &[])
        .map_err(to_error)?;
    if !row.get::<_, bool>(0) {
        return Ok(None);
    }
    let run_id = connections.transaction(&step_options("2s"), |client| {
        let to_error = |error| error::from_postgres("recording the sweep", &error);
        let cutoff: (&(dyn ToSql + Sync), Type) = (&PgTimestamp(cutoff), Type::TIMESTAMPTZ);
        let row = client
            .query_typed_one("INSERT INTO retention_runs (edge) VALUES ($1) RETURNING id", &[cutoff])
            .map_err(to_error)?;
        let run_id: i64 = row.get(0);
        client
            .execute_typed("DELETE FROM retention_runs WHERE id <= $1", &[(&(run_id - RUNS_MAX), Type::INT8)])
            .map_err(to_error)?;
        Ok(run_id)
    })?;
    Ok(Some(PostgresSweep { connections, lock: SweepLock(connection), cutoff, run_id }))
}

/// Reads the clock of the database and whether the role may drop partitions.
pub(super) fn conditions(client: &mut Client) -> Result<SweepConditions, StoreError> {
    let row = client
        .query_typed_one(
            "SELECT clock_timestamp(), pg_has_role(relowner, 'USAGE') FROM pg_class \
             WHERE oid = 'events'::regclass",
            &[],
        )
        .map_err(|error| error::from_postgres("reading the clock of the database", &error))?;
    Ok(SweepConditions { database_time: row.get::<_, PgTimestamp>(0).0, is_owner: row.get(1) })
}

/// Returns the start time of the latest sweep that finished without an error.
pub(super) fn last_finished(client: &mut Client) -> Result<Option<Timestamp>, StoreError> {
    let row = client
        .query_typed_one(
            "SELECT max(started_at) FROM retention_runs WHERE finished_at IS NOT NULL AND error IS NULL",
            &[],
        )
        .map_err(|error| error::from_postgres("reading the last sweep", &error))?;
    Ok(row.get::<_, Option<PgTimestamp>>(0).map(|time| time.0))
}

/// The idle timeout releases the locks of a server that died in the middle of a step.
fn step_options(lock_timeout: &str) -> TxnOptions {
    let begin_sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{lock_timeout}'; SET LOCAL statement_timeout = '{STEP_TIMEOUT}'; \
         SET LOCAL idle_in_transaction_session_timeout = '{STEP_TIMEOUT}'; SET LOCAL jit = off"
    );
    TxnOptions { begin_sql, io_timeout: STEP_IO_TIMEOUT }
}

impl PostgresSweep<'_> {
    /// Runs one step after checking that the connection of the lock is alive.
    fn step<T>(
        &mut self,
        options: &TxnOptions,
        work: impl FnOnce(&mut Client, i64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.lock
            .0
            .batch_execute("SELECT 1")
            .map_err(|error| error::from_postgres("checking the sweep lock", &error))?;
        let run_id = self.run_id;
        self.connections.transaction(options, |client| work(client, run_id))
    }

    /// Detaches the partition of a day from `events` and deletes the counts of the day. Returns
    /// their sum.
    pub(super) fn detach(&mut self, day: Day) -> Result<u64, StoreError> {
        let table = day.partition_name();
        let to_error = |error| error::from_postgres(&format!("detaching {table}"), &error);
        self.step(&step_options(DETACH_LOCK_TIMEOUT), |client, run_id| {
            refuse_unfinished_day(client, day)?;
            // Lock order: a batch that stores events of that day also locks the partition first.
            client
                .batch_execute(&format!("LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"))
                .map_err(to_error)?;
            let hours: [(&(dyn ToSql + Sync), Type); 2] = [
                (&PgTimestamp(day.start()), Type::TIMESTAMPTZ),
                (&PgTimestamp(day.end()), Type::TIMESTAMPTZ),
            ];
            let row = client
                .query_typed_one(
                    "WITH gone AS (DELETE FROM event_counts WHERE hour >= $1 AND hour < $2 RETURNING count) \
                     SELECT coalesce(sum(count), 0)::bigint FROM gone",
                    &hours,
                )
                .map_err(to_error)?;
            let rows: i64 = row.get(0);
            add_to_run(
                client,
                run_id,
                "partitions_dropped = partitions_dropped + 1, events_dropped = events_dropped",
                rows,
            )?;
            // One statement per message: Citus forwards the whole message for each statement.
            client
                .batch_execute(&format!("ALTER TABLE events DETACH PARTITION {table}"))
                .map_err(to_error)?;
            client
                .batch_execute(&format!("ALTER TABLE {table} RENAME TO {table}_retired"))
                .map_err(to_error)?;
            Ok(u64::try_from(rows).unwrap_or(0))
        })
    }
}

impl RetentionSweep for PostgresSweep<'_> {
    fn drop_detached_partitions(&mut self) -> Result<(), StoreError> {
        let tables: Vec<String> = self.step(&step_options("2s"), |client, _| {
            let rows = client
                .query_typed(
                    "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND NOT relispartition \
                     AND relname ~ '^events_[0-9]{8,9}_retired$' \
                     AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'events'::regclass)",
                    &[],
                )
                .map_err(|error| error::from_postgres("listing detached partitions", &error))?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        })?;
        for table in tables {
            self.step(&step_options("2s"), |client, _| {
                client
                    .batch_execute(&format!("DROP TABLE IF EXISTS {table}"))
                    .map_err(|error| error::from_postgres(&format!("dropping {table}"), &error))
            })?;
            log::info!(partition = table.as_str(); "partition dropped");
        }
        Ok(())
    }

    fn drop_partition(&mut self, day: Day) -> Result<u64, StoreError> {
        let rows = self.detach(day)?;
        self.drop_detached_partitions()?;
        Ok(rows)
    }

    fn delete_events(
        &mut self,
        after: EventId,
        before: EventId,
        rows_max: u32,
    ) -> Result<DeletedChunk, StoreError> {
        let to_error = |error| error::from_postgres("deleting old events", &error);
        let cutoff = self.cutoff;
        self.step(&step_options("2s"), |client, run_id| {
            // The primary key has the order; the planner's statistics of a partition that is being
            // emptied are outdated.
            client
                .batch_execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
                .map_err(to_error)?;
            let (low, high, limit) = (PgUuid(after), PgUuid(before), i64::from(rows_max));
            let params: [(&(dyn ToSql + Sync), Type); 3] =
                [(&low, Type::UUID), (&high, Type::UUID), (&limit, Type::INT8)];
            let last = client
                .query_typed(
                    "SELECT event_id FROM events WHERE event_id > $1 AND event_id < $2 \
                     ORDER BY event_id OFFSET $3 - 1 LIMIT 1",
                    &params,
                )
                .map_err(to_error)?;
            let next = last.first().map(|row| row.get::<_, PgUuid>(0).0);
            let last_id = next.map_or(high, PgUuid);
            let params: [(&(dyn ToSql + Sync), Type); 2] = [(&low, Type::UUID), (&last_id, Type::UUID)];
            let row = client.query_typed_one(&format!("WITH {DELETE_EVENTS}"), &params).map_err(to_error)?;
            let rows: i64 = row.get(0);
            if rows > 0 {
                client
                    .execute_typed(
                        "DELETE FROM event_counts WHERE hour < $1 AND count <= 0",
                        &[(&PgTimestamp(cutoff), Type::TIMESTAMPTZ)],
                    )
                    .map_err(to_error)?;
                add_to_run(client, run_id, "events_deleted = events_deleted", rows)?;
            }
            Ok(DeletedChunk { rows: u64::try_from(rows).unwrap_or(0), next })
        })
    }

    fn delete_dead_letters(&mut self, rows_max: u32) -> Result<u64, StoreError> {
        let to_error = |error| error::from_postgres("deleting old dead letters", &error);
        let (cutoff, limit) = (PgTimestamp(self.cutoff), i64::from(rows_max));
        self.step(&step_options("2s"), |client, run_id| {
            let params: [(&(dyn ToSql + Sync), Type); 2] =
                [(&cutoff, Type::TIMESTAMPTZ), (&limit, Type::INT8)];
            let rows = client
                .execute_typed(
                    "DELETE FROM dead_events WHERE event_id = ANY (ARRAY(\
                     SELECT event_id FROM dead_events WHERE died_at < $1 ORDER BY died_at LIMIT $2))",
                    &params,
                )
                .map_err(to_error)?;
            if rows > 0 {
                add_to_run(
                    client,
                    run_id,
                    "dead_deleted = dead_deleted",
                    i64::try_from(rows).unwrap_or(i64::MAX),
                )?;
            }
            Ok(rows)
        })
    }

    fn delete_minute_counts(&mut self) -> Result<bool, StoreError> {
        let to_error = |error| error::from_postgres("deleting old minute counts", &error);
        let cutoff = PgTimestamp(self.cutoff);
        self.step(&step_options("2s"), |client, _| {
            let deleted = client.execute_typed(
                "DELETE FROM event_minutes WHERE minute < least(date_trunc('hour', $1, 'UTC'), \
                 date_trunc('hour', (SELECT min(minute) FROM event_minutes), 'UTC') + interval '1 hour')",
                &[(&cutoff, Type::TIMESTAMPTZ)],
            );
            Ok(deleted.map_err(to_error)? > 0)
        })
    }

    fn finish(&mut self, error: Option<&str>) -> Result<(), StoreError> {
        self.step(&step_options("2s"), |client, run_id| {
            let params: [(&(dyn ToSql + Sync), Type); 2] = [(&run_id, Type::INT8), (&error, Type::TEXT)];
            client
                .execute_typed(
                    "UPDATE retention_runs SET finished_at = now(), error = $2 WHERE id = $1",
                    &params,
                )
                .map_err(|error| error::from_postgres("recording the end of the sweep", &error))?;
            Ok(())
        })
    }
}

/// Fails unless the day is over by the clock of the database, whatever the caller's clock says.
fn refuse_unfinished_day(client: &mut Client, day: Day) -> Result<(), StoreError> {
    let end: (&(dyn ToSql + Sync), Type) = (&PgTimestamp(day.end()), Type::TIMESTAMPTZ);
    let row = client
        .query_typed_one("SELECT clock_timestamp() >= $1", &[end])
        .map_err(|error| error::from_postgres("reading the clock of the database", &error))?;
    if row.get(0) {
        return Ok(());
    }
    Err(StoreError::client_side(format!("BUG: a sweep tried to drop {day}, which is not over")))
}

/// Updates the record of the sweep by `assignment + rows`.
fn add_to_run(client: &mut Client, run_id: i64, assignment: &str, rows: i64) -> Result<(), StoreError> {
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&run_id, Type::INT8), (&rows, Type::INT8)];
    client
        .execute_typed(&format!("UPDATE retention_runs SET {assignment} + $2 WHERE id = $1"), &params)
        .map_err(|error| error::from_postgres("recording the deleted rows", &error))?;
    Ok(())
}
