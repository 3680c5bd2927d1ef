//! The acceptor over loopback sockets, from outside: what a client sees.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::clock::Clock;

/// Longer than anything here takes; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

pub(super) struct Tester {
    promises: Sender<Promise>,
    kept: Vec<Promise>,
    /// Whether `/release` was asked for.
    released: bool,
}

impl Handler for Tester {
    fn handle(&mut self, request: &Request<'_>, response: &mut Response) -> Answer {
        match request.path {
            "/later" => {
                self.promises.send(request.promise()).unwrap();
                return Answer::Later;
            }
            "/turn" => {
                self.kept.push(request.promise());
                return Answer::Later;
            }
            "/dropped" => {
                drop(request.promise());
                return Answer::Later;
            }
            "/panic" => panic!("as the test wants"),
            "/long" | "/long/panic" => return Answer::More(Box::new(Slices(0))),
            "/release" => self.released = true,
            "/large" => response.body.resize(8 << 20, b'x'),
            "/peer" => write!(response.body, "{}", request.peer).unwrap(),
            "/nothing" => response.status = 404,
            _ => response.body.extend_from_slice(request.body),
        }
        Answer::Ready
    }

    /// What takes long takes until somebody else was answered.
    fn go_on(&mut self, unfinished: Unfinished, request: &Request<'_>, response: &mut Response) -> Answer {
        let Slices(done) = *unfinished.downcast::<Slices>().unwrap();
        assert!(request.path == "/long", "as the test wants");
        if done < SLICES_MIN || !self.released {
            return Answer::More(Box::new(Slices(done + 1)));
        }
        response.status = 202;
        response.body.extend_from_slice(request.body);
        Answer::Ready
    }

    fn turn_ended(&mut self) {
        for promise in self.kept.drain(..) {
            promise.fulfil(Response { status: 202, ..Response::default() });
        }
    }
}

/// Slices of a long request that are done.
struct Slices(u32);

