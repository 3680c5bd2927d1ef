//! What is past its time, out of the tables: one step a transaction.
//!
//! A sweep holds a transaction open on a connection of its own, and in it the advisory lock that keeps others away. It
//! has no snapshot and no number, so that VACUUM does not wait for it; should its connection be lost and a second sweep
//! begin beside, each step is still right on its own.
//!
//! A partition is detached in one transaction and dropped in a second. DETACH ... CONCURRENTLY would spare the lock on
//! `events`, but PostgreSQL does not do it where there is a default partition. So the lock is held only for the change of
//! a few catalogue rows: what takes longer (the counts of the day) is done before it, behind a lock on the partition
//! alone, and what takes longest (the files) after it, on a table that nobody reads any more. Nobody waits for the lock
//! longer than `DETACH_WAIT`; when a long query holds it, the caller tries again later.
//!
//! The detached table is renamed, in the same transaction, to `events_YYYYMMDD_retired`: one that was left behind by
//! a crash is known by that from one that somebody took out to keep.

use postgres::Client;
use postgres::types::{ToSql, Type};
use std::time::Duration;

use super::connect::{Connections, Terms};
use super::error;
use super::types::{Time, Uuid};
use crate::event::{EventId, Timestamp};
use crate::storage::{Day, Deleted, StoreError, Sweeping};

/// The key of the advisory lock under which one server at a time sweeps.
pub(super) const LOCK: i64 = 0x6175_726f_7265_0003;

/// Everybody who comes meanwhile waits behind it. A batch takes some 50 ms.
const DETACH_WAIT: &str = "150ms";

/// Sweeps of which the record is kept.
const RUNS_MAX: i64 = 1000;

/// Longest that a step may take, and its silence a little longer.
const STEP_TIMEOUT: &str = "60s";
const PATIENCE: Duration = Duration::from_secs(70);

/// Taken off the counts by what really went, in the order in which all lock them.
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
    guard: Guard,
    edge: Timestamp,
    /// The row of this sweep in `retention_runs`.
    run: i64,
}

/// The connection whose transaction holds the lock.
struct Guard(Client);

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// Begins a sweep, unless another server is at it.
pub(super) fn begin(
    connections: &Connections,
    edge: Timestamp,
) -> Result<Option<PostgresSweep<'_>>, StoreError> {
    let mut guard = connections.apart()?.client;
    let told = |error| error::of("taking the lock of the sweep", &error);
    guard
        .batch_execute(&format!(
            "BEGIN; SET LOCAL statement_timeout = '{STEP_TIMEOUT}'; \
             SET LOCAL idle_in_transaction_session_timeout = 0"
        ))
        .map_err(told)?;
    let row =
        guard.query_typed_one(&format!("SELECT pg_try_advisory_xact_lock({LOCK})"), &[]).map_err(told)?;
    if !row.get::<_, bool>(0) {
        return Ok(None);
    }
    let run = connections.transaction(&terms("2s"), |client| {
        let told = |error| error::of("noting the sweep", &error);
        let edge: (&(dyn ToSql + Sync), Type) = (&Time(edge), Type::TIMESTAMPTZ);
        let row = client
            .query_typed_one("INSERT INTO retention_runs (edge) VALUES ($1) RETURNING id", &[edge])
            .map_err(told)?;
        let run: i64 = row.get(0);
        client
            .execute_typed("DELETE FROM retention_runs WHERE id <= $1", &[(&(run - RUNS_MAX), Type::INT8)])
            .map_err(told)?;
        Ok(run)
    })?;
    Ok(Some(PostgresSweep { connections, guard: Guard(guard), edge, run }))
}

/// When the latest one began that came to its end.
pub(super) fn last(client: &mut Client) -> Result<Option<Timestamp>, StoreError> {
    let row = client
        .query_typed_one(
            "SELECT max(started_at) FROM retention_runs WHERE finished_at IS NOT NULL AND error IS NULL",
            &[],
        )
        .map_err(|error| error::of("looking for the last sweep", &error))?;
    Ok(row.get::<_, Option<Time>>(0).map(|time| time.0))
}

