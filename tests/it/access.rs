//! Access control: tokens, rate limits, proxies, CORS.

use std::fs;
use std::path::{Path, PathBuf};

use sonic_rs::{JsonContainerTrait, JsonValueTrait};

use crate::harness::client::{JSON, request};
use crate::harness::events::{id_of, ids_of};
use crate::harness::server::run;
use crate::harness::tail::Tail;
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, Reply, Server, create_token, event, until, wait_for_drain};

/// Tokens and the file that lists them.
struct Tokens {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Tokens {
    fn new() -> Self {
        let dir = temp_dir();
        let path = dir.path().join("tokens");
        fs::write(&path, "# made by a test\n").expect("a temporary file can be written");
        Self { path, _dir: dir }
    }

    /// Creates a token with the command, and adds its line to the file.
    fn create(&self, name: &str, scopes: &str, services: &[&str]) -> String {
        let (token, line) = create_token(name, scopes, services);
        assert!(!line.contains(token.trim_start_matches("aev_")), "the file gets the hash alone");
        let before = fs::read_to_string(&self.path).expect("it was written");
        fs::write(&self.path, format!("{before}{line}\n")).expect("it can be written again");
        token
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("temporary paths are UTF-8")
    }
}

/// Sends a request with a token; without one if it is empty.
#[track_caller]
fn send(client: &mut Client, token: &str, method: &str, path: &str, body: &str) -> Reply {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("Content-Type", JSON)];
    if !token.is_empty() {
        headers.push(("Authorization", bearer.as_str()));
    }
    client.exchange(&request(method, path, &headers, body.as_bytes()))
}

#[test]
fn protected_routes_require_a_token_with_the_right_scope() {
    let tokens = Tokens::new();
    let writer = tokens.create("writer", "ingest", &[]);
    let shop = tokens.create("shop", "ingest,query", &["shop", "a%2Cb"]);
    let reader = tokens.create("reader", "query", &[]);
    let scraper = tokens.create("scraper", "metrics", &[]);
    let root = tokens.create("root", "admin", &[]);
    let postgres = Postgres::start();
    let server =
        Server::start_on(&postgres, &[("AUTH_TOKENS_FILE", tokens.path()), ("DRAIN_INTERVAL", "20")]);
    let mut client = server.client();
    for path in ["/live", "/ready", "/health", "/"] {
        assert_eq!(send(&mut client, "", "GET", path, "").status, 200, "{path}");
    }
    let word = send(&mut client, "", "GET", "/health", "").json();
    assert_eq!(word.as_object().unwrap().len(), 1, "{word}");
    assert!(send(&mut client, &scraper, "GET", "/health", "").json()["checks"].is_object());

    let good = event("shop", "m");
    for (method, path, scope, allowed) in [
        ("POST", "/events", "ingest", &writer),
        ("GET", "/events", "query", &reader),
        ("GET", "/metrics", "metrics", &scraper),
        ("GET", "/metrics/prometheus", "metrics", &scraper),
        ("GET", "/health/database", "metrics", &scraper),
        ("GET", "/health/detailed", "metrics", &scraper),
    ] {
        let body = if method == "POST" { good.as_str() } else { "" };
        let anonymous = send(&mut client, "", method, path, body);
        assert_eq!(anonymous.status, 401, "{path}");
        assert!(anonymous.header("WWW-Authenticate").unwrap().starts_with("Bearer realm="));
        assert_eq!(send(&mut client, "aev_0", method, path, body).status, 401, "{path}");
        for token in [allowed, &root] {
            let status = send(&mut client, token, method, path, body).status;
            assert!(matches!(status, 200 | 202), "{path}: {status}");
        }
        let wrong = if scope == "ingest" { &reader } else { &writer };
        let refused = send(&mut client, wrong, method, path, body);
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.text().contains(&format!("the scope {scope}")), "{}", refused.text());
    }

    // A token with services writes and reads these services only.
    let id = id_of(&send(&mut client, &shop, "POST", "/events", &event("a,b", "m")));
    let mixed = format!("[{good},{}]", event("other", "m"));
    let mixed = send(&mut client, &shop, "POST", "/events", &mixed);
    assert_eq!(ids_of(&mixed).len(), 1);
    assert_eq!(mixed.json()["errors"][0]["field"].as_str(), Some("service"));
    let refused = send(&mut client, &shop, "POST", "/events", &event("other", "m"));
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("other"), "{}", refused.text());
    let other = id_of(&send(&mut client, &writer, "POST", "/events", &event("other", "m")));
    until("both are stored", || {
        [&id, &other]
            .iter()
            .all(|id| send(&mut client, &root, "GET", &format!("/events/{id}"), "").status == 200)
    });
    assert_eq!(send(&mut client, &shop, "GET", &format!("/events/{id}"), "").status, 200);
    assert_eq!(send(&mut client, &shop, "GET", &format!("/events/{other}"), "").status, 404);
    assert_eq!(send(&mut client, &shop, "GET", "/events?service=a,b", "").status, 200);
    for query in ["/events", "/events?service=other"] {
        assert_eq!(send(&mut client, &shop, "GET", query, "").status, 403, "{query}");
    }
    let log = server.log();
    for token in [writer, shop, reader, scraper, root] {
        assert!(!log.contains(&token[4..]), "the log holds a token");
    }
}

