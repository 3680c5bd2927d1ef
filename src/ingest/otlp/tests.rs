//! The decoder against the reference encoder of OTLP.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use proptest::prelude::*;
use prost::Message as _;
use serde_json::Value as Json;

use super::*;
use crate::protobuf::encode;

/// An event as the decoder returns it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Decoded {
    pub(super) micros: Option<i64>,
    pub(super) service: String,
    pub(super) message: String,
    pub(super) metadata: Json,
    pub(super) uid: Option<String>,
}

/// Decodes a request in slices of `budget`.
pub(super) fn decode(
    body: &[u8],
    budget: usize,
) -> Result<Vec<Result<Decoded, RecordError>>, ParseProtobufError> {
    let mut reader = OtlpReader::default();
    let mut decoded = Vec::new();
    let mut left = budget;
    loop {
        match reader.read_next(body, &mut left)? {
            ReadStep::Record(record) => decoded.push(record.map(|record| Decoded {
                micros: record.timestamp.map(crate::event::Timestamp::micros),
                service: record.service.to_owned(),
                message: record.message.into_owned(),
                metadata: record.metadata.map_or(Json::Null, |json| serde_json::from_slice(json).unwrap()),
                uid: record.uid.map(|uid| String::from_utf8_lossy(uid).into_owned()),
            })),
            ReadStep::Paused => left = budget,
            ReadStep::End => return Ok(decoded),
        }
    }
}

pub(super) fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(text.to_owned())) }
}

pub(super) fn attribute(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

pub(super) fn request(resource: Vec<KeyValue>, records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource { attributes: resource, ..Resource::default() }),
            scope_logs: vec![ScopeLogs { log_records: records, ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        }],
    }
}

fn decode_one(record: LogRecord) -> Decoded {
    let body = request(vec![attribute("service.name", text("s"))], vec![record]).encode_to_vec();
    let mut decoded = decode(&body, usize::MAX).unwrap();
    assert_eq!(decoded.len(), 1);
    decoded.remove(0).unwrap()
}

#[test]
fn record_becomes_an_event_with_all_its_fields() {
    let decoded = decode_one(LogRecord {
        time_unix_nano: 1_795_435_200_123_456_789,
        observed_time_unix_nano: 7,
        severity_number: 9,
        severity_text: "INFO".into(),
        body: Some(text("order placed")),
        attributes: vec![
            attribute("http.route", text("/a\"b")),
            attribute("log.record.uid", text("u-1")),
            attribute("severity", text("mine")),
            attribute("n", AnyValue { value: Some(Value::IntValue(-5)) }),
            attribute("d", AnyValue { value: Some(Value::DoubleValue(1e300)) }),
            attribute("nan", AnyValue { value: Some(Value::DoubleValue(f64::NAN)) }),
            attribute("inf", AnyValue { value: Some(Value::DoubleValue(f64::NEG_INFINITY)) }),
            attribute("bytes", AnyValue { value: Some(Value::BytesValue(vec![0, 255])) }),
            attribute("null", AnyValue { value: None }),
            attribute("nul", text("a\0b")),
        ],
        dropped_attributes_count: 2,
        flags: 0x101,
        trace_id: (1..=16).collect(),
        span_id: vec![0xab; 8],
        event_name: "placed".into(),
    });
    let expected = serde_json::json!({
        "http.route": "/a\"b", "log.record.uid": "u-1", "attributes": {"severity": "mine"}, "n": -5, "d": 1e300,
        "nan": "NaN", "inf": "-Infinity", "bytes": "AP8=", "null": null, "nul": "a\u{fffd}b",
        "severity": "INFO", "severity_number": 9, "dropped_attributes_count": 2, "trace_flags": 1,
        "trace_id": "0102030405060708090a0b0c0d0e0f10", "span_id": "abababababababab", "event_name": "placed",
    });
    assert_eq!(decoded.metadata, expected);
    assert_eq!((decoded.micros, &*decoded.service), (Some(1_795_435_200_123_456), "s"));
    assert_eq!((&*decoded.message, decoded.uid.as_deref()), ("order placed", Some("u-1")));
}

