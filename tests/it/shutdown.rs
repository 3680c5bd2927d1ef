//! Stop signals: intake ends, acknowledged events are stored, and the process ends in bounded time.

use std::time::Duration;

use crate::harness::client::{JSON, post};
use crate::harness::events::{id_of, ids_of};
use crate::harness::{Client, Producer, TestServer, check_stored, event, until, wait_for_drain};

/// Waits so long that only the drain stores the events.
const WAITS: [(&str, &str); 2] = [("LINGER", "60000"), ("DRAIN_INTERVAL", "60000")];
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_stop_signal_stores_acknowledged_events_and_exits_with_0() {
    let mut test = TestServer::start(&WAITS);
    let mut stored = 0;
    for name in ["TERM", "INT"] {
        let batch = vec![event("s", "m"); 1_500];
        ids_of(&test.server.client().post_ndjson(&batch));
        id_of(&test.server.client().post_json(event("s", "m")));
        assert_eq!(test.server.metric("buffer_size"), 1_501);
        test.server.signal(name);
        assert_eq!(test.server.exit_within(SOON).code(), Some(0), "SIG{name}");
        stored += 1_501;
        assert_eq!(test.postgres.stored(), stored, "SIG{name}");
        test.server.restart();
    }
    // Also with an empty buffer.
    test.server.stop();
}

#[test]
fn a_stop_under_load_loses_no_acknowledged_event() {
    let mut test = TestServer::start(&[]);
    let producer = Producer::start(test.server.address(), 4);
    until("it is under load", || producer.acknowledged() > 2_000);
    test.server.stop();
    check_stored(&producer.stop(), &test.postgres);
}

#[test]
fn a_drain_rejects_new_events_and_a_second_signal_ends_it() {
    let mut test = TestServer::start(&[("SHUTDOWN_TIMEOUT_MS", "60000"), ("DRAIN_INTERVAL", "50")]);
    let address = test.server.address();
    let mut open = test.server.client();
    id_of(&open.post_json(event("s", "stored")));
    until("it is stored", || test.server.metric("buffer_size") == 0);
    test.postgres.stop_fast();
    id_of(&open.post_json(event("s", "held")));
    test.server.signal("TERM");
    // With the database down the drain cannot end. Producers are rejected on open and on new
    // connections.
    let late = post(JSON, event("s", "late").as_bytes());
    until("intake ends", || !open.try_exchange(&late).is_ok_and(|reply| reply.status == 202));
    for _ in 0..20 {
        let Ok(mut client) = Client::try_connect(address) else { continue };
        if let Ok(reply) = client.try_exchange(&late) {
            assert_eq!(reply.status, 503, "{}", reply.text());
            assert!(reply.header("retry-after").is_some());
        }
    }
    test.server.signal("TERM");
    let status = test.server.exit_within(SOON);
    assert_ne!(status.code(), Some(0), "events were left behind");
    test.postgres.restart();
    test.server.restart();
    wait_for_drain(&test.server);
    let held = test.postgres.value::<i64>("SELECT count(*) FROM events WHERE message IN ('stored', 'held')");
    assert_eq!(held, 2, "events that were not stored were in the journal");
}

#[test]
fn events_left_at_the_drain_deadline_stay_in_the_journal() {
    let mut test = TestServer::start(&[("SHUTDOWN_TIMEOUT_MS", "1000"), ("DRAIN_INTERVAL", "50")]);
    test.postgres.stop_fast();
    id_of(&test.server.client().post_json(event("s", "held")));
    test.server.signal("TERM");
    assert_eq!(test.server.exit_within(SOON).code(), Some(0), "the event is kept");
    test.postgres.restart();
    test.server.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 1);
    test.server.stop();
    let left = std::fs::read_dir(test.server.data_dir().join("journal")).unwrap().count();
    assert_eq!(left, 0, "segments without events are deleted");
}

#[test]
fn a_drain_waits_for_the_database_to_return() {
    let mut test = TestServer::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    test.postgres.stop_immediate();
    ids_of(&test.server.client().post_ndjson(&vec![event("s", "held"); 500]));
    test.server.signal("TERM");
    test.postgres.restart();
    assert_eq!(test.server.exit_within(Duration::from_secs(30)).code(), Some(0));
    assert_eq!(test.postgres.stored(), 500);
}
