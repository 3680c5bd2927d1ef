//! FAULTS 12 to 23: what a database can do to its client.

use std::thread;
use std::time::Duration;

use crate::bench::{Bench, SETTINGS, at_length, times};
use crate::disk::Mounted;
use crate::harness::events::{event_at, id_of, ids_of, keyed};
use crate::harness::judge::settle_within;
use crate::harness::producer::Manner;
use crate::harness::{Postgres, Server, World, event, now, settle, until};

/// Slow enough for a COPY to be met in its middle.
const SLOW_BYTES_PER_SECOND: u32 = 100_000;

/// Waits until a batch is on its way into the table.
fn mid_copy(postgres: &Postgres) {
    let copying = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'aurore' AND state = 'active' \
                   AND query LIKE 'COPY events%'";
    until("a COPY is under way", || postgres.value::<i64>(copying) > 0);
}

#[test]
fn f12_restarts_fast_and_immediate_also_in_the_middle_of_a_copy() {
    let mut bench = Bench::loaded("12 PostgreSQL restarted, also mid-COPY", &[]);
    let rounds = times(4, 20);
    for round in 0..rounds {
        bench.keeps_taking(300);
        if round % 4 >= 2 {
            bench.proxy.throttle(SLOW_BYTES_PER_SECOND);
            mid_copy(&bench.postgres);
        }
        if round % 2 == 0 {
            bench.postgres.stop_immediate();
        } else {
            bench.postgres.stop_fast();
        }
        bench.proxy.heal();
        bench.keeps_taking(300);
        bench.postgres.start_again();
    }
    bench.judge(rounds);
    assert_eq!(bench.postgres.dead(), 0);
}

#[test]
fn f13_backends_killed_also_in_the_middle_of_a_copy() {
    let mut bench = Bench::loaded("13 backend killed, also mid-COPY", &[]);
    let rounds = times(6, 50);
    for round in 0..rounds {
        bench.keeps_taking(200);
        if round % 3 == 0 {
            bench.proxy.throttle(SLOW_BYTES_PER_SECOND);
            mid_copy(&bench.postgres);
        }
        bench.postgres.end_sessions();
        bench.proxy.heal();
    }
    bench.judge(rounds);
    assert_eq!(bench.postgres.dead(), 0);
}

#[test]
fn f13_connections_cut_on_the_way() {
    let mut bench = Bench::loaded("13 connections cut on the way", &[]);
    let rounds = times(5, 30);
    for _ in 0..rounds {
        bench.proxy.cut();
        bench.keeps_taking(200);
        bench.proxy.heal();
        bench.keeps_taking(200);
    }
    bench.judge(rounds);
}

#[test]
fn f14_a_commit_whose_answer_is_lost_is_stored_once() {
    let mut bench = Bench::loaded("14 answer to COMMIT lost", &[]);
    let rounds = times(8, 50);
    for round in 0..rounds {
        bench.proxy.swallow_next_commit();
        until("an answer is swallowed", || bench.proxy.swallowed() > u64::from(round));
        bench.keeps_taking(100);
    }
    bench.judge(rounds);
    assert!(bench.server.metric("events_duplicate_total") > 0, "what had been committed was found stored");
}

/// Makes each insert fail with this SQLSTATE: the class decides, whatever the cause.
fn refusing(sqlstate: &str) -> [String; 2] {
    let breaks = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'on purpose' USING ERRCODE = '{sqlstate}'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()"
    );
    [breaks, "DROP FUNCTION refuse CASCADE".into()]
}

/// Breaks and heals by SQL under load; everything is kept, and nothing dead-lettered.
#[track_caller]
fn keeps_everything(fault: &'static str, breaks: &str, heals: &str) {
    let mut bench = Bench::loaded(fault, &[]);
    let rounds = times(1, 5);
    for _ in 0..rounds {
        bench.postgres.execute(breaks);
        bench.postgres.end_sessions();
        let retries = bench.server.metric("circuit_breaker_state");
        bench.keeps_taking(500);
        if retries == 0 {
            bench.breaker_opens();
        }
        bench.keeps_taking(500);
        bench.postgres.execute(heals);
        until("the breaker closes", || bench.server.metric("circuit_breaker_state") == 0);
    }
    bench.judge(rounds);
    assert_eq!(bench.postgres.dead(), 0, "nothing is dead-lettered for a fault of the database");
}

