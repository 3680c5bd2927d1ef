//! Runs the handlers on `may_minihttp`, for trusted networks and as a benchmark baseline of the
//! guarded engine.
//!
//! Limitations, because the library does not expose its connections:
//! - no timeouts, and no limits on connections, on header bytes or on buffered responses;
//! - more than 16 header fields, or a malformed header, close the connection without a response;
//! - a chunked body, or a `Content-Length` that is invalid, duplicated or far above the limit,
//!   closes the connection without a response, since the library would parse the body as the next
//!   request;
//! - `Expect: 100-continue` is ignored: the client sends the body after its own timeout;
//! - a refusal by the header is sent after the body, which is read and not kept if it has more than
//!   [`UNCHECKED_BODY_BYTES_MAX`] bytes;
//! - HTTP/1.0 and `Connection: close` are served, but the client must close the connection;
//! - HEAD gets `Content-Length: 0`;
//! - a streaming response becomes a 501: the library sends complete bodies only;
//! - the client address is unknown: [`Request::peer`] is `0.0.0.0`, so that limits per address
//!   apply to all clients together;
//! - header lines must be `'static`: the first [`LINES_MAX`] distinct lines are leaked, later ones
//!   omitted;
//! - it stops only with the process, and [`Handler::on_turn_end`] is called after each request.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use may::sync::spsc;
use may_minihttp::{HttpService, HttpServiceFactory};

use super::framing::{self, BodyFraming, FramingFields};
use super::limits::HttpLimits;
use super::problem::{self, ProblemKind};
use super::refusal::Refusal;
use super::response::reason_phrase;
use super::{Handler, HandlerResult, HeadResult, Headers, Method, Promise, Request, Response, target};

/// Limit on leaked header lines. The fixed lines of this server are about twenty, `Retry-After` has
/// a few dozen values; at 64 bytes per line the limit is 64 KiB.
const LINES_MAX: usize = 1024;
/// A body of up to this multiple of the limit is read and discarded, so that the client gets a 413.
const DISCARDED_TIMES: usize = 4;
/// Above this size the handler decides on the header before the body is read. Smaller bodies are not
/// worth the copy of its decision.
const UNCHECKED_BODY_BYTES_MAX: usize = 16 * 1024;
/// Header fields that the library supports in addition to `Content-Type`.
const HEADERS_MAX: usize = 15;

/// A running server. It stops with the process.
#[derive(Debug)]
pub struct MinihttpServer {
    handle: may::coroutine::JoinHandle<()>,
}

impl MinihttpServer {
    /// Blocks until accepting fails.
    pub fn wait(self) {
        self.handle.wait();
    }
}

/// Stack of a coroutine in words: 128 KiB. The library's default of 32 KiB is too small for
/// formatting in a handler; untouched pages cost nothing.
const STACK_WORDS: usize = 16 * 1024;

/// Serves `address` on `workers` threads; `make` builds a handler for each connection.
pub fn start<H, F>(
    address: SocketAddr,
    workers: usize,
    limits: HttpLimits,
    make: F,
) -> io::Result<MinihttpServer>
where
    H: Handler + 'static,
    F: Fn() -> H + Send + 'static,
{
    may::config().set_workers(workers).set_stack_size(STACK_WORDS);
    let handle = MinihttpFactory { make, limits }.start(address)?;
    Ok(MinihttpServer { handle })
}

struct MinihttpFactory<F> {
    make: F,
    limits: HttpLimits,
}

impl<H, F> HttpServiceFactory for MinihttpFactory<F>
where
    H: Handler + 'static,
    F: Fn() -> H + Send + 'static,
{
    type Service = MinihttpService<H>;

    fn new_service(&self, _id: usize) -> MinihttpService<H> {
        MinihttpService {
            handler: (self.make)(),
            limits: self.limits,
            response: Response::default(),
            body: Vec::new(),
        }
    }
}

struct MinihttpService<H> {
    handler: H,
    limits: HttpLimits,
    response: Response,
    body: Vec<u8>,
}

/// The decision on a request before its handler is called.
enum FramingCheck {
    /// Handle it; the body has this many bytes.
    Accept(usize),
    /// Refuse it; the end of the body is known, so the connection stays usable.
    Refuse(Refusal),
    /// Close the connection: the end of the body is unknown.
    Disconnect(Refusal),
}

