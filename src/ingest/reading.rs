//! A body read from its beginning to its end, in slices: between two of them an acceptor serves others, and whatever the
//! slices, what comes of the body is the same.
//!
//! Knows where an event begins, not what is in it.

use super::decode::{self, Context, Within};
use super::sink::Sink;
use super::{Call, Form, Limits, Shape};
use crate::event::timestamp::Window;
use crate::event::{EVENT_BYTES_MAX, Timestamp};
use crate::http::problem::FieldError;
use crate::json::scan;
use crate::json::{Scanner, Syntax};

/// What an event costs beside its bytes, in bytes of ordinary ones: `{}` is not read in a hundredth of their time.
const EVENT_COST: usize = 128;
/// How many bytes are checked for UTF-8 in the time in which one is decoded.
const UTF8_TIMES: usize = 8;

/// Invariant: everything before `at` is in the sink, and nothing after it.
#[derive(Debug, Default)]
pub(super) struct Reading {
    stage: Stage,
    at: usize,
    /// The number of the line that begins at `at`, less one.
    lines: u64,
    /// What is wrong with the body as text, which only lines survive.
    utf8: Option<Unreadable>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Looking for what is no UTF-8.
    #[default]
    Text,
    /// Before the body's first token, or a line.
    Start,
    /// Before the array's first element.
    First,
    /// Before another one.
    Next,
    /// Behind the array.
    Tail,
    Read(Shape),
}

/// Why a body, or a line of it, has no events in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unreadable {
    #[error("there are no events in it")]
    Empty,
    #[error("the array is empty; it must hold an event at least")]
    EmptyArray,
    #[error("it must be an event object or an array of them")]
    NotEvents,
    #[error("it is not UTF-8 at byte {0}")]
    NotUtf8(usize),
    #[error("it is not JSON: {0}")]
    Syntax(#[from] Syntax),
    #[error("the event at byte {0} takes more than {EVENT_BYTES_MAX} bytes")]
    TooLong(usize),
}

impl Reading {
    /// How the body holds its events, once all of it is read.
    pub(super) fn shape(&self) -> Shape {
        match self.stage {
            Stage::Read(shape) => shape,
            Stage::Text | Stage::Start | Stage::First | Stage::Next | Stage::Tail => Shape::Unreadable,
        }
    }

    #[inline]
    pub(super) fn read_on(
        &mut self,
        sink: &mut Sink,
        limits: Limits,
        call: Call<'_>,
        body: &[u8],
        now: Timestamp,
        budget: usize,
    ) -> bool {
        let window = Window::new(now, limits.retention, limits.clock_skew);
        let context = Context { window, now, key: call.key, within: Within::Body, services: call.services };
        let read = match call.form {
            Form::Json => self.json(sink, &context, body, budget),
            Form::Ndjson => self.lines(sink, &Context { within: Within::Line, ..context }, body, budget),
        };
        match read {
            Ok(None) => return false,
            Ok(Some(shape)) => self.stage = Stage::Read(shape),
            Err(unreadable) => {
                sink.clear();
                sink.errors.push(|| FieldError {
                    index: None,
                    field: "body".into(),
                    detail: unreadable.to_string(),
                });
                self.stage = Stage::Read(Shape::Unreadable);
            }
        }
        sink.cut();
        true
    }

    /// Says whether the whole body is known to be UTF-8 or not to be.
    fn text(&mut self, body: &[u8], budget: usize) -> bool {
        let end = body.len().min(self.at.saturating_add(budget.saturating_mul(UTF8_TIMES)));
        match str::from_utf8(&body[self.at..end]) {
            Ok(_) => self.at = end,
            // The slice ends within a character.
            Err(error) if error.error_len().is_none() && end < body.len() => self.at += error.valid_up_to(),
            Err(error) => {
                self.utf8 = Some(Unreadable::NotUtf8(self.at + error.valid_up_to()));
                self.at = body.len();
            }
        }
        let known = self.at == body.len();
        if known {
            self.stage = Stage::Start;
            self.at = 0;
        }
        known
    }

    /// The shape of the body, when all of it is read.
    fn json(
        &mut self,
        sink: &mut Sink,
        context: &Context<'_>,
        body: &[u8],
        budget: usize,
    ) -> Result<Option<Shape>, Unreadable> {
        if self.stage == Stage::Text && (!self.text(body, budget) || body.len() > budget) {
            return self.utf8.map_or(Ok(None), Err);
        }
        if let Some(unreadable) = self.utf8 {
            return Err(unreadable);
        }
        let mut left = budget;
        if self.stage == Stage::Start {
            let Some(token) = self.token(body, &mut left) else { return Ok(None) };
            let begin = self.at;
            match token {
                b'{' if body.len() - begin > EVENT_BYTES_MAX => return Err(Unreadable::TooLong(begin)),
                b'{' => {
                    decode::event(&mut Scanner::resume(body, begin), context, sink)?;
                    return Ok(Some(Shape::One));
                }
                b'[' => {
                    self.at += 1;
                    self.stage = Stage::First;
                }
                _ if begin == body.len() => return Err(Unreadable::Empty),
                _ => {
                    let mut scanner = Scanner::resume(within(body, begin), begin);
                    return Err(match scanner.value() {
                        Err(error) if !is_cut(&scanner, body) => error.into(),
                        Ok(_) | Err(_) => Unreadable::NotEvents,
                    });
                }
            }
        }
        self.array(sink, &Context { within: Within::Array, ..*context }, body, left)
    }

