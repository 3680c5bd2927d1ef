//! What the buffer has no room for lies on the disk: a long outage fills that before a producer is turned away, and all
//! of it is stored once.

use std::time::Duration;

use crate::harness::events::ids_of;
use crate::harness::{Producer, Server, World, event, judge, settle, until};

/// A buffer that is full at once, and a breaker that tries again soon.
const SETTINGS: &[(&str, &str)] = &[
    ("BUFFER_MAX_SIZE", "500"),
    ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
    ("DRAIN_INTERVAL", "20"),
    ("BATCH_SIZE", "200"),
];

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [SETTINGS, more].concat()
}

fn spilled(server: &Server) -> u64 {
    server.metric("journal_spilled_events")
}

#[test]
fn an_outage_longer_than_the_buffer_turns_nobody_away_and_all_is_stored_once() {
    let mut world = World::start(&with(&[("JOURNAL_SEGMENT_BYTES", "65536")]));
    let producer = Producer::start(world.server.address(), 4);
    for _ in 0..2 {
        world.postgres.stop_fast();
        let goal = spilled(&world.server) + 3_000;
        until("events are spilled", || spilled(&world.server) > goal);
        let page = world.server.metrics();
        let figure = |name: &str| crate::harness::server::metric(&page, name);
        assert!(figure("buffer_size") <= figure("buffer_capacity"));
        assert_eq!(figure("events_buffered"), figure("buffer_size") + figure("journal_spilled_events"));
        assert_eq!(figure("journal_spill_capacity_bytes"), 1 << 30);
        assert_eq!(figure("buffer_health_status"), 1, "degraded: nothing is refused");
        assert_eq!(world.server.client().get("/ready").status, 200);
        let health = world.server.client().get("/health/buffer").text();
        assert!(health.contains("\"spilled_events\":"), "{health}");
        world.postgres.start_again();
        until("it has caught up", || spilled(&world.server) == 0);
    }
    let tally = producer.stop();
    settle(&world.server);
    assert_eq!(tally.answers.keys().copied().collect::<Vec<_>>(), [202], "{:?}", tally.answers);
    judge(&tally, &world.postgres);
    assert_eq!(world.server.metric("events_duplicate_total"), 0, "what is read back is read once");
    assert_eq!(world.server.metric("events_received_total"), tally.acknowledged.len() as u64);
    assert!(world.server.metric("journal_spill_events_total") > 6_000);
    world.server.stop();
}

#[test]
fn what_may_be_spilled_is_bounded_and_then_429_says_when_to_come_back() {
    const BYTES_MAX: u64 = 100_000;
    let mut world = World::start(&with(&[("SPILL_MAX_BYTES", &BYTES_MAX.to_string())]));
    world.postgres.stop_fast();
    let mut client = world.server.client();
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
    let bytes = world.server.metric("journal_spilled_bytes");
    assert!(accepted > 1_000 && bytes <= BYTES_MAX && bytes > BYTES_MAX * 8 / 10, "{accepted}, {bytes}");
    while client.post_json(event("s", "m")).status == 202 {
        accepted += 1;
    }
    until("it is not ready", || client.get("/ready").status == 503);
    assert_eq!(world.server.metric("buffer_health_status"), 0);
    world.postgres.start_again();
    settle(&world.server);
    assert_eq!(world.postgres.stored(), i64::try_from(accepted).unwrap());
    assert_eq!(client.get("/ready").status, 200);
}

#[test]
fn kills_while_events_are_spilled_and_while_they_come_back_lose_nothing_that_was_written() {
    let mut world = World::start(&with(&[
        ("DURABILITY", "written"),
        ("BATCH_SIZE", "20"),
        ("JOURNAL_SEGMENT_BYTES", "65536"),
    ]));
    let mut tally = crate::harness::producer::Tally::default();
    world.postgres.stop_fast();
    for _ in 0..2 {
        let producer = Producer::start(world.server.address(), 4);
        until("events are spilled", || spilled(&world.server) > 1_500);
        world.server.kill();
        tally.merge(producer.stop());
        // Ready though the backlog is larger than the buffer: there is room behind it.
        world.server.start_again();
    }
    let producer = Producer::start(world.server.address(), 4);
    until("events are spilled", || spilled(&world.server) > 500);
    tally.merge(producer.stop());
    world.postgres.start_again();
    until("some come back", || world.server.metric("events_stored_total") > 500);
    world.server.kill();
    world.server.start_again();
    settle(&world.server);
    judge(&tally, &world.postgres);
}

#[test]
fn what_is_spilled_when_the_server_stops_is_drained_or_waits_in_the_journal() {
    let mut world = World::start(&with(&[("SHUTDOWN_TIMEOUT_MS", "500")]));
    let batch = vec![event("s", "m"); 400];
    for drains in [false, true] {
        world.postgres.stop_fast();
        for _ in 0..5 {
            ids_of(&world.server.client().post_ndjson(&batch));
        }
        assert!(spilled(&world.server) >= 1_200);
        if drains {
            world.server.signal("TERM");
            world.postgres.start_again();
            let status = world.server.exit_within(Duration::from_secs(20));
            assert_eq!(status.code(), Some(0));
            assert_eq!(world.postgres.stored(), 4_000);
        } else {
            world.server.stop();
            world.postgres.start_again();
            world.server.set("SHUTDOWN_TIMEOUT_MS", "20000");
            world.server.start_again();
            settle(&world.server);
            assert_eq!(world.postgres.stored(), 2_000);
        }
    }
}