impl<H: Handler> HttpService for MinihttpService<H> {
    fn call(
        &mut self,
        request: may_minihttp::Request<'_, '_, '_>,
        reply: &mut may_minihttp::Response<'_>,
    ) -> io::Result<()> {
        self.response.clear();
        self.body.clear();
        match check_framing(&request, &self.limits) {
            FramingCheck::Disconnect(refusal) => {
                refusal.write(&mut self.response);
                self.handler.on_refused(Headers(request.headers()), &mut self.response);
                // The library continues to read after an error; only unwinding its coroutine closes
                // the connection.
                resume_unwind(Box::new(refusal.detail));
            }
            FramingCheck::Refuse(refusal) => {
                refusal.write(&mut self.response);
                self.handler.on_refused(Headers(request.headers()), &mut self.response);
                // Dropping the reader reads and discards the body.
                drop(request.body());
            }
            FramingCheck::Accept(length) => self.call_handler(request, length)?,
        }
        write(&mut self.response, reply);
        Ok(())
    }
}

impl<H: Handler> MinihttpService<H> {
    fn call_handler(&mut self, request: may_minihttp::Request<'_, '_, '_>, length: usize) -> io::Result<()> {
        // The library lends either the header or the body; the header is copied because it is
        // smaller.
        let method = Method::parse(request.method());
        let target = request.path().to_owned();
        let fields: Vec<(String, Vec<u8>)> =
            request.headers().iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
        let fields: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name: name.as_str(), value }).collect();
        let (path, query) = match target::parse(method, &target) {
            Ok(parts) => parts,
            Err(refusal) => {
                refusal.write(&mut self.response);
                self.handler.on_refused(Headers(&fields), &mut self.response);
                // Dropping the reader reads and discards the body.
                drop(request.body());
                return Ok(());
            }
        };
        let mut checked = None;
        if length > UNCHECKED_BODY_BYTES_MAX {
            let head = Request {
                method,
                path,
                query,
                headers: Headers(&fields),
                body: b"",
                peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                promise: &|| unreachable!("BUG: a header needs no promise"),
            };
            let (handler, response) = (&mut self.handler, &mut self.response);
            match catch_unwind(AssertUnwindSafe(|| handler.check_head(&head, response))) {
                Ok(HeadResult::Proceed(continuation)) => checked = continuation,
                Ok(HeadResult::Refused) => {
                    drop(request.body());
                    return Ok(());
                }
                Err(_) => {
                    write_panic(&head, response);
                    drop(request.body());
                    return Ok(());
                }
            }
            self.response.clear();
        }
        request.body().read_to_end(&mut self.body)?;
        if self.body.len() < length {
            // The library treats a connection closed within the body as its end.
            resume_unwind(Box::new("the body is truncated"));
        }
        let (sender, receiver) = spsc::channel();
        let sender = std::cell::Cell::new(Some(sender));
        let promise = || {
            let sender = sender.take();
            Promise::new(move |response| {
                if let Some(sender) = sender
                    && sender.send(response).is_err()
                {
                    log::debug!("a promised response was dropped: its connection is closed");
                }
            })
        };
        let handler_request = Request {
            method,
            path,
            query,
            headers: Headers(&fields),
            body: &self.body,
            peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            promise: &promise,
        };
        let handler = &mut self.handler;
        let response = &mut self.response;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut result = match checked {
                Some(continuation) => handler.resume(continuation, &handler_request, response),
                None => handler.handle(&handler_request, response),
            };
            // Other connections of the worker run between two slices.
            while let HandlerResult::Yield(continuation) = result {
                response.clear();
                result = handler.resume(continuation, &handler_request, response);
                may::coroutine::yield_now();
            }
            handler.on_turn_end();
            result
        }));
        match result {
            Ok(HandlerResult::Done | HandlerResult::Yield(_)) => {}
            Ok(HandlerResult::Pending) => {
                // If the handler made no promise, this closes the channel.
                drop(sender.take());
                // Blocks this coroutine only.
                match receiver.recv() {
                    Ok(response) => self.response = response,
                    Err(_) => problem::write(
                        &mut self.response,
                        ProblemKind::Internal,
                        "the request handler failed",
                    ),
                }
            }
            Err(_) => write_panic(&handler_request, &mut self.response),
        }
        Ok(())
    }
}

