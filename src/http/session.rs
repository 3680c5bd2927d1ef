//! The HTTP/1.1 state machine of one connection: consumes bytes, calls the handler and writes
//! responses in request order. Must not depend on sockets, so that tests can feed arbitrary splits
//! of the input.

use std::mem;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::acceptor_context::AcceptorContext;
use super::chunked::ChunkedDecoder;
use super::encode::{Frame, encode};
use super::framing::{self, BodyFraming, ParseOutcome, RequestHead, parse_head};
use super::limits::HttpLimits;
use super::problem::{self, ProblemKind};
use super::refusal::Refusal;
use super::streaming_body::{BodyStream, PumpResult, StreamingBody};
use super::{Continuation, Handler, HandlerResult, Request, Response};
use crate::clock::Moment;

/// Up to this size an incomplete header is parsed again with every read. Above it, parsing a header
/// that arrives byte by byte would cost quadratic time.
const REPARSE_ALWAYS_BYTES: usize = 2048;
/// Bytes without a line end that must arrive before a longer header is parsed again.
const REPARSE_STEP_BYTES: usize = 256;
/// Capacity of the response body that is kept for the next response.
const RESPONSE_RETAINED_BYTES: usize = 256 * 1024;

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
    /// The header is valid; header and body have `bytes` bytes in total, of which some are missing.
    Body {
        bytes: usize,
    },
    Chunked(Box<ChunkedRequest>),
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

#[derive(Debug)]
struct ChunkedRequest {
    head: Vec<u8>,
    decoder: ChunkedDecoder,
    body: Vec<u8>,
    /// Encoded bytes received, for the minimum rate.
    received: usize,
}

