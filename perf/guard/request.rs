//! A whole `POST /events` through an acceptor and its handler, over loopback: from the readiness
//! of the sockets to the responses. The kernel's work is not counted.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use aurore_events::access::{Gate, Limiter, Origins, Policy, Proxies, RateLimits};
use aurore_events::api::ApiHandler;
use aurore_events::api::router::LABELS;
use aurore_events::buffer::Buffer;
use aurore_events::clock::Clock;
use aurore_events::gateway::handlers::GatewayHandlers;
use aurore_events::gateway::idempotency::{IdempotencyKeys, KeyLimits};
use aurore_events::gateway::state::GatewayState;
use aurore_events::gateway::{Gateway, Ttl, scrape};
use aurore_events::health::ProbeState;
use aurore_events::health::status::Status;
use aurore_events::http::{Acceptor, ConnectionStats, HttpLimits};
use aurore_events::journal::{Durability, Journal};
use aurore_events::lifecycle::{Lifecycle, LifecyclePhase};
use aurore_events::metrics::{
    BusinessCache, DiskSpace, HttpMetrics, Ledger, Sampler, StallDetector, WriterMetrics,
};
use aurore_events::query::tail::{TailLimits, tails};
use aurore_events::query::{QueryDatabase, QueryService, ReaderLimits, export, query_queue};
use aurore_events::storage::memory::MemoryRepository;
use aurore_events::storage::{Breaker, BreakerLimits};

use super::corpus::{Body, EventKind, NOW, batches, singles};
use super::stages::{BUFFER_LIMITS, INGEST_LIMITS};
use super::{Work, counted};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Runs the requests of the form `single` or `batch`.
pub(super) fn run(form: &str) -> Result<Option<Work>> {
    let (bodies, content_type, connections) = match form {
        "single" => (singles(1024, EventKind::Plain), "application/json", 32),
        // As many as the socket buffers hold before the acceptor reads.
        "batch" => (batches(40, EventKind::Plain), "application/x-ndjson", 4),
        _ => return Ok(None),
    };
    let clock = Clock::manual(NOW, 1);
    let status = status(&clock);
    let handler = handler(&status);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut acceptor =
        Acceptor::new(vec![listener], HttpLimits::default(), clock, status.connections.clone(), |_| handler)?;
    let mut clients =
        (0..connections).map(|_| TcpStream::connect(address)).collect::<std::io::Result<Vec<_>>>()?;
    let mut events = 0;
    for round in bodies.chunks(connections) {
        for (body, client) in round.iter().zip(&mut clients) {
            client.write_all(&request(body, content_type))?;
            events += body.events as u64;
        }
        while status.ledger.balance().received < events {
            let mut turned = Ok(());
            counted(&mut || turned = acceptor.turn(Some(Duration::from_secs(1))).map(drop));
            turned?;
        }
        for (_, client) in round.iter().zip(&mut clients) {
            read_response(client)?;
        }
        drain(&status);
    }
    Ok(Some(Work::of(&bodies)))
}

/// The request as a load generator sends it.
fn request(body: &Body, content_type: &str) -> Vec<u8> {
    let length = body.bytes.len();
    let mut request = format!(
        "POST /events HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nUser-Agent: instructions\r\nAccept: */*\r\n\
         Content-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(&body.bytes);
    request
}

fn read_response(client: &mut TcpStream) -> Result<()> {
    let (mut response, mut piece) = (Vec::new(), [0; 16 * 1024]);
    while !response.ends_with(b"}") {
        let count = client.read(&mut piece)?;
        if count == 0 {
            return Err("the acceptor closed a connection".into());
        }
        response.extend_from_slice(&piece[..count]);
    }
    if response.starts_with(b"HTTP/1.1 202 ") {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&response).into())
    }
}

/// Does the work of the writer.
fn drain(status: &Status) {
    let (mut blocks, mut shard) = (Vec::new(), 0);
    while let Some(block) = status.buffer.pop(&mut shard) {
        blocks.push(block);
    }
    status.journal.finalize(blocks, None);
}

fn status(clock: &Clock) -> Arc<Status> {
    let ledger = Arc::new(Ledger::new(1));
    let (buffer, _writer) = Buffer::new(BUFFER_LIMITS, 1, ledger.clone());
    let (journal, _parkers) = Journal::new(1);
    let (lifecycle, _notices) = Lifecycle::new();
    lifecycle.advance_to(LifecyclePhase::Serving);
    let keys = IdempotencyKeys::new(KeyLimits { count_max: 1, age_max: Duration::from_secs(1) });
    let ttl = Ttl { aggregated: None, groups: None };
    let (gateway, _log) = Gateway::new(GatewayState::new(keys), ttl, None, clock.clone());
    let breaker =
        BreakerLimits { failure_threshold: 5, success_threshold: 2, timeout: Duration::from_secs(30) };
    Arc::new(Status {
        gateway,
        buffer: Arc::new(buffer),
        journal: Arc::new(journal),
        ledger,
        sampler: Arc::new(Sampler::default()),
        stall: StallDetector::new(Duration::from_secs(1)),
        writer: Arc::new(WriterMetrics::default()),
        http: Arc::new(HttpMetrics::new(1, &LABELS)),
        retention: Arc::default(),
        tails: Arc::default(),
        partitions: Arc::default(),
        cluster_restarts: Arc::default(),
        connections: Arc::new(ConnectionStats::default()),
        failover: Arc::default(),
        business: Arc::new(BusinessCache::default()),
        disk: DiskSpace::default(),
        database: Arc::new(ProbeState::default()),
        standby: None,
        breaker: Arc::new(Breaker::new(breaker)),
        lifecycle,
        clock: clock.clone(),
    })
}

/// The handler of a server on a loopback address with the default settings.
fn handler(status: &Arc<Status>) -> ApiHandler {
    let policy = Policy {
        tokens: None,
        rates: RateLimits::default(),
        limiter: Limiter::new(1),
        proxies: Proxies::default(),
        origins: Origins::default(),
        loopback_only: true,
    };
    let repository = Arc::new(MemoryRepository::new());
    let limits = ReaderLimits { jobs_max: 1, wait_max: Duration::from_secs(1), response_bytes_max: 1 << 20 };
    let (clock, breaker) = (&status.clock, &status.breaker);
    let database = QueryDatabase::new(repository, breaker.clone(), clock.clone());
    let (queue, _readers) = query_queue(limits, database.clone());
    let (exports, _exporters) = export::exports(1, database);
    let limits = TailLimits { tails_max: 1, queued_bytes_max: 1 << 20, heartbeat: Duration::from_secs(15) };
    let (tails, _thread) =
        tails(limits, "measured:0", status.tails.clone(), status.lifecycle.clone(), clock.clone());
    let (scrapes, _scraper) = scrape::queue(status.gateway.clone(), true);
    let pages =
        GatewayHandlers::new(status.gateway.clone(), scrapes, Durability::Memory, NOW, Vec::new().into());
    ApiHandler::new(
        0,
        Gate::new(Arc::new(policy)),
        INGEST_LIMITS,
        Durability::Memory,
        status.clone(),
        QueryService { queue, exports, tails },
        pages,
    )
}
