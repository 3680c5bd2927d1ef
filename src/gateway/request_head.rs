//! What the header of a request to the gateway decides, before its body has arrived.

use super::grouping_key::GroupingKey;
use super::handlers::{GatewayHandlers, GatewayRoute};
use super::responses::{LOG_RETRY_S, write_plain_text};
use super::{PushMetricsError, idempotency};
use crate::access::{Grant, allows_service};
use crate::http::problem::{self, FieldError, FieldErrors, ProblemKind};
use crate::http::{ContentCoding, Headers, Method, Request, Response};
use crate::ingest::ENCODINGS;
use crate::ingest::idempotency::HeaderKey;
use crate::journal::Durability;
use crate::metrics::gateway::RefusalReason;

/// The path of [`GatewayRoute::Push`].
const PUSH_PATH: &str = "/metrics/push";
/// The content types of `POST /metrics/push`. `navigator.sendBeacon` and `fetch` send plain text, or
/// no type, without a CORS preflight.
const TYPES: [&str; 2] = ["application/json", "text/plain"];

/// The reason for refusing a request before it reaches the state.
pub(super) enum RequestError {
    Problem(ProblemKind, String),
    Field(&'static str, String),
    LogUnavailable,
}

/// The header of `POST /metrics/push`.
pub(super) struct PushHead {
    pub(super) level: Durability,
    pub(super) key: Option<idempotency::KeyHash>,
    pub(super) coding: ContentCoding,
}

/// The header of a request to `/metrics/job/…`.
pub(super) struct GroupHead {
    pub(super) grouping_key: GroupingKey,
    pub(super) level: Durability,
    pub(super) coding: ContentCoding,
}

impl GatewayHandlers {
    /// Whether the header of an authorized request is acceptable. Writes a refusal if not.
    pub fn accepts_head(
        &self,
        page: &GatewayRoute<'_>,
        grant: &Grant,
        request: &Request<'_>,
        response: &mut Response,
    ) -> bool {
        match page {
            GatewayRoute::Push => {
                let head = self.push_head(grant, request.headers);
                head.map_err(|error| self.write_push_refusal(error, response)).is_ok()
            }
            GatewayRoute::Group(path) => {
                let head = self.group_head(path, grant, request);
                head.map_err(|refusal| write_group_refusal(refusal, response)).is_ok()
            }
            GatewayRoute::DeleteSeries | GatewayRoute::DeleteGroups | GatewayRoute::Wipe => {
                let level = self.requested_level(request.headers);
                level.map_err(|error| error.write_to(response)).is_ok()
            }
            GatewayRoute::Scrape
            | GatewayRoute::Healthy
            | GatewayRoute::Ready
            | GatewayRoute::Groups
            | GatewayRoute::Status => true,
        }
    }

    /// Counts a refused `POST /metrics/push` and writes the response.
    pub(super) fn write_push_refusal(&self, error: RequestError, response: &mut Response) {
        let reason = match error {
            RequestError::LogUnavailable => RefusalReason::Log,
            RequestError::Problem(..) | RequestError::Field(..) => RefusalReason::Invalid,
        };
        self.gateway().metrics.record_refused(reason, 1);
        error.write_to(response);
    }

    /// The durability level for this request.
    pub(super) fn requested_level(&self, headers: Headers<'_>) -> Result<Durability, RequestError> {
        let Some(name) = headers.get("Durability") else { return Ok(self.durability) };
        Durability::parse(name).ok_or_else(|| {
            RequestError::Field("Durability", "must be one of memory, written, synced".to_owned())
        })
    }

