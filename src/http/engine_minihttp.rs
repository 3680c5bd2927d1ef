//! The same handlers on `may_minihttp`: for trusted networks, and as the yardstick of the guarded engine.
//!
//! What it cannot do, for want of a hold on the library's connections:
//! - no timeouts of any kind, and no bound on connections, on a header's bytes or on waiting answers;
//! - more than 16 header fields, or a malformed header, end the connection without an answer;
//! - no chunked bodies, and a `Content-Length` that is bad, double or far above the bound: the connection ends
//!   without an answer, since the library would read the body as the next request;
//! - no `Expect: 100-continue`: the client waits until it sends the body unasked;
//! - HTTP/1.0 and `Connection: close` are answered, but the connection is left for the client to close;
//! - HEAD is answered with `Content-Length: 0`;
//! - a streamed answer is refused with 501: the library sends a body only once it has all of it;
//! - a client's address is not known: [`Request::peer`] is `0.0.0.0`, so that limits per address limit all at once;
//! - header lines have to live for ever: of lines that vary, the first [`LINES_MAX`] are kept, others left out;
//! - it ends with the process and not before, and [`Handler::turn_ended`] follows each request.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{LazyLock, Mutex, PoisonError};

use may::sync::spsc;
use may_minihttp::{HttpService, HttpServiceFactory};

use super::framing::{self, Body, Fields};
use super::limits::Limits;
use super::problem::{self, Kind};
use super::refusal::Refusal;
use super::response::reason;
use super::{Answer, Handler, Headers, Method, Promise, Request, Response, target};

/// Header lines that are kept for ever: the fixed ones of this server are some twenty, `Retry-After` has a few
/// dozen values. At 64 bytes a line they come to 64 KiB.
const LINES_MAX: usize = 1024;
/// A body up to so many times the bound is read and discarded, so that its sender gets the 413.
const DISCARDED_TIMES: usize = 4;
/// Fields that the library leaves room for beside `Content-Type`.
const HEADERS_MAX: usize = 15;

/// A running server. It ends with the process.
#[derive(Debug)]
pub struct Running {
    handle: may::coroutine::JoinHandle<()>,
}

impl Running {
    /// Waits until accepting fails.
    pub fn wait(self) {
        self.handle.wait();
    }
}

/// Words of a coroutine's stack, 128 KiB. The library's 32 KiB leave a handler no room to format in; pages that
/// are not touched cost nothing.
const STACK_WORDS: usize = 16 * 1024;

/// Serves `address` on `workers` threads; `make` makes a handler for each connection.
pub fn start<H, F>(address: SocketAddr, workers: usize, limits: Limits, make: F) -> io::Result<Running>
where
    H: Handler + 'static,
    F: Fn() -> H + Send + 'static,
{
    may::config().set_workers(workers).set_stack_size(STACK_WORDS);
    let handle = Factory { make, limits }.start(address)?;
    Ok(Running { handle })
}

struct Factory<F> {
    make: F,
    limits: Limits,
}

impl<H, F> HttpServiceFactory for Factory<F>
where
    H: Handler + 'static,
    F: Fn() -> H + Send + 'static,
{
    type Service = Service<H>;

    fn new_service(&self, _id: usize) -> Service<H> {
        Service {
            handler: (self.make)(),
            limits: self.limits,
            response: Response::default(),
            body: Vec::new(),
        }
    }
}

struct Service<H> {
    handler: H,
    limits: Limits,
    response: Response,
    body: Vec<u8>,
}

/// What becomes of a request before a handler sees it.
enum Judged {
    /// Its body has so many bytes.
    Answer(usize),
    /// Its body has an end, so that the connection goes on behind it.
    Refuse(Refusal),
    /// Where it ends is not known.
    HangUp(Refusal),
}

