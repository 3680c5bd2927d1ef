//! Events in PostgreSQL, 14 and later. The only place that names the `postgres` crate.
//!
//! `target` and `tls` say where the database is, `connect` how a transaction is had, `ask` how a question is asked; `migrate`
//! and `partition` make the tables; `store`, `find`, `totals` and `dead` use them, `sweep` takes what is old out of them; `error` translates; `embedded` runs a cluster of our own.

mod ask;
mod connect;
mod counts;
mod dead;
pub mod embedded;
mod error;
mod find;
mod migrate;
mod partition;
mod patience;
mod store;
mod sweep;
mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod totals;
mod types;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

pub use counts::Difference;
pub use dead::{DeadEvent, DeadFilter, Replayed};
pub use target::{Target, TargetError};

use self::ask::Desk;
use self::connect::{Connections, Terms};
use crate::event::{Event, EventId, Timestamp};
use crate::storage::{
    Chunk, Day, DeadLetter, EventRepository, Filter, Found, HourCount, Page, StoreError, StorePath, Stored,
    Sweeping, Tidied, Totals,
};

/// The bounds on what is asked of the database.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once.
    pub connections_max: u32,
    /// Longest that one statement of a batch may take. With `grace` below the 15 s in which silence must be noticed.
    pub store_timeout: Duration,
    /// Longest that a batch may wait for a lock.
    pub lock_timeout: Duration,
    /// Longest that a query may take.
    pub query_timeout: Duration,
    /// Longest that a ping may take.
    pub ping_timeout: Duration,
    /// How long an answer may be on its way: a database that is silent for longer than the timeouts above and this
    /// counts as lost.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20,
            store_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            query_timeout: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(3),
            grace: Duration::from_secs(3),
        }
    }
}

/// The slowest network over which a batch is still worth sending. Its time is added to that of the statement.
const BYTES_PER_SECOND_MIN: u64 = 8 * 1024;

/// Not prepared for any day.
const NEVER: i64 = -1;

#[derive(Debug)]
pub struct PostgresRepository {
    connections: Connections,
    limits: Limits,
    ping_terms: Terms,
    query_terms: Terms,
    page_terms: Terms,
    /// The day for which tables and partitions are known to be there.
    prepared: AtomicI64,
}

impl PostgresRepository {
    /// Connects to nothing yet: a server starts, and takes events in, while its database is down.
    pub fn new(target: &Target, limits: Limits) -> Self {
        // Compiling a query takes longer than any of ours, and the price that the planner puts on a forbidden sort
        // would make it compile each page.
        let begin_query = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL jit = off",
            limits.query_timeout.as_millis()
        );
        // The planner knows too little of a day that is still being filled: it takes its newest hours for empty and
        // would sort all of them to find the first hundred. An index has the order that a page needs.
        let begin_page = format!("{begin_query}; SET LOCAL enable_sort = off");
        let patience = limits.query_timeout + limits.grace;
        let begin_ping =
            format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", limits.ping_timeout.as_millis());
        Self {
            connections: Connections::new(target, limits.connections_max),
            limits,
            ping_terms: Terms { begin: begin_ping, patience: limits.ping_timeout },
            query_terms: Terms { begin: begin_query, patience },
            page_terms: Terms { begin: begin_page, patience },
            prepared: AtomicI64::new(NEVER),
        }
    }

    fn desk<'a>(&'a self, terms: &'a Terms) -> Desk<'a> {
        Desk { connections: &self.connections, terms }
    }

    /// `SET LOCAL` ends with the transaction, and rides along with BEGIN in one message. A COPY's time is that of its
    /// bytes on their way too, so that a batch gets through a slow network at last. A server that died in the middle
    /// of a batch must not hold locks for ever, so a transaction that lies idle is ended too.
    fn store_terms(&self, runs: &[&[u8]]) -> Terms {
        let bytes: u64 = runs.iter().map(|run| run.len() as u64).sum();
        let timeout = self.limits.store_timeout + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        let begin = format!(
            "BEGIN; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            timeout.as_millis(),
            self.limits.lock_timeout.as_millis(),
            self.limits.store_timeout.as_millis(),
        );
        // Bytes that the network takes are no silence.
        Terms { begin, patience: self.limits.store_timeout + self.limits.grace }
    }

    /// When tables or the database are missing, what `prepare` found is no longer so.
    fn noting<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError { sqlstate: Some(code), .. }) = &result
            && matches!(code.as_str(), "42P01" | "3D000" | "3F000")
        {
            self.prepared.store(NEVER, Ordering::Release);
        }
        result
    }
}

impl EventRepository for PostgresRepository {
    fn prepare(&self, now: Timestamp) -> Result<(), StoreError> {
        let today = Day::of(now).number();
        self.noting((|| {
            if self.prepared.load(Ordering::Acquire) != today {
                migrate::run(&self.connections)?;
                partition::ensure(&self.connections, now)?;
                self.prepared.store(today, Ordering::Release);
            }
            Ok(())
        })())
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        self.noting(store::store(&self.connections, &self.store_terms(runs), runs, dead, path))
    }

    fn page(&self, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.noting(find::page(self.desk(&self.page_terms), page))
    }

    fn chunk(&self, page: &Page, bytes_max: usize) -> Result<Chunk, StoreError> {
        self.noting(find::chunk(self.desk(&self.page_terms), page, bytes_max))
    }

    fn count(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.noting(totals::count(self.desk(&self.query_terms), filter))
    }

    fn hours(&self, filter: &Filter, rows_max: u32) -> Result<Vec<HourCount>, StoreError> {
        self.noting(totals::hours(self.desk(&self.query_terms), filter, rows_max))
    }

    fn find(&self, id: EventId) -> Result<Option<Found>, StoreError> {
        self.noting(find::find(self.desk(&self.query_terms), id))
    }

    fn totals(&self, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
        self.noting(totals::totals(self.desk(&self.query_terms), since, services_max))
    }

    fn ping(&self) -> Result<(), StoreError> {
        self.connections.transaction(&self.ping_terms, |_client| Ok(()))
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        self.noting(self.connections.transaction(&self.query_terms, partition::days))
    }

    fn tidy(&self) -> Result<Tidied, StoreError> {
        self.noting(partition::empty_default(&self.connections))
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        self.noting(self.connections.transaction(&self.query_terms, sweep::last))
    }

    fn sweep(&self, edge: Timestamp) -> Result<Option<Box<dyn Sweeping + '_>>, StoreError> {
        let sweep = self.noting(sweep::begin(&self.connections, edge))?;
        Ok(sweep.map(|sweep| Box::new(sweep) as Box<dyn Sweeping>))
    }
}
