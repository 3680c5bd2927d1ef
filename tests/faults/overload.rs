//! FAULTS 32: more load than the database can store. `tests/it` and the corpus of requests cover
//! the other faults of the HTTP front end.

use std::time::Duration;

use aurore_events::clock::Clock;

use crate::fixture::{Fixture, seconds};
use crate::harness::producer::LoadProfile;
use crate::harness::until;

/// The throughput of the database: a few thousand events per second.
const DATABASE_BYTES_PER_SECOND: u32 = 500_000;
/// The memory of the process with its buffer, in a debug build.
const MEMORY_MAX: u64 = 96 << 20;
const HEALTH_MAX: Duration = Duration::from_millis(100);
/// A generous bound: the machine also runs PostgreSQL and the load, and the build is a debug build.
const REFUSAL_MAX: Duration = Duration::from_secs(1);

#[test]
fn f32_overload_is_rejected_promptly_within_bounded_memory() {
    let mut fixture =
        Fixture::start("32 overload", &[("BUFFER_MAX_SIZE", "20000"), ("SPILL_MAX_BYTES", "0")]);
    fixture.proxy.throttle(DATABASE_BYTES_PER_SECOND);
    fixture.start_load(LoadProfile { connections: 8, batch: 500, ..LoadProfile::STEADY });
    let clock = Clock::system();
    until("the buffer is full", || fixture.server.metric("events_dropped_total") > 0);
    let (begin, length) = (clock.now(), seconds(4, 60));
    let mut asked = 0_u32;
    let mut slow = 0;
    let mut client = fixture.server.client();
    until_over(&clock, begin, length, || {
        let before = clock.now();
        let reply = client.get("/health");
        slow += u32::from(clock.now().since(before) > HEALTH_MAX);
        asked += 1;
        assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
        let memory = fixture.server.metric("process_memory_usage_bytes");
        assert!(memory < MEMORY_MAX, "{memory} bytes");
    });
    assert!(slow * 100 <= asked, "{slow} of {asked} responses of /health took over {HEALTH_MAX:?}");
    let record = fixture.stop_load();
    assert!(record.statuses[&429] > 0);
    assert!(record.slowest_refusal < REFUSAL_MAX, "a rejection took {:?}", record.slowest_refusal);
    fixture.proxy.repair();
    let stopped = clock.now();
    until("the backlog is written", || fixture.server.metric("buffer_size") == 0);
    let recovery = clock.now().since(stopped);
    assert!(recovery < Duration::from_secs(10), "{recovery:?}");
    fixture.verify(1);
}

/// Repeats `body` until `length` has passed.
fn until_over(clock: &Clock, begin: aurore_events::clock::Moment, length: Duration, mut body: impl FnMut()) {
    while clock.now().since(begin) < length {
        body();
        std::thread::sleep(Duration::from_millis(20));
    }
}
