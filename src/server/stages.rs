//! Starts the threads of each stage with the limits of the settings.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::sync::Parker;

use super::RunServerError;
use super::notifier::Notifier;
use crate::access::{Limiter, Policy, TokenFile, limiter};
use crate::api::ApiHandler;
use crate::buffer;
use crate::clock::Clock;
use crate::failover::FailoverReplay;
use crate::gateway::compare::Comparer;
use crate::gateway::forward::{ForwardQueue, Forwarder};
use crate::gateway::handlers::GatewayHandlers;
use crate::gateway::idempotency::{IdempotencyKeys, KeyLimits};
use crate::gateway::push_thread::PushThread;
use crate::gateway::state::{self, GatewayState};
use crate::gateway::wal::{WalOptions, WalWriter};
use crate::gateway::{self, Gateway, push_thread, scrape};
use crate::health::status::Status;
use crate::health::{DatabaseProbe, StandbyProbe};
use crate::http::tls::TlsIdentity;
use crate::http::{
    self, Acceptor, AcceptorHandle, ConnectionStats, DecompressLimits, Decompressor, engine_minihttp,
    pin_to_core,
};
use crate::ingest;
use crate::journal::filesystem::{Filesystem, OsDirectory};
use crate::journal::{FailoverEvent, JournalThread, JournalWriter, Lookup};
use crate::lifecycle::Lifecycle;
use crate::metrics::{BusinessCollector, History, Process, RetentionMetrics};
use crate::partitions::PartitionMaintenance;
use crate::query::tail::TailLimits;
use crate::query::{self, QueryDatabase, QueryService, ReaderLimits};
use crate::retention::RetentionSweeper;
use crate::service_manager::ServiceManager;
use crate::settings::{HttpEngine, Settings};
use crate::storage::{Breaker, EventRepository};
use crate::writer::{StoreThread, Writer};

/// Maximum time of a query in the queue.
const QUERY_WAIT_MAX: Duration = Duration::from_secs(10);
/// Threads stats by all exports. Two, so that a slow search does not block all others.
const EXPORTER_THREADS: usize = 2;
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the writer. The returned channel is closed when the writer has ended.
pub(super) fn start_writer(
    mut writer: Writer,
    lifecycle: &Lifecycle,
) -> Result<Receiver<()>, RunServerError> {
    let (running, ended) = bounded::<()>(0);
    spawn(lifecycle, "writer", move || {
        writer.run();
        drop(running);
    })?;
    Ok(ended)
}

/// Starts `count` store threads, which end after the writer.
pub(super) fn start_store_threads(
    thread: &StoreThread,
    count: u32,
    lifecycle: &Lifecycle,
) -> Result<(), RunServerError> {
    for nth in 1..=count {
        let thread = thread.clone();
        spawn(lifecycle, &format!("store-{nth}"), move || thread.run())?;
    }
    Ok(())
}

/// Starts the journal thread and its sync thread. The returned channel is closed when the journal
/// thread has ended.
pub(super) fn start_journal(
    writer: JournalWriter,
    parker: Parker,
    lifecycle: &Lifecycle,
) -> Result<Receiver<()>, RunServerError> {
    let (running, ended) = bounded::<()>(0);
    let (journal_thread, syncer) = JournalThread::new(writer, parker);
    let journal_thread = journal_thread.with_heartbeat(lifecycle.heartbeat("journal"));
    spawn(lifecycle, "sync", move || syncer.run())?;
    spawn(lifecycle, "journal", move || {
        journal_thread.run();
        drop(running);
    })?;
    Ok(ended)
}

