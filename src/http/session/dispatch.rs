//! Calls the handler: for the header of a request whose body is missing, for a complete request, and
//! for the next slice of a long one.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use super::body::DiscardedBody;
use super::{ConnectionPhase, HttpSession, LongRequest, RequestBytes};
use crate::http::acceptor_context::AcceptorContext;
use crate::http::encode::Frame;
use crate::http::framing::{self, BodyFraming, ParseOutcome, RequestHead, parse_head};
use crate::http::limits::HttpLimits;
use crate::http::problem::{self, ProblemKind};
use crate::http::{Continuation, Handler, HandlerResult, HeadResult, Method, Request, Response};

/// The handler panicked. The response is a 500, after which the connection must be closed.
struct HandlerPanickedError;

impl HttpSession {
    /// Lets the handler decide on a request by its header, before its body is received. If the
    /// handler refuses, writes the response; the body is then discarded.
    pub(super) fn check_head<H: Handler>(
        &mut self,
        head: &RequestHead<'_, '_>,
        ctx: &mut AcceptorContext<H>,
    ) -> HeadResult {
        let mut frame = frame_of(head);
        match self.run_handler(head, b"", ctx, H::check_head) {
            Ok(HeadResult::Proceed(checked)) => return HeadResult::Proceed(checked),
            Ok(HeadResult::Refused) => {}
            Err(HandlerPanickedError) => frame.keep_alive = false,
        }
        // A client that waits for a 100 may send its next request instead of the body (RFC 9110,
        // 10.1.1), so no byte after the header can be told to be either.
        if head.expects_continue && head.body != BodyFraming::Length(0) {
            frame.keep_alive = false;
        }
        debug_assert!(ctx.response.stream.is_none(), "BUG: a refusal does not stream");
        ctx.response.stream = None;
        self.begin_response(ctx);
        ctx.spend_budget(head.bytes);
        self.write_response(frame, ctx);
        if matches!(self.phase, ConnectionPhase::Head) {
            self.phase_started = ctx.now;
            let body = DiscardedBody::new(head.body, &ctx.limits);
            self.phase = ConnectionPhase::Discarding(Box::new(body));
        }
        HeadResult::Refused
    }

    pub(super) fn dispatch_chunked<H: Handler>(&mut self, ctx: &mut AcceptorContext<H>) {
        let ConnectionPhase::Chunked(mut chunked) = mem::replace(&mut self.phase, ConnectionPhase::Head)
        else {
            unreachable!("BUG: the phase is not Chunked");
        };
        let mut slots = framing::header_slots();
        let head = reparse_head(&chunked.head, &mut slots, &ctx.limits);
        let checked = chunked.checked.take();
        if let Some((frame, continuation)) = self.dispatch(&head, &chunked.body, checked, ctx) {
            self.park_yielded(frame, continuation, RequestBytes::Chunked(chunked), ctx);
        }
    }

    /// Stores a request whose handler yielded, with its bytes.
    pub(super) fn park_yielded<H>(
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
    pub(in crate::http) fn resume<H: Handler>(&mut self, ctx: &mut AcceptorContext<H>) {
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

    /// Calls the handler for a complete request, with its state `checked` if it has decided on the
    /// header before. Returns the state to keep if the handler yields.
    #[inline]
    pub(super) fn dispatch<H: Handler>(
        &mut self,
        head: &RequestHead<'_, '_>,
        body: &[u8],
        checked: Option<Continuation>,
        ctx: &mut AcceptorContext<H>,
    ) -> Option<(Frame, Continuation)> {
        self.begin_response(ctx);
        let frame = frame_of(head);
        let more = match checked {
            None => self.call_handler(head, body, frame, ctx, H::handle),
            Some(checked) => self.call_handler(head, body, frame, ctx, |handler, request, response| {
                handler.resume(checked, request, response)
            }),
        };
        more.map(|continuation| (frame, continuation))
    }

    /// Counts a request that is answered in this turn.
    #[inline]
    fn begin_response<H>(&mut self, ctx: &mut AcceptorContext<H>) {
        ctx.requests_left = ctx.requests_left.saturating_sub(1);
        self.parsed_len = 0;
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
        match self.run_handler(head, body, ctx, call) {
            Ok(HandlerResult::Done) => {
                ctx.spend_budget(head.bytes + body.len());
                self.write_response(frame, ctx);
            }
            Ok(HandlerResult::Pending) => {
                self.phase_started = ctx.now;
                self.phase = ConnectionPhase::Pending { serial: ctx.serial, frame };
            }
            Ok(HandlerResult::Yield(continuation)) => return Some(continuation),
            Err(HandlerPanickedError) => self.write_response(Frame { keep_alive: false, ..frame }, ctx),
        }
        None
    }

    /// Calls the handler with an empty response, and replaces the response if the handler panics.
    #[inline]
    fn run_handler<H: Handler, R>(
        &self,
        head: &RequestHead<'_, '_>,
        body: &[u8],
        ctx: &mut AcceptorContext<H>,
        call: impl FnOnce(&mut H, &Request<'_>, &mut Response) -> R,
    ) -> Result<R, HandlerPanickedError> {
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
        if let Ok(result) = catch_unwind(AssertUnwindSafe(|| call(handler, &request, response))) {
            return Ok(result);
        }
        log::error!("BUG: the handler panicked on {request:?}; closing the connection");
        ctx.stats.panics.fetch_add(1, Ordering::Relaxed);
        ctx.response.clear();
        problem::write(&mut ctx.response, ProblemKind::Internal, "the request handler failed");
        Err(HandlerPanickedError)
    }
}

/// The properties of the response that the header determines.
fn frame_of(head: &RequestHead<'_, '_>) -> Frame {
    Frame {
        head_only: head.method == Method::Head,
        is_http_1_0: head.is_http_1_0,
        keep_alive: head.keep_alive,
    }
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
