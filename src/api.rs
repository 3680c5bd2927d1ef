//! The request handler of one acceptor: authorizes each request, dispatches it by route, and
//! records it in the HTTP metrics.
//!
//! It runs on the acceptor thread and must not block. Requests that need the database go to the
//! reader threads.

mod gateway;
mod intake;
mod openapi;
pub mod router;

use std::sync::Arc;

use crate::access::{Gate, Grant, Origins, RouteClass};
use crate::clock::{Clock, Moment};
use crate::console;
use crate::gateway::handlers::GatewayHandlers;
use crate::health::status::{HealthPart, Status};
use crate::http::content_negotiation::negotiate;
use crate::http::gzip;
use crate::http::problem::{self, ProblemKind};
use crate::http::{
    Continuation, Handler, HandlerResult, HeadResult, Headers, Method, Promise, Refusal, Request, Response,
};
use crate::ingest::{self, IngestLimits, InputPath, NDJSON_TYPES, RefusalFormat};
use crate::journal::Durability;
use crate::metrics::HttpMetrics;
use crate::metrics::text_format::ExpositionFormat;
use crate::query::{ExportFormat, ExportOptions, QueryRequest, QueryService};
use gateway::PushContext;
use intake::{Intake, IntakeOutcome, LongBody};
use router::{MatchedRoute, Route};

#[derive(Debug)]
pub struct ApiHandler {
    acceptor: usize,
    gate: Gate,
    intake: Intake,
    push_context: PushContext,
    status: Arc<Status>,
    queries: QueryService,
    http_metrics: Arc<HttpMetrics>,
    clock: Clock,
}

/// The state of a request that is not finished in the turn of its header.
enum PendingRequest {
    /// Its header is accepted, and its body has not arrived.
    Accepted(AcceptedHead),
    Post(PendingPost),
}

/// The decisions on a request's header, so that it is authorized and counted against the rate limits
/// once.
struct AcceptedHead {
    grant: Grant,
    /// The response headers that [`Gate::authorize`] wrote.
    policy_headers: Vec<u8>,
    /// Index in [`router::LABELS`].
    label: usize,
}

/// The state of a post of events that needs more than one turn of the event loop.
struct PendingPost {
    grant: Grant,
    /// The response headers that [`Gate::authorize`] wrote.
    policy_headers: Vec<u8>,
    /// Index in [`router::LABELS`].
    label: usize,
    started: Moment,
    path: InputPath,
    body: LongBody,
}

impl ApiHandler {
    pub fn new(
        acceptor: usize,
        gate: Gate,
        limits: IngestLimits,
        durability: Durability,
        status: Arc<Status>,
        queries: QueryService,
        pages: GatewayHandlers,
    ) -> Self {
        Self {
            acceptor,
            gate,
            intake: Intake::new(acceptor, limits, durability, status.clone(), queries.tails.tap()),
            push_context: PushContext::new(pages, limits.decompressed_bytes_max),
            http_metrics: status.http.clone(),
            clock: status.clock.clone(),
            status,
            queries,
        }
    }

    /// Whether the header of an authorized request is acceptable for its route. Writes a refusal if
    /// not.
    fn accepts_head(
        &self,
        route: &Route<'_>,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
    ) -> bool {
        if let Route::Gateway(page) = route {
            return self.accepts_gateway_head(page, grant, request, response);
        }
        // The bodies of all other routes are ignored.
        let Route::Post(path) = *route else { return true };
        accepts_ids(grant, request, response) && self.intake.accepts_head(path, request, response)
    }

