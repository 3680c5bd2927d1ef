//! The row: an event's one encoding, made on the acceptor and carried unchanged to PostgreSQL.
//!
//! It is a tuple of PostgreSQL's binary COPY format (the manual, COPY, "Binary Format"): a 16-bit count of
//! fields, then each field as a 32-bit length (-1 for NULL) and its bytes, all big-endian. The same bytes lie in
//! the queue, in the journal and in the COPY stream. Fields of fixed size come first, so that a row's id, time
//! and service are found without a search.
//!
//! Knows nothing of JSON, sockets or SQL sessions.

use crate::event::{Event, EventId, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX, Timestamp};

/// The columns of a row, in its order, as COPY names them.
pub const COLUMNS: &str = "event_id, timestamp, ingested_at, service, message, metadata";

/// What begins and ends a binary COPY stream around the rows.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub const COPY_TRAILER: &[u8] = &[0xff, 0xff];

const FIELDS: i16 = 6;
const ID_AT: usize = 6;
const TIMESTAMP_AT: usize = 26;
const INGESTED_AT: usize = 38;
/// Where the first field of variable size, `service`, has its length.
const SERVICE_AT: usize = 46;
/// What `jsonb` begins with in binary form.
const JSONB_VERSION: u8 = 1;

/// The least a row can take: empty texts and no metadata.
pub const ROW_BYTES_MIN: usize = SERVICE_AT + 4 + 4 + 4;
/// The most a row can take: every field at its bound. Metadata has a byte of version.
pub const ROW_BYTES_MAX: usize =
    ROW_BYTES_MIN + SERVICE_BYTES_MAX + MESSAGE_BYTES_MAX + METADATA_BYTES_MAX + 1;

/// Begins a row: the fields of fixed size. `service`, `message` and metadata must follow, in this order.
#[inline]
pub fn begin(out: &mut Vec<u8>, id: EventId, timestamp: Timestamp, ingested_at: Timestamp) {
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

/// Adds a text field.
#[inline]
pub fn text(out: &mut Vec<u8>, value: &[u8]) {
    text_with(out, |out| out.extend_from_slice(value));
}

/// Adds a text field whose bytes `fill` appends, so that what must be unescaped is written once, in place.
#[inline]
pub fn text_with(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - at - 4).expect("a field is bounded far below 4 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Adds the metadata: JSON text, or NULL.
#[inline]
pub fn metadata(out: &mut Vec<u8>, json: Option<&[u8]>) {
    match json {
        None => out.extend_from_slice(&(-1_i32).to_be_bytes()),
        Some(json) => text_with(out, |out| {
            out.push(JSONB_VERSION);
            out.extend_from_slice(json);
        }),
    }
}

/// One row, looked at where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row<'a> {
    bytes: &'a [u8],
    service_end: usize,
    message_end: usize,
}

/// Why bytes are not rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotARow {
    #[error("it is cut off")]
    Short,
    #[error("it has {0} fields instead of {FIELDS}")]
    Fields(i16),
    #[error("field {0} has the length {1}")]
    Length(&'static str, i32),
    #[error("{0} is not text that PostgreSQL would take")]
    Text(&'static str),
}

impl<'a> Row<'a> {
    /// The first row of `bytes`, checked for its shape and bounds, and what follows it.
    pub fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), NotARow> {
        let head = bytes.get(..SERVICE_AT).ok_or(NotARow::Short)?;
        let fields = i16::from_be_bytes([head[0], head[1]]);
        if fields != FIELDS {
            return Err(NotARow::Fields(fields));
        }
        for (name, at, wanted) in [("event_id", 2, 16), ("timestamp", 22, 8), ("ingested_at", 34, 8)] {
            let length = length_at(bytes, at)?;
            if length != wanted {
                return Err(NotARow::Length(name, length));
            }
        }
        let service_end = field_end(bytes, SERVICE_AT, "service", 1, SERVICE_BYTES_MAX)?;
        let message_end = field_end(bytes, service_end, "message", 1, MESSAGE_BYTES_MAX)?;
        let end = match length_at(bytes, message_end)? {
            -1 => message_end + 4,
            // The version and the shortest object, `{}`.
            _ => field_end(bytes, message_end, "metadata", 3, METADATA_BYTES_MAX + 1)?,
        };
        let (row, rest) = bytes.split_at(end);
        Ok((Self { bytes: row, service_end, message_end }, rest))
    }

    /// Whether PostgreSQL would take the texts, for rows that have been on disk. That metadata is JSON is left to
    /// PostgreSQL, which says so of the one row.
    pub fn check(&self) -> Result<(), NotARow> {
        let texts = [
            ("service", Some(self.service())),
            ("message", Some(self.message())),
            ("metadata", self.metadata()),
        ];
        for (name, text) in texts {
            if text.is_some_and(|text| text.contains(&0) || str::from_utf8(text).is_err()) {
                return Err(NotARow::Text(name));
            }
        }
        Ok(())
    }

    /// What the row of this event begins with.
    pub fn head(id: EventId) -> [u8; ID_AT + 16] {
        let mut head = [0; ID_AT + 16];
        head[..2].copy_from_slice(&FIELDS.to_be_bytes());
        head[2..ID_AT].copy_from_slice(&16_i32.to_be_bytes());
        head[ID_AT..].copy_from_slice(id.bytes());
        head
    }

    /// The event, for whoever is to be shown it.
    pub fn event(&self) -> Event {
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

    /// The JSON text, without the version that `jsonb` puts before it.
    pub fn metadata(&self) -> Option<&'a [u8]> {
        self.bytes.get(self.message_end + 5..)
    }
}

/// Walks rows that this process encoded or has checked.
///
/// # Panics
/// When the bytes are not rows.
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

fn length_at(bytes: &[u8], at: usize) -> Result<i32, NotARow> {
    let field = bytes.get(at..at + 4).ok_or(NotARow::Short)?;
    Ok(i32::from_be_bytes([field[0], field[1], field[2], field[3]]))
}

fn field_end(bytes: &[u8], at: usize, name: &'static str, min: usize, max: usize) -> Result<usize, NotARow> {
    let length = length_at(bytes, at)?;
    let end = usize::try_from(length)
        .ok()
        .filter(|length| (min..=max).contains(length))
        .map(|length| at + 4 + length)
        .ok_or(NotARow::Length(name, length))?;
    if end > bytes.len() { Err(NotARow::Short) } else { Ok(end) }
}
