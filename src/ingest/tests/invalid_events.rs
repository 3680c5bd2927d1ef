//! Invalid events and bodies, and valid ones that resemble them.

use super::*;

/// Values that PostgreSQL would refuse: the field, the value, a part of the error.
const INVALID_FIELDS: &[(&str, &str, &str)] = &[
    ("message", r#""a\u0000b""#, "U+0000"),
    ("service", r#""\u0000""#, "U+0000"),
    ("idempotency_key", r#""\u0000""#, "U+0000"),
    ("metadata", r#"{"\u0000":1}"#, "U+0000"),
    ("metadata", r#"{"a":["\u0000"]}"#, "U+0000"),
    ("message", r#""\ud800""#, "surrogate"),
    ("message", r#""\udfff""#, "surrogate"),
    ("message", r#""\ude00\ud83d""#, "surrogate"),
    ("message", r#""\ud83d\u0041""#, "surrogate"),
    ("message", r#""\ud83d\ud83d\ude00""#, "surrogate"),
    ("message", r#""\ud83d\n""#, "surrogate"),
    ("metadata", r#"{"\udc00":1}"#, "surrogate"),
    ("metadata", r#"{"a":1e400000}"#, "out of range"),
    ("metadata", r#"{"a":-1e131072}"#, "out of range"),
    ("metadata", r#"{"a":1e-16384}"#, "out of range"),
    ("metadata", r#"{"a":1.5e-16383}"#, "out of range"),
    ("metadata", r#"{"a":0e-16384}"#, "out of range"),
    ("metadata", r#"{"a":1E99999999999999999999999999999999}"#, "out of range"),
    ("metadata", r#"{"a":1e-99999999999999999999999999999999}"#, "out of range"),
    ("metadata", r#"{"a":0e1073741823}"#, "out of range"),
    ("metadata", r#"{"a":[1e131071,1e131071]}"#, "exponents"),
    ("timestamp", r#""0000-01-01T00:00:00Z""#, "before 1970"),
    ("timestamp", r#""294277-01-01T00:00:00Z""#, "RFC 3339"),
    ("timestamp", "9223372036854775807999", "ahead"),
    ("timestamp", "-9223372036854775807999", "before 1970"),
];

#[test]
fn decoder_rejects_only_the_events_that_postgresql_would_refuse() {
    for (field, value, part) in INVALID_FIELDS {
        check_rejected(&with(field, value), &[(field, part)]);
        for invalid in [1, 2, 2500, 5000] {
            let mut events = vec![with(field, value); invalid];
            events.resize(invalid + 3, with("message", "\"valid\""));
            events.rotate_left(invalid / 2);
            let mut ingest = ingest(5000);
            let array = format!("[{}]", events.join(","));
            let lines = events.join("\n");
            for (headers, body) in [(json(), array), (ndjson(), lines)] {
                let decoded = ingest.decode(headers, body.as_bytes(), NOW);
                assert_eq!((decoded.accepted(), decoded.rejected()), (3, u32::try_from(invalid).unwrap()));
                let listed = decoded.errors().listed();
                assert_eq!(listed.len(), invalid.min(1000));
                assert_eq!(decoded.errors().omitted(), invalid.saturating_sub(1000) as u64);
                assert!(listed.iter().all(|error| error.field == *field));
                assert_eq!(rows_of(&decoded).len(), 3);
            }
        }
    }
    let long = format!("\"{}\"", "x".repeat(1024 * 1024));
    check_rejected(&with("message", &long), &[("message", "at most 65536 bytes, not 1048576")]);
    check_rejected(&with("service", &long), &[("service", "at most 100 bytes")]);
}

#[test]
fn decoder_accepts_the_numbers_that_postgresql_accepts() {
    let nines = |count: usize| "9".repeat(count);
    let zeros = |count: usize| "0".repeat(count);
    for valid in [
        "0",
        "-0",
        "1",
        "-1.5",
        "1e5",
        "1E+5",
        "1e-5",
        "0e999999",
        "-0.0e5",
        "0e1073741822",
        "0e-16383",
        "1e131071",
        "10e131070",
        "0.1e131072",
        "0.0000001e131078",
        "1e-16383",
        "1.5e-16382",
        &format!("1e{}5", zeros(1000)),
        &format!("0.{}", nines(16_383)),
        &format!("0.{}e1", nines(16_384)),
        &format!("0.{}e1", zeros(16_384)),
        &format!("0.{}1e60000", zeros(60_000)),
        &format!("1{}e71071", zeros(60_000)),
        &nines(60_000),
    ] {
        let metadata = format!("{{\"a\":{valid}}}");
        check_accepted(&with("metadata", &metadata), ("s", "m", Some(&metadata)));
    }
    for invalid in [
        "10e131071",
        "99e131071",
        "0.1e131073",
        "0.0000001e131079",
        "12345e131068",
        &format!("0.{}", nines(16_384)),
        &format!("0.{}e1", zeros(16_385)),
        &format!("1{}e-60000", zeros(60_000)),
        &format!("1{}e71072", zeros(60_000)),
    ] {
        check_rejected(&with("metadata", &format!("{{\"a\":{invalid}}}")), &[("metadata", "out of range")]);
    }
}

#[test]
fn malformed_json_rejects_the_body_with_its_position() {
    for (body, part) in [
        ("", "no events"),
        (" \n", "no events"),
        ("[]", "array is empty"),
        ("5", "not an event object or an array"),
        ("\"a\"", "not an event object or an array"),
        ("null", "not an event object or an array"),
        ("{", "unexpected end of JSON at byte 1"),
        ("[", "unexpected end of JSON at byte 1"),
        ("[{}", "unexpected end of JSON at byte 3"),
        ("[{}}", "',' or ']' was expected at byte 3"),
        ("[{},]", "a value was expected at byte 4"),
        ("[,]", "a value was expected at byte 1"),
        ("[{}]]", "data after the JSON value at byte 4"),
        ("{} {}", "data after the JSON value at byte 3"),
        ("{,}", "field name in double quotes was expected at byte 1"),
        ("{\"a\":1,}", "field name in double quotes was expected at byte 7"),
        ("{\"a\" 1}", "':' was expected at byte 5"),
        ("{\"a\":1 \"b\":2}", "',' or '}' was expected at byte 7"),
        ("{a:1}", "field name"),
        ("{'a':1}", "field name"),
        ("{\"a\":}", "a value was expected at byte 5"),
        ("{\"a\":tru}", "a value was expected"),
        ("{\"a\":nulll}", "',' or '}' was expected"),
        ("{\"a\":NaN}", "a value was expected"),
        ("{\"a\":+1}", "a value was expected"),
        ("{\"a\":01}", "leading zero at byte 5"),
        ("{\"a\":-}", "a digit was expected"),
        ("{\"a\":-01}", "leading zero"),
        ("{\"a\":1.}", "a digit was expected"),
        ("{\"a\":.5}", "a value was expected"),
        ("{\"a\":1e}", "a digit was expected"),
        ("{\"a\":1e+}", "a digit was expected"),
        ("{\"a\":0x10}", "',' or '}' was expected"),
        ("{\"a\":\"b}", "unexpected end of JSON"),
        ("{\"a\":\"\\x\"}", "invalid escape in a string at byte 6"),
        ("{\"a\":\"\\u12\"}", "invalid escape"),
        ("{\"a\":\"\\u12g4\"}", "invalid escape"),
        ("{\"a\":\"\\u+123\"}", "invalid escape"),
        ("{\"a\":\"\\", "invalid escape"),
        ("{\"a\":\"\n\"}", "control character in a string at byte 6"),
        ("{\"a\":\"\u{0}\"}", "control character"),
        ("{\"a\":\"01234567890123456\u{1f}\"}", "control character"),
        ("{\"a\":[1,]}", "a value was expected at byte 8"),
        ("{\"a\":{\"b\":1,}}", "a key in double quotes"),
        ("{\"a\":{1:1}}", "a key in double quotes"),
        ("{\"a\":[1}}", "',' or ']' was expected"),
        ("{\"a\":{\"b\":1]}", "',' or '}' was expected"),
        ("{\"a\":[1 2]}", "',' or ']' was expected"),
        ("{}\u{0}", "data after the JSON value at byte 2"),
        ("\u{feff}\u{feff}{}", "a value was expected at byte 3"),
        ("{} // c", "data after the JSON value"),
    ] {
        check_rejected(body, &[("body", part)]);
    }
    check_rejected(&"[".repeat(1_000_000), &[("body", "unexpected end of JSON")]);
    check_rejected(&"{\"a\":".repeat(200_000), &[("body", "unexpected end of JSON")]);
    let mut ingest = ingest(1);
    let decoded = ingest.decode(json(), b"{\"service\":\"\xff\"}", NOW);
    assert!(decoded.errors().listed()[0].detail.contains("not UTF-8 at byte 12"));
}
