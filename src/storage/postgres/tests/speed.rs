//! Not a test but a measurement: `cargo test --release -- --ignored --nocapture speed`.

use std::time::{Duration, Instant};

use super::*;
use crate::row::{COLUMNS, COPY_HEADER, COPY_TRAILER};

const ROWS: u64 = 5000;
const BATCHES: u64 = 60;

/// About 200 bytes an event, from ten services, as 5,000 requests of one or as 50 of a hundred.
fn batch(number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..ROWS {
        let at = NOON * 1000 + (number * ROWS + index) * 37;
        let chance = (number * ROWS + index).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let id = EventId::random(at / 1000, std::array::from_fn(|byte| chance[byte % 8]));
        row::begin(&mut bytes, id, Timestamp::from_micros(i64::try_from(at).unwrap()), now());
        row::text(&mut bytes, format!("service-{}", index % 10).as_bytes());
        row::text(
            &mut bytes,
            b"something happened that is worth a line of about eighty bytes or a few more of it",
        );
        row::metadata(&mut bytes, Some(br#"{"user":"u-1234567","status":200,"path":"/a/b","ms":12.5}"#));
    }
    bytes
}

/// CPU time of a process, in clock ticks of 10 ms.
fn cpu(pid: &str) -> Duration {
    let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return Duration::ZERO };
    let fields: Vec<_> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// The CPU time of every process of PostgreSQL that is a child of the cluster's.
fn server_cpu(database: &Database) -> Duration {
    let own = database.client().query_one("SELECT pg_backend_pid()::text", &[]).unwrap();
    let parent = |pid: &str| -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(text.rsplit_once(") ")?.1.split(' ').nth(1)?.to_owned())
    };
    let postmaster = parent(own.get(0));
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|pid| pid.starts_with(|c: char| c.is_ascii_digit()) && parent(pid) == postmaster)
        .map(|pid| cpu(&pid))
        .sum()
}

fn measure(name: &str, database: &Database, mut work: impl FnMut(u64)) {
    let (server, own) = (server_cpu(database), cpu("self"));
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let begin = Instant::now();
    for number in 0..BATCHES {
        work(number);
    }
    let wall = begin.elapsed();
    let (server, own) = (server_cpu(database).saturating_sub(server), cpu("self").saturating_sub(own));
    let rows = ROWS * BATCHES;
    println!(
        "{name}: {} rows/s; us/row: {:.2} wall, {:.2} here, {:.2} PostgreSQL",
        u128::from(rows) * 1_000_000 / wall.as_micros(),
        wall.as_secs_f64() * 1e6 / 3e5,
        own.as_secs_f64() * 1e6 / 3e5,
        server.as_secs_f64() * 1e6 / 3e5,
    );
}

#[test]
#[ignore = "a measurement"]
fn speed() {
    let batches: Vec<_> = (0..BATCHES).map(batch).collect();
    for round in 0..2 {
        let (database, _repository) = prepared();
        let mut client = database.client();
        measure("plain COPY, one connection", &database, |number| {
            use std::io::Write as _;
            let mut writer = client.copy_in(&format!("COPY events ({COLUMNS}) FROM STDIN BINARY")).unwrap();
            writer.write_all(COPY_HEADER).unwrap();
            for piece in batches[usize::try_from(number).unwrap()].chunks(64 * 1024) {
                writer.write_all(piece).unwrap();
            }
            writer.write_all(COPY_TRAILER).unwrap();
            assert_eq!(writer.finish().unwrap(), ROWS);
        });
        let rows: Vec<Vec<&[u8]>> =
            batches.iter().map(|batch| row::rows(batch).map(|row| row.bytes()).collect()).collect();
        let hundreds: Vec<Vec<Vec<u8>>> =
            rows.iter().map(|rows| rows.chunks(100).map(<[&[u8]]>::concat).collect()).collect();
        let hundreds: Vec<Vec<&[u8]>> =
            hundreds.iter().map(|runs| runs.iter().map(Vec::as_slice).collect()).collect();
        for (name, runs, path) in [
            ("store, runs of 1", &rows, StorePath::Copy),
            ("store, runs of 100", &hundreds, StorePath::Copy),
            ("stage, runs of 100", &hundreds, StorePath::Stage),
        ] {
            let (database, repository) = prepared();
            measure(&format!("{round}: {name}"), &database, |number| {
                let runs = &runs[usize::try_from(number).unwrap()];
                assert_eq!(repository.store(runs, &[], path).unwrap().stored, ROWS);
            });
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn speed_of_queries() {
    use crate::storage::{Filter, Order, Page};
    const FILL: u64 = 400;

    let (database, repository) = prepared();
    // Two million events over 20 hours.
    let bytes_per_batch = |number: u64| {
        let mut bytes = Vec::new();
        for index in 0..ROWS {
            let at = NOON * 1000 + (number * ROWS + index) * 36_000 - 36_000_000_000;
            let chance = (number * ROWS + index).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            let id = EventId::random(at / 1000, std::array::from_fn(|byte| chance[byte % 8]));
            row::begin(&mut bytes, id, Timestamp::from_micros(i64::try_from(at).unwrap()), now());
            row::text(&mut bytes, format!("service-{}", index * index % 97).as_bytes());
            row::text(&mut bytes, b"something happened that is worth a line");
            row::metadata(&mut bytes, None);
        }
        bytes
    };
    for number in 0..FILL {
        store(&repository, &[&bytes_per_batch(number)], StorePath::Copy, (ROWS, 0));
    }
    let begin = i64::try_from(NOON * 1000).unwrap() - 36_000_000_000;
    let at = |index: u64| Timestamp::from_micros(begin + i64::try_from(index * 36_000).unwrap());
    for analyzed in [false, true] {
        if analyzed {
            database.execute("VACUUM ANALYZE");
        }
        for service in [None, Some("service-4"), Some("none")] {
            let filter = Filter {
                service: service.map(str::to_owned),
                from: Timestamp::from_micros(begin - 4_321_000_000),
                to: at(FILL * ROWS - 12_345),
            };
            let newest = Page { filter: filter.clone(), order: Order::Desc, limit: 101, after: None };
            let middle = Page { after: Some((at(1_000_000), EventId::floor(0))), ..newest.clone() };
            let oldest = Page { order: Order::Asc, ..newest.clone() };
            let time = |work: &dyn Fn()| {
                let mut times: Vec<_> = (0..100)
                    .map(|_| {
                        #[expect(clippy::disallowed_methods, reason = "a measurement")]
                        let begin = Instant::now();
                        work();
                        begin.elapsed()
                    })
                    .collect();
                times.sort_unstable();
                (times[50], times[98])
            };
            for (name, page) in [("newest", &newest), ("middle", &middle), ("oldest", &oldest)] {
                let found = repository.page(page).unwrap().len();
                println!(
                    "analyzed {analyzed}, {service:?}, {name}: {found} in {:?}",
                    time(&|| drop(repository.page(page)))
                );
            }
            println!(
                "   count {}: {:?}",
                repository.count(&filter).unwrap(),
                time(&|| drop(repository.count(&filter)))
            );
        }
    }
}
