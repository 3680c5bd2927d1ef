use std::time::{Duration, Instant};

use super::super::{Limits, PostgresRepository, Target};
use super::*;

#[test]
fn a_backend_killed_while_it_lay_idle_is_replaced_unnoticed() {
    let (database, repository) = prepared();
    let kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for tail in 0..3 {
        store(&repository, &[&event(NOON * 1000, tail, "a", "m")], StorePath::Copy, (1, 0));
        assert!(repository.find(id(NOON, tail)).unwrap().is_some());
        assert_eq!(database.number(kill), 2, "one for transactions and one for questions");
    }
    repository.ping().unwrap();
}

#[test]
fn a_backend_killed_in_a_batch_is_an_error_without_a_rows_fault_and_the_next_batch_is_stored() {
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
fn a_locked_table_is_waited_for_no_longer_than_allowed() {
    let (database, repository) = prepared();
    drop(repository);
    let limits = Limits { lock_timeout: Duration::from_millis(50), ..Limits::default() };
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
fn a_slow_query_is_ended_by_its_timeout() {
    let (database, repository) = prepared();
    drop(repository);
    let limits = Limits { query_timeout: Duration::from_millis(50), ..Limits::default() };
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
    let told = watcher.query_one(backends, &[]).unwrap().get::<_, String>(0);
    assert!(
        !told.contains(' ') && told.ends_with("idle"),
        "one connection, and no transaction left open: {told}"
    );
    blocker.batch_execute("ROLLBACK").unwrap();
    assert_eq!(repository.find(id(NOON, 1)).unwrap(), None);
    assert_eq!(watcher.query_one(backends, &[]).unwrap().get::<_, String>(0), told, "the same one");
}

#[test]
fn an_unreachable_database_is_an_error_at_once() {
    // A listener that was closed: its port refuses.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("postgres://u:hunter2@127.0.0.1:{port}/d");
    let repository = PostgresRepository::new(&Target::parse(&url).unwrap(), Limits::default());
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
fn configuration_faults_keep_their_sqlstate() {
    let database = Database::new();
    let mut target = database.target();
    target.config.dbname("no_such_database");
    let repository = PostgresRepository::new(&target, Limits::default());
    assert_eq!(repository.ping().unwrap_err().sqlstate.as_deref(), Some("3D000"));
    target.config.user("nobody_known");
    let repository = PostgresRepository::new(&target, Limits::default());
    assert_eq!(repository.prepare(now()).unwrap_err().sqlstate.as_deref(), Some("28000"));
}

#[test]
fn a_read_only_database_says_so_and_keeps_the_connection() {
    let (database, repository) = prepared();
    let mut target = database.target();
    target.config.options("-c default_transaction_read_only=on");
    let read_only = PostgresRepository::new(&target, Limits::default());
    let one = event(NOON * 1000, 1, "a", "m");
    for path in [StorePath::Copy, StorePath::Stage] {
        assert_eq!(read_only.store(&[&one], &[], path).unwrap_err().sqlstate.as_deref(), Some("25006"));
    }
    assert_eq!(read_only.find(id(NOON, 1)).unwrap(), None);
    store(&repository, &[&one], StorePath::Copy, (1, 0));
}

#[test]
fn connections_are_bounded_and_shared() {
    let (database, repository) = prepared();
    drop(repository);
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let repository = PostgresRepository::new(&database.target(), limits);
    std::thread::scope(|scope| {
        for tail in 0..8 {
            let repository = &repository;
            scope.spawn(move || {
                store(repository, &[&event(NOON * 1000, tail, "a", "m")], StorePath::Stage, (1, 0));
            });
        }
    });
    assert_eq!(database.number("SELECT count(*) FROM events"), 8);
    let own = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!(database.number(own) <= 2);
}

#[test]
fn servers_that_store_the_same_events_at_once_store_each_once() {
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
            .map(|runs| scope.spawn(|| repository.store(runs, &[], StorePath::Stage).unwrap().stored))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(total, 200);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM event_counts"), 200);
}
