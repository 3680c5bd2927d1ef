//! The rows of [`EventRepository::trial_insert`](super::EventRepository::trial_insert).

use crate::event::row;
use crate::event::{ArrivalNumber, Event, EventId, Timestamp};

/// Encodes a stored event again, under another id of the same millisecond.
pub(super) fn copy_of(event: &Event) -> Vec<u8> {
    let mut tail = [0; 10];
    for (to, from) in tail.iter_mut().zip(&event.event_id.bytes()[6..]) {
        *to = !from;
    }
    let id = EventId::keyed(event.event_id.millis(), tail);
    encode(
        id,
        event.timestamp,
        (event.ingested_at, event.arrival),
        (&event.service, &event.message),
        event.metadata.as_deref(),
    )
}

/// Encodes a row for a table without events.
pub(super) fn ordinary_row(now: Timestamp) -> Vec<u8> {
    let millis = u64::try_from(now.millis()).unwrap_or(0);
    let id = EventId::keyed(millis, [0xff; 10]);
    encode(id, now, (now, ArrivalNumber::first_at(now)), ("aurore-events", "a trial, rolled back"), None)
}

fn encode(
    id: EventId,
    timestamp: Timestamp,
    (ingested_at, arrival): (Timestamp, ArrivalNumber),
    (service, message): (&str, &str),
    metadata: Option<&str>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    row::append_header(&mut bytes, id, timestamp, ingested_at, arrival);
    row::append_text(&mut bytes, service.as_bytes());
    row::append_text(&mut bytes, message.as_bytes());
    row::append_metadata(&mut bytes, metadata.map(str::as_bytes));
    bytes
}
