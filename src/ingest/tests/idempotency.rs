//! Idempotency keys: which events have the same id, and which response names a duplicate.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn ids(key: Option<&str>, format: BodyFormat, body: &str) -> Vec<EventId> {
    let key = key.map(|key| HeaderKey::new(key.as_bytes()).unwrap());
    ingest(9).decode(headers(format, key), body.as_bytes(), NOW).ids().to_vec()
}

#[test]
fn event_key_gives_a_stable_id_and_no_key_a_new_one() {
    let keyed = with("idempotency_key", "\"k\"");
    let id = |body: &str| ids(None, BodyFormat::Json, body)[0];
    let first = id(&keyed);
    assert!(first.is_keyed());
    assert_eq!(first, id(&keyed), "stable");
    assert_eq!(first, id(&keyed.replace("\"m\"", "\"n\"")), "the message is not part of the key");
    assert_eq!(first, id(&keyed.replace("\"k\"", "\"\\u006b\"").replace("\"s\"", "\"\\u0073\"")));
    assert_ne!(first, id(&keyed.replace("\"s\"", "\"t\"")));
    assert_eq!(vec![first], ids(Some("header"), BodyFormat::Json, &keyed), "the field precedes the header");
    let plain = with("message", "\"m\"");
    let mut ingest = ingest(9);
    let decoded = ingest.decode(json(), format!("[{plain},{plain}]").as_bytes(), NOW);
    assert_ne!(decoded.ids()[0], decoded.ids()[1]);
    assert!(!decoded.has_keyed_ids() && decoded.ids().iter().all(|id| !id.is_keyed()));
}

#[test]
fn times_that_differ_in_microseconds_are_different_times() {
    let at = |micros: &str| {
        with("timestamp", &format!("\"2026-11-23T11:59:59.123{micros}Z\"")).replacen(
            '{',
            "{\"idempotency_key\":\"k\",",
            1,
        )
    };
    let id = |body: String| ids(None, BodyFormat::Json, &body)[0];
    assert_eq!(id(at("")), id(at("000")));
    assert_ne!(id(at("000")), id(at("001")));
}

#[test]
fn request_key_gives_an_event_the_same_id_at_any_place_and_in_any_format() {
    let (one, two) = (with("message", "\"one\""), with("message", "\"two\""));
    let batch = ids(Some("k"), BodyFormat::Json, &format!("[{one},5,{two},{one}]"));
    assert_eq!(batch.len(), 3);
    assert_ne!(batch[0], batch[2], "two equal events are two events");
    assert_eq!(batch, ids(Some("k"), BodyFormat::Ndjson, &format!("{one}\n5\n{two}\n{one}\n")));
    assert_eq!(batch[..1], ids(Some("k"), BodyFormat::Json, &one));
    assert_eq!(batch[1..2], ids(Some("k"), BodyFormat::Json, &format!("[{two}]")));
    let escaped = one.replace("\"one\"", "\"\\u006fne\"");
    assert_eq!(
        batch[..1],
        ids(Some("k"), BodyFormat::Json, &escaped),
        "the content counts, not its spelling"
    );
    assert_ne!(batch[..1], ids(Some("l"), BodyFormat::Json, &one), "another key is another request");
}

