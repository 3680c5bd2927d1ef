//! Operations on dead letters: the trait that the command `dead` and the routes of `/dead` use, and
//! its types. It must not depend on PostgreSQL.

use std::fmt;

use super::StoreError;
use crate::event::{Event, EventId, Timestamp};

/// Selects dead letters. A field that is None matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadFilter {
    pub sqlstate: Option<String>,
    pub service: Option<String>,
    /// Matches dead letters with `died_at` before this time.
    pub before: Option<Timestamp>,
    pub event_id: Option<EventId>,
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
    /// The length of the row.
    pub row_bytes: usize,
}

/// The position of a dead letter in a list, newest first.
pub type DeadKey = (Timestamp, EventId);

impl DeadEvent {
    pub fn key(&self) -> DeadKey {
        (self.died_at, self.event_id)
    }
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

/// The table of dead letters. Every call is a transaction of its own and may block until a timeout
/// ends it.
pub trait DeadLetters: fmt::Debug {
    /// Returns the latest `limit` dead letters that match, newest first, after the one with the key
    /// `after`.
    fn list_dead(
        &self,
        filter: &DeadFilter,
        after: Option<DeadKey>,
        limit: u32,
    ) -> Result<Vec<DeadEvent>, StoreError>;

    /// Returns the events that the rows of these dead letters contain, in any order. An id whose row
    /// is not valid, or that is gone, is missing.
    fn dead_rows(&self, ids: &[EventId]) -> Result<Vec<Event>, StoreError>;

    fn count_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError>;

    /// Returns the first `limit` matching ids after `after`.
    fn dead_ids(
        &self,
        filter: &DeadFilter,
        after: Option<EventId>,
        limit: u32,
    ) -> Result<Vec<EventId>, StoreError>;

    /// Stores these dead letters, skipping rows that are already stored, and removes them, in one
    /// transaction. Skips dead letters that another session has removed meanwhile.
    fn replay_dead(&self, ids: &[EventId]) -> Result<ReplayOutcome, StoreError>;

    /// Updates the SQLSTATE and the reason of a dead letter.
    fn update_dead_reason(&self, id: EventId, sqlstate: &str, reason: &str) -> Result<(), StoreError>;

    /// Deletes the matching dead letters and returns their number.
    fn purge_dead(&self, filter: &DeadFilter) -> Result<u64, StoreError>;
}
