//! Answers into bytes. Knows nothing of sockets.

use super::Response;
use super::response::reason;
use crate::clock::{Clock, Moment};

/// Room for a status line, `Date`, and the fields the engine adds: more only grows the vector.
const HEAD_BYTES: usize = 320;

/// How an answer is framed, which its request decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The request was HEAD: all but the body.
    pub(super) head_only: bool,
    /// The request was HTTP/1.0, where an open connection must be announced.
    pub(super) old: bool,
    /// The connection stays open.
    pub(super) keep_alive: bool,
}

/// The `Date` line, made once a second.
#[derive(Debug)]
pub(super) struct DateLine {
    line: Vec<u8>,
    until: Moment,
}

impl DateLine {
    pub(super) fn new(clock: &Clock) -> Self {
        let mut date = Self { line: Vec::new(), until: Moment::ZERO };
        date.make(clock, clock.now());
        date
    }

    pub(super) fn refresh(&mut self, clock: &Clock, now: Moment) {
        if now >= self.until {
            self.make(clock, now);
        }
    }

    #[cold]
    fn make(&mut self, clock: &Clock, now: Moment) {
        let wall = clock.wall();
        let into_second =
            u64::try_from(wall.micros().rem_euclid(1_000_000)).expect("a remainder is not negative");
        self.until = now.plus(std::time::Duration::from_micros(1_000_000 - into_second));
        let time = chrono::DateTime::from_timestamp_micros(wall.micros()).unwrap_or_default();
        self.line = format!("Date: {}\r\n", time.format("%a, %d %b %Y %H:%M:%S GMT")).into_bytes();
    }
}

/// Appends the decimal digits of `number`.
pub(super) fn number(out: &mut Vec<u8>, mut number: usize) {
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

/// Appends a whole answer.
pub(super) fn encode(out: &mut Vec<u8>, response: &Response, frame: Frame, date: &DateLine) {
    out.reserve(HEAD_BYTES + response.headers.len() + response.body.len());
    match response.status {
        200 => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        202 => out.extend_from_slice(b"HTTP/1.1 202 Accepted\r\n"),
        status => {
            out.extend_from_slice(b"HTTP/1.1 ");
            number(out, usize::from(status));
            out.push(b' ');
            out.extend_from_slice(reason(status).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(&date.line);
    if !response.content_type.is_empty() {
        out.extend_from_slice(b"Content-Type: ");
        out.extend_from_slice(response.content_type.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    // RFC 9110, 8.6: a 204 has no Content-Length. A 304 has that of the 200, which is not known here.
    let bodiless = response.status == 204 || response.status == 304;
    if response.stream.is_some() {
        // HTTP/1.0 knows no chunks: there the end of the connection ends the body.
        if !frame.old {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
    } else if !bodiless {
        out.extend_from_slice(b"Content-Length: ");
        number(out, response.body.len());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(&response.headers);
    if !frame.keep_alive {
        out.extend_from_slice(b"Connection: close\r\n\r\n");
    } else if frame.old {
        out.extend_from_slice(b"Connection: keep-alive\r\n\r\n");
    } else {
        out.extend_from_slice(b"\r\n");
    }
    if !frame.head_only && !bodiless {
        out.extend_from_slice(&response.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;

    const OPEN: Frame = Frame { head_only: false, old: false, keep_alive: true };

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
    fn an_answer_is_framed_as_its_request_wants() {
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
            Frame { old: true, ..OPEN },
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
    fn a_streamed_answer_says_no_length() {
        const HEAD: &str =
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/csv\r\n";
        let (_feed, stream) = crate::http::stream();
        let streamed = Response { stream: Some(stream), ..response(200, "text/csv", "") };
        check(&streamed, OPEN, &format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n"));
        let old = Frame { old: true, keep_alive: false, ..OPEN };
        check(&streamed, old, &format!("{HEAD}Connection: close\r\n\r\n"));
    }

    #[test]
    fn numbers_are_written_as_display_writes_them() {
        for value in [0, 7, 10, 99, 100, 65_535, usize::MAX] {
            let mut out = Vec::new();
            number(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }

    #[test]
    fn the_date_changes_with_the_second() {
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
}
