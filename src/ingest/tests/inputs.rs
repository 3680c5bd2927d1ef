//! Bodies in other formats: their events, errors and responses, whole and in slices.

use proptest::prelude::*;

use super::*;

/// A request to a path.
struct Sent<'a> {
    path: InputPath,
    query: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
}

/// The outcome of a request: the status, the body of the response, and the rows with their ids.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: u16,
    body: String,
    rows: Vec<DecodedRow>,
    ids: Vec<EventId>,
}

impl Sent<'_> {
    fn decode(&self, budget: usize) -> Outcome {
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| httparse::Header { name, value: value.as_bytes() })
            .collect();
        let headers = crate::http::Headers(&headers);
        let mut response = Response::default();
        let (headers, input) = match parse_request(self.path, headers, self.query) {
            Ok(parsed) => parsed,
            Err(error) => {
                error.write_response(&mut response);
                let body = String::from_utf8(response.body).unwrap();
                return Outcome { status: response.status, body, rows: Vec::new(), ids: Vec::new() };
            }
        };
        let mut ingest = ingest(3);
        ingest.begin(input);
        while !ingest.decode_slice(headers, self.body, NOW, budget) {}
        let decoded = ingest.decoded();
        decoded.write_response(&[], &mut response);
        let body = String::from_utf8(response.body).unwrap();
        Outcome { status: response.status, body, rows: rows_of(&decoded), ids: decoded.ids().to_vec() }
    }

    /// Decodes the body whole and in slices, and checks that the events are the same.
    #[track_caller]
    fn outcome(&self) -> Outcome {
        let whole = self.decode(usize::MAX);
        for budget in [1, 7, 100] {
            let sliced = self.decode(budget);
            assert_eq!((sliced.status, &sliced.rows), (whole.status, &whole.rows), "budget {budget}");
        }
        whole
    }

    /// Checks the events: service, message and metadata.
    #[track_caller]
    fn check(&self, status: u16, expected: &[(&str, &str, Option<&str>)]) -> Outcome {
        let outcome = self.outcome();
        let shown =
            format!("{} {}", self.query, String::from_utf8_lossy(&self.body[..self.body.len().min(300)]));
        assert_eq!(outcome.status, status, "{shown}: {}", outcome.body);
        let actual: Vec<_> = outcome
            .rows
            .iter()
            .map(|(_, service, message, metadata)| (service.as_str(), message.as_str(), metadata.as_deref()))
            .collect();
        assert_eq!(actual, expected, "{shown}: {}", outcome.body);
        outcome
    }

    #[track_caller]
    fn check_refused(&self, status: u16, part: &str) {
        let outcome = self.check(status, &[]);
        assert!(outcome.body.contains(part), "{} has no {part:?}", outcome.body);
    }
}

const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];
const LINES: &[(&str, &str)] = &[("Content-Type", "application/x-ndjson")];

fn mapped<'a>(query: &'a str, headers: &'a [(&'a str, &'a str)], body: &'a str) -> Sent<'a> {
    Sent { path: InputPath::Events, query, headers, body: body.as_bytes() }
}

fn loki(body: &str) -> Sent<'_> {
    Sent { path: InputPath::LokiPush, query: "", headers: JSON, body: body.as_bytes() }
}

fn splunk(body: &str) -> Sent<'_> {
    Sent { path: InputPath::SplunkEvent, query: "", headers: &[], body: body.as_bytes() }
}

