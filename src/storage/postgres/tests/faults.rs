use std::time::{Duration, Instant};

use super::super::{ConnectTarget, PostgresLimits, PostgresRepository};
use super::*;

#[test]
fn pool_replaces_a_backend_killed_while_idle() {
    let (database, repository) = prepared();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for tail in 0..3 {
        store(&repository, &[&event(NOON * 1000, tail, "a", "m")], StorePath::Copy, (1, 0));
        assert!(repository.find(id(NOON, tail)).unwrap().is_some());
        assert!(!repository.partition_days().unwrap().is_empty());
        assert_eq!(database.number(kill), 3, "one connection each for transactions, reads and partitions");
    }
    repository.ping().unwrap();
}

#[test]
fn store_fails_without_a_row_error_when_its_backend_is_killed_and_then_recovers() {
    let (database, repository) = prepared();
    let one = event(NOON * 1000, 1, "a", "m");
    let mut blocker = database.client();
    blocker.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let error = std::thread::scope(|scope| {
        let storing = scope.spawn(|| repository.store(&[&one], &[], StorePath::Copy).unwrap_err());
        while database.number(kill) == 0 {
            std::thread::yield_now();
        }
        storing.join().unwrap()
    });
    assert!(matches!(error.sqlstate.as_deref(), None | Some("57P01")), "{error:?}");
    assert!(!error.in_doubt, "COMMIT was not reached");
    blocker.batch_execute("ROLLBACK").unwrap();
    store(&repository, &[&one], StorePath::Copy, (1, 0));
    assert_eq!(database.number("SELECT count(*) FROM events"), 1);
}

#[test]
fn store_stops_waiting_for_a_table_lock_at_the_lock_timeout() {
    let (database, repository) = prepared();
    drop(repository);
    let limits = PostgresLimits { lock_timeout: Duration::from_millis(50), ..PostgresLimits::default() };
    let repository = PostgresRepository::new(&database.target(), limits);
    let one = event(NOON * 1000, 1, "a", "m");
    let mut blocker = database.client();
    blocker.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    let error = repository.store(&[&one], &[], StorePath::Copy).unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("55P03"));
    blocker.batch_execute("ROLLBACK").unwrap();
    store(&repository, &[&one], StorePath::Copy, (1, 0));
}

#[test]
fn query_is_canceled_at_the_statement_timeout() {
    let (database, repository) = prepared();
    drop(repository);
    let limits = PostgresLimits { query_timeout: Duration::from_millis(50), ..PostgresLimits::default() };
    let repository = PostgresRepository::new(&database.target(), limits);
    let mut blocker = database.client();
    blocker.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    let backends = "SELECT string_agg(pid || state, ' ') FROM pg_stat_activity \
                    WHERE datname = current_database() AND pid <> pg_backend_pid() AND query = 'COMMIT'";
    let mut watcher = database.client();
    for _ in 0..2 {
        let error = repository.find(id(NOON, 1)).unwrap_err();
        assert_eq!(error.sqlstate.as_deref(), Some("57014"));
    }
    let state = watcher.query_one(backends, &[]).unwrap().get::<_, String>(0);
    assert!(
        !state.contains(' ') && state.ends_with("idle"),
        "one connection without an open transaction: {state}"
    );
    blocker.batch_execute("ROLLBACK").unwrap();
    assert_eq!(repository.find(id(NOON, 1)).unwrap(), None);
    assert_eq!(
        watcher.query_one(backends, &[]).unwrap().get::<_, String>(0),
        state,
        "the connection is reused"
    );
}

#[test]
fn store_fails_at_once_when_the_database_is_unreachable() {
    // The listener is closed, so its port refuses connections.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://u:hunter2@127.0.0.1:{port}/d");
    let repository = PostgresRepository::new(&ConnectTarget::parse(&url).unwrap(), PostgresLimits::default());
    #[expect(clippy::disallowed_methods, reason = "how long it really takes is what is tested")]
    let before = Instant::now();
    for _ in 0..30 {
        let error = repository.ping().unwrap_err();
        assert_eq!((error.sqlstate, error.in_doubt), (None, false));
        assert!(!error.message.contains("hunter2") && error.message.contains("refused"), "{}", error.message);
    }
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
}

#[test]
fn configuration_errors_keep_their_sqlstate() {
    let database = TestDatabase::new();
    let mut target = database.target();
    target.config.dbname("no_such_database");
    let repository = PostgresRepository::new(&target, PostgresLimits::default());
    assert_eq!(repository.ping().unwrap_err().sqlstate.as_deref(), Some("3D000"));
    target.config.user("nobody_known");
    let repository = PostgresRepository::new(&target, PostgresLimits::default());
    assert_eq!(repository.prepare().unwrap_err().sqlstate.as_deref(), Some("28000"));
}

#[test]
fn store_on_a_read_only_database_fails_and_keeps_the_connection() {
    let (database, repository) = prepared();
    let mut target = database.target();
    target.config.options("-c default_transaction_read_only=on");
    let read_only = PostgresRepository::new(&target, PostgresLimits::default());
    let one = event(NOON * 1000, 1, "a", "m");
    for path in [StorePath::Copy, StorePath::Staging] {
        assert_eq!(read_only.store(&[&one], &[], path).unwrap_err().sqlstate.as_deref(), Some("25006"));
    }
    assert_eq!(read_only.find(id(NOON, 1)).unwrap(), None);
    store(&repository, &[&one], StorePath::Copy, (1, 0));
}

#[test]
fn pool_bounds_and_shares_connections() {
    let (database, repository) = prepared();
    drop(repository);
    let limits = PostgresLimits { connections_max: 2, ..PostgresLimits::default() };
    let repository = PostgresRepository::new(&database.target(), limits);
    std::thread::scope(|scope| {
        for tail in 0..8 {
            let repository = &repository;
            scope.spawn(move || {
                store(repository, &[&event(NOON * 1000, tail, "a", "m")], StorePath::Staging, (1, 0));
            });
        }
    });
    assert_eq!(database.number("SELECT count(*) FROM events"), 8);
    let own = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!(database.number(own) <= 2);
}

#[test]
fn store_by_concurrent_servers_inserts_each_event_once() {
    let (database, repository) = prepared();
    let rows: Vec<_> = (0..200_u8)
        .map(|tail| {
            event(
                NOON * 1000 + u64::from(tail % 5) * 3_600_000_000,
                tail,
                if tail % 2 == 0 { "a" } else { "b" },
                "m",
            )
        })
        .collect();
    let forward: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    let backward: Vec<&[u8]> = rows.iter().rev().map(Vec::as_slice).collect();
    let total: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = [&forward, &backward, &forward, &backward]
            .into_iter()
            .map(|runs| scope.spawn(|| repository.store(runs, &[], StorePath::Staging).unwrap().stored))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(total, 200);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM event_counts"), 200);
}
