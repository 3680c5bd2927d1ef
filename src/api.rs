//! One acceptor's handler: sends each request to the stage that answers it, and counts it.
//!
//! Runs on the acceptor and must not block: what needs the database goes to the reader threads.

use std::sync::Arc;

use rand::rngs::StdRng;

use crate::access::{self, Area, Gate, Grant, Origins};
use crate::buffer::{Buffer, Full};
use crate::clock::{Clock, Moment};
use crate::http::accept::preferred;
use crate::http::gzip;
use crate::http::router::{self, Route};
use crate::http::{Answer, Handler, Headers, Method, Promise, Request, Response};
use crate::ingest::{
    self, Call, Coding, DecompressLimits, Decompressor, Form, Ingest, Limits, Undecodable, problem,
};
use crate::lifecycle::Phase;
use crate::metrics::{HttpFigures, Reason};
use crate::query::{Line, Query};
use crate::status::{Part, Status};

/// The label of a single event's page.
const GET_EVENT: usize = 1;
/// Seconds after which another server, or this one restarted, may take what a stopping one refused.
const RESTART_S: u64 = 5;

#[derive(Debug)]
pub struct Api {
    acceptor: usize,
    gate: Gate,
    ingest: Ingest,
    decompressor: Decompressor,
    buffer: Arc<Buffer>,
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
            figures: status.http.clone(),
            clock: status.clock.clone(),
            status,
            line,
        }
    }

    /// Answers what needs no database.
    fn answer(&mut self, route: &Route<'_>, grant: &Grant, request: &Request<'_>, response: &mut Response) {
        match route {
            Route::PostEvents => {
                self.post_events(grant, request, response);
                self.decompressor.release();
            }
            Route::ListEvents | Route::GetEvent(_) => unreachable!("BUG: these wait for the database"),
            Route::Live => Status::live(response),
            Route::Ready => self.status.ready(response),
            Route::Health if !grant.metrics => self.status.health(Part::Word, response),
            Route::Health => self.status.health(Part::Overall, response),
            Route::HealthBuffer => self.status.health(Part::Buffer, response),
            Route::HealthDatabase => self.status.health(Part::Database, response),
            Route::HealthDetailed => self.status.health(Part::Detailed, response),
            Route::Metrics => self.metrics(request, response),
            Route::MetricsPrometheus => self.status.metrics_text(response),
            Route::Console => index_page(response),
            Route::Options(allow) => {
                response.status = 204;
                response.header("Allow", allow);
                Origins::preflight(grant.cors, request.headers, allow, response);
            }
        }
    }

    /// `POST /events`: all of its good events are admitted, or none.
    fn post_events(&mut self, grant: &Grant, request: &Request<'_>, response: &mut Response) {
        let ledger = &self.status.ledger;
        if self.status.lifecycle.phase() > Phase::Serving {
            return problem::shutting_down(response, RESTART_S);
        }
        if request.body.is_empty() && !is_framed(request.headers) {
            return problem::answer(
                response,
                problem::Kind::LengthRequired,
                "a POST says how long its body is",
            );
        }
        let call = match Call::read(request.headers) {
            Ok(call) => Call { services: grant.services.as_deref(), ..call },
            Err(refused) => return refused.answer(response),
        };
        // Under overload most batches are turned away: not to read them leaves the time to the writer. Only lines can be
        // counted without reading them; of what is compressed it is only known that there is one.
        let plain = call.coding == Coding::Identity;
        if (call.form == Form::Ndjson || !plain) && self.buffer.is_full() {
            let events = if plain { ingest::count_lines(request.body) } else { 1 };
            ledger.dropped(Reason::BufferFull, events);
            return problem::buffer_full(response, self.status.retry_after());
        }
        let body = match self.decompressor.decode(call.coding, request.body) {
            Ok(body) => body,
            Err(refused) => {
                ledger.dropped(Reason::Invalid, 1);
                return undecodable(refused, response);
            }
        };
        let decoded = self.ingest.decode(call, body, self.clock.wall());
        if decoded.rejected() > 0 {
            ledger.dropped(Reason::Invalid, u64::from(decoded.rejected()));
        }
        let rows = u32::try_from(decoded.accepted()).expect("BUG: a body is bounded far below 2^32 events");
        if rows == 0 {
            return decoded.answer(response);
        }
        let admitted_at = self.clock.now();
        let blocks = decoded.row_blocks(admitted_at);
        match self.buffer.admit(self.acceptor, rows, decoded.bytes(), blocks) {
            Ok(()) => decoded.answer(response),
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
        if let Some(services) = &grant.services
            && let Ok(query) = Query::parse(request.query, now)
            && !query.filter.service.as_deref().is_some_and(|service| access::holds(services, service))
        {
            access::forbid_service(query.filter.service.as_deref(), response);
            return Answer::Ready;
        }
        self.line.list(request.query, now, promise, response)
    }

    fn metrics(&self, request: &Request<'_>, response: &mut Response) {
        const OFFERS: [&str; 3] = ["application/json", "text/plain", "application/openmetrics-text"];
        let accept = request.headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok());
        // None of them, or no preference: JSON.
        if accept.and_then(|accept| preferred(accept, &OFFERS)).is_some_and(|offer| offer > 0) {
            self.status.metrics_text(response);
        } else {
            self.status.metrics_json(response);
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
            (Some(grant), Ok(route @ (Route::ListEvents | Route::GetEvent(_)))) => {
                self.query(&route, &grant, request, started, response)
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
        Route::ListEvents | Route::GetEvent(_) => Area::Query,
        Route::Live | Route::Ready => Area::Probe,
        Route::Health => Area::Health,
        Route::HealthBuffer | Route::HealthDatabase | Route::HealthDetailed => Area::HealthDetails,
        Route::Metrics | Route::MetricsPrometheus => Area::Metrics,
        Route::Console | Route::Options(_) => Area::Public,
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
          GET  /health               in one word; more under /health/buffer, /health/database, /health/detailed\n\
          GET  /metrics              figures in JSON; /metrics/prometheus for Prometheus\n",
    );
}
