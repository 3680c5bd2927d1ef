//! Tests of [`Gate`]: authorization, rate limits and response headers.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::clock::Clock;
use crate::event::Timestamp;
use crate::http::{Method, Promise};

/// A gate with a manual clock and, if configured, a token file with a token of every scope.
struct GateFixture {
    gate: Gate,
    clock: Clock,
    tokens: Vec<(&'static str, String)>,
    file: Option<PathBuf>,
}

impl Drop for GateFixture {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            std::fs::remove_file(file).unwrap();
        }
    }
}

#[derive(Default)]
struct GateConfig {
    tokens: bool,
    global: u32,
    query: u32,
    health: u32,
    proxies: &'static str,
    origins: &'static str,
    loopback_only: bool,
}

impl GateConfig {
    #[track_caller]
    fn build(&self, name: &str) -> GateFixture {
        let clock = Clock::manual(Timestamp::from_millis(0), 7);
        clock.advance(Duration::from_secs(10));
        let mut rng = clock.rng();
        let mut tokens = Vec::new();
        let mut lines = String::new();
        for (name, scopes, services) in [
            ("writer", "ingest", None),
            ("reader", "query", None),
            ("shop", "ingest,query", Some("shop")),
            ("scraper", "metrics", None),
            ("root", "admin", None),
        ] {
            let (token, line) = NewToken::new(name, scopes, services).unwrap().generate(&mut rng);
            tokens.push((name, token));
            lines += &(line + "\n");
        }
        let file =
            self.tokens.then(|| std::env::temp_dir().join(format!("aurore-{name}-{}", std::process::id())));
        let policy = Policy {
            tokens: file.as_ref().map(|file| {
                std::fs::write(file, lines).unwrap();
                Arc::new(TokenFile::open(file).unwrap())
            }),
            rates: RateLimits {
                global: Rate::per_second(self.global),
                query: Rate::per_second(self.query),
                health: Rate::per_second(self.health),
            },
            limiter: Limiter::new(16),
            proxies: self.proxies.parse().unwrap(),
            origins: self.origins.parse().unwrap(),
            loopback_only: self.loopback_only,
        };
        GateFixture { gate: Gate::new(Arc::new(policy)), clock, tokens, file }
    }
}

const HERE: &str = "192.0.2.1";

impl GateFixture {
    fn authorize(
        &mut self,
        class: RouteClass,
        peer: &str,
        fields: &[(&str, &str)],
    ) -> (Option<Grant>, Response) {
        self.authorize_method(Method::Get, class, peer, fields)
    }

    fn authorize_method(
        &mut self,
        method: Method,
        class: RouteClass,
        peer: &str,
        fields: &[(&str, &str)],
    ) -> (Option<Grant>, Response) {
        let headers: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let peer: IpAddr = peer.parse().unwrap();
        let promise = || -> Promise { unreachable!("the gate answers at once") };
        let request = Request {
            method,
            path: "/",
            query: "",
            headers: Headers(&headers),
            body: b"",
            peer,
            promise: &promise,
        };
        let mut response = Response::default();
        let grant = self.gate.authorize(class, &request, self.clock.now(), &mut response);
        (grant, response)
    }

    /// The `Authorization` value of the token with this name; a value that is no name is returned
    /// unchanged.
    fn bearer(&self, name: &str) -> String {
        let token = self.tokens.iter().find(|(known, _)| *known == name);
        token.map_or_else(|| name.to_owned(), |(_, token)| format!("Bearer {token}"))
    }

    /// Asserts the status of a request with these credentials; 200 means authorized.
    #[track_caller]
    fn check(&mut self, class: RouteClass, bearer: &str, status: u16) -> Response {
        let value = self.bearer(bearer);
        let fields = [("authorization", value.as_str())];
        let fields = if bearer.is_empty() { &[][..] } else { &fields };
        let (grant, response) = self.authorize(class, HERE, fields);
        assert_eq!(
            response.status,
            status,
            "{class:?} for {bearer:?}: {}",
            String::from_utf8_lossy(&response.body)
        );
        assert_eq!(grant.is_some(), status == 200);
        response
    }
}

fn text(response: &Response) -> String {
    String::from_utf8([&response.headers[..], &response.body].concat()).unwrap()
}

#[test]
fn gate_without_rules_allows_everything() {
    let mut fixture = GateConfig::default().build("none");
    for class in RouteClass::ALL {
        let (grant, response) =
            fixture.authorize(class, HERE, &[("Authorization", "nonsense"), ("Origin", "https://a")]);
        assert_eq!(grant, Some(Grant::ALL));
        assert!(response.headers.is_empty());
    }
}

