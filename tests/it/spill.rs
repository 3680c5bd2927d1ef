//! Spilling: events beyond the buffer stay on disk, so a long outage uses the disk before it
//! rejects producers, and each event is stored once.

use std::time::Duration;

use crate::harness::events::ids_of;
use crate::harness::{Producer, Server, TestServer, check_stored, event, until, wait_for_drain};

/// A buffer that is soon full, and a breaker that retries soon.
const SETTINGS: &[(&str, &str)] = &[
    ("BUFFER_MAX_SIZE", "500"),
    ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
    ("DRAIN_INTERVAL", "20"),
    ("BATCH_SIZE", "200"),
];

fn settings_with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [SETTINGS, more].concat()
}

fn spilled(server: &Server) -> u64 {
    server.metric("journal_spilled_events")
}

#[test]
fn an_outage_beyond_the_buffer_rejects_nothing_and_stores_each_event_once() {
    let mut test = TestServer::start(&settings_with(&[("JOURNAL_SEGMENT_BYTES", "65536")]));
    let producer = Producer::start(test.server.address(), 4);
    for _ in 0..2 {
        test.postgres.stop_fast();
        let goal = spilled(&test.server) + 3_000;
        until("events are spilled", || spilled(&test.server) > goal);
        let page = test.server.metrics();
        let metric_of = |name: &str| crate::harness::server::metric(&page, name);
        assert!(metric_of("buffer_size") <= metric_of("buffer_capacity"));
        assert_eq!(
            metric_of("events_buffered"),
            metric_of("buffer_size") + metric_of("journal_spilled_events")
        );
        assert_eq!(metric_of("journal_spill_capacity_bytes"), 1 << 30);
        assert_eq!(metric_of("buffer_health_status"), 1, "degraded: no event is rejected");
        assert_eq!(test.server.client().get("/ready").status, 200);
        let health = test.server.client().get("/health/buffer").text();
        assert!(health.contains("\"spilled_events\":"), "{health}");
        test.postgres.restart();
        until("it has caught up", || spilled(&test.server) == 0);
    }
    let record = producer.stop();
    wait_for_drain(&test.server);
    assert_eq!(record.statuses.keys().copied().collect::<Vec<_>>(), [202], "{:?}", record.statuses);
    check_stored(&record, &test.postgres);
    assert_eq!(test.server.metric("events_duplicate_total"), 0, "what is read back is read once");
    assert_eq!(test.server.metric("events_received_total"), record.acknowledged.len() as u64);
    assert!(test.server.metric("journal_spill_events_total") > 6_000);
    test.server.stop();
}

#[test]
fn spilling_is_bounded_and_then_answers_429_with_retry_after() {
    const BYTES_MAX: u64 = 100_000;
    let mut test = TestServer::start(&settings_with(&[("SPILL_MAX_BYTES", &BYTES_MAX.to_string())]));
    test.postgres.stop_fast();
    let mut client = test.server.client();
    let batch = vec![event("s", "m"); 100];
    let mut accepted = 0;
    let refused = loop {
        let reply = client.post_ndjson(&batch);
        if reply.status != 202 {
            break reply;
        }
        accepted += ids_of(&reply).len();
    };
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());
    let bytes = test.server.metric("journal_spilled_bytes");
    assert!(accepted > 1_000 && bytes <= BYTES_MAX && bytes > BYTES_MAX * 8 / 10, "{accepted}, {bytes}");
    while client.post_json(event("s", "m")).status == 202 {
        accepted += 1;
    }
    until("it is not ready", || client.get("/ready").status == 503);
    assert_eq!(test.server.metric("buffer_health_status"), 0);
    test.postgres.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), i64::try_from(accepted).unwrap());
    assert_eq!(client.get("/ready").status, 200);
}

#[test]
fn kills_during_spill_and_refill_lose_no_event_at_written() {
    let mut test = TestServer::start(&settings_with(&[
        ("DURABILITY", "written"),
        ("BATCH_SIZE", "20"),
        ("JOURNAL_SEGMENT_BYTES", "65536"),
    ]));
    let mut record = crate::harness::producer::ProducerRecord::default();
    test.postgres.stop_fast();
    for _ in 0..2 {
        let producer = Producer::start(test.server.address(), 4);
        until("events are spilled", || spilled(&test.server) > 1_500);
        test.server.kill();
        record.merge(producer.stop());
        // Ready although the backlog is larger than the buffer, since spill capacity is free.
        test.server.restart();
    }
    let producer = Producer::start(test.server.address(), 4);
    until("events are spilled", || spilled(&test.server) > 500);
    record.merge(producer.stop());
    test.postgres.restart();
    until("some events are refilled", || test.server.metric("events_stored_total") > 500);
    test.server.kill();
    test.server.restart();
    wait_for_drain(&test.server);
    check_stored(&record, &test.postgres);
}

#[test]
fn spilled_events_at_a_stop_are_drained_or_stay_in_the_journal() {
    let mut test = TestServer::start(&settings_with(&[("SHUTDOWN_TIMEOUT_MS", "500")]));
    let batch = vec![event("s", "m"); 400];
    for drains in [false, true] {
        test.postgres.stop_fast();
        for _ in 0..5 {
            ids_of(&test.server.client().post_ndjson(&batch));
        }
        assert!(spilled(&test.server) >= 1_200);
        if drains {
            test.postgres.restart();
            test.server.signal("TERM");
            let status = test.server.exit_within(Duration::from_secs(20));
            assert_eq!(status.code(), Some(0));
            assert_eq!(test.postgres.stored(), 4_000);
        } else {
            test.server.stop();
            test.postgres.restart();
            test.server.set("SHUTDOWN_TIMEOUT_MS", "20000");
            test.server.restart();
            wait_for_drain(&test.server);
            assert_eq!(test.postgres.stored(), 2_000);
        }
    }
}
