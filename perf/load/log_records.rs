//! Events as OpenTelemetry's log records: one resource for each service.
//!
//! Used by the load generator and by the instruction counts, so that both send the same form.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;

/// Groups records by their service, in the order of the services' names.
pub(crate) fn request(records: impl IntoIterator<Item = (String, LogRecord)>) -> ExportLogsServiceRequest {
    let mut by_service: BTreeMap<String, Vec<LogRecord>> = BTreeMap::new();
    for (service, record) in records {
        by_service.entry(service).or_default().push(record);
    }
    let resource_logs = by_service.into_iter().map(|(service, log_records)| {
        let attributes = vec![attribute(("service.name".into(), service.into()))];
        ResourceLogs {
            resource: Some(Resource { attributes, ..Resource::default() }),
            scope_logs: vec![ScopeLogs { log_records, ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        }
    });
    ExportLogsServiceRequest { resource_logs: resource_logs.collect() }
}

/// A record with the members of a JSON object as its attributes.
pub(crate) fn record(message: String, metadata: &str, nanos: u64) -> LogRecord {
    let attributes = match serde_json::from_str(metadata) {
        Ok(serde_json::Value::Object(members)) => members.into_iter().map(attribute).collect(),
        _ => Vec::new(),
    };
    LogRecord {
        time_unix_nano: nanos,
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
