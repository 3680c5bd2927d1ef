//! Bodies with a byte order mark, of the type text/plain, and from an export.

use super::*;
use crate::http::Response;

/// Decodes the body whole and in slices, and checks that the response is the same but for random
/// ids. Returns the number of accepted events, the status, and the body of the response.
fn respond(headers: IngestHeaders<'_>, body: &[u8]) -> (usize, u16, String) {
    let mut ingest = ingest(9);
    let mut outcome = None;
    for budget in [usize::MAX, 1, 7, 100] {
        ingest.begin(None);
        while !ingest.decode_slice(headers, body, NOW, budget) {}
        let decoded = ingest.decoded();
        let mut response = Response::default();
        decoded.write_response(&[], &mut response);
        let text = String::from_utf8(response.body).unwrap();
        let (accepted, status, whole) =
            outcome.get_or_insert_with(|| (decoded.accepted(), response.status, text.clone()));
        assert_eq!((*accepted, *status), (decoded.accepted(), response.status), "{budget}");
        assert!(decoded.accepted() > 0 || *whole == text, "{budget}: {whole} {text}");
        if response.status == 415 {
            let headers = String::from_utf8(response.headers).unwrap();
            assert!(
                headers.contains("Accept-Post: application/json, ") && headers.contains(", text/plain\r\n")
            );
        }
    }
    outcome.unwrap()
}

fn text() -> IngestHeaders<'static> {
    headers(BodyFormat::Text, None)
}

#[test]
fn byte_order_mark_in_front_of_a_body_or_a_line_is_skipped() {
    const BOM: &str = "\u{feff}";
    let valid = with("message", "\"m\"");
    let check = |headers, body: String, accepted: usize| {
        assert_eq!(respond(headers, body.as_bytes()).0, accepted, "{body}");
    };
    check(json(), format!("{BOM}{valid}"), 1);
    check(json(), format!("{BOM} \n[{valid},{valid}]"), 2);
    check(text(), format!("{BOM}{valid}"), 1);
    check(ndjson(), format!("{BOM}{valid}\n{valid}"), 2);
    check(ndjson(), format!("{BOM}\n{BOM} {valid}\r\n{BOM}{valid}\n{BOM}"), 2);
    for (headers, body) in
        [(json(), BOM.to_owned()), (text(), BOM.to_owned()), (ndjson(), format!("{BOM}\n"))]
    {
        let (_, status, answer) = respond(headers, body.as_bytes());
        assert!(status == 400 && answer.contains("no events"), "{answer}");
    }
    // Only there, only once, and not a part of one.
    for body in [format!("{BOM}{BOM}{valid}"), format!("[{BOM}{valid}]"), format!("{valid}{BOM}")] {
        assert_eq!(respond(json(), body.as_bytes()).1, 400, "{body}");
        assert_eq!(respond(ndjson(), body.as_bytes()).1, 400, "{body}");
    }
    assert!(respond(json(), b"\xef\xbb{}").2.contains("not UTF-8 at byte 0"));
    // Positions count the mark.
    assert!(respond(ndjson(), format!("{BOM}7x").as_bytes()).2.contains("at byte 4 of the line"));
}

#[test]
fn text_body_is_accepted_where_it_is_json() {
    let valid = with("message", "\"m\"");
    assert_eq!(respond(text(), format!(" {valid}\n").as_bytes()).1, 202);
    assert_eq!(respond(text(), format!("[{valid},5]").as_bytes()).0, 1);
    for (body, status, part) in [
        ("", 400, "no events"),
        (" ", 400, "no events"),
        ("{}", 400, "timestamp is required"),
        ("[]", 400, "array is empty"),
        ("{", 400, "not JSON"),
        ("hello", 415, "must be JSON"),
        ("7", 415, "must be JSON"),
        ("\"{}\"", 415, "must be JSON"),
        ("a=1&b={}", 415, "must be JSON"),
    ] {
        let (accepted, answered, answer) = respond(text(), body.as_bytes());
        assert_eq!((accepted, answered), (0, status), "{body}: {answer}");
        assert!(answer.contains(part), "{body}: {answer}");
    }
    assert_eq!(respond(text(), b"gr\xfc\xdfe").1, 415);
}

#[test]
fn event_of_an_export_keeps_its_id() {
    const ID: &str = "019b0000-0000-7abc-8def-0123456789ab";
    let id: EventId = ID.parse().unwrap();
    let time = Timestamp::from_millis(id.millis().cast_signed());
    let exported = |id: &str, more: &str| {
        format!(
            r#"{{"event_id":{id},"timestamp":"{time}","service":"s","message":"m","metadata":null,"ingested_at":"x"{more}}}"#
        )
    };
    let mut ingest = ingest(9);
    let mut decode = |body: &str, keeps_ids: bool, key: Option<&str>| {
        let key = key.map(|key| HeaderKey::new(key.as_bytes()).unwrap());
        let headers = IngestHeaders { keeps_ids, ..headers(BodyFormat::Ndjson, key) };
        let decoded = ingest.decode(headers, body.as_bytes(), time);
        let errors: Vec<_> = decoded.errors().listed().iter().map(|error| error.detail.clone()).collect();
        (decoded.ids().to_vec(), errors)
    };
    let line = exported(&format!("\"{ID}\""), "");
    assert_eq!(decode(&line, true, None), (vec![id], vec![]));
    assert_eq!(decode(&line, true, Some("k")), (vec![id], vec![]), "the id precedes the keys");
    let with_key = exported(&format!("\"{ID}\""), ",\"idempotency_key\":\"k\"");
    assert_eq!(decode(&with_key, true, None).0, [id]);
    assert_eq!(
        decode(&line, false, None).1,
        ["event_id is not a field of an event", "ingested_at is not a field of an event"]
    );
    // An event without an id gets one.
    let plain = line.replace(&format!("\"event_id\":\"{ID}\","), "");
    assert_eq!(decode(&plain, true, None).0.len(), 1);
    for (other, error) in [
        ("\"019b0000-0001-7abc-8def-0123456789ab\"", "must begin with the milliseconds"),
        ("\"019b0000-0000-4abc-8def-0123456789ab\"", "version 7 or 8"),
        ("\"019b0000-0000-7abc-cdef-0123456789ab\"", "version 7 or 8"),
        ("\"019b0000000000007abc8def0123456789ab\"", "version 7 or 8"),
        ("\"\"", "version 7 or 8"),
        ("null", "must be a string, not null"),
        ("7", "must be a string, not a number"),
    ] {
        let (ids, errors) = decode(&exported(other, ""), true, None);
        assert!(ids.is_empty() && errors.len() == 1 && errors[0].contains(error), "{other}: {errors:?}");
    }
}
