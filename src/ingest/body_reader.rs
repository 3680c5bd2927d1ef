//! Reads a body in slices, so that an acceptor can serve other connections in between. The result
//! does not depend on the slicing.
//!
//! It finds the boundaries of events; `decode` interprets their content.

use super::decode::{self, DecodeContext, EventContainer};
use super::row_sink::RowSink;
use super::{BodyFormat, BodyShape, IngestHeaders, IngestLimits};
use crate::event::{EVENT_BYTES_MAX, Timestamp};
use crate::http::problem::FieldError;
use crate::json::scan;
use crate::json::text::BYTE_ORDER_MARK;
use crate::json::{ParseJsonError, Scanner};

/// The fixed cost of an event, in bytes of ordinary events: decoding `{}` takes far more than its
/// two bytes' share of the time.
const EVENT_COST_BYTES: usize = 128;
/// Bytes that are validated as UTF-8 in the time of decoding one byte.
const UTF8_BUDGET_FACTOR: usize = 8;

/// Invariant: the sink holds everything before `at` and nothing after it.
#[derive(Debug, Default)]
pub(super) struct BodyReader {
    stage: ReadStage,
    at: usize,
    /// The number of lines before `at`.
    line_number: u64,
    /// The first UTF-8 error of the body. It rejects a JSON body, but only one line of NDJSON.
    utf8_error: Option<ReadBodyError>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ReadStage {
    /// Validates the body as UTF-8.
    #[default]
    CheckUtf8,
    /// Before the body's first token, or a line.
    Start,
    /// Before the array's first element.
    FirstElement,
    /// Before a further element.
    NextElement,
    /// After the closing bracket of the array.
    AfterArray,
    Done(BodyShape),
}

/// A body, or a line of it, is invalid as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum ReadBodyError {
    #[error("no events")]
    Empty,
    #[error("the array is empty; it must contain at least one event")]
    EmptyArray,
    #[error("not an event object or an array of event objects")]
    NotEvents,
    #[error("not JSON in a body of the type text/plain")]
    Text,
    #[error("not UTF-8 at byte {0}")]
    NotUtf8(usize),
    #[error("not JSON: {0}")]
    Json(#[from] ParseJsonError),
    #[error("the event at byte {0} takes more than {EVENT_BYTES_MAX} bytes")]
    TooLong(usize),
}

impl BodyReader {
    /// The structure of the body. Valid once the whole body is read.
    pub(super) fn shape(&self) -> BodyShape {
        match self.stage {
            ReadStage::Done(shape) => shape,
            ReadStage::CheckUtf8
            | ReadStage::Start
            | ReadStage::FirstElement
            | ReadStage::NextElement
            | ReadStage::AfterArray => BodyShape::Malformed,
        }
    }

    #[inline]
    pub(super) fn read_slice(
        &mut self,
        sink: &mut RowSink,
        limits: IngestLimits,
        headers: IngestHeaders<'_>,
        body: &[u8],
        now: Timestamp,
        budget: usize,
    ) -> bool {
        let context = DecodeContext::new(headers, limits, now);
        let read = if self.stage == ReadStage::CheckUtf8 && !self.check_utf8(body, budget) {
            Ok(None)
        } else {
            match headers.format {
                // `InputBody` reads records of other formats.
                BodyFormat::Json | BodyFormat::Text | BodyFormat::Records(_) => {
                    self.read_json(sink, &context, headers.format, body, budget)
                }
                BodyFormat::Ndjson => self.read_lines(
                    sink,
                    &DecodeContext { container: EventContainer::Line, ..context },
                    body,
                    budget,
                ),
            }
        };
        match read {
            Ok(None) => return false,
            Ok(Some(shape)) => self.stage = ReadStage::Done(shape),
            Err(error) => {
                sink.clear();
                sink.errors.push(|| FieldError {
                    index: None,
                    field: "body".into(),
                    detail: error.to_string(),
                });
                let is_text = error == ReadBodyError::Text;
                self.stage = ReadStage::Done(if is_text { BodyShape::Text } else { BodyShape::Malformed });
            }
        }
        sink.end_block();
        true
    }

