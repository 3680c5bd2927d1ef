//! OTLP and Loki bodies in protobuf and JSON: the decoders never panic, PostgreSQL accepts each row,
//! the counts add up, and slicing does not change the outcome.
#![no_main]

mod decoder;

use aurore_events::event::{METADATA_DEPTH_MAX, row};
use aurore_events::http::{Headers, Response};
use aurore_events::ingest::{IngestDecoder, InputPath, parse_request};
use decoder::NOW;
use serde_json::Value;

const PROTOBUF: &[u8] = b"application/x-protobuf";
const JSON: &[u8] = b"application/json";

/// The rows without their arrival numbers, the number of rejected records, and the status.
type Outcome = (Vec<(Vec<u8>, Vec<u8>, Option<Vec<u8>>)>, u32, u16);

fn decode(ingest: &mut IngestDecoder, path: InputPath, content_type: &[u8], body: &[u8], budget: usize) -> Outcome {
    let headers = [httparse::Header { name: "Content-Type", value: content_type }];
    let (headers, input) = parse_request(path, Headers(&headers), "").expect("the type is supported");
    ingest.begin(input);
    while !ingest.decode_slice(headers, body, NOW, budget) {}
    let decoded = ingest.decoded();
    let mut rows = Vec::new();
    for (block, count) in decoded.blocks() {
        let before = rows.len();
        for row in row::rows(block) {
            row.validate_text().expect("PostgreSQL accepts the text fields");
            if let Some(metadata) = row.metadata() {
                check(&serde_json::from_slice(metadata).expect("metadata is JSON"), 1);
            }
            rows.push((row.service().to_vec(), row.message().to_vec(), row.metadata().map(<[u8]>::to_vec)));
        }
        assert_eq!(rows.len() - before, count as usize);
    }
    assert_eq!(rows.len(), decoded.accepted());
    let mut response = Response::default();
    decoded.write_response(&[], &mut response);
    (rows, decoded.rejected(), response.status)
}

fn check(value: &Value, depth: u32) {
    assert!(depth <= METADATA_DEPTH_MAX + 1, "too deep");
    match value {
        Value::String(text) => assert!(!text.contains('\0'), "NUL"),
        Value::Array(values) => values.iter().for_each(|value| check(value, depth + 1)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            assert!(!name.contains('\0'), "NUL");
            check(value, depth + 1);
        }),
        Value::Number(_) | Value::Null | Value::Bool(_) => {}
    }
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let mut ingest = decoder::decoder();
    let budget = 1 + body.first().map_or(0, |byte| usize::from(*byte) * 4);
    for (path, content_type) in [
        (InputPath::OtlpLogs, PROTOBUF),
        (InputPath::OtlpLogs, JSON),
        (InputPath::LokiPush, PROTOBUF),
        (InputPath::LokiPush, JSON),
    ] {
        let whole = decode(&mut ingest, path, content_type, body, usize::MAX);
        assert_eq!(decode(&mut ingest, path, content_type, body, budget), whole);
    }
});