#[test]
fn message_falls_back_to_the_next_text_that_the_record_has() {
    #[track_caller]
    fn check(record: LogRecord, expected: &str) {
        assert_eq!(decode_one(record).message, expected);
    }
    let body = |value| Some(AnyValue { value: Some(value) });
    let named = LogRecord { event_name: "e".into(), severity_text: "WARN".into(), ..LogRecord::default() };
    check(LogRecord { body: Some(text("m")), ..named.clone() }, "m");
    check(LogRecord { body: Some(text("")), ..named.clone() }, "e");
    check(LogRecord { body: body(Value::IntValue(5)), ..named.clone() }, "5");
    check(LogRecord { body: body(Value::BytesValue(vec![1])), ..named.clone() }, "\"AQ==\"");
    check(LogRecord { body: body(Value::ArrayValue(ArrayValue::default())), ..named.clone() }, "[]");
    let map = KeyValueList { values: vec![attribute("a", text("b")), attribute("c", AnyValue::default())] };
    check(LogRecord { body: body(Value::KvlistValue(map)), ..named.clone() }, r#"{"a":"b","c":null}"#);
    check(LogRecord { body: Some(AnyValue::default()), ..named.clone() }, "e");
    check(LogRecord { event_name: String::new(), ..named }, "WARN");
    check(LogRecord::default(), "(empty log record)");
    assert_eq!(decode_one(LogRecord::default()).metadata, Json::Null);
    let observed = LogRecord { observed_time_unix_nano: 5_000, ..LogRecord::default() };
    assert_eq!(decode_one(observed).micros, Some(5));
    assert_eq!(decode_one(LogRecord::default()).micros, None);
}

#[test]
fn service_is_the_name_of_the_resource() {
    #[track_caller]
    fn check(resource: Vec<KeyValue>, service: &str, metadata: &Json) {
        let body = request(resource, vec![LogRecord::default()]).encode_to_vec();
        let decoded = decode(&body, usize::MAX).unwrap().remove(0).unwrap();
        assert_eq!((&*decoded.service, &decoded.metadata), (service, metadata));
    }
    let name = |name: AnyValue| attribute("service.name", name);
    check(vec![name(text("cart"))], "cart", &Json::Null);
    check(vec![], "unknown_service", &Json::Null);
    check(vec![name(text(""))], "unknown_service", &serde_json::json!({"resource": {"service.name": ""}}));
    check(
        vec![name(AnyValue { value: Some(Value::IntValue(1)) }), attribute("host", text("h"))],
        "unknown_service",
        &serde_json::json!({"resource": {"service.name": 1, "host": "h"}}),
    );
    let long = "é".repeat(51);
    check(
        vec![name(text(&long))],
        &crate::ingest::input::service_name::shorten(&long),
        &serde_json::json!({"resource": {"service.name": long}}),
    );
    let longest = "s".repeat(100);
    check(vec![name(text(&longest))], &longest, &Json::Null);
}

/// A value nested in arrays and maps by turns.
fn nested(depth: usize) -> AnyValue {
    (0..depth).fold(text("x"), |value, level| {
        let value = if level % 2 == 0 {
            Value::ArrayValue(ArrayValue { values: vec![value] })
        } else {
            Value::KvlistValue(KeyValueList { values: vec![attribute("k", value)] })
        };
        AnyValue { value: Some(value) }
    })
}

#[test]
fn bad_record_does_not_affect_its_neighbours() {
    let good = LogRecord { body: Some(text("m")), ..LogRecord::default() };
    let with = |value| LogRecord { attributes: vec![attribute("a", value)], ..good.clone() };
    let extreme = AnyValue { value: Some(Value::DoubleValue(1e308)) };
    let records = vec![
        with(nested(63)),
        with(nested(64)),
        with(nested(90)),
        with(text(&"x".repeat(65_536 - 8))),
        with(text(&"x".repeat(65_536 - 7))),
        with(text(&"\u{1}".repeat(65_000))),
        with(AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: vec![extreme; 257] })) }),
        LogRecord { body: Some(nested(65)), ..good.clone() },
        good,
    ];
    let mut body = request(vec![], records).encode_to_vec();
    // A record that is not a message.
    let mut bad = Vec::new();
    let broken = [(2, &b"\x0f"[..])].map(|(number, bytes)| {
        let mut scope = Vec::new();
        encode::bytes_field(&mut scope, number, bytes);
        encode::bytes_field(&mut scope, number, b"");
        scope
    });
    encode::bytes_field(&mut bad, 2, &broken[0]);
    encode::bytes_field(&mut body, 1, &bad);
    let decoded = decode(&body, usize::MAX).unwrap();
    let errors: Vec<_> = decoded.iter().map(|record| record.as_ref().err().copied()).collect();
    let expected = [
        None,
        Some(RecordError::TooDeep),
        Some(RecordError::TooDeep),
        None,
        Some(RecordError::TooLong(65_536)),
        Some(RecordError::TooLong(65_536)),
        Some(RecordError::ExtremeDoubles),
        Some(RecordError::TooDeep),
        None,
        Some(RecordError::Malformed(ParseProtobufError::WireType)),
        None,
    ];
    assert_eq!(errors, expected);
}

