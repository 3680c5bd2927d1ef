//! Arrival numbers of decoded rows ascend in the order of the body and of the requests.

use proptest::prelude::*;

use super::*;
use crate::event::ArrivalNumber;

fn rows(decoded: &DecodedRequest<'_>) -> Vec<(ArrivalNumber, EventId)> {
    let blocks = decoded.blocks().flat_map(|(block, _)| row::rows(block));
    blocks.map(|row| (row.arrival(), row.event_id())).collect()
}

/// An event without a key, with one, or with the id of an export.
fn event(kind: u8, nth: usize) -> String {
    match kind {
        0 => with("message", "\"m\""),
        1 => with("idempotency_key", &format!("\"k{nth}\"")),
        _ => {
            let id = EventId::keyed(NOW.millis().cast_unsigned(), [kind; 10]);
            with("event_id", &format!("\"{id}\""))
        }
    }
}

proptest! {
    #[test]
    fn arrival_numbers_ascend_in_the_order_of_the_events(
        requests in prop::collection::vec(
            (prop::collection::vec(0_u8..3, 1..20), any::<bool>(), any::<bool>(), -3_i64..4, 1_usize..400),
            1..8,
        ),
    ) {
        let mut ingest = ingest(5);
        let (mut last, mut last_id, mut clock) = (ArrivalNumber::default(), None, NOW.micros());
        for (kinds, is_ndjson, has_key, step, budget) in requests {
            clock += step;
            let events: Vec<_> = kinds.iter().enumerate().map(|(nth, kind)| event(*kind, nth)).collect();
            let key = has_key.then(|| HeaderKey::new(b"request").unwrap());
            let (format, body) = if is_ndjson {
                (BodyFormat::Ndjson, events.join("\n"))
            } else {
                (BodyFormat::Json, format!("[{}]", events.join(",")))
            };
            let headers = IngestHeaders { keeps_ids: true, ..headers(format, key) };
            ingest.begin(None);
            while !ingest.decode_slice(headers, body.as_bytes(), Timestamp::from_micros(clock), budget) {}
            let decoded = rows(&ingest.decoded());
            prop_assert_eq!(decoded.len(), kinds.len());
            for (arrival, id) in decoded {
                prop_assert!(last < arrival && clock * 1000 <= arrival.nanos());
                last = arrival;
                if !id.is_keyed() {
                    prop_assert!(last_id < Some(id), "all are of one millisecond");
                    last_id = Some(id);
                }
            }
        }
    }
}

#[test]
fn a_long_request_between_others_has_a_place_of_its_own() {
    let mut ingest = ingest(5000);
    let event = with("message", "\"m\"");
    let batch = vec![event.as_str(); 50].join("\n");
    let decode = |ingest: &mut IngestDecoder, now| rows(&ingest.decode(json(), event.as_bytes(), now))[0];
    for step_back in [0, 60_000_000] {
        let at = |micros| Timestamp::from_micros(NOW.micros() - step_back + micros);
        let before = decode(&mut ingest, at(0));
        let mut long = ingest.fork(at(1));
        long.begin(None);
        assert!(!long.decode_slice(ndjson(), batch.as_bytes(), at(1), 1000));
        let between = decode(&mut ingest, at(400));
        while !long.decode_slice(ndjson(), batch.as_bytes(), at(1), 1000) {}
        let after = decode(&mut ingest, at(800));
        let long = rows(&long.decoded());
        let all: Vec<_> = [before].into_iter().chain(long).chain([between, after]).collect();
        assert!(all.is_sorted_by(|one, other| one.0 < other.0 && one.1 < other.1), "{step_back} {all:?}");
    }
}
