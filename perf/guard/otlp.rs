//! The corpus as OTLP: batches of log records in protobuf, one resource for each service.

use std::collections::BTreeMap;
use std::hint::black_box;

use aurore_events::http::Headers;
use aurore_events::ingest::{InputPath, parse_request};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::corpus::{self, Body, NOW};
use super::{Work, counted, stages};

/// Bodies of `events` log records each: those of [`corpus::batches`] in the same order, but grouped
/// by service.
pub(super) fn batches(count: usize, events: usize) -> Vec<Body> {
    let fields = corpus::timed_fields(count * events);
    fields.chunks(events).map(|batch| Body { bytes: request(batch).encode_to_vec(), events }).collect()
}

fn request(batch: &[([String; 3], i64)]) -> ExportLogsServiceRequest {
    let mut by_service: BTreeMap<&str, Vec<LogRecord>> = BTreeMap::new();
    for ([service, message, metadata], millis) in batch {
        by_service.entry(service).or_default().push(record(message, metadata, *millis));
    }
    let resource_logs = by_service.into_iter().map(|(service, log_records)| {
        let name = AnyValue { value: Some(Value::StringValue(service.to_owned())) };
        let attributes =
            vec![KeyValue { key: "service.name".into(), value: Some(name), ..KeyValue::default() }];
        ResourceLogs {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_logs: vec![ScopeLogs { log_records, ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        }
    });
    ExportLogsServiceRequest { resource_logs: resource_logs.collect() }
}

fn record(message: &str, metadata: &str, millis: i64) -> LogRecord {
    let message = serde_json::from_str(&format!("\"{message}\"")).expect("a JSON string");
    let attributes = match serde_json::from_str(metadata) {
        Ok(serde_json::Value::Object(members)) => members.into_iter().map(attribute).collect(),
        _ => Vec::new(),
    };
    LogRecord {
        time_unix_nano: millis.cast_unsigned() * 1_000_000,
        body: Some(AnyValue { value: Some(Value::StringValue(message)) }),
        attributes,
        ..LogRecord::default()
    }
}

fn attribute((key, value): (String, serde_json::Value)) -> KeyValue {
    KeyValue { key, value: Some(any_value(value)), ..KeyValue::default() }
}

fn any_value(value: serde_json::Value) -> AnyValue {
    use serde_json::Value as Json;
    let value = match value {
        Json::Null => None,
        Json::Bool(value) => Some(Value::BoolValue(value)),
        Json::Number(number) => Some(match number.as_i64() {
            Some(integer) => Value::IntValue(integer),
            None => Value::DoubleValue(number.as_f64().expect("a number")),
        }),
        Json::String(text) => Some(Value::StringValue(text)),
        Json::Array(values) => {
            Some(Value::ArrayValue(ArrayValue { values: values.into_iter().map(any_value).collect() }))
        }
        Json::Object(members) => {
            Some(Value::KvlistValue(KeyValueList { values: members.into_iter().map(attribute).collect() }))
        }
    };
    AnyValue { value }
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
