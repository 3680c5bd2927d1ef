//! The corpus of requests to the routes of events: `tests/corpus/events.txt` describes its form.

use aurore_events::event::{EventId, Timestamp};

use crate::harness::client::request;
use crate::harness::{TestServer, now, wait_for_drain};

#[derive(Default)]
struct Case {
    name: String,
    requests: Vec<CorpusRequest>,
    /// The messages of the stored events, sorted.
    stored: String,
}

#[derive(Default)]
struct CorpusRequest {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
    status: u16,
    contained: Vec<String>,
    absent: Vec<String>,
}

fn corpus() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("../corpus/events.txt").lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            cases.push(Case { name: name.to_owned(), ..Case::default() });
            continue;
        }
        let case = cases.last_mut().expect("a case begins with its name");
        if let Some(messages) = line.strip_prefix("=> ") {
            messages.clone_into(&mut case.stored);
            continue;
        }
        if let Some((method, target)) = line.split_once(" /")
            && method.bytes().all(|byte| byte.is_ascii_uppercase())
        {
            let (method, target) = (method.to_owned(), format!("/{target}"));
            case.requests.push(CorpusRequest { method, target, ..CorpusRequest::default() });
            continue;
        }
        let request = case.requests.last_mut().expect("a request comes first");
        if let Some(bytes) = line.strip_prefix("| ") {
            request.body.push_str(bytes);
        } else if let Some(text) = line.strip_prefix("-! ") {
            request.absent.push(text.to_owned());
        } else if let Some(expected) = line.strip_prefix("-> ") {
            let (status, text) = expected.split_once(' ').unwrap_or((expected, ""));
            request.status = status.parse().expect("a status");
            request.contained.push(text.to_owned());
        } else {
            let (name, value) = line.split_once(": ").expect("a header");
            request.headers.push((name.to_owned(), value.to_owned()));
        }
    }
    cases
}

/// Replaces the names of the corpus.
fn expand(text: &str, case: &str, time: Timestamp) -> String {
    let mut text = text.to_owned();
    while let Some((before, after)) = text.split_once("E(") {
        let (message, after) = after.split_once(')').expect("E(text) is closed");
        text = format!(r#"{before}{{"timestamp":"TIME","service":"CASE","message":"{message}"}}{after}"#);
    }
    let mut id = *EventId::floor(time.millis().cast_unsigned()).bytes();
    (id[6], id[8], id[15]) = (0x70, 0x80, 1);
    let micros = time.micros();
    text.replace("NOW_S", &(micros / 1_000_000).to_string())
        .replace("NOW_US", &micros.to_string())
        .replace("NOW_NS", &(micros * 1000).to_string())
        .replace("NOW", &(micros / 1000).to_string())
        .replace("TIME", &time.to_string())
        .replace("DAY", &time.to_string()[..10])
        .replace("CASE", case)
        .replace("\"ID\"", &format!("\"{}\"", EventId::from_bytes(id)))
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, escape)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let (byte, length) = match escape.as_bytes()[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b't' => (b'\t', 1),
            b'\\' => (b'\\', 1),
            b'x' => (u8::from_str_radix(&escape[1..3], 16).expect("two hexadecimal digits"), 3),
            other => panic!("no escape: {}", char::from(other)),
        };
        bytes.push(byte);
        rest = &escape[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[test]
fn requests_of_the_corpus_are_answered_and_stored_as_expected() {
    let test = TestServer::start(&[("ACCEPTORS", "1")]);
    let mut client = test.server.client();
    let time = now();
    let cases = corpus();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    let mut failures = Vec::new();
    for (nth, case) in cases.iter().enumerate() {
        let name = format!("case-{nth}");
        for sent in &case.requests {
            let headers: Vec<_> = sent
                .headers
                .iter()
                .map(|(header, value)| (header.as_str(), expand(value, &name, time)))
                .collect();
            let headers: Vec<_> = headers.iter().map(|(header, value)| (*header, value.as_str())).collect();
            let body = unescape(&expand(&sent.body, &name, time));
            let target = expand(&sent.target, &name, time);
            let reply = client.exchange(&request(&sent.method, &target, &headers, &body));
            let mut contained = sent.contained.iter().map(|text| expand(text, &name, time));
            if reply.status != sent.status
                || !contained.all(|text| reply.text().contains(&text))
                || sent.absent.iter().any(|text| reply.text().contains(text))
            {
                failures.push(format!("{}: {} {}", case.name, reply.status, reply.text()));
            }
        }
    }
    wait_for_drain(&test.server);
    for (nth, case) in cases.iter().enumerate() {
        let stored: String = test.postgres.value(&format!(
            "SELECT coalesce(string_agg(message, ',' ORDER BY message), '') FROM events \
             WHERE service = 'case-{nth}'"
        ));
        if stored != case.stored {
            failures.push(format!("{}: the events {stored:?} are stored", case.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
