//! The header decides where it can: a request is refused before its body, and before
//! `100 Continue`; the body is not kept.

use std::fs;
use std::time::Duration;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::id_of;
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, Reply, Server, TestServer, create_token, event, wait_for_drain};

const BODY_BYTES: usize = 1_000_000;
const EXPECT: (&str, &str) = ("Expect", "100-continue");
const SOON: Duration = Duration::from_secs(10);

/// The header of a request with a body of `length` bytes.
fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes());
    bytes
}

/// Asserts that the header alone gets `status`. With an expectation there is no 100, and the
/// connection ends; without one the body may follow, and the connection stays usable.
#[track_caller]
fn check_refused(
    server: &Server,
    (method, path): (&str, &str),
    headers: &[(&str, &str)],
    status: u16,
) -> Reply {
    let mut waiting = server.client();
    let reply = waiting.exchange(&head(method, path, &[headers, &[EXPECT]].concat(), BODY_BYTES));
    assert_eq!(reply.status, status, "{method} {path} {headers:?}: {}", reply.text());
    assert_eq!(reply.header("Connection"), Some("close"), "{method} {path} {headers:?}");
    assert!(waiting.is_closed(), "no body follows, so the next bytes have no meaning");

    let mut sending = server.client();
    let reply = sending.exchange(&head(method, path, headers, BODY_BYTES));
    assert_eq!(reply.status, status, "{method} {path} {headers:?}: {}", reply.text());
    sending.send(&vec![b'x'; BODY_BYTES]);
    assert_eq!(sending.get("/live").status, 200, "{method} {path} {headers:?}: the body is read to its end");
    reply
}

/// The credentials of a token with these scopes and services, and its line in the file.
fn credentials(name: &str, scopes: &str, services: &[&str]) -> (String, String) {
    let (token, line) = create_token(name, scopes, services);
    (format!("Bearer {token}"), line)
}

#[test]
fn a_request_is_refused_by_its_header_before_its_body() {
    let dir = temp_dir();
    let file = dir.path().join("tokens");
    let (writer, first) = credentials("writer", "ingest", &[]);
    let (shop, second) = credentials("shop", "ingest", &["shop"]);
    let (scraper, third) = credentials("scraper", "metrics", &[]);
    fs::write(&file, format!("{first}\n{second}\n{third}\n")).expect("a temporary file can be written");
    let postgres = Postgres::start();
    let server = Server::start_on(
        &postgres,
        &[
            ("AUTH_TOKENS_FILE", file.to_str().expect("temporary paths are UTF-8")),
            ("CORS_ORIGINS", "https://app.example"),
        ],
    );
    let writer = ("Authorization", writer.as_str());
    let json = ("Content-Type", JSON);
    let events = ("POST", "/events");
    let push = ("POST", "/metrics/push");
    let group = ("PUT", "/metrics/job/a");

    check_refused(&server, events, &[json], 401);
    check_refused(&server, events, &[json, ("Authorization", "Bearer aev_0")], 401);
    check_refused(&server, ("GET", "/events"), &[writer], 403);
    check_refused(&server, ("POST", "/nowhere"), &[json, writer], 404);
    let reply = check_refused(&server, ("PUT", "/events"), &[json, writer], 405);
    assert_eq!(reply.header("Allow"), Some("GET, HEAD, POST, OPTIONS"));
    check_refused(&server, events, &[writer], 415);
    check_refused(&server, events, &[writer, ("Content-Type", "text/html")], 415);
    check_refused(&server, events, &[writer, json, ("Content-Encoding", "br")], 415);
    check_refused(&server, events, &[writer, json, ("Durability", "eternal")], 400);
    check_refused(&server, events, &[writer, json, ("Idempotency-Key", "")], 400);
    check_refused(&server, push, &[], 401);
    check_refused(&server, push, &[writer, ("Content-Type", "text/html")], 415);
    check_refused(&server, push, &[writer, json, ("Content-Encoding", "br")], 415);
    check_refused(&server, push, &[writer, json, ("Durability", "eternal")], 400);
    check_refused(&server, push, &[writer, json, ("Idempotency-Key", "")], 400);
    check_refused(&server, group, &[], 401);
    check_refused(&server, group, &[writer, ("Content-Encoding", "br")], 415);
    check_refused(&server, group, &[writer, ("Durability", "eternal")], 400);
    check_refused(&server, ("PUT", "/metrics/job@base64/%2A"), &[writer], 400);
    check_refused(&server, group, &[("Authorization", &shop)], 403);
    check_refused(&server, ("DELETE", "/metrics/pushed"), &[writer], 403);

    // The refusal has the headers of any response.
    let reply = check_refused(&server, events, &[json, ("Origin", "https://app.example")], 401);
    assert_eq!(reply.header("Access-Control-Allow-Origin"), Some("https://app.example"));
    assert!(reply.header("WWW-Authenticate").is_some());
    // It is counted once, under its route.
    let scrape = request("GET", "/metrics/prometheus", &[("Authorization", &scraper)], b"");
    let page = server.client().exchange(&scrape).text();
    let counted = page.lines().find(|line| {
        line.starts_with("http_request_total{") && line.contains("\"/events\"") && line.contains("\"401\"")
    });
    assert!(counted.is_some_and(|line| line.ends_with(" 6")), "{counted:?}");
}

