//! The wiring: builds the stages of an event's way, starts their threads, and stops them in the order data flows.

mod failed;
mod stages;

use std::fs::{File, TryLockError};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvError, RecvTimeoutError, bounded, select};
use signal_hook::consts::{SIGHUP, SIGTERM, SIGUSR1, SIGUSR2};

pub use failed::Failed;
pub use stages::policy;

use crate::access::{Gate, Policy};
use crate::api::Api;
use crate::api::router::LABELS;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::commands::counts::CountsTask;
use crate::commands::dead::DeadTask;
use crate::gateway::compare::CompareTask;
use crate::gateway::pages::Pages;
use crate::health::Database;
use crate::health::status::Status;
use crate::http::tls::Identity;
use crate::http::{Remote, Shared, listener};
use crate::journal::disk::{Directory, Disk};
use crate::journal::{self, Checkpoint, Found, Journal, Level, Lookup, Recovery, StartFailed, Syncer};
use crate::lifecycle::{Lifecycle, Notice, Phase};
use crate::logging;
use crate::metrics::history::{History, table};
use crate::metrics::{Business, DiskRoom, HttpFigures, Ledger, Sampler, WriterFigures};
use crate::settings::{HttpEngine, Settings};
use crate::storage::postgres::embedded::{Cluster, ClusterError, ClusterLimits, Keeper};
use crate::storage::postgres::{Limits as StoreLimits, PostgresRepository, Target};
use crate::storage::{Breaker, BreakerLimits, EventRepository};
use crate::writer::{BatchLimits, Drain, Links, Writer};

/// How long acceptors may take to finish the requests they have begun, at most.
const ACCEPTORS_FINISH: Duration = Duration::from_secs(5);
/// How long the journal may take to write and sync what it has.
const JOURNAL_FINISHES: Duration = Duration::from_secs(5);
/// The journal's directory within `DATA_DIR`.
const JOURNAL: &str = "journal";

fn stop(cluster: Option<Cluster>) {
    complain(cluster.map(Cluster::stop));
}

fn complain(stopped: Option<Result<(), ClusterError>>) {
    if let Some(Err(error)) = stopped {
        log::error!("the private PostgreSQL cluster did not stop: {error}");
    }
}

/// `aurore-events serve`.
pub fn run(settings: &Settings, clock: &Clock) -> Result<(), Failed> {
    let (lifecycle, notices) = Lifecycle::new();
    // A file that cannot be used ends the start before anything is begun.
    let policy = policy(settings, &lifecycle)?;
    let identity = stages::identity(settings, &lifecycle)?;
    let _lock = lock_data_dir(&settings.data_dir)?;
    // Before the cluster is started, so that a second server fails at once and touches nothing.
    let address = settings.address();
    let listeners =
        listener::bind(address, settings.acceptors).map_err(|error| Failed::Listen { address, error })?;
    notice_signals(&lifecycle)?;
    let journal = open_journal(&settings.data_dir)?;
    let (repository, cluster) = open_database(settings, clock)?;
    let cluster_restarts = Arc::new(AtomicU64::new(0));
    let keep = |cluster| Keeper::start(cluster, cluster_restarts.clone(), &lifecycle, clock);
    let keeper = cluster.map(keep).transpose().map_err(Failed::Thread)?;
    let outside = Outside { listeners, policy, identity, repository, journal, cluster_restarts };
    let served = serve(settings, outside, &lifecycle, &notices, clock);
    complain(keeper.map(Keeper::stop));
    served
}

/// `aurore-events migrate`.
pub fn migrate(settings: &Settings, clock: &Clock) -> Result<(), Failed> {
    let _lock = if settings.database_url.is_none() { Some(lock_data_dir(&settings.data_dir)?) } else { None };
    let (repository, cluster) = open_database(settings, clock)?;
    let migrated = repository.prepare(clock.wall()).and_then(|()| repository.tidy());
    drop(repository);
    stop(cluster);
    migrated?;
    log::info!("the database is up to date");
    Ok(())
}