#[test]
fn bad_resource_or_scope_costs_its_own_records_only() {
    let mut bad = request(vec![attribute("a", nested(70))], vec![LogRecord::default(); 2]);
    let good = request(vec![attribute("a", nested(7))], vec![LogRecord::default()]);
    let scope = InstrumentationScope { attributes: vec![attribute("a", nested(62))], ..Default::default() };
    let mut scoped = request(vec![], vec![LogRecord::default()]);
    scoped.resource_logs[0].scope_logs[0].scope = Some(scope);
    scoped.resource_logs[0]
        .scope_logs
        .push(ScopeLogs { log_records: vec![LogRecord::default()], ..Default::default() });
    bad.resource_logs.extend(good.resource_logs);
    bad.resource_logs.extend(scoped.resource_logs);
    let decoded = decode(&bad.encode_to_vec(), usize::MAX).unwrap();
    let failed: Vec<_> = decoded.iter().map(Result::is_err).collect();
    assert_eq!(failed, [true, true, false, true, false]);
}

#[test]
fn resource_and_scope_count_wherever_they_stand() {
    let (mut scope_logs, mut resource_logs, mut body) = (Vec::new(), Vec::new(), Vec::new());
    encode::bytes_field(
        &mut scope_logs,
        2,
        &LogRecord { body: Some(text("m")), ..Default::default() }.encode_to_vec(),
    );
    let scope = InstrumentationScope { name: "lib".into(), version: "1".into(), ..Default::default() };
    encode::bytes_field(&mut scope_logs, 1, &scope.encode_to_vec());
    encode::varint_field(&mut scope_logs, 99, 5);
    encode::bytes_field(&mut resource_logs, 2, &scope_logs);
    for (key, value) in [("service.name", "late"), ("host", "h")] {
        let part = Resource { attributes: vec![attribute(key, text(value))], ..Default::default() };
        encode::bytes_field(&mut resource_logs, 1, &part.encode_to_vec());
    }
    encode::bytes_field(&mut body, 1, &resource_logs);
    for budget in [1, 10, usize::MAX] {
        let decoded = decode(&body, budget).unwrap().remove(0).unwrap();
        assert_eq!(decoded.service, "late");
        let expected =
            serde_json::json!({"scope": {"name": "lib", "version": "1"}, "resource": {"host": "h"}});
        assert_eq!(decoded.metadata, expected);
    }
    let many = [0x0a, 0].repeat(PARTS_MAX + 1);
    let mut body = Vec::new();
    encode::bytes_field(&mut body, 1, &many);
    assert_eq!(decode(&body, usize::MAX), Err(ParseProtobufError::WrongType));
    assert_eq!(decode(b"", 1), Ok(vec![]));
}

/// The value as JSON, by the rules of the documentation.
fn json_of(value: &AnyValue) -> Json {
    match &value.value {
        None => Json::Null,
        Some(Value::StringValue(text)) => Json::String(text.replace('\0', "\u{fffd}")),
        Some(Value::BoolValue(value)) => Json::Bool(*value),
        Some(Value::IntValue(value)) => (*value).into(),
        Some(Value::DoubleValue(value)) => {
            serde_json::Number::from_f64(*value).map_or_else(|| non_finite(*value).into(), Json::Number)
        }
        Some(Value::BytesValue(bytes)) => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(bytes).into()
        }
        Some(Value::ArrayValue(array)) => array.values.iter().map(json_of).collect(),
        Some(Value::KvlistValue(map)) => json_of_members(&map.values),
        Some(other) => panic!("{other:?} is not generated"),
    }
}

fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    }
}

fn json_of_members(members: &[KeyValue]) -> Json {
    let value = |member: &KeyValue| member.value.as_ref().map_or(Json::Null, json_of);
    members.iter().map(|member| (member.key.replace('\0', "\u{fffd}"), value(member))).collect()
}

