use super::*;
use crate::clock::Clock;
use crate::storage::postgres::PostgresRepository;
use crate::storage::postgres::sweep::{self, PostgresSweep};
use crate::storage::{Day, DeletedChunk, Filter, RetentionSweep as _};

const DAY: u64 = 86_400_000_000;
const HOUR: u64 = 3_600_000_000;
const DETACHED: &str =
    "SELECT count(*) FROM pg_class WHERE relname ~ '^events_[0-9]{8}_retired$' AND relkind = 'r'";
const EVENTS: &str = "SELECT count(*) FROM events";
const ALL: (EventId, EventId) = (EventId::from_bytes([0; 16]), EventId::from_bytes([0xff; 16]));

fn day(days_back: i64) -> Day {
    Day::from_number(Day::from_timestamp(now()).number() - days_back)
}

fn sweep(repository: &PostgresRepository) -> PostgresSweep<'_> {
    sweep::begin(&repository.connections, now()).unwrap().expect("the sweep lock is free")
}

/// Ten events per day for ten days, one hour apart from noon on, of two services. Each day has a
/// partition.
fn filled() -> (TestDatabase, PostgresRepository) {
    let (database, repository) = prepared();
    let mut rows = Vec::new();
    for back in 0..10 {
        for hour in 0..10 {
            let service = if hour % 2 == 0 { "a" } else { "b" };
            rows.extend(event(NOON * 1000 - back * DAY + hour * HOUR, 1, service, "m"));
        }
    }
    store(&repository, &[&rows], StorePath::Copy, (100, 0));
    drain(&repository);
    assert_counts_match_events(&database);
    (database, repository)
}

/// Asserts that `event_counts` equals the number of events per service and hour.
#[track_caller]
fn assert_counts_match_events(database: &TestDatabase) {
    let differences = database.number(
        "SELECT count(*) FROM (SELECT service, date_trunc('hour', timestamp, 'UTC') AS hour, count(*) \
         FROM events GROUP BY 1, 2) AS e FULL JOIN event_counts AS c USING (service, hour) \
         WHERE c.count IS DISTINCT FROM e.count",
    );
    assert_eq!(differences, 0);
}

#[test]
fn sweep_drops_a_day_with_its_partition_and_counts() {
    let (database, repository) = filled();
    assert!(repository.partition_days().unwrap().contains(&day(9)));
    let mut sweep = sweep(&repository);
    assert_eq!(sweep.drop_partition(day(9)).unwrap(), 10);
    assert_eq!(sweep.drop_partition(day(8)).unwrap(), 10);
    assert_eq!(repository.last_sweep().unwrap(), None, "the sweep has not finished");
    sweep.finish(None).unwrap();
    assert!(repository.last_sweep().unwrap().is_some());
    assert!(!repository.partition_days().unwrap().contains(&day(9)));
    assert_eq!((database.number(EVENTS), database.number(DETACHED)), (80, 0));
    assert_counts_match_events(&database);
    assert_eq!(repository.count(&Filter::between(Timestamp::default(), now())).unwrap(), 70);
    let noted = database.number(
        "SELECT partitions_dropped * 1000 + events_dropped FROM retention_runs WHERE finished_at IS NOT NULL",
    );
    assert_eq!(noted, 2020);
    // A late event of a dropped day is stored; draining creates its partition again for the next
    // sweep.
    store(&repository, &[&event(NOON * 1000 - 9 * DAY, 2, "a", "late")], StorePath::Copy, (1, 0));
    drain(&repository);
    assert!(repository.partition_days().unwrap().contains(&day(9)));
    assert_counts_match_events(&database);
}

#[test]
fn sweep_never_drops_a_day_that_is_not_over_by_the_clock_of_the_database() {
    let (database, repository) = prepared();
    let conditions = repository.sweep_conditions().unwrap();
    assert!(conditions.is_owner);
    let now = Clock::system().wall();
    assert!(conditions.database_time.micros().abs_diff(now.micros()) < HOUR);
    create_partitions(&repository, now);
    let mut sweep = sweep(&repository);
    for ahead in [0, 1, 5] {
        let day = Day::from_number(Day::from_timestamp(now).number() + ahead);
        let error = sweep.drop_partition(day).unwrap_err();
        assert!(error.message.contains("is not over"), "{error}");
        assert!(repository.partition_days().unwrap().contains(&day));
    }
    assert_eq!(database.number(DETACHED), 0);
    sweep.drop_partition(Day::from_number(Day::from_timestamp(now).number() - 1)).unwrap();
}

