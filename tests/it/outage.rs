//! The database goes and comes back, in every way it can. Producers do not notice, nothing acknowledged is lost,
//! and nothing is stored twice.

use sonic_rs::JsonValueTrait;

use crate::harness::events::id_of;
use crate::harness::{Producer, World, event, judge, settle, until};

/// Room for what a producer sends during an outage, and a breaker that tries again soon.
const SETTINGS: &[(&str, &str)] =
    &[("BUFFER_MAX_SIZE", "500000"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "200"), ("DRAIN_INTERVAL", "20")];

/// Waits until so many more events have been acknowledged: the outage is under load.
#[track_caller]
fn keeps_taking(producer: &Producer, events: u64) {
    let goal = producer.acknowledged() + events;
    until("the producer is answered", || producer.acknowledged() >= goal);
}

#[test]
fn an_outage_loses_nothing_and_stores_nothing_twice() {
    let mut world = World::start(SETTINGS);
    let producer = Producer::start(world.server.address(), 4);
    keeps_taking(&producer, 2_000);

    for fast in [true, false] {
        if fast {
            world.postgres.stop_fast();
        } else {
            world.postgres.stop_immediate();
        }
        keeps_taking(&producer, 2_000);
        until("the breaker opens", || world.server.metric("circuit_breaker_state") == 2);
        until("the database is known to be away", || world.server.metric("database_connection_status") == 0);
        let health = world.server.client().get("/health");
        let status = health.json()["status"].as_str().map(str::to_owned);
        assert!(status.is_some_and(|status| status != "healthy"), "{}", health.text());
        assert_eq!(world.server.client().get("/live").status, 200);

        world.postgres.start_again();
        until("the breaker closes", || world.server.metric("circuit_breaker_state") == 0);
        keeps_taking(&producer, 1_000);
    }

    let tally = producer.stop();
    settle(&world.server);
    until("the database is known to be back", || world.server.metric("database_connection_status") == 1);
    assert_eq!(tally.answers.keys().copied().collect::<Vec<_>>(), [202], "{:?}", tally.answers);
    assert_eq!(tally.broken, 0);
    judge(&tally, &world.postgres);
    assert_eq!(world.postgres.dead(), 0);
}

#[test]
fn restarts_in_a_row_and_killed_sessions_lose_nothing() {
    let mut world = World::start(SETTINGS);
    let producer = Producer::start(world.server.address(), 4);
    for _ in 0..10 {
        keeps_taking(&producer, 200);
        world
            .postgres
            .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aurore'");
    }
    for round in 0..4 {
        keeps_taking(&producer, 500);
        if round % 2 == 0 {
            world.postgres.stop_immediate();
        } else {
            world.postgres.stop_fast();
        }
        world.postgres.start_again();
    }
    keeps_taking(&producer, 500);
    let tally = producer.stop();
    settle(&world.server);
    assert_eq!(tally.broken, 0);
    judge(&tally, &world.postgres);
    assert_eq!(world.postgres.dead(), 0);
}

#[test]
fn a_locked_table_delays_and_loses_nothing() {
    let world = World::start(SETTINGS);
    let mut session = world.postgres.client();
    let mut lock = session.transaction().unwrap();
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    let mut client = world.server.client();
    for _ in 0..100 {
        id_of(&client.post_json(event("s", "m")));
    }
    assert_eq!(world.server.metric("buffer_size"), 100);
    lock.commit().unwrap();
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 100);
}