/// Starts the background threads: sampler, history, retention, partitions, business metrics, health
/// probes. They end when the returned sender is dropped.
pub(super) fn start_helpers(
    settings: &Settings,
    status: &Arc<Status>,
    repository: &Arc<dyn EventRepository>,
    standby: Option<&Arc<dyn EventRepository>>,
    (disk, failovers): (Arc<dyn Filesystem>, Receiver<FailoverEvent>),
) -> Result<Sender<()>, RunServerError> {
    let (stop, stopped) = bounded::<()>(0);
    let lifecycle = &status.lifecycle;
    start_sampler(settings, lifecycle, status.clone(), stopped.clone())?;
    start_history(settings, lifecycle, status.clone(), stopped.clone())?;
    let collector = BusinessCollector {
        business: status.business.clone(),
        repository: repository.clone(),
        breaker: status.breaker.clone(),
        lifecycle: lifecycle.clone(),
        clock: status.clock.clone(),
    };
    let (breaker, metrics) = (status.breaker.clone(), status.retention.clone());
    let retention = retention(settings, repository.clone(), breaker, metrics, &status.clock);
    let sweeper_stop = stopped.clone();
    spawn(lifecycle, "retention", move || retention.run(&sweeper_stop))?;
    let mut partitions =
        PartitionMaintenance::new(repository.clone(), status.partitions.clone(), status.clock.clone());
    let (partitions_stop, phase) = (stopped.clone(), lifecycle.clone());
    spawn(lifecycle, "partitions", move || partitions.run(&phase, &partitions_stop))?;
    let collector_stop = stopped.clone();
    spawn(lifecycle, "business", move || collector.run(&collector_stop))?;
    let probe = DatabaseProbe {
        state: status.database.clone(),
        repository: repository.clone(),
        breaker: status.breaker.clone(),
        journal: status.journal.clone(),
        clock: status.clock.clone(),
    };
    if let (Some(state), Some(standby)) = (&status.standby, standby) {
        let databases = (repository.clone(), standby.clone());
        let mut probe =
            StandbyProbe::new(state.clone(), databases, status.breaker.clone(), status.clock.clone());
        let standby_stop = stopped.clone();
        spawn(lifecycle, "standby-probe", move || probe.run(&standby_stop))?;
    }
    spawn(lifecycle, "probe", move || probe.run(&stopped))?;
    let mut replay = FailoverReplay::new(
        (status.journal.clone(), disk),
        repository.clone(),
        status.failover.clone(),
        lifecycle.clone(),
        status.clock.clone(),
    );
    spawn(lifecycle, "failover", move || replay.run(&failovers))?;
    Ok(stop)
}

/// The gateway's directory within `DATA_DIR`.
const GATEWAY_DIR: &str = "gateway";
/// Idempotency keys that are kept, about 150 bytes each, and for how long: longer than clients
/// retry.
const IDEMPOTENCY_LIMITS: KeyLimits = KeyLimits { count_max: 100_000, age_max: Duration::from_hours(1) };
/// A log shorter than this replays fast, so it is not worth a snapshot.
const SNAPSHOT_BYTES_MIN: u64 = 8 << 20;

/// State of the gateway between recovery and the start of its threads.
pub(super) struct GatewayParts {
    disk: Arc<dyn Filesystem>,
    parker: Parker,
    found: gateway::recovery::GatewayRecovery,
    queue: Option<Arc<ForwardQueue>>,
}

/// The running gateway. `ended` is closed when the log thread has ended; the other threads end when
/// this value is dropped.
pub(super) struct GatewayThreads {
    pub(super) ended: Receiver<()>,
    _stop: Sender<()>,
}

/// Recovers the gateway's state from its log.
pub(super) fn gateway(
    settings: &Settings,
    clock: &Clock,
) -> Result<(Arc<Gateway>, GatewayParts), RunServerError> {
    let path = settings.data_dir.join(GATEWAY_DIR);
    let disk = OsDirectory::open(path.clone()).map_err(|error| RunServerError::DataDir { path, error })?;
    let mut state = GatewayState::new(IdempotencyKeys::new(IDEMPOTENCY_LIMITS));
    let found = gateway::recovery::recover(&disk, &mut state, clock.now())?;
    let limits = &settings.gateway;
    state.set_limits(state::GatewayLimits {
        series_max: limits.series_max,
        bytes_max: limits.bytes_max,
        group_families_max: gateway::validate::FAMILIES_MAX,
    });
    if found.records > 0 {
        log::info!(series = state.samples(), groups = state.groups(); "the gateway's state was recovered");
    }
    let queue = limits.pushgateway_url.as_ref().map(|_| Arc::new(ForwardQueue::default()));
    let (gateway, parker) = Gateway::new(state, limits.lifetimes, queue.clone(), clock.clone());
    gateway.metrics.corrupt_ranges.store(found.damage.corrupt_ranges, Ordering::Relaxed);
    gateway.metrics.torn_bytes.store(found.damage.torn_bytes, Ordering::Relaxed);
    Ok((gateway, GatewayParts { disk: Arc::new(disk), parker, found, queue }))
}

