//! Finds the records in a body of JSON: one per line, the elements of an array, or values one after
//! the other. It reads the body in slices, and the members of each object once.
//!
//! It must not depend on the meaning of the members.

use crate::event::EVENT_BYTES_MAX;
use crate::ingest::BodyShape;
use crate::ingest::body_reader::next_token;
use crate::ingest::decode::{NAME_EXPECTED, json_type_name};
use crate::ingest::encode::append_unescaped;
use crate::ingest::fields::RecordSink;
use crate::ingest::metadata::MetadataWriter;
use crate::json::text::{self, BYTE_ORDER_MARK};
use crate::json::{JsonString, JsonValue, JsonViolation, ParseJsonError, Scanner, scan};

use super::InvalidBodyError;

/// The fixed cost of a record, in bytes of ordinary records.
const RECORD_COST_BYTES: usize = 128;
/// Members and text bytes for which the capacity is kept from one record to the next.
const RETAINED_MEMBERS: usize = 4096;
const RETAINED_TEXT_BYTES: usize = 256 * 1024;

/// How the records follow each other in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordLayout {
    /// One record per line. An invalid line is rejected alone.
    Lines,
    /// One record, records one after the other, or an array of records.
    Values,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadStage {
    /// Before the first value.
    Start,
    /// Before the first element of the array.
    FirstElement,
    /// Before a further element.
    NextElement,
    /// After the closing bracket of the array.
    AfterArray,
    /// After a value outside an array.
    NextValue,
}

/// The state of reading one body.
#[derive(Debug)]
pub(super) struct JsonRecords {
    layout: RecordLayout,
    stage: ReadStage,
    at: usize,
    line_number: u64,
    members: Vec<ObjectMember>,
}

/// A member of an object, by positions in the source.
#[derive(Clone, Copy, Debug)]
pub(super) struct ObjectMember {
    pub(super) name: JsonString,
    pub(super) value: JsonValue,
}

/// A record that is an object.
#[derive(Clone, Copy, Debug)]
pub(super) struct JsonObject<'a> {
    pub(super) source: &'a [u8],
    start: usize,
    end: usize,
    pub(super) members: &'a [ObjectMember],
}

/// A value that is not used as JSON: its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueText {
    Null,
    /// The unescaped text of a string, or the JSON text of another value.
    Text(TextRange),
    Invalid(JsonViolation),
}

/// A text in the source or in a [`TextBuffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextRange {
    is_in_source: bool,
    start: usize,
    end: usize,
}

/// Unescaped texts of one record.
#[derive(Debug, Default)]
pub(super) struct TextBuffer(Vec<u8>);

impl TextBuffer {
    pub(super) fn clear(&mut self) {
        self.0.clear();
        if self.0.capacity() > RETAINED_TEXT_BYTES {
            self.0.shrink_to(RETAINED_TEXT_BYTES);
        }
    }

    /// The text of a value in `source`.
    pub(super) fn value(&mut self, source: &[u8], value: JsonValue) -> ValueText {
        let JsonValue { start, end, violation } = value;
        match (source.get(start), violation) {
            (Some(b'n'), _) => return ValueText::Null,
            (_, Some(violation)) => return ValueText::Invalid(violation),
            (Some(b'"'), None) => {}
            (Some(_) | None, None) => {
                return ValueText::Text(TextRange { is_in_source: true, start, end });
            }
        }
        let raw = &source[start + 1..end - 1];
        if memchr::memchr(b'\\', raw).is_none() {
            return ValueText::Text(TextRange { is_in_source: true, start: start + 1, end: end - 1 });
        }
        let begin = self.0.len();
        text::unescape(&mut self.0, raw);
        ValueText::Text(TextRange { is_in_source: false, start: begin, end: self.0.len() })
    }

    pub(super) fn get<'a>(&'a self, source: &'a [u8], range: TextRange) -> &'a str {
        let bytes = if range.is_in_source { source } else { &self.0 };
        str::from_utf8(&bytes[range.start..range.end]).expect("BUG: the source of a record is UTF-8")
    }
}

