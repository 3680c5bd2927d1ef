//! Bounds on the work for hostile pushes, counted in steps, and the routing of long requests to the
//! push thread.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;

use super::grouping_key::GroupingKey;
use super::handlers::{GatewayHandlers, GatewayRoute};
use super::idempotency::{IdempotencyKeys, KeyLimits};
use super::metric::{MetricKind, ParsedFamily, ParsedSample, SeriesValue};
use super::push_thread::{self, PushThread};
use super::state::{GatewayLimits, GatewayState};
use super::validate::{FAMILIES_MAX, ParseLimits, validate_push};
use super::*;
use crate::access::Grant;
use crate::event::Timestamp;
use crate::http::{DecompressLimits, Decompressor, Headers, Method, Promise, Request, Response};
use crate::journal::Durability;

const LIMITS: ParseLimits = ParseLimits { families_max: FAMILIES_MAX, samples_max: 100_000 };
const KEYS: KeyLimits = KeyLimits { count_max: 10, age_max: Duration::from_hours(1) };
const TIMES: (Moment, f64) = (Moment::ZERO, 1.0);

/// Asserts that reading `body` takes a bounded number of steps per byte. Returns the result.
#[track_caller]
fn check_steps<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    steps::take();
    let result = read();
    let (taken, allowed) = (steps::take(), steps::PER_BYTE_MAX * bytes as u64);
    assert!(taken > 0 && taken <= allowed, "{taken} steps for {bytes} bytes");
    result
}

#[track_caller]
fn check_text(body: &str, expected: Result<usize, &str>) {
    let parsed = check_steps(body.len(), || text::parse(body.as_bytes(), LIMITS));
    let got = parsed.map(|body| body.families.len()).map_err(|error| error.reason);
    assert_eq!(got, expected.map_err(str::to_owned));
}

#[track_caller]
fn check_json(body: &str, expected: &str) {
    let parsed = check_steps(body.len(), || push::parse(body.as_bytes(), None));
    let errors = parsed.expect("the body is JSON").errors;
    let got: Vec<String> =
        errors.listed().iter().map(|error| format!("{}: {}", error.field, error.detail)).collect();
    assert_eq!(got.first().map(String::as_str), Some(expected));
    assert!(got.len() <= 16, "{}", got.len());
}

fn repeat(count: usize, each: impl Fn(usize) -> String) -> String {
    (0..count).map(each).collect()
}

#[test]
fn text_takes_bounded_steps_per_byte_and_names_the_bound() {
    let labels = |count| repeat(count, |nth| format!("l{nth}=\"\","));
    check_text(&format!("a{{{}}} 1\n", labels(64)), Ok(1));
    check_text(&format!("a{{{}}} 1\n", labels(65)), Err("more than 64 labels of metric \"a\""));
    check_text(&format!("a{{{}}} 1\n", labels(40_000)), Err("more than 64 labels of metric \"a\""));
    check_text(&format!("a{{{}}} 1\n", labels(500_000)), Err("more than 64 labels of metric \"a\""));
    check_text(&repeat(1000, |_| format!("a{{{}}} 1\n", labels(64))), Ok(1));
    let families = |count| repeat(count, |nth| format!("f{nth} 1\n"));
    check_text(&families(FAMILIES_MAX), Ok(FAMILIES_MAX));
    check_text(&families(40_000), Err("more than 10000 metric names in one push"));
    check_text(
        &repeat(40_000, |nth| format!("# HELP f{nth} x\n")),
        Err("more than 10000 metric names in one push"),
    );
    let lines = |count| repeat(count, |nth| format!("a{{l=\"{nth}\"}} 1\n"));
    check_text(&lines(100_000), Ok(1));
    check_text(&lines(100_001), Err("more than 100000 series; see PUSHED_SERIES_MAX"));
    let name = "n".repeat(1025);
    let start = "n".repeat(64);
    let too_long = format!("the name \"{start}...\" is longer than 1024 bytes");
    for body in [format!("{name} 1\n"), format!("a{{{name}=\"\"}} 1\n"), format!("# TYPE {name} gauge\n")] {
        check_text(&body, Err(&too_long));
    }
    check_text(
        &(String::from("# TYPE h histogram\n")
            + &repeat(1000, |nth| format!("h_bucket{{le=\"{nth}\",{}}} 1\n", labels(63)))),
        Ok(1),
    );
}

