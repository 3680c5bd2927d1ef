//! One acceptor's handler: sends each request to the stage that answers it, and counts it.
//!
//! Runs on the acceptor and must not block: what needs the database goes to the reader threads.

mod gateway;
mod intake;
pub mod router;

use std::sync::Arc;

use crate::access::{self, Area, Gate, Grant, Origins};
use crate::clock::{Clock, Moment};
use crate::console;
use crate::gateway::pages::GatewayPage;
use crate::gateway::pages::Pages;
use crate::health::status::{Part, Status};
use crate::http::accept::preferred;
use crate::http::gzip;
use crate::http::{Answer, Handler, Headers, Method, Promise, Request, Response, Unfinished};
use crate::ingest::Limits;
use crate::journal::Level;
use crate::metrics::HttpFigures;
use crate::query::{Entrance, Format, How, Query};
use gateway::Pushes;
use intake::{Intake, Posted, Upload};
use router::Route;

/// The label of a single event's page.
const GET_EVENT: usize = 1;
/// The label of posts.
const POST_EVENTS: usize = 0;

#[derive(Debug)]
pub struct Api {
    acceptor: usize,
    gate: Gate,
    intake: Intake,
    pushes: Pushes,
    status: Arc<Status>,
    queries: Entrance,
    figures: Arc<HttpFigures>,
    clock: Clock,
}

/// A post that takes more than a turn.
struct Post {
    grant: Grant,
    /// The headers that the gate gave the answer.
    front: Vec<u8>,
    started: Moment,
    upload: Upload,
}

impl Api {
    pub fn new(
        acceptor: usize,
        gate: Gate,
        limits: Limits,
        durability: Level,
        status: Arc<Status>,
        queries: Entrance,
        pages: Pages,
    ) -> Self {
        Self {
            acceptor,
            gate,
            intake: Intake::new(acceptor, limits, durability, status.clock.rng(), status.clone()),
            pushes: Pushes::new(pages, limits.plain_bytes_max),
            figures: status.http.clone(),
            clock: status.clock.clone(),
            status,
            queries,
        }
    }

    /// Answers what needs no database.
    fn answer(&mut self, route: &Route<'_>, grant: &Grant, request: &Request<'_>, response: &mut Response) {
        match route {
            Route::PostEvents | Route::ListEvents | Route::GetEvent(_) | Route::Stats | Route::Gateway(_) => {
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

    /// What to say of a post. The first `front` bytes of the answer's headers are the gate's.
    fn posted(
        &mut self,
        posted: Posted,
        grant: Grant,
        front: usize,
        started: Moment,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Answer {
        match posted {
            Posted::Answered | Posted::Admitted(Level::Memory) => Answer::Ready,
            Posted::Admitted(level @ (Level::Written | Level::Synced)) => {
                // Whatever the answer comes to be, it begins with what the gate has to say.
                let front = response.headers.drain(..front).collect();
                let promise = self.counted_promise(request, &grant, front, POST_EVENTS, started);
                self.intake.answer_when(level, promise, response);
                Answer::Later
            }
            Posted::More(upload) => {
                let front = response.headers[..front].to_vec();
                Answer::More(Box::new(Post { grant, front, started, upload }))
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
            return self.queries.line.find(id, promise, response);
        }
        let now = self.clock.wall();
        let of_stats = *route == Route::Stats;
        let format = if of_stats { None } else { exported(request.headers) };
        if let Some(services) = &grant.services {
            let filter = if of_stats {
                Query::parse_stats(request.query, now)
            } else if format.is_some() {
                Query::parse_export(request.query, now).map(|query| query.filter)
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
            self.queries.line.stats(request.query, now, promise, response)
        } else if let Some(format) = format {
            let how = How {
                format,
                gzipped: gzip::is_accepted(request.headers),
                head_only: request.method == Method::Head,
            };
            self.queries.exports.start(request.query, now, how, promise, response)
        } else {
            self.queries.line.list(request.query, now, promise, response)
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
            (Some(grant), Ok(Route::Gateway(page))) => {
                self.gateway(&page, &grant, request, (index, started), response)
            }
            (Some(grant), Ok(Route::PostEvents)) => {
                let front = response.headers.len();
                let posted = self.intake.post(grant.services.as_deref(), request, response);
                self.posted(posted, grant, front, started, request, response)
            }
            (Some(grant), Ok(route)) => {
                self.answer(&route, &grant, request, response);
                if request.method == Method::Get && gzip::is_accepted(request.headers) {
                    gzip::compress(response, gzip::ON_ACCEPTOR_MAX);
                }
                Answer::Ready
            }
        };
        if matches!(answer, Answer::Ready) {
            self.count(request.method, index, response.status, started);
        }
        answer
    }

    fn go_on(&mut self, unfinished: Unfinished, request: &Request<'_>, response: &mut Response) -> Answer {
        let post = unfinished.downcast::<Post>().expect("BUG: only posts are left unfinished");
        let Post { grant, front, started, upload } = *post;
        response.headers.extend_from_slice(&front);
        let posted = self.intake.go_on(upload, grant.services.as_deref(), request, response);
        let answer = self.posted(posted, grant, front.len(), started, request, response);
        if matches!(answer, Answer::Ready) {
            self.count(request.method, POST_EVENTS, response.status, started);
        }
        answer
    }

    fn turn_ended(&mut self) {
        self.intake.turn_ended();
        self.pushes.turn_ended();
    }

    /// The engine refused a request that never came to be one.
    fn refused(&mut self, headers: Headers<'_>, response: &mut Response) {
        self.gate.mark(headers, response);
        self.count(Method::Other, router::OTHER, response.status, self.clock.now());
    }
}

/// What events are exported in, where a page of JSON is not what the client likes best.
fn exported(headers: Headers<'_>) -> Option<Format> {
    const OFFERS: [&str; 3] = ["application/json", "application/x-ndjson", "text/csv"];
    let accept = headers.get("Accept").and_then(|accept| str::from_utf8(accept).ok())?;
    match preferred(accept, &OFFERS)? {
        1 => Some(Format::Ndjson),
        2 => Some(Format::Csv),
        _ => None,
    }
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
        Route::Gateway(page) => match page {
            GatewayPage::Push | GatewayPage::Group(_) => Area::Ingest,
            GatewayPage::Pushed | GatewayPage::Groups | GatewayPage::Status => Area::Metrics,
            GatewayPage::Healthy | GatewayPage::Ready => Area::Probe,
            GatewayPage::Remove | GatewayPage::Wipe => Area::Admin,
        },
        Route::Console(_) | Route::Options(_) => Area::Public,
    }
}
