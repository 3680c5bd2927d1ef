//! FAULTS 12 to 24: faults of the database and of the network to it.

use std::thread;
use std::time::Duration;

use crate::disk::TmpfsMount;
use crate::fixture::{Fixture, ReportRow, SETTINGS, is_full_run, times};
use crate::harness::checker::wait_for_drain_within;
use crate::harness::events::{event_at, id_of, ids_of, keyed};
use crate::harness::producer::LoadProfile;
use crate::harness::{Postgres, Server, TestServer, event, now, until, wait_for_drain};

/// Slow enough to interrupt a COPY.
const SLOW_BYTES_PER_SECOND: u32 = 100_000;

/// Waits until a COPY of a batch is running.
fn mid_copy(postgres: &Postgres) {
    let copying = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'aurore' AND state = 'active' \
                   AND query LIKE 'COPY events%'";
    until("a COPY is under way", || postgres.value::<i64>(copying) > 0);
}

#[test]
fn f12_database_restarts_lose_and_duplicate_no_event() {
    let mut fixture = Fixture::start_under_load("12 PostgreSQL restarted, also mid-COPY", &[]);
    let rounds = times(4, 20);
    for round in 0..rounds {
        fixture.wait_for_acknowledged(300);
        if round % 4 >= 2 {
            fixture.proxy.throttle(SLOW_BYTES_PER_SECOND);
            mid_copy(&fixture.postgres);
        }
        if round % 2 == 0 {
            fixture.postgres.stop_immediate();
        } else {
            fixture.postgres.stop_fast();
        }
        fixture.proxy.repair();
        fixture.wait_for_acknowledged(300);
        fixture.postgres.restart();
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0);
}

/// A crash of this database loses each COMMIT of the last seconds that did not wait for its disk.
#[test]
fn f12_synced_events_survive_crashes_of_a_database_with_asynchronous_commit() {
    let mut fixture = Fixture::start_with_database(
        "12 PostgreSQL crashes, synchronous_commit=off by default",
        &[("DURABILITY", "synced")],
        |postgres| {
            postgres.execute("ALTER SYSTEM SET synchronous_commit = off");
            postgres.execute("ALTER SYSTEM SET wal_writer_delay = '10s'");
            postgres.execute("SELECT pg_reload_conf()");
        },
    );
    fixture.start_load(LoadProfile::STEADY);
    let rounds = times(4, 20);
    for _ in 0..rounds {
        fixture.wait_for_acknowledged(300);
        fixture.postgres.stop_immediate();
        fixture.wait_for_acknowledged(300);
        fixture.postgres.restart();
        until("the breaker closes", || fixture.server.metric("circuit_breaker_state") == 0);
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0);
}

#[test]
fn f13_killed_backends_lose_and_duplicate_no_event() {
    let mut fixture = Fixture::start_under_load("13 backend killed, also mid-COPY", &[]);
    let rounds = times(6, 50);
    for round in 0..rounds {
        fixture.wait_for_acknowledged(200);
        if round % 3 == 0 {
            fixture.proxy.throttle(SLOW_BYTES_PER_SECOND);
            mid_copy(&fixture.postgres);
        }
        fixture.postgres.terminate_sessions();
        fixture.proxy.repair();
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0);
}

#[test]
fn f13_cut_connections_lose_and_duplicate_no_event() {
    let mut fixture = Fixture::start_under_load("13 connections cut on the way", &[]);
    let rounds = times(5, 30);
    for _ in 0..rounds {
        fixture.proxy.cut();
        fixture.wait_for_acknowledged(200);
        fixture.proxy.repair();
        fixture.wait_for_acknowledged(200);
    }
    fixture.verify(rounds);
}

#[test]
fn f14_a_commit_with_a_lost_reply_is_stored_once() {
    let mut fixture = Fixture::start_under_load("14 answer to COMMIT lost", &[]);
    let rounds = times(8, 50);
    for round in 0..rounds {
        fixture.proxy.drop_next_commit_reply();
        until("a reply is dropped", || fixture.proxy.dropped_replies() > u64::from(round));
        fixture.wait_for_acknowledged(100);
    }
    fixture.verify(rounds);
    assert!(fixture.server.metric("events_duplicate_total") > 0, "the retried batches count as duplicates");
}

/// SQL that makes each insert fail with this SQLSTATE, and SQL that undoes it.
fn refusing(sqlstate: &str) -> [String; 2] {
    let breaks = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'on purpose' USING ERRCODE = '{sqlstate}'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()"
    );
    [breaks, "DROP FUNCTION refuse CASCADE".into()]
}

