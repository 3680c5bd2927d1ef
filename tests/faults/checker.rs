//! Tests of the checker: it must detect lost, duplicated and unexpected events.

use crate::harness::checker::CheckResult;
use crate::harness::{Producer, TestServer, until, wait_for_drain};

#[test]
fn the_checker_finds_lost_duplicated_and_unexpected_events() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "20")]);
    let producer = Producer::start(test.server.address(), 2);
    until("it is under load", || producer.acknowledged() > 500);
    let record = producer.stop();
    wait_for_drain(&test.server);
    let found = CheckResult::of(&record, &test.postgres);
    assert_eq!((found.lost.len(), found.duplicated, found.unexpected), (0, 0, 0));

    let again = "INSERT INTO events (event_id, timestamp, ingested_at, service, metadata, message) \
                 SELECT gen_random_uuid(), timestamp, now(), service, metadata, ";
    test.postgres.execute(&format!("{again} message FROM events LIMIT 3"));
    test.postgres.execute(&format!("{again} 'nobody sent this' FROM events LIMIT 1"));
    let found = CheckResult::of(&record, &test.postgres);
    assert_eq!((found.lost.len(), found.duplicated, found.unexpected), (0, 3, 1));

    // An event with another service, time or metadata was not sent.
    let has_metadata = |message: &String| record.sent[message].metadata.is_some();
    let mut ids = record
        .acknowledged
        .iter()
        .filter(|(_, message)| has_metadata(message))
        .map(|(id, _)| format!("'{id}'"));
    let changes = [
        "service = 'another'",
        "timestamp = timestamp + interval '1 microsecond'",
        "metadata = '{\"of\": \"another\"}'",
        "metadata = NULL",
    ];
    for (change, unexpected) in changes.into_iter().zip(2..) {
        let id = ids.next().expect("there are hundreds");
        test.postgres.execute(&format!("UPDATE events SET {change} WHERE event_id = {id}"));
        let found = CheckResult::of(&record, &test.postgres);
        assert_eq!((found.lost.len(), found.unexpected), (0, unexpected), "{change}");
    }

    let ids: Vec<_> = ids.take(8).collect();
    test.postgres.execute(&format!("UPDATE events SET message = 'altered' WHERE event_id = {}", ids[0]));
    test.postgres.execute(&format!("DELETE FROM events WHERE event_id IN ({})", ids[1..].join(", ")));
    let found = CheckResult::of(&record, &test.postgres);
    assert_eq!((found.lost.len(), found.unexpected), (8, 6));
}
