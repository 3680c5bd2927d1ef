//! Validation of events: each rule at its limit, one past it and at zero. No event is accepted that
//! PostgreSQL would reject.

use aurore_events::event::Timestamp;
use sonic_rs::JsonValueTrait;

use crate::harness::events::{id_of, list, text};
use crate::harness::{Client, TestServer, event, now, wait_for_drain};

const DAY_MICROS: i64 = 86_400_000_000;

/// A current event with these members added or replaced; the value `-` removes a member.
fn event_with(changes: &[(&str, &str)]) -> String {
    let time = format!("\"{}\"", now());
    let mut members = vec![("timestamp", time.as_str()), ("service", "\"s\""), ("message", "\"m\"")];
    for change in changes {
        members.retain(|(name, _)| *name != change.0);
        members.push(*change);
    }
    let members: Vec<String> = members
        .iter()
        .filter(|(_, value)| *value != "-")
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    format!("{{{}}}", members.join(","))
}

#[track_caller]
fn accepts(client: &mut Client, changes: &[(&str, &str)]) {
    let body = event_with(changes);
    let reply = client.post_json(&body);
    assert_eq!(reply.status, 202, "{body:.300}: {}", reply.text());
}

/// Asserts a rejection that names the field.
#[track_caller]
fn refuses(client: &mut Client, field: &str, value: &str) {
    let body = event_with(&[(field, value)]);
    let reply = client.post_json(&body);
    assert_eq!(reply.status, 400, "{body:.300}: {}", reply.text());
    let errors = list(&reply.json()["errors"]);
    assert_eq!(errors.len(), 1, "{body:.300}: {}", reply.text());
    assert_eq!(text(&errors[0]["field"]), field, "{body:.300}: {}", reply.text());
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// An object within an object, `depth` of them.
fn nested(depth: usize) -> String {
    format!("{}1{}", "{\"k\":".repeat(depth), "}".repeat(depth))
}

#[test]
fn each_field_is_validated_at_its_bounds() {
    let test = TestServer::start(&[]);
    let client = &mut test.server.client();
    times(client);
    texts(client);
    metadata(client);
    others(client);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.dead(), 0, "accepted metadata can be stored");
}

fn times(client: &mut Client) {
    let later = |micros: i64| Timestamp::from_micros(now().micros() + micros);
    let quoted_later = |micros: i64| quoted(&later(micros).to_string());

    // The limits: 30 days back, 300,000 ms ahead. The clock advances during the test.
    accepts(client, &[("timestamp", &quoted_later(-30 * DAY_MICROS + 10_000_000))]);
    refuses(client, "timestamp", &quoted_later(-30 * DAY_MICROS - 1));
    accepts(client, &[("timestamp", &quoted_later(300_000_000))]);
    refuses(client, "timestamp", &quoted_later(310_000_000));
    accepts(client, &[("timestamp", &later(0).millis().to_string())]);
    accepts(client, &[("timestamp", &later(-30 * DAY_MICROS + 10_000_000).millis().to_string())]);

    let utc = now().to_string();
    let whole = &utc[..19];
    for form in [
        format!("{whole}Z"),
        format!("{whole}.1Z"),
        format!("{whole}.123456Z"),
        format!("{whole}+00:00"),
        format!("{whole}-00:00"),
    ] {
        accepts(client, &[("timestamp", &quoted(&form))]);
    }
    // The same time with other offsets.
    let east = later(19_800_000_000).to_string();
    accepts(client, &[("timestamp", &quoted(&format!("{}+05:30", &east[..19])))]);

    for wrong in [
        "-",
        "null",
        "true",
        "{}",
        "[]",
        "\"\"",
        "\"now\"",
        "\"2026-13-01T00:00:00Z\"",
        "\"2026-02-30T00:00:00Z\"",
        "\"2026-11-23\"",
        "\"2026-11-23T10:00:00\"",
        "\"0000-01-01T00:00:00Z\"",
        "\"294277-01-01T00:00:00Z\"",
        "\"2026-11-23T24:00:00Z\"",
        "\"2026-11-23T10:60:00Z\"",
        "\"2026-11-23T10:00:00+25:00\"",
        "0",
        "-1",
        "1.5",
        "1e3",
        "9223372036854775807",
        "99999999999999999999999",
        "\"1700000000000\"",
    ] {
        refuses(client, "timestamp", wrong);
    }
}

