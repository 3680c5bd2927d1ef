//! `POST /events`: decodes a body, admits its valid events to the buffer, all or none, and writes
//! the response. A long body is processed in slices, one per turn of the event loop, so that one
//! connection cannot monopolize its core.
//!
//! It runs on the acceptor thread and must not block. It must not depend on routing or
//! authorization.

use std::sync::Arc;

use crate::buffer::{AdmitError, RowBlock};
use crate::clock::{Clock, Moment};
use crate::event::Timestamp;
use crate::event::id_generator::IdGenerator;
use crate::health::status::Status;
use crate::http::{
    ContentCoding, DecompressBodyError, DecompressLimits, Decompressor, Headers, Promise, Request, Response,
    problem,
};
use crate::ingest::{
    self, BodyFormat, DecodedRequest, IngestDecoder, IngestHeaders, IngestLimits, InputBody, InputPath,
    RecentIds, RefusalFormat, RetainedHeaders,
};
use crate::journal::Durability;
use crate::lifecycle::LifecyclePhase;
use crate::metrics::DropReason;
use crate::query::EventTap;

/// `Retry-After` of a server that is shutting down: by then it, or another one, may have started.
pub(super) const RESTART_S: u64 = 5;
/// `Retry-After` while the journal is unavailable.
pub(super) const JOURNAL_RETRY_S: u64 = 5;
/// An uncompressed body up to this size is decoded in one turn, in about 400 us; a longer one in
/// slices of this size.
const DECODE_SLICE_BYTES: usize = 256 * 1024;
/// A compressed body up to this size is decompressed in the first turn: it most likely fits one
/// decompression slice.
const INLINE_COMPRESSED_BYTES_MAX: usize = 8 * 1024;
/// Decompressed bytes per slice, about 500 us.
const DECOMPRESS_SLICE_BYTES: usize = 128 * 1024;
/// Cost of decompressing a byte, relative to decoding it.
const DECOMPRESS_COST_FACTOR: usize = 4;

/// Result of one turn of a post.
pub(super) enum IntakeOutcome {
    /// The response is written.
    Answered,
    /// The events are admitted; the response must wait until they are durable at this level.
    Admitted(Durability),
    /// [`Intake::resume`] must be called in the next turn.
    Yield(LongBody),
}

/// A body that is decoded in slices. Its state is allocated by the first call of
/// [`Intake::resume`], since the body may wait for its turn until then.
pub(super) struct LongBody(Option<Box<DecodeState>>);

/// Decoding state of one long body. An acceptor processes one long body at a time.
struct DecodeState {
    headers: RetainedHeaders,
    decompressor: Decompressor,
    ingest: IngestDecoder,
    now: Timestamp,
    decompressed: bool,
}

#[derive(Debug)]
pub(super) struct Intake {
    ingest: IngestDecoder,
    decompressor: Decompressor,
    admission: Admission,
    recent_ids: RecentIds,
    /// The lowest durability level that a response of this turn waits for.
    awaited_level: Option<Durability>,
    turn_time: TurnTime,
}

/// The time of day at the first request of a turn. That of the later ones follows from the monotonic
/// clock, which is read for each anyway.
#[derive(Debug, Default)]
struct TurnTime(Option<(Moment, Timestamp)>);

/// Checks requests and admits their events to the journal and the buffer.
#[derive(Debug)]
struct Admission {
    acceptor: usize,
    /// The durability level of a request without a `Durability` header.
    durability: Durability,
    status: Arc<Status>,
    clock: Clock,
    tap: EventTap,
}

impl Intake {
    pub(super) fn new(
        acceptor: usize,
        limits: IngestLimits,
        durability: Durability,
        status: Arc<Status>,
        tap: EventTap,
    ) -> Self {
        Self {
            ingest: IngestDecoder::new(limits, IdGenerator::new(status.clock.rng())),
            decompressor: Decompressor::new(DecompressLimits::new(limits.decompressed_bytes_max)),
            admission: Admission { acceptor, durability, clock: status.clock.clone(), status, tap },
            recent_ids: RecentIds::default(),
            awaited_level: None,
            turn_time: TurnTime::default(),
        }
    }

