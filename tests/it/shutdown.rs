//! Stop signals: intake ends, acknowledged events are stored, and the process ends in bounded time.

use std::time::Duration;

use crate::harness::client::{JSON, post};
use crate::harness::events::{id_of, ids_of};
use crate::harness::postgres::free_port;
use crate::harness::server::wait_for_partitions;
use crate::harness::{
    Client, Postgres, Producer, Proxy, Server, TestServer, check_stored, event, until, wait_for_drain,
};

/// Waits so long that only the drain stores the events.
const WAITS: [(&str, &str); 2] = [("LINGER", "60000"), ("DRAIN_INTERVAL", "60000")];
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_stop_signal_stores_acknowledged_events_and_exits_with_0() {
    let mut test = TestServer::start(&WAITS);
    let mut stored = 0;
    for name in ["TERM", "INT"] {
        let batch = vec![event("s", "m"); 1_500];
        ids_of(&test.server.client().post_ndjson(&batch));
        id_of(&test.server.client().post_json(event("s", "m")));
        assert_eq!(test.server.metric("buffer_size"), 1_501);
        test.server.signal(name);
        assert_eq!(test.server.exit_within(SOON).code(), Some(0), "SIG{name}");
        stored += 1_501;
        assert_eq!(test.postgres.stored(), stored, "SIG{name}");
        test.server.restart();
    }
    // Also with an empty buffer.
    test.server.stop();
}

#[test]
fn a_stop_under_load_loses_no_acknowledged_event() {
    let mut test = TestServer::start(&[]);
    let producer = Producer::start(test.server.address(), 4);
    until("it is under load", || producer.acknowledged() > 2_000);
    test.server.stop();
    check_stored(&producer.stop(), &test.postgres);
}

#[test]
fn a_drain_rejects_new_events_and_a_second_signal_ends_it() {
    let mut postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let url = Postgres::url_through(proxy.port(), "none");
    let mut server = Server::start(&[
        ("DATABASE_URL", url.as_str()),
        ("SHUTDOWN_TIMEOUT_MS", "60000"),
        ("DRAIN_INTERVAL", "50"),
    ]);
    wait_for_partitions(&postgres);
    let address = server.address();
    let mut open = server.client();
    id_of(&open.post_json(event("s", "stored")));
    until("it is stored", || server.metric("buffer_size") == 0);
    proxy.hold_next_commit();
    id_of(&open.post_json(event("s", "held")));
    until("it is being stored", || proxy.is_commit_held());
    server.signal("TERM");
    // The drain waits for the COMMIT. Producers are rejected on open and on new connections.
    let late = post(JSON, event("s", "late").as_bytes());
    until("intake ends", || !open.try_exchange(&late).is_ok_and(|reply| reply.status == 202));
    for _ in 0..20 {
        let Ok(mut client) = Client::try_connect(address) else { continue };
        if let Ok(reply) = client.try_exchange(&late) {
            assert_eq!(reply.status, 503, "{}", reply.text());
            assert!(reply.header("retry-after").is_some());
        }
    }
    server.signal("TERM");
    let status = server.exit_within(SOON);
    assert_ne!(status.code(), Some(0), "events were left behind");
    drop(proxy);
    server.set("DATABASE_URL", &postgres.url());
    server.restart();
    wait_for_drain(&server);
    let held = postgres.value::<i64>("SELECT count(*) FROM events WHERE message IN ('stored', 'held')");
    assert_eq!(held, 2, "events that were not stored were in the journal");
    server.stop();
    postgres.stop_fast();
}

/// The default of `SHUTDOWN_TIMEOUT_MS` is far longer than `SOON`.
#[test]
fn a_stop_with_nothing_buffered_ends_at_once_though_the_database_was_never_reached() {
    // A closed port refuses the connection, a silent one never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let silent_port = silent.local_addr().expect("it is bound").port();
    for port in [free_port(), silent_port] {
        let url = format!("postgresql://x@127.0.0.1:{port}/x?sslmode=disable");
        let mut server = Server::start_unready(&[("DATABASE_URL", url.as_str())]);
        server.signal("TERM");
        assert_eq!(server.exit_within(SOON).code(), Some(0), "port {port}");
    }
}

#[test]
fn a_drain_ends_early_without_a_database_and_its_events_stay_in_the_journal() {
    let mut test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    test.postgres.stop_fast();
    for stored in [0, 1] {
        id_of(&test.server.client().post_json(event("s", "held")));
        test.server.signal("TERM");
        assert_eq!(test.server.exit_within(SOON).code(), Some(0), "the event is kept");
        if stored == 0 {
            // The second process never reaches the database.
            test.server.restart();
        }
    }
    test.postgres.restart();
    test.server.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 2);
    test.server.stop();
    assert!(test.server.segments().is_empty(), "the events of no segment are recovered again");
}

#[test]
fn events_left_at_the_drain_deadline_stay_in_the_journal() {
    let mut test = TestServer::start(&[("SHUTDOWN_TIMEOUT_MS", "300"), ("DRAIN_INTERVAL", "50")]);
    let mut session = test.postgres.client();
    session.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    id_of(&test.server.client().post_json(event("s", "held")));
    test.server.signal("TERM");
    assert_eq!(test.server.exit_within(SOON).code(), Some(0), "the event is kept");
    session.batch_execute("ROLLBACK").unwrap();
    test.server.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 1);
}

#[test]
fn a_drain_waits_for_a_slow_database() {
    let mut test = TestServer::start(&WAITS);
    let mut session = test.postgres.client();
    session.batch_execute("BEGIN; LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    ids_of(&test.server.client().post_ndjson(&vec![event("s", "held"); 500]));
    test.server.signal("TERM");
    until("the drain waits for the lock", || {
        test.postgres.value(
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE relation = 'events'::regclass AND NOT granted)",
        )
    });
    session.batch_execute("ROLLBACK").unwrap();
    assert_eq!(test.server.exit_within(Duration::from_secs(30)).code(), Some(0));
    assert_eq!(test.postgres.stored(), 500);
}