fn texts(client: &mut Client) {
    for (field, bytes_max) in [("service", 100), ("message", 64 * 1024), ("idempotency_key", 128)] {
        accepts(client, &[(field, &quoted("x"))]);
        accepts(client, &[(field, &quoted(&"x".repeat(bytes_max)))]);
        refuses(client, field, &quoted(&"x".repeat(bytes_max + 1)));
        refuses(client, field, &quoted(""));
        // The limit counts bytes after unescaping, not characters.
        accepts(client, &[(field, &quoted(&"é".repeat(bytes_max / 2)))]);
        refuses(client, field, &quoted(&"é".repeat(bytes_max / 2 + 1)));
        accepts(client, &[(field, &quoted(&"\\u0041".repeat(bytes_max)))]);
        refuses(client, field, &quoted(&"\\u0041".repeat(bytes_max + 1)));
        accepts(client, &[(field, &quoted("\\ud83d\\ude00"))]);
        for wrong in ["1", "true", "{}", "[]", "[\"x\"]"] {
            refuses(client, field, wrong);
        }
        for wrong in ["\\u0000", "a\\u0000b", "\\ud800", "\\ud83d\\u0041", "\\ude00\\ud83d", "\\udfff"] {
            refuses(client, field, &quoted(wrong));
        }
    }
    refuses(client, "service", "-");
    refuses(client, "message", "-");
    refuses(client, "service", "null");
    refuses(client, "message", "null");
}

fn metadata(client: &mut Client) {
    let sized = |bytes: usize| format!("{{\"k\":\"{}\"}}", "x".repeat(bytes - 8));
    accepts(client, &[("metadata", "-")]);
    accepts(client, &[("metadata", "{}")]);
    accepts(client, &[("metadata", &sized(64 * 1024))]);
    refuses(client, "metadata", &sized(64 * 1024 + 1));
    accepts(client, &[("metadata", &nested(64))]);
    refuses(client, "metadata", &nested(65));
    // Deeper than any stack.
    refuses(client, "metadata", &nested(10_000));
    let array = |depth: usize| format!("{{\"k\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    accepts(client, &[("metadata", &array(63))]);
    refuses(client, "metadata", &array(64));
    for wrong in ["[]", "1", "\"text\"", "true"] {
        refuses(client, "metadata", wrong);
    }
}

fn others(client: &mut Client) {
    refuses(client, "colour", "\"red\"");
    refuses(client, "event_id", "\"01234567-89ab-7fff-bfff-ffffffffffff\"");
    refuses(client, "ingested_at", "0");
    // Invalid UTF-8: the whole body is rejected.
    for raw in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\0", b"\n"] {
        let mut body = event_with(&[]).into_bytes();
        let at = body.len() - 2;
        body.splice(at..at, raw.iter().copied());
        let reply = client.post_json(&body);
        assert_eq!(reply.status, 400, "{}: {}", body.escape_ascii(), reply.text());
    }
}

/// Metadata values at the limits of JSON and of `jsonb`, valid and invalid.
const TRICKY: &[&str] = &[
    // Numbers.
    "0",
    "-0",
    "-0.0",
    "0.10",
    "1E+2",
    "1e-7",
    "1e400",
    "-1e400",
    "1e-400",
    "12345678901234567890.123456789",
    "1e131071",
    "1e131072",
    "1e400000",
    "-1e400000",
    "1e-16383",
    "1e-16384",
    "1e-400000",
    "0e400000",
    "1e99999999999999999999",
    "01",
    "+1",
    "1.",
    ".5",
    "1e",
    "1e+",
    "--1",
    "NaN",
    "Infinity",
    "0x10",
    // Strings.
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ude00\\ud83d\"",
    "\"\\ud83d\"",
    "\"\\ud83d\\u0041\"",
    "\"\\uFFFE\"",
    "\"\\uffff\"",
    "\"\u{fffe}\u{10ffff}\"",
    "\"\\u00zz\"",
    "\"\\x\"",
    "\"\\u007f\u{7f}\"",
    "\"\\b\\f\\n\\r\\t\\/\\\\\\\"\"",
    "\"\u{1}\"",
    "\"\t\"",
    "'single'",
    "\"open",
    "\"\u{feff}\"",
    "\"e\u{301}\"",
    // Structure.
    "[1,2]",
    "[1,]",
    "[,]",
    "{\"a\":1,\"a\":2}",
    "{\"\":1}",
    "{\"a\":}",
    "{a:1}",
    "{\"\\u0000\":1}",
    "{\"\\ud800\":1}",
    " \t\r\n1 ",
    "1\u{c}",
    "\u{a0}1",
    "/* no */1",
    "true",
    "True",
    "null",
    "nul",
    "1 2",
];

