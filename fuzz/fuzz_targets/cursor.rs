//! Cursors: no text panics, and one that is understood is the one that would be given.
#![no_main]

use aurore_events::query::cursor::Cursor;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(cursor) = Cursor::decode(text) {
        assert_eq!(cursor.encode(), text);
    }
});
