//! Operations on dead letters for the `dead` command: list, count, replay, purge.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use postgres::types::{ToSql, Type};

use super::advisory_lock::REPLAY_DEAD;
use super::connect::TxnOptions;
use super::find::DEAD_REASON;
use super::store::{CREATE_STAGING, copy_rows, insert_from_staging};
use super::types::{PgTimestamp, PgUuid};
use super::{PostgresRepository, error};
use crate::event::row::{self, Row};
use crate::event::{EventId, Timestamp};
use crate::storage::StoreError;

/// Selects dead letters. A field that is None matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadFilter {
    pub sqlstate: Option<String>,
    pub service: Option<String>,
    /// Matches dead letters with `died_at` before this time.
    pub before: Option<Timestamp>,
}

/// A dead letter without its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadEvent {
    pub event_id: EventId,
    pub timestamp: Timestamp,
    pub service: String,
    pub sqlstate: String,
    pub reason: String,
    pub died_at: Timestamp,
}

/// The counts of one replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayOutcome {
    pub stored: u64,
    /// Already in `events`.
    pub duplicate: u64,
    /// The stored bytes are not a valid row or have another id; the dead letter is kept.
    pub unreadable: u64,
}

const MATCHES_FILTER: &str = "($1::text IS NULL OR sqlstate = $1) AND ($2::text IS NULL OR service = $2) \
     AND ($3::timestamptz IS NULL OR died_at < $3)";

type SqlParam<'a> = (&'a (dyn ToSql + Sync), Type);

impl PostgresRepository {
    /// Returns the latest `limit` dead letters that match, newest first, after the one with the key
    /// `after`.
    pub fn list_dead(
        &self,
        filter: &DeadFilter,
        after: Option<(Timestamp, EventId)>,
        limit: u32,
    ) -> Result<Vec<DeadEvent>, StoreError> {
        let sql = format!(
            "SELECT event_id, timestamp, service, sqlstate, {DEAD_REASON}, died_at FROM dead_events \
             WHERE {MATCHES_FILTER} AND ($4::timestamptz IS NULL OR (died_at, event_id) < ($4, $5)) \
             ORDER BY died_at DESC, event_id DESC LIMIT {limit}"
        );
        let before = filter.before.map(PgTimestamp);
        let (died_at, id) = (after.map(|key| PgTimestamp(key.0)), after.map(|key| PgUuid(key.1)));
        let params: Vec<SqlParam<'_>> = filter_params(filter, &before)
            .into_iter()
            .chain([(&died_at as &(dyn ToSql + Sync), Type::TIMESTAMPTZ), (&id, Type::UUID)])
            .collect();
        self.connections.transaction(&self.query_options, |client| {
            let rows = client.query_typed(&sql, &params);
            let rows = rows.map_err(|error| error::from_postgres("reading dead_events", &error))?;
            Ok(rows
                .iter()
                .map(|row| DeadEvent {
                    event_id: row.get::<_, PgUuid>(0).0,
                    timestamp: row.get::<_, PgTimestamp>(1).0,
                    service: row.get(2),
                    sqlstate: row.get(3),
                    reason: row.get(4),
                    died_at: row.get::<_, PgTimestamp>(5).0,
                })
                .collect())
        })
    }

