//! Events in PostgreSQL, 14 and later. The only place that names the `postgres` crate.
//!
//! `target` and `tls` say where the database is, `connect` how a transaction is had; `migrate` and `partition` make the
//! tables; `store` and `find` use them; `error` translates; `embedded` runs a cluster of our own.

mod connect;
pub mod embedded;
mod error;
mod find;
mod migrate;
mod partition;
mod store;
mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod types;

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

pub use target::{Target, TargetError};

use self::connect::Connections;
use self::partition::Day;
use crate::event::{Event, EventId, Timestamp};
use crate::storage::{DeadLetter, EventRepository, Filter, Found, Page, StoreError, StorePath, Stored};

/// The bounds on what is asked of the database.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections open at once.
    pub connections_max: u32,
    /// Longest that one statement of a batch may take.
    pub store_timeout: Duration,
    /// Longest that a batch may wait for a lock.
    pub lock_timeout: Duration,
    /// Longest that a query may take.
    pub query_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20,
            store_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(5),
            query_timeout: Duration::from_secs(5),
        }
    }
}

/// Not prepared for any day.
const NEVER: i64 = -1;

#[derive(Debug)]
pub struct PostgresRepository {
    connections: Connections,
    begin_store: String,
    begin_query: String,
    /// The day for which tables and partitions are known to be there.
    prepared: AtomicI64,
}

impl PostgresRepository {
    /// Connects to nothing yet: a server starts, and takes events in, while its database is down.
    pub fn new(target: &Target, limits: Limits) -> Self {
        // `SET LOCAL` ends with the transaction, and rides along with BEGIN in one message. A server that died in the
        // middle of a batch must not hold locks for ever, so a transaction that lies idle is ended too.
        let begin_store = format!(
            "BEGIN; SET LOCAL statement_timeout = {0}; SET LOCAL lock_timeout = {1}; \
             SET LOCAL idle_in_transaction_session_timeout = {0}",
            limits.store_timeout.as_millis(),
            limits.lock_timeout.as_millis(),
        );
        let begin_query =
            format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", limits.query_timeout.as_millis());
        Self {
            connections: Connections::new(target, limits.connections_max),
            begin_store,
            begin_query,
            prepared: AtomicI64::new(NEVER),
        }
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
            partition::empty_default(&self.connections)
        })())
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        self.noting(store::store(&self.connections, &self.begin_store, runs, dead, path))
    }

    fn page(&self, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.noting(self.connections.transaction(&self.begin_query, |client| find::page(client, page)))
    }

    fn count(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.noting(self.connections.transaction(&self.begin_query, |client| find::count(client, filter)))
    }

    fn find(&self, id: EventId) -> Result<Option<Found>, StoreError> {
        self.noting(self.connections.transaction(&self.begin_query, |client| find::find(client, id)))
    }

    fn ping(&self) -> Result<(), StoreError> {
        self.connections.transaction(&self.begin_query, |_client| Ok(()))
    }
}
