//! A response that a handler fills, and the promise of a response from another thread.

use std::fmt;
use std::io::Write;

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
    deliver: Option<Box<dyn FnOnce(Response) + Send>>,
}

impl Promise {
    /// `deliver` passes the response to the engine; it is called once, on any thread.
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
        f.write_str(if self.deliver.is_some() { "Promise(open)" } else { "Promise(fulfilled)" })
    }
}
