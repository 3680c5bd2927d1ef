//! Outages of the database: producers still get 202, no acknowledged event is lost, and none is
//! stored twice.

use sonic_rs::JsonValueTrait;

use crate::harness::events::id_of;
use crate::harness::{Producer, TestServer, check_stored, event, until, wait_for_drain};

/// A buffer that holds the load of an outage, and a breaker that retries soon.
const SETTINGS: &[(&str, &str)] =
    &[("BUFFER_MAX_SIZE", "500000"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "200"), ("DRAIN_INTERVAL", "20")];

/// Waits until this many more events have been acknowledged.
#[track_caller]
fn wait_for_acknowledged(producer: &Producer, events: u64) {
    let goal = producer.acknowledged() + events;
    until("the producer is answered", || producer.acknowledged() >= goal);
}

#[test]
fn an_outage_loses_and_duplicates_no_event() {
    let mut test = TestServer::start(SETTINGS);
    let producer = Producer::start(test.server.address(), 4);
    wait_for_acknowledged(&producer, 2_000);

    for fast in [true, false] {
        if fast {
            test.postgres.stop_fast();
        } else {
            test.postgres.stop_immediate();
        }
        wait_for_acknowledged(&producer, 2_000);
        until("the breaker opens", || test.server.metric("circuit_breaker_state") == 2);
        until("the outage is detected", || test.server.metric("database_connection_status") == 0);
        let health = test.server.client().get("/health");
        let status = health.json()["status"].as_str().map(str::to_owned);
        assert!(status.is_some_and(|status| status != "healthy"), "{}", health.text());
        assert_eq!(test.server.client().get("/live").status, 200);

        test.postgres.restart();
        until("the breaker closes", || test.server.metric("circuit_breaker_state") == 0);
        wait_for_acknowledged(&producer, 1_000);
    }

    let record = producer.stop();
    wait_for_drain(&test.server);
    until("the recovery is detected", || test.server.metric("database_connection_status") == 1);
    assert_eq!(record.statuses.keys().copied().collect::<Vec<_>>(), [202], "{:?}", record.statuses);
    assert_eq!(record.unanswered, 0);
    check_stored(&record, &test.postgres);
    assert_eq!(test.postgres.dead(), 0);
}

#[test]
fn repeated_restarts_and_killed_sessions_lose_no_event() {
    let mut test = TestServer::start(SETTINGS);
    let producer = Producer::start(test.server.address(), 4);
    for _ in 0..10 {
        wait_for_acknowledged(&producer, 200);
        test.postgres
            .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aurore'");
    }
    for round in 0..4 {
        wait_for_acknowledged(&producer, 500);
        if round % 2 == 0 {
            test.postgres.stop_immediate();
        } else {
            test.postgres.stop_fast();
        }
        test.postgres.restart();
    }
    wait_for_acknowledged(&producer, 500);
    let record = producer.stop();
    wait_for_drain(&test.server);
    assert_eq!(record.unanswered, 0);
    check_stored(&record, &test.postgres);
    assert_eq!(test.postgres.dead(), 0);
}

#[test]
fn a_locked_table_delays_events_and_loses_none() {
    let test = TestServer::start(SETTINGS);
    let mut session = test.postgres.client();
    let mut lock = session.transaction().unwrap();
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    let mut client = test.server.client();
    for _ in 0..100 {
        id_of(&client.post_json(event("s", "m")));
    }
    assert_eq!(test.server.metric("buffer_size"), 100);
    lock.commit().unwrap();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 100);
}
