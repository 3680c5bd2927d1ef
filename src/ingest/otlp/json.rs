//! Transcodes OTLP's JSON to its protobuf, so that both have one decoder. No recursion: open messages
//! are on a stack, and their lengths are filled in when they end. It works in slices.
//!
//! The mapping is that of protobuf, but for ids in hexadecimal digits. Names are in lowerCamelCase,
//! unknown ones are ignored, and 64-bit integers may be strings. A value of the wrong type makes its
//! log record, resource or scope invalid, which is then written as a message that the decoder rejects.
//! A value in the place of records that cannot be told apart is one invalid record.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::json::{JsonString, ParseJsonError, Scanner, text};
use crate::protobuf::encode;

/// Maximum open messages and arrays. A value at the bound of the nesting of metadata takes three for
/// each of its levels.
const OPEN_MAX: usize = 256;
/// Bytes of a length that is filled in later: a varint with leading zeros.
const LENGTH_BYTES: usize = 5;
/// A message of this content is invalid: no field has the number 0.
const INVALID_MESSAGE: &[u8] = &[0];
/// The fixed cost of a token, in bytes.
const TOKEN_COST_BYTES: usize = 8;

const BASE64_CONFIG: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
/// Both alphabets are accepted, with or without padding.
const BASE64: [GeneralPurpose; 2] = [
    GeneralPurpose::new(&alphabet::STANDARD, BASE64_CONFIG),
    GeneralPurpose::new(&alphabet::URL_SAFE, BASE64_CONFIG),
];

/// A body that is not JSON, or not an object with an array of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::ingest) enum TranscodeError {
    #[error("not JSON: {0}")]
    Json(#[from] ParseJsonError),
    #[error("not an ExportLogsServiceRequest: a field has a value of the wrong type at byte {0}")]
    WrongType(usize),
}

/// The messages that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageType {
    Request,
    ResourceLogs,
    Resource,
    ScopeLogs,
    Scope,
    LogRecord,
    KeyValue,
    AnyValue,
    ArrayValue,
    KeyValueList,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldType {
    Message(MessageType),
    Repeated(MessageType),
    Text,
    Bool,
    /// An `int64`, `uint32` or enum.
    Varint,
    Fixed64,
    Fixed32,
    Double,
    /// Bytes in hexadecimal digits.
    Hex,
    Base64,
}

impl MessageType {
    /// Whether the message is invalid as a whole when a value in it has the wrong type.
    fn is_part(self) -> bool {
        matches!(self, Self::LogRecord | Self::Resource | Self::Scope)
    }

