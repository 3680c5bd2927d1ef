//! FAULTS 32: more than the database takes. The rest of the edge is tried by `tests/it` and the corpus of requests.

use std::time::Duration;

use aurore_events::clock::Clock;

use crate::bench::{Bench, seconds};
use crate::harness::producer::Manner;
use crate::harness::until;

/// What the database takes: a few thousand events a second.
const DATABASE_BYTES_PER_SECOND: u32 = 500_000;
/// The whole process beside its buffer, in a debug build.
const MEMORY_MAX: u64 = 96 << 20;
const HEALTH_MAX: Duration = Duration::from_millis(100);
/// The machine is shared with PostgreSQL and the load, in a debug build: one answer in a hundred may be later.
const REFUSAL_MAX: Duration = Duration::from_secs(1);

#[test]
fn f32_overload_is_refused_promptly_within_memory_and_recovers() {
    let mut bench = Bench::start("32 overload", &[("BUFFER_MAX_SIZE", "20000"), ("SPILL_MAX_BYTES", "0")]);
    bench.proxy.throttle(DATABASE_BYTES_PER_SECOND);
    bench.load(Manner { connections: 8, batch: 500, ..Manner::STEADY });
    let clock = Clock::system();
    until("the buffer is full", || bench.server.metric("events_dropped_total") > 0);
    let (begin, length) = (clock.now(), seconds(4, 60));
    let mut asked = 0_u32;
    let mut slow = 0;
    let mut client = bench.server.client();
    until_over(&clock, begin, length, || {
        let before = clock.now();
        let reply = client.get("/health");
        slow += u32::from(clock.now().since(before) > HEALTH_MAX);
        asked += 1;
        assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
        let memory = bench.server.metric("process_memory_usage_bytes");
        assert!(memory < MEMORY_MAX, "{memory} bytes");
    });
    assert!(slow * 100 <= asked, "{slow} of {asked} answers of /health took over {HEALTH_MAX:?}");
    let tally = bench.unload();
    assert!(tally.answers[&429] > 0);
    assert!(tally.slowest_refusal < REFUSAL_MAX, "a refusal took {:?}", tally.slowest_refusal);
    bench.proxy.heal();
    let stopped = clock.now();
    until("the backlog is written", || bench.server.metric("buffer_size") == 0);
    let recovery = clock.now().since(stopped);
    assert!(recovery < Duration::from_secs(10), "{recovery:?}");
    bench.judge(1);
}

/// Repeats for so long.
fn until_over(clock: &Clock, begin: aurore_events::clock::Moment, length: Duration, mut body: impl FnMut()) {
    while clock.now().since(begin) < length {
        body();
        std::thread::sleep(Duration::from_millis(20));
    }
}
