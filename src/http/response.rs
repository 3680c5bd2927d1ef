//! A response that a handler fills, and the promise of a response from another thread.

use std::fmt;
use std::io::Write;
use std::task::Waker;

use super::streaming_body::BodyStream;

/// A response. The engine adds the status line, `Date`, `Content-Length` or `Transfer-Encoding`,
/// and `Connection`.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Empty for a response without content.
    pub content_type: &'static str,
    /// Further header lines, each terminated by CR LF.
    pub headers: Vec<u8>,
    pub body: Vec<u8>,
    /// A streaming body; `body` is then empty.
    pub stream: Option<BodyStream>,
    /// Whether to close the connection after this response.
    pub close: bool,
    /// Bytes processed in addition to those of the request and the response, for example
    /// decompressed bytes. They count against the connection's budget of a turn.
    pub work_bytes: usize,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            status: 200,
            content_type: "",
            headers: Vec::new(),
            body: Vec::new(),
            stream: None,
            close: false,
            work_bytes: 0,
        }
    }
}

impl Response {
    /// Resets the response and keeps its allocations.
    pub fn clear(&mut self) {
        self.status = 200;
        self.content_type = "";
        self.headers.clear();
        self.body.clear();
        self.stream = None;
        self.close = false;
        self.work_bytes = 0;
    }

    /// Adds a header line. A control character in `value`, which could inject another line, is
    /// replaced by a space.
    pub fn header(&mut self, name: &'static str, value: impl fmt::Display) {
        let start = self.headers.len();
        write!(self.headers, "{name}: {value}").expect("writing to a vector cannot fail");
        for byte in self.headers[start..].iter_mut().filter(|byte| byte.is_ascii_control()) {
            *byte = b' ';
        }
        self.headers.extend_from_slice(b"\r\n");
    }
}

/// The name and the separator of the line that [`Response::vary`] writes.
const VARY: &[u8] = b"Vary: ";

impl Response {
    /// Declares that the response depends on the request header `field` (RFC 9110, 12.5.5). All
    /// fields are in one line, once each.
    pub fn vary(&mut self, field: &str) {
        let mut at = 0;
        for line in self.headers.split_inclusive(|byte| *byte == b'\n') {
            at += line.len();
            let Some(fields) = line.strip_prefix(VARY) else { continue };
            let mut listed = fields.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            if !listed.any(|listed| listed.eq_ignore_ascii_case(field.as_bytes())) {
                let end = at - b"\r\n".len();
                self.headers.splice(end..end, [b", ", field.as_bytes()].concat());
            }
            return;
        }
        self.header("Vary", field);
    }

    /// Puts `lines`, header lines of another response to the same request, before those of this one.
    /// The `Vary` lines become one.
    pub fn prepend_headers(&mut self, lines: Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        let own = std::mem::replace(&mut self.headers, lines);
        let mut varies = None;
        for line in own.split_inclusive(|byte| *byte == b'\n') {
            match line.strip_prefix(VARY) {
                Some(fields) => varies = Some(fields),
                None => self.headers.extend_from_slice(line),
            }
        }
        for field in varies.into_iter().flat_map(|fields| fields.split(|byte| *byte == b',')) {
            if let Ok(field) = str::from_utf8(field.trim_ascii()) {
                self.vary(field);
            }
        }
    }
}

/// Returns the reason phrase of a status that this server uses.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Status",
    }
}

/// A promise of a response from another thread. Dropping it unfulfilled sends a 500, so that no
/// connection waits forever.
pub struct Promise {
    deliver: Option<Deliver>,
}

/// Passes a response to the engine. Returns what wakes the thread that sends it.
type Deliver = Box<dyn FnOnce(Response) -> Option<Waker> + Send>;

impl Promise {
    /// `deliver` passes the response to the engine; it is called once, on any thread.
    pub fn new(deliver: impl FnOnce(Response) + Send + 'static) -> Self {
        Self::with_waker(move |response| {
            deliver(response);
            None
        })
    }

    /// As [`Promise::new`]; `deliver` also returns what wakes the thread that sends the response.
    pub fn with_waker(deliver: impl FnOnce(Response) -> Option<Waker> + Send + 'static) -> Self {
        Self { deliver: Some(Box::new(deliver)) }
    }

    pub fn fulfil(self, response: Response) {
        if let Some(waker) = self.fulfil_without_wake(response) {
            waker.wake();
        }
    }

    /// Fulfils the promise and leaves it to the caller to wake the thread that sends the response,
    /// which is cheaper for several promises at once.
    #[must_use]
    pub fn fulfil_without_wake(mut self, response: Response) -> Option<Waker> {
        self.deliver.take().and_then(|deliver| deliver(response))
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(deliver) = self.deliver.take()
            && let Some(waker) = deliver(Response { status: 500, ..Response::default() })
        {
            waker.wake();
        }
    }
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.deliver.is_some() { "Promise(open)" } else { "Promise(fulfilled)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(response: &Response) -> &str {
        str::from_utf8(&response.headers).unwrap()
    }

    #[test]
    fn vary_lists_each_field_once_in_one_line() {
        let mut response = Response::default();
        response.header("A", 1);
        response.vary("Accept");
        response.header("X-Vary: no", 2);
        for field in ["Origin", "accept", "Accept-Encoding", "Origin"] {
            response.vary(field);
        }
        assert_eq!(lines(&response), "A: 1\r\nVary: Accept, Origin, Accept-Encoding\r\nX-Vary: no: 2\r\n");
    }

    #[test]
    fn prepended_headers_come_first_and_share_one_vary_line() {
        let mut response = Response::default();
        response.vary("Accept");
        response.header("B", 2);
        response.vary("Origin");
        response.prepend_headers(Vec::new());
        assert_eq!(lines(&response), "Vary: Accept, Origin\r\nB: 2\r\n");
        response.prepend_headers(b"A: 1\r\nVary: Origin\r\n".to_vec());
        assert_eq!(lines(&response), "A: 1\r\nVary: Origin, Accept\r\nB: 2\r\n");
        response.prepend_headers(b"C: 3\r\n".to_vec());
        assert_eq!(lines(&response), "C: 3\r\nA: 1\r\nB: 2\r\nVary: Origin, Accept\r\n");
    }
}
