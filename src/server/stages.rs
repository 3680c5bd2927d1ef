//! Starts the threads of each stage, with the bounds that the settings give it.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::sync::Parker;

use super::Failed;
use crate::access::tokens::Mistakes;
use crate::access::{Limiter, Policy, TokenFile, limiter};
use crate::api::Api;
use crate::buffer;
use crate::clock::Clock;
use crate::gateway::changelog::{Changelog, LogLimits};
use crate::gateway::compare::Comparer;
use crate::gateway::forward::{Forwarder, Queue};
use crate::gateway::keys::{KeyLimits, Keys};
use crate::gateway::state::{self, State};
use crate::gateway::{self, Gateway, names, scrape};
use crate::health::Probe;
use crate::health::status::Status;
use crate::http::tls::{Identity, IdentityError};
use crate::http::{self, Acceptor, Remote, Shared, engine_minihttp, pin_to_core};
use crate::ingest;
use crate::journal::disk::{Directory, Disk};
use crate::journal::sync::Link;
use crate::journal::{Checkpoint, Lookup, Syncer};
use crate::lifecycle::Lifecycle;
use crate::metrics::{Counting, History, Process, RetentionFigures};
use crate::query::{self, Entrance, ReaderLimits};
use crate::retention::Retention;
use crate::settings::{HttpEngine, Settings};
use crate::storage::{Breaker, EventRepository};
use crate::writer::Writer;

/// How long a query may wait for a reader.
const QUERY_WAIT_MAX: Duration = Duration::from_secs(10);
/// Threads that exports share: one that searches does not hold up one that streams.
const EXPORTERS: usize = 2;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Starts the writer. The channel is closed when it has ended.
pub(super) fn start_writer(mut writer: Writer, lifecycle: &Lifecycle) -> Result<Receiver<()>, Failed> {
    let (running, ended) = bounded::<()>(0);
    spawn(lifecycle, "writer", move || {
        writer.run();
        drop(running);
    })?;
    Ok(ended)
}

/// Starts the checkpoint thread and the one that syncs for it. The channel is closed when the first has ended.
pub(super) fn start_checkpoint(
    mut checkpoint: Checkpoint,
    (syncer, syncs): (Syncer, Link),
    lifecycle: &Lifecycle,
) -> Result<Receiver<()>, Failed> {
    let (running, ended) = bounded::<()>(0);
    spawn(lifecycle, "sync", move || syncer.run())?;
    spawn(lifecycle, "checkpoint", move || {
        checkpoint.run(&syncs);
        drop(running);
    })?;
    Ok(ended)
}

/// Starts what watches the stages and is in no event's way. They end when the other end is dropped.
pub(super) fn start_helpers(
    settings: &Settings,
    status: &Arc<Status>,
    repository: &Arc<dyn EventRepository>,
) -> Result<Sender<()>, Failed> {
    let (stop, stopped) = bounded::<()>(0);
    let lifecycle = &status.lifecycle;
    start_sampler(settings, lifecycle, status.clone(), stopped.clone())?;
    start_history(settings, lifecycle, status.clone(), stopped.clone())?;
    let counting = Counting {
        business: status.business.clone(),
        repository: repository.clone(),
        breaker: status.breaker.clone(),
        lifecycle: lifecycle.clone(),
        clock: status.clock.clone(),
    };
    let (breaker, figures) = (status.breaker.clone(), status.retention.clone());
    let retention = retention(settings, repository.clone(), breaker, figures, &status.clock);
    let when = stopped.clone();
    spawn(lifecycle, "retention", move || retention.run(&when))?;
    let when = stopped.clone();
    spawn(lifecycle, "business", move || counting.run(&when))?;
    let probe = Probe {
        database: status.database.clone(),
        repository: repository.clone(),
        breaker: status.breaker.clone(),
        clock: status.clock.clone(),
    };
    spawn(lifecycle, "probe", move || probe.run(&stopped))?;
    Ok(stop)
}

/// The gateway's directory within `DATA_DIR`.
const GATEWAY: &str = "gateway";
/// Pushes whose keys are remembered, about 150 bytes each, and for how long: longer than anybody tries again.
const KEYS: KeyLimits = KeyLimits { count_max: 100_000, age_max: Duration::from_hours(1) };
/// A log shorter than this is read back at once, so that no snapshot is worth its while.
const SNAPSHOT_BYTES_MIN: u64 = 8 << 20;

/// What the gateway's threads are made of.
pub(super) struct GatewayParts {
    disk: Arc<dyn Disk>,
    parker: Parker,
    found: gateway::recovery::Found,
    queue: Option<Arc<Queue>>,
}

/// The gateway, and what tells of its log's end. Its other threads end when this is dropped.
pub(super) struct GatewayRunning {
    pub(super) ended: Receiver<()>,
    _stop: Sender<()>,
}

