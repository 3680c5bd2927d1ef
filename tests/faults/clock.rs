//! FAULTS 25: the wall clock jumps, both ways. Timers use the monotonic clock, ids stay unique, and
//! retention deletes nothing while the clocks of server and database disagree.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

use aurore_events::clock::Clock;
use aurore_events::event::Timestamp;
use aurore_events::http::listener;
use aurore_events::lifecycle::Lifecycle;
use aurore_events::server::{RunServerError, ServerInputs, open_journal, policy, serve};
use aurore_events::service_manager::ServiceManager;
use aurore_events::settings::Settings;
use aurore_events::storage::memory::MemoryRepository;
use aurore_events::storage::postgres::{ConnectTarget, PostgresLimits, PostgresRepository};
use aurore_events::storage::{EventRepository, StoreError};

use crate::fixture::ReportRow;
use crate::harness::client::{NDJSON, request};
use crate::harness::events::{event_at, ids_of};
use crate::harness::server::PARTITIONS;
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, now, until};

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// A server in the process of the test, on a manual clock.
struct InProcessServer {
    address: SocketAddr,
    clock: Clock,
    lifecycle: Lifecycle,
    thread: JoinHandle<Result<(), RunServerError>>,
    data: TempDir,
}

impl InProcessServer {
    /// Starts the server and waits until it is ready.
    fn start(repository: Arc<dyn EventRepository>, start: Timestamp, arguments: &[&str]) -> Self {
        Self::start_in(temp_dir(), repository, start, arguments)
    }

    /// Like `start`, in the data directory of an earlier server.
    fn start_in(
        data: TempDir,
        repository: Arc<dyn EventRepository>,
        start: Timestamp,
        arguments: &[&str],
    ) -> Self {
        let arguments = ["aurore-events", "--drain-interval=20"].iter().chain(arguments);
        let (_, settings) = Settings::load(arguments.map(Into::into)).expect("the settings are right");
        let listeners = listener::bind(([127, 0, 0, 1], 0).into(), 1).expect("a port is free");
        let address = listeners[0].local_addr().expect("it is bound");
        let (lifecycle, notices) = Lifecycle::new();
        let clock = Clock::manual(start, 7);
        let outside = ServerInputs {
            listeners: vec![listeners],
            policy: policy(&settings, None, &lifecycle),
            identity: None,
            repository,
            journal: open_journal(data.path()).expect("the directory is empty"),
            standby: None,
            cluster_restarts: Arc::default(),
            service_manager: ServiceManager::default(),
        };
        let thread = {
            let (lifecycle, clock) = (lifecycle.clone(), clock.clone());
            let body = move || serve(&settings, outside, &lifecycle, &notices, &clock);
            thread::Builder::new().spawn(body).expect("a thread starts")
        };
        let server = Self { address, clock, lifecycle, thread, data };
        until("it is ready", || {
            let asked = Client::try_connect(address)
                .and_then(|mut client| client.try_exchange(&request("GET", "/ready", &[], b"")));
            asked.is_ok_and(|reply| reply.status == 200)
        });
        server
    }

    /// Lets a little time pass on the monotonic clock.
    fn advance(&self) {
        self.clock.advance(Duration::from_millis(5));
    }

    fn set_wall(&self, start: Timestamp, jump: i64) {
        self.clock.set_wall(Timestamp::from_micros(start.micros() + jump));
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// The value of a metric without labels.
    fn metric(&self, name: &str) -> f64 {
        let page = self.client().get("/metrics/prometheus").text();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).expect("the metric is there")
    }

    /// Returns the data directory.
    fn stop(self) -> TempDir {
        self.lifecycle.request_stop();
        until("it ends", || {
            self.advance();
            self.thread.is_finished()
        });
        self.thread.join().expect("no panic").expect("a clean stop");
        self.data
    }
}

#[test]
fn f25_wall_clock_jumps_stall_no_timer_and_repeat_no_id() {
    let mut row = ReportRow::new("25 clock jumps of an hour and a day, both ways");
    let repository = Arc::new(MemoryRepository::new());
    let start = now();
    let server = InProcessServer::start(repository.clone(), start, &[]);
    let mut client = Client::connect(server.address);
    let mut ids = HashSet::new();
    for jump in [0, HOUR, DAY, -DAY, -HOUR, -HOUR, 0, DAY] {
        let wall = Timestamp::from_micros(start.micros() + jump);
        server.clock.set_wall(wall);
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
            server.advance();
            server.clock.set_wall(wall);
            repository.events().len() == ids.len()
        });
    }
    assert_eq!(ids.len(), 500);
    server.stop();
    row.passed_after(8, 500);
}

