//! Classes of database errors. A faulty row is dead-lettered and the rest of the batch is stored. A
//! misconfiguration keeps all events until it is repaired.

use std::time::Duration;

use crate::harness::checker::wait_for_drain_within;
use crate::harness::events::{ids_of, keyed};
use crate::harness::{TestServer, event, now, until, wait_for_drain};

/// Rejects the message `poison`, like a constraint of an operator.
const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')";
/// Thousands of faulty rows are found one by one, by a debug build, beside other tests.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn poison_rows_are_dead_lettered_with_a_reason_and_affect_no_other_row() {
    let test = TestServer::start(&[]);
    test.postgres.execute(RULE);
    let mut client = test.server.client();
    let (mut good, mut bad) = (0, 0);
    for poisoned in [1, 2, 2_500, 5_000] {
        // Spread evenly: the worst case for bisection.
        let step = 5_000 / poisoned;
        let batch: Vec<String> =
            (0..5_000).map(|row| event("s", if row % step == 0 { "poison" } else { "good" })).collect();
        assert_eq!(ids_of(&client.post_ndjson(&batch)).len(), 5_000);
        bad += poisoned;
        good += 5_000 - poisoned;
        wait_for_drain_within(LONG, &test.server);
        assert_eq!(test.postgres.dead(), bad, "after {poisoned} bad rows");
        assert_eq!(test.postgres.stored(), good, "after {poisoned} bad rows");
    }
    assert_eq!(test.server.metric("events_dead_total"), u64::try_from(bad).unwrap());
    let explained = "SELECT count(*) FROM dead_events WHERE sqlstate = '23514' AND reason LIKE '%no_poison%' \
                     AND position('poison'::bytea IN row) > 0 AND service = 's'";
    assert_eq!(test.postgres.value::<i64>(explained), bad);
    // A faulty row must not open the breaker.
    assert_eq!(test.server.metric("circuit_breaker_state"), 0);
}

#[test]
fn poison_rows_among_keyed_and_duplicate_events_are_found() {
    let test = TestServer::start(&[("BATCH_SIZE", "300")]);
    test.postgres.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.service = 'poison' THEN RAISE numeric_value_out_of_range USING MESSAGE = 'too much'; END IF; \
         RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let mut client = test.server.client();
    let time = now();
    let batch: Vec<String> = (0..1_000)
        .map(|row| keyed(time, if row % 100 == 7 { "poison" } else { "s" }, &format!("k{}", row / 2)))
        .collect();
    for _ in 0..2 {
        ids_of(&client.post_ndjson(&batch));
        wait_for_drain(&test.server);
    }
    // Each key is twice in a batch, and the batch is sent twice: 500 events. The ten poison rows
    // have another service, so they are other events; they are dead-lettered and never stored.
    assert_eq!(test.postgres.stored(), 500);
    let dead = "SELECT count(DISTINCT event_id) FROM dead_events WHERE sqlstate = '22003' AND reason LIKE '%too much%'";
    assert_eq!(test.postgres.value::<i64>(dead), 10);
    assert_eq!(test.postgres.value::<i64>("SELECT count(*) FROM dead_events WHERE service <> 'poison'"), 0);
}

#[test]
fn a_misconfigured_database_loses_no_event_until_it_is_repaired() {
    let test = TestServer::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    let mut stored = 0;
    for (breaks, repairs) in [
        ("ALTER TABLE events RENAME TO events_away", "ALTER TABLE events_away RENAME TO events"),
        ("REVOKE INSERT ON events FROM aurore", "GRANT INSERT ON events TO aurore"),
        (
            "ALTER TABLE events RENAME COLUMN service TO who",
            "ALTER TABLE events RENAME COLUMN who TO service",
        ),
    ] {
        test.postgres.execute(breaks);
        let batch: Vec<String> = (0..50).map(|_| event("s", "kept")).collect();
        ids_of(&test.server.client().post_ndjson(&batch));
        until("the breaker opens", || test.server.metric("circuit_breaker_state") != 0);
        // Ingestion continues.
        ids_of(&test.server.client().post_ndjson(&batch));
        assert_eq!(test.server.metric("buffer_size"), 100, "{breaks}");
        test.postgres.execute(repairs);
        wait_for_drain(&test.server);
        stored += 100;
        assert_eq!(test.postgres.stored(), stored, "{breaks}");
        assert_eq!(test.postgres.dead(), 0, "{breaks}");
    }
    until("the breaker closes", || test.server.metric("circuit_breaker_state") == 0);
}
