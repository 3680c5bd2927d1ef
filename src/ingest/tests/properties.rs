//! Property tests of decoding.

use proptest::prelude::*;

use super::*;
use crate::event::EVENT_BYTES_MAX;
use crate::http::Response;

/// JSON text of `text` with escapes chosen by `choices`.
fn escape(text: &str, choices: &mut impl Iterator<Item = u8>) -> String {
    use std::fmt::Write;
    let mut out = String::from("\"");
    for char in text.chars() {
        let choice = choices.next().unwrap_or(0);
        let must = char < ' ' || char == '"' || char == '\\';
        let short = match char {
            '"' => Some("\\\""),
            '\\' => Some("\\\\"),
            '/' => Some("\\/"),
            '\n' => Some("\\n"),
            '\t' => Some("\\t"),
            _ => None,
        };
        match short {
            Some(short) if choice.is_multiple_of(2) => out.push_str(short),
            _ if must || choice % 7 == 3 => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04X}").unwrap();
                }
            }
            _ => out.push(char),
        }
    }
    out + "\""
}

fn texts(max: usize) -> impl Strategy<Value = String> {
    prop_oneof!["[a-z /\"\\\\\n\t]{1,40}", "\\PC{1,20}", "[^\u{0}]{1,60}"]
        .prop_map(move |text| {
            let end = (0..=max.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
            text[..end].to_owned()
        })
        .prop_filter("not empty", |text| !text.is_empty())
}

fn metadata() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        (-1e9..1e9).prop_map(|n: f64| format!("{n:e}")),
        texts(50).prop_map(|text| escape(&text, &mut std::iter::empty())),
    ];
    let value = leaf.prop_recursive(6, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" ,\n"))),
            prop::collection::vec((texts(9), inner), 0..5).prop_map(object),
        ]
    });
    prop::collection::vec((texts(9), value), 0..5).prop_map(object)
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<_> = members
        .into_iter()
        .map(|(key, value)| format!("{} : {value}", escape(&key, &mut std::iter::empty())))
        .collect();
    format!("{{{}}}", members.join(","))
}

proptest! {
    #[test]
    fn any_event_decodes_to_an_equal_row(
        events in prop::collection::vec(
            (0_i64..2_000_000_000_000, texts(100), texts(300), prop::option::of(metadata()), 0_usize..24), 1..6),
        choices in prop::collection::vec(any::<u8>(), 0..200),
        space in prop::sample::select(vec!["", " ", "\t \r"]),
    ) {
        let mut choices = choices.into_iter().cycle();
        let mut bodies = Vec::new();
        let mut expected = Vec::new();
        for (ago, service, message, metadata, order) in events {
            let time = Timestamp::from_micros(NOW.micros() - ago);
            let mut fields = vec![
                ("timestamp", escape(&time.to_string(), &mut choices)),
                ("service", escape(&service, &mut choices)),
                ("message", escape(&message, &mut choices)),
            ];
            if let Some(metadata) = &metadata {
                fields.push(("metadata", metadata.clone()));
            }
            let count = fields.len();
            fields.swap(0, order % count);
            fields.rotate_left(order / 6 % count);
            let fields: Vec<_> = fields
                .into_iter()
                .map(|(name, value)| format!("{}{space}:{space}{value}{space}", escape(name, &mut choices)))
                .collect();
            bodies.push(format!("{{{space}{}}}", fields.join(",")));
            expected.push((time.micros(), service, message, metadata));
        }
        let mut ingest = ingest(2);
        let array = format!("{space}[{}]{space}", bodies.join(","));
        let decoded = ingest.decode(json(), array.as_bytes(), NOW);
        prop_assert_eq!(decoded.errors().listed(), &[]);
        prop_assert_eq!(rows_of(&decoded), expected.clone());
        prop_assert_eq!(decoded.blocks().count(), expected.len().div_ceil(2));
        let lines: Vec<_> = bodies.iter().map(|body| body.replace('\n', " ")).collect();
        let decoded = ingest.decode(ndjson(), lines.join("\r\n").as_bytes(), NOW);
        let without_feeds: Vec<_> = expected
            .into_iter()
            .map(|(time, service, message, metadata)| (time, service, message, metadata.map(|m| m.replace('\n', " "))))
            .collect();
        prop_assert_eq!(rows_of(&decoded), without_feeds);
    }

    #[test]
    fn decoder_never_panics_on_arbitrary_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut ingest = ingest(3);
        rows_of(&ingest.decode(json(), &body, NOW));
        rows_of(&ingest.decode(ndjson(), &body, NOW));
    }

    #[test]
    fn scanner_accepts_only_valid_json(
        body in "[\\[{]?(\\{\"(a|metadata)\":)?[\\[\\]{}:,\"\\\\ud80c0-9eE.+tfn -]{0,30}[}\\]]{0,3}",
    ) {
        let mut scanner = json::Scanner::new(body.as_bytes());
        scanner.next_token();
        let whole = scanner.value().is_ok_and(|value| {
            scanner.next_token();
            scanner.is_at_end() && value.violation.is_none()
        });
        let reference = sonic_rs::from_str::<sonic_rs::LazyValue<'_>>(&body);
        if whole {
            prop_assert!(reference.is_ok(), "{}", body);
            prop_assert!(sonic_rs::from_str::<sonic_rs::Value>(&body).is_ok() || body.contains(['e', 'E', '.']) || body.len() > 18, "{}", body);
        }
    }

    #[test]
    fn decoder_never_panics_on_a_mutated_event(at in 0_usize..150, byte in any::<u8>(), cut in 0_usize..200) {
        let mut body = r#"{"timestamp":"2026-11-23T12:00:00.123Z","service":"check\u00e9\ud83d\ude00","message":"order placed","metadata":{"order":[1.5e3,null],"region":"eu"}}"#.as_bytes().to_vec();
        let end = body.len();
        body[at.min(end - 1)] = byte;
        body.truncate(cut);
        let mut ingest = ingest(3);
        for row in rows_of(&ingest.decode(json(), &body, NOW)) {
            if let Some(metadata) = row.3 {
                prop_assert!(sonic_rs::from_str::<sonic_rs::Value>(&metadata).is_ok());
            }
        }
    }
}

