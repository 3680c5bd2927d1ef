//! Cursors: no text panics, one that is understood is the one that would be given, and each that is given is understood.
#![no_main]

use aurore_events::event::{EventId, Timestamp};
use aurore_events::query::cursor::Cursor;
use aurore_events::storage::Order;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(cursor) = Cursor::decode(text)
    {
        assert_eq!(cursor.encode(), text);
    }
    let Some((head, rest)) = data.split_first_chunk::<25>() else { return };
    let mut id = [0; 16];
    id.copy_from_slice(&head[9..]);
    let mut micros = [0; 8];
    micros.copy_from_slice(&head[1..9]);
    // Times that an event can have: 48 bits of milliseconds.
    let micros = i64::from_be_bytes(micros).rem_euclid(1000 << 48);
    let cursor = Cursor {
        order: if head[0] & 1 == 0 { Order::Desc } else { Order::Asc },
        timestamp: Timestamp::from_micros(micros),
        event_id: EventId::from_bytes(id),
    };
    let text = cursor.encode();
    assert_eq!(Cursor::decode(&text), Ok(cursor));
    // A slip anywhere is noticed.
    if let [at, byte, ..] = *rest {
        let at = usize::from(at) % text.len();
        let mut slipped = text.clone().into_bytes();
        slipped[at] = byte;
        if let Ok(slipped) = String::from_utf8(slipped)
            && slipped != text
        {
            assert!(Cursor::decode(&slipped).is_err(), "{slipped} for {text}");
        }
    }
});
