//! Dead letters: list, replay and purge, by command beside a running server and by its routes.

use sonic_rs::{JsonContainerTrait, JsonValueTrait, Value};

use crate::harness::client::request;
use crate::harness::events::ids_of;
use crate::harness::server::{ProgramOutput, run};
use crate::harness::{Postgres, Reply, Server, TestServer, event, until, wait_for_drain};

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

fn send(test: &TestServer, method: &str, path: &str) -> Reply {
    test.server.client().exchange(&request(method, path, &[], b""))
}

#[track_caller]
fn sent_json(test: &TestServer, method: &str, path: &str) -> Value {
    let reply = send(test, method, path);
    assert_eq!(reply.status, 200, "{method} {path}: {}", reply.text());
    reply.json()
}

#[test]
fn the_route_lists_dead_letters_with_their_events_page_by_page() {
    let test = start_with_dead_letters();
    let (mut seen, mut path, mut pages) = (Vec::new(), "/dead?service=a&limit=6".to_owned(), 0);
    loop {
        let page = sent_json(&test, "GET", &path);
        assert_eq!(page["page"]["total"].as_u64(), Some(15), "{page}");
        for dead in page["dead"].as_array().unwrap() {
            assert_eq!((dead["sqlstate"].as_str(), dead["service"].as_str()), (Some("23514"), Some("a")));
            assert!(dead["reason"].as_str().unwrap().contains("no_poison"), "{dead}");
            assert!(dead["event"]["message"].as_str().unwrap().starts_with("poison"), "{dead}");
            assert_eq!(dead["event"]["event_id"], dead["event_id"]);
            seen.push((
                dead["died_at"].as_str().unwrap().to_owned(),
                dead["event_id"].as_str().unwrap().to_owned(),
            ));
        }
        pages += 1;
        let Some(cursor) = page["page"]["next_cursor"].as_str() else { break };
        path = format!("/dead?service=a&limit=6&cursor={cursor}");
    }
    assert_eq!((seen.len(), pages), (15, 3));
    assert!(seen.is_sorted_by(|earlier, later| earlier > later), "newest first, without repeats: {seen:?}");
    let id = &seen[3].1;
    let one = sent_json(&test, "GET", &format!("/dead?event_id={id}"));
    assert_eq!(
        (one["page"]["total"].as_u64(), one["dead"][0]["event_id"].as_str()),
        (Some(1), Some(id.as_str()))
    );
    // A damaged row is listed without its event; so is one whose metadata is no longer JSON.
    test.postgres
        .execute(&format!("UPDATE dead_events SET row = substr(row, 1, 40) WHERE event_id = '{id}'"));
    let one = sent_json(&test, "GET", &format!("/dead?event_id={id}"));
    assert!(one["dead"][0]["event"].is_null(), "{one}");
    for (query, field) in [("limit=0", "limit"), ("cursor=x", "cursor"), ("colour=red", "colour")] {
        let refused = send(&test, "GET", &format!("/dead?{query}"));
        assert_eq!((refused.status, refused.header("content-type")), (400, Some("application/problem+json")));
        assert_eq!(refused.json()["errors"][0]["field"].as_str(), Some(field), "{}", refused.text());
    }
}

#[test]
fn a_page_of_dead_letters_ends_at_the_bytes_of_a_response() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50"), ("QUERY_RESPONSE_MAX_BYTES", "65536")]);
    test.postgres.execute(RULE);
    // The encoding of a message of control characters is six times as long.
    let long = format!("poison{}", "\\u0001".repeat(9000));
    let batch: Vec<String> = (0..10)
        .map(|_| event("s", "x").replace("\"x\"", &format!("\"{long}\"")))
        .chain([event("s", "good")])
        .collect();
    assert_eq!(ids_of(&test.server.client().post_ndjson(&batch)).len(), 11);
    wait_for_drain(&test.server);
    let (mut seen, mut path) = (0, "/dead".to_owned());
    loop {
        let page = sent_json(&test, "GET", &path);
        let dead = page["dead"].as_array().unwrap();
        assert_eq!(dead.len(), 1, "54 kB of JSON each");
        seen += dead.len();
        let Some(cursor) = page["page"]["next_cursor"].as_str() else { break };
        path = format!("/dead?cursor={cursor}");
    }
    assert_eq!(seen, 10);
}

