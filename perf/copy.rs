//! Compares the transaction of a batch with a bare COPY of the same rows into the same table, in
//! turns.
//!
//! `copy DIRECTORY` creates an embedded cluster there and does not remove it. Prints rows per
//! second and CPU of this process per row, for a bare COPY BINARY, for both paths of the
//! repository, and for the faster path with a GIN index on `metadata`.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};
use aurore_events::event::row::{self, COLUMNS, COPY_HEADER, COPY_TRAILER};
use aurore_events::event::{ArrivalNumber, EventId, Timestamp};
use aurore_events::partitions::ONLINE;
use aurore_events::storage::postgres::embedded::{Cluster, ClusterLimits};
use aurore_events::storage::postgres::{PostgresLimits, PostgresRepository};
use aurore_events::storage::{Day, EventRepository as _, StorePath};
use rand::RngExt as _;

const ROUNDS: usize = 5;
const BATCHES: usize = 40;
/// A batch has this many requests of `EVENTS` events.
const REQUESTS: usize = 50;
const EVENTS: usize = 100;
const ROWS: u64 = (REQUESTS * EVENTS) as u64;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: copy DIRECTORY")?);
    let clock = Clock::system();
    let cluster = Cluster::start(&directory, ClusterLimits::default(), &clock)?;
    let repository = PostgresRepository::new(&cluster.target(), PostgresLimits::default());
    repository.prepare()?;
    repository.create_partition(Day::from_timestamp(clock.wall()), ONLINE)?;
    let socket = std::fs::canonicalize(directory.join("postgres"))?;
    let url = format!("host={} user=postgres dbname=aurore_events", socket.display());
    let mut client = postgres::Client::connect(&url, postgres::NoTls)?;

    let batches = batches(&clock);
    let runs: Vec<Vec<&[u8]>> =
        batches.iter().map(|batch| batch.iter().map(Vec::as_slice).collect()).collect();
    let mut results: [Vec<(f64, f64)>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (nth, results) in results.iter_mut().enumerate() {
            client.batch_execute(
                "DROP INDEX IF EXISTS perf_gin; TRUNCATE events, event_counts, event_minutes; CHECKPOINT",
            )?;
            if nth == 3 {
                client
                    .batch_execute("CREATE INDEX perf_gin ON events USING gin (metadata jsonb_path_ops)")?;
            }
            let (begin, cpu) = (clock.now(), own_cpu()?);
            for runs in &runs {
                match nth {
                    0 => bare_copy(&mut client, runs)?,
                    1 | 3 => drop(repository.store(runs, &[], StorePath::Copy)?),
                    _ => drop(repository.store(runs, &[], StorePath::Staging)?),
                }
            }
            results.push(rate(clock.now(), begin, own_cpu()?.saturating_sub(cpu)));
        }
    }
    drop((client, repository));
    cluster.stop()?;

    let medians = results.map(|mut rounds| {
        rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
        rounds[ROUNDS / 2]
    });
    let names = [
        "bare COPY, one connection",
        "batch, COPY into the table",
        "batch, stage table",
        "batch, with GIN on metadata",
    ];
    let mut out = std::io::stdout().lock();
    for (name, (rows, cpu)) in names.into_iter().zip(medians) {
        writeln!(
            out,
            "{name:27} {rows:9.0} rows/s  {cpu:5.2} us of CPU per row  {:.2} x",
            rows / medians[0].0
        )?;
    }
    Ok(())
}

/// Events of some 200 bytes, of ten services, with increasing times and random ids.
fn batches(clock: &Clock) -> Vec<Vec<Vec<u8>>> {
    let (now, mut rng) = (clock.wall(), clock.rng());
    let mut nth = 0;
    let mut request = || {
        let mut bytes = Vec::new();
        for _ in 0..EVENTS {
            let at = Timestamp::from_micros(now.micros() + nth * 10);
            let millis = u64::try_from(at.millis()).expect("the clock is past 1970");
            row::append_header(
                &mut bytes,
                EventId::random(millis, rng.random()),
                at,
                now,
                ArrivalNumber::default(),
            );
            row::append_text(&mut bytes, format!("service-{}", nth % 10).as_bytes());
            row::append_text(&mut bytes, b"payment accepted in 128 ms for order 4711");
            row::append_metadata(
                &mut bytes,
                Some(
                    format!(r#"{{"region":"eu-west-1","attempt":1,"trace":"{:024x}"}}"#, rng.random::<u64>())
                        .as_bytes(),
                ),
            );
            nth += 1;
        }
        bytes
    };
    (0..BATCHES).map(|_| (0..REQUESTS).map(|_| request()).collect()).collect()
}

fn bare_copy(client: &mut postgres::Client, runs: &[&[u8]]) -> Result<()> {
    let mut writer = client.copy_in(&format!("COPY events ({COLUMNS}) FROM STDIN BINARY"))?;
    writer.write_all(COPY_HEADER)?;
    for run in runs {
        writer.write_all(run)?;
    }
    writer.write_all(COPY_TRAILER)?;
    if writer.finish()? == ROWS { Ok(()) } else { Err("COPY stored fewer rows than it was given".into()) }
}

/// Rows per second, and microseconds of CPU per row.
fn rate(now: Moment, begin: Moment, cpu: Duration) -> (f64, f64) {
    let rows = f64::from(u32::try_from(BATCHES).unwrap_or(0)) * f64::from(u32::try_from(ROWS).unwrap_or(0));
    (rows / now.since(begin).as_secs_f64(), cpu.as_secs_f64() * 1e6 / rows)
}

/// User and system time of this process, with the kernel's resolution of 10 ms.
fn own_cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?.1;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