/// The backoff of the writer, the breaker and the journal during an outage.
#[test]
fn f25_jumps_during_an_outage_delay_no_retry_and_lose_no_event() {
    // The clock may advance while a thread waits for a core, but never by as much as it jumps.
    const DELAY_MAX: Duration = Duration::from_hours(1);
    let mut row = ReportRow::new("25 clock jumps of a day during an outage, both ways");
    let repository = Arc::new(MemoryRepository::new());
    let start = now();
    let server = InProcessServer::start(repository.clone(), start, &[]);
    let mut sent = 0;
    for jump in [DAY, -DAY, 0] {
        repository.set_outage(Some(StoreError::client_side("gone")));
        for time in [start.micros() - HOUR, start.micros() - DAY] {
            let events = vec![event_at(Timestamp::from_micros(time), "s", "m"); 10];
            let written = [("Content-Type", NDJSON), ("Durability", "written")];
            let bytes = request("POST", "/events", &written, events.join("\n").as_bytes());
            ids_of(&server.client().exchange(&bytes));
            sent += 10;
        }
        until("the breaker opens", || {
            server.advance();
            server.metric("circuit_breaker_state") > 0.0
        });
        server.set_wall(start, jump);
        repository.set_outage(None);
        let opened = server.clock.now();
        until("every event is stored", || {
            server.clock.advance(Duration::from_millis(500));
            server.set_wall(start, jump);
            repository.events().len() == sent
        });
        let took = server.clock.now().since(opened);
        assert!(took < DELAY_MAX, "{took:?} of monotonic time after a jump of {jump} us");
        server.set_wall(start, 0);
    }
    server.stop();
    row.passed_after(3, sent as u64);
}

/// Recovery must not judge the timestamps of acknowledged events by the clock of today.
#[test]
fn f25_a_restart_on_another_day_replays_every_event() {
    let mut row = ReportRow::new("25 restart with a clock off by a day and 45 days, both ways");
    let start = now();
    let jumps = [DAY, -DAY, 45 * DAY, -45 * DAY];
    for jump in jumps {
        let repository = Arc::new(MemoryRepository::new());
        let server = InProcessServer::start(repository.clone(), start, &[]);
        repository.set_outage(Some(StoreError::client_side("gone")));
        let ids: HashSet<String> =
            ids_of(&server.client().post_ndjson(&vec![event_at(start, "s", "m"); 100])).into_iter().collect();
        let data = server.stop();
        assert!(repository.events().is_empty(), "they are in the journal");
        repository.set_outage(None);
        let wall = Timestamp::from_micros(start.micros() + jump);
        let server = InProcessServer::start_in(data, repository.clone(), wall, &[]);
        until("every event is stored", || {
            server.advance();
            repository.events().len() == ids.len()
        });
        let stored: HashSet<String> =
            repository.events().iter().map(|event| event.event_id.to_string()).collect();
        assert_eq!(stored, ids, "a jump of {jump} us");
        server.stop();
    }
    row.passed_after(4, 400);
}

#[test]
fn f25_a_clock_45_days_ahead_deletes_nothing_from_the_database() {
    let mut row = ReportRow::new("25 a clock 45 days ahead, and retention on PostgreSQL");
    let postgres = Postgres::start();
    let target = ConnectTarget::parse(&postgres.url()).expect("the URL is right");
    let repository = Arc::new(PostgresRepository::new(&target, PostgresLimits::default()));
    let start = now();
    let server = InProcessServer::start(repository, start, &["--retention-cron-schedule=* * * * * *"]);
    let partitions =
        || postgres.value::<i64>("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('events')");
    until("the partitions are created", || partitions() >= PARTITIONS);
    let mut client = Client::connect(server.address);
    ids_of(&client.post_ndjson(&[event_at(start, "s", "m")]));
    until("the event is stored", || {
        server.advance();
        postgres.stored() == 1
    });
    // While the clocks agree, sweeps run.
    until("a sweep is done", || {
        server.clock.advance(Duration::from_millis(100));
        server.metric("retention_runs_total") > 0.0
    });
    server.clock.set_wall(Timestamp::from_micros(start.micros() + 45 * DAY));
    until("a sweep is refused", || server.metric("retention_failures_total") > 0.0);
    assert_eq!((partitions(), postgres.stored()), (PARTITIONS, 1));
    server.stop();
    row.passed_after(1, 1);
}
