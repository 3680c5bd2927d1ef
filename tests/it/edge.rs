//! The edge as clients meet it: thousands of idle connections, batches that take long, answers made smaller.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sonic_rs::JsonValueTrait;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::{ids_of, list};
use crate::harness::{Client, Server, World, event, settle, until};

/// What the operating system says of this process: how many files it may have open.
fn descriptors() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").expect("Linux tells the limits");
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
fn thousands_of_idle_connections_cost_little_and_are_still_served() {
    const MOST: usize = 8 * 1024;
    // The server's default bound is 10,000; it and this test need some descriptors beside.
    let count = descriptors().saturating_sub(200).min(9_900);
    assert!(count >= 500, "a process may have only {} files open here: raise ulimit -n", descriptors());
    let world = World::start(&[("IDLE_TIMEOUT_MS", "600000")]);
    let live = request("GET", "/live", &[], b"");
    world.server.client().get("/live");
    let before = resident_bytes(&world.server);
    let mut idle: Vec<TcpStream> = Vec::with_capacity(count);
    for nth in 0..count {
        let mut stream = TcpStream::connect(world.server.address()).expect("the server takes connections");
        // Half of them have been used, half have not said a word.
        if nth % 2 == 0 {
            stream.write_all(&live).expect("the server reads");
            let mut head = [0; 15];
            stream.read_exact(&mut head).expect("the server answers");
            assert_eq!(&head, b"HTTP/1.1 200 OK");
        }
        idle.push(stream);
    }
    let open = u64::try_from(count).expect("thousands");
    until("all are accepted", || world.server.metric("http_connections") > open);
    let each = resident_bytes(&world.server).saturating_sub(before) / count;
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
    until("all are gone", || world.server.metric("http_connections") <= 1);
    println!("{each} bytes resident for each of {count} idle connections");
}

#[test]
fn a_storm_of_connections_is_weathered() {
    let world = World::start(&[("ACCEPTORS", "2")]);
    let live = request("GET", "/live", &[("Connection", "close")], b"");
    let storm = || {
        for nth in 0..1_000 {
            let mut stream =
                TcpStream::connect(world.server.address()).expect("the server takes connections");
            match nth % 3 {
                // Closed without a word, in the midst of a request, and in good order.
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
    until("none is left", || world.server.metric("http_connections") <= 1);
    assert!(world.server.metric("http_connections_accepted_total") >= 4_000);
    assert_eq!(world.server.client().get("/live").status, 200);
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
    let world = World::start(&[&[("DRAIN_INTERVAL", "20")], settings].concat());
    let mut client = world.server.client();
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
        settle(&world.server);
    }
    assert_eq!(world.postgres.stored(), 3 * STORED);
    // The last line is not one: all the others are in.
    let reply = client.post(NDJSON, format!("{lines}\n{{"));
    assert_eq!(ids_of(&reply).len(), EVENTS);
    assert_eq!(reply.json()["errors"][0]["index"].as_i64(), Some(STORED));
    // An array that breaks at its end has no events at all.
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
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 4 * STORED);
}

#[test]
fn bodies_that_take_long_are_taken_whole_or_refused_whole() {
    check_long_bodies(&[]);
    let world = World::start(&[("BUFFER_MAX_SIZE", "10000")]);
    let events: Vec<String> = (0..10_001).map(|_| event("many", "m")).collect();
    let mut client = world.server.client();
    assert_eq!(client.post_ndjson(&events).status, 413);
    assert_eq!(world.server.metric("events_received_total"), 0);
    assert_eq!(ids_of(&client.post_ndjson(&events[1..])).len(), 10_000);
}

#[test]
fn bodies_that_take_long_are_the_same_to_the_other_engine() {
    check_long_bodies(&[("HTTP_ENGINE", "minihttp")]);
}

#[test]
fn pages_of_events_are_compressed_for_who_takes_it() {
    let world = World::start(&[("DRAIN_INTERVAL", "20")]);
    let mut client = world.server.client();
    let events: Vec<String> = (0..200).map(|nth| event("zip", &format!("line {nth}"))).collect();
    ids_of(&client.post_ndjson(&events));
    settle(&world.server);
    let path = "/events?service=zip&limit=200";
    let ask = |client: &mut Client, accepted: &str| {
        client.exchange(&request("GET", path, &[("Accept-Encoding", accepted)], b""))
    };
    let plain = ask(&mut client, "identity, gzip;q=0");
    assert_eq!((plain.status, plain.header("Content-Encoding")), (200, None));
    assert_eq!(list(&plain.json()["events"]).len(), 200);
    let small = ask(&mut client, "br, gzip");
    assert_eq!((small.status, small.header("Content-Encoding")), (200, Some("gzip")));
    assert_eq!(small.header("Vary"), Some("Accept-Encoding"));
    assert!(small.body.len() * 4 < plain.body.len(), "{} of {}", small.body.len(), plain.body.len());
    let mut unpacked = Vec::new();
    GzDecoder::new(small.body.as_slice()).read_to_end(&mut unpacked).expect("it is gzip");
    assert!(unpacked == plain.body);
    // What fits into a packet is left as it is.
    let one = client.exchange(&request("GET", "/events?service=none", &[("Accept-Encoding", "gzip")], b""));
    assert_eq!((one.status, one.header("Content-Encoding")), (200, None));
}

#[test]
fn a_web_page_can_read_why_the_engine_refused_it() {
    const ORIGIN: &str = "https://app.example";
    let world = World::start(&[("CORS_ORIGINS", ORIGIN), ("MAX_BODY_BYTES", "1024")]);
    let head = |origin: &str, rest: &str| {
        format!("POST /events HTTP/1.1\r\nHost: a\r\norigin: {origin}\r\n{rest}").into_bytes()
    };
    let endless = format!("X: {}", "x".repeat(40_000));
    for (rest, status) in [
        ("Content-Length: 1025\r\n\r\n", 413),
        ("Transfer-Encoding: chunked\r\n\r\n1000\r\n", 413),
        (endless.as_str(), 431),
        ("Content-Length: abc\r\n\r\n", 400),
        ("Expect: tea\r\n\r\n", 417),
    ] {
        for (origin, allowed) in [(ORIGIN, Some(ORIGIN)), ("https://evil.example", None)] {
            let reply = world.server.client().exchange(&head(origin, rest));
            assert_eq!(reply.status, status, "{}", reply.text());
            assert_eq!(reply.header("Access-Control-Allow-Origin"), allowed, "{status}");
            assert_eq!(reply.header("Vary"), Some("Origin"));
        }
    }
}
