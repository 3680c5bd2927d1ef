//! What takes its time, whatever the machine: run by `scripts/faults` alone.

use std::time::Duration;

use aurore_events::clock::Clock;

use crate::bench::Bench;
use crate::harness::events::ids_of;
use crate::harness::judge::settle_within;
use crate::harness::wait::until_within;
use crate::harness::{event, until};

#[test]
fn f20_a_database_that_accepts_and_never_answers_is_noticed_within_15_seconds() {
    const NOTICED_MAX: Duration = Duration::from_secs(15);
    let mut bench = Bench::loaded("20 accepts and never answers", &[]);
    let clock = Clock::system();
    for round in 0..2 {
        let before = clock.now();
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
        until_within(NOTICED_MAX, "the writer tries again", || retried(&bench));
        bench.proxy.heal();
        until("the database is back", || bench.server.metric("database_connection_status") == 1);
    }
    bench.judge(2);
}

/// Whether a statement of the writer was given up since the last look: the breaker counts it.
fn retried(bench: &Bench) -> bool {
    bench.server.log().contains("storing a batch failed")
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
