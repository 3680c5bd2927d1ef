//! One event object: its fields read, judged against their bounds, and encoded. What is wrong is told field by
//! field; a broken grammar ends the scan and is the caller's to tell.

use super::encode::{self, Parts};
use super::idempotency::{self, HeaderKey};
use super::sink::Sink;
use crate::event::timestamp::{self, TimestampFault, Window};
use crate::event::{
    EventId, KEY_BYTES_MAX, MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, SERVICE_BYTES_MAX, Timestamp,
};
use crate::http::problem::{ECHO_BYTES_MAX, FieldError};
use crate::json::{Fault, Scanner, Syntax, Text, Value, text};

/// Errors that are listed of one event; a hostile event must not fill the list of its batch.
const ERRORS_OF_EVENT_MAX: u32 = 16;

/// What is wrong with a field. With the field's name before it, it reads as a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("is required")]
    Missing,
    #[error("stands more than once")]
    Twice,
    #[error("is not a field of an event")]
    Unknown,
    #[error("must be {wanted}, not {got}")]
    Type { wanted: &'static str, got: &'static str },
    #[error("must not be empty")]
    Empty,
    #[error("must be at most {max} bytes, not {bytes}")]
    TooLong { max: usize, bytes: usize },
    #[error("{0}")]
    Fault(Fault),
    #[error("{0}")]
    Time(TimestampFault),
}

/// What every event of a request shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) window: Window,
    pub(super) now: Timestamp,
    pub(super) key: Option<HeaderKey<'a>>,
    pub(super) within: Within,
    pub(super) services: Option<&'a [Box<str>]>,
}

impl Context<'_> {
    /// Whether the sender may write `service`.
    fn allows(&self, service: &[u8]) -> bool {
        let sorted = self.services.unwrap_or_default();
        self.services.is_none() || sorted.binary_search_by(|known| known.as_bytes().cmp(service)).is_ok()
    }
}

/// Where an event stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Within {
    /// It is the body. It has no index that could belong to the header's key.
    Body,
    Array,
    /// Nothing may follow it.
    Line,
}

