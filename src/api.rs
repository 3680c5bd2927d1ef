//! One acceptor's handler: sends each request to the stage that answers it, and counts it.
//!
//! Runs on the acceptor and must not block: what needs the database goes to the reader threads.

use std::sync::Arc;

use rand::rngs::StdRng;

use crate::buffer::{Buffer, Full, RowBlock};
use crate::clock::{Clock, Moment};
use crate::http::accept::preferred;
use crate::http::gzip;
use crate::http::router::{self, Route};
use crate::http::{Answer, Handler, Headers, Method, Promise, Request, Response};
use crate::ingest::{self, Call, Form, Ingest, Limits, problem};
use crate::journal::{Journal, Level};
use crate::lifecycle::Phase;
use crate::metrics::{HttpFigures, Reason};
use crate::query::Line;
use crate::status::{Part, Status};

/// Seconds after which another server, or this one restarted, may take what a stopping one refused.
const RESTART_S: u64 = 5;
/// Seconds after which a journal that failed may work again.
const JOURNAL_RETRY_S: u64 = 5;

#[derive(Debug)]
pub struct Api {
    acceptor: usize,
    ingest: Ingest,
    buffer: Arc<Buffer>,
    journal: Arc<Journal>,
    /// What a 202 means unless the request says.
    durability: Level,
    /// Whether somebody waits since the turn began.
    waiting: bool,
    status: Arc<Status>,
    line: Line,
    figures: Arc<HttpFigures>,
    clock: Clock,
}

impl Api {
    pub fn new(
        acceptor: usize,
        limits: Limits,
        durability: Level,
        rng: StdRng,
        status: Arc<Status>,
        line: Line,
    ) -> Self {
        Self {
            acceptor,
            ingest: Ingest::new(limits, rng),
            buffer: status.buffer.clone(),
            journal: status.journal.clone(),
            durability,
            waiting: false,
            figures: status.http.clone(),
            clock: status.clock.clone(),
            status,
            line,
        }
    }

    /// Answers what needs no database.
    fn answer(&mut self, route: &Route<'_>, request: &Request<'_>, response: &mut Response) {
        match route {
            Route::PostEvents | Route::ListEvents | Route::GetEvent(_) => {
                unreachable!("BUG: these may be answered later")
            }
            Route::Live => Status::live(response),
            Route::Ready => self.status.ready(response),
            Route::Health => self.status.health(Part::Overall, response),
            Route::HealthBuffer => self.status.health(Part::Buffer, response),
            Route::HealthBusiness => self.status.health_business(response),
            Route::HealthDatabase => self.status.health(Part::Database, response),
            Route::HealthDetailed => self.status.health(Part::Detailed, response),
            Route::Metrics => self.metrics(request, response),
            Route::MetricsPrometheus => self.status.metrics_text(response),
            Route::Console => index_page(response),
            Route::Options(allow) => {
                response.status = 204;
                response.header("Allow", allow);
            }
        }
    }

    /// `POST /events`: all of its good events are admitted, or none. Tells with which durability a 202 is to be given;
    /// with none the response is an answer already.
    fn post_events(&mut self, request: &Request<'_>, response: &mut Response) -> Option<Level> {
        let level = self.admit(request, response)?;
        response.header("Durability", level.name());
        Some(level)
    }

    /// Has the answer in `response` given when the events it speaks of have reached `level`.
    fn answer_when(&mut self, level: Level, promise: Promise, response: &mut Response) {
        let answer = std::mem::take(response);
        let told = move |holds| {
            if holds {
                return promise.fulfil(answer);
            }
            let mut response = Response::default();
            problem::answer_later(
                &mut response,
                problem::Kind::JournalUnavailable,
                "the durability asked for could not be reached; the events may be stored all the same, so that \
                 only those with an idempotency key can be sent again without being stored twice",
                JOURNAL_RETRY_S,
            );
            promise.fulfil(response);
        };
        self.journal.when(self.acceptor, level, Box::new(told));
        self.waiting = true;
    }

