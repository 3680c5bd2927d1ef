//! `POST /v1/logs` and Loki's push in protobuf: what is stored, and the responses.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use crate::harness::client::request;
use crate::harness::server::wait_for_partitions;
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, Proxy, Reply, Server, TestServer, create_token, now, until};

const PROTOBUF: &str = "application/x-protobuf";
const JSON: &str = "application/json";

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(text.to_owned())) }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(text(value)), ..KeyValue::default() }
}

fn record(message: &str) -> LogRecord {
    let nanos = u64::try_from(now().micros()).expect("after 1970") * 1000;
    LogRecord { time_unix_nano: nanos, body: Some(text(message)), ..LogRecord::default() }
}

fn logs(service: &str, records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", service)],
                ..Resource::default()
            }),
            scope_logs: vec![ScopeLogs { log_records: records, ..ScopeLogs::default() }],
            ..ResourceLogs::default()
        }],
    }
}

fn export_to(path: &str, client: &mut Client, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    client.exchange(&request("POST", path, headers, body))
}

#[track_caller]
fn export(client: &mut Client, body: &ExportLogsServiceRequest) -> ExportLogsServiceResponse {
    let reply = export_to("/v1/logs", client, &[("Content-Type", PROTOBUF)], &body.encode_to_vec());
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(PROTOBUF)), "{reply:?}");
    ExportLogsServiceResponse::decode(&*reply.body).expect("a response")
}

#[track_caller]
fn until_stored(test: &TestServer, count: i64) {
    until("the events are stored", || test.postgres.stored() >= count);
}

#[test]
fn log_records_are_stored_with_their_fields_in_either_encoding() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let mut sent = record("order placed");
    sent.attributes = vec![attribute("http.route", "/orders"), attribute("nul", "a\0b")];
    sent.trace_id = vec![0xab; 16];
    assert_eq!(export(&mut client, &logs("shop", vec![sent])), ExportLogsServiceResponse::default());
    let json = format!(
        r#"{{"resourceLogs":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"web"}}}}]}},
        "scopeLogs":[{{"logRecords":[{{"timeUnixNano":"{}","body":{{"stringValue":"clicked"}},"severityNumber":9}}]}}]}}]}}"#,
        now().micros() * 1000
    );
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", JSON)], json.as_bytes());
    assert_eq!((reply.status, &*reply.text()), (200, "{}"));
    until_stored(&test, 2);
    let stored = |service: &str| {
        let sql = format!("SELECT message || ' ' || metadata::text FROM events WHERE service = '{service}'");
        test.postgres.value::<String>(&sql)
    };
    let trace = "ab".repeat(16);
    assert_eq!(
        stored("shop"),
        format!(
            r#"order placed {{"nul": "a{}b", "trace_id": "{trace}", "http.route": "/orders"}}"#,
            '\u{fffd}'
        )
    );
    assert_eq!(stored("web"), r#"clicked {"severity_number": 9}"#);
    assert!(test.server.metrics().contains("events_received_by_input_total{input=\"otlp\"} 2\n"));
    assert_eq!(
        export(&mut client, &ExportLogsServiceRequest::default()),
        ExportLogsServiceResponse::default()
    );
}

#[test]
fn bad_record_is_reported_as_partial_success_and_its_neighbours_are_stored() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let old = LogRecord { time_unix_nano: 1_000_000_000, ..record("old") };
    let long = record(&"x".repeat(65_537));
    let response = export(&mut client, &logs("s", vec![record("a"), old, long, record("b")]));
    let Some(ExportLogsPartialSuccess { rejected_log_records, error_message }) = response.partial_success
    else {
        panic!("{response:?}")
    };
    assert_eq!(rejected_log_records, 2);
    assert!(error_message.contains("log record 1: timestamp"), "{error_message}");
    assert!(error_message.contains("log record 2: message must be at most 65536 bytes"), "{error_message}");
    until_stored(&test, 2);
    let body = r#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":"soon"},{"body":{"stringValue":"c"}}]}]}]}"#;
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", JSON)], body.as_bytes());
    assert_eq!(reply.status, 200);
    let expected = r#"{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"log record 0: record or its resource or scope has a field whose value has the wrong type"}}"#;
    assert_eq!(reply.text(), expected);
    until_stored(&test, 3);
}