#[test]
fn metadata_is_accepted_exactly_when_postgresql_accepts_it() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let mut session = test.postgres.client();
    for (index, value) in TRICKY.iter().enumerate() {
        let json = format!("{{\"v\":{value}}}");
        let wanted = session.query_one("SELECT $1::text::jsonb", &[&json]).is_ok();
        let key = format!("\"tricky-{index}\"");
        let reply = client.post_json(event_with(&[("message", &key), ("metadata", &json)]));
        assert_eq!(reply.status == 202, wanted, "{json} in PostgreSQL: {wanted}; here: {}", reply.text());
    }
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.dead(), 0, "accepted metadata can be stored");
    for row in test.postgres.rows("SELECT message, metadata::text FROM events") {
        let (message, stored): (String, String) = (row.get(0), row.get(1));
        let index: usize = message.strip_prefix("tricky-").unwrap().parse().unwrap();
        let json = format!("{{\"v\":{}}}", TRICKY[index]);
        let wanted: String = session.query_one("SELECT $1::text::jsonb::text", &[&json]).unwrap().get(0);
        assert_eq!(stored, wanted);
    }
}

#[test]
fn a_stored_event_equals_the_sent_event() {
    let test = TestServer::start(&[]);
    let mut client = test.server.client();
    let sent = Timestamp::from_micros(now().micros() / 1_000_000 * 1_000_000 + 123_456);
    // The same text, escaped by the producer or not.
    let cases: &[(&str, &str)] = &[
        ("plain", "plain"),
        ("\\u00e9\\ud83d\\ude00", "é😀"),
        ("é😀\u{10ffff}\u{fffe}", "é😀\u{10ffff}\u{fffe}"),
        ("\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\u{8}\u{c}\n\r\t"),
        ("\\u0001\\u007f", "\u{1}\u{7f}"),
        (" leading and trailing ", " leading and trailing "),
        ("\\\\N\\\\.", "\\N\\."),
        ("'; DROP TABLE events; --", "'; DROP TABLE events; --"),
        ("\u{feff}mark", "\u{feff}mark"),
    ];
    let mut ids = Vec::new();
    for (escaped, _) in cases {
        let body = event_with(&[
            ("timestamp", &quoted(&sent.to_string())),
            ("service", &quoted(escaped)),
            ("message", &quoted(escaped)),
            ("metadata", &format!("{{\"k\":\"{escaped}\", \"n\": 1.50}}")),
        ]);
        ids.push(id_of(&client.post_json(body)));
    }
    let before = now();
    let plain = id_of(&client.post_json(event("s", "no metadata")));
    wait_for_drain(&test.server);

    let mut session = test.postgres.client();
    for (id, (_, wanted)) in ids.iter().zip(cases) {
        let row = session
            .query_one(
                "SELECT service, message, metadata->>'k', metadata->>'n', metadata::text, \
                 (extract(epoch FROM timestamp) * 1000000)::bigint FROM events WHERE event_id = $1::text::uuid",
                &[id],
            )
            .unwrap();
        assert_eq!((row.get(0), row.get(1), row.get(2)), (*wanted, *wanted, *wanted));
        assert_eq!(row.get::<_, &str>(3), "1.50");
        assert_eq!(row.get::<_, i64>(5), sent.micros());
        // Queries return the same.
        let found = client.get_json(&format!("/events/{id}"));
        assert_eq!(found["message"].as_str(), Some(*wanted));
        assert_eq!(found["service"].as_str(), Some(*wanted));
        assert_eq!(found["metadata"]["k"].as_str(), Some(*wanted));
    }
    let row = session
        .query_one(
            "SELECT metadata IS NULL, (extract(epoch FROM ingested_at) * 1000000)::bigint \
             FROM events WHERE event_id = $1::text::uuid",
            &[&plain],
        )
        .unwrap();
    assert!(row.get::<_, bool>(0));
    let ingested: i64 = row.get(1);
    assert!((before.micros()..=now().micros()).contains(&ingested), "{ingested}");
}