    /// Parses the header of `POST /metrics/push`.
    pub(super) fn push_head(&self, grant: &Grant, headers: Headers<'_>) -> Result<PushHead, RequestError> {
        let level = self.requested_level(headers)?;
        if let Some(kind) = headers.get("Content-Type") {
            let name = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            if !TYPES.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())) {
                let detail = format!("the content type must be {} or none", TYPES.join(", "));
                return Err(RequestError::Problem(ProblemKind::UnsupportedType, detail));
            }
        }
        let key = HeaderKey::from_headers(headers).map_err(|_invalid_key| {
            RequestError::Field(
                HeaderKey::NAME,
                "must occur once and be 1 to 128 visible ASCII characters".to_owned(),
            )
        })?;
        let coding = content_coding(headers)?;
        if !self.gateway().is_log_available() {
            return Err(RequestError::LogUnavailable);
        }
        Ok(PushHead {
            level,
            key: key.map(|key| idempotency::hash(grant.token, PUSH_PATH, key.bytes())),
            coding,
        })
    }

    /// Parses the header of a request to `/metrics/job/…`; `path` is the percent-decoded path after
    /// `/metrics/`.
    pub(super) fn group_head(
        &self,
        path: &str,
        grant: &Grant,
        request: &Request<'_>,
    ) -> Result<GroupHead, (u16, String)> {
        let metrics = &self.gateway().metrics;
        let grouping_key = GroupingKey::parse(path).map_err(|error| {
            metrics.record_refused(RefusalReason::Invalid, 1);
            (400, error.to_string())
        })?;
        if grant.services.as_ref().is_some_and(|services| !allows_service(services, grouping_key.job())) {
            return Err((403, format!("the token does not allow the job {:?}", grouping_key.job())));
        }
        let level = self.requested_level(request.headers).map_err(|_invalid_level| {
            (400, "the header Durability must be one of memory, written, synced".to_owned())
        })?;
        let is_push = request.method != Method::Delete;
        let coding = if is_push {
            content_coding(request.headers).map_err(RequestError::into_parts)?
        } else {
            ContentCoding::Identity
        };
        if !self.gateway().is_log_available() {
            if is_push {
                metrics.record_refused(RefusalReason::Log, 1);
            }
            return Err((503, PushMetricsError::LogUnavailable.to_string()));
        }
        Ok(GroupHead { grouping_key, level, coding })
    }
}

fn content_coding(headers: Headers<'_>) -> Result<ContentCoding, RequestError> {
    ContentCoding::from_headers(headers)
        .map_err(|error| RequestError::Problem(ProblemKind::UnsupportedEncoding, error.to_string()))
}

impl RequestError {
    pub(super) fn write_to(self, response: &mut Response) {
        match self {
            Self::Problem(kind, detail) => {
                if kind == ProblemKind::UnsupportedType {
                    let types = TYPES.join(", ");
                    response.header("Accept", &types);
                    response.header("Accept-Post", types);
                } else if kind == ProblemKind::UnsupportedEncoding {
                    response.header("Accept-Encoding", ENCODINGS);
                }
                problem::write(response, kind, &detail);
            }
            Self::Field(field, detail) => {
                let mut errors = FieldErrors::default();
                errors.push(|| FieldError { index: None, field: field.into(), detail: detail.clone() });
                problem::write_invalid(response, &detail, &errors);
            }
            Self::LogUnavailable => problem::write_journal_unavailable(response, LOG_RETRY_S),
        }
    }

    /// The status and the reason, for a response in plain text.
    pub(super) fn into_parts(self) -> (u16, String) {
        match self {
            Self::Problem(kind, detail) => (kind.status(), detail),
            Self::Field(_, detail) => (400, detail),
            Self::LogUnavailable => (503, PushMetricsError::LogUnavailable.to_string()),
        }
    }
}

/// Writes a refusal as Pushgateway does: plain text.
pub(super) fn write_group_refusal((status, detail): (u16, String), response: &mut Response) {
    response.status = status;
    match status {
        // Any content type is taken.
        415 => response.header("Accept-Encoding", ENCODINGS),
        503 => response.header("Retry-After", LOG_RETRY_S),
        _ => {}
    }
    write_plain_text(response, &detail);
}
