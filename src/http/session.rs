//! The HTTP/1.1 state machine of one connection: consumes bytes, calls the handler and writes
//! responses in request order. Must not depend on sockets, so that tests can feed arbitrary splits
//! of the input.
//!
//! This file receives requests; `session/dispatch.rs` calls the handler, `session/respond.rs` writes
//! responses, `session/body.rs` holds bodies that do not arrive whole.

mod body;
mod dispatch;
mod respond;

use std::mem;
use std::net::IpAddr;

use self::body::{ChunkedRequest, DiscardedBody};
use super::acceptor_context::AcceptorContext;
use super::encode::Frame;
use super::framing::{self, BodyFraming, ParseOutcome, RequestHead, parse_head};
use super::limits::HttpLimits;
use super::streaming_body::{PumpResult, StreamingBody};
use super::{Continuation, Handler, HeadResult};
use crate::clock::Moment;

/// Up to this size an incomplete header is parsed again with every read. Above it, parsing a header
/// that arrives byte by byte would cost quadratic time.
const REPARSE_ALWAYS_BYTES: usize = 2048;
/// Bytes without a line end that must arrive before a longer header is parsed again.
const REPARSE_STEP_BYTES: usize = 256;

/// The condition that a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More input.
    NeedsInput,
    /// A promised response.
    Pending,
    /// A call of [`HttpSession::resume`], scheduled by the queue of long requests.
    Yielded,
    /// Another turn: the budget of this one is spent.
    Paused,
    /// The next block of a streaming body.
    Streaming,
    /// Nothing: a streaming body was aborted; the connection must be closed so that the client
    /// detects it.
    Aborted,
    /// Nothing: the last response is written and no further request is read.
    Closed,
}

/// The phase of the current request.
#[derive(Debug)]
enum ConnectionPhase {
    /// Before or within the header section.
    Head,
    /// The header is valid and the handler has accepted it; header and body have `bytes` bytes in
    /// total, of which some are missing.
    Body {
        bytes: usize,
        /// The handler's state from [`Handler::check_head`].
        checked: Option<Continuation>,
    },
    Chunked(Box<ChunkedRequest>),
    /// The request was refused by its header; the rest of its body is discarded.
    Discarding(Box<DiscardedBody>),
    Pending {
        serial: u64,
        frame: Frame,
    },
    Yielded(Box<LongRequest>),
    Streaming(Box<StreamingBody>),
    Closed,
}

/// A request whose handler yielded.
#[derive(Debug)]
struct LongRequest {
    frame: Frame,
    continuation: Continuation,
    bytes: RequestBytes,
}

/// Where the bytes of a request are stored.
#[derive(Debug)]
enum RequestBytes {
    /// The first n bytes of `input`, header and body.
    Input(usize),
    Chunked(Box<ChunkedRequest>),
}

/// Invariant: `input` holds the received bytes that are not processed, and has no allocation if
/// there are none.
#[derive(Debug)]
pub(super) struct HttpSession {
    peer: IpAddr,
    input: Vec<u8>,
    phase: ConnectionPhase,
    /// Whether `input` may hold a complete request.
    backlog: bool,
    /// Length of `input` when its header was last found incomplete.
    parsed_len: usize,
    /// When the current phase began: the first byte, the end of the header, or the promise of a
    /// response.
    phase_started: Moment,
}

impl HttpSession {
    pub(super) fn new(peer: IpAddr, now: Moment) -> Self {
        Self {
            peer,
            input: Vec::new(),
            phase: ConnectionPhase::Head,
            backlog: false,
            parsed_len: 0,
            phase_started: now,
        }
    }

    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// When the current phase times out; `idle_since` is the time of the last activity.
    pub(super) fn deadline(&self, idle_since: Moment, limits: &HttpLimits) -> Moment {
        match &self.phase {
            ConnectionPhase::Head if self.input.is_empty() => idle_since.plus(limits.idle_timeout),
            ConnectionPhase::Head => self.phase_started.plus(limits.header_timeout),
            ConnectionPhase::Body { .. } => self.body_deadline(self.input.len(), limits),
            ConnectionPhase::Chunked(chunked) => self.body_deadline(chunked.received, limits),
            ConnectionPhase::Discarding(body) => self.body_deadline(body.received(), limits),
            ConnectionPhase::Pending { .. } | ConnectionPhase::Yielded(_) | ConnectionPhase::Streaming(_) => {
                self.phase_started.plus(limits.response_timeout)
            }
            ConnectionPhase::Closed => idle_since.plus(limits.linger_timeout),
        }
    }

    fn body_deadline(&self, received: usize, limits: &HttpLimits) -> Moment {
        if limits.body_rate_min == 0 {
            return self.phase_started.plus(limits.body_timeout);
        }
        let earned = received as u64 * 1_000_000 / u64::from(limits.body_rate_min);
        let at_rate = limits.body_rate_grace + std::time::Duration::from_micros(earned);
        self.phase_started.plus(limits.body_timeout.min(at_rate))
    }