/// Starts the gateway's threads.
pub(super) fn start_gateway(
    settings: &Settings,
    gateway: &Arc<Gateway>,
    parts: GatewayParts,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<(scrape::ScrapeQueue, GatewayThreads), RunServerError> {
    let limits = WalOptions {
        write_interval: settings.journal_write,
        sync_interval: settings.journal_sync,
        snapshot_bytes_min: SNAPSHOT_BYTES_MIN,
    };
    let GatewayParts { disk, parker, found, queue } = parts;
    let mut log = WalWriter::new(gateway.clone(), disk, limits, clock.clone(), parker, &found);
    let (running, ended) = bounded::<()>(0);
    spawn(lifecycle, "gateway-log", move || {
        log.run();
        drop(running);
    })?;
    let (scrape_queue, scraper) = scrape::queue(gateway.clone(), settings.http_engine == HttpEngine::Guarded);
    spawn(lifecycle, "gateway-scrape", move || scraper.run())?;
    let (stop, stopped) = bounded::<()>(0);
    let (interval, expiring) = (gateway.expire_interval(), gateway.clone());
    let expire_stopped = stopped.clone();
    spawn(lifecycle, "gateway-expire", move || {
        while expire_stopped.recv_timeout(interval) != Err(RecvTimeoutError::Disconnected) {
            expiring.expire();
        }
    })?;
    if let (Some(queue), Some(url)) = (queue, settings.gateway.pushgateway_url.clone()) {
        let comparer = Comparer { gateway: gateway.clone(), url: url.clone() };
        let forwarder = Forwarder { gateway: gateway.clone(), queue, url, clock: clock.clone() };
        let forwarder_stop = stopped.clone();
        spawn(lifecycle, "gateway-forward", move || forwarder.run(&forwarder_stop))?;
        spawn(lifecycle, "gateway-compare", move || comparer.run(&stopped))?;
    }
    Ok((scrape_queue, GatewayThreads { ended, _stop: stop }))
}

/// Starts the push thread. Returns the handlers of an acceptor.
pub(super) fn start_push_thread(
    handlers: GatewayHandlers,
    decompressed_bytes_max: usize,
    lifecycle: &Lifecycle,
) -> Result<GatewayHandlers, RunServerError> {
    let (queue, jobs) = push_thread::queue();
    let acceptor_handlers = handlers.with_queue(queue);
    let decompressor = Decompressor::new(DecompressLimits::new(decompressed_bytes_max));
    let mut thread = PushThread::new(jobs, handlers, decompressor);
    spawn(lifecycle, "gateway-push", move || thread.run())?;
    Ok(acceptor_handlers)
}

/// Starts the sampler, which samples the metrics every second until the sender of `stop` is
/// dropped.
fn start_sampler(
    settings: &Settings,
    lifecycle: &Lifecycle,
    status: Arc<Status>,
    stop: Receiver<()>,
) -> Result<(), RunServerError> {
    let data_dir = settings.data_dir.clone();
    spawn(lifecycle, "sampler", move || {
        let process = Process::new();
        loop {
            status.disk.refresh(&data_dir);
            status.sample(&process);
            if stop.recv_timeout(SAMPLE_INTERVAL) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    })
}

pub(super) fn retention(
    settings: &Settings,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    metrics: Arc<RetentionMetrics>,
    clock: &Clock,
) -> RetentionSweeper {
    RetentionSweeper {
        repository,
        breaker,
        metrics,
        clock: clock.clone(),
        schedule: settings.retention_schedule.clone(),
        days: settings.retention_days,
    }
}

/// Starts the history thread, which appends a line of metrics per interval until the sender of
/// `stop` is dropped.
fn start_history(
    settings: &Settings,
    lifecycle: &Lifecycle,
    status: Arc<Status>,
    stop: Receiver<()>,
) -> Result<(), RunServerError> {
    let interval = settings.history_interval;
    if interval.is_zero() {
        return Ok(());
    }
    let history = History::new(&settings.data_dir, settings.history_bytes_max);
    spawn(lifecycle, "history", move || {
        let mut failing = false;
        while stop.recv_timeout(interval) != Err(RecvTimeoutError::Disconnected) {
            let written = history.append(&status.history_entry());
            // Log the first of consecutive failures only.
            if let (Err(error), false) = (&written, failing) {
                log::warn!("writing the metrics history failed: {error}");
            }
            failing = written.is_err();
        }
    })
}

/// The name of this server beside others on the same database: host and port.
fn instance_name(settings: &Settings) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => settings.address().ip().to_string(),
        host => host.to_owned(),
    };
    format!("{host}:{}", settings.address().port())
}

