//! Bodies of all forms: no bytes panic, each row is one that PostgreSQL takes, what is good as a line is good alone and
//! in an array, the rows add up and the answer is JSON.
#![no_main]

use std::time::Duration;

use aurore_events::clock::Clock;
use aurore_events::event::{METADATA_DEPTH_MAX, Timestamp};
use aurore_events::http::Response;
use aurore_events::http::Coding;
use aurore_events::ingest::{Call, Form, Ingest, Limits};
use aurore_events::event::row;
use serde_json::Value;

const NOW_MS: i64 = 1_790_000_000_000;

#[derive(Debug, PartialEq)]
struct Found {
    accepted: usize,
    rejected: u32,
}

fn decode(ingest: &mut Ingest, form: Form, body: &[u8]) -> Found {
    let call = Call { form, coding: Coding::Identity, key: None, durability: None, services: None };
    let decoded = ingest.decode(call, body, Timestamp::from_millis(NOW_MS));
    let (mut bytes, mut ids) = (0, Vec::new());
    for (block, count) in decoded.blocks() {
        bytes += block.len();
        let before = ids.len();
        for row in row::rows(block) {
            row.check().expect("PostgreSQL takes the texts");
            row.metadata().map(check_metadata);
            ids.push(row.event_id());
        }
        assert_eq!(ids.len() - before, count as usize);
    }
    assert_eq!(bytes, decoded.bytes());
    assert_eq!(ids, decoded.ids());
    assert_eq!(ids.len(), decoded.accepted());
    let mut response = Response::default();
    decoded.answer(&mut response);
    serde_json::from_slice::<Value>(&response.body).expect("an answer is JSON");
    assert_eq!(response.status == 202, decoded.accepted() > 0);
    let found = Found { accepted: decoded.accepted(), rejected: decoded.rejected() };
    let ids = decoded.ids().len();
    // In slices it comes to the same, but for the ids, which are chance.
    let budget = 1 + body.first().map_or(0, |byte| usize::from(*byte) * 4);
    ingest.begin();
    while !ingest.read_on(call, body, Timestamp::from_millis(NOW_MS), budget) {}
    let sliced = ingest.decoded();
    assert_eq!((sliced.ids().len(), sliced.bytes(), sliced.rejected()), (ids, bytes, found.rejected));
    if found.accepted == 0 {
        let mut again = Response::default();
        sliced.answer(&mut again);
        assert_eq!(again.body, response.body);
    }
    found
}

/// What `jsonb` refuses, as another parser reads it.
fn check_metadata(json: &[u8]) {
    fn check(value: &Value, depth: u32) {
        assert!(depth <= METADATA_DEPTH_MAX + 1, "too deep");
        match value {
            Value::String(text) => assert!(!text.contains('\0'), "NUL"),
            Value::Array(values) => values.iter().for_each(|value| check(value, depth + 1)),
            Value::Object(members) => members.iter().for_each(|(name, value)| {
                assert!(!name.contains('\0'), "NUL");
                check(value, depth + 1);
            }),
            Value::Number(number) => check_number(&number.to_string()),
            Value::Null | Value::Bool(_) => {}
        }
    }
    let value: Value = serde_json::from_slice(json).expect("metadata is JSON");
    assert!(value.is_object());
    check(&value, 1);
}

/// The numeric of PostgreSQL has 131,072 digits before the decimal point and 16,383 after it.
fn check_number(text: &str) {
    let text = text.trim_start_matches('-').to_ascii_lowercase();
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let exponent: i64 = exponent.parse().expect("an exponent of sane size");
    let first = format!("{whole}{fraction}").bytes().position(|digit| digit != b'0');
    let before = first.map_or(0, |first| whole.len() as i64 - first as i64 + exponent);
    assert!(before <= 131_072, "{text}");
    assert!(fraction.len() as i64 - exponent <= 16_383, "{text}");
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let limits = Limits {
        clock_skew: Duration::from_secs(300),
        retention: Duration::from_secs(30 * 86_400),
        rows_per_block_max: 3,
        plain_bytes_max: 1 << 20,
    };
    let mut ingest = Ingest::new(limits, Clock::manual(Timestamp::from_millis(NOW_MS), 1).rng());
    decode(&mut ingest, Form::Json, body);
    let lines = decode(&mut ingest, Form::Ndjson, body);
    let mut sum = Found { accepted: 0, rejected: 0 };
    let mut good: Vec<&[u8]> = Vec::new();
    for line in body.split(|byte| *byte == b'\n') {
        let found = decode(&mut ingest, Form::Ndjson, line);
        if found.accepted == 1 {
            good.push(line);
            assert_eq!(decode(&mut ingest, Form::Json, line), found);
        }
        sum.accepted += found.accepted;
        sum.rejected += found.rejected;
    }
    assert_eq!(sum, lines);
    if !good.is_empty() {
        let array = [b"[", good.join(&b","[..]).as_slice(), b"]"].concat();
        assert_eq!(decode(&mut ingest, Form::Json, &array), Found { accepted: good.len(), rejected: 0 });
    }
});