/// Reads back what was pushed before.
pub(super) fn gateway(settings: &Settings, clock: &Clock) -> Result<(Arc<Gateway>, GatewayParts), Failed> {
    let path = settings.data_dir.join(GATEWAY);
    let disk = Directory::open(path.clone()).map_err(|error| Failed::DataDir { path, error })?;
    let mut state = State::new(Keys::new(KEYS));
    let found = gateway::recovery::read(&disk, &mut state, clock.now())?;
    let of = &settings.gateway;
    state.bound(state::Limits { series_max: of.series_max, bytes_max: of.bytes_max }, names::OWN);
    if found.records > 0 {
        log::info!(series = state.samples(), groups = state.groups(); "what was pushed before is back");
    }
    let queue = of.pushgateway_url.as_ref().map(|_| Arc::new(Queue::default()));
    let (gateway, parker) = Gateway::new(state, of.lifetimes, queue.clone(), clock.clone());
    gateway.figures.damaged.store(found.damage.skipped, Ordering::Relaxed);
    gateway.figures.torn_bytes.store(found.damage.torn_bytes, Ordering::Relaxed);
    Ok((gateway, GatewayParts { disk: Arc::new(disk), parker, found, queue }))
}

/// Starts the gateway's threads.
pub(super) fn start_gateway(
    settings: &Settings,
    gateway: &Arc<Gateway>,
    parts: GatewayParts,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<(scrape::Line, GatewayRunning), Failed> {
    let limits = LogLimits {
        write_every: settings.journal_write,
        sync_every: settings.journal_sync,
        snapshot_bytes_min: SNAPSHOT_BYTES_MIN,
    };
    let GatewayParts { disk, parker, found, queue } = parts;
    let mut log = Changelog::new(gateway.clone(), disk, limits, clock.clone(), parker, &found);
    let (running, ended) = bounded::<()>(0);
    spawn(lifecycle, "gateway-log", move || {
        log.run();
        drop(running);
    })?;
    let (line, scraper) = scrape::line(gateway.clone(), settings.http_engine == HttpEngine::Guarded);
    spawn(lifecycle, "gateway-scrape", move || scraper.run())?;
    let (stop, stopped) = bounded::<()>(0);
    if let Some(every) = gateway.expire_every() {
        let (gateway, stopped) = (gateway.clone(), stopped.clone());
        spawn(lifecycle, "gateway-expire", move || {
            while stopped.recv_timeout(every) != Err(RecvTimeoutError::Disconnected) {
                gateway.expire();
            }
        })?;
    }
    if let (Some(queue), Some(url)) = (queue, settings.gateway.pushgateway_url.clone()) {
        let comparer = Comparer { gateway: gateway.clone(), url: url.clone() };
        let forwarder = Forwarder { gateway: gateway.clone(), queue, url, clock: clock.clone() };
        let when = stopped.clone();
        spawn(lifecycle, "gateway-forward", move || forwarder.run(&when))?;
        spawn(lifecycle, "gateway-compare", move || comparer.run(&stopped))?;
    }
    Ok((line, GatewayRunning { ended, _stop: stop }))
}

/// Takes a sample of the figures every second, until the other end of `stop` is dropped.
fn start_sampler(
    settings: &Settings,
    lifecycle: &Lifecycle,
    status: Arc<Status>,
    stop: Receiver<()>,
) -> Result<(), Failed> {
    let data_dir = settings.data_dir.clone();
    spawn(lifecycle, "sampler", move || {
        let process = Process::new();
        loop {
            status.disk.look(&data_dir);
            status.sampler.sample(status.clock.now(), status.ledger.balance(), &process);
            if stop.recv_timeout(SAMPLE_EVERY) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    })
}

pub(super) fn retention(
    settings: &Settings,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    figures: Arc<RetentionFigures>,
    clock: &Clock,
) -> Retention {
    Retention {
        repository,
        breaker,
        figures,
        clock: clock.clone(),
        schedule: settings.retention_schedule.clone(),
        days: settings.retention_days,
    }
}

/// Writes a line of figures every interval, until the other end of `stop` is dropped.
fn start_history(
    settings: &Settings,
    lifecycle: &Lifecycle,
    status: Arc<Status>,
    stop: Receiver<()>,
) -> Result<(), Failed> {
    let every = settings.history_interval;
    if every.is_zero() {
        return Ok(());
    }
    let history = History::new(&settings.data_dir, settings.history_bytes_max);
    spawn(lifecycle, "history", move || {
        let mut failing = false;
        while stop.recv_timeout(every) != Err(RecvTimeoutError::Disconnected) {
            let written = history.append(&status.entry());
            // Said once, not every minute.
            if let (Err(error), false) = (&written, failing) {
                log::warn!("the metrics history cannot be written: {error}");
            }
            failing = written.is_err();
        }
    })
}

pub(super) fn start_readers(
    settings: &Settings,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    lookup: Lookup,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<Entrance, Failed> {
    let limits = ReaderLimits { jobs_max: settings.query_line_max, wait_max: QUERY_WAIT_MAX };
    let (line, readers) = query::line(limits, repository.clone(), breaker.clone(), clock.clone());
    let readers = readers.with_lookup(Arc::new(lookup));
    for nth in 0..settings.query_threads {
        let readers = readers.clone();
        spawn(lifecycle, &format!("reader-{nth}"), move || readers.run())?;
    }
    let (exports, exporters) =
        query::export::exports(settings.exports_max, repository, breaker, clock.clone());
    for nth in 0..settings.exports_max.min(EXPORTERS) {
        let exporters = exporters.clone();
        spawn(lifecycle, &format!("exporter-{nth}"), move || exporters.run())?;
    }
    Ok(Entrance { line, exports })
}

/// Starts an acceptor a listener, each pinned to a core. The channel is closed when all have ended.
pub(super) fn start_acceptors(
    settings: &Settings,
    listeners: Vec<TcpListener>,
    shared: &Arc<Shared>,
    identity: Option<&Arc<Identity>>,
    api: &impl Fn(usize) -> Api,
    lifecycle: &Lifecycle,
    clock: &Clock,
) -> Result<(Vec<Remote>, Receiver<()>), Failed> {
    let (running, ended) = bounded::<()>(0);
    let mut remotes = Vec::with_capacity(listeners.len());
    for (nth, listener) in listeners.into_iter().enumerate() {
        let limits = http_limits(settings);
        let mut acceptor = Acceptor::new(listener, limits, clock.clone(), shared.clone(), |_| api(nth))
            .map_err(Failed::Acceptor)?
            .with_tls(identity.cloned());
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
pub(super) fn start_minihttp(
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
    log::warn!(
        "HTTP_ENGINE=minihttp is for trusted networks only: it has no timeouts and no limits on connections"
    );
    let (_, ended) = bounded(0);
    Ok((Vec::new(), ended))
}

/// Who may ask for what, and how often; the tokens are read again on SIGHUP.
pub fn policy(settings: &Settings, lifecycle: &Lifecycle) -> Result<Arc<Policy>, Mistakes> {
    let tokens = settings.auth_tokens_file.as_deref().map(TokenFile::open).transpose()?.map(Arc::new);
    if let Some(tokens) = tokens.clone() {
        lifecycle.on_reload("the tokens", move || tokens.reload());
    } else if !settings.host.to_canonical().is_loopback() {
        log::warn!(
            "whoever reaches {} may post, read and scrape: no AUTH_TOKENS_FILE is set",
            settings.address()
        );
    }
    Ok(Arc::new(Policy {
        tokens,
        rates: settings.rates,
        limiter: Limiter::new(limiter::ROWS),
        proxies: settings.trusted_proxies.clone(),
        origins: settings.cors_origins.clone(),
    }))
}

/// The certificate, if TLS is to be spoken; read again on SIGHUP.
pub(super) fn identity(
    settings: &Settings,
    lifecycle: &Lifecycle,
) -> Result<Option<Arc<Identity>>, IdentityError> {
    let Some(tls) = &settings.edge.tls else { return Ok(None) };
    let identity = Arc::new(Identity::read(&tls.certificate, &tls.key)?);
    let again = Arc::clone(&identity);
    lifecycle.on_reload("the certificate", move || match again.reload() {
        Ok(()) => log::info!("the certificate was read again; new connections get it"),
        Err(error) => log::error!("the certificate stays as it was: {error}"),
    });
    Ok(Some(identity))
}

pub(super) fn buffer_limits(settings: &Settings) -> buffer::Limits {
    buffer::Limits {
        rows_max: settings.buffer_rows_max,
        bytes_max: settings.buffer_bytes_max,
        batch_rows_max: settings.batch_rows_max,
        batch_bytes_max: settings.batch_bytes_max,
        spill_bytes_max: settings.spill_bytes_max,
    }
}

pub(super) fn ingest_limits(settings: &Settings) -> ingest::Limits {
    ingest::Limits {
        clock_skew: settings.clock_skew_max,
        retention: Duration::from_hours(24 * u64::from(settings.retention_days)),
        rows_per_block_max: u32::try_from(settings.batch_rows_max).unwrap_or(u32::MAX),
        plain_bytes_max: settings.decompressed_bytes_max,
    }
}

fn http_limits(settings: &Settings) -> http::Limits {
    let edge = &settings.edge;
    http::Limits {
        body_bytes_max: settings.body_bytes_max,
        connections_max: settings.connections_max,
        header_timeout: settings.header_timeout,
        body_timeout: settings.body_timeout,
        idle_timeout: settings.idle_timeout,
        slow_reader_timeout: settings.slow_reader_timeout,
        header_bytes_max: edge.header_bytes_max,
        headers_max: edge.headers_max,
        connections_per_address_max: edge.connections_per_address_max,
        body_grace: edge.body_grace,
        body_rate_min: edge.body_rate_min,
        answer_timeout: edge.answer_timeout,
        pipelined_max: edge.pipelined_max,
        output_bytes_max: edge.output_bytes_max,
        // Each acceptor has its share: it knows nothing of what the others hold.
        held_bytes_max: edge.held_bytes_max / settings.acceptors,
        linger_timeout: edge.linger_timeout,
        linger_bytes_max: edge.linger_bytes_max,
    }
}

pub(super) fn spawn(
    lifecycle: &Lifecycle,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<(), Failed> {
    // The lifecycle tells when it dies; nobody joins it.
    lifecycle.spawn(name, body).map(drop).map_err(Failed::Thread)
}
