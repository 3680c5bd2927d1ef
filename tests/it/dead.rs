//! The dead letters: seen, tried again once the cause is gone, removed when told to, beside a running server.

use sonic_rs::JsonValueTrait;

use crate::harness::events::ids_of;
use crate::harness::server::{Ended, run};
use crate::harness::{Postgres, Server, World, event, settle};

const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message NOT LIKE 'poison%')";

fn dead(postgres: &Postgres, arguments: &[&str]) -> Ended {
    run(&[("DATABASE_URL", &postgres.url()), ("LOG_LEVEL", "warn")], &[&["dead"], arguments].concat())
}

#[track_caller]
fn answers(postgres: &Postgres, arguments: &[&str], wanted: &str) {
    let ended = dead(postgres, arguments);
    assert_eq!((ended.code, ended.stdout.trim()), (Some(0), wanted), "{arguments:?}: {}", ended.stderr);
}

/// 30 dead and 270 stored, of two services.
fn poisoned() -> World {
    let world = World::start(&[("DRAIN_INTERVAL", "50")]);
    world.postgres.execute(RULE);
    let batch: Vec<String> = (0..300)
        .map(|row| {
            let service = if row % 20 == 0 { "a" } else { "b" };
            event(service, &if row % 10 == 0 { format!("poison{row}") } else { format!("good{row}") })
        })
        .collect();
    assert_eq!(ids_of(&world.server.client().post_ndjson(&batch)).len(), 300);
    settle(&world.server);
    assert_eq!((world.postgres.stored(), world.postgres.dead()), (270, 30));
    world
}

#[test]
fn dead_letters_are_listed_with_the_reason() {
    let world = poisoned();
    let listed = dead(&world.postgres, &["list", "--limit=7", "--service=a"]);
    assert_eq!((listed.code, listed.stdout.lines().count()), (Some(0), 7), "{}", listed.stderr);
    for line in listed.stdout.lines() {
        let fields: Vec<_> = line.split('\t').collect();
        assert_eq!((fields.len(), fields[2], fields[3]), (5, "23514", "a"), "{line}");
        assert!(fields[4].contains("no_poison"), "{line}");
    }
    let listed = dead(&world.postgres, &["list", "--json", "--sqlstate=23514"]);
    assert_eq!(listed.stdout.lines().count(), 30, "{}", listed.stderr);
    let first: sonic_rs::Value = sonic_rs::from_str(listed.stdout.lines().next().unwrap()).unwrap();
    for field in ["event_id", "timestamp", "service", "sqlstate", "reason", "died_at"] {
        assert!(first[field].is_str(), "{field} in {first}");
    }
    answers(&world.postgres, &["list", "--sqlstate=22P02"], "");
    assert_eq!(dead(&world.postgres, &["list", "--limit=0"]).code, Some(2));
    assert_eq!(dead(&world.postgres, &[]).code, Some(2));
}

#[test]
fn a_replay_stores_once_what_can_be_stored_and_keeps_the_rest() {
    let world = poisoned();
    let postgres = &world.postgres;
    answers(postgres, &["replay"], "stored 0, stored already 0, refused again 30, unreadable 0");
    assert_eq!((postgres.stored(), postgres.dead()), (270, 30));
    // One rule for another: four are still refused, and now for another reason. One letter is damaged, one altered.
    postgres.execute(
        "ALTER TABLE events DROP CONSTRAINT no_poison; \
         ALTER TABLE events ADD CONSTRAINT no_tens CHECK (message !~ '^poison[0-4]0$'); \
         UPDATE dead_events SET row = substr(row, 1, length(row) - 1) WHERE position('poison290'::bytea IN row) > 0; \
         UPDATE dead_events SET event_id = gen_random_uuid() WHERE position('poison280'::bytea IN row) > 0",
    );
    answers(
        postgres,
        &["replay", "--service=b"],
        "stored 12, stored already 0, refused again 2, unreadable 1",
    );
    answers(postgres, &["replay", "--json"], r#"{"stored":12,"duplicate":0,"refused":4,"unreadable":2}"#);
    assert_eq!((postgres.stored(), postgres.dead()), (294, 6));
    assert_eq!(postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 294);
    let blamed = "SELECT count(*) FROM dead_events WHERE reason LIKE '%no_tens%'";
    assert_eq!(postgres.value::<i64>(blamed), 4);
    // One that is stored by another way leaves the dead without being stored twice.
    postgres.execute("ALTER TABLE events DROP CONSTRAINT no_tens");
    postgres.execute(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
         SELECT event_id, timestamp, now(), service, 'by hand' FROM dead_events \
         WHERE position('poison20'::bytea IN row) > 0",
    );
    answers(postgres, &["replay"], "stored 3, stored already 1, refused again 0, unreadable 2");
    assert_eq!((postgres.stored(), postgres.dead()), (298, 2));
}

#[test]
fn a_purge_removes_what_it_is_told_to_and_only_when_it_is_confirmed() {
    let world = poisoned();
    let postgres = &world.postgres;
    let asked = dead(postgres, &["purge", "--all"]);
    assert_eq!(asked.code, Some(1));
    assert!(
        asked.stderr.contains("30 dead events match") && asked.stderr.contains("--yes"),
        "{}",
        asked.stderr
    );
    assert_eq!(dead(postgres, &["purge", "--yes"]).code, Some(2), "of which?");
    answers(postgres, &["purge", "--yes", "--older-than-days=1"], "purged 0");
    answers(postgres, &["purge", "--yes", "--sqlstate=22P02"], "purged 0");
    answers(postgres, &["purge", "--yes", "--service=a", "--json"], r#"{"purged":15}"#);
    postgres.execute(
        "UPDATE dead_events SET died_at = now() - interval '2 days' WHERE event_id IN \
         (SELECT event_id FROM dead_events LIMIT 5)",
    );
    answers(postgres, &["purge", "--yes", "--older-than-days=1"], "purged 5");
    answers(postgres, &["purge", "--yes", "--all"], "purged 10");
    assert_eq!((postgres.stored(), postgres.dead()), (270, 0));
}

#[test]
fn the_cluster_of_a_running_server_is_used_and_left_running() {
    let mut server = Server::start(&[]);
    let data = server.data_dir().display().to_string();
    let of_it = |arguments: &[&str]| run(&[("DATA_DIR", &data)], &[&["dead"], arguments].concat());
    let listed = of_it(&["list"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (Some(0), ""), "{}", listed.stderr);
    assert_eq!(server.client().get("/ready").status, 200);
    server.stop();
    // And one that nobody runs is started for as long as it takes.
    let ended = of_it(&["purge", "--all", "--yes"]);
    assert_eq!((ended.code, ended.stdout.trim()), (Some(0), "purged 0"), "{}", ended.stderr);
    let pid = crate::harness::server::embedded_postmaster(server.data_dir());
    assert!(pid.is_none_or(|pid| !crate::harness::process::alive(pid)), "it is stopped again");
    let ended = run(&[], &["dead", "list"]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("DATABASE_URL"), "{}", ended.stderr);
}