impl<'a> JsonObject<'a> {
    /// The whole object as JSON text.
    pub(super) fn text(&self) -> &'a [u8] {
        &self.source[self.start..self.end]
    }

    /// An object whose members are scanned.
    pub(super) fn new(source: &'a [u8], (start, end): (usize, usize), members: &'a [ObjectMember]) -> Self {
        Self { source, start, end, members }
    }

    /// Scans the object that is `value`, with its members in place of those in `members`. Returns
    /// none if the value is not an object.
    pub(super) fn scan(
        source: &'a [u8],
        value: JsonValue,
        members: &'a mut Vec<ObjectMember>,
    ) -> Option<Self> {
        let JsonValue { start, end, .. } = value;
        let source = &source[..end];
        if source[start] != b'{' {
            return None;
        }
        members.clear();
        scan_members(&mut Scanner::resume(source, start), members).ok()?;
        Some(Self { source, start, end, members })
    }

    /// The object that is the value of `member`.
    pub(super) fn nested<'n>(
        &self,
        member: &ObjectMember,
        members: &'n mut Vec<ObjectMember>,
    ) -> Option<JsonObject<'n>>
    where
        'a: 'n,
    {
        JsonObject::scan(self.source, member.value, members)
    }

    /// The value of a member as JSON text.
    pub(super) fn value(&self, member: &ObjectMember) -> &'a [u8] {
        &self.source[member.value.start..member.value.end]
    }

    /// The name of a member as a JSON string with its quotes.
    pub(super) fn quoted_name(&self, member: &ObjectMember) -> &'a [u8] {
        &self.source[member.name.start - 1..=member.name.end]
    }

    /// Whether the member has this name.
    pub(super) fn is_named(&self, member: &ObjectMember, name: &str) -> bool {
        let raw = &self.source[member.name.start..member.name.end];
        if member.name.has_escapes() { self.name(member) == name } else { raw == name.as_bytes() }
    }

    /// The unescaped name of a member.
    #[cold]
    pub(super) fn name(&self, member: &ObjectMember) -> String {
        let mut name = Vec::new();
        append_unescaped(&mut name, self.source, member.name);
        String::from_utf8_lossy(&name).into_owned()
    }

    /// Adds a member to the metadata.
    pub(super) fn write_member(&self, member: &ObjectMember, metadata: &mut MetadataWriter) {
        metadata.raw_key(self.quoted_name(member), member.name.violation);
        metadata.raw(self.value(member), member.value.violation);
    }

    /// Adds all members to the metadata.
    pub(super) fn write_members(&self, metadata: &mut MetadataWriter) {
        for member in self.members {
            self.write_member(member, metadata);
        }
    }

    /// The first member with this name.
    pub(super) fn member(&self, name: &str) -> Option<&'a ObjectMember> {
        self.members.iter().find(|member| self.is_named(member, name))
    }
}

impl JsonRecords {
    pub(super) fn new(layout: RecordLayout) -> Self {
        Self { layout, stage: ReadStage::Start, at: 0, line_number: 0, members: Vec::new() }
    }

    pub(super) fn layout(&self) -> RecordLayout {
        self.layout
    }

    /// Reads records up to the budget, and passes each to `decode`. Returns the shape of the body
    /// once the whole body is read.
    pub(super) fn read_slice(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
        mut decode: impl FnMut(JsonObject<'_>, &mut RecordSink<'_>),
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        self.members.shrink_to(RETAINED_MEMBERS);
        match self.layout {
            RecordLayout::Lines => self.read_lines(body, records, budget, &mut decode),
            RecordLayout::Values => self.read_values(body, records, budget, &mut decode),
        }
    }

    fn read_lines(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
        decode: &mut impl FnMut(JsonObject<'_>, &mut RecordSink<'_>),
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let mut left = budget;
        while left > 0 {
            let Some(line) = scan::next_line(body, &mut self.at) else {
                if records.index() == 0 {
                    return Err(InvalidBodyError("no events".into()));
                }
                return Ok(Some(BodyShape::Batch));
            };
            self.line_number += 1;
            left = left.saturating_sub(line.len() + 1 + RECORD_COST_BYTES);
            let line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
            if line.len() <= EVENT_BYTES_MAX && line.trim_ascii().is_empty() {
                continue;
            }
            if let Err(error) = self.read_line(line, records, decode) {
                let number = self.line_number;
                records.reject("body", &format_args!("line {number}: {error}"));
            }
        }
        Ok(None)
    }

    fn read_line(
        &mut self,
        line: &[u8],
        records: &mut RecordSink<'_>,
        decode: &mut impl FnMut(JsonObject<'_>, &mut RecordSink<'_>),
    ) -> Result<(), InvalidBodyError> {
        if line.len() > EVENT_BYTES_MAX {
            return Err(too_long());
        }
        if let Err(error) = str::from_utf8(line) {
            return Err(InvalidBodyError(
                format!("not UTF-8 at byte {} of the line", error.valid_up_to()).into(),
            ));
        }
        let mut scanner = Scanner::new(line);
        scanner.next_token();
        let start = scanner.at();
        let is_object = self.scan_record(&mut scanner).map_err(|error| not_json(&error))?;
        let end = scanner.at();
        scanner.next_token();
        if !scanner.is_at_end() {
            return Err(not_json(&scanner.error("unexpected data after the JSON value")));
        }
        self.decode_record(line, (start, end), is_object, records, decode);
        Ok(())
    }

