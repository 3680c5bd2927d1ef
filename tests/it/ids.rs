//! Event ids: they begin with the event's timestamp, and the same key gives the same id.

use aurore_events::event::{EventId, Timestamp};
use sonic_rs::JsonValueTrait;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::{id_of, ids_of, keyed, list};
use crate::harness::{TestServer, event_at, now, wait_for_drain};

#[track_caller]
fn check(id: &str, time: Timestamp, version: char) {
    let parsed: EventId = id.parse().unwrap_or_else(|error| panic!("{id}: {error}"));
    assert_eq!(i64::try_from(parsed.millis()), Ok(time.millis()), "{id}");
    assert_eq!(id.chars().nth(14), Some(version), "{id}");
    assert!(matches!(id.chars().nth(19), Some('8' | '9' | 'a' | 'b')), "{id}: the variant of RFC 9562");
}

#[test]
fn a_corrected_batch_with_the_same_key_stores_each_event_once_and_loses_none() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let mut post = |events: &[&str]| {
        let headers = [("Content-Type", JSON), ("Idempotency-Key", "batch")];
        let body = format!("[{}]", events.join(","));
        client.exchange(&request("POST", "/events", &headers, body.as_bytes()))
    };
    let time = now();
    let event = |message: &str| event_at(time, "s", message);
    let (one, two, three) = (event("one"), event("two"), event("three"));
    let bad = one.replace("\"s\"", "\"\"");
    let first = post(&[&one, &bad, &two, &one]);
    let ids = ids_of(&first);
    assert_eq!(first.json()["rejected"].as_u64(), Some(1));
    // Without the bad row and in another order; and with the row corrected.
    let again = post(&[&two, &one, &one]);
    assert_eq!(ids_of(&again), [&*ids[1], &*ids[0], &*ids[2]]);
    assert_eq!(list(&again.json()["duplicates"]).len(), 3, "{}", again.text());
    let corrected = post(&[&one, &three, &two, &one]);
    assert_eq!(list(&corrected.json()["duplicates"]).len(), 3, "{}", corrected.text());
    wait_for_drain(&test.server);
    let stored: String = test.postgres.value("SELECT string_agg(message, ' ' ORDER BY message) FROM events");
    assert_eq!(stored, "one one three two");
    assert_eq!(test.server.metric("events_duplicate_total"), 6);
}

#[test]
fn ids_begin_with_the_event_time_and_keyed_ids_are_deterministic() {
    let mut test = TestServer::start(&[]);
    let time = Timestamp::from_micros(now().micros() - 3_600_000_000);
    let with_header = |key: &str, kind: &str, body: &str| {
        request("POST", "/events", &[("Content-Type", kind), ("Idempotency-Key", key)], body.as_bytes())
    };
    let pair = [event_at(time, "s", "one"), event_at(time, "s", "two")];
    let array = format!("[{}]", pair.join(","));

    let mut client = test.server.client();
    let plain = id_of(&client.post_json(&pair[0]));
    check(&plain, time, '7');
    let again = id_of(&client.post_json(&pair[0]));
    assert_ne!(plain, again, "without a key the same event may be stored twice");

    let first = id_of(&client.post_json(keyed(time, "s", "k")));
    check(&first, time, '8');
    assert_eq!(id_of(&client.post_json(keyed(time, "s", "k"))), first);
    // The same key with another service or time, and another key, give other ids.
    let other_time = Timestamp::from_micros(time.micros() + 1);
    for other in [keyed(time, "t", "k"), keyed(other_time, "s", "k"), keyed(time, "s", "l")] {
        assert_ne!(id_of(&client.post_json(other)), first);
    }
    // Within a batch.
    let ids =
        ids_of(&client.post_ndjson(&[keyed(time, "s", "b"), keyed(time, "s", "c"), keyed(time, "s", "b")]));
    assert_eq!(ids[0], ids[2]);
    assert_ne!(ids[0], ids[1]);
    // By the header, for a whole request: key and content.
    let by_header = id_of(&client.exchange(&with_header("h", JSON, &pair[0])));
    check(&by_header, time, '8');
    assert_eq!(id_of(&client.exchange(&with_header("h", JSON, &pair[0]))), by_header);
    let batch = ids_of(&client.exchange(&with_header("hb", JSON, &array)));
    check(&batch[0], time, '8');
    assert_ne!(batch[0], batch[1]);
    assert_eq!(ids_of(&client.exchange(&with_header("hb", NDJSON, &pair.join("\n")))), batch);

    // plain 2; keyed 1 and 3 others; batch 2; header 1 and 2. Sent again: 1, 1, 1, 2.
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 11);
    assert_eq!(test.server.metric("events_stored_total"), 11);
    assert_eq!(test.server.metric("events_duplicate_total"), 5);

    // A new server without state computes the same ids, and stores no duplicate.
    test.server.stop();
    test.server.restart();
    let mut client = test.server.client();
    assert_eq!(id_of(&client.post_json(keyed(time, "s", "k"))), first);
    assert_eq!(ids_of(&client.exchange(&with_header("hb", JSON, &array))), batch);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 11);
    assert_eq!(test.server.metric("events_duplicate_total"), 3);
}
