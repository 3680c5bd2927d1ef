//! Writes OTLP's `AnyValue` as JSON text that PostgreSQL accepts: bytes as base64, doubles that are
//! not finite as strings, U+FFFD for NUL and invalid UTF-8. Nested values need no recursion.
//!
//! It must not depend on log records.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::event::METADATA_DEPTH_MAX;
use crate::http::problem::append_fmt;
use crate::json::text;
use crate::protobuf::{MessageReader, ParseProtobufError, WireValue};

/// Maximum doubles of one object whose exponent is written. PostgreSQL returns `1e308` as 309
/// digits, so that many short numbers would be read back as a long text.
const EXTREME_DOUBLES_MAX: u32 = 256;
/// Capacity that is kept from one record to the next.
const RETAINED_BYTES: usize = 256 * 1024;

/// A log record is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::ingest) enum RecordError {
    #[error("is not valid: {0}")]
    Malformed(#[from] ParseProtobufError),
    #[error("is nested deeper than {METADATA_DEPTH_MAX} levels")]
    TooDeep,
    #[error("takes more than {0} bytes as JSON")]
    TooLong(usize),
    #[error("has more than {EXTREME_DOUBLES_MAX} very large or very small numbers")]
    ExtremeDoubles,
}

/// JSON text that is written piece by piece. It keeps its allocation.
///
/// Invariant: after an error the text is not used.
#[derive(Debug)]
pub(super) struct JsonWriter {
    json: Vec<u8>,
    bytes_max: usize,
    extreme_doubles: u32,
}

/// An array or a map that is not complete yet.
struct OpenContainer<'a> {
    rest: MessageReader<'a>,
    is_map: bool,
    is_empty: bool,
}

/// A key and its value.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyValue<'a> {
    pub(super) key: &'a [u8],
    /// The bytes of the `AnyValue`; empty: null.
    pub(super) value: &'a [u8],
}

