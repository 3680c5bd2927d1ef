//! Tests of decoding: bodies and their expected rows, errors and responses.

mod bodies;
mod idempotency;
mod inputs;
mod invalid_events;
mod order;
mod properties;

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::idempotency::HeaderKey;
use super::*;
use crate::event::row::{self, Row};
use crate::http::ContentCoding;
use crate::json::{self, text};

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

fn ingest(rows_per_block_max: u32) -> IngestDecoder {
    let limits = IngestLimits {
        clock_skew: Duration::from_mins(5),
        retention: Duration::from_hours(30 * 24),
        rows_per_block_max,
        decompressed_bytes_max: 1 << 20,
    };
    IngestDecoder::new(limits, IdGenerator::new(StdRng::seed_from_u64(7)))
}

fn headers(format: BodyFormat, key: Option<HeaderKey<'_>>) -> IngestHeaders<'_> {
    IngestHeaders {
        format,
        coding: ContentCoding::Identity,
        key,
        durability: None,
        services: None,
        keeps_ids: false,
    }
}

fn json() -> IngestHeaders<'static> {
    headers(BodyFormat::Json, None)
}

fn ndjson() -> IngestHeaders<'static> {
    headers(BodyFormat::Ndjson, None)
}

/// An event as text, with `field` replaced or added.
fn with(field: &str, value: &str) -> String {
    let mut fields = vec![("timestamp", "1795435200000"), ("service", r#""s""#), ("message", r#""m""#)];
    fields.retain(|(name, _)| *name != field);
    fields.push((field, value));
    let fields: Vec<_> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// A decoded row: time, service, message, metadata.
type DecodedRow = (i64, String, String, Option<String>);

fn read(row: &Row<'_>) -> DecodedRow {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (row.timestamp().micros(), text(row.service()), text(row.message()), row.metadata().map(text))
}

fn rows_of(decoded: &DecodedRequest<'_>) -> Vec<DecodedRow> {
    let mut read_back = Vec::new();
    let mut ids = decoded.ids().iter();
    for (block, rows) in decoded.blocks() {
        let before = read_back.len();
        for row in row::rows(block) {
            row.validate_text().unwrap();
            assert_eq!(Some(&row.event_id()), ids.next());
            assert_eq!(row.event_id().millis(), row.timestamp().millis().cast_unsigned());
            assert_eq!(row.ingested_at(), NOW);
            read_back.push(read(&row));
        }
        assert_eq!(read_back.len() - before, usize::try_from(rows).unwrap());
    }
    assert_eq!(ids.next(), None);
    read_back
}

/// The status and the JSON body of the response.
fn response_of(decoded: &DecodedRequest<'_>) -> (u16, sonic_rs::Value) {
    let mut response = Response::default();
    decoded.write_response(&[], &mut response);
    let expected = if response.status == 202 { "application/json" } else { problem::CONTENT_TYPE };
    assert_eq!(response.content_type, expected);
    (response.status, sonic_rs::from_slice(&response.body).unwrap())
}

#[track_caller]
fn check_accepted(body: &str, expected: (&str, &str, Option<&str>)) {
    let mut ingest = ingest(5000);
    let decoded = ingest.decode(json(), body.as_bytes(), NOW);
    assert_eq!(decoded.errors().listed(), [], "{}", text::truncate(body, 300));
    let rows = rows_of(&decoded);
    assert_eq!(rows.len(), 1);
    let (_, service, message, metadata) = &rows[0];
    assert_eq!((service.as_str(), message.as_str(), metadata.as_deref()), expected);
    let (status, answer) = response_of(&decoded);
    let id = decoded.ids()[0].to_string();
    assert_eq!(status, 202);
    assert_eq!(answer, sonic_rs::json!({"event_id": id, "status": "accepted"}));
}

/// Checks that a single event is rejected with these errors: field, part of the detail.
#[track_caller]
fn check_rejected(body: &str, expected: &[(&str, &str)]) {
    let mut ingest = ingest(5000);
    let decoded = ingest.decode(json(), body.as_bytes(), NOW);
    let shown = text::truncate(body, 300);
    assert_eq!(decoded.accepted(), 0, "{shown}");
    assert_eq!((decoded.bytes(), decoded.blocks().count()), (0, 0), "a rejected event leaves no rows");
    let actual: Vec<_> =
        decoded.errors().listed().iter().map(|e| (e.field.as_ref(), e.detail.as_str())).collect();
    assert_eq!(actual.len(), expected.len(), "{shown}: {actual:?}");
    for ((field, detail), (expected_field, part)) in actual.iter().zip(expected) {
        assert_eq!(field, expected_field, "{shown}");
        assert!(detail.contains(part), "{shown}: {detail}");
        assert!(detail.len() < 300, "echoed values are truncated");
    }
    let (status, answer) = response_of(&decoded);
    assert_eq!(status, 400);
    assert_eq!(sonic_rs::JsonContainerTrait::as_array(&answer["errors"]).unwrap().len(), expected.len());
}

#[test]
fn decoder_encodes_a_valid_event_as_one_row() {
    let body = r#"{"timestamp":"2026-11-23T12:00:00.123Z","service":"checkout","message":"order placed","metadata":{"order":123,"region":"eu"}}"#;
    check_accepted(body, ("checkout", "order placed", Some(r#"{"order":123,"region":"eu"}"#)));
    check_accepted(&with("message", r#""m""#), ("s", "m", None));
    check_accepted(
        "\r\n\t {\"message\" : \"m\",\n\"service\": \"s\" , \"timestamp\":1795435200000 } \n",
        ("s", "m", None),
    );
    check_accepted(&with("metadata", "{}"), ("s", "m", Some("{}")));
    check_accepted(&with("metadata", "null"), ("s", "m", None));
    check_accepted(&with("idempotency_key", "null"), ("s", "m", None));
    check_accepted(&with("timestamp", r#""2026-11-23T12\u003a00:00Z""#), ("s", "m", None));
    check_accepted(&with("message", "1").replace("\"message\":1", r#""me\u0073sage":"m""#), ("s", "m", None));
    check_accepted(&with("metadata", r#"{"a":1,"a":2}"#), ("s", "m", Some(r#"{"a":1,"a":2}"#)));
    check_accepted(
        &with("message", r#""a\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é😀""#),
        ("s", "a\"\\/\u{8}\u{c}\n\r\té😀é😀", None),
    );
    check_accepted(&with("message", "\"\u{7f}\u{2028}\""), ("s", "\u{7f}\u{2028}", None));
}

#[test]
fn decoder_bounds_text_fields_by_unescaped_bytes() {
    for (field, max) in [("service", 100), ("message", 65_536), ("idempotency_key", 128)] {
        let accepted = |text: &str| {
            let mut ingest = ingest(1);
            ingest.decode(json(), with(field, &format!("\"{text}\"")).as_bytes(), NOW).accepted() == 1
        };
        assert!(!accepted(""), "{field}");
        assert!(accepted("a"), "{field}");
        for unit in ["a", "\\n", "\\u0041"] {
            assert!(accepted(&unit.repeat(max)), "{field}");
            assert!(!accepted(&unit.repeat(max + 1)), "{field}");
        }
        for (unit, bytes) in [("é", 2), ("\\u00e9", 2), ("😀", 4), ("\\ud83d\\ude00", 4)] {
            assert!(accepted(&unit.repeat(max / bytes)), "{field}");
            assert!(!accepted(&unit.repeat(max / bytes + 1)), "{field}");
        }
    }
    check_rejected(&with("service", "\"\""), &[("service", "must not be empty")]);
    check_rejected(
        &with("service", &format!("\"{}\"", "x".repeat(101))),
        &[("service", "at most 100 bytes, not 101")],
    );
}

#[test]
fn decoder_bounds_metadata_by_bytes_and_depth() {
    let sized = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    check_accepted(&with("metadata", &sized(65_536)), ("s", "m", Some(&sized(65_536))));
    check_rejected(&with("metadata", &sized(65_537)), &[("metadata", "at most 65536 bytes, not 65537")]);
    let nested =
        |depth: usize| format!("{}{}{}{}", "{\"a\":", "[".repeat(depth - 1), "]".repeat(depth - 1), "}");
    check_accepted(&with("metadata", &nested(64)), ("s", "m", Some(&nested(64))));
    for depth in [65, 66, 128, 129, 193, 10_000] {
        check_rejected(&with("metadata", &nested(depth)), &[("metadata", "deeper than 64 levels")]);
    }
    let mixed = format!("{}1{}", "{\"a\":[".repeat(200), "]}".repeat(200));
    check_rejected(&with("metadata", &mixed), &[("metadata", "deeper than 64 levels")]);
    let crossed = format!("{}1{}", "{\"a\":[".repeat(200), "]}".repeat(199) + "}]");
    check_rejected(&with("metadata", &crossed), &[("body", "',' or ']' was expected")]);
}

#[test]
fn decoder_reports_each_invalid_field() {
    check_rejected("{}", &[("timestamp", "required"), ("service", "required"), ("message", "required")]);
    check_rejected(&with("colour", "{\"deep\":[1]}"), &[("colour", "colour is not a field of an event")]);
    check_rejected(&with("a", "1").replace("\"a\":1", "\"service\":\"t\""), &[("service", "more than once")]);
    check_rejected(
        &with("a", "1").replace("\"a\":1", "\"servic\\u0065\":2"),
        &[("service", "more than once")],
    );
    check_rejected(&with("service", "1"), &[("service", "must be a string, not a number")]);
    check_rejected(&with("service", "null"), &[("service", "must be a string, not null")]);
    check_rejected(&with("message", "[\"a\"]"), &[("message", "must be a string, not an array")]);
    check_rejected(&with("metadata", "[]"), &[("metadata", "must be an object, not an array")]);
    check_rejected(&with("metadata", "\"{}\""), &[("metadata", "must be an object, not a string")]);
    check_rejected(&with("idempotency_key", "true"), &[("idempotency_key", "not a boolean")]);
    check_rejected(&with("timestamp", "true"), &[("timestamp", "not a boolean")]);
    check_rejected(&with("timestamp", "\"yesterday\""), &[("timestamp", "RFC 3339")]);
    check_rejected(&with("timestamp", "1795435200000.5"), &[("timestamp", "whole number")]);
    check_rejected(&with("timestamp", "1.7954352e12"), &[("timestamp", "whole number")]);
    check_rejected(&with("timestamp", "1792843199999"), &[("timestamp", "older than the 30 days")]);
    check_rejected(&with("timestamp", "1795435200"), &[("timestamp", "looks like epoch seconds")]);
    check_rejected(&with("timestamp", "1795435500001"), &[("timestamp", "more than 300000 ms ahead")]);
    check_rejected(&with("timestamp", "-1"), &[("timestamp", "before 1970")]);
    check_rejected(
        &with("timestamp", "\"\"").replace("\"s\"", "\"\"").replace("\"m\"", "{}"),
        &[("service", "empty"), ("message", "not an object"), ("timestamp", "RFC 3339")],
    );
    let long = "n".repeat(5000);
    let shown = format!("{}...", "n".repeat(64));
    check_rejected(&with(&long, "1"), &[(&shown, "is not a field")]);
    let many: String = (0..100).fold(String::new(), |all, n| all + &format!(",\"f{n}\":0"));
    let mut ingest = ingest(1);
    let decoded = ingest.decode(json(), with("x", &format!("0{many}")).as_bytes(), NOW);
    assert_eq!((decoded.errors().listed().len(), decoded.errors().omitted()), (16, 85));
}

#[test]
fn batch_accepts_valid_events_and_reports_invalid_ones() {
    let valid = with("message", "\"m\"");
    let body = format!("[{valid}, 5 ,{},{valid}]", with("message", "\"\""));
    let mut ingest = ingest(5000);
    let decoded = ingest.decode(json(), body.as_bytes(), NOW);
    let ids: Vec<_> = decoded.ids().iter().map(ToString::to_string).collect();
    let (status, answer) = response_of(&decoded);
    assert_eq!(status, 202);
    assert_eq!(
        answer,
        sonic_rs::json!({"accepted": 2, "rejected": 2, "event_ids": ids, "errors": [
            {"index": 1, "field": "event", "detail": "an event must be an object, not a number"},
            {"index": 2, "field": "message", "detail": "message must not be empty"},
        ]})
    );
    let decoded = ingest.decode(json(), b"[{},7]", NOW);
    let (status, answer) = response_of(&decoded);
    assert_eq!((status, &answer["detail"]), (400, &sonic_rs::json!("none of the 2 events is valid")));
    assert_eq!(answer["type"], sonic_rs::json!("urn:aurore-events:problem:invalid"));
    assert_eq!(answer["errors"][3]["index"], sonic_rs::json!(1));
    let decoded = ingest.decode(json(), format!("[{valid}]").as_bytes(), NOW);
    assert_eq!(response_of(&decoded).1["accepted"], sonic_rs::json!(1), "an array of one is a batch");
}

#[test]
fn ndjson_rejects_only_the_malformed_line() {
    let valid = with("message", "\"m\"");
    let body = format!("{valid}\r\n\n  \r\n{{\"x\":1,\n{valid}{valid}\n {valid} \n{{}}\n5\n{valid}");
    let mut body = body.into_bytes();
    body.extend_from_slice(b"\n{\"service\":\"\xff\"}\n");
    let mut ingest = ingest(5000);
    let decoded = ingest.decode(ndjson(), &body, NOW);
    assert_eq!(rows_of(&decoded).len(), 3);
    assert_eq!(decoded.rejected(), 5);
    let errors: Vec<_> = decoded
        .errors()
        .listed()
        .iter()
        .map(|e| (e.index.unwrap(), e.field.as_ref(), e.detail.as_str()))
        .collect();
    let first = valid.len();
    assert_eq!(
        errors,
        [
            (1, "body", "line 4: not JSON: unexpected end of JSON at byte 7 of the line"),
            (
                2,
                "body",
                &*format!(
                    "line 5: not JSON: unexpected data after the JSON value at byte {first} of the line"
                )
            ),
            (4, "timestamp", "timestamp is required"),
            (4, "service", "service is required"),
            (4, "message", "message is required"),
            (5, "event", "an event must be an object, not a number"),
            (7, "body", "line 10: not UTF-8 at byte 12 of the line"),
        ]
    );
    assert_eq!(response_of(&ingest.decode(ndjson(), b"\n\r\n", NOW)).0, 400);
    let one = ingest.decode(ndjson(), valid.as_bytes(), NOW);
    assert_eq!(one.shape(), BodyShape::Batch, "a line is a batch of one");
}

#[test]
fn blocks_hold_at_most_rows_per_block_max_rows() {
    let valid = with("message", "\"m\"");
    let mut ingest = ingest(4);
    for (events, expected) in
        [(1, vec![1]), (3, vec![3]), (4, vec![4]), (5, vec![4, 1]), (8, vec![4, 4]), (9, vec![4, 4, 1])]
    {
        let body = format!("[{}]", vec![valid.as_str(); events].join(","));
        let decoded = ingest.decode(json(), body.as_bytes(), NOW);
        assert_eq!(decoded.blocks().map(|(_, rows)| rows).collect::<Vec<_>>(), expected);
        assert_eq!(decoded.blocks().map(|(block, _)| block.len()).sum::<usize>(), decoded.bytes());
        assert_eq!(rows_of(&decoded).len(), events);
        let joined: Vec<u8> = decoded.blocks().flat_map(|(bytes, _)| bytes).copied().collect();
        assert_eq!(rows_of(&decoded), row::rows(&joined).map(|row| read(&row)).collect::<Vec<_>>());
    }
}

#[test]
fn decoder_rejects_each_event_of_a_service_that_the_token_may_not_write() {
    #[track_caller]
    fn check(body: &str, services: &[&str], status: u16, holds: &str) {
        let services: Vec<Box<str>> = services.iter().map(|service| (*service).into()).collect();
        let mut ingest = ingest(9);
        let headers = IngestHeaders { services: Some(&services), ..json() };
        let decoded = ingest.decode(headers, body.as_bytes(), NOW);
        let mut response = Response::default();
        decoded.write_response(&[], &mut response);
        let text = String::from_utf8(response.body).unwrap();
        assert_eq!(response.status, status, "{text}");
        assert!(text.contains(holds), "{text}");
    }
    let (allowed, forbidden) = (with("service", "\"a\""), with("service", "\"other\""));
    check(&allowed, &["a", "b"], 202, "event_id");
    check(&with("service", r#""\u0061""#), &["a"], 202, "event_id");
    check(
        &forbidden,
        &["a", "b"],
        403,
        r#""field":"service","detail":"the token may not write the service \"other\"""#,
    );
    check(&allowed, &[], 403, "forbidden");
    check(&format!("[{allowed},{forbidden}]"), &["a"], 202, r#""accepted":1,"rejected":1"#);
    check(&format!("[{allowed},{forbidden}]"), &["a"], 202, r#"{"index":1,"field":"service""#);
    check(&format!("[{forbidden},{forbidden}]"), &["a"], 403, r#""index":1"#);
    // If another event is invalid for another reason, the response is 400, not 403.
    check(&format!("[{forbidden},{{}}]"), &["a"], 400, r#""field":"service""#);
    check(&with("service", "\"\""), &["a"], 400, "must not be empty");
}
