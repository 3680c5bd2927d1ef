//! Decodes one event object: reads its fields, validates them and encodes a row. Invalid fields are
//! reported one by one to the sink. A JSON syntax error ends the scan and is returned to the
//! caller.

use super::encode::{self, EventParts};
use super::idempotency::{self, ContentDigest, ContentKey, HeaderKey};
use super::row_sink::RowSink;
use super::{IngestHeaders, IngestLimits};
use crate::event::row;
use crate::event::timestamp::{self, ParseTimestampError, TimestampBounds};
use crate::event::{
    ArrivalNumber, EventId, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX,
    Timestamp,
};
use crate::http::problem::{ECHO_BYTES_MAX, FieldError};
use crate::json::{JsonString, JsonValue, JsonViolation, ParseJsonError, Scanner, text};

/// The error of a member without a name.
pub(super) const NAME_EXPECTED: &str = "a field name in double quotes was expected";

/// Maximum errors listed for one event, so that one event cannot fill the list of its batch.
const ERRORS_OF_EVENT_MAX: u32 = 16;

/// A field is invalid. The message follows the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeFieldError {
    #[error("is required")]
    Missing,
    #[error("is present more than once")]
    Duplicate,
    #[error("is not a field of an event")]
    Unknown,
    #[error("must be {expected}, not {actual}")]
    WrongType { expected: &'static str, actual: &'static str },
    #[error("must not be empty")]
    Empty,
    #[error("must be at most {max} bytes, not {bytes}")]
    TooLong { max: usize, bytes: usize },
    #[error("must be the id of an exported event, a UUID of version 7 or 8")]
    InvalidId,
    #[error("must begin with the milliseconds of the event's timestamp, as in an export")]
    IdOfAnotherTime,
    #[error("{0}")]
    Json(JsonViolation),
    #[error("is not JSON: {0}")]
    Syntax(ParseJsonError),
    #[error("{0}")]
    Timestamp(ParseTimestampError),
}

/// State shared by all events of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecodeContext<'a> {
    pub(super) timestamp_bounds: TimestampBounds,
    pub(super) now: Timestamp,
    pub(super) key: Option<HeaderKey<'a>>,
    pub(super) container: EventContainer,
    pub(super) services: Option<&'a [Box<str>]>,
    pub(super) keeps_ids: bool,
}

impl<'a> DecodeContext<'a> {
    pub(super) fn new(headers: IngestHeaders<'a>, limits: IngestLimits, now: Timestamp) -> Self {
        Self {
            timestamp_bounds: TimestampBounds::new(now, limits.retention, limits.clock_skew),
            now,
            key: headers.key,
            container: EventContainer::Body,
            services: headers.services,
            keeps_ids: headers.keeps_ids,
        }
    }

    /// Whether the token may write `service`.
    pub(super) fn allows(&self, service: &[u8]) -> bool {
        let sorted = self.services.unwrap_or_default();
        self.services.is_none() || sorted.binary_search_by(|allowed| allowed.as_bytes().cmp(service)).is_ok()
    }

    /// The field of an exported event that an ordinary event does not have.
    #[cold]
    fn exported_field(&self, name: &[u8]) -> Option<EventField> {
        match name {
            b"event_id" if self.keeps_ids => Some(EventField::Id),
            b"ingested_at" if self.keeps_ids => Some(EventField::IngestedAt),
            _ => None,
        }
    }
}

/// The container of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventContainer {
    /// The event is the whole body.
    Body,
    Array,
    /// The event is one line; no data may follow it.
    Line,
}

