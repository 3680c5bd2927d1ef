//! Each bound on a connection, at it and one past it. Those on headers, bodies and connections stand with the other tests
//! of the acceptor and of the conversation. Times are a manual clock's.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::rehearsal::{Echo, desk, statuses};
use super::session::{Progress, Session};
use super::*;
use crate::clock::Clock;
use crate::event::Timestamp;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn session() -> Session {
    Session::new(IpAddr::V4(Ipv4Addr::LOCALHOST), crate::clock::Moment::ZERO)
}

/// How many of `requests` are answered in the first turn, and in the second.
fn turns(limits: Limits, requests: &[u8]) -> (usize, usize) {
    let mut desk = desk();
    desk.limits = limits;
    let mut session = session();
    let mut turn = |fresh: &[u8]| {
        desk.begin(0);
        let progress = session.take(fresh, &mut desk);
        (statuses(str::from_utf8(&desk.out).unwrap()).len(), progress)
    };
    let (first, progress) = turn(requests);
    if progress == Progress::Hungry {
        return (first, 0);
    }
    assert_eq!(progress, Progress::Paused);
    (first, turn(&[]).0)
}

#[test]
fn a_turn_answers_so_many_requests_and_no_more() {
    let limits = Limits { pipelined_max: 4, ..Limits::default() };
    assert_eq!(turns(limits, &GET.repeat(4)), (4, 0));
    assert_eq!(turns(limits, &GET.repeat(5)), (4, 1));
}

#[test]
fn a_turn_answers_so_many_bytes_of_requests_and_no_more() {
    const TURN_BYTES: usize = 128 * 1024;
    // Header, body and the body that comes back.
    let request = |bytes: usize| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes:>6}\r\n\r\n");
        let frame = head.len();
        (frame, [head.as_bytes(), &vec![b'x'; bytes]].concat())
    };
    let (frame, _) = request(0);
    let (_, just_below) = request((TURN_BYTES - frame) / 2 - 1);
    let (_, full) = request((TURN_BYTES - frame).div_ceil(2));
    assert_eq!(turns(Limits::default(), &[&just_below, GET].concat()), (2, 0));
    assert_eq!(turns(Limits::default(), &[&full, GET].concat()), (1, 1));
}

#[test]
fn no_further_request_is_taken_up_above_so_many_bytes_of_answers() {
    let answer_bytes = {
        let mut desk = desk();
        desk.begin(0);
        let _ = session().take(GET, &mut desk);
        desk.out.len()
    };
    let limits = |output_bytes_max| Limits { output_bytes_max, ..Limits::default() };
    assert_eq!(turns(limits(answer_bytes), &GET.repeat(2)), (2, 0));
    assert_eq!(turns(limits(answer_bytes - 1), &GET.repeat(2)), (1, 1));
    assert_eq!(turns(limits(0), &GET.repeat(2)), (1, 1));
}

/// An acceptor that takes its turns in the thread of the test.
struct Stage {
    acceptor: Acceptor<Echo>,
    clock: Clock,
    shared: Arc<Shared>,
}

impl Stage {
    fn new(limits: Limits) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(0), 1);
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().remove(0);
        let shared = Arc::<Shared>::default();
        let acceptor =
            Acceptor::new(listener, limits, clock.clone(), Arc::clone(&shared), |_| Echo::default()).unwrap();
        Self { acceptor, clock, shared }
    }

    /// Over loopback what was sent has arrived; a few turns work all of it off.
    fn settle(&mut self) {
        for _ in 0..40 {
            let _ = self.acceptor.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    fn say(&mut self, bytes: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(self.acceptor.address()).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(bytes).unwrap();
        self.settle();
        client
    }

    fn pass(&mut self, time: Duration) {
        self.clock.advance(time);
        self.settle();
    }
}

/// What has come, and whether it was the end.
fn heard(client: &mut TcpStream) -> (Vec<u16>, bool) {
    let mut out = Vec::new();
    let end = match client.read_to_end(&mut out) {
        Ok(_) => true,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset), "{error}");
            error.kind() == ErrorKind::ConnectionReset
        }
    };
    (statuses(&String::from_utf8_lossy(&out)), end)
}

