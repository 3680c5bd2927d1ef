//! Event bodies in all formats: the decoder never panics, PostgreSQL accepts each row, a valid line
//! is also valid alone and in an array, the counts add up, and the response is JSON.
#![no_main]

mod decoder;

use aurore_events::event::row;
use aurore_events::event::METADATA_DEPTH_MAX;
use aurore_events::http::ContentCoding;
use aurore_events::http::Response;
use aurore_events::ingest::{BodyFormat, IngestDecoder, IngestHeaders};
use decoder::NOW;
use serde_json::Value;

#[derive(Debug, PartialEq)]
struct Outcome {
    accepted: usize,
    rejected: u32,
}

fn decode(ingest: &mut IngestDecoder, format: BodyFormat, body: &[u8]) -> Outcome {
    let headers = IngestHeaders {
        format,
        coding: ContentCoding::Identity,
        key: None,
        durability: None,
        services: None,
        keeps_ids: false,
    };
    let decoded = ingest.decode(headers, body, NOW);
    let (mut bytes, mut ids) = (0, Vec::new());
    for (block, count) in decoded.blocks() {
        bytes += block.len();
        let before = ids.len();
        for row in row::rows(block) {
            row.validate_text().expect("PostgreSQL accepts the text fields");
            row.metadata().map(check_metadata);
            ids.push(row.event_id());
        }
        assert_eq!(ids.len() - before, count as usize);
    }
    assert_eq!(bytes, decoded.bytes());
    assert_eq!(ids, decoded.ids());
    assert_eq!(ids.len(), decoded.accepted());
    let mut response = Response::default();
    decoded.write_response(&[], &mut response);
    serde_json::from_slice::<Value>(&response.body).expect("a response is JSON");
    assert_eq!(response.status == 202, decoded.accepted() > 0);
    let outcome = Outcome { accepted: decoded.accepted(), rejected: decoded.rejected() };
    let ids = decoded.ids().len();
    // Slicing does not change the outcome, except for the random ids.
    let budget = 1 + body.first().map_or(0, |byte| usize::from(*byte) * 4);
    ingest.begin(None);
    while !ingest.decode_slice(headers, body, NOW, budget) {}
    let sliced = ingest.decoded();
    assert_eq!((sliced.ids().len(), sliced.bytes(), sliced.rejected()), (ids, bytes, outcome.rejected));
    if outcome.accepted == 0 {
        let mut again = Response::default();
        sliced.write_response(&[], &mut again);
        assert_eq!(again.body, response.body);
    }
    outcome
}

/// Checks with another parser that the metadata contains nothing that `jsonb` refuses.
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

/// PostgreSQL's `numeric` has at most 131,072 digits before the decimal point and 16,383 after it.
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
    let mut ingest = decoder::decoder();
    decode(&mut ingest, BodyFormat::Json, body);
    let lines = decode(&mut ingest, BodyFormat::Ndjson, body);
    let mut sum = Outcome { accepted: 0, rejected: 0 };
    let mut valid: Vec<&[u8]> = Vec::new();
    for line in body.split(|byte| *byte == b'\n') {
        let outcome = decode(&mut ingest, BodyFormat::Ndjson, line);
        if outcome.accepted == 1 {
            valid.push(line);
            assert_eq!(decode(&mut ingest, BodyFormat::Json, line), outcome);
        }
        sum.accepted += outcome.accepted;
        sum.rejected += outcome.rejected;
    }
    assert_eq!(sum, lines);
    if !valid.is_empty() {
        let array = [b"[", valid.join(&b","[..]).as_slice(), b"]"].concat();
        assert_eq!(
            decode(&mut ingest, BodyFormat::Json, &array),
            Outcome { accepted: valid.len(), rejected: 0 }
        );
    }
});