    /// Serves an authorized request whose body has arrived.
    #[inline]
    fn serve(
        &mut self,
        route: Route<'_>,
        grant: Grant,
        request: &Request<'_>,
        (label, started): (usize, Moment),
        response: &mut Response,
    ) -> HandlerResult {
        match route {
            Route::ListEvents | Route::TailEvents | Route::GetEvent(_) | Route::Stats | Route::Dead(_) => {
                return self.query(&route, &grant, request, (label, started), response);
            }
            Route::Gateway(page) => {
                return self.handle_gateway(&page, &grant, request, (label, started), response);
            }
            Route::Post(_) if !accepts_ids(&grant, request, response) => return HandlerResult::Done,
            Route::Post(path) => {
                let policy_headers_len = response.headers.len();
                let services = grant.services.as_deref();
                let outcome = self.intake.post((path, started), services, request, response);
                return self.finish_post(
                    (path, outcome),
                    grant,
                    policy_headers_len,
                    (label, started),
                    request,
                    response,
                );
            }
            Route::Live => Status::live(response),
            Route::Ready => self.status.ready(response),
            Route::Health if !grant.metrics => self.status.health(HealthPart::StatusOnly, response),
            Route::Health => self.status.health(HealthPart::Overall, response),
            Route::HealthBuffer => self.status.health(HealthPart::Buffer, response),
            Route::HealthBusiness => self.status.health_business(response),
            Route::HealthDatabase => self.status.health(HealthPart::Database, response),
            Route::HealthDetailed => self.status.health(HealthPart::Detailed, response),
            Route::Metrics => self.metrics(request, response),
            Route::MetricsPrometheus => self.status.metrics_exposition(ExpositionFormat::Text, response),
            Route::Console(page) => console::answer(page, request.headers, response),
            Route::OpenApi => {
                let document = openapi::document(self.clock.wall());
                console::answer_openapi(document.as_bytes(), request.headers, response);
            }
            Route::ConsoleAsset(path) => console::assets::answer(&path, request.headers, response),
            Route::SplunkHealth => {
                let phase = self.status.lifecycle.phase();
                ingest::write_splunk_health(phase, self.status.buffer.is_full(), response);
            }
            Route::Options(allow) => {
                // Docker's Splunk driver asks before it sends, and takes 200 alone for a yes.
                response.status = if request.path.starts_with(router::SPLUNK) { 200 } else { 204 };
                response.header("Allow", allow);
                if request.path == "/events" {
                    self.allow_webhook(request, response);
                }
                Origins::preflight(grant.cors, request.headers, allow, response);
            }
        }
        // HEAD has the header fields of GET (RFC 9110, 9.3.2).
        if matches!(request.method, Method::Get | Method::Head) {
            let is_accepted = gzip::is_accepted(request.headers);
            gzip::negotiate(is_accepted, response, gzip::ACCEPTOR_GZIP_BYTES_MAX);
        }
        HandlerResult::Done
    }

    /// Turns the outcome of a post of events into a handler result. The first `policy_headers_len`
    /// bytes of the response headers are those that the gate wrote.
    fn finish_post(
        &mut self,
        (path, outcome): (InputPath, IntakeOutcome),
        grant: Grant,
        policy_headers_len: usize,
        (label, started): (usize, Moment),
        request: &Request<'_>,
        response: &mut Response,
    ) -> HandlerResult {
        match outcome {
            IntakeOutcome::Answered | IntakeOutcome::Admitted(Durability::Memory) => HandlerResult::Done,
            IntakeOutcome::Admitted(level @ (Durability::Written | Durability::Synced)) => {
                // The promise prepends the policy headers, also to the response that reports a
                // failure.
                let policy_headers = response.headers.drain(..policy_headers_len).collect();
                let promise = self.counted_promise(request, policy_headers, (label, started));
                let refusal_format = RefusalFormat::of(path, request.headers);
                self.intake.answer_on_durable(level, refusal_format, promise, response);
                HandlerResult::Pending
            }
            IntakeOutcome::Yield(body) => {
                let policy_headers = response.headers[..policy_headers_len].to_vec();
                let post = PendingPost { grant, policy_headers, label, started, path, body };
                HandlerResult::Yield(Box::new(PendingRequest::Post(post)))
            }
        }
    }

    /// Answers a sender of CloudEvents that asks whether it may deliver here (HTTP 1.1 Web Hooks for
    /// Event Delivery, 4). Any may that has a token, where tokens are needed.
    fn allow_webhook(&self, request: &Request<'_>, response: &mut Response) {
        if request.headers.get("WebHook-Request-Origin").is_none() {
            return;
        }
        response.header("WebHook-Allowed-Origin", "*");
        match self.gate.requests_per_minute() {
            Some(rate) => response.header("WebHook-Allowed-Rate", rate),
            None => response.header("WebHook-Allowed-Rate", "*"),
        }
    }

