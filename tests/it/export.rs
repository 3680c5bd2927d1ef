//! Exports: all matching events, streamed as NDJSON or CSV in bounded memory; an abort is
//! detectable.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use aurore_events::event::Timestamp;

use crate::harness::client::request;
use crate::harness::events::{ids_of, keyed, list, text};
use crate::harness::{Client, Reply, Server, TestServer, event_at, now, until, wait_for_drain};

const NDJSON: (&str, &str) = ("Accept", "application/x-ndjson");
const CSV: (&str, &str) = ("Accept", "text/csv");
const LAST: &[u8] = b"\r\n0\r\n\r\n";

#[track_caller]
fn export(client: &mut Client, query: &str, headers: &[(&str, &str)]) -> Reply {
    client.exchange(&request("GET", &format!("/events?{query}"), headers, b""))
}

#[test]
fn an_export_that_is_posted_back_is_stored_once_with_its_ids() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let time = Timestamp::from_micros(now().micros() - 1_000_000);
    let metadata = r#"{"n":1.50,"o":{"k":["\u00e4",null]}}"#;
    let plain = event_at(time, "s", "plain").replacen('{', &format!("{{\"metadata\":{metadata},"), 1);
    ids_of(&client.post_ndjson(&[plain, keyed(time, "s", "k"), event_at(time, "t", "\\u0001 \\\"")]));
    wait_for_drain(&test.server);
    let columns = "SELECT string_agg(concat_ws('|', event_id, timestamp, service, message, metadata), ' ' \
                   ORDER BY event_id) FROM events";
    let stored: String = test.postgres.value(columns);
    let export = export(&mut client, "order=asc", &[NDJSON]);
    assert_eq!(export.text().lines().count(), 3);

    let mut post = |target: &str| {
        let content = [("Content-Type", "application/x-ndjson")];
        let reply = client.exchange(&request("POST", target, &content, &export.body));
        wait_for_drain(&test.server);
        reply
    };
    assert_eq!(post("/events").status, 400);
    // To the database that has the events, and to one that has lost them.
    assert_eq!(ids_of(&post("/events?ids=keep")).len(), 3);
    assert_eq!(test.postgres.value::<String>(columns), stored);
    test.postgres.execute("TRUNCATE events, event_counts");
    for _ in 0..2 {
        assert_eq!(ids_of(&post("/events?ids=keep")).len(), 3);
        assert_eq!(test.postgres.value::<String>(columns), stored);
    }
    assert_eq!(test.server.metric("events_duplicate_total"), 6);
}

#[test]
fn an_export_contains_every_matching_event_in_either_form() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let base = now().micros() - 3_600_000_000;
    let batch: Vec<String> = (0..2_500)
        .map(|index| {
            let time = Timestamp::from_micros(base + index / 3 * 1000);
            event_at(time, if index % 5 == 0 { "fifth" } else { "rest" }, &format!("m, {index:04} \\\"q\\\""))
        })
        .collect();
    ids_of(&client.post_ndjson(&batch));
    wait_for_drain(&test.server);

    let lines = |reply: &Reply| -> Vec<String> { reply.text().lines().map(str::to_owned).collect() };
    let whole = export(&mut client, "", &[NDJSON]);
    assert_eq!((whole.status, whole.header("content-type")), (200, Some("application/x-ndjson")));
    assert_eq!(whole.header("transfer-encoding"), Some("chunked"));
    let newest_first = lines(&whole);
    assert_eq!(newest_first.len(), 2_500);
    // Each line equals the event of a page.
    let page = client.get_json("/events?limit=1000");
    let shown: Vec<String> =
        list(&page["events"]).iter().map(|event| sonic_rs::to_string(event).unwrap()).collect();
    let compact =
        |line: &String| sonic_rs::to_string(&sonic_rs::from_str::<sonic_rs::Value>(line).unwrap()).unwrap();
    assert_eq!(newest_first[..1000].iter().map(compact).collect::<Vec<_>>(), shown);
    let mut oldest_first = lines(&export(&mut client, "order=asc", &[NDJSON]));
    oldest_first.reverse();
    assert_eq!(oldest_first, newest_first);
    for (query, wanted) in [
        ("service=fifth", 500),
        ("service=fifth&limit=123", 123),
        ("q=M,+000", 10),
        ("service=nobody", 0),
        ("to=1", 0),
    ] {
        assert_eq!(lines(&export(&mut client, query, &[NDJSON])).len(), wanted, "{query}");
    }

    let csv = export(&mut client, "service=fifth&order=asc&limit=1", &[CSV]);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8; header=present"));
    let oldest = newest_first.iter().rfind(|line| line.contains("fifth")).unwrap();
    let first = sonic_rs::from_str::<sonic_rs::Value>(oldest).unwrap();
    let member = |name: &str| text(&first[name]);
    assert_eq!(
        csv.text(),
        format!(
            "event_id,timestamp,service,message,metadata,ingested_at\r\n{},{},fifth,\"m, 0000 \"\"q\"\"\",,{}\r\n",
            member("event_id"),
            member("timestamp"),
            member("ingested_at")
        )
    );
    other_clients(&mut client, &test.server, &whole.body);
}