impl Within {
    /// Looks at what follows the event, before the event counts.
    #[inline]
    fn close(self, scanner: &mut Scanner<'_>) -> Result<(), Syntax> {
        if self != Self::Array {
            scanner.next_token();
            if !scanner.done() {
                return Err(scanner.error("the JSON is over and more follows"));
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Timestamp,
    Service,
    Message,
    Metadata,
    Key,
}

impl Field {
    #[inline]
    fn named(name: &[u8]) -> Option<Self> {
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
        }
    }
}

/// The fields as far as they have been read.
#[derive(Default)]
struct Draft {
    /// A bit a field, whether it was good or not.
    seen: u8,
    flaws: u32,
    timestamp: Option<Timestamp>,
    service: Option<Text>,
    message: Option<Text>,
    metadata: Option<Value>,
    key: Option<Text>,
}

impl Draft {
    #[inline]
    fn has(&self, field: Field) -> bool {
        self.seen & (1 << field as u8) != 0
    }

    #[cold]
    fn flaw(&mut self, sink: &mut Sink, field: Field, flaw: Flaw) {
        self.flaw_named(sink, field.name(), flaw);
    }

    #[cold]
    fn flaw_named(&mut self, sink: &mut Sink, field: &str, flaw: Flaw) {
        self.flaws += 1;
        if self.flaws > ERRORS_OF_EVENT_MAX {
            sink.errors.omit();
            return;
        }
        let index = sink.index();
        sink.errors.push(|| FieldError {
            index: Some(index),
            field: field.to_owned().into(),
            detail: format!("{field} {flaw}"),
        });
    }
}

/// Reads the element that begins here and adds it to `sink` as accepted or rejected.
#[inline]
pub(super) fn event(scanner: &mut Scanner<'_>, context: &Context<'_>, sink: &mut Sink) -> Result<(), Syntax> {
    if scanner.peek() != b'{' {
        return not_an_event(scanner, context, sink);
    }
    let mut draft = Draft::default();
    scanner.step();
    if scanner.next_token() != b'}' {
        loop {
            if scanner.peek() != b'"' {
                return Err(scanner.error("a field name in double quotes was expected"));
            }
            let name = scanner.string()?;
            scanner.expect(b':', "':' was expected")?;
            scanner.next_token();
            field(scanner, name, &mut draft, context, sink)?;
            match scanner.next_token() {
                b',' => scanner.step(),
                b'}' => break,
                _ => return Err(scanner.error("',' or '}' was expected")),
            }
            scanner.next_token();
        }
    }
    scanner.step();
    context.within.close(scanner)?;
    finish(scanner, draft, context, sink);
    Ok(())
}

#[cold]
fn not_an_event(scanner: &mut Scanner<'_>, context: &Context<'_>, sink: &mut Sink) -> Result<(), Syntax> {
    let got = kind(scanner.peek());
    scanner.value()?;
    context.within.close(scanner)?;
    let index = sink.index();
    sink.errors.push(|| FieldError {
        index: Some(index),
        field: "event".into(),
        detail: format!("an event must be an object, not {got}"),
    });
    sink.reject();
    Ok(())
}

#[inline]
fn field(
    scanner: &mut Scanner<'_>,
    name: Text,
    draft: &mut Draft,
    context: &Context<'_>,
    sink: &mut Sink,
) -> Result<(), Syntax> {
    let raw = scanner.slice(name.start, name.end);
    let known = if name.escaped() { Field::named(&unescaped(raw)) } else { Field::named(raw) };
    let Some(field) = known else {
        scanner.value()?;
        let name = text::shorten(&String::from_utf8_lossy(&unescaped(raw)), ECHO_BYTES_MAX);
        draft.flaw_named(sink, &name, Flaw::Unknown);
        return Ok(());
    };
    if draft.has(field) {
        scanner.value()?;
        draft.flaw(sink, field, Flaw::Twice);
        return Ok(());
    }
    draft.seen |= 1 << field as u8;
    let verdict = match field {
        Field::Timestamp => time(scanner, context)?.map(|value| draft.timestamp = Some(value)),
        Field::Service => string(scanner, SERVICE_BYTES_MAX)?.map(|value| draft.service = Some(value)),
        Field::Message => string(scanner, MESSAGE_BYTES_MAX)?.map(|value| draft.message = Some(value)),
        Field::Metadata => metadata(scanner)?.map(|value| draft.metadata = value),
        Field::Key if scanner.peek() == b'n' => absent(scanner)?.map(|()| draft.key = None),
        Field::Key => string(scanner, KEY_BYTES_MAX)?.map(|value| draft.key = Some(value)),
    };
    if let Err(flaw) = verdict {
        draft.flaw(sink, field, flaw);
    }
    Ok(())
}

/// A verdict on a value, within a scan that the grammar may end.
type Read<T> = Result<Result<T, Flaw>, Syntax>;

#[inline]
fn string(scanner: &mut Scanner<'_>, bytes_max: usize) -> Read<Text> {
    if scanner.peek() != b'"' {
        return wrong_type(scanner, "a string");
    }
    let text = scanner.string()?;
    Ok(match text.fault {
        Some(fault) => Err(Flaw::Fault(fault)),
        None if text.bytes == 0 => Err(Flaw::Empty),
        None if text.bytes > bytes_max => Err(Flaw::TooLong { max: bytes_max, bytes: text.bytes }),
        None => Ok(text),
    })
}

#[inline]
fn metadata(scanner: &mut Scanner<'_>) -> Read<Option<Value>> {
    match scanner.peek() {
        b'{' => {}
        // Serialisers write absent fields as null.
        b'n' => return Ok(absent(scanner)?.map(|()| None)),
        _ => return wrong_type(scanner, "an object"),
    }
    let value = scanner.value()?;
    let bytes = value.end - value.start;
    Ok(match value.fault {
        _ if bytes > METADATA_BYTES_MAX => Err(Flaw::TooLong { max: METADATA_BYTES_MAX, bytes }),
        Some(fault) => Err(Flaw::Fault(fault)),
        None => Ok(Some(value)),
    })
}

#[inline]
fn time(scanner: &mut Scanner<'_>, context: &Context<'_>) -> Read<Timestamp> {
    let read = match scanner.peek() {
        b'"' => {
            let text = scanner.string()?;
            let raw = scanner.slice(text.start, text.end);
            if text.escaped() { timestamp::rfc3339(&unescaped(raw)) } else { timestamp::rfc3339(raw) }
        }
        b'-' | b'0'..=b'9' => {
            let value = scanner.value()?;
            timestamp::epoch_millis(scanner.slice(value.start, value.end))
        }
        _ => return wrong_type(scanner, "an RFC 3339 string or an integer of epoch milliseconds"),
    };
    Ok(read.and_then(|time| context.window.admit(time)).map_err(Flaw::Time))
}

#[cold]
fn wrong_type<T>(scanner: &mut Scanner<'_>, wanted: &'static str) -> Read<T> {
    let got = kind(scanner.peek());
    scanner.value()?;
    Ok(Err(Flaw::Type { wanted, got }))
}

/// A `null` in the place of an optional value.
#[cold]
fn absent(scanner: &mut Scanner<'_>) -> Read<()> {
    scanner.value()?;
    Ok(Ok(()))
}

/// What a value is, by its first byte.
fn kind(first: u8) -> &'static str {
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

/// Judges the whole and encodes it.
#[inline]
fn finish(scanner: &Scanner<'_>, mut draft: Draft, context: &Context<'_>, sink: &mut Sink) {
    let (Some(timestamp), Some(service), Some(message), 0) =
        (draft.timestamp, draft.service, draft.message, draft.flaws)
    else {
        for field in [Field::Timestamp, Field::Service, Field::Message] {
            if !draft.has(field) {
                draft.flaw(sink, field, Flaw::Missing);
            }
        }
        sink.reject();
        return;
    };
    let parts = Parts { source: scanner.source(), service, message, metadata: draft.metadata };
    if context.services.is_some() {
        let (name, _) = sink.unescaped(&parts, service, Text::default());
        if !context.allows(name) {
            let name = text::shorten(&String::from_utf8_lossy(name), ECHO_BYTES_MAX);
            return forbid(sink, &name);
        }
    }
    let millis = timestamp.millis().cast_unsigned();
    let id = match (draft.key, context.key) {
        (None, None) => EventId::random(millis, sink.chance()),
        (Some(key), _) => {
            let (service, key) = sink.unescaped(&parts, service, key);
            idempotency::keyed(millis, service, key, None)
        }
        (None, Some(key)) => {
            let index = (context.within != Within::Body).then(|| sink.index());
            let (service, _) = sink.unescaped(&parts, service, Text::default());
            idempotency::keyed(millis, service, key.bytes(), index)
        }
    };
    encode::encode(&mut sink.rows, id, timestamp, context.now, &parts);
    sink.accept(id);
}

/// An event that is good, and not its sender's to send.
#[cold]
fn forbid(sink: &mut Sink, service: &str) {
    let index = sink.index();
    sink.errors.push(|| FieldError {
        index: Some(index),
        field: Field::Service.name().into(),
        detail: format!("the token may not write the service {service:?}"),
    });
    sink.reject();
    sink.forbidden += 1;
}
