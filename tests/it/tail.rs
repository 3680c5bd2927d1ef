//! Tails: events as they are admitted, also while the database is away; a client that does not read
//! costs nobody anything. A client that comes back misses none.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sonic_rs::JsonValueTrait;

use crate::harness::client::request;
use crate::harness::events::{id_of, ids_of};
use crate::harness::tail::Tail;
use crate::harness::{TestServer, event, until, wait_for_drain};

/// Events wait in the buffer for longer than a test takes.
const HELD: [(&str, &str); 2] = [("LINGER", "600000"), ("DRAIN_INTERVAL", "600000")];

fn with_metadata(message: &str, metadata: &str) -> String {
    event("s", message).replacen('{', &format!("{{\"metadata\":{metadata},"), 1)
}

#[test]
fn a_tail_shows_an_event_before_it_is_stored() {
    let test = TestServer::start(&HELD);
    let mut client = test.server.client();
    id_of(&client.post_json(event("s", "first")));
    let mut tail = Tail::open(test.server.address(), "", &[]);
    let head = tail.text();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for line in ["content-type: text/event-stream\r\n", "cache-control: no-store\r\n"] {
        assert!(head.to_lowercase().contains(line), "{head}");
    }
    let ids = ids_of(&client.post_ndjson(&[event("s", "one"), event("s", "two")]));
    tail.read_until("both events", |text| text.contains("\"two\"") && text.ends_with("\n\n\r\n"));
    let body = tail.text();
    for (id, message) in ids.iter().zip(["one", "two"]) {
        let expected = format!("id: {id}\ndata: {{\"event_id\":\"{id}\",");
        assert!(body.contains(&expected) && body.contains(&format!("\"message\":\"{message}\"")), "{body}");
    }
    assert!(!body.contains("\"first\""), "{body}");
    assert_eq!(test.postgres.stored(), 0);
    assert_eq!((test.server.metric("tails_open"), test.server.metric("tail_events_sent_total")), (1, 2));
}

#[test]
fn a_tail_works_while_the_database_is_away() {
    let mut test = TestServer::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "200"), ("DRAIN_INTERVAL", "20")]);
    test.postgres.stop_immediate();
    until("the outage is detected", || test.server.metric("database_connection_status") == 0);
    let mut tail = Tail::open(test.server.address(), "?service=s", &[]);
    id_of(&test.server.client().post_json(event("s", "in the outage")));
    tail.read_until("the event", |text| text.contains("\"in the outage\""));
    test.postgres.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 1);
}

