//! Log shippers that are not installed here: their requests, byte for byte as their sources write
//! them with the configurations of docs/senders/shippers.md, are stored with the right time, service,
//! message and metadata, and once when they are sent again where that page says so.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use serde_json::Value;

use crate::harness::client::request;
use crate::harness::{TestServer, now, until, wait_for_drain};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
const PROTOBUF: (&str, &str) = ("Content-Type", "application/x-protobuf");
/// The second record of a request is this much later than the first.
const STEP_MICROS: i64 = 1000;

/// A request of a shipper. In its body `{s1}` is the time of the first record in seconds with six
/// decimals, `{s2}` that of the second; `{m…}` are seconds with three decimals, `{ms…}` and `{us…}` RFC
/// 3339 times with three and six decimals, `{ns…}` nanoseconds.
struct Shipment {
    shipper: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Vec<u8>,
    status: u16,
    /// Service, message and metadata of each record.
    events: Vec<(&'static str, String, &'static str)>,
    /// The unit of its times.
    unit_micros: i64,
    is_stored_once: bool,
}

impl Shipment {
    fn new(shipper: &'static str, path: &'static str, headers: &[(&'static str, &'static str)]) -> Self {
        Self {
            shipper,
            path,
            headers: headers.to_vec(),
            body: Vec::new(),
            status: 202,
            events: Vec::new(),
            unit_micros: 1,
            is_stored_once: true,
        }
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    fn event(mut self, service: &'static str, message: impl Into<String>, metadata: &'static str) -> Self {
        self.events.push((service, message.into(), metadata));
        self
    }

    fn in_milliseconds(self) -> Self {
        Self { unit_micros: 1000, ..self }
    }

    fn stored_again(self) -> Self {
        Self { is_stored_once: false, ..self }
    }
}

/// The times of the records: of this minute, with six decimals that are not zero.
#[derive(Clone, Copy)]
struct Times {
    first_micros: i64,
}

impl Times {
    fn now() -> Self {
        Self { first_micros: now().micros() / 1000 * 1000 + 123 }
    }

    fn micros(self, nth: usize) -> i64 {
        self.first_micros + STEP_MICROS * i64::try_from(nth).expect("a small number")
    }

    fn nanos(self, nth: usize) -> u64 {
        u64::try_from(self.micros(nth)).expect("after 1970") * 1000
    }

