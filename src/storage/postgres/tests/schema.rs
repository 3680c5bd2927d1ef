use super::*;

#[test]
fn prepare_and_partitions_are_safe_for_four_concurrent_servers() {
    let database = TestDatabase::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let repository = database.repository();
                repository.prepare().unwrap();
                repository.prepare().unwrap();
                create_partitions(&repository, now());
            });
        }
    });
    assert_eq!(database.number("SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass"), 10);
    assert_eq!(database.number("SELECT count(*) FROM refinery_schema_history"), 3);
    let (session_locks, table) = (
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database \
         WHERE locktype = 'advisory' AND datname = current_database()",
        "events_20260108",
    );
    assert_eq!(database.number(session_locks), 0);
    store(
        &database.repository(),
        &[&event((NOON + 7 * 86_400_000) * 1000, 1, "a", "m")],
        StorePath::Copy,
        (1, 0),
    );
    assert_eq!(database.number(&format!("SELECT count(*) FROM {table}")), 1);
}

#[test]
fn partition_holds_the_first_and_last_microsecond_of_its_day() {
    let (database, repository) = prepared();
    let midnight = 1_767_225_600_000_000;
    let rows = [
        event(midnight - 1, 0xff, "a", "m"),
        event(midnight, 0, "a", "m"),
        event(midnight + 86_399_999_999, 0xff, "a", "m"),
    ];
    let runs: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store(&repository, &runs, StorePath::Copy, (3, 0));
    assert_eq!(database.number("SELECT count(*) FROM events_20251231"), 1);
    assert_eq!(database.number("SELECT count(*) FROM events_20260101"), 2);
    assert_eq!(database.number("SELECT count(*) FROM events_default"), 0);
}

#[test]
fn default_partition_takes_other_days_and_is_drained() {
    let (database, repository) = prepared();
    let day = 86_400_000_000;
    let rows = [
        event(NOON * 1000 - 20 * day, 1, "a", "old"),
        event(NOON * 1000 - 20 * day + 5, 2, "a", "old"),
        event(NOON * 1000 - 25 * day, 3, "b", "older"),
        event(NOON * 1000 + 9 * day, 4, "b", "early"),
    ];
    let runs: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store(&repository, &runs, StorePath::Copy, (4, 0));
    assert_eq!(database.number("SELECT count(*) FROM events_default"), 4);
    let before: String = database
        .client()
        .query_one("SELECT string_agg(e::text, '|' ORDER BY event_id) FROM events e", &[])
        .unwrap()
        .get(0);
    drain(&repository);
    assert_eq!(database.number("SELECT count(*) FROM events_default"), 0);
    assert_eq!(database.number("SELECT count(*) FROM events_20251212"), 2);
    let after: String = database
        .client()
        .query_one("SELECT string_agg(e::text, '|' ORDER BY event_id) FROM events e", &[])
        .unwrap()
        .get(0);
    assert_eq!(before, after, "moved unchanged");
    store(&repository, &runs, StorePath::Staging, (0, 4));
    // ATTACH has created the indexes of the partition.
    assert_eq!(database.number("SELECT count(*) FROM pg_indexes WHERE tablename = 'events_20251212'"), 2);
}

#[test]
fn drain_leaves_a_detached_table_unchanged() {
    let (database, repository) = prepared();
    database.execute("ALTER TABLE events DETACH PARTITION events_20260103");
    store(&repository, &[&event((NOON + 2 * 86_400_000) * 1000, 1, "a", "m")], StorePath::Copy, (1, 0));
    drain(&repository);
    drain(&database.repository());
    assert_eq!(database.number("SELECT count(*) FROM events_default"), 1);
}

#[test]
fn drain_creates_partitions_during_concurrent_stores() {
    let (database, repository) = prepared();
    let day = 86_400_000_000;
    std::thread::scope(|scope| {
        let storing = scope.spawn(|| {
            let mut retried = 0;
            for index in 0..40_u64 {
                let rows: Vec<u8> = (1..=8)
                    .flat_map(|days| event(NOON * 1000 - days * 2 * day + index * 1000, 7, "s", "m"))
                    .collect();
                loop {
                    match repository.store(&[&rows], &[], StorePath::Copy) {
                        Ok(_) => break,
                        Err(error)
                            if matches!(error.sqlstate.as_deref(), Some("40001" | "40P01" | "55P03")) =>
                        {
                            retried += 1;
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }
            retried
        });
        let other = database.repository();
        while !storing.is_finished() {
            drain(&other);
        }
        assert!(storing.join().unwrap() < 40);
    });
    drain(&repository);
    assert_eq!(database.number("SELECT count(*) FROM events"), 320);
    assert_eq!(database.number("SELECT count(*) FROM events_default"), 0);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM event_counts"), 320);
}

#[test]
fn new_partitions_inherit_constraints_columns_and_indexes() {
    let (database, repository) = prepared();
    database.execute(
        "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison'); \
         ALTER TABLE events ADD COLUMN length int GENERATED ALWAYS AS (length(message)) STORED; \
         CREATE INDEX ON events (length)",
    );
    // One partition is created ahead of time, one by draining the default partition.
    create_partitions(&repository, Timestamp::from_millis(now().millis() + 3 * 86_400_000));
    let far = NOON * 1000 + 200 * 86_400_000_000;
    store(&repository, &[&event(far, 1, "a", "four")], StorePath::Copy, (1, 0));
    assert_eq!(drain(&repository), 1);
    assert_eq!(database.number("SELECT sum(length)::bigint FROM events"), 4);
    for micros in [NOON * 1000 + 10 * 86_400_000_000, far] {
        let error = repository.store(&[&event(micros, 2, "a", "poison")], &[], StorePath::Copy).unwrap_err();
        assert_eq!(error.constraint.as_deref(), Some("no_poison"), "{error}");
    }
}

#[test]
fn new_partitions_are_created_and_prepare_recreates_missing_tables() {
    let (database, repository) = prepared();
    create_partitions(&repository, Timestamp::from_millis(now().millis() + 3 * 86_400_000));
    assert_eq!(database.number("SELECT count(*) FROM events_20260111"), 0);
    let one = event(NOON * 1000, 1, "a", "m");
    database.execute("DROP TABLE events, event_counts, event_minutes, dead_events, retention_runs, refinery_schema_history");
    let error = repository.store(&[&one], &[], StorePath::Copy).unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("42P01"));
    repository.prepare().unwrap();
    store(&repository, &[&one], StorePath::Copy, (1, 0));
}