#[test]
fn identical_request_is_stored_once_unless_dedup_is_none() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let body = logs("s", vec![record("same"), record("same"), record("same")]);
    for _ in 0..3 {
        export(&mut client, &body);
    }
    // The encoder may add a field, or another server may write the record in another batch.
    let uid = |message: &str| {
        let mut record = record(message);
        record.time_unix_nano = body.resource_logs[0].scope_logs[0].log_records[0].time_unix_nano;
        LogRecord { attributes: vec![attribute("log.record.uid", "u-1")], ..record }
    };
    export(&mut client, &logs("uid", vec![uid("one")]));
    export(&mut client, &logs("uid", vec![record("other"), uid("one")]));
    until("duplicates are counted", || test.server.metric("events_duplicate_total") == 7);
    assert_eq!(test.postgres.stored(), 5);
    let body = body.encode_to_vec();
    for query in ["otlp_dedup=none", "dedup=none"] {
        let path = format!("/v1/logs?{query}");
        let reply = export_to(&path, &mut client, &[("Content-Type", PROTOBUF)], &body);
        assert_eq!(reply.status, 200);
    }
    until_stored(&test, 11);
    let reply = export_to("/v1/logs?otlp_dedup=body", &mut client, &[("Content-Type", PROTOBUF)], &body);
    assert_eq!(reply.status, 200);
    until("the duplicates are counted", || test.server.metric("events_duplicate_total") == 10);
    for query in ["otlp_dedup=uid", "otlp_dedup=body&dedup=body"] {
        let path = format!("/v1/logs?{query}");
        let reply = export_to(&path, &mut client, &[("Content-Type", JSON)], b"{}");
        assert!(reply.status == 400 && reply.text().contains("otlp_dedup"), "{query}: {}", reply.text());
    }
}

/// A `google.rpc.Status` of this response, in the encoding of its request.
#[track_caller]
fn status_code(reply: &Reply, content_type: &str) -> i64 {
    assert_eq!(reply.header("content-type"), Some(content_type), "{reply:?}");
    if content_type == JSON {
        let status: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert!(status["message"].as_str().is_some_and(|message| !message.is_empty()), "{status}");
        return status["code"].as_i64().expect("a number");
    }
    // The fields 1, a varint, and 2, a text.
    assert!(reply.body.len() > 4 && reply.body[0] == 0x08 && reply.body[2] == 0x12, "{reply:?}");
    i64::from(reply.body[1])
}

#[test]
fn refusals_of_credentials_and_of_load_are_statuses_that_say_when_to_return() {
    let dir = temp_dir();
    let tokens = dir.path().join("tokens");
    let mut lines = String::new();
    let mut token = |name: &str, scope: &str| {
        let (token, line) = create_token(name, scope, &[]);
        lines.push_str(&line);
        lines.push('\n');
        format!("Bearer {token}")
    };
    let (ingest, query) = (token("sender", "ingest"), token("reader", "query"));
    std::fs::write(&tokens, lines).expect("it can be written");
    // Four events fill the buffer, which nothing empties.
    let test = TestServer::start(&[
        ("AUTH_TOKENS_FILE", tokens.to_str().expect("UTF-8")),
        ("BUFFER_MAX_SIZE", "4"),
        ("SPILL_MAX_BYTES", "0"),
        ("LINGER", "600000"),
        ("DRAIN_INTERVAL", "600000"),
    ]);
    let mut client = test.server.client();
    let protobuf = logs("s", vec![record("m"); 3]).encode_to_vec();
    let json = br#"{"resourceLogs":[{"scopeLogs":[{"logRecords":[{},{},{}]}]}]}"#;
    let encodings = [(PROTOBUF, &protobuf[..]), (JSON, json)];
    let mut send = |authorization: Option<&str>, (content_type, body): (&str, &[u8])| {
        let mut headers = vec![("Content-Type", content_type)];
        headers.extend(authorization.map(|value| ("Authorization", value)));
        export_to("/v1/logs", &mut client, &headers, body)
    };
    for encoding in encodings {
        let reply = send(None, encoding);
        assert_eq!((reply.status, status_code(&reply, encoding.0)), (401, 16), "UNAUTHENTICATED");
        let reply = send(Some(&query), encoding);
        assert_eq!((reply.status, status_code(&reply, encoding.0)), (403, 7), "PERMISSION_DENIED");
    }
    assert_eq!(send(Some(&ingest), encodings[0]).status, 200);
    for encoding in encodings {
        let reply = send(Some(&ingest), encoding);
        assert_eq!((reply.status, status_code(&reply, encoding.0)), (429, 8), "RESOURCE_EXHAUSTED");
        assert!(reply.header("retry-after").is_some_and(|after| after.parse::<u64>().is_ok_and(|s| s >= 1)));
    }
}

