//! A conversation without a socket, for tests and fuzzers: what a session answers to pieces of bytes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::encode::DateLine;
use super::session::{Desk, Progress, Session};
use super::{Answer, Handler, Limits, Remote, Request, Response, Unfinished};
use crate::clock::Clock;
use crate::event::Timestamp;

/// Answers with the body it got; 404 on `/nothing`; in three slices where the path begins with `/l`.
#[derive(Debug, Default)]
pub(super) struct Echo {
    /// Stands for all that it was asked so far.
    seen: DefaultHasher,
}

impl Handler for Echo {
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer {
        if request.path.starts_with("/l") {
            return Answer::More(Box::new(2_u32));
        }
        self.answer(request, response)
    }

    fn go_on(&mut self, unfinished: Unfinished, request: &Request<'_>, response: &mut Response) -> Answer {
        match *unfinished.downcast::<u32>().expect("it is what was left") {
            0 => self.answer(request, response),
            left => Answer::More(Box::new(left - 1)),
        }
    }
}

impl Echo {
    fn answer(&mut self, request: &Request<'_>, response: &mut Response) -> Answer {
        (request.method, request.path, request.query, request.body).hash(&mut self.seen);
        for header in request.headers.0 {
            (header.name, header.value).hash(&mut self.seen);
        }
        if request.path == "/nothing" {
            response.status = 404;
        }
        response.body.extend_from_slice(request.body);
        Answer::Ready
    }
}

pub(super) fn desk() -> Desk<Echo> {
    desk_within(Limits::default())
}

fn desk_within(limits: Limits) -> Desk<Echo> {
    let clock = Clock::manual(Timestamp::from_millis(0), 1);
    let poll = mio::Poll::new().expect("there is a descriptor left");
    Desk {
        handler: Echo::default(),
        response: Response::default(),
        out: Vec::new(),
        date: DateLine::new(&clock),
        limits,
        remote: Remote::new(poll.registry(), mio::Token(0)).expect("there is a descriptor left"),
        shared: Arc::default(),
        now: clock.now(),
        token: 0,
        budget: 0,
        bytes_left: 0,
        serial: 0,
        held: 0,
        draining: false,
    }
}

/// The statuses of `out` but for 100, its bytes without them, and whether the conversation is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) statuses: Vec<u16>,
    pub(super) out: String,
    pub(super) over: bool,
    /// All that was said is answered, and more may be said.
    pub(super) done: bool,
    /// Stands for the requests as the handler saw them.
    pub(super) seen: u64,
}

/// Speaks `pieces` to a fresh session.
pub(super) fn speak<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    speak_within(Limits::default(), pieces)
}

pub(super) fn speak_within<'a>(limits: Limits, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut desk = desk_within(limits);
    let mut session = Session::new(IpAddr::V4(Ipv4Addr::LOCALHOST), desk.now);
    let mut out = Vec::new();
    for piece in pieces {
        let mut piece = piece;
        loop {
            desk.begin(0);
            let progress = session.take(piece, &mut desk);
            out.extend_from_slice(&desk.out);
            match progress {
                Progress::Paused => {}
                Progress::Working => {
                    desk.begin(0);
                    session.go_on(&mut desk);
                    out.extend_from_slice(&desk.out);
                }
                Progress::Streaming | Progress::Broken => unreachable!("BUG: nothing streams here"),
                Progress::Hungry | Progress::Waiting | Progress::Over => break,
            }
            piece = &[];
        }
    }
    // How long a body takes to come decides about a 100, so that it does not count for the comparison.
    let out = String::from_utf8_lossy(&out).replace("HTTP/1.1 100 Continue\r\n\r\n", "");
    let over = session.progress() == Progress::Over;
    let done = !over && session.held() == 0;
    Outcome { statuses: statuses(&out), out, over, done, seen: desk.handler.seen.finish() }
}

/// The statuses of the answers in `out`; an echoed request line is none.
pub(super) fn statuses(out: &str) -> Vec<u16> {
    let answers = out.match_indices("HTTP/1.1 ").filter(|(at, _)| out[*at..].contains("\r\nDate: "));
    answers.filter_map(|(at, _)| out.get(at + 9..at + 12)?.parse().ok()).collect()
}
