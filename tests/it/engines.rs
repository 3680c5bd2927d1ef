//! The minihttp engine serves the same handlers.

use sonic_rs::JsonValueTrait;

use crate::harness::client::{JSON, NDJSON, request};
use crate::harness::events::{id_of, ids_of, list};
use crate::harness::{TestServer, event, wait_for_drain};

#[test]
fn the_minihttp_engine_keeps_every_level_of_durability() {
    let mut test =
        TestServer::start(&[("HTTP_ENGINE", "minihttp"), ("LINGER", "600000"), ("DRAIN_INTERVAL", "600000")]);
    for level in ["memory", "written", "synced"] {
        let headers = [("Content-Type", JSON), ("Durability", level)];
        let post = request("POST", "/events", &headers, event("mini", level).as_bytes());
        let reply = test.server.client().exchange(&post);
        id_of(&reply);
        assert_eq!(reply.header("durability"), Some(level));
    }
    assert_eq!(test.server.metric("journal_synced_total"), 3, "a lane keeps its order");
    test.server.kill();
    test.server.restart();
    assert_eq!(test.server.metric("journal_recovered_total"), 3);
    test.server.stop();
    assert_eq!(test.postgres.stored(), 3);
}

#[test]
fn the_minihttp_engine_accepts_every_form_and_answers_queries() {
    let mut test = TestServer::start(&[("HTTP_ENGINE", "minihttp"), ("DRAIN_INTERVAL", "50")]);
    let mut client = test.server.client();
    let id = id_of(&client.post_json(event("mini", "alone")));
    let pair = [event("mini", "one"), event("mini", "two")];
    assert_eq!(ids_of(&client.post(JSON, format!("[{}]", pair.join(",")))).len(), 2);
    assert_eq!(ids_of(&client.post(NDJSON, pair.join("\n"))).len(), 2);
    // Larger than one read of the socket.
    assert_eq!(ids_of(&client.post_ndjson(&vec![event("mini", &"x".repeat(1_000)); 500])).len(), 500);
    assert_eq!(client.post_json(event("", "bad")).status, 400);
    assert_eq!(client.get("/nowhere").status, 404);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 505);
    assert_eq!(client.get_json(&format!("/events/{id}"))["message"].as_str(), Some("alone"));
    assert_eq!(list(&client.get_json("/events?service=mini&limit=10")["events"]).len(), 10);
    assert_eq!(client.get("/ready").status, 200);
    drop(client);
    test.server.stop();
}
