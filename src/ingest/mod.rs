//! A request's body to encoded rows and an answer. Pure: no sockets, no clock, nothing that blocks. What becomes
//! of the rows is the caller's to decide: it makes room for all of them, or refuses the request whole.
//!
//! Knows of `http` only headers and responses, and nothing of the buffer, the journal or SQL.

pub mod form;
pub mod idempotency;

mod answer;
mod decode;
mod encode;
mod reading;
mod sink;

#[cfg(test)]
mod tests;

use std::time::Duration;

use rand::rngs::StdRng;

pub use form::{Call, CallRefused, Form};

use crate::event::{EventId, Timestamp};
use crate::http::{Response, problem};
use crate::json::scan;
use reading::Reading;
use sink::Sink;

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
    reading: Reading,
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
        Self { limits, sink: Sink::new(limits.rows_per_block_max, rng), reading: Reading::default() }
    }

    /// Another one with the same limits, and chance of its own.
    #[must_use]
    pub fn another(&mut self) -> Self {
        Self::new(self.limits, self.sink.another_rng())
    }

    /// Reads the events of `body`.
    pub fn decode(&mut self, call: Call<'_>, body: &[u8], now: Timestamp) -> Decoded<'_> {
        self.begin();
        let all = self.read_on(call, body, now, usize::MAX);
        debug_assert!(all, "BUG: a body is finite");
        self.decoded()
    }

    /// Makes ready for a body that [`Self::read_on`] reads slice by slice.
    pub fn begin(&mut self) {
        self.sink.clear();
        self.reading = Reading::default();
    }

    /// Reads on in `body`, for about as much work as `budget` bytes of ordinary events are. Says whether all of it is
    /// read. Each call of one body must be given the same but for the budget.
    pub fn read_on(&mut self, call: Call<'_>, body: &[u8], now: Timestamp, budget: usize) -> bool {
        self.reading.read_on(&mut self.sink, self.limits, call, body, now, budget)
    }

    /// What was read. All of it, once [`Self::read_on`] has said so.
    pub fn decoded(&self) -> Decoded<'_> {
        Decoded { sink: &self.sink, shape: self.reading.shape() }
    }

    /// Gives back what a large request took, for an acceptor that has nothing else to do.
    pub fn release(&mut self) {
        self.sink.clear();
    }
}

/// How many events NDJSON holds, good or bad, without reading them.
pub fn count_lines(body: &[u8]) -> u64 {
    scan::lines(body).count() as u64
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