#[test]
fn json_takes_bounded_steps_per_byte_and_names_the_field() {
    let metric = |fields: &str| format!("{{\"metrics\":[{{{fields}\"name\":\"a\"}}]}}");
    let unknown = repeat(40_000, |nth| format!("\"u{nth}\":1,"));
    check_json(&metric(&unknown), "u0: is not a field of a metric");
    let twice = repeat(40_000, |_| "\"value\":1,".to_owned());
    check_json(&metric(&twice), "value: occurs more than once");
    let labels = repeat(40_000, |nth| format!("\"l{nth}\":\"v\","));
    check_json(
        &metric(&format!("\"type\":\"gauge\",\"value\":1,\"labels\":{{{labels}\"z\":\"\"}},")),
        "labels: must be at most 64",
    );
    let buckets = repeat(40_000, |nth| format!("\"{nth}\":1,"));
    let parsed = push::parse(
        metric(&format!("\"type\":\"histogram\",\"buckets\":{{{buckets}\"+Inf\":1}},")).as_bytes(),
        None,
    );
    assert_eq!(parsed.expect("the body is JSON").errors.listed()[0].field, "buckets");
}

fn family(name: String, samples: Vec<ParsedSample<'static>>) -> ParsedFamily<'static> {
    ParsedFamily { name: name.into(), help: "".into(), kind: MetricKind::Gauge, samples }
}

fn gauge(labels: usize) -> ParsedSample<'static> {
    let labels = (0..labels).map(|nth| (format!("l{nth}").into(), "".into())).collect();
    ParsedSample { labels, value: SeriesValue::Number(1.0) }
}

#[track_caller]
fn check_protobuf(families: &[ParsedFamily<'_>], expected: Result<usize, &str>) {
    let mut body = Vec::new();
    for family in families {
        protobuf::encode::family(&mut body, family, None);
    }
    let parsed = check_steps(body.len(), || protobuf::parse(&body, LIMITS));
    let got = parsed.map(|body| body.families.len()).map_err(|error| error.to_string());
    assert_eq!(got, expected.map_err(str::to_owned));
}

#[test]
fn protobuf_takes_bounded_steps_per_byte_and_names_the_field() {
    let empty: Vec<_> = (0..80_000).map(|nth| family(format!("f{nth}"), vec![])).collect();
    check_protobuf(&empty, Err("the field MetricFamily occurs more than 10000 times"));
    check_protobuf(&empty[..FAMILIES_MAX], Ok(0));
    let same: Vec<_> = (0..80_000).map(|_| family("f".into(), vec![gauge(0)])).collect();
    check_protobuf(&same, Ok(1));
    check_protobuf(&[family("f".into(), vec![gauge(64)])], Ok(1));
    check_protobuf(
        &[family("f".into(), vec![gauge(40_000)])],
        Err("the field label occurs more than 64 times"),
    );
    let many = (0..100_001).map(|_| gauge(0)).collect();
    check_protobuf(&[family("f".into(), many)], Err("the field metric occurs more than 100000 times"));
}

fn families(count: usize) -> Vec<ParsedFamily<'static>> {
    (0..count).map(|nth| family(format!("f{nth}"), vec![gauge(0)])).collect()
}

/// Pushes families to the group `job/a` and counts the steps. `bytes` of a family are those of the
/// shortest line.
#[track_caller]
fn check_push(state: &mut GatewayState, count: usize, replace: bool) -> Result<(), String> {
    let grouping_key = Arc::new(GroupingKey::parse("job/a").unwrap());
    let parsed = ParsedBody { families: families(count), ..ParsedBody::default() };
    let bytes = 8 * count;
    let families = validate_push(&grouping_key, parsed, TIMES).unwrap();
    check_steps(bytes, || state.push(&grouping_key, families, replace, TIMES))
        .map(drop)
        .map_err(|error| error.to_string())
}

#[test]
fn replacing_a_group_of_many_families_takes_steps_in_proportion() {
    let mut state = GatewayState::new(IdempotencyKeys::new(KEYS));
    for replace in [true, true, false] {
        check_push(&mut state, 40_000, replace).unwrap();
    }
    // Beyond the limit a group may not grow, but it may shrink.
    state.set_limits(GatewayLimits { group_families_max: 1000, ..state.limits() });
    check_push(&mut state, 39_999, true).unwrap();
    let error = check_push(&mut state, 40_000, false).unwrap_err();
    assert_eq!(error, "the group would have more than 1000 metric names");
    check_push(&mut state, 1000, true).unwrap();
    assert!(check_push(&mut state, 1001, false).is_err());
    let group = state.group("job=\"a\"").unwrap();
    assert_eq!((group.families, group.samples), (1000, 1000));
}

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn request<'a>(
    method: Method,
    headers: &'a [httparse::Header<'a>],
    query: &'a str,
    body: &'a [u8],
) -> Request<'a> {
    let promise = &|| -> Promise { unreachable!("the caller makes the promise") };
    Request { method, path: "/", query, headers: Headers(headers), body, peer: PEER, promise }
}

