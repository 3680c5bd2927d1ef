//! A conversation without a socket, for tests and fuzzers: what a session answers to pieces of bytes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::encode::DateLine;
use super::session::{Desk, Progress, Session};
use super::{Answer, Handler, Limits, Remote, Request, Response};
use crate::clock::Clock;
use crate::event::Timestamp;

/// Answers with the body it got; 404 on `/nothing`.
#[derive(Debug)]
pub(super) struct Echo;

impl Handler for Echo {
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer {
        if request.path == "/nothing" {
            response.status = 404;
        }
        response.body.extend_from_slice(request.body);
        Answer::Ready
    }
}

pub(super) fn desk() -> Desk<Echo> {
    let clock = Clock::manual(Timestamp::from_millis(0), 1);
    let poll = mio::Poll::new().expect("there is a descriptor left");
    Desk {
        handler: Echo,
        response: Response::default(),
        out: Vec::new(),
        date: DateLine::new(&clock),
        limits: Limits::default(),
        remote: Remote::new(poll.registry(), mio::Token(0)).expect("there is a descriptor left"),
        shared: Arc::default(),
        now: clock.now(),
        token: 0,
        budget: 0,
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
}

/// Speaks `pieces` to a fresh session.
pub(super) fn speak<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut desk = desk();
    let mut session = Session::new(IpAddr::V4(Ipv4Addr::LOCALHOST), desk.now);
    let mut out = Vec::new();
    for piece in pieces {
        let mut piece = piece;
        loop {
            desk.begin(0);
            let progress = session.take(piece, &mut desk);
            out.extend_from_slice(&desk.out);
            if progress != Progress::Paused {
                break;
            }
            piece = &[];
        }
    }
    // How long a body takes to come decides about a 100, so that it does not count for the comparison.
    let out = String::from_utf8_lossy(&out).replace("HTTP/1.1 100 Continue\r\n\r\n", "");
    let over = session.progress() == Progress::Over;
    Outcome { statuses: statuses(&out), out, over, done: !over && session.held() == 0 }
}

/// The statuses of the answers in `out`; an echoed request line is none.
pub(super) fn statuses(out: &str) -> Vec<u16> {
    let answers = out.match_indices("HTTP/1.1 ").filter(|(at, _)| out[*at..].contains("\r\nDate: "));
    answers.filter_map(|(at, _)| out.get(at + 9..at + 12)?.parse().ok()).collect()
}
