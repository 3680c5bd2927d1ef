//! The stop signal: intake ends, what was acknowledged is written, and the process ends in a known time.

use std::time::Duration;

use crate::harness::client::{JSON, post};
use crate::harness::events::{id_of, ids_of};
use crate::harness::{Client, Producer, World, event, judge, settle, until};

/// A linger so long that only the drain can be what stores the events.
const LINGER: (&str, &str) = ("DRAIN_INTERVAL", "60000");
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_stop_signal_stores_what_was_acknowledged_and_exits_with_0() {
    let mut world = World::start(&[LINGER]);
    let mut stored = 0;
    for name in ["TERM", "INT"] {
        let batch = vec![event("s", "m"); 1_500];
        ids_of(&world.server.client().post_ndjson(&batch));
        id_of(&world.server.client().post_json(event("s", "m")));
        assert_eq!(world.server.metric("buffer_size"), 1_501);
        world.server.signal(name);
        assert_eq!(world.server.exit_within(SOON).code(), Some(0), "SIG{name}");
        stored += 1_501;
        assert_eq!(world.postgres.stored(), stored, "SIG{name}");
        world.server.start_again();
    }
    // And with nothing to do.
    world.server.stop();
}

#[test]
fn a_stop_under_load_keeps_every_promise_it_made() {
    let mut world = World::start(&[]);
    let producer = Producer::start(world.server.address(), 4);
    until("it is under load", || producer.acknowledged() > 2_000);
    world.server.stop();
    judge(&producer.stop(), &world.postgres);
}

#[test]
fn a_drain_takes_nothing_more_and_a_second_signal_ends_it() {
    let mut world = World::start(&[("SHUTDOWN_TIMEOUT_MS", "60000"), ("DRAIN_INTERVAL", "50")]);
    let address = world.server.address();
    let mut open = world.server.client();
    id_of(&open.post_json(event("s", "stored")));
    until("it is stored", || world.server.metric("buffer_size") == 0);
    world.postgres.stop_fast();
    id_of(&open.post_json(event("s", "held")));
    world.server.signal("TERM");
    // With the database down the drain cannot end. A producer is refused, whether its connection is old or new.
    let late = post(JSON, event("s", "late").as_bytes());
    until("intake ends", || !open.try_exchange(&late).is_ok_and(|reply| reply.status == 202));
    for _ in 0..20 {
        let Ok(mut client) = Client::try_connect(address) else { continue };
        if let Ok(reply) = client.try_exchange(&late) {
            assert_eq!(reply.status, 503, "{}", reply.text());
            assert!(reply.header("retry-after").is_some());
        }
    }
    world.server.signal("TERM");
    let status = world.server.exit_within(SOON);
    assert_ne!(status.code(), Some(0), "events were left behind");
    world.postgres.start_again();
    world.server.start_again();
    settle(&world.server);
    let held = world.postgres.value::<i64>("SELECT count(*) FROM events WHERE message IN ('stored', 'held')");
    assert_eq!(held, 2, "what was not stored was in the journal");
}

#[test]
fn what_a_drain_cannot_store_in_time_waits_in_the_journal() {
    let mut world = World::start(&[("SHUTDOWN_TIMEOUT_MS", "1000"), ("DRAIN_INTERVAL", "50")]);
    world.postgres.stop_fast();
    id_of(&world.server.client().post_json(event("s", "held")));
    world.server.signal("TERM");
    assert_eq!(world.server.exit_within(SOON).code(), Some(0), "the event is kept");
    world.postgres.start_again();
    world.server.start_again();
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 1);
    world.server.stop();
    let left = std::fs::read_dir(world.server.data_dir().join("journal")).unwrap().count();
    assert_eq!(left, 0, "a journal that nobody needs is gone");
}

#[test]
fn a_drain_waits_for_a_database_that_comes_back() {
    let mut world = World::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    world.postgres.stop_immediate();
    ids_of(&world.server.client().post_ndjson(&vec![event("s", "held"); 500]));
    world.server.signal("TERM");
    world.postgres.start_again();
    assert_eq!(world.server.exit_within(Duration::from_secs(30)).code(), Some(0));
    assert_eq!(world.postgres.stored(), 500);
}
