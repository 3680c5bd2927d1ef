//! Query strings: none panics, and what is understood is understood again.
#![no_main]

use aurore_events::event::Timestamp;
use aurore_events::query::Query;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let now = Timestamp::from_millis(1_790_000_000_000);
    let once = format!("{:?}", Query::parse(text, now).ok());
    assert_eq!(format!("{:?}", Query::parse(text, now).ok()), once);
});