impl<H: Handler> HttpService for Service<H> {
    fn call(
        &mut self,
        request: may_minihttp::Request<'_, '_, '_>,
        answer: &mut may_minihttp::Response<'_>,
    ) -> io::Result<()> {
        self.response.clear();
        self.body.clear();
        match judge(&request, &self.limits) {
            Judged::HangUp(refusal) => {
                refusal.write(&mut self.response);
                self.handler.refused(Headers(request.headers()), &mut self.response);
                // The library goes on reading after an error; only the end of its coroutine ends the connection.
                resume_unwind(Box::new(refusal.detail));
            }
            Judged::Refuse(refusal) => {
                refusal.write(&mut self.response);
                self.handler.refused(Headers(request.headers()), &mut self.response);
                // Dropped, the reader reads the body to its end.
                drop(request.body());
            }
            Judged::Answer(length) => self.answer(request, length)?,
        }
        write(&mut self.response, answer);
        Ok(())
    }
}

impl<H: Handler> Service<H> {
    fn answer(&mut self, request: may_minihttp::Request<'_, '_, '_>, length: usize) -> io::Result<()> {
        // The library gives either the header or the body: the header is copied, being the shorter.
        let method = Method::parse(request.method());
        let target = request.path().to_owned();
        let fields: Vec<(String, Vec<u8>)> =
            request.headers().iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
        request.body().read_to_end(&mut self.body)?;
        if self.body.len() < length {
            // The client ended in the midst of it, which the library takes for its end.
            resume_unwind(Box::new("the body is cut off"));
        }

        let fields: Vec<_> =
            fields.iter().map(|(name, value)| httparse::Header { name: name.as_str(), value }).collect();
        let (path, query) = match target::parse(method, &target) {
            Ok(parts) => parts,
            Err(refusal) => {
                refusal.write(&mut self.response);
                self.handler.refused(Headers(&fields), &mut self.response);
                return Ok(());
            }
        };
        let (sender, receiver) = spsc::channel();
        let sender = std::cell::Cell::new(Some(sender));
        let promise = || {
            let sender = sender.take();
            Promise::new(move |response| {
                // Whoever waited for it is gone: nobody is left to be told.
                if let Some(sender) = sender
                    && sender.send(response).is_err()
                {
                    log::debug!("a late answer found its connection closed");
                }
            })
        };
        let whole = Request {
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
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let mut answered = handler.handle(&whole, response);
            // Between the slices its worker's other connections have their turn.
            while let Answer::More(unfinished) = answered {
                response.clear();
                answered = handler.go_on(unfinished, &whole, response);
                may::coroutine::yield_now();
            }
            handler.turn_ended();
            answered
        }));
        match answered {
            Ok(Answer::Ready | Answer::More(_)) => {}
            Ok(Answer::Later) => {
                // If no promise was made, none can be kept: the end of the channel says so.
                drop(sender.take());
                // Blocks this coroutine alone.
                match receiver.recv() {
                    Ok(late) => self.response = late,
                    Err(_) => problem::answer(
                        &mut self.response,
                        Kind::Internal,
                        "the request could not be worked on",
                    ),
                }
            }
            Err(_) => {
                log::error!("BUG: the handler panicked at {whole:?}");
                self.response.clear();
                problem::answer(&mut self.response, Kind::Internal, "the request could not be worked on");
            }
        }
        Ok(())
    }
}

fn judge(request: &may_minihttp::Request<'_, '_, '_>, limits: &Limits) -> Judged {
    let old = request.version() == 0;
    let wide = Limits { body_bytes_max: limits.body_bytes_max.saturating_mul(DISCARDED_TIMES), ..*limits };
    let fields = match Fields::gather(request.headers(), old) {
        Ok(fields) => fields,
        Err(refusal) => return Judged::HangUp(refusal),
    };
    match fields.body(old, &wide) {
        Ok(Body::Bytes(length)) if length <= limits.body_bytes_max => Judged::Answer(length),
        Ok(Body::Bytes(_)) => Judged::Refuse(framing::TOO_LARGE),
        Ok(Body::Chunked) => Judged::HangUp(Refusal::new(411, "this engine needs Content-Length")),
        Err(refusal) => Judged::HangUp(refusal),
    }
}