#[test]
fn a_tail_shows_the_events_that_match_its_filter() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let address = test.server.address();
    let mut client = test.server.client();
    let queries = ["?service=t", "?q=PAID", "?metadata.k=1", "?metadata.k=1&q=paid"];
    let mut tails = queries.map(|query| Tail::open(address, query, &[]));
    let batch = [
        event("t", "of t"),
        event("s", "order Paid"),
        with_metadata("number", r#"{"k": 1}"#),
        with_metadata("paid text", r#"{"k":"1","o":{"k":2}}"#),
        with_metadata("other", r#"{"k":"2"}"#),
    ];
    ids_of(&client.post_ndjson(&batch));
    // Matches every filter, and comes last.
    let last = event("t", "last paid").replacen('{', "{\"metadata\":{\"k\":1},", 1);
    id_of(&client.post_json(last));
    let expected: [&[&str]; 4] =
        [&["of t"], &["order Paid", "paid text"], &["number", "paid text"], &["paid text"]];
    for ((tail, query), expected) in tails.iter_mut().zip(queries).zip(expected) {
        tail.read_until("the last event", |text| text.contains("\"last paid\""));
        let body = tail.text();
        let shown = |message: &&&str| body.contains(&format!("\"message\":\"{message}\""));
        let all = ["of t", "order Paid", "number", "paid text", "other"];
        assert_eq!(all.iter().filter(shown).copied().collect::<Vec<_>>(), expected, "{query}");
    }
    for query in ["?from=0", "?limit=1", "?colour=red", "?service="] {
        let refused = client.get(&format!("/events/tail{query}"));
        assert_eq!(refused.status, 400, "{query}");
    }
    client.send(&request("HEAD", "/events/tail", &[], b""));
    assert_eq!(client.head_reply().status, 200);
}

#[test]
fn a_tail_that_is_not_read_grows_no_memory_refuses_no_event_and_learns_what_it_missed() {
    const BATCHES: u64 = 32;
    const EVENTS: u64 = 1000;
    const MESSAGE_BYTES: usize = 2000;
    // The tail does not read for as long as the database needs for the events.
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50"), ("WRITE_TIMEOUT_MS", "600000")]);
    let mut client = test.server.client();
    let batch = vec![event("s", &"m".repeat(MESSAGE_BYTES)); 1000];
    ids_of(&client.post_ndjson(&batch));
    wait_for_drain(&test.server);
    let before = test.server.peak_memory();
    let mut tail = Tail::open(test.server.address(), "", &[]);
    for _ in 0..BATCHES {
        assert_eq!(ids_of(&client.post_ndjson(&batch)).len(), 1000);
        wait_for_drain(&test.server);
    }
    let grown = test.server.peak_memory().saturating_sub(before);
    assert!(grown < 32 << 20, "a tail of 64 MB took {grown} bytes of memory");
    assert!(test.server.metric("tail_events_skipped_total") > 0);
    let (mut sent, mut skipped) = (0, 0);
    while sent + skipped < BATCHES * EVENTS {
        assert!(tail.read_piece() > 0, "the tail ended");
        let counts = tail.take_counts();
        (sent, skipped) = (sent + counts.0, skipped + counts.1);
    }
    assert_eq!((sent + skipped, skipped > 0), (BATCHES * EVENTS, true));
    // It goes on with what comes next.
    id_of(&client.post_json(event("s", "next")));
    tail.read_until("the next event", |text| text.contains("\"next\""));
}

#[test]
fn a_client_that_never_reads_its_tail_is_disconnected() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50"), ("WRITE_TIMEOUT_MS", "200")]);
    let mut client = test.server.client();
    let _tail = Tail::open(test.server.address(), "", &[]);
    until("the tail is open", || test.server.metric("tails_open") == 1);
    let batch = vec![event("s", &"m".repeat(2000)); 1000];
    until("the tail is closed", || {
        ids_of(&client.post_ndjson(&batch));
        test.server.metric("tails_open") == 0
    });
}

#[test]
fn more_tails_than_the_maximum_get_503_and_a_stop_ends_them_whole() {
    let mut test = TestServer::start(&[("TAILS_MAX", "2")]);
    let address = test.server.address();
    let mut first = Tail::open(address, "", &[]);
    let second = Tail::open(address, "", &[]);
    let mut client = test.server.client();
    let refused = client.get("/events/tail");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("30")), "{}", refused.text());
    assert!(refused.text().contains("TAILS_MAX"), "{}", refused.text());
    drop(second);
    until("a closed tail makes room", || {
        // The server notices the end of the connection when it sends.
        id_of(&client.post_json(event("s", "m")));
        Tail::open(address, "", &[]).status() == 200
    });

    test.server.signal("TERM");
    while first.read_piece() > 0 {}
    assert!(first.text().ends_with("\r\n0\r\n\r\n"), "{}", first.text());
    assert!(test.server.exit_within(Duration::from_secs(30)).success());
}

/// The ids of the whole events in a text, in their order.
fn shown_ids(text: &str) -> Vec<String> {
    let whole = text.rfind("\n\n").map_or("", |at| &text[..at]);
    whole.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
}