    fn fill_in(self, template: &str) -> String {
        let mut text = template.to_owned();
        for nth in 0..2 {
            let (micros, number) = (self.micros(nth), nth + 1);
            let time = chrono::DateTime::from_timestamp_micros(micros).expect("a year of four digits");
            let seconds = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
            text = text
                .replace(&format!("{{s{number}}}"), &seconds)
                .replace(&format!("{{m{number}}}"), &seconds[..seconds.len() - 3])
                .replace(&format!("{{ms{number}}}"), &time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
                .replace(&format!("{{us{number}}}"), &time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
                .replace(&format!("{{ns{number}}}"), &self.nanos(nth).to_string());
        }
        text
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).expect("a Vec takes all");
    encoder.finish().expect("a Vec takes all")
}

fn snappy(plain: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(plain).expect("it is short")
}

/// A message of protobuf, of fields of less than 128 bytes or of messages.
fn protobuf(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, bytes) in fields {
        message.push((number << 3) | 2);
        prost::encoding::encode_varint(bytes.len() as u64, &mut message);
        message.extend_from_slice(bytes);
    }
    message
}

/// A push of Loki in protobuf: one stream.
fn loki_push(times: Times, labels: &str, lines: [&str; 2]) -> Vec<u8> {
    let entries = [0, 1].map(|nth| {
        let nanos = times.nanos(nth);
        let mut time = vec![1 << 3];
        prost::encoding::encode_varint(nanos / 1_000_000_000, &mut time);
        time.push(2 << 3);
        prost::encoding::encode_varint(nanos % 1_000_000_000, &mut time);
        protobuf(&[(1, &time), (2, lines[nth].as_bytes())])
    });
    let stream = protobuf(&[(1, labels.as_bytes()), (2, &entries[0]), (2, &entries[1])]);
    snappy(&protobuf(&[(1, &stream)]))
}

fn any_text(text: &str) -> AnyValue {
    AnyValue { value: Some(AnyKind::StringValue(text.to_owned())) }
}

fn key_value(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(any_text(value)), ..KeyValue::default() }
}

fn otlp(resource: Vec<KeyValue>, log_records: Vec<LogRecord>) -> Vec<u8> {
    let resource = Resource { attributes: resource, ..Resource::default() };
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    let logs = ResourceLogs { resource: Some(resource), scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }.encode_to_vec()
}

fn fluent_bit(times: Times) -> Vec<Shipment> {
    let agent = ("User-Agent", "Fluent-Bit");
    let record = LogRecord {
        time_unix_nano: times.nanos(0),
        body: Some(AnyValue {
            value: Some(AnyKind::KvlistValue(KeyValueList {
                values: vec![key_value("log", "one"), key_value("stream", "stdout")],
            })),
        }),
        ..LogRecord::default()
    };
    let mapped = "/events?extra=metadata&service=web&dedup=body";
    vec![
        Shipment::new("fluent-bit http", mapped, &[JSON, agent])
            .body(r#"[{"date":{s1},"log":"GET / \"200\"","stream":"stdout"},{"date":{s2},"cpu_p":1.25,"user_p":1.0}]"#)
            .event("web", r#"GET / "200""#, r#"{"stream":"stdout"}"#)
            .event("web", r#"{"date":{s2},"cpu_p":1.25,"user_p":1.0}"#, r#"{"cpu_p":1.25,"user_p":1.0}"#),
        Shipment::new("fluent-bit http, json_stream", mapped, &[JSON, agent])
            .body(r#"{"date":{s1},"log":"one"}{"date":{s2},"log":"two"}"#)
            .event("web", "one", "null")
            .event("web", "two", "null"),
        Shipment::new("fluent-bit http, json_lines, iso8601", mapped, &[NDJSON, agent])
            .body("{\"date\":\"{us1}\",\"log\":\"three\"}\n{\"date\":\"{us2}\",\"log\":\"four\"}\n")
            .event("web", "three", "null")
            .event("web", "four", "null"),
        Shipment::new("fluent-bit loki", "/loki/api/v1/push", &[agent, JSON])
            .body(r#"{"streams":[{"stream":{"job":"fluent-bit"},"values":[["{ns1}","{\"log\":\"one\"}"],["{ns2}","{\"log\":\"two\"}"]]}]}"#)
            .status(204)
            .event("fluent-bit", r#"{"log":"one"}"#, r#"{"job":"fluent-bit"}"#)
            .event("fluent-bit", r#"{"log":"two"}"#, r#"{"job":"fluent-bit"}"#),
        Shipment::new("fluent-bit splunk", "/services/collector/event", &[agent, ("Authorization", "Splunk t")])
            .body(r#"{"time":{s1},"source":"web","event":{"log":"one","stream":"stdout"}}{"time":{s2},"source":"web","event":{"log":"two"}}"#)
            .status(200)
            .event("web", "one", r#"{"source":"web","event":{"stream":"stdout"}}"#)
            .event("web", "two", r#"{"source":"web"}"#)
            .stored_again(),
        Shipment::new("fluent-bit opentelemetry", "/v1/logs", &[PROTOBUF, agent])
            .body(otlp(Vec::new(), vec![record]))
            .status(200)
            .event("unknown_service", r#"{"log":"one","stream":"stdout"}"#, "null"),
    ]
}

fn vector(times: Times) -> Vec<Shipment> {
    let agent = ("User-Agent", "Vector/0.49.0 (x86_64-unknown-linux-gnu)");
    vec![
        Shipment::new("vector http", "/events?extra=metadata&service=web", &[JSON, agent])
            .body(r#"[{"file":"/var/log/app.log","host":"h","idempotency_key":"0198a","message":"one","source_type":"file","timestamp":"{us1}"},{"host":"h","idempotency_key":"0198b","message":"two","source_type":"file","timestamp":"{us2}"}]"#)
            .event("web", "one", r#"{"file":"/var/log/app.log","host":"h","source_type":"file"}"#)
            .event("web", "two", r#"{"host":"h","source_type":"file"}"#),
        Shipment::new("vector http, newline_delimited, gzip", "/events?extra=metadata&service=web&dedup=body", &[NDJSON, agent, ("Content-Encoding", "gzip")])
            .body(gzip(times.fill_in("{\"message\":\"three\",\"timestamp\":\"{us1}\"}\n{\"message\":\"four\",\"timestamp\":\"{us2}\"}").as_bytes()))
            .event("web", "three", "null")
            .event("web", "four", "null"),
        Shipment::new("vector loki", "/loki/api/v1/push", &[PROTOBUF, agent])
            .body(loki_push(times, r#"{host="h",service_name="web"}"#, ["one", "two"]))
            .status(204)
            .event("web", "one", r#"{"host":"h","service_name":"web"}"#)
            .event("web", "two", r#"{"host":"h","service_name":"web"}"#),
        Shipment::new("vector splunk_hec_logs", "/services/collector/event", &[JSON, ("Authorization", "Splunk t"), ("X-Splunk-Request-Channel", "7c2f0cbc-54a8-4f0e-8a02-2f2f3a9c1a55"), agent])
            .body(r#"{"event":{"file":"/var/log/app.log","message":"one"},"fields":{},"time":{m1},"host":"h","source":"web"}{"event":{"message":"two"},"fields":{},"time":{m2},"host":"h","source":"web"}"#)
            .status(200)
            .event("web", "one", r#"{"host":"h","source":"web","event":{"file":"/var/log/app.log"}}"#)
            .event("web", "two", r#"{"host":"h","source":"web"}"#)
            .in_milliseconds()
            .stored_again(),
    ]
}

fn others(times: Times) -> Vec<Shipment> {
    let agent = ("User-Agent", "promtail/3.5.0");
    let record = LogRecord {
        time_unix_nano: times.nanos(0),
        body: Some(any_text("one")),
        attributes: vec![key_value("log.file.name", "app.log")],
        ..LogRecord::default()
    };
    vec![
        Shipment::new("fluentd", "/events?extra=metadata&service_field=tag&dedup=body", &[NDJSON, ("Accept", "*/*"), ("User-Agent", "Ruby")])
            .body("{\"message\":\"one\",\"level\":\"info\",\"tag\":\"web\",\"time\":\"{us1}\"}\n{\"message\":\"two\",\"tag\":\"web\",\"time\":\"{us2}\"}\n")
            .event("web", "one", r#"{"level":"info"}"#)
            .event("web", "two", "null"),
        Shipment::new("fluentd, json_array", "/events?extra=metadata&service_field=tag&dedup=body", &[JSON])
            .body(r#"[{"message":"three","tag":"web","time":"{us1}"},{"message":"four","tag":"web","time":"{us2}"}]"#)
            .event("web", "three", "null")
            .event("web", "four", "null"),
        Shipment::new("logstash", "/events?extra=metadata&service=logstash", &[JSON])
            .body(r#"{"@timestamp":"{ms1}","service":{"name":"web"},"host":{"name":"h"},"event":{"original":"one"},"idempotency_key":"9ab5d3b0","@version":"1","message":"one","log":{"file":{"path":"/var/log/app.log"}}}"#)
            .in_milliseconds()
            .event("web", "one", r#"{"service":{"name":"web"},"host":{"name":"h"},"event":{"original":"one"},"@version":"1","log":{"file":{"path":"/var/log/app.log"}}}"#),
        Shipment::new("logstash, json_batch", "/events?extra=metadata&service=logstash", &[JSON])
            .body(r#"[{"message":"two","@version":"1","@timestamp":"{ms1}","idempotency_key":"9ab5d3b1"},{"message":"three","@version":"1","@timestamp":"{ms2}","idempotency_key":"9ab5d3b2"}]"#)
            .in_milliseconds()
            .event("logstash", "two", r#"{"@version":"1"}"#)
            .event("logstash", "three", r#"{"@version":"1"}"#),
        Shipment::new("rsyslog", "/events?extra=metadata&service=syslog&time_field=timereported", &[("Content-Type", "application/json; charset=utf-8")])
            .body(r#"{"message":" one","fromhost":"h","facility":"user","priority":"info","timereported":"{us1}","timegenerated":"{us2}"}"#)
            .event("syslog", " one", r#"{"fromhost":"h","facility":"user","priority":"info","timegenerated":"{us2}"}"#)
            .stored_again(),
        Shipment::new("rsyslog, template", "/services/collector/event?dedup=body", &[("Content-Type", "text/plain")])
            .body("{\"time\":\"{us1}\",\"source\":\"sshd\",\"host\":\"h\",\"event\":\"one\",\"fields\":{\"severity\":\"info\"}}\n{\"time\":\"{us2}\",\"source\":\"cron\",\"host\":\"h\",\"event\":\"two\",\"fields\":{\"severity\":\"info\"}}")
            .status(200)
            .event("sshd", "one", r#"{"source":"sshd","host":"h","severity":"info"}"#)
            .event("cron", "two", r#"{"source":"cron","host":"h","severity":"info"}"#),
        Shipment::new("promtail", "/loki/api/v1/push", &[PROTOBUF, agent])
            .body(loki_push(times, r#"{filename="/var/log/app.log", job="varlogs"}"#, ["one", "two"]))
            .status(204)
            .event("varlogs", "one", r#"{"filename":"/var/log/app.log","job":"varlogs"}"#)
            .event("varlogs", "two", r#"{"filename":"/var/log/app.log","job":"varlogs"}"#),
        Shipment::new("docker splunk", "/services/collector/event/1.0", &[("Authorization", "Splunk t"), ("User-Agent", "Go-http-client/1.1"), ("Accept-Encoding", "gzip")])
            .body(r#"{"event":{"line":"one","source":"stdout","tag":"c0ffee"},"time":"{s1}","host":"h","source":"web"}{"event":{"line":"two","source":"stderr","tag":"c0ffee"},"time":"{s2}","host":"h","source":"web"}"#)
            .status(200)
            .event("web", "one", r#"{"event":{"source":"stdout","tag":"c0ffee"},"host":"h","source":"web"}"#)
            .event("web", "two", r#"{"event":{"source":"stderr","tag":"c0ffee"},"host":"h","source":"web"}"#)
            .stored_again(),
        Shipment::new("opentelemetry collector", "/v1/logs", &[PROTOBUF, ("User-Agent", "OpenTelemetry Collector Contrib/0.158.0 (linux/amd64)"), ("Content-Encoding", "gzip")])
            .body(gzip(&otlp(vec![key_value("service.name", "web")], vec![record])))
            .status(200)
            .event("web", "one", r#"{"log.file.name":"app.log"}"#),
    ]
}

fn send(test: &TestServer, times: Times, shipment: &Shipment) {
    // Binary bodies have no placeholders.
    let body = match str::from_utf8(&shipment.body) {
        Ok(template) => times.fill_in(template).into_bytes(),
        Err(_) => shipment.body.clone(),
    };
    let reply = test.server.client().exchange(&request("POST", shipment.path, &shipment.headers, &body));
    assert_eq!(reply.status, shipment.status, "{}: {}", shipment.shipper, reply.text());
    wait_for_drain(&test.server);
}

fn check(test: &TestServer, times: Times, shipment: &Shipment) {
    test.postgres.execute("DELETE FROM events");
    send(test, times, shipment);
    let rows = test.postgres.rows(
        "SELECT service, message, coalesce(metadata, 'null')::text, (extract(epoch FROM timestamp) * 1000000)::bigint
         FROM events ORDER BY timestamp",
    );
    let stored: Vec<(String, String, Value, i64)> = rows
        .iter()
        .map(|row| {
            let metadata: String = row.get(2);
            (row.get(0), row.get(1), serde_json::from_str(&metadata).expect("JSON"), row.get(3))
        })
        .collect();
    let expected: Vec<(String, String, Value, i64)> = (0..)
        .zip(&shipment.events)
        .map(|(nth, (service, message, metadata))| {
            let metadata = serde_json::from_str(&times.fill_in(metadata)).expect("JSON");
            let micros = times.micros(nth) / shipment.unit_micros * shipment.unit_micros;
            ((*service).to_owned(), times.fill_in(message), metadata, micros)
        })
        .collect();
    assert_eq!(stored, expected, "{}", shipment.shipper);
    send(test, times, shipment);
    let copies = if shipment.is_stored_once { 1 } else { 2 };
    let stored = usize::try_from(test.postgres.stored()).expect("a count");
    assert_eq!(stored, copies * shipment.events.len(), "{}, sent again", shipment.shipper);
}

#[test]
fn requests_of_shippers_are_stored_with_their_times_services_messages_and_metadata() {
    let test = TestServer::start(&[]);
    let times = Times::now();
    for shipment in [fluent_bit(times), vector(times), others(times)].iter().flatten() {
        check(&test, times, shipment);
    }
}

/// What shippers ask before they send.
#[test]
fn shippers_that_ask_first_are_told_to_send() {
    let test = TestServer::start(&[]);
    let client = &mut test.server.client();
    for (shipper, method, path) in [
        ("docker splunk", "OPTIONS", "/services/collector/event/1.0"),
        ("vector splunk_hec_logs", "GET", "/services/collector/health/1.0"),
        ("vector loki", "GET", "/ready"),
    ] {
        assert_eq!(client.exchange(&request(method, path, &[], b"")).status, 200, "{shipper}");
    }
}

/// A status that makes a shipper drop its records must not say that the server is busy.
#[test]
fn busy_server_answers_429_on_events_and_503_on_the_paths_of_splunk() {
    let test = TestServer::start(&[("RATE_LIMIT_GLOBAL", "1")]);
    let client = &mut test.server.client();
    let mut is_refused = |path: &str, status: u16| {
        let reply = client.exchange(&request("POST", path, &[JSON], br#"{"event":"m"}"#));
        reply.status == status && reply.header("retry-after").is_some()
    };
    for (path, status) in [
        ("/services/collector/event", 503),
        ("/events?extra=metadata&service=s", 429),
        ("/loki/api/v1/push", 429),
        ("/v1/logs", 429),
    ] {
        until(path, || is_refused(path, status));
    }
}
