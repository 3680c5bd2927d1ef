//! Tests of the session without a socket: the corpus, and that no split of the input changes a
//! response.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::sans_io_harness::{HarnessOutcome, context, run};
use super::session::{HttpSession, Progress};

pub(super) struct CorpusCase {
    pub(super) name: String,
    pub(super) request: Vec<u8>,
    pub(super) statuses: Vec<u16>,
    closed: bool,
}

pub(super) fn corpus() -> Vec<CorpusCase> {
    let mut cases: Vec<CorpusCase> = Vec::new();
    for line in include_str!("../../tests/corpus/http.txt").lines() {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(CorpusCase {
                name: name.into(),
                request: Vec::new(),
                statuses: Vec::new(),
                closed: false,
            });
        } else if let Some(wanted) = line.strip_prefix("->") {
            let case = cases.last_mut().unwrap();
            for word in wanted.split_whitespace() {
                match word {
                    "open" => case.closed = false,
                    "closed" => case.closed = true,
                    status => case.statuses.push(status.parse().unwrap()),
                }
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            let request = unescape(line);
            cases.last_mut().unwrap().request.extend_from_slice(&request);
        }
    }
    cases
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some(repeated) = rest.strip_prefix('{') {
            let (inner, after) = repeated.split_once('}').unwrap();
            let (inner, count) = inner.rsplit_once('*').unwrap();
            bytes.extend(unescape(inner).repeat(count.parse().unwrap()));
            rest = after;
        } else if let Some(escape) = rest.strip_prefix('\\') {
            let (byte, length) = match escape.as_bytes()[0] {
                b'r' => (b'\r', 1),
                b'n' => (b'\n', 1),
                b't' => (b'\t', 1),
                b'0' => (0, 1),
                b'\\' => (b'\\', 1),
                b'x' => (u8::from_str_radix(&escape[1..3], 16).unwrap(), 3),
                other => panic!("no escape: {}", char::from(other)),
            };
            bytes.push(byte);
            rest = &escape[length..];
        } else {
            bytes.extend_from_slice(first.to_string().as_bytes());
            rest = &rest[first.len_utf8()..];
        }
    }
    bytes
}

/// Valid requests that are sent before and after each case.
const BEFORE: &[u8] = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nbefore";
const AFTER: &[u8] = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nbehind";

/// Sends `bytes` whole, byte by byte, and split once at every offset (at every 61st for a long
/// case), and checks that the outcome is the same.
#[track_caller]
fn run_with_all_splits(bytes: &[u8], name: &str) -> HarnessOutcome {
    let whole = run([bytes]);
    assert_eq!(run(bytes.chunks(1)), whole, "{name}, byte by byte");
    let step = if bytes.len() < 1500 { 1 } else { 61 };
    for at in (1..bytes.len()).step_by(step) {
        let (head, tail) = bytes.split_at(at);
        assert_eq!(run([head, tail]), whole, "{name}, split at {at}");
    }
    whole
}

#[test]
fn session_answers_the_corpus_as_expected_with_any_split() {
    let cases = corpus();
    assert!(cases.len() >= 370, "only {} cases", cases.len());
    for case in &cases {
        let whole = run_with_all_splits(&case.request, &case.name);
        assert_eq!(whole.statuses, case.statuses, "{}: {}", case.name, whole.out);
        assert_eq!(whole.closed, case.closed, "{}: {}", case.name, whole.out);
    }
}

#[test]
fn corpus_case_does_not_affect_the_requests_before_and_after_it() {
    for case in corpus() {
        let alone = run([case.request.as_slice()]);
        let mut wanted = vec![200];
        wanted.extend(&case.statuses);
        if alone.idle {
            wanted.push(200);
        }
        // Input after an incomplete case would be parsed as part of it.
        let after = if alone.idle || alone.closed { AFTER } else { b"" };
        let found = run_with_all_splits(&[BEFORE, &case.request, after].concat(), &case.name);
        assert_eq!(found.statuses, wanted, "{}: {}", case.name, found.out);
        assert!(found.out.contains("\r\n\r\nbefore") && found.closed == case.closed, "{}", case.name);
        assert_eq!(found.out.ends_with("\r\n\r\nbehind"), alone.idle, "{}: {}", case.name, found.out);
    }
}

