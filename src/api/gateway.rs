//! The metrics gateway's requests on their way through an acceptor: what is answered at once, what waits for its log, and
//! what another thread writes.

use super::Api;
use super::intake::{JOURNAL_RETRY_S, RESTART_S};
use crate::access::Grant;
use crate::clock::Moment;
use crate::gateway::pages::GatewayPage;
use crate::gateway::pages::{Outcome, Pages};
use crate::http::{Answer, Request, Response};
use crate::http::{DecompressLimits, Decompressor, problem};
use crate::lifecycle::Phase;

/// What pushes need beside what posts of events do.
#[derive(Debug)]
pub(super) struct Pushes {
    pages: Pages,
    decompressor: Decompressor,
    /// Whether somebody waits for the gateway's log since the turn began.
    waiting: bool,
}

impl Pushes {
    pub(super) fn new(pages: Pages, plain_bytes_max: usize) -> Self {
        Self {
            pages,
            decompressor: Decompressor::new(DecompressLimits::new(plain_bytes_max)),
            waiting: false,
        }
    }

    /// Wakes the thread of the log once for all who wait since the turn began.
    pub(super) fn turn_ended(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.pages.gateway().wake();
        }
    }
}

impl Api {
    /// The metrics gateway's pages.
    pub(super) fn gateway(
        &mut self,
        page: &GatewayPage<'_>,
        grant: &Grant,
        request: &Request<'_>,
        (index, started): (usize, Moment),
        response: &mut Response,
    ) -> Answer {
        let phase = self.status.lifecycle.phase();
        match page {
            GatewayPage::Healthy => {
                gateway_word(response);
                return Answer::Ready;
            }
            GatewayPage::Ready => {
                self.status.ready(response);
                if response.status == 200 {
                    response.body.clear();
                    gateway_word(response);
                }
                return Answer::Ready;
            }
            GatewayPage::Push | GatewayPage::Group(_) | GatewayPage::Remove | GatewayPage::Wipe => {
                if phase > Phase::Serving {
                    problem::shutting_down(response, RESTART_S);
                    return Answer::Ready;
                }
            }
            GatewayPage::Pushed | GatewayPage::Groups | GatewayPage::Status => {}
        }
        if let Some(asked) = Pages::asked(page, request.headers) {
            let headers = response.headers.clone();
            let promise = || self.counted_promise(request, grant, headers, index, started);
            return self.pushes.pages.ask(asked, response, promise);
        }
        let front = response.headers.len();
        match self.pushes.pages.answer(page, grant, request, &mut self.pushes.decompressor, response) {
            Outcome::Ready => Answer::Ready,
            Outcome::When(level) => {
                // Whatever the answer comes to be, it begins with what the gate has to say.
                let front = response.headers.drain(..front).collect();
                let promise = self.counted_promise(request, grant, front, index, started);
                let answer = std::mem::take(response);
                let told = move |holds| promise.fulfil(if holds { answer } else { unreached() });
                self.pushes.pages.gateway().when(level, Box::new(told));
                self.pushes.waiting = true;
                Answer::Later
            }
        }
    }
}

/// What Pushgateway answers when all is well.
fn gateway_word(response: &mut Response) {
    response.content_type = "text/plain; charset=utf-8";
    response.body.extend_from_slice(b"OK");
}

/// A push whose durability could not be reached.
fn unreached() -> Response {
    let mut response = Response::default();
    problem::answer_later(
        &mut response,
        problem::Kind::JournalUnavailable,
        "the durability asked for could not be reached; the push may hold all the same, so that only one with an \
         idempotency key, or one that replaces what was there, can be sent again without being counted twice",
        JOURNAL_RETRY_S,
    );
    response
}
