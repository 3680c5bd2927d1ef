//! The limit of the buffer: its whole capacity is usable, then 429 with `Retry-After`.

use crate::harness::events::{id_of, ids_of};
use crate::harness::{Client, Reply, TestServer, event, until, wait_for_drain};

const CAPACITY: usize = 100;

/// Asserts a rejection because of a full buffer, with `Retry-After`.
#[track_caller]
fn assert_full(reply: &Reply) {
    assert_eq!(reply.status, 429, "{}", reply.text());
    let wait = reply.header("retry-after").expect("429 has Retry-After");
    assert!(wait.parse::<u64>().is_ok_and(|seconds| seconds >= 1), "Retry-After: {wait}");
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/problem+json")));
}

fn events(count: usize, message: &str) -> Vec<String> {
    vec![event("s", message); count]
}

/// A breaker that retries soon.
const SETTINGS: &[(&str, &str)] = &[
    ("BUFFER_MAX_SIZE", "100"),
    ("SPILL_MAX_BYTES", "0"),
    ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
    ("DRAIN_INTERVAL", "50"),
];

#[test]
fn a_full_buffer_answers_429_and_keeps_its_events() {
    let mut test = TestServer::start(SETTINGS);
    let mut client = test.server.client();
    // The writer stores events before the database stops.
    id_of(&client.post_json(event("s", "before")));
    wait_for_drain(&test.server);
    test.postgres.stop_fast();

    // Over several connections: the whole capacity is usable from any acceptor.
    let mut clients: Vec<Client> = (0..4).map(|_| test.server.client()).collect();
    for index in 0..CAPACITY {
        id_of(&clients[index % 4].post_json(event("s", "held")));
    }
    for client in &mut clients {
        assert_full(&client.post_json(event("s", "refused")));
        assert_full(&client.post_ndjson(&events(2, "refused")));
    }
    assert_eq!(test.server.metric("buffer_size"), CAPACITY as u64);
    assert_eq!(test.server.metric("buffer_capacity"), CAPACITY as u64);
    assert!(test.server.metric("events_dropped_total") >= 12, "the refused are counted");

    test.postgres.restart();
    wait_for_drain(&test.server);
    id_of(&client.post_json(event("s", "after")));
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 102);
    assert_eq!(test.postgres.value::<i64>("SELECT count(*) FROM events WHERE message = 'refused'"), 0);
}

#[test]
fn a_batch_larger_than_the_free_capacity_is_rejected_whole() {
    let mut test = TestServer::start(SETTINGS);
    test.postgres.stop_immediate();
    let mut client = test.server.client();
    assert_eq!(ids_of(&client.post_ndjson(&events(95, "held"))).len(), 95);
    assert_full(&client.post_ndjson(&events(6, "refused")));
    assert_full(&client.post_json(format!("[{}]", events(6, "refused").join(","))));
    // The rest of the capacity is usable to the last event.
    assert_eq!(ids_of(&client.post_ndjson(&events(3, "held"))).len(), 3);
    assert_eq!(ids_of(&client.post_ndjson(&events(2, "held"))).len(), 2);
    assert_full(&client.post_json(event("s", "refused")));

    test.postgres.restart();
    until("capacity is free again", || client.post_json(event("s", "held")).status == 202);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 101);
    assert_eq!(test.postgres.value::<i64>("SELECT count(*) FROM events WHERE message <> 'held'"), 0);
}