#[test]
fn changes_by_pages_of_foreign_origins_are_refused() {
    for tokens in [false, true] {
        let mut fixture = GateConfig { tokens, origins: "https://a.example", ..GateConfig::default() }
            .build(if tokens { "foreign-tokens" } else { "foreign" });
        let bearer = fixture.bearer("root");
        let mut status = |method, origin| {
            let fields = [("Host", "b.example"), ("Authorization", bearer.as_str()), ("Origin", origin)];
            let (grant, response) = fixture.authorize_method(method, RouteClass::Ingest, HERE, &fields);
            assert_eq!(grant.is_some(), response.status == 200);
            response.status
        };
        for method in [Method::Post, Method::Put, Method::Delete] {
            assert_eq!(status(method, "https://evil.example"), 403);
            assert_eq!(status(method, "https://a.example"), 200);
            assert_eq!(status(method, "https://b.example"), 200);
        }
        assert_eq!(status(Method::Get, "https://evil.example"), 200);
    }
}

#[test]
fn a_loopback_server_without_tokens_refuses_foreign_hosts() {
    let build = |loopback_only, origins, proxies, name| {
        GateConfig { proxies, origins, loopback_only, ..GateConfig::default() }.build(name)
    };
    let status = |fixture: &mut GateFixture, class, peer, host| {
        fixture.authorize(class, peer, &[("Host", host)]).1.status
    };
    let mut fixture = build(true, "", "127.0.0.2", "loopback");
    for class in RouteClass::ALL {
        let refused = if class == RouteClass::Probe { 200 } else { 421 };
        assert_eq!(status(&mut fixture, class, "127.0.0.1", "evil.example:3000"), refused);
        assert_eq!(status(&mut fixture, class, "127.0.0.1", "localhost:3000"), 200);
        // What a trusted proxy may send does not become known for others.
        assert_eq!(status(&mut fixture, class, "127.0.0.2", "events.example"), 200);
        assert_eq!(status(&mut fixture, class, "127.0.0.1", "events.example"), refused);
    }
    let (grant, _) = fixture.authorize(RouteClass::Query, "127.0.0.1", &[]);
    assert!(grant.is_some(), "HTTP/1.0 needs no Host");
    let mut fixture = build(false, "", "", "everywhere");
    assert_eq!(status(&mut fixture, RouteClass::Query, "127.0.0.1", "events.example"), 200);
    let mut fixture = build(true, "*", "", "any-page");
    assert_eq!(status(&mut fixture, RouteClass::Query, "127.0.0.1", "events.example"), 200);
}

#[test]
fn route_class_requires_its_scope_and_names_it() {
    use RouteClass::{Health, HealthDetails, Ingest, Metrics, Probe, Public, Query};
    let mut fixture = GateConfig { tokens: true, ..GateConfig::default() }.build("scopes");
    for open in [Probe, Public, Health] {
        for bearer in ["", "writer", "Bearer nonsense"] {
            fixture.check(open, bearer, 200);
        }
    }
    for (class, scope, good) in [
        (Ingest, "ingest", "writer"),
        (Query, "query", "reader"),
        (Metrics, "metrics", "scraper"),
        (HealthDetails, "metrics", "scraper"),
    ] {
        fixture.check(class, good, 200);
        fixture.check(class, "root", 200);
        let missing = text(&fixture.check(class, "", 401));
        assert!(missing.contains("WWW-Authenticate: Bearer realm=\"aurore-events\"\r\n"), "{missing}");
        for other in ["writer", "reader", "scraper"].into_iter().filter(|name| *name != good) {
            let refused = text(&fixture.check(class, other, 403));
            assert!(
                refused.contains(&format!("error=\"insufficient_scope\", scope=\"{scope}\"")),
                "{refused}"
            );
            assert!(refused.contains(&format!("the scope {scope}")), "{refused}");
        }
    }
    let writer = fixture.bearer("writer");
    let secret = writer.strip_prefix("Bearer ").unwrap();
    for wrong in [
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic x",
        secret,
        &writer[..writer.len() - 1],
        &format!("{writer}0"),
    ] {
        let refused = text(&fixture.check(Ingest, wrong, 401));
        assert!(refused.contains("error=\"invalid_token\"") && !refused.contains(secret), "{refused}");
    }
    fixture.check(Ingest, &format!("bearer  {secret}"), 200);
    fixture.check(Ingest, &format!("Splunk {secret}"), 200);
    let basic = |credentials: &str| format!("Basic {}", STANDARD.encode(credentials));
    for user in ["", "x", "any name"] {
        fixture.check(Ingest, &basic(&format!("{user}:{secret}")), 200);
    }
    for wrong in
        [basic(secret), basic(&format!("a:b:{secret}")), basic(&format!("{secret}:")), "Basic".to_owned()]
    {
        fixture.check(Ingest, &wrong, 401);
    }
    let twice = [("Authorization", writer.as_str()), ("authorization", writer.as_str())];
    assert!(fixture.authorize(Ingest, HERE, &twice).0.is_none());
}

#[test]
fn grant_carries_services_and_metrics_permission() {
    let mut fixture = GateConfig { tokens: true, ..GateConfig::default() }.build("grants");
    let mut grant = |class, name: &str| {
        let bearer = fixture.bearer(name);
        let fields = [("Authorization", bearer.as_str())];
        fixture.authorize(class, HERE, if name.is_empty() { &[] } else { &fields }).0.unwrap()
    };
    assert_eq!(grant(RouteClass::Ingest, "shop").services.as_deref(), Some(&["shop".into()][..]));
    assert_eq!(grant(RouteClass::Ingest, "writer").services, None);
    assert!(!grant(RouteClass::Health, "").metrics);
    assert!(!grant(RouteClass::Health, "reader").metrics);
    assert!(grant(RouteClass::Health, "scraper").metrics);
    assert!(grant(RouteClass::Health, "root").metrics);
}