#[test]
fn every_way_to_read_events_requires_the_scope_and_the_services_of_the_token() {
    let tokens = Tokens::new();
    let writer = tokens.create("writer", "ingest", &[]);
    let reader = tokens.create("reader", "query", &[]);
    let shop = tokens.create("shop", "query", &["shop"]);
    let scraper = tokens.create("scraper", "metrics", &[]);
    let root = tokens.create("root", "admin", &[]);
    let postgres = Postgres::start();
    let server = Server::start_on(
        &postgres,
        &[("AUTH_TOKENS_FILE", tokens.path()), ("DRAIN_INTERVAL", "20"), ("RATE_LIMIT_QUERY", "0")],
    );
    let mut client = server.client();
    for service in ["shop", "other"] {
        id_of(&send(&mut client, &writer, "POST", "/events", &event(service, "m")));
    }
    until("both are stored", || postgres.stored() == 2);
    let mut ask = |token: &str, method: &str, path: &str, accept: &str| {
        let bearer = format!("Bearer {token}");
        client.send(&request(method, path, &[("Authorization", &bearer), ("Accept", accept)], b""));
        if method == "HEAD" { client.head_reply() } else { client.reply() }
    };
    for (path, accept) in
        [("/events", JSON), ("/events", "application/x-ndjson"), ("/events", "text/csv"), ("/stats", JSON)]
    {
        for method in ["GET", "HEAD"] {
            let mut status =
                |token: &str, query: &str| ask(token, method, &format!("{path}{query}"), accept).status;
            for token in [&reader, &root] {
                assert_eq!(status(token, ""), 200, "{method} {path} as {accept}");
            }
            for token in [&writer, &scraper] {
                assert_eq!(status(token, "?service=shop"), 403, "{method} {path} as {accept}");
            }
            assert_eq!(status(&shop, "?service=shop"), 200, "{method} {path} as {accept}");
            for query in ["", "?service=other", "?service=shop2"] {
                assert_eq!(status(&shop, query), 403, "{method} {path}{query} as {accept}");
            }
        }
        let seen = ask(&shop, "GET", &format!("{path}?service=shop"), accept).text();
        assert!(seen.contains("shop") && !seen.contains("other"), "{path} as {accept}: {seen}");
    }

    // Operations that delete the metrics of all clients need the scope admin.
    for (method, path) in [("PUT", "/api/v1/admin/wipe"), ("DELETE", "/metrics/pushed?name=a")] {
        for token in [&writer, &reader, &shop, &scraper] {
            let refused = ask(token, method, path, JSON);
            assert_eq!(refused.status, 403, "{method} {path}");
            assert!(refused.text().contains("the scope admin"), "{}", refused.text());
        }
        let status = ask(&root, method, path, JSON).status;
        assert!(matches!(status, 200 | 202), "{method} {path}: {status}");
    }

    // A tail does not end, so only its refusals are read as a whole.
    for (token, query, expected) in [
        (&reader, "", 200),
        (&root, "", 200),
        (&shop, "?service=shop", 200),
        (&shop, "", 403),
        (&shop, "?service=other", 403),
        (&writer, "?service=shop", 403),
        (&scraper, "", 403),
    ] {
        let bearer = format!("Bearer {token}");
        let mut tail = Tail::open(server.address(), query, &[("Authorization", &bearer)]);
        assert_eq!(tail.status(), expected, "/events/tail{query}");
        if expected == 200 {
            id_of(&send(&mut client, &writer, "POST", "/events", &event("other", "m")));
            id_of(&send(&mut client, &writer, "POST", "/events", &event("shop", "last")));
            tail.read_until("the last event", |text| text.contains("\"last\""));
            assert_eq!(tail.text().contains("\"other\""), query.is_empty(), "{}", tail.text());
        }
    }
}