/// Like [`IngestDecoder::decode`], in slices of `budget`.
fn decode_sliced<'a>(
    ingest: &'a mut IngestDecoder,
    headers: IngestHeaders<'_>,
    body: &[u8],
    budget: usize,
) -> DecodedRequest<'a> {
    ingest.begin(None);
    while !ingest.decode_slice(headers, body, NOW, budget) {}
    ingest.decoded()
}

fn outcome_of(decoded: &DecodedRequest<'_>) -> (BodyShape, Vec<DecodedRow>, String) {
    let mut response = Response::default();
    decoded.write_response(&[], &mut response);
    (decoded.shape(), rows_of(decoded), String::from_utf8(response.body).unwrap())
}

proptest! {
    #[test]
    fn slicing_does_not_change_the_outcome(
        pieces in prop::collection::vec(
            prop_oneof![
                4 => Just(with("message", "\"valid\"")),
                1 => Just(with("message", "\"\u{e9}\u{1f600}\"")),
                1 => Just(with("service", "7")),
                1 => Just("{}".to_owned()),
                1 => Just("[1]".to_owned()),
                1 => Just("{".to_owned()),
                1 => "[ \r\t]{0,9}",
                1 => Just("\u{feff}".to_owned()),
            ],
            0..12,
        ),
        (open, between, close) in prop_oneof![
            Just(("", "\n", "")), Just(("[", ",", "]")), Just((" [ ", " , ", " ] \n")), Just(("[", ",", "] 1")),
            Just(("", " ", "")), Just((" ", "\r\n", "\n\n")), Just(("\u{feff}[", ",", "]")),
        ],
        broken in prop::option::of(any::<prop::sample::Index>()),
        budget in 1_usize..600,
    ) {
        let mut body = format!("{open}{}{close}", pieces.join(between)).into_bytes();
        if let Some(at) = broken {
            let at = at.index(body.len() + 1);
            body.insert(at, 0xff);
        }
        for headers in [json(), ndjson(), headers(BodyFormat::Text, None)] {
            let whole = outcome_of(&ingest(3).decode(headers, &body, NOW));
            prop_assert_eq!(outcome_of(&decode_sliced(&mut ingest(3), headers, &body, budget)), whole);
        }
    }
}

#[test]
fn slice_decodes_a_bounded_number_of_events() {
    const BYTES: usize = 1 << 20;
    const BUDGET: usize = 64 * 1024;
    let valid = with("message", "\"m\"");
    for piece in [valid.as_str(), "{}", " ", "\n", "7,", "\u{e9}"] {
        for open in ["", "["] {
            for between in [",", "\n"] {
                let body = format!("{open}{}", format!("{piece}{between}").repeat(BYTES / (piece.len() + 1)));
                for headers in [json(), ndjson()] {
                    let mut ingest = ingest(100);
                    ingest.begin(None);
                    let mut events = 0;
                    while !ingest.decode_slice(headers, body.as_bytes(), NOW, BUDGET) {
                        let now = ingest.decoded().accepted() + ingest.decoded().rejected() as usize;
                        assert!(now - events <= BUDGET / 100, "{} events in a slice", now - events);
                        events = now;
                    }
                }
            }
        }
    }
}

#[test]
fn event_longer_than_event_bytes_max_is_rejected() {
    let padded = |bytes: usize| {
        let valid = with("message", "\"m\"");
        format!("{{{}{}", " ".repeat(bytes - valid.len()), &valid[1..])
    };
    let (full, long, valid) = (padded(EVENT_BYTES_MAX), padded(EVENT_BYTES_MAX + 1), padded(100));
    let decode = |headers, body: &str| {
        let (shape, rows, answer) = outcome_of(&ingest(9).decode(headers, body.as_bytes(), NOW));
        (shape, rows.len(), answer.contains(&format!("takes more than {EVENT_BYTES_MAX} bytes")))
    };
    assert_eq!(decode(json(), &full), (BodyShape::Single, 1, false));
    assert_eq!(decode(json(), &long), (BodyShape::Malformed, 0, true));
    assert_eq!(decode(json(), &format!("[{valid},{full},{valid}]")), (BodyShape::Batch, 3, false));
    // The reader does not search for the event after an overlong one.
    assert_eq!(decode(json(), &format!("[{valid},{long},{valid}]")), (BodyShape::Malformed, 0, true));
    assert_eq!(decode(ndjson(), &format!("{valid}\n{full}\n{valid}")), (BodyShape::Batch, 3, false));
    assert_eq!(decode(ndjson(), &format!("{valid}\n{long}\n{valid}")), (BodyShape::Batch, 2, true));
}