    fn array(
        &mut self,
        sink: &mut Sink,
        context: &Context<'_>,
        body: &[u8],
        mut left: usize,
    ) -> Result<Option<Shape>, Unreadable> {
        while left > 0 {
            let Some(token) = self.token(body, &mut left) else { break };
            if self.stage == Stage::Tail {
                let scanner = Scanner::resume(body, self.at);
                return if scanner.done() {
                    Ok(Some(Shape::Batch))
                } else {
                    Err(scanner.error("the JSON is over and more follows").into())
                };
            }
            if self.stage == Stage::First && token == b']' {
                return Err(Unreadable::EmptyArray);
            }
            let begin = self.at;
            let mut scanner = Scanner::resume(within(body, begin), begin);
            let more = element(&mut scanner, context, sink);
            let more =
                more.map_err(
                    |error| {
                        if is_cut(&scanner, body) { Unreadable::TooLong(begin) } else { error.into() }
                    },
                )?;
            self.at = scanner.at();
            self.stage = if more { Stage::Next } else { Stage::Tail };
            left = left.saturating_sub(self.at - begin + EVENT_COST);
        }
        Ok(None)
    }

    /// Skips white space and gives the byte after it, 0 at the end; none when that is not reached with what is left.
    #[inline]
    fn token(&mut self, body: &[u8], left: &mut usize) -> Option<u8> {
        let (begin, end) = (self.at, body.len().min(self.at.saturating_add(*left)));
        let mut scanner = Scanner::resume(&body[..end], begin);
        let token = scanner.next_token();
        self.at = scanner.at();
        *left = left.saturating_sub(self.at - begin);
        (self.at < end || end == body.len()).then_some(token)
    }

    fn lines(
        &mut self,
        sink: &mut Sink,
        context: &Context<'_>,
        body: &[u8],
        budget: usize,
    ) -> Result<Option<Shape>, Unreadable> {
        if self.stage == Stage::Text && (!self.text(body, budget) || body.len() > budget) {
            return Ok(None);
        }
        let mut left = budget;
        while left > 0 {
            let Some(rest) = body.get(self.at..).filter(|rest| !rest.is_empty()) else {
                return if sink.index() == 0 { Err(Unreadable::Empty) } else { Ok(Some(Shape::Batch)) };
            };
            let line = &rest[..scan::find_line_feed(rest)];
            self.at += line.len() + 1;
            self.lines += 1;
            left = left.saturating_sub(line.len() + 1);
            if line.len() <= EVENT_BYTES_MAX && line.trim_ascii().is_empty() {
                continue;
            }
            left = left.saturating_sub(EVENT_COST);
            let mark = sink.errors.mark();
            if let Err(unreadable) = self.line(sink, context, line) {
                sink.errors.back_to(mark);
                self.bad_line(sink, &unreadable);
            }
        }
        Ok(None)
    }

    #[inline]
    fn line(&self, sink: &mut Sink, context: &Context<'_>, line: &[u8]) -> Result<(), Unreadable> {
        if line.len() > EVENT_BYTES_MAX {
            return Err(Unreadable::TooLong(0));
        }
        if self.utf8.is_some()
            && let Err(error) = str::from_utf8(line)
        {
            return Err(Unreadable::NotUtf8(error.valid_up_to()));
        }
        let mut scanner = Scanner::new(line);
        scanner.next_token();
        Ok(decode::event(&mut scanner, context, sink)?)
    }

    #[cold]
    fn bad_line(&self, sink: &mut Sink, unreadable: &Unreadable) {
        let (index, number) = (sink.index(), self.lines);
        sink.errors.push(|| FieldError {
            index: Some(index),
            field: "body".into(),
            detail: format!("line {number}: {unreadable} of the line"),
        });
        sink.reject();
    }
}

/// As much of `body` as an event that begins at `at` may take, and what ends it.
fn within(body: &[u8], at: usize) -> &[u8] {
    &body[..body.len().min(at + EVENT_BYTES_MAX + 1)]
}

/// Whether `scanner` came to an end before `body` did.
fn is_cut(scanner: &Scanner<'_>, body: &[u8]) -> bool {
    scanner.done() && scanner.source().len() < body.len()
}

/// Reads an element and what ends it. Says whether another one must follow.
#[inline]
fn element(scanner: &mut Scanner<'_>, context: &Context<'_>, sink: &mut Sink) -> Result<bool, Syntax> {
    decode::event(scanner, context, sink)?;
    let more = match scanner.next_token() {
        b',' => true,
        b']' => false,
        _ => return Err(scanner.error("',' or ']' was expected")),
    };
    scanner.step();
    Ok(more)
}