/// Breaks and repairs the database by SQL under load; asserts that no event is lost or
/// dead-lettered.
#[track_caller]
fn check_kept_through(fault: &'static str, breaks: &str, repairs: &str) {
    let mut fixture = Fixture::start_under_load(fault, &[]);
    let rounds = times(1, 5);
    for _ in 0..rounds {
        fixture.postgres.execute(breaks);
        fixture.postgres.terminate_sessions();
        let retries = fixture.server.metric("circuit_breaker_state");
        fixture.wait_for_acknowledged(500);
        if retries == 0 {
            fixture.wait_for_open_breaker();
        }
        fixture.wait_for_acknowledged(500);
        fixture.postgres.execute(repairs);
        until("the breaker closes", || fixture.server.metric("circuit_breaker_state") == 0);
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0, "nothing is dead-lettered for a fault of the database");
}

/// The table is in a tablespace on a small disk, which another file fills.
#[test]
fn f15_events_wait_for_a_full_database_disk() {
    let disk = TmpfsMount::mount("size=64m,mode=0755");
    let place = disk.path().join("space");
    let mut fixture = Fixture::start_with_database("15 database's disk full (53100)", &[], |postgres| {
        Postgres::make_directory(&place);
        postgres.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display()));
        postgres.execute("GRANT CREATE ON TABLESPACE small TO aurore");
        postgres.execute("ALTER ROLE aurore SET default_tablespace = small");
    });
    fixture.start_load(LoadProfile::STEADY);
    let rounds = times(1, 5);
    for _ in 0..rounds {
        fixture.wait_for_acknowledged(500);
        let ballast = disk.path().join("ballast");
        drop(std::fs::write(&ballast, vec![1; 80 << 20]));
        until("PostgreSQL reports the full disk", || fixture.server.log().contains("sqlstate=53100"));
        fixture.wait_for_open_breaker();
        fixture.wait_for_acknowledged(500);
        std::fs::remove_file(&ballast).expect("it can be removed");
        until("the breaker closes", || fixture.server.metric("circuit_breaker_state") == 0);
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0, "nothing is dead-lettered for a fault of the database");
}

#[test]
fn f16_events_wait_for_connection_slots() {
    check_kept_through(
        "16 no connection slots (53300)",
        "ALTER ROLE aurore CONNECTION LIMIT 0",
        "ALTER ROLE aurore CONNECTION LIMIT -1",
    );
}

#[test]
fn f17_events_wait_for_a_locked_table() {
    let mut fixture = Fixture::start_under_load("17 LOCK TABLE events", &[]);
    let rounds = times(1, 3);
    for _ in 0..rounds {
        let mut session = fixture.postgres.client();
        let mut lock = session.transaction().unwrap();
        lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
        fixture.wait_for_acknowledged(500);
        if is_full_run() {
            // Past the lock timeout, twice.
            thread::sleep(Duration::from_secs(11));
        }
        lock.rollback().unwrap();
        fixture.wait_for_acknowledged(500);
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0);
}

#[test]
fn f17_a_statement_timeout_is_retried() {
    let [breaks, repairs] = refusing("57014");
    check_kept_through("17 statement timeout (57014 raised by a trigger)", &breaks, &repairs);
}

#[test]
fn f18_events_wait_for_a_missing_table() {
    check_kept_through(
        "18 table missing (42P01 by renaming it)",
        "ALTER TABLE events RENAME TO events_away",
        "ALTER TABLE events_away RENAME TO events",
    );
}

#[test]
fn f18_events_wait_for_a_missing_column() {
    check_kept_through(
        "18 column missing",
        "ALTER TABLE events RENAME COLUMN service TO who",
        "ALTER TABLE events RENAME COLUMN who TO service",
    );
}

#[test]
fn f18_events_wait_for_a_revoked_permission() {
    check_kept_through(
        "18 permission revoked",
        "REVOKE INSERT ON events FROM aurore",
        "GRANT INSERT ON events TO aurore",
    );
}

#[test]
fn f18_events_wait_for_a_changed_password() {
    let mut fixture = Fixture::start("18 password changed", &[]);
    fixture.postgres.execute("ALTER ROLE aurore PASSWORD 'secret'");
    fixture.postgres.require_password();
    fixture.start_load(LoadProfile::STEADY);
    fixture.wait_for_acknowledged(500);
    fixture.postgres.execute("ALTER ROLE aurore PASSWORD 'another'");
    fixture.postgres.terminate_sessions();
    fixture.wait_for_open_breaker();
    fixture.wait_for_acknowledged(500);
    fixture.postgres.execute("ALTER ROLE aurore PASSWORD 'secret'");
    fixture.verify(1);
    assert_eq!(fixture.postgres.dead(), 0);
}

