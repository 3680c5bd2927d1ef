//! The bound of the buffer: exactly as much as was promised, then a refusal that says when to come back.

use crate::harness::events::{id_of, ids_of};
use crate::harness::{Client, Reply, World, event, settle, until};

const CAPACITY: usize = 100;

/// Refused because the buffer is full, with a time to come back.
#[track_caller]
fn is_full(reply: &Reply) {
    assert_eq!(reply.status, 429, "{}", reply.text());
    let wait = reply.header("retry-after").expect("429 says when to come back");
    assert!(wait.parse::<u64>().is_ok_and(|seconds| seconds >= 1), "Retry-After: {wait}");
    assert!(reply.header("content-type").is_some_and(|kind| kind.starts_with("application/problem+json")));
}

fn events(count: usize, message: &str) -> Vec<String> {
    vec![event("s", message); count]
}

/// A breaker that tries again soon: the test does not wait for half a minute.
const SETTINGS: &[(&str, &str)] = &[
    ("BUFFER_MAX_SIZE", "100"),
    ("SPILL_MAX_BYTES", "0"),
    ("CIRCUIT_BREAKER_TIMEOUT_MS", "100"),
    ("DRAIN_INTERVAL", "50"),
];

#[test]
fn a_full_buffer_answers_429_and_keeps_what_it_holds() {
    let mut world = World::start(SETTINGS);
    let mut client = world.server.client();
    // The writer has taken something along before the database goes, as in life.
    id_of(&client.post_json(event("s", "before")));
    settle(&world.server);
    world.postgres.stop_fast();

    // Over several connections: whichever acceptor takes them, the whole capacity is usable.
    let mut clients: Vec<Client> = (0..4).map(|_| world.server.client()).collect();
    for index in 0..CAPACITY {
        id_of(&clients[index % 4].post_json(event("s", "held")));
    }
    for client in &mut clients {
        is_full(&client.post_json(event("s", "refused")));
        is_full(&client.post_ndjson(&events(2, "refused")));
    }
    assert_eq!(world.server.metric("buffer_size"), CAPACITY as u64);
    assert_eq!(world.server.metric("buffer_capacity"), CAPACITY as u64);
    assert!(world.server.metric("events_dropped_total") >= 12, "the refused are counted");

    world.postgres.start_again();
    settle(&world.server);
    id_of(&client.post_json(event("s", "after")));
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 102);
    assert_eq!(world.postgres.value::<i64>("SELECT count(*) FROM events WHERE message = 'refused'"), 0);
}

#[test]
fn a_batch_that_does_not_fit_whole_is_refused_whole() {
    let mut world = World::start(SETTINGS);
    world.postgres.stop_immediate();
    let mut client = world.server.client();
    assert_eq!(ids_of(&client.post_ndjson(&events(95, "held"))).len(), 95);
    is_full(&client.post_ndjson(&events(6, "refused")));
    is_full(&client.post_json(format!("[{}]", events(6, "refused").join(","))));
    // What remains is usable to the last event.
    assert_eq!(ids_of(&client.post_ndjson(&events(3, "held"))).len(), 3);
    assert_eq!(ids_of(&client.post_ndjson(&events(2, "held"))).len(), 2);
    is_full(&client.post_json(event("s", "refused")));

    world.postgres.start_again();
    until("there is room again", || client.post_json(event("s", "held")).status == 202);
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 101);
    assert_eq!(world.postgres.value::<i64>("SELECT count(*) FROM events WHERE message <> 'held'"), 0);
}
