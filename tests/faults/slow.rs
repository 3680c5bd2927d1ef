//! Tests that are slow on every machine. Only `scripts/faults` runs them.

use std::time::Duration;

use aurore_events::clock::Clock;

use crate::fixture::{Fixture, ReportRow};
use crate::harness::checker::wait_for_drain_within;
use crate::harness::events::ids_of;
use crate::harness::server::run;
use crate::harness::wait::until_within;
use crate::harness::{TestServer, event, until};

#[test]
fn f20_an_unresponsive_database_is_detected_within_15_seconds() {
    const NOTICED_MAX: Duration = Duration::from_secs(15);
    let mut fixture = Fixture::start_under_load("20 accepts and never answers", &[]);
    let clock = Clock::system();
    for round in 0..2 {
        let (before, failures) = (clock.now(), self::failures(&fixture));
        fixture.proxy.stall();
        if round == 1 {
            // New connections stall too.
            fixture.postgres.terminate_sessions();
        }
        until("the outage is detected", || fixture.server.metric("database_connection_status") == 0);
        let noticed = clock.now().since(before);
        assert!(noticed < NOTICED_MAX, "detected after {noticed:?}");
        fixture.wait_for_acknowledged(1_000);
        // The writer times out as well.
        until_within(NOTICED_MAX, "the writer tries again", || self::failures(&fixture) > failures);
        fixture.proxy.repair();
        until("the database is back", || fixture.server.metric("database_connection_status") == 1);
    }
    fixture.verify(2);
}

/// The number of failed calls of the writer to the database. The log cannot be used, since it is
/// rate-limited.
fn failures(fixture: &Fixture) -> u64 {
    fixture.server.metric("batch_retries_total")
}

#[test]
fn f21_a_full_batch_completes_over_a_slow_network() {
    const EVENTS: usize = 5_000;
    let mut fixture = Fixture::start("21 10 KB/s, a full batch", &[]);
    fixture.proxy.throttle(10_000);
    let message = "m".repeat(100);
    let events: Vec<String> = (0..EVENTS).map(|_| event("s", &message)).collect();
    ids_of(&fixture.server.client().post_ndjson(&events));
    wait_for_drain_within(Duration::from_mins(5), &fixture.server);
    assert_eq!(fixture.postgres.stored(), 5_000);
    fixture.row.passed_after(1, 5_000);
}

#[test]
fn f24_dead_letters_are_listed_replayed_and_purged() {
    const LONG: Duration = Duration::from_mins(3);
    const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison') NOT VALID";
    let mut row = ReportRow::new("24 dead letters of 1, 2, 2,500, 5,000 bad rows");
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let dead = |arguments: &[&str]| {
        let ended = run(
            &[("DATABASE_URL", &test.postgres.url()), ("LOG_LEVEL", "warn")],
            &[&["dead"], arguments].concat(),
        );
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    };
    let poison = |bad: usize| {
        test.postgres.execute(RULE);
        let batch: Vec<String> = (0..5_000)
            .map(|row| event("s", if row % (5_000 / bad) == 0 { "poison" } else { "good" }))
            .collect();
        ids_of(&test.server.client().post_ndjson(&batch));
        wait_for_drain_within(LONG, &test.server);
        assert_eq!(test.postgres.dead(), i64::try_from(bad).expect("few"));
    };
    // The rule refuses the replayed rows too. Without an event that it accepts, the server would take it
    // for a mistake and wait.
    ids_of(&test.server.client().post_ndjson(&[event("other", "good")]));
    wait_for_drain_within(LONG, &test.server);
    for (round, bad) in [1, 2, 2_500, 5_000].into_iter().enumerate() {
        poison(bad);
        assert_eq!(dead(&["list", "--limit=100000", "--sqlstate=23514"]).lines().count(), bad);
        test.postgres.execute("ALTER TABLE events DROP CONSTRAINT no_poison");
        let wanted = format!("stored {bad}, duplicate 0, rejected 0, unreadable 0");
        assert_eq!(dead(&["replay"]).trim(), wanted);
        let stored = i64::try_from((round + 1) * 5_000 + 1).expect("few");
        assert_eq!((test.postgres.stored(), test.postgres.dead()), (stored, 0));
    }
    poison(5_000);
    assert_eq!(dead(&["purge", "--all", "--yes"]).trim(), "purged 5000");
    assert_eq!((test.postgres.stored(), test.postgres.dead()), (20_001, 0));
    row.passed_after(5, 25_001);
}