pub(super) fn start_readers(
    settings: &Settings,
    database: QueryDatabase,
    lookup: Lookup,
    status: &Status,
) -> Result<QueryService, RunServerError> {
    let lifecycle = &status.lifecycle;
    let limits = ReaderLimits {
        jobs_max: settings.query_queue_max,
        wait_max: QUERY_WAIT_MAX,
        response_bytes_max: settings.query_response_bytes_max,
    };
    let (queue, readers) = query::query_queue(limits, database.clone());
    let readers = readers.with_lookup(Arc::new(lookup));
    for nth in 0..settings.query_threads {
        let readers = readers.clone();
        spawn(lifecycle, &format!("reader-{nth}"), move || readers.run())?;
    }
    let (exports, exporters) = query::export::exports(settings.exports_max, database);
    for nth in 0..settings.exports_max.min(EXPORTER_THREADS) {
        let exporters = exporters.clone();
        spawn(lifecycle, &format!("exporter-{nth}"), move || exporters.run())?;
    }
    let limits = TailLimits {
        tails_max: settings.tails_max,
        queued_bytes_max: TailLimits::queued_bytes_max(settings.buffer_bytes_max),
        heartbeat: TailLimits::heartbeat(settings.edge.response_timeout),
    };
    let (tails, thread) = query::tail::tails(
        limits,
        &instance_name(settings),
        status.tails.clone(),
        lifecycle.clone(),
        status.clock.clone(),
    );
    spawn(lifecycle, "tail", move || thread.run())?;
    Ok(QueryService { queue, exports, tails })
}

