//! Tests of the acceptor over loopback sockets, from the client's side.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::clock::Clock;

/// Longer than any operation of these tests; reaching it fails the test.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

pub(super) struct TestHandler {
    promises: Sender<Promise>,
    kept: Vec<Promise>,
    /// Whether `/release` was requested.
    released: bool,
}

impl Handler for TestHandler {
    fn check_head(&mut self, request: &Request<'_>, response: &mut Response) -> HeadResult {
        if request.path == "/refused" {
            response.status = 403;
            return HeadResult::Refused;
        }
        HeadResult::Proceed(None)
    }

    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> HandlerResult {
        match request.path {
            "/later" => {
                self.promises.send(request.promise()).unwrap();
                return HandlerResult::Pending;
            }
            "/turn" => {
                self.kept.push(request.promise());
                return HandlerResult::Pending;
            }
            "/dropped" => {
                drop(request.promise());
                return HandlerResult::Pending;
            }
            "/panic" => panic!("panic of the test"),
            "/long" | "/long/panic" => return HandlerResult::Yield(Box::new(SlicesDone(0))),
            "/release" => self.released = true,
            "/large" => response.body.resize(8 << 20, b'x'),
            "/peer" => write!(response.body, "{}", request.peer).unwrap(),
            "/nothing" => response.status = 404,
            "/refused" => response.status = 403,
            _ => response.body.extend_from_slice(request.body),
        }
        HandlerResult::Done
    }

    /// A long request completes only after another client has requested `/release`.
    fn resume(
        &mut self,
        continuation: Continuation,
        request: &Request<'_>,
        response: &mut Response,
    ) -> HandlerResult {
        let SlicesDone(done) = *continuation.downcast::<SlicesDone>().unwrap();
        assert!(request.path == "/long", "panic of the test");
        if done < SLICES_MIN || !self.released {
            return HandlerResult::Yield(Box::new(SlicesDone(done + 1)));
        }
        response.status = 202;
        response.body.extend_from_slice(request.body);
        HandlerResult::Done
    }

    fn on_turn_end(&mut self) {
        for promise in self.kept.drain(..) {
            promise.fulfil(Response { status: 202, ..Response::default() });
        }
    }
}

/// Completed slices of a long request.
struct SlicesDone(u32);

const SLICES_MIN: u32 = 3;

pub(super) struct TestAcceptor {
    pub(super) address: SocketAddr,
    pub(super) handle: AcceptorHandle,
    pub(super) stats: Arc<ConnectionStats>,
    promises: Receiver<Promise>,
    thread: Option<JoinHandle<()>>,
}

impl TestAcceptor {
    pub(super) fn start(limits: HttpLimits) -> Self {
        Self::start_with(limits, None)
    }

    #[expect(clippy::disallowed_methods, reason = "a thread of the test, which joins it")]
    pub(super) fn start_with(limits: HttpLimits, identity: Option<Arc<tls::TlsIdentity>>) -> Self {
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let stats = Arc::<ConnectionStats>::default();
        let (sender, promises) = channel();
        let mut acceptor = Acceptor::new(listener, limits, Clock::system(), Arc::clone(&stats), |_| {
            TestHandler { promises: sender, kept: Vec::new(), released: false }
        })
        .unwrap()
        .with_tls(identity);
        let (address, handle) = (acceptor.local_addr(), acceptor.handle());
        let thread = std::thread::spawn(move || acceptor.run().unwrap());
        Self { address, handle, stats, promises, thread: Some(thread) }
    }

    pub(super) fn connect(&self) -> TestClient {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        TestClient(stream)
    }

    pub(super) fn connect_and_send(&self, bytes: &[u8]) -> TestClient {
        let mut client = self.connect();
        client.send(bytes);
        client
    }

    pub(super) fn promise(&self) -> Promise {
        self.promises.recv().unwrap()
    }

    fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for TestAcceptor {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub(super) struct TestClient(pub(super) TcpStream);

impl TestClient {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Reads the header section of the next response.
    pub(super) fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(self.0.read(&mut byte).unwrap(), 1, "closed after {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads the status and the body of the next response.
    pub(super) fn response(&mut self) -> (u16, String) {
        let head = self.head();
        let length = head
            .split("Content-Length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        (head[9..12].parse().unwrap(), String::from_utf8(body).unwrap())
    }

    fn status(&mut self) -> u16 {
        self.response().0
    }

    /// Waits for an orderly close without further bytes.
    #[track_caller]
    pub(super) fn expect_close(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

#[track_caller]
pub(super) fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("the condition did not become true");
}

#[test]
fn connection_serves_sequential_requests() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect();
    for body in ["one", "two", ""] {
        client.send(
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        );
        assert_eq!(client.response(), (200, body.to_owned()));
    }
    client.send(b"GET /peer HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response(), (200, "127.0.0.1".to_owned()));
    assert_eq!(server.stats.connections(), 1);
    drop(client);
    wait_until(|| server.stats.connections() == 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = TestAcceptor::start(HttpLimits { pipelined_max: 4, ..HttpLimits::default() });
    let mut client = server.connect();
    let requests: Vec<u8> = (0..1000)
        .flat_map(|n| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n{n:04}").into_bytes())
        .collect();
    client.send(&requests);
    for n in 0..1000 {
        assert_eq!(client.response(), (200, format!("{n:04}")));
    }
}

#[test]
fn client_that_only_writes_is_throttled_without_loss() {
    let server = TestAcceptor::start(HttpLimits::default());
    let client = server.connect();
    let mut writer = TestClient(client.0.try_clone().unwrap());
    let mut reader = client;
    // 8 responses of 8 MiB exceed the socket buffers and limits, so the later requests wait for the
    // reader.
    writer.send(&b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(8));
    for _ in 0..8 {
        let (status, body) = reader.response();
        assert_eq!((status, body.len()), (200, 8 << 20));
    }
}

#[test]
fn acceptor_answers_the_corpus_as_expected() {
    let server = TestAcceptor::start(HttpLimits::default());
    for case in session_tests::corpus() {
        let mut client = server.connect_and_send(&case.request);
        client.0.shutdown(Shutdown::Write).unwrap();
        let mut out = Vec::new();
        client.0.read_to_end(&mut out).unwrap();
        let out = String::from_utf8_lossy(&out);
        assert_eq!(sans_io_harness::statuses(&out), case.statuses, "{}: {out}", case.name);
    }
}

#[test]
fn large_body_is_received_completely() {
    let server = TestAcceptor::start(HttpLimits::default());
    let body = "abcdefgh".repeat(1 << 17);
    let mut client = server.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    client.send(body.as_bytes());
    assert!(client.response() == (200, body));
}

#[test]
fn chunked_body_is_decoded() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client =
        server.connect_and_send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
    client.send(b"llo\r\n1\r\n!\r\n0\r\n\r\n");
    assert_eq!(client.response(), (200, "hello!".to_owned()));
}

#[test]
fn expect_100_continue_gets_a_100_before_the_response() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server
        .connect_and_send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send(b"o");
    client.send(b"k");
    assert_eq!(client.response(), (200, "ok".to_owned()));
}

#[test]
fn head_response_has_a_content_length_and_no_body() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(b"HEAD /peer HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.head().contains("Content-Length: 9\r\n"));
    client.send(GET);
    assert_eq!(client.status(), 200);
}

#[test]
fn refused_request_gets_a_response_and_an_orderly_close() {
    let server = TestAcceptor::start(HttpLimits::default());
    for (request, status) in [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n".to_vec(), 413),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(40_000)).into_bytes(), 431),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_vec(), 400),
    ] {
        let mut client = server.connect_and_send(&request);
        // Unread input must not cause a reset before the response is read.
        client.send(&GET.repeat(2000));
        let (found, body) = client.response();
        assert_eq!(found, status, "{body}");
        assert!(body.contains("urn:aurore-events:problem:"), "{body}");
        client.0.shutdown(Shutdown::Write).unwrap();
        client.expect_close();
    }
}

#[test]
fn half_closed_client_gets_its_response() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(GET);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.status(), 200);
    client.expect_close();
    let mut client = server.connect_and_send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    server.promises.recv().unwrap().fulfil(Response::default());
    assert_eq!(client.status(), 200);
    client.expect_close();
}

#[test]
fn pending_response_keeps_the_order_and_does_not_block_other_connections() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut first = server
        .connect_and_send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    assert_eq!(server.connect_and_send(GET).status(), 200);
    promise.fulfil(Response { status: 202, body: b"late".to_vec(), ..Response::default() });
    assert_eq!(first.response(), (202, "late".to_owned()));
    assert_eq!(first.status(), 404);
    // A dropped promise sends a 500; one kept until `on_turn_end` is fulfilled there.
    first.send(b"GET /dropped HTTP/1.1\r\nHost: a\r\n\r\nGET /turn HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(first.status(), 500);
    assert_eq!(first.status(), 202);
}

#[test]
fn long_request_does_not_block_other_connections() {
    let server = TestAcceptor::start(HttpLimits::default());
    // Bodies with Content-Length, a chunked one, a queued request, and a pipelined one after them.
    let mut long: Vec<TestClient> = (0..3).map(|_| server.connect()).collect();
    let body = "x".repeat(100_000);
    let whole = format!("POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    long[0].send(format!("{whole}{whole}GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    long[1]
        .send(b"POST /long HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    long[2].send(b"GET /long HTTP/1.0\r\n\r\n");
    // The long requests never complete if they block the other connection.
    let mut other = server.connect();
    for _ in 0..100 {
        other.send(GET);
        assert_eq!(other.status(), 200);
    }
    other.send(b"GET /release HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(other.status(), 200);
    assert_eq!(long[1].response(), (202, "abc".to_owned()));
    assert_eq!(long[2].response(), (202, String::new()));
    long[2].expect_close();
    for _ in 0..2 {
        assert!(long[0].response() == (202, body.clone()));
    }
    assert_eq!(long[0].status(), 404);
}

#[test]
fn long_request_leaves_the_queue_if_its_client_closes_or_its_handler_panics() {
    let server = TestAcceptor::start(HttpLimits::default());
    let gone = server.connect_and_send(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut next = server.connect_and_send(b"GET /long/panic HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut last = server.connect_and_send(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until(|| server.stats.connections() == 3);
    socket2::SockRef::from(&gone.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    assert_eq!(next.status(), 500);
    next.expect_close();
    assert_eq!(server.connect_and_send(b"GET /release HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
    assert_eq!(last.status(), 202);
}

#[test]
fn long_request_times_out() {
    let server = TestAcceptor::start(short_timeouts());
    let mut client = server.connect_and_send(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.status(), 503);
    client.expect_close();
    assert_eq!(server.connect_and_send(GET).status(), 200);
}

#[test]
fn fulfilled_promise_always_wakes_the_acceptor() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect();
    for _ in 0..3000 {
        client.send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
        server.promises.recv().unwrap().fulfil(Response::default());
        assert_eq!(client.status(), 200);
    }
}

#[test]
fn stale_promise_does_not_reach_a_connection_that_reuses_the_token() {
    let server = TestAcceptor::start(HttpLimits::default());
    let client = server.connect_and_send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let stale = server.promises.recv().unwrap();
    // A reset is detected at once, an orderly close only after the response is written.
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    wait_until(|| server.stats.connections() == 0);
    let mut next = server.connect_and_send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    stale.fulfil(Response { status: 404, ..Response::default() });
    promise.fulfil(Response { status: 202, ..Response::default() });
    assert_eq!(next.status(), 202);
}

#[test]
fn handler_panic_closes_only_its_connection() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut other = server.connect_and_send(GET);
    assert_eq!(other.status(), 200);
    let mut client = server.connect_and_send(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.status(), 500);
    client.expect_close();
    assert_eq!(server.stats.panics(), 1);
    other.send(GET);
    assert_eq!(other.status(), 200);
}

fn short_timeouts() -> HttpLimits {
    let short = Duration::from_millis(150);
    HttpLimits {
        header_timeout: short,
        body_timeout: short,
        response_timeout: short,
        write_timeout: short,
        linger_timeout: short,
        ..HttpLimits::default()
    }
}

#[test]
fn slow_request_gets_a_408_and_slow_response_a_503() {
    let server = TestAcceptor::start(short_timeouts());
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nHost", 408),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell", 408),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell", 408),
        ("GET /later HTTP/1.1\r\nHost: a\r\n\r\n", 503),
    ] {
        let mut client = server.connect_and_send(bytes.as_bytes());
        assert_eq!(client.status(), status, "{bytes}");
        client.expect_close();
    }
    assert!(server.stats.timeouts() == 3);
}

#[test]
fn body_below_the_minimum_rate_times_out() {
    let limits = HttpLimits { body_rate_grace: Duration::from_millis(100), ..HttpLimits::default() };
    let server = TestAcceptor::start(limits);
    let mut client =
        server.connect_and_send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nhell");
    assert_eq!(client.status(), 408);
}

#[test]
fn client_that_reads_nothing_is_dropped() {
    let server = TestAcceptor::start(short_timeouts());
    let _client = server.connect_and_send(&b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3));
    wait_until(|| server.stats.accepted() == 1 && server.stats.connections() == 0);
    assert_eq!(server.stats.timeouts(), 1);
}

#[test]
fn idle_connection_is_closed_without_a_response() {
    let limits = HttpLimits { idle_timeout: Duration::from_millis(150), ..HttpLimits::default() };
    let server = TestAcceptor::start(limits);
    let mut silent = server.connect();
    let mut spoken = server.connect_and_send(GET);
    assert_eq!(spoken.status(), 200);
    spoken.expect_close();
    silent.expect_close();
    assert_eq!(server.stats.timeouts(), 0);
}

#[test]
fn lingering_connection_is_closed_if_its_client_stays() {
    let server = TestAcceptor::start(short_timeouts());
    let mut client = server.connect_and_send(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.status(), 200);
    client.expect_close();
    wait_until(|| server.stats.connections() == 0);
}

#[test]
fn connection_above_the_limit_is_rejected_until_another_closes() {
    let server = TestAcceptor::start(HttpLimits { connections_max: 2, ..HttpLimits::default() });
    let mut first = server.connect_and_send(GET);
    let mut second = server.connect_and_send(GET);
    assert_eq!((first.status(), second.status()), (200, 200));
    let mut third = server.connect_and_send(GET);
    let head = third.head();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: 1\r\n"), "{head}");
    assert_eq!(server.stats.rejected(), 1);
    third.send(&GET.repeat(100));
    drop(first);
    wait_until(|| server.stats.connections() == 1);
    assert_eq!(server.connect_and_send(GET).status(), 200);
}

#[test]
fn connection_above_the_per_address_limit_is_rejected() {
    let server = TestAcceptor::start(HttpLimits { connections_per_address_max: 2, ..HttpLimits::default() });
    let mut first = server.connect_and_send(GET);
    let mut second = server.connect_and_send(GET);
    assert_eq!((first.status(), second.status()), (200, 200));
    let (status, body) = server.connect_and_send(GET).response();
    assert!(status == 503 && body.contains("from this address"), "{body}");
    drop(first);
    wait_until(|| server.stats.connections() == 1);
    assert_eq!(server.connect_and_send(GET).status(), 200);
}

#[test]
fn header_limits_are_inclusive() {
    let server =
        TestAcceptor::start(HttpLimits { header_bytes_max: 1024, headers_max: 8, ..HttpLimits::default() });
    let frame = b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    for (filler, fields, status) in
        [(1024 - frame, 0, 200), (1024 - frame + 1, 0, 431), (0, 6, 200), (0, 7, 431)]
    {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n{}\r\n",
            "a".repeat(filler),
            "Y: 1\r\n".repeat(fields)
        );
        assert_eq!(server.connect_and_send(request.as_bytes()).status(), status, "{filler} {fields}");
    }
}

#[test]
fn body_timeout_applies_alone_without_a_minimum_rate() {
    let limits = HttpLimits { body_rate_grace: Duration::ZERO, body_rate_min: 0, ..HttpLimits::default() };
    let server = TestAcceptor::start(limits);
    let mut client = server.connect_and_send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\no");
    // Longer than a timer tick, after which a grace period of zero would have expired.
    assert_eq!(server.connect_and_send(GET).status(), 200);
    std::thread::park_timeout(Duration::from_millis(200));
    client.send(b"k");
    assert_eq!(client.response(), (200, "ok".into()));
}

#[test]
fn drain_closes_idle_connections_finishes_requests_and_stops() {
    let mut server = TestAcceptor::start(HttpLimits::default());
    let mut idle = server.connect_and_send(GET);
    assert_eq!(idle.status(), 200);
    let mut half = server.connect_and_send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\no");
    let mut busy = server.connect_and_send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    server.handle.drain();
    idle.expect_close();
    assert!(TcpStream::connect(server.address).is_err());
    half.send(b"k");
    assert!(half.head().contains("Connection: close\r\n"));
    promise.fulfil(Response { status: 202, ..Response::default() });
    assert!(busy.head().contains("Connection: close\r\n"));
    busy.expect_close();
    drop((half, busy));
    server.join();
    assert_eq!(server.stats.connections(), 0);
}

#[test]
fn stop_closes_connections_with_pending_requests() {
    let mut server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    server.handle.stop();
    server.join();
    client.expect_close();
    promise.fulfil(Response::default());
}

#[test]
fn many_short_connections_are_all_released() {
    let server = TestAcceptor::start(HttpLimits::default());
    for round in 0..500 {
        let mut client = server.connect_and_send(if round % 2 == 0 { GET } else { b"GET /" });
        if round % 4 == 0 {
            assert_eq!(client.status(), 200);
        }
    }
    wait_until(|| server.stats.accepted() == 500 && server.stats.connections() == 0);
}
