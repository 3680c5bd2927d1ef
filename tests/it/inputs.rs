//! Other formats than the server's own: retries are stored once, tokens and metrics are as for
//! events, and the examples of docs/senders work.

use std::process::Command;

use base64::Engine as _;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, Reply, Server, TestServer, create_token, now, until, wait_for_drain};

/// Requests in each format, each with the status of its success and the number of its events.
fn requests() -> Vec<(Vec<u8>, u16, i64)> {
    let micros = now().micros();
    let (seconds, nanos) = (micros / 1_000_000, micros * 1000);
    let json = [("Content-Type", JSON)];
    let keyed = [("Content-Type", JSON), ("Idempotency-Key", "retry-1")];
    let mapped = format!(r#"[{{"ts":{seconds},"msg":"m"}},{{"ts":{seconds},"msg":"m"}}]"#);
    let cloud = format!(
        r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"{}","data":{{}}}}"#,
        now()
    );
    let loki = format!(
        r#"{{"streams":[{{"stream":{{"job":"j"}},"values":[["{nanos}","m"],["{nanos}","m"],["{nanos}","n"]]}}]}}"#
    );
    let splunk = format!(r#"{{"time":{seconds}.5,"event":"m"}}{{"time":{seconds}.5,"event":"m"}}"#);
    let cloud_type = [("Content-Type", "application/cloudevents+json")];
    vec![
        (request("POST", "/events?extra=metadata&service=body&dedup=body", &json, mapped.as_bytes()), 202, 2),
        (request("POST", "/events?extra=metadata&service=key", &keyed, mapped.as_bytes()), 202, 2),
        (request("POST", "/events", &cloud_type, cloud.as_bytes()), 202, 1),
        (request("POST", "/loki/api/v1/push", &json, loki.as_bytes()), 204, 3),
        (request("POST", "/services/collector/event?dedup=body", &[], splunk.as_bytes()), 200, 2),
    ]
}

#[test]
fn retries_in_every_format_are_stored_once_across_a_killed_server() {
    let mut test = TestServer::start(&[("DURABILITY", "written")]);
    let requests = requests();
    let events: i64 = requests.iter().map(|(.., events)| events).sum();
    for _ in 0..2 {
        let client = &mut test.server.client();
        for (request, status, _) in &requests {
            let reply = client.exchange(request);
            assert_eq!(reply.status, *status, "{}", reply.text());
        }
        test.server.kill();
        test.server.restart();
    }
    wait_for_drain(&test.server);
    until("the events are stored", || test.postgres.stored() >= events);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (events, 0));
}

#[test]
fn received_events_are_counted_by_their_format() {
    let test = TestServer::start(&[]);
    let client = &mut test.server.client();
    assert_eq!(client.post_json(crate::harness::event("s", "m")).status, 202);
    for (request, status, _) in requests() {
        assert_eq!(client.exchange(&request).status, status);
    }
    let metrics = test.server.metrics();
    for (input, events) in
        [("events", 1), ("mapped", 4), ("cloudevents", 1), ("loki", 3), ("splunk", 2), ("otlp", 0)]
    {
        let line = format!("events_received_by_input_total{{input=\"{input}\"}} {events}\n");
        assert!(metrics.contains(&line), "{line}");
    }
    assert_eq!(test.server.metric("events_received_total"), 11);
}

