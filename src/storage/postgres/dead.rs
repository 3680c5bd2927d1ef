//! The dead letters, for whoever looks after them: which there are, another try, and their end.

use std::collections::{BTreeMap, BTreeSet};

use postgres::types::{ToSql, Type};

use super::connect::Terms;
use super::store::{STAGE, copy, from_stage};
use super::types::{Time, Uuid};
use super::{PostgresRepository, error};
use crate::event::row::Row;
use crate::event::{EventId, Timestamp};
use crate::storage::StoreError;

/// Which dead letters are meant; all where nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadFilter {
    pub sqlstate: Option<String>,
    pub service: Option<String>,
    /// Those that died before.
    pub before: Option<Timestamp>,
}

/// A dead letter, without the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadEvent {
    pub event_id: EventId,
    pub timestamp: Timestamp,
    pub service: String,
    pub sqlstate: String,
    pub reason: String,
    pub died_at: Timestamp,
}

/// What became of the dead letters of one try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub stored: u64,
    /// Stored already, by another way.
    pub duplicate: u64,
    /// Not rows, or not those of their id: left where they are.
    pub unreadable: u64,
}

const WHICH: &str = "($1::text IS NULL OR sqlstate = $1) AND ($2::text IS NULL OR service = $2) \
     AND ($3::timestamptz IS NULL OR died_at < $3)";

/// The key of the advisory lock under which one at a time replays.
const REPLAY_LOCK: i64 = 0x6175_726f_7265_0004;

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

impl PostgresRepository {
    /// The latest `limit` that match.
    pub fn dead_list(&self, filter: &DeadFilter, limit: u32) -> Result<Vec<DeadEvent>, StoreError> {
        let sql = format!(
            "SELECT event_id, timestamp, service, sqlstate, reason, died_at FROM dead_events WHERE {WHICH} \
             ORDER BY died_at DESC, event_id DESC LIMIT $4"
        );
        let (before, limit) = (filter.before.map(Time), i64::from(limit));
        self.connections.transaction(&self.query_terms, |client| {
            let rows = client.query_typed(&sql, &with(which(filter, &before), (&limit, Type::INT8)));
            let rows = rows.map_err(|error| error::of("reading dead_events", &error))?;
            Ok(rows
                .iter()
                .map(|row| DeadEvent {
                    event_id: row.get::<_, Uuid>(0).0,
                    timestamp: row.get::<_, Time>(1).0,
                    service: row.get(2),
                    sqlstate: row.get(3),
                    reason: row.get(4),
                    died_at: row.get::<_, Time>(5).0,
                })
                .collect())
        })
    }

