//! Two bounded connection pools, one for transactions and one for read-only statements, and single
//! connections outside the pools.
//!
//! r2d2 manages empty slots; the caller that checks out a slot connects on its own thread. So a
//! connect error returns at once and typed (a wrong password has a SQLSTATE, a closed port fails
//! immediately), where r2d2's threads would log a text and let the caller wait. All work runs in
//! transactions with `SET LOCAL` and without named statements, so a transaction-pooling proxy is
//! supported.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::Client;
use r2d2::{ManageConnection, PooledConnection};
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres::config::{Host, SslMode, SslNegotiation};

use super::error;
use super::io_timeout::{IoDeadline, TimeoutConnector};
use super::read_query::ReadConnection;
use super::session::SessionSettings;
use super::target::ConnectTarget;
use super::wal_position::{ConnectedDatabase, WalReader};
use crate::storage::wal::WalPosition;
use crate::storage::{CommitPosition, StoreError};

/// Maximum wait for a free slot.
const CHECKOUT_TIMEOUT: Duration = Duration::from_secs(5);
/// I/O timeout of BEGIN. BEGIN takes no lock, so a silent database is detected before any work.
pub(super) const BEGIN_IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections for transactions besides those of the store threads: one each for the retries of the
/// writer, the probe, retention and the replay after a failover.
const OTHER_TRANSACTIONS: u32 = 4;

/// The bounded connection pools of one database.
#[derive(Debug)]
pub(super) struct Connections {
    transactions: r2d2::Pool<SlotManager<TxnConnection>>,
    pub(super) reads: r2d2::Pool<SlotManager<ReadConnection>>,
    pub(super) connector: Connector,
    pub(super) session: Arc<SessionSettings>,
}

/// A connection for transactions.
pub(super) struct TxnConnection {
    client: Client,
    io_deadline: Arc<IoDeadline>,
    database: ConnectedDatabase,
}

/// The settings and the I/O timeout of a transaction.
#[derive(Debug)]
pub(super) struct TxnOptions {
    /// BEGIN and the `SET LOCAL` settings, sent as one message.
    pub(super) begin_sql: String,
    /// Maximum time without traffic. It is not shorter than the timeouts in `begin_sql`, which
    /// normally expire first.
    pub(super) io_timeout: Duration,
}

/// A connection outside the pool.
pub(super) struct DedicatedConnection {
    pub(super) client: Client,
    io_deadline: Arc<IoDeadline>,
}

impl DedicatedConnection {
    /// Sets and restarts the I/O timeout.
    pub(super) fn set_io_timeout(&self, timeout: Duration) {
        self.io_deadline.restart(timeout);
    }
}

impl Connections {
    pub(super) fn new(
        target: &ConnectTarget,
        connections_max: u32,
        writer_connections: u32,
        session: Arc<SessionSettings>,
        wal: Arc<WalReader>,
    ) -> Self {
        let transactions_max = transactions_max(connections_max, writer_connections);
        Self {
            transactions: pool(transactions_max),
            reads: pool(connections_max.saturating_sub(transactions_max)),
            connector: Connector { target: target.clone(), wal },
            session,
        }
    }

    /// Opens a connection outside the pools, for work that needs two connections at once. Its I/O
    /// timeout is that of BEGIN.
    pub(super) fn dedicated(&self) -> Result<DedicatedConnection, StoreError> {
        let TxnConnection { client, io_deadline, .. } = self.connector.connect()?;
        io_deadline.restart(BEGIN_IO_TIMEOUT);
        Ok(DedicatedConnection { client, io_deadline })
    }

    /// Runs `work` between BEGIN and COMMIT, with the settings of the session added to those of
    /// `options`. Rolls back when `work` fails.
    pub(super) fn transaction<T>(
        &self,
        options: &TxnOptions,
        work: impl FnOnce(&mut Client) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // After a failed ROLLBACK the slot keeps `in_transaction`, and r2d2 discards it.
        let options = self.complete(options);
        run_transaction(&mut *checkout(&self.transactions)?, &self.connector, &options, work)
    }

    /// Like [`Connections::transaction`], and returns the position of the commit.
    pub(super) fn positioned_transaction<T>(
        &self,
        options: &TxnOptions,
        work: impl FnOnce(&mut Client) -> Result<T, StoreError>,
    ) -> Result<(T, Option<CommitPosition>), StoreError> {
        let options = self.complete(options);
        let mut slot = checkout(&self.transactions)?;
        let done = run_transaction(&mut slot, &self.connector, &options, work)?;
        let commit = slot.connection.as_mut().and_then(|TxnConnection { client, database, .. }| {
            self.connector.wal.after_commit(client, *database)
        });
        Ok((done, commit))
    }

    fn complete(&self, options: &TxnOptions) -> TxnOptions {
        TxnOptions { begin_sql: self.session.complete(&options.begin_sql), ..*options }
    }
}