    /// Validates the next slice as UTF-8. Returns whether the check of the whole body is complete
    /// and has left budget for decoding.
    fn check_utf8(&mut self, body: &[u8], budget: usize) -> bool {
        let end = body.len().min(self.at.saturating_add(budget.saturating_mul(UTF8_BUDGET_FACTOR)));
        match str::from_utf8(&body[self.at..end]) {
            Ok(_) => self.at = end,
            // The slice ends within a character.
            Err(error) if error.error_len().is_none() && end < body.len() => self.at += error.valid_up_to(),
            Err(error) => {
                self.utf8_error = Some(ReadBodyError::NotUtf8(self.at + error.valid_up_to()));
                self.at = body.len();
            }
        }
        let complete = self.at == body.len();
        if complete {
            self.stage = ReadStage::Start;
            self.at = 0;
        }
        complete && body.len() <= budget
    }

    /// Reads a JSON body. Returns its shape once the whole body is read.
    fn read_json(
        &mut self,
        sink: &mut RowSink,
        context: &DecodeContext<'_>,
        format: BodyFormat,
        body: &[u8],
        budget: usize,
    ) -> Result<Option<BodyShape>, ReadBodyError> {
        if let Some(error) = self.utf8_error {
            return Err(if format == BodyFormat::Text { ReadBodyError::Text } else { error });
        }
        let mut left = budget;
        if self.stage == ReadStage::Start {
            if self.at == 0 {
                self.at = byte_order_mark_len(body);
            }
            let Some(token) = next_token(body, &mut self.at, &mut left) else { return Ok(None) };
            let begin = self.at;
            match token {
                b'{' if body.len() - begin > EVENT_BYTES_MAX => return Err(ReadBodyError::TooLong(begin)),
                b'{' => {
                    decode::decode_event(&mut Scanner::resume(body, begin), context, sink)?;
                    return Ok(Some(BodyShape::Single));
                }
                b'[' => {
                    self.at += 1;
                    self.stage = ReadStage::FirstElement;
                }
                _ if begin == body.len() => return Err(ReadBodyError::Empty),
                _ if format == BodyFormat::Text => return Err(ReadBodyError::Text),
                _ => {
                    let mut scanner = Scanner::resume(bound_event(body, begin), begin);
                    return Err(match scanner.value() {
                        Err(error) if !is_truncated(&scanner, body) => error.into(),
                        Ok(_) | Err(_) => ReadBodyError::NotEvents,
                    });
                }
            }
        }
        self.read_array(sink, &DecodeContext { container: EventContainer::Array, ..*context }, body, left)
    }

    fn read_array(
        &mut self,
        sink: &mut RowSink,
        context: &DecodeContext<'_>,
        body: &[u8],
        mut left: usize,
    ) -> Result<Option<BodyShape>, ReadBodyError> {
        while left > 0 {
            let Some(token) = next_token(body, &mut self.at, &mut left) else { break };
            if self.stage == ReadStage::AfterArray {
                let scanner = Scanner::resume(body, self.at);
                return if scanner.is_at_end() {
                    Ok(Some(BodyShape::Batch))
                } else {
                    Err(scanner.error("unexpected data after the JSON value").into())
                };
            }
            if self.stage == ReadStage::FirstElement && token == b']' {
                return Err(ReadBodyError::EmptyArray);
            }
            let begin = self.at;
            let mut scanner = Scanner::resume(bound_event(body, begin), begin);
            let more = read_element(&mut scanner, context, sink);
            let more = more.map_err(|error| {
                if is_truncated(&scanner, body) { ReadBodyError::TooLong(begin) } else { error.into() }
            })?;
            self.at = scanner.at();
            self.stage = if more { ReadStage::NextElement } else { ReadStage::AfterArray };
            left = left.saturating_sub(self.at - begin + EVENT_COST_BYTES);
        }
        Ok(None)
    }

