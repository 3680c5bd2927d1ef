//! `EventRepository` on PostgreSQL 14 and later. No other module may depend on the `postgres`
//! crate.
//!
//! - `target`, `url_text`, `url_parameters`, `tls`: parse `DATABASE_URL` and configure TLS.
//! - `connect`, `io_timeout`: connection pools, transactions, and the timeout of silent sockets.
//! - `session`: the PostgreSQL settings of each transaction.
//! - `read_query`: read-only statements in one round trip.
//! - `replication`: the position of a primary or a standby in the write-ahead log.
//! - `migrate`, `partition`: create tables and partitions.
//! - `known_partitions`: requests partitions for the days of a batch.
//! - `store`, `find`, `totals`, `counts`, `dead`: read and write rows.
//! - `wal_position`: reads the position in the WAL, by which a failover is noticed.
//! - `trial`: checks whether the table accepts rows.
//! - `sweep`: deletes expired rows and partitions.
//! - `error`: converts errors of the driver to `StoreError`.
//! - `embedded`: runs a private cluster when `DATABASE_URL` is not set.

mod advisory_lock;
mod connect;
mod counts;
mod dead;
pub mod embedded;
mod error;
mod find;
mod io_timeout;
mod known_partitions;
mod migrate;
mod partition;
mod read_query;
mod replication;
mod session;
mod store;
mod sweep;
mod target;
#[cfg(test)]
mod test_database;
#[cfg(test)]
mod tests;
mod tls;
mod totals;
mod trial;
mod types;
mod url_parameters;
mod url_text;
mod wal_position;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::Receiver;

pub use connect::writer_connections;
pub use counts::CountMismatch;
pub use session::SynchronousCommit;
pub use target::{ConnectTarget, ParseDatabaseUrlError, ParseReadUrlError};
pub use url_text::connection_pairs;

use self::connect::{Connections, OwnConnection, TxnOptions};
use self::known_partitions::KnownPartitions;
use self::read_query::ReadPool;
use self::session::SessionSettings;
use self::store::RowCounts;
use self::wal_position::{StandbyCount, WalReader};
use crate::event::{EventId, Timestamp};
use crate::storage::wal::WalPosition;
use crate::storage::{
    Chunk, CountInterval, CreatePartitionLimits, CreatePartitionOutcome, DatabaseState, Day, DeadLetter,
    DeadLetters, DefaultPartition, EventPage, EventRepository, EventStatus, Filter, IntervalCount,
    PartitionRequest, RetentionSweep, StoreError, StorePath, Stored, SweepConditions, Totals,
};

/// Connection and time limits, and the guarantee of COMMIT.
#[derive(Clone, Copy, Debug)]
pub struct PostgresLimits {
    /// Maximum number of open connections.
    pub connections_max: u32,
    /// Batches that are stored at a time.
    pub writer_connections: u32,
    pub synchronous_commit: SynchronousCommit,
    /// The position in the WAL that an earlier process has seen last, to notice a failover since.
    pub last_position: Option<WalPosition>,
    /// Statement timeout of a batch. With `response_grace` it must stay below 15 s, the time within
    /// which a silent database must be detected.
    pub store_timeout: Duration,
    /// Lock timeout of a batch.
    pub lock_timeout: Duration,
    /// Statement timeout of a query.
    pub query_timeout: Duration,
    /// Statement timeout of a ping.
    pub ping_timeout: Duration,
    /// Time allowed for the response in addition to a statement timeout. A connection that is
    /// silent for longer than the sum counts as lost.
    pub response_grace: Duration,
}

impl Default for PostgresLimits {
    fn default() -> Self {
        Self {
            connections_max: 20,
            writer_connections: 2,
            synchronous_commit: SynchronousCommit::default(),
            last_position: None,
            store_timeout: Duration::from_secs(10),
            lock_timeout: Duration::from_secs(5),
            query_timeout: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(3),
            response_grace: Duration::from_secs(3),
        }
    }
}

/// The lowest supported network throughput. The transfer time at this rate extends the statement
/// timeout of a batch.
const MIN_BYTES_PER_SECOND: u64 = 8 * 1024;

#[derive(Debug)]
pub struct PostgresRepository {
    connections: Connections,
    limits: PostgresLimits,
    ping_options: TxnOptions,
    query_options: TxnOptions,
    page_options: TxnOptions,
    /// For listing and creating partitions, which may wait for locks.
    partition_connection: OwnConnection,
    known_partitions: KnownPartitions,
    standbys: StandbyCount,
    /// Whether the schema is up to date.
    prepared: AtomicBool,
}

