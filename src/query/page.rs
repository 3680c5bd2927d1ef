//! Encodes events as JSON: single events and pages.

use super::cursor::Cursor;
use crate::event::{Event, EventId};
use crate::http::Response;
use crate::json::text::quote;
use crate::storage::{Chunk, SortOrder};

/// Bytes of a page without its events, rounded up.
const PAGE_OVERHEAD_BYTES: usize = 256;

/// The parameters of the query that the page encoding depends on.
#[derive(Clone, Copy, Debug)]
pub struct PageOptions {
    pub limit: u16,
    pub order: SortOrder,
}

/// Encodes `{"events":[…],"page":{…}}` up to the total, which [`write_page`] adds. `chunk` was read
/// with one event more than the limit, to know whether there is a next page; that event is not
/// written.
pub(super) fn encode_events(options: PageOptions, chunk: &Chunk) -> Vec<u8> {
    let limit = usize::from(options.limit);
    let on_page = &chunk.events[..chunk.events.len().min(limit)];
    let bytes: usize = on_page.iter().map(Event::json_bytes_max).sum();
    let mut out = Vec::with_capacity(bytes + PAGE_OVERHEAD_BYTES);
    out.extend_from_slice(b"{\"events\":[");
    for (nth, event) in on_page.iter().enumerate() {
        out.extend_from_slice(if nth == 0 { b"{" } else { b",{" });
        write_id(&mut out, event.event_id);
        write_members(&mut out, event);
        out.push(b'}');
    }
    let next = on_page
        .last()
        .filter(|_last| chunk.has_more)
        .map(|last| Cursor { order: options.order, last: last.key() }.encode());
    out.extend_from_slice(format!("],\"page\":{{\"limit\":{limit},\"next_cursor\":").as_bytes());
    match next {
        Some(cursor) => quote(&mut out, &cursor),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"total\":");
    out
}

/// Writes a page: the output of [`encode_events`] and the total.
pub(super) fn write_page(response: &mut Response, encoded: Vec<u8>, total: Option<u64>) {
    response.status = 200;
    response.content_type = "application/json";
    response.body = encoded;
    let out = &mut response.body;
    match total {
        Some(total) => out.extend_from_slice(total.to_string().as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"}}");
}

pub(crate) fn write_id(out: &mut Vec<u8>, id: EventId) {
    out.extend_from_slice(b"\"event_id\":\"");
    out.extend_from_slice(&id.text());
    out.push(b'"');
}

/// Writes the members of an event that follow its id.
pub(crate) fn write_members(out: &mut Vec<u8>, event: &Event) {
    out.extend_from_slice(format!(",\"timestamp\":\"{}\",\"service\":", event.timestamp).as_bytes());
    quote(out, &event.service);
    out.extend_from_slice(b",\"message\":");
    quote(out, &event.message);
    out.extend_from_slice(b",\"metadata\":");
    out.extend_from_slice(metadata_json(event).as_bytes());
    out.extend_from_slice(format!(",\"ingested_at\":\"{}\"", event.ingested_at).as_bytes());
}

fn metadata_json(event: &Event) -> &str {
    event.metadata.as_deref().unwrap_or("null")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{ArrivalNumber, Timestamp};

    proptest! {
        #[test]
        fn event_json_is_within_its_bound(
            service in "\\PC{1,20}",
            message in "[\u{1}-\u{7f}\"\\\\é]{0,300}",
            metadata in proptest::option::of("\\{\"[a-z]{0,40}\":1\\}"),
            micros in 0..253_402_300_800_000_000_i64,
        ) {
            let event = Event {
                event_id: EventId::floor(1),
                timestamp: Timestamp::from_micros(micros),
                service,
                message,
                metadata,
                ingested_at: Timestamp::from_micros(micros),
                arrival: ArrivalNumber::default(),
            };
            let bytes = event.json_bytes_max();
            let chunk = Chunk { events: vec![event], has_more: true };
            let encoded = encode_events(PageOptions { limit: 1000, order: SortOrder::Desc }, &chunk);
            prop_assert!(encoded.len() <= bytes + PAGE_OVERHEAD_BYTES);
        }
    }
}