    fn count(&self, method: Method, route: usize, status: u16, started: Moment) {
        self.http_metrics.record(self.acceptor, method, route, status, self.clock.now().since(started));
    }

    /// A promise that, when it is fulfilled, compresses the response, prepends
    /// `headers` to its headers, and records it in the HTTP metrics.
    fn counted_promise(
        &self,
        request: &Request<'_>,
        headers: Vec<u8>,
        (label, started): (usize, Moment),
    ) -> Promise {
        let (promise, method) = (request.promise(), request.method);
        let (http_metrics, acceptor, clock) = (self.http_metrics.clone(), self.acceptor, self.clock.clone());
        let is_gzip_accepted = gzip::is_accepted(request.headers);
        Promise::with_waker(move |mut response| {
            // This runs on a reader thread, so the size is not limited as it is on the acceptor.
            gzip::negotiate(is_gzip_accepted, &mut response, usize::MAX);
            response.prepend_headers(headers);
            http_metrics.record(acceptor, method, label, response.status, clock.now().since(started));
            promise.fulfil_without_wake(response)
        })
    }

    /// Queues a database query or opens a tail, or refuses it when the token may not read the services it selects.
    fn query(
        &self,
        route: &Route<'_>,
        grant: &Grant,
        request: &Request<'_>,
        (label, started): (usize, Moment),
        response: &mut Response,
    ) -> HandlerResult {
        if *route == Route::ListEvents {
            response.vary("Accept");
        }
        let headers = response.headers.clone();
        let promise = || self.counted_promise(request, headers, (label, started));
        if let Route::GetEvent(id) = route {
            return self.queries.queue.find(id, grant.services.clone(), promise, response);
        }
        let query = QueryRequest {
            query: request.query,
            now: self.clock.wall(),
            services: grant.services.as_deref(),
        };
        if *route == Route::TailEvents {
            let options = (request.method == Method::Head, request.headers.get("Last-Event-ID"));
            return self.queries.tails.start(query, options, &self.queries.queue, response);
        }
        if let Route::Dead(operation) = route {
            return operation.handle(&self.queries.queue, query, promise, response);
        }
        if *route == Route::Stats {
            return self.queries.queue.stats(query, promise, response);
        }
        match export_format(request.headers) {
            Some((format, content_type)) => {
                let options = ExportOptions {
                    format,
                    content_type,
                    gzipped: gzip::is_accepted(request.headers),
                    head_only: request.method == Method::Head,
                };
                self.queries.exports.start(query, options, promise, response)
            }
            None => self.queries.queue.list(query, promise, response),
        }
    }

    fn metrics(&self, request: &Request<'_>, response: &mut Response) {
        const OFFERS: [&str; 3] = ["application/json", "text/plain", "application/openmetrics-text"];
        response.vary("Accept");
        match negotiate(request.headers, &OFFERS) {
            Some(2) => self.status.metrics_exposition(ExpositionFormat::OpenMetrics, response),
            Some(1) => self.status.metrics_exposition(ExpositionFormat::Text, response),
            // JSON is the default.
            Some(_) | None => self.status.metrics_json(response),
        }
    }
}

/// Whether the client of a `POST /events` may choose the ids of events, if it asks for that. An id of
/// its choice could take the place of another client's event. Writes a refusal if not.
fn accepts_ids(grant: &Grant, request: &Request<'_>, response: &mut Response) -> bool {
    let is_allowed = request.query.is_empty()
        || (grant.admin && grant.services.is_none())
        || ingest::keeps_ids(request.query) != Ok(true);
    if !is_allowed {
        let detail = "ids=keep needs a token with the scope admin that is not restricted to services";
        problem::write(response, ProblemKind::Forbidden, detail);
    }
    is_allowed
}

/// Gives a refusal the form that the clients of the path read.
#[cold]
fn write_refusal_as_expected(request: &Request<'_>, response: &mut Response) {
    if let Ok(MatchedRoute { route: Route::Post(path), .. }) = router::route(request.method, request.path) {
        RefusalFormat::of(path, request.headers).apply(response);
    }
}

