//! Content negotiation: `Vary`, the types and codings that a 415 names, `Accept`, and the spelling of
//! a request target.

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::{id_of, ids_of};
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, Reply, Server, TestServer, create_token, event, wait_for_drain};

/// The parts of a response that a request header may select.
#[derive(Debug, PartialEq)]
struct Selected {
    status: u16,
    headers: [Option<String>; 3],
    /// Whether the body is the long form of a page.
    long: bool,
}

impl Selected {
    fn of(reply: &Reply) -> Self {
        let names = ["Content-Type", "Content-Encoding", "Access-Control-Allow-Origin"];
        let headers = names.map(|name| reply.header(name).map(str::to_owned));
        Self { status: reply.status, headers, long: reply.body.len() > 30 }
    }
}

fn varies_by(reply: &Reply, field: &str) -> bool {
    let lines = reply.headers("Vary");
    assert!(lines.len() <= 1, "clients that read one line must find all fields: {lines:?}");
    lines.iter().flat_map(|line| line.split(',')).any(|name| name.trim().eq_ignore_ascii_case(field))
}

/// Sends `path` with each of `values` and without the field. If a response differs, all of them must
/// name the field in `Vary`. Returns whether one differs.
#[track_caller]
fn check_varies(client: &mut Client, method: &str, path: &str, field: &str, values: &[&str]) -> bool {
    let mut ask = |headers: &[(&str, &str)]| {
        client.send(&request(method, path, headers, b""));
        if method == "HEAD" { client.head_reply() } else { client.reply() }
    };
    let plain = ask(&[]);
    let mut replies: Vec<Reply> = values.iter().map(|value| ask(&[(field, value)])).collect();
    replies.push(ask(&[]));
    let differs = replies.iter().any(|reply| Selected::of(reply) != Selected::of(&plain));
    if differs {
        for reply in [&plain].into_iter().chain(&replies) {
            assert!(varies_by(reply, field), "{method} {path} differs by {field}: {reply:?}");
        }
    }
    differs
}

