//! Several hosts in `DATABASE_URL`, and a standby that serves queries (`DATABASE_READ_URL`). Faults
//! of both are in `tests/faults/standby.rs`.

use sonic_rs::JsonValueTrait;

use crate::harness::events::{id_of, list};
use crate::harness::server::{run, wait_for_partitions};
use crate::harness::{ReplicatedPostgres, Server, event, until, wait_for_drain};

const METRICS: &str = include_str!("golden/metrics_standby.txt");
/// Sessions of the server.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'aurore'";

#[test]
fn events_are_stored_on_the_host_that_is_writable() {
    let pair = ReplicatedPostgres::start();
    let (primary, standby) = (pair.primary.port(), pair.standby.port());
    for parameters in [
        "target_session_attrs=read-write",
        "target_session_attrs=primary&load_balance_hosts=random",
        "target_session_attrs=read-write&connect_timeout=3",
    ] {
        // The standby first: only the parameter leads to the primary.
        let url = format!("postgresql://aurore@127.0.0.1:{standby},127.0.0.1:{primary}/aurore?{parameters}");
        let server = Server::start(&[("DATABASE_URL", &url), ("DRAIN_INTERVAL", "50")]);
        let id = id_of(&server.client().post_json(event("s", "m")));
        wait_for_drain(&server);
        assert_eq!(server.metric("events_stored_total"), 1, "{parameters}");
        assert_eq!(server.client().get(&format!("/events/{id}")).status, 200);
    }
    assert_eq!(pair.primary.stored(), 3);
}

#[test]
fn queries_and_exports_read_from_the_standby() {
    let pair = ReplicatedPostgres::start();
    let read_url = pair.url_with("target_session_attrs=read-only&load_balance_hosts=random");
    let settings = [("DATABASE_READ_URL", read_url.as_str()), ("DRAIN_INTERVAL", "50")];
    let server = Server::start_on(&pair.primary, &settings);
    wait_for_partitions(&pair.primary);
    let id = id_of(&server.client().post_json(event("s", "m")));
    wait_for_drain(&server);
    pair.wait_until_caught_up();
    let mut client = server.client();
    until("the standby serves queries", || {
        client.get_json("/health/database")["standby"]["serves_queries"].as_bool() == Some(true)
    });
    // The hosts are in any order, but only the standby is read-only.
    assert!(pair.standby.value::<i64>(SESSIONS) > 0);
    let answered = |server: &Server| server.metric("database_standby_queries_total");
    let before = answered(&server);
    assert_eq!(list(&client.get_json("/events?service=s")["events"]).len(), 1);
    assert_eq!(client.get_json(&format!("/events/{id}"))["status"].as_str(), Some("stored"));
    assert_eq!(client.get("/stats").status, 200);
    let export = client.exchange(&crate::harness::client::request(
        "GET",
        "/events?service=s",
        &[("Accept", "application/x-ndjson")],
        b"",
    ));
    assert!(export.text().contains(&id), "{}", export.text());
    // A page and its total are two queries.
    assert_eq!(answered(&server), before + 5);
    assert_eq!(server.metric("database_standby_fallbacks_total"), 0);
    let page = server.metrics();
    for line in METRICS.lines().filter(|line| !line.starts_with('#')) {
        assert!(page.contains(&format!("# TYPE {line}\n")), "{line}");
    }
}

#[test]
fn attributes_that_cannot_serve_are_refused() {
    let url = "postgresql://u:hunter2@127.0.0.1:1,127.0.0.1:2/none";
    let with = |attribute: &str| format!("{url}?target_session_attrs={attribute}");
    for (settings, message) in [
        (
            vec![("DATABASE_URL", with("read-only"))],
            "DATABASE_URL: target_session_attrs must be any, read-write",
        ),
        (
            vec![("DATABASE_URL", with("any")), ("DATABASE_READ_URL", with("prefer-standby"))],
            "DATABASE_READ_URL: target_session_attrs must be any, read-write, primary, read-only or standby",
        ),
        (
            vec![("DATABASE_URL", with("any")), ("DATABASE_READ_URL", "mysql://u:hunter2@h/d".to_owned())],
            "DATABASE_READ_URL is neither",
        ),
        (vec![("DATABASE_READ_URL", with("any"))], "without DATABASE_URL"),
    ] {
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        for command in ["check-config", "serve"] {
            let ended = run(&settings, &[command]);
            assert_eq!(ended.code, Some(2), "{command} with {settings:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(message), "{command} with {settings:?}: {}", ended.stderr);
            assert!(!ended.stderr.contains("hunter2"), "{}", ended.stderr);
        }
    }
    let accepted = [("DATABASE_URL", with("read-write")), ("DATABASE_READ_URL", with("read-only"))];
    let accepted: Vec<_> = accepted.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let checked = run(&accepted, &["check-config"]);
    assert_eq!(checked.code, Some(0), "{}", checked.stderr);
    let unguarded = run(&[("DATABASE_URL", with("any").as_str())], &["check-config"]);
    assert_eq!(unguarded.code, Some(0), "{}", unguarded.stderr);
    assert!(unguarded.stderr.contains("target_session_attrs=read-write"), "{}", unguarded.stderr);
}
