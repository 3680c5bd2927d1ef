//! Answers that refuse: RFC 9457 `application/problem+json`, one kind a reason, so that a client can tell them
//! apart by `type` without reading prose. Echoes of what was sent are cut short by whoever makes the text.
//!
//! Knows nothing of how requests are read.

use std::borrow::Cow;
use std::io::Write;

use super::Response;
use crate::json::text;

pub const CONTENT_TYPE: &str = "application/problem+json";

/// Errors that one answer lists; how many more there are is told as `errors_omitted`.
pub const ERRORS_LISTED_MAX: usize = 1000;

/// Bytes of a client's own text that an answer repeats.
pub const ECHO_BYTES_MAX: usize = 64;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Invalid,
    Unauthorized,
    Forbidden,
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

impl Kind {
    pub fn status(self) -> u16 {
        self.parts().0
    }

    /// The kind of an answer that says no more than its status. Statuses that no refusal uses are `Invalid` below
    /// 500 and `Internal` from there on.
    pub fn of_status(status: u16) -> Self {
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

    /// Status, the last part of `type`, and `title`.
    fn parts(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::Invalid => (400, "invalid", "The request is not valid"),
            Self::Unauthorized => (401, "unauthorized", "A token is required"),
            Self::Forbidden => (403, "forbidden", "The token does not allow this"),
            Self::NotFound => (404, "not-found", "There is nothing here"),
            Self::MethodNotAllowed => (405, "method-not-allowed", "The method is not allowed here"),
            Self::LengthRequired => (411, "length-required", "The length of the body is required"),
            Self::TooLarge => (413, "too-large", "The request is too large"),
            Self::UnsupportedType => (415, "unsupported-type", "The content type is not supported"),
            Self::UnsupportedEncoding => {
                (415, "unsupported-encoding", "The content encoding is not supported")
            }
            Self::BufferFull => (429, "buffer-full", "The buffer is full"),
            Self::RateLimited => (429, "rate-limited", "Too many requests"),
            Self::Internal => (500, "internal", "The server failed"),
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

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Which event of the request, from 0. None when it is not about an event.
    pub index: Option<u32>,
    pub field: Cow<'static, str>,
    pub detail: String,
}

/// What is wrong with a request: a bounded list, and how much more there was.
#[derive(Clone, Debug, Default)]
pub struct Errors {
    list: Vec<FieldError>,
    omitted: u64,
}

impl Errors {
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

    /// Errors that were counted and not listed.
    pub fn omitted(&self) -> u64 {
        self.omitted
    }

    /// Adds the error that `make` makes, while there is room for it.
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

    /// Forgets what came after `mark`.
    pub(crate) fn back_to(&mut self, (listed, omitted): (usize, u64)) {
        self.list.truncate(listed);
        self.omitted = omitted;
    }

    /// The members `errors` and, when there is need of it, `errors_omitted`.
    pub(crate) fn write_members(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"errors\":[");
        for (nth, error) in self.list.iter().enumerate() {
            out.extend_from_slice(if nth == 0 { b"{" } else { b",{" });
            if let Some(index) = error.index {
                put(out, format_args!("\"index\":{index},"));
            }
            out.extend_from_slice(b"\"field\":");
            text::quote(out, &error.field);
            out.extend_from_slice(b",\"detail\":");
            text::quote(out, &error.detail);
            out.push(b'}');
        }
        out.push(b']');
        if self.omitted > 0 {
            put(out, format_args!(",\"errors_omitted\":{}", self.omitted));
        }
    }
}

/// Writes the problem. `detail` is for a person.
pub fn answer(response: &mut Response, kind: Kind, detail: &str) {
    write(response, kind, detail, None);
}

/// Writes the problem with what is wrong, field by field.
pub fn answer_invalid(response: &mut Response, detail: &str, errors: &Errors) {
    write(response, Kind::Invalid, detail, Some(errors));
}

/// Writes that the sender may not do what it asks, with what that is.
pub fn answer_forbidden(response: &mut Response, detail: &str, errors: &Errors) {
    write(response, Kind::Forbidden, detail, Some(errors));
}

/// Writes a 429 or 503 that says when to come again: never in less than a second.
pub fn answer_later(response: &mut Response, kind: Kind, detail: &str, retry_after_s: u64) {
    debug_assert!(matches!(kind.status(), 429 | 503), "BUG: {kind:?} does not pass with time");
    response.header("Retry-After", retry_after_s.max(1));
    write(response, kind, detail, None);
}

/// The buffer has no room for the whole request: nothing of it was kept.
pub fn buffer_full(response: &mut Response, retry_after_s: u64) {
    let detail = "the buffer has no room for the whole request; nothing of it was kept";
    answer_later(response, Kind::BufferFull, detail, retry_after_s);
}

pub fn shutting_down(response: &mut Response, retry_after_s: u64) {
    let detail = "the server takes no more events; nothing of the request was kept";
    answer_later(response, Kind::ShuttingDown, detail, retry_after_s);
}

pub fn journal_unavailable(response: &mut Response, retry_after_s: u64) {
    let detail = "the durability asked for cannot be promised now";
    answer_later(response, Kind::JournalUnavailable, detail, retry_after_s);
}

fn write(response: &mut Response, kind: Kind, detail: &str, errors: Option<&Errors>) {
    let (status, slug, title) = kind.parts();
    response.status = status;
    response.content_type = CONTENT_TYPE;
    let out = &mut response.body;
    out.clear();
    put(
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

pub(crate) fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a vector takes all that is written");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: &Response) -> &str {
        str::from_utf8(&response.body).unwrap()
    }

    #[test]
    fn a_problem_has_its_members_and_what_was_written_before_is_gone() {
        let mut response = Response { body: b"half an answer".to_vec(), ..Response::default() };
        answer(&mut response, Kind::NotFound, "no \"such\" thing");
        assert_eq!((response.status, response.content_type), (404, CONTENT_TYPE));
        assert_eq!(
            body(&response),
            r#"{"type":"urn:aurore-events:problem:not-found","title":"There is nothing here","status":404,"detail":"no \"such\" thing"}"#
        );
    }

    #[test]
    fn what_passes_with_time_says_when_to_come_again() {
        let retry = |write: fn(&mut Response, u64), after_s| {
            let mut response = Response::default();
            write(&mut response, after_s);
            (response.status, String::from_utf8(response.headers).unwrap())
        };
        assert_eq!(retry(buffer_full, 0), (429, "Retry-After: 1\r\n".to_owned()));
        assert_eq!(retry(buffer_full, 17), (429, "Retry-After: 17\r\n".to_owned()));
        assert_eq!(retry(shutting_down, 2).0, 503);
        assert_eq!(retry(journal_unavailable, 2).0, 503);
    }

    #[test]
    fn the_list_is_bounded_and_says_how_many_more() {
        let error = || FieldError { index: Some(1), field: "f".into(), detail: "d".to_owned() };
        let mut errors = Errors::default();
        for (count, more) in [(ERRORS_LISTED_MAX, None), (1, Some("\"errors_omitted\":1}"))] {
            (0..count).for_each(|_| errors.push(error));
            let mut response = Response::default();
            answer_invalid(&mut response, "", &errors);
            assert_eq!(
                body(&response).matches("{\"index\":1,\"field\":\"f\",\"detail\":\"d\"}").count(),
                1000
            );
            assert_eq!(body(&response).contains("errors_omitted"), more.is_some());
            assert!(body(&response).ends_with(more.unwrap_or("]}")));
        }
    }
}
