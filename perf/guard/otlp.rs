//! The corpus as OTLP: batches of log records in protobuf, one resource for each service.

use std::hint::black_box;

use aurore_events::http::Headers;
use aurore_events::ingest::{InputPath, parse_request};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message as _;

use super::corpus::{self, Body, NOW};
use super::{Work, counted, stages};

#[path = "../load/log_records.rs"]
mod log_records;

/// Bodies of `events` log records each: those of [`corpus::batches`] in the same order, but grouped
/// by service.
pub(super) fn batches(count: usize, events: usize) -> Vec<Body> {
    let fields = corpus::timed_fields(count * events);
    let body = |batch: &[_]| Body { bytes: request(batch).encode_to_vec(), events };
    fields.chunks(events).map(body).collect()
}

fn request(batch: &[([String; 3], i64)]) -> ExportLogsServiceRequest {
    log_records::request(batch.iter().map(|([service, message, metadata], millis)| {
        let message = serde_json::from_str(&format!("\"{message}\"")).expect("a JSON string");
        (service.clone(), log_records::record(message, metadata, millis.cast_unsigned() * 1_000_000))
    }))
}

/// Bodies to rows. Without the hash of the body, since valgrind has not the instructions for it.
pub(super) fn decode(bodies: &[Body]) -> Work {
    decode_with(bodies, "dedup=none")
}

/// Bodies to rows, with these query parameters.
pub(super) fn decode_with(bodies: &[Body], query: &str) -> Work {
    let mut decoder = stages::decoder();
    let headers = [httparse::Header { name: "Content-Type", value: b"application/x-protobuf" }];
    counted(&mut || {
        for body in bodies {
            let (headers, input) =
                parse_request(InputPath::OtlpLogs, Headers(&headers), query).expect("a valid request");
            let request = decoder.decode_input(input, headers, &body.bytes, NOW);
            assert_eq!(request.accepted(), body.events, "the corpus is valid");
            black_box(request.bytes());
        }
    });
    Work::of(bodies)
}
