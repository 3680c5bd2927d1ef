//! One connection's conversation: bytes in, answers out, in order. Knows the framing and the handler; knows no
//! socket, so that a test can split and join the bytes as it likes.

use std::mem;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chunked::Decoder;
use super::encode::{DateLine, Frame, encode};
use super::framing::{self, Body, Head, Verdict, judge};
use super::limits::Limits;
use super::problem::{self, Kind};
use super::refusal::Refusal;
use super::remote::{Remote, Shared};
use super::stream::{Pumped, Sending, Stream};
use super::{Answer, Handler, Request, Response, Unfinished};
use crate::clock::Moment;

/// A header that is looked at again with every packet below this size costs little; above it, a header that
/// comes byte by byte would cost its square.
const EAGER_BYTES: usize = 2048;
/// How much must come, without a line's end, before a longer header is looked at again.
const STEP_BYTES: usize = 256;
/// Bytes of requests, answers and what they took to make, after which a connection's turn is over: some 100 us of work.
const TURN_BYTES: usize = 128 * 1024;
/// What an answer may leave allocated for the next one.
const RESPONSE_KEPT_BYTES: usize = 256 * 1024;
/// What the answers of one turn may leave allocated for the next.
const OUT_KEPT_BYTES: usize = 512 * 1024;

/// What an acceptor lends to the conversation it is in: everything that connections share.
#[derive(Debug)]
pub(super) struct Desk<H> {
    pub(super) handler: H,
    pub(super) response: Response,
    /// The answers of this conversation's turn, in order.
    pub(super) out: Vec<u8>,
    pub(super) date: DateLine,
    pub(super) limits: Limits,
    pub(super) remote: Remote,
    pub(super) shared: Arc<Shared>,
    pub(super) now: Moment,
    /// The connection this turn is for.
    pub(super) token: usize,
    /// Requests that it may still have answered in this turn.
    pub(super) budget: u32,
    /// Bytes of them and of their answers that it still may.
    pub(super) bytes_left: usize,
    /// Counts requests over the acceptor's life.
    pub(super) serial: u64,
    /// Bytes that the acceptor's connections hold, that of this turn as it was before.
    pub(super) held: usize,
    /// Each answer is its connection's last.
    pub(super) draining: bool,
}

impl<H> Desk<H> {
    /// Makes it ready for a connection's turn.
    #[inline]
    pub(super) fn begin(&mut self, token: usize) {
        self.token = token;
        self.budget = self.limits.pipelined_max;
        self.bytes_left = TURN_BYTES;
        self.out.clear();
        if self.out.capacity() > OUT_KEPT_BYTES {
            self.out = Vec::new();
        }
    }

    /// Counts a new connection, or says why there is no room for it.
    pub(super) fn admit(&self, peer: IpAddr) -> Option<&'static str> {
        let (shared, limits) = (&self.shared, &self.limits);
        let most = limits.connections_per_address_max;
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= limits.connections_max {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            return Some("there are too many connections");
        }
        if most > 0 && !shared.addresses.enter(peer, most) {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            return Some("there are too many connections from this address");
        }
        None
    }

    /// Counts the end of a connection that was admitted.
    pub(super) fn dismiss(&self, peer: IpAddr) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        if self.limits.connections_per_address_max > 0 {
            self.shared.addresses.leave(peer);
        }
    }

    pub(super) fn token(&self) -> mio::Token {
        mio::Token(self.token)
    }
}

/// What a conversation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// More bytes.
    Hungry,
    /// The answer that a promise holds.
    Waiting,
    /// Its place in the line of those that take long.
    Working,
    /// Another turn: there is more to do than one connection may have done in one.
    Paused,
    /// More of an answer that has begun.
    Streaming,
    /// Nothing: the rest of an answer will never come, and its client must notice.
    Broken,
    /// Nothing: the last answer is written, and no further byte is read.
    Over,
}

/// The state of the request in hand.
#[derive(Debug)]
enum Phase {
    /// Before or within the header.
    Head,
    /// Header known to be good, `bytes` of header and body awaited.
    Body {
        bytes: usize,
    },
    Chunked(Box<Chunked>),
    Waiting {
        serial: u64,
        frame: Frame,
    },
    Working(Box<Working>),
    Streaming(Box<Sending>),
    Over,
}

/// A request that takes more than one turn.
#[derive(Debug)]
struct Working {
    frame: Frame,
    unfinished: Unfinished,
    bytes: Whole,
}

/// Where a request's bytes are.
#[derive(Debug)]
enum Whole {
    /// In front of `input`: so many of header and body.
    Input(usize),
    Chunked(Box<Chunked>),
}

