//! Handles gateway requests on an acceptor: parses a request, calls the shared [`Gateway`], writes
//! the response. Must not block.

use std::borrow::Cow;
use std::sync::Arc;

use super::forward::ForwardRequest;
use super::grouping_key::GroupingKey;
use super::page_format::{PageFormat, is_delimited_family};
use super::push::{self, ParsePushError};
use super::push_thread::PushQueue;
use super::request_head::{GroupHead, PushHead, RequestError, write_group_refusal};
use super::responses::{LOG_RETRY_S, refuse_service, write_push_response};
use super::scrape::{ScrapeQueue, ScrapeRequest};
use super::validate::{FAMILIES_MAX, LABELS_MAX, ParseLimits};
use super::{Gateway, PushMetricsError, api_v1, idempotency, protobuf, text};
use crate::access::{Grant, allows_service};
use crate::event::Timestamp;
use crate::http::gzip;
use crate::http::percent::decode;
use crate::http::problem::{self, ProblemKind};
use crate::http::{ContentCoding, Decompressor};
use crate::http::{HandlerResult, Headers, Method, Promise, Request, Response};
use crate::journal::Durability;
use crate::metrics::gateway::RefusalReason;

/// `Retry-After` while the queue of the push thread is full: it handles a long push in less.
const QUEUE_RETRY_S: u64 = 1;
/// A plain body up to this size is handled in the acceptor's turn, in less than a millisecond; other
/// bodies on the push thread.
const INLINE_BODY_BYTES_MAX: usize = 32 * 1024;
/// The same for the series of the group that a push may replace.
const INLINE_SERIES_MAX: usize = 1000;

/// A route of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayRoute<'a> {
    /// `POST /metrics/push`
    Push,
    /// PUT, POST or DELETE of `/metrics/job/…`; the percent-decoded path after `/metrics/`.
    Group(Cow<'a, str>),
    /// `GET /metrics/pushed`
    Scrape,
    /// `DELETE /metrics/pushed`
    DeleteSeries,
    /// `DELETE /api/v1/groups`
    DeleteGroups,
    Healthy,
    Ready,
    /// `GET /api/v1/metrics`
    Groups,
    Status,
    Wipe,
}

/// When the response may be sent.
#[derive(Debug)]
pub enum PushOutcome {
    /// Now.
    Ready,
    /// Once all changes so far have reached this level.
    OnDurable(Durability),
}

#[derive(Clone, Debug)]
pub struct GatewayHandlers {
    gateway: Arc<Gateway>,
    scrape_queue: ScrapeQueue,
    /// The queue of long requests; none on the push thread itself.
    push_queue: Option<PushQueue>,
    /// The level if the request has no header `Durability`.
    pub(super) durability: Durability,
    started_at: Timestamp,
    /// The settings for `/api/v1/status`, without secrets.
    settings: Arc<[String]>,
}

impl GatewayHandlers {
    pub fn new(
        gateway: Arc<Gateway>,
        scrape_queue: ScrapeQueue,
        durability: Durability,
        started_at: Timestamp,
        settings: Arc<[String]>,
    ) -> Self {
        Self { gateway, scrape_queue, push_queue: None, durability, started_at, settings }
    }

    /// The handlers of an acceptor, which pass long requests to the push thread.
    #[must_use]
    pub fn with_queue(&self, queue: PushQueue) -> Self {
        Self { push_queue: Some(queue), ..self.clone() }
    }

    pub fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The request for the scrape thread if that thread must render the response.
    pub fn scrape_request(page: &GatewayRoute<'_>, headers: Headers<'_>) -> Option<ScrapeRequest> {
        match page {
            GatewayRoute::Scrape => Some(ScrapeRequest::Exposition {
                format: PageFormat::negotiated(headers),
                gzipped: gzip::is_accepted(headers),
            }),
            GatewayRoute::Groups => Some(ScrapeRequest::Groups { gzipped: gzip::is_accepted(headers) }),
            GatewayRoute::Push
            | GatewayRoute::Group(_)
            | GatewayRoute::DeleteSeries
            | GatewayRoute::DeleteGroups
            | GatewayRoute::Healthy
            | GatewayRoute::Ready
            | GatewayRoute::Status
            | GatewayRoute::Wipe => None,
        }
    }

