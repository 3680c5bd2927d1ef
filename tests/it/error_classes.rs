//! Classes of database errors. A faulty row is dead-lettered and the rest of the batch is stored. A
//! misconfiguration keeps all events until it is repaired.

use std::time::Duration;

use crate::harness::checker::wait_for_drain_within;
use crate::harness::events::{ids_of, keyed};
use crate::harness::{TestServer, event, now, until, wait_for_drain};

/// Rejects the message `poison`, like a constraint of an operator.
const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')";
const REFUSE_EVENTS: &str = "\
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed'; END $$; \
    CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()";
const REFUSE_COUNTS: &str = "\
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed'; END $$; \
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON event_counts FOR EACH ROW EXECUTE FUNCTION refuse()";
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
fn an_error_raised_in_a_trigger_for_one_row_dead_letters_that_row_alone() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    test.postgres.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.message = 'poison' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    // Alone, before any event is stored.
    ids_of(&test.server.client().post_ndjson(&[event("s", "poison")]));
    wait_for_drain(&test.server);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (0, 1));
    let batch: Vec<String> =
        (0..23).map(|row| event("s", if row == 11 { "poison" } else { "good" })).collect();
    ids_of(&test.server.client().post_ndjson(&batch));
    wait_for_drain(&test.server);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (22, 2));
    // Alone, after others were stored.
    ids_of(&test.server.client().post_ndjson(&[event("s", "poison")]));
    wait_for_drain(&test.server);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (22, 3));
    let explained =
        "SELECT count(*) FROM dead_events WHERE sqlstate = 'P0001' AND reason LIKE '%not this one%'";
    assert_eq!(test.postgres.value::<i64>(explained), 3);
    assert_eq!(test.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 22);
    assert!(!test.server.log().contains("circuit breaker"), "the breaker stayed closed");
}

#[test]
fn a_violated_unique_index_of_the_operator_dead_letters_the_row() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let partition: String =
        test.postgres.value("SELECT to_char(now() AT TIME ZONE 'UTC', '\"events_\"YYYYMMDD')");
    test.postgres.execute(&format!("CREATE UNIQUE INDEX one_of_each ON {partition} (message)"));
    let batch: Vec<String> = ["a", "b", "a", "c"].iter().map(|message| event("s", message)).collect();
    ids_of(&test.server.client().post_ndjson(&batch));
    wait_for_drain(&test.server);
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (3, 1));
    let explained =
        "SELECT count(*) FROM dead_events WHERE sqlstate = '23505' AND reason LIKE '%one_of_each%'";
    assert_eq!(test.postgres.value::<i64>(explained), 1);
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
        // PostgreSQL reports an invalid value for each row with metadata.
        ("ALTER TABLE events ALTER metadata TYPE json", "ALTER TABLE events ALTER metadata TYPE jsonb"),
        (
            "ALTER TABLE event_counts ADD CHECK (count < 0) NOT VALID",
            "ALTER TABLE event_counts DROP CONSTRAINT event_counts_count_check",
        ),
        (
            "ALTER TABLE event_minutes ADD CHECK (count < 0) NOT VALID",
            "ALTER TABLE event_minutes DROP CONSTRAINT event_minutes_count_check",
        ),
        (REFUSE_COUNTS, "DROP FUNCTION refuse CASCADE"),
        (
            "ALTER TABLE events ADD CONSTRAINT wrong CHECK (message = '') NOT VALID",
            "ALTER TABLE events DROP CONSTRAINT wrong",
        ),
        (REFUSE_EVENTS, "DROP FUNCTION refuse CASCADE"),
    ] {
        test.postgres.execute(breaks);
        // Every other event has metadata.
        let with_metadata = event("s", "kept").replace('}', r#","metadata":{"n":1}}"#);
        let batch: Vec<String> = (0..25).flat_map(|_| [event("s", "kept"), with_metadata.clone()]).collect();
        ids_of(&test.server.client().post_ndjson(&batch));
        until("the breaker opens", || test.server.metric("circuit_breaker_state") != 0);
        // Ingestion continues.
        ids_of(&test.server.client().post_ndjson(&batch));
        assert_eq!(test.server.metric("buffer_size"), 100, "{breaks}");
        // PostgreSQL may end the repair for a deadlock with a batch that is retried.
        until("it is repaired", || test.postgres.client().batch_execute(repairs).is_ok());
        wait_for_drain(&test.server);
        stored += 100;
        assert_eq!(test.postgres.stored(), stored, "{breaks}");
        assert_eq!(test.postgres.dead(), 0, "{breaks}");
    }
    until("the breaker closes", || test.server.metric("circuit_breaker_state") == 0);
}