#[test]
fn each_wait_ends_at_its_bound_and_not_before() {
    // The grain of the timers, and one more for the rounding.
    const GRAIN: Duration = Duration::from_millis(100);
    let limits = Limits { body_rate_min: 0, ..Limits::default() };
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n";
    let chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let rate = Limits { body_rate_min: 1024, ..Limits::default() };
    for (limits, bytes, wait, status) in [
        (limits, b"GET / HTTP/1.1\r\n".as_slice(), limits.header_timeout, 408),
        (limits, &[post.as_slice(), &[b'x'; 40]].concat(), limits.body_timeout, 408),
        (limits, &[chunked.as_slice(), b"3\r\nabc\r\n", &[b'0'; 15]].concat(), limits.body_timeout, 408),
        (rate, post, rate.body_grace, 408),
        (limits, b"", limits.idle_timeout, 0),
        (limits, b"\r\n", limits.header_timeout, 0),
    ] {
        let mut stage = Stage::new(limits);
        let mut client = stage.say(bytes);
        // The header counts for the rate.
        let wait = if status == 408 && limits.body_rate_min == 1024 {
            wait + Duration::from_micros(bytes.len() as u64 * 1_000_000 / 1024)
        } else {
            wait
        };
        stage.pass(wait.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(heard(&mut client), (vec![], false), "{wait:?}");
        stage.pass(Duration::from_millis(1) + GRAIN);
        let wanted = if status == 0 { vec![] } else { vec![status] };
        assert_eq!(heard(&mut client), (wanted, true), "{wait:?}");
        assert_eq!(stage.shared.timeouts(), u64::from(status == 408));
    }
}

#[test]
fn a_reader_has_its_time_from_the_last_byte_it_took() {
    let mut stage = Stage::new(Limits { body_bytes_max: 64 << 20, ..Limits::default() });
    let bytes = 48 << 20;
    let mut client =
        stage.say(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n").as_bytes());
    let body = vec![b'x'; bytes];
    let mut sent = 0;
    while sent < bytes {
        match client.write(&body[sent..]) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        stage.settle();
    }
    let wait = Limits::default().slow_reader_timeout;
    stage.pass(wait.checked_sub(Duration::from_millis(1)).unwrap());
    // A byte taken is a new beginning: the socket takes more once a good part of it is free.
    let mut taken = vec![0; 4 << 20];
    let mut some = 0;
    while some < taken.len() {
        match client.read(&mut taken[some..]) {
            Ok(count) => some += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        stage.settle();
    }
    stage.pass(wait.checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(stage.shared.connections(), 1);
    stage.pass(Duration::from_millis(101));
    assert_eq!((stage.shared.connections(), stage.shared.timeouts()), (0, 1));
}

#[test]
fn a_refused_client_is_heard_out_for_so_many_bytes_and_so_long() {
    let limits = Limits { linger_bytes_max: 100_000, ..Limits::default() };
    for (bytes, left) in [(99_999, 1), (100_000, 0), (100_001, 0)] {
        let mut stage = Stage::new(limits);
        let mut client = stage.say(b"bad\r\n\r\n");
        assert_eq!(heard(&mut client).0, [400]);
        client.write_all(&vec![b'x'; bytes]).unwrap();
        stage.settle();
        assert_eq!(stage.shared.connections(), left, "{bytes}");
    }
    let mut stage = Stage::new(Limits { linger_bytes_max: 0, ..limits });
    stage.say(b"bad\r\n\r\n");
    assert_eq!(stage.shared.connections(), 0);
    let mut stage = Stage::new(limits);
    let _client = stage.say(b"bad\r\n\r\n");
    stage.pass(limits.linger_timeout.checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(stage.shared.connections(), 1);
    stage.pass(Duration::from_millis(101));
    assert_eq!(stage.shared.connections(), 0);
}