#[test]
fn only_an_administrator_may_choose_the_ids_of_events() {
    let postgres = Postgres::start();
    let tokens = Tokens::new();
    let producer = tokens.create("producer", "ingest", &[]);
    let operator = tokens.create("operator", "ingest,admin", &[]);
    let limited = tokens.create("limited", "ingest,admin", &["s"]);
    let server = Server::start_on(&postgres, &[("AUTH_TOKENS_FILE", tokens.path())]);
    let mut client = server.client();
    for token in [&producer, &limited] {
        let refused = send(&mut client, token, "POST", "/events?ids=keep", &event("s", "m"));
        assert_eq!(refused.status, 403, "{}", refused.text());
        assert!(refused.text().contains("scope admin"), "{}", refused.text());
    }
    id_of(&send(&mut client, &producer, "POST", "/events?other=keep", &event("s", "m")));
    id_of(&send(&mut client, &operator, "POST", "/events?ids=keep", &event("s", "m")));
}

#[test]
fn sighup_reloads_tokens_and_an_invalid_file_keeps_the_old_ones() {
    let tokens = Tokens::new();
    let old = tokens.create("old", "ingest", &[]);
    let postgres = Postgres::start();
    let server = Server::start_on(&postgres, &[("AUTH_TOKENS_FILE", tokens.path())]);
    let mut client = server.client();
    let good = event("s", "m");
    let mut status = |token: &str| send(&mut client, token, "POST", "/events", &good).status;
    assert_eq!(status(&old), 202);
    let new = tokens.create("new", "ingest", &[]);
    assert_eq!(status(&new), 401, "the token is not loaded yet");
    server.signal("HUP");
    until("the new token is known", || status(&new) == 202);
    assert_eq!(status(&old), 202);

    fs::write(&tokens.path, "\nold sha256:00 ingest\nnonsense\n").unwrap();
    server.signal("HUP");
    until("the error is logged", || server.log().contains("tokens:3"));
    let log = server.log();
    assert!(log.contains("level=error") && log.contains("tokens:2"), "{log}");
    assert_eq!((status(&old), status(&new)), (202, 202));

    fs::write(&tokens.path, "").unwrap();
    let last = tokens.create("last", "ingest", &[]);
    server.signal("HUP");
    until("the last token is known", || status(&last) == 202);
    assert_eq!((status(&old), status(&new)), (401, 401));
}

