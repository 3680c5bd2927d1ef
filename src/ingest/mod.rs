//! Decodes a request body into encoded rows and writes the response. Pure: no sockets, no clock,
//! no blocking calls. The caller admits all rows of a request or none.
//!
//! It uses only headers and responses of `http`. It must not depend on the buffer, the journal or
//! SQL.

pub mod headers;
pub mod idempotency;

mod body_reader;
mod decode;
mod encode;
mod fields;
mod input;
mod metadata;
pub mod openapi;
mod otlp;
mod recent_ids;
mod response;
mod row_sink;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use headers::{
    BodyFormat, ENCODINGS, IngestHeaders, NDJSON_TYPES, ParseIngestHeadersError, RetainedHeaders, keeps_ids,
};
pub use input::{INPUT_COST_FACTOR, InputBody, InputPath, RefusalFormat, parse_request, write_splunk_health};
pub use recent_ids::RecentIds;

use crate::event::id_generator::IdGenerator;
use crate::event::{EventId, Timestamp};
use crate::http::{Response, problem};
use crate::json::scan;
use body_reader::BodyReader;
use row_sink::RowSink;

/// An event in a body is longer: the names of its three required fields take as much.
const EVENT_BYTES_MIN: usize = 32;

/// Bounds on accepted events and on the blocks that carry their rows.
#[derive(Clone, Copy, Debug)]
pub struct IngestLimits {
    /// How far a timestamp may be ahead of the server's clock.
    pub clock_skew: Duration,
    /// Maximum age of an event: retention would delete an older one at once.
    pub retention: Duration,
    /// Maximum rows in one block.
    pub rows_per_block_max: u32,
    /// Maximum bytes of a decompressed body.
    pub decompressed_bytes_max: usize,
}

/// Decodes the requests of one acceptor. Reuses its allocations from request to request.
#[derive(Debug)]
pub struct IngestDecoder {
    limits: IngestLimits,
    sink: RowSink,
    reader: BodyReader,
    /// The reader of a body in another format than the server's own, in place of `reader`.
    input: Option<Box<InputBody>>,
}

/// The decoded events and errors of one request. They are not stored anywhere else yet.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct DecodedRequest<'a> {
    sink: &'a RowSink,
    shape: BodyShape,
    input: Option<&'a InputBody>,
}

/// The structure of a request body. It selects the form of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyShape {
    /// One event object.
    Single,
    /// An array, or NDJSON.
    Batch,
    /// The body as a whole is invalid: one error, no events.
    Malformed,
    /// A body of the type text/plain that is not JSON.
    Text,
}

impl IngestDecoder {
    /// A decoder whose ids and arrival numbers `id_generator` makes.
    pub fn new(limits: IngestLimits, id_generator: IdGenerator) -> Self {
        Self {
            limits,
            sink: RowSink::new(limits.rows_per_block_max, id_generator),
            reader: BodyReader::default(),
            input: None,
        }
    }

    /// A new decoder with the same limits for one request that arrives at `now`.
    #[must_use]
    pub fn fork(&mut self, now: Timestamp) -> Self {
        let events_max = i64::try_from(self.limits.decompressed_bytes_max / EVENT_BYTES_MIN);
        let id_generator = self.sink.id_generator.fork(now, events_max.unwrap_or(i64::MAX));
        Self::new(self.limits, id_generator)
    }

    /// Decodes the events of `body`.
    pub fn decode(&mut self, headers: IngestHeaders<'_>, body: &[u8], now: Timestamp) -> DecodedRequest<'_> {
        self.decode_input(None, headers, body, now)
    }

    /// Decodes the events of `body`, which is in the format of `input` if that is given.
    /// [`parse_request`] returns it with the headers.
    pub fn decode_input(
        &mut self,
        input: Option<Box<InputBody>>,
        headers: IngestHeaders<'_>,
        body: &[u8],
        now: Timestamp,
    ) -> DecodedRequest<'_> {
        self.begin(input);
        let all = self.decode_slice(headers, body, now, usize::MAX);
        debug_assert!(all, "BUG: a body is finite");
        self.decoded()
    }

    /// Prepares for a body that [`Self::decode_slice`] decodes slice by slice.
    pub fn begin(&mut self, input: Option<Box<InputBody>>) {
        self.sink.clear();
        self.reader = BodyReader::default();
        self.input = input;
    }

    /// Decodes the next slice of `body`: about as much work as `budget` bytes of ordinary events.
    /// Returns whether the whole body is decoded. All calls for one body must pass the same
    /// arguments, except for the budget.
    pub fn decode_slice(
        &mut self,
        headers: IngestHeaders<'_>,
        body: &[u8],
        now: Timestamp,
        budget: usize,
    ) -> bool {
        match &mut self.input {
            None => self.reader.read_slice(&mut self.sink, self.limits, headers, body, now, budget),
            Some(input) => input.read_slice(&mut self.sink, self.limits, headers, body, now, budget),
        }
    }

    /// The result so far. It is complete once [`Self::decode_slice`] has returned true.
    pub fn decoded(&self) -> DecodedRequest<'_> {
        let input = self.input.as_deref();
        let shape = input.map_or_else(|| self.reader.shape(), InputBody::shape);
        DecodedRequest { sink: &self.sink, shape, input }
    }

    /// Frees the memory that a large request allocated, for an acceptor that becomes idle.
    pub fn release(&mut self) {
        self.sink.clear();
    }
}

/// The number of events in an NDJSON body, valid or not, without decoding them.
pub fn count_lines(body: &[u8]) -> u64 {
    scan::lines(body).count() as u64
}

impl<'a> DecodedRequest<'a> {
    pub fn shape(&self) -> BodyShape {
        self.shape
    }

    /// The number of valid events. If it is zero, there is nothing to store, and
    /// [`Self::write_response`] writes an error.
    pub fn accepted(&self) -> usize {
        self.sink.ids.len()
    }

    pub fn rejected(&self) -> u32 {
        self.sink.rejected
    }

    /// Whether every event is rejected only because the token may not write its service.
    fn is_forbidden(&self) -> bool {
        self.sink.forbidden > 0 && self.sink.forbidden == self.sink.rejected && self.sink.ids.is_empty()
    }

    /// Whether an id is derived from an idempotency key.
    pub fn has_keyed_ids(&self) -> bool {
        self.sink.has_keyed_ids
    }

    /// Bytes of all rows.
    pub fn bytes(&self) -> usize {
        self.sink.rows.len()
    }

    /// The ids of the valid events, in body order.
    pub fn ids(&self) -> &'a [EventId] {
        &self.sink.ids
    }

    pub fn errors(&self) -> &'a problem::FieldErrors {
        &self.sink.errors
    }

    /// The rows in blocks of at most [`IngestLimits::rows_per_block_max`], each with its row count.
    pub fn blocks(&self) -> impl Iterator<Item = (&'a [u8], u32)> + use<'a> {
        let sink = self.sink;
        sink.block_ends.iter().scan(0, move |start, block_end| {
            let block = &sink.rows[*start..block_end.end];
            *start = block_end.end;
            Some((block, block_end.rows))
        })
    }

    /// Writes the response to a request whose rows were all admitted, or that has no rows.
    /// `duplicates` are the ids that [`RecentIds::admit`] returned.
    pub fn write_response(&self, duplicates: &[EventId], response: &mut Response) {
        match self.input {
            None => response::write(self, duplicates, response),
            Some(input) => input.write_response(self, duplicates, response),
        }
    }
}
