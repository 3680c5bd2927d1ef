//! Event storage: the repository trait that the writer, the queries and retention use, and its
//! types.
//!
//! `postgres` is the production implementation, `memory` the test double. The implementations
//! report errors and do not classify them: the writer maps an error to an error class, a query to
//! an HTTP status.

pub mod breaker;
pub mod day;
pub mod dead;
pub mod memory;
pub mod postgres;
pub mod standby;
mod trial;
pub mod wal;

pub use breaker::{Breaker, BreakerLimits};
pub use day::Day;
pub use dead::DeadLetters;
pub use standby::{StandbyCondition, StandbyLag, StandbyState};
pub use wal::{CommitPosition, DatabaseState};

use std::ops::ControlFlow;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, never};

use crate::event::{ArrivalNumber, Event, EventId, EventKey, HOUR_MICROS, Timestamp};

/// Stores encoded rows and reads events. Every call may block until a timeout of the
/// implementation ends it, so no acceptor thread may call the repository.
pub trait EventRepository: Send + Sync + std::fmt::Debug {
    /// Applies missing migrations. Cheap when nothing is missing; safe when several servers call it
    /// concurrently. Creates no partitions: rows whose day has none enter the default partition.
    fn prepare(&self) -> Result<(), StoreError>;

    /// Stores all rows of `runs` (each run holds whole rows) and inserts `dead` into the dead
    /// letters, in one transaction: all or nothing.
    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError>;

    /// Checks that the table accepts rows: inserts copies of stored events under other ids, or an
    /// ordinary row if nothing is stored, and rolls back. Fails when the table accepts none of them.
    fn trial_insert(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Returns the first events of a page in the order of [`EventKey`], as many as fit into
    /// `bytes_max` bytes of JSON, and at least one when the page is not empty. Does not read the rest
    /// of the page into memory.
    fn page(&self, page: &EventPage, bytes_max: usize) -> Result<Chunk, StoreError>;

    /// Counts the events that match.
    fn count(&self, filter: &Filter) -> Result<u64, StoreError>;

    /// Returns at most `rows_max` counts by interval and service, ordered by both, for the intervals
    /// that begin within the filter's time range. Of the filter only time and service apply.
    fn interval_counts(
        &self,
        filter: &Filter,
        interval: CountInterval,
        rows_max: u32,
    ) -> Result<Vec<IntervalCount>, StoreError>;

    /// Returns the event with this id, or the reason why it is a dead letter.
    fn find(&self, id: EventId) -> Result<Option<EventStatus>, StoreError>;

    /// Sums the counts per service and hour: overall, for the `services_max` largest services, and
    /// per hour from `since` on. Reads no events.
    fn totals(&self, since: Timestamp, services_max: u16) -> Result<Totals, StoreError>;

    /// Checks that the database answers.
    fn ping(&self) -> Result<(), StoreError>;

    /// Checks that the database answers, and returns how far its WAL and those of its standbys reach.
    fn state(&self) -> Result<DatabaseState, StoreError> {
        self.ping().map(|()| DatabaseState::default())
    }

    /// Returns the bytes of the write-ahead log that a primary has written or a standby has replayed, none
    /// if the database does not tell. Fails where there is no log, or no table of events.
    fn replication_position(&self) -> Result<Option<u64>, StoreError> {
        Err(StoreError::client_side("this database has no write-ahead log"))
    }

    /// The dead letters, if they can be listed and replayed.
    fn dead_letters(&self) -> Option<&dyn DeadLetters> {
        None
    }

    /// Lists the days that have a partition.
    fn partition_days(&self) -> Result<Vec<Day>, StoreError>;

    /// Creates the partition of a day and moves the rows of the day from the default partition into
    /// it. Safe when several servers call it concurrently.
    fn create_partition(
        &self,
        day: Day,
        limits: CreatePartitionLimits,
    ) -> Result<CreatePartitionOutcome, StoreError>;

    /// Returns the channel on which `store` requests the partitions of the days of a batch. `store`
    /// waits for the request to be dropped, for a bounded time, before it stores the rows. May be
    /// called once.
    fn partition_requests(&self) -> Receiver<PartitionRequest> {
        never()
    }

    /// Returns the contents of the default partition.
    fn default_partition(&self) -> Result<DefaultPartition, StoreError>;

    /// Returns the time of the database, and whether a sweep may drop partitions.
    fn sweep_conditions(&self) -> Result<SweepConditions, StoreError>;

    /// Returns the start time of the latest sweep that finished on any server.
    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Starts a retention sweep of rows older than `cutoff`. Returns None while another server
    /// sweeps.
    fn begin_sweep(&self, cutoff: Timestamp) -> Result<Option<Box<dyn RetentionSweep + '_>>, StoreError>;
}

/// A retention sweep that holds the sweep lock. Each step is one transaction, which deletes rows,
/// lowers the counts and updates the sweep's record together. A sweep may stop after any step; the
/// next sweep continues from there.
pub trait RetentionSweep: std::fmt::Debug {
    /// Drops the partitions that an earlier sweep detached and did not drop.
    fn drop_detached_partitions(&mut self) -> Result<(), StoreError>;

