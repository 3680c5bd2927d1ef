//! Builds the stages of the pipeline, starts their threads, and stops them in the order of the data
//! flow.

pub mod commands;
mod error;
mod listeners;
mod notifier;
mod resolved;
mod stages;

use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvError, RecvTimeoutError, bounded, select};
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR1, SIGUSR2};

pub use error::RunServerError;
pub use resolved::ResolvedSettings;
pub use stages::policy;

use listeners::PassedListeners;

use crate::access::{Gate, Policy};
use crate::api::ApiHandler;
use crate::api::router::LABELS;
use crate::buffer::Buffer;
use crate::clock::{Clock, Moment};
use crate::gateway::handlers::GatewayHandlers;
use crate::health::ProbeState;
use crate::health::status::Status;
use crate::http::tls::TlsIdentity;
use crate::http::{AcceptorHandle, ConnectionStats, listener};
use crate::journal::filesystem::{Filesystem, OsDirectory};
use crate::journal::{
    self, Durability, FoundSegments, Journal, JournalWriter, Lookup, OpenJournalError, Recovery,
};
use crate::lifecycle::{Lifecycle, LifecycleEvent, LifecyclePhase};
use crate::logging;
use crate::metrics::{BusinessCache, DiskSpace, HttpMetrics, Ledger, Sampler, StallDetector, WriterMetrics};
use crate::query::QueryDatabase;
use crate::service_manager::ServiceManager;
use crate::settings::{HttpEngine, Settings};
use crate::storage::postgres::embedded::{Cluster, ClusterError, ClusterLimits, ClusterSupervisor};
use crate::storage::postgres::{ConnectTarget, PostgresLimits, PostgresRepository, writer_connections};
use crate::storage::wal::WalPosition;
use crate::storage::{Breaker, BreakerLimits, EventRepository, StandbyState};
use crate::writer::{BatchLimits, Drain, StoreThread, Writer, WriterDeps, store_link};

/// Maximum time for acceptors to finish open requests at shutdown.
const ACCEPTOR_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for the journal to write and sync its pending records at shutdown.
const JOURNAL_FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a drain tries a database that fails every attempt, while the journal keeps the events.
/// Container runtimes kill after 10 s, and the next start stores what is left.
const DRAIN_FAILING_MAX: Duration = Duration::from_millis(500);
/// Interval at which a drain is checked. The writer may wait for the database, so it cannot report.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// Maximum time for the writer to end once its drain is over; in a call to the database it cannot.
const WRITER_END_TIMEOUT: Duration = Duration::from_millis(100);
/// The journal's directory within `DATA_DIR`.
const JOURNAL_DIR: &str = "journal";

fn stop(cluster: Option<Cluster>) {
    log_stop_error(cluster.map(Cluster::stop));
}

fn log_stop_error(stopped: Option<Result<(), ClusterError>>) {
    if let Some(Err(error)) = stopped {
        log::error!("the private PostgreSQL cluster did not stop: {error}");
    }
}

/// `aurore-events serve`.
pub fn run(settings: &Settings, clock: &Clock) -> Result<(), RunServerError> {
    let (lifecycle, notices) = Lifecycle::new();
    // Invalid files fail the start before it has side effects.
    let resolved = ResolvedSettings::load(settings)?;
    for warning in resolved.warnings() {
        log::warn!("{warning}");
    }
    let listen_failed = |error| RunServerError::Listen { address: settings.address(), error };
    let passed = PassedListeners::take(settings)?;
    let settings = &passed.settings(settings).map_err(listen_failed)?;
    let policy = stages::policy(settings, resolved.tokens, &lifecycle);
    let identity = resolved.identity.map(|identity| stages::reload_identity(identity, &lifecycle));
    let _lock = lock_data_dir(&settings.data_dir)?;
    let service_manager = ServiceManager::connect(settings.systemd.notify_socket.as_deref())
        .map_err(RunServerError::NotifySocket)?;
    // Bind before the cluster starts, so that a second server fails without side effects.
    let sockets = passed.open(settings, &service_manager)?;
    let listeners = listener::share(&sockets, settings.acceptors).map_err(listen_failed)?;
    drop(sockets);
    install_signal_handlers(&lifecycle, &service_manager)?;
    let journal = open_journal(&settings.data_dir)?;
    let (repository, cluster) = open_database(settings, resolved.target, journal.1.last_position(), clock)?;
    let standby = resolved.read_target.map(|target| open_standby(&repository, &target));
    let repository: Arc<dyn EventRepository> = repository;
    let cluster_restarts = Arc::new(AtomicU64::new(0));
    let supervise = |cluster| ClusterSupervisor::start(cluster, cluster_restarts.clone(), &lifecycle, clock);
    let supervisor = cluster.map(supervise).transpose().map_err(RunServerError::Thread)?;
    let inputs = ServerInputs {
        listeners,
        policy,
        identity,
        repository,
        standby,
        journal,
        cluster_restarts,
        service_manager,
    };
    let served = serve(settings, inputs, &lifecycle, &notices, clock);
    log_stop_error(supervisor.map(ClusterSupervisor::stop));
    served
}