/// Adds a member unless its value is empty.
fn add(members: &mut serde_json::Map<String, Json>, name: &str, value: Json) {
    let is_empty = match &value {
        Json::Null => true,
        Json::String(text) => text.is_empty(),
        Json::Number(number) => number.as_i64() == Some(0),
        Json::Object(members) => members.is_empty(),
        Json::Bool(_) | Json::Array(_) => false,
    };
    if !is_empty {
        members.insert(name.to_owned(), value);
    }
}

fn hex(bytes: &[u8]) -> Json {
    if bytes.iter().all(|byte| *byte == 0) {
        return Json::Null;
    }
    bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}")).into()
}

fn expected_of(resource: &ResourceLogs, scope: &ScopeLogs, record: &LogRecord) -> Decoded {
    let replaced = |text: &str| text.replace('\0', "\u{fffd}");
    let mut resource_json = resource.resource.as_ref().map_or(Json::Null, |r| json_of_members(&r.attributes));
    let names = resource.resource.iter().flat_map(|resource| &resource.attributes);
    let name =
        names.filter(|name| name.key == "service.name").find_map(|name| match &name.value.as_ref()?.value {
            Some(Value::StringValue(name)) if !name.is_empty() => Some(replaced(name)),
            _ => None,
        });
    let service = name.unwrap_or_else(|| "unknown_service".to_owned());
    if service != "unknown_service" {
        resource_json.as_object_mut().unwrap().remove("service.name");
    }
    let mut scope_json = serde_json::Map::new();
    if let Some(scope) = &scope.scope {
        add(&mut scope_json, "name", replaced(&scope.name).into());
        add(&mut scope_json, "version", replaced(&scope.version).into());
        add(&mut scope_json, "attributes", json_of_members(&scope.attributes));
    }
    let Json::Object(mut metadata) = json_of_members(&record.attributes) else { unreachable!() };
    add(&mut metadata, "severity", replaced(&record.severity_text).into());
    add(&mut metadata, "severity_number", record.severity_number.into());
    add(&mut metadata, "event_name", replaced(&record.event_name).into());
    add(&mut metadata, "trace_flags", (record.flags & 0xff).into());
    add(&mut metadata, "dropped_attributes_count", record.dropped_attributes_count.into());
    add(&mut metadata, "trace_id", hex(&record.trace_id));
    add(&mut metadata, "span_id", hex(&record.span_id));
    add(&mut metadata, "scope", Json::Object(scope_json));
    add(&mut metadata, "resource", resource_json);
    let body = record.body.clone().unwrap_or_default();
    let candidates = [
        match json_of(&body) {
            Json::Null => String::new(),
            Json::String(text) if !matches!(body.value, Some(Value::StringValue(_))) => format!("\"{text}\""),
            Json::String(text) => text,
            other @ (Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_)) => other.to_string(),
        },
        replaced(&record.event_name),
        replaced(&record.severity_text),
        "(empty log record)".to_owned(),
    ];
    let time = [record.time_unix_nano, record.observed_time_unix_nano].into_iter().find(|nanos| *nanos > 0);
    Decoded {
        micros: time.map(|nanos| i64::try_from(nanos / 1000).unwrap()),
        service,
        message: candidates.into_iter().find(|text| !text.is_empty()).unwrap(),
        metadata: if metadata.is_empty() { Json::Null } else { Json::Object(metadata) },
        uid: record.attributes.iter().find(|a| a.key == "log.record.uid").and_then(|a| {
            match &a.value.as_ref()?.value {
                Some(Value::StringValue(text)) if !text.is_empty() => Some(text.clone()),
                _ => None,
            }
        }),
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![3 => "[a-z.]{0,8}", 1 => "\\PC{0,12}", 1 => "[\\x00-\\x1f\"\\\\é😀]{0,6}"]
}

pub(super) fn any_value() -> impl Strategy<Value = AnyValue> {
    let scalar = prop_oneof![
        any_text().prop_map(Value::StringValue),
        any::<bool>().prop_map(Value::BoolValue),
        any::<i64>().prop_map(Value::IntValue),
        any::<f64>().prop_map(Value::DoubleValue),
        prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0)]
            .prop_map(Value::DoubleValue),
        prop::collection::vec(any::<u8>(), 0..9).prop_map(Value::BytesValue),
    ];
    let value = prop::option::weighted(0.95, scalar).prop_map(|value| AnyValue { value });
    value.prop_recursive(6, 24, 4, |inner| {
        let array = prop::collection::vec(inner.clone(), 0..4)
            .prop_map(|values| Value::ArrayValue(ArrayValue { values }));
        let map = attributes(inner).prop_map(|values| Value::KvlistValue(KeyValueList { values }));
        prop_oneof![array, map].prop_map(|value| AnyValue { value: Some(value) })
    })
}

