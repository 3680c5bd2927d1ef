//! Tests of the limits on a connection, at the limit and one past it, with a manual clock. The
//! limits on headers, bodies and connections are tested in `acceptor_tests` and `session_tests`.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::sans_io_harness::{EchoHandler, context, statuses};
use super::session::{HttpSession, Progress};
use super::*;
use crate::clock::Clock;
use crate::event::Timestamp;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn session() -> HttpSession {
    HttpSession::new(IpAddr::V4(Ipv4Addr::LOCALHOST), crate::clock::Moment::ZERO)
}

/// Returns how many of `requests` are served in the first turn and in the second.
fn turns(limits: HttpLimits, requests: &[u8]) -> (usize, usize) {
    let mut ctx = context();
    ctx.limits = limits;
    let mut session = session();
    let mut turn = |fresh: &[u8]| {
        ctx.begin_turn(0);
        let progress = session.receive(fresh, &mut ctx);
        (statuses(str::from_utf8(&ctx.out).unwrap()).len(), progress)
    };
    let (first, progress) = turn(requests);
    if progress == Progress::NeedsInput {
        return (first, 0);
    }
    assert_eq!(progress, Progress::Paused);
    (first, turn(&[]).0)
}

#[test]
fn turn_serves_at_most_the_pipelining_limit() {
    let limits = HttpLimits { pipelined_max: 4, ..HttpLimits::default() };
    assert_eq!(turns(limits, &GET.repeat(4)), (4, 0));
    assert_eq!(turns(limits, &GET.repeat(5)), (4, 1));
}

#[test]
fn turn_serves_at_most_its_budget_of_bytes() {
    const TURN_BYTES: usize = 128 * 1024;
    // The header, the body and the echoed body count.
    let request = |bytes: usize| {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes:>6}\r\n\r\n");
        let frame = head.len();
        (frame, [head.as_bytes(), &vec![b'x'; bytes]].concat())
    };
    let (frame, _) = request(0);
    let (_, just_below) = request((TURN_BYTES - frame) / 2 - 1);
    let (_, full) = request((TURN_BYTES - frame).div_ceil(2));
    assert_eq!(turns(HttpLimits::default(), &[&just_below, GET].concat()), (2, 0));
    assert_eq!(turns(HttpLimits::default(), &[&full, GET].concat()), (1, 1));
}

#[test]
fn turn_serves_no_request_above_the_response_buffer_limit() {
    let response_bytes = {
        let mut ctx = context();
        ctx.begin_turn(0);
        let _ = session().receive(GET, &mut ctx);
        ctx.out.len()
    };
    let limits =
        |response_buffer_bytes_max| HttpLimits { response_buffer_bytes_max, ..HttpLimits::default() };
    assert_eq!(turns(limits(response_bytes), &GET.repeat(2)), (2, 0));
    assert_eq!(turns(limits(response_bytes - 1), &GET.repeat(2)), (1, 1));
    assert_eq!(turns(limits(0), &GET.repeat(2)), (1, 1));
}

/// An acceptor whose turns the test thread runs.
struct ManualAcceptor {
    acceptor: Acceptor<EchoHandler>,
    clock: Clock,
    stats: Arc<ConnectionStats>,
}

impl ManualAcceptor {
    fn new(limits: HttpLimits) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(0), 1);
        let listener = listener::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let stats = Arc::<ConnectionStats>::default();
        let acceptor =
            Acceptor::new(listener, limits, clock.clone(), Arc::clone(&stats), |_| EchoHandler::default())
                .unwrap();
        Self { acceptor, clock, stats }
    }

    /// Runs enough turns to process everything that was sent over loopback.
    fn run_turns(&mut self) {
        for _ in 0..40 {
            let _ = self.acceptor.turn(Some(Duration::ZERO)).unwrap();
        }
    }

    fn connect_and_send(&mut self, bytes: &[u8]) -> TcpStream {
        let mut client = TcpStream::connect(self.acceptor.local_addr()).unwrap();
        client.set_nonblocking(true).unwrap();
        client.write_all(bytes).unwrap();
        self.run_turns();
        client
    }

    fn advance(&mut self, time: Duration) {
        self.clock.advance(time);
        self.run_turns();
    }
}

