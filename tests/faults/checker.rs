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

    let again = "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
                 SELECT gen_random_uuid(), now(), now(), service, ";
    test.postgres.execute(&format!("{again} message FROM events LIMIT 3"));
    test.postgres.execute(&format!("{again} 'nobody sent this' FROM events LIMIT 1"));
    let found = CheckResult::of(&record, &test.postgres);
    assert_eq!((found.lost.len(), found.duplicated, found.unexpected), (0, 3, 1));

    let ids: Vec<_> = record.acknowledged.keys().take(8).map(|id| format!("'{id}'")).collect();
    test.postgres.execute(&format!("UPDATE events SET message = 'altered' WHERE event_id = {}", ids[0]));
    test.postgres.execute(&format!("DELETE FROM events WHERE event_id IN ({})", ids[1..].join(", ")));
    let found = CheckResult::of(&record, &test.postgres);
    assert_eq!((found.lost.len(), found.unexpected), (8, 2));
}