const SLICES_MIN: u32 = 3;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) remote: Remote,
    pub(super) shared: Arc<Shared>,
    promises: Receiver<Promise>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(limits: Limits) -> Self {
        Self::start_with(limits, None)
    }

    #[expect(clippy::disallowed_methods, reason = "a thread of the test, which joins it")]
    pub(super) fn start_with(limits: Limits, identity: Option<Arc<tls::Identity>>) -> Self {
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let shared = Arc::<Shared>::default();
        let (sender, promises) = channel();
        let mut acceptor = Acceptor::new(listener, limits, Clock::system(), Arc::clone(&shared), |_| {
            Tester { promises: sender, kept: Vec::new(), released: false }
        })
        .unwrap()
        .with_tls(identity);
        let (address, remote) = (acceptor.address(), acceptor.remote());
        let thread = std::thread::spawn(move || acceptor.run().unwrap());
        Self { address, remote, shared, promises, thread: Some(thread) }
    }

    pub(super) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client(stream)
    }

    pub(super) fn say(&self, bytes: &[u8]) -> Client {
        let mut client = self.connect();
        client.say(bytes);
        client
    }

    pub(super) fn promise(&self) -> Promise {
        self.promises.recv().unwrap()
    }

    fn join(&mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.remote.end();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub(super) struct Client(pub(super) TcpStream);

impl Client {
    pub(super) fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The head of the next answer.
    pub(super) fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(self.0.read(&mut byte).unwrap(), 1, "closed after {}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// The status and the body of the next answer.
    pub(super) fn answer(&mut self) -> (u16, String) {
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
        self.answer().0
    }

    /// Waits for the end, which must be an orderly one and come without another byte.
    #[track_caller]
    pub(super) fn closed(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "");
    }
}

#[track_caller]
pub(super) fn await_that(condition: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if condition() {
            return;
        }
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("it never came to be");
}

#[test]
fn a_connection_answers_one_request_after_another() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    for body in ["one", "two", ""] {
        client.say(
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        );
        assert_eq!(client.answer(), (200, body.to_owned()));
    }
    client.say(b"GET /peer HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer(), (200, "127.0.0.1".to_owned()));
    assert_eq!(server.shared.connections(), 1);
    drop(client);
    await_that(|| server.shared.connections() == 0);
}

#[test]
fn pipelined_requests_are_answered_in_order_however_many() {
    let server = Server::start(Limits { pipelined_max: 4, ..Limits::default() });
    let mut client = server.connect();
    let requests: Vec<u8> = (0..1000)
        .flat_map(|n| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n{n:04}").into_bytes())
        .collect();
    client.say(&requests);
    for n in 0..1000 {
        assert_eq!(client.answer(), (200, format!("{n:04}")));
    }
}

#[test]
fn a_client_that_only_writes_is_held_back_and_loses_nothing() {
    let server = Server::start(Limits::default());
    let client = server.connect();
    let mut writer = Client(client.0.try_clone().unwrap());
    let mut reader = client;
    // 8 answers of 8 MiB are more than sockets and limits hold: the later requests wait for the reader.
    writer.say(&b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(8));
    for _ in 0..8 {
        let (status, body) = reader.answer();
        assert_eq!((status, body.len()), (200, 8 << 20));
    }
}

#[test]
fn every_case_of_the_corpus_is_answered_as_wanted_over_a_socket() {
    let server = Server::start(Limits::default());
    for case in session_tests::corpus() {
        let mut client = server.say(&case.request);
        client.0.shutdown(Shutdown::Write).unwrap();
        let mut out = Vec::new();
        client.0.read_to_end(&mut out).unwrap();
        let out = String::from_utf8_lossy(&out);
        assert_eq!(rehearsal::statuses(&out), case.statuses, "{}: {out}", case.name);
    }
}

#[test]
fn a_large_body_arrives_whole() {
    let server = Server::start(Limits::default());
    let body = "abcdefgh".repeat(1 << 17);
    let mut client = server.connect();
    client.say(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
    client.say(body.as_bytes());
    assert!(client.answer() == (200, body));
}

#[test]
fn a_chunked_body_is_joined() {
    let server = Server::start(Limits::default());
    let mut client = server.say(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
    client.say(b"llo\r\n1\r\n!\r\n0\r\n\r\n");
    assert_eq!(client.answer(), (200, "hello!".to_owned()));
}

#[test]
fn who_expects_a_100_gets_it_and_then_the_answer() {
    let server = Server::start(Limits::default());
    let mut client =
        server.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
    client.say(b"o");
    client.say(b"k");
    assert_eq!(client.answer(), (200, "ok".to_owned()));
}

#[test]
fn head_has_the_length_and_no_body() {
    let server = Server::start(Limits::default());
    let mut client = server.say(b"HEAD /peer HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.head().contains("Content-Length: 9\r\n"));
    client.say(GET);
    assert_eq!(client.status(), 200);
}

#[test]
fn a_refused_request_is_answered_and_its_connection_closed_in_good_order() {
    let server = Server::start(Limits::default());
    for (request, status) in [
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n".to_vec(), 413),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(40_000)).into_bytes(), 431),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_vec(), 400),
    ] {
        let mut client = server.say(&request);
        // What is still under way must not reset the connection before the answer is read.
        client.say(&GET.repeat(2000));
        let (found, body) = client.answer();
        assert_eq!(found, status, "{body}");
        assert!(body.contains("urn:aurore-events:problem:"), "{body}");
        client.0.shutdown(Shutdown::Write).unwrap();
        client.closed();
    }
}

#[test]
fn a_half_closed_client_is_answered() {
    let server = Server::start(Limits::default());
    let mut client = server.say(GET);
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.status(), 200);
    client.closed();
    let mut client = server.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    client.0.shutdown(Shutdown::Write).unwrap();
    server.promises.recv().unwrap().fulfil(Response::default());
    assert_eq!(client.status(), 200);
    client.closed();
}

#[test]
fn a_late_answer_comes_before_those_asked_after_it_and_holds_up_nobody_else() {
    let server = Server::start(Limits::default());
    let mut first =
        server.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    assert_eq!(server.say(GET).status(), 200);
    promise.fulfil(Response { status: 202, body: b"late".to_vec(), ..Response::default() });
    assert_eq!(first.answer(), (202, "late".to_owned()));
    assert_eq!(first.status(), 404);
    // Dropped, it is a 500; kept until the end of the turn, it is answered then.
    first.say(b"GET /dropped HTTP/1.1\r\nHost: a\r\n\r\nGET /turn HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(first.status(), 500);
    assert_eq!(first.status(), 202);
}

#[test]
fn what_takes_long_keeps_nobody_from_being_answered_first() {
    let server = Server::start(Limits::default());
    // Whole bodies, chunked ones, one that waits in line, and what is pipelined behind them.
    let mut long: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    let body = "x".repeat(100_000);
    let whole = format!("POST /long HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    long[0].say(format!("{whole}{whole}GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
    long[1].say(b"POST /long HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    long[2].say(b"GET /long HTTP/1.0\r\n\r\n");
    // It would never end if it kept the others from their turn.
    let mut other = server.connect();
    for _ in 0..100 {
        other.say(GET);
        assert_eq!(other.status(), 200);
    }
    other.say(b"GET /release HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(other.status(), 200);
    assert_eq!(long[1].answer(), (202, "abc".to_owned()));
    assert_eq!(long[2].answer(), (202, String::new()));
    long[2].closed();
    for _ in 0..2 {
        assert!(long[0].answer() == (202, body.clone()));
    }
    assert_eq!(long[0].status(), 404);
}

#[test]
fn a_long_request_whose_client_is_gone_or_whose_handler_panics_gives_its_place_away() {
    let server = Server::start(Limits::default());
    let gone = server.say(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut next = server.say(b"GET /long/panic HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut last = server.say(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    await_that(|| server.shared.connections() == 3);
    socket2::SockRef::from(&gone.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(gone);
    assert_eq!(next.status(), 500);
    next.closed();
    assert_eq!(server.say(b"GET /release HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
    assert_eq!(last.status(), 202);
}

#[test]
fn a_long_request_is_not_worked_on_for_ever() {
    let server = Server::start(hasty());
    let mut client = server.say(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.status(), 503);
    client.closed();
    assert_eq!(server.say(GET).status(), 200);
}

#[test]
fn no_late_answer_is_left_lying_while_the_acceptor_sleeps() {
    let server = Server::start(Limits::default());
    let mut client = server.connect();
    for _ in 0..3000 {
        client.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
        server.promises.recv().unwrap().fulfil(Response::default());
        assert_eq!(client.status(), 200);
    }
}

#[test]
fn a_late_answer_to_a_connection_that_is_gone_reaches_nobody() {
    let server = Server::start(Limits::default());
    let client = server.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let stale = server.promises.recv().unwrap();
    // An orderly close is seen once the answer has been written; a reset at once.
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    await_that(|| server.shared.connections() == 0);
    let mut next = server.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    stale.fulfil(Response { status: 404, ..Response::default() });
    promise.fulfil(Response { status: 202, ..Response::default() });
    assert_eq!(next.status(), 202);
}

#[test]
fn a_panicking_handler_costs_one_connection() {
    let server = Server::start(Limits::default());
    let mut other = server.say(GET);
    assert_eq!(other.status(), 200);
    let mut client = server.say(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.status(), 500);
    client.closed();
    assert_eq!(server.shared.panics(), 1);
    other.say(GET);
    assert_eq!(other.status(), 200);
}

fn hasty() -> Limits {
    let short = Duration::from_millis(150);
    Limits {
        header_timeout: short,
        body_timeout: short,
        answer_timeout: short,
        slow_reader_timeout: short,
        linger_timeout: short,
        ..Limits::default()
    }
}

#[test]
fn who_is_too_slow_is_told_so() {
    let server = Server::start(hasty());
    for (bytes, status) in [
        ("GET / HTTP/1.1\r\nHost", 408),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell", 408),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell", 408),
        ("GET /later HTTP/1.1\r\nHost: a\r\n\r\n", 503),
    ] {
        let mut client = server.say(bytes.as_bytes());
        assert_eq!(client.status(), status, "{bytes}");
        client.closed();
    }
    assert!(server.shared.timeouts() == 3);
}

#[test]
fn a_body_below_the_minimum_rate_is_not_waited_for() {
    let limits = Limits { body_grace: Duration::from_millis(100), ..Limits::default() };
    let server = Server::start(limits);
    let mut client = server.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\nhell");
    assert_eq!(client.status(), 408);
}

#[test]
fn a_reader_that_takes_nothing_is_dropped() {
    let server = Server::start(hasty());
    let _client = server.say(&b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3));
    await_that(|| server.shared.accepted() == 1 && server.shared.connections() == 0);
    assert_eq!(server.shared.timeouts(), 1);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let limits = Limits { idle_timeout: Duration::from_millis(150), ..Limits::default() };
    let server = Server::start(limits);
    let mut silent = server.connect();
    let mut spoken = server.say(GET);
    assert_eq!(spoken.status(), 200);
    spoken.closed();
    silent.closed();
    assert_eq!(server.shared.timeouts(), 0);
}

#[test]
fn a_closing_connection_whose_client_stays_is_cut_off() {
    let server = Server::start(hasty());
    let mut client = server.say(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.status(), 200);
    client.closed();
    await_that(|| server.shared.connections() == 0);
}

#[test]
fn one_connection_too_many_is_turned_away_until_another_ends() {
    let server = Server::start(Limits { connections_max: 2, ..Limits::default() });
    let mut first = server.say(GET);
    let mut second = server.say(GET);
    assert_eq!((first.status(), second.status()), (200, 200));
    let mut third = server.say(GET);
    let head = third.head();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("Retry-After: 1\r\n"), "{head}");
    assert_eq!(server.shared.turned_away(), 1);
    third.say(&GET.repeat(100));
    drop(first);
    await_that(|| server.shared.connections() == 1);
    assert_eq!(server.say(GET).status(), 200);
}

#[test]
fn an_address_has_its_share_of_the_connections_and_no_more() {
    let server = Server::start(Limits { connections_per_address_max: 2, ..Limits::default() });
    let mut first = server.say(GET);
    let mut second = server.say(GET);
    assert_eq!((first.status(), second.status()), (200, 200));
    let (status, body) = server.say(GET).answer();
    assert!(status == 503 && body.contains("from this address"), "{body}");
    drop(first);
    await_that(|| server.shared.connections() == 1);
    assert_eq!(server.say(GET).status(), 200);
}

#[test]
fn a_header_is_taken_at_the_bounds_and_not_past_them() {
    let server = Server::start(Limits { header_bytes_max: 1024, headers_max: 8, ..Limits::default() });
    let frame = b"GET / HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n".len();
    for (filler, fields, status) in
        [(1024 - frame, 0, 200), (1024 - frame + 1, 0, 431), (0, 6, 200), (0, 7, 431)]
    {
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n{}\r\n",
            "a".repeat(filler),
            "Y: 1\r\n".repeat(fields)
        );
        assert_eq!(server.say(request.as_bytes()).status(), status, "{filler} {fields}");
    }
}

#[test]
fn without_a_minimum_rate_a_body_has_its_whole_time() {
    let limits = Limits { body_grace: Duration::ZERO, body_rate_min: 0, ..Limits::default() };
    let server = Server::start(limits);
    let mut client = server.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\no");
    // Longer than the timers' grain, in which a bound of nothing would have struck.
    assert_eq!(server.say(GET).status(), 200);
    std::thread::park_timeout(Duration::from_millis(200));
    client.say(b"k");
    assert_eq!(client.answer(), (200, "ok".into()));
}

#[test]
fn draining_closes_the_idle_answers_the_busy_and_ends() {
    let mut server = Server::start(Limits::default());
    let mut idle = server.say(GET);
    assert_eq!(idle.status(), 200);
    let mut half = server.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\no");
    let mut busy = server.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    server.remote.drain();
    idle.closed();
    assert!(TcpStream::connect(server.address).is_err());
    half.say(b"k");
    assert!(half.head().contains("Connection: close\r\n"));
    promise.fulfil(Response { status: 202, ..Response::default() });
    assert!(busy.head().contains("Connection: close\r\n"));
    busy.closed();
    drop((half, busy));
    server.join();
    assert_eq!(server.shared.connections(), 0);
}

#[test]
fn told_to_end_it_ends_whatever_is_under_way() {
    let mut server = Server::start(Limits::default());
    let mut client = server.say(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    let promise = server.promises.recv().unwrap();
    server.remote.end();
    server.join();
    client.closed();
    promise.fulfil(Response::default());
}

#[test]
fn a_storm_of_connections_leaves_none_behind() {
    let server = Server::start(Limits::default());
    for round in 0..500 {
        let mut client = server.say(if round % 2 == 0 { GET } else { b"GET /" });
        if round % 4 == 0 {
            assert_eq!(client.status(), 200);
        }
    }
    await_that(|| server.shared.accepted() == 500 && server.shared.connections() == 0);
}
