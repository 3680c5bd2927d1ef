//! Health, readiness and metrics in JSON.

use sonic_rs::{JsonContainerTrait, JsonValueTrait, Value};

use crate::harness::client::request;
use crate::harness::events::{id_of, ids_of};
use crate::harness::{TestServer, event, until, wait_for_drain};

/// Metric names that dashboards and alerts depend on.
const NAMES: &[&str] = &[
    "buffer_size",
    "buffer_capacity",
    "buffer_utilization_percent",
    "buffer_health_status",
    "events_enqueued_total",
    "events_dropped_total",
    "events_drop_rate_percent",
    "events_throughput_per_second",
    "batches_processed_total",
    "events_processed_total",
    "batch_processing_time_ms",
    "batch_insert_time_ms",
    "database_connection_status",
    "circuit_breaker_state",
    "events_received_total",
    "events_stored_total",
    "events_duplicate_total",
    "events_dead_total",
];

#[test]
fn health_and_metrics_routes_report_the_servers_state() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    id_of(&client.post_json(event("s", "m")));
    ids_of(&client.post_ndjson(&vec![event("s", "m"); 9]));
    wait_for_drain(&test.server);

    for path in ["/live", "/ready", "/health"] {
        assert_eq!(client.get(path).status, 200, "{path}");
    }
    assert_eq!(client.get_json("/health")["status"].as_str(), Some("healthy"));

    let reply = client.get("/metrics/prometheus");
    let kind = reply.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/plain") && kind.contains("version=0.0.4"), "{kind}");
    let page = reply.text();
    for name in NAMES {
        assert!(page.contains(&format!("# TYPE {name} ")), "{name} has no type in:\n{page}");
        assert!(page.contains(&format!("# HELP {name} ")), "{name} has no help in:\n{page}");
        assert!(page.lines().any(|line| line.starts_with(name)), "{name} has no value in:\n{page}");
    }
    for name in ["batch_processing_time_ms", "batch_insert_time_ms"] {
        assert!(page.contains(&format!("# TYPE {name} histogram")), "{page}");
    }
    for name in
        ["events_enqueued_total", "events_processed_total", "events_received_total", "events_stored_total"]
    {
        assert_eq!(test.server.metric(name), 10, "{name}");
    }
    assert_eq!(test.server.metric("buffer_capacity"), 50_000, "the default");
    assert_eq!(test.server.metric("buffer_health_status"), 2);
    assert_eq!(test.server.metric("database_connection_status"), 1);

    // JSON, unless `Accept` prefers text.
    let json = client.get_json("/metrics");
    let rendered = json.to_string();
    for name in [
        "totalEnqueued",
        "totalDropped",
        "lastEnqueueTime",
        "lastDrainTime",
        "totalBatchesProcessed",
        "totalEventsProcessed",
        "totalInsertTimeMs",
        "averageBatchProcessingTimeMs",
    ] {
        assert!(rendered.contains(&format!("\"{name}\"")), "{name} is not in {rendered}");
    }
    for (accept, is_text) in [
        ("application/json", false),
        ("*/*", false),
        ("text/plain", true),
        ("text/plain;version=0.0.4, */*;q=0.1", true),
        ("application/openmetrics-text; version=1.0.0, text/plain;q=0.5", true),
        ("application/json, text/plain;q=0.5", false),
    ] {
        let reply = client.exchange(&request("GET", "/metrics", &[("Accept", accept)], b""));
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text().contains("# TYPE buffer_size"), is_text, "{accept}");
    }
}

/// Every member of a document with its path, such as `checks.buffer`, without members below a
/// service name.
fn members(value: &Value, within: &str, names: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flat_map(|object| object.iter()) {
        let path = if within.is_empty() { name.to_owned() } else { format!("{within}.{name}") };
        if name != "events_by_service" {
            members(value, &path, names);
        }
        names.push(path);
    }
    for value in value.as_array().into_iter().flatten() {
        members(value, within, names);
    }
}

#[test]
fn every_json_member_of_health_and_metrics_is_documented() {
    let documented = include_str!("../../docs/observability.md");
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    id_of(&client.post_json(event("s", "m")));
    wait_for_drain(&test.server);
    until("business metrics are known", || {
        client.get_json("/health/business")["total_events"].as_u64() == Some(1)
    });
    let mut unknown = Vec::new();
    for path in [
        "/live",
        "/ready",
        "/health",
        "/health/buffer",
        "/health/database",
        "/health/business",
        "/health/detailed",
        "/metrics",
    ] {
        let mut names = Vec::new();
        members(&client.get_json(path), "", &mut names);
        assert!(!names.is_empty(), "{path}");
        let section =
            documented.split("\n### ").find(|section| section.starts_with(&format!("`GET {path}`")));
        let section = section.unwrap_or_else(|| panic!("{path} has no section"));
        unknown.extend(
            names
                .iter()
                .filter(|name| !section.contains(&format!("`{name}`")))
                .map(|name| format!("{path}: {name}")),
        );
    }
    assert!(unknown.is_empty(), "not documented: {unknown:#?}");
}

#[test]
fn readiness_requires_the_database_or_free_capacity() {
    let mut test = TestServer::start(&[
        ("BUFFER_MAX_SIZE", "20"),
        ("SPILL_MAX_BYTES", "0"),
        ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
        ("DRAIN_INTERVAL", "50"),
    ]);
    let mut client = test.server.client();
    test.postgres.stop_fast();
    until("the outage is detected", || test.server.metric("database_connection_status") == 0);
    assert_eq!(client.get("/ready").status, 200, "there is room");
    ids_of(&client.post_ndjson(&vec![event("s", "m"); 20]));
    until("it is not ready", || client.get("/ready").status == 503);
    assert!(!client.get("/ready").body.is_empty(), "the body has the reasons");
    assert_eq!(client.get("/live").status, 200);
    assert_eq!(test.server.metric("buffer_health_status"), 0);
    test.postgres.restart();
    until("it is ready", || client.get("/ready").status == 200);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 20);
}

#[test]
fn a_writer_that_stores_nothing_degrades_the_health_though_the_database_is_up() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    id_of(&client.post_json(event("s", "before")));
    wait_for_drain(&test.server);
    let mut session = test.postgres.client();
    let mut lock = session.transaction().unwrap();
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    id_of(&client.post_json(event("s", "held")));
    until("the health is degraded", || client.get_json("/health")["status"].as_str() == Some("degraded"));
    let health = client.get_json("/health");
    assert_eq!(health["checks"]["buffer"].as_str(), Some("degraded"), "{health}");
    assert_eq!(health["checks"]["database"].as_str(), Some("healthy"), "{health}");
    let buffer = client.get_json("/health/buffer");
    assert!(buffer["stalled_seconds"].as_f64() >= Some(5.0), "{buffer}");
    until("the stall is counted", || test.server.metric("buffer_stalls_total") == 1);
    assert_eq!((client.get("/ready").status, client.get("/health").status), (200, 200));
    lock.rollback().unwrap();
    wait_for_drain(&test.server);
    until("the health is restored", || client.get_json("/health")["status"].as_str() == Some("healthy"));
    assert_eq!(test.server.metric("buffer_stalled_seconds"), 0);
}
