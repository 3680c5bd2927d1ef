//! The HTTP front end under many idle connections, long bodies and compressed responses.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sonic_rs::JsonValueTrait;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::{ids_of, list};
use crate::harness::{Client, Server, TestServer, event, until, wait_for_drain};

/// The limit of open files of this process.
fn open_file_limit() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux reports limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is among them");
    let soft = line.split_whitespace().nth(3).expect("name, soft, hard");
    soft.parse().unwrap_or(usize::MAX)
}

fn resident_bytes(server: &Server) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("KiB") * 1024
}

#[test]
fn idle_connections_take_bounded_memory_and_stay_usable() {
    const MOST: usize = 8 * 1024;
    // The server's default limit is 10,000; server and test need some more descriptors.
    let count = open_file_limit().saturating_sub(200).min(9_900);
    assert!(count >= 500, "a process may have only {} files open here: raise ulimit -n", open_file_limit());
    let test = TestServer::start(&[("IDLE_TIMEOUT_MS", "600000")]);
    let live = request("GET", "/live", &[], b"");
    test.server.client().get("/live");
    let before = resident_bytes(&test.server);
    let mut idle: Vec<TcpStream> = Vec::with_capacity(count);
    for nth in 0..count {
        let mut stream = TcpStream::connect(test.server.address()).expect("the server takes connections");
        // Half of the connections have sent a request, half have sent nothing.
        if nth % 2 == 0 {
            stream.write_all(&live).expect("the server reads");
            let mut head = [0; 15];
            stream.read_exact(&mut head).expect("the server answers");
            assert_eq!(&head, b"HTTP/1.1 200 OK");
        }
        idle.push(stream);
    }
    let open = u64::try_from(count).expect("thousands");
    until("all are accepted", || test.server.metric("http_connections") > open);
    let each = resident_bytes(&test.server).saturating_sub(before) / count;
    assert!(each <= MOST, "{each} bytes an idle connection, with {count} of them");
    for mut stream in idle.drain(..).step_by(100) {
        stream.write_all(&request("GET", "/nowhere", &[], b"")).expect("the server reads");
        let mut answers = Vec::new();
        let mut piece = [0; 512];
        while !answers.windows(13).any(|part| part == b"HTTP/1.1 404 ") {
            let count = stream.read(&mut piece).expect("the server answers");
            assert_ne!(count, 0, "closed");
            answers.extend_from_slice(&piece[..count]);
        }
    }
    until("every connection is closed", || test.server.metric("http_connections") <= 1);
    println!("{each} bytes resident for each of {count} idle connections");
}

#[test]
fn the_server_keeps_serving_through_a_burst_of_aborted_connections() {
    let test = TestServer::start(&[("ACCEPTORS", "2")]);
    let live = request("GET", "/live", &[("Connection", "close")], b"");
    let storm = || {
        for nth in 0..1_000 {
            let mut stream = TcpStream::connect(test.server.address()).expect("the server takes connections");
            match nth % 3 {
                // Closed before a request, within a request, and after a response.
                0 => {}
                1 => stream.write_all(&live[..9]).expect("the server reads"),
                _ => {
                    stream.write_all(&live).expect("the server reads");
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).expect("the server answers");
                    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
                }
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(storm))));
    until("every connection is closed", || test.server.metric("http_connections") <= 1);
    assert!(test.server.metric("http_connections_accepted_total") >= 4_000);
    assert_eq!(test.server.client().get("/live").status, 200);
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).expect("a vector takes all");
    encoder.finish().expect("a vector takes all")
}

#[track_caller]
fn check_long_bodies(settings: &[(&str, &str)]) {
    const EVENTS: usize = 20_000;
    const STORED: i64 = 20_000;
    let test = TestServer::start(&[&[("DRAIN_INTERVAL", "20")], settings].concat());
    let mut client = test.server.client();
    let events: Vec<String> = (0..EVENTS).map(|nth| event("long", &format!("line {nth}"))).collect();
    let (lines, array) = (events.join("\n"), format!("[{}]", events.join(",")));
    for (kind, coding, body) in [
        (NDJSON, "identity", lines.clone().into_bytes()),
        (JSON, "identity", array.into_bytes()),
        (NDJSON, "gzip", gzip(lines.as_bytes())),
    ] {
        let reply = client.exchange(&request(
            "POST",
            "/events",
            &[("Content-Type", kind), ("Content-Encoding", coding), ("Durability", "written")],
            &body,
        ));
        assert_eq!((ids_of(&reply).len(), reply.header("Durability")), (EVENTS, Some("written")), "{coding}");
        wait_for_drain(&test.server);
    }
    assert_eq!(test.postgres.stored(), 3 * STORED);
    // The last line is invalid: all others are accepted.
    let reply = client.post(NDJSON, format!("{lines}\n{{"));
    assert_eq!(ids_of(&reply).len(), EVENTS);
    assert_eq!(reply.json()["errors"][0]["index"].as_i64(), Some(STORED));
    // An array that is truncated has no events.
    let broken = client.post(JSON, format!("[{},", events.join(",")));
    assert_eq!(broken.status, 400, "{}", broken.text());
    let cut = gzip(lines.as_bytes());
    let reply = client.exchange(&request(
        "POST",
        "/events",
        &[("Content-Type", NDJSON), ("Content-Encoding", "gzip")],
        &cut[..cut.len() - 1],
    ));
    assert_eq!(reply.status, 400, "{}", reply.text());
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 4 * STORED);
}