/// Events of which any two have different content, though some concatenate to the same text.
fn event(number: usize) -> String {
    let (service, message, micros, metadata) = [
        ("a", "bc", 0, ""),
        ("ab", "c", 0, ""),
        ("a", "bc", 1, ""),
        ("a", "bc", 0, r#","metadata":{}"#),
        ("a", "bc", 0, r#","metadata":{"a":1}"#),
        ("a", "bc{}", 0, ""),
        ("a", "b", 0, ""),
    ][number];
    let time = Timestamp::from_micros(NOW.micros() + micros);
    format!(r#"{{"timestamp":"{time}","service":"{service}","message":"{message}"{metadata}}}"#)
}

const EVENTS: usize = 7;

/// The events of a request; `None` is an invalid one.
fn requests() -> impl Strategy<Value = Vec<Option<usize>>> {
    prop::collection::vec(prop::option::weighted(0.8, 0..EVENTS), 0..12)
}

/// How many of each event a table holds that stores an id once.
fn stored(table: &BTreeMap<EventId, DecodedRow>) -> BTreeMap<DecodedRow, usize> {
    let mut counts = BTreeMap::new();
    for row in table.values() {
        *counts.entry(row.clone()).or_default() += 1;
    }
    counts
}

proptest! {
    /// Each request may be a retry of the others: the same, corrected, shortened, reordered. A table
    /// must then hold of each event as many as the request with most of them, and no other.
    #[test]
    fn requests_with_one_key_store_each_event_once_and_lose_none(
        sent in prop::collection::vec(requests(), 1..4),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        budget in 1_usize..600,
    ) {
        let mut sent = sent;
        // A reordered copy of the first request.
        let mut again = sent[0].clone();
        for at in order {
            if !again.is_empty() {
                let at = at.index(again.len());
                again[at..].rotate_left(1);
            }
        }
        sent.push(again);
        let mut table = BTreeMap::new();
        let mut expected: BTreeMap<DecodedRow, usize> = BTreeMap::new();
        let mut ingest = ingest(3);
        for (nth, request) in sent.iter().enumerate() {
            let events: Vec<_> = request.iter().map(|event_of| event_of.map_or("5".to_owned(), event)).collect();
            let (format, body) = if nth % 2 == 0 {
                (BodyFormat::Json, format!("[{}]", events.join(",")))
            } else {
                (BodyFormat::Ndjson, events.join("\n"))
            };
            let headers = headers(format, Some(HeaderKey::new(b"k").unwrap()));
            let whole = ingest.decode(headers, body.as_bytes(), NOW).ids().to_vec();
            ingest.begin(None);
            while !ingest.decode_slice(headers, body.as_bytes(), NOW, budget) {}
            let decoded = ingest.decoded();
            prop_assert_eq!(decoded.ids(), &whole, "slices change no id");
            let rows = rows_of(&decoded);
            prop_assert_eq!(rows.len(), request.iter().flatten().count());
            let mut counts: BTreeMap<DecodedRow, usize> = BTreeMap::new();
            for (id, row) in whole.iter().zip(rows) {
                prop_assert!(id.is_keyed());
                *counts.entry(row.clone()).or_default() += 1;
                let first = table.entry(*id).or_insert_with(|| row.clone());
                prop_assert_eq!(&*first, &row, "a different event takes no id of a stored one");
            }
            for (row, count) in counts {
                let most = expected.entry(row).or_default();
                *most = count.max(*most);
            }
        }
        prop_assert_eq!(stored(&table), expected);
    }

    #[test]
    fn event_keys_are_equal_where_service_time_and_key_are(
        one in (0_usize..3, 0_usize..3, 0_i64..3), other in (0_usize..3, 0_usize..3, 0_i64..3),
    ) {
        const TEXTS: [&str; 3] = ["a", "ab", "b"];
        let id = |(service, key, micros): (usize, usize, i64)| {
            let time = Timestamp::from_micros(NOW.micros() + micros);
            crate::ingest::idempotency::event_key_id(time, TEXTS[service].as_bytes(), TEXTS[key].as_bytes())
        };
        prop_assert_eq!(id(one) == id(other), one == other);
    }
}

/// The status and the JSON body of the response of a server that remembers the ids in `recent`.
fn respond(recent: &mut RecentIds, key: Option<&str>, body: &str) -> (u16, sonic_rs::Value) {
    let key = key.map(|key| HeaderKey::new(key.as_bytes()).unwrap());
    let mut ingest = ingest(9);
    let decoded = ingest.decode(headers(BodyFormat::Json, key), body.as_bytes(), NOW);
    let mut response = Response::default();
    decoded.write_response(recent.admit(&decoded), &mut response);
    (response.status, sonic_rs::from_slice(&response.body).unwrap())
}

#[test]
fn response_names_the_events_that_were_admitted_before() {
    let (plain, keyed) = (with("message", "\"m\""), with("idempotency_key", "\"k\""));
    let mut recent = RecentIds::default();
    let status = |recent: &mut RecentIds, key, body: &str| {
        let (code, answer) = respond(recent, key, body);
        assert_eq!(code, 202);
        answer["status"].to_string()
    };
    for _ in 0..2 {
        assert_eq!(status(&mut recent, None, &plain), "\"accepted\"", "an event without a key is a new one");
    }
    assert_eq!(status(&mut recent, None, &keyed), "\"accepted\"");
    assert_eq!(status(&mut recent, None, &keyed), "\"duplicate\"");
    let other = keyed.replace("\"m\"", "\"another payload\"");
    assert_eq!(status(&mut recent, None, &other), "\"duplicate\"", "the first payload is the stored one");
    assert_eq!(status(&mut recent, Some("h"), &plain), "\"accepted\"");
    assert_eq!(status(&mut recent, Some("h"), &plain), "\"duplicate\"");

    let (_, first) = respond(&mut recent, None, &format!("[{plain},{keyed}]"));
    assert_eq!(first["accepted"], sonic_rs::json!(2));
    assert_eq!(first["duplicates"], sonic_rs::json!([first["event_ids"][1]]));
    let new = with("idempotency_key", "\"new\"");
    let (_, twice) = respond(&mut recent, None, &format!("[{new},5,{new}]"));
    assert_eq!(twice["event_ids"][0], twice["event_ids"][1]);
    assert_eq!(twice["duplicates"], sonic_rs::json!([twice["event_ids"][0]]));
    let (_, none) = respond(&mut recent, Some("h2"), &format!("[{plain},{plain}]"));
    assert!(sonic_rs::JsonValueTrait::get(&none, "duplicates").is_none(), "{none}");
}

#[test]
fn recent_ids_are_bounded() {
    let mut recent = RecentIds::default();
    let event = |key: usize| with("idempotency_key", &format!("\"{key}\""));
    for round in 0..40 {
        let events: Vec<_> = (0..1000).map(|nth| event(round * 1000 + nth)).collect();
        respond(&mut recent, None, &format!("[{}]", events.join(",")));
    }
    let status = |recent: &mut RecentIds, key| respond(recent, None, &event(key)).1["status"].to_string();
    assert_eq!(status(&mut recent, 39_999), "\"duplicate\"");
    let forgotten = (0..1000).filter(|key| status(&mut recent, *key) == "\"accepted\"").count();
    assert!(forgotten > 900, "{forgotten} of the oldest ids were forgotten");
}