/// Returns the statuses received and whether the connection has ended.
fn received(client: &mut TcpStream) -> (Vec<u16>, bool) {
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
fn each_timeout_fires_at_its_limit_and_not_before() {
    // Two ticks of the timer wheel, one of them for rounding.
    const TICKS: Duration = Duration::from_millis(100);
    let limits = HttpLimits { body_rate_min: 0, ..HttpLimits::default() };
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n";
    let chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let rate = HttpLimits { body_rate_min: 1024, ..HttpLimits::default() };
    for (limits, bytes, wait, status) in [
        (limits, b"GET / HTTP/1.1\r\n".as_slice(), limits.header_timeout, 408),
        (limits, &[post.as_slice(), &[b'x'; 40]].concat(), limits.body_timeout, 408),
        (limits, &[chunked.as_slice(), b"3\r\nabc\r\n", &[b'0'; 15]].concat(), limits.body_timeout, 408),
        (rate, post, rate.body_rate_grace, 408),
        (limits, b"", limits.idle_timeout, 0),
        (limits, b"\r\n", limits.header_timeout, 0),
    ] {
        let mut server = ManualAcceptor::new(limits);
        let mut client = server.connect_and_send(bytes);
        // The header counts toward the rate.
        let wait = if status == 408 && limits.body_rate_min == 1024 {
            wait + Duration::from_micros(bytes.len() as u64 * 1_000_000 / 1024)
        } else {
            wait
        };
        server.advance(wait.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(received(&mut client), (vec![], false), "{wait:?}");
        server.advance(Duration::from_millis(1) + TICKS);
        let wanted = if status == 0 { vec![] } else { vec![status] };
        assert_eq!(received(&mut client), (wanted, true), "{wait:?}");
        assert_eq!(server.stats.timeouts(), u64::from(status == 408));
    }
}

/// Sends a request whose response has `bytes` bytes, of which the client reads none.
fn request_long_response(server: &mut ManualAcceptor, bytes: usize) -> TcpStream {
    let mut client = server.connect_and_send(
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n").as_bytes(),
    );
    let body = vec![b'x'; bytes];
    let mut sent = 0;
    while sent < bytes {
        match client.write(&body[sent..]) {
            Ok(count) => sent += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        server.run_turns();
    }
    client
}

/// Reads 4 MiB: the socket becomes writable again once a good part of its buffer is free.
fn read_part(server: &mut ManualAcceptor, client: &mut TcpStream) {
    let mut taken = vec![0; 4 << 20];
    let mut some = 0;
    while some < taken.len() {
        match client.read(&mut taken[some..]) {
            Ok(count) => some += count,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        server.run_turns();
    }
}

#[test]
fn write_timeout_restarts_with_every_byte_written() {
    let mut server = ManualAcceptor::new(HttpLimits { body_bytes_max: 64 << 20, ..HttpLimits::default() });
    let mut client = request_long_response(&mut server, 48 << 20);
    let wait = HttpLimits::default().write_timeout;
    server.advance(wait.checked_sub(Duration::from_millis(1)).unwrap());
    read_part(&mut server, &mut client);
    server.advance(wait.checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(server.stats.connections(), 1);
    server.advance(Duration::from_millis(101));
    assert_eq!((server.stats.connections(), server.stats.timeouts()), (0, 1));
}

#[test]
fn reader_below_the_minimum_rate_is_dropped_though_it_reads() {
    for (response_rate_min, open) in [(0, 1), (1 << 20, 0)] {
        let limits = HttpLimits { body_bytes_max: 64 << 20, response_rate_min, ..HttpLimits::default() };
        let mut server = ManualAcceptor::new(limits);
        // The sockets buffer about 6 MiB, so some 26 s at the minimum rate after the 30 s of the
        // write timeout.
        let mut client = request_long_response(&mut server, 32 << 20);
        for seconds in [29, 18] {
            server.advance(Duration::from_secs(seconds));
            assert_eq!(server.stats.connections(), 1, "{response_rate_min}");
            read_part(&mut server, &mut client);
        }
        server.advance(Duration::from_secs(17));
        assert_eq!(server.stats.connections(), open, "{response_rate_min}");
    }
}

#[test]
fn lingering_close_is_bounded_in_bytes_and_time() {
    let limits = HttpLimits { linger_bytes_max: 100_000, ..HttpLimits::default() };
    for (bytes, left) in [(99_999, 1), (100_000, 0), (100_001, 0)] {
        let mut server = ManualAcceptor::new(limits);
        let mut client = server.connect_and_send(b"bad\r\n\r\n");
        assert_eq!(received(&mut client).0, [400]);
        client.write_all(&vec![b'x'; bytes]).unwrap();
        server.run_turns();
        assert_eq!(server.stats.connections(), left, "{bytes}");
    }
    let mut server = ManualAcceptor::new(HttpLimits { linger_bytes_max: 0, ..limits });
    server.connect_and_send(b"bad\r\n\r\n");
    assert_eq!(server.stats.connections(), 0);
    let mut server = ManualAcceptor::new(limits);
    let _client = server.connect_and_send(b"bad\r\n\r\n");
    server.advance(limits.linger_timeout.checked_sub(Duration::from_millis(1)).unwrap());
    assert_eq!(server.stats.connections(), 1);
    server.advance(Duration::from_millis(101));
    assert_eq!(server.stats.connections(), 0);
}