    /// Submits a request to the scrape thread, or answers 503 if too many are running. `later`
    /// creates the promise.
    pub fn submit_scrape(
        &self,
        asked: ScrapeRequest,
        response: &mut Response,
        later: impl FnOnce() -> Promise,
    ) -> HandlerResult {
        if self.scrape_queue.submit(asked, later) {
            return HandlerResult::Pending;
        }
        problem::write_retryable(response, ProblemKind::QueriesFull, "too many scrapes are running", 1);
        HandlerResult::Done
    }

    /// The queue of the push thread if the request may take longer than a turn of an acceptor.
    pub fn long_push_queue(&self, page: &GatewayRoute<'_>, request: &Request<'_>) -> Option<&PushQueue> {
        let is_long_body = || {
            request.body.len() > INLINE_BODY_BYTES_MAX || request.headers.get("Content-Encoding").is_some()
        };
        let is_long = match page {
            GatewayRoute::Push => is_long_body(),
            GatewayRoute::Group(path) => {
                is_long_body()
                    || GroupingKey::parse(path)
                        .is_ok_and(|key| self.gateway.group_series(&key) > INLINE_SERIES_MAX)
            }
            GatewayRoute::DeleteSeries | GatewayRoute::DeleteGroups | GatewayRoute::Wipe => true,
            GatewayRoute::Scrape
            | GatewayRoute::Healthy
            | GatewayRoute::Ready
            | GatewayRoute::Groups
            | GatewayRoute::Status => false,
        };
        self.push_queue.as_ref().filter(|_| is_long)
    }

    /// Passes a request to the push thread, or answers 503 if its queue is full. `later` creates the
    /// promise.
    pub fn submit_push(
        queue: &PushQueue,
        page: &GatewayRoute<'_>,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
        later: impl FnOnce() -> Promise,
    ) -> HandlerResult {
        if queue.submit(page, grant, request, later) {
            return HandlerResult::Pending;
        }
        let detail = "too many long pushes are waiting";
        problem::write_retryable(response, ProblemKind::Unavailable, detail, QUEUE_RETRY_S);
        HandlerResult::Done
    }

    /// Handles the routes that need no other thread.
    pub fn handle(
        &self,
        page: &GatewayRoute<'_>,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> PushOutcome {
        match page {
            GatewayRoute::Push => self.handle_push(grant, request, decompressor, response),
            GatewayRoute::Group(path) => self.handle_group(path, grant, request, decompressor, response),
            GatewayRoute::DeleteSeries => self.handle_delete_series(grant, request, response),
            GatewayRoute::DeleteGroups => self.handle_delete_groups(grant, request, response),
            GatewayRoute::Wipe => self.handle_wipe(grant, request, response),
            GatewayRoute::Status => {
                response.content_type = "application/json";
                response.body = api_v1::status_json(self.started_at, &self.settings).into_bytes();
                PushOutcome::Ready
            }
            GatewayRoute::Healthy | GatewayRoute::Ready | GatewayRoute::Scrape | GatewayRoute::Groups => {
                unreachable!("BUG: the caller handles these routes")
            }
        }
    }

    /// Finishes the response to an applied change.
    fn acknowledge(level: Durability, response: &mut Response) -> PushOutcome {
        response.header("Durability", level.name());
        if level == Durability::Memory { PushOutcome::Ready } else { PushOutcome::OnDurable(level) }
    }