/// Opens the journal directory and returns it with the segments left by an earlier process.
pub fn open_journal(data_dir: &Path) -> Result<(Arc<dyn Filesystem>, FoundSegments), RunServerError> {
    let path = data_dir.join(JOURNAL_DIR);
    let failed = |error| RunServerError::from(OpenJournalError::Io { path: path.clone(), error });
    let disk = OsDirectory::open(path.clone()).map_err(failed)?;
    let found = journal::scan_segments(&disk).map_err(failed)??;
    log_recovered_journal(&found);
    Ok((Arc::new(disk), found))
}

/// Locks the data directory, so that two servers cannot share it. The kernel releases the lock when
/// the process ends.
fn lock_data_dir(path: &Path) -> Result<File, RunServerError> {
    let failed = |error| RunServerError::DataDir { path: path.to_owned(), error };
    std::fs::create_dir_all(path).map_err(failed)?;
    let lock = File::create(path.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(RunServerError::DataDirInUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// SIGTERM and SIGINT start the shutdown; a second one forces it. SIGHUP reloads files; SIGUSR1 and
/// SIGUSR2 raise and lower the log level.
fn install_signal_handlers(lifecycle: &Lifecycle, manager: &ServiceManager) -> Result<(), RunServerError> {
    let failed = |error: &dyn std::error::Error| RunServerError::Signals(error.to_string());
    let stop = lifecycle.clone();
    ctrlc::set_handler(move || stop.request_stop()).map_err(|error| failed(&error))?;
    // ctrlc's `termination` feature would also handle SIGHUP, which must not stop the server.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])
        .map_err(|error| failed(&error))?;
    let (signalled, manager) = (lifecycle.clone(), manager.clone());
    lifecycle
        .spawn("signals", move || {
            for signal in signals.forever() {
                match signal {
                    SIGHUP => reload(&signalled, &manager),
                    SIGUSR1 => logging::adjust_level(true),
                    SIGUSR2 => logging::adjust_level(false),
                    _ => signalled.request_stop(),
                }
            }
        })
        .map_err(RunServerError::Thread)?;
    Ok(())
}

/// Reloads the files, and reports begin and end to the service manager. A reload during the start
/// does not report it, since its end would be taken for that of the start.
fn reload(lifecycle: &Lifecycle, manager: &ServiceManager) {
    let reported = lifecycle.phase() == LifecyclePhase::Serving;
    if reported {
        manager.reloading();
    }
    lifecycle.reload();
    if reported {
        manager.ready();
    }
}

/// Opens the database `target`, or the private cluster without one. The database need not be
/// reachable yet.
fn open_database(
    settings: &Settings,
    target: Option<ConnectTarget>,
    last_position: Option<WalPosition>,
    clock: &Clock,
) -> Result<(Arc<PostgresRepository>, Option<Cluster>), RunServerError> {
    let (target, cluster) = if let Some(target) = target {
        (target, None)
    } else {
        let cluster = Cluster::start(&settings.data_dir, ClusterLimits::default(), clock)?;
        (cluster.target(), Some(cluster))
    };
    log::info!(embedded = cluster.is_some(); "storing into {}", target.describe());
    let limits = PostgresLimits {
        connections_max: settings.db_pool_max,
        writer_connections: settings.writer_connections,
        synchronous_commit: settings.synchronous_commit,
        last_position,
        ..PostgresLimits::default()
    };
    Ok((Arc::new(PostgresRepository::new(&target, limits)), cluster))
}

/// Opens the standby that serves queries. It need not be reachable yet.
fn open_standby(primary: &PostgresRepository, target: &ConnectTarget) -> Arc<dyn EventRepository> {
    log::info!("queries read from the standby {}", target.describe());
    Arc::new(primary.standby(target))
}

fn breaker(settings: &Settings) -> Arc<Breaker> {
    Arc::new(Breaker::new(BreakerLimits {
        failure_threshold: settings.breaker_failures,
        success_threshold: settings.breaker_successes,
        timeout: settings.breaker_timeout,
    }))
}

/// External resources of the server: sockets, files and the database.
#[derive(Debug)]
pub struct ServerInputs {
    /// The listeners of each acceptor, at least one.
    pub listeners: Vec<Vec<TcpListener>>,
    /// Tokens, rate limits, proxies and CORS origins.
    pub policy: Arc<Policy>,
    /// The TLS certificate, if TLS is on.
    pub identity: Option<Arc<TlsIdentity>>,
    pub repository: Arc<dyn EventRepository>,
    /// The standby that serves queries.
    pub standby: Option<Arc<dyn EventRepository>>,
    /// The journal's directory, and the segments left by an earlier process.
    pub journal: (Arc<dyn Filesystem>, FoundSegments),
    /// Restarts of the private cluster.
    pub cluster_restarts: Arc<AtomicU64>,
    pub service_manager: ServiceManager,
}

/// Logs the initial ledger and the size of the journal's backlog. The shutdown logs the final
/// ledger.
fn log_recovered_journal(found: &FoundSegments) {
    let bytes: u64 = found.pending.iter().map(|pending| pending.bytes).sum();
    log::info!(
        received = 0, stored = 0, duplicate = 0, dead = 0, buffered = 0, spilled = 0,
        backlog_segments = found.pending.len(), backlog_bytes = bytes, retained_segments = found.committed.len();
        "initial ledger; events of the journal's backlog are counted as received when they are replayed"
    );
}

/// Serves until a stop notice or the death of a thread.
#[expect(clippy::too_many_lines, reason = "the construction of the stages is one sequence")]
pub fn serve(
    settings: &Settings,
    inputs: ServerInputs,
    lifecycle: &Lifecycle,
    notices: &Receiver<LifecycleEvent>,
    clock: &Clock,
) -> Result<(), RunServerError> {
    let ServerInputs {
        listeners,
        policy,
        identity,
        repository,
        standby,
        journal,
        cluster_restarts,
        service_manager,
    } = inputs;
    let (disk, found) = journal;
    let acceptors = listeners.len();
    let ledger = Arc::new(Ledger::new(acceptors));
    let (buffer, parker) = Buffer::new(stages::buffer_limits(settings), acceptors, ledger.clone());
    let buffer = Arc::new(buffer);
    let (journal, journal_parts) = Journal::new(acceptors);
    let journal = Arc::new(journal);
    let breaker = breaker(settings);
    let (gateway, gateway_parts) = stages::gateway(settings, clock)?;
    crate::console::assets::prepare();
    let status = Arc::new(Status {
        gateway: gateway.clone(),
        buffer: buffer.clone(),
        journal: journal.clone(),
        ledger: ledger.clone(),
        sampler: Arc::new(Sampler::default()),
        stall: StallDetector::new(settings.drain_interval),
        writer: Arc::new(WriterMetrics::default()),
        http: Arc::new(HttpMetrics::new(acceptors, &LABELS)),
        retention: Arc::default(),
        tails: Arc::default(),
        partitions: Arc::default(),
        cluster_restarts,
        connections: Arc::new(ConnectionStats::default()),
        failover: Arc::default(),
        business: Arc::new(BusinessCache::default()),
        disk: DiskSpace::default(),
        database: Arc::new(ProbeState::default()),
        standby: standby.as_ref().map(|_| Arc::new(StandbyState::new(settings.database_read_lag_max))),
        breaker: breaker.clone(),
        lifecycle: lifecycle.clone(),
        clock: clock.clone(),
    });

    let drain = Arc::new(Drain::default());
    let writer_deps = WriterDeps {
        buffer: buffer.clone(),
        journal: journal.clone(),
        repository: repository.clone(),
        breaker: breaker.clone(),
        ledger,
        metrics: status.writer.clone(),
        drain: drain.clone(),
        lifecycle: lifecycle.clone(),
        clock: clock.clone(),
    };
    let batch = BatchLimits {
        rows_max: settings.batch_rows_max,
        bytes_max: settings.batch_bytes_max,
        linger: settings.linger,
        wait_max: settings.drain_interval,
    };
    let limits = journal::JournalLimits {
        write_interval: settings.journal_write,
        sync_interval: settings.journal_sync,
        segment_bytes_max: settings.journal_segment_bytes,
        retain: settings.journal_retain,
    };
    let journal_deps = (journal.clone(), buffer.clone());
    let journal_writer = JournalWriter::new(journal_deps, disk.clone(), limits, clock.clone(), &found);
    let lookup = Lookup { journal: journal.clone(), disk: disk.clone(), buffer: buffer.clone() };
    let recovery = Recovery::new(
        journal.clone(),
        disk.clone(),
        buffer,
        lifecycle.clone(),
        clock.clone(),
        journal_parts.recovery,
        found.pending,
    );
    let journal_ended = stages::start_journal(journal_writer, journal_parts.writer, lifecycle)?;
    lifecycle.spawn_task("recovery", move || recovery.run()).map_err(RunServerError::Thread)?;
    let connections = writer_connections(settings.db_pool_max, settings.writer_connections);
    let (store_link, store_queue) = store_link(connections as usize);
    let store_thread = StoreThread {
        queue: store_queue,
        repository: repository.clone(),
        buffer: status.buffer.clone(),
        clock: clock.clone(),
    };
    stages::start_store_threads(&store_thread, connections, lifecycle)?;
    let writer = Writer::new(writer_deps, parker, batch, store_link);
    let writer_ended = stages::start_writer(writer, lifecycle)?;
    let parts = (disk, journal_parts.failovers);
    let stop_helpers = stages::start_helpers(settings, &status, &repository, standby.as_ref(), parts)?;
    let (scrapes, gateway_running) =
        stages::start_gateway(settings, &gateway, gateway_parts, lifecycle, clock)?;
    let mut database = QueryDatabase::new(repository, breaker, clock.clone());
    if let (Some(standby), Some(state)) = (standby, status.standby.clone()) {
        database = database.with_standby(standby, state);
    }
    let queries = stages::start_readers(settings, database, lookup, &status)?;

    let address = listeners[0][0]
        .local_addr()
        .map_err(|error| RunServerError::Listen { address: settings.address(), error })?;
    let limits = stages::ingest_limits(settings);
    let durability = settings.durability;
    let flags = settings.effective.clone().into();
    let pages = GatewayHandlers::new(gateway, scrapes, durability, clock.wall(), flags);
    let pages = stages::start_push_thread(pages, limits.decompressed_bytes_max, lifecycle)?;
    let api = {
        let status = status.clone();
        move |acceptor: usize| {
            let gate = Gate::new(policy.clone());
            let (status, queries, pages) = (status.clone(), queries.clone(), pages.clone());
            ApiHandler::new(acceptor, gate, limits, durability, status, queries, pages)
        }
    };
    let (acceptor_handles, acceptors_ended) = match settings.http_engine {
        HttpEngine::Guarded => stages::start_acceptors(
            settings,
            listeners,
            &status.connections,
            identity.as_ref(),
            &api,
            lifecycle,
            clock,
        )?,
        HttpEngine::Minihttp => stages::start_minihttp(settings, listeners, api)?,
    };
    let scheme = if identity.is_some() { "https" } else { "http" };
    log::info!(acceptors = acceptors, engine:? = settings.http_engine; "listening on {scheme}://{address}");

    let (stop_notifier, notifier_stopped) = bounded::<()>(0);
    stages::start_notifier(settings, &status, &acceptor_handles, &service_manager, notifier_stopped)?;
    let running = RunningServer {
        status,
        service_manager,
        drain,
        acceptors: acceptor_handles,
        acceptors_ended,
        writer_ended,
        journal_ended,
        gateway: gateway_running,
        notices,
    };
    let stopped = running.run_until_stopped(settings.shutdown_timeout);
    drop((stop_helpers, stop_notifier));
    stopped
}

/// The running stages, and the channels that report their end.
struct RunningServer<'a> {
    status: Arc<Status>,
    service_manager: ServiceManager,
    drain: Arc<Drain>,
    acceptors: Vec<AcceptorHandle>,
    acceptors_ended: Receiver<()>,
    writer_ended: Receiver<()>,
    journal_ended: Receiver<()>,
    gateway: stages::GatewayThreads,
    notices: &'a Receiver<LifecycleEvent>,
}

impl RunningServer<'_> {
    /// Waits for a notice, then stops the stages in the order of the data flow: acceptors, buffer,
    /// writer, journal, gateway.
    fn run_until_stopped(self, timeout: Duration) -> Result<(), RunServerError> {
        let (buffer, clock) = (&self.status.buffer, &self.status.clock);
        if let Ok(notice @ LifecycleEvent::ThreadDied { .. }) = self.notices.recv() {
            self.acceptors.iter().for_each(AcceptorHandle::stop);
            return Err(self.abort(Ok(notice)));
        }
        log::info!(buffered = buffer.occupied().rows; "shutting down: no further requests are accepted");
        self.status.lifecycle.advance_to(LifecyclePhase::Draining);
        self.service_manager.stopping(&notifier::draining_line(self.status.ledger.balance().buffered()));
        let deadline = clock.now().plus(timeout);
        self.acceptors.iter().for_each(AcceptorHandle::drain);
        select! {
            recv(self.acceptors_ended) -> _ => {}
            recv(self.notices) -> notice => return Err(self.abort(notice)),
            default(timeout.min(ACCEPTOR_DRAIN_TIMEOUT)) => self.acceptors.iter().for_each(AcceptorHandle::stop),
        }
        // Stop accepting pushes; the gateway's log is written while the writer drains.
        self.status.gateway.finish();
        buffer.close();
        self.drain_buffer(deadline)?;
        let unstored = self.status.ledger.balance().buffered();
        let journaled = self.finish_journal();
        self.finish_gateway();
        let balance = self.status.ledger.balance();
        log::info!(
            received = balance.received, stored = balance.stored, duplicate = balance.duplicate,
            dead = balance.dead, lost = balance.lost, buffered = balance.buffered(), spilled = buffer.spill().events();
            "stopped; final ledger"
        );
        match (unstored, journaled) {
            (0, _) => Ok(()),
            (unstored, true) => {
                log::warn!(events = unstored; "{unstored} acknowledged events remain in the journal for the next start");
                Ok(())
            }
            (unstored, false) => Err(RunServerError::Undrained(unstored)),
        }
    }

    /// Has the writer store what is buffered, until the deadline, or until storing has no prospect.
    fn drain_buffer(&self, deadline: Moment) -> Result<(), RunServerError> {
        let (buffer, clock) = (&self.status.buffer, &self.status.clock);
        let began = clock.now();
        self.drain.set_deadline(deadline);
        buffer.wake_writer();
        // A statement in progress at the deadline is given time to complete.
        let mut end = deadline.plus(ACCEPTOR_DRAIN_TIMEOUT);
        let mut is_over = false;
        loop {
            let now = clock.now();
            if now >= end {
                return Ok(());
            }
            if !is_over && (buffer.is_empty() || self.is_drain_futile(began, now)) {
                is_over = true;
                self.drain.set_deadline(now);
                buffer.wake_writer();
                end = now.plus(WRITER_END_TIMEOUT);
            }
            select! {
                recv(self.writer_ended) -> _ => return Ok(()),
                recv(self.notices) -> notice => return Err(self.abort(notice)),
                default(DRAIN_CHECK_INTERVAL) => {}
            }
        }
    }

    /// Whether the database fails every attempt while the journal can keep the events. Without the
    /// journal they would be lost, so that the whole `SHUTDOWN_TIMEOUT_MS` is used.
    fn is_drain_futile(&self, began: Moment, now: Moment) -> bool {
        let fails = |since: Moment| now.since(since.max(began)) >= DRAIN_FAILING_MAX;
        self.drain.failing_since().is_some_and(fails) && self.status.journal.guarantees(Durability::Synced)
    }

    /// Makes the journal write and sync all events that are not stored. Returns whether it
    /// succeeded.
    fn finish_journal(&self) -> bool {
        let journal = &self.status.journal;
        journal.finish();
        let ended =
            self.journal_ended.recv_timeout(JOURNAL_FINISH_TIMEOUT) == Err(RecvTimeoutError::Disconnected);
        ended && journal.guarantees(Durability::Synced)
    }

    /// Makes the gateway write and sync its log.
    fn finish_gateway(&self) {
        self.status.gateway.finish();
        let ended =
            self.gateway.ended.recv_timeout(JOURNAL_FINISH_TIMEOUT) == Err(RecvTimeoutError::Disconnected);
        if !(ended && self.status.gateway.is_log_available()) {
            log::error!("the gateway could not write its last pushes to disk");
        }
    }

    /// Ends without a drain: a thread died, or a second signal was received.
    fn abort(&self, notice: Result<LifecycleEvent, RecvError>) -> RunServerError {
        match notice {
            Ok(LifecycleEvent::ThreadDied { name }) => RunServerError::ThreadDied(name),
            Ok(LifecycleEvent::Stop) | Err(RecvError) => {
                self.finish_journal();
                self.finish_gateway();
                RunServerError::StopForced(self.status.ledger.balance().buffered())
            }
        }
    }
}
