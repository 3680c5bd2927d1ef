//! What the transaction of a batch costs beside a bare COPY: the same rows into the same table, in turns.
//!
//! `copy DIRECTORY`: makes a private cluster there, as the server does, and leaves it behind. Prints rows a second
//! and this process's CPU a row, for one connection doing COPY BINARY, for the repository on both of its paths, and for
//! the quicker of them with an index on the members of metadata.

use std::error::Error;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};
use aurore_events::event::row::{self, COLUMNS, COPY_HEADER, COPY_TRAILER};
use aurore_events::event::{EventId, Timestamp};
use aurore_events::storage::postgres::embedded::{Cluster, ClusterLimits};
use aurore_events::storage::postgres::{Limits, PostgresRepository};
use aurore_events::storage::{EventRepository as _, StorePath};
use rand::RngExt as _;

const ROUNDS: usize = 5;
const BATCHES: usize = 40;
/// A batch is so many requests of so many events.
const REQUESTS: usize = 50;
const EVENTS: usize = 100;
const ROWS: u64 = (REQUESTS * EVENTS) as u64;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: copy DIRECTORY")?);
    let clock = Clock::system();
    let cluster = Cluster::start(&directory, ClusterLimits::default(), &clock)?;
    let repository = PostgresRepository::new(&cluster.target(), Limits::default());
    repository.prepare(clock.wall())?;
    let socket = std::fs::canonicalize(directory.join("postgres"))?;
    let url = format!("host={} user=postgres dbname=aurore_events", socket.display());
    let mut client = postgres::Client::connect(&url, postgres::NoTls)?;

    let batches = batches(&clock);
    let runs: Vec<Vec<&[u8]>> =
        batches.iter().map(|batch| batch.iter().map(Vec::as_slice).collect()).collect();
    let mut figures: [Vec<(f64, f64)>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for (nth, figures) in figures.iter_mut().enumerate() {
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
                    _ => drop(repository.store(runs, &[], StorePath::Stage)?),
                }
            }
            figures.push(rate(clock.now(), begin, own_cpu()?.saturating_sub(cpu)));
        }
    }
    drop((client, repository));
    cluster.stop()?;

    let medians = figures.map(|mut rounds| {
        rounds.sort_by(|one, other| one.0.total_cmp(&other.0));
        rounds[ROUNDS / 2]
    });
    let names = [
        "bare COPY, one connection",
        "batch, straight",
        "batch, through the stage",
        "batch, with GIN on metadata",
    ];
    let mut out = std::io::stdout().lock();
    for (name, (rows, cpu)) in names.into_iter().zip(medians) {
        writeln!(
            out,
            "{name:27} {rows:9.0} rows/s  {cpu:5.2} us of CPU here a row  {:.2} x",
            rows / medians[0].0
        )?;
    }
    Ok(())
}

/// Some 200 bytes an event, of ten services, as they come: the time goes on, the rest of an id is chance.
fn batches(clock: &Clock) -> Vec<Vec<Vec<u8>>> {
    let (now, mut chance) = (clock.wall(), clock.rng());
    let mut nth = 0;
    let mut request = || {
        let mut bytes = Vec::new();
        for _ in 0..EVENTS {
            let at = Timestamp::from_micros(now.micros() + nth * 10);
            let millis = u64::try_from(at.millis()).expect("the clock is past 1970");
            row::begin(&mut bytes, EventId::random(millis, chance.random()), at, now);
            row::text(&mut bytes, format!("service-{}", nth % 10).as_bytes());
            row::text(&mut bytes, b"payment accepted in 128 ms for order 4711");
            row::metadata(
                &mut bytes,
                Some(
                    format!(
                        r#"{{"region":"eu-west-1","attempt":1,"trace":"{:024x}"}}"#,
                        chance.random::<u64>()
                    )
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
    if writer.finish()? == ROWS { Ok(()) } else { Err("COPY took fewer rows than it was given".into()) }
}

/// Rows a second, and microseconds of CPU a row.
fn rate(now: Moment, begin: Moment, cpu: Duration) -> (f64, f64) {
    let rows = f64::from(u32::try_from(BATCHES).unwrap_or(0)) * f64::from(u32::try_from(ROWS).unwrap_or(0));
    (rows / now.since(begin).as_secs_f64(), cpu.as_secs_f64() * 1e6 / rows)
}

/// User and system time, in the hundredths of a second that the kernel counts in.
fn own_cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("no name in /proc/self/stat")?.1;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