#[test]
fn a_tail_that_comes_back_gets_the_events_that_it_missed_stored_or_not() {
    for settings in [&HELD[..], &[("DRAIN_INTERVAL", "20")]] {
        let test = TestServer::start(settings);
        let mut client = test.server.client();
        let ids = ids_of(&client.post_ndjson(&["one", "two", "other", "three"].map(|m| event("s", m))));
        let is_held = settings == &HELD[..];
        if !is_held {
            wait_for_drain(&test.server);
        }
        let mut tail = Tail::open(test.server.address(), "?q=t", &[("Last-Event-ID", &ids[0])]);
        tail.read_until("the missed events", |text| text.contains("\"three\"") && text.contains("\"other\""));
        id_of(&client.post_json(event("s", "next t")));
        tail.read_until("the next event", |text| text.contains("\"next t\"") && text.ends_with("\n\n\r\n"));
        let body = tail.text();
        assert!(body.contains("\"resumed\":true") && !body.contains("event: gap"), "{body}");
        assert_eq!(shown_ids(&body)[..3], ids[1..], "{body}");
        assert!(!body.contains("\"one\""), "{body}");
        assert_eq!(test.postgres.stored() == 0, is_held);
    }
    let test = TestServer::start(&[]);
    let refused =
        test.server.client().exchange(&request("GET", "/events/tail", &[("Last-Event-ID", "x")], b""));
    assert_eq!((refused.status, refused.json()["errors"][0]["field"].as_str()), (400, Some("Last-Event-ID")));
}

#[test]
fn a_tail_that_comes_back_in_an_outage_states_a_gap_and_shows_what_is_buffered() {
    let mut test = TestServer::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "200"), ("DRAIN_INTERVAL", "20")]);
    let mut client = test.server.client();
    let last = id_of(&client.post_json(event("s", "stored")));
    wait_for_drain(&test.server);
    test.postgres.stop_immediate();
    until("the outage is detected", || test.server.metric("database_connection_status") == 0);
    id_of(&client.post_json(event("s", "buffered")));
    let mut tail = Tail::open(test.server.address(), "", &[("Last-Event-ID", &last)]);
    tail.read_until("the buffered event", |text| text.contains("\"buffered\""));
    let gap = "event: gap\ndata: {\"reason\":\"database-unavailable\"}";
    assert!(tail.text().contains(gap), "{}", tail.text());
    id_of(&client.post_json(event("s", "live")));
    tail.read_until("the live event", |text| text.contains("\"live\""));
    test.postgres.restart();
    wait_for_drain(&test.server);
}

#[test]
fn a_tail_that_comes_back_again_and_again_under_load_misses_no_event() {
    const TAILS: usize = 6;
    // Fewer events a second than one tail may have missed.
    const PAUSE: Duration = Duration::from_millis(2);
    let test = TestServer::start(&[("DRAIN_INTERVAL", "20")]);
    let (server, address) = (&test.server, test.server.address());
    let (mut seen, mut last) = (BTreeSet::new(), None::<String>);
    let enough = AtomicBool::new(false);
    let posted: BTreeSet<String> = thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut client = server.client();
            let batch: Vec<String> = (0..5).map(|_| event("s", "m")).collect();
            let mut posted = BTreeSet::new();
            while !enough.load(Ordering::Relaxed) {
                posted.extend(ids_of(&client.post_ndjson(&batch)));
                thread::sleep(PAUSE);
            }
            posted
        });
        // The first tail is open when the first event comes, or gets none before it.
        for _ in 0..TAILS {
            let header = last.iter().map(|id| ("Last-Event-ID", id.as_str())).collect::<Vec<_>>();
            let mut tail = Tail::open(address, "", &header);
            tail.read_until("an event", |text| shown_ids(text).iter().any(|id| !seen.contains(id)));
            let ids = shown_ids(&tail.text());
            last = ids.last().cloned();
            seen.extend(ids);
        }
        enough.store(true, Ordering::Relaxed);
        producer.join().expect("the producer does not fail")
    });
    // What was posted after the last tail was dropped.
    let header = last.iter().map(|id| ("Last-Event-ID", id.as_str())).collect::<Vec<_>>();
    let mut tail = Tail::open(address, "", &header);
    let before_first = || posted.iter().take_while(|id| !seen.contains(*id)).count();
    assert!(before_first() < posted.len(), "no tail saw an event");
    let first = seen.first().cloned().unwrap_or_default();
    let wanted: BTreeSet<String> = posted.iter().filter(|id| **id > first).cloned().collect();
    tail.read_until("the rest", |text| {
        let rest: BTreeSet<String> = shown_ids(text).into_iter().collect();
        wanted.iter().all(|id| seen.contains(id) || rest.contains(id))
    });
    assert!(!tail.text().contains("event: gap"), "{}", tail.text());
}