    /// Detaches and drops the partition of a day that is over by the clock of the database. Returns
    /// the number of its events according to the counts.
    fn drop_partition(&mut self, day: Day) -> Result<u64, StoreError>;

    /// Deletes up to `rows_max` events with ids after `after` and before `before`, in id order.
    fn delete_events(
        &mut self,
        after: EventId,
        before: EventId,
        rows_max: u32,
    ) -> Result<DeletedChunk, StoreError>;

    /// Deletes up to `rows_max` dead letters with `died_at` before the cutoff.
    fn delete_dead_letters(&mut self, rows_max: u32) -> Result<u64, StoreError>;

    /// Deletes the oldest hour of minute counts that lies entirely before the cutoff. Returns false
    /// when there was none.
    fn delete_minute_counts(&mut self) -> Result<bool, StoreError>;

    /// Records the result of the sweep.
    fn finish(&mut self, error: Option<&str>) -> Result<(), StoreError>;
}

/// Bounds on creating a partition. Meanwhile the default partition is locked: batches with rows for
/// it and queries that read it wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatePartitionLimits {
    /// Maximum number of rows to move. A day with more rows gets no partition.
    pub moved_rows_max: u64,
    /// Maximum time of the move, and of attaching the partition.
    pub locked_max: Duration,
}

/// The result of creating a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreatePartitionOutcome {
    /// Created, with this number of rows from the default partition.
    Created { moved: u64 },
    /// The partition existed already.
    Exists,
    /// A table with the name exists and is not attached: an operator detached it. It is not
    /// changed.
    NameTaken,
    /// The default partition has more rows of the day than may be moved.
    TooManyRows,
}

/// A batch waits for the partitions of these days until this is dropped.
#[derive(Debug)]
pub struct PartitionRequest {
    pub days: Vec<Day>,
    /// Disconnects the waiting batch when dropped.
    _pending: Sender<()>,
}

#[cfg(test)]
impl PartitionRequest {
    /// A request that no batch waits for.
    pub fn for_test(days: Vec<Day>) -> Self {
        Self { days, _pending: crossbeam::channel::bounded(0).0 }
    }
}

/// The contents of the default partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultPartition {
    /// The days of its rows, oldest first, at most [`Self::DAYS_MAX`].
    pub days: Vec<Day>,
    /// Its rows, counted up to [`Self::ROWS_MAX`].
    pub rows: u64,
}

impl DefaultPartition {
    pub const DAYS_MAX: usize = 64;
    pub const ROWS_MAX: u64 = 10_000;
}

/// The conditions of a sweep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepConditions {
    /// The time of day by the clock of the database.
    pub database_time: Timestamp,
    /// The role owns the tables. Another role cannot drop a partition.
    pub is_owner: bool,
}

/// The result of deleting one chunk of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletedChunk {
    pub rows: u64,
    /// The last id of the chunk, after which the next one begins. None when no rows remain.
    pub next: Option<EventId>,
}

/// The method of inserting rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorePath {
    /// COPY into the table. Fails as a whole when one of the rows is already stored.
    Copy,
    /// COPY into a temporary staging table, then INSERT the rows that are not stored yet. For
    /// batches of which some rows may be stored.
    Staging,
}

/// The row counts of one [`EventRepository::store`] call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub stored: u64,
    /// Rows already stored, or repeated within the call.
    pub duplicate: u64,
    /// Rows newly inserted into `dead_events`.
    pub dead: u64,
    /// Where they were committed, if the database tells.
    pub commit: Option<CommitPosition>,
}

/// A row that PostgreSQL rejects, with the error.
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    pub row: crate::event::row::Row<'a>,
    pub sqlstate: String,
    pub reason: String,
}

/// The predicates of a query. `from` is inclusive, `to` exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub service: Option<String>,
    pub from: Timestamp,
    pub to: Timestamp,
    /// Each element is a list of JSON objects; the metadata must contain at least one of every
    /// list.
    pub metadata: Vec<Vec<String>>,
    /// A case-insensitive substring of the message.
    pub text: Option<String>,
    /// Matches events that arrived with this number or later.
    pub arrived_from: Option<ArrivalNumber>,
}