    fn read_values(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        budget: usize,
        decode: &mut impl FnMut(JsonObject<'_>, &mut RecordSink<'_>),
    ) -> Result<Option<BodyShape>, InvalidBodyError> {
        let mut left = budget;
        if self.at == 0 && body.starts_with(BYTE_ORDER_MARK) {
            self.at = BYTE_ORDER_MARK.len();
        }
        while left > 0 {
            let Some(token) = next_token(body, &mut self.at, &mut left) else { break };
            let is_at_end = self.at == body.len();
            match self.stage {
                ReadStage::Start if is_at_end => return Err(InvalidBodyError("no events".into())),
                ReadStage::Start if token == b'[' => {
                    self.at += 1;
                    self.stage = ReadStage::FirstElement;
                    continue;
                }
                ReadStage::FirstElement if token == b']' => {
                    return Err(InvalidBodyError(
                        "the array is empty; it must contain at least one event".into(),
                    ));
                }
                ReadStage::AfterArray if is_at_end => return Ok(Some(BodyShape::Batch)),
                ReadStage::AfterArray => {
                    let scanner = Scanner::resume(body, self.at);
                    return Err(not_json(&scanner.error("unexpected data after the JSON value")));
                }
                ReadStage::NextValue if is_at_end => {
                    return Ok(Some(if records.index() == 1 { BodyShape::Single } else { BodyShape::Batch }));
                }
                ReadStage::Start
                | ReadStage::FirstElement
                | ReadStage::NextElement
                | ReadStage::NextValue => {}
            }
            let begin = self.at;
            self.read_value(body, records, decode)?;
            left = left.saturating_sub(self.at - begin + RECORD_COST_BYTES);
        }
        Ok(None)
    }

    /// Reads the record that begins at `at`, and in an array the token after it.
    fn read_value(
        &mut self,
        body: &[u8],
        records: &mut RecordSink<'_>,
        decode: &mut impl FnMut(JsonObject<'_>, &mut RecordSink<'_>),
    ) -> Result<(), InvalidBodyError> {
        let start = self.at;
        let source = &body[..body.len().min(start + EVENT_BYTES_MAX + 1)];
        let mut scanner = Scanner::resume(source, start);
        let read = self.scan_record(&mut scanner).and_then(|is_object| {
            let end = scanner.at();
            if matches!(self.stage, ReadStage::FirstElement | ReadStage::NextElement) {
                self.stage = match scanner.next_token() {
                    b',' => ReadStage::NextElement,
                    b']' => ReadStage::AfterArray,
                    _ => return Err(scanner.error("',' or ']' was expected")),
                };
                scanner.advance();
            } else {
                self.stage = ReadStage::NextValue;
            }
            Ok((is_object, end))
        });
        let (is_object, end) = read.map_err(|error| {
            let is_cut = scanner.is_at_end() && source.len() < body.len();
            if is_cut { too_long() } else { not_json(&error) }
        })?;
        self.at = scanner.at();
        self.decode_record(source, (start, end), is_object, records, decode);
        Ok(())
    }

    /// Scans a value. Returns whether it is an object, whose members are then in `members`.
    fn scan_record(&mut self, scanner: &mut Scanner<'_>) -> Result<bool, ParseJsonError> {
        self.members.clear();
        if scanner.peek() != b'{' {
            scanner.value()?;
            return Ok(false);
        }
        scan_members(scanner, &mut self.members)?;
        Ok(true)
    }

    fn decode_record(
        &self,
        source: &[u8],
        (start, end): (usize, usize),
        is_object: bool,
        records: &mut RecordSink<'_>,
        decode: &mut impl FnMut(JsonObject<'_>, &mut RecordSink<'_>),
    ) {
        if is_object {
            decode(JsonObject { source, start, end, members: &self.members }, records);
        } else {
            let actual = json_type_name(source[start]);
            records.reject("event", &format_args!("must be an object, not {actual}"));
        }
    }
}

/// Scans the object whose opening brace is the next byte, and appends its members.
pub(super) fn scan_members(
    scanner: &mut Scanner<'_>,
    members: &mut Vec<ObjectMember>,
) -> Result<(), ParseJsonError> {
    scanner.members(NAME_EXPECTED, |scanner, name| {
        let value = scanner.value()?;
        members.push(ObjectMember { name, value });
        Ok(())
    })
}

pub(super) fn not_json(error: &ParseJsonError) -> InvalidBodyError {
    InvalidBodyError(format!("not JSON: {error}").into())
}

pub(super) fn too_long() -> InvalidBodyError {
    InvalidBodyError(format!("an event takes more than {EVENT_BYTES_MAX} bytes").into())
}