/// The table lies on a small disk of its own, which somebody else fills.
#[test]
fn f15_a_full_disk_of_the_database_is_waited_out() {
    let disk = Mounted::tmpfs("size=64m,mode=0755");
    let place = disk.path().join("space");
    let mut bench = Bench::prepared("15 database's disk full (53100)", &[], |postgres| {
        Postgres::make_directory(&place);
        postgres.execute(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display()));
        postgres.execute("GRANT CREATE ON TABLESPACE small TO aurore");
        postgres.execute("ALTER ROLE aurore SET default_tablespace = small");
    });
    bench.load(Manner::STEADY);
    let rounds = times(1, 5);
    for _ in 0..rounds {
        bench.keeps_taking(500);
        let ballast = disk.path().join("ballast");
        drop(std::fs::write(&ballast, vec![1; 80 << 20]));
        until("PostgreSQL says so", || bench.server.log().contains("sqlstate=53100"));
        bench.breaker_opens();
        bench.keeps_taking(500);
        std::fs::remove_file(&ballast).expect("it can be removed");
        until("the breaker closes", || bench.server.metric("circuit_breaker_state") == 0);
    }
    bench.judge(rounds);
    assert_eq!(bench.postgres.dead(), 0, "nothing is dead-lettered for a fault of the database");
}

#[test]
fn f16_no_connection_slots_are_waited_for() {
    keeps_everything(
        "16 no connection slots (53300)",
        "ALTER ROLE aurore CONNECTION LIMIT 0",
        "ALTER ROLE aurore CONNECTION LIMIT -1",
    );
}

#[test]
fn f17_a_locked_table_is_waited_for() {
    let mut bench = Bench::loaded("17 LOCK TABLE events", &[]);
    let rounds = times(1, 3);
    for _ in 0..rounds {
        let mut session = bench.postgres.client();
        let mut lock = session.transaction().unwrap();
        lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
        bench.keeps_taking(500);
        if at_length() {
            // Past the lock timeout, twice.
            thread::sleep(Duration::from_secs(11));
        }
        lock.rollback().unwrap();
        bench.keeps_taking(500);
    }
    bench.judge(rounds);
    assert_eq!(bench.postgres.dead(), 0);
}

#[test]
fn f17_a_statement_timeout_is_tried_again() {
    let [breaks, heals] = refusing("57014");
    keeps_everything("17 statement timeout (57014 raised by a trigger)", &breaks, &heals);
}

#[test]
fn f18_a_table_that_is_away_is_waited_for() {
    keeps_everything(
        "18 table away (42P01 by renaming it)",
        "ALTER TABLE events RENAME TO events_away",
        "ALTER TABLE events_away RENAME TO events",
    );
}

#[test]
fn f18_a_column_that_is_missing_is_waited_for() {
    keeps_everything(
        "18 column missing",
        "ALTER TABLE events RENAME COLUMN service TO who",
        "ALTER TABLE events RENAME COLUMN who TO service",
    );
}

#[test]
fn f18_a_permission_revoked_is_waited_for() {
    keeps_everything(
        "18 permission revoked",
        "REVOKE INSERT ON events FROM aurore",
        "GRANT INSERT ON events TO aurore",
    );
}

#[test]
fn f18_a_password_changed_is_waited_for() {
    let mut bench = Bench::start("18 password changed", &[]);
    bench.postgres.execute("ALTER ROLE aurore PASSWORD 'secret'");
    bench.postgres.demand_password();
    bench.load(Manner::STEADY);
    bench.keeps_taking(500);
    bench.postgres.execute("ALTER ROLE aurore PASSWORD 'another'");
    bench.postgres.end_sessions();
    bench.breaker_opens();
    bench.keeps_taking(500);
    bench.postgres.execute("ALTER ROLE aurore PASSWORD 'secret'");
    bench.judge(1);
    assert_eq!(bench.postgres.dead(), 0);
}

#[test]
fn f19_a_read_only_database_is_waited_out() {
    keeps_everything(
        "19 database read-only",
        "ALTER ROLE aurore SET default_transaction_read_only = on",
        "ALTER ROLE aurore RESET default_transaction_read_only; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aurore'",
    );
}

#[test]
fn f22_the_same_id_within_a_batch_across_batches_and_across_a_restart_is_stored_once() {
    let mut bench = Bench::start("22 same id in a batch, across batches, across a restart", &[]);
    let time = now();
    let batch: Vec<String> = (0..1_000).map(|row| keyed(time, "s", &format!("k{}", row % 400))).collect();
    let mut ids = std::collections::HashSet::new();
    for round in 0..4_u64 {
        ids.extend(ids_of(&bench.server.client().post_ndjson(&batch)));
        settle(&bench.server);
        // The third life is new, and so is its ledger.
        let before = if round < 2 { round } else { round - 2 };
        let fresh = if round == 0 { 400 } else { 0 };
        let page = bench.server.metric("events_stored_total");
        assert_eq!(page, if round < 2 { 400 } else { fresh });
        assert_eq!(bench.server.metric("events_duplicate_total"), (before + 1) * 1_000 - page);
        if round == 1 {
            bench.server.stop();
            bench.server.start_again();
        }
    }
    assert_eq!((ids.len(), bench.postgres.stored()), (400, 400));
    assert_eq!(bench.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 400);
    bench.line.passed_after(4, 400);
}

