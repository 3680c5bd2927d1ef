//! Requests before the gate: who is let in, who is told to wait, and what the answer says of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::event::Timestamp;
use crate::http::{Method, Promise};

/// A gate, a clock, and tokens of every kind when it asks for them.
struct World {
    gate: Gate,
    clock: Clock,
    tokens: Vec<(&'static str, String)>,
    file: Option<PathBuf>,
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            std::fs::remove_file(file).unwrap();
        }
    }
}

#[derive(Default)]
struct Rules {
    tokens: bool,
    global: u32,
    query: u32,
    health: u32,
    proxies: &'static str,
    origins: &'static str,
}

impl Rules {
    #[track_caller]
    fn world(&self, name: &str) -> World {
        let clock = Clock::manual(Timestamp::from_millis(0), 7);
        clock.advance(Duration::from_secs(10));
        let mut chance = clock.rng();
        let mut tokens = Vec::new();
        let mut lines = String::new();
        for (name, scopes, services) in [
            ("writer", "ingest", None),
            ("reader", "query", None),
            ("shop", "ingest,query", Some("shop")),
            ("scraper", "metrics", None),
            ("root", "admin", None),
        ] {
            let (token, line) = NewToken::new(name, scopes, services).unwrap().make(&mut chance);
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
            rates: Rates {
                global: Rate::per_second(self.global),
                query: Rate::per_second(self.query),
                health: Rate::per_second(self.health),
            },
            limiter: Limiter::new(16),
            proxies: self.proxies.parse().unwrap(),
            origins: self.origins.parse().unwrap(),
        };
        World { gate: Gate::new(Arc::new(policy)), clock, tokens, file }
    }
}

const HERE: &str = "192.0.2.1";

impl World {
    fn ask(&mut self, area: Area, peer: &str, fields: &[(&str, &str)]) -> (Option<Grant>, Response) {
        let headers: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let peer: IpAddr = peer.parse().unwrap();
        let promise = || -> Promise { unreachable!("the gate promises nothing") };
        let request = Request {
            method: Method::Get,
            path: "/",
            query: "",
            headers: Headers(&headers),
            body: b"",
            peer,
            promise: &promise,
        };
        let mut response = Response::default();
        let grant = self.gate.enter(area, &request, self.clock.now(), &mut response);
        (grant, response)
    }

    /// `Authorization` of the token with this name, or as it stands.
    fn bearer(&self, name: &str) -> String {
        let token = self.tokens.iter().find(|(known, _)| *known == name);
        token.map_or_else(|| name.to_owned(), |(_, token)| format!("Bearer {token}"))
    }

