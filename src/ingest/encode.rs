//! Encodes a valid event as a row. Each byte is copied once and unescaped during the copy.

use crate::event::row;
use crate::event::{ArrivalNumber, EventId, Timestamp};
use crate::json::text;
use crate::json::{JsonString, JsonValue};

/// The positions of an event's fields in its source text.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventParts<'a> {
    pub(super) source: &'a [u8],
    pub(super) service: JsonString,
    pub(super) message: JsonString,
    pub(super) metadata: Option<JsonValue>,
}

#[inline]
pub(super) fn encode_row(
    out: &mut Vec<u8>,
    id: EventId,
    timestamp: Timestamp,
    ingested_at: Timestamp,
    arrival: ArrivalNumber,
    parts: &EventParts<'_>,
) {
    let metadata = parts.metadata.map(|value| &parts.source[value.start..value.end]);
    out.reserve(
        row::ROW_BYTES_MIN + 1 + parts.service.bytes + parts.message.bytes + metadata.map_or(0, <[u8]>::len),
    );
    row::append_header(out, id, timestamp, ingested_at, arrival);
    row::append_text_with(out, |out| append_unescaped(out, parts.source, parts.service));
    row::append_text_with(out, |out| append_unescaped(out, parts.source, parts.message));
    row::append_metadata(out, metadata);
}

/// Encodes an event whose texts need no unescaping. `metadata` is JSON text.
#[inline]
pub(super) fn encode_plain_row(
    out: &mut Vec<u8>,
    id: EventId,
    (timestamp, ingested_at): (Timestamp, Timestamp),
    arrival: ArrivalNumber,
    (service, message): (&[u8], &[u8]),
    metadata: Option<&[u8]>,
) {
    out.reserve(row::ROW_BYTES_MIN + 1 + service.len() + message.len() + metadata.map_or(0, <[u8]>::len));
    row::append_header(out, id, timestamp, ingested_at, arrival);
    row::append_text(out, service);
    row::append_text(out, message);
    row::append_metadata(out, metadata);
}

/// Appends the unescaped bytes of a JSON string.
#[inline]
pub(super) fn append_unescaped(out: &mut Vec<u8>, source: &[u8], text: JsonString) {
    let raw = &source[text.start..text.end];
    if text.has_escapes() {
        text::unescape(out, raw);
    } else {
        out.extend_from_slice(raw);
    }
}
