//! An answer as a handler writes it, and the promise of one that comes later.

use std::fmt;
use std::io::Write;

use super::stream::Stream;

/// What a handler fills. The engine adds the status line, `Date`, `Content-Length` or
/// `Transfer-Encoding`, and `Connection`.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Empty for an answer without content.
    pub content_type: &'static str,
    /// Further header lines, each ended by CR LF.
    pub headers: Vec<u8>,
    pub body: Vec<u8>,
    /// The body comes in pieces, and `body` stays empty.
    pub stream: Option<Stream>,
    /// Whether the connection ends after this answer.
    pub close: bool,
    /// Bytes that were worked on beside those of the request and of this answer: they count for the connection's
    /// share of a turn.
    pub effort: usize,
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
            effort: 0,
        }
    }
}

impl Response {
    /// Makes it fresh and keeps its allocations.
    pub fn clear(&mut self) {
        self.status = 200;
        self.content_type = "";
        self.headers.clear();
        self.body.clear();
        self.stream = None;
        self.close = false;
        self.effort = 0;
    }

    /// Adds a header line. A control character in `value`, which could end the line and begin another, is a
    /// mistake of the caller and becomes a space.
    pub fn header(&mut self, name: &'static str, value: impl fmt::Display) {
        let start = self.headers.len();
        write!(self.headers, "{name}: {value}").expect("a vector takes all that is written");
        for byte in self.headers[start..].iter_mut().filter(|byte| byte.is_ascii_control()) {
            *byte = b' ';
        }
        self.headers.extend_from_slice(b"\r\n");
    }
}

/// The reason phrase of the statuses this server answers with.
pub fn reason(status: u16) -> &'static str {
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

/// Where an answer goes that another thread works out. Dropped without one, it answers 500, so that no
/// connection waits for ever.
pub struct Promise {
    deliver: Option<Box<dyn FnOnce(Response) + Send>>,
}

impl Promise {
    /// `deliver` hands the answer to the engine; it is called once, on any thread.
    pub fn new(deliver: impl FnOnce(Response) + Send + 'static) -> Self {
        Self { deliver: Some(Box::new(deliver)) }
    }

    pub fn fulfil(mut self, response: Response) {
        if let Some(deliver) = self.deliver.take() {
            deliver(response);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(deliver) = self.deliver.take() {
            deliver(Response { status: 500, ..Response::default() });
        }
    }
}

impl fmt::Debug for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.deliver.is_some() { "Promise(open)" } else { "Promise(kept)" })
    }
}