impl Handler for ApiHandler {
    fn check_head(&mut self, request: &Request<'_>, response: &mut Response) -> HeadResult {
        let started = self.clock.now();
        let found = router::route(request.method, request.path);
        let (label, class) = label_and_class(&found);
        let grant = self.gate.authorize(class, request, started, response);
        let accepted = match (grant, found) {
            (None, _) => None,
            (Some(_), Err(refusal)) => {
                refusal.write(response);
                None
            }
            (Some(grant), Ok(found)) => {
                self.accepts_head(&found.route, &grant, request, response).then_some(grant)
            }
        };
        let Some(grant) = accepted else {
            write_refusal_as_expected(request, response);
            self.count(request.method, label, response.status, started);
            return HeadResult::Refused;
        };
        let head = AcceptedHead { grant, policy_headers: response.headers.clone(), label };
        HeadResult::Proceed(Some(Box::new(PendingRequest::Accepted(head))))
    }

    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> HandlerResult {
        let started = self.clock.now();
        let found = router::route(request.method, request.path);
        let (label, class) = label_and_class(&found);
        let grant = self.gate.authorize(class, request, started, response);
        let result = match (grant, found) {
            (None, _) => HandlerResult::Done,
            (Some(_), Err(refusal)) => {
                refusal.write(response);
                HandlerResult::Done
            }
            (Some(grant), Ok(found)) => self.serve(found.route, grant, request, (label, started), response),
        };
        if matches!(result, HandlerResult::Done) {
            if response.status >= 400 {
                write_refusal_as_expected(request, response);
            }
            self.count(request.method, label, response.status, started);
        }
        result
    }

    fn resume(
        &mut self,
        continuation: Continuation,
        request: &Request<'_>,
        response: &mut Response,
    ) -> HandlerResult {
        let pending =
            continuation.downcast::<PendingRequest>().expect("BUG: every continuation is a pending request");
        let (label, started, result) = match *pending {
            PendingRequest::Accepted(AcceptedHead { grant, policy_headers, label }) => {
                let started = self.clock.now();
                response.headers.extend_from_slice(&policy_headers);
                let found = router::route(request.method, request.path);
                let route = found.expect("BUG: the header was accepted with this route").route;
                (label, started, self.serve(route, grant, request, (label, started), response))
            }
            PendingRequest::Post(PendingPost { grant, policy_headers, label, started, path, body }) => {
                response.headers.extend_from_slice(&policy_headers);
                let outcome = self.intake.resume((path, body), grant.services.as_deref(), request, response);
                let (headers_len, counted) = (policy_headers.len(), (label, started));
                let result =
                    self.finish_post((path, outcome), grant, headers_len, counted, request, response);
                (label, started, result)
            }
        };
        if matches!(result, HandlerResult::Done) {
            if response.status >= 400 {
                write_refusal_as_expected(request, response);
            }
            self.count(request.method, label, response.status, started);
        }
        result
    }

    fn on_turn_end(&mut self) {
        self.intake.on_turn_end();
        self.push_context.on_turn_end();
    }

    /// The HTTP engine has rejected a request that it could not parse or read.
    fn on_refused(&mut self, headers: Headers<'_>, response: &mut Response) {
        self.gate.apply_cors(headers, response);
        self.count(Method::Other, router::OTHER, response.status, self.clock.now());
    }
}

/// The index of the label in [`router::LABELS`], and the class. Requests without a route have one too.
fn label_and_class(found: &Result<MatchedRoute<'_>, Refusal>) -> (usize, RouteClass) {
    found.as_ref().map_or((router::OTHER, RouteClass::Public), |found| (found.label, found.class))
}

/// The export format and its content type, if `Accept` prefers one to JSON. Every content type of an
/// NDJSON body is known, and the response has the one that was asked for.
fn export_format(headers: Headers<'_>) -> Option<(ExportFormat, &'static str)> {
    const OFFERS: [&str; 5] =
        ["application/json", "text/csv", NDJSON_TYPES[0], NDJSON_TYPES[1], NDJSON_TYPES[2]];
    match negotiate(headers, &OFFERS)? {
        0 => None,
        1 => Some((ExportFormat::Csv, "text/csv; charset=utf-8; header=present")),
        nth => Some((ExportFormat::Ndjson, OFFERS[nth])),
    }
}