#[test]
fn an_unusable_token_file_fails_the_start() {
    let tokens = Tokens::new();
    fs::write(&tokens.path, "name sha256:xyz ingest\n").unwrap();
    let missing = Path::new(tokens.path()).with_file_name("missing");
    for (path, message) in [(tokens.path(), "tokens:1: "), (missing.to_str().unwrap(), "AUTH_TOKENS_FILE")] {
        let ended = run(&[("AUTH_TOKENS_FILE", path)], &["serve"]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(message), "{}", ended.stderr);
    }
    for arguments in [
        &["token", "create", "--name", "a b", "--scopes", "ingest"][..],
        &["token", "create", "--name", "a", "--scopes", "all"],
        &["token", "create", "--name", "a"],
        &["token"],
    ] {
        let ended = run(&[], arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
    }
    let ended =
        run(&[("RATE_LIMIT_QUERY", "-1"), ("TRUSTED_PROXIES", "10.0.0.0/33"), ("CORS_ORIGINS", "a")], &[]);
    assert_eq!(ended.code, Some(2));
    for name in ["RATE_LIMIT_QUERY", "TRUSTED_PROXIES", "CORS_ORIGINS"] {
        assert!(ended.stderr.contains(name), "{name} is not named in:\n{}", ended.stderr);
    }
}

#[test]
fn rate_limits_reject_excess_requests_and_never_probes() {
    let postgres = Postgres::start();
    let settings = [
        ("RATE_LIMIT_QUERY", "5"),
        ("RATE_LIMIT_HEALTH", "5"),
        ("TRUSTED_PROXIES", "127.0.0.0/8"),
        ("ACCEPTORS", "2"),
    ];
    let server = Server::start_on(&postgres, &settings);
    let from = |client: &mut Client, path: &str, address: &str| {
        client.exchange(&request("GET", path, &[("X-Forwarded-For", address)], b""))
    };
    for (path, name) in [("/events?count=none", "query"), ("/health", "health")] {
        // The connections of one client share a bucket, on all acceptors.
        let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
        let mut refused = Vec::new();
        let mut allowed = 0;
        for nth in 0..40 {
            let reply = from(&mut clients[nth % 4], path, "192.0.2.1");
            match reply.status {
                200 => allowed += 1,
                _ => refused.push(reply),
            }
        }
        // A burst of five, and one more for each fifth of a second of the test.
        assert!((5..35).contains(&allowed), "{path}: {allowed}");
        let refused = refused.first().expect("some are refused");
        assert_eq!(refused.status, 429);
        assert_eq!(refused.header("Retry-After"), Some("1"));
        assert_eq!(refused.header("RateLimit-Policy"), Some(format!("\"{name}\";q=5;w=1").as_str()));
        assert_eq!(refused.header("RateLimit"), Some(format!("\"{name}\";r=0;t=1").as_str()));
        let other = from(&mut clients[0], path, "192.0.2.2");
        assert_eq!(other.status, 200, "another client is not held responsible");
        assert_eq!(
            other.header("RateLimit"),
            Some(format!("\"{name}\";r=4;t=1").as_str()),
            "a late answer too"
        );
    }
    let mut client = server.client();
    for _ in 0..200 {
        assert_eq!(client.get("/live").status, 200);
        assert_eq!(client.get("/ready").status, 200);
        id_of(&client.post_json(event("s", "m")));
    }
}

#[test]
fn the_global_rate_limit_applies_to_posts() {
    let postgres = Postgres::start();
    let server = Server::start_on(&postgres, &[("RATE_LIMIT_GLOBAL", "10"), ("DRAIN_INTERVAL", "20")]);
    let mut client = server.client();
    let statuses: Vec<u16> = (0..100).map(|_| client.post_json(event("s", "m")).status).collect();
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert!((10..90).contains(&accepted), "{accepted}");
    assert_eq!(accepted + statuses.iter().filter(|status| **status == 429).count(), 100);
    assert_eq!(client.get("/nothing").status, 429, "what is not there is no way around");
    assert_eq!(client.get("/ready").status, 200);
    // A scrape is limited too: wait until it is allowed.
    until("the accepted events are stored", || postgres.stored() == i64::try_from(accepted).unwrap());
}

/// Sends a request whose first header is `Host`.
#[track_caller]
fn send_to_host(client: &mut Client, method: &str, host: &str, path: &str, fields: &str) -> Reply {
    let body = if method == "GET" { String::new() } else { event("s", "m") };
    let length = body.len();
    client.send(
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}Content-Type: {JSON}\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .as_bytes(),
    );
    client.reply()
}