    pub fn dead_count(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) FROM dead_events WHERE {WHICH}");
        let before = filter.before.map(Time);
        self.connections.transaction(&self.query_terms, |client| {
            let row = client.query_typed_one(&sql, &which(filter, &before));
            let row = row.map_err(|error| error::of("counting dead_events", &error))?;
            Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
        })
    }

    /// The first `limit` ids that match, past `after`.
    pub fn dead_ids(
        &self,
        filter: &DeadFilter,
        after: Option<EventId>,
        limit: u32,
    ) -> Result<Vec<EventId>, StoreError> {
        let sql = format!(
            "SELECT event_id FROM dead_events WHERE {WHICH} AND ($4::uuid IS NULL OR event_id > $4) \
             ORDER BY event_id LIMIT {limit}"
        );
        let (before, after) = (filter.before.map(Time), after.map(Uuid));
        self.connections.transaction(&self.query_terms, |client| {
            let rows = client.query_typed(&sql, &with(which(filter, &before), (&after, Type::UUID)));
            let rows = rows.map_err(|error| error::of("reading dead_events", &error))?;
            Ok(rows.iter().map(|row| row.get::<_, Uuid>(0).0).collect())
        })
    }

    /// Stores these, each unless it is stored already, and takes them out of `dead_events`; or does neither, in one
    /// transaction. They go through the stage. One replay at a time; what somebody else has removed meanwhile is left out.
    pub fn dead_replay(&self, ids: &[EventId]) -> Result<Replayed, StoreError> {
        const READ: &str = "SELECT event_id, row FROM dead_events WHERE event_id = ANY($1) ORDER BY event_id";
        const REMOVE: &str = "DELETE FROM dead_events WHERE event_id = ANY($1) RETURNING event_id";
        let terms = self.store_terms(&[]);
        let terms = Terms { begin: format!("{}; {STAGE}", terms.begin), ..terms };
        let ids: Vec<_> = ids.iter().copied().map(Uuid).collect();
        self.connections.transaction(&terms, |client| {
            client
                .batch_execute(&format!("SELECT pg_advisory_xact_lock({REPLAY_LOCK})"))
                .map_err(|error| error::of("waiting for another replay", &error))?;
            let letters = client.query_typed(READ, &[(&ids, Type::UUID_ARRAY)]);
            let letters = letters.map_err(|error| error::of("reading dead_events", &error))?;
            // These bytes come from a table that anybody with the right may have written to.
            let rows = letters.iter().filter_map(|letter| {
                let (id, bytes) = (letter.get::<_, Uuid>(0).0, letter.get::<_, &[u8]>(1));
                let (row, rest) = Row::split(bytes).ok()?;
                (rest.is_empty() && row.check().is_ok() && row.event_id() == id).then_some((id, row.bytes()))
            });
            let mut good: BTreeMap<EventId, &[u8]> = rows.collect();
            let unreadable = (letters.len() - good.len()) as u64;
            if good.is_empty() {
                return Ok(Replayed { unreadable, ..Replayed::default() });
            }
            // Removed first: Citus cannot lock rows of several shards by reading them.
            let removing: Vec<_> = good.keys().copied().map(Uuid).collect();
            let removed = client.query_typed(REMOVE, &[(&removing, Type::UUID_ARRAY)]);
            let removed = removed.map_err(|error| error::of("DELETE FROM dead_events", &error))?;
            let removed: BTreeSet<_> = removed.iter().map(|row| row.get::<_, Uuid>(0).0).collect();
            good.retain(|id, _| removed.contains(id));
            let (runs, tried) = (good.into_values().collect::<Vec<_>>(), removed.len() as u64);
            copy(client, "aurore_stage", &runs, tried)?;
            let stored = from_stage(client, tried)?;
            Ok(Replayed { stored, duplicate: tried - stored, unreadable })
        })
    }

    /// Notes why it is refused now.
    pub fn dead_blame(&self, id: EventId, sqlstate: &str, reason: &str) -> Result<(), StoreError> {
        const BLAME: &str = "UPDATE dead_events SET sqlstate = $2, reason = $3 WHERE event_id = $1";
        let params: [Param<'_>; 3] =
            [(&Uuid(id), Type::UUID), (&sqlstate, Type::TEXT), (&reason, Type::TEXT)];
        self.connections.transaction(&self.store_terms(&[]), |client| {
            client.execute_typed(BLAME, &params).map_err(|error| error::of("UPDATE dead_events", &error))?;
            Ok(())
        })
    }

    /// Removes them for good; tells how many.
    pub fn dead_purge(&self, filter: &DeadFilter) -> Result<u64, StoreError> {
        let sql = format!("DELETE FROM dead_events WHERE {WHICH}");
        let before = filter.before.map(Time);
        self.connections.transaction(&self.store_terms(&[]), |client| {
            let purged = client.execute_typed(&sql, &which(filter, &before));
            purged.map_err(|error| error::of("DELETE FROM dead_events", &error))
        })
    }
}

fn which<'a>(filter: &'a DeadFilter, before: &'a (dyn ToSql + Sync)) -> [Param<'a>; 3] {
    [(&filter.sqlstate, Type::TEXT), (&filter.service, Type::TEXT), (before, Type::TIMESTAMPTZ)]
}

fn with<'a>(params: [Param<'a>; 3], last: Param<'a>) -> [Param<'a>; 4] {
    let [first, second, third] = params;
    [first, second, third, last]
}