#[test]
fn f19_events_wait_for_a_read_only_database() {
    check_kept_through(
        "19 database read-only",
        "ALTER ROLE aurore SET default_transaction_read_only = on",
        "ALTER ROLE aurore RESET default_transaction_read_only; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aurore'",
    );
}

#[test]
fn f22_the_same_id_within_a_batch_across_batches_and_across_a_restart_is_stored_once() {
    let mut fixture = Fixture::start("22 same id in a batch, across batches, across a restart", &[]);
    let time = now();
    let batch: Vec<String> = (0..1_000).map(|row| keyed(time, "s", &format!("k{}", row % 400))).collect();
    let mut ids = std::collections::HashSet::new();
    for round in 0..4_u64 {
        ids.extend(ids_of(&fixture.server.client().post_ndjson(&batch)));
        wait_for_drain(&fixture.server);
        // The ledger starts at zero in the second process.
        let before = if round < 2 { round } else { round - 2 };
        let fresh = if round == 0 { 400 } else { 0 };
        let page = fixture.server.metric("events_stored_total");
        assert_eq!(page, if round < 2 { 400 } else { fresh });
        assert_eq!(fixture.server.metric("events_duplicate_total"), (before + 1) * 1_000 - page);
        if round == 1 {
            fixture.server.stop();
            fixture.server.restart();
        }
    }
    assert_eq!((ids.len(), fixture.postgres.stored()), (400, 400));
    assert_eq!(fixture.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 400);
    fixture.row.passed_after(4, 400);
}

#[test]
fn f23_events_wait_for_a_missing_partition_and_boundary_timestamps_are_stored() {
    const DAY_MICROS: i64 = 86_400_000_000;
    let mut fixture = Fixture::start("23 no partition; timestamps at the edges", &[]);
    let mut client = fixture.server.client();
    let at = |micros: i64| aurore_events::event::Timestamp::from_micros(now().micros() + micros);
    let edges = [at(-30 * DAY_MICROS + 60_000_000), at(-7 * DAY_MICROS), at(0), at(299_000_000)];
    for time in edges {
        id_of(&client.post_json(event_at(time, "s", "edge")));
    }
    wait_for_drain(&fixture.server);
    assert_eq!(fixture.postgres.stored(), 4);
    for beyond in [at(-30 * DAY_MICROS - 60_000_000), at(320_000_000)] {
        assert_eq!(client.post_json(event_at(beyond, "s", "beyond")).status, 400);
    }
    // Without a default partition, and while a lock prevents the creation of the day's partition, the
    // insert fails: a misconfiguration, not a fault of the row.
    fixture.postgres.execute("ALTER TABLE events DETACH PARTITION events_default");
    let mut reader = fixture.postgres.client();
    reader.batch_execute("BEGIN; LOCK TABLE events_default IN ACCESS SHARE MODE").expect("no lock is held");
    for _ in 0..50 {
        id_of(&client.post_json(event_at(at(-20 * DAY_MICROS), "s", "late")));
    }
    fixture.wait_for_open_breaker();
    id_of(&client.post_json(event("s", "of today")));
    assert_eq!(fixture.server.metric("buffer_size"), 51);
    reader.batch_execute("COMMIT").expect("the session lives");
    fixture.postgres.execute("ALTER TABLE events ATTACH PARTITION events_default DEFAULT");
    wait_for_drain(&fixture.server);
    assert_eq!((fixture.postgres.stored(), fixture.postgres.dead()), (55, 0));
    fixture.row.passed_after(1, 55);
}

/// Through the Unix socket of the embedded cluster, where TCP options have no effect.
#[test]
fn f20_a_hanging_embedded_cluster_is_detected_and_loses_no_event() {
    let mut row = ReportRow::new("20 embedded cluster hangs (SIGSTOP of its processes)");
    let server = Server::start(SETTINGS);
    let mut client = server.client();
    id_of(&client.post_json(event("s", "before")));
    wait_for_drain(&server);
    let stopped = StoppedCluster::of(&server);
    for _ in 0..100 {
        id_of(&client.post_json(event("s", "meanwhile")));
    }
    until("the hanging database is noticed", || server.metric("database_connection_status") == 0);
    drop(stopped);
    wait_for_drain(&server);
    until("the database is back", || server.metric("database_connection_status") == 1);
    assert_eq!(server.metric("events_stored_total"), 101);
    row.passed_after(1, 101);
}

