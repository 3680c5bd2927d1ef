//! Records of other formats: a reader decodes a record into [`EventFields`], and [`RecordSink`]
//! validates it by the rules of an event in the server's own format, makes its id and encodes its
//! row. A record with an error is rejected alone.
//!
//! It must not depend on any of the formats.

use std::fmt::Display;

use super::decode::{self, DecodeContext, DecodeFieldError};
use super::encode;
use super::idempotency::{self, ContentDigest, ContentKey};
use super::row_sink::RowSink;
use crate::event::row;
use crate::event::{EventId, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX, Timestamp};
use crate::http::problem::{ECHO_BYTES_MAX, FieldError};
use crate::json::{JsonViolation, Scanner, text};

/// What many records of a body share, such as their resource, is in each of their rows. These bound
/// the bytes of the rows: some for any body, a multiple of the body's bytes, and some in all.
const ROW_BYTES_FREE: usize = 1 << 20;
const ROW_BYTES_FACTOR: usize = 32;
const ROW_BYTES_MAX: usize = 128 << 20;

/// The service of a record that names none.
pub(super) const UNKNOWN_SERVICE: &str = "unknown_service";

/// One event as a record of another format states it. The texts are unescaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventFields<'a> {
    pub(super) timestamp: Timestamp,
    pub(super) service: &'a str,
    pub(super) message: &'a str,
    pub(super) metadata: Metadata<'a>,
    pub(super) identity: EventIdentity<'a>,
}

