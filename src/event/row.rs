//! The row: the encoding of an event, made on the acceptor thread and sent unchanged to PostgreSQL.
//!
//! A row is a tuple of PostgreSQL's binary COPY format (PostgreSQL manual, COPY, "Binary Format"):
//! a 16-bit field count, then each field as a 32-bit length (-1 for NULL) and its bytes, all
//! big-endian. The buffer, the journal and the COPY stream hold the same bytes. Fields of fixed
//! size come first, so that the id, the timestamp and the service are at fixed offsets.
//!
//! Rows that were written before arrival numbers existed have six fields, without `id`. They are in
//! segments of the journal up to version 2 and in dead letters; [`split_converted`] reads them.
//!
//! It must not depend on JSON, sockets or SQL sessions.

use std::borrow::Cow;

use crate::event::{
    ArrivalNumber, Event, EventId, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX, Timestamp,
};

/// The columns of a row in order, as named in the COPY statement.
pub const COLUMNS: &str = "event_id, timestamp, ingested_at, id, service, message, metadata";

/// The header of a binary COPY stream, before the rows.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// The trailer of a binary COPY stream, after the rows.
pub const COPY_TRAILER: &[u8] = &[0xff, 0xff];

const FIELDS: i16 = 7;
/// The fields of a row without `id`. The others have the same offsets up to [`ARRIVAL_FIELD_AT`].
const FIELDS_BEFORE_ARRIVAL: i16 = 6;
/// Offset of the first field, after the number of fields.
pub const FIRST_FIELD_AT: usize = 2;
const ID_AT: usize = 6;
const TIMESTAMP_AT: usize = 26;
const INGESTED_AT: usize = 38;
/// Offset of the length of `id`, the number of arrival.
const ARRIVAL_FIELD_AT: usize = 46;
const ARRIVAL_AT: usize = ARRIVAL_FIELD_AT + 4;
/// Offset of the length of `service`, the first field of variable size.
const SERVICE_AT: usize = ARRIVAL_AT + 8;
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
pub fn append_header(
    out: &mut Vec<u8>,
    id: EventId,
    timestamp: Timestamp,
    ingested_at: Timestamp,
    arrival: ArrivalNumber,
) {
    let mut head = [0; SERVICE_AT];
    head[..2].copy_from_slice(&FIELDS.to_be_bytes());
    head[2..ID_AT].copy_from_slice(&16_i32.to_be_bytes());
    head[ID_AT..22].copy_from_slice(id.bytes());
    head[22..TIMESTAMP_AT].copy_from_slice(&8_i32.to_be_bytes());
    head[TIMESTAMP_AT..34].copy_from_slice(&timestamp.to_postgres().to_be_bytes());
    head[34..INGESTED_AT].copy_from_slice(&8_i32.to_be_bytes());
    head[INGESTED_AT..ARRIVAL_FIELD_AT].copy_from_slice(&ingested_at.to_postgres().to_be_bytes());
    head[ARRIVAL_FIELD_AT..ARRIVAL_AT].copy_from_slice(&8_i32.to_be_bytes());
    head[ARRIVAL_AT..SERVICE_AT].copy_from_slice(&arrival.nanos().to_be_bytes());
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
        let fields = field_count(bytes)?;
        if fields != FIELDS {
            return Err(DecodeRowError::FieldCount(fields));
        }
        for (name, at, expected) in
            [("event_id", 2, 16), ("timestamp", 22, 8), ("ingested_at", 34, 8), ("id", ARRIVAL_FIELD_AT, 8)]
        {
            let length = length_at(bytes, at)?;
            if length != expected {
                return Err(DecodeRowError::FieldLength(name, length));
            }
        }
        let (service_end, message_end, end) = text_ends(bytes, SERVICE_AT)?;
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

    /// The first field of the row of the event with this id, at the offset [`FIRST_FIELD_AT`].
    pub fn first_field_of(id: EventId) -> [u8; 20] {
        let mut field = [0; 20];
        field[..4].copy_from_slice(&16_i32.to_be_bytes());
        field[4..].copy_from_slice(id.bytes());
        field
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
            arrival: self.arrival(),
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

    pub fn arrival(&self) -> ArrivalNumber {
        ArrivalNumber::from_nanos(i64::from_be_bytes(array_at(self.bytes, ARRIVAL_AT)))
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

/// Splits off the first row, of six or seven fields, and returns it with seven. A row without a
/// number gets the time of its ingestion in nanoseconds plus `nth`, its index among its block's rows.
pub fn split_converted(bytes: &[u8], nth: u32) -> Result<(Cow<'_, [u8]>, &[u8]), DecodeRowError> {
    if field_count(bytes)? != FIELDS_BEFORE_ARRIVAL {
        let (row, rest) = Row::split(bytes)?;
        return Ok((Cow::Borrowed(row.bytes), rest));
    }
    let (.., end) = text_ends(bytes, ARRIVAL_FIELD_AT)?;
    let (row, rest) = bytes.split_at(end);
    let ingested_at = Timestamp::from_postgres(i64::from_be_bytes(array_at(row, INGESTED_AT)));
    let arrival = ArrivalNumber::first_at(ingested_at).nanos().saturating_add(i64::from(nth));
    let mut converted = Vec::with_capacity(row.len() + SERVICE_AT - ARRIVAL_FIELD_AT);
    converted.extend_from_slice(&FIELDS.to_be_bytes());
    converted.extend_from_slice(&row[2..ARRIVAL_FIELD_AT]);
    converted.extend_from_slice(&8_i32.to_be_bytes());
    converted.extend_from_slice(&arrival.to_be_bytes());
    converted.extend_from_slice(&row[ARRIVAL_FIELD_AT..]);
    // The fields before are checked too.
    Row::split(&converted)?;
    Ok((Cow::Owned(converted), rest))
}

/// Converts whole rows as [`split_converted`] does. Rows of one write have the same number of fields.
pub fn convert_rows(bytes: &[u8]) -> Result<Cow<'_, [u8]>, DecodeRowError> {
    if field_count(bytes)? != FIELDS_BEFORE_ARRIVAL {
        return Ok(Cow::Borrowed(bytes));
    }
    let (mut converted, mut rest, mut nth) = (Vec::with_capacity(bytes.len() * 5 / 4), bytes, 0);
    while !rest.is_empty() {
        let row;
        (row, rest) = split_converted(rest, nth)?;
        converted.extend_from_slice(&row);
        nth += 1;
    }
    Ok(Cow::Owned(converted))
}

fn field_count(bytes: &[u8]) -> Result<i16, DecodeRowError> {
    let count = bytes.first_chunk().ok_or(DecodeRowError::Truncated)?;
    Ok(i16::from_be_bytes(*count))
}

/// Checks the fields of variable size, the first of which is at `service_at`, and returns where they
/// end.
fn text_ends(bytes: &[u8], service_at: usize) -> Result<(usize, usize, usize), DecodeRowError> {
    let service_end = field_end(bytes, service_at, "service", 1, SERVICE_BYTES_MAX)?;
    let message_end = field_end(bytes, service_end, "message", 1, MESSAGE_BYTES_MAX)?;
    let end = match length_at(bytes, message_end)? {
        -1 => message_end + 4,
        // The version byte and the shortest object, `{}`.
        _ => field_end(bytes, message_end, "metadata", 3, METADATA_BYTES_MAX + 1)?,
    };
    Ok((service_end, message_end, end))
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

/// The row as a version without arrival numbers wrote it.
#[cfg(test)]
pub fn without_arrival(row: &[u8]) -> Vec<u8> {
    let mut old = FIELDS_BEFORE_ARRIVAL.to_be_bytes().to_vec();
    old.extend_from_slice(&row[2..ARRIVAL_FIELD_AT]);
    old.extend_from_slice(&row[SERVICE_AT..]);
    old
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: Timestamp = Timestamp::from_micros(1_795_435_200_000_005);

    fn row(message: &str, arrival: i64, metadata: Option<&str>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (id, time) = (EventId::keyed(7, [9; 10]), Timestamp::from_millis(7));
        append_header(&mut bytes, id, time, TIME, ArrivalNumber::from_nanos(arrival));
        append_text(&mut bytes, b"s");
        append_text(&mut bytes, message.as_bytes());
        append_metadata(&mut bytes, metadata.map(str::as_bytes));
        bytes
    }

    #[test]
    fn row_has_the_columns_in_the_order_of_copy() {
        let bytes = row("m", 0x0102_0304_0506_0708, None);
        assert_eq!(bytes[..2], 7_i16.to_be_bytes());
        assert_eq!(usize::from(bytes[1]), COLUMNS.split(", ").count());
        assert_eq!(bytes[46..58], [0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(bytes[FIRST_FIELD_AT..22], Row::first_field_of(EventId::keyed(7, [9; 10])));
        let (row, rest) = Row::split(&bytes).unwrap();
        assert_eq!((row.arrival().nanos(), rest.len()), (0x0102_0304_0506_0708, 0));
    }

    #[test]
    fn split_refuses_a_row_without_arrival_or_with_another_length() {
        let mut bytes = row("m", 1, None);
        assert_eq!(Row::split(&without_arrival(&bytes)), Err(DecodeRowError::FieldCount(6)));
        bytes[49] = 4;
        assert_eq!(Row::split(&bytes), Err(DecodeRowError::FieldLength("id", 4)));
    }

    #[test]
    fn converted_rows_have_the_time_of_ingestion_in_their_order() {
        let rows = ["a", "b", "c"].map(|message| row(message, 0, Some("{}")));
        let old: Vec<u8> = rows.iter().flat_map(|row| without_arrival(row)).collect();
        let converted = convert_rows(&old).unwrap();
        let arrivals: Vec<_> = super::rows(&converted).map(|row| row.arrival().nanos()).collect();
        let first = TIME.micros() * 1000;
        assert_eq!(arrivals, [first, first + 1, first + 2]);
        assert!(matches!(convert_rows(&rows.concat()), Ok(Cow::Borrowed(_))));
        assert_eq!(convert_rows(&[]), Err(DecodeRowError::Truncated));
    }

    proptest! {
        #[test]
        fn conversion_keeps_every_other_field(message in "\\PC{1,40}", metadata in prop::option::of("\\{\"a\":\"[a-z]{0,9}\"\\}")) {
            let nanos = TIME.micros() * 1000 + 3;
            let new = row(&message, nanos, metadata.as_deref());
            let old = [without_arrival(&new), b"rest".to_vec()].concat();
            let (converted, rest) = split_converted(&old, 3).unwrap();
            prop_assert_eq!((&*converted, rest), (new.as_slice(), b"rest".as_slice()));
            let same = [new.as_slice(), b"rest"].concat();
            let (row, rest) = split_converted(&same, 3).unwrap();
            prop_assert_eq!((&*row, rest), (new.as_slice(), b"rest".as_slice()));
        }

        #[test]
        fn conversion_of_arbitrary_bytes_does_not_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            fields in 5_i16..8,
            cut in 0_usize..80,
        ) {
            let mut old = without_arrival(&row("message", 0, Some("{}")));
            old[..2].copy_from_slice(&fields.to_be_bytes());
            old.truncate(cut);
            for bytes in [bytes.as_slice(), &old, &[&old[..], &bytes].concat()] {
                if let Ok((row, rest)) = split_converted(bytes, u32::MAX) {
                    prop_assert!(Row::split(&row).is_ok() && rest.len() < bytes.len());
                }
                if let Ok(rows) = convert_rows(bytes) {
                    prop_assert!(!rows.is_empty());
                }
            }
        }
    }
}