impl PostgresRepository {
    /// Does not connect: a server starts and accepts events while its database is down.
    pub fn new(target: &ConnectTarget, limits: PostgresLimits) -> Self {
        Self::with_session(target, limits, Arc::new(SessionSettings::new(limits.synchronous_commit)))
    }

    /// The repository of a standby of this database, for reads. It finds the tables in the schemas
    /// that `prepare` has found here, since a standby cannot be prepared.
    #[must_use]
    pub fn standby(&self, target: &ConnectTarget) -> Self {
        Self::with_session(target, self.limits, self.connections.session.clone())
    }

    fn with_session(target: &ConnectTarget, limits: PostgresLimits, session: Arc<SessionSettings>) -> Self {
        // JIT compilation takes longer than any query here, and the cost that the planner adds for
        // a disabled sort would trigger it for each page.
        let begin_query = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL jit = off",
            limits.query_timeout.as_millis()
        );
        // The planner's statistics lag behind a day that is still being filled: it estimates the
        // newest hours as empty and would sort all of their rows to return the first hundred. An
        // index has the order that a page needs.
        let begin_page = format!("{begin_query}; SET LOCAL enable_sort = off");
        let io_timeout = limits.query_timeout + limits.response_grace;
        let begin_ping =
            format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", limits.ping_timeout.as_millis());
        let wal = Arc::new(WalReader::new(limits.synchronous_commit, limits.last_position));
        Self {
            connections: Connections::new(
                target,
                limits.connections_max,
                limits.writer_connections,
                session.clone(),
                wal.clone(),
            ),
            limits,
            ping_options: TxnOptions { begin_sql: begin_ping, io_timeout: limits.ping_timeout },
            query_options: TxnOptions { begin_sql: begin_query, io_timeout },
            page_options: TxnOptions { begin_sql: begin_page, io_timeout },
            partition_connection: OwnConnection::new(target, session, wal),
            known_partitions: KnownPartitions::default(),
            standbys: StandbyCount::default(),
            prepared: AtomicBool::new(false),
        }
    }

    fn read_pool<'a>(&'a self, options: &'a TxnOptions) -> ReadPool<'a> {
        ReadPool { connections: &self.connections, options }
    }

    /// The options of a batch's transaction. The `SET LOCAL` settings end with the transaction and
    /// are sent with BEGIN in one message. The statement timeout includes the transfer time of the
    /// COPY, so that a batch succeeds over a slow network. The idle timeout releases the locks of a
    /// server that died in the middle of a batch. At another default isolation level, servers that
    /// count events of the same hour at once would fail.
    fn store_options(&self, runs: &[&[u8]]) -> TxnOptions {
        let bytes: u64 = runs.iter().map(|run| run.len() as u64).sum();
        let timeout = self.limits.store_timeout + Duration::from_secs(bytes / MIN_BYTES_PER_SECOND);
        let begin_sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {}; \
             SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}",
            timeout.as_millis(),
            self.limits.lock_timeout.as_millis(),
            self.limits.store_timeout.as_millis(),
        );
        // The I/O timeout restarts with each transferred byte, so it excludes the transfer time.
        TxnOptions { begin_sql, io_timeout: self.limits.store_timeout + self.limits.response_grace }
    }

    /// Resets `prepared`, the known partitions and the search path when an error reports a missing
    /// table, database or schema.
    fn invalidate_if_missing<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError { sqlstate: Some(code), .. }) = &result
            && matches!(code.as_str(), "42P01" | "3D000" | "3F000")
        {
            self.prepared.store(false, Ordering::Release);
            self.known_partitions.clear();
            self.connections.session.clear_search_path();
        }
        result
    }
}

impl EventRepository for PostgresRepository {
    fn dead_letters(&self) -> Option<&dyn DeadLetters> {
        Some(self)
    }