    pub fn count_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM dead_events WHERE {MATCHES_FILTER}");
        let before = filter.before.map(PgTimestamp);
        self.connections.transaction(&self.query_options, |client| {
            let row = client.query_typed_one(&sql, &filter_params(filter, &before));
            let row = row.map_err(|error| error::from_postgres("counting dead_events", &error))?;
            Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
        })
    }

    /// Returns the first `limit` matching ids after `after`.
    pub fn dead_ids(
        &self,
        filter: &DeadFilter,
        after: Option<EventId>,
        limit: u32,
    ) -> Result<Vec<EventId>, StoreError> {
        let sql = format!(
            "SELECT event_id FROM dead_events WHERE {MATCHES_FILTER} AND ($4::uuid IS NULL OR event_id > $4) \
             ORDER BY event_id LIMIT {limit}"
        );
        let (before, after) = (filter.before.map(PgTimestamp), after.map(PgUuid));
        self.connections.transaction(&self.query_options, |client| {
            let rows =
                client.query_typed(&sql, &with_param(filter_params(filter, &before), (&after, Type::UUID)));
            let rows = rows.map_err(|error| error::from_postgres("reading dead_events", &error))?;
            Ok(rows.iter().map(|row| row.get::<_, PgUuid>(0).0).collect())
        })
    }

    /// Stores these dead letters through the staging table, skipping rows that are already stored,
    /// and removes them from `dead_events`, in one transaction. Serialized by an advisory lock;
    /// skips dead letters that another session has removed meanwhile.
    pub fn replay_dead(&self, ids: &[EventId]) -> Result<ReplayOutcome, StoreError> {
        const READ: &str = "SELECT event_id, row FROM dead_events WHERE event_id = ANY($1) ORDER BY event_id";
        const REMOVE: &str = "DELETE FROM dead_events WHERE event_id = ANY($1) RETURNING event_id";
        let options = self.store_options(&[]);
        let options = TxnOptions { begin_sql: format!("{}; {CREATE_STAGING}", options.begin_sql), ..options };
        let ids: Vec<_> = ids.iter().copied().map(PgUuid).collect();
        self.connections.transaction(&options, |client| {
            client
                .batch_execute(&format!("SELECT pg_advisory_xact_lock({REPLAY_DEAD})"))
                .map_err(|error| error::from_postgres("acquiring the replay lock", &error))?;
            let letters = client.query_typed(READ, &[(&ids, Type::UUID_ARRAY)]);
            let letters = letters.map_err(|error| error::from_postgres("reading dead_events", &error))?;
            // Any client with write access may have changed these bytes, so validate them.
            let rows = letters.iter().filter_map(|letter| {
                let (id, bytes) = (letter.get::<_, PgUuid>(0).0, letter.get::<_, &[u8]>(1));
                let (bytes, rest) = row::split_converted(bytes, 0).ok()?;
                let (row, _) = Row::split(&bytes).ok()?;
                let is_valid = rest.is_empty() && row.validate_text().is_ok() && row.event_id() == id;
                is_valid.then_some((id, bytes))
            });
            let mut valid: BTreeMap<EventId, Cow<'_, [u8]>> = rows.collect();
            let unreadable = (letters.len() - valid.len()) as u64;
            if valid.is_empty() {
                return Ok(ReplayOutcome { unreadable, ..ReplayOutcome::default() });
            }
            // DELETE before INSERT: Citus does not support SELECT FOR UPDATE on several shards.
            let ids_to_remove: Vec<_> = valid.keys().copied().map(PgUuid).collect();
            let removed = client.query_typed(REMOVE, &[(&ids_to_remove, Type::UUID_ARRAY)]);
            let removed = removed.map_err(|error| error::from_postgres("DELETE FROM dead_events", &error))?;
            let removed: BTreeSet<_> = removed.iter().map(|row| row.get::<_, PgUuid>(0).0).collect();
            valid.retain(|id, _| removed.contains(id));
            let (runs, attempted) =
                (valid.values().map(|row| &**row).collect::<Vec<&[u8]>>(), removed.len() as u64);
            copy_rows(client, "aurore_stage", &runs, attempted)?;
            let stored = insert_from_staging(client, attempted)?;
            Ok(ReplayOutcome { stored, duplicate: attempted - stored, unreadable })
        })
    }

    /// Updates the SQLSTATE and the reason of a dead letter.
    pub fn update_dead_reason(&self, id: EventId, sqlstate: &str, reason: &str) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE dead_events SET sqlstate = $2, reason = $3 WHERE event_id = $1";
        let params: [SqlParam<'_>; 3] =
            [(&PgUuid(id), Type::UUID), (&sqlstate, Type::TEXT), (&reason, Type::TEXT)];
        self.connections.transaction(&self.store_options(&[]), |client| {
            client
                .execute_typed(UPDATE, &params)
                .map_err(|error| error::from_postgres("UPDATE dead_events", &error))?;
            Ok(())
        })
    }

    /// Deletes the matching dead letters and returns their number.
    pub fn purge_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let sql = format!("DELETE FROM dead_events WHERE {MATCHES_FILTER}");
        let before = filter.before.map(PgTimestamp);
        self.connections.transaction(&self.store_options(&[]), |client| {
            let purged = client.execute_typed(&sql, &filter_params(filter, &before));
            purged.map_err(|error| error::from_postgres("DELETE FROM dead_events", &error))
        })
    }
}

fn filter_params<'a>(filter: &'a DeadFilter, before: &'a (dyn ToSql + Sync)) -> [SqlParam<'a>; 3] {
    [(&filter.sqlstate, Type::TEXT), (&filter.service, Type::TEXT), (before, Type::TIMESTAMPTZ)]
}

fn with_param<'a>(params: [SqlParam<'a>; 3], last: SqlParam<'a>) -> [SqlParam<'a>; 4] {
    let [first, second, third] = params;
    [first, second, third, last]
}
