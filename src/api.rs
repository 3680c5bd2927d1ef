//! One acceptor's handler: sends each request to the stage that answers it, and counts it.
//!
//! Runs on the acceptor and must not block: what needs the database goes to the reader threads.

use std::sync::Arc;

use rand::rngs::StdRng;

use crate::buffer::{Buffer, Full};
use crate::clock::{Clock, Moment};
use crate::http::accept::preferred;
use crate::http::router::{self, Route};
use crate::http::{Answer, Handler, Headers, Method, Promise, Request, Response};
use crate::ingest::{self, Call, Form, Ingest, Limits, problem};
use crate::lifecycle::Phase;
use crate::metrics::{HttpFigures, Reason};
use crate::query::Line;
use crate::status::{Part, Status};

/// Seconds after which another server, or this one restarted, may take what a stopping one refused.
const RESTART_S: u64 = 5;

#[derive(Debug)]
pub struct Api {
    acceptor: usize,
    ingest: Ingest,
    buffer: Arc<Buffer>,
    status: Arc<Status>,
    line: Line,
    figures: Arc<HttpFigures>,
    clock: Clock,
}

impl Api {
    pub fn new(acceptor: usize, limits: Limits, rng: StdRng, status: Arc<Status>, line: Line) -> Self {
        Self {
            acceptor,
            ingest: Ingest::new(limits, rng),
            buffer: status.buffer.clone(),
            figures: status.http.clone(),
            clock: status.clock.clone(),
            status,
            line,
        }
    }

    /// Answers what needs no database.
    fn answer(&mut self, route: &Route<'_>, request: &Request<'_>, response: &mut Response) {
        match route {
            Route::PostEvents => self.post_events(request, response),
            Route::ListEvents | Route::GetEvent(_) => unreachable!("BUG: these wait for the database"),
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

    /// `POST /events`: all of its good events are admitted, or none.
    fn post_events(&mut self, request: &Request<'_>, response: &mut Response) {
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
            Ok(call) => call,
            Err(refused) => return refused.answer(response),
        };
        // Under overload most batches are turned away: not to read them leaves the time to the writer. Only lines can be
        // counted without reading them.
        if call.form == Form::Ndjson && self.buffer.is_full() {
            ledger.dropped(Reason::BufferFull, ingest::count_lines(request.body));
            return problem::buffer_full(response, self.status.retry_after());
        }
        let decoded = self.ingest.decode(call, request.body, self.clock.wall());
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

    /// A promise that counts its answer when it is kept.
    fn counted_promise(&self, request: &Request<'_>, route: usize, started: Moment) -> Promise {
        let (promise, method) = (request.promise(), request.method);
        let (figures, acceptor, clock) = (self.figures.clone(), self.acceptor, self.clock.clone());
        Promise::new(move |response| {
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
        } else {
            self.answer(&route, request, response);
            Answer::Ready
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
