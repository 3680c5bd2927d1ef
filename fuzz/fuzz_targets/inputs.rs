//! Bodies in other formats than the server's own: no reader panics, PostgreSQL accepts each row, the
//! counts add up, and slicing changes no outcome. The first byte selects the format.
#![no_main]

mod decoder;

use aurore_events::event::row;
use aurore_events::http::{Headers, Response};
use aurore_events::ingest::{InputPath, parse_request};
use decoder::NOW;
use serde_json::Value;

/// The paths with a query and a content type.
const REQUESTS: [(InputPath, &str, &str); 7] = [
    (InputPath::Events, "extra=metadata&service=s", "application/json"),
    (InputPath::Events, "extra=metadata&dedup=body&message_field=a.b.c", "application/x-ndjson"),
    (InputPath::Events, "", "application/cloudevents-batch+json"),
    (InputPath::Events, "", "application/octet-stream"),
    (InputPath::LokiPush, "", "application/json"),
    (InputPath::SplunkEvent, "", "application/json"),
    (InputPath::SplunkRaw, "source=s", "text/plain"),
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((&first, body)) = bytes.split_first() else { return };
    let (path, query, content_type) = REQUESTS[usize::from(first) % REQUESTS.len()];
    let mut headers = vec![httparse::Header { name: "Content-Type", value: content_type.as_bytes() }];
    if content_type == "application/octet-stream" {
        for (name, value) in [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t")] {
            headers.push(httparse::Header { name, value: value.as_bytes() });
        }
    }
    let mut ingest = decoder::decoder();
    let mut decode = |budget: usize| {
        let parsed = parse_request(path, Headers(&headers), query);
        let (parsed, input) = parsed.expect("the headers of each request are valid");
        ingest.begin(input);
        while !ingest.decode_slice(parsed, body, NOW, budget) {}
        let decoded = ingest.decoded();
        let (mut bytes, mut rows) = (0, 0);
        for (block, _) in decoded.blocks() {
            bytes += block.len();
            for row in row::rows(block) {
                row.validate_text().expect("PostgreSQL accepts the text fields");
                if let Some(metadata) = row.metadata() {
                    let metadata: Value = serde_json::from_slice(metadata).expect("metadata is JSON");
                    assert!(metadata.is_object());
                }
                rows += 1;
            }
        }
        assert_eq!((bytes, rows), (decoded.bytes(), decoded.accepted()));
        let mut response = Response::default();
        decoded.write_response(&[], &mut response);
        if response.status != 204 {
            serde_json::from_slice::<Value>(&response.body).expect("a response is JSON");
        }
        (response.status, bytes, rows, decoded.rejected())
    };
    let whole = decode(usize::MAX);
    assert_eq!(decode(1 + usize::from(first)), whole);
});
