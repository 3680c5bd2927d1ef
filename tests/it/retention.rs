//! Retention: expired events are deleted on schedule and on command, counted, and other events
//! stay.

use std::fs;

use aurore_events::event::Timestamp;
use sonic_rs::JsonValueTrait;

use crate::harness::events::ids_of;
use crate::harness::server::run;
use crate::harness::{Postgres, Server, TestServer, event_at, now, until, wait_for_drain};

const DAY_MICROS: i64 = 86_400_000_000;

fn days_ago(days: i64) -> Timestamp {
    Timestamp::from_micros(now().micros() - days * DAY_MICROS + 60_000_000)
}

/// Stores ten events of today and of each of the last days, on a server that keeps them.
fn fill(server: &Server, days: i64) {
    let batch: Vec<String> =
        (0..=days).flat_map(|day| (0..10).map(move |_| event_at(days_ago(day), "s", "m"))).collect();
    ids_of(&server.client().post_ndjson(&batch));
    wait_for_drain(server);
}

/// The number of rows, and their number by the counts.
fn rows(postgres: &Postgres) -> (i64, i64) {
    (postgres.stored(), postgres.value("SELECT coalesce(sum(count), 0)::bigint FROM event_counts"))
}

#[test]
fn retention_run_deletes_expired_events_and_a_dry_run_only_reports_them() {
    let TestServer { server, postgres } = TestServer::start(&[("RETENTION_DAYS", "30")]);
    fill(&server, 6);
    assert_eq!(rows(&postgres), (70, 70));
    let url = postgres.url();
    let settings = [("DATABASE_URL", url.as_str()), ("RETENTION_DAYS", "3")];

    let ended = run(&settings, &["retention", "run", "--dry-run"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("events before "), "{}", ended.stdout);
    let reported: i64 = ended
        .stdout
        .lines()
        .filter_map(|line| line.strip_suffix(" events")?.rsplit(' ').next()?.parse::<i64>().ok())
        .sum();
    assert_eq!((reported, rows(&postgres)), (30, (70, 70)), "{}", ended.stdout);

    let json = |arguments: &[&str]| {
        let ended = run(&settings, arguments);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str::<serde_json::Value>(&ended.stdout).expect("JSON")
    };
    let preview = json(&["retention", "run", "--dry-run", "--json"]);
    let days = preview["partitions"].as_array().expect("an array").iter();
    let expired = days.map(|day| day["events"].as_i64().expect("a number")).sum::<i64>();
    assert_eq!((expired + preview["rows"].as_i64().expect("a number"), rows(&postgres)), (30, (70, 70)));

    let outcome = json(&["retention", "run", "--json"]);
    assert_eq!(rows(&postgres), (40, 40));
    let count = |name: &str| outcome[name].as_i64().expect("a number");
    assert_eq!((outcome["outcome"].as_str(), count("dropped") + count("deleted")), (Some("completed"), 30));
    let removed: i64 = postgres.value(
        "SELECT sum(events_dropped + events_deleted)::bigint FROM retention_runs \
         WHERE error IS NULL AND finished_at IS NOT NULL",
    );
    assert_eq!(removed, 30);
    // The total of a query equals the events it returns.
    let page = server.client().get_json("/events?from=0&to=4102444800000&limit=1000");
    assert_eq!(page["page"]["total"].as_i64(), Some(40));
    assert_eq!(run(&settings, &["retention", "run"]).code, Some(0), "there is nothing to do");
    assert_eq!(run(&[("RETENTION_CRON_SCHEDULE", "sometimes")], &["retention", "run"]).code, Some(2));
}

#[test]
fn scheduled_sweeps_delete_expired_events_and_survive_outages() {
    let settings = [
        ("RETENTION_DAYS", "3"),
        ("RETENTION_CRON_SCHEDULE", "* * * * * *"),
        ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
        ("DRAIN_INTERVAL", "50"),
    ];
    let mut test = TestServer::start(&settings);
    until("a sweep has run", || test.server.metric("retention_runs_total") > 0);
    test.postgres.stop_fast();
    until("a sweep has failed", || test.server.metric("retention_failures_total") > 0);
    test.postgres.restart();
    // Too old for the validation of the server, so they are inserted by SQL.
    test.postgres.execute(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
         SELECT (lpad(to_hex((extract(epoch FROM t) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid, \
                t, t, 's', 'm' \
         FROM generate_series(now() - interval '9 days', now() - interval '4 days', interval '1 hour') t",
    );
    test.postgres.execute(
        "INSERT INTO event_counts SELECT service, date_trunc('hour', timestamp, 'UTC'), count(*) FROM events GROUP BY 1, 2",
    );
    ids_of(&test.server.client().post_ndjson(&[event_at(now(), "s", "stays")]));
    wait_for_drain(&test.server);
    until("the old ones are gone", || rows(&test.postgres) == (1, 1));
    assert_eq!(test.server.metric("retention_events_deleted_total"), 121);
    assert!(test.server.metric("retention_last_run_timestamp_seconds") > 1_700_000_000);
    test.server.stop();
}

#[test]
fn retention_run_works_beside_a_server_with_an_embedded_cluster() {
    let server = Server::start(&[]);
    fill(&server, 2);
    let data = fs::canonicalize(server.data_dir()).unwrap();
    let settings = [("DATA_DIR", data.to_str().unwrap()), ("RETENTION_DAYS", "1")];
    let ended = run(&settings, &["retention", "run"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let page = server.client().get_json("/events?from=0&to=4102444800000&limit=1000");
    assert_eq!(page["page"]["total"].as_i64(), Some(20), "the server's database is still there");
}
