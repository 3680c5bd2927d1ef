//! The load generator of the benchmarks: `load [--OPTION VALUE]...` sends events to a server on this
//! machine and prints a JSON object with the counts, its own CPU time and the latencies.
//!
//! perf/README.md lists the options. The requests are built before the load; each thread has its
//! own connections and its own loop on epoll, so that the load takes little of the CPU that it
//! shares with the server.

mod clock;
mod connection;
mod events;
mod histogram;
mod log_records;
mod requests;
mod worker;

use std::error::Error;
use std::io::Write as _;
use std::time::Duration;

use crate::events::Size;
use crate::requests::{Format, RequestOptions, Times};
use crate::worker::{LoadOptions, Totals};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const USAGE: &str = "usage: load [--address HOST:PORT] [--path PATH] [--format json|otlp] [--connections N] [--threads N] \
    [--seconds S] [--warmup S] [--rate EVENTS_PER_SECOND] [--pause-ms MS] [--batch EVENTS] [--time advancing|equal|second] \
    [--size life|BYTES] [--keyed yes|no] [--durability LEVEL] [--seed N]";

struct Arguments {
    load: LoadOptions,
    requests: RequestOptions,
    threads: usize,
}

fn main() -> Result<()> {
    let mut arguments = parse(std::env::args().skip(1))?;
    // Shortens the time by which the kernel may delay the end of a sleep, for the open loop.
    drop(std::fs::write("/proc/self/timerslack_ns", "1"));
    let threads = arguments.threads.min(arguments.load.connections).max(1);
    let connections = arguments.load.connections;
    arguments.load.rate =
        arguments.load.rate.map(|events| events / as_f64(arguments.requests.batch) / as_f64(threads));
    let (requests, cpu) = (arguments.requests.clone(), clock::cpu_seconds());
    let results: Vec<Result<Totals>> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|nth| {
                let mut load = arguments.load.clone();
                load.connections = connections / threads + usize::from(nth < connections % threads);
                let requests = &requests;
                scope.spawn(move || Ok(worker::run(nth as u64, &load, requests)?))
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|_panic| Err("a worker panicked".into())))
            .collect()
    });
    let mut totals = Totals::new();
    for result in results {
        totals.merge(&result?);
    }
    print(&totals, requests.batch as u64, clock::cpu_seconds() - cpu)?;
    Ok(())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut load = LoadOptions {
        address: ([127, 0, 0, 1], 3000).into(),
        connections: 64,
        seconds: 5.0,
        warmup: 0.0,
        rate: None,
        pause: Duration::ZERO,
    };
    let mut requests = RequestOptions {
        path: "/events".to_owned(),
        host: String::new(),
        format: Format::Json,
        batch: 1,
        size: Size::Life,
        times: Times::Advancing,
        keyed: false,
        durability: None,
        seed: 1,
    };
    let mut threads = 1;
    while let Some(name) = args.next() {
        let value = args.next().ok_or(USAGE)?;
        match name.as_str() {
            "--address" => load.address = value.parse()?,
            "--path" => requests.path = value,
            "--format" if value == "json" => requests.format = Format::Json,
            "--format" if value == "otlp" => requests.format = Format::Otlp,
            "--connections" => load.connections = value.parse::<usize>()?.max(1),
            "--threads" => threads = value.parse()?,
            "--seconds" => load.seconds = value.parse()?,
            "--warmup" => load.warmup = value.parse()?,
            "--rate" => load.rate = Some(value.parse()?),
            "--pause-ms" => load.pause = Duration::from_millis(value.parse()?),
            "--batch" => requests.batch = value.parse::<usize>()?.max(1),
            "--time" => requests.times = parse_times(&value)?,
            "--size" if value == "life" => requests.size = Size::Life,
            "--size" => requests.size = Size::Fixed(value.parse()?),
            "--keyed" => requests.keyed = value == "yes",
            "--durability" => requests.durability = Some(value),
            "--seed" => requests.seed = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    if !load.address.ip().is_loopback() {
        return Err("the address must be loopback".into());
    }
    requests.host = load.address.to_string();
    Ok(Arguments { load, requests, threads })
}

fn parse_times(name: &str) -> Result<Times> {
    match name {
        "advancing" => Ok(Times::Advancing),
        "equal" => Ok(Times::Equal),
        "second" => Ok(Times::Second),
        _ => Err(USAGE.into()),
    }
}

/// One line per figure, so that a shell script can read it too. `accepted` and `refused` are events.
fn print(totals: &Totals, batch: u64, cpu: f64) -> Result<()> {
    let status = |wanted: fn(u16) -> bool| -> u64 {
        totals.statuses.iter().filter(|(status, _)| wanted(**status)).map(|(_, count)| count).sum()
    };
    let seconds = nanos_to(totals.nanos, 1e9);
    let accepted = status(|status| matches!(status, 200 | 202)) * batch;
    let statuses: Vec<String> =
        totals.statuses.iter().map(|(status, count)| format!("\"{status}\": {count}")).collect();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{{")?;
    writeln!(out, "  \"requests\": {},", totals.sent)?;
    writeln!(out, "  \"statuses\": {{{}}},", statuses.join(", "))?;
    writeln!(out, "  \"accepted\": {accepted},")?;
    writeln!(out, "  \"refused\": {},", status(|status| status == 429 || status == 503) * batch)?;
    writeln!(
        out,
        "  \"errors\": {},",
        totals.errors + status(|status| !matches!(status, 200 | 202 | 429 | 503))
    )?;
    writeln!(out, "  \"unanswered\": {},", totals.unanswered)?;
    writeln!(out, "  \"seconds\": {seconds:.3},")?;
    writeln!(out, "  \"accepted_per_second\": {:.1},", as_f64(usize::try_from(accepted)?) / seconds)?;
    writeln!(out, "  \"cpu_seconds\": {cpu:.2},")?;
    writeln!(out, "  \"latencies\": {},", totals.latencies.total())?;
    for (name, per_100_000) in
        [("p50", 50_000), ("p90", 90_000), ("p99", 99_000), ("p99_9", 99_900), ("p99_99", 99_990)]
    {
        writeln!(out, "  \"{name}_ms\": {:.4},", nanos_to(totals.latencies.quantile(per_100_000), 1e6))?;
    }
    writeln!(out, "  \"max_ms\": {:.4}", nanos_to(totals.latencies.max(), 1e6))?;
    writeln!(out, "}}")?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of events and bytes are far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of minutes are far below 2^52")]
fn nanos_to(nanos: u64, unit: f64) -> f64 {
    nanos as f64 / unit
}