/// Attributes with unique keys, some of which have names with a meaning.
fn attributes(value: impl Strategy<Value = AnyValue>) -> impl Strategy<Value = Vec<KeyValue>> {
    let key = prop_oneof![6 => "[a-z]{2}[a-z.]{0,6}\\.", 1 => "[\\x00-\\x1f\"\\\\é😀]{1,6}",
        1 => Just("service.name".to_owned()), 1 => Just("log.record.uid".to_owned())];
    prop::collection::vec((key, value), 0..5).prop_map(|members| {
        let unique: BTreeMap<String, AnyValue> =
            members.into_iter().map(|(key, value)| (key.replace('\0', "\u{fffd}"), value)).collect();
        unique.into_iter().map(|(key, value)| attribute(&key, value)).collect()
    })
}

fn any_record() -> impl Strategy<Value = LogRecord> {
    let ids = (prop::collection::vec(any::<u8>(), 0..17), prop::collection::vec(any::<u8>(), 0..9));
    let texts = (any_text(), any_text());
    let numbers = (0..25_i32, any::<u32>(), any::<u32>(), prop_oneof![Just(0), any::<u64>()], any::<u64>());
    (ids, texts, numbers, prop::option::of(any_value()), attributes(any_value())).prop_map(
        |((trace_id, span_id), (severity_text, event_name), numbers, body, attributes)| LogRecord {
            severity_number: numbers.0,
            flags: numbers.1,
            dropped_attributes_count: numbers.2,
            time_unix_nano: numbers.3,
            observed_time_unix_nano: numbers.4,
            severity_text,
            event_name,
            body,
            attributes,
            trace_id,
            span_id,
        },
    )
}

pub(super) fn any_request() -> impl Strategy<Value = ExportLogsServiceRequest> {
    let scope = (any_text(), any_text(), attributes(any_value())).prop_map(|(name, version, attributes)| {
        InstrumentationScope { name, version, attributes, ..Default::default() }
    });
    let scope_logs = (prop::option::of(scope), prop::collection::vec(any_record(), 0..4))
        .prop_map(|(scope, log_records)| ScopeLogs { scope, log_records, schema_url: "s".into() });
    let resource =
        attributes(any_value()).prop_map(|attributes| Resource { attributes, ..Default::default() });
    let resource_logs = (prop::option::of(resource), prop::collection::vec(scope_logs, 0..3))
        .prop_map(|(resource, scope_logs)| ResourceLogs { resource, scope_logs, schema_url: "r".into() });
    prop::collection::vec(resource_logs, 0..3)
        .prop_map(|resource_logs| ExportLogsServiceRequest { resource_logs })
}

/// The events that the request must become.
pub(super) fn expected_events(request: &ExportLogsServiceRequest) -> Vec<Decoded> {
    let scopes = request.resource_logs.iter().flat_map(|r| r.scope_logs.iter().map(move |s| (r, s)));
    scopes.flat_map(|(r, s)| s.log_records.iter().map(move |record| expected_of(r, s, record))).collect()
}

/// JSON that differs only in how a number is written is equal.
pub(super) fn comparable(events: Vec<Decoded>) -> Vec<String> {
    let shown = |event: Decoded| {
        let message = serde_json::from_str::<Json>(&event.message).ok();
        format!(
            "{message:?} {event:?}",
            event =
                Decoded { message: if message.is_some() { String::new() } else { event.message }, ..event }
        )
    };
    events.into_iter().map(|event| shown(event).replace("Number(-0.0)", "Number(0.0)")).collect()
}

fn transcode(body: &[u8], budget: usize) -> Result<Vec<u8>, String> {
    let mut transcoder = JsonTranscoder::default();
    while !transcoder.transcode_slice(body, budget).map_err(|error| error.to_string())? {}
    Ok(transcoder.transcoded().to_vec())
}