impl Filter {
    /// Matches all events of a time range.
    pub fn between(from: Timestamp, to: Timestamp) -> Self {
        Self { from, to, ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SortOrder {
    /// Newest first.
    Desc,
    Asc,
}

/// The length of the intervals in which events are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountInterval {
    #[default]
    Hour,
    /// Kept for speed: an event stored by a server without minute counts is in no minute.
    Minute,
}

impl CountInterval {
    pub fn micros(self) -> i64 {
        match self {
            Self::Hour => HOUR_MICROS,
            Self::Minute => HOUR_MICROS / 60,
        }
    }
}

/// The number of events of one service in one interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IntervalCount {
    /// The start of the interval.
    pub start: Timestamp,
    pub service: String,
    pub count: u64,
}

/// The request for one page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventPage {
    pub filter: Filter,
    pub order: SortOrder,
    /// 1 to 1,001: a reader requests one event more than it returns, to detect a next page.
    pub limit: u16,
    /// The key of the event after which the page begins, in `order`.
    pub after: Option<EventKey>,
}

/// The first events of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub events: Vec<Event>,
    /// The page has further events, or the chunk has as many events as the limit of the page.
    pub has_more: bool,
}

impl Chunk {
    /// Builds a chunk from events that are already in memory.
    pub fn from_events(events: Vec<Event>, limit: u16, bytes_max: usize) -> Self {
        let mut builder = ChunkBuilder::new(bytes_max);
        // `finish` reports whether an event did not fit.
        _ = events.into_iter().try_for_each(|event| builder.push(event));
        builder.finish(limit)
    }
}

/// Collects the events of a chunk.
#[derive(Debug)]
pub struct ChunkBuilder {
    events: Vec<Event>,
    bytes: usize,
    bytes_max: usize,
    /// An event did not fit.
    is_cut: bool,
}

impl ChunkBuilder {
    pub fn new(bytes_max: usize) -> Self {
        Self { events: Vec::new(), bytes: 0, bytes_max, is_cut: false }
    }

    /// Adds the next event, or drops it and returns `Break` when it does not fit. The first event
    /// always fits.
    pub fn push(&mut self, event: Event) -> ControlFlow<()> {
        self.bytes = self.bytes.saturating_add(event.json_bytes_max());
        if self.bytes > self.bytes_max && !self.events.is_empty() {
            self.is_cut = true;
            return ControlFlow::Break(());
        }
        self.events.push(event);
        ControlFlow::Continue(())
    }

    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    pub fn finish(self, limit: u16) -> Chunk {
        let has_more = self.is_cut || self.events.len() == usize::from(limit);
        Chunk { events: self.events, has_more }
    }
}

/// Counts of the stored events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub events: u64,
    /// The services with the most events and their counts, largest first.
    pub services: Vec<(String, u64)>,
    /// The starts of the hours that have events, with their counts; oldest first.
    pub hours: Vec<(Timestamp, u64)>,
}

/// The state of the event with a given id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventStatus {
    Stored(Event),
    /// Acknowledged and not stored yet.
    Buffered(Event),
    Dead {
        sqlstate: String,
        reason: String,
    },
}

/// An error of the database or of the connection to it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// The five characters of SQLSTATE. None when the database sent no error: it was not reached,
    /// an I/O timeout expired, the connection was lost, or the pool had no free connection.
    pub sqlstate: Option<String>,
    /// The text of the error and of its causes.
    pub message: String,
    /// The row, counted from 0, that COPY reported. A hint: the caller must confirm it.
    pub row: Option<usize>,
    /// The violated constraint, when the database named one.
    pub constraint: Option<String>,
    /// The column that caused the error, when the database named one.
    pub column: Option<String>,
    /// The statement did not insert rows: it added to the counts or inserted dead letters, so no row
    /// is the cause.
    pub outside_rows: bool,
    /// The work began and exceeded its timeout: a smaller batch may succeed.
    pub timed_out: bool,
    /// COMMIT was sent and no result arrived: the rows may be stored.
    pub in_doubt: bool,
}

impl StoreError {
    /// Whether the database was not reached, or is starting or shutting down.
    pub fn is_unreachable(&self) -> bool {
        let matches = |code: &str| code.starts_with("08") || matches!(code, "57P01" | "57P02" | "57P03");
        self.sqlstate.as_deref().is_none_or(matches)
    }

    /// An error raised on the client side of the connection.
    pub fn client_side(message: impl Into<String>) -> Self {
        Self {
            sqlstate: None,
            message: message.into(),
            row: None,
            constraint: None,
            column: None,
            outside_rows: false,
            timed_out: false,
            in_doubt: false,
        }
    }
}