#[test]
fn sweep_deletes_events_in_chunks_and_lowers_the_counts() {
    let (database, repository) = filled();
    // One event in the default partition, and a cutoff in the middle of an hour.
    let extra =
        [event(NOON * 1000 - 20 * DAY, 5, "c", "m"), event(NOON * 1000 - 9 * DAY + 1000, 6, "a", "m")];
    store(&repository, &[&extra.concat()], StorePath::Copy, (2, 0));
    let before = EventId::floor(NOON - 9 * 86_400_000 + 3 * 3_600_000 + 1);
    let mut sweep = sweep(&repository);
    let mut after = ALL.0;
    let mut rows = Vec::new();
    loop {
        let DeletedChunk { rows: deleted, next } = sweep.delete_events(after, before, 2).unwrap();
        rows.push(deleted);
        assert_counts_match_events(&database);
        let Some(next) = next else { break };
        after = next;
    }
    assert_eq!(rows, [2, 2, 2, 0], "one in the default partition and five of the ninth day");
    assert_eq!(database.number(EVENTS), 96);
    assert_eq!(database.number("SELECT count(*) FROM event_counts WHERE service = 'c'"), 0);
    assert_eq!(database.number("SELECT events_deleted FROM retention_runs"), 6);
    assert_eq!(sweep.delete_events(ALL.0, before, 5000).unwrap(), DeletedChunk { rows: 0, next: None });
}

#[test]
fn sweep_deletes_minute_counts_per_hour_up_to_the_cutoff() {
    const LEFT: &str = "SELECT count(*) FROM event_minutes WHERE service <> ''";
    let (database, repository) = filled();
    // In the middle of the second hour of yesterday, which has an event.
    let edge = Timestamp::from_micros(i64::try_from(NOON * 1000 - DAY + HOUR + HOUR / 2).unwrap());
    let mut sweep = sweep::begin(&repository.connections, edge).unwrap().unwrap();
    let mut steps = 0;
    while sweep.delete_minute_counts().unwrap() {
        steps += 1;
    }
    assert_eq!(steps, 81, "ten hours of eight days and one hour of the ninth");
    assert_eq!(database.number(LEFT), 19);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM event_minutes WHERE service = ''"), 19);
}

#[test]
fn sweep_lock_is_exclusive_and_released_when_its_server_dies() {
    let (_database, repository) = filled();
    let first = sweep(&repository);
    assert!(repository.begin_sweep(now()).unwrap().is_none());
    drop(first);
    // PostgreSQL detects the closed connection with a delay.
    while repository.begin_sweep(now()).unwrap().is_none() {}
}

#[test]
fn sweep_drops_only_the_partitions_that_a_crash_left_detached() {
    let (database, repository) = filled();
    let mut crashed = sweep(&repository);
    assert_eq!(crashed.detach(day(9)).unwrap(), 10);
    assert_counts_match_events(&database);
    drop(crashed);
    assert_eq!(database.number(DETACHED), 1);
    // A partition that an operator detached to keep, and a table that only has a partition's name.
    database.execute("ALTER TABLE events DETACH PARTITION events_20251225; CREATE TABLE events_20200101 ()");
    assert!(!repository.partition_days().unwrap().contains(&day(7)));
    let mut next = loop {
        if let Some(sweep) = sweep::begin(&repository.connections, now()).unwrap() {
            break sweep;
        }
    };
    next.drop_detached_partitions().unwrap();
    assert_eq!(database.number(DETACHED), 0);
    assert_eq!(database.number("SELECT count(*) FROM events_20251225"), 10);
    assert_eq!(database.number("SELECT count(*) FROM events_20200101"), 0);
}