    /// A message of this type that the decoder rejects, or in which it rejects one record. None if a
    /// value of the wrong type in its place makes the message around it invalid.
    fn invalid(self) -> Option<&'static [u8]> {
        match self {
            Self::LogRecord | Self::Resource | Self::Scope => Some(INVALID_MESSAGE),
            // Field 2, the elements, with an invalid message.
            Self::ScopeLogs => Some(&[0x12, 1, 0]),
            Self::ResourceLogs => Some(&[0x12, 3, 0x12, 1, 0]),
            Self::Request | Self::KeyValue | Self::AnyValue | Self::ArrayValue | Self::KeyValueList => None,
        }
    }

    /// The number and the type of a field.
    #[expect(clippy::match_same_arms, reason = "the fields are grouped by their message")]
    fn field(self, name: &[u8]) -> Option<(u32, FieldType)> {
        use FieldType as F;
        use MessageType as M;
        Some(match (self, name) {
            (M::Request, b"resourceLogs") => (1, F::Repeated(M::ResourceLogs)),
            (M::ResourceLogs, b"resource") => (1, F::Message(M::Resource)),
            (M::ResourceLogs, b"scopeLogs") => (2, F::Repeated(M::ScopeLogs)),
            (M::Resource, b"attributes") => (1, F::Repeated(M::KeyValue)),
            (M::ScopeLogs, b"scope") => (1, F::Message(M::Scope)),
            (M::ScopeLogs, b"logRecords") => (2, F::Repeated(M::LogRecord)),
            (M::Scope, b"name") => (1, F::Text),
            (M::Scope, b"version") => (2, F::Text),
            (M::Scope, b"attributes") => (3, F::Repeated(M::KeyValue)),
            (M::LogRecord, b"timeUnixNano") => (1, F::Fixed64),
            (M::LogRecord, b"severityNumber") => (2, F::Varint),
            (M::LogRecord, b"severityText") => (3, F::Text),
            (M::LogRecord, b"body") => (5, F::Message(M::AnyValue)),
            (M::LogRecord, b"attributes") => (6, F::Repeated(M::KeyValue)),
            (M::LogRecord, b"droppedAttributesCount") => (7, F::Varint),
            (M::LogRecord, b"flags") => (8, F::Fixed32),
            (M::LogRecord, b"traceId") => (9, F::Hex),
            (M::LogRecord, b"spanId") => (10, F::Hex),
            (M::LogRecord, b"observedTimeUnixNano") => (11, F::Fixed64),
            (M::LogRecord, b"eventName") => (12, F::Text),
            (M::KeyValue, b"key") => (1, F::Text),
            (M::KeyValue, b"value") => (2, F::Message(M::AnyValue)),
            (M::AnyValue, b"stringValue") => (1, F::Text),
            (M::AnyValue, b"boolValue") => (2, F::Bool),
            (M::AnyValue, b"intValue") => (3, F::Varint),
            (M::AnyValue, b"doubleValue") => (4, F::Double),
            (M::AnyValue, b"arrayValue") => (5, F::Message(M::ArrayValue)),
            (M::AnyValue, b"kvlistValue") => (6, F::Message(M::KeyValueList)),
            (M::AnyValue, b"bytesValue") => (7, F::Base64),
            (M::ArrayValue, b"values") => (1, F::Repeated(M::AnyValue)),
            (M::KeyValueList, b"values") => (1, F::Repeated(M::KeyValue)),
            _ => return None,
        })
    }
}

/// A message or an array that has not ended.
#[derive(Clone, Copy, Debug)]
enum Open {
    /// `content_at`: where the message begins in the output, after its length.
    Message {
        message: MessageType,
        content_at: usize,
    },
    Array {
        number: u32,
        message: MessageType,
    },
}

/// The next token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    #[default]
    Body,
    FirstMember,
    Member,
    FirstElement,
    Element,
    /// A comma, or the end of the innermost message or array.
    AfterValue,
}

/// The state of transcoding one body, which must be UTF-8.
///
/// Invariant: the bytes before `at` are in `out`.
#[derive(Debug, Default)]
pub(in crate::ingest) struct JsonTranscoder {
    out: Vec<u8>,
    open: Vec<Open>,
    expected: Expected,
    at: usize,
    /// Whether the current log record, resource or scope has a value of the wrong type.
    is_part_invalid: bool,
}

impl JsonTranscoder {
    /// The request in protobuf. At most about twice as long as in JSON.
    pub(in crate::ingest) fn transcoded(&self) -> &[u8] {
        &self.out
    }

