//! Encodes events as JSON: single events and pages.

use super::cursor::Cursor;
use crate::event::{Event, EventId};
use crate::http::Response;
use crate::json::text::quote;
use crate::storage::SortOrder;

/// The parameters of the query that the page encoding depends on.
#[derive(Clone, Copy, Debug)]
pub struct PageOptions {
    pub limit: u16,
    pub order: SortOrder,
}

/// Writes `{"events":[…],"page":{…}}`. `events` holds one event more than the limit if there is a
/// next page; that event is not written.
pub fn write_page(response: &mut Response, options: PageOptions, events: &[Event], total: Option<u64>) {
    response.status = 200;
    response.content_type = "application/json";
    let out = &mut response.body;
    let limit = usize::from(options.limit);
    let on_page = &events[..events.len().min(limit)];
    out.clear();
    out.reserve(on_page.iter().map(|event| 256 + event.message.len() + metadata_json(event).len()).sum());
    out.extend_from_slice(b"{\"events\":[");
    for (nth, event) in on_page.iter().enumerate() {
        out.extend_from_slice(if nth == 0 { b"{" } else { b",{" });
        write_id(out, event.event_id);
        write_members(out, event);
        out.push(b'}');
    }
    let next = on_page.last().filter(|_last| events.len() > limit).map(|last| {
        Cursor { order: options.order, timestamp: last.timestamp, event_id: last.event_id }.encode()
    });
    out.extend_from_slice(format!("],\"page\":{{\"limit\":{limit},\"next_cursor\":").as_bytes());
    match next {
        Some(cursor) => quote(out, &cursor),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"total\":");
    match total {
        Some(total) => out.extend_from_slice(total.to_string().as_bytes()),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b"}}");
}

pub(super) fn write_id(out: &mut Vec<u8>, id: EventId) {
    out.extend_from_slice(b"\"event_id\":\"");
    out.extend_from_slice(&id.text());
    out.push(b'"');
}

/// Writes the members of an event that follow its id.
pub(super) fn write_members(out: &mut Vec<u8>, event: &Event) {
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