#[test]
fn sweep_does_not_cancel_readers_or_block_other_sessions() {
    let (database, repository) = filled();
    let mut reader = database.client();
    reader.batch_execute("BEGIN").unwrap();
    assert_eq!(reader.query_one(EVENTS, &[]).unwrap().get::<_, i64>(0), 100);
    let mut sweep = sweep(&repository);
    std::thread::scope(|scope| {
        let detaching = scope.spawn(|| {
            let error = sweep.drop_partition(day(9)).unwrap_err();
            assert_eq!(error.sqlstate.as_deref(), Some("55P03"), "{error}");
        });
        // Queries and batches succeed meanwhile, within their timeouts.
        let filter = Filter::between(now(), Timestamp::from_micros(now().micros() + 1));
        let mut tail = 10;
        while !detaching.is_finished() {
            assert!(repository.count(&filter).unwrap() > 0);
            store(&repository, &[&event(NOON * 1000, tail, "s", "m")], StorePath::Copy, (1, 0));
            tail = tail.wrapping_add(1).max(10);
            if tail == 255 {
                break;
            }
        }
        detaching.join().unwrap();
    });
    assert!(repository.partition_days().unwrap().contains(&day(9)), "the partition was not detached");
    assert_counts_match_events(&database);
    assert_eq!(reader.query_one("SELECT 1::bigint", &[]).unwrap().get::<_, i64>(0), 1);
    reader.batch_execute("COMMIT").unwrap();
    assert_eq!(sweep.drop_partition(day(9)).unwrap(), 10);
}

#[test]
fn sweep_drops_days_during_concurrent_stores() {
    let (database, repository) = filled();
    std::thread::scope(|scope| {
        let storing = scope.spawn(|| {
            let mut stored = 0;
            for index in 0..40_u64 {
                // Also into the days that are dropped.
                let rows: Vec<u8> =
                    (0..10).flat_map(|back| event(NOON * 1000 - back * DAY + index, 7, "s", "m")).collect();
                let rows_again: Vec<u8> = (0..10)
                    .flat_map(|back| event(NOON * 1000 - back * DAY + index * 1000, 9, "s", "m"))
                    .collect();
                let path = if index % 2 == 0 { StorePath::Staging } else { StorePath::Copy };
                let rows = if path == StorePath::Staging { rows } else { rows_again };
                loop {
                    match repository.store(&[&rows], &[], path) {
                        Ok(done) => break stored += done.stored,
                        Err(error)
                            if matches!(error.sqlstate.as_deref(), Some("40001" | "40P01" | "55P03")) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
            stored
        });
        let other = database.repository();
        let mut sweep = sweep(&repository);
        while !storing.is_finished() {
            for back in 5..10 {
                match sweep.drop_partition(day(back)) {
                    Ok(_) => {}
                    // Lock conflicts; or the partition does not exist, since its rows are in the
                    // default partition.
                    Err(error)
                        if matches!(
                            error.sqlstate.as_deref(),
                            Some("55P03" | "40P01" | "42P01" | "42809")
                        ) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            drain(&other);
        }
        assert!(storing.join().unwrap() > 0);
    });
    assert_counts_match_events(&database);
    assert_eq!(database.number(DETACHED), 0);
}

#[test]
fn sweep_deletes_dead_letters_older_than_the_cutoff() {
    let (database, repository) = prepared();
    database.execute(
        "INSERT INTO dead_events (event_id, timestamp, service, row, sqlstate, reason, died_at) \
         SELECT gen_random_uuid(), now(), 's', '', '22000', 'r', '2026-01-01 12:00Z'::timestamptz + n * interval '1 s' \
         FROM generate_series(-5, 4) n",
    );
    let mut sweep = sweep(&repository);
    assert_eq!((sweep.delete_dead_letters(3).unwrap(), sweep.delete_dead_letters(3).unwrap()), (3, 2));
    assert_eq!(database.number("SELECT count(*) FROM dead_events"), 5);
    assert_eq!(database.number("SELECT dead_deleted FROM retention_runs"), 5);
}
