//! Where events come to rest: the trait the writer and the readers know, and what can be asked of it.
//!
//! `postgres/` is the one that serves; `memory` stands in for it in tests. What an error means is decided by the
//! callers: the writer asks for a verdict, a query for a status.

pub mod breaker;
pub mod day;
pub mod memory;
pub mod postgres;

pub use breaker::{Breaker, BreakerLimits};
pub use day::Day;

use std::ops::ControlFlow;

use crate::event::{Event, EventId, Timestamp};

/// Stores encoded rows and finds events again. Every call may block, for as long as the timeouts of the
/// implementation allow; none is made on an acceptor.
pub trait EventRepository: Send + Sync + std::fmt::Debug {
    /// Brings the database to the state that the other calls need: migrations, and the partitions around `now`.
    /// Cheap when there is nothing to do; safe when several servers call it at once.
    fn prepare(&self, now: Timestamp) -> Result<(), StoreError>;

    /// Stores all rows of `runs` (each a run of whole rows) and buries `dead`, or neither, in one transaction.
    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError>;

    /// Up to `page.limit` events in the order asked for.
    fn page(&self, page: &Page) -> Result<Vec<Event>, StoreError>;

    /// As many of a page's first events as come to `bytes_max` of text, and one at least: what an export reads at a time.
    fn chunk(&self, page: &Page, bytes_max: usize) -> Result<Chunk, StoreError>;

    /// How many events match.
    fn count(&self, filter: &Filter) -> Result<u64, StoreError>;

    /// Events by hour and service, for the hours that begin within the filter's time, in that order; `rows_max` at most.
    /// Nothing else of the filter is looked at but the service.
    fn hours(&self, filter: &Filter, rows_max: u32) -> Result<Vec<HourCount>, StoreError>;

    /// The event of this id, or the reason it is dead.
    fn find(&self, id: EventId) -> Result<Option<Found>, StoreError>;

    /// What the counts per service and hour add up to: in all, by the `services_max` largest services, and hour by hour
    /// from `since` on. Reads no event.
    fn totals(&self, since: Timestamp, services_max: u16) -> Result<Totals, StoreError>;

    /// Whether the database answers.
    fn ping(&self) -> Result<(), StoreError>;

    /// The days that have a partition of their own.
    fn days(&self) -> Result<Vec<Day>, StoreError>;

    /// Gives the days of what lies in the default partition partitions of their own.
    fn tidy(&self) -> Result<Tidied, StoreError>;

    /// When the latest sweep began that came to its end, as far as any server knows.
    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError>;

    /// Begins to remove what is older than `edge`; None while another server does.
    fn sweep(&self, edge: Timestamp) -> Result<Option<Box<dyn Sweeping + '_>>, StoreError>;
}

/// A sweep that nobody shares. Every step is a transaction: what a step removes is taken off the counts and noted in
/// the record of the sweep with it, and a sweep that ends anywhere leaves nothing for the next one but to go on.
pub trait Sweeping: std::fmt::Debug {
    /// Drops what an earlier sweep took out of the table and did not get to drop.
    fn finish_drops(&mut self) -> Result<(), StoreError>;

    /// Takes the partition of a day out and drops it. Says how many events were in it, as the counts have it.
    fn drop_day(&mut self, day: Day) -> Result<u64, StoreError>;

    /// Deletes up to `rows_max` events with ids after `after` and before `before`, the first of them first.
    fn delete_events(
        &mut self,
        after: EventId,
        before: EventId,
        rows_max: u32,
    ) -> Result<Deleted, StoreError>;

    /// Deletes up to `rows_max` dead letters that died before the edge.
    fn delete_dead(&mut self, rows_max: u32) -> Result<u64, StoreError>;

    /// Deletes the oldest hour of the counts by minute that lies wholly before the edge. False when there was none.
    fn delete_minutes(&mut self) -> Result<bool, StoreError>;

    /// Notes how it ended.
    fn end(&mut self, error: Option<&str>) -> Result<(), StoreError>;
}

/// What became of the default partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Events that were moved into partitions of their days.
    pub moved: u64,
    /// Events that are still there, counted up to [`Tidied::LEFT_MAX`].
    pub left: u64,
}

impl Tidied {
    pub const LEFT_MAX: u64 = 10_000;
}