#[test]
fn every_response_that_depends_on_a_request_header_names_it_in_vary() {
    const ACCEPT: &[&str] = &[
        "text/plain",
        "text/html",
        "text/csv",
        NDJSON,
        "application/jsonl",
        "application/openmetrics-text",
        "image/png",
        "*/*;q=0.1",
    ];
    const CODINGS: &[&str] = &["gzip", "identity", "gzip;q=0, *"];
    const ORIGINS: &[&str] = &["https://app.example", "https://other.example"];
    let dir = temp_dir();
    let file = dir.path().join("tokens");
    let (token, line) = create_token("root", "admin", &[]);
    std::fs::write(&file, line).expect("a temporary file can be written");
    let bearer = format!("Bearer {token}");
    let postgres = Postgres::start();
    let tokens = ("AUTH_TOKENS_FILE", file.to_str().expect("temporary paths are UTF-8"));
    let mut differing = Vec::new();
    for settings in [
        &[("CORS_ORIGINS", "https://app.example"), ("DRAIN_INTERVAL", "20")][..],
        &[("CORS_ORIGINS", "*")],
        &[tokens],
    ] {
        let unlimited = [("RATE_LIMIT_QUERY", "0"), ("RATE_LIMIT_HEALTH", "0")];
        let server = Server::start_on(&postgres, &[settings, &unlimited].concat());
        let mut client = server.client();
        if settings.len() == 2 {
            let events: Vec<String> = (0..50).map(|nth| event("vary", &format!("line {nth}"))).collect();
            ids_of(&client.post_ndjson(&events));
            let metrics: Vec<String> =
                (0..50).map(|nth| format!(r#"{{"name":"vary_{nth}","type":"gauge","value":1}}"#)).collect();
            let push = format!(r#"{{"metrics":[{}]}}"#, metrics.join(","));
            let pushed = request("POST", "/metrics/push", &[("Content-Type", JSON)], push.as_bytes());
            assert_eq!(client.exchange(&pushed).status, 202);
            wait_for_drain(&server);
        }
        let script = page_script(&mut client);
        for path in [
            "/",
            "/docs",
            "/openapi.json",
            script.as_str(),
            "/docs/swagger-ui.css",
            "/live",
            "/health",
            "/health/detailed",
            "/metrics",
            "/metrics/prometheus",
            "/metrics/pushed",
            "/api/v1/metrics",
            "/events?count=none",
            "/events?limit=5000",
            "/stats",
            "/nowhere",
        ] {
            for method in ["GET", "HEAD"] {
                for (field, values) in [
                    ("Accept", ACCEPT),
                    ("Accept-Encoding", CODINGS),
                    ("Origin", ORIGINS),
                    ("Authorization", &[bearer.as_str()]),
                ] {
                    // Shared caches reuse no response to a request with this field, nor a 401.
                    if field == "Authorization" && path != "/health" {
                        continue;
                    }
                    if check_varies(&mut client, method, path, field, values) {
                        differing.push(format!("{method} {path} {field}"));
                    }
                }
            }
        }
    }
    for expected in [
        "GET / Accept",
        "GET /metrics Accept",
        "GET /metrics/pushed Accept",
        "GET /events?count=none Accept",
        "GET /events?limit=5000 Accept",
        "GET /openapi.json Accept-Encoding",
        "HEAD /openapi.json Accept-Encoding",
        "GET /metrics/prometheus Accept-Encoding",
        "GET /metrics/pushed Accept-Encoding",
        "GET /events?count=none Accept-Encoding",
        "GET /stats Origin",
        "GET /health Authorization",
    ] {
        assert!(differing.iter().any(|found| found == expected), "{expected} is not among {differing:#?}");
    }
}

/// The path of a script of the page, which has a hash.
fn page_script(client: &mut Client) -> String {
    let page = client.exchange(&request("GET", "/", &[("Accept", "text/html")], b"")).text();
    let scripts = page.split('"').find(|part| part.starts_with("/console/") && part.ends_with("/main.js"));
    scripts.expect("the page loads its script").to_owned()
}

#[test]
fn a_304_names_the_same_fields_in_vary_as_its_200() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    for path in ["/", "/docs", "/openapi.json", "/docs/swagger-ui-bundle.js"] {
        let whole = client.get(path);
        let tag = whole.header("ETag").expect("pages have a tag").to_owned();
        let unchanged = client.exchange(&request("GET", path, &[("If-None-Match", &tag)], b""));
        assert_eq!(unchanged.status, 304, "{path}");
        assert_eq!(unchanged.header("Vary"), whole.header("Vary"), "{path}");
        assert!(varies_by(&unchanged, "Accept-Encoding"), "{path}");
    }
}

#[test]
fn a_415_names_the_types_and_codings_that_are_taken() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let events = "application/json, application/x-ndjson, application/ndjson, application/jsonl, text/plain";
    let push = "application/json, text/plain";
    for (method, path, types) in [
        ("POST", "/events", Some(events)),
        ("POST", "/metrics/push", Some(push)),
        ("PUT", "/metrics/job/a", None),
    ] {
        if let Some(types) = types {
            let wrong = request(method, path, &[("Content-Type", "text/html")], b"x");
            let reply = client.exchange(&wrong);
            assert_eq!(reply.status, 415, "{path}: {}", reply.text());
            assert_eq!((reply.header("Accept"), reply.header("Accept-Post")), (Some(types), Some(types)));
        }
        for coding in ["br", "gzip, gzip"] {
            let headers = [("Content-Type", JSON), ("Content-Encoding", coding)];
            let reply = client.exchange(&request(method, path, &headers, b"x"));
            assert_eq!(reply.status, 415, "{path}: {}", reply.text());
            assert_eq!(reply.header("Accept-Encoding"), Some("gzip, zstd, identity"), "{path} {coding}");
        }
    }
}

#[test]
fn each_name_of_a_type_that_is_taken_can_be_asked_for() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "20")]);
    let mut client = test.server.client();
    for name in [NDJSON, "application/ndjson", "application/jsonl", JSON] {
        assert_eq!(client.post(name, event("names", "m")).status, 202);
        wait_for_drain(&test.server);
        let reply = client.exchange(&request("GET", "/events?service=names", &[("Accept", name)], b""));
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(reply.header("Content-Type"), Some(name));
        let is_page = reply.text().starts_with("{\"events\":");
        assert_eq!(is_page, name == JSON, "{name}: {}", reply.text());
    }
}

#[test]
fn percent_encoded_unreserved_characters_name_the_same_path() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let posted = request("POST", "/%65vent%73", &[("Content-Type", JSON)], event("s", "m").as_bytes());
    id_of(&client.exchange(&posted));
    for (method, path, status) in [
        ("GET", "/%6Cive", 200),
        ("GET", "/health/%64atabase", 200),
        ("PUT", "/%6detrics/job/%61/b/c", 200),
        ("GET", "/%2Flive", 404),
        ("GET", "/live%2F", 404),
        ("GET", "/%256Cive", 404),
    ] {
        let reply = client.exchange(&request(method, path, &[], b"x 1\n"));
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    let metrics = test.server.metrics();
    assert!(metrics.contains("route=\"/live\""), "the metrics count it under its route");
}

#[test]
fn a_raw_byte_above_0x7f_in_a_target_gets_a_hint_to_percent_encode_it() {
    let test = TestServer::start(&[]);
    for target in [b"/events?q=\xc3\xa4".as_slice(), b"/events?q=\xe4", b"/\xe2\x82\xac", b"http://a/\xff?"] {
        let mut client = test.server.client();
        let reply = client.exchange(&[b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat());
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert!(reply.text().contains("percent-encode"), "{}", reply.text());
    }
    // A control character is another fault.
    let mut client = test.server.client();
    let reply = client.exchange(b"GET /\xc3\xa4\x01 HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(reply.status, 400);
    assert!(!reply.text().contains("percent-encode"), "{}", reply.text());
}