    /// Processes a short body, or yields for a long one. `services` are those that the token may
    /// write; none: all. `now` is a time of this turn.
    pub(super) fn post(
        &mut self,
        (path, now): (InputPath, Moment),
        services: Option<&[Box<str>]>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> IntakeOutcome {
        let Self { ingest, decompressor, admission, recent_ids, turn_time, .. } = self;
        let Some((headers, input)) = admission.check_request(path, services, request, response) else {
            return IntakeOutcome::Answered;
        };
        let body = if headers.coding == ContentCoding::Identity {
            let cost = if input.is_some() { ingest::INPUT_COST_FACTOR } else { 1 };
            if request.body.len() > DECODE_SLICE_BYTES / cost {
                return IntakeOutcome::Yield(LongBody(None));
            }
            response.work_bytes = request.body.len() * (cost - 1);
            request.body
        } else {
            if request.body.len() > INLINE_COMPRESSED_BYTES_MAX {
                return IntakeOutcome::Yield(LongBody(None));
            }
            decompressor.begin();
            match decompressor.decode_slice(headers.coding, request.body, DECOMPRESS_SLICE_BYTES) {
                Ok(true) => {}
                Ok(false) => return IntakeOutcome::Yield(LongBody(None)),
                Err(error) => return admission.reject_undecodable(error, response),
            }
            decompressor.decompressed(headers.coding, request.body)
        };
        if headers.coding != ContentCoding::Identity {
            response.work_bytes = body.len() * DECOMPRESS_COST_FACTOR;
        }
        let decoded = ingest.decode_input(input, headers, body, turn_time.wall_at(now, &admission.clock));
        let outcome = admission.admit(now, headers, &decoded, recent_ids, response);
        decompressor.release();
        outcome
    }

    /// Whether the header of a request is acceptable, before its body has arrived. Writes a refusal if
    /// not.
    pub(super) fn accepts_head(
        &self,
        path: InputPath,
        request: &Request<'_>,
        response: &mut Response,
    ) -> bool {
        self.admission.check_head(path, None, request, response).is_some()
    }

    /// Processes the next slice of a long body.
    pub(super) fn resume(
        &mut self,
        (path, body): (InputPath, LongBody),
        services: Option<&[Box<str>]>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> IntakeOutcome {
        let admission = &self.admission;
        let mut state = if let Some(state) = body.0 {
            state
        } else {
            // Time may have passed since `post` checked the request.
            let Some((headers, input)) = admission.check_request(path, services, request, response) else {
                return IntakeOutcome::Answered;
            };
            let now = admission.clock.wall();
            let mut ingest = self.ingest.fork(now);
            ingest.begin(input);
            Box::new(DecodeState {
                headers: RetainedHeaders::new(&headers),
                decompressor: self.decompressor.fork(),
                ingest,
                now,
                decompressed: false,
            })
        };
        let DecodeState { headers, decompressor, ingest, now, decompressed } = &mut *state;
        let headers = headers.borrow(services);
        if !*decompressed {
            match decompressor.decode_slice(headers.coding, request.body, DECOMPRESS_SLICE_BYTES) {
                Ok(complete) => *decompressed = complete,
                Err(error) => return admission.reject_undecodable(error, response),
            }
            return IntakeOutcome::Yield(LongBody(Some(state)));
        }
        let body = decompressor.decompressed(headers.coding, request.body);
        if !ingest.decode_slice(headers, body, *now, DECODE_SLICE_BYTES) {
            return IntakeOutcome::Yield(LongBody(Some(state)));
        }
        admission.admit(admission.clock.now(), headers, &ingest.decoded(), &mut self.recent_ids, response)
    }

    /// Fulfils `promise` with `response` once the events are durable at `level`, or with 503 if
    /// they cannot be.
    pub(super) fn answer_on_durable(
        &mut self,
        level: Durability,
        refusal_format: RefusalFormat,
        promise: Promise,
        response: &mut Response,
    ) {
        let answer = std::mem::take(response);
        let on_durable = move |durable| {
            if durable {
                return promise.fulfil_without_wake(answer);
            }
            let mut response = Response::default();
            problem::write_retryable(
                &mut response,
                problem::ProblemKind::JournalUnavailable,
                "the requested durability could not be reached; the events may be stored nevertheless, so only \
                 events with an idempotency key can be retried without being stored twice",
                JOURNAL_RETRY_S,
            );
            refusal_format.apply(&mut response);
            promise.fulfil_without_wake(response)
        };
        self.admission.status.journal.on_durable(self.admission.acceptor, level, Box::new(on_durable));
        self.awaited_level = Some(self.awaited_level.map_or(level, |awaited| awaited.min(level)));
    }

    /// Ends the turn. Wakes the journal thread, once for all responses of this turn that wait for durability.
    pub(super) fn on_turn_end(&mut self) {
        self.turn_time = TurnTime::default();
        if let Some(level) = self.awaited_level.take() {
            self.admission.status.journal.wake_for(level);
        }
    }
}

impl TurnTime {
    /// The time of day at `now`, a time of this turn.
    #[inline]
    fn wall_at(&mut self, now: Moment, clock: &Clock) -> Timestamp {
        match self.0 {
            Some((first, wall)) => {
                let passed_micros = now.nanos().saturating_sub(first.nanos()) / 1000;
                Timestamp::from_micros(wall.micros().saturating_add_unsigned(passed_micros))
            }
            None => self.0.insert((now, clock.wall())).1,
        }
    }
}

impl Admission {
    /// Parses the request's headers. Writes a refusal and returns none if they decide so. At the end
    /// of the header the body of `request` is still empty; its framing is declared then.
    #[inline]
    fn check_head<'a>(
        &self,
        path: InputPath,
        services: Option<&'a [Box<str>]>,
        request: &Request<'a>,
        response: &mut Response,
    ) -> Option<(IngestHeaders<'a>, Option<Box<InputBody>>)> {
        let status = &self.status;
        if status.lifecycle.phase() > LifecyclePhase::Serving {
            problem::write_shutting_down(response, RESTART_S);
            return None;
        }
        if request.body.is_empty() && !has_body_framing(request.headers) {
            let detail = "a POST needs Content-Length or Transfer-Encoding";
            problem::write(response, problem::ProblemKind::LengthRequired, detail);
            return None;
        }
        let (headers, input) = match ingest::parse_request(path, request.headers, request.query) {
            Ok((headers, input)) => (IngestHeaders { services, ..headers }, input),
            Err(error) => {
                error.write_response(response);
                return None;
            }
        };
        if !status.journal.guarantees(headers.durability.unwrap_or(self.durability)) {
            let events = count_undecoded(&headers, request.body);
            status.ledger.record_dropped(DropReason::JournalUnavailable, events);
            problem::write_journal_unavailable(response, JOURNAL_RETRY_S);
            return None;
        }
        Some((headers, input))
    }

    /// Checks the request's headers and the buffer. Writes a refusal and returns none if the request
    /// can be refused without decoding its body.
    #[inline]
    fn check_request<'a>(
        &self,
        path: InputPath,
        services: Option<&'a [Box<str>]>,
        request: &Request<'a>,
        response: &mut Response,
    ) -> Option<(IngestHeaders<'a>, Option<Box<InputBody>>)> {
        let (headers, input) = self.check_head(path, services, request, response)?;
        let status = &self.status;
        // Under overload most batches are refused: refusing them undecoded leaves CPU time to the
        // writer.
        let is_plain_json = headers.coding == ContentCoding::Identity && headers.format == BodyFormat::Json;
        if !is_plain_json && status.buffer.is_full() {
            let events = count_undecoded(&headers, request.body);
            status.ledger.record_dropped(DropReason::BufferFull, events);
            problem::write_buffer_full(response, status.retry_after());
            return None;
        }
        Some((headers, input))
    }

