//! Queries: by service and time, in order, page by page without gaps or repeats, and by id.

use aurore_events::event::Timestamp;
use sonic_rs::{JsonValueTrait, Value};

use crate::harness::events::{id_of, ids_of, list, text};
use crate::harness::{Client, TestServer, event_at, now, until, wait_for_drain};

#[track_caller]
fn messages(page: &Value) -> Vec<String> {
    list(&page["events"]).iter().map(|event| text(&event["message"])).collect()
}

/// All pages of a query from first to last.
#[track_caller]
fn all_pages(client: &mut Client, query: &str) -> Vec<String> {
    let mut all = Vec::new();
    let mut path = format!("/events?{query}");
    loop {
        let page = client.get_json(&path);
        all.extend(messages(&page));
        let Some(cursor) = page["page"]["next_cursor"].as_str() else { return all };
        assert!(
            cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)),
            "{cursor}"
        );
        path = format!("/events?{query}&cursor={cursor}");
    }
}

#[test]
fn queries_return_events_by_service_and_time_in_order() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    // 1,000 events, ten per second: order and cursor must distinguish equal times.
    let base = Timestamp::from_micros(now().micros() / 1_000_000 * 1_000_000 - 3_600_000_000);
    let at = |second: i64| Timestamp::from_micros(base.micros() + second * 1_000_000);
    let service = |index: i64| if index % 4 == 0 { "quarter" } else { "rest" };
    let batch: Vec<String> =
        (0..1_000).map(|index| event_at(at(index / 10), service(index), &format!("m{index:04}"))).collect();
    ids_of(&client.post_ndjson(&batch));
    // Outside of the default time range, and a service name with characters to escape.
    let old = Timestamp::from_micros(now().micros() - 2 * 86_400_000_000);
    id_of(&client.post_json(event_at(old, "quarter", "old")));
    id_of(&client.post_json(event_at(at(0), "a b&c=d%é", "odd")));
    wait_for_drain(&test.server);

    pages(&mut client, &test);
    windows(&mut client, &at, old);
    bad_parameters(&mut client);
}

fn pages(client: &mut Client, test: &TestServer) {
    for order in ["asc", "desc"] {
        for limit in [7, 250, 1_000] {
            let found = all_pages(client, &format!("service=rest&order={order}&limit={limit}"));
            let mut wanted: Vec<String> =
                (0..1_000).filter(|index| index % 4 != 0).map(|index| format!("m{index:04}")).collect();
            if order == "desc" {
                wanted.reverse();
            }
            assert_eq!(found, wanted, "{order} by {limit}");
        }
    }
    let mut all = all_pages(client, "limit=333");
    all.sort_unstable();
    let mut wanted: Vec<String> = (0..1_000).map(|index| format!("m{index:04}")).collect();
    wanted.push("odd".into());
    assert_eq!(all, wanted);

    // A cursor continues at its position after newer events were stored.
    let first = client.get_json("/events?service=quarter&limit=10");
    let cursor = text(&first["page"]["next_cursor"]);
    id_of(&client.post_json(event_at(now(), "quarter", "newer")));
    wait_for_drain(&test.server);
    let second = client.get_json(&format!("/events?service=quarter&limit=10&cursor={cursor}"));
    let both: Vec<String> = messages(&first).into_iter().chain(messages(&second)).collect();
    assert_eq!(both.len(), 20);
    assert!(!both.contains(&"newer".to_owned()));

    // By default newest first, and 100 events.
    let page = client.get_json("/events");
    assert_eq!(messages(&page).len(), 100);
    assert_eq!(messages(&page)[0], "newer");
    assert_eq!(page["page"]["limit"].as_u64(), Some(100));
    assert_eq!(page["page"]["total"].as_u64(), Some(1_002));
    let page = client.get_json("/events?service=quarter&count=none&limit=1000");
    assert!(page["page"]["total"].is_null() || page["page"].get("total").is_none());
    assert!(page["page"]["next_cursor"].is_null(), "the last page has no cursor");
    assert_eq!(messages(&page).len(), 251);
    assert_eq!(messages(&client.get_json("/events?service=a%20b%26c%3Dd%25%C3%A9")), ["odd"]);
    assert_eq!(messages(&client.get_json("/events?service=nobody")), [""; 0]);
}

fn windows(client: &mut Client, at: &dyn Fn(i64) -> Timestamp, old: Timestamp) {
    // `from` is inclusive, `to` exclusive.
    let window = format!("from={}&to={}&order=asc&limit=1000", at(10), at(12));
    let found = messages(&client.get_json(&format!("/events?{window}")));
    let wanted: Vec<String> = (100..120).map(|index| format!("m{index:04}")).collect();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, wanted);
    let millis = format!("from={}&to={}&order=asc&limit=1000", at(10).millis(), at(12).millis());
    assert_eq!(messages(&client.get_json(&format!("/events?{millis}"))), found);
    // The default time range is a day.
    let from = Timestamp::from_micros(old.micros() - 1);
    assert_eq!(messages(&client.get_json(&format!("/events?from={from}&order=asc&limit=1")))[0], "old");
}