#[test]
fn long_bodies_in_other_formats_are_stored_whole() {
    let test = TestServer::start(&[]);
    let client = &mut test.server.client();
    let nanos = now().micros() * 1000;
    let lines: Vec<String> = (0..9000)
        .map(|nth| {
            format!(r#"{{"log":"line {nth} of a long body","ts":{},"n":{{"nth":{nth}}}}}"#, nanos + nth)
        })
        .collect();
    let reply = client.exchange(&request(
        "POST",
        "/events?extra=metadata&service=long&dedup=body",
        &[("Content-Type", NDJSON)],
        lines.join("\n").as_bytes(),
    ));
    assert_eq!(reply.status, 202, "{}", reply.text());
    let values: Vec<String> =
        (0..9000).map(|nth| format!(r#"["{}","line {nth} of a long body"]"#, nanos + nth)).collect();
    let push =
        format!(r#"{{"streams":[{{"values":[{}],"stream":{{"job":"long-loki"}}}}]}}"#, values.join(","));
    let push = request("POST", "/loki/api/v1/push", &[("Content-Type", JSON)], push.as_bytes());
    assert_eq!(client.exchange(&push).status, 204);
    wait_for_drain(&test.server);
    for service in ["long", "long-loki"] {
        let count: i64 = test
            .postgres
            .value(&format!("SELECT count(DISTINCT message) FROM events WHERE service = '{service}'"));
        assert_eq!(count, 9000, "{service}");
    }
}

#[test]
fn tokens_are_taken_as_splunk_bearer_and_basic_credentials() {
    let postgres = Postgres::start();
    let dir = temp_dir();
    let file = dir.path().join("tokens");
    let (token, line) = create_token("sender", "ingest", &[]);
    std::fs::write(&file, format!("{line}\n")).expect("a temporary file can be written");
    let server = Server::start_on(&postgres, &[("AUTH_TOKENS_FILE", file.to_str().expect("UTF-8"))]);
    let client = &mut server.client();
    let send = |client: &mut Client, authorization: &str| -> Reply {
        let headers = [("Authorization", authorization)];
        let headers = if authorization.is_empty() { &[][..] } else { &headers };
        client.exchange(&request("POST", "/services/collector/event", headers, br#"{"event":"m"}"#))
    };
    assert_eq!(send(client, &format!("Splunk {token}")).text(), r#"{"text":"Success","code":0}"#);
    assert_eq!(send(client, &format!("Bearer {token}")).status, 200);
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("anyone:{token}"));
    assert_eq!(send(client, &format!("Basic {basic}")).status, 200);
    let (missing, invalid) = (send(client, ""), send(client, "Splunk x"));
    assert!(missing.status == 401 && missing.text().starts_with(r#"{"text":"Token is required","code":2"#));
    assert!(invalid.status == 403 && invalid.text().starts_with(r#"{"text":"Invalid token","code":4"#));
    let push = request("POST", "/loki/api/v1/push", &[("Content-Type", JSON)], b"{}");
    assert_eq!(client.exchange(&push).status, 401);
}

#[test]
fn sender_of_cloudevents_learns_that_it_may_deliver() {
    let test = TestServer::start(&[("RATE_LIMIT_GLOBAL", "5")]);
    let client = &mut test.server.client();
    let origin = [("WebHook-Request-Origin", "events.example.com"), ("WebHook-Request-Rate", "120")];
    let reply = client.exchange(&request("OPTIONS", "/events", &origin, b""));
    assert_eq!(reply.status, 204);
    assert_eq!(reply.header("webhook-allowed-origin"), Some("*"));
    assert_eq!(reply.header("webhook-allowed-rate"), Some("300"));
    let reply = client.exchange(&request("OPTIONS", "/events", &[], b""));
    assert_eq!(reply.header("webhook-allowed-origin"), None);
}

/// The commands of the page, each with the number of events that it stores: the text before a block
/// of the language `sh` says it as `<!-- stores N -->`.
fn examples(page: &str) -> Vec<(i64, String)> {
    let mut examples = Vec::new();
    for part in page.split("<!-- stores ").skip(1) {
        let (count, rest) = part.split_once(" -->").expect("the comment is closed");
        let (_, block) = rest.split_once("```sh\n").expect("a block follows");
        let (commands, _) = block.split_once("```").expect("the block is closed");
        examples.push((count.parse().expect("a number"), commands.to_owned()));
    }
    examples
}

#[test]
fn examples_for_senders_store_the_events_that_they_name() {
    let test = TestServer::start(&[]);
    let address = test.server.address();
    let pages = [
        include_str!("../../docs/senders/mapping.md"),
        include_str!("../../docs/senders/cloudevents.md"),
        include_str!("../../docs/senders/loki.md"),
        include_str!("../../docs/senders/splunk.md"),
        include_str!("../../docs/senders/shippers.md"),
    ];
    let mut expected = 0;
    for page in pages {
        let examples = examples(page);
        assert!(!examples.is_empty());
        for (count, commands) in examples {
            let commands = commands
                .replace("http://localhost:3000", &format!("http://{address}"))
                .replace("curl ", "curl --silent --show-error --fail-with-body ");
            let output = Command::new("sh").args(["-ec", &commands]).output();
            let output = output.expect("sh and curl are installed; on Debian: apt install curl");
            let answer = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success(),
                "{commands}\n{answer}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            expected += count;
            wait_for_drain(&test.server);
            assert_eq!(test.postgres.stored(), expected, "{commands}\n{answer}");
        }
    }
}
