//! Cursors: decoding arbitrary text never panics, and encoding and decoding are inverse functions.
#![no_main]

use aurore_events::event::{ArrivalNumber, EventId, EventKey, Timestamp};
use aurore_events::query::cursor::Cursor;
use aurore_events::storage::SortOrder;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(cursor) = Cursor::decode(text)
    {
        assert_eq!(cursor.encode(), text);
    }
    let Some((input, rest)) = data.split_first_chunk::<33>() else { return };
    let mut id = [0; 16];
    id.copy_from_slice(&input[17..]);
    let integer_at = |at: usize| i64::from_be_bytes(input[at..at + 8].try_into().expect("8 bytes"));
    // The timestamps of events: 48 bits of milliseconds.
    let micros = integer_at(1).rem_euclid(1000 << 48);
    let cursor = Cursor {
        order: if input[0] & 1 == 0 { SortOrder::Desc } else { SortOrder::Asc },
        last: EventKey {
            timestamp: Timestamp::from_micros(micros),
            arrival: ArrivalNumber::from_nanos(integer_at(9)),
            event_id: EventId::from_bytes(id),
        },
    };
    let text = cursor.encode();
    assert_eq!(Cursor::decode(&text), Ok(cursor));
    // The decoder detects a change of any byte.
    if let [at, byte, ..] = *rest {
        let at = usize::from(at) % text.len();
        let mut corrupted = text.clone().into_bytes();
        corrupted[at] = byte;
        if let Ok(corrupted) = String::from_utf8(corrupted)
            && corrupted != text
        {
            assert!(Cursor::decode(&corrupted).is_err(), "{corrupted} for {text}");
        }
    }
});