/// Exports with a limit, invalid exports, and exports over HTTP/1.0.
fn other_clients(client: &mut Client, server: &Server, whole: &[u8]) {
    let gzipped = export(client, "", &[NDJSON, ("Accept-Encoding", "gzip")]);
    assert_eq!(gzipped.header("content-encoding"), Some("gzip"));
    assert!(gzipped.body.len() < whole.len() / 4);
    let mut back = Vec::new();
    flate2::read::GzDecoder::new(gzipped.body.as_slice()).read_to_end(&mut back).expect("it is gzip");
    assert!(back == whole);

    client.send(&request("HEAD", "/events", &[CSV], b""));
    let head = client.head_reply();
    assert_eq!((head.status, head.header("content-length")), (200, None));
    for query in ["count=exact", "limit=0", "limit=x", "colour=red"] {
        assert_eq!(export(client, query, &[NDJSON]).status, 400, "{query}");
    }
    let json = export(client, "limit=1", &[("Accept", "text/html, */*;q=0.5")]);
    assert_eq!(json.header("content-type"), Some("application/json"), "a browser sees a page");

    let mut old = TcpStream::connect(server.address()).expect("the server takes connections");
    old.set_read_timeout(Some(Duration::from_secs(15))).expect("it is not zero");
    old.write_all(b"GET /events HTTP/1.0\r\nAccept: application/x-ndjson\r\n\r\n").expect("the server reads");
    let mut all = Vec::new();
    old.read_to_end(&mut all).expect("the connection ends as it should");
    assert!(all.ends_with(whole));
}

/// Requests all events and reads only the head of the response.
fn start_export(server: &Server) -> TcpStream {
    let mut stream = TcpStream::connect(server.address()).expect("the server takes connections");
    stream.set_read_timeout(Some(Duration::from_secs(15))).expect("it is not zero");
    stream.write_all(&request("GET", "/events", &[NDJSON], b"")).expect("the server reads");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the server answers");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head is ASCII");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    stream
}

/// The number of bytes that follow, and the last of them.
fn read_rest(stream: &mut TcpStream) -> (u64, Vec<u8>) {
    let (mut bytes, mut last, mut piece) = (0, Vec::new(), vec![0; 256 * 1024]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        bytes += read as u64;
        last.extend_from_slice(&piece[..read]);
        last.drain(..last.len().saturating_sub(LAST.len()));
        if last == LAST {
            break;
        }
    }
    (bytes, last)
}

#[test]
fn a_large_export_takes_bounded_memory_blocks_no_request_and_signals_an_abort() {
    const ROWS: u64 = 50_000;
    const MESSAGE_BYTES: u64 = 2_000;
    let settings = [("EXPORTS_MAX", "1"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "100")];
    let mut test = TestServer::start(&settings);
    test.postgres.execute(&format!(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
         SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'))::uuid, \
                at, at, 's', repeat('m', {MESSAGE_BYTES}) \
         FROM (SELECT n, now() - n * interval '10 ms' AS at FROM generate_series(1, {ROWS}) n) made"
    ));
    let mut client = test.server.client();
    client.get_json("/events?limit=10");
    let before = test.server.peak_memory();

    // The client does not read. Only other exports wait for it.
    let mut stream = start_export(&test.server);
    let refused = export(&mut client, "", &[CSV]);
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(list(&client.get_json("/events?limit=10")["events"]).len(), 10);
    let (bytes, last) = read_rest(&mut stream);
    assert_eq!(last, LAST);
    assert!(bytes > ROWS * MESSAGE_BYTES, "{bytes} bytes");
    let grown = test.server.peak_memory().saturating_sub(before);
    // A tenth of the sent bytes; the server buffers some 2 MiB, and as much from the database.
    assert!(grown < bytes / 10, "an export of {bytes} bytes took {grown} bytes of memory");

    // A disconnect releases the permit.
    drop(start_export(&test.server));
    until("the permit is free again", || export(&mut client, "limit=1", &[NDJSON]).status == 200);

    // The database stops during the export.
    let mut stream = start_export(&test.server);
    test.postgres.stop_immediate();
    let (bytes, last) = read_rest(&mut stream);
    assert!(bytes < ROWS * MESSAGE_BYTES, "{bytes} bytes");
    assert_ne!(last, LAST, "it must not look whole");
    test.postgres.restart();
    until("exports work again", || export(&mut client, "limit=1", &[NDJSON]).status == 200);
}
