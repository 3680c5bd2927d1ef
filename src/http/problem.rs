//! Writes error responses as RFC 9457 `application/problem+json`. Each reason has its own `type`,
//! so that clients need not parse the prose. Callers must truncate the client input that they echo.
//!
//! It must not depend on request parsing.

use std::borrow::Cow;
use std::io::Write;

use super::Response;
use crate::json::text;

pub const CONTENT_TYPE: &str = "application/problem+json";

/// Maximum errors listed in one response; `errors_omitted` counts the others.
pub const ERRORS_LISTED_MAX: usize = 1000;

/// Maximum bytes of client input that a response echoes.
pub const ECHO_BYTES_MAX: usize = 64;

/// The reason for rejecting a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    Invalid,
    Unauthorized,
    Forbidden,
    ForeignOrigin,
    NotFound,
    MethodNotAllowed,
    LengthRequired,
    TooLarge,
    UnsupportedType,
    UnsupportedEncoding,
    BufferFull,
    RateLimited,
    RequestTimeout,
    UriTooLong,
    ExpectationFailed,
    Misdirected,
    HeadersTooLarge,
    Internal,
    NotImplemented,
    VersionNotSupported,
    Unavailable,
    ShuttingDown,
    JournalUnavailable,
    QueriesFull,
    DatabaseUnavailable,
}

impl ProblemKind {
    pub fn status(self) -> u16 {
        self.parts().0
    }

    /// The kind of an error response that is known only by its status. An unassigned status maps to
    /// `Invalid` below 500 and to `Internal` from 500 on.
    pub fn from_status(status: u16) -> Self {
        match status {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            404 => Self::NotFound,
            405 => Self::MethodNotAllowed,
            408 => Self::RequestTimeout,
            411 => Self::LengthRequired,
            413 => Self::TooLarge,
            414 => Self::UriTooLong,
            415 => Self::UnsupportedType,
            417 => Self::ExpectationFailed,
            421 => Self::Misdirected,
            429 => Self::RateLimited,
            431 => Self::HeadersTooLarge,
            501 => Self::NotImplemented,
            503 => Self::Unavailable,
            505 => Self::VersionNotSupported,
            500.. => Self::Internal,
            _ => Self::Invalid,
        }
    }

    /// The status, the last part of `type`, and `title`.
    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Invalid => (400, "invalid", "The request is not valid"),
            Self::Unauthorized => (401, "unauthorized", "A token is required"),
            Self::Forbidden => (403, "forbidden", "The token does not allow this"),
            Self::ForeignOrigin => (403, "foreign-origin", "The origin of the web page is not allowed"),
            Self::NotFound => (404, "not-found", "The resource does not exist"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "The method is not allowed here"),
            Self::LengthRequired => (411, "length-required", "The length of the body is required"),
            Self::TooLarge => (413, "too-large", "The request is too large"),
            Self::UnsupportedType => (415, "unsupported-type", "The content type is not supported"),
            Self::UnsupportedEncoding => {
                (415, "unsupported-encoding", "The content encoding is not supported")
            }
            Self::BufferFull => (429, "buffer-full", "The buffer is full"),
            Self::RateLimited => (429, "rate-limited", "Too many requests"),
            Self::Internal => (500, "internal", "Internal server error"),
            Self::RequestTimeout => (408, "request-timeout", "The request took too long"),
            Self::UriTooLong => (414, "uri-too-long", "The request target is too long"),
            Self::ExpectationFailed => (417, "expectation-failed", "The expectation cannot be met"),
            Self::Misdirected => (421, "misdirected", "The request is for another server"),
            Self::HeadersTooLarge => (431, "headers-too-large", "The header section is too large"),
            Self::NotImplemented => (501, "not-implemented", "The server does not implement this"),
            Self::VersionNotSupported => (505, "version-not-supported", "The HTTP version is not supported"),
            Self::Unavailable => (503, "unavailable", "The server cannot answer now"),
            Self::ShuttingDown => (503, "shutting-down", "The server is shutting down"),
            Self::JournalUnavailable => (503, "journal-unavailable", "The journal cannot be written"),
            Self::QueriesFull => (503, "queries-full", "Too many queries are waiting"),
            Self::DatabaseUnavailable => (503, "database-unavailable", "The database is not available"),
        }
    }
}

/// One error of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The index of the event in the request, from 0. None if the error does not concern an event.
    pub index: Option<u32>,
    pub field: Cow<'static, str>,
    pub detail: String,
}

/// The field errors of a request: a bounded list, and the number of errors omitted from it.
#[derive(Clone, Debug, Default)]
pub struct FieldErrors {
    list: Vec<FieldError>,
    omitted: u64,
}

impl FieldErrors {
    pub fn clear(&mut self) {
        self.list.clear();
        self.omitted = 0;
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn listed(&self) -> &[FieldError] {
        &self.list
    }

    /// The number of errors counted but not listed.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Lists the error that `make` returns, or only counts it if the list is full.
    pub fn push(&mut self, make: impl FnOnce() -> FieldError) {
        if self.list.len() < ERRORS_LISTED_MAX {
            self.list.push(make());
        } else {
            self.omit();
        }
    }

    /// Counts an error without listing it.
    pub fn omit(&mut self) {
        self.omitted += 1;
    }

    pub(crate) fn mark(&self) -> (usize, u64) {
        (self.list.len(), self.omitted)
    }

    /// Discards the errors added after `mark`.
    pub(crate) fn rollback_to(&mut self, (listed, omitted): (usize, u64)) {
        self.list.truncate(listed);
        self.omitted = omitted;
    }

    /// Writes the members `errors` and, if errors were omitted, `errors_omitted`.
    pub(crate) fn write_members(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"errors\":[");
        for (nth, error) in self.list.iter().enumerate() {
            out.extend_from_slice(if nth == 0 { b"{" } else { b",{" });
            if let Some(index) = error.index {
                append_fmt(out, format_args!("\"index\":{index},"));
            }
            out.extend_from_slice(b"\"field\":");
            text::quote(out, &error.field);
            out.extend_from_slice(b",\"detail\":");
            text::quote(out, &error.detail);
            out.push(b'}');
        }
        out.push(b']');
        if self.omitted > 0 {
            append_fmt(out, format_args!(",\"errors_omitted\":{}", self.omitted));
        }
    }
}

