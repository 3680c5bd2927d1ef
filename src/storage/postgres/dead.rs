//! Operations on dead letters: list, count, replay, purge.

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
use crate::event::{Event, EventId};
use crate::storage::StoreError;
use crate::storage::dead::{DeadEvent, DeadFilter, DeadKey, DeadLetters, ReplayOutcome};

const MATCHES_FILTER: &str = "($1::text IS NULL OR sqlstate = $1) AND ($2::text IS NULL OR service = $2) \
     AND ($3::timestamptz IS NULL OR died_at < $3) AND ($4::uuid IS NULL OR event_id = $4)";
const PARAMS: usize = 4;

type SqlParam<'a> = (&'a (dyn ToSql + Sync), Type);

/// The parameters of a filter, in the types of the driver.
struct FilterParams<'a> {
    filter: &'a DeadFilter,
    before: Option<PgTimestamp>,
    id: Option<PgUuid>,
}

impl<'a> FilterParams<'a> {
    fn new(filter: &'a DeadFilter) -> Self {
        Self { filter, before: filter.before.map(PgTimestamp), id: filter.event_id.map(PgUuid) }
    }

    fn list(&self) -> [SqlParam<'_>; PARAMS] {
        [
            (&self.filter.sqlstate, Type::TEXT),
            (&self.filter.service, Type::TEXT),
            (&self.before, Type::TIMESTAMPTZ),
            (&self.id, Type::UUID),
        ]
    }
}

/// The row in the bytes of a dead letter. Any client with write access may have changed them, so they
/// are validated.
fn valid_row(id: EventId, bytes: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (bytes, rest) = row::split_converted(bytes, 0).ok()?;
    let (row, _) = Row::split(&bytes).ok()?;
    let is_valid = rest.is_empty() && row.validate_text().is_ok() && row.event_id() == id;
    is_valid.then_some(bytes)
}

impl DeadLetters for PostgresRepository {
    fn list_dead(
        &self,
        filter: &DeadFilter,
        after: Option<DeadKey>,
        limit: u32,
    ) -> Result<Vec<DeadEvent>, StoreError> {
        let sql = format!(
            "SELECT event_id, timestamp, service, sqlstate, {DEAD_REASON}, died_at, length(row) FROM dead_events \
             WHERE {MATCHES_FILTER} AND ($5::timestamptz IS NULL OR (died_at, event_id) < ($5, $6)) \
             ORDER BY died_at DESC, event_id DESC LIMIT {limit}"
        );
        let params = FilterParams::new(filter);
        let (died_at, id) = (after.map(|key| PgTimestamp(key.0)), after.map(|key| PgUuid(key.1)));
        let params: Vec<SqlParam<'_>> = params
            .list()
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
                    row_bytes: usize::try_from(row.get::<_, i32>(6)).unwrap_or(0),
                })
                .collect())
        })
    }

    fn dead_rows(&self, ids: &[EventId]) -> Result<Vec<Event>, StoreError> {
        const READ: &str = "SELECT event_id, row FROM dead_events WHERE event_id = ANY($1)";
        let ids: Vec<_> = ids.iter().copied().map(PgUuid).collect();
        self.connections.transaction(&self.query_options, |client| {
            let rows = client.query_typed(READ, &[(&ids, Type::UUID_ARRAY)]);
            let rows = rows.map_err(|error| error::from_postgres("reading dead_events", &error))?;
            let event = |letter: &postgres::Row| {
                let bytes = valid_row(letter.get::<_, PgUuid>(0).0, letter.get::<_, &[u8]>(1))?;
                Some(Row::split(&bytes).ok()?.0.to_event())
            };
            Ok(rows.iter().filter_map(event).collect())
        })
    }

    fn count_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM dead_events WHERE {MATCHES_FILTER}");
        let params = FilterParams::new(filter);
        self.connections.transaction(&self.query_options, |client| {
            let row = client.query_typed_one(&sql, &params.list());
            let row = row.map_err(|error| error::from_postgres("counting dead_events", &error))?;
            Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
        })
    }

    fn dead_ids(
        &self,
        filter: &DeadFilter,
        after: Option<EventId>,
        limit: u32,
    ) -> Result<Vec<EventId>, StoreError> {
        let sql = format!(
            "SELECT event_id FROM dead_events WHERE {MATCHES_FILTER} AND ($5::uuid IS NULL OR event_id > $5) \
             ORDER BY event_id LIMIT {limit}"
        );
        let (params, after) = (FilterParams::new(filter), after.map(PgUuid));
        self.connections.transaction(&self.query_options, |client| {
            let params: Vec<SqlParam<'_>> =
                params.list().into_iter().chain([(&after as &(dyn ToSql + Sync), Type::UUID)]).collect();
            let rows = client.query_typed(&sql, &params);
            let rows = rows.map_err(|error| error::from_postgres("reading dead_events", &error))?;
            Ok(rows.iter().map(|row| row.get::<_, PgUuid>(0).0).collect())
        })
    }

    /// Stores them through the staging table. Replays are serialized by an advisory lock.
    fn replay_dead(&self, ids: &[EventId]) -> Result<ReplayOutcome, StoreError> {
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
            let rows = letters.iter().filter_map(|letter| {
                let (id, bytes) = (letter.get::<_, PgUuid>(0).0, letter.get::<_, &[u8]>(1));
                Some((id, valid_row(id, bytes)?))
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

    fn update_dead_reason(&self, id: EventId, sqlstate: &str, reason: &str) -> Result<(), StoreError> {
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

    fn purge_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let sql = format!("DELETE FROM dead_events WHERE {MATCHES_FILTER}");
        let params = FilterParams::new(filter);
        self.connections.transaction(&self.store_options(&[]), |client| {
            let purged = client.execute_typed(&sql, &params.list());
            purged.map_err(|error| error::from_postgres("DELETE FROM dead_events", &error))
        })
    }
}
