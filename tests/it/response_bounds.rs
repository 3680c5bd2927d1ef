//! Responses are bounded in bytes whatever is stored, and so is the memory that they take.

use crate::harness::{Client, TestServer, until};

const MIB: u64 = 1 << 20;
/// The default of `QUERY_RESPONSE_MAX_BYTES`.
const RESPONSE_BYTES_MAX: usize = 8 << 20;
/// The bound on the memory of a process that serves pages of large events.
const MEMORY_MAX: u64 = 64 * MIB;
const ROWS: usize = 1000;

/// Stores a thousand events of a service, one per millisecond or all in one.
fn store(test: &TestServer, service: &str, message: &str, metadata: &str, milliseconds_apart: u32) {
    test.postgres.execute(&format!(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message, metadata) \
         SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || substr(md5('{service}' || n), 1, 20))::uuid, \
                at, at, '{service}', {message}, {metadata} \
         FROM (SELECT n, date_trunc('second', now()) - interval '1 min' \
                         + n * {milliseconds_apart} * interval '1 ms' AS at \
               FROM generate_series(1, {ROWS}) n) made"
    ));
}

/// One page: the ids of its events and the cursor of the next one. Read as text, since JSON parsers
/// refuse numbers of 131,072 digits.
#[track_caller]
fn read_page(client: &mut Client, query: &str) -> (Vec<String>, Option<String>) {
    let reply = client.get(&format!("/events?limit={ROWS}&{query}"));
    assert!(reply.status == 200 && reply.body.len() <= RESPONSE_BYTES_MAX, "{} bytes", reply.body.len());
    let body = String::from_utf8(reply.body).expect("a page is UTF-8");
    let quoted = |rest: &str| rest.split('"').next().unwrap_or_default().to_owned();
    let (events, page) = body.rsplit_once("],\"page\":").expect("it is a page");
    assert!(page.starts_with("{\"limit\":1000,"), "{page}");
    let ids: Vec<_> = events.split("\"event_id\":\"").skip(1).map(quoted).collect();
    assert!(!ids.is_empty(), "a page has one event at least");
    (ids, page.split_once("\"next_cursor\":\"").map(|(_, rest)| quoted(rest)))
}

/// Reads all pages of a query and returns their number.
#[track_caller]
fn read_all(client: &mut Client, query: &str) -> usize {
    let (mut pages, mut all) = (0, Vec::new());
    let mut cursor = String::new();
    loop {
        let (ids, next) = read_page(client, &format!("count=none&{query}{cursor}"));
        all.extend(ids);
        pages += 1;
        let Some(next) = next else { break };
        cursor = format!("&cursor={next}");
    }
    let read = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((read, all.len()), (ROWS, ROWS), "each event once");
    pages
}

#[test]
fn pages_of_large_events_end_early_and_give_their_memory_back() {
    let test = TestServer::start(&[("QUERY_THREADS", "4")]);
    // More than the edge accepts now: 262 kB of text from 30 bytes.
    let numbers = "'{\"n\":[1e131071,1e131071]}'";
    store(&test, "numbers", "'m'", numbers, 1);
    store(&test, "together", "'m'", numbers, 0);
    let string = "jsonb_build_object('k', repeat('y', 65000))";
    store(&test, "texts", "repeat('x', 65536)", string, 1);
    store(&test, "escapes", "repeat(chr(1), 65536)", "NULL", 1);
    let mut client = test.server.client();
    // The example of a client that reads the page and goes: the rest is not read from PostgreSQL.
    for query in ["service=numbers", "service=texts", "order=asc"] {
        let (ids, cursor) = read_page(&mut client, query);
        assert!(ids.len() < 100 && cursor.is_some(), "{query}");
    }
    assert!(test.server.peak_memory() < MEMORY_MAX, "{} bytes", test.server.peak_memory());

    assert!(read_all(&mut client, "service=numbers") > 30);
    assert!(read_all(&mut client, "service=texts&order=asc") > 15);
    assert!(read_all(&mut client, "service=escapes") > 45);
    assert!(read_all(&mut client, "service=together") > 30);
    // A gigabyte later each of the four threads keeps some free memory between small blocks.
    assert!(test.server.peak_memory() < MEMORY_MAX + 32 * MIB, "{} bytes", test.server.peak_memory());
    until("the memory of the pages is given back", || test.server.memory() < MEMORY_MAX);
}