#[test]
fn a_header_that_is_accepted_gets_a_100_and_its_body_is_stored() {
    let test = TestServer::start(&[("CORS_ORIGINS", "*"), ("DRAIN_INTERVAL", "20")]);
    let mut client = test.server.client();
    for (kind, extra) in [(JSON, EXPECT), (NDJSON, EXPECT), (JSON, ("Durability", "synced"))] {
        let body = event("s", "m");
        let headers = [("Content-Type", kind), ("Origin", "https://a.example"), extra];
        client.send(&head("POST", "/events", &headers, body.len()));
        if extra == EXPECT {
            assert_eq!(client.reply().status, 100);
        }
        client.send(&body.as_bytes()[..9]);
        client.send(&body.as_bytes()[9..]);
        let reply = client.reply();
        assert_eq!(reply.status, 202, "{}", reply.text());
        let allowed = reply.headers("Access-Control-Allow-Origin");
        assert_eq!(allowed, ["*"], "the headers of the policy are written once");
    }
    // Invalid events are found in the body: the connection stays usable.
    client.send(&head("POST", "/events", &[("Content-Type", JSON), EXPECT], 2));
    assert_eq!(client.reply().status, 100);
    client.send(b"{}");
    assert_eq!(client.reply().status, 400);
    assert_eq!(client.get("/live").status, 200);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 3);
}

/// Sends the header and the body of a valid POST in two pieces.
#[track_caller]
fn post_in_pieces(client: &mut Client) -> Reply {
    let body = event("s", "m");
    client.send(&head("POST", "/events", &[("Content-Type", JSON), EXPECT], body.len()));
    let reply = client.reply();
    if reply.status != 100 {
        return reply;
    }
    client.send(body.as_bytes());
    client.reply()
}

#[test]
fn a_request_in_pieces_takes_one_token_of_a_rate_limit() {
    let postgres = Postgres::start();
    let server = Server::start_on(&postgres, &[("RATE_LIMIT_GLOBAL", "1"), ("DRAIN_INTERVAL", "20")]);
    let mut client = server.client();
    let reply = post_in_pieces(&mut client);
    assert_eq!(reply.status, 202, "{}", reply.text());
    id_of(&reply);
    assert_eq!(reply.headers("RateLimit-Policy"), ["\"global\";q=1;w=1"]);
    // Within the same second the limit is exceeded, and the header decides so.
    let refused = (0..100).map(|_| post_in_pieces(&mut server.client())).find(|reply| reply.status != 202);
    let refused = refused.expect("a hundred posts take less than a hundred seconds");
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.header("Connection"), Some("close"));
}

#[test]
fn a_header_that_arrives_during_shutdown_is_refused_before_its_body() {
    let mut test = TestServer::start(&[("SHUTDOWN_TIMEOUT_MS", "60000")]);
    let mut client = test.server.client();
    let bytes = head("POST", "/events", &[("Content-Type", JSON), EXPECT], BODY_BYTES);
    let (begun, rest) = bytes.split_at(20);
    client.send(begun);
    let mut probe = test.server.client();
    assert_eq!(probe.get("/live").status, 200);
    test.server.signal("TERM");
    // The probe's connection is idle, so the drain closes it.
    assert!(probe.is_closed());
    client.send(rest);
    let reply = client.reply();
    assert_eq!(reply.status, 503, "{}", reply.text());
    assert!(reply.text().contains("shutting-down") && reply.header("Retry-After").is_some());
    assert!(client.is_closed());
    assert_eq!(test.server.exit_within(SOON).code(), Some(0));
}