    /// Whether no request has begun.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, ConnectionPhase::Head) && is_blank(&self.input)
    }

    /// Bytes allocated for the current request.
    #[inline]
    pub(super) fn buffered_bytes(&self) -> usize {
        let chunked = match &self.phase {
            ConnectionPhase::Chunked(chunked) => chunked.buffered_bytes(),
            ConnectionPhase::Yielded(long) => match &long.bytes {
                RequestBytes::Input(_) => 0,
                RequestBytes::Chunked(chunked) => chunked.buffered_bytes(),
            },
            ConnectionPhase::Head
            | ConnectionPhase::Body { .. }
            | ConnectionPhase::Discarding(_)
            | ConnectionPhase::Pending { .. }
            | ConnectionPhase::Streaming(_)
            | ConnectionPhase::Closed => 0,
        };
        self.input.capacity() + chunked
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.backlog
    }

    /// The condition that the session waits for now.
    pub(super) fn progress(&self) -> Progress {
        match self.phase {
            ConnectionPhase::Pending { .. } => Progress::Pending,
            ConnectionPhase::Yielded(_) => Progress::Yielded,
            ConnectionPhase::Streaming(_) => Progress::Streaming,
            ConnectionPhase::Closed => Progress::Closed,
            ConnectionPhase::Head
            | ConnectionPhase::Body { .. }
            | ConnectionPhase::Chunked(_)
            | ConnectionPhase::Discarding(_) => {
                if self.backlog {
                    Progress::Paused
                } else {
                    Progress::NeedsInput
                }
            }
        }
    }

    /// Whether the response to request `serial` is pending.
    pub(super) fn awaits(&self, serial: u64) -> bool {
        matches!(self.phase, ConnectionPhase::Pending { serial: awaited, .. } if awaited == serial)
    }

    /// The streaming body, if one is being sent.
    pub(super) fn streaming_body(&self) -> Option<&StreamingBody> {
        match &self.phase {
            ConnectionPhase::Streaming(body) => Some(body),
            ConnectionPhase::Head
            | ConnectionPhase::Body { .. }
            | ConnectionPhase::Chunked(_)
            | ConnectionPhase::Discarding(_)
            | ConnectionPhase::Pending { .. }
            | ConnectionPhase::Yielded(_)
            | ConnectionPhase::Closed => None,
        }
    }

    /// Writes the next block of the streaming body, or its end.
    pub(super) fn pump<H>(&mut self, ctx: &mut AcceptorContext<H>) -> Progress {
        let ConnectionPhase::Streaming(body) = &self.phase else {
            unreachable!("BUG: no body is streaming");
        };
        self.phase_started = ctx.now;
        match body.pump(&mut ctx.out) {
            // Other connections get a turn between two blocks.
            PumpResult::Block => Progress::Paused,
            PumpResult::Empty => Progress::Streaming,
            PumpResult::Aborted => Progress::Aborted,
            PumpResult::End => {
                self.phase = if body.keep_alive && !ctx.draining {
                    ConnectionPhase::Head
                } else {
                    ConnectionPhase::Closed
                };
                self.backlog = !self.input.is_empty();
                self.progress()
            }
        }
    }

    /// Receives `fresh` bytes and serves the requests that they complete.
    pub(super) fn receive<H: Handler>(&mut self, fresh: &[u8], ctx: &mut AcceptorContext<H>) -> Progress {
        if self.input.is_empty() {
            let used = self.process(fresh, ctx);
            self.input = fresh[used..].to_vec();
        } else if self.cannot_complete(fresh) {
            self.input.extend_from_slice(fresh);
        } else {
            let mut input = mem::take(&mut self.input);
            input.extend_from_slice(fresh);
            let used = self.process(&input, ctx);
            self.input = if used == 0 { input } else { input[used..].to_vec() };
        }
        let buffered_bytes = self.buffered_bytes();
        if buffered_bytes > HttpLimits::EXEMPT_BYTES
            && ctx.buffered_bytes + buffered_bytes > ctx.limits.connection_memory_bytes_max
            && self.progress() == Progress::NeedsInput
        {
            self.reject("the server has no memory for the body now", ctx);
        }
        self.progress()
    }

    /// Whether `fresh` cannot complete the current phase, so that parsing can be skipped.
    fn cannot_complete(&self, fresh: &[u8]) -> bool {
        let total = self.input.len() + fresh.len();
        match self.phase {
            ConnectionPhase::Body { bytes, .. } => total < bytes,
            ConnectionPhase::Head => {
                !self.backlog
                    && total > REPARSE_ALWAYS_BYTES
                    && total < self.parsed_len + REPARSE_STEP_BYTES
                    && !fresh.contains(&b'\n')
            }
            // Pipelined input waits until the response is written.
            ConnectionPhase::Pending { .. } | ConnectionPhase::Yielded(_) | ConnectionPhase::Streaming(_) => {
                true
            }
            ConnectionPhase::Chunked(_) | ConnectionPhase::Discarding(_) | ConnectionPhase::Closed => false,
        }
    }

    /// Serves the requests in `input`. Returns the number of bytes consumed.
    fn process<H: Handler>(&mut self, input: &[u8], ctx: &mut AcceptorContext<H>) -> usize {
        let mut at = 0;
        self.backlog = false;
        loop {
            let rest = &input[at..];
            match &mut self.phase {
                ConnectionPhase::Closed => return input.len(),
                ConnectionPhase::Pending { .. }
                | ConnectionPhase::Yielded(_)
                | ConnectionPhase::Streaming(_) => return at,
                ConnectionPhase::Chunked(chunked) => {
                    match chunked.decoder.decode(rest, &mut chunked.body) {
                        Ok(used) => {
                            at += used;
                            chunked.received += used;
                            if !chunked.decoder.is_done() {
                                return at;
                            }
                            self.dispatch_chunked(ctx);
                        }
                        Err(refusal) => {
                            let head = mem::take(&mut chunked.head);
                            self.refuse(&refusal, &head, ctx);
                        }
                    }
                    continue;
                }
                ConnectionPhase::Discarding(body) => {
                    match body.discard(rest) {
                        Ok(used) => {
                            at += used;
                            if !body.is_done() {
                                return at;
                            }
                            self.phase =
                                if ctx.draining { ConnectionPhase::Closed } else { ConnectionPhase::Head };
                        }
                        // The response is sent, and the end of the body is unknown.
                        Err(_) => self.phase = ConnectionPhase::Closed,
                    }
                    continue;
                }
                ConnectionPhase::Head | ConnectionPhase::Body { .. } => {}
            }
            if rest.is_empty() {
                return at;
            }
            if ctx.requests_left == 0
                || ctx.bytes_left == 0
                || ctx.out.len() > ctx.limits.response_buffer_bytes_max
            {
                self.backlog = true;
                self.phase_started = ctx.now;
                return at;
            }
            let mut slots = framing::header_slots();
            match parse_head(rest, &mut slots, &ctx.limits) {
                ParseOutcome::NeedMore => {
                    // The header timeout starts with the first byte of each header.
                    if self.parsed_len == 0 || at > 0 {
                        self.phase_started = ctx.now;
                    }
                    self.parsed_len = rest.len();
                    return at;
                }
                ParseOutcome::Refuse(refusal) => self.refuse(&refusal, rest, ctx),
                ParseOutcome::Head(head) => match self.serve(&head, rest, ctx) {
                    Some(used) => at += used,
                    None => return at,
                },
            }
        }
    }

    /// Serves the request that `rest` begins with, if its body has arrived, or else begins to
    /// receive the body. Returns the number of bytes consumed; none: the rest of the body is missing.
    #[inline]
    fn serve<H: Handler>(
        &mut self,
        head: &RequestHead<'_, '_>,
        rest: &[u8],
        ctx: &mut AcceptorContext<H>,
    ) -> Option<usize> {
        let body = match head.body {
            BodyFraming::Length(length) => rest.get(head.bytes..head.bytes + length),
            BodyFraming::Chunked => None,
        };
        let checked = if let ConnectionPhase::Body { checked, .. } = &mut self.phase {
            body?;
            checked.take()
        } else if body.is_none() || head.expects_continue {
            // A refusal of a request with an expectation closes the connection, so that it must not
            // depend on how much of the body has arrived.
            match self.check_head(head, ctx) {
                HeadResult::Proceed(checked) => checked,
                HeadResult::Refused => return Some(head.bytes),
            }
        } else {
            None
        };
        let Some(body) = body else { return self.await_body(head, rest, checked, ctx) };
        let bytes = head.bytes + body.len();
        match self.dispatch(head, body, checked, ctx) {
            None => Some(bytes),
            Some((frame, continuation)) => {
                self.park_yielded(frame, continuation, RequestBytes::Input(bytes), ctx);
                Some(0)
            }
        }
    }

    /// Begins to receive the body of a request that the handler has accepted. Returns the number of
    /// bytes consumed; none: the header stays in `input`.
    fn await_body<H>(
        &mut self,
        head: &RequestHead<'_, '_>,
        rest: &[u8],
        checked: Option<Continuation>,
        ctx: &mut AcceptorContext<H>,
    ) -> Option<usize> {
        let (header, begun) = rest.split_at(head.bytes);
        if head.expects_continue && begun.is_empty() {
            ctx.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.phase_started = ctx.now;
        match head.body {
            BodyFraming::Length(length) => {
                self.phase = ConnectionPhase::Body { bytes: head.bytes + length, checked };
                None
            }
            BodyFraming::Chunked => {
                let request = ChunkedRequest::new(header, checked, &ctx.limits);
                self.phase = ConnectionPhase::Chunked(Box::new(request));
                Some(head.bytes)
            }
        }
    }
}

/// Whether `input` consists of empty lines.
fn is_blank(input: &[u8]) -> bool {
    input.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}