#[test]
fn yielded_request_is_answered_in_order_with_any_split() {
    let whole = b"POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole".as_slice();
    let chunked = b"POST /long HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nin\r\n0\r\n\r\n"
        .as_slice();
    let last = b"GET /long HTTP/1.0\r\n\r\n".as_slice();
    let input = [BEFORE, whole, whole, chunked, AFTER, chunked, last, AFTER].concat();
    let outcome = run_with_all_splits(&input, "long");
    assert_eq!(outcome.statuses, [200; 7]);
    assert!(outcome.closed && outcome.out.matches("\r\n\r\nwhole").count() == 2, "{}", outcome.out);
}

#[test]
fn body_limit_of_8_mib_is_inclusive() {
    let head = b"POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    let last = b"0\r\n\r\n".as_slice();
    let full: Vec<&[u8]> = [head].into_iter().chain([chunk.as_bytes(); 8]).chain([last]).collect();
    assert_eq!(run(full).statuses, [404]);
    let above: Vec<&[u8]> =
        [head].into_iter().chain([chunk.as_bytes(); 8]).chain([b"1\r\nx\r\n".as_slice()]).collect();
    assert_eq!(run(above).statuses, [413]);
}

#[test]
fn header_timeout_starts_at_the_first_byte_and_body_timeout_follows_the_minimum_rate() {
    let mut ctx = context();
    let limits = ctx.limits;
    let at = |millis| crate::clock::Moment::ZERO.plus(std::time::Duration::from_millis(millis));
    let mut session = HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), at(0));
    assert_eq!(session.deadline(at(0), &limits), at(75_000));
    let body = vec![b'x'; 40_000];
    for (millis, bytes, deadline) in [
        (1_000, b"POST / HTTP/1.1\r\n".as_slice(), 11_000),
        (9_000, b"Host: a\r\nContent-Length: 40000\r\n", 11_000),
        // 5 s of grace and one second per KiB, including the header.
        (10_000, b"\r\n", 10_000 + 5_000 + 51_000 / 1024),
        (11_000, &body[..10_189], 10_000 + 5_000 + 10_000),
        // The body timeout of 30 s.
        (12_000, &body[..29_000], 10_000 + 30_000),
        (13_000, &body[..811], 13_000 + 75_000),
        (14_000, b"\r", 24_000),
    ] {
        ctx.now = at(millis);
        ctx.begin_turn(0);
        session.receive(bytes, &mut ctx);
        let found = session.deadline(ctx.now, &limits).nanos() / 1_000_000;
        assert_eq!(found, deadline, "at {millis}");
    }
}

#[test]
fn body_above_the_memory_limit_is_rejected_unless_it_is_small() {
    let mut ctx = context();
    ctx.limits.connection_memory_bytes_max = 100_000;
    for (buffered_bytes, claimed, sent, expected) in [
        (60_000, 50_000, 41_000, 503),
        (60_000, 50_000, 30_000, 0),
        (90_000, 50_000, 9_000, 0),
        (100_000, 9_000, 9_000, 200),
    ] {
        ctx.buffered_bytes = buffered_bytes;
        ctx.begin_turn(0);
        let mut session = HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ctx.now);
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {claimed}\r\n\r\n");
        session.receive(&[head.as_bytes(), &vec![b'x'; sent]].concat(), &mut ctx);
        let status = ctx.out.get(9..12).map_or(0, |digits| str::from_utf8(digits).unwrap().parse().unwrap());
        assert_eq!(status, expected, "{buffered_bytes} {sent}");
    }
}

/// Feeds `bytes` to `session` and returns the output.
fn feed(
    session: &mut HttpSession,
    bytes: &[u8],
    ctx: &mut super::acceptor_context::AcceptorContext<super::sans_io_harness::EchoHandler>,
) -> String {
    ctx.begin_turn(0);
    session.receive(bytes, ctx);
    String::from_utf8(ctx.out.clone()).unwrap()
}