#[test]
fn the_route_replays_in_pieces_and_keeps_what_is_refused() {
    let test = start_with_dead_letters();
    let all = sent_json(&test, "POST", "/dead/replay");
    assert_eq!((all["refused"].as_u64(), all["next_cursor"].is_null()), (Some(30), true), "{all}");
    test.postgres.execute(
        "ALTER TABLE events DROP CONSTRAINT no_poison; \
         ALTER TABLE events ADD CONSTRAINT no_tens CHECK (message !~ '^poison[0-4]0$')",
    );
    let (mut stored, mut refused, mut path, mut calls) =
        (0, 0, "/dead/replay?service=b&limit=4".to_owned(), 0);
    loop {
        let some = sent_json(&test, "POST", &path);
        stored += some["stored"].as_u64().unwrap();
        refused += some["refused"].as_u64().unwrap();
        calls += 1;
        let Some(cursor) = some["next_cursor"].as_str() else { break };
        path = format!("/dead/replay?service=b&limit=4&cursor={cursor}");
    }
    assert_eq!((stored, refused), (13, 2));
    assert!(calls >= 4, "{calls}");
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (283, 17));
    assert_eq!(test.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 283);
    assert!(
        test.server
            .metrics()
            .contains(r#"http_request_total{method="POST",route="/dead/replay",status="200"}"#)
    );
}

#[test]
fn the_route_purges_the_selected_dead_letters_only_when_confirmed() {
    let test = start_with_dead_letters();
    let refused = send(&test, "DELETE", "/dead?confirm=true");
    assert_eq!((refused.status, refused.json()["errors"][0]["field"].as_str()), (400, Some("all")));
    let unconfirmed = send(&test, "DELETE", "/dead?service=a");
    assert_eq!(unconfirmed.status, 400);
    assert_eq!(unconfirmed.json()["errors"][0]["field"].as_str(), Some("confirm"));
    assert!(unconfirmed.text().contains("15 dead letters match"), "{}", unconfirmed.text());
    assert_eq!(test.postgres.dead(), 30);
    let purged =
        |query: &str| sent_json(&test, "DELETE", &format!("/dead?{query}&confirm=true"))["purged"].as_u64();
    assert_eq!(purged("older_than_days=1"), Some(0));
    assert_eq!(purged("sqlstate=22P02"), Some(0));
    assert_eq!(purged("service=a"), Some(15));
    let id: String = test.postgres.value("SELECT event_id::text FROM dead_events LIMIT 1");
    assert_eq!(purged(&format!("event_id={id}")), Some(1));
    assert_eq!(purged("all=true"), Some(14));
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (270, 0));
}

#[test]
fn the_routes_answer_503_while_the_database_is_away_and_403_without_its_permission() {
    let mut test = start_with_dead_letters();
    // The breaker stays closed: the writer has its permissions.
    test.postgres.execute(
        "CREATE ROLE app LOGIN; GRANT INSERT, SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO app; \
         GRANT TEMPORARY ON DATABASE aurore TO app",
    );
    test.server.stop();
    let url = format!("postgresql://app@127.0.0.1:{}/aurore", test.postgres.port());
    let server = Server::start(&[("DATABASE_URL", &url)]);
    until("the database is reached", || server.metric("database_connection_status") == 1);
    let reply = server.client().exchange(&request("DELETE", "/dead?all=true&confirm=true", &[], b""));
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert!(reply.text().contains("role"), "{}", reply.text());
    assert_eq!((test.postgres.dead(), server.metric("circuit_breaker_state")), (30, 0));
    test.postgres.stop_immediate();
    until("the outage is detected", || server.metric("database_connection_status") == 0);
    for (method, path) in
        [("GET", "/dead"), ("POST", "/dead/replay"), ("DELETE", "/dead?all=true&confirm=true")]
    {
        let reply = server.client().exchange(&request(method, path, &[], b""));
        assert_eq!(reply.status, 503, "{method} {path}: {}", reply.text());
        assert!(reply.header("retry-after").is_some());
    }
}