    /// Admits all valid events of a body, or none, and writes the response.
    fn admit(
        &self,
        admitted_at: Moment,
        headers: IngestHeaders<'_>,
        decoded: &DecodedRequest<'_>,
        recent_ids: &mut RecentIds,
        response: &mut Response,
    ) -> IntakeOutcome {
        let (ledger, journal) = (&self.status.ledger, &self.status.journal);
        if decoded.rejected() > 0 {
            ledger.record_dropped(DropReason::Invalid, u64::from(decoded.rejected()));
        }
        let rows =
            u32::try_from(decoded.accepted()).expect("BUG: a body is limited to far fewer than 2^32 events");
        if rows == 0 {
            decoded.write_response(&[], response);
            return IntakeOutcome::Answered;
        }
        let level = headers.durability.unwrap_or(self.durability);
        if !journal.guarantees(level) {
            ledger.record_dropped(DropReason::JournalUnavailable, u64::from(rows));
            problem::write_journal_unavailable(response, JOURNAL_RETRY_S);
            return IntakeOutcome::Answered;
        }
        let append = |block: &RowBlock| {
            journal.append(self.acceptor, block);
            // After the append: a block that a new tail does not get is found in the journal.
            if self.tap.is_open() {
                self.tap.offer(block);
            }
        };
        let size = (rows, decoded.bytes());
        match self.status.buffer.admit(self.acceptor, size, admitted_at, decoded.blocks(), append) {
            Ok(()) => {
                ledger.record_input(self.acceptor, headers.input(), u64::from(rows));
                decoded.write_response(recent_ids.admit(decoded), response);
                response.headers.extend_from_slice(durability_line(level));
                return IntakeOutcome::Admitted(level);
            }
            Err(AdmitError::Full) => {
                ledger.record_dropped(DropReason::BufferFull, u64::from(rows));
                problem::write_buffer_full(response, self.status.retry_after());
            }
            Err(AdmitError::TooLarge) => {
                ledger.record_dropped(DropReason::TooLarge, u64::from(rows));
                let detail = "the request has more events than the buffer can hold; split it";
                problem::write(response, problem::ProblemKind::TooLarge, detail);
            }
            Err(AdmitError::Closed) => {
                ledger.record_dropped(DropReason::ShuttingDown, u64::from(rows));
                problem::write_shutting_down(response, RESTART_S);
            }
        }
        IntakeOutcome::Answered
    }

