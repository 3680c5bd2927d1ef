//! Latency of queries under ingest:
//! `queries ADDRESS EVENTS_PER_SECOND EVENTS_EACH QUERIES_OF_EACH SEED`.
//!
//! One thread sends events at a constant rate, `EVENTS_EACH` per POST: single events over 32
//! connections. Meanwhile one client sends one query after the other, alternating between the
//! kinds, each for another part of the last 17 days. Prints per kind: name, p50, p99 and maximum in
//! milliseconds; at the end the events accepted per second.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};
use aurore_events::event::Timestamp;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sonic_rs::{JsonContainerTrait as _, JsonValueTrait as _};

const CONNECTIONS: usize = 32;
const DAY_MICROS: i64 = 86_400_000_000;
/// Must match `generate.sql`.
const SERVICES: u32 = 20;
const CUSTOMERS: u32 = 1000;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next =
        || args.next().ok_or("usage: queries ADDRESS EVENTS_PER_SECOND EVENTS_EACH QUERIES_OF_EACH SEED");
    let address = next()?;
    let load = Load { rate: next()?.parse()?, events_each: next()?.parse::<u64>()?.max(1) };
    let (count, seed) = (next()?.parse::<usize>()?, next()?.parse::<u64>()?);
    let clock = Clock::system();
    let stop = Arc::new(AtomicBool::new(false));
    let accepted = Arc::new(AtomicU64::new(0));
    let producer = {
        let (address, clock) = (address.clone(), clock.clone());
        let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
        std::thread::Builder::new().spawn(move || produce(&address, load, &clock, &stop, &accepted))?
    };
    let mut query_client = QueryClient {
        client: Client::connect(&address)?,
        clock: clock.clone(),
        rng: StdRng::seed_from_u64(seed),
    };
    std::thread::sleep(Duration::from_secs(2));
    let (begin, before) = (clock.now(), accepted.load(Ordering::Relaxed));
    let latencies = query_client.run_all(count)?;
    let seconds = clock.now().since(begin).as_secs_f64();
    let after = accepted.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    producer.join().map_err(|_panicked| "the producer panicked")??;
    let mut out = std::io::stdout().lock();
    for (name, mut times) in latencies {
        times.sort_unstable();
        let at = |share: usize| millis(times[(times.len() * share / 100).min(times.len() - 1)]);
        writeln!(out, "{name}\t{:.2}\t{:.2}\t{:.2}", at(50), at(99), millis(times[times.len() - 1]))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let accepted = (after - before) as f64 / seconds;
    writeln!(out, "accepted\t{accepted:.0}")?;
    Ok(())
}

