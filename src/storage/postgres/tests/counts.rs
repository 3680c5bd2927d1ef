use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::storage::postgres::{Difference, PostgresRepository, sweep};
use crate::storage::{Day, Sweeping as _};

const HOUR: u64 = 3_600_000_000;

/// Thirty events of three services in three hours, one of which lies in the default partition.
fn filled() -> (Database, PostgresRepository) {
    let (database, repository) = prepared();
    let mut rows = Vec::new();
    for index in 0..10_u64 {
        for (hour, service) in [(0, "a"), (1, "b"), (200 * 24, "c")] {
            rows.extend(event(NOON * 1000 + hour * HOUR + index * 1000, 1, service, "m"));
        }
    }
    store(&repository, &[&rows], StorePath::Copy, (30, 0));
    (database, repository)
}

fn all(
    repository: &PostgresRepository,
    each: fn(&PostgresRepository, Timestamp) -> Result<Vec<Difference>, crate::storage::StoreError>,
) -> Vec<(String, i64, i64)> {
    let hours = repository.counted_hours().unwrap();
    let differences = hours.into_iter().flat_map(|hour| each(repository, hour).unwrap());
    differences.map(|found| (found.service, found.events, found.counted)).collect()
}

const BREAK: &str = "UPDATE event_counts SET count = 7 WHERE service = 'a'; DELETE FROM event_counts WHERE service = 'b'; \
    INSERT INTO event_counts VALUES ('ghost', '2026-01-01 12:00Z', 5), ('old', '2019-05-01 00:00Z', 3); \
    UPDATE event_counts SET count = 11 WHERE service = 'c'";

#[test]
fn differences_of_all_kinds_are_found_and_put_right() {
    let (database, repository) = filled();
    assert_eq!(all(&repository, PostgresRepository::counts_check), []);
    database.execute(BREAK);
    let mut wanted = vec![
        ("old".to_owned(), 0, 3),
        ("a".to_owned(), 10, 7),
        ("ghost".to_owned(), 0, 5),
        ("b".to_owned(), 10, 0),
        ("c".to_owned(), 10, 11),
    ];
    assert_eq!(all(&repository, PostgresRepository::counts_check), wanted);
    assert_eq!(all(&repository, PostgresRepository::counts_repair), wanted, "and says what it was");
    assert_eq!(all(&repository, PostgresRepository::counts_check), []);
    assert_eq!(all(&repository, PostgresRepository::counts_repair), []);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM event_counts"), 30);
    // In a table whose counts are gone altogether.
    database.execute("DELETE FROM event_counts");
    wanted = [("a", 10, 0), ("b", 10, 0), ("c", 10, 0)].map(|(name, a, b)| (name.to_owned(), a, b)).to_vec();
    assert_eq!(all(&repository, PostgresRepository::counts_repair), wanted);
}

#[test]
fn a_repair_while_servers_write_loses_none_of_what_they_count() {
    let (database, repository) = filled();
    database.execute(BREAK);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (server, path) in [(0_u64, StorePath::Copy), (1, StorePath::Stage), (2, StorePath::Copy)] {
            let (over, database) = (&over, &database);
            scope.spawn(move || {
                let repository = database.repository();
                for round in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let micros = NOON * 1000 + 60_000_000 * (server + 1) + round * 1000;
                    let rows: Vec<u8> = ["c", "b", "a"]
                        .iter()
                        .zip(1..)
                        .flat_map(|(service, tail)| event(micros, tail, service, "m"))
                        .collect();
                    store(&repository, &[&rows], path, (3, 0));
                }
            });
        }
        let mut found = 0;
        for _ in 0..20 {
            found += all(&repository, PostgresRepository::counts_repair).len();
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(found, 5, "what is being written never looks wrong");
    });
    assert_eq!(all(&repository, PostgresRepository::counts_check), []);
    let differ = database
        .number("SELECT (SELECT sum(count) FROM event_counts)::bigint - (SELECT count(*) FROM events)");
    assert_eq!(differ, 0);
}

#[test]
fn no_repair_runs_beside_a_sweep() {
    let (_database, repository) = filled();
    let mut sweeping = sweep::begin(&repository.connections, now()).unwrap().expect("nobody else sweeps");
    let hour = Timestamp::from_millis(i64::try_from(NOON).unwrap());
    let error = repository.counts_repair(hour).unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("55P03"), "{error}");
    assert_eq!(repository.counts_check(hour).unwrap(), []);
    let today = Day::of(now());
    assert_eq!(sweeping.drop_day(today).unwrap(), 20);
    sweeping.end(None).unwrap();
    drop(sweeping);
    while repository.counts_repair(hour).is_err() {}
    assert_eq!(all(&repository, PostgresRepository::counts_check), []);
}
