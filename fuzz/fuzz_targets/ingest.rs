//! Bodies of all three forms: no bytes panic, what is good as a line is good alone, and the rows add up.
#![no_main]

use std::time::Duration;

use aurore_events::clock::Clock;
use aurore_events::event::Timestamp;
use aurore_events::http::Response;
use aurore_events::ingest::{Call, Form, Ingest, Limits};

const NOW_MS: i64 = 1_790_000_000_000;

struct Found {
    accepted: usize,
    rejected: u32,
}

fn decode(ingest: &mut Ingest, form: Form, body: &[u8]) -> Found {
    let call = Call { form, key: None };
    let decoded = ingest.decode(call, body, Timestamp::from_millis(NOW_MS));
    let (bytes, rows) = decoded.blocks().fold((0, 0), |(bytes, rows), block| (bytes + block.0.len(), rows + block.1));
    assert_eq!(bytes, decoded.bytes());
    assert_eq!(rows as usize, decoded.accepted());
    assert_eq!(decoded.ids().len(), decoded.accepted());
    let mut response = Response::default();
    decoded.answer(&mut response);
    assert!(str::from_utf8(&response.body).is_ok());
    assert_eq!(response.status == 202, decoded.accepted() > 0);
    Found { accepted: decoded.accepted(), rejected: decoded.rejected() }
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    let limits = Limits {
        clock_skew: Duration::from_secs(300),
        retention: Duration::from_secs(30 * 86_400),
        rows_per_block_max: 3,
    };
    let mut ingest = Ingest::new(limits, Clock::manual(Timestamp::from_millis(NOW_MS), 1).rng());
    decode(&mut ingest, Form::Json, body);
    let lines = decode(&mut ingest, Form::Ndjson, body);
    let mut alone = Found { accepted: 0, rejected: 0 };
    for line in body.split(|byte| *byte == b'\n') {
        let found = decode(&mut ingest, Form::Ndjson, line);
        alone.accepted += found.accepted;
        alone.rejected += found.rejected;
    }
    assert_eq!((alone.accepted, alone.rejected), (lines.accepted, lines.rejected));
});
