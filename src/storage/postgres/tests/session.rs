use std::time::Duration;

use super::super::embedded::{Cluster, ClusterLimits};
use super::super::test_database::temp_dir;
use super::super::{PostgresLimits, PostgresRepository, SynchronousCommit};
use super::*;
use crate::clock::Clock;
use crate::event::DAY_MICROS;

/// Records the settings of each transaction that inserts events.
const RECORD_SETTINGS: &str = "\
    CREATE TABLE seen (name text, value text); \
    CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    INSERT INTO seen SELECT name, current_setting(name) FROM unnest(ARRAY['synchronous_commit', 'row_security', \
        'transaction_isolation', 'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout']) name; \
    RETURN NULL; END $$; \
    CREATE TRIGGER record AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION record()";

#[test]
fn store_sets_what_its_guarantees_need_whatever_the_defaults_are() {
    let (database, _) = prepared();
    database.execute(RECORD_SETTINGS);
    for default in [
        "synchronous_commit = off",
        "default_transaction_isolation = serializable",
        "statement_timeout = '7min'",
        "lock_timeout = '7min'",
        "idle_in_transaction_session_timeout = '7min'",
    ] {
        database.execute(&format!("ALTER DATABASE {} SET {default}", database.name()));
    }
    for (tail, path) in [(1, StorePath::Copy), (2, StorePath::Staging)] {
        store(&database.repository(), &[&event(NOON * 1000, tail, "a", "m")], path, (1, 0));
        let rows = database.client().query("DELETE FROM seen RETURNING name || '=' || value", &[]).unwrap();
        let seen: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(
            seen,
            [
                "synchronous_commit=on",
                "row_security=off",
                "transaction_isolation=read committed",
                "statement_timeout=10s",
                "lock_timeout=5s",
                "idle_in_transaction_session_timeout=10s",
            ]
        );
    }
}

#[test]
fn store_commits_as_the_setting_says() {
    let (database, _) = prepared();
    database.execute(RECORD_SETTINGS);
    for (tail, level) in (0..).zip(SynchronousCommit::ALL) {
        let limits = PostgresLimits { synchronous_commit: level, ..PostgresLimits::default() };
        let repository = PostgresRepository::new(&database.target(), limits);
        store(&repository, &[&event(NOON * 1000, tail, "a", "m")], StorePath::Copy, (1, 0));
        let seen = "DELETE FROM seen WHERE name = 'synchronous_commit' RETURNING value";
        assert_eq!(database.client().query_one(seen, &[]).unwrap().get::<_, &str>(0), level.name());
    }
}

#[test]
fn events_stay_in_their_schema_when_the_default_search_path_changes() {
    let (database, repository) = prepared();
    database.execute(
        "CREATE SCHEMA decoy; CREATE TABLE decoy.events (LIKE events); \
         CREATE TABLE decoy.event_counts (LIKE event_counts); CREATE TABLE decoy.event_minutes (LIKE event_minutes)",
    );
    database.execute(&format!("ALTER DATABASE {} SET search_path = decoy, public", database.name()));
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    let later = Day::from_timestamp(Timestamp::from_micros(now().micros() + 40 * DAY_MICROS));
    assert_eq!(create_partition(&repository, later), CreatePartitionOutcome::Created { moved: 0 });
    for (tail, path) in [(1, StorePath::Copy), (2, StorePath::Staging)] {
        store(&repository, &[&event(NOON * 1000, tail, "a", "m")], path, (1, 0));
        assert!(repository.find(id(NOON, tail)).unwrap().is_some());
    }
    assert_eq!(database.number("SELECT count(*) FROM decoy.events"), 0);
    assert_eq!(database.number("SELECT count(*) FROM public.events"), 2);
    assert_eq!(database.number("SELECT sum(count)::bigint FROM public.event_counts"), 2);
    assert_eq!(
        database.number(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'decoy'::regnamespace AND relkind = 'r'"
        ),
        3,
        "no table was added to the other schema"
    );
}

#[test]
fn commit_is_not_reported_before_a_synchronous_standby_has_it() {
    const SETTINGS: &[&str] =
        &["listen_addresses=", "fsync=off", "synchronous_commit=local", "synchronous_standby_names=absent"];
    let directory = temp_dir("standby");
    let cluster =
        Cluster::start_with(directory.path(), ClusterLimits::default(), &Clock::system(), SETTINGS).unwrap();
    let repository = |synchronous_commit| {
        let limits = PostgresLimits {
            store_timeout: Duration::from_millis(100),
            synchronous_commit,
            ..PostgresLimits::default()
        };
        PostgresRepository::new(&cluster.target(), limits)
    };
    repository(SynchronousCommit::Local).prepare().unwrap();
    let repository = repository(SynchronousCommit::On);
    let mut observer = cluster.target().to_blocking_config().connect(postgres::NoTls).unwrap();
    let mut waiting = |what: &str| {
        let sql = format!(
            "SELECT count({what}) FROM pg_stat_activity \
             WHERE wait_event = 'SyncRep' AND clock_timestamp() - query_start > interval '400 ms'"
        );
        observer.query_one(&sql, &[]).unwrap().get::<_, i64>(0)
    };
    std::thread::scope(|scope| {
        let storing =
            scope.spawn(|| repository.store(&[&event(NOON * 1000, 1, "a", "m")], &[], StorePath::Copy));
        // Past the statement timeout, which does not end the wait.
        while waiting("*") == 0 {
            assert!(!storing.is_finished(), "COMMIT was reported, and no standby has it");
            std::thread::yield_now();
        }
        assert_eq!(waiting("pg_cancel_backend(pid)"), 1);
        assert_eq!(storing.join().unwrap().unwrap().stored, 1);
    });
}