/// `aurore-events history`: the table. Only reads, so a server may be running.
pub fn history(settings: &Settings) -> Result<String, Failed> {
    let failed = |error| Failed::DataDir { path: settings.data_dir.clone(), error };
    let history = History::new(&settings.data_dir, settings.history_bytes_max);
    let (entries, unreadable) = history.read().map_err(failed)?;
    if unreadable > 0 {
        log::warn!(lines = unreadable; "some lines of the history cannot be read");
    }
    Ok(table(&entries))
}

/// `aurore-events journal inspect`.
pub fn inspect_journal(settings: &Settings) -> Result<(), Failed> {
    let path = settings.data_dir.join(JOURNAL);
    let failed = |error| Failed::from(StartFailed::Io { path: path.clone(), error });
    let disk = Directory::open_existing(path.clone()).map_err(failed)?;
    let whole = journal::inspect::inspect(&disk, &mut std::io::stdout().lock()).map_err(failed)?;
    if whole { Ok(()) } else { Err(Failed::JournalDamaged) }
}

/// The journal's directory, and what an earlier process left in it.
pub fn open_journal(data_dir: &Path) -> Result<(Arc<dyn Disk>, Vec<Found>), Failed> {
    let path = data_dir.join(JOURNAL);
    let failed = |error| Failed::from(StartFailed::Io { path: path.clone(), error });
    let disk = Directory::open(path.clone()).map_err(failed)?;
    let found = journal::adopt(&disk).map_err(failed)??;
    say_what_is_found(&found);
    Ok((Arc::new(disk), found))
}

/// `aurore-events dead`.
pub fn dead(settings: &Settings, clock: &Clock, task: &DeadTask) -> Result<(), Failed> {
    let database = CommandDatabase::open(settings, clock)?;
    let done = task.run(&database.repository, clock, &mut std::io::stdout().lock());
    database.close();
    done.map_err(|error| Failed::Dead(Box::new(error)))
}

/// `aurore-events counts`.
pub fn counts(settings: &Settings, clock: &Clock, task: CountsTask) -> Result<(), Failed> {
    let database = CommandDatabase::open(settings, clock)?;
    let done = task.run(&database.repository, &mut std::io::stdout().lock());
    database.close();
    done.map_err(|error| Failed::Counts(Box::new(error)))
}

/// `aurore-events retention run`.
pub fn retention(settings: &Settings, clock: &Clock, dry_run: bool) -> Result<(), Failed> {
    let database = CommandDatabase::open(settings, clock)?;
    database.repository.prepare(clock.wall())?;
    let retention =
        stages::retention(settings, database.repository.clone(), breaker(settings), Arc::default(), clock);
    let done = if dry_run {
        retention.preview().map(|preview| {
            #[expect(clippy::print_stdout, reason = "the command's answer")]
            {
                println!("{preview}");
            }
        })
    } else {
        // Nobody tells it to stop: a signal ends it, and the next sweep goes on.
        let (_stop, stopped) = bounded::<()>(0);
        retention.sweep(&stopped).map(drop)
    };
    drop(retention);
    database.close();
    done.map_err(|error| Failed::Command(Box::new(error)))
}

/// The database for a command. A cluster of a running server is used and left alone; one that nobody runs is started
/// for as long as the command takes.
struct CommandDatabase {
    repository: Arc<PostgresRepository>,
    cluster: Option<Cluster>,
    _lock: Option<File>,
}