/// The server stops while a COMMIT has no answer.
#[test]
fn refusal_while_the_server_stops_is_a_status_of_unavailable() {
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let url = Postgres::url_through(proxy.port(), "none");
    let mut server = Server::start(&[("DATABASE_URL", url.as_str()), ("DRAIN_INTERVAL", "50")]);
    wait_for_partitions(&postgres);
    let (mut client, mut sender) = (server.client(), server.client());
    proxy.hold_next_commit();
    export(&mut client, &logs("s", vec![record("held")]));
    until("it is being stored", || proxy.is_commit_held());
    server.signal("TERM");
    let body = logs("s", vec![record("late")]).encode_to_vec();
    for (client, content_type, body) in
        [(&mut client, PROTOBUF, &body[..]), (&mut sender, JSON, br#"{"resourceLogs":[]}"#)]
    {
        let mut last = None;
        until("intake ends", || {
            let reply = export_to("/v1/logs", client, &[("Content-Type", content_type)], body);
            let is_refused = reply.status != 200;
            last = Some(reply);
            is_refused
        });
        let reply = last.expect("a response");
        assert_eq!((reply.status, status_code(&reply, content_type)), (503, 14), "UNAVAILABLE");
        assert!(reply.header("retry-after").is_some());
    }
    server.signal("TERM");
    server.exit_within(Duration::from_secs(10));
}

#[test]
fn refusal_is_a_status_in_the_encoding_of_the_request() {
    let test = TestServer::start(&[("BUFFER_MAX_SIZE", "2"), ("SPILL_MAX_BYTES", "0")]);
    let mut client = test.server.client();
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", PROTOBUF)], b"\x0a\x05ab");
    assert_eq!((reply.status, reply.header("content-type")), (400, Some(PROTOBUF)));
    let message = "the body is invalid: not an ExportLogsServiceRequest: it is truncated within a message";
    assert_eq!(&reply.body[..4], [0x08, 3, 0x12, u8::try_from(message.len()).unwrap()]);
    assert_eq!(str::from_utf8(&reply.body[4..]), Ok(message));
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", JSON)], b"{\"resourceLogs\":5}");
    assert_eq!((reply.status, reply.header("content-type")), (400, Some(JSON)));
    assert!(
        reply.text().starts_with(r#"{"code":3,"message":"the body is invalid: not an Export"#),
        "{}",
        reply.text()
    );
    let old = LogRecord { time_unix_nano: 1_000_000_000, ..record("old") };
    let body = logs("s", vec![old]).encode_to_vec();
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", PROTOBUF)], &body);
    assert_eq!(reply.status, 400, "no record is valid");
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", "text/plain")], &body);
    assert_eq!(reply.status, 415);
    assert_eq!(reply.header("accept-post"), Some("application/x-protobuf, application/json"));
    let many = logs("s", vec![record("m"); 3]).encode_to_vec();
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", PROTOBUF)], &many);
    assert_eq!((reply.status, &reply.body[..2]), (413, &[0x08, 8][..]));
}

/// Few bytes that would become many: each row has the attributes of the resource.
#[test]
fn request_whose_rows_repeat_too_much_is_refused() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let mut body = logs("s", vec![LogRecord::default(); 20_000]);
    body.resource_logs[0].resource.as_mut().unwrap().attributes.push(attribute("a", &"x".repeat(60_000)));
    let body = body.encode_to_vec();
    assert!(body.len() < 128 * 1024);
    let reply = export_to("/v1/logs", &mut client, &[("Content-Type", PROTOBUF)], &body);
    assert_eq!(reply.status, 400);
    assert!(String::from_utf8_lossy(&reply.body).contains("repeat too much"));
    assert!(test.server.peak_memory() < 300 << 20);
}

#[test]
fn loki_push_in_protobuf_is_the_push_in_json() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let field = |number: u8, bytes: &[u8]| {
        [&[number << 3 | 2, u8::try_from(bytes.len()).expect("a short message")], bytes].concat()
    };
    let seconds = now().micros() / 1_000_000;
    let mut time = vec![0x08];
    prost::encoding::encode_varint(seconds.cast_unsigned(), &mut time);
    let entry = [field(1, &time), field(2, b"a line")].concat();
    let push = field(1, &[field(1, br#"{job="api", level="info"}"#), field(2, &entry)].concat());
    let block = snap::raw::Encoder::new().compress_vec(&push).expect("it is short");
    let reply = export_to("/loki/api/v1/push", &mut client, &[("Content-Type", PROTOBUF)], &block);
    assert_eq!(reply.status, 204, "{reply:?}");
    let json = format!(
        r#"{{"streams":[{{"stream":{{"job":"api","level":"info"}},"values":[["{seconds}000000000","a line",{{}}]]}}]}}"#
    );
    let reply = export_to("/loki/api/v1/push", &mut client, &[("Content-Type", JSON)], json.as_bytes());
    assert_eq!(reply.status, 204, "{reply:?}");
    until("the same entry is a duplicate", || test.server.metric("events_duplicate_total") == 1);
    let sql = "SELECT service || ' ' || message || ' ' || metadata::text FROM events";
    assert_eq!(test.postgres.value::<String>(sql), r#"api a line {"job": "api", "level": "info"}"#);
    let coded = [("Content-Type", PROTOBUF), ("Content-Encoding", "snappy")];
    assert_eq!(export_to("/loki/api/v1/push", &mut client, &coded, &block).status, 204);
    let reply = export_to("/loki/api/v1/push", &mut client, &[("Content-Type", PROTOBUF)], &push);
    assert_eq!(reply.status, 400, "not in Snappy's format");
    let huge = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
    assert_eq!(export_to("/loki/api/v1/push", &mut client, &[("Content-Type", PROTOBUF)], &huge).status, 413);
}