/// A server that dies in the middle of a step must not hold locks for ever.
fn terms(lock_timeout: &str) -> Terms {
    let begin = format!(
        "BEGIN; SET LOCAL lock_timeout = '{lock_timeout}'; SET LOCAL statement_timeout = '{STEP_TIMEOUT}'; \
         SET LOCAL idle_in_transaction_session_timeout = '{STEP_TIMEOUT}'; SET LOCAL jit = off"
    );
    Terms { begin, patience: PATIENCE }
}

impl PostgresSweep<'_> {
    /// One step, while the lock is held.
    fn step<T>(
        &mut self,
        terms: &Terms,
        work: impl FnOnce(&mut Client, i64) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.guard
            .0
            .batch_execute("SELECT 1")
            .map_err(|error| error::of("holding the lock of the sweep", &error))?;
        let run = self.run;
        self.connections.transaction(terms, |client| work(client, run))
    }

    /// Takes the partition of a day out of `events`, and what was in it off the counts.
    pub(super) fn detach(&mut self, day: Day) -> Result<u64, StoreError> {
        let table = day.table();
        let told = |error| error::of(&format!("detaching {table}"), &error);
        self.step(&terms(DETACH_WAIT), |client, run| {
            // Whoever stores an event of that day locks its partition before the counts.
            client
                .batch_execute(&format!("LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE"))
                .map_err(told)?;
            let hours: [(&(dyn ToSql + Sync), Type); 2] =
                [(&Time(day.begin()), Type::TIMESTAMPTZ), (&Time(day.end()), Type::TIMESTAMPTZ)];
            let row = client
                .query_typed_one(
                    "WITH gone AS (DELETE FROM event_counts WHERE hour >= $1 AND hour < $2 RETURNING count) \
                     SELECT coalesce(sum(count), 0)::bigint FROM gone",
                    &hours,
                )
                .map_err(told)?;
            let rows: i64 = row.get(0);
            note(
                client,
                run,
                "partitions_dropped = partitions_dropped + 1, events_dropped = events_dropped",
                rows,
            )?;
            // One statement a message: Citus hands the whole message on for each.
            client.batch_execute(&format!("ALTER TABLE events DETACH PARTITION {table}")).map_err(told)?;
            client.batch_execute(&format!("ALTER TABLE {table} RENAME TO {table}_retired")).map_err(told)?;
            Ok(u64::try_from(rows).unwrap_or(0))
        })
    }
}