/// The ingest load.
#[derive(Clone, Copy)]
struct Load {
    /// Events per second, 0 for none.
    rate: u64,
    events_each: u64,
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

struct QueryClient {
    client: Client,
    clock: Clock,
    rng: StdRng,
}

/// A kind of query: its name, and a function that creates a path.
type Kind = (&'static str, fn(&mut QueryClient) -> Result<String>);

const KINDS: &[Kind] = &[
    ("newest 100 of 24 h, with total", |query_client| Ok(query_client.window(""))),
    ("newest 100 of 24 h", |query_client| Ok(query_client.window("&count=none"))),
    ("the last 24 h up to now, with total", |_| Ok("/events?limit=100".to_owned())),
    ("a service, with total", |query_client| {
        let service = query_client.service();
        Ok(query_client.window(&format!("&service={service}")))
    }),
    ("a service", |query_client| {
        let service = query_client.service();
        Ok(query_client.window(&format!("&service={service}&count=none")))
    }),
    ("deep page of 29 days, with total", |query_client| query_client.deep("")),
    ("deep page of 29 days", |query_client| query_client.deep("&count=none")),
    ("by id", QueryClient::by_id),
    ("a service's metadata, 1 event in 4", |query_client| {
        let service = query_client.service();
        Ok(query_client.window(&format!("&service={service}&metadata.region=eu-west-1&count=none")))
    }),
    ("metadata, 1 event in 4", |query_client| {
        Ok(query_client.window("&metadata.region=eu-west-1&count=none"))
    }),
    ("stats of a day", |query_client| Ok(query_client.window("").replace("/events?limit=100&", "/stats?"))),
];

/// Queries without an index, which are sent less often.
const SEARCHES: &[Kind] = &[
    ("metadata, 1 event in 1,000", |query_client| {
        let customer = query_client.rng.random_range(0..CUSTOMERS);
        Ok(query_client.window(&format!("&metadata.customer={customer}&count=none")))
    }),
    ("metadata, 1 event in 1,000, of a service", |query_client| {
        let (customer, service) = (query_client.rng.random_range(0..CUSTOMERS), query_client.service());
        Ok(query_client.window(&format!("&service={service}&metadata.customer={customer}&count=none")))
    }),
    ("text, 1 event in 1,000", |query_client| {
        let order = query_client.rng.random_range(0..1000);
        Ok(query_client.window(&format!("&q=order+{order:03}+&count=none")))
    }),
];

impl QueryClient {
    fn run_all(&mut self, count: usize) -> Result<Vec<(&'static str, Vec<Duration>)>> {
        let mut latencies: Vec<(&'static str, Vec<Duration>)> =
            KINDS.iter().chain(SEARCHES).map(|(name, _)| (*name, Vec::new())).collect();
        for round in 0..count {
            for (nth, (_, path)) in KINDS.iter().chain(SEARCHES).enumerate() {
                if nth >= KINDS.len() && round % 20 > 0 {
                    continue;
                }
                let path = path(self)?;
                let begin = self.clock.now();
                self.client.get(&path)?;
                latencies[nth].1.push(self.clock.now().since(begin));
            }
        }
        Ok(latencies)
    }

    fn service(&mut self) -> String {
        format!("service-{}", self.rng.random_range(0..SERVICES))
    }

    /// A random time of the last 16 days, so that a day of events exists before it, also while old
    /// days are dropped.
    fn time(&mut self) -> Timestamp {
        Timestamp::from_micros(self.clock.wall().micros() - self.rng.random_range(0..16 * DAY_MICROS))
    }

    fn window(&mut self, more: &str) -> String {
        let to = self.time();
        let from = Timestamp::from_micros(to.micros() - DAY_MICROS);
        format!("/events?limit=100&from={from}&to={to}{more}")
    }

    /// The path of a page at a random position of all events.
    fn deep(&mut self, more: &str) -> Result<String> {
        let at = self.time();
        let now = self.clock.wall();
        let from = Timestamp::from_micros(now.micros() - 29 * DAY_MICROS);
        let page = self.client.get(&format!("/events?limit=1&from={from}&to={at}&count=none"))?;
        let cursor = sonic_rs::from_slice::<sonic_rs::Value>(&page)?;
        let cursor = cursor["page"]["next_cursor"].as_str().ok_or("there is no deep page")?.to_owned();
        Ok(format!("/events?limit=100&from={from}&to={now}&cursor={cursor}{more}"))
    }

    fn by_id(&mut self) -> Result<String> {
        let at = self.time();
        let from = Timestamp::from_micros(at.micros() - DAY_MICROS);
        let page = self.client.get(&format!("/events?limit=1&from={from}&to={at}&count=none"))?;
        let page = sonic_rs::from_slice::<sonic_rs::Value>(&page)?;
        let event = page["events"].as_array().and_then(|events| events.first()).ok_or("there is no event")?;
        Ok(format!("/events/{}", event["event_id"].as_str().unwrap_or_default()))
    }
}

/// One kept-alive connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self(BufReader::with_capacity(64 * 1024, stream)))
    }

    fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (status, body) = self.answer()?;
        if status == 200 { Ok(body) } else { Err(format!("{path}: {status}").into()) }
    }

    /// Status and body of the next response.
    fn answer(&mut self) -> Result<(u16, Vec<u8>)> {
        let (mut status, mut length, mut line) = (0, 0, String::new());
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
                status = rest.get(..3).unwrap_or_default().parse()?;
            } else if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            } else if line == "\r\n" {
                break;
            } else if line.is_empty() {
                return Err("the server closed the connection".into());
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, body))
    }
}

/// Sends `load.rate` events per second: each round sends over all connections and then reads the
/// responses.
fn produce(address: &str, load: Load, clock: &Clock, stop: &AtomicBool, accepted: &AtomicU64) -> Result<()> {
    if load.rate == 0 {
        return Ok(());
    }
    let connections = CONNECTIONS.div_ceil(usize::try_from(load.events_each)?).max(2);
    let mut clients = (0..connections).map(|_| Client::connect(address)).collect::<Result<Vec<_>>>()?;
    let pace = Duration::from_nanos(1_000_000_000 * connections as u64 * load.events_each / load.rate);
    let mut due: Moment = clock.now();
    let mut nth = 0_u32;
    let (mut body, mut request) = (String::new(), String::new());
    while !stop.load(Ordering::Relaxed) {
        let time = clock.wall().to_string();
        for client in &mut clients {
            body.clear();
            for _ in 0..load.events_each {
                nth = nth.wrapping_add(1);
                writeln!(
                    body,
                    "{{\"timestamp\":\"{time}\",\"service\":\"service-{}\",\"message\":\"payment accepted in 128 ms \
                     for order {:03} of shop\",\"metadata\":{{\"region\":\"eu-west-1\",\"attempt\":1,\"customer\":{},\
                     \"trace\":\"4bf92f3577b34da6{nth:016x}\"}}}}",
                    nth % SERVICES,
                    nth % 1000,
                    nth % CUSTOMERS
                )?;
            }
            let kind = if load.events_each == 1 { "application/json" } else { "application/x-ndjson" };
            request.clear();
            write!(
                request,
                "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )?;
            request.push_str(&body);
            client.0.get_mut().write_all(request.as_bytes())?;
        }
        for client in &mut clients {
            let (status, _) = client.answer()?;
            accepted.fetch_add(u64::from(status == 202) * load.events_each, Ordering::Relaxed);
        }
        due = due.plus(pace);
        let now = clock.now();
        if due > now {
            std::thread::sleep(due.since(now));
        } else if now.since(due) > Duration::from_secs(1) {
            // Too far behind the schedule: do not catch up in a burst.
            due = now;
        }
    }
    Ok(())
}
