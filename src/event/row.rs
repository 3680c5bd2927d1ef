//! The row: the encoding of an event, made on the acceptor thread and sent unchanged to PostgreSQL.
//!
//! A row is a tuple of PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format"):
//! a 16-bit field count, then each field as a 32-bit length (-1 for NULL) and its bytes, all
//! big-endian. The buffer, the journal and the COPY stream hold the same bytes. Fields of fixed
//! size come first, so that the id, the timestamp and the service are at fixed offsets.
//!
//! It must not depend on JSON, sockets or SQL sessions.

use crate::event::{Event, EventId, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX, Timestamp};

/// The columns of a row in order, as named in the COPY statement.
pub const COLUMNS: &str = "event_id, timestamp, ingested_at, service, message, metadata";

/// The header of a binary COPY stream, before the rows.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The trailer of a binary COPY stream, after the rows.
pub const COPY_TRAILER: &[u8] = &[0xff, 0xff];

const FIELDS: i16 = 6;
const ID_AT: usize = 6;
const TIMESTAMP_AT: usize = 26;
const INGESTED_AT: usize = 38;
/// Offset of the length of `service`, the first field of variable size.
const SERVICE_AT: usize = 46;
/// The version byte at the start of a binary `jsonb`.
const JSONB_VERSION: u8 = 1;

/// Minimum bytes of a row: empty texts and no metadata.
pub const ROW_BYTES_MIN: usize = SERVICE_AT + 4 + 4 + 4;
/// Maximum bytes of a row: every field at its bound, and the version byte of the metadata.
pub const ROW_BYTES_MAX: usize =
    ROW_BYTES_MIN + SERVICE_BYTES_MAX + MESSAGE_BYTES_MAX + METADATA_BYTES_MAX + 1;

/// Appends the fields of fixed size. `service`, `message` and the metadata must follow in this
/// order.
#[inline]
pub fn append_header(out: &mut Vec<u8>, id: EventId, timestamp: Timestamp, ingested_at: Timestamp) {
    let mut head = [0; SERVICE_AT];
    head[..2].copy_from_slice(&FIELDS.to_be_bytes());
    head[2..ID_AT].copy_from_slice(&16_i32.to_be_bytes());
    head[ID_AT..22].copy_from_slice(id.bytes());
    head[22..TIMESTAMP_AT].copy_from_slice(&8_i32.to_be_bytes());
    head[TIMESTAMP_AT..34].copy_from_slice(&timestamp.to_postgres().to_be_bytes());
    head[34..INGESTED_AT].copy_from_slice(&8_i32.to_be_bytes());
    head[INGESTED_AT..SERVICE_AT].copy_from_slice(&ingested_at.to_postgres().to_be_bytes());
    out.extend_from_slice(&head);
}

/// Appends a text field.
#[inline]
pub fn append_text(out: &mut Vec<u8>, value: &[u8]) {
    append_text_with(out, |out| out.extend_from_slice(value));
}

/// Appends a text field whose bytes `fill` writes, so that unescaping needs no intermediate copy.
#[inline]
pub fn append_text_with(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - at - 4).expect("a field is bounded far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Appends the metadata: JSON text, or NULL.
#[inline]
pub fn append_metadata(out: &mut Vec<u8>, json: Option<&[u8]>) {
    match json {
        None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
        Some(json) => append_text_with(out, |out| {
            out.push(JSONB_VERSION);
            out.extend_from_slice(json);
        }),
    }
}

/// Replaces the id of the row at the start of `row`.
pub fn set_id(row: &mut [u8], id: EventId) {
    row[ID_AT..ID_AT + 16].copy_from_slice(id.bytes());
}

/// The bytes of a row that hold the event's own content: the timestamp; service, message and
/// metadata, each with its length. Equal events have equal content, and different ones do not.
pub fn content(row: &[u8]) -> [&[u8]; 2] {
    [&row[TIMESTAMP_AT..TIMESTAMP_AT + 8], &row[SERVICE_AT..]]
}

/// A borrowed view of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    bytes: &'a [u8],
    service_end: usize,
    message_end: usize,
}

