//! What queries take while events come in: `queries ADDRESS EVENTS_A_SECOND EVENTS_EACH QUERIES_OF_EACH SEED`.
//!
//! One thread sends events at an even rate, so many in each POST: single ones over 32 connections. Meanwhile one client asks one question after the
//! other, the kinds in turns, each for another stretch of the last 17 days, and prints per kind: its name, p50, p99 and
//! the longest, in milliseconds; at last the events that were accepted a second.

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
/// The generator's.
const SERVICES: u32 = 20;
const CUSTOMERS: u32 = 1000;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next =
        || args.next().ok_or("usage: queries ADDRESS EVENTS_A_SECOND EVENTS_EACH QUERIES_OF_EACH SEED");
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
    let mut asker = Asker {
        client: Client::connect(&address)?,
        clock: clock.clone(),
        chance: StdRng::seed_from_u64(seed),
    };
    std::thread::sleep(Duration::from_secs(2));
    let (begin, before) = (clock.now(), accepted.load(Ordering::Relaxed));
    let figures = asker.ask_all(count)?;
    let seconds = clock.now().since(begin).as_secs_f64();
    let after = accepted.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    producer.join().map_err(|_panicked| "the producer panicked")??;
    let mut out = std::io::stdout().lock();
    for (name, mut times) in figures {
        times.sort_unstable();
        let at = |share: usize| millis(times[(times.len() * share / 100).min(times.len() - 1)]);
        writeln!(out, "{name}\t{:.2}\t{:.2}\t{:.2}", at(50), at(99), millis(times[times.len() - 1]))?;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let accepted = (after - before) as f64 / seconds;
    writeln!(out, "accepted\t{accepted:.0}")?;
    Ok(())
}

/// What comes in meanwhile.
#[derive(Clone, Copy)]
struct Load {
    /// Events a second, 0 for none.
    rate: u64,
    events_each: u64,
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

struct Asker {
    client: Client,
    clock: Clock,
    chance: StdRng,
}

/// A kind of question, and how the path of one is made.
type Kind = (&'static str, fn(&mut Asker) -> Result<String>);

const KINDS: &[Kind] = &[
    ("newest 100 of 24 h, with total", |asker| Ok(asker.window(""))),
    ("newest 100 of 24 h", |asker| Ok(asker.window("&count=none"))),
    ("the last 24 h up to now, with total", |_| Ok("/events?limit=100".to_owned())),
    ("a service, with total", |asker| {
        let service = asker.service();
        Ok(asker.window(&format!("&service={service}")))
    }),
    ("a service", |asker| {
        let service = asker.service();
        Ok(asker.window(&format!("&service={service}&count=none")))
    }),
    ("deep page of 29 days, with total", |asker| asker.deep("")),
    ("deep page of 29 days", |asker| asker.deep("&count=none")),
    ("by id", Asker::by_id),
    ("a service's metadata, 1 event in 4", |asker| {
        let service = asker.service();
        Ok(asker.window(&format!("&service={service}&metadata.region=eu-west-1&count=none")))
    }),
    ("metadata, 1 event in 4", |asker| Ok(asker.window("&metadata.region=eu-west-1&count=none"))),
    ("stats of a day", |asker| Ok(asker.window("").replace("/events?limit=100&", "/stats?"))),
];

/// Those that read what no index knows: asked for less often.
const SEARCHES: &[Kind] = &[
    ("metadata, 1 event in 1,000", |asker| {
        let customer = asker.chance.random_range(0..CUSTOMERS);
        Ok(asker.window(&format!("&metadata.customer={customer}&count=none")))
    }),
    ("metadata, 1 event in 1,000, of a service", |asker| {
        let (customer, service) = (asker.chance.random_range(0..CUSTOMERS), asker.service());
        Ok(asker.window(&format!("&service={service}&metadata.customer={customer}&count=none")))
    }),
    ("text, 1 event in 1,000", |asker| {
        let order = asker.chance.random_range(0..1000);
        Ok(asker.window(&format!("&q=order+{order:03}+&count=none")))
    }),
];

impl Asker {
    fn ask_all(&mut self, count: usize) -> Result<Vec<(&'static str, Vec<Duration>)>> {
        let mut figures: Vec<(&'static str, Vec<Duration>)> =
            KINDS.iter().chain(SEARCHES).map(|(name, _)| (*name, Vec::new())).collect();
        for round in 0..count {
            for (nth, (_, path)) in KINDS.iter().chain(SEARCHES).enumerate() {
                if nth >= KINDS.len() && round % 20 > 0 {
                    continue;
                }
                let path = path(self)?;
                let begin = self.clock.now();
                self.client.get(&path)?;
                figures[nth].1.push(self.clock.now().since(begin));
            }
        }
        Ok(figures)
    }

    fn service(&mut self) -> String {
        format!("service-{}", self.chance.random_range(0..SERVICES))
    }

    /// A time of the last 16 days: before it there is a day of events, also while the oldest are being dropped.
    fn time(&mut self) -> Timestamp {
        Timestamp::from_micros(self.clock.wall().micros() - self.chance.random_range(0..16 * DAY_MICROS))
    }

    fn window(&mut self, more: &str) -> String {
        let to = self.time();
        let from = Timestamp::from_micros(to.micros() - DAY_MICROS);
        format!("/events?limit=100&from={from}&to={to}{more}")
    }

    /// A page that begins somewhere in the middle of all that is there.
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

    /// Status and body of the next answer.
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
                return Err("the server hung up".into());
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, body))
    }
}

/// Sends `load.rate` events a second: a round over all connections, and then what has come back is read.
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
            // Too far behind to be made up for in a burst.
            due = now;
        }
    }
    Ok(())
}