#[derive(Debug)]
struct Chunked {
    head: Vec<u8>,
    decoder: Decoder,
    body: Vec<u8>,
    /// Bytes of the coding so far, which the minimum rate is about.
    received: usize,
}

impl Chunked {
    fn held(&self) -> usize {
        self.head.capacity() + self.body.capacity()
    }
}

/// Invariant: `input` holds what has arrived and is not answered, and is not allocated when that is nothing.
#[derive(Debug)]
pub(super) struct Session {
    peer: IpAddr,
    input: Vec<u8>,
    phase: Phase,
    /// Whether `input` may hold a request that can be answered without more bytes.
    backlog: bool,
    /// How long `input` was when its header was found unfinished.
    tried: usize,
    /// When the request in hand began, or its header ended, or its answer was promised.
    since: Moment,
}

impl Session {
    pub(super) fn new(peer: IpAddr, now: Moment) -> Self {
        Self { peer, input: Vec::new(), phase: Phase::Head, backlog: false, tried: 0, since: now }
    }

    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// By when something must have happened; `idle_since` is when it last did.
    pub(super) fn deadline(&self, idle_since: Moment, limits: &Limits) -> Moment {
        match &self.phase {
            Phase::Head if self.input.is_empty() => idle_since.plus(limits.idle_timeout),
            Phase::Head => self.since.plus(limits.header_timeout),
            Phase::Body { .. } => self.body_deadline(self.input.len(), limits),
            Phase::Chunked(chunked) => self.body_deadline(chunked.received, limits),
            Phase::Waiting { .. } | Phase::Working(_) | Phase::Streaming(_) => {
                self.since.plus(limits.answer_timeout)
            }
            Phase::Over => idle_since.plus(limits.linger_timeout),
        }
    }

    fn body_deadline(&self, received: usize, limits: &Limits) -> Moment {
        if limits.body_rate_min == 0 {
            return self.since.plus(limits.body_timeout);
        }
        let earned = received as u64 * 1_000_000 / u64::from(limits.body_rate_min);
        let at_rate = limits.body_grace + std::time::Duration::from_micros(earned);
        self.since.plus(limits.body_timeout.min(at_rate))
    }