impl Sweeping for PostgresSweep<'_> {
    fn finish_drops(&mut self) -> Result<(), StoreError> {
        let tables: Vec<String> = self.step(&terms("2s"), |client, _| {
            let rows = client
                .query_typed(
                    "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND NOT relispartition \
                     AND relname ~ '^events_[0-9]{8,9}_retired$' \
                     AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'events'::regclass)",
                    &[],
                )
                .map_err(|error| error::of("looking for detached partitions", &error))?;
            Ok(rows.iter().map(|row| row.get(0)).collect())
        })?;
        for table in tables {
            self.step(&terms("2s"), |client, _| {
                client
                    .batch_execute(&format!("DROP TABLE IF EXISTS {table}"))
                    .map_err(|error| error::of(&format!("dropping {table}"), &error))
            })?;
            log::info!(table = table.as_str(); "partition dropped");
        }
        Ok(())
    }

    fn drop_day(&mut self, day: Day) -> Result<u64, StoreError> {
        let rows = self.detach(day)?;
        self.finish_drops()?;
        Ok(rows)
    }

    fn delete_events(
        &mut self,
        after: EventId,
        before: EventId,
        rows_max: u32,
    ) -> Result<Deleted, StoreError> {
        let told = |error| error::of("deleting old events", &error);
        let edge = self.edge;
        self.step(&terms("2s"), |client, run| {
            // The keys have the order; what the planner believes of a partition that is being emptied is soon untrue.
            client
                .batch_execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off")
                .map_err(told)?;
            let (low, high, limit) = (Uuid(after), Uuid(before), i64::from(rows_max));
            let params: [(&(dyn ToSql + Sync), Type); 3] =
                [(&low, Type::UUID), (&high, Type::UUID), (&limit, Type::INT8)];
            let last = client
                .query_typed(
                    "SELECT event_id FROM events WHERE event_id > $1 AND event_id < $2 \
                     ORDER BY event_id OFFSET $3 - 1 LIMIT 1",
                    &params,
                )
                .map_err(told)?;
            let next = last.first().map(|row| row.get::<_, Uuid>(0).0);
            let up_to = next.map_or(high, Uuid);
            let params: [(&(dyn ToSql + Sync), Type); 2] = [(&low, Type::UUID), (&up_to, Type::UUID)];
            let row = client.query_typed_one(&format!("WITH {DELETE_EVENTS}"), &params).map_err(told)?;
            let rows: i64 = row.get(0);
            if rows > 0 {
                client
                    .execute_typed(
                        "DELETE FROM event_counts WHERE hour < $1 AND count <= 0",
                        &[(&Time(edge), Type::TIMESTAMPTZ)],
                    )
                    .map_err(told)?;
                note(client, run, "events_deleted = events_deleted", rows)?;
            }
            Ok(Deleted { rows: u64::try_from(rows).unwrap_or(0), next })
        })
    }

    fn delete_dead(&mut self, rows_max: u32) -> Result<u64, StoreError> {
        let told = |error| error::of("deleting old dead letters", &error);
        let (edge, limit) = (Time(self.edge), i64::from(rows_max));
        self.step(&terms("2s"), |client, run| {
            let params: [(&(dyn ToSql + Sync), Type); 2] = [(&edge, Type::TIMESTAMPTZ), (&limit, Type::INT8)];
            let rows = client
                .execute_typed(
                    "DELETE FROM dead_events WHERE event_id = ANY (ARRAY(\
                     SELECT event_id FROM dead_events WHERE died_at < $1 ORDER BY died_at LIMIT $2))",
                    &params,
                )
                .map_err(told)?;
            if rows > 0 {
                note(client, run, "dead_deleted = dead_deleted", i64::try_from(rows).unwrap_or(i64::MAX))?;
            }
            Ok(rows)
        })
    }

    fn delete_minutes(&mut self) -> Result<bool, StoreError> {
        let told = |error| error::of("deleting old counts of minutes", &error);
        let edge = Time(self.edge);
        self.step(&terms("2s"), |client, _| {
            let deleted = client.execute_typed(
                "DELETE FROM event_minutes WHERE minute < least(date_trunc('hour', $1, 'UTC'), \
                 date_trunc('hour', (SELECT min(minute) FROM event_minutes), 'UTC') + interval '1 hour')",
                &[(&edge, Type::TIMESTAMPTZ)],
            );
            Ok(deleted.map_err(told)? > 0)
        })
    }

    fn end(&mut self, error: Option<&str>) -> Result<(), StoreError> {
        self.step(&terms("2s"), |client, run| {
            let params: [(&(dyn ToSql + Sync), Type); 2] = [(&run, Type::INT8), (&error, Type::TEXT)];
            client
                .execute_typed(
                    "UPDATE retention_runs SET finished_at = now(), error = $2 WHERE id = $1",
                    &params,
                )
                .map_err(|error| error::of("noting the end of the sweep", &error))?;
            Ok(())
        })
    }
}

/// Adds `rows` to the column that `what` ends with, in the record of the sweep.
fn note(client: &mut Client, run: i64, what: &str, rows: i64) -> Result<(), StoreError> {
    let params: [(&(dyn ToSql + Sync), Type); 2] = [(&run, Type::INT8), (&rows, Type::INT8)];
    client
        .execute_typed(&format!("UPDATE retention_runs SET {what} + $2 WHERE id = $1"), &params)
        .map_err(|error| error::of("noting what was removed", &error))?;
    Ok(())
}
