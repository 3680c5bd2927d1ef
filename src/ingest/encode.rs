//! An event that has passed, written as a row: each byte of it is moved once, and unescaped on the way.

use crate::event::row;
use crate::event::{EventId, Timestamp};
use crate::json::text;
use crate::json::{Text, Value};

/// What of the source makes up an event.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) source: &'a [u8],
    pub(super) service: Text,
    pub(super) message: Text,
    pub(super) metadata: Option<Value>,
}

/// Appends the row.
#[inline]
pub(super) fn encode(
    out: &mut Vec<u8>,
    id: EventId,
    timestamp: Timestamp,
    ingested_at: Timestamp,
    parts: &Parts<'_>,
) {
    let metadata = parts.metadata.map(|value| &parts.source[value.start..value.end]);
    out.reserve(
        row::ROW_BYTES_MIN + 1 + parts.service.bytes + parts.message.bytes + metadata.map_or(0, <[u8]>::len),
    );
    row::begin(out, id, timestamp, ingested_at);
    row::text_with(out, |out| append(out, parts.source, parts.service));
    row::text_with(out, |out| append(out, parts.source, parts.message));
    row::metadata(out, metadata);
}

/// Appends the text, unescaped.
#[inline]
pub(super) fn append(out: &mut Vec<u8>, source: &[u8], text: Text) {
    let raw = &source[text.start..text.end];
    if text.escaped() {
        text::unescape(out, raw);
    } else {
        out.extend_from_slice(raw);
    }
}