/// What an `AnyValue` holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum AnyValue<'a> {
    Empty,
    Text(&'a [u8]),
    Bool(bool),
    Integer(i64),
    Double(f64),
    /// The elements: field 1 of the bytes.
    Array(&'a [u8]),
    /// The key-values: field 1 of the bytes.
    Map(&'a [u8]),
    Bytes(&'a [u8]),
}

impl<'a> KeyValue<'a> {
    #[inline]
    pub(super) fn read(message: &'a [u8]) -> Result<Self, ParseProtobufError> {
        // As encoders write it: a key and a value of less than 128 bytes.
        if let [0x0a, length @ ..0x80, rest @ ..] = message
            && let Some((key, [0x12, length @ ..0x80, value @ ..])) =
                rest.split_at_checked(usize::from(*length))
            && value.len() == usize::from(*length)
        {
            return Ok(Self { key, value });
        }
        let mut reader = MessageReader::new(message);
        let mut found = Self::default();
        while let Some((number, value)) = reader.next_field()? {
            match number {
                1 => found.key = value.bytes()?,
                2 => found.value = value.bytes()?,
                _ => {}
            }
        }
        Ok(found)
    }
}

impl<'a> AnyValue<'a> {
    /// Reads a value. Of several members of the `oneof` the last one counts.
    #[inline]
    pub(super) fn read(message: &'a [u8]) -> Result<Self, ParseProtobufError> {
        // Most values are a text of less than 128 bytes.
        if let [0x0a, length @ ..0x80, text @ ..] = message
            && text.len() == usize::from(*length)
        {
            return Ok(Self::Text(text));
        }
        let mut reader = MessageReader::new(message);
        let mut found = Self::Empty;
        while let Some((number, value)) = reader.next_field()? {
            found = match (number, value) {
                (1, WireValue::Bytes(bytes)) => Self::Text(bytes),
                (2, WireValue::Varint(value)) => Self::Bool(value != 0),
                (3, WireValue::Varint(value)) => Self::Integer(value.cast_signed()),
                (4, WireValue::Fixed64(bits)) => Self::Double(f64::from_bits(bits)),
                (5, WireValue::Bytes(bytes)) => Self::Array(bytes),
                (6, WireValue::Bytes(bytes)) => Self::Map(bytes),
                (7, WireValue::Bytes(bytes)) => Self::Bytes(bytes),
                (1..=7, _) => return Err(ParseProtobufError::WrongType),
                _ => found,
            };
        }
        Ok(found)
    }
}

impl JsonWriter {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { json: Vec::new(), bytes_max, extreme_doubles: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.json.clear();
        if self.json.capacity() > RETAINED_BYTES {
            self.json.shrink_to(RETAINED_BYTES);
        }
        self.extreme_doubles = 0;
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.json
    }

    /// Whether the text may still grow.
    #[inline]
    fn check_bytes(&self) -> Result<(), RecordError> {
        if self.json.len() > self.bytes_max { Err(RecordError::TooLong(self.bytes_max)) } else { Ok(()) }
    }

    /// Syntax: braces, brackets, commas, names.
    #[inline]
    pub(super) fn raw(&mut self, syntax: &[u8]) {
        self.json.extend_from_slice(syntax);
    }

    /// Appends the text of another writer.
    #[inline]
    pub(super) fn append(&mut self, other: &Self) -> Result<(), RecordError> {
        self.json.extend_from_slice(&other.json);
        self.extreme_doubles += other.extreme_doubles;
        self.check_doubles()?;
        self.check_bytes()
    }

    /// Appends the comma between members.
    #[inline]
    pub(super) fn separate(&mut self) {
        if !matches!(self.json.last(), None | Some(b'{' | b'[')) {
            self.json.push(b',');
        }
    }

    /// Appends a string.
    #[inline]
    pub(super) fn text(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        // Each byte takes at least one.
        if bytes.len() > self.bytes_max {
            return Err(RecordError::TooLong(self.bytes_max));
        }
        text::quote_lossy(&mut self.json, bytes);
        self.check_bytes()
    }

    /// Appends a member name of the server's own.
    #[inline]
    pub(super) fn name(&mut self, name: &str) {
        self.separate();
        self.json.push(b'"');
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
    }

    #[inline]
    pub(super) fn integer(&mut self, value: i64) {
        append_fmt(&mut self.json, format_args!("{value}"));
    }

    /// Appends bytes as hexadecimal digits in a string.
    pub(super) fn hex(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        if bytes.len() > self.bytes_max {
            return Err(RecordError::TooLong(self.bytes_max));
        }
        self.json.push(b'"');
        for byte in bytes {
            self.json.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        self.json.push(b'"');
        self.check_bytes()
    }

    fn base64(&mut self, bytes: &[u8]) -> Result<(), RecordError> {
        if bytes.len() > self.bytes_max {
            return Err(RecordError::TooLong(self.bytes_max));
        }
        self.json.push(b'"');
        self.json.extend_from_slice(STANDARD.encode(bytes).as_bytes());
        self.json.push(b'"');
        self.check_bytes()
    }

    fn double(&mut self, value: f64) -> Result<(), RecordError> {
        if value.is_finite() {
            let begin = self.json.len();
            append_fmt(&mut self.json, format_args!("{value:?}"));
            self.extreme_doubles += u32::from(self.json[begin..].contains(&b'e'));
            return self.check_doubles();
        }
        self.raw(match () {
            () if value.is_nan() => b"\"NaN\"",
            () if value > 0.0 => b"\"Infinity\"",
            () => b"\"-Infinity\"",
        });
        Ok(())
    }

    fn check_doubles(&self) -> Result<(), RecordError> {
        if self.extreme_doubles > EXTREME_DOUBLES_MAX { Err(RecordError::ExtremeDoubles) } else { Ok(()) }
    }

    /// Appends the member of a key and its value. `depth` is that of the object.
    #[inline]
    pub(super) fn member(&mut self, member: KeyValue<'_>, depth: u32) -> Result<(), RecordError> {
        self.separate();
        self.text(member.key)?;
        self.json.push(b':');
        self.value(AnyValue::read(member.value)?, depth)
    }

    /// Appends a value in a container of this depth.
    #[inline]
    pub(super) fn value(&mut self, value: AnyValue<'_>, depth: u32) -> Result<(), RecordError> {
        match value {
            AnyValue::Array(_) | AnyValue::Map(_) => self.container(value, depth),
            AnyValue::Empty
            | AnyValue::Text(_)
            | AnyValue::Bool(_)
            | AnyValue::Integer(_)
            | AnyValue::Double(_)
            | AnyValue::Bytes(_) => self.scalar(value),
        }
    }

    #[inline]
    fn scalar(&mut self, value: AnyValue<'_>) -> Result<(), RecordError> {
        match value {
            AnyValue::Text(bytes) => return self.text(bytes),
            AnyValue::Integer(value) => self.integer(value),
            AnyValue::Bool(true) => self.raw(b"true"),
            AnyValue::Bool(false) => self.raw(b"false"),
            AnyValue::Double(value) => self.double(value)?,
            AnyValue::Bytes(bytes) => return self.base64(bytes),
            AnyValue::Empty => self.raw(b"null"),
            AnyValue::Array(_) | AnyValue::Map(_) => unreachable!("BUG: a container is not a scalar"),
        }
        self.check_bytes()
    }

    /// Appends an array or a map. The open containers are at most [`METADATA_DEPTH_MAX`].
    fn container(&mut self, outermost: AnyValue<'_>, depth: u32) -> Result<(), RecordError> {
        let mut open: Vec<OpenContainer<'_>> = Vec::new();
        let mut value = outermost;
        'value: loop {
            match value {
                AnyValue::Array(elements) | AnyValue::Map(elements) => {
                    let nested = u32::try_from(open.len()).expect("the depth is bounded");
                    if depth + nested >= METADATA_DEPTH_MAX {
                        return Err(RecordError::TooDeep);
                    }
                    let is_map = matches!(value, AnyValue::Map(_));
                    self.json.push(if is_map { b'{' } else { b'[' });
                    open.push(OpenContainer { rest: MessageReader::new(elements), is_map, is_empty: true });
                }
                AnyValue::Empty
                | AnyValue::Text(_)
                | AnyValue::Bool(_)
                | AnyValue::Integer(_)
                | AnyValue::Double(_)
                | AnyValue::Bytes(_) => self.scalar(value)?,
            }
            // After a value: close containers until another value follows.
            while let Some(container) = open.last_mut() {
                let Some(element) = container.next_element()? else {
                    self.json.push(if container.is_map { b'}' } else { b']' });
                    open.pop();
                    continue;
                };
                if !container.is_empty {
                    self.json.push(b',');
                }
                container.is_empty = false;
                if container.is_map {
                    let member = KeyValue::read(element)?;
                    self.text(member.key)?;
                    self.json.push(b':');
                    value = AnyValue::read(member.value)?;
                } else {
                    value = AnyValue::read(element)?;
                }
                continue 'value;
            }
            return self.check_bytes();
        }
    }
}

impl<'a> OpenContainer<'a> {
    /// The bytes of the next element or key-value.
    fn next_element(&mut self) -> Result<Option<&'a [u8]>, ParseProtobufError> {
        while let Some((number, value)) = self.rest.next_field()? {
            if number == 1 {
                return value.bytes().map(Some);
            }
        }
        Ok(None)
    }
}