fn bad_parameters(client: &mut Client) {
    for (field, value) in [
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "-1"),
        ("limit", "ten"),
        ("limit", ""),
        ("from", "yesterday"),
        ("to", "2026-13-01T00:00:00Z"),
        ("order", "sideways"),
        ("count", "maybe"),
        ("cursor", "nonsense"),
        ("service", ""),
        ("service", "%00"),
        ("service", "%ff"),
        ("colour", "red"),
    ] {
        let reply = client.get(&format!("/events?{field}={value}"));
        assert_eq!(reply.status, 400, "{field}={value}: {}", reply.text());
        let errors = list(&reply.json()["errors"]);
        assert_eq!(text(&errors[0]["field"]), field, "{}", reply.text());
    }
}

#[test]
fn a_query_by_id_returns_the_event() {
    let mut test = TestServer::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let time = now();
    let body = format!(
        r#"{{"timestamp":"{time}","service":"s","message":"m","metadata":{{"a":[1,{{"b":null}}],"c":"é"}}}}"#
    );
    let id = id_of(&client.post_json(body));
    wait_for_drain(&test.server);
    let found = client.get_json(&format!("/events/{id}"));
    assert_eq!(text(&found["event_id"]), id);
    assert_eq!(text(&found["service"]), "s");
    assert_eq!(text(&found["message"]), "m");
    assert_eq!(text(&found["timestamp"]), time.to_string());
    assert!(found["ingested_at"].is_str());
    assert_eq!(found["metadata"]["a"][0].as_u64(), Some(1));
    assert_eq!(found["metadata"]["c"].as_str(), Some("é"));
    assert_eq!(client.get(&format!("/events/{}", id.to_ascii_uppercase())).status, 200);

    for (path, status) in [
        ("/events/01234567-89ab-7fff-bfff-ffffffffffff", 404),
        ("/events/nonsense", 400),
        ("/events/01234567-89ab-7fff-bfff-fffffffffff", 400),
        ("/events/", 404),
    ] {
        assert_eq!(client.get(path).status, status, "{path}");
    }

    // While the database is down, a query fails at once; it works again after the restart.
    test.postgres.stop_fast();
    until("queries return 503", || client.get(&format!("/events/{id}")).status == 503);
    let reply = client.get("/events");
    assert_eq!(reply.status, 503);
    assert!(reply.header("retry-after").is_some());
    test.postgres.restart();
    until("queries work again", || client.get(&format!("/events/{id}")).status == 200);
}

#[test]
fn metadata_and_text_filters_narrow_a_query_and_stats_count_by_hour() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let time = Timestamp::from_micros(now().micros() - 1_000_000);
    let batch: Vec<String> = [
        ("alpha 100%", r#"{"region":"eu","n":1}"#),
        ("beta 100", r#"{"region":"eu","n":"1"}"#),
        ("gamma", r#"{"region":"us","ok":true}"#),
    ]
    .iter()
    .map(|(message, metadata)| {
        format!(r#"{{"timestamp":"{time}","service":"s","message":"{message}","metadata":{metadata}}}"#)
    })
    .collect();
    ids_of(&client.post_ndjson(&batch));
    wait_for_drain(&test.server);
    for (query, expected) in [
        ("metadata.region=eu", 2),
        ("metadata.n=1", 2),
        ("metadata.region=eu&metadata.n=1&q=BETA", 1),
        ("metadata.ok=true&service=s", 1),
        ("q=100%25", 1),
        ("q=100", 2),
        ("q=%25", 1),
        ("metadata.region=%22", 0),
    ] {
        let page = client.get_json(&format!("/events?{query}"));
        assert_eq!(messages(&page).len(), expected, "{query}");
        assert_eq!(page["page"]["total"].as_u64(), Some(expected as u64), "{query}");
        assert_eq!(all_pages(&mut client, &format!("{query}&limit=1")).len(), expected, "{query}");
    }
    for query in ["q=", "metadata.=1", "metadata.k=%00"] {
        assert_eq!(client.get(&format!("/events?{query}")).status, 400, "{query}");
    }
    let stats = client.get_json("/stats?service=s");
    assert_eq!(stats["total"].as_u64(), Some(3), "{stats}");
    assert_eq!(list(&stats["hours"])[0]["count"].as_u64(), Some(3), "{stats}");
    assert_eq!(client.get_json("/stats?service=other")["total"].as_u64(), Some(0));
    assert_eq!(client.get("/stats?limit=1").status, 400);
}

#[test]
fn a_buffered_event_has_a_receipt() {
    let test = TestServer::start(&[("LINGER", "600000"), ("DRAIN_INTERVAL", "600000"), ("BATCH_SIZE", "10")]);
    let mut client = test.server.client();
    let id = id_of(&client.post_json(event_at(now(), "s", "waits")));
    let receipt = client.get_json(&format!("/events/{id}"));
    assert_eq!(text(&receipt["status"]), "buffered");
    assert_eq!((text(&receipt["event_id"]), text(&receipt["message"])), (id.clone(), "waits".to_owned()));
    assert_eq!(client.get("/events/01234567-89ab-7fff-bfff-ffffffffffff").status, 404);
    let rest: Vec<String> = (0..9).map(|_| event_at(now(), "s", "m")).collect();
    ids_of(&client.post_ndjson(&rest));
    wait_for_drain(&test.server);
    assert_eq!(text(&client.get_json(&format!("/events/{id}"))["status"]), "stored");
}