    fn prepare(&self) -> Result<(), StoreError> {
        if !self.prepared.load(Ordering::Acquire) {
            self.invalidate_if_missing((|| {
                migrate::run(&self.connections)?;
                let session = &self.connections.session;
                let schemas =
                    self.connections.transaction(&self.query_options, |client| session.check(client))?;
                session.set_search_path(&schemas);
                Ok(())
            })())?;
            self.prepared.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn store(&self, runs: &[&[u8]], dead: &[DeadLetter<'_>], path: StorePath) -> Result<Stored, StoreError> {
        let counts = RowCounts::from_runs(runs, path);
        self.known_partitions.request_missing(counts.days());
        self.invalidate_if_missing(store::store(
            &self.connections,
            &self.store_options(runs),
            (runs, &counts),
            dead,
            path,
        ))
        .map_err(|error| trial::explain(self.read_pool(&self.query_options), error))
    }

    fn trial_insert(&self, now: Timestamp) -> Result<(), StoreError> {
        self.invalidate_if_missing((|| {
            let rows = trial::rows(self.read_pool(&self.page_options), now)?;
            trial::insert(&self.connections, &self.store_options(&[]), &rows)
        })())
    }

    fn page(&self, page: &EventPage, bytes_max: usize) -> Result<Chunk, StoreError> {
        self.invalidate_if_missing(find::page(self.read_pool(&self.page_options), page, bytes_max))
    }

    fn count(&self, filter: &Filter) -> Result<u64, StoreError> {
        self.invalidate_if_missing(totals::count(self.read_pool(&self.query_options), filter))
    }

    fn interval_counts(
        &self,
        filter: &Filter,
        interval: CountInterval,
        rows_max: u32,
    ) -> Result<Vec<IntervalCount>, StoreError> {
        let pool = self.read_pool(&self.query_options);
        self.invalidate_if_missing(totals::interval_counts(pool, filter, interval, rows_max))
    }

    fn find(&self, id: EventId) -> Result<Option<EventStatus>, StoreError> {
        self.invalidate_if_missing(find::find(self.read_pool(&self.query_options), id))
    }

    fn totals(&self, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
        self.invalidate_if_missing(totals::totals(self.read_pool(&self.query_options), since, services_max))
    }

    fn ping(&self) -> Result<(), StoreError> {
        self.connections.transaction(&self.ping_options, |_client| Ok(()))
    }

    fn state(&self) -> Result<DatabaseState, StoreError> {
        let wal = &self.connections.connector.wal;
        let before = wal.detector.known();
        self.connections.transaction(&self.ping_options, |client| {
            let position =
                wal.read(client).map_err(|error| error::from_postgres("reading the position", &error))?;
            // A statement that failed has ended the transaction.
            let Some(position) = position else { return Ok(DatabaseState::default()) };
            let standbys = wal_position::standbys(client)?;
            let standby_flushed = self.standbys.flushed_by_all(position, standbys);
            Ok(DatabaseState { position: Some(wal.observe(before, position)), standby_flushed })
        })
    }

    fn replication_position(&self) -> Result<Option<u64>, StoreError> {
        replication::position(self.read_pool(&self.ping_options))
    }

    fn partition_days(&self) -> Result<Vec<Day>, StoreError> {
        let days = self.partition_connection.transaction(&partition::quick_txn(), partition::days);
        let days = self.invalidate_if_missing(days)?;
        self.known_partitions.refresh(&days);
        Ok(days)
    }

    fn create_partition(
        &self,
        day: Day,
        limits: CreatePartitionLimits,
    ) -> Result<CreatePartitionOutcome, StoreError> {
        let outcome =
            self.invalidate_if_missing(partition::create(&self.partition_connection, day, limits))?;
        match outcome {
            CreatePartitionOutcome::Created { .. } | CreatePartitionOutcome::Exists => {
                self.known_partitions.insert(day);
            }
            CreatePartitionOutcome::NameTaken | CreatePartitionOutcome::TooManyRows => {}
        }
        Ok(outcome)
    }

    fn partition_requests(&self) -> Receiver<PartitionRequest> {
        self.known_partitions.requests()
    }

    fn default_partition(&self) -> Result<DefaultPartition, StoreError> {
        self.invalidate_if_missing(partition::inspect_default(&self.partition_connection))
    }

    fn sweep_conditions(&self) -> Result<SweepConditions, StoreError> {
        self.invalidate_if_missing(self.connections.transaction(&self.query_options, sweep::conditions))
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        self.invalidate_if_missing(self.connections.transaction(&self.query_options, sweep::last_finished))
    }

    fn begin_sweep(&self, cutoff: Timestamp) -> Result<Option<Box<dyn RetentionSweep + '_>>, StoreError> {
        let sweep = self.invalidate_if_missing(sweep::begin(&self.connections, cutoff))?;
        Ok(sweep.map(|sweep| Box::new(sweep) as Box<dyn RetentionSweep>))
    }
}