#[test]
fn f23_a_missing_partition_is_waited_for_and_the_edges_of_time_are_stored() {
    const DAY_MICROS: i64 = 86_400_000_000;
    let mut bench = Bench::start("23 no partition; timestamps at the edges", &[]);
    let mut client = bench.server.client();
    let at = |micros: i64| aurore_events::event::Timestamp::from_micros(now().micros() + micros);
    let edges = [at(-30 * DAY_MICROS + 60_000_000), at(-7 * DAY_MICROS), at(0), at(299_000_000)];
    for time in edges {
        id_of(&client.post_json(event_at(time, "s", "edge")));
    }
    settle(&bench.server);
    assert_eq!(bench.postgres.stored(), 4);
    for beyond in [at(-30 * DAY_MICROS - 60_000_000), at(320_000_000)] {
        assert_eq!(client.post_json(event_at(beyond, "s", "beyond")).status, 400);
    }
    // Nothing catches what has no partition: that is the operator's to mend, and no row's fault.
    bench.postgres.execute("ALTER TABLE events DETACH PARTITION events_default");
    for _ in 0..50 {
        id_of(&client.post_json(event_at(edges[0], "s", "late")));
    }
    bench.breaker_opens();
    id_of(&client.post_json(event("s", "of today")));
    assert_eq!(bench.server.metric("buffer_size"), 51);
    bench.postgres.execute("ALTER TABLE events ATTACH PARTITION events_default DEFAULT");
    settle(&bench.server);
    assert_eq!((bench.postgres.stored(), bench.postgres.dead()), (55, 0));
    bench.line.passed_after(1, 55);
}

/// Through the embedded cluster's socket, where no socket option helps.
#[test]
fn f20_a_cluster_of_our_own_that_hangs_is_noticed_and_loses_nothing() {
    let mut line = crate::bench::Line::of("20 embedded cluster hangs (SIGSTOP of its processes)");
    let server = Server::start(SETTINGS);
    let mut client = server.client();
    id_of(&client.post_json(event("s", "before")));
    settle(&server);
    let frozen = Frozen::cluster(&server);
    for _ in 0..100 {
        id_of(&client.post_json(event("s", "meanwhile")));
    }
    until("the hanging database is noticed", || server.metric("database_connection_status") == 0);
    drop(frozen);
    settle(&server);
    until("the database is back", || server.metric("database_connection_status") == 1);
    assert_eq!(server.metric("events_stored_total"), 101);
    line.passed_after(1, 101);
}

/// Nobody but the server itself may have ended it, or it is started again.
#[test]
fn f12_a_cluster_of_our_own_that_somebody_killed_is_started_again() {
    let mut line = crate::bench::Line::of("12 embedded cluster killed from outside");
    let mut server = Server::start(SETTINGS);
    // Each start that follows on another waits twice as long.
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
        settle_within(Duration::from_mins(2), &server);
        until("it is counted", || server.metric("embedded_postgres_restarts_total") > u64::from(round));
        let settled = server.metric("events_stored_total") + server.metric("events_duplicate_total");
        assert_eq!((settled, server.metric("events_dead_total")), (sent, 0));
    }
    let postmaster = crate::harness::server::embedded_postmaster(server.data_dir()).expect("it runs");
    server.stop();
    assert!(!crate::harness::process::alive(postmaster), "what the server stops stays stopped");
    line.passed_after(rounds, sent);
}

/// The processes of a cluster, stopped until this goes.
struct Frozen(Vec<u32>);

impl Frozen {
    fn cluster(server: &Server) -> Self {
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

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            crate::harness::process::signal("CONT", *pid);
        }
    }
}

#[test]
fn f21_a_slow_network_is_got_through() {
    let mut bench = Bench::start("21 10 KB/s", &[]);
    bench.proxy.throttle(10_000);
    let mut client = bench.server.client();
    let events: Vec<String> = (0..200).map(|_| event("s", "slow")).collect();
    ids_of(&client.post_ndjson(&events));
    settle(&bench.server);
    assert_eq!(bench.postgres.stored(), 200);
    assert_eq!(bench.server.metric("circuit_breaker_state"), 0);
    bench.line.passed_after(1, 200);
}

/// Tells of FAULTS 24, whose tests stand with the promises of the edge and of the writer.
#[test]
fn f24_poison_of_every_kind_is_refused_or_set_aside() {
    let mut line = crate::bench::Line::of("24 poison (see tests/it/validation.rs and verdicts.rs)");
    let world = World::start(&[]);
    world.postgres.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')");
    let mut client = world.server.client();
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
    settle(&world.server);
    assert_eq!((world.postgres.stored(), world.postgres.dead()), (900, 100));
    line.passed_after(1, 1_000);
}