#[test]
fn long_requests_are_handled_on_the_push_thread() {
    let state = GatewayState::new(IdempotencyKeys::new(KEYS));
    let clock = Clock::manual(Timestamp::from_millis(1_790_000_000_000), 1);
    let (gateway, _parker) = Gateway::new(state, Ttl::default(), None, clock);
    let (scrapes, _scraper) = scrape::queue(gateway.clone(), true);
    let alone = GatewayHandlers::new(
        gateway.clone(),
        scrapes,
        Durability::Memory,
        Timestamp::from_millis(0),
        Arc::new([]),
    );
    let (queue, jobs) = push_thread::queue();
    let handlers = alone.with_queue(queue.clone());
    let mut thread = PushThread::new(jobs, alone.clone(), Decompressor::new(DecompressLimits::new(1 << 20)));
    let grant = Grant { services: None, token: None, metrics: true, admin: true, cors: false };
    let group = GatewayRoute::Group("job/a".into());
    let short = b"a 1\n".to_vec();
    let mut long = String::new();
    while long.len() <= 32 * 1024 {
        writeln!(long, "a{{l=\"{}\"}} 1", long.len()).unwrap();
    }
    let coded = [httparse::Header { name: "content-encoding", value: b"gzip" }];
    for (page, headers, body, is_long) in [
        (&group, &[][..], short.as_slice(), false),
        (&group, &[], long.as_bytes(), true),
        (&group, &coded, &short, true),
        (&GatewayRoute::Push, &[], &short, false),
        (&GatewayRoute::Push, &[], long.as_bytes(), true),
        (&GatewayRoute::DeleteSeries, &[], b"", true),
        (&GatewayRoute::Wipe, &[], b"", true),
        (&GatewayRoute::Status, &[], b"", false),
    ] {
        let request = request(Method::Put, headers, "", body);
        assert_eq!(handlers.long_push_queue(page, &request).is_some(), is_long, "{page:?}");
        assert!(alone.long_push_queue(page, &request).is_none(), "the thread handles all of them");
    }
    let too_many = format!("name=a{}", repeat(66, |nth| format!("&l{nth}=1")));
    let mut ask = |method, query, page: &GatewayRoute<'_>, body: &[u8]| {
        let (sender, answers) = bounded(1);
        let promise = || Promise::new(move |response: Response| sender.send(response).unwrap());
        assert!(queue.submit(page, &grant, &request(method, &[], query, body), promise));
        thread.run_pending();
        answers.try_recv().expect("the thread has answered")
    };
    assert_eq!(ask(Method::Put, "", &group, long.as_bytes()).status, 200);
    assert!(gateway.group_series(&GroupingKey::parse("job/a").unwrap()) > 1000);
    // A short push to a group of many series may take long, too.
    assert!(handlers.long_push_queue(&group, &request(Method::Put, &[], "", &short)).is_some());
    assert_eq!(ask(Method::Put, "", &group, &short).status, 200);
    assert!(handlers.long_push_queue(&group, &request(Method::Put, &[], "", &short)).is_none());
    assert_eq!(ask(Method::Put, "", &group, b"a 1").status, 400);
    let deleted = ask(Method::Delete, "name=a", &GatewayRoute::DeleteSeries, b"");
    assert_eq!(deleted.body, b"{\"deleted\":0}");
    assert_eq!(ask(Method::Delete, &too_many, &GatewayRoute::DeleteSeries, b"").status, 400);
    assert_eq!(ask(Method::Put, "", &GatewayRoute::Wipe, b"").status, 202);

    // The queue is bounded in requests and bytes; a finished request frees its place.
    let (full, jobs) = push_thread::queue();
    let submit = |body: &[u8]| {
        full.submit(&group, &grant, &request(Method::Put, &[], "", body), || Promise::new(drop))
    };
    assert!((0..256).all(|_| submit(b"")));
    assert!(!submit(b""));
    let mut thread = PushThread::new(jobs, alone, Decompressor::new(DecompressLimits::new(1 << 20)));
    thread.run_pending();
    let half = vec![0; 33 << 20];
    assert!(submit(&half) && !submit(&half) && submit(b""));
}