/// The bytes are not a valid row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeRowError {
    #[error("the row is truncated")]
    Truncated,
    #[error("the row has {0} fields instead of {FIELDS}")]
    FieldCount(i16),
    #[error("field {0} has the length {1}")]
    FieldLength(&'static str, i32),
    #[error("{0} is not valid text for PostgreSQL")]
    InvalidText(&'static str),
}

impl<'a> Row<'a> {
    /// Splits off the first row of `bytes` and checks its structure and the bounds of its fields.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeRowError> {
        let head = bytes.get(..SERVICE_AT).ok_or(DecodeRowError::Truncated)?;
        let fields = i16::from_be_bytes([head[0], head[1]]);
        if fields != FIELDS {
            return Err(DecodeRowError::FieldCount(fields));
        }
        for (name, at, expected) in [("event_id", 2, 16), ("timestamp", 22, 8), ("ingested_at", 34, 8)] {
            let length = length_at(bytes, at)?;
            if length != expected {
                return Err(DecodeRowError::FieldLength(name, length));
            }
        }
        let service_end = field_end(bytes, SERVICE_AT, "service", 1, SERVICE_BYTES_MAX)?;
        let message_end = field_end(bytes, service_end, "message", 1, MESSAGE_BYTES_MAX)?;
        let end = match length_at(bytes, message_end)? {
            -1 => message_end + 4,
            // The version byte and the shortest object, `{}`.
            _ => field_end(bytes, message_end, "metadata", 3, METADATA_BYTES_MAX + 1)?,
        };
        let (row, rest) = bytes.split_at(end);
        Ok((Self { bytes: row, service_end, message_end }, rest))
    }

    /// Checks that PostgreSQL accepts the text fields of a row read from disk: UTF-8 without NUL.
    /// Whether the metadata is JSON is not checked; PostgreSQL reports it for the row.
    pub fn validate_text(&self) -> Result<(), DecodeRowError> {
        let texts = [
            ("service", Some(self.service())),
            ("message", Some(self.message())),
            ("metadata", self.metadata()),
        ];
        for (name, text) in texts {
            if text.is_some_and(|text| text.contains(&0) || str::from_utf8(text).is_err()) {
                return Err(DecodeRowError::InvalidText(name));
            }
        }
        Ok(())
    }

    /// The first bytes of the row of the event with this id.
    pub fn prefix_of(id: EventId) -> [u8; ID_AT + 16] {
        let mut head = [0; ID_AT + 16];
        head[..2].copy_from_slice(&FIELDS.to_be_bytes());
        head[2..ID_AT].copy_from_slice(&16_i32.to_be_bytes());
        head[ID_AT..].copy_from_slice(id.bytes());
        head
    }

    pub fn to_event(&self) -> Event {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Event {
            event_id: self.event_id(),
            timestamp: self.timestamp(),
            service: text(self.service()),
            message: text(self.message()),
            metadata: self.metadata().map(text),
            ingested_at: self.ingested_at(),
        }
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    pub fn event_id(&self) -> EventId {
        EventId::from_bytes(array_at(self.bytes, ID_AT))
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from_postgres(i64::from_be_bytes(array_at(self.bytes, TIMESTAMP_AT)))
    }

    pub fn ingested_at(&self) -> Timestamp {
        Timestamp::from_postgres(i64::from_be_bytes(array_at(self.bytes, INGESTED_AT)))
    }

    pub fn service(&self) -> &'a [u8] {
        &self.bytes[SERVICE_AT + 4..self.service_end]
    }

    pub fn message(&self) -> &'a [u8] {
        &self.bytes[self.service_end + 4..self.message_end]
    }

    /// The JSON text, without the version byte of `jsonb`.
    pub fn metadata(&self) -> Option<&'a [u8]> {
        self.bytes.get(self.message_end + 5..)
    }
}

/// Iterates over rows that this process encoded or has checked.
///
/// # Panics
/// If the bytes are not whole rows.
pub fn rows(mut bytes: &[u8]) -> impl Iterator<Item = Row<'_>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let (row, rest) = Row::split(bytes).expect("BUG: a block holds whole rows");
        bytes = rest;
        Some(row)
    })
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

fn length_at(bytes: &[u8], at: usize) -> Result<i32, DecodeRowError> {
    let field = bytes.get(at..at + 4).ok_or(DecodeRowError::Truncated)?;
    Ok(i32::from_be_bytes([field[0], field[1], field[2], field[3]]))
}

fn field_end(
    bytes: &[u8],
    at: usize,
    name: &'static str,
    min: usize,
    max: usize,
) -> Result<usize, DecodeRowError> {
    let length = length_at(bytes, at)?;
    let end = usize::try_from(length)
        .ok()
        .filter(|length| (min..=max).contains(length))
        .map(|length| at + 4 + length)
        .ok_or(DecodeRowError::FieldLength(name, length))?;
    if end > bytes.len() { Err(DecodeRowError::Truncated) } else { Ok(end) }
}
