//! The commands for dead letters (list, replay, purge), beside a running server.

use sonic_rs::JsonValueTrait;

use crate::harness::events::ids_of;
use crate::harness::server::{ProgramOutput, run};
use crate::harness::{Postgres, Server, TestServer, event, wait_for_drain};

const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%')";

fn dead(postgres: &Postgres, arguments: &[&str]) -> ProgramOutput {
    run(&[("DATABASE_URL", &postgres.url()), ("LOG_LEVEL", "warn")], &[&["dead"], arguments].concat())
}

#[track_caller]
fn assert_output(postgres: &Postgres, arguments: &[&str], wanted: &str) {
    let ended = dead(postgres, arguments);
    assert_eq!((ended.code, ended.stdout.trim()), (Some(0), wanted), "{arguments:?}: {}", ended.stderr);
}

/// 30 dead and 270 stored, of two services.
fn start_with_dead_letters() -> TestServer {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    test.postgres.execute(RULE);
    let batch: Vec<String> = (0..300)
        .map(|row| {
            let service = if row % 20 == 0 { "a" } else { "b" };
            event(service, &if row % 10 == 0 { format!("poison{row}") } else { format!("good{row}") })
        })
        .collect();
    assert_eq!(ids_of(&test.server.client().post_ndjson(&batch)).len(), 300);
    wait_for_drain(&test.server);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (270, 30));
    test
}

#[test]
fn dead_letters_are_listed_with_the_reason() {
    let test = start_with_dead_letters();
    let listed = dead(&test.postgres, &["list", "--limit=7", "--service=a"]);
    assert_eq!((listed.code, listed.stdout.lines().count()), (Some(0), 7), "{}", listed.stderr);
    for line in listed.stdout.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        assert_eq!((fields.len(), fields[2], fields[3]), (5, "23514", "a"), "{line}");
        assert!(fields[4].contains("no_poison"), "{line}");
    }
    let listed = dead(&test.postgres, &["list", "--json", "--sqlstate=23514"]);
    assert_eq!(listed.stdout.lines().count(), 30, "{}", listed.stderr);
    let first: sonic_rs::Value = sonic_rs::from_str(listed.stdout.lines().next().unwrap()).unwrap();
    for field in ["event_id", "timestamp", "service", "sqlstate", "reason", "died_at"] {
        assert!(first[field].is_str(), "{field} in {first}");
    }
    assert_output(&test.postgres, &["list", "--sqlstate=22P02"], "");
    assert_eq!(dead(&test.postgres, &["list", "--limit=0"]).code, Some(2));
    assert_eq!(dead(&test.postgres, &[]).code, Some(2));
}

#[test]
fn replay_stores_accepted_rows_once_and_keeps_the_rest() {
    let test = start_with_dead_letters();
    let postgres = &test.postgres;
    assert_output(postgres, &["replay"], "stored 0, duplicate 0, rejected 30, unreadable 0");
    assert_eq!((postgres.stored(), postgres.dead()), (270, 30));
    // Another constraint: four rows are still rejected, now for another reason. One row is damaged,
    // one altered.
    postgres.execute(
        "ALTER TABLE events DROP CONSTRAINT no_poison; \
         ALTER TABLE events ADD CONSTRAINT no_tens CHECK (message !~ '^poison[0-4]0$'); \
         UPDATE dead_events SET row = substr(row, 1, length(row) - 1) WHERE position('poison290'::bytea IN row) > 0; \
         UPDATE dead_events SET event_id = gen_random_uuid() WHERE position('poison280'::bytea IN row) > 0",
    );
    assert_output(postgres, &["replay", "--service=b"], "stored 12, duplicate 0, rejected 2, unreadable 1");
    assert_output(
        postgres,
        &["replay", "--json"],
        r#"{"stored":12,"duplicate":0,"refused":4,"unreadable":2}"#,
    );
    assert_eq!((postgres.stored(), postgres.dead()), (294, 6));
    assert_eq!(postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 294);
    let blamed = "SELECT count(*) FROM dead_events WHERE reason LIKE '%no_tens%'";
    assert_eq!(postgres.value::<i64>(blamed), 4);
    // A row that was stored otherwise leaves dead_events and is not stored twice.
    postgres.execute("ALTER TABLE events DROP CONSTRAINT no_tens");
    postgres.execute(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
         SELECT event_id, timestamp, now(), service, 'by hand' FROM dead_events \
         WHERE position('poison20'::bytea IN row) > 0",
    );
    assert_output(postgres, &["replay"], "stored 3, duplicate 1, rejected 0, unreadable 2");
    assert_eq!((postgres.stored(), postgres.dead()), (298, 2));
}

#[test]
fn purge_deletes_the_selected_rows_only_when_confirmed() {
    let test = start_with_dead_letters();
    let postgres = &test.postgres;
    let unconfirmed = dead(postgres, &["purge", "--all"]);
    assert_eq!(unconfirmed.code, Some(1));
    assert!(
        unconfirmed.stderr.contains("30 dead events match") && unconfirmed.stderr.contains("--yes"),
        "{}",
        unconfirmed.stderr
    );
    assert_eq!(dead(postgres, &["purge", "--yes"]).code, Some(2), "of which?");
    assert_output(postgres, &["purge", "--yes", "--older-than-days=1"], "purged 0");
    assert_output(postgres, &["purge", "--yes", "--sqlstate=22P02"], "purged 0");
    assert_output(postgres, &["purge", "--yes", "--service=a", "--json"], r#"{"purged":15}"#);
    postgres.execute(
        "UPDATE dead_events SET died_at = now() - interval '2 days' WHERE event_id IN \
         (SELECT event_id FROM dead_events LIMIT 5)",
    );
    assert_output(postgres, &["purge", "--yes", "--older-than-days=1"], "purged 5");
    assert_output(postgres, &["purge", "--yes", "--all"], "purged 10");
    assert_eq!((postgres.stored(), postgres.dead()), (270, 0));
}

#[test]
fn dead_commands_use_the_cluster_of_a_running_server_and_leave_it_running() {
    let mut server = Server::start(&[]);
    let data = server.data_dir().display().to_string();
    let of_it = |arguments: &[&str]| run(&[("DATA_DIR", &data)], &[&["dead"], arguments].concat());
    let listed = of_it(&["list"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (Some(0), ""), "{}", listed.stderr);
    assert_eq!(server.client().get("/ready").status, 200);
    server.stop();
    // A cluster without a running server is started for the duration of the command.
    let ended = of_it(&["purge", "--all", "--yes"]);
    assert_eq!((ended.code, ended.stdout.trim()), (Some(0), "purged 0"), "{}", ended.stderr);
    let pid = crate::harness::server::embedded_postmaster(server.data_dir());
    assert!(pid.is_none_or(|pid| !crate::harness::process::is_alive(pid)), "it is stopped again");
    let ended = run(&[], &["dead", "list"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("DATABASE_URL"), "{}", ended.stderr);
}
