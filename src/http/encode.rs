//! Encodes responses. Must not depend on sockets.

use super::Response;
use super::problem::{self, ProblemKind};
use super::response::reason_phrase;
use crate::clock::{Clock, Moment};

/// Estimated size of the status line, `Date` and the fields that the engine adds.
const HEAD_BYTES: usize = 320;

/// The properties of a request that determine the framing of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The request was HEAD: the body is omitted.
    pub(super) head_only: bool,
    /// The request was HTTP/1.0: a persistent connection needs `Connection: keep-alive`.
    pub(super) is_http_1_0: bool,
    /// The connection stays open after the response.
    pub(super) keep_alive: bool,
}

/// The cached `Date` line, formatted once a second.
#[derive(Debug)]
pub(super) struct DateLine {
    line: Vec<u8>,
    until: Moment,
}

impl DateLine {
    pub(super) fn new(clock: &Clock) -> Self {
        let mut date = Self { line: Vec::new(), until: Moment::ZERO };
        date.format(clock, clock.now());
        date
    }

    pub(super) fn refresh(&mut self, clock: &Clock, now: Moment) {
        if now >= self.until {
            self.format(clock, now);
        }
    }

    #[cold]
    fn format(&mut self, clock: &Clock, now: Moment) {
        let wall = clock.wall();
        let into_second =
            u64::try_from(wall.micros().rem_euclid(1_000_000)).expect("a remainder is not negative");
        self.until = now.plus(std::time::Duration::from_micros(1_000_000 - into_second));
        let time = chrono::DateTime::from_timestamp_micros(wall.micros()).unwrap_or_default();
        self.line = format!("Date: {}\r\n", time.format("%a, %d %b %Y %H:%M:%S GMT")).into_bytes();
    }
}

/// Appends the decimal digits of `number`.
pub(super) fn write_number(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a response. The body of a streaming response follows separately.
pub(super) fn encode(out: &mut Vec<u8>, response: &Response, frame: Frame, date: &DateLine) {
    out.reserve(HEAD_BYTES + response.headers.len() + response.body.len());
    match response.status {
        200 => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        202 => out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\n"),
        status => {
            out.extend_from_slice(b"HTTP/1.1 ");
            write_number(out, usize::from(status));
            out.push(b' ');
            out.extend_from_slice(reason_phrase(status).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(&date.line);
    if !response.content_type.is_empty() {
        out.extend_from_slice(b"Content-Type: ");
        out.extend_from_slice(response.content_type.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    // RFC 9110, 8.6: a 204 has no Content-Length. A 304 may have that of the 200, which is unknown
    // here.
    let bodiless = response.status == 204 || response.status == 304;
    if response.stream.is_some() {
        // HTTP/1.0 has no chunked coding: closing the connection ends the body.
        if !frame.is_http_1_0 {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    } else if !bodiless {
        out.extend_from_slice(b"Content-Length: ");
        write_number(out, response.body.len());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(&response.headers);
    if !frame.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n\r\n");
    } else if frame.is_http_1_0 {
        out.extend_from_slice(b"Connection: keep-alive\r\n\r\n");
    } else {
        out.extend_from_slice(b"\r\n");
    }
    if !frame.head_only && !bodiless {
        out.extend_from_slice(&response.body);
    }
}

/// An error response for a client whose request is not read, with `Connection: close` and without
/// `Date`.
pub(super) fn closing_response(kind: ProblemKind, detail: &str) -> Vec<u8> {
    let mut response = Response::default();
    if kind.status() == 503 {
        problem::write_retryable(&mut response, kind, detail, 1);
    } else {
        problem::write(&mut response, kind, detail);
    }
    let frame = Frame { head_only: false, is_http_1_0: false, keep_alive: false };
    let mut out = Vec::new();
    encode(&mut out, &response, frame, &DateLine { line: Vec::new(), until: Moment::ZERO });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    const OPEN: Frame = Frame { head_only: false, is_http_1_0: false, keep_alive: true };

    fn response(status: u16, content_type: &'static str, body: &str) -> Response {
        Response { status, content_type, body: body.into(), ..Response::default() }
    }

    #[track_caller]
    fn check(response: &Response, frame: Frame, expected: &str) {
        let clock = Clock::manual(Timestamp::from_millis(784_111_777_000), 1);
        let mut out = Vec::new();
        encode(&mut out, response, frame, &DateLine::new(&clock));
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn response_framing_follows_its_request() {
        const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        check(
            &response(202, "application/json", "{}"),
            OPEN,
            &format!(
                "HTTP/1.1 202 Accepted\r\n{DATE}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
            ),
        );
        check(&response(204, "", ""), OPEN, &format!("HTTP/1.1 204 No Content\r\n{DATE}\r\n"));
        check(
            &response(200, "", "abc"),
            Frame { head_only: true, ..OPEN },
            &format!("HTTP/1.1 200 OK\r\n{DATE}Content-Length: 3\r\n\r\n"),
        );
        check(
            &response(404, "", ""),
            Frame { is_http_1_0: true, ..OPEN },
            &format!("HTTP/1.1 404 Not Found\r\n{DATE}Content-Length: 0\r\nConnection: keep-alive\r\n\r\n"),
        );
        let mut busy = response(503, "", "");
        busy.header("Retry-After", 7);
        check(
            &busy,
            Frame { keep_alive: false, ..OPEN },
            &format!(
                "HTTP/1.1 503 Service Unavailable\r\n{DATE}Content-Length: 0\r\nRetry-After: 7\r\n\
                 Connection: close\r\n\r\n"
            ),
        );
    }

    #[test]
    fn streaming_response_has_no_content_length() {
        const HEAD: &str =
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/csv\r\n";
        let (_sender, stream) = crate::http::body_channel();
        let streamed = Response { stream: Some(stream), ..response(200, "text/csv", "") };
        check(&streamed, OPEN, &format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n"));
        let http_1_0 = Frame { is_http_1_0: true, keep_alive: false, ..OPEN };
        check(&streamed, http_1_0, &format!("{HEAD}Connection: close\r\n\r\n"));
    }

    #[test]
    fn number_writes_the_same_digits_as_display() {
        for value in [0, 7, 10, 99, 100, 65_535, usize::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    #[test]
    fn date_line_changes_with_the_second() {
        let clock = Clock::manual(Timestamp::from_millis(999_600), 1);
        let mut date = DateLine::new(&clock);
        let first = date.line.clone();
        clock.advance(std::time::Duration::from_millis(399));
        date.refresh(&clock, clock.now());
        assert_eq!(date.line, first);
        clock.advance(std::time::Duration::from_millis(1));
        date.refresh(&clock, clock.now());
        assert_ne!(date.line, first);
    }

    #[test]
    fn closing_response_is_a_problem_with_its_length() {
        let text = |kind| String::from_utf8(closing_response(kind, "d")).unwrap();
        let unavailable = text(ProblemKind::Unavailable);
        let (head, body) = unavailable.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            head,
            format!(
                "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
                 Content-Length: {}\r\nRetry-After: 1\r\nConnection: close",
                body.len()
            )
        );
        assert!(body.starts_with("{\"type\":\"urn:aurore-events:problem:unavailable\""), "{body}");
        assert!(!text(ProblemKind::Invalid).contains("Retry-After"));
    }
}