/// The metadata of an event, in UTF-8.
#[derive(Clone, Copy, Debug)]
pub(super) enum Metadata<'a> {
    None,
    /// JSON text that is validated.
    Text(&'a [u8]),
    /// An object that keeps all rules but the one on its size.
    Checked(&'a [u8]),
    Invalid(JsonViolation),
}

/// What makes two events the same, so that they are stored once.
#[derive(Clone, Copy, Debug)]
pub(super) enum EventIdentity<'a> {
    /// The key of the request and the event's content; without such a key every event is another.
    Request,
    /// The service, the timestamp and this key, of any length.
    Key(&'a [u8]),
    /// The event's content and this key, which may be empty. Equal events of a request are counted.
    Content(&'a [u8]),
    /// The body of the request and the index of the record in it, if equal bodies are one request;
    /// otherwise as [`Self::Request`]. Cheaper than the content.
    Position,
}

/// Takes the records of one body.
#[derive(Debug)]
pub(super) struct RecordSink<'a> {
    sink: &'a mut RowSink,
    context: &'a DecodeContext<'a>,
    /// The BLAKE3 hash of the body, if it is the key of the request.
    body_digest: Option<&'a [u8; 32]>,
    row_bytes_max: usize,
}

impl<'a> RecordSink<'a> {
    pub(super) fn new(
        sink: &'a mut RowSink,
        context: &'a DecodeContext<'a>,
        body_digest: Option<&'a [u8; 32]>,
        body_bytes: usize,
    ) -> Self {
        let row_bytes_max =
            ROW_BYTES_FREE.saturating_add(body_bytes.saturating_mul(ROW_BYTES_FACTOR)).min(ROW_BYTES_MAX);
        Self { sink, context, body_digest, row_bytes_max }
    }

    /// Whether the rows take more bytes than a body of this length may become. Further records are
    /// not encoded then.
    pub(super) fn has_too_many_bytes(&self) -> bool {
        self.sink.rows.len() > self.row_bytes_max
    }

    /// The time of the request, for records without a time.
    pub(super) fn now(&self) -> Timestamp {
        self.context.now
    }

    /// The number of records before the current one, accepted or rejected.
    pub(super) fn index(&self) -> u32 {
        self.sink.index()
    }

    /// Adds a record as an accepted or rejected event.
    #[inline]
    pub(super) fn push(&mut self, fields: &EventFields<'_>) {
        if self.has_too_many_bytes() {
            return;
        }
        let checks = (
            self.context.timestamp_bounds.check(fields.timestamp),
            check_text(fields.service, SERVICE_BYTES_MAX),
            check_text(fields.message, MESSAGE_BYTES_MAX),
            check_metadata(fields.metadata),
        );
        match checks {
            (Ok(_), Ok(()), Ok(()), Ok(metadata)) => self.accept(fields, metadata),
            (timestamp, service, message, metadata) => self.reject_fields([
                ("timestamp", timestamp.err().map(DecodeFieldError::Timestamp)),
                ("service", service.err()),
                ("message", message.err()),
                ("metadata", metadata.err()),
            ]),
        }
    }

    /// Adds a record that cannot be decoded into fields. `detail` follows the name of the field in
    /// the error.
    #[cold]
    pub(super) fn reject(&mut self, field: &str, detail: &dyn Display) {
        self.push_error(field, detail);
        self.sink.reject();
    }

    /// Adds an error of the current record, which the caller rejects with [`Self::reject_noted`].
    #[cold]
    pub(super) fn note_error(&mut self, field: &str, detail: &dyn Display) {
        self.push_error(field, detail);
    }

    /// Rejects the record whose errors were noted.
    #[cold]
    pub(super) fn reject_noted(&mut self) {
        self.sink.reject();
    }

    #[cold]
    fn push_error(&mut self, field: &str, detail: &dyn Display) {
        let (index, field) = (self.sink.index(), text::truncate(field, ECHO_BYTES_MAX));
        self.sink.errors.push(|| FieldError {
            index: Some(index),
            detail: format!("{field} {detail}"),
            field: field.into(),
        });
    }

    /// Rejects the record with the errors of its fields.
    #[cold]
    fn reject_fields(&mut self, errors: [(&'static str, Option<DecodeFieldError>); 4]) {
        for (field, error) in errors {
            if let Some(error) = error {
                self.push_error(field, &error);
            }
        }
        self.sink.reject();
    }

    #[inline]
    fn accept(&mut self, fields: &EventFields<'_>, metadata: Option<&[u8]>) {
        let (sink, context, body_digest) = (&mut *self.sink, self.context, self.body_digest);
        let &EventFields { timestamp, service, message, metadata: _, identity } = fields;
        if context.services.is_some() && !context.allows(service.as_bytes()) {
            return decode::reject_forbidden(sink, &text::truncate(service, ECHO_BYTES_MAX));
        }
        let arrival = sink.id_generator.next_arrival(context.now);
        let content_key = match (identity, context.key, body_digest) {
            (EventIdentity::Content(key), ..) => Some(ContentKey::Record(key)),
            (EventIdentity::Request | EventIdentity::Position, Some(key), _) => {
                Some(ContentKey::Request(key))
            }
            (EventIdentity::Request, None, Some(digest)) => Some(ContentKey::Body(digest)),
            (EventIdentity::Request | EventIdentity::Position, None, _) | (EventIdentity::Key(_), ..) => None,
        };
        let id = match (identity, content_key, body_digest) {
            (EventIdentity::Key(key), ..) => idempotency::event_key_id(timestamp, service.as_bytes(), key),
            // The content is hashed as the row has it; the id follows.
            (_, Some(_), _) => EventId::floor(0),
            (EventIdentity::Position, None, Some(digest)) => {
                idempotency::position_id(timestamp, digest, sink.index())
            }
            (_, None, _) => sink.id_generator.event_id(timestamp.millis().cast_unsigned()),
        };
        let begin = sink.rows.len();
        encode::encode_plain_row(
            &mut sink.rows,
            id,
            (timestamp, context.now),
            arrival,
            (service.as_bytes(), message.as_bytes()),
            metadata,
        );
        let Some(key) = content_key else {
            sink.has_keyed_ids |= id.is_keyed();
            return sink.accept(id);
        };
        let digest = ContentDigest::new(key, &sink.rows[begin..]);
        let id = digest.event_id(timestamp, sink.content_counts.count(digest));
        row::set_id(&mut sink.rows[begin..], id);
        sink.has_keyed_ids = true;
        sink.accept(id);
    }
}

/// Checks the bounds of a text, and that PostgreSQL can store it.
#[inline]
fn check_text(text: &str, bytes_max: usize) -> Result<(), DecodeFieldError> {
    if text.is_empty() {
        return Err(DecodeFieldError::Empty);
    }
    if text.len() > bytes_max {
        return Err(DecodeFieldError::TooLong { max: bytes_max, bytes: text.len() });
    }
    if memchr::memchr(0, text.as_bytes()).is_some() {
        return Err(DecodeFieldError::Json(JsonViolation::Nul));
    }
    Ok(())
}

/// The text of valid metadata.
#[inline]
fn check_metadata(metadata: Metadata<'_>) -> Result<Option<&[u8]>, DecodeFieldError> {
    let (json, is_checked) = match metadata {
        Metadata::None => return Ok(None),
        Metadata::Text(json) => (json, false),
        Metadata::Checked(json) => (json, true),
        Metadata::Invalid(violation) => return Err(DecodeFieldError::Json(violation)),
    };
    if json.len() > METADATA_BYTES_MAX {
        return Err(DecodeFieldError::TooLong { max: METADATA_BYTES_MAX, bytes: json.len() });
    }
    if !is_checked {
        scan_object(json)?;
    }
    Ok(Some(json))
}

/// Scans JSON text that must be one object.
fn scan_object(json: &[u8]) -> Result<(), DecodeFieldError> {
    let mut scanner = Scanner::new(json);
    if scanner.peek() != b'{' {
        return Err(DecodeFieldError::WrongType { expected: "an object", actual: "another value" });
    }
    let value = scanner.value().map_err(DecodeFieldError::Syntax)?;
    if !scanner.is_at_end() {
        return Err(DecodeFieldError::Syntax(scanner.error("unexpected data after the JSON value")));
    }
    value.violation.map_or(Ok(()), |violation| Err(DecodeFieldError::Json(violation)))
}