#[test]
fn refusal_by_the_header_precedes_the_body_and_the_body_is_not_kept() {
    const BYTES: usize = 8 << 20;
    let piece = vec![b'x'; 1 << 16];
    let length = format!("Content-Length: {BYTES}");
    for framing in [length.as_str(), "Transfer-Encoding: chunked"] {
        let mut ctx = context();
        let mut session = HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ctx.now);
        let head = format!("POST /refused HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let out = feed(&mut session, head.as_bytes(), &mut ctx);
        assert!(out.starts_with("HTTP/1.1 403 ") && !out.contains("Connection: close"), "{out}");
        let chunked = framing != length;
        if chunked {
            feed(&mut session, format!("{BYTES:x}\r\n").as_bytes(), &mut ctx);
        }
        for _ in 0..BYTES / piece.len() {
            assert_eq!(feed(&mut session, &piece, &mut ctx), "");
            assert!(session.buffered_bytes() < 1024, "{framing}: {}", session.buffered_bytes());
        }
        if chunked {
            assert_eq!(feed(&mut session, b"\r\n0\r\n\r\n", &mut ctx), "");
        }
        let out = feed(&mut session, AFTER, &mut ctx);
        assert!(out.starts_with("HTTP/1.1 200 ") && out.ends_with("behind"), "{framing}: {out}");
    }
}

#[test]
fn expectation_gets_a_100_only_if_the_header_is_accepted() {
    for (path, wanted) in [("/echo", "100 Continue"), ("/checked", "100 Continue"), ("/refused", "403 ")] {
        for framing in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
            let mut ctx = context();
            let mut session = HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ctx.now);
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\nExpect: 100-continue\r\n\r\n");
            let out = feed(&mut session, head.as_bytes(), &mut ctx);
            assert!(out.starts_with(&format!("HTTP/1.1 {wanted}")), "{path} {framing}: {out}");
            assert_eq!(out.contains("Connection: close"), path == "/refused", "{path} {framing}: {out}");
        }
    }
}

#[test]
fn body_of_a_refused_request_must_arrive_at_the_minimum_rate() {
    let mut ctx = context();
    let limits = ctx.limits;
    let at = |millis| crate::clock::Moment::ZERO.plus(std::time::Duration::from_millis(millis));
    let mut session = HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), at(0));
    ctx.now = at(1_000);
    feed(&mut session, b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n", &mut ctx);
    assert_eq!(session.deadline(ctx.now, &limits), at(6_000));
    feed(&mut session, &[b'x'; 2048], &mut ctx);
    assert_eq!(session.deadline(ctx.now, &limits), at(8_000));
    feed(&mut session, &vec![b'x'; 36_000], &mut ctx);
    assert_eq!(session.deadline(ctx.now, &limits), at(31_000));
    // It has its response already.
    ctx.begin_turn(0);
    session.expire(&mut ctx);
    assert_eq!((ctx.out.len(), session.progress()), (0, Progress::Closed));
}

#[test]
fn idle_session_is_small() {
    assert!(size_of::<HttpSession>() <= 160, "{}", size_of::<HttpSession>());
    assert!(size_of::<super::connection::Connection>() <= 320);
}

fn cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

fn run_split(bytes: &[u8], cuts: &[prop::sample::Index]) -> HarnessOutcome {
    let pieces = cut(bytes, cuts);
    run(pieces.iter().map(Vec::as_slice))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn session_outcome_of_corpus_pairs_does_not_depend_on_the_split(
        which in any::<prop::sample::Index>(),
        then in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let cases = corpus();
        let mut bytes = which.get(&cases).request.clone();
        bytes.extend_from_slice(&then.get(&cases).request);
        prop_assert_eq!(run_split(&bytes, &cuts), run([bytes.as_slice()]));
    }

    #[test]
    fn session_outcome_of_mutated_requests_does_not_depend_on_the_split(
        which in any::<prop::sample::Index>(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let cases = corpus();
        let mut bytes = which.get(&cases).request.clone();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(run_split(&bytes, &cuts), run([bytes.as_slice()]));
    }

    #[test]
    fn session_does_not_panic_on_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(run(bytes.chunks(1)), run([bytes.as_slice()]));
    }

    #[test]
    fn chunked_body_is_decoded_with_any_split(
        pieces in prop::collection::vec("[ -~]{1,40}", 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut bytes = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in &pieces {
            bytes.extend(format!("{:X}\r\n{piece}\r\n", piece.len()).bytes());
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let outcome = run_split(&bytes, &cuts);
        prop_assert!(outcome.out.ends_with(&format!("\r\n\r\n{}", pieces.concat())), "{}", outcome.out);
    }
}
