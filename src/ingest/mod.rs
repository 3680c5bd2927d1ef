//! A request's body to encoded rows and an answer. Pure: no sockets, no clock, nothing that blocks. What becomes
//! of the rows is the caller's to decide: it makes room for all of them, or refuses the request whole.
//!
//! Knows of `http` only headers and responses, and nothing of the buffer, the journal or SQL.

pub mod decompress;
pub mod form;
pub mod idempotency;
pub mod problem;
pub mod text;
pub mod timestamp;

mod answer;
mod decode;
mod encode;
pub(crate) mod json;
mod number;
mod scan;
mod sink;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::rngs::StdRng;

pub use decompress::{Coding, DecompressLimits, Decompressor, Undecodable};
pub use form::{Call, CallRefused, Form};

use crate::event::{EventId, Timestamp};
use crate::http::Response;
use decode::{Context, Within};
use json::{Scanner, Syntax};
use problem::FieldError;
use sink::Sink;
use timestamp::Window;

/// What is taken, and in what portions it is handed on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How far ahead of the clock an event may be.
    pub clock_skew: Duration,
    /// How old an event may be: what is older would be retired at once.
    pub retention: Duration,
    /// Rows that travel as one block.
    pub rows_per_block_max: u32,
    /// Bytes of a compressed body once it is plain.
    pub plain_bytes_max: usize,
}

/// Decodes the requests of one acceptor, in allocations that it uses again.
#[derive(Debug)]
pub struct Ingest {
    limits: Limits,
    sink: Sink,
}

/// What a request came to. Nothing of it is anywhere else yet.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Decoded<'a> {
    sink: &'a Sink,
    shape: Shape,
}

/// How a request holds its events, which is how it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One event object.
    One,
    /// An array, or lines.
    Batch,
    /// Not to be read at all: it has one error and no events.
    Unreadable,
}

impl Ingest {
    /// `rng` must be cryptographic and seeded by the system: ids are not to be guessed, and never to collide.
    pub fn new(limits: Limits, rng: StdRng) -> Self {
        Self { limits, sink: Sink::new(limits.rows_per_block_max, rng) }
    }

    /// Reads the events of `body`.
    pub fn decode(&mut self, call: Call<'_>, body: &[u8], now: Timestamp) -> Decoded<'_> {
        self.sink.clear();
        let window = Window::new(now, self.limits.retention, self.limits.clock_skew);
        let context = Context { window, now, key: call.key, within: Within::Body, services: call.services };
        let shape = match call.form {
            Form::Json => self.json(context, body),
            Form::Ndjson => self.lines(&Context { within: Within::Line, ..context }, body),
        };
        let shape = shape.unwrap_or_else(|unreadable| {
            self.sink.clear();
            self.sink.errors.push(|| FieldError {
                index: None,
                field: "body".into(),
                detail: unreadable.to_string(),
            });
            Shape::Unreadable
        });
        self.sink.cut();
        Decoded { sink: &self.sink, shape }
    }

    /// Gives back what a large request took, for an acceptor that has nothing else to do.
    pub fn release(&mut self) {
        self.sink.clear();
    }

    fn json(&mut self, context: Context<'_>, body: &[u8]) -> Result<Shape, Unreadable> {
        if let Err(error) = str::from_utf8(body) {
            return Err(Unreadable::NotUtf8(error.valid_up_to()));
        }
        let mut scanner = Scanner::new(body);
        match scanner.next_token() {
            b'{' => {
                decode::event(&mut scanner, &context, &mut self.sink)?;
                Ok(Shape::One)
            }
            b'[' => {
                self.array(&Context { within: Within::Array, ..context }, &mut scanner)?;
                Ok(Shape::Batch)
            }
            _ if scanner.done() => Err(Unreadable::Empty),
            _ => {
                scanner.value()?;
                Err(Unreadable::NotEvents)
            }
        }
    }

    fn array(&mut self, context: &Context<'_>, scanner: &mut Scanner<'_>) -> Result<(), Unreadable> {
        scanner.step();
        if scanner.next_token() == b']' {
            return Err(Unreadable::EmptyArray);
        }
        loop {
            decode::event(scanner, context, &mut self.sink)?;
            match scanner.next_token() {
                b',' => scanner.step(),
                b']' => break,
                _ => return Err(scanner.error("',' or ']' was expected").into()),
            }
            scanner.next_token();
        }
        scanner.step();
        scanner.next_token();
        if scanner.done() { Ok(()) } else { Err(scanner.error("the JSON is over and more follows").into()) }
    }

    fn lines(&mut self, context: &Context<'_>, body: &[u8]) -> Result<Shape, Unreadable> {
        let all_utf8 = str::from_utf8(body).is_ok();
        for (number, line) in scan::lines(body) {
            let mark = self.sink.errors.mark();
            if let Err(unreadable) = self.line(context, line, all_utf8) {
                self.sink.errors.back_to(mark);
                self.bad_line(number, &unreadable);
            }
        }
        if self.sink.index() == 0 { Err(Unreadable::Empty) } else { Ok(Shape::Batch) }
    }

    #[inline]
    fn line(&mut self, context: &Context<'_>, line: &[u8], utf8: bool) -> Result<(), Unreadable> {
        if !utf8 && let Err(error) = str::from_utf8(line) {
            return Err(Unreadable::NotUtf8(error.valid_up_to()));
        }
        let mut scanner = Scanner::new(line);
        scanner.next_token();
        Ok(decode::event(&mut scanner, context, &mut self.sink)?)
    }

    #[cold]
    fn bad_line(&mut self, number: u64, unreadable: &Unreadable) {
        let index = self.sink.index();
        self.sink.errors.push(|| FieldError {
            index: Some(index),
            field: "body".into(),
            detail: format!("line {number}: {unreadable} of the line"),
        });
        self.sink.reject();
    }
}

/// How many events NDJSON holds, good or bad, without reading them.
pub fn count_lines(body: &[u8]) -> u64 {
    scan::lines(body).count() as u64
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
}

impl<'a> Decoded<'a> {
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Events that are good. When there are none, there is nothing to keep and [`Self::answer`] is a 400.
    pub fn accepted(&self) -> usize {
        self.sink.ids.len()
    }

    pub fn rejected(&self) -> u32 {
        self.sink.rejected
    }

    /// Whether nothing is wrong with the events but that their sender may not send them.
    fn is_forbidden(&self) -> bool {
        self.sink.forbidden > 0 && self.sink.forbidden == self.sink.rejected && self.sink.ids.is_empty()
    }

    /// The bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.sink.rows.len()
    }

    /// The ids of the good events, in their order.
    pub fn ids(&self) -> &'a [EventId] {
        &self.sink.ids
    }

    pub fn errors(&self) -> &'a problem::Errors {
        &self.sink.errors
    }

    /// The rows, in blocks of at most [`Limits::rows_per_block_max`], each with how many there are in it.
    pub fn blocks(&self) -> impl Iterator<Item = (&'a [u8], u32)> + use<'a> {
        let sink = self.sink;
        sink.cuts.iter().scan(0, move |start, cut| {
            let block = &sink.rows[*start..cut.end];
            *start = cut.end;
            Some((block, cut.rows))
        })
    }

    /// Writes the answer of a request whose rows were all kept, or of one that has none to keep.
    pub fn answer(&self, response: &mut Response) {
        answer::write(self, response);
    }
}
