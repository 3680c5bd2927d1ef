//! One acceptor's handler: sends each request to the stage that answers it, and counts it.
//!
//! Runs on the acceptor and must not block: what needs the database goes to the reader threads.

use std::sync::Arc;

use rand::rngs::StdRng;

use crate::access::{self, Area, Gate, Grant, Origins};
use crate::buffer::{Buffer, Full, RowBlock};
use crate::clock::{Clock, Moment};
use crate::console;
use crate::http::accept::preferred;
use crate::http::gzip;
use crate::http::router::{self, Route};
use crate::http::{Answer, Handler, Headers, Method, Promise, Request, Response};
use crate::ingest::{
    self, Call, Coding, DecompressLimits, Decompressor, Form, Ingest, Limits, Undecodable, problem,
};
use crate::journal::{Journal, Level};
use crate::lifecycle::Phase;
use crate::metrics::{HttpFigures, Reason};
use crate::query::{Line, Query};
use crate::status::{Part, Status};

/// The label of a single event's page.
const GET_EVENT: usize = 1;
/// Seconds after which another server, or this one restarted, may take what a stopping one refused.
const RESTART_S: u64 = 5;
/// Seconds after which a journal that failed may work again.
const JOURNAL_RETRY_S: u64 = 5;

#[derive(Debug)]
pub struct Api {
    acceptor: usize,
    gate: Gate,
    ingest: Ingest,
    decompressor: Decompressor,
    buffer: Arc<Buffer>,
    journal: Arc<Journal>,
    /// What a 202 means unless the request says.
    durability: Level,
    /// The least that somebody waits for since the turn began.
    waiting: Option<Level>,
    status: Arc<Status>,
    line: Line,
    figures: Arc<HttpFigures>,
    clock: Clock,
}

impl Api {
    pub fn new(
        acceptor: usize,
        gate: Gate,
        limits: Limits,
        durability: Level,
        rng: StdRng,
        status: Arc<Status>,
        line: Line,
    ) -> Self {
        Self {
            acceptor,
            gate,
            ingest: Ingest::new(limits, rng),
            decompressor: Decompressor::new(DecompressLimits::new(limits.plain_bytes_max)),
            buffer: status.buffer.clone(),
            journal: status.journal.clone(),
            durability,
            waiting: None,
            figures: status.http.clone(),
            clock: status.clock.clone(),
            status,
            line,
        }
    }

    /// Answers what needs no database.
    fn answer(&mut self, route: &Route<'_>, grant: &Grant, request: &Request<'_>, response: &mut Response) {
        match route {
            Route::PostEvents | Route::ListEvents | Route::GetEvent(_) | Route::Stats => {
                unreachable!("BUG: these may be answered later")
            }
            Route::Live => Status::live(response),
            Route::Ready => self.status.ready(response),
            Route::Health if !grant.metrics => self.status.health(Part::Word, response),
            Route::Health => self.status.health(Part::Overall, response),
            Route::HealthBuffer => self.status.health(Part::Buffer, response),
            Route::HealthBusiness => self.status.health_business(response),
            Route::HealthDatabase => self.status.health(Part::Database, response),
            Route::HealthDetailed => self.status.health(Part::Detailed, response),
            Route::Metrics => self.metrics(request, response),
            Route::MetricsPrometheus => self.status.metrics_text(response),
            Route::Console(page) => console::answer(*page, request.headers, response),
            Route::Options(allow) => {
                response.status = 204;
                response.header("Allow", allow);
                Origins::preflight(grant.cors, request.headers, allow, response);
            }
        }
    }

