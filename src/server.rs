//! The wiring: builds the stages of an event's way, starts their threads, and stops them in the order data flows.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded, select};

use crate::api::Api;
use crate::buffer::{self, Buffer};
use crate::clock::Clock;
use crate::health::{Database, Probe};
use crate::http::router::LABELS;
use crate::http::{self, Acceptor, Remote, Shared, engine_minihttp, listener, pin_to_core};
use crate::ingest;
use crate::lifecycle::{Lifecycle, Notice, Phase};
use crate::metrics::{HttpFigures, Ledger, Process, Sampler, WriterFigures};
use crate::query::readers::{self, Line, ReaderLimits};
use crate::settings::{HttpEngine, Settings};
use crate::status::Status;
use crate::storage::postgres::embedded::{Cluster, ClusterError, ClusterLimits};
use crate::storage::postgres::{Limits as StoreLimits, PostgresRepository, Target, TargetError};
use crate::storage::{Breaker, BreakerLimits, EventRepository, StoreError};
use crate::writer::{BatchLimits, Drain, Links, Writer};

/// How long acceptors may take to finish the requests they have begun, at most.
const ACCEPTORS_FINISH: Duration = Duration::from_secs(5);
/// How long a query may wait for a reader.
const QUERY_WAIT_MAX: Duration = Duration::from_secs(10);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Why the server ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("cannot use DATA_DIR {path}: {error}")]
    DataDir { path: PathBuf, error: io::Error },
    #[error("DATA_DIR {0} is in use by another aurore-events")]
    DataDirInUse(PathBuf),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot make a readiness loop: {0}")]
    Acceptor(io::Error),
    #[error("cannot handle signals: {0}")]
    Signals(String),
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    #[error("the database could not be brought up to date: {0}")]
    Migrate(#[from] StoreError),
    #[error("the thread {0} died: what it held can no longer be vouched for")]
    ThreadDied(String),
    #[error("stopped at once, as asked; {0} acknowledged events were not stored")]
    Interrupted(usize),
    #[error("the time to shut down is over; {0} acknowledged events were not stored")]
    Undrained(usize),
}

impl Failed {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // As for wrong settings, since that is what it is.
            Self::Target(_) => ExitCode::from(2),
            // EX_SOFTWARE of sysexits(3).
            Self::ThreadDied(_) => ExitCode::from(70),
            Self::DataDir { .. }
            | Self::DataDirInUse(_)
            | Self::Listen { .. }
            | Self::Thread(_)
            | Self::Acceptor(_)
            | Self::Signals(_)
            | Self::Cluster(_)
            | Self::Migrate(_)
            | Self::Interrupted(_)
            | Self::Undrained(_) => ExitCode::FAILURE,
        }
    }
}

fn stop(cluster: Option<Cluster>) {
    if let Some(Err(error)) = cluster.map(Cluster::stop) {
        log::error!("the private PostgreSQL cluster did not stop: {error}");
    }
}

/// `aurore-events serve`.
pub fn run(settings: &Settings, clock: &Clock) -> Result<(), Failed> {
    let _lock = lock_data_dir(&settings.data_dir)?;
    // Before the cluster is started, so that a second server fails at once and touches nothing.
    let address = settings.address();
    let listeners = listener::bind(address, settings.acceptors)
        .map_err(|error| Failed::Listen { address, error })?;
    let (lifecycle, notices) = Lifecycle::new();
    notice_signals(&lifecycle)?;
    let (repository, cluster) = open_database(settings, clock)?;
    let served = serve(settings, listeners, repository, &lifecycle, &notices, clock);
    stop(cluster);
    served
}

/// `aurore-events migrate`.
pub fn migrate(settings: &Settings, clock: &Clock) -> Result<(), Failed> {
    let _lock = if settings.database_url.is_none() { Some(lock_data_dir(&settings.data_dir)?) } else { None };
    let (repository, cluster) = open_database(settings, clock)?;
    let migrated = repository.prepare(clock.wall());
    drop(repository);
    stop(cluster);
    migrated?;
    log::info!("the database is up to date");
    Ok(())
}

/// Keeps two servers from sharing a directory. The lock ends with the process, however that ends.
fn lock_data_dir(path: &Path) -> Result<File, Failed> {
    let failed = |error| Failed::DataDir { path: path.to_owned(), error };
    std::fs::create_dir_all(path).map_err(failed)?;
    let lock = File::create(path.join("lock")).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Failed::DataDirInUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// SIGTERM and SIGINT ask the server to stop; asked again, it ends at once.
fn notice_signals(lifecycle: &Lifecycle) -> Result<(), Failed> {
    let failed = |error: &dyn std::error::Error| Failed::Signals(error.to_string());
    let stop = lifecycle.clone();
    ctrlc::set_handler(move || stop.stop()).map_err(|error| failed(&error))?;
    // ctrlc's feature for SIGTERM would take SIGHUP with it, which is not a reason to stop.
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM])
        .map_err(|error| failed(&error))?;
    let stop = lifecycle.clone();
    lifecycle
        .spawn("signals", move || {
            for _ in signals.forever() {
                stop.stop();
            }
        })
        .map_err(Failed::Thread)?;
    Ok(())
}