fn transactions_max(connections_max: u32, writer_connections: u32) -> u32 {
    writer_connections.saturating_add(OTHER_TRANSACTIONS).min(connections_max.div_ceil(2))
}

/// The number of batches that may be stored at a time, `wanted` at most, without a wait for a free
/// connection: half of the pool is for reads, and two connections are for other transactions.
pub fn writer_connections(connections_max: u32, wanted: u32) -> u32 {
    wanted.min(transactions_max(connections_max, wanted).saturating_sub(2)).max(1)
}

/// One connection outside the pools, opened on first use and kept. Its work neither waits for a
/// pool slot nor takes one from the writer.
pub(super) struct OwnConnection {
    slot: Mutex<ConnectionSlot<TxnConnection>>,
    connector: Connector,
    session: Arc<SessionSettings>,
}

impl fmt::Debug for OwnConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnConnection")
    }
}

impl OwnConnection {
    pub(super) fn new(target: &ConnectTarget, session: Arc<SessionSettings>, wal: Arc<WalReader>) -> Self {
        let slot = ConnectionSlot { connection: None, in_transaction: false };
        Self { slot: Mutex::new(slot), connector: Connector { target: target.clone(), wal }, session }
    }

    /// Runs `work` between BEGIN and COMMIT. Rolls back when `work` fails. One transaction runs at
    /// a time.
    pub(super) fn transaction<T>(
        &self,
        options: &TxnOptions,
        work: impl FnOnce(&mut Client) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.in_transaction {
            *slot = ConnectionSlot { connection: None, in_transaction: false };
        }
        let begin_sql = self.session.complete(&options.begin_sql);
        let options = TxnOptions { begin_sql, ..*options };
        run_transaction(&mut slot, &self.connector, &options, work)
    }
}

/// Runs `work` between BEGIN and COMMIT. When `in_transaction` is set afterwards, the connection
/// must be discarded.
fn run_transaction<T>(
    slot: &mut ConnectionSlot<TxnConnection>,
    connector: &Connector,
    options: &TxnOptions,
    work: impl FnOnce(&mut Client) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let client = begin(slot, connector, options)?;
    match work(client) {
        Ok(value) => match client.batch_execute("COMMIT") {
            Ok(()) => {
                slot.in_transaction = false;
                Ok(value)
            }
            Err(error) => Err(error::from_commit(&error)),
        },
        Err(error) => {
            slot.in_transaction = client.batch_execute("ROLLBACK").is_err();
            Err(error)
        }
    }
}

fn pool<C: Send + 'static>(connections_max: u32) -> r2d2::Pool<SlotManager<C>> {
    r2d2::Pool::builder()
        .max_size(connections_max.max(1))
        // An empty slot costs nothing; one idle slot saves the first caller a wait for r2d2's
        // thread.
        .min_idle(Some(1))
        .test_on_check_out(false)
        .connection_timeout(CHECKOUT_TIMEOUT)
        .build_unchecked(SlotManager(PhantomData))
}

pub(super) fn checkout<C: Send + 'static>(
    pool: &r2d2::Pool<SlotManager<C>>,
) -> Result<PooledConnection<SlotManager<C>>, StoreError> {
    pool.get().map_err(|_timeout| {
        StoreError::client_side(format!(
            "no free connection within {} s: all {} are in use",
            CHECKOUT_TIMEOUT.as_secs(),
            pool.max_size()
        ))
    })
}

/// Begins a transaction. A pooled connection may have died while it was idle, which shows only on
/// use. Nothing has been executed then, so a new connection replaces it.
fn begin<'a>(
    slot: &'a mut ConnectionSlot<TxnConnection>,
    connector: &Connector,
    options: &TxnOptions,
) -> Result<&'a mut Client, StoreError> {
    slot.in_transaction = true;
    let begin = |client: &mut Client, io_deadline: &IoDeadline| {
        io_deadline.restart(options.io_timeout.min(BEGIN_IO_TIMEOUT));
        let result = client.batch_execute(&options.begin_sql);
        io_deadline.restart(options.io_timeout);
        result
    };
    // After a failover it may lead to the server that was replaced, which may still accept writes.
    let is_current = |pooled: &TxnConnection| pooled.database.epoch == connector.wal.detector.known().epoch;
    let mut pooled = slot.connection.take().filter(is_current);
    if let Some(TxnConnection { client, io_deadline, .. }) = &mut pooled {
        match begin(client, io_deadline) {
            Ok(()) => {}
            Err(error) if error::leaves_connection_usable(&error) => {
                return Err(error_before_work("BEGIN", &error));
            }
            Err(_died_idle) => pooled = None,
        }
    }
    let connection = if let Some(connection) = pooled {
        connection
    } else {
        let mut connection = connector.connect()?;
        begin(&mut connection.client, &connection.io_deadline)
            .map_err(|error| error_before_work("BEGIN", &error))?;
        connection
    };
    Ok(&mut slot.connection.insert(connection).client)
}

#[derive(Debug)]
pub(super) struct Connector {
    target: ConnectTarget,
    pub(super) wal: Arc<WalReader>,
}