    /// `POST /events`: all of its good events are admitted, or none. Tells with which durability a 202 is to be given;
    /// with none the response is an answer already.
    fn post_events(
        &mut self,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Option<Level> {
        let level = self.admit(grant, request, response);
        self.decompressor.release();
        response.header("Durability", level?.name());
        level
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
        self.waiting = Some(self.waiting.map_or(level, |waiting| waiting.min(level)));
    }

    fn admit(&mut self, grant: &Grant, request: &Request<'_>, response: &mut Response) -> Option<Level> {
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
            Ok(call) => Call { services: grant.services.as_deref(), ..call },
            Err(refused) => {
                refused.answer(response);
                return None;
            }
        };
        let level = call.durability.unwrap_or(self.durability);
        // Under overload most batches are turned away: not to read them leaves the time to the writer. Only lines can be
        // counted without reading them; of what is compressed it is only known that there is one.
        let plain = call.coding == Coding::Identity;
        if (call.form == Form::Ndjson || !plain) && self.buffer.is_full() {
            let events = if plain { ingest::count_lines(request.body) } else { 1 };
            ledger.dropped(Reason::BufferFull, events);
            problem::buffer_full(response, self.status.retry_after());
            return None;
        }
        let body = match self.decompressor.decode(call.coding, request.body) {
            Ok(body) => body,
            Err(refused) => {
                ledger.dropped(Reason::Invalid, 1);
                undecodable(refused, response);
                return None;
            }
        };
        let decoded = self.ingest.decode(call, body, self.clock.wall());
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

    /// A promise that counts its answer when it is kept. The answer has `headers` before its own, and shows only what
    /// the grant allows.
    fn counted_promise(
        &self,
        request: &Request<'_>,
        grant: &Grant,
        mut headers: Vec<u8>,
        route: usize,
        started: Moment,
    ) -> Promise {
        let (promise, method) = (request.promise(), request.method);
        let (figures, acceptor, clock) = (self.figures.clone(), self.acceptor, self.clock.clone());
        // A page was checked by its query.
        let services = grant.services.clone().filter(|_| route == GET_EVENT);
        let gzipped = gzip::is_accepted(request.headers);
        Promise::new(move |mut response| {
            if let Some(services) = services {
                access::conceal(&services, &mut response);
            }
            if gzipped {
                // On the reader's thread, which may take its time.
                gzip::compress(&mut response, usize::MAX);
            }
            headers.append(&mut response.headers);
            response.headers = headers;
            figures.record(acceptor, method, route, response.status, clock.now().since(started));
            promise.fulfil(response);
        })
    }

    /// What waits for the database.
    fn query(
        &self,
        route: &Route<'_>,
        grant: &Grant,
        request: &Request<'_>,
        started: Moment,
        response: &mut Response,
    ) -> Answer {
        let headers = response.headers.clone();
        let promise = || self.counted_promise(request, grant, headers, route.index(), started);
        if let Route::GetEvent(id) = route {
            return self.line.find(id, promise, response);
        }
        let now = self.clock.wall();
        let of_stats = *route == Route::Stats;
        if let Some(services) = &grant.services {
            let filter = if of_stats {
                Query::parse_stats(request.query, now)
            } else {
                Query::parse(request.query, now).map(|query| query.filter)
            };
            if let Ok(filter) = filter
                && !filter.service.as_deref().is_some_and(|service| access::holds(services, service))
            {
                access::forbid_service(filter.service.as_deref(), response);
                return Answer::Ready;
            }
        }
        if of_stats {
            self.line.stats(request.query, now, promise, response)
        } else {
            self.line.list(request.query, now, promise, response)
        }
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
        let found = router::route(request.method, request.path);
        let index = found.as_ref().map_or(router::OTHER, Route::index);
        let grant = self.gate.enter(area(found.as_ref().ok()), request, started, response);
        let answer = match (grant, found) {
            (None, _) => Answer::Ready,
            (Some(_), Err(refusal)) => {
                refusal.write(response);
                Answer::Ready
            }
            (Some(grant), Ok(route @ (Route::ListEvents | Route::GetEvent(_) | Route::Stats))) => {
                self.query(&route, &grant, request, started, response)
            }
            (Some(grant), Ok(Route::PostEvents)) => {
                let front = response.headers.len();
                match self.post_events(&grant, request, response) {
                    None | Some(Level::Memory) => Answer::Ready,
                    Some(level @ (Level::Written | Level::Synced)) => {
                        // Whatever the answer comes to be, it begins with what the gate has to say.
                        let front = response.headers.drain(..front).collect();
                        let promise = self.counted_promise(request, &grant, front, index, started);
                        self.answer_when(level, promise, response);
                        Answer::Later
                    }
                }
            }
            (Some(grant), Ok(route)) => {
                self.answer(&route, &grant, request, response);
                if request.method == Method::Get && gzip::is_accepted(request.headers) {
                    gzip::compress(response, gzip::ON_ACCEPTOR_MAX);
                }
                Answer::Ready
            }
        };
        if answer == Answer::Ready {
            self.count(request.method, index, response.status, started);
        }
        answer
    }

    /// Wakes the checkpoint thread once for all who wait since the turn began.
    fn turn_ended(&mut self) {
        if let Some(level) = self.waiting.take() {
            self.journal.wake_for(level);
        }
    }

    /// The engine refused a request that never came to be one.
    fn refused(&mut self, status: u16) {
        self.count(Method::Other, router::OTHER, status, self.clock.now());
    }
}

fn undecodable(refused: Undecodable, response: &mut Response) {
    let kind = if refused.is_too_large() { problem::Kind::TooLarge } else { problem::Kind::Invalid };
    problem::answer(response, kind, &refused.to_string());
}

/// What it takes to be shown a page.
fn area(route: Option<&Route<'_>>) -> Area {
    let Some(route) = route else { return Area::Public };
    match route {
        Route::PostEvents => Area::Ingest,
        Route::ListEvents | Route::GetEvent(_) | Route::Stats => Area::Query,
        Route::Live | Route::Ready => Area::Probe,
        Route::Health => Area::Health,
        Route::HealthBuffer | Route::HealthBusiness | Route::HealthDatabase | Route::HealthDetailed => {
            Area::HealthDetails
        }
        Route::Metrics | Route::MetricsPrometheus => Area::Metrics,
        Route::Console(_) | Route::Options(_) => Area::Public,
    }
}

/// Whether the request said that it has a body, be it an empty one.
fn is_framed(headers: Headers<'_>) -> bool {
    headers.get("Content-Length").is_some() || headers.get("Transfer-Encoding").is_some()
}