/// Writes a problem. `detail` is text for a human reader.
pub fn write(response: &mut Response, kind: ProblemKind, detail: &str) {
    write_problem(response, kind, detail, None);
}

/// Writes a 400 with field errors.
pub fn write_invalid(response: &mut Response, detail: &str, errors: &FieldErrors) {
    write_problem(response, ProblemKind::Invalid, detail, Some(errors));
}

/// Writes a 403 with field errors.
pub fn write_forbidden(response: &mut Response, detail: &str, errors: &FieldErrors) {
    write_problem(response, ProblemKind::Forbidden, detail, Some(errors));
}

/// Adds a member with a list of strings to the problem that the response has.
pub fn add_list(response: &mut Response, name: &str, values: &[Box<str>]) {
    let out = &mut response.body;
    let end = out.pop();
    debug_assert_eq!(end, Some(b'}'), "BUG: the body is not a problem");
    append_fmt(out, format_args!(",\"{name}\":["));
    for (nth, value) in values.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        text::quote(out, value);
    }
    out.extend_from_slice(b"]}");
}

/// Writes a 429 or 503 with `Retry-After`, at least one second.
pub fn write_retryable(response: &mut Response, kind: ProblemKind, detail: &str, retry_after_s: u64) {
    debug_assert!(matches!(kind.status(), 429 | 503), "BUG: {kind:?} is not retryable");
    response.header("Retry-After", retry_after_s.max(1));
    write_problem(response, kind, detail, None);
}

/// Writes the 429 of a full buffer.
pub fn write_buffer_full(response: &mut Response, retry_after_s: u64) {
    let detail = "the buffer has no capacity for the whole request; no event of it was stored";
    write_retryable(response, ProblemKind::BufferFull, detail, retry_after_s);
}

pub fn write_shutting_down(response: &mut Response, retry_after_s: u64) {
    let detail = "the server is shutting down; no event of the request was stored";
    write_retryable(response, ProblemKind::ShuttingDown, detail, retry_after_s);
}

pub fn write_journal_unavailable(response: &mut Response, retry_after_s: u64) {
    let detail = "the requested durability is currently unavailable";
    write_retryable(response, ProblemKind::JournalUnavailable, detail, retry_after_s);
}

fn write_problem(response: &mut Response, kind: ProblemKind, detail: &str, errors: Option<&FieldErrors>) {
    let (status, slug, title) = kind.parts();
    response.status = status;
    response.content_type = CONTENT_TYPE;
    let out = &mut response.body;
    out.clear();
    append_fmt(
        out,
        format_args!(
            "{{\"type\":\"urn:aurore-events:problem:{slug}\",\"title\":\"{title}\",\"status\":{status},\"detail\":"
        ),
    );
    text::quote(out, detail);
    if let Some(errors) = errors {
        out.push(b',');
        errors.write_members(out);
    }
    out.push(b'}');
}

pub(crate) fn append_fmt(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a vector cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: &Response) -> &str {
        str::from_utf8(&response.body).unwrap()
    }

    #[test]
    fn problem_replaces_the_body_and_has_all_members() {
        let mut response = Response { body: b"half an answer".to_vec(), ..Response::default() };
        write(&mut response, ProblemKind::NotFound, "no \"such\" thing");
        assert_eq!((response.status, response.content_type), (404, CONTENT_TYPE));
        assert_eq!(
            body(&response),
            r#"{"type":"urn:aurore-events:problem:not-found","title":"The resource does not exist","status":404,"detail":"no \"such\" thing"}"#
        );
    }

    #[test]
    fn retryable_problems_have_a_retry_after_header() {
        let retry = |write: fn(&mut Response, u64), after_s| {
            let mut response = Response::default();
            write(&mut response, after_s);
            (response.status, String::from_utf8(response.headers).unwrap())
        };
        assert_eq!(retry(write_buffer_full, 0), (429, "Retry-After: 1\r\n".to_owned()));
        assert_eq!(retry(write_buffer_full, 17), (429, "Retry-After: 17\r\n".to_owned()));
        assert_eq!(retry(write_shutting_down, 2).0, 503);
        assert_eq!(retry(write_journal_unavailable, 2).0, 503);
    }

    #[test]
    fn field_error_list_is_bounded_and_counts_omitted_errors() {
        let error = || FieldError { index: Some(1), field: "f".into(), detail: "d".to_owned() };
        let mut errors = FieldErrors::default();
        for (count, more) in [(ERRORS_LISTED_MAX, None), (1, Some("\"errors_omitted\":1}"))] {
            (0..count).for_each(|_| errors.push(error));
            let mut response = Response::default();
            write_invalid(&mut response, "", &errors);
            assert_eq!(
                body(&response).matches("{\"index\":1,\"field\":\"f\",\"detail\":\"d\"}").count(),
                1000
            );
            assert_eq!(body(&response).contains("errors_omitted"), more.is_some());
            assert!(body(&response).ends_with(more.unwrap_or("]}")));
        }
    }
}
