//! The form of a refusal. The server refuses a request with a problem document (RFC 9457); clients
//! of some formats read another form.

use super::InputPath;
use super::otlp::{self, OtlpEncoding};
use super::splunk::{self, HecCode};
use crate::http::{Headers, Response};

/// The form in which the client of a request reads refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalFormat {
    /// A problem document.
    Problem,
    /// A code of the HTTP Event Collector, for a request with or without credentials.
    Splunk { has_credentials: bool },
    /// A `google.rpc.Status`.
    Otlp(OtlpEncoding),
}

/// The member of a problem document for people.
#[derive(Debug, serde::Deserialize)]
struct ProblemDetail {
    #[serde(default)]
    detail: String,
    #[serde(default)]
    errors: Vec<ProblemDetail>,
}

impl RefusalFormat {
    /// The form for a request.
    pub fn of(path: InputPath, headers: Headers<'_>) -> Self {
        match path {
            InputPath::Events | InputPath::LokiPush => Self::Problem,
            InputPath::SplunkEvent | InputPath::SplunkRaw => {
                Self::Splunk { has_credentials: headers.get("Authorization").is_some() }
            }
            // A client that sends another type reads another type.
            InputPath::OtlpLogs => OtlpEncoding::from_headers(headers).map_or(Self::Problem, Self::Otlp),
        }
    }

    /// Rewrites a problem document. Other responses are left as they are.
    pub fn apply(self, response: &mut Response) {
        if response.status < 400 || response.content_type != crate::http::problem::CONTENT_TYPE {
            return;
        }
        match self {
            Self::Problem => {}
            Self::Splunk { has_credentials } => write_splunk(has_credentials, response),
            Self::Otlp(encoding) => otlp::write_status(encoding, &details_of(&response.body), response),
        }
    }
}

/// The detail of a problem document.
fn detail_of(problem: &[u8]) -> String {
    sonic_rs::from_slice::<ProblemDetail>(problem).map(|problem| problem.detail).unwrap_or_default()
}

/// Clients of Splunk send again what was refused with 503, and drop what was refused with 4xx.
fn write_splunk(has_credentials: bool, response: &mut Response) {
    let detail = detail_of(&response.body);
    let (status, code) = match response.status {
        401 if has_credentials => (403, HecCode::InvalidToken),
        401 => (401, HecCode::TokenRequired),
        403 => (403, HecCode::InvalidToken),
        429 | 503 => (503, HecCode::Busy),
        status @ 500.. => (status, HecCode::InternalError),
        status => (status, HecCode::InvalidData),
    };
    splunk::write_code(status, code, &detail, response);
}

/// The detail of a problem document, and that of its first error.
fn details_of(problem: &[u8]) -> String {
    let Ok(ProblemDetail { detail, errors }) = sonic_rs::from_slice(problem) else { return String::new() };
    match errors.first() {
        Some(first) if !detail.ends_with(&first.detail) => format!("{detail}: {}", first.detail),
        Some(_) | None => detail,
    }
}
