//! The responses to POST in every form, and the rejections of the HTTP front end.

use sonic_rs::{JsonContainerTrait, JsonValueTrait};

use crate::harness::client::{JSON, NDJSON, post, request};
use crate::harness::events::{id_of, list, text};
use crate::harness::{Client, Reply, TestServer, event, wait_for_drain};

/// Asserts a problem document (RFC 9457) with this status.
#[track_caller]
fn assert_problem(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{}", reply.text());
    let content_type = reply.header("content-type").unwrap_or_default();
    assert!(content_type.starts_with("application/problem+json"), "{content_type}");
    let json = reply.json();
    assert_eq!(json["status"].as_u64(), Some(u64::from(status)), "{}", reply.text());
    for member in ["type", "title", "detail"] {
        assert!(json[member].is_str(), "no {member} in {}", reply.text());
    }
}

/// The members of an object, sorted.
#[track_caller]
fn members(reply: &Reply) -> Vec<String> {
    let json = reply.json();
    let object = json.as_object().unwrap_or_else(|| panic!("no object: {}", reply.text()));
    let mut names: Vec<String> = object.iter().map(|(name, _)| name.to_owned()).collect();
    names.sort_unstable();
    names
}

#[test]
fn every_form_of_post_gets_its_documented_response() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    a_single_event_gets_its_id(&mut client);
    a_batch_gets_an_id_for_each_good_event_and_an_error_for_each_bad_one(&mut client, JSON);
    a_batch_gets_an_id_for_each_good_event_and_an_error_for_each_bad_one(&mut client, NDJSON);
    a_batch_without_a_good_event_is_refused_with_its_errors(&mut client);
    media_type_parameters_are_ignored(&mut client);
    // One single event, two of three in two forms, one with a charset.
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 6);
    assert_eq!(test.server.metric("events_received_total"), 6, "what was refused was never received");
}

fn a_single_event_gets_its_id(client: &mut Client) {
    let reply = client.post_json(event("s", "alone"));
    id_of(&reply);
    assert!(reply.header("content-type").is_some_and(|value| value.starts_with(JSON)));
    assert_eq!(members(&reply), ["event_id", "status"]);
}

fn a_batch_gets_an_id_for_each_good_event_and_an_error_for_each_bad_one(client: &mut Client, form: &str) {
    let events = [event("s", "one"), event("", "two"), event("s", "three")];
    let body = if form == JSON { format!("[{}]", events.join(",")) } else { events.join("\n") };
    let reply = client.post(form, body);
    assert_eq!(reply.status, 202, "{}", reply.text());
    assert_eq!(members(&reply), ["accepted", "errors", "event_ids", "rejected"]);
    let json = reply.json();
    assert_eq!(json["accepted"].as_u64(), Some(2));
    assert_eq!(json["rejected"].as_u64(), Some(1));
    let ids = list(&json["event_ids"]);
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    let errors = list(&json["errors"]);
    assert_eq!(errors.len(), 1, "{}", reply.text());
    assert_eq!(errors[0]["index"].as_u64(), Some(1));
    assert_eq!(text(&errors[0]["field"]), "service");
    assert!(!text(&errors[0]["detail"]).is_empty());
}

fn a_batch_without_a_good_event_is_refused_with_its_errors(client: &mut Client) {
    for (form, body) in [
        (JSON, format!("[{},{}]", event("", "m"), event("s", ""))),
        (NDJSON, format!("{}\n{}\n", event("", "m"), event("s", ""))),
    ] {
        let reply = client.post(form, body);
        assert_problem(&reply, 400);
        let errors = list(&reply.json()["errors"]);
        let named: Vec<_> =
            errors.iter().map(|error| (error["index"].as_u64(), text(&error["field"]))).collect();
        assert_eq!(named, [(Some(0), "service".to_owned()), (Some(1), "message".to_owned())]);
    }
}

fn media_type_parameters_are_ignored(client: &mut Client) {
    id_of(&client.post("application/json; charset=utf-8", event("s", "charset")));
}