/// Writes the 500 of a handler that panicked.
fn write_panic(request: &Request<'_>, response: &mut Response) {
    log::error!("BUG: the handler panicked on {request:?}");
    response.clear();
    problem::write(response, ProblemKind::Internal, "the request handler failed");
}

fn check_framing(request: &may_minihttp::Request<'_, '_, '_>, limits: &HttpLimits) -> FramingCheck {
    let is_http_1_0 = request.version() == 0;
    let wide =
        HttpLimits { body_bytes_max: limits.body_bytes_max.saturating_mul(DISCARDED_TIMES), ..*limits };
    let fields = match FramingFields::collect(request.headers(), is_http_1_0) {
        Ok(fields) => fields,
        Err(refusal) => return FramingCheck::Disconnect(refusal),
    };
    match fields.body_framing(is_http_1_0, &wide) {
        Ok(BodyFraming::Length(length)) if length <= limits.body_bytes_max => FramingCheck::Accept(length),
        Ok(BodyFraming::Length(_)) => FramingCheck::Refuse(framing::TOO_LARGE),
        Ok(BodyFraming::Chunked) => {
            FramingCheck::Disconnect(Refusal::new(411, "this engine needs Content-Length"))
        }
        Err(refusal) => FramingCheck::Disconnect(refusal),
    }
}

fn write(response: &mut Response, reply: &mut may_minihttp::Response<'_>) {
    // The library sends complete bodies only. Dropping the stream stops its producer.
    if response.stream.take().is_some() {
        response.clear();
        problem::write(
            response,
            ProblemKind::NotImplemented,
            "this engine does not stream: request single pages, or run the server with HTTP_ENGINE=guarded",
        );
    }
    reply.status_code(usize::from(response.status), reason_phrase(response.status));
    if !response.content_type.is_empty()
        && let Some(line) = leaked_line(format!("Content-Type: {}", response.content_type).as_bytes())
    {
        reply.header(line);
    }
    let lines = response.headers.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    for line in lines.filter(|line| !line.is_empty()).take(HEADERS_MAX).filter_map(leaked_line) {
        reply.header(line);
    }
    reply.body_vec(std::mem::take(&mut response.body));
}

