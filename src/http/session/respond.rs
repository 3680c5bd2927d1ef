//! Writes responses: those of the handler, and those of the engine's own refusals and timeouts.

use std::mem;

use super::{ConnectionPhase, HttpSession, is_blank};
use crate::http::acceptor_context::AcceptorContext;
use crate::http::encode::{Frame, encode};
use crate::http::framing;
use crate::http::problem::{self, ProblemKind};
use crate::http::refusal::Refusal;
use crate::http::streaming_body::{BodyStream, StreamingBody};
use crate::http::{Handler, Headers, Response};

/// Capacity of the response body that is kept for the next response.
const RESPONSE_RETAINED_BYTES: usize = 256 * 1024;
const TOO_SLOW: Refusal = Refusal::new(408, "the body arrived too slowly");

impl HttpSession {
    /// Encodes `ctx.response` into the output.
    pub(super) fn write_response<H>(&mut self, frame: Frame, ctx: &mut AcceptorContext<H>) {
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
    pub(in crate::http) fn complete_pending<H>(&mut self, response: Response, ctx: &mut AcceptorContext<H>) {
        let ConnectionPhase::Pending { frame, .. } = self.phase else {
            unreachable!("BUG: no response is pending");
        };
        ctx.response = response;
        self.backlog = !self.input.is_empty();
        self.write_response(frame, ctx);
    }

    /// Refuses the request that begins with `bytes`, whose header may be incomplete or invalid, and
    /// closes.
    pub(super) fn refuse<H: Handler>(
        &mut self,
        refusal: &Refusal,
        bytes: &[u8],
        ctx: &mut AcceptorContext<H>,
    ) {
        ctx.response.clear();
        refusal.write(&mut ctx.response);
        self.finish_refused(bytes, ctx);
    }

    /// Writes a 503 because of a connection or memory limit, with or without a request, and closes.
    pub(in crate::http) fn reject<H: Handler>(&mut self, detail: &str, ctx: &mut AcceptorContext<H>) {
        ctx.response.clear();
        problem::write(&mut ctx.response, ProblemKind::Unavailable, detail);
        ctx.response.header("Retry-After", 1);
        let input = mem::take(&mut self.input);
        self.finish_refused(&input, ctx);
    }

    fn finish_refused<H: Handler>(&mut self, bytes: &[u8], ctx: &mut AcceptorContext<H>) {
        ctx.serial += 1;
        let origin = framing::origin_header(bytes).map(|value| httparse::Header { name: "Origin", value });
        ctx.handler.on_refused(Headers(origin.as_slice()), &mut ctx.response);
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
    pub(in crate::http) fn expire<H: Handler>(&mut self, ctx: &mut AcceptorContext<H>) {
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
            // The response is sent, or its head is.
            ConnectionPhase::Discarding(_) | ConnectionPhase::Streaming(_) | ConnectionPhase::Closed => {}
        }
        self.phase = ConnectionPhase::Closed;
    }
}