/// The database that the settings name, or a private cluster. Neither has to answer yet.
fn open_database(
    settings: &Settings,
    clock: &Clock,
) -> Result<(Arc<dyn EventRepository>, Option<Cluster>), Failed> {
    let (target, cluster) = match &settings.database_url {
        Some(url) => (Target::parse(url)?, None),
        None => {
            let cluster = Cluster::start(&settings.data_dir, ClusterLimits::default(), clock)?;
            (cluster.target(), Some(cluster))
        }
    };
    log::info!(embedded = cluster.is_some(); "storing into {}", target.describe());
    let limits = StoreLimits { connections_max: settings.db_pool_max, ..StoreLimits::default() };
    Ok((Arc::new(PostgresRepository::new(&target, limits)), cluster))
}

/// Serves until a notice says to stop. The listeners are bound; their count is that of the acceptors.
pub fn serve(
    settings: &Settings,
    listeners: Vec<TcpListener>,
    repository: Arc<dyn EventRepository>,
    lifecycle: &Lifecycle,
    notices: &Receiver<Notice>,
    clock: &Clock,
) -> Result<(), Failed> {
    let acceptors = listeners.len();
    let ledger = Arc::new(Ledger::new(acceptors));
    let limits = buffer::Limits {
        rows_max: settings.buffer_rows_max,
        bytes_max: settings.buffer_bytes_max,
        batch_rows_max: settings.batch_rows_max,
        batch_bytes_max: settings.batch_bytes_max,
    };
    let (buffer, parker) = Buffer::new(limits, acceptors, ledger.clone());
    let buffer = Arc::new(buffer);
    let breaker = Arc::new(Breaker::new(BreakerLimits {
        failure_threshold: settings.breaker_failures,
        success_threshold: settings.breaker_successes,
        timeout: settings.breaker_timeout,
    }));
    let status = Arc::new(Status {
        buffer: buffer.clone(),
        ledger: ledger.clone(),
        sampler: Arc::new(Sampler::default()),
        writer: Arc::new(WriterFigures::default()),
        http: Arc::new(HttpFigures::new(acceptors, &LABELS)),
        database: Arc::new(Database::default()),
        breaker: breaker.clone(),
        lifecycle: lifecycle.clone(),
        clock: clock.clone(),
    });

    let drain = Arc::new(Drain::default());
    let links = Links {
        buffer: buffer.clone(),
        repository: repository.clone(),
        breaker: breaker.clone(),
        ledger,
        figures: status.writer.clone(),
        drain: drain.clone(),
        lifecycle: lifecycle.clone(),
        clock: clock.clone(),
    };
    let batch = BatchLimits {
        rows_max: settings.batch_rows_max,
        bytes_max: settings.batch_bytes_max,
        linger: settings.linger,
    };
    let writer_ended = start_writer(Writer::new(links, parker, batch), lifecycle)?;
    let (stop_helpers, helpers_stop) = bounded::<()>(0);
    start_sampler(lifecycle, status.clone(), helpers_stop.clone())?;
    let probe = Probe {
        database: status.database.clone(),
        repository: repository.clone(),
        breaker: breaker.clone(),
        clock: clock.clone(),
    };
    spawn(lifecycle, "probe", move || probe.run(&helpers_stop))?;
    let line = start_readers(settings, repository, breaker, lifecycle, clock)?;

    let address = listeners[0].local_addr().map_err(|error| Failed::Listen { address: settings.address(), error })?;
    let limits = ingest_limits(settings);
    let api = {
        let (status, clock) = (status.clone(), clock.clone());
        move |acceptor: usize| Api::new(acceptor, limits, clock.rng(), status.clone(), line.clone())
    };
    let (remotes, acceptors_ended) = match settings.http_engine {
        HttpEngine::Guarded => start_acceptors(settings, listeners, &api, lifecycle, clock)?,
        HttpEngine::Minihttp => start_minihttp(settings, listeners, api)?,
    };
    log::info!(acceptors = acceptors, engine:? = settings.http_engine; "listening on http://{address}");

    // The two ways to end at once.
    let ended = |notice: Option<Notice>| match notice {
        Some(Notice::ThreadDied { name }) => Failed::ThreadDied(name),
        Some(Notice::Stop) | None => Failed::Interrupted(buffer.occupied().rows),
    };
    if let Ok(notice @ Notice::ThreadDied { .. }) = notices.recv() {
        remotes.iter().for_each(Remote::end);
        return Err(ended(Some(notice)));
    }
    log::info!(buffered = buffer.occupied().rows; "stopping: no more requests are accepted");
    lifecycle.enter(Phase::Draining);
    let deadline = clock.now().plus(settings.shutdown_timeout);
    remotes.iter().for_each(Remote::drain);
    let finish = settings.shutdown_timeout.min(ACCEPTORS_FINISH);
    select! {
        recv(acceptors_ended) -> _ => {}
        recv(notices) -> notice => return Err(ended(notice.ok())),
        default(finish) => remotes.iter().for_each(Remote::end),
    }
    buffer.close();
    drain.by(deadline);
    buffer.wake_writer();
    // A statement that is on its way when the deadline passes is given its answer.
    let patience = deadline.since(clock.now()) + ACCEPTORS_FINISH;
    select! {
        recv(writer_ended) -> _ => {}
        recv(notices) -> notice => return Err(ended(notice.ok())),
        default(patience) => {}
    }
    drop(stop_helpers);
    let balance = status.ledger.balance();
    log::info!(
        received = balance.received, stored = balance.stored, duplicate = balance.duplicate,
        dead = balance.dead, buffered = balance.buffered();
        "stopped"
    );
    match buffer.occupied().rows {
        0 => Ok(()),
        left => Err(Failed::Undrained(left)),
    }
}