    /// The status that the bearer gets; 200 when it is let in.
    #[track_caller]
    fn check(&mut self, area: Area, bearer: &str, status: u16) -> Response {
        let value = self.bearer(bearer);
        let fields = [("authorization", value.as_str())];
        let fields = if bearer.is_empty() { &[][..] } else { &fields };
        let (grant, response) = self.ask(area, HERE, fields);
        assert_eq!(
            response.status,
            status,
            "{area:?} for {bearer:?}: {}",
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
fn without_rules_everybody_may_do_everything() {
    let mut world = Rules::default().world("none");
    for area in Area::ALL {
        let (grant, response) =
            world.ask(area, HERE, &[("Authorization", "nonsense"), ("Origin", "https://a")]);
        assert_eq!(grant, Some(Grant::ALL));
        assert!(response.headers.is_empty());
    }
}

#[test]
fn every_area_asks_for_its_scope_and_says_which() {
    use Area::{Health, HealthDetails, Ingest, Metrics, Probe, Public, Query};
    let mut world = Rules { tokens: true, ..Rules::default() }.world("scopes");
    for open in [Probe, Public, Health] {
        for bearer in ["", "writer", "Bearer nonsense"] {
            world.check(open, bearer, 200);
        }
    }
    for (area, scope, good) in [
        (Ingest, "ingest", "writer"),
        (Query, "query", "reader"),
        (Metrics, "metrics", "scraper"),
        (HealthDetails, "metrics", "scraper"),
    ] {
        world.check(area, good, 200);
        world.check(area, "root", 200);
        let nobody = text(&world.check(area, "", 401));
        assert!(nobody.contains("WWW-Authenticate: Bearer realm=\"aurore-events\"\r\n"), "{nobody}");
        for other in ["writer", "reader", "scraper"].into_iter().filter(|name| *name != good) {
            let refused = text(&world.check(area, other, 403));
            assert!(
                refused.contains(&format!("error=\"insufficient_scope\", scope=\"{scope}\"")),
                "{refused}"
            );
            assert!(refused.contains(&format!("the scope {scope}")), "{refused}");
        }
    }
    let writer = world.bearer("writer");
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
        let refused = text(&world.check(Ingest, wrong, 401));
        assert!(refused.contains("error=\"invalid_token\"") && !refused.contains(secret), "{refused}");
    }
    world.check(Ingest, &format!("bearer  {secret}"), 200);
    let twice = [("Authorization", writer.as_str()), ("authorization", writer.as_str())];
    assert!(world.ask(Ingest, HERE, &twice).0.is_none());
}

#[test]
fn a_grant_says_what_its_token_is_for() {
    let mut world = Rules { tokens: true, ..Rules::default() }.world("grants");
    let mut grant = |area, name: &str| {
        let bearer = world.bearer(name);
        let fields = [("Authorization", bearer.as_str())];
        world.ask(area, HERE, if name.is_empty() { &[] } else { &fields }).0.unwrap()
    };
    assert_eq!(grant(Area::Ingest, "shop").services.as_deref(), Some(&["shop".into()][..]));
    assert_eq!(grant(Area::Ingest, "writer").services, None);
    assert!(!grant(Area::Health, "").metrics);
    assert!(!grant(Area::Health, "reader").metrics);
    assert!(grant(Area::Health, "scraper").metrics);
    assert!(grant(Area::Health, "root").metrics);
}

#[test]
fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let mut world = Rules { query: 2, ..Rules::default() }.world("often");
    let first = text(&world.check(Area::Query, "", 200));
    assert_eq!(first, "RateLimit-Policy: \"query\";q=2;w=1\r\nRateLimit: \"query\";r=1;t=1\r\n");
    world.check(Area::Query, "", 200);
    let refused = text(&world.check(Area::Query, "", 429));
    for part in [
        "RateLimit: \"query\";r=0;t=1\r\n",
        "Retry-After: 1\r\n",
        "rate-limited",
        "allows 2 requests per second",
    ] {
        assert!(refused.contains(part), "{part} is not in {refused}");
    }
    // Other addresses and other pages are not held responsible.
    assert!(world.ask(Area::Query, "192.0.2.2", &[]).0.is_some());
    for area in [Area::Ingest, Area::Health, Area::Metrics, Area::Probe] {
        assert_eq!(text(&world.check(area, "", 200)), "");
    }
    world.clock.advance(Duration::from_millis(500));
    world.check(Area::Query, "", 200);
    world.check(Area::Query, "", 429);
}

#[test]
fn the_global_limit_is_on_everything_but_probes_and_comes_first() {
    let mut world = Rules { global: 3, health: 1, ..Rules::default() }.world("global");
    let both = text(&world.check(Area::Health, "", 200));
    assert!(both.contains("RateLimit: \"global\";r=2;t=1, \"health\";r=0;t=1\r\n"), "{both}");
    let refused = text(&world.check(Area::Health, "", 429));
    assert!(refused.contains("the limit \\\"health\\\""), "{refused}");
    world.check(Area::Ingest, "", 200);
    for area in [Area::Ingest, Area::Query, Area::Metrics, Area::Public, Area::HealthDetails] {
        assert!(text(&world.check(area, "", 429)).contains("the limit \\\"global\\\""));
    }
    for _ in 0..100 {
        world.check(Area::Probe, "", 200);
    }
}

#[test]
fn a_token_is_one_client_wherever_it_is_and_guesses_are_their_addresses() {
    let mut world = Rules { tokens: true, global: 1, ..Rules::default() }.world("clients");
    world.check(Area::Ingest, "writer", 200);
    let writer = world.bearer("writer");
    let (grant, _) = world.ask(Area::Ingest, "192.0.2.9", &[("Authorization", &writer)]);
    assert!(grant.is_none(), "the same token from elsewhere");
    world.check(Area::Ingest, "root", 200);
    world.check(Area::Ingest, "Bearer guess", 401);
    world.check(Area::Ingest, "Bearer other", 429);
    world.check(Area::Ingest, "", 429);
}

#[test]
fn behind_a_trusted_proxy_each_client_has_its_own_bucket() {
    let mut world = Rules { query: 1, proxies: "10.0.0.0/8", ..Rules::default() }.world("proxies");
    let mut ask = |peer, client| world.ask(Area::Query, peer, &[("X-Forwarded-For", client)]).0.is_some();
    assert!(ask("10.0.0.1", "192.0.2.1"));
    assert!(!ask("10.0.0.2", "192.0.2.1"));
    assert!(ask("10.0.0.1", "192.0.2.2"));
    // A stranger speaks for nobody.
    assert!(ask("192.0.2.3", "192.0.2.77"));
    assert!(!ask("192.0.2.3", "192.0.2.78"));
}

#[test]
fn refusals_too_may_be_read_by_the_pages_that_are_named() {
    let mut world =
        Rules { tokens: true, query: 1, origins: "https://a.example", ..Rules::default() }.world("cors");
    let origin = ("Origin", "https://a.example");
    for (area, fields, status) in [
        (Area::Probe, &[origin][..], 200),
        (Area::Query, &[origin], 401),
        (Area::Query, &[origin], 429),
        (Area::Ingest, &[origin, ("Authorization", "Bearer x")], 401),
    ] {
        let (grant, response) = world.ask(area, HERE, fields);
        assert_eq!(response.status, status);
        let said = text(&response);
        assert!(said.contains("Access-Control-Allow-Origin: https://a.example\r\n"), "{said}");
        assert!(!said.contains("Credentials"), "{said}");
        assert!(grant.is_none_or(|grant| grant.cors));
    }
}

#[test]
fn an_event_of_another_service_is_as_if_it_were_not() {
    #[track_caller]
    fn check(status: u16, body: &str, shown: bool) {
        let services = ["a b".into(), "shop".into()];
        let mut response = Response { status, body: body.into(), ..Response::default() };
        conceal(&services, &mut response);
        assert_eq!((response.status == status, response.body == body.as_bytes()), (shown, shown), "{body}");
        assert!(shown || response.status == 404);
    }
    check(200, r#"{"event_id":"x","status":"stored","service":"shop","message":"m"}"#, true);
    check(200, r#"{"service":"a\u0020b"}"#, true);
    check(200, r#"{"service":"other","message":"service\":\"shop"}"#, false);
    check(200, r#"{"event_id":"x","status":"dead","reason":"shop"}"#, false);
    check(200, r#"{"service":["shop"]}"#, false);
    check(200, "", false);
    check(503, "busy", true);
}