    fn admit(&mut self, request: &Request<'_>, response: &mut Response) -> Option<Level> {
        let ledger = &self.status.ledger;
        if self.status.lifecycle.phase() > Phase::Serving {
            problem::shutting_down(response, RESTART_S);
            return None;
        }
        if request.body.is_empty() && !is_framed(request.headers) {
            let detail = "a POST says how long its body is";
            problem::answer(response, problem::Kind::LengthRequired, detail);
            return None;
        }
        let call = match Call::read(request.headers) {
            Ok(call) => call,
            Err(refused) => {
                refused.answer(response);
                return None;
            }
        };
        let level = call.durability.unwrap_or(self.durability);
        // Under overload most batches are turned away: not to read them leaves the time to the writer. Only lines can be
        // counted without reading them.
        if call.form == Form::Ndjson && self.buffer.is_full() {
            ledger.dropped(Reason::BufferFull, ingest::count_lines(request.body));
            problem::buffer_full(response, self.status.retry_after());
            return None;
        }
        let decoded = self.ingest.decode(call, request.body, self.clock.wall());
        if decoded.rejected() > 0 {
            ledger.dropped(Reason::Invalid, u64::from(decoded.rejected()));
        }
        let rows = u32::try_from(decoded.accepted()).expect("BUG: a body is bounded far below 2^32 events");
        if rows == 0 {
            decoded.answer(response);
            return None;
        }
        if !self.journal.promises(level) {
            ledger.dropped(Reason::JournalUnavailable, u64::from(rows));
            problem::journal_unavailable(response, JOURNAL_RETRY_S);
            return None;
        }
        let admitted_at = self.clock.now();
        let keep = |block: &RowBlock| self.journal.keep(self.acceptor, block);
        let size = (rows, decoded.bytes());
        match self.buffer.admit(self.acceptor, size, admitted_at, decoded.blocks(), keep) {
            Ok(()) => {
                decoded.answer(response);
                return Some(level);
            }
            Err(Full::Now) => {
                ledger.dropped(Reason::BufferFull, u64::from(rows));
                problem::buffer_full(response, self.status.retry_after());
            }
            Err(Full::Always) => {
                ledger.dropped(Reason::TooLarge, u64::from(rows));
                let detail = "the request has more events than the whole buffer holds; send it in parts";
                problem::answer(response, problem::Kind::TooLarge, detail);
            }
            Err(Full::Closed) => {
                ledger.dropped(Reason::ShuttingDown, u64::from(rows));
                problem::shutting_down(response, RESTART_S);
            }
        }
        None
    }

    fn count(&self, method: Method, route: usize, status: u16, started: Moment) {
        self.figures.record(self.acceptor, method, route, status, self.clock.now().since(started));
    }

    /// A promise that counts its answer when it is kept.
    fn counted_promise(&self, request: &Request<'_>, route: usize, started: Moment) -> Promise {
        let (promise, method) = (request.promise(), request.method);
        let (figures, acceptor, clock) = (self.figures.clone(), self.acceptor, self.clock.clone());
        let gzipped = gzip::is_accepted(request.headers);
        Promise::new(move |mut response| {
            if gzipped {
                // On the reader's thread, which may take its time.
                gzip::compress(&mut response, usize::MAX);
            }
            figures.record(acceptor, method, route, response.status, clock.now().since(started));
            promise.fulfil(response);
        })
    }

    fn metrics(&self, request: &Request<'_>, response: &mut Response) {
        const OFFERS: [&str; 3] = ["application/json", "text/plain", "application/openmetrics-text"];
        let accept = request.headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok());
        match accept.and_then(|accept| preferred(accept, &OFFERS)) {
            Some(2) => self.status.metrics_openmetrics(response),
            Some(1) => self.status.metrics_text(response),
            // None of them, or no preference: JSON.
            Some(_) | None => self.status.metrics_json(response),
        }
    }
}

impl Handler for Api {
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer {
        let started = self.clock.now();
        let route = match router::route(request.method, request.path) {
            Ok(route) => route,
            Err(refusal) => {
                refusal.write(response);
                self.count(request.method, router::OTHER, response.status, started);
                return Answer::Ready;
            }
        };
        let index = route.index();
        let promise = || self.counted_promise(request, index, started);
        let answer = if let Route::ListEvents = route {
            self.line.list(request.query, self.clock.wall(), promise, response)
        } else if let Route::GetEvent(id) = &route {
            self.line.find(id, promise, response)
        } else if let Route::PostEvents = route {
            match self.post_events(request, response) {
                None | Some(Level::Memory) => Answer::Ready,
                Some(level @ (Level::Written | Level::Synced)) => {
                    let promise = self.counted_promise(request, index, started);
                    self.answer_when(level, promise, response);
                    Answer::Later
                }
            }
        } else {
            self.answer(&route, request, response);
            if request.method == Method::Get && gzip::is_accepted(request.headers) {
                gzip::compress(response, gzip::ON_ACCEPTOR_MAX);
            }
            Answer::Ready
        };
        if answer == Answer::Ready {
            self.count(request.method, index, response.status, started);
        }
        answer
    }

    /// Wakes the checkpoint thread once for all who wait since the turn began.
    fn turn_ended(&mut self) {
        if std::mem::take(&mut self.waiting) {
            self.journal.wake();
        }
    }

    /// The engine refused a request that never came to be one.
    fn refused(&mut self, status: u16) {
        self.count(Method::Other, router::OTHER, status, self.clock.now());
    }
}

/// Whether the request said that it has a body, be it an empty one.
fn is_framed(headers: Headers<'_>) -> bool {
    headers.get("Content-Length").is_some() || headers.get("Transfer-Encoding").is_some()
}

/// `GET /`: what there is, for whoever opens the address in a browser.
fn index_page(response: &mut Response) {
    response.content_type = "text/plain; charset=utf-8";
    response.body.extend_from_slice(
        b"aurore-events\n\n\
          POST /events               one event, an array of them, or NDJSON\n\
          GET  /events               stored events, by service and time\n\
          GET  /events/{event_id}    one event, or what became of it\n\
          GET  /live /ready          for whoever supervises the process\n\
          GET  /health               in one word; more under /health/buffer, /health/business, /health/database, /health/detailed\n\
          GET  /metrics              figures in JSON; /metrics/prometheus for Prometheus\n",
    );
}
