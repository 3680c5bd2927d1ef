//! The baseline of batches: a bare COPY BINARY on one connection, in transactions of 5,000 rows.
//!
//! `bare_copy URL SECONDS [advancing|equal] [life|BYTES]` copies into `peer.events` (perf/peers/schema.sql) and prints a JSON
//! object with the rows, the seconds and its own CPU time. The rows are those of the load generator.
//! Their ids have random bits after the milliseconds, and their timestamps are 10 us apart, or all
//! equal.

use std::error::Error;
use std::io::Write as _;

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::clock::{Clock, cpu_seconds, wall_micros};
use crate::events::{Event, EventGenerator, Size};

#[path = "load/clock.rs"]
mod clock;
#[path = "load/events.rs"]
mod events;

const COPY: &str =
    "COPY peer.events (event_id, timestamp, ingested_at, service, message, metadata) FROM STDIN BINARY";
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TRAILER: &[u8] = &[0xff, 0xff];
const BATCH_ROWS: usize = 5_000;
/// Batches that are encoded before the measurement and sent in turn.
const BATCHES: usize = 20;
const SPACING: u64 = 10;
/// Microseconds from 1970 to 2000, where PostgreSQL's time begins.
const POSTGRES_EPOCH_MICROS: u64 = 946_684_800_000_000;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Batch {
    bytes: Vec<u8>,
    /// Where the id of each row begins. The two times follow it.
    ids: Vec<usize>,
}

fn main() -> Result<()> {
    let usage = "usage: bare_copy URL SECONDS [advancing|equal] [life|BYTES]";
    let mut args = std::env::args().skip(1);
    let (url, seconds) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?.parse::<f64>()?);
    let spacing = if args.next().as_deref() == Some("equal") { 0 } else { SPACING };
    let size = match args.next().as_deref() {
        None | Some("life") => Size::Life,
        Some(bytes) => Size::Fixed(bytes.parse()?),
    };
    let mut client = postgres::Client::connect(&url, postgres::NoTls)?;
    let mut generator = EventGenerator::new(1, size);
    let mut batches: Vec<Batch> = (0..BATCHES).map(|_| build(&mut generator)).collect();
    let mut rng = StdRng::seed_from_u64(wall_micros());
    let (clock, cpu) = (Clock::start(), cpu_seconds());
    let (mut rows, mut micros, mut elapsed) = (0_u32, wall_micros(), 0.0);
    for nth in (0..BATCHES).cycle() {
        let batch = &mut batches[nth];
        for &at in &batch.ids {
            set_id_and_times(&mut batch.bytes[at..], micros, rng.random());
            micros += spacing;
        }
        let mut writer = client.copy_in(COPY)?;
        writer.write_all(&batch.bytes)?;
        rows += u32::try_from(writer.finish()?)?;
        elapsed = std::time::Duration::from_nanos(clock.nanos()).as_secs_f64();
        if elapsed >= seconds {
            break;
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{{\"rows\": {rows}, \"seconds\": {elapsed:.3}, \"rows_per_second\": {:.1}, \"cpu_seconds\": {:.2}}}",
        f64::from(rows) / elapsed,
        cpu_seconds() - cpu
    )?;
    Ok(())
}

fn build(generator: &mut EventGenerator) -> Batch {
    let (mut bytes, mut ids) = (COPY_HEADER.to_vec(), Vec::with_capacity(BATCH_ROWS));
    for _ in 0..BATCH_ROWS {
        let event: Event = generator.event();
        bytes.extend_from_slice(&6_i16.to_be_bytes());
        append(&mut bytes, &[&[0; 16]]);
        ids.push(bytes.len() - 16);
        append(&mut bytes, &[&[0; 8]]);
        append(&mut bytes, &[&[0; 8]]);
        append(&mut bytes, &[event.service.as_bytes()]);
        append(&mut bytes, &[event.message.as_bytes()]);
        match event.metadata {
            Some(json) => append(&mut bytes, &[&[1], json.as_bytes()]),
            None => bytes.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    bytes.extend_from_slice(COPY_TRAILER);
    Batch { bytes, ids }
}

fn append(bytes: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    bytes.extend_from_slice(&i32::try_from(length).unwrap_or(i32::MAX).to_be_bytes());
    for part in parts {
        bytes.extend_from_slice(part);
    }
}

/// A UUIDv7 with random bits after the milliseconds, then the timestamp twice, each behind its length.
fn set_id_and_times(row: &mut [u8], micros: u64, random: [u8; 10]) {
    row[..8].copy_from_slice(&((micros / 1000) << 16).to_be_bytes());
    row[6..16].copy_from_slice(&random);
    row[6] = row[6] & 0x0f | 0x70;
    row[8] = row[8] & 0x3f | 0x80;
    let time = (micros - POSTGRES_EPOCH_MICROS).to_be_bytes();
    row[20..28].copy_from_slice(&time);
    row[32..40].copy_from_slice(&time);
}