#[test]
fn pages_of_foreign_origins_and_rebound_hosts_are_refused() {
    let postgres = Postgres::start();
    for engine in ["guarded", "minihttp"] {
        let server = Server::start_on(&postgres, &[("HTTP_ENGINE", engine)]);
        let mut client = server.client();
        let address = server.address().to_string();
        let same = format!("Origin: http://{address}\r\n");
        let own = address.as_str();
        for (method, host, path, fields, status) in [
            ("POST", own, "/events", "", 202),
            ("POST", own, "/events", same.as_str(), 202),
            ("POST", own, "/events", "Origin: https://evil.example\r\n", 403),
            ("POST", own, "/events", "Origin: null\r\n", 403),
            ("POST", own, "/events", "Sec-Fetch-Site: cross-site\r\n", 403),
            ("POST", own, "/metrics/push", "Origin: https://evil.example\r\n", 403),
            ("PUT", own, "/metrics/job/a", "Origin: https://evil.example\r\n", 403),
            ("DELETE", own, "/metrics/job/a", "Origin: https://evil.example\r\n", 403),
            ("PUT", own, "/api/v1/admin/wipe", "Origin: https://evil.example\r\n", 403),
            ("GET", own, "/events", "Origin: https://evil.example\r\n", 200),
            ("GET", "evil.example:3000", "/events", "", 421),
            ("POST", "evil.example", "/events", "Origin: http://evil.example\r\n", 421),
            ("GET", "app.localhost:3000", "/events", "", 200),
            ("GET", "evil.example", "/ready", "", 200),
        ] {
            let reply = send_to_host(&mut client, method, host, path, fields);
            assert_eq!(reply.status, status, "{engine}: {method} {host} {path} {fields}: {}", reply.text());
        }
        wait_for_drain(&server);
    }
    // A proxy that is trusted sends the name that its clients know.
    let server = Server::start_on(&postgres, &[("TRUSTED_PROXIES", "127.0.0.1")]);
    let mut client = server.client();
    assert_eq!(send_to_host(&mut client, "GET", "events.example", "/events", "").status, 200);
    // Where tokens are required, no name leads a page past them.
    let tokens = Tokens::new();
    let reader = tokens.create("reader", "query", &[]);
    let server = Server::start_on(&postgres, &[("AUTH_TOKENS_FILE", tokens.path())]);
    let bearer = format!("Authorization: Bearer {reader}\r\n");
    assert_eq!(send_to_host(&mut server.client(), "GET", "events.example", "/events", &bearer).status, 200);
}