impl Connector {
    /// Prepares the configuration of one connect. Over TCP, `Require` and `Direct` make the crate
    /// pass the new socket to [`TimeoutConnector`], which negotiates TLS according to the URL. Over
    /// other sockets the crate negotiates.
    fn connect_parts(target: &ConnectTarget) -> (ConnectTarget, TimeoutConnector, Arc<IoDeadline>) {
        let mut target = target.clone();
        let config = &mut target.config;
        let io_deadline =
            Arc::new(IoDeadline::new(config.get_connect_timeout().copied().unwrap_or(CHECKOUT_TIMEOUT)));
        let over_tcp = !config.get_hosts().is_empty()
            && config.get_hosts().iter().all(|host| matches!(host, Host::Tcp(_)));
        let skip_ssl_request = !over_tcp || config.get_ssl_negotiation() == SslNegotiation::Direct;
        if over_tcp {
            config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        }
        let connector = TimeoutConnector::new(target.tls.clone(), skip_ssl_request, Arc::clone(&io_deadline));
        (target, connector, io_deadline)
    }

    /// Opens a connection and identifies its database. Of several hosts that accept it, one of an old
    /// timeline, such as the primary of before a failover that came back, is the last choice: what is
    /// committed there is lost when somebody notices.
    fn connect(&self) -> Result<TxnConnection, StoreError> {
        let before = self.wal.detector.known();
        let (client, io_deadline, wal) = self.connect_to(&self.target)?;
        let mut best = (client, io_deadline, wal);
        let known = before.wal;
        let is_old = |wal: Option<WalPosition>| match (known, wal) {
            (Some(known), Some(wal)) => wal.system == known.system && wal.timeline < known.timeline,
            _ => false,
        };
        if is_old(best.2) {
            let others = self.target.each_host();
            let newer = others.iter().filter_map(|host| self.connect_to(host).ok()).find(|it| !is_old(it.2));
            log::error!(
                "a server of an old timeline accepts writes: {}{}; {}",
                self.target.describe(),
                best.2.map(|wal| format!(" ({wal})")).unwrap_or_default(),
                if newer.is_some() { "it is not used" } else { "no other host answers, so it is used" }
            );
            best = newer.unwrap_or(best);
        }
        let (client, io_deadline, wal) = best;
        Ok(TxnConnection { client, io_deadline, database: self.wal.connected(before, wal) })
    }

    fn connect_to(
        &self,
        target: &ConnectTarget,
    ) -> Result<(Client, Arc<IoDeadline>, Option<WalPosition>), StoreError> {
        let (target, connector, io_deadline) = Self::connect_parts(target);
        let connect = || PostgresConnectionManager::new(target.to_blocking_config(), connector).connect();
        // The crate creates a runtime per connection and unwraps the result: without free file
        // descriptors it panics. The panic must fail this attempt only, not the writer.
        let Ok(client) = catch_unwind(AssertUnwindSafe(connect)) else {
            return Err(StoreError::client_side(
                "connecting: cannot create a runtime; the process may be out of file descriptors",
            ));
        };
        let mut client = client.map_err(|error| error_before_work("connecting", &error))?;
        io_deadline.restart(BEGIN_IO_TIMEOUT);
        let wal = self.wal.read(&mut client).map_err(|error| error_before_work("connecting", &error))?;
        Ok((client, io_deadline, wal))
    }

    pub(super) fn connect_for_reads(&self) -> Result<ReadConnection, StoreError> {
        let (target, connector, io_deadline) = Self::connect_parts(&self.target);
        ReadConnection::connect(&target, connector, io_deadline)
    }
}

/// Converts an error that occurred before any work. It clears `timed_out`, since a smaller batch
/// would not help.
pub(super) fn error_before_work(operation: &str, error: &postgres::Error) -> StoreError {
    StoreError { timed_out: false, ..error::from_postgres(operation, error) }
}

/// A pool slot: at most one connection, and whether that has an open transaction.
pub(super) struct ConnectionSlot<C> {
    pub(super) connection: Option<C>,
    pub(super) in_transaction: bool,
}

/// The manager of both pools. It creates empty slots, so it cannot fail.
pub(super) struct SlotManager<C>(PhantomData<fn() -> C>);

impl<C> fmt::Debug for SlotManager<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlotManager")
    }
}

impl<C: Send + 'static> ManageConnection for SlotManager<C> {
    type Connection = ConnectionSlot<C>;
    type Error = Infallible;

    fn connect(&self) -> Result<ConnectionSlot<C>, Infallible> {
        Ok(ConnectionSlot { connection: None, in_transaction: false })
    }

    fn is_valid(&self, _slot: &mut ConnectionSlot<C>) -> Result<(), Infallible> {
        Ok(())
    }

    /// A slot is broken when its transaction was neither committed nor rolled back, for example
    /// after a panic.
    fn has_broken(&self, slot: &mut ConnectionSlot<C>) -> bool {
        slot.in_transaction
    }
}