    /// `POST /metrics/push`
    fn handle_push(
        &self,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> PushOutcome {
        let parsed = self.parse_push_request(grant, request, decompressor);
        decompressor.release();
        let (level, key, pushed) = match parsed {
            Ok(request) => request,
            Err(error) => {
                self.write_push_refusal(error, response);
                return PushOutcome::Ready;
            }
        };
        match self.gateway.push_aggregated(pushed, key) {
            Ok(aggregated) if aggregated.counts.accepted == 0 => {
                problem::write_invalid(response, "no metric was accepted", &aggregated.errors);
                PushOutcome::Ready
            }
            Ok(aggregated) => {
                write_push_response(&aggregated, response);
                Self::acknowledge(level, response)
            }
            Err(_log) => {
                problem::write_journal_unavailable(response, LOG_RETRY_S);
                PushOutcome::Ready
            }
        }
    }

    fn parse_push_request(
        &self,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
    ) -> Result<(Durability, Option<idempotency::KeyHash>, push::ParsedPush), RequestError> {
        let PushHead { level, key, coding } = self.push_head(grant, request.headers)?;
        let body = decompress_body(coding, request.body, decompressor)?;
        let pushed = push::parse(body, grant.services.as_deref()).map_err(|error| match error {
            ParsePushError::TooManyMetrics => RequestError::Problem(ProblemKind::TooLarge, error.to_string()),
            ParsePushError::NotUtf8
            | ParsePushError::Syntax { .. }
            | ParsePushError::NotAnObject
            | ParsePushError::UnknownField(_)
            | ParsePushError::Empty => RequestError::Field("metrics", error.to_string()),
        })?;
        Ok((level, key, pushed))
    }

    /// Pushgateway's PUT, POST and DELETE. Responses are Pushgateway's: plain text, 200 for a push,
    /// 202 for a deletion.
    fn handle_group(
        &self,
        path: &str,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> PushOutcome {
        let result = self.apply_group_request(path, grant, request, decompressor, response);
        decompressor.release();
        match result {
            Ok(level) => Self::acknowledge(level, response),
            Err(refusal) => {
                write_group_refusal(refusal, response);
                PushOutcome::Ready
            }
        }
    }

    fn apply_group_request(
        &self,
        path: &str,
        grant: &Grant,
        request: &Request<'_>,
        decompressor: &mut Decompressor,
        response: &mut Response,
    ) -> Result<Durability, (u16, String)> {
        let invalid = |detail: String| {
            self.gateway.metrics.record_refused(RefusalReason::Invalid, 1);
            (400, detail)
        };
        let headers = request.headers;
        let GroupHead { grouping_key, level, coding } = self.group_head(path, grant, request)?;
        let forwarded = |method| {
            let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
            ForwardRequest {
                method,
                path: request.path.to_owned(),
                content_type: text("Content-Type"),
                content_encoding: text("Content-Encoding"),
                body: if method == "DELETE" { Vec::new() } else { request.body.to_vec() },
            }
        };
        let to_response = |error: PushMetricsError| match error {
            PushMetricsError::LogUnavailable => (503, error.to_string()),
            PushMetricsError::Invalid(_) | PushMetricsError::Conflict(_) => {
                (400, format!("pushed metrics are invalid or inconsistent with existing metrics: {error}"))
            }
        };
        if request.method == Method::Delete {
            self.gateway.delete_group(&grouping_key, || forwarded("DELETE")).map_err(to_response)?;
            response.status = 202;
            return Ok(level);
        }
        let body = decompress_body(coding, request.body, decompressor).map_err(RequestError::into_parts)?;
        let limits = ParseLimits { families_max: FAMILIES_MAX, samples_max: self.gateway.push_series_max() };
        let parsed = if is_protobuf(headers) {
            protobuf::parse(body, limits).map_err(|error| invalid(error.to_string()))?
        } else {
            text::parse(body, limits).map_err(|error| invalid(error.to_string()))?
        };
        let replace = request.method == Method::Put;
        let method = if replace { "PUT" } else { "POST" };
        self.gateway.push_group(grouping_key, parsed, replace, || forwarded(method)).map_err(to_response)?;
        Ok(level)
    }

    /// `DELETE /metrics/pushed?name=NAME&LABEL=VALUE`
    fn handle_delete_series(
        &self,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
    ) -> PushOutcome {
        let wanted = query_labels(request.query).and_then(|mut labels| {
            let at = labels.iter().position(|(name, value)| name == "name" && !value.is_empty());
            let missing = "is required: the metric whose series are deleted";
            let at = at.ok_or_else(|| RequestError::Field("name", missing.to_owned()))?;
            let (_, name) = labels.swap_remove(at);
            Ok((labels, name))
        });
        self.delete_labelled((grant, request, response), wanted, |gateway, labels, name| {
            gateway.delete_series(&name, labels)
        })
    }

    /// `DELETE /api/v1/groups?LABEL=VALUE`
    fn handle_delete_groups(
        &self,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
    ) -> PushOutcome {
        let wanted = query_labels(request.query).and_then(|labels| {
            if labels.iter().all(|(_, value)| value.is_empty()) {
                let detail = "must have a label and its value; PUT /api/v1/admin/wipe deletes all groups";
                return Err(RequestError::Field("query", detail.to_owned()));
            }
            Ok((labels, ()))
        });
        self.delete_labelled((grant, request, response), wanted, |gateway, labels, ()| {
            gateway.delete_groups(labels)
        })
    }

    /// Deletes what has the labels of a query, if that is valid. A token with services may delete what
    /// has one of them as its label `job`.
    fn delete_labelled<T>(
        &self,
        (grant, request, response): (&Grant, &Request<'_>, &mut Response),
        wanted: Result<(Vec<(String, String)>, T), RequestError>,
        delete: impl FnOnce(&Gateway, &[(String, String)], T) -> Result<usize, PushMetricsError>,
    ) -> PushOutcome {
        let (labels, more) = match wanted {
            Ok(wanted) => wanted,
            Err(error) => {
                error.write_to(response);
                return PushOutcome::Ready;
            }
        };
        if !may_delete(grant, &labels) {
            refuse_service(response);
            return PushOutcome::Ready;
        }
        self.apply(
            request,
            response,
            |gateway| delete(gateway, &labels, more),
            |deleted, response| {
                response.content_type = "application/json";
                response.body = format!("{{\"deleted\":{deleted}}}").into_bytes();
            },
        )
    }

    /// `PUT /api/v1/admin/wipe`, for tokens of all services.
    fn handle_wipe(&self, grant: &Grant, request: &Request<'_>, response: &mut Response) -> PushOutcome {
        if grant.services.is_some() {
            refuse_service(response);
            return PushOutcome::Ready;
        }
        self.apply(request, response, Gateway::wipe, |(), response| response.status = 202)
    }

    /// Applies a change and calls `write` to write the response. A request with an invalid header
    /// changes nothing.
    fn apply<T>(
        &self,
        request: &Request<'_>,
        response: &mut Response,
        change: impl FnOnce(&Gateway) -> Result<T, PushMetricsError>,
        write: impl FnOnce(T, &mut Response),
    ) -> PushOutcome {
        let level = match self.requested_level(request.headers) {
            Ok(level) => level,
            Err(error) => {
                error.write_to(response);
                return PushOutcome::Ready;
            }
        };
        match change(&self.gateway) {
            Ok(value) => {
                write(value, response);
                Self::acknowledge(level, response)
            }
            Err(_log) => {
                problem::write_journal_unavailable(response, LOG_RETRY_S);
                PushOutcome::Ready
            }
        }
    }
}

impl GatewayRoute<'_> {
    /// The route with a copy of its path.
    #[must_use]
    pub fn to_static(&self) -> GatewayRoute<'static> {
        match self {
            Self::Push => GatewayRoute::Push,
            Self::Group(path) => GatewayRoute::Group(Cow::Owned(path.clone().into_owned())),
            Self::Scrape => GatewayRoute::Scrape,
            Self::DeleteSeries => GatewayRoute::DeleteSeries,
            Self::DeleteGroups => GatewayRoute::DeleteGroups,
            Self::Healthy => GatewayRoute::Healthy,
            Self::Ready => GatewayRoute::Ready,
            Self::Groups => GatewayRoute::Groups,
            Self::Status => GatewayRoute::Status,
            Self::Wipe => GatewayRoute::Wipe,
        }
    }
}

/// The names and values of a query.
fn query_labels(query: &str) -> Result<Vec<(String, String)>, RequestError> {
    let mut wanted = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Ok(name), Ok(value)) = (decode(name), decode(value)) else {
            return Err(RequestError::Field("query", "has invalid percent-encoding".to_owned()));
        };
        if wanted.len() > LABELS_MAX {
            return Err(RequestError::Field("query", format!("must have at most {LABELS_MAX} labels")));
        }
        wanted.push((name.into_owned(), value.into_owned()));
    }
    Ok(wanted)
}

/// Returns whether a token may delete what has these labels.
fn may_delete(grant: &Grant, labels: &[(String, String)]) -> bool {
    let is_allowed = |services: &[Box<str>]| {
        labels.iter().any(|(name, value)| name == "job" && allows_service(services, value))
    };
    grant.services.as_deref().is_none_or(is_allowed)
}

/// The decompressed body.
fn decompress_body<'a>(
    coding: ContentCoding,
    body: &'a [u8],
    decompressor: &'a mut Decompressor,
) -> Result<&'a [u8], RequestError> {
    decompressor.decode(coding, body).map_err(|error| {
        let kind = if error.is_too_large() { ProblemKind::TooLarge } else { ProblemKind::Invalid };
        RequestError::Problem(kind, error.to_string())
    })
}

fn is_protobuf(headers: Headers<'_>) -> bool {
    headers.get("Content-Type").and_then(|kind| str::from_utf8(kind).ok()).is_some_and(is_delimited_family)
}