#[test]
fn rejected_requests_get_a_reason_and_are_not_received() {
    let test = TestServer::start(&[("MAX_BODY_BYTES", "100000")]);
    let client = || test.server.client();

    for body in ["", "{", "[", "[]", "nonsense", "1", "null", "\"text\"", "{}{}"] {
        assert_problem(&client().post_json(body), 400);
    }
    assert_problem(&client().post(NDJSON, ""), 400);
    assert_problem(&client().get("/nowhere"), 404);
    for kind in ["text/html", "application/xml", "application/x-www-form-urlencoded"] {
        assert_problem(&client().post(kind, event("s", "m")), 415);
    }
    assert_problem(&client().post("text/plain", "m"), 415);

    let reply = client().exchange(&request("DELETE", "/events", &[], b""));
    assert_problem(&reply, 405);
    let allow = reply.header("allow").expect("405 has Allow");
    for method in ["GET", "POST"] {
        assert!(allow.split(',').any(|name| name.trim() == method), "{allow}");
    }
    let reply = client().exchange(&request("POST", "/live", &[("Content-Type", JSON)], b"{}"));
    assert_problem(&reply, 405);

    let mut large = client();
    large.send(b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100001\r\n\r\n");
    assert_problem(&large.reply(), 413);
    assert!(large.is_closed(), "a body that is not read may not become the next request");
    let mut bound = event("s", "at the bound").into_bytes();
    bound.resize(100_000, b' ');
    id_of(&client().post_json(bound));

    // A request that cannot be framed is rejected, and no later byte is read as a request.
    let length = |value: &str| format!("Content-Length: {value}\r\n");
    for (framing, status) in [
        (String::new(), 411),
        (length("abc"), 400),
        (length("-1"), 400),
        (length("+5"), 400),
        (length("99999999999999999999999"), 400),
        (length("5") + &length("6"), 400),
        (length("5") + "Transfer-Encoding: chunked\r\n", 400),
    ] {
        let mut raw = client();
        let head =
            format!("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {JSON}\r\n{framing}\r\n");
        raw.send(head.as_bytes());
        assert_problem(&raw.reply(), status);
        if !framing.is_empty() {
            assert!(raw.is_closed(), "{framing}");
        }
    }
    for garbage in
        ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET  /live HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    {
        let mut raw = client();
        raw.send(garbage.as_bytes());
        assert_eq!(raw.reply().status, 400, "{garbage}");
        assert!(raw.is_closed(), "{garbage}");
    }
    wait_for_drain(&test.server);
    assert_eq!(test.server.metric("events_received_total"), 1);
}

#[test]
fn a_connection_is_kept_alive_and_answers_in_order() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();

    // HEAD equals GET without the body.
    client.send(&request("HEAD", "/live", &[], b""));
    let head = client.head_reply();
    let get = client.get("/live");
    assert_eq!((head.status, get.status), (200, 200));
    assert_eq!(head.header("content-type"), get.header("content-type"));

    // Chunked, in two chunks and with an extension, as RFC 9112 allows.
    let body = event("chunked", "m");
    let (first, second) = body.split_at(10);
    let chunks = format!("a;name=value\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", second.len());
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    id_of(&client.exchange(format!("{head}{chunks}").as_bytes()));

    // Pipelined: all are sent before the first response is read, invalid ones between valid ones.
    let mut burst = Vec::new();
    for index in 0..50 {
        let body = if index % 5 == 4 { event("", "bad") } else { event("pipelined", &format!("m{index}")) };
        burst.extend_from_slice(&post(JSON, body.as_bytes()));
        burst.extend_from_slice(&request("GET", &format!("/nowhere/{index}"), &[], b""));
    }
    client.send(&burst);
    for index in 0..50 {
        assert_eq!(client.reply().status, if index % 5 == 4 { 400 } else { 202 });
        assert_eq!(client.reply().status, 404);
    }

    // A byte at a time.
    for byte in post(JSON, event("slow", "m").as_bytes()) {
        client.send(&[byte]);
    }
    id_of(&client.reply());

    // Until the client sends `Connection: close`, or HTTP/1.0.
    let reply = client.exchange(&request("GET", "/live", &[("Connection", "close")], b""));
    assert_eq!(reply.header("connection").map(str::to_ascii_lowercase).as_deref(), Some("close"));
    assert!(client.is_closed());
    let mut old = test.server.client();
    assert_eq!(old.exchange(b"GET /live HTTP/1.0\r\n\r\n").status, 200);
    assert!(old.is_closed());

    wait_for_drain(&test.server);
    let by_service: String = test.postgres.value(
        "SELECT string_agg(service || ' ' || n, ', ' ORDER BY service) \
         FROM (SELECT service, count(*) n FROM events GROUP BY service) counts",
    );
    assert_eq!(by_service, "chunked 1, pipelined 40, slow 1");
}