impl ChunkedRequest {
    fn buffered_bytes(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }
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
            ConnectionPhase::Head | ConnectionPhase::Body { .. } | ConnectionPhase::Chunked(_)
                if self.backlog =>
            {
                Progress::Paused
            }
            ConnectionPhase::Head | ConnectionPhase::Body { .. } | ConnectionPhase::Chunked(_) => {
                Progress::NeedsInput
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
            ConnectionPhase::Body { bytes } => total < bytes,
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
            ConnectionPhase::Chunked(_) | ConnectionPhase::Closed => false,
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
                ParseOutcome::Head(head) => match head.body {
                    BodyFraming::Length(length) => {
                        let bytes = head.bytes + length;
                        let Some(body) = rest.get(head.bytes..bytes) else {
                            self.await_body(&head, rest, ctx);
                            return at;
                        };
                        match self.dispatch(&head, body, ctx) {
                            None => at += bytes,
                            Some((frame, continuation)) => {
                                self.park_yielded(frame, continuation, RequestBytes::Input(bytes), ctx);
                            }
                        }
                    }
                    BodyFraming::Chunked => {
                        self.await_body(&head, rest, ctx);
                        at += head.bytes;
                    }
                },
            }
        }
    }

    fn await_body<H>(&mut self, head: &RequestHead<'_, '_>, rest: &[u8], ctx: &mut AcceptorContext<H>) {
        let (header, begun) = rest.split_at(head.bytes);
        if head.expects_continue && begun.is_empty() && !matches!(self.phase, ConnectionPhase::Body { .. }) {
            ctx.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.phase_started = ctx.now;
        self.phase = match head.body {
            BodyFraming::Length(length) => ConnectionPhase::Body { bytes: head.bytes + length },
            BodyFraming::Chunked => ConnectionPhase::Chunked(Box::new(ChunkedRequest {
                head: header.to_vec(),
                decoder: ChunkedDecoder::new(ctx.limits.body_bytes_max),
                body: Vec::new(),
                received: 0,
            })),
        };
    }

    fn dispatch_chunked<H: Handler>(&mut self, ctx: &mut AcceptorContext<H>) {
        let ConnectionPhase::Chunked(chunked) = mem::replace(&mut self.phase, ConnectionPhase::Head) else {
            unreachable!("BUG: the phase is not Chunked");
        };
        let mut slots = framing::header_slots();
        let head = reparse_head(&chunked.head, &mut slots, &ctx.limits);
        if let Some((frame, continuation)) = self.dispatch(&head, &chunked.body, ctx) {
            self.park_yielded(frame, continuation, RequestBytes::Chunked(chunked), ctx);
        }
    }

    /// Stores a request whose handler yielded, with its bytes.
    fn park_yielded<H>(
        &mut self,
        frame: Frame,
        continuation: Continuation,
        bytes: RequestBytes,
        ctx: &AcceptorContext<H>,
    ) {
        self.phase_started = ctx.now;
        self.phase = ConnectionPhase::Yielded(Box::new(LongRequest { frame, continuation, bytes }));
    }

    /// Runs the next slice of the request whose handler yielded.
    pub(super) fn resume<H: Handler>(&mut self, ctx: &mut AcceptorContext<H>) {
        let ConnectionPhase::Yielded(mut long) = mem::replace(&mut self.phase, ConnectionPhase::Head) else {
            unreachable!("BUG: no request has yielded");
        };
        let input = mem::take(&mut self.input);
        let mut slots = framing::header_slots();
        let (header, body) = match &long.bytes {
            RequestBytes::Input(bytes) => (&input[..*bytes], None),
            RequestBytes::Chunked(chunked) => (chunked.head.as_slice(), Some(chunked.body.as_slice())),
        };
        let head = reparse_head(header, &mut slots, &ctx.limits);
        let body = body.unwrap_or_else(|| &header[head.bytes..]);
        let continuation = long.continuation;
        let more = self.call_handler(&head, body, long.frame, ctx, |handler, request, response| {
            handler.resume(continuation, request, response)
        });
        if let Some(continuation) = more {
            self.input = input;
            long.continuation = continuation;
            self.phase = ConnectionPhase::Yielded(long);
            return;
        }
        self.input = match long.bytes {
            RequestBytes::Input(bytes) => input[bytes..].to_vec(),
            RequestBytes::Chunked(_) => input,
        };
        self.backlog = !self.input.is_empty();
    }

    /// Calls the handler for a complete request. Returns the state to keep if the handler yields.
    fn dispatch<H: Handler>(
        &mut self,
        head: &RequestHead<'_, '_>,
        body: &[u8],
        ctx: &mut AcceptorContext<H>,
    ) -> Option<(Frame, Continuation)> {
        ctx.requests_left = ctx.requests_left.saturating_sub(1);
        self.parsed_len = 0;
        let frame = Frame {
            head_only: head.method == super::Method::Head,
            is_http_1_0: head.is_http_1_0,
            keep_alive: head.keep_alive,
        };
        let more = self.call_handler(head, body, frame, ctx, H::handle);
        more.map(|continuation| (frame, continuation))
    }

    /// Calls the handler and applies its result. Returns the continuation if the handler yields.
    #[inline]
    fn call_handler<H: Handler>(
        &mut self,
        head: &RequestHead<'_, '_>,
        body: &[u8],
        frame: Frame,
        ctx: &mut AcceptorContext<H>,
        call: impl FnOnce(&mut H, &Request<'_>, &mut Response) -> HandlerResult,
    ) -> Option<Continuation> {
        ctx.serial += 1;
        ctx.response.clear();
        let AcceptorContext { handler, response, handle, token, serial, .. } = &mut *ctx;
        let promise = || handle.promise(*token, *serial);
        let request = Request {
            method: head.method,
            path: head.path,
            query: head.query,
            headers: head.headers,
            body,
            peer: self.peer,
            promise: &promise,
        };
        // The handler stays in use after a panic; keeping its state consistent is its
        // responsibility.
        match catch_unwind(AssertUnwindSafe(|| call(handler, &request, response))) {
            Ok(HandlerResult::Done) => {
                let bytes = head.bytes + body.len() + ctx.response.body.len() + ctx.response.work_bytes;
                ctx.bytes_left = ctx.bytes_left.saturating_sub(bytes);
                self.write_response(frame, ctx);
            }
            Ok(HandlerResult::Pending) => {
                self.phase_started = ctx.now;
                self.phase = ConnectionPhase::Pending { serial: ctx.serial, frame };
            }
            Ok(HandlerResult::Yield(continuation)) => return Some(continuation),
            Err(_) => {
                log::error!("BUG: the handler panicked on {request:?}; closing the connection");
                ctx.stats.panics.fetch_add(1, Ordering::Relaxed);
                ctx.response.clear();
                problem::write(&mut ctx.response, ProblemKind::Internal, "the request handler failed");
                self.write_response(Frame { keep_alive: false, ..frame }, ctx);
            }
        }
        None
    }

    /// Encodes `ctx.response` into the output.
    fn write_response<H>(&mut self, frame: Frame, ctx: &mut AcceptorContext<H>) {
        let mut keep_alive = frame.keep_alive && !ctx.response.close && !ctx.draining;
        // Without chunked coding, only closing the connection ends a streaming body.
        keep_alive &= ctx.response.stream.is_none() || !frame.is_http_1_0 || frame.head_only;
        encode(&mut ctx.out, &ctx.response, Frame { keep_alive, ..frame }, &ctx.date);
        if ctx.response.body.capacity() > RESPONSE_RETAINED_BYTES {
            ctx.response.body = Vec::new();
        }
        self.phase = match ctx.response.stream.take() {
            Some(stream) if !frame.head_only => self.begin_stream(stream, Frame { keep_alive, ..frame }, ctx),
            _ if keep_alive => ConnectionPhase::Head,
            _ => ConnectionPhase::Closed,
        };
    }

    fn begin_stream<H>(
        &mut self,
        stream: BodyStream,
        frame: Frame,
        ctx: &mut AcceptorContext<H>,
    ) -> ConnectionPhase {
        ctx.serial += 1;
        let (handle, token, serial) = (ctx.handle.clone(), ctx.token, ctx.serial);
        stream.attach(move || handle.notify_body(token, serial));
        self.phase_started = ctx.now;
        ConnectionPhase::Streaming(Box::new(StreamingBody::new(
            stream,
            !frame.is_http_1_0,
            frame.keep_alive,
            serial,
        )))
    }

    /// Writes the promised response. The phase must be `Pending`.
    pub(super) fn complete_pending<H>(&mut self, response: Response, ctx: &mut AcceptorContext<H>) {
        let ConnectionPhase::Pending { frame, .. } = self.phase else {
            unreachable!("BUG: no response is pending");
        };
        ctx.response = response;
        self.backlog = !self.input.is_empty();
        self.write_response(frame, ctx);
    }

    /// Refuses the request that begins with `bytes`, whose header may be incomplete or invalid, and
    /// closes.
    fn refuse<H: Handler>(&mut self, refusal: &Refusal, bytes: &[u8], ctx: &mut AcceptorContext<H>) {
        ctx.response.clear();
        refusal.write(&mut ctx.response);
        self.finish_refused(bytes, ctx);
    }

    /// Writes a 503 because of a connection or memory limit, with or without a request, and closes.
    pub(super) fn reject<H: Handler>(&mut self, detail: &str, ctx: &mut AcceptorContext<H>) {
        ctx.response.clear();
        problem::write(&mut ctx.response, ProblemKind::Unavailable, detail);
        ctx.response.header("Retry-After", 1);
        let input = mem::take(&mut self.input);
        self.finish_refused(&input, ctx);
    }

    fn finish_refused<H: Handler>(&mut self, bytes: &[u8], ctx: &mut AcceptorContext<H>) {
        ctx.serial += 1;
        let origin = framing::origin_header(bytes).map(|value| httparse::Header { name: "Origin", value });
        ctx.handler.on_refused(super::Headers(origin.as_slice()), &mut ctx.response);
        self.write_response(Frame { head_only: false, is_http_1_0: false, keep_alive: false }, ctx);
    }

    fn respond_timeout<H>(&mut self, frame: Frame, ctx: &mut AcceptorContext<H>) {
        ctx.response.clear();
        problem::write(&mut ctx.response, ProblemKind::Unavailable, "the response took too long");
        ctx.response.header("Retry-After", 1);
        self.write_response(Frame { keep_alive: false, ..frame }, ctx);
    }

    /// Handles a timeout of the current phase: writes a 408 or 503 if a request has begun, and
    /// closes.
    pub(super) fn expire<H: Handler>(&mut self, ctx: &mut AcceptorContext<H>) {
        let input = mem::take(&mut self.input);
        match &mut self.phase {
            ConnectionPhase::Head if is_blank(&input) => {}
            ConnectionPhase::Head => self.refuse(&Refusal::new(408, "the header took too long"), &input, ctx),
            ConnectionPhase::Body { .. } => self.refuse(&TOO_SLOW, &input, ctx),
            ConnectionPhase::Chunked(chunked) => {
                let head = mem::take(&mut chunked.head);
                self.refuse(&TOO_SLOW, &head, ctx);
            }
            ConnectionPhase::Pending { frame, .. } => {
                let frame = *frame;
                self.respond_timeout(frame, ctx);
            }
            ConnectionPhase::Yielded(long) => {
                let frame = long.frame;
                self.respond_timeout(frame, ctx);
            }
            ConnectionPhase::Streaming(_) | ConnectionPhase::Closed => {}
        }
        self.phase = ConnectionPhase::Closed;
    }
}

const TOO_SLOW: Refusal = Refusal::new(408, "the body arrived too slowly");

/// Whether `input` consists of empty lines.
fn is_blank(input: &[u8]) -> bool {
    input.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

/// Parses a header again that was parsed successfully before.
fn reparse_head<'b, 'h>(
    bytes: &'b [u8],
    slots: &'h mut framing::HeaderSlots<'b>,
    limits: &HttpLimits,
) -> RequestHead<'b, 'h> {
    let ParseOutcome::Head(head) = parse_head(bytes, slots, limits) else {
        unreachable!("BUG: the same bytes parsed before");
    };
    head
}