/// Starts the writer. The channel is closed when it has ended.
fn start_writer(mut writer: Writer, lifecycle: &Lifecycle) -> Result<Receiver<()>, Failed> {
    let (running, ended) = bounded::<()>(0);
    spawn(lifecycle, "writer", move || {
        writer.run();
        drop(running);
    })?;
    Ok(ended)
}

/// Takes a sample of the figures every second, until the other end of `stop` is dropped.
fn start_sampler(lifecycle: &Lifecycle, status: Arc<Status>, stop: Receiver<()>) -> Result<(), Failed> {
    spawn(lifecycle, "sampler", move || {
        let process = Process::new();
        loop {
            status.sampler.sample(status.clock.now(), status.ledger.balance(), &process);
            if stop.recv_timeout(SAMPLE_EVERY) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    })
}

fn start_readers(
    settings: &Settings,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<Line, Failed> {
    let limits = ReaderLimits { jobs_max: settings.query_line_max, wait_max: QUERY_WAIT_MAX };
    let (line, readers) = readers::line(limits, repository, breaker, clock.clone());
    for nth in 0..settings.query_threads {
        let readers = readers.clone();
        spawn(lifecycle, &format!("reader-{nth}"), move || readers.run())?;
    }
    Ok(line)
}

/// Starts an acceptor a listener, each pinned to a core. The channel is closed when all have ended.
fn start_acceptors(
    settings: &Settings,
    listeners: Vec<TcpListener>,
    api: &impl Fn(usize) -> Api,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<(Vec<Remote>, Receiver<()>), Failed> {
    let shared = Arc::new(Shared::default());
    let (running, ended) = bounded::<()>(0);
    let mut remotes = Vec::with_capacity(listeners.len());
    for (nth, listener) in listeners.into_iter().enumerate() {
        let limits = http_limits(settings);
        let mut acceptor = Acceptor::new(listener, limits, clock.clone(), shared.clone(), |_| api(nth))
            .map_err(Failed::Acceptor)?;
        remotes.push(acceptor.remote());
        let running = running.clone();
        spawn(lifecycle, &format!("acceptor-{nth}"), move || {
            if !pin_to_core(nth) {
                log::debug!("acceptor {nth} could not be pinned to a core");
            }
            if let Err(error) = acceptor.run() {
                panic!("the readiness loop of acceptor {nth} failed: {error}");
            }
            drop(running);
        })?;
    }
    Ok((remotes, ended))
}

/// Starts the engine for trusted networks. It cannot be drained: the buffer, once closed, refuses in its place.
fn start_minihttp(
    settings: &Settings,
    listeners: Vec<TcpListener>,
    api: impl Fn(usize) -> Api + Send + 'static,
) -> Result<(Vec<Remote>, Receiver<()>), Failed> {
    let failed = |error| Failed::Listen { address: settings.address(), error };
    let address = listeners[0].local_addr().map_err(failed)?;
    let acceptors = listeners.len();
    // The library binds for itself.
    drop(listeners);
    let connections = AtomicUsize::new(0);
    let make = move || api(connections.fetch_add(1, Ordering::Relaxed) % acceptors);
    engine_minihttp::start(address, acceptors, http_limits(settings), make).map_err(failed)?;
    log::warn!("HTTP_ENGINE=minihttp is for trusted networks only: it has no timeouts and no limits on connections");
    let (_, ended) = bounded(0);
    Ok((Vec::new(), ended))
}

fn ingest_limits(settings: &Settings) -> ingest::Limits {
    ingest::Limits {
        clock_skew: settings.clock_skew_max,
        retention: Duration::from_hours(24 * u64::from(settings.retention_days)),
        rows_per_block_max: u32::try_from(settings.batch_rows_max).unwrap_or(u32::MAX),
    }
}

fn http_limits(settings: &Settings) -> http::Limits {
    http::Limits {
        body_bytes_max: settings.body_bytes_max,
        connections_max: settings.connections_max,
        header_timeout: settings.header_timeout,
        body_timeout: settings.body_timeout,
        idle_timeout: settings.idle_timeout,
        slow_reader_timeout: settings.slow_reader_timeout,
        ..http::Limits::default()
    }
}

fn spawn(lifecycle: &Lifecycle, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Failed> {
    // The lifecycle tells when it dies; nobody joins it.
    lifecycle.spawn(name, body).map(drop).map_err(Failed::Thread)
}