    fn reject_undecodable(&self, error: DecompressBodyError, response: &mut Response) -> IntakeOutcome {
        self.status.ledger.record_dropped(DropReason::Invalid, 1);
        let kind =
            if error.is_too_large() { problem::ProblemKind::TooLarge } else { problem::ProblemKind::Invalid };
        problem::write(response, kind, &error.to_string());
        IntakeOutcome::Answered
    }
}

/// The response header with the level at which the events are durable. Formatting it would be a
/// twentieth of the server's own work on a request.
fn durability_line(level: Durability) -> &'static [u8] {
    match level {
        Durability::Memory => b"Durability: memory\r\n",
        Durability::Written => b"Durability: written\r\n",
        Durability::Synced => b"Durability: synced\r\n",
    }
}

/// The events of a body that is refused undecoded: lines of NDJSON are counted, any other body is one.
fn count_undecoded(headers: &IngestHeaders<'_>, body: &[u8]) -> u64 {
    if headers.format == BodyFormat::Ndjson && headers.coding == ContentCoding::Identity && !body.is_empty() {
        ingest::count_lines(body)
    } else {
        1
    }
}

/// Whether the headers declare a body, which may be empty (RFC 9112, 6.3).
fn has_body_framing(headers: Headers<'_>) -> bool {
    headers.get("Content-Length").is_some() || headers.get("Transfer-Encoding").is_some()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_of_day_is_read_once_a_turn_and_advances_with_the_monotonic_clock() {
        let clock = Clock::manual(Timestamp::from_micros(1_000_000), 1);
        let mut turn = TurnTime::default();
        assert_eq!(turn.wall_at(clock.now(), &clock), clock.wall());
        clock.advance(Duration::from_nanos(2_500_999));
        assert_eq!(turn.wall_at(clock.now(), &clock), Timestamp::from_micros(1_002_500));
        clock.set_wall(Timestamp::from_micros(7));
        assert_eq!(turn.wall_at(clock.now(), &clock), Timestamp::from_micros(1_002_500));
        assert_eq!(turn.wall_at(Moment::ZERO, &clock), Timestamp::from_micros(1_000_000), "never backwards");
        assert_eq!(TurnTime::default().wall_at(clock.now(), &clock), clock.wall());
    }
}