impl CommandDatabase {
    fn open(settings: &Settings, clock: &Clock) -> Result<Self, Failed> {
        let own_cluster = settings.data_dir.join("postgres");
        let (lock, target, cluster) = match &settings.database_url {
            Some(url) => (None, Target::parse(url)?, None),
            None if !own_cluster.is_dir() => return Err(Failed::NoCluster(settings.data_dir.clone())),
            None => match lock_data_dir(&settings.data_dir) {
                Ok(lock) => {
                    let cluster = Cluster::start(&settings.data_dir, ClusterLimits::default(), clock)?;
                    (Some(lock), cluster.target(), Some(cluster))
                }
                Err(Failed::DataDirInUse(_)) => {
                    (None, Cluster::of_a_running_server(&settings.data_dir)?, None)
                }
                Err(error) => return Err(error),
            },
        };
        let limits = StoreLimits { connections_max: 2, ..StoreLimits::default() };
        let repository = Arc::new(PostgresRepository::new(&target, limits));
        Ok(Self { repository, cluster, _lock: lock })
    }

    fn close(self) {
        drop(self.repository);
        stop(self.cluster);
    }
}

/// `aurore-events gateway compare`.
pub fn compare(task: &CompareTask) -> Result<(), Failed> {
    Ok(task.run(&mut std::io::stdout().lock())?)
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

/// SIGTERM and SIGINT ask the server to stop; asked again, it ends at once. SIGHUP has files read again; SIGUSR1 and
/// SIGUSR2 log more and less.
fn notice_signals(lifecycle: &Lifecycle) -> Result<(), Failed> {
    let failed = |error: &dyn std::error::Error| Failed::Signals(error.to_string());
    let stop = lifecycle.clone();
    ctrlc::set_handler(move || stop.stop()).map_err(|error| failed(&error))?;
    // ctrlc's feature for SIGTERM would take SIGHUP with it, which is not a reason to stop.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])
        .map_err(|error| failed(&error))?;
    let told = lifecycle.clone();
    lifecycle
        .spawn("signals", move || {
            for signal in signals.forever() {
                match signal {
                    SIGHUP => told.reload(),
                    SIGUSR1 => logging::shift(true),
                    SIGUSR2 => logging::shift(false),
                    _ => told.stop(),
                }
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
    let (target, cluster) = if let Some(url) = &settings.database_url {
        (Target::parse(url)?, None)
    } else {
        let cluster = Cluster::start(&settings.data_dir, ClusterLimits::default(), clock)?;
        (cluster.target(), Some(cluster))
    };
    log::info!(embedded = cluster.is_some(); "storing into {}", target.describe());
    let limits = StoreLimits { connections_max: settings.db_pool_max, ..StoreLimits::default() };
    Ok((Arc::new(PostgresRepository::new(&target, limits)), cluster))
}

fn breaker(settings: &Settings) -> Arc<Breaker> {
    Arc::new(Breaker::new(BreakerLimits {
        failure_threshold: settings.breaker_failures,
        success_threshold: settings.breaker_successes,
        timeout: settings.breaker_timeout,
    }))
}

/// What the stages have to do with outside the process.
#[derive(Debug)]
pub struct Outside {
    /// Bound; their count is that of the acceptors.
    pub listeners: Vec<TcpListener>,
    /// Who is let in.
    pub policy: Arc<Policy>,
    /// The certificate, for TLS.
    pub identity: Option<Arc<Identity>>,
    pub repository: Arc<dyn EventRepository>,
    /// The journal's directory, and the segments that an earlier process left there.
    pub journal: (Arc<dyn Disk>, Vec<Found>),
    /// How often a private cluster was started again.
    pub cluster_restarts: Arc<AtomicU64>,
}

/// The ledger's first line. Its last is said at the end.
fn say_what_is_found(found: &[Found]) {
    let bytes: u64 = found.iter().map(|found| found.bytes).sum();
    log::info!(
        received = 0, stored = 0, duplicate = 0, dead = 0, buffered = 0, spilled = 0,
        backlog_segments = found.len(), backlog_bytes = bytes;
        "the ledger begins; what the journal holds is received again as it is read"
    );
}

/// Serves until a notice says to stop.
#[expect(clippy::too_many_lines, reason = "the wiring is one list, and reads best as one")]
pub fn serve(
    settings: &Settings,
    outside: Outside,
    lifecycle: &Lifecycle,
    notices: &Receiver<Notice>,
    clock: &Clock,
) -> Result<(), Failed> {
    let Outside { listeners, policy, identity, repository, journal, cluster_restarts } = outside;
    let (disk, found) = journal;
    let acceptors = listeners.len();
    let ledger = Arc::new(Ledger::new(acceptors));
    let (buffer, parker) = Buffer::new(stages::buffer_limits(settings), acceptors, ledger.clone());
    let buffer = Arc::new(buffer);
    let (journal, parkers) = Journal::new(acceptors);
    let journal = Arc::new(journal);
    let breaker = breaker(settings);
    let (gateway, gateway_parts) = stages::gateway(settings, clock)?;
    let status = Arc::new(Status {
        gateway: gateway.clone(),
        buffer: buffer.clone(),
        journal: journal.clone(),
        ledger: ledger.clone(),
        sampler: Arc::new(Sampler::default()),
        writer: Arc::new(WriterFigures::default()),
        http: Arc::new(HttpFigures::new(acceptors, &LABELS)),
        retention: Arc::default(),
        cluster_restarts,
        connections: Arc::new(Shared::default()),
        business: Arc::new(Business::default()),
        disk: DiskRoom::default(),
        database: Arc::new(Database::default()),
        breaker: breaker.clone(),
        lifecycle: lifecycle.clone(),
        clock: clock.clone(),
    });

    let drain = Arc::new(Drain::default());
    let links = Links {
        buffer: buffer.clone(),
        journal: journal.clone(),
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
    let limits = journal::Limits {
        write_every: settings.journal_write,
        sync_every: settings.journal_sync,
        segment_bytes_max: settings.journal_segment_bytes,
    };
    let kept = (journal.clone(), buffer.clone());
    let checkpoint = Checkpoint::new(kept, disk.clone(), limits, clock.clone(), parkers.checkpoint, &found);
    let syncer = Syncer::new(journal.clone(), disk.clone());
    let lookup = Lookup { journal: journal.clone(), disk: disk.clone(), buffer: buffer.clone() };
    let recovery = Recovery::new(
        journal.clone(),
        disk,
        buffer,
        lifecycle.clone(),
        clock.clone(),
        parkers.recovery,
        found,
    );
    let journal_ended = stages::start_checkpoint(checkpoint, syncer, lifecycle)?;
    lifecycle.spawn_task("recovery", move || recovery.run()).map_err(Failed::Thread)?;
    let writer_ended = stages::start_writer(Writer::new(links, parker, batch), lifecycle)?;
    let stop_helpers = stages::start_helpers(settings, &status, &repository)?;
    let (scrapes, gateway_running) =
        stages::start_gateway(settings, &gateway, gateway_parts, lifecycle, clock)?;
    let queries = stages::start_readers(settings, repository, breaker, lookup, lifecycle, clock)?;

    let address =
        listeners[0].local_addr().map_err(|error| Failed::Listen { address: settings.address(), error })?;
    let limits = stages::ingest_limits(settings);
    let api = {
        let status = status.clone();
        let durability = settings.durability;
        let (started_at, flags) = (clock.wall(), settings.shown.clone().into());
        move |acceptor: usize| {
            let gate = Gate::new(policy.clone());
            let pages =
                Pages::new(gateway.clone(), scrapes.clone(), durability, started_at, Arc::clone(&flags));
            Api::new(acceptor, gate, limits, durability, status.clone(), queries.clone(), pages)
        }
    };
    let (remotes, acceptors_ended) = match settings.http_engine {
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

    let running = Running {
        status,
        drain,
        remotes,
        acceptors_ended,
        writer_ended,
        journal_ended,
        gateway: gateway_running,
        notices,
    };
    let stopped = running.until_stopped(settings.shutdown_timeout);
    drop(stop_helpers);
    stopped
}

/// The stages at work, and what tells of their end.
struct Running<'a> {
    status: Arc<Status>,
    drain: Arc<Drain>,
    remotes: Vec<Remote>,
    acceptors_ended: Receiver<()>,
    writer_ended: Receiver<()>,
    journal_ended: Receiver<()>,
    gateway: stages::GatewayRunning,
    notices: &'a Receiver<Notice>,
}

impl Running<'_> {
    /// Waits for a notice, and stops the stages in the order data flows: no more requests, then no more events, then
    /// the writer.
    fn until_stopped(self, timeout: Duration) -> Result<(), Failed> {
        let (buffer, clock) = (&self.status.buffer, &self.status.clock);
        if let Ok(notice @ Notice::ThreadDied { .. }) = self.notices.recv() {
            self.remotes.iter().for_each(Remote::end);
            return Err(self.at_once(Ok(notice)));
        }
        log::info!(buffered = buffer.occupied().rows; "stopping: no more requests are accepted");
        self.status.lifecycle.enter(Phase::Draining);
        let deadline = clock.now().plus(timeout);
        self.remotes.iter().for_each(Remote::drain);
        select! {
            recv(self.acceptors_ended) -> _ => {}
            recv(self.notices) -> notice => return Err(self.at_once(notice)),
            default(timeout.min(ACCEPTORS_FINISH)) => self.remotes.iter().for_each(Remote::end),
        }
        // No more pushes either: what was pushed is written while the writer drains.
        self.status.gateway.finish();
        buffer.close();
        self.drain.by(deadline);
        buffer.wake_writer();
        // A statement that is on its way when the deadline passes is given its answer.
        let patience = deadline.since(clock.now()) + ACCEPTORS_FINISH;
        select! {
            recv(self.writer_ended) -> _ => {}
            recv(self.notices) -> notice => return Err(self.at_once(notice)),
            default(patience) => {}
        }
        let left = self.status.ledger.balance().buffered();
        let kept = self.finish_journal();
        self.finish_gateway();
        let balance = self.status.ledger.balance();
        log::info!(
            received = balance.received, stored = balance.stored, duplicate = balance.duplicate,
            dead = balance.dead, lost = balance.lost, buffered = balance.buffered(), spilled = buffer.spill().events();
            "stopped; the ledger ends"
        );
        match (left, kept) {
            (0, _) => Ok(()),
            (left, true) => {
                log::warn!(events = left; "{left} acknowledged events wait in the journal for the next start");
                Ok(())
            }
            (left, false) => Err(Failed::Undrained(left)),
        }
    }

    /// Has the journal write and sync what is not stored. Tells whether it has.
    fn finish_journal(&self) -> bool {
        let journal = &self.status.journal;
        journal.finish();
        let ended = self.journal_ended.recv_timeout(JOURNAL_FINISHES) == Err(RecvTimeoutError::Disconnected);
        ended && journal.promises(Level::Synced)
    }

    /// Has what was pushed written and synced.
    fn finish_gateway(&self) {
        self.status.gateway.finish();
        let ended = self.gateway.ended.recv_timeout(JOURNAL_FINISHES) == Err(RecvTimeoutError::Disconnected);
        if !(ended && self.status.gateway.promises()) {
            log::error!("what was pushed last could not be written to disk");
        }
    }

    /// The two ways to end without a drain: a thread died, or a second signal came.
    fn at_once(&self, notice: Result<Notice, RecvError>) -> Failed {
        match notice {
            Ok(Notice::ThreadDied { name }) => Failed::ThreadDied(name),
            Ok(Notice::Stop) | Err(RecvError) => {
                self.finish_journal();
                self.finish_gateway();
                Failed::Interrupted(self.status.ledger.balance().buffered())
            }
        }
    }
}