#[test]
fn long_bodies_are_accepted_whole_or_rejected_whole() {
    check_long_bodies(&[]);
    let test = TestServer::start(&[("BUFFER_MAX_SIZE", "10000")]);
    let events: Vec<String> = (0..10_001).map(|_| event("many", "m")).collect();
    let mut client = test.server.client();
    assert_eq!(client.post_ndjson(&events).status, 413);
    assert_eq!(test.server.metric("events_received_total"), 0);
    assert_eq!(ids_of(&client.post_ndjson(&events[1..])).len(), 10_000);
}

#[test]
fn minihttp_handles_long_bodies_like_guarded() {
    check_long_bodies(&[("HTTP_ENGINE", "minihttp")]);
}

#[test]
fn event_pages_are_compressed_for_clients_that_accept_gzip() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "20")]);
    let mut client = test.server.client();
    let events: Vec<String> = (0..200).map(|nth| event("zip", &format!("line {nth}"))).collect();
    ids_of(&client.post_ndjson(&events));
    wait_for_drain(&test.server);
    let path = "/events?service=zip&limit=200";
    let ask = |client: &mut Client, accepted: &str| {
        client.exchange(&request("GET", path, &[("Accept-Encoding", accepted)], b""))
    };
    let plain = ask(&mut client, "identity, gzip;q=0");
    assert_eq!((plain.status, plain.header("Content-Encoding")), (200, None));
    assert_eq!(list(&plain.json()["events"]).len(), 200);
    let small = ask(&mut client, "br, gzip");
    assert_eq!((small.status, small.header("Content-Encoding")), (200, Some("gzip")));
    assert_eq!(small.header("Vary"), Some("Accept, Accept-Encoding"));
    assert!(small.body.len() * 4 < plain.body.len(), "{} of {}", small.body.len(), plain.body.len());
    let mut unpacked = Vec::new();
    GzDecoder::new(small.body.as_slice()).read_to_end(&mut unpacked).expect("it is gzip");
    assert!(unpacked == plain.body);
    // A response that fits into a packet is not compressed.
    let one = client.exchange(&request("GET", "/events?service=none", &[("Accept-Encoding", "gzip")], b""));
    assert_eq!((one.status, one.header("Content-Encoding")), (200, None));
}

#[test]
fn cors_lets_a_page_read_a_rejection_by_the_engine() {
    const ORIGIN: &str = "https://app.example";
    let test = TestServer::start(&[("CORS_ORIGINS", ORIGIN), ("MAX_BODY_BYTES", "1024")]);
    let head = |origin: &str, rest: &str| {
        format!(
            "POST /events HTTP/1.1\r\nHost: localhost\r\norigin: {origin}\r\nContent-Type: application/json\r\n{rest}"
        )
        .into_bytes()
    };
    let endless = format!("X: {}", "x".repeat(40_000));
    for (rest, status, foreign_status) in [
        ("Content-Length: 1025\r\n\r\n", 413, 413),
        // The origin is checked before the chunks are read.
        ("Transfer-Encoding: chunked\r\n\r\n1000\r\n", 413, 403),
        (endless.as_str(), 431, 431),
        ("Content-Length: abc\r\n\r\n", 400, 400),
        ("Expect: tea\r\n\r\n", 417, 417),
    ] {
        for (origin, allowed, status) in
            [(ORIGIN, Some(ORIGIN), status), ("https://evil.example", None, foreign_status)]
        {
            let reply = test.server.client().exchange(&head(origin, rest));
            assert_eq!(reply.status, status, "{}", reply.text());
            assert_eq!(reply.header("Access-Control-Allow-Origin"), allowed, "{status}");
            assert_eq!(reply.header("Vary"), Some("Origin"));
        }
    }
}