    fn read_lines(
        &mut self,
        sink: &mut RowSink,
        context: &DecodeContext<'_>,
        body: &[u8],
        budget: usize,
    ) -> Result<Option<BodyShape>, ReadBodyError> {
        let mut left = budget;
        while left > 0 {
            let Some(line) = scan::next_line(body, &mut self.at) else {
                return if sink.index() == 0 {
                    Err(ReadBodyError::Empty)
                } else {
                    Ok(Some(BodyShape::Batch))
                };
            };
            self.line_number += 1;
            left = left.saturating_sub(line.len() + 1);
            let begin = byte_order_mark_len(line);
            if line.len() <= EVENT_BYTES_MAX && line[begin..].trim_ascii().is_empty() {
                continue;
            }
            left = left.saturating_sub(EVENT_COST_BYTES);
            let mark = sink.errors.mark();
            if let Err(error) = self.read_line(sink, context, line, begin) {
                sink.errors.rollback_to(mark);
                self.reject_line(sink, &error);
            }
        }
        Ok(None)
    }

    #[inline]
    fn read_line(
        &self,
        sink: &mut RowSink,
        context: &DecodeContext<'_>,
        line: &[u8],
        begin: usize,
    ) -> Result<(), ReadBodyError> {
        if line.len() > EVENT_BYTES_MAX {
            return Err(ReadBodyError::TooLong(0));
        }
        if self.utf8_error.is_some()
            && let Err(error) = str::from_utf8(line)
        {
            return Err(ReadBodyError::NotUtf8(error.valid_up_to()));
        }
        let mut scanner = Scanner::resume(line, begin);
        scanner.next_token();
        Ok(decode::decode_event(&mut scanner, context, sink)?)
    }

    #[cold]
    fn reject_line(&self, sink: &mut RowSink, error: &ReadBodyError) {
        let (index, number) = (sink.index(), self.line_number);
        sink.errors.push(|| FieldError {
            index: Some(index),
            field: "body".into(),
            detail: format!("line {number}: {error} of the line"),
        });
        sink.reject();
    }
}

/// The length of a byte order mark at the start of `text`, which a parser may ignore (RFC 8259,
/// 8.1). Files that were joined have one at the start of a further line.
#[inline]
fn byte_order_mark_len(text: &[u8]) -> usize {
    if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 }
}

/// `body` up to the longest event that may begin at `at` and the byte that terminates it.
fn bound_event(body: &[u8], at: usize) -> &[u8] {
    &body[..body.len().min(at + EVENT_BYTES_MAX + 1)]
}

/// Whether `scanner` is at the end of its source and `body` continues beyond it.
fn is_truncated(scanner: &Scanner<'_>, body: &[u8]) -> bool {
    scanner.is_at_end() && scanner.source().len() < body.len()
}

/// Reads an array element and the token after it. Returns whether a further element must follow.
#[inline]
fn read_element(
    scanner: &mut Scanner<'_>,
    context: &DecodeContext<'_>,
    sink: &mut RowSink,
) -> Result<bool, ParseJsonError> {
    decode::decode_event(scanner, context, sink)?;
    let more = match scanner.next_token() {
        b',' => true,
        b']' => false,
        _ => return Err(scanner.error("',' or ']' was expected")),
    };
    scanner.advance();
    Ok(more)
}

/// Skips white space from `at` on and returns the byte after it, 0 at the end of the body. Returns none
/// if the budget is used up before that byte.
#[inline]
pub(super) fn next_token(body: &[u8], at: &mut usize, left: &mut usize) -> Option<u8> {
    let (begin, end) = (*at, body.len().min(at.saturating_add(*left)));
    let mut scanner = Scanner::resume(&body[..end], begin);
    let token = scanner.next_token();
    *at = scanner.at();
    *left = left.saturating_sub(*at - begin);
    (*at < end || end == body.len()).then_some(token)
}