/// Decodes one record in JSON.
#[track_caller]
fn decode_json_record(record: &str) -> Result<Decoded, RecordError> {
    let good = r#"{"body":{"stringValue":"good"}}"#;
    let body = format!(
        r#"{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{good},{record},{good}]}}],"resource":null}}]}}"#
    );
    let mut decoded = decode(&transcode(body.as_bytes(), usize::MAX).unwrap(), usize::MAX).unwrap();
    assert_eq!(decoded.len(), 3);
    assert!(decoded[0].is_ok() && decoded[2].is_ok(), "the neighbours are accepted");
    decoded.remove(1)
}

#[test]
fn json_record_has_the_mapping_of_otlp() {
    let decoded = decode_json_record(
        r#"{ "timeUnixNano" : "1795435200123456789", "severityNumber":9,"severityText":"IN\u0046O",
            "traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174","flags":1,"unknown":{"a":[1]},
            "droppedAttributesCount":null,"body":{"kvlistValue":{"values":[{"key":"a","value":{"intValue":"-5"}}]}},
            "attributes":[{"key":"n","value":{"intValue":7}},{"key":"d","value":{"doubleValue":1}},
            {"key":"nan","value":{"doubleValue":"NaN"}},{"key":"b","value":{"bytesValue":"-_8"}},
            {"key":"t","value":{"boolValue":true}},{"key":"e","value":{}},{"key":"l","value":{"arrayValue":{"values":[
            {"stringValue":"\ud800"},{"arrayValue":{}}]}}}]}"#,
    )
    .unwrap();
    let expected = serde_json::json!({
        "n": 7, "d": 1.0, "nan": "NaN", "b": "+/8=", "t": true, "e": null, "l": ["\u{fffd}", []],
        "severity": "INFO", "severity_number": 9, "trace_flags": 1,
        "trace_id": "5b8efff798038103d269b633813fc60c", "span_id": "eee19b7ec3c1b174",
    });
    assert_eq!(decoded.metadata, expected);
    assert_eq!((decoded.micros, &*decoded.message), (Some(1_795_435_200_123_456), r#"{"a":-5}"#));
}

#[test]
fn json_value_of_the_wrong_type_costs_its_record_only() {
    for wrong in [
        r#"{"timeUnixNano":"soon"}"#,
        r#"{"timeUnixNano":-1}"#,
        r#"{"timeUnixNano":184467440737095516160}"#,
        r#"{"traceId":"abc"}"#,
        r#"{"traceId":"zz"}"#,
        r#"{"traceId":5}"#,
        r#"{"body":"text"}"#,
        r#"{"body":{"stringValue":5}}"#,
        r#"{"body":{"boolValue":"true"}}"#,
        r#"{"body":{"bytesValue":"?"}}"#,
        r#"{"body":{"doubleValue":"1;2"}}"#,
        r#"{"attributes":{}}"#,
        r#"{"attributes":[5]}"#,
        r#"{"attributes":[{"key":"a","value":[]}]}"#,
        "5",
        "null",
    ] {
        assert!(decode_json_record(wrong).is_err(), "{wrong}");
    }
    let deep =
        format!(r#"{{"body":{}5{}}}"#, r#"{"arrayValue":{"values":["#.repeat(10_000), "]}}".repeat(10_000));
    assert!(decode_json_record(&deep.replace("[5]", "[]")).is_err());
}

#[test]
fn json_value_of_the_wrong_type_costs_its_resource_or_scope_only() {
    // What is before and after the wrong value is in other resources.
    let good =
        r#"{"resource":{"attributes":[]},"scopeLogs":[{"logRecords":[{"body":{"stringValue":"good"}}]}]}"#;
    let records = r#"[{"body":{"stringValue":"a"}},{"body":{"stringValue":"b"}}]"#;
    for (wrong, rejected) in [
        (r#"{"resource":5,"scopeLogs":[{"logRecords":RECORDS}]}"#, 2),
        (r#"{"resource":{"attributes":[5]},"scopeLogs":[{"logRecords":RECORDS}]}"#, 2),
        (r#"{"scopeLogs":[{"logRecords":RECORDS}],"resource":{"attributes":"a"}}"#, 2),
        (r#"{"scopeLogs":[{"scope":{"name":5},"logRecords":RECORDS}]}"#, 2),
        (r#"{"scopeLogs":[{"scope":[],"logRecords":RECORDS}]}"#, 2),
        (r#"{"scopeLogs":[{"logRecords":{"a":RECORDS}}]}"#, 1),
        (r#"{"scopeLogs":[RECORDS]}"#, 1),
        (r#"{"scopeLogs":"a"}"#, 1),
        ("5", 1),
        ("null", 1),
    ] {
        let body = format!(r#"{{"resourceLogs":[{good},{},{good}]}}"#, wrong.replace("RECORDS", records));
        for budget in [1, usize::MAX] {
            let transcoded = transcode(body.as_bytes(), budget).unwrap();
            let decoded = decode(&transcoded, usize::MAX).unwrap();
            assert_eq!(decoded.len(), rejected + 2, "{wrong}");
            assert!(decoded[0].is_ok() && decoded[rejected + 1].is_ok(), "{wrong}");
            assert!(decoded[1..=rejected].iter().all(Result::is_err), "{wrong}");
        }
    }
    // Another scope of the same resource.
    let body = format!(
        r#"{{"resourceLogs":[{{"scopeLogs":[{{"scope":{{"version":[]}},"logRecords":{records}}},{{"logRecords":{records}}}]}}]}}"#
    );
    let decoded = decode(&transcode(body.as_bytes(), usize::MAX).unwrap(), usize::MAX).unwrap();
    assert_eq!(decoded.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, true, true]);
}

#[test]
fn body_that_is_not_a_request_in_json_is_refused() {
    #[track_caller]
    fn check(body: &str, part: &str) {
        for budget in [1, usize::MAX] {
            let error = transcode(body.as_bytes(), budget).unwrap_err();
            assert!(error.contains(part), "{body}: {error}");
        }
    }
    check("", "unexpected end of JSON");
    check("[]", "wrong type at byte 0");
    check("{", "unexpected end");
    check("{}{}", "unexpected data");
    check(r#"{"resourceLogs":{}}"#, "wrong type at byte 16");
    check(r#"{"resourceLogs":[{}}"#, "',' or ']' was expected");
    check(r#"{"resourceLogs":[{}],}"#, "field name");
    check(r#"{"a" 1}"#, "':' was expected");
    assert_eq!(transcode(b" {} ", 1), Ok(vec![]));
    assert_eq!(transcode(br#"{"resourceLogs":[]}"#, 1), Ok(vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn decoder_reads_the_fields_of_any_request_that_the_reference_encodes(
        request in any_request(), budget in prop_oneof![Just(usize::MAX), 1_usize..300],
    ) {
        let decoded = decode(&request.encode_to_vec(), budget).unwrap();
        let decoded = decoded.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        prop_assert_eq!(comparable(decoded), comparable(expected_events(&request)));
    }

    #[test]
    fn json_of_the_reference_becomes_the_same_events(
        request in any_request(), budget in prop_oneof![Just(usize::MAX), 1_usize..100],
    ) {
        // The reference writes doubles that are not finite as null.
        let shown = format!("{request:?}");
        prop_assume!(!shown.contains("NaN") && !shown.contains("inf"));
        let json = serde_json::to_vec(&request).unwrap();
        let transcoded = transcode(&json, budget).unwrap();
        let decoded = decode(&transcoded, usize::MAX).unwrap();
        let decoded = decoded.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        prop_assert_eq!(comparable(decoded), comparable(expected_events(&request)));
    }

    #[test]
    fn transcoder_ends_on_any_text_with_the_same_result_in_slices(
        request in any_request(), changes in prop::collection::vec((any::<prop::sample::Index>(), 0x20_u8..0x7f), 0..4),
        budget in 1_usize..100,
    ) {
        let mut json = serde_json::to_string(&request).unwrap().replace(|c: char| !c.is_ascii(), "?").into_bytes();
        for (at, byte) in changes {
            let at = at.index(json.len());
            json[at] = byte;
        }
        let whole = transcode(&json, usize::MAX);
        prop_assert_eq!(&transcode(&json, budget), &whole);
        if let Ok(transcoded) = whole {
            prop_assert!(decode(&transcoded, usize::MAX).is_ok());
            prop_assert!(transcoded.len() <= 2 * json.len());
        }
    }

    #[test]
    fn decoder_ends_on_any_bytes_with_the_same_result_in_slices(
        request in any_request(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(), budget in 1_usize..100,
    ) {
        let mut body = request.encode_to_vec();
        if !body.is_empty() {
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if cut.index(4) == 0 {
                body.truncate(cut.index(body.len()));
            }
        }
        let whole = format!("{:?}", decode(&body, usize::MAX));
        prop_assert_eq!(format!("{:?}", decode(&body, budget)), whole);
    }
}