#[test]
fn rate_limited_client_gets_429_with_retry_after() {
    let mut fixture = GateConfig { query: 2, ..GateConfig::default() }.build("often");
    let first = text(&fixture.check(RouteClass::Query, "", 200));
    assert_eq!(first, "RateLimit-Policy: \"query\";q=2;w=1\r\nRateLimit: \"query\";r=1;t=1\r\n");
    fixture.check(RouteClass::Query, "", 200);
    let refused = text(&fixture.check(RouteClass::Query, "", 429));
    for part in [
        "RateLimit: \"query\";r=0;t=1\r\n",
        "Retry-After: 1\r\n",
        "rate-limited",
        "allows 2 requests per second",
    ] {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    // Other addresses and other classes are not limited.
    assert!(fixture.authorize(RouteClass::Query, "192.0.2.2", &[]).0.is_some());
    for class in [RouteClass::Ingest, RouteClass::Health, RouteClass::Metrics, RouteClass::Probe] {
        assert_eq!(text(&fixture.check(class, "", 200)), "");
    }
    fixture.clock.advance(Duration::from_millis(500));
    fixture.check(RouteClass::Query, "", 200);
    fixture.check(RouteClass::Query, "", 429);
}

#[test]
fn global_limit_applies_first_and_to_all_but_probes() {
    let mut fixture = GateConfig { global: 3, health: 1, ..GateConfig::default() }.build("global");
    let both = text(&fixture.check(RouteClass::Health, "", 200));
    assert!(both.contains("RateLimit: \"global\";r=2;t=1, \"health\";r=0;t=1\r\n"), "{both}");
    let refused = text(&fixture.check(RouteClass::Health, "", 429));
    assert!(refused.contains("the limit \\\"health\\\""), "{refused}");
    fixture.check(RouteClass::Ingest, "", 200);
    for class in [
        RouteClass::Ingest,
        RouteClass::Query,
        RouteClass::Metrics,
        RouteClass::Public,
        RouteClass::HealthDetails,
    ] {
        assert!(text(&fixture.check(class, "", 429)).contains("the limit \\\"global\\\""));
    }
    for _ in 0..100 {
        fixture.check(RouteClass::Probe, "", 200);
    }
}

#[test]
fn rate_limit_key_is_the_valid_token_or_the_address() {
    let mut fixture = GateConfig { tokens: true, global: 1, ..GateConfig::default() }.build("clients");
    fixture.check(RouteClass::Ingest, "writer", 200);
    let writer = fixture.bearer("writer");
    let (grant, _) = fixture.authorize(RouteClass::Ingest, "192.0.2.9", &[("Authorization", &writer)]);
    assert!(grant.is_none(), "the same token from elsewhere");
    fixture.check(RouteClass::Ingest, "root", 200);
    fixture.check(RouteClass::Ingest, "Bearer guess", 401);
    fixture.check(RouteClass::Ingest, "Bearer other", 429);
    fixture.check(RouteClass::Ingest, "", 429);
}

#[test]
fn trusted_proxy_clients_have_separate_buckets() {
    let mut fixture =
        GateConfig { query: 1, proxies: "10.0.0.0/8", ..GateConfig::default() }.build("proxies");
    let mut is_allowed =
        |peer, client| fixture.authorize(RouteClass::Query, peer, &[("X-Forwarded-For", client)]).0.is_some();
    assert!(is_allowed("10.0.0.1", "192.0.2.1"));
    assert!(!is_allowed("10.0.0.2", "192.0.2.1"));
    assert!(is_allowed("10.0.0.1", "192.0.2.2"));
    // The header is ignored from an untrusted peer.
    assert!(is_allowed("192.0.2.3", "192.0.2.77"));
    assert!(!is_allowed("192.0.2.3", "192.0.2.78"));
}

#[test]
fn cors_headers_are_set_on_refusals_too() {
    let mut fixture =
        GateConfig { tokens: true, query: 1, origins: "https://a.example", ..GateConfig::default() }
            .build("cors");
    let origin = ("Origin", "https://a.example");
    for (class, fields, status) in [
        (RouteClass::Probe, &[origin][..], 200),
        (RouteClass::Query, &[origin], 401),
        (RouteClass::Query, &[origin], 429),
        (RouteClass::Ingest, &[origin, ("Authorization", "Bearer x")], 401),
    ] {
        let (grant, response) = fixture.authorize(class, HERE, fields);
        assert_eq!(response.status, status);
        let headers = text(&response);
        assert!(headers.contains("Access-Control-Allow-Origin: https://a.example\r\n"), "{headers}");
        assert!(!headers.contains("Credentials"), "{headers}");
        assert!(grant.is_none_or(|grant| grant.cors));
    }
}
