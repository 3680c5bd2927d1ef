//! FAULTS 25: the wall clock jumps, both ways. Timers use the monotonic clock, and ids stay unique.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aurore_events::clock::Clock;
use aurore_events::event::Timestamp;
use aurore_events::http::listener;
use aurore_events::lifecycle::Lifecycle;
use aurore_events::server::{ServerInputs, open_journal, policy, serve};
use aurore_events::settings::Settings;
use aurore_events::storage::memory::MemoryRepository;

use crate::fixture::ReportRow;
use crate::harness::client::request;
use crate::harness::events::{event_at, ids_of};
use crate::harness::temp::temp_dir;
use crate::harness::{Client, now, until};

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

#[test]
fn f25_wall_clock_jumps_stall_no_timer_and_repeat_no_id() {
    let mut row = ReportRow::new("25 clock jumps of an hour and a day, both ways");
    let (_, settings) = Settings::load(["aurore-events", "--drain-interval=20"].map(Into::into))
        .expect("the settings are right");
    let listeners = listener::bind(([127, 0, 0, 1], 0).into(), 1).expect("a port is free");
    let address = listeners[0].local_addr().expect("it is bound");
    let (lifecycle, notices) = Lifecycle::new();
    let data = temp_dir();
    let journal = open_journal(data.path()).expect("the directory is empty");
    let policy = policy(&settings, None, &lifecycle);
    let repository = Arc::new(MemoryRepository::new());
    let start = now();
    let clock = Clock::manual(start, 7);
    let serving = {
        let (repository, lifecycle, clock) = (Arc::clone(&repository), lifecycle.clone(), clock.clone());
        let outside = ServerInputs {
            listeners,
            policy,
            identity: None,
            repository,
            journal,
            cluster_restarts: Arc::default(),
        };
        let body = move || serve(&settings, outside, &lifecycle, &notices, &clock);
        thread::Builder::new().spawn(body).expect("a thread starts")
    };
    until("it is ready", || {
        let asked = Client::try_connect(address)
            .and_then(|mut client| client.try_exchange(&request("GET", "/ready", &[], b"")));
        asked.is_ok_and(|reply| reply.status == 200)
    });
    let mut client = Client::connect(address);
    let mut ids = HashSet::new();
    for jump in [0, HOUR, DAY, -DAY, -HOUR, -HOUR, 0, DAY] {
        let wall = Timestamp::from_micros(start.micros() + jump);
        clock.set_wall(wall);
        // The events have the same millisecond in every round.
        let events: Vec<String> = (0..100).map(|_| event_at(start, "s", "m")).collect();
        let fits = jump >= -300_000_000;
        let reply = client.post_ndjson(&events);
        if fits {
            ids.extend(ids_of(&reply));
        } else {
            assert_eq!(reply.status, 400, "the timestamps are too far ahead of the clock");
        }
        // The linger of the batch depends on the monotonic clock only.
        until("the batch is written", || {
            clock.advance(Duration::from_millis(5));
            clock.set_wall(wall);
            repository.events().len() == ids.len()
        });
    }
    assert_eq!(ids.len(), 500);
    lifecycle.request_stop();
    until("it ends", || {
        clock.advance(Duration::from_millis(5));
        serving.is_finished()
    });
    serving.join().expect("no panic").expect("a clean stop");
    row.passed_after(8, 500);
}
