//! What takes its time, whatever the machine: run by `scripts/faults` alone.

use std::time::Duration;

use aurore_events::clock::Clock;

use crate::bench::{Bench, Line};
use crate::harness::events::ids_of;
use crate::harness::judge::settle_within;
use crate::harness::server::run;
use crate::harness::wait::until_within;
use crate::harness::{World, event, until};

#[test]
fn f20_a_database_that_accepts_and_never_answers_is_noticed_within_15_seconds() {
    const NOTICED_MAX: Duration = Duration::from_secs(15);
    let mut bench = Bench::loaded("20 accepts and never answers", &[]);
    let clock = Clock::system();
    for round in 0..2 {
        let (before, failures) = (clock.now(), self::failures(&bench));
        bench.proxy.fall_silent();
        if round == 1 {
            // Nor does a new connection get a word.
            bench.postgres.end_sessions();
        }
        until("it is noticed", || bench.server.metric("database_connection_status") == 0);
        let noticed = clock.now().since(before);
        assert!(noticed < NOTICED_MAX, "noticed after {noticed:?}");
        bench.keeps_taking(1_000);
        // The writer too gives up what it waits for.
        until_within(NOTICED_MAX, "the writer tries again", || self::failures(&bench) > failures);
        bench.proxy.heal();
        until("the database is back", || bench.server.metric("database_connection_status") == 1);
    }
    bench.judge(2);
}

/// How often the writer has given up what it asked of the database: a batch, or the look at its partitions. The log
/// would not do: it is thinned.
fn failures(bench: &Bench) -> u64 {
    bench.server.metric("batch_retries_total")
}

#[test]
fn f21_a_full_batch_gets_through_a_slow_network_at_last() {
    const EVENTS: usize = 5_000;
    let mut bench = Bench::start("21 10 KB/s, a full batch", &[]);
    bench.proxy.throttle(10_000);
    let message = "m".repeat(100);
    let events: Vec<String> = (0..EVENTS).map(|_| event("s", &message)).collect();
    ids_of(&bench.server.client().post_ndjson(&events));
    settle_within(Duration::from_mins(5), &bench.server);
    assert_eq!(bench.postgres.stored(), 5_000);
    bench.line.passed_after(1, 5_000);
}

#[test]
fn f24_any_number_of_dead_letters_is_listed_replayed_and_purged() {
    const LONG: Duration = Duration::from_mins(3);
    const RULE: &str = "ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison') NOT VALID";
    let mut line = Line::of("24 dead letters of 1, 2, 2,500, 5,000 bad rows");
    let world = World::start(&[("DRAIN_INTERVAL", "50")]);
    let dead = |arguments: &[&str]| {
        let ended = run(
            &[("DATABASE_URL", &world.postgres.url()), ("LOG_LEVEL", "warn")],
            &[&["dead"], arguments].concat(),
        );
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        ended.stdout
    };
    let poison = |bad: usize| {
        world.postgres.execute(RULE);
        let batch: Vec<String> = (0..5_000)
            .map(|row| event("s", if row % (5_000 / bad) == 0 { "poison" } else { "good" }))
            .collect();
        ids_of(&world.server.client().post_ndjson(&batch));
        settle_within(LONG, &world.server);
        assert_eq!(world.postgres.dead(), i64::try_from(bad).expect("few"));
    };
    for (round, bad) in [1, 2, 2_500, 5_000].into_iter().enumerate() {
        poison(bad);
        assert_eq!(dead(&["list", "--limit=100000", "--sqlstate=23514"]).lines().count(), bad);
        world.postgres.execute("ALTER TABLE events DROP CONSTRAINT no_poison");
        let wanted = format!("stored {bad}, stored already 0, refused again 0, unreadable 0");
        assert_eq!(dead(&["replay"]).trim(), wanted);
        let stored = i64::try_from((round + 1) * 5_000).expect("few");
        assert_eq!((world.postgres.stored(), world.postgres.dead()), (stored, 0));
    }
    poison(5_000);
    assert_eq!(dead(&["purge", "--all", "--yes"]).trim(), "purged 5000");
    assert_eq!((world.postgres.stored(), world.postgres.dead()), (20_000, 0));
    line.passed_after(5, 25_000);
}