    /// Between two requests, or before the first.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Head) && is_blank(&self.input)
    }

    /// Bytes allocated for the request in hand.
    #[inline]
    pub(super) fn held(&self) -> usize {
        let chunked = match &self.phase {
            Phase::Chunked(chunked) => chunked.held(),
            Phase::Working(working) => match &working.bytes {
                Whole::Input(_) => 0,
                Whole::Chunked(chunked) => chunked.held(),
            },
            Phase::Head | Phase::Body { .. } | Phase::Waiting { .. } | Phase::Streaming(_) | Phase::Over => 0,
        };
        self.input.capacity() + chunked
    }

    pub(super) fn has_backlog(&self) -> bool {
        self.backlog
    }

    /// What it waits for now.
    pub(super) fn progress(&self) -> Progress {
        match self.phase {
            Phase::Waiting { .. } => Progress::Waiting,
            Phase::Working(_) => Progress::Working,
            Phase::Streaming(_) => Progress::Streaming,
            Phase::Over => Progress::Over,
            Phase::Head | Phase::Body { .. } | Phase::Chunked(_) if self.backlog => Progress::Paused,
            Phase::Head | Phase::Body { .. } | Phase::Chunked(_) => Progress::Hungry,
        }
    }

    /// Whether the answer to request `serial` of the acceptor is awaited here.
    pub(super) fn awaits(&self, serial: u64) -> bool {
        matches!(self.phase, Phase::Waiting { serial: awaited, .. } if awaited == serial)
    }

    /// The answer that has begun and not ended.
    pub(super) fn sending(&self) -> Option<&Sending> {
        match &self.phase {
            Phase::Streaming(sending) => Some(sending),
            Phase::Head
            | Phase::Body { .. }
            | Phase::Chunked(_)
            | Phase::Waiting { .. }
            | Phase::Working(_)
            | Phase::Over => None,
        }
    }

    /// Writes the next block of the answer that has begun, or its end.
    pub(super) fn pump<H>(&mut self, desk: &mut Desk<H>) -> Progress {
        let Phase::Streaming(sending) = &self.phase else {
            unreachable!("BUG: no answer has begun here");
        };
        self.since = desk.now;
        match sending.pump(&mut desk.out) {
            // The others have their turn between two blocks.
            Pumped::Block => Progress::Paused,
            Pumped::Nothing => Progress::Streaming,
            Pumped::Broken => Progress::Broken,
            Pumped::End => {
                self.phase = if sending.keep_alive && !desk.draining { Phase::Head } else { Phase::Over };
                self.backlog = !self.input.is_empty();
                self.progress()
            }
        }
    }

    /// Takes `fresh` bytes and answers what they complete.
    pub(super) fn take<H: Handler>(&mut self, fresh: &[u8], desk: &mut Desk<H>) -> Progress {
        if self.input.is_empty() {
            let used = self.run(fresh, desk);
            self.input = fresh[used..].to_vec();
        } else if self.still_unfinished(fresh) {
            self.input.extend_from_slice(fresh);
        } else {
            let mut input = mem::take(&mut self.input);
            input.extend_from_slice(fresh);
            let used = self.run(&input, desk);
            self.input = if used == 0 { input } else { input[used..].to_vec() };
        }
        let held = self.held();
        if held > Limits::HELD_FREE
            && desk.held + held > desk.limits.held_bytes_max
            && self.progress() == Progress::Hungry
        {
            self.turn_away("there is no room for the body now", desk);
        }
        self.progress()
    }

    /// Whether `fresh` cannot complete what `input` begins, so that it need not be looked at.
    fn still_unfinished(&self, fresh: &[u8]) -> bool {
        let total = self.input.len() + fresh.len();
        match self.phase {
            Phase::Body { bytes } => total < bytes,
            Phase::Head => {
                !self.backlog
                    && total > EAGER_BYTES
                    && total < self.tried + STEP_BYTES
                    && !fresh.contains(&b'\n')
            }
            // Bytes that may complete nothing yet: they wait with the others.
            Phase::Waiting { .. } | Phase::Working(_) | Phase::Streaming(_) => true,
            Phase::Chunked(_) | Phase::Over => false,
        }
    }

    /// Answers the requests in `input` and says how many bytes are done with.
    fn run<H: Handler>(&mut self, input: &[u8], desk: &mut Desk<H>) -> usize {
        let mut at = 0;
        self.backlog = false;
        loop {
            let rest = &input[at..];
            match &mut self.phase {
                Phase::Over => return input.len(),
                Phase::Waiting { .. } | Phase::Working(_) | Phase::Streaming(_) => return at,
                Phase::Chunked(chunked) => {
                    match chunked.decoder.feed(rest, &mut chunked.body) {
                        Ok(used) => {
                            at += used;
                            chunked.received += used;
                            if !chunked.decoder.is_done() {
                                return at;
                            }
                            self.answer_chunked(desk);
                        }
                        Err(refusal) => {
                            let head = mem::take(&mut chunked.head);
                            self.refuse(&refusal, &head, desk);
                        }
                    }
                    continue;
                }
                Phase::Head | Phase::Body { .. } => {}
            }
            if rest.is_empty() {
                return at;
            }
            if desk.budget == 0 || desk.bytes_left == 0 || desk.out.len() > desk.limits.output_bytes_max {
                self.backlog = true;
                self.since = desk.now;
                return at;
            }
            let mut slots = framing::slots();
            match judge(rest, &mut slots, &desk.limits) {
                Verdict::NeedMore => {
                    // The time of a header runs from its first byte; those of a second one may just have come.
                    if self.tried == 0 || at > 0 {
                        self.since = desk.now;
                    }
                    self.tried = rest.len();
                    return at;
                }
                Verdict::Refuse(refusal) => self.refuse(&refusal, rest, desk),
                Verdict::Head(head) => match head.body {
                    Body::Bytes(length) => {
                        let bytes = head.bytes + length;
                        let Some(body) = rest.get(head.bytes..bytes) else {
                            self.await_body(&head, rest, desk);
                            return at;
                        };
                        match self.answer(&head, body, desk) {
                            None => at += bytes,
                            Some((frame, unfinished)) => {
                                self.work(frame, unfinished, Whole::Input(bytes), desk);
                            }
                        }
                    }
                    Body::Chunked => {
                        self.await_body(&head, rest, desk);
                        at += head.bytes;
                    }
                },
            }
        }
    }

    fn await_body<H>(&mut self, head: &Head<'_, '_>, rest: &[u8], desk: &mut Desk<H>) {
        let (header, begun) = rest.split_at(head.bytes);
        if head.expects_continue && begun.is_empty() && !matches!(self.phase, Phase::Body { .. }) {
            desk.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.since = desk.now;
        self.phase = match head.body {
            Body::Bytes(length) => Phase::Body { bytes: head.bytes + length },
            Body::Chunked => Phase::Chunked(Box::new(Chunked {
                head: header.to_vec(),
                decoder: Decoder::new(desk.limits.body_bytes_max),
                body: Vec::new(),
                received: 0,
            })),
        };
    }

    fn answer_chunked<H: Handler>(&mut self, desk: &mut Desk<H>) {
        let Phase::Chunked(chunked) = mem::replace(&mut self.phase, Phase::Head) else {
            unreachable!("BUG: only called with a chunked body in hand");
        };
        let mut slots = framing::slots();
        let head = judged(&chunked.head, &mut slots, &desk.limits);
        if let Some((frame, unfinished)) = self.answer(&head, &chunked.body, desk) {
            self.work(frame, unfinished, Whole::Chunked(chunked), desk);
        }
    }

    /// Takes its place in the line of those that take long, its bytes kept.
    fn work<H>(&mut self, frame: Frame, unfinished: Unfinished, bytes: Whole, desk: &Desk<H>) {
        self.since = desk.now;
        self.phase = Phase::Working(Box::new(Working { frame, unfinished, bytes }));
    }

    /// Does the next slice of the request that is worked on.
    pub(super) fn go_on<H: Handler>(&mut self, desk: &mut Desk<H>) {
        let Phase::Working(mut working) = mem::replace(&mut self.phase, Phase::Head) else {
            unreachable!("BUG: nothing is worked on");
        };
        let input = mem::take(&mut self.input);
        let mut slots = framing::slots();
        let (header, body) = match &working.bytes {
            Whole::Input(bytes) => (&input[..*bytes], None),
            Whole::Chunked(chunked) => (chunked.head.as_slice(), Some(chunked.body.as_slice())),
        };
        let head = judged(header, &mut slots, &desk.limits);
        let body = body.unwrap_or_else(|| &header[head.bytes..]);
        let unfinished = working.unfinished;
        let more = self.ask(&head, body, working.frame, desk, |handler, request, response| {
            handler.go_on(unfinished, request, response)
        });
        if let Some(unfinished) = more {
            self.input = input;
            working.unfinished = unfinished;
            self.phase = Phase::Working(working);
            return;
        }
        self.input = match working.bytes {
            Whole::Input(bytes) => input[bytes..].to_vec(),
            Whole::Chunked(_) => input,
        };
        self.backlog = !self.input.is_empty();
    }

    /// What has to be kept when the handler has more to do.
    fn answer<H: Handler>(
        &mut self,
        head: &Head<'_, '_>,
        body: &[u8],
        desk: &mut Desk<H>,
    ) -> Option<(Frame, Unfinished)> {
        desk.budget = desk.budget.saturating_sub(1);
        self.tried = 0;
        let frame = Frame {
            head_only: head.method == super::Method::Head,
            old: head.old,
            keep_alive: head.keep_alive,
        };
        let more = self.ask(head, body, frame, desk, H::handle);
        more.map(|unfinished| (frame, unfinished))
    }

    /// Has the handler speak and does what it says, unless that is that it has more to do.
    #[inline]
    fn ask<H: Handler>(
        &mut self,
        head: &Head<'_, '_>,
        body: &[u8],
        frame: Frame,
        desk: &mut Desk<H>,
        speak: impl FnOnce(&mut H, &Request<'_>, &mut Response) -> Answer,
    ) -> Option<Unfinished> {
        desk.serial += 1;
        desk.response.clear();
        let Desk { handler, response, remote, token, serial, .. } = &mut *desk;
        let promise = || remote.promise(*token, *serial);
        let request = Request {
            method: head.method,
            path: head.path,
            query: head.query,
            headers: head.headers,
            body,
            peer: self.peer,
            promise: &promise,
        };
        // A handler's state is its own affair: it is told nothing of its panic and goes on with the next request.
        match catch_unwind(AssertUnwindSafe(|| speak(handler, &request, response))) {
            Ok(Answer::Ready) => {
                let bytes = head.bytes + body.len() + desk.response.body.len() + desk.response.effort;
                desk.bytes_left = desk.bytes_left.saturating_sub(bytes);
                self.conclude(frame, desk);
            }
            Ok(Answer::Later) => {
                self.since = desk.now;
                self.phase = Phase::Waiting { serial: desk.serial, frame };
            }
            Ok(Answer::More(unfinished)) => return Some(unfinished),
            Err(_) => {
                log::error!("BUG: the handler panicked at {request:?}; its connection is closed");
                desk.shared.panics.fetch_add(1, Ordering::Relaxed);
                desk.response.clear();
                problem::answer(&mut desk.response, Kind::Internal, "the request could not be worked on");
                self.conclude(Frame { keep_alive: false, ..frame }, desk);
            }
        }
        None
    }

    /// Writes the answer that stands in the desk's response.
    fn conclude<H>(&mut self, frame: Frame, desk: &mut Desk<H>) {
        let mut keep_alive = frame.keep_alive && !desk.response.close && !desk.draining;
        // Without chunks only the end of the connection tells the end of a streamed body.
        keep_alive &= desk.response.stream.is_none() || !frame.old || frame.head_only;
        encode(&mut desk.out, &desk.response, Frame { keep_alive, ..frame }, &desk.date);
        if desk.response.body.capacity() > RESPONSE_KEPT_BYTES {
            desk.response.body = Vec::new();
        }
        self.phase = match desk.response.stream.take() {
            Some(stream) if !frame.head_only => {
                self.begin_stream(stream, Frame { keep_alive, ..frame }, desk)
            }
            _ if keep_alive => Phase::Head,
            _ => Phase::Over,
        };
    }

    fn begin_stream<H>(&mut self, stream: Stream, frame: Frame, desk: &mut Desk<H>) -> Phase {
        desk.serial += 1;
        let (remote, token, serial) = (desk.remote.clone(), desk.token, desk.serial);
        stream.attach(move || remote.nudge(token, serial));
        self.since = desk.now;
        Phase::Streaming(Box::new(Sending::new(stream, !frame.old, frame.keep_alive, serial)))
    }

    /// Writes a late answer, which the caller knows to be awaited.
    pub(super) fn conclude_late<H>(&mut self, response: Response, desk: &mut Desk<H>) {
        let Phase::Waiting { frame, .. } = self.phase else {
            unreachable!("BUG: nobody waits for this answer");
        };
        desk.response = response;
        self.backlog = !self.input.is_empty();
        self.conclude(frame, desk);
    }

    /// Refuses what begins with `bytes`, of which the header need not be whole or good, and ends.
    fn refuse<H: Handler>(&mut self, refusal: &Refusal, bytes: &[u8], desk: &mut Desk<H>) {
        desk.response.clear();
        refusal.write(&mut desk.response);
        self.end_refused(bytes, desk);
    }

    /// Answers that there is no room, before it has been asked anything, or all of it, and ends.
    pub(super) fn turn_away<H: Handler>(&mut self, detail: &str, desk: &mut Desk<H>) {
        desk.response.clear();
        problem::answer(&mut desk.response, Kind::Unavailable, detail);
        desk.response.header("Retry-After", 1);
        let input = mem::take(&mut self.input);
        self.end_refused(&input, desk);
    }

    fn end_refused<H: Handler>(&mut self, bytes: &[u8], desk: &mut Desk<H>) {
        desk.serial += 1;
        let origin = framing::origin(bytes).map(|value| httparse::Header { name: "Origin", value });
        desk.handler.refused(super::Headers(origin.as_slice()), &mut desk.response);
        self.conclude(Frame { head_only: false, old: false, keep_alive: false }, desk);
    }

    fn give_up<H>(&mut self, frame: Frame, desk: &mut Desk<H>) {
        desk.response.clear();
        problem::answer(&mut desk.response, Kind::Unavailable, "the answer took too long");
        desk.response.header("Retry-After", 1);
        self.conclude(Frame { keep_alive: false, ..frame }, desk);
    }

    /// Its time is up: says so where there is somebody to say it to, and ends.
    pub(super) fn expire<H: Handler>(&mut self, desk: &mut Desk<H>) {
        let input = mem::take(&mut self.input);
        match &mut self.phase {
            Phase::Head if is_blank(&input) => {}
            Phase::Head => self.refuse(&Refusal::new(408, "the header took too long"), &input, desk),
            Phase::Body { .. } => self.refuse(&TOO_SLOW, &input, desk),
            Phase::Chunked(chunked) => {
                let head = mem::take(&mut chunked.head);
                self.refuse(&TOO_SLOW, &head, desk);
            }
            Phase::Waiting { frame, .. } => {
                let frame = *frame;
                self.give_up(frame, desk);
            }
            Phase::Working(working) => {
                let frame = working.frame;
                self.give_up(frame, desk);
            }
            Phase::Streaming(_) | Phase::Over => {}
        }
        self.phase = Phase::Over;
    }
}

const TOO_SLOW: Refusal = Refusal::new(408, "the body came too slowly");

/// Whether no request has begun.
fn is_blank(input: &[u8]) -> bool {
    input.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

/// The header that these bytes were found to begin with.
fn judged<'b, 'h>(bytes: &'b [u8], slots: &'h mut framing::Slots<'b>, limits: &Limits) -> Head<'b, 'h> {
    let Verdict::Head(head) = judge(bytes, slots, limits) else {
        unreachable!("BUG: the same bytes were a good header before");
    };
    head
}
