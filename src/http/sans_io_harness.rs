//! A harness for tests and fuzzers that drives a session without a socket: feeds pieces of input
//! and collects the responses.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::acceptor_context::AcceptorContext;
use super::encode::DateLine;
use super::session::{HttpSession, Progress};
use super::{
    AcceptorHandle, Continuation, Handler, HandlerResult, HeadResult, HttpLimits, Request, Response,
};
use crate::clock::Clock;
use crate::event::Timestamp;

/// Echoes the request body; 404 for `/nothing`; refuses `/refused` by its header with 403; accepts
/// `/checked` by its header with a state of its own; yields three times if the path begins with `/l`.
#[derive(Debug, Default)]
pub(super) struct EchoHandler {
    /// A hash of all requests so far.
    digest: DefaultHasher,
}

/// The state of a request to `/checked`.
struct CheckedHead;

impl Handler for EchoHandler {
    fn check_head(&mut self, request: &Request<'_>, response: &mut Response) -> HeadResult {
        assert_eq!(request.body, b"", "the body has not arrived");
        match request.path {
            "/refused" => {
                response.status = 403;
                HeadResult::Refused
            }
            "/checked" => HeadResult::Proceed(Some(Box::new(CheckedHead))),
            _ => HeadResult::Proceed(None),
        }
    }

    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> HandlerResult {
        if request.path.starts_with("/l") {
            return HandlerResult::Yield(Box::new(2_u32));
        }
        self.respond(request, response)
    }

    fn resume(
        &mut self,
        continuation: Continuation,
        request: &Request<'_>,
        response: &mut Response,
    ) -> HandlerResult {
        if continuation.is::<CheckedHead>() {
            return self.respond(request, response);
        }
        match *continuation.downcast::<u32>().expect("the continuation of this handler") {
            0 => self.respond(request, response),
            left => HandlerResult::Yield(Box::new(left - 1)),
        }
    }
}

impl EchoHandler {
    fn respond(&mut self, request: &Request<'_>, response: &mut Response) -> HandlerResult {
        if request.path == "/refused" {
            response.status = 403;
            return HandlerResult::Done;
        }
        (request.method, request.path, request.query, request.body).hash(&mut self.digest);
        for header in request.headers.0 {
            (header.name, header.value).hash(&mut self.digest);
        }
        if request.path == "/nothing" {
            response.status = 404;
        }
        response.body.extend_from_slice(request.body);
        HandlerResult::Done
    }
}

#[cfg(test)]
pub(super) fn context() -> AcceptorContext<EchoHandler> {
    context_with_limits(HttpLimits::default())
}

fn context_with_limits(limits: HttpLimits) -> AcceptorContext<EchoHandler> {
    let clock = Clock::manual(Timestamp::from_millis(0), 1);
    let poll = mio::Poll::new().expect("a free file descriptor");
    AcceptorContext {
        handler: EchoHandler::default(),
        response: Response::default(),
        out: Vec::new(),
        date: DateLine::new(&clock),
        limits,
        handle: AcceptorHandle::new(poll.registry(), mio::Token(0)).expect("a free file descriptor"),
        stats: Arc::default(),
        now: clock.now(),
        token: 0,
        requests_left: 0,
        bytes_left: 0,
        serial: 0,
        buffered_bytes: 0,
        draining: false,
    }
}

/// The responses to one input, without 100 Continue, and the final state of the session.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HarnessOutcome {
    pub(super) statuses: Vec<u16>,
    pub(super) out: String,
    pub(super) closed: bool,
    /// All input is processed and the session is open.
    pub(super) idle: bool,
    /// A hash of the requests that the handler received.
    pub(super) digest: u64,
}

/// Feeds `pieces` to a new session.
#[cfg(test)]
pub(super) fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> HarnessOutcome {
    run_with_limits(HttpLimits::default(), pieces)
}

pub(super) fn run_with_limits<'a>(
    limits: HttpLimits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> HarnessOutcome {
    let mut ctx = context_with_limits(limits);
    let mut session = HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ctx.now);
    let mut out = Vec::new();
    for piece in pieces {
        let mut piece = piece;
        loop {
            ctx.begin_turn(0);
            let progress = session.receive(piece, &mut ctx);
            out.extend_from_slice(&ctx.out);
            match progress {
                Progress::Paused => {}
                Progress::Yielded => {
                    ctx.begin_turn(0);
                    session.resume(&mut ctx);
                    out.extend_from_slice(&ctx.out);
                }
                Progress::Streaming | Progress::Aborted => unreachable!("BUG: the handler does not stream"),
                Progress::NeedsInput | Progress::Pending | Progress::Closed => break,
            }
            piece = &[];
        }
    }
    // Whether a 100 is sent depends on the split of the input, so it is excluded from the
    // comparison.
    let out = String::from_utf8_lossy(&out).replace("HTTP/1.1 100 Continue\r\n\r\n", "");
    let closed = session.progress() == Progress::Closed;
    let idle = session.is_idle() && session.buffered_bytes() == 0;
    HarnessOutcome { statuses: statuses(&out), out, closed, idle, digest: ctx.handler.digest.finish() }
}

/// Returns the statuses of the responses in `out`. An echoed status line has no `Date` and is not
/// counted.
pub(super) fn statuses(out: &str) -> Vec<u16> {
    let responses = out.match_indices("HTTP/1.1 ").filter(|(at, _)| out[*at..].contains("\r\nDate: "));
    responses.filter_map(|(at, _)| out.get(at + 9..at + 12)?.parse().ok()).collect()
}