/// Returns a leaked copy of `line`, or `None` if [`LINES_MAX`] is reached.
fn leaked_line(line: &[u8]) -> Option<&'static str> {
    static LINES: LazyLock<Mutex<HashMap<Vec<u8>, &'static str>>> = LazyLock::new(Mutex::default);
    // Held for one look-up, never across a yield.
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(leaked) = lines.get(line) {
        return Some(leaked);
    }
    if lines.len() >= LINES_MAX {
        return None;
    }
    let leaked: &'static str = String::from_utf8(line.to_vec()).ok()?.leak();
    lines.insert(line.to_vec(), leaked);
    Some(leaked)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    struct MinihttpTestHandler;

    impl Handler for MinihttpTestHandler {
        fn check_head(&mut self, request: &Request<'_>, response: &mut Response) -> HeadResult {
            match request.path {
                "/refused" => {
                    response.status = 403;
                    HeadResult::Refused
                }
                "/panic" => panic!("panic of the test"),
                _ => HeadResult::Proceed(Some(Box::new("checked"))),
            }
        }

        fn resume(
            &mut self,
            continuation: crate::http::Continuation,
            request: &Request<'_>,
            response: &mut Response,
        ) -> HandlerResult {
            response.header("X-Checked", continuation.downcast::<&str>().unwrap());
            self.handle(request, response)
        }

        fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> HandlerResult {
            response.content_type = "text/plain";
            match request.path {
                "/panic" => panic!("panic of the test"),
                "/later" => {
                    let response = Response { status: 202, body: b"late".to_vec(), ..Response::default() };
                    request.promise().fulfil(response);
                    return HandlerResult::Pending;
                }
                "/dropped" => {
                    drop(request.promise());
                    return HandlerResult::Pending;
                }
                "/unpromised" => return HandlerResult::Pending,
                "/stream" => response.stream = Some(crate::http::body_channel().1),
                "/busy" => {
                    response.status = 503;
                    response.header("Retry-After", 7);
                }
                _ => response.body.extend_from_slice(request.body),
            }
            HandlerResult::Done
        }
    }

    fn server() -> SocketAddr {
        static ADDRESS: LazyLock<SocketAddr> =
            LazyLock::new(|| start_server(HttpLimits { body_bytes_max: 100, ..HttpLimits::default() }));
        *ADDRESS
    }

    fn start_server(limits: HttpLimits) -> SocketAddr {
        // The library does not report its port, so the test uses one that was just free.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        start(address, 1, limits, || MinihttpTestHandler).unwrap();
        address
    }

    #[track_caller]
    fn check(request: &str, statuses: &[&str], holds: &str) {
        check_at(server(), request, statuses, holds);
    }

    /// Sends `request` on a new connection and checks the statuses of the responses.
    #[track_caller]
    fn check_at(address: SocketAddr, request: &str, statuses: &[&str], holds: &str) {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut received = Vec::new();
        let mut piece = [0; 4096];
        // Until all expected responses or the end have arrived.
        while received.windows(9).filter(|window| window == b"HTTP/1.1 ").count() <= statuses.len() {
            if statuses.len() == count(&received) && !statuses.is_empty() {
                break;
            }
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => received.extend_from_slice(&piece[..count]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    break;
                }
            }
        }
        let received = String::from_utf8(received).unwrap();
        let found: Vec<&str> = received.split("HTTP/1.1 ").skip(1).map(|reply| &reply[..3]).collect();
        assert_eq!(found, statuses, "{received}");
        assert!(received.contains(holds), "{received}");
    }

    /// Counts the responses whose header is complete.
    fn count(received: &[u8]) -> usize {
        received.windows(4).filter(|window| window == b"\r\n\r\n").count()
    }

    #[test]
    fn handlers_respond_as_on_the_guarded_engine() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", &["200"], "Content-Type: text/plain\r\n");
        check(
            "POST /busy HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok",
            &["503"],
            "Retry-After: 7\r\n",
        );
        check("GET /later HTTP/1.1\r\nHost: a\r\n\r\n", &["202"], "");
        check("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n", &["501"], "does not stream");
        check("GET /dropped HTTP/1.1\r\nHost: a\r\n\r\n", &["500"], "");
        check("GET /unpromised HTTP/1.1\r\nHost: a\r\n\r\n", &["500"], "");
        check("GET /panic HTTP/1.1\r\nHost: a\r\n\r\n", &["500"], "");
        check("GET x HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", &["400", "200"], "");
    }

    #[test]
    fn header_decides_before_a_large_body_is_kept() {
        let address = start_server(HttpLimits::default());
        let body = "x".repeat(UNCHECKED_BODY_BYTES_MAX + 1);
        let post = |path: &str| {
            let length = body.len();
            format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}\
                 GET /after HTTP/1.1\r\nHost: a\r\n\r\n"
            )
        };
        check_at(address, &post("/refused"), &["403", "200"], "");
        check_at(address, &post("/accepted"), &["200", "200"], "X-Checked: checked\r\n");
        check_at(address, &post("/panic"), &["500", "200"], "");
    }

    #[test]
    fn truncated_body_reaches_no_handler() {
        let mut stream = TcpStream::connect(server()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell").unwrap();
        // The library would respond to nothing if the end arrived together with the data.
        std::thread::park_timeout(Duration::from_millis(100));
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = Vec::new();
        if let Err(error) = stream.read_to_end(&mut reply) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(String::from_utf8(reply).unwrap(), "");
    }

    #[test]
    fn body_is_never_parsed_as_a_request() {
        let large = "x".repeat(101);
        check(
            &format!(
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 101\r\n\r\n{large}\
                 GET / HTTP/1.1\r\nHost: a\r\n\r\n"
            ),
            &["413", "200"],
            "",
        );
        let hidden = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for field in [
            "Content-Length: abc",
            "Content-Length: 5\r\nContent-Length: 0",
            "Content-Length: 99999999999",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: gzip",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
        ] {
            check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n{hidden}"), &[], "");
        }
    }
}