/// A cluster that ended without a request of the server is restarted.
#[test]
fn f12_a_killed_embedded_cluster_is_restarted() {
    let mut row = ReportRow::new("12 embedded cluster killed from outside");
    let mut server = Server::start(SETTINGS);
    // The delay doubles with each restart.
    let rounds = times(2, 4).min(4);
    let mut sent = 0;
    for round in 0..rounds {
        for _ in 0..50 {
            id_of(&server.client().post_json(event("s", "before")));
        }
        let postmaster = crate::harness::server::embedded_postmaster(server.data_dir()).expect("it runs");
        crate::harness::process::signal(["KILL", "QUIT"][round as usize % 2], postmaster);
        for _ in 0..50 {
            id_of(&server.client().post_json(event("s", "meanwhile")));
        }
        sent += 100;
        wait_for_drain_within(Duration::from_mins(2), &server);
        until("the restart is counted", || {
            server.metric("embedded_postgres_restarts_total") > u64::from(round)
        });
        let settled = server.metric("events_stored_total") + server.metric("events_duplicate_total");
        assert_eq!((settled, server.metric("events_dead_total")), (sent, 0));
    }
    let postmaster = crate::harness::server::embedded_postmaster(server.data_dir()).expect("it runs");
    server.stop();
    assert!(
        !crate::harness::process::is_alive(postmaster),
        "a cluster that the server stopped is not restarted"
    );
    row.passed_after(rounds, sent);
}

/// Stops the processes of a cluster with SIGSTOP until drop.
struct StoppedCluster(Vec<u32>);

impl StoppedCluster {
    fn of(server: &Server) -> Self {
        let postmaster = crate::harness::server::embedded_postmaster(server.data_dir()).expect("it runs");
        let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
        let children = children.expect("the kernel lists children");
        let mut all = vec![postmaster];
        all.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().expect("a number")));
        for pid in &all {
            crate::harness::process::signal("STOP", *pid);
        }
        Self(all)
    }
}

impl Drop for StoppedCluster {
    fn drop(&mut self) {
        for pid in &self.0 {
            crate::harness::process::signal("CONT", *pid);
        }
    }
}

#[test]
fn f21_a_batch_completes_over_a_slow_network() {
    let mut fixture = Fixture::start("21 10 KB/s", &[]);
    fixture.proxy.throttle(10_000);
    let mut client = fixture.server.client();
    let events: Vec<String> = (0..200).map(|_| event("s", "slow")).collect();
    ids_of(&client.post_ndjson(&events));
    wait_for_drain(&fixture.server);
    assert_eq!(fixture.postgres.stored(), 200);
    assert_eq!(fixture.server.metric("circuit_breaker_state"), 0);
    fixture.row.passed_after(1, 200);
}

/// FAULTS 24 in short. The full tests are in `tests/it/validation.rs` and
/// `tests/it/error_classes.rs`.
#[test]
fn f24_poison_is_rejected_or_dead_lettered() {
    let mut row = ReportRow::new("24 poison (see tests/it/validation.rs and error_classes.rs)");
    let test = TestServer::start(&[]);
    test.postgres.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')");
    let mut client = test.server.client();
    let batch: Vec<String> =
        (0..1_000).map(|row| event("s", if row % 10 == 0 { "poison" } else { "good" })).collect();
    ids_of(&client.post_ndjson(&batch));
    for poison in [
        r#"{"timestamp":1,"service":"s","message":"\u0000"}"#.to_owned(),
        format!(r#"{{"timestamp":"{}","service":"s","message":"\ud800"}}"#, now()),
        format!(r#"{{"timestamp":"{}","service":"s","message":"m","metadata":{{"a":1e400000}}}}"#, now()),
        format!(
            r#"{{"timestamp":"{}","service":"s","message":"m","metadata":{}}}"#,
            now(),
            "[".repeat(10_000)
        ),
        r#"{"timestamp":"294277-01-01T00:00:00Z","service":"s","message":"m"}"#.to_owned(),
    ] {
        assert_eq!(client.post_json(&poison).status, 400, "{}", &poison[..60]);
    }
    wait_for_drain(&test.server);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (900, 100));
    row.passed_after(1, 1_000);
}
