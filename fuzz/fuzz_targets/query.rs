//! Query strings: the parser never panics, a parsed query is within its bounds, and
//! percent-encoding changes nothing.
#![no_main]

use std::fmt::Write;

use aurore_events::event::Timestamp;
use aurore_events::query::Query;

/// Percent-encodes every byte that is not encoded yet.
fn encoded(query: &str) -> String {
    let mut out = String::new();
    let mut bytes = query.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                out.push('%');
                out.extend(bytes.by_ref().take(2).map(char::from));
            }
            b'&' | b'=' | b'+' => out.push(char::from(byte)),
            _ => write!(out, "%{byte:02x}").unwrap(),
        }
    }
    out
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let now = Timestamp::from_millis(1_790_000_000_000);
    drop((Query::parse_export(text, now), Query::parse_tail(text, now)));
    if let Ok(stats) = Query::parse_stats(text, now) {
        let filter = stats.filter;
        assert!(filter.from < filter.to && filter.metadata.is_empty() && filter.text.is_none());
    }
    let Ok(query) = Query::parse(text, now) else { return };
    assert!((1..=1000).contains(&query.limit));
    assert!(query.filter.from < query.filter.to && query.filter.from.micros() >= 0);
    assert!(query.filter.service.as_ref().is_none_or(|service| (1..=100).contains(&service.len())));
    for objects in &query.filter.metadata {
        for object in objects {
            let parsed: serde_json::Value = serde_json::from_str(object).expect("a filter is JSON");
            assert!(parsed.is_object());
        }
    }
    // A `=` or `&` in a value must be encoded; any other byte may be.
    if !text.split('&').any(|pair| pair.matches('=').count() > 1) {
        assert_eq!(Query::parse(&encoded(text), now).ok(), Some(query));
    }
});