impl EventContainer {
    /// Rejects data after the event, before the event is accepted.
    #[inline]
    fn check_end(self, scanner: &mut Scanner<'_>) -> Result<(), ParseJsonError> {
        if self != Self::Array {
            scanner.next_token();
            if !scanner.is_at_end() {
                return Err(scanner.error("unexpected data after the JSON value"));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventField {
    Timestamp,
    Service,
    Message,
    Metadata,
    Key,
    /// In an export only.
    Id,
    /// In an export only.
    IngestedAt,
}

impl EventField {
    #[inline]
    fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"timestamp" => Some(Self::Timestamp),
            b"service" => Some(Self::Service),
            b"message" => Some(Self::Message),
            b"metadata" => Some(Self::Metadata),
            b"idempotency_key" => Some(Self::Key),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Timestamp => "timestamp",
            Self::Service => "service",
            Self::Message => "message",
            Self::Metadata => "metadata",
            Self::Key => "idempotency_key",
            Self::Id => "event_id",
            Self::IngestedAt => "ingested_at",
        }
    }
}

/// The fields decoded so far.
#[derive(Default)]
struct PartialEvent {
    /// One bit per field that is present, valid or not.
    seen: u8,
    errors: u32,
    timestamp: Option<Timestamp>,
    service: Option<JsonString>,
    message: Option<JsonString>,
    metadata: Option<JsonValue>,
    key: Option<JsonString>,
    id: Option<EventId>,
}

impl PartialEvent {
    #[inline]
    fn has_seen(&self, field: EventField) -> bool {
        self.seen & (1 << field as u8) != 0
    }

    #[cold]
    fn record_error(&mut self, sink: &mut RowSink, field: EventField, error: DecodeFieldError) {
        self.record_error_named(sink, field.name(), error);
    }

    #[cold]
    fn record_error_named(&mut self, sink: &mut RowSink, field: &str, error: DecodeFieldError) {
        self.errors += 1;
        if self.errors > ERRORS_OF_EVENT_MAX {
            sink.errors.omit();
            return;
        }
        let index = sink.index();
        sink.errors.push(|| FieldError {
            index: Some(index),
            field: field.to_owned().into(),
            detail: format!("{field} {error}"),
        });
    }
}

/// Decodes the element at the scanner's position and adds it to `sink` as accepted or rejected.
#[inline]
pub(super) fn decode_event(
    scanner: &mut Scanner<'_>,
    context: &DecodeContext<'_>,
    sink: &mut RowSink,
) -> Result<(), ParseJsonError> {
    if scanner.peek() != b'{' {
        return reject_non_object(scanner, context, sink);
    }
    let mut event = PartialEvent::default();
    // Written out: by `Scanner::members` a batch takes 3 % more instructions.
    scanner.advance();
    if scanner.next_token() != b'}' {
        loop {
            if scanner.peek() != b'"' {
                return Err(scanner.error(NAME_EXPECTED));
            }
            let name = scanner.string()?;
            scanner.expect(b':', "':' was expected")?;
            scanner.next_token();
            decode_field(scanner, name, &mut event, context, sink)?;
            match scanner.next_token() {
                b',' => scanner.advance(),
                b'}' => break,
                _ => return Err(scanner.error("',' or '}' was expected")),
            }
            scanner.next_token();
        }
    }
    scanner.advance();
    context.container.check_end(scanner)?;
    finish(scanner, event, context, sink);
    Ok(())
}

#[cold]
fn reject_non_object(
    scanner: &mut Scanner<'_>,
    context: &DecodeContext<'_>,
    sink: &mut RowSink,
) -> Result<(), ParseJsonError> {
    let actual = json_type_name(scanner.peek());
    scanner.value()?;
    context.container.check_end(scanner)?;
    let index = sink.index();
    sink.errors.push(|| FieldError {
        index: Some(index),
        field: "event".into(),
        detail: format!("an event must be an object, not {actual}"),
    });
    sink.reject();
    Ok(())
}

#[inline]
fn decode_field(
    scanner: &mut Scanner<'_>,
    name: JsonString,
    event: &mut PartialEvent,
    context: &DecodeContext<'_>,
    sink: &mut RowSink,
) -> Result<(), ParseJsonError> {
    let raw = scanner.slice(name.start, name.end);
    let field =
        if name.has_escapes() { EventField::from_name(&unescaped(raw)) } else { EventField::from_name(raw) };
    let Some(field) = field.or_else(|| context.exported_field(raw)) else {
        scanner.value()?;
        let name = text::truncate(&String::from_utf8_lossy(&unescaped(raw)), ECHO_BYTES_MAX);
        event.record_error_named(sink, &name, DecodeFieldError::Unknown);
        return Ok(());
    };
    if event.has_seen(field) {
        scanner.value()?;
        event.record_error(sink, field, DecodeFieldError::Duplicate);
        return Ok(());
    }
    event.seen |= 1 << field as u8;
    let result = match field {
        EventField::Timestamp => {
            decode_timestamp(scanner, context)?.map(|value| event.timestamp = Some(value))
        }
        EventField::Service => {
            decode_string(scanner, SERVICE_BYTES_MAX)?.map(|value| event.service = Some(value))
        }
        EventField::Message => {
            decode_string(scanner, MESSAGE_BYTES_MAX)?.map(|value| event.message = Some(value))
        }
        EventField::Metadata => decode_metadata(scanner)?.map(|value| event.metadata = value),
        EventField::Key if scanner.peek() == b'n' => decode_null(scanner)?.map(|()| event.key = None),
        EventField::Key => decode_string(scanner, KEY_BYTES_MAX)?.map(|value| event.key = Some(value)),
        EventField::Id => decode_id(scanner)?.map(|id| event.id = Some(id)),
        // The event is ingested now.
        EventField::IngestedAt => decode_null(scanner)?,
    };
    if let Err(error) = result {
        event.record_error(sink, field, error);
    }
    Ok(())
}

/// The outer error ends the scan; the inner error concerns one field.
type FieldResult<T> = Result<Result<T, DecodeFieldError>, ParseJsonError>;

#[inline]
fn decode_string(scanner: &mut Scanner<'_>, bytes_max: usize) -> FieldResult<JsonString> {
    if scanner.peek() != b'"' {
        return wrong_type(scanner, "a string");
    }
    let text = scanner.string()?;
    Ok(match text.violation {
        Some(violation) => Err(DecodeFieldError::Json(violation)),
        None if text.bytes == 0 => Err(DecodeFieldError::Empty),
        None if text.bytes > bytes_max => {
            Err(DecodeFieldError::TooLong { max: bytes_max, bytes: text.bytes })
        }
        None => Ok(text),
    })
}

#[inline]
fn decode_metadata(scanner: &mut Scanner<'_>) -> FieldResult<Option<JsonValue>> {
    match scanner.peek() {
        b'{' => {}
        // Serializers write absent fields as null.
        b'n' => return Ok(decode_null(scanner)?.map(|()| None)),
        _ => return wrong_type(scanner, "an object"),
    }
    let value = scanner.value()?;
    let bytes = value.end - value.start;
    Ok(match value.violation {
        _ if bytes > METADATA_BYTES_MAX => Err(DecodeFieldError::TooLong { max: METADATA_BYTES_MAX, bytes }),
        Some(violation) => Err(DecodeFieldError::Json(violation)),
        None => Ok(Some(value)),
    })
}

#[inline]
fn decode_timestamp(scanner: &mut Scanner<'_>, context: &DecodeContext<'_>) -> FieldResult<Timestamp> {
    let read = match scanner.peek() {
        b'"' => {
            let text = scanner.string()?;
            let raw = scanner.slice(text.start, text.end);
            if text.has_escapes() {
                timestamp::parse_rfc3339(&unescaped(raw))
            } else {
                timestamp::parse_rfc3339(raw)
            }
        }
        b'-' | b'0'..=b'9' => {
            let value = scanner.value()?;
            timestamp::parse_epoch_millis(scanner.slice(value.start, value.end))
        }
        _ => return wrong_type(scanner, "an RFC 3339 string or an integer of epoch milliseconds"),
    };
    Ok(read.and_then(|time| context.timestamp_bounds.check(time)).map_err(DecodeFieldError::Timestamp))
}

#[cold]
fn wrong_type<T>(scanner: &mut Scanner<'_>, expected: &'static str) -> FieldResult<T> {
    let actual = json_type_name(scanner.peek());
    scanner.value()?;
    Ok(Err(DecodeFieldError::WrongType { expected, actual }))
}

#[cold]
fn decode_id(scanner: &mut Scanner<'_>) -> FieldResult<EventId> {
    if scanner.peek() != b'"' {
        return wrong_type(scanner, "a string");
    }
    let text = scanner.string()?;
    let id = str::from_utf8(scanner.slice(text.start, text.end)).ok().and_then(|text| text.parse().ok());
    Ok(id.filter(EventId::is_composed).ok_or(DecodeFieldError::InvalidId))
}

/// Skips a value that is not used: `null` in place of an optional value.
#[cold]
fn decode_null(scanner: &mut Scanner<'_>) -> FieldResult<()> {
    scanner.value()?;
    Ok(Ok(()))
}

/// The JSON type of a value, from its first byte.
pub(super) fn json_type_name(first: u8) -> &'static str {
    match first {
        b'{' => "an object",
        b'[' => "an array",
        b'"' => "a string",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        _ => "a number",
    }
}

#[cold]
fn unescaped(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    text::unescape(&mut out, raw);
    out
}

/// Validates the event as a whole and encodes it.
#[inline]
fn finish(scanner: &Scanner<'_>, mut event: PartialEvent, context: &DecodeContext<'_>, sink: &mut RowSink) {
    let (Some(timestamp), Some(service), Some(message), 0) =
        (event.timestamp, event.service, event.message, event.errors)
    else {
        for field in [EventField::Timestamp, EventField::Service, EventField::Message] {
            if !event.has_seen(field) {
                event.record_error(sink, field, DecodeFieldError::Missing);
            }
        }
        sink.reject();
        return;
    };
    let parts = EventParts { source: scanner.source(), service, message, metadata: event.metadata };
    if context.services.is_some() {
        let (name, _) = sink.unescape_pair(&parts, service, JsonString::default());
        if !context.allows(name) {
            let name = text::truncate(&String::from_utf8_lossy(name), ECHO_BYTES_MAX);
            return reject_forbidden(sink, &name);
        }
    }
    if let Some(id) = event.id {
        return accept_exported(sink, event, id, timestamp, context.now, &parts);
    }
    let arrival = sink.id_generator.next_arrival(context.now);
    let id = match (event.key, context.key) {
        (None, None) => sink.id_generator.event_id(timestamp.millis().cast_unsigned()),
        (Some(key), _) => {
            let (service, key) = sink.unescape_pair(&parts, service, key);
            let id = idempotency::event_key_id(timestamp, service, key);
            sink.has_keyed_ids = true;
            id
        }
        (None, Some(key)) => return accept_by_content(sink, key, timestamp, context.now, arrival, &parts),
    };
    encode::encode_row(&mut sink.rows, id, timestamp, context.now, arrival, &parts);
    sink.accept(id);
}

/// Encodes an event with the id that it had in an export.
#[cold]
fn accept_exported(
    sink: &mut RowSink,
    mut event: PartialEvent,
    id: EventId,
    timestamp: Timestamp,
    now: Timestamp,
    parts: &EventParts<'_>,
) {
    if id.millis() != timestamp.millis().cast_unsigned() {
        event.record_error(sink, EventField::Id, DecodeFieldError::IdOfAnotherTime);
        return sink.reject();
    }
    let arrival = sink.id_generator.next_arrival(now);
    encode::encode_row(&mut sink.rows, id, timestamp, now, arrival, parts);
    sink.has_keyed_ids |= id.is_keyed();
    sink.accept(id);
}

/// Encodes an event whose id depends on its content and the request's key.
fn accept_by_content(
    sink: &mut RowSink,
    key: HeaderKey<'_>,
    timestamp: Timestamp,
    now: Timestamp,
    arrival: ArrivalNumber,
    parts: &EventParts<'_>,
) {
    let begin = sink.rows.len();
    // The content is hashed as the row has it; the id follows.
    encode::encode_row(&mut sink.rows, EventId::floor(0), timestamp, now, arrival, parts);
    let digest = ContentDigest::new(ContentKey::Request(key), &sink.rows[begin..]);
    let id = digest.event_id(timestamp, sink.content_counts.count(digest));
    row::set_id(&mut sink.rows[begin..], id);
    sink.has_keyed_ids = true;
    sink.accept(id);
}

/// Rejects a valid event whose service the token may not write.
#[cold]
pub(super) fn reject_forbidden(sink: &mut RowSink, service: &str) {
    let index = sink.index();
    sink.errors.push(|| FieldError {
        index: Some(index),
        field: EventField::Service.name().into(),
        detail: format!("the token may not write the service {service:?}"),
    });
    sink.reject();
    sink.forbidden += 1;
}
