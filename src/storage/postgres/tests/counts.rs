use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::storage::postgres::{CountMismatch, PostgresRepository, sweep};
use crate::storage::{Day, RetentionSweep as _};

const HOUR: u64 = 3_600_000_000;

/// Thirty events of three services in three hours; one hour lies in the default partition.
fn filled() -> (TestDatabase, PostgresRepository) {
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
    each: fn(&PostgresRepository, Timestamp) -> Result<Vec<CountMismatch>, crate::storage::StoreError>,
) -> Vec<(String, i64, i64)> {
    let hours = repository.counted_hours().unwrap();
    let mismatches = hours.into_iter().flat_map(|hour| each(repository, hour).unwrap());
    mismatches.map(|found| (found.service, found.events, found.counted)).collect()
}

const BREAK: &str = "UPDATE event_counts SET count = 7 WHERE service = 'a'; DELETE FROM event_counts WHERE service = 'b'; \
    INSERT INTO event_counts VALUES ('ghost', '2026-01-01 12:00Z', 5), ('old', '2019-05-01 00:00Z', 3); \
    UPDATE event_counts SET count = 11 WHERE service = 'c'";

#[test]
fn counts_repair_fixes_every_kind_of_mismatch() {
    let (database, repository) = filled();
    assert_eq!(all(&repository, PostgresRepository::check_counts), []);
    database.execute(BREAK);
    let mut expected = vec![
        ("old".to_owned(), 0, 3),
        ("a".to_owned(), 10, 7),
        ("ghost".to_owned(), 0, 5),
        ("b".to_owned(), 10, 0),
        ("c".to_owned(), 10, 11),
    ];
    assert_eq!(all(&repository, PostgresRepository::check_counts), expected);
    assert_eq!(all(&repository, PostgresRepository::repair_counts), expected, "returns the mismatches");
    assert_eq!(all(&repository, PostgresRepository::check_counts), []);
    assert_eq!(all(&repository, PostgresRepository::repair_counts), []);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM event_counts"), 30);
    // All counts are missing.
    database.execute("DELETE FROM event_counts");
    expected =
        [("a", 10, 0), ("b", 10, 0), ("c", 10, 0)].map(|(name, a, b)| (name.to_owned(), a, b)).to_vec();
    assert_eq!(all(&repository, PostgresRepository::repair_counts), expected);
}

#[test]
fn counts_repair_keeps_the_counts_of_concurrent_writers() {
    let (database, repository) = filled();
    database.execute(BREAK);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (server, path) in [(0_u64, StorePath::Copy), (1, StorePath::Staging), (2, StorePath::Copy)] {
            let (stop, database) = (&stop, &database);
            scope.spawn(move || {
                let repository = database.repository();
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
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
            found += all(&repository, PostgresRepository::repair_counts).len();
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(found, 5, "concurrent stores cause no mismatch");
    });
    assert_eq!(all(&repository, PostgresRepository::check_counts), []);
    let differ = database
        .number("SELECT (SELECT sum(count) FROM event_counts)::bigint - (SELECT count(*) FROM events)");
    assert_eq!(differ, 0);
}

/// Two batches in flight, as the writer has them, with the same keys in opposite orders, beside a
/// sweep that lowers the counts of their hours and a repair.
#[test]
fn concurrent_batches_sweeps_and_repairs_do_not_deadlock() {
    const ROUNDS: u64 = 60;
    let (database, repository) = prepared();
    let rows = |thread: u64, round: u64| {
        let mut rows: Vec<_> = (0..3 * 20_u64)
            .map(|key| {
                let (hour, service) = (key % 3, u8::try_from(key / 3).unwrap());
                let micros = NOON * 1000 + hour * HOUR + (thread * ROUNDS + round) * 1000;
                event(micros, service, &format!("service-{service}"), "m")
            })
            .collect();
        if thread == 1 {
            rows.reverse();
        }
        rows.concat()
    };
    let running = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (repository, running) = (&repository, &running);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let path = if round % 4 == 3 { StorePath::Staging } else { StorePath::Copy };
                    let stored = repository.store(&[&rows(thread, round)], &[], path);
                    running.fetch_sub(usize::from(stored.is_err() || round == ROUNDS - 1), Ordering::Relaxed);
                    assert_eq!(stored.unwrap().stored, 60, "{thread} {round}");
                }
            });
        }
        let (first, middle) = (EventId::floor(NOON), EventId::floor(NOON + 2 * 3_600_000));
        while running.load(Ordering::Relaxed) > 0 {
            if let Some(mut sweep_run) = sweep::begin(&repository.connections, now()).unwrap() {
                for _ in 0..3 {
                    sweep_run.delete_events(first, middle, 50).unwrap();
                }
            }
            for hour in 0..3 {
                let hour = Timestamp::from_micros(i64::try_from(NOON * 1000 + hour * HOUR).unwrap());
                match repository.repair_counts(hour) {
                    // PostgreSQL detects the end of the sweep with a delay.
                    Err(error) if error.sqlstate.as_deref() == Some("55P03") => {}
                    mismatches => assert_eq!(mismatches.unwrap(), []),
                }
            }
        }
    });
    assert_eq!(all(&repository, PostgresRepository::check_counts), []);
    let minutes = "SELECT sum(count)::bigint FROM event_minutes WHERE service <> ''";
    assert_eq!(database.number(minutes), i64::try_from(2 * ROUNDS * 60).unwrap());
}

#[test]
fn counts_repair_is_excluded_by_a_sweep() {
    let (_database, repository) = filled();
    let mut sweep_run =
        sweep::begin(&repository.connections, now()).unwrap().expect("the sweep lock is free");
    let hour = Timestamp::from_millis(i64::try_from(NOON).unwrap());
    let error = repository.repair_counts(hour).unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("55P03"), "{error}");
    assert_eq!(repository.check_counts(hour).unwrap(), []);
    let today = Day::from_timestamp(now());
    assert_eq!(sweep_run.drop_partition(today).unwrap(), 20);
    sweep_run.finish(None).unwrap();
    drop(sweep_run);
    while repository.repair_counts(hour).is_err() {}
    assert_eq!(all(&repository, PostgresRepository::check_counts), []);
}