/// Starts an acceptor for each entry of `listeners`, each pinned to a core. The returned channel is closed when all
/// have ended.
pub(super) fn start_acceptors(
    settings: &Settings,
    listeners: Vec<Vec<TcpListener>>,
    stats: &Arc<ConnectionStats>,
    identity: Option<&Arc<TlsIdentity>>,
    api: &impl Fn(usize) -> ApiHandler,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<(Vec<AcceptorHandle>, Receiver<()>), RunServerError> {
    let (running, ended) = bounded::<()>(0);
    let mut handles = Vec::with_capacity(listeners.len());
    for (nth, listeners) in listeners.into_iter().enumerate() {
        let limits = http_limits(settings);
        let mut acceptor = Acceptor::new(listeners, limits, clock.clone(), stats.clone(), |_| api(nth))
            .map_err(RunServerError::Acceptor)?
            .with_tls(identity.cloned())
            .with_heartbeat(lifecycle.heartbeat(&format!("acceptor-{nth}")));
        handles.push(acceptor.handle());
        let running = running.clone();
        spawn(lifecycle, &format!("acceptor-{nth}"), move || {
            if !pin_to_core(nth) {
                log::debug!("acceptor {nth} could not be pinned to a core");
            }
            if let Err(error) = acceptor.run() {
                panic!("the event loop of acceptor {nth} failed: {error}");
            }
            drop(running);
        })?;
    }
    Ok((handles, ended))
}

/// Starts the minihttp engine, for trusted networks. The engine cannot be drained; at shutdown the
/// closed buffer rejects its requests.
pub(super) fn start_minihttp(
    settings: &Settings,
    listeners: Vec<Vec<TcpListener>>,
    api: impl Fn(usize) -> ApiHandler + Send + 'static,
) -> Result<(Vec<AcceptorHandle>, Receiver<()>), RunServerError> {
    let failed = |error| RunServerError::Listen { address: settings.address(), error };
    let address = listeners[0][0].local_addr().map_err(failed)?;
    let acceptors = listeners.len();
    // The library binds its own listener.
    drop(listeners);
    let connections = AtomicUsize::new(0);
    let make = move || api(connections.fetch_add(1, Ordering::Relaxed) % acceptors);
    engine_minihttp::start(address, acceptors, http_limits(settings), make).map_err(failed)?;
    log::warn!(
        "HTTP_ENGINE=minihttp is for trusted networks only: it has no timeouts and no limits on connections"
    );
    let (_, ended) = bounded(0);
    Ok((Vec::new(), ended))
}

/// The access policy. The tokens are reloaded on SIGHUP.
pub fn policy(settings: &Settings, tokens: Option<TokenFile>, lifecycle: &Lifecycle) -> Arc<Policy> {
    let tokens = tokens.map(Arc::new);
    if let Some(tokens) = tokens.clone() {
        lifecycle.on_reload("the tokens", move || tokens.reload());
    } else if !settings.host.to_canonical().is_loopback() {
        log::warn!(
            "AUTH_TOKENS_FILE is not set: every client that can connect to {} may post, read and scrape",
            settings.address()
        );
    }
    Arc::new(Policy {
        loopback_only: tokens.is_none() && settings.host.to_canonical().is_loopback(),
        tokens,
        rates: settings.rates,
        limiter: Limiter::new(limiter::ROWS),
        proxies: settings.trusted_proxies.clone(),
        origins: settings.cors_origins.clone(),
    })
}

/// Reloads the TLS certificate on SIGHUP.
pub(super) fn reload_identity(identity: TlsIdentity, lifecycle: &Lifecycle) -> Arc<TlsIdentity> {
    let identity = Arc::new(identity);
    let again = Arc::clone(&identity);
    lifecycle.on_reload("the certificate", move || match again.reload() {
        Ok(()) => log::info!("the certificate was reloaded; new connections use it"),
        Err(error) => log::error!("reloading the certificate failed; the old one stays in use: {error}"),
    });
    identity
}

pub(super) fn buffer_limits(settings: &Settings) -> buffer::BufferLimits {
    buffer::BufferLimits {
        rows_max: settings.buffer_rows_max,
        bytes_max: settings.buffer_bytes_max,
        batch_rows_max: settings.batch_rows_max,
        batch_bytes_max: settings.batch_bytes_max,
        spill_bytes_max: settings.spill_bytes_max,
    }
}

pub(super) fn ingest_limits(settings: &Settings) -> ingest::IngestLimits {
    ingest::IngestLimits {
        clock_skew: settings.clock_skew_max,
        retention: Duration::from_hours(24 * u64::from(settings.retention_days)),
        rows_per_block_max: u32::try_from(settings.batch_rows_max).unwrap_or(u32::MAX),
        decompressed_bytes_max: settings.decompressed_bytes_max,
    }
}

fn http_limits(settings: &Settings) -> http::HttpLimits {
    let edge = &settings.edge;
    http::HttpLimits {
        body_bytes_max: settings.body_bytes_max,
        connections_max: settings.connections_max,
        header_timeout: settings.header_timeout,
        body_timeout: settings.body_timeout,
        idle_timeout: settings.idle_timeout,
        write_timeout: settings.write_timeout,
        header_bytes_max: edge.header_bytes_max,
        headers_max: edge.headers_max,
        connections_per_address_max: edge.connections_per_address_max,
        body_rate_grace: edge.body_rate_grace,
        body_rate_min: edge.body_rate_min,
        response_rate_min: edge.response_rate_min,
        response_timeout: edge.response_timeout,
        pipelined_max: edge.pipelined_max,
        response_buffer_bytes_max: edge.response_buffer_bytes_max,
        // An equal share per acceptor, since acceptors do not share this limit.
        connection_memory_bytes_max: edge.connection_memory_bytes_max / settings.acceptors,
        linger_timeout: edge.linger_timeout,
        linger_bytes_max: edge.linger_bytes_max,
    }
}

/// Starts the thread that reports to the service manager, if there is one, until the sender of
/// `stop` is dropped.
pub(super) fn start_notifier(
    settings: &Settings,
    status: &Arc<Status>,
    acceptors: &[AcceptorHandle],
    manager: &ServiceManager,
    stop: Receiver<()>,
) -> Result<(), RunServerError> {
    if !manager.is_connected() {
        return Ok(());
    }
    let notifier = Notifier {
        manager: manager.clone(),
        status: status.clone(),
        acceptors: acceptors.to_vec(),
        watchdog_timeout: settings.systemd.watchdog_timeout,
    };
    spawn(&status.lifecycle, "notifier", move || notifier.run(&stop))
}

pub(super) fn spawn(
    lifecycle: &Lifecycle,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), RunServerError> {
    // The lifecycle reports the death of the thread; the thread is never joined.
    lifecycle.spawn(name, body).map(drop).map_err(RunServerError::Thread)
}