#[test]
fn mapping_takes_named_fields_and_keeps_the_others_as_metadata() {
    let query = "time_field=t&message_field=text&service_field=app.name&extra=metadata";
    let body =
        r#"{"t":1795435200.5,"text":"a \"quoted\" line","app":{"name":"web","v":1},"n":[1,{"x":null}]}"#;
    let outcome = mapped(query, JSON, body).check(
        202,
        &[("web", "a \"quoted\" line", Some(r#"{"app":{"name":"web","v":1},"n":[1,{"x":null}]}"#))],
    );
    assert_eq!(outcome.rows[0].0, 1_795_435_200_500_000);
    mapped("message_field=a.b&service=s", JSON, r#"{"a.b":"flat"}"#).check(202, &[("s", "flat", None)]);
    mapped("message_field=a.b.c&service=s&extra=metadata", JSON, r#"{"a":{"b":{"c":"deep"}}}"#)
        .check(202, &[("s", "deep", Some(r#"{"a":{"b":{"c":"deep"}}}"#))]);
}

#[test]
fn mapping_without_names_takes_the_usual_ones() {
    let query = "extra=metadata&service=s";
    for time in ["timestamp", "@timestamp", "time", "ts", "date"] {
        for message in ["message", "msg", "log"] {
            let body = format!(r#"{{"{time}":"2026-11-23T12:00:01Z","{message}":"m","other":true}}"#);
            let outcome = mapped(query, LINES, &body).check(202, &[("s", "m", Some(r#"{"other":true}"#))]);
            assert_eq!(outcome.rows[0].0, NOW.micros() + 1_000_000, "{time}");
        }
    }
    let outcome =
        mapped(query, LINES, r#"{"msg":"m","ts":null}"#).check(202, &[("s", "m", Some(r#"{"ts":null}"#))]);
    assert_eq!(outcome.rows[0].0, NOW.micros(), "an absent time is now");
    // The first usual name counts, the other stays.
    mapped(query, LINES, r#"{"log":"l","message":"m"}"#).check(202, &[("s", "m", Some(r#"{"log":"l"}"#))]);
    mapped("extra=metadata", LINES, r#"{"service":"own","log":"l"}"#).check(202, &[("own", "l", None)]);
    mapped("extra=metadata", LINES, r#"{"service":{"name":"ecs"},"log":"l"}"#)
        .check(202, &[("ecs", "l", Some(r#"{"service":{"name":"ecs"}}"#))]);
    // A record without a message is one message.
    mapped(query, LINES, r#"{"cpu":1.5}"#).check(202, &[("s", r#"{"cpu":1.5}"#, Some(r#"{"cpu":1.5}"#))]);
    mapped(query, LINES, r#"{"log":{"a":1}}"#).check(202, &[("s", r#"{"a":1}"#, None)]);
}

#[test]
fn mapping_reads_epoch_times_of_each_unit() {
    for (time, micros) in [
        ("1795435200", 0),
        ("1795435200.123456789", 123_456),
        ("\"1795435200.25\"", 250_000),
        ("1795435200123", 123_000),
        ("1795435200123.5", 123_500),
        ("1795435200123456", 123_456),
        ("1795435200123456789", 123_456),
        ("1.7954352005e9", 500_000),
        ("\"2026-11-23T12:00:00.5+00:00\"", 500_000),
    ] {
        let body = format!(r#"{{"ts":{time},"msg":"m"}}"#);
        let outcome = mapped("extra=metadata&service=s", JSON, &body).check(202, &[("s", "m", None)]);
        assert_eq!(outcome.rows[0].0, NOW.micros() + micros, "{time}");
    }
    for time in ["\"yesterday\"", "true", "[1]", "\"\"", "1e400", "-5", "12345678901234567890123"] {
        let body = format!(r#"{{"ts":{time},"msg":"m"}}"#);
        assert_eq!(mapped("extra=metadata&service=s", JSON, &body).outcome().status, 400, "{time}");
    }
}

#[test]
fn mapping_refuses_what_it_is_not_told_to_keep() {
    mapped("service=s", JSON, r#"{"message":"m","a":1,"b":2}"#)
        .check_refused(400, "a is not a field of the mapping");
    mapped("service=s", JSON, r#"{"msg":"m"}"#).check_refused(400, "msg is not a field");
    mapped("message_field=x&extra=metadata&service=s", JSON, r#"{"message":"m"}"#)
        .check_refused(400, "x is required");
    mapped("extra=metadata", JSON, r#"{"message":"m"}"#).check_refused(400, "service is required");
    mapped("extra=all", JSON, "{}").check_refused(400, "its only value is metadata");
    mapped("extra=metadata&extra=metadata", JSON, "{}").check_refused(400, "more than once");
    mapped("time_field=", JSON, "{}").check_refused(400, "must not be empty");
    mapped("service=s&dedup=yes", JSON, "{}").check_refused(400, "must be body or none");
    mapped("service=s", &[("Content-Type", "text/html")], "{}").check_refused(415, "application/json-lines");
    mapped("service=s", JSON, "").check_refused(400, "no events");
    mapped("service=s", JSON, "[]").check_refused(400, "the array is empty");
    mapped("service=s", JSON, "{\"message\":\"").check_refused(400, "not JSON");
    mapped("service=s", JSON, r#"{"message":"m"} x"#).check_refused(400, "not JSON");
    // The server's own format stays strict.
    mapped("", JSON, r#"{"msg":"m"}"#).check_refused(400, "msg is not a field of an event");
}

#[test]
fn invalid_record_costs_no_neighbour() {
    let long = "x".repeat(70_000);
    let lines = format!(
        "{{\"log\":\"a\"}}\nnonsense\n{{\"log\":\"nul \\u0000\"}}\n{{\"log\":\"{long}\"}}\n7\n{{\"log\":\"b\"}}\n{{\"log\":\"c\",\"ts\":1}}\n"
    );
    let outcome =
        mapped("extra=metadata&service=s", LINES, &lines).check(202, &[("s", "a", None), ("s", "b", None)]);
    let body: sonic_rs::Value = sonic_rs::from_str(&outcome.body).unwrap();
    assert_eq!((&body["accepted"], &body["rejected"]), (&sonic_rs::json!(2), &sonic_rs::json!(5)));
    let fields: Vec<_> = ["body", "message", "message", "event", "timestamp"].to_vec();
    for (nth, field) in fields.iter().enumerate() {
        assert_eq!(body["errors"][nth]["field"], *field, "{}", outcome.body);
    }
    let array = r#"[{"log":"a"},null,{"log":"b"}]"#;
    mapped("extra=metadata&service=s", JSON, array).check(202, &[("s", "a", None), ("s", "b", None)]);
    let mut not_utf8 = b"{\"log\":\"a\"}\n{\"log\":\"\xff\"}\n{\"log\":\"b\"}".to_vec();
    let sent =
        |headers, body| Sent { path: InputPath::Events, query: "extra=metadata&service=s", headers, body };
    sent(LINES, &not_utf8).check(202, &[("s", "a", None), ("s", "b", None)]);
    sent(JSON, &not_utf8).check_refused(400, "not UTF-8 at byte 20");
    not_utf8.clear();
}

#[test]
fn mapping_takes_each_content_type_of_shippers() {
    for content_type in [
        "application/json",
        "application/json; charset=utf-8",
        "application/x-ndjson",
        "application/ndjson",
        "application/json-lines",
        "application/jsonl",
        "application/stream+json",
        "text/plain",
        "text/plain;charset=UTF-8",
    ] {
        let headers = [("Content-Type", content_type)];
        mapped("extra=metadata&service=s", &headers, "{\"log\":\"a\"}\n{\"log\":\"b\"}\n")
            .check(202, &[("s", "a", None), ("s", "b", None)]);
    }
    mapped("extra=metadata&service=s", JSON, r#"{"log":"a"}{"log":"b"}"#)
        .check(202, &[("s", "a", None), ("s", "b", None)]);
}

#[test]
fn retried_body_has_the_same_ids_by_header_by_body_and_by_key() {
    let body = r#"[{"ts":1795435200,"msg":"m"},{"ts":1795435200,"msg":"m"}]"#;
    let twice = |query: &str, headers: &[(&str, &str)]| {
        let sent = mapped(query, headers, body);
        let (first, second) = (sent.outcome(), sent.outcome());
        assert_eq!(first.ids.len(), 2);
        assert_ne!(first.ids[0], first.ids[1], "equal events of a request are counted");
        (first.ids, second.ids)
    };
    let keyed = [("Content-Type", "application/json"), ("Idempotency-Key", "k")];
    let (first, second) = twice("extra=metadata&service=s", &keyed);
    assert_eq!(first, second);
    let (first, second) = twice("extra=metadata&service=s&dedup=body", JSON);
    assert!(first == second && first.iter().all(EventId::is_keyed));
    let other = format!("{body} ");
    assert_ne!(mapped("extra=metadata&service=s&dedup=body", JSON, &other).outcome().ids, first);
    let with_key = r#"{"ts":1795435200,"msg":"m","idempotency_key":"k","service":"s"}"#;
    let mapped_id = mapped("extra=metadata", JSON, with_key).outcome().ids;
    let strict = r#"{"timestamp":1795435200000,"message":"m","idempotency_key":"k","service":"s"}"#;
    assert_eq!(
        mapped_id,
        mapped("", JSON, strict).outcome().ids,
        "the key of an event is the same everywhere"
    );
    mapped("extra=metadata&service=s", JSON, r#"{"msg":"m","idempotency_key":""}"#)
        .check_refused(400, "idempotency_key must be 1 to 128 bytes");
}

#[test]
fn cloudevent_in_headers_becomes_an_event() {
    let headers = [
        ("Content-Type", "application/json"),
        ("ce-specversion", "1.0"),
        ("CE-Id", "a%20b"),
        ("ce-source", "/orders"),
        ("ce-type", "order.placed"),
        ("ce-time", "2026-11-23T12:00:00.5Z"),
        ("ce-subject", "\"caf%C3%A9\""),
        ("ce-traceparent", "00-1"),
    ];
    let sent = |headers, body| Sent { path: InputPath::Events, query: "", headers, body };
    let metadata = r#"{"id":"a b","source":"/orders","subject":"café","traceparent":"00-1","datacontenttype":"application/json","data":{"order":1}}"#;
    let outcome =
        sent(&headers, br#" {"order":1} "#).check(202, &[("/orders", "order.placed", Some(metadata))]);
    assert_eq!(outcome.rows[0].0, NOW.micros() + 500_000);
    assert!(outcome.body.starts_with(r#"{"event_id":""#), "{}", outcome.body);
    sent(&headers, b"{").check_refused(400, "data is not JSON");
    let mut text = headers;
    text[0].1 = "text/plain";
    let outcome = sent(&text, b"hello").outcome();
    assert!(outcome.rows[0].3.as_deref().unwrap().ends_with(r#""data":"hello"}"#));
    let outcome = sent(&text, b"\x00\xff").outcome();
    assert!(outcome.rows[0].3.as_deref().unwrap().ends_with(r#""data_base64":"AP8="}"#));
    sent(&headers[..5], b"").check(
        202,
        &[(
            "/orders",
            "order.placed",
            Some(r#"{"id":"a b","source":"/orders","datacontenttype":"application/json"}"#),
        )],
    );
    sent(&headers[..4], b"").check_refused(400, "type is required");
    let mut old = headers;
    old[1].1 = "0.3";
    sent(&old, b"").check_refused(400, "specversion must be 1.0");
    sent(&headers, &b"1".repeat(70_000)).check_refused(400, "data must be at most 65536 bytes");
}

#[test]
fn structured_cloudevents_become_events_of_the_same_ids() {
    let structured = [("Content-Type", "application/cloudevents+json; charset=utf-8")];
    let batch = [("Content-Type", "application/cloudevents-batch+json")];
    let sent = |headers, body| Sent { path: InputPath::Events, query: "", headers, body };
    let event = r#"{"specversion":"1.0","id":"1","source":"/orders","type":"order.placed","time":"2026-11-23T12:00:00Z","subject":null,"ext":7,"data":{"a":[]}}"#;
    let metadata = Some(r#"{"id":"1","source":"/orders","ext":7,"data":{"a":[]}}"#);
    let one = sent(&structured, event.as_bytes()).check(202, &[("/orders", "order.placed", metadata)]);
    let bad = r#"{"specversion":"1.0","id":"2","source":"/orders"}"#;
    let all = format!("[{event},{bad},{event}]");
    let two = sent(&batch, all.as_bytes())
        .check(202, &[("/orders", "order.placed", metadata), ("/orders", "order.placed", metadata)]);
    assert!(one.ids[0] == two.ids[0] && two.ids[0] == two.ids[1], "source, id and time are one event");
    assert!(two.body.contains(r#""index":1,"field":"type","detail":"type is required""#), "{}", two.body);
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/orders"),
        ("ce-type", "order.placed"),
        ("ce-time", "2026-11-23T12:00:00Z"),
    ];
    assert_eq!(sent(&binary, b"").outcome().ids, one.ids, "in any mode");
    sent(&[("Content-Type", "application/cloudevents+xml")], b"").check_refused(415, "cloudevents+json");
    sent(&structured, br#"{"specversion":"1.0","id":7,"source":"s","type":"t"}"#)
        .check_refused(400, "id must be a string");
    let long = "s".repeat(300);
    let long = format!(r#"{{"specversion":"1.0","id":"7","source":"{long}","type":"t"}}"#);
    assert_eq!(sent(&structured, long.as_bytes()).outcome().rows[0].1.len(), 100);
}

#[test]
fn loki_streams_become_events_whatever_the_order_of_their_members() {
    let labels = r#"{"job":"nginx","env":"prod"}"#;
    let values = r#"[["1795435200123456789","one"],["1795435200123456790","two \u00e9",{"trace":"x"}]]"#;
    let expected = [
        ("nginx", "one", Some(labels)),
        ("nginx", "two é", Some(r#"{"job":"nginx","env":"prod","trace":"x"}"#)),
    ];
    let first =
        loki(&format!(r#"{{"streams":[{{"stream":{labels},"values":{values}}}]}}"#)).check(204, &expected);
    assert_eq!((first.rows[0].0, first.body.as_str()), (NOW.micros() + 123_456, ""));
    let reversed = format!(
        r#" {{"x":[1],"streams": [ {{"values": {values} , "z":{{}},"stream":{labels} }} , {{}}, {{"stream":{{}},"values":[]}}]}} "#
    );
    assert_eq!(loki(&reversed).check(204, &expected).ids, first.ids, "a retry has the same ids");
    loki(r#"{"streams":[{"stream":{"a":"b"},"values":[["1795435200000000000","m"]]},{"stream":{"service_name":"s","job":"j"},"values":[["1795435200000000000","m"]]}]}"#)
        .check(204, &[("unknown_service", "m", Some(r#"{"a":"b"}"#)), ("s", "m", Some(r#"{"service_name":"s","job":"j"}"#))]);
    for nothing in ["{}", r#"{"streams":[]}"#] {
        loki(nothing).check(204, &[]);
    }
}

#[test]
fn loki_lines_are_counted_within_a_request_and_told_apart_by_nanoseconds() {
    let push = |entries: &str| {
        loki(&format!(r#"{{"streams":[{{"stream":{{"job":"j"}},"values":[{entries}]}}]}}"#)).outcome().ids
    };
    let ids = push(r#"["1795435200000000000","m"],["1795435200000000000","m"],["1795435200000000001","m"]"#);
    assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
    assert_eq!(push(r#"["1795435200000000001","m"],["1795435200000000000","m"]"#), [ids[2], ids[0]]);
}

#[test]
fn loki_reports_invalid_entries_and_keeps_the_others() {
    let push = |entries: &str| format!(r#"{{"streams":[{{"stream":{{"job":"j"}},"values":[{entries}]}}]}}"#);
    let good = r#"["1795435200000000000","m"]"#;
    let event = [("j", "m", Some(r#"{"job":"j"}"#))];
    for bad in [
        r#"[1795435200000000000,"m"]"#,
        r#"["x","m"]"#,
        r#"["1"]"#,
        "7",
        r#"["1795435200000000000","m",{},1]"#,
        r#"["1","old"]"#,
        r#"["1795435200000000000","\u0000"]"#,
    ] {
        let outcome = loki(&push(&format!("{bad},{good}"))).check(400, &event);
        assert!(outcome.body.contains("1 entries are invalid and 1 are stored"), "{}", outcome.body);
    }
    // A blank line is no event, and no error that makes a sender drop its batch.
    loki(&push(&format!(r#"["1795435200000000000",""],{good}"#))).check(204, &event);
    for (body, part) in [
        ("", "unexpected end"),
        ("[]", "an object with streams"),
        (r#"{"streams":[{"stream":{},"values":[["1","a"]}]}"#, "not JSON"),
        (r#"{"streams":[]} x"#, "unexpected data"),
        (r#"{"streams":[{"values":[["1","a"]],"values":[["1","b"]]}]}"#, "more than once"),
    ] {
        loki(body).check_refused(400, part);
    }
    Sent { path: InputPath::LokiPush, query: "", headers: &[("Content-Type", "text/csv")], body: b"" }
        .check_refused(415, "application/json");
}

#[test]
fn splunk_events_follow_each_other_and_name_their_service() {
    let body = r#"{"time":1795435200.25,"host":"h","source":"src","sourcetype":"st","index":"main","event":"one","fields":{"a":"b"}}
        {"time":"1795435200.250","event":{"line":"two","stream":"stdout"},"fields":{"service.name":"web"}}{"event":{"x":1}}"#;
    let outcome = splunk(body).check(
        200,
        &[
            ("src", "one", Some(r#"{"host":"h","source":"src","sourcetype":"st","index":"main","a":"b"}"#)),
            ("web", "two", Some(r#"{"service.name":"web","event":{"stream":"stdout"}}"#)),
            ("unknown_service", r#"{"x":1}"#, None),
        ],
    );
    assert_eq!(outcome.body, r#"{"text":"Success","code":0}"#);
    assert_eq!(outcome.rows[0].0, NOW.micros() + 250_000);
    splunk(r#"[{"event":"one"},{"event":"two"}]"#)
        .check(200, &[("unknown_service", "one", None), ("unknown_service", "two", None)]);
}

#[test]
fn splunk_errors_have_the_codes_of_the_protocol() {
    for (body, part) in [
        ("", r#"{"text":"No data","code":5,"#),
        ("{", r#"{"text":"Invalid data format","code":6,"#),
        (r#"{"a":1}"#, r#"{"text":"Event field is required","code":12,"invalid-event-number":0,"#),
        (r#"{"event":""}"#, r#"{"text":"Event field cannot be blank","code":13,"invalid-event-number":0,"#),
        (r#"{"event":"m","time":"x"}"#, r#""code":6,"invalid-event-number":0"#),
    ] {
        splunk(body).check_refused(400, part);
    }
    let outcome = splunk(r#"{"event":"a"}{}{"event":"b"}"#)
        .check(200, &[("unknown_service", "a", None), ("unknown_service", "b", None)]);
    assert!(
        outcome.body.starts_with(r#"{"text":"Success","code":0,"accepted":2,"rejected":1,"#),
        "{}",
        outcome.body
    );
}

#[test]
fn splunk_raw_lines_become_events_of_the_source() {
    let sent = |query, body| Sent { path: InputPath::SplunkRaw, query, headers: &[], body };
    let metadata = Some(r#"{"host":"h","source":"/var/log/x y"}"#);
    sent("source=/var/log/x%20y&host=h&channel=1", b"one\r\n\n  \ntwo")
        .check(200, &[("/var/log/x y", "one", metadata), ("/var/log/x y", "two", metadata)]);
    sent("", b"a\n\xff\nb").check(200, &[("unknown_service", "a", None), ("unknown_service", "b", None)]);
    sent("", b"\n").check_refused(400, r#""code":5"#);
}

#[test]
fn refusals_have_the_form_of_the_path() {
    use problem::ProblemKind::{BufferFull, Invalid, Unauthorized, Unavailable};

    let refuse = |path, headers: &[(&str, &str)], kind| {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let mut response = Response::default();
        problem::write(&mut response, kind, "a \"reason\"");
        RefusalFormat::of(path, crate::http::Headers(&headers)).apply(&mut response);
        (response.status, String::from_utf8(response.body).unwrap())
    };
    let token = [("Authorization", "Splunk x")];
    let detail = r#","detail":"a \"reason\""}"#;
    for (headers, kind, status, text) in [
        (&[][..], Unauthorized, 401, r#"{"text":"Token is required","code":2"#),
        (&token, Unauthorized, 403, r#"{"text":"Invalid token","code":4"#),
        (&token, BufferFull, 503, r#"{"text":"Server is busy","code":9"#),
        (&token, Unavailable, 503, r#"{"text":"Server is busy","code":9"#),
        (&token, Invalid, 400, r#"{"text":"Invalid data format","code":6"#),
    ] {
        assert_eq!(refuse(InputPath::SplunkRaw, headers, kind), (status, format!("{text}{detail}")));
    }
    assert_eq!(refuse(InputPath::LokiPush, &[], BufferFull).0, 429);
    // A `google.rpc.Status`.
    for (content_type, kind, status, text) in [
        ("application/x-protobuf", Unavailable, 503, "\x08\x0e\x12\x0aa \"reason\""),
        ("application/json", Unavailable, 503, r#"{"code":14,"message":"a \"reason\""}"#),
        ("application/x-protobuf", BufferFull, 429, "\x08\x08\x12\x0aa \"reason\""),
        ("application/json", BufferFull, 429, r#"{"code":8,"message":"a \"reason\""}"#),
    ] {
        let headers = [("Content-Type", content_type)];
        assert_eq!(refuse(InputPath::OtlpLogs, &headers, kind), (status, text.to_owned()));
    }
}

#[test]
fn token_limits_the_services_of_other_formats() {
    let services: Vec<Box<str>> = vec!["a".into()];
    let headers = [httparse::Header { name: "Content-Type", value: b"application/json" }];
    let (headers, input) =
        parse_request(InputPath::Events, crate::http::Headers(&headers), "extra=metadata").unwrap();
    let headers = IngestHeaders { services: Some(&services), ..headers };
    let mut ingest = ingest(9);
    let body = br#"[{"service":"a","msg":"m"},{"service":"b","msg":"m"}]"#;
    let decoded = ingest.decode_input(input, headers, body, NOW);
    assert_eq!((decoded.accepted(), decoded.rejected()), (1, 1));
    assert!(decoded.errors().listed()[0].detail.contains("may not write the service \"b\""));
}

/// Values and texts of which some are invalid.
fn json_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("null".to_owned()),
        Just("7".to_owned()),
        Just("1795435200.5".to_owned()),
        Just("{\"a\":[1,{}]}".to_owned()),
        "[a-z\\\\\"\u{0}-\u{20}]{0,5}".prop_map(|text| format!("\"{text}\"")),
        "\\PC{0,8}".prop_map(|text| sonic_rs::to_string(&text).unwrap()),
    ]
}

fn json_object() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "time", "log", "event", "fields", "service", "stream", "values", "id", "a.b", "metadata",
    ]);
    prop::collection::vec((name, json_value()), 0..6).prop_map(|members| {
        let members: Vec<_> = members.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    })
}

proptest! {
    #[test]
    fn slicing_changes_no_outcome_of_any_input(
        objects in prop::collection::vec(json_object(), 0..5),
        separator in prop::sample::select(vec!["\n", "", ",", " "]),
        brackets in any::<bool>(),
        budget in 1_usize..300,
    ) {
        let mut body = objects.join(separator);
        if brackets {
            body = format!("[{body}]");
        }
        let cloud = [("Content-Type", "application/cloudevents+json")];
        let loki_body = format!(r#"{{"streams":[{body}]}}"#);
        let sent = [
            mapped("extra=metadata&service=s", JSON, &body),
            mapped("extra=metadata&dedup=body", LINES, &body),
            mapped("", &cloud, &body),
            splunk(&body),
            loki(&loki_body),
            Sent { path: InputPath::SplunkRaw, query: "", headers: &[], body: body.as_bytes() },
        ];
        for sent in sent {
            let (whole, sliced) = (sent.decode(usize::MAX), sent.decode(budget));
            prop_assert_eq!((whole.status, &whole.rows), (sliced.status, &sliced.rows));
            for (.., metadata) in &whole.rows {
                if let Some(metadata) = metadata {
                    prop_assert!(sonic_rs::from_str::<sonic_rs::Value>(metadata).is_ok(), "{}", metadata);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_end_in_an_answer(body in prop::collection::vec(any::<u8>(), 0..80), budget in 1_usize..50) {
        for path in [InputPath::Events, InputPath::LokiPush, InputPath::SplunkEvent, InputPath::SplunkRaw] {
            let sent = Sent { path, query: "extra=metadata&service=s", headers: JSON, body: &body };
            prop_assert_eq!(sent.decode(usize::MAX).status, sent.decode(budget).status);
        }
    }
}

#[test]
fn a_missing_content_type_is_refused_with_the_types_of_the_path() {
    for path in [InputPath::LokiPush, InputPath::OtlpLogs] {
        let error = parse_request(path, crate::http::Headers(&[]), "").unwrap_err().to_string();
        assert!(error.ends_with("must be one of application/x-protobuf, application/json"), "{error}");
    }
}