/// One chunk of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    pub rows: u64,
    /// Where to go on. None when nothing is left.
    pub next: Option<EventId>,
}

/// How rows go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorePath {
    /// COPY straight into the table. Fails as a whole when one of the rows is already stored.
    Copy,
    /// COPY into a temporary stage, then INSERT what is not there yet. For rows of which some may be stored.
    Stage,
}

/// What became of the rows given to [`EventRepository::store`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub stored: u64,
    /// Already there, or twice among the rows.
    pub duplicate: u64,
    /// Newly in `dead_events`.
    pub dead: u64,
}

/// A row that PostgreSQL refuses, and what it said.
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    pub row: crate::event::row::Row<'a>,
    pub sqlstate: String,
    pub reason: String,
}

/// Which events a query means. `from` is inclusive, `to` exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub service: Option<String>,
    pub from: Timestamp,
    pub to: Timestamp,
    /// For each of these, JSON objects of which the metadata has to contain one.
    pub metadata: Vec<Vec<String>>,
    /// Stands somewhere in the message, in any case.
    pub text: Option<String>,
}

impl Filter {
    /// All events of a time.
    pub fn between(from: Timestamp, to: Timestamp) -> Self {
        Self { from, to, ..Self::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Newest first.
    Desc,
    Asc,
}

/// How many events of a service lie in an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HourCount {
    /// When it begins.
    pub hour: Timestamp,
    pub service: String,
    pub count: u64,
}

/// One page of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub filter: Filter,
    pub order: Order,
    /// 1 to 1,001: a reader asks for one more than it shows, to learn whether there is more.
    pub limit: u16,
    /// The event after which the page begins, in the order asked for.
    pub after: Option<(Timestamp, EventId)>,
}

/// The beginning of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub events: Vec<Event>,
    /// There may be more on the page, or after it.
    pub more: bool,
}

impl Chunk {
    /// Of events that are all there.
    pub fn gather(events: Vec<Event>, limit: u16, bytes_max: usize) -> Self {
        let mut gathering = Gathering::new(bytes_max);
        // Full or not, it says so itself.
        _ = events.into_iter().try_for_each(|event| gathering.add(event));
        gathering.finish(limit)
    }
}

/// A chunk that is being read: what the first `bytes_max` bytes hold of the events that come.
#[derive(Debug)]
pub struct Gathering {
    events: Vec<Event>,
    bytes: usize,
    bytes_max: usize,
}

impl Gathering {
    pub fn new(bytes_max: usize) -> Self {
        Self { events: Vec::new(), bytes: 0, bytes_max }
    }

    /// Takes the next event; breaks when it takes no more.
    pub fn add(&mut self, event: Event) -> ControlFlow<()> {
        self.bytes += event.bytes();
        self.events.push(event);
        if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    pub fn finish(self, limit: u16) -> Chunk {
        let more = self.is_full() || self.events.len() == usize::from(limit);
        Chunk { events: self.events, more }
    }
}

/// What is stored, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub events: u64,
    /// The services with the most events, and how many; most first.
    pub services: Vec<(String, u64)>,
    /// Hours that have events, by their beginning; oldest first.
    pub hours: Vec<(Timestamp, u64)>,
}

/// What is known of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Stored(Event),
    /// Acknowledged, and waiting to be stored.
    Buffered(Event),
    Dead {
        sqlstate: String,
        reason: String,
    },
}

/// What went wrong, as far as the database told.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// The five characters of SQLSTATE. None when the database did not get to say: not reached, timed out,
    /// connection lost, no connection free.
    pub sqlstate: Option<String>,
    /// The whole chain of causes, for a person.
    pub message: String,
    /// The row, counted from 0, that COPY was at when it failed. A hint: it has to be confirmed.
    pub row: Option<usize>,
    /// The constraint that was violated, when the database named one.
    pub constraint: Option<String>,
    /// The column at fault, when the database named one.
    pub column: Option<String>,
    /// The work itself took longer than it may, once it had begun: less of it may do.
    pub timed_out: bool,
    /// COMMIT was sent and its answer never came: the rows may be stored.
    pub in_doubt: bool,
}

impl StoreError {
    /// An error from this side of the connection.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self {
            sqlstate: None,
            message: message.into(),
            row: None,
            constraint: None,
            column: None,
            timed_out: false,
            in_doubt: false,
        }
    }
}
