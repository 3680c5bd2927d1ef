//! OTLP logs: reads the records of an `ExportLogsServiceRequest` in protobuf, record by record, so
//! that a long body can be read in slices. The fields of a message may come in any order, so the
//! resource and the scope are looked for before the first record.
//!
//! It must not depend on rows, ids or HTTP.

mod any_value;
mod json;
mod record;

use std::ops::Range;

pub(super) use any_value::RecordError;
pub(super) use json::JsonTranscoder;
pub(super) use record::LogRecord;
use record::RecordDecoder;

use crate::protobuf::{FieldRange, ParseProtobufError, read_field_at};

/// Maximum parts of one resource or scope. Encoders write one.
const PARTS_MAX: usize = 16;
/// The fixed cost of a record, in bytes.
const RECORD_COST_BYTES: usize = 64;
/// The fixed cost of a field that is skipped, in bytes.
const FIELD_COST_BYTES: usize = 8;

/// Invariant: everything before `at` of the innermost open message is read.
#[derive(Debug, Default)]
pub(super) struct OtlpReader {
    /// The next byte of the request.
    at: usize,
    resource_logs: Option<OpenMessage>,
    scope_logs: Option<OpenMessage>,
    decoder: RecordDecoder,
}

/// A `ResourceLogs` or `ScopeLogs`: field 1 describes the elements, which are field 2.
#[derive(Debug)]
struct OpenMessage {
    /// The positions of field 1. Complete once `scan_at` is the end.
    parts: Vec<Range<usize>>,
    scan_at: usize,
    is_begun: bool,
    at: usize,
    end: usize,
}

/// The result of [`OtlpReader::read_next`].
#[derive(Debug)]
pub(super) enum ReadStep<'a> {
    Record(Result<LogRecord<'a>, RecordError>),
    /// The budget is used up.
    Paused,
    End,
}

impl OtlpReader {
    /// Reads up to the next record. Uses up `budget`, about the number of bytes that are read and
    /// written. An error concerns the whole request.
    pub(super) fn read_next<'a>(
        &'a mut self,
        body: &'a [u8],
        budget: &mut usize,
    ) -> Result<ReadStep<'a>, ParseProtobufError> {
        while *budget > 0 {
            let Self { at, resource_logs, scope_logs, decoder } = self;
            let Some(resource) = resource_logs else {
                match next_field(body, at, body.len(), budget)? {
                    None => return Ok(ReadStep::End),
                    Some((1, FieldRange::Bytes(range))) => *resource_logs = Some(OpenMessage::new(range)),
                    Some((1, FieldRange::Other)) => return Err(ParseProtobufError::WrongType),
                    Some(_) => {}
                }
                continue;
            };
            let Some(scope) = scope_logs else {
                if !resource.is_begun {
                    if resource.scan_parts(body, budget)? {
                        decoder.begin_resource(resource.parts(body));
                    }
                    continue;
                }
                match resource.next_element(body, budget)? {
                    Element::Message(range) => *scope_logs = Some(OpenMessage::new(range)),
                    Element::Skipped => {}
                    Element::End => *resource_logs = None,
                }
                continue;
            };
            if !scope.is_begun {
                if scope.scan_parts(body, budget)? {
                    decoder.begin_scope(scope.parts(body));
                }
                continue;
            }
            let range = match scope.next_element(body, budget)? {
                Element::Message(range) => range,
                Element::Skipped => continue,
                Element::End => {
                    *scope_logs = None;
                    continue;
                }
            };
            let record = self.decoder.decode(&body[range.clone()]);
            let written = record.as_ref().map_or(0, |record| record.metadata.map_or(0, <[u8]>::len));
            *budget = budget.saturating_sub(range.len() + written / 4 + RECORD_COST_BYTES);
            return Ok(ReadStep::Record(record));
        }
        Ok(ReadStep::Paused)
    }
}

impl OpenMessage {
    fn new(range: Range<usize>) -> Self {
        Self { parts: Vec::new(), scan_at: range.start, is_begun: false, at: range.start, end: range.end }
    }

    /// Looks for the parts. Returns whether all are found.
    fn scan_parts(&mut self, body: &[u8], budget: &mut usize) -> Result<bool, ParseProtobufError> {
        while *budget > 0 {
            match next_field(body, &mut self.scan_at, self.end, budget)? {
                None => {
                    self.is_begun = true;
                    return Ok(true);
                }
                Some((1, FieldRange::Bytes(range))) if self.parts.len() < PARTS_MAX => self.parts.push(range),
                // A part more is malformed too, like a part that is no message.
                Some((1, _)) => return Err(ParseProtobufError::WrongType),
                Some(_) => {}
            }
        }
        Ok(false)
    }

    fn parts<'a>(&self, body: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a, '_> {
        self.parts.iter().map(|range| &body[range.clone()])
    }

    /// Reads a field after the parts are found.
    #[inline]
    fn next_element(&mut self, body: &[u8], budget: &mut usize) -> Result<Element, ParseProtobufError> {
        match next_field(body, &mut self.at, self.end, budget)? {
            None => Ok(Element::End),
            Some((2, FieldRange::Bytes(range))) => Ok(Element::Message(range)),
            Some((2, FieldRange::Other)) => Err(ParseProtobufError::WrongType),
            Some(_) => Ok(Element::Skipped),
        }
    }
}

enum Element {
    Message(Range<usize>),
    /// The field is no element.
    Skipped,
    End,
}

/// Reads the field at `at` of a message that ends at `end`.
#[inline]
fn next_field(
    body: &[u8],
    at: &mut usize,
    end: usize,
    budget: &mut usize,
) -> Result<Option<(u32, FieldRange)>, ParseProtobufError> {
    *budget = budget.saturating_sub(FIELD_COST_BYTES);
    read_field_at(body, at, end)
}

#[cfg(test)]
mod tests;
