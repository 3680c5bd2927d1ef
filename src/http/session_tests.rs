//! The conversation without a socket: the corpus, and that no split of the bytes changes an answer.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::rehearsal::{Outcome, desk, speak};
use super::session::Session;

pub(super) struct Case {
    pub(super) name: String,
    pub(super) request: Vec<u8>,
    pub(super) statuses: Vec<u16>,
    over: bool,
}

pub(super) fn corpus() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("../../tests/corpus/http.txt").lines() {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case { name: name.into(), request: Vec::new(), statuses: Vec::new(), over: false });
        } else if let Some(wanted) = line.strip_prefix("->") {
            let case = cases.last_mut().unwrap();
            for word in wanted.split_whitespace() {
                match word {
                    "open" => case.over = false,
                    "closed" => case.over = true,
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

/// Requests answered well, put before and behind each case.
const BEFORE: &[u8] = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nbefore";
const BEHIND: &[u8] = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nbehind";

/// Speaks `bytes` whole, byte by byte, and cut once at every offset (of a long case, at every 61st), and sees to it
/// that all of it is answered in the same way.
#[track_caller]
fn speak_in_all_ways(bytes: &[u8], what: &str) -> Outcome {
    let whole = speak([bytes]);
    assert_eq!(speak(bytes.chunks(1)), whole, "{what}, byte by byte");
    let step = if bytes.len() < 1500 { 1 } else { 61 };
    for at in (1..bytes.len()).step_by(step) {
        let (head, tail) = bytes.split_at(at);
        assert_eq!(speak([head, tail]), whole, "{what}, cut at {at}");
    }
    whole
}

#[test]
fn every_case_of_the_corpus_is_answered_as_wanted_however_it_is_cut() {
    let cases = corpus();
    assert!(cases.len() >= 250, "only {} cases", cases.len());
    for case in &cases {
        let whole = speak_in_all_ways(&case.request, &case.name);
        assert_eq!(whole.statuses, case.statuses, "{}: {}", case.name, whole.out);
        assert_eq!(whole.over, case.over, "{}: {}", case.name, whole.out);
    }
}

#[test]
fn every_case_of_the_corpus_leaves_the_requests_before_and_behind_it_alone() {
    for case in corpus() {
        let alone = speak([case.request.as_slice()]);
        let mut wanted = vec![200];
        wanted.extend(&case.statuses);
        if alone.done {
            wanted.push(200);
        }
        // Behind a case that waits for more, anything would be taken for it.
        let behind = if alone.done || alone.over { BEHIND } else { b"" };
        let found = speak_in_all_ways(&[BEFORE, &case.request, behind].concat(), &case.name);
        assert_eq!(found.statuses, wanted, "{}: {}", case.name, found.out);
        assert!(found.out.contains("\r\n\r\nbefore") && found.over == case.over, "{}", case.name);
        assert_eq!(found.out.ends_with("\r\n\r\nbehind"), alone.done, "{}: {}", case.name, found.out);
    }
}

#[test]
fn what_takes_several_turns_is_answered_in_its_place_however_it_is_cut() {
    let whole = b"POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nwhole".as_slice();
    let chunked = b"POST /long HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nin\r\n0\r\n\r\n"
        .as_slice();
    let last = b"GET /long HTTP/1.0\r\n\r\n".as_slice();
    let said = [BEFORE, whole, whole, chunked, BEHIND, chunked, last, BEHIND].concat();
    let outcome = speak_in_all_ways(&said, "long");
    assert_eq!(outcome.statuses, [200; 7]);
    assert!(outcome.over && outcome.out.matches("\r\n\r\nwhole").count() == 2, "{}", outcome.out);
}

#[test]
fn a_body_of_8_mib_is_taken_and_none_above() {
    let head = b"POST /nothing HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice();
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    let last = b"0\r\n\r\n".as_slice();
    let full: Vec<&[u8]> = [head].into_iter().chain([chunk.as_bytes(); 8]).chain([last]).collect();
    assert_eq!(speak(full).statuses, [404]);
    let above: Vec<&[u8]> =
        [head].into_iter().chain([chunk.as_bytes(); 8]).chain([b"1\r\nx\r\n".as_slice()]).collect();
    assert_eq!(speak(above).statuses, [413]);
}

#[test]
fn the_time_of_a_header_runs_from_its_first_byte_and_that_of_a_body_with_its_bytes() {
    let mut desk = desk();
    let limits = desk.limits;
    let at = |millis| crate::clock::Moment::ZERO.plus(std::time::Duration::from_millis(millis));
    let mut session = Session::new(IpAddr::V4(Ipv4Addr::LOCALHOST), at(0));
    assert_eq!(session.deadline(at(0), &limits), at(75_000));
    let body = vec![b'x'; 40_000];
    for (millis, bytes, deadline) in [
        (1_000, b"POST / HTTP/1.1\r\n".as_slice(), 11_000),
        (9_000, b"Host: a\r\nContent-Length: 40000\r\n", 11_000),
        // 5 s of grace and a second for each KiB, the header counted in.
        (10_000, b"\r\n", 10_000 + 5_000 + 51_000 / 1024),
        (11_000, &body[..10_189], 10_000 + 5_000 + 10_000),
        // 30 s in all.
        (12_000, &body[..29_000], 10_000 + 30_000),
        (13_000, &body[..811], 13_000 + 75_000),
        (14_000, b"\r", 24_000),
    ] {
        desk.now = at(millis);
        desk.begin(0);
        session.take(bytes, &mut desk);
        let found = session.deadline(desk.now, &limits).nanos() / 1_000_000;
        assert_eq!(found, deadline, "at {millis}");
    }
}

#[test]
fn a_body_that_finds_no_room_is_turned_away_and_a_small_one_is_not() {
    let mut desk = desk();
    desk.limits.held_bytes_max = 100_000;
    for (held, claimed, sent, expected) in [
        (60_000, 50_000, 41_000, 503),
        (60_000, 50_000, 30_000, 0),
        (90_000, 50_000, 9_000, 0),
        (100_000, 9_000, 9_000, 200),
    ] {
        desk.held = held;
        desk.begin(0);
        let mut session = Session::new(IpAddr::V4(Ipv4Addr::LOCALHOST), desk.now);
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {claimed}\r\n\r\n");
        session.take(&[head.as_bytes(), &vec![b'x'; sent]].concat(), &mut desk);
        let status = desk.out.get(9..12).map_or(0, |digits| str::from_utf8(digits).unwrap().parse().unwrap());
        assert_eq!(status, expected, "{held} {sent}");
    }
}

#[test]
fn an_idle_session_holds_no_buffer_and_is_small() {
    assert!(size_of::<Session>() <= 160, "{}", size_of::<Session>());
    assert!(size_of::<super::connection::Connection>() <= 320);
}

fn cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Vec<u8>> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
}

fn speak_cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Outcome {
    let pieces = cut(bytes, cuts);
    speak(pieces.iter().map(Vec::as_slice))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_split_of_the_corpus_changes_an_answer(
        which in any::<prop::sample::Index>(),
        then in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let cases = corpus();
        let mut bytes = which.get(&cases).request.clone();
        bytes.extend_from_slice(&then.get(&cases).request);
        prop_assert_eq!(speak_cut(&bytes, &cuts), speak([bytes.as_slice()]));
    }

    #[test]
    fn a_mutated_request_neither_panics_nor_depends_on_its_split(
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
        prop_assert_eq!(speak_cut(&bytes, &cuts), speak([bytes.as_slice()]));
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(speak(bytes.chunks(1)), speak([bytes.as_slice()]));
    }

    #[test]
    fn a_body_comes_out_of_its_chunks_whole(
        pieces in prop::collection::vec("[ -~]{1,40}", 0..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let mut bytes = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for piece in &pieces {
            bytes.extend(format!("{:X}\r\n{piece}\r\n", piece.len()).bytes());
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let outcome = speak_cut(&bytes, &cuts);
        prop_assert!(outcome.out.ends_with(&format!("\r\n\r\n{}", pieces.concat())), "{}", outcome.out);
    }
}