    /// Transcodes the next slice. Returns whether the whole body is transcoded.
    pub(in crate::ingest) fn transcode_slice(
        &mut self,
        body: &[u8],
        budget: usize,
    ) -> Result<bool, TranscodeError> {
        let mut left = budget;
        while left > 0 {
            let mut scanner = Scanner::resume(body, self.at);
            let ended = self.step(&mut scanner)?;
            left = left.saturating_sub(scanner.at() - self.at + TOKEN_COST_BYTES);
            self.at = scanner.at();
            if ended {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Transcodes up to the next member or element. Returns whether the body has ended.
    fn step(&mut self, scanner: &mut Scanner<'_>) -> Result<bool, TranscodeError> {
        let token = scanner.next_token();
        match (self.expected, token) {
            (Expected::Body, b'{') => {
                scanner.advance();
                self.open.push(Open::Message { message: MessageType::Request, content_at: 0 });
                self.expected = Expected::FirstMember;
            }
            (Expected::Body, _) => {
                scanner.value()?;
                return Err(TranscodeError::WrongType(0));
            }
            (Expected::FirstMember, b'}') | (Expected::FirstElement, b']') => {
                scanner.advance();
                self.close();
            }
            (Expected::FirstMember | Expected::Member, b'"') => self.member(scanner)?,
            (Expected::FirstMember | Expected::Member, _) => {
                return Err(scanner.error("a field name in double quotes was expected").into());
            }
            (Expected::FirstElement | Expected::Element, _) => self.element(scanner)?,
            (Expected::AfterValue, _) => return self.after_value(scanner, token),
        }
        Ok(false)
    }

    fn after_value(&mut self, scanner: &mut Scanner<'_>, token: u8) -> Result<bool, TranscodeError> {
        let Some(open) = self.open.last() else {
            return if scanner.is_at_end() {
                Ok(true)
            } else {
                Err(scanner.error("unexpected data after the JSON value").into())
            };
        };
        match (open, token) {
            (Open::Message { .. }, b',') => self.expected = Expected::Member,
            (Open::Array { .. }, b',') => self.expected = Expected::Element,
            (Open::Message { .. }, b'}') | (Open::Array { .. }, b']') => self.close(),
            (Open::Message { .. }, _) => return Err(scanner.error("',' or '}' was expected").into()),
            (Open::Array { .. }, _) => return Err(scanner.error("',' or ']' was expected").into()),
        }
        scanner.advance();
        Ok(false)
    }

    /// Ends the innermost message or array.
    fn close(&mut self) {
        self.expected = Expected::AfterValue;
        let Some(Open::Message { message, content_at }) = self.open.pop() else { return };
        if message.is_part() && std::mem::take(&mut self.is_part_invalid) {
            self.out.truncate(content_at);
            self.out.extend_from_slice(INVALID_MESSAGE);
        }
        if content_at > 0 {
            let mut length = self.out.len() - content_at;
            for byte in &mut self.out[content_at - LENGTH_BYTES..content_at] {
                *byte = 0x80 | u8::try_from(length & 0x7f).expect("seven bits");
                length >>= 7;
            }
            self.out[content_at - 1] &= 0x7f;
            assert_eq!(length, 0, "BUG: a body is far shorter than 2^35 bytes");
        }
    }

    /// Opens a message whose brace is the next byte.
    fn open(&mut self, scanner: &mut Scanner<'_>, number: u32, message: MessageType) {
        scanner.advance();
        encode::varint(&mut self.out, u64::from(number) << 3 | 2);
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        self.open.push(Open::Message { message, content_at: self.out.len() });
        self.expected = Expected::FirstMember;
    }

    fn element(&mut self, scanner: &mut Scanner<'_>) -> Result<(), TranscodeError> {
        let Some(&Open::Array { number, message }) = self.open.last() else {
            unreachable!("BUG: an element is in an array")
        };
        if scanner.peek() == b'{' && self.open.len() < OPEN_MAX {
            self.open(scanner, number, message);
            return Ok(());
        }
        self.skip_wrong_message(scanner, number, message)
    }

    fn member(&mut self, scanner: &mut Scanner<'_>) -> Result<(), TranscodeError> {
        let Some(&Open::Message { message, .. }) = self.open.last() else {
            unreachable!("BUG: a member is in a message")
        };
        let name = scanner.string()?;
        scanner.expect(b':', "':' was expected")?;
        let token = scanner.next_token();
        // No name of a field has an escape.
        let field = message.field(scanner.slice(name.start, name.end));
        let Some((number, field)) = field.filter(|_| token != b'n') else {
            // Unknown, or null: absent.
            scanner.value()?;
            self.expected = Expected::AfterValue;
            return Ok(());
        };
        match (field, token) {
            (FieldType::Message(message), b'{') if self.open.len() < OPEN_MAX => {
                self.open(scanner, number, message);
                Ok(())
            }
            (FieldType::Repeated(message), b'[') if self.open.len() < OPEN_MAX => {
                scanner.advance();
                self.open.push(Open::Array { number, message });
                self.expected = Expected::FirstElement;
                Ok(())
            }
            (FieldType::Repeated(MessageType::ResourceLogs), _) => {
                let value = scanner.value()?;
                Err(TranscodeError::WrongType(value.start))
            }
            (FieldType::Message(message) | FieldType::Repeated(message), _) => {
                self.skip_wrong_message(scanner, number, message)
            }
            (_, b'"') => {
                let text = scanner.string()?;
                let written = self.string_field(scanner, number, field, text);
                self.after_scalar(written, text.start)
            }
            _ => {
                let value = scanner.value()?;
                let written = self.plain_field(number, field, scanner.slice(value.start, value.end));
                self.after_scalar(written, value.start)
            }
        }
    }

    fn after_scalar(&mut self, written: Option<()>, at: usize) -> Result<(), TranscodeError> {
        self.expected = Expected::AfterValue;
        if written.is_none() { self.refuse(at) } else { Ok(()) }
    }

    /// Skips a value in the place of a message or of an array of messages.
    fn skip_wrong_message(
        &mut self,
        scanner: &mut Scanner<'_>,
        number: u32,
        message: MessageType,
    ) -> Result<(), TranscodeError> {
        let value = scanner.value()?;
        self.expected = Expected::AfterValue;
        match message.invalid() {
            Some(invalid) => {
                encode::bytes_field(&mut self.out, number, invalid);
                Ok(())
            }
            None => self.refuse(value.start),
        }
    }

    /// Makes the log record, resource or scope invalid, or the request if the value is in none.
    fn refuse(&mut self, at: usize) -> Result<(), TranscodeError> {
        let is_part = |open: &Open| matches!(open, Open::Message { message, .. } if message.is_part());
        if !self.open.iter().any(is_part) {
            return Err(TranscodeError::WrongType(at));
        }
        self.is_part_invalid = true;
        Ok(())
    }

    /// Writes a field whose value is a string. None if it does not fit.
    fn string_field(
        &mut self,
        scanner: &Scanner<'_>,
        number: u32,
        field: FieldType,
        string: JsonString,
    ) -> Option<()> {
        let raw = scanner.slice(string.start, string.end);
        match field {
            FieldType::Text => {
                encode::varint(&mut self.out, u64::from(number) << 3 | 2);
                encode::varint(&mut self.out, string.bytes as u64);
                text::unescape(&mut self.out, raw);
                Some(())
            }
            FieldType::Hex => {
                let bytes = decode_hex(raw)?;
                encode::bytes_field(&mut self.out, number, &bytes);
                Some(())
            }
            FieldType::Base64 => {
                let bytes = BASE64.iter().find_map(|engine| engine.decode(raw).ok())?;
                encode::bytes_field(&mut self.out, number, &bytes);
                Some(())
            }
            FieldType::Bool | FieldType::Message(_) | FieldType::Repeated(_) => None,
            FieldType::Varint | FieldType::Fixed64 | FieldType::Fixed32 | FieldType::Double => {
                self.plain_field(number, field, raw)
            }
        }
    }

    /// Writes a field whose value is a number, which may be in a string, or a boolean.
    fn plain_field(&mut self, number: u32, field: FieldType, raw: &[u8]) -> Option<()> {
        let text = str::from_utf8(raw).ok()?;
        match field {
            FieldType::Bool => {
                let value = match text {
                    "true" => true,
                    "false" => false,
                    _ => return None,
                };
                encode::varint_field(&mut self.out, number, u64::from(value));
            }
            FieldType::Varint => {
                let value = integer(text)?;
                let value = i64::try_from(value).ok()?;
                encode::varint_field(&mut self.out, number, value.cast_unsigned());
            }
            FieldType::Fixed64 => {
                encode::fixed64_field(&mut self.out, number, u64::try_from(integer(text)?).ok()?);
            }
            FieldType::Fixed32 => {
                encode::fixed32_field(&mut self.out, number, u32::try_from(integer(text)?).ok()?);
            }
            FieldType::Double => {
                let is_number = !text.is_empty()
                    && text
                        .bytes()
                        .all(|byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                let value: f64 = match text {
                    "NaN" => f64::NAN,
                    "Infinity" => f64::INFINITY,
                    "-Infinity" => f64::NEG_INFINITY,
                    _ if is_number => text.parse().ok()?,
                    _ => return None,
                };
                encode::fixed64_field(&mut self.out, number, value.to_bits());
            }
            FieldType::Text
            | FieldType::Hex
            | FieldType::Base64
            | FieldType::Message(_)
            | FieldType::Repeated(_) => return None,
        }
        Some(())
    }
}

fn integer(text: &str) -> Option<i128> {
    // Longer numbers are out of every range.
    if text.len() <= 20 { text.parse().ok() } else { None }
}

fn decode_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok()).collect()
}
