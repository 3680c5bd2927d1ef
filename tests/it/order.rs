//! The order of events of one timestamp: that in which they were sent.

use aurore_events::event::{EventId, Timestamp};

use crate::harness::client::{NDJSON, request};
use crate::harness::events::{id_of, ids_of, list, text};
use crate::harness::{Client, TestServer, event_at, now, wait_for_drain};

/// A time of an hour ago, at a whole second, as coarse clocks have it.
fn time() -> Timestamp {
    Timestamp::from_micros(now().micros() / 1_000_000 * 1_000_000 - 3_600_000_000)
}

fn with_key(event: &str, key: &str) -> String {
    event.replacen('{', &format!("{{\"idempotency_key\":\"{key}\","), 1)
}

/// The messages of all pages.
#[track_caller]
fn messages(client: &mut Client, query: &str) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = client.get_json(&format!("/events?{query}{cursor}"));
        all.extend(list(&page["events"]).iter().map(|event| text(&event["message"])));
        match sonic_rs::JsonValueTrait::as_str(&page["page"]["next_cursor"]) {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

/// The messages of an export.
#[track_caller]
fn exported(client: &mut Client, order: &str) -> Vec<String> {
    let export = request("GET", &format!("/events?order={order}"), &[("Accept", NDJSON)], b"");
    let lines = client.exchange(&export).text();
    lines
        .lines()
        .map(|line| text(&sonic_rs::from_str::<sonic_rs::Value>(line).expect("a line is JSON")["message"]))
        .collect()
}

/// Checks pages of several sizes, with and without a service, and exports, in both orders.
#[track_caller]
fn check_order(client: &mut Client, expected: &[String]) {
    let mut expected = expected.to_vec();
    for order in ["asc", "desc"] {
        for query in ["limit=1000", "limit=5", "limit=7&service=s"] {
            assert_eq!(messages(client, &format!("{query}&order={order}")), expected, "{query} {order}");
        }
        assert_eq!(exported(client, order), expected, "export {order}");
        expected.reverse();
    }
}

#[test]
fn events_of_one_array_come_back_in_their_order() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let time = time();
    let sent: Vec<String> = (0..12).map(|nth| format!("m{nth:02}")).collect();
    let plain: Vec<_> = sent.iter().map(|message| event_at(time, "s", message)).collect();
    let ids = ids_of(&client.post_json(format!("[{}]", plain.join(","))));
    assert!(ids.is_sorted_by(|one, other| one < other), "ids of one millisecond ascend: {ids:?}");
    wait_for_drain(&test.server);
    check_order(&mut client, &sent);

    // With keys in between, also from a request that is stored through the staging table since one
    // of its events is stored already.
    let mut all = sent;
    for round in 0..2 {
        let more: Vec<String> = (0..30).map(|nth| format!("k{round}{nth:02}")).collect();
        let mut events: Vec<_> = more
            .iter()
            .enumerate()
            .map(|(nth, message)| {
                let event = event_at(time, "s", message);
                if nth % 3 == 0 { event } else { with_key(&event, message) }
            })
            .collect();
        if round == 1 {
            events.push(with_key(&event_at(time, "s", "again"), "k001"));
        }
        ids_of(&client.post_ndjson(&events));
        wait_for_drain(&test.server);
        all.extend(more);
    }
    assert_eq!(test.server.metric("events_duplicate_total"), 1);
    check_order(&mut client, &all);
    let header = [("Content-Type", NDJSON), ("Idempotency-Key", "request")];
    let more: Vec<String> = (0..9).map(|nth| format!("h{nth}")).collect();
    let body: Vec<_> = more.iter().map(|message| event_at(time, "s", message)).collect();
    ids_of(&client.exchange(&request("POST", "/events", &header, body.join("\n").as_bytes())));
    wait_for_drain(&test.server);
    all.extend(more);
    check_order(&mut client, &all);
}

#[test]
fn events_of_several_connections_come_back_in_the_order_of_arrival() {
    let test = TestServer::start(&[("ACCEPTORS", "2"), ("DRAIN_INTERVAL", "20")]);
    let time = time();
    let mut clients: Vec<_> = (0..6).map(|_| test.server.client()).collect();
    let (mut sent, mut ids) = (Vec::new(), Vec::new());
    for nth in 0..120 {
        let message = format!("m{nth:03}");
        let event = event_at(time, "s", &message);
        let keyed = nth % 4 == 3;
        let event = if keyed { with_key(&event, &message) } else { event };
        let id = id_of(&clients[nth % 6].post_json(event));
        if !keyed {
            ids.push(id.parse::<EventId>().unwrap());
        }
        sent.push(message);
    }
    assert!(ids.is_sorted_by(|one, other| one < other), "{ids:?}");
    wait_for_drain(&test.server);
    check_order(&mut clients[0], &sent);
}

#[test]
fn an_import_that_keeps_ids_has_the_order_of_the_file() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let (time, content) = (time(), [("Content-Type", NDJSON)]);
    let sent: Vec<String> = (0..40).map(|nth| format!("m{nth:02}")).collect();
    let lines: Vec<_> = sent
        .iter()
        .zip(0_u8..)
        .map(|(message, nth)| {
            // The ids are not in the order of the file.
            let millis = time.millis().cast_unsigned();
            let tail = [nth.wrapping_mul(91); 10];
            let id = if nth % 2 == 0 { EventId::keyed(millis, tail) } else { EventId::random(millis, tail) };
            event_at(time, "s", message).replacen('{', &format!("{{\"event_id\":\"{id}\","), 1)
        })
        .collect();
    let import = request("POST", "/events?ids=keep", &content, lines.join("\n").as_bytes());
    assert_eq!(ids_of(&client.exchange(&import)).len(), 40);
    wait_for_drain(&test.server);
    check_order(&mut client, &sent);

    // An export in ascending order, posted to an empty database.
    let accept = [("Accept", NDJSON)];
    let export = client.exchange(&request("GET", "/events?order=asc", &accept, b""));
    test.postgres.execute("TRUNCATE events, event_counts");
    ids_of(&client.exchange(&request("POST", "/events?ids=keep", &content, &export.body)));
    wait_for_drain(&test.server);
    check_order(&mut client, &sent);
}