#[test]
fn cors_lets_pages_of_listed_origins_send_and_read() {
    let postgres = Postgres::start();
    let server =
        Server::start_on(&postgres, &[("CORS_ORIGINS", "https://app.example, http://localhost:8080")]);
    let mut client = server.client();
    let origin = ("Origin", "https://app.example");
    let preflight = client.exchange(&request(
        "OPTIONS",
        "/events",
        &[
            origin,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "baggage,idempotency-key,sentry-trace,traceparent,cookie"),
        ],
        b"",
    ));
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("Access-Control-Allow-Origin"), Some(origin.1));
    assert_eq!(
        preflight.header("Vary"),
        Some("Origin, Access-Control-Request-Method, Access-Control-Request-Headers")
    );
    assert!(preflight.header("Access-Control-Allow-Methods").unwrap().contains("POST"));
    assert!(preflight.header("Access-Control-Allow-Headers").unwrap().contains("Idempotency-Key"));
    let allowed: Vec<&str> = preflight.header("Access-Control-Allow-Headers").unwrap().split(", ").collect();
    for name in ["baggage", "sentry-trace", "traceparent"] {
        assert!(allowed.contains(&name), "a traced page sends {name}, allowed are {allowed:?}");
    }
    assert!(!allowed.contains(&"cookie"), "{allowed:?}");
    assert!(preflight.header("Access-Control-Max-Age").is_some());
    let stranger = client.exchange(&request(
        "OPTIONS",
        "/events",
        &[("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")],
        b"",
    ));
    assert_eq!((stranger.status, stranger.header("Access-Control-Allow-Origin")), (204, None));
    assert_eq!(stranger.header("Access-Control-Allow-Methods"), None);

    for (method, path, body, status) in [
        ("POST", "/events", event("s", "m"), 202),
        ("POST", "/events", "{}".into(), 400),
        ("GET", "/events", String::new(), 200),
        ("GET", "/events?limit=0", String::new(), 400),
        ("GET", "/nothing", String::new(), 404),
        ("PUT", "/events", "x".into(), 405),
    ] {
        let headers = [origin, ("Content-Type", JSON)];
        let reply = client.exchange(&request(method, path, &headers, body.as_bytes()));
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(reply.header("Access-Control-Allow-Origin"), Some(origin.1), "{method} {path}");
        let exposed = reply.header("Access-Control-Expose-Headers").unwrap();
        for name in ["Durability", "Retry-After", "RateLimit", "RateLimit-Policy", "ETag", "WWW-Authenticate"]
        {
            assert!(exposed.split(", ").any(|exposed| exposed == name), "{name} is not among {exposed}");
        }
        assert_eq!(reply.header("Access-Control-Allow-Credentials"), None);
    }
    wait_for_drain(&server);
}

#[test]
fn dead_letters_need_the_scope_admin_and_a_service_of_the_token() {
    let tokens = Tokens::new();
    let reader = tokens.create("reader", "query", &[]);
    let shop = tokens.create("shop", "admin", &["shop"]);
    let root = tokens.create("root", "admin", &[]);
    let postgres = Postgres::start();
    let settings =
        [("AUTH_TOKENS_FILE", tokens.path()), ("DRAIN_INTERVAL", "20"), ("RATE_LIMIT_QUERY", "20")];
    let server = Server::start_on(&postgres, &settings);
    postgres.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')");
    let mut client = server.client();
    let batch = [event("shop", "poison"), event("bank", "poison"), event("shop", "good")].join("\n");
    let headers = [("Content-Type", "application/x-ndjson"), ("Authorization", &*format!("Bearer {root}"))];
    assert_eq!(client.exchange(&request("POST", "/events", &headers, batch.as_bytes())).status, 202);
    until("two events are dead", || postgres.dead() == 2);
    for (method, path) in
        [("GET", "/dead"), ("POST", "/dead/replay"), ("DELETE", "/dead?all=true&confirm=true")]
    {
        assert_eq!(send(&mut client, "", method, path, "").status, 401, "{method}");
        assert_eq!(send(&mut client, &reader, method, path, "").status, 403, "{method}");
        let unnamed = send(&mut client, &shop, method, path, "");
        assert_eq!(unnamed.status, 403, "{}", unnamed.text());
        let other = send(&mut client, &shop, method, "/dead?service=bank", "");
        assert_ne!(other.status, 200, "{}", other.text());
    }
    assert_eq!(postgres.dead(), 2);
    let own = send(&mut client, &shop, "DELETE", "/dead?service=shop&confirm=true", "");
    assert_eq!((own.status, own.text().as_str()), (200, r#"{"purged":1}"#));
    let listed = send(&mut client, &root, "GET", "/dead", "").json();
    assert_eq!(listed["dead"][0]["service"].as_str(), Some("bank"), "{listed}");
    // The rate limit is that of queries.
    until("the limit is reached", || send(&mut client, &root, "GET", "/dead", "").status == 429);
    assert_eq!(send(&mut client, &root, "GET", "/stats", "").status, 429);
}
