//! Whose fault is it? A row's own: that row is set aside and the rest is stored. The configuration's: everything
//! is kept until it is mended.

use std::time::Duration;

use crate::harness::events::{ids_of, keyed};
use crate::harness::judge::settle_within;
use crate::harness::{World, event, now, settle, until};

/// Refuses what the test calls poison, as some rule of the user's own might.
const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')";
/// Thousands of rows have to be found one by one, by a debug build, beside other tests.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn poison_is_set_aside_with_its_reason_and_costs_no_other_row() {
    let world = World::start(&[]);
    world.postgres.execute(RULE);
    let mut client = world.server.client();
    let (mut good, mut bad) = (0, 0);
    for poisoned in [1, 2, 2_500, 5_000] {
        // Spread evenly: the worst case for whoever searches by halves.
        let step = 5_000 / poisoned;
        let batch: Vec<String> =
            (0..5_000).map(|row| event("s", if row % step == 0 { "poison" } else { "good" })).collect();
        assert_eq!(ids_of(&client.post_ndjson(&batch)).len(), 5_000);
        bad += poisoned;
        good += 5_000 - poisoned;
        settle_within(LONG, &world.server);
        assert_eq!(world.postgres.dead(), bad, "after {poisoned} bad rows");
        assert_eq!(world.postgres.stored(), good, "after {poisoned} bad rows");
    }
    assert_eq!(world.server.metric("events_dead_total"), u64::try_from(bad).unwrap());
    let explained = "SELECT count(*) FROM dead_events WHERE sqlstate = '23514' AND reason LIKE '%no_poison%' \
                     AND position('poison'::bytea IN row) > 0 AND service = 's'";
    assert_eq!(world.postgres.value::<i64>(explained), bad);
    // The row's fault says nothing of the database: nothing is held back on its account.
    assert_eq!(world.server.metric("circuit_breaker_state"), 0);
}

#[test]
fn poison_among_keyed_and_repeated_events_is_found_too() {
    let world = World::start(&[("BATCH_SIZE", "300")]);
    world.postgres.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.service = 'poison' THEN RAISE numeric_value_out_of_range USING MESSAGE = 'too much'; END IF; \
         RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()",
    );
    let mut client = world.server.client();
    let time = now();
    let batch: Vec<String> = (0..1_000)
        .map(|row| keyed(time, if row % 100 == 7 { "poison" } else { "s" }, &format!("k{}", row / 2)))
        .collect();
    for _ in 0..2 {
        ids_of(&client.post_ndjson(&batch));
        settle(&world.server);
    }
    // Each key comes twice in a batch, and the batch twice: 500 events. The ten poisoned rows are of another service,
    // so they are events of their own; sent twice, they are dead, never stored.
    assert_eq!(world.postgres.stored(), 500);
    let dead = "SELECT count(DISTINCT event_id) FROM dead_events WHERE sqlstate = '22003' AND reason LIKE '%too much%'";
    assert_eq!(world.postgres.value::<i64>(dead), 10);
    assert_eq!(world.postgres.value::<i64>("SELECT count(*) FROM dead_events WHERE service <> 'poison'"), 0);
}

#[test]
fn a_fault_of_the_configuration_keeps_everything_until_it_is_mended() {
    let world = World::start(&[("CIRCUIT_BREAKER_TIMEOUT_MS", "100"), ("DRAIN_INTERVAL", "50")]);
    let mut stored = 0;
    for (breaks, mends) in [
        ("ALTER TABLE events RENAME TO events_away", "ALTER TABLE events_away RENAME TO events"),
        ("REVOKE INSERT ON events FROM aurore", "GRANT INSERT ON events TO aurore"),
        (
            "ALTER TABLE events RENAME COLUMN service TO who",
            "ALTER TABLE events RENAME COLUMN who TO service",
        ),
    ] {
        world.postgres.execute(breaks);
        let batch: Vec<String> = (0..50).map(|_| event("s", "kept")).collect();
        ids_of(&world.server.client().post_ndjson(&batch));
        until("the breaker opens", || world.server.metric("circuit_breaker_state") != 0);
        // Ingestion goes on.
        ids_of(&world.server.client().post_ndjson(&batch));
        assert_eq!(world.server.metric("buffer_size"), 100, "{breaks}");
        world.postgres.execute(mends);
        settle(&world.server);
        stored += 100;
        assert_eq!(world.postgres.stored(), stored, "{breaks}");
        assert_eq!(world.postgres.dead(), 0, "{breaks}");
    }
    until("the breaker closes", || world.server.metric("circuit_breaker_state") == 0);
}