fn write(response: &mut Response, answer: &mut may_minihttp::Response<'_>) {
    // The library sends whole bodies alone. Dropped, the stream tells its maker to stop.
    if response.stream.take().is_some() {
        response.clear();
        problem::answer(
            response,
            Kind::NotImplemented,
            "this engine does not stream: ask page by page, or serve with HTTP_ENGINE=guarded",
        );
    }
    answer.status_code(usize::from(response.status), reason(response.status));
    if !response.content_type.is_empty()
        && let Some(line) = kept_line(format!("Content-Type: {}", response.content_type).as_bytes())
    {
        answer.header(line);
    }
    let lines = response.headers.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    for line in lines.filter(|line| !line.is_empty()).take(HEADERS_MAX).filter_map(kept_line) {
        answer.header(line);
    }
    answer.body_vec(std::mem::take(&mut response.body));
}

/// The same line, kept for ever, while there is room for another.
fn kept_line(line: &[u8]) -> Option<&'static str> {
    static LINES: LazyLock<Mutex<HashMap<Vec<u8>, &'static str>>> = LazyLock::new(Mutex::default);
    // Held for a look-up, never across a wait.
    let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = lines.get(line) {
        return Some(kept);
    }
    if lines.len() >= LINES_MAX {
        return None;
    }
    let kept: &'static str = String::from_utf8(line.to_vec()).ok()?.leak();
    lines.insert(line.to_vec(), kept);
    Some(kept)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    struct Echo;

    impl Handler for Echo {
        fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer {
            response.content_type = "text/plain";
            match request.path {
                "/panic" => panic!("as the test wants"),
                "/later" => {
                    let late = Response { status: 202, body: b"late".to_vec(), ..Response::default() };
                    request.promise().fulfil(late);
                    return Answer::Later;
                }
                "/dropped" => {
                    drop(request.promise());
                    return Answer::Later;
                }
                "/unpromised" => return Answer::Later,
                "/stream" => response.stream = Some(crate::http::stream().1),
                "/busy" => {
                    response.status = 503;
                    response.header("Retry-After", 7);
                }
                _ => response.body.extend_from_slice(request.body),
            }
            Answer::Ready
        }
    }

    fn server() -> SocketAddr {
        static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
            // The library does not say which port it was given: take one that was just free.
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            start(address, 1, Limits { body_bytes_max: 100, ..Limits::default() }, || Echo).unwrap();
            address
        });
        *ADDRESS
    }

    /// Sends all of `request` on one connection, and `Connection: close` being beyond the library, shuts it.
    #[track_caller]
    fn check(request: &str, statuses: &[&str], holds: &str) {
        let mut stream = TcpStream::connect(server()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answers = Vec::new();
        let mut piece = [0; 4096];
        // Either so many answers come, or the end.
        while answers.windows(9).filter(|window| window == b"HTTP/1.1 ").count() <= statuses.len() {
            if statuses.len() == count(&answers) && !statuses.is_empty() {
                break;
            }
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => answers.extend_from_slice(&piece[..count]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                    break;
                }
            }
        }
        let answers = String::from_utf8(answers).unwrap();
        let found: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(found, statuses, "{answers}");
        assert!(answers.contains(holds), "{answers}");
    }

    /// Answers whose header is complete.
    fn count(answers: &[u8]) -> usize {
        answers.windows(4).filter(|window| window == b"\r\n\r\n").count()
    }

    #[test]
    fn the_same_handlers_answer_on_the_other_engine() {
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
    fn a_body_that_is_cut_off_reaches_no_handler() {
        let mut stream = TcpStream::connect(server()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell").unwrap();
        // Not together with what comes before it: the library would answer none of it.
        std::thread::park_timeout(Duration::from_millis(100));
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        // However it ends.
        if let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(String::from_utf8(answer).unwrap(), "");
    }

    #[test]
    fn a_body_is_never_read_as_a_request() {
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
