//! FAULTS 1 to 5: faults of the process itself.

use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};
use aurore_events::http::listener;
use aurore_events::lifecycle::Lifecycle;
use aurore_events::server::{RunServerError, ServerInputs, open_journal, policy, serve};
use aurore_events::service_manager::ServiceManager;
use aurore_events::settings::Settings;
use aurore_events::storage::memory::{InjectedFault, MemoryRepository};

use crate::fixture::{Fixture, ReportRow, seconds, times};
use crate::harness::events::{id_of, ids_of};
use crate::harness::producer::LoadProfile;
use crate::harness::temp::temp_dir;
use crate::harness::{Client, event, until};

/// The window of `memory`: an event that is lost was acknowledged at most this long before the
/// kill. `JOURNAL_WRITE_MS`, and 90 ms more for a busy machine.
const WINDOW: Duration = Duration::from_millis(10 + 90);

const LOAD: LoadProfile = LoadProfile::STEADY;

/// Kills the server at random moments under full load, and checks the events of all processes
/// together.
#[track_caller]
fn check_kills(
    fault: &'static str,
    rounds: u32,
    setting: &str,
    header: Option<&'static str>,
    window: Duration,
) {
    let mut fixture = Fixture::start(fault, &[("DURABILITY", setting)]);
    let clock = Clock::system();
    // Ids whose loss is inside the window of their process.
    let mut forgiven = std::collections::HashSet::new();
    // Events acknowledged per second, by process.
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let began = clock.now();
        fixture.start_load(LoadProfile { durability: header, ..LoadProfile::FULL });
        fixture.wait_for_acknowledged(200);
        let pause = rand::RngExt::random_range(&mut clock.rng(), 0..50);
        thread::sleep(Duration::from_millis(pause));
        let kill_at_call: Moment = fixture.producer().now();
        let taken = u32::try_from(fixture.producer().acknowledged()).expect("a process runs briefly");
        rates.push(f64::from(taken) / clock.now().since(began).as_secs_f64());
        fixture.server.kill();
        let record = fixture.stop_load();
        let late = |at: &Moment| *at > kill_at_call || kill_at_call.since(*at) <= window;
        if !window.is_zero() {
            forgiven
                .extend(record.acknowledged_at.iter().filter(|(_, at)| late(at)).map(|(id, _)| id.clone()));
        }
        fixture.clear_timestamps();
        fixture.server.restart();
    }
    rates.sort_by(f64::total_cmp);
    eprintln!(
        "{fault}: {rounds} kills under {:.0} to {:.0} events/s, {:.0} median",
        rates[0],
        rates[rates.len() - 1],
        rates[rates.len() / 2]
    );
    fixture.verify_after_kill(rounds, |_, id| forgiven.contains(id));
}

#[test]
fn f01_kill_9_at_memory_loses_no_more_than_its_window() {
    check_kills("1 kill -9 under load, memory", times(3, 100), "memory", None, WINDOW);
}

#[test]
fn f01_kill_9_at_written_loses_nothing() {
    check_kills("1 kill -9 under load, written", times(3, 100), "written", None, Duration::ZERO);
}

#[test]
fn f01_kill_9_at_synced_loses_nothing() {
    check_kills("1 kill -9 under load, synced", times(3, 100), "synced", None, Duration::ZERO);
}

#[test]
fn f01_kill_9_at_written_by_header_loses_nothing() {
    let rounds = times(2, 20);
    check_kills("1 kill -9 under load, written by header", rounds, "memory", Some("written"), Duration::ZERO);
}

#[test]
fn f01_kill_9_at_synced_by_header_loses_nothing() {
    let rounds = times(2, 20);
    check_kills("1 kill -9 under load, synced by header", rounds, "memory", Some("synced"), Duration::ZERO);
}

#[test]
fn f01_kill_9_with_the_database_down_loses_no_event_at_written() {
    const FAULT: &str = "1 kill -9 with the database down, written";
    let mut fixture = Fixture::start_under_load(FAULT, &[("DURABILITY", "written")]);
    let rounds = times(2, 10);
    for _ in 0..rounds {
        fixture.postgres.stop_immediate();
        fixture.wait_for_acknowledged(2_000);
        fixture.server.kill();
        fixture.stop_load();
        fixture.postgres.restart();
        fixture.server.restart();
        fixture.start_load(LOAD);
        fixture.wait_for_acknowledged(100);
    }
    fixture.verify_after_kill(rounds, |_, _| false);
}

#[test]
fn f02_sigterm_with_a_full_buffer_and_the_database_up_stores_every_event() {
    let mut fixture = Fixture::start(
        "2 SIGTERM, buffer full, database up",
        &[("BUFFER_MAX_SIZE", "20000"), ("SPILL_MAX_BYTES", "0")],
    );
    let rounds = times(1, 10);
    for _ in 0..rounds {
        fixture.proxy.stall();
        fixture.start_load(LoadProfile { batch: 1_000, ..LOAD });
        until("the buffer is full", || fixture.server.metric("events_dropped_total") > 0);
        fixture.proxy.repair();
        fixture.server.stop();
        fixture.stop_load();
        // The drain stored them, not the recovery of the next process.
        fixture.check_nothing_is_left_behind();
        fixture.server.restart();
    }
    fixture.verify_after_kill(rounds, |_, _| false);
}

#[test]
fn f02_sigterm_with_a_full_buffer_and_the_database_down_keeps_every_event() {
    const FAULT: &str = "2 SIGTERM, then a second, buffer full, database down";
    let settings = [("BUFFER_MAX_SIZE", "20000"), ("SPILL_MAX_BYTES", "0"), ("SHUTDOWN_TIMEOUT_MS", "1000")];
    let mut fixture = Fixture::start(FAULT, &settings);
    for second in [false, true] {
        fixture.start_load(LoadProfile { batch: 1_000, durability: Some("written"), ..LOAD });
        fixture.wait_for_acknowledged(1_000);
        fixture.postgres.stop_fast();
        until("the buffer is full", || fixture.server.metric("events_dropped_total") > 0);
        fixture.server.signal("TERM");
        if second {
            fixture.server.signal("TERM");
        }
        fixture.server.exit_within(Duration::from_secs(20));
        fixture.stop_load();
        fixture.postgres.restart();
        fixture.server.restart();
    }
    fixture.verify_after_kill(2, |_, _| false);
}

#[test]
fn f03_a_process_resumes_after_sigstop_without_loss() {
    let mut fixture = Fixture::start_under_load("3 SIGSTOP", &[]);
    fixture.server.signal("STOP");
    thread::sleep(seconds(2, 30));
    fixture.server.signal("CONT");
    fixture.wait_for_acknowledged(1_000);
    fixture.verify(1);
}

#[test]
fn f04_a_writer_panic_ends_the_process_and_no_202_follows() {
    let mut row = ReportRow::new("4 writer panics");
    let (_, settings) =
        Settings::load(["aurore-events", "--drain-interval=10", "--acceptors=1"].map(Into::into))
            .expect("the settings are right");
    let listeners = listener::bind(([127, 0, 0, 1], 0).into(), 1).expect("a port is free");
    let address = listeners[0].local_addr().expect("it is bound");
    let (lifecycle, notices) = Lifecycle::new();
    let repository = Arc::new(MemoryRepository::new());
    let faulty = Arc::clone(&repository);
    let clock = Clock::system();
    let data = temp_dir();
    let journal = open_journal(data.path()).expect("the directory is empty");
    let policy = policy(&settings, None, &lifecycle);
    let outside = ServerInputs {
        listeners: vec![listeners],
        policy,
        identity: None,
        repository: faulty,
        journal,
        standby: None,
        cluster_restarts: Arc::default(),
        service_manager: ServiceManager::default(),
    };
    let serving = thread::Builder::new()
        .spawn(move || serve(&settings, outside, &lifecycle, &notices, &clock))
        .expect("a thread starts");
    until("it listens", || {
        let reply = Client::try_connect(address).and_then(|mut client| {
            client.try_exchange(&crate::harness::client::request("GET", "/ready", &[], b""))
        });
        reply.is_ok_and(|reply| reply.status == 200)
    });
    let mut client = Client::connect(address);
    id_of(&client.post_json(event("s", "before")));
    until("it is stored", || repository.events().len() == 1);
    // The probe may hit the fault first; the process ends with either thread.
    repository.inject_faults([InjectedFault::Panic]);
    id_of(&client.post_json(event("s", "held")));
    let ended = serving.join().expect("the server itself does not panic");
    let Err(failed @ RunServerError::ThreadDied(_)) = ended else { panic!("{ended:?}") };
    assert_eq!(format!("{:?}", failed.exit_code()), format!("{:?}", std::process::ExitCode::from(70)));
    // No 202 after the writer has ended.
    let late = crate::harness::client::post("application/json", event("s", "late").as_bytes());
    let after = Client::try_connect(address).and_then(|mut client| client.try_exchange(&late));
    assert!(after.is_err() || after.is_ok_and(|reply| reply.status != 202), "a 202 after the writer died");
    row.passed_after(1, 1);
}

/// Sets a resource limit of a running process.
#[track_caller]
fn limit(pid: u32, what: &str) {
    let done = Command::new("prlimit").args(["--pid", &pid.to_string(), what]).status();
    assert!(done.expect("prlimit (util-linux) runs").success(), "{what}");
}

#[test]
fn f05_connections_wait_for_file_descriptors_and_no_event_is_lost() {
    let mut fixture = Fixture::start_under_load("5 out of file descriptors", &[]);
    let open = std::fs::read_dir(format!("/proc/{}/fd", fixture.server.pid())).expect("it runs").count();
    limit(fixture.server.pid(), &format!("--nofile={}:", open + 5));
    let storm: Vec<_> =
        (0..100).filter_map(|_| std::net::TcpStream::connect(fixture.server.address()).ok()).collect();
    // Open connections are served as before.
    fixture.wait_for_acknowledged(1_000);
    fixture.postgres.terminate_sessions();
    fixture.wait_for_acknowledged(1_000);
    limit(fixture.server.pid(), "--nofile=1024:");
    drop(storm);
    until("new connections are taken", || fixture.server.client().get("/live").status == 200);
    fixture.verify(1);
}

/// Bytes of a line of /proc/PID/status.
#[track_caller]
fn memory(fixture: &Fixture, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", fixture.server.pid())).expect("it runs");
    let size = status.lines().find_map(|text| text.strip_prefix(line)).expect("the line exists");
    size.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn f05_a_full_buffer_rejects_events_within_the_memory_limit() {
    const BUFFER_BYTES: u64 = 8 << 20;
    /// Memory besides the buffer: connections, bodies, a batch, and what the allocator retains.
    const REST_BYTES: u64 = 16 << 20;
    let settings = [("BUFFER_MAX_BYTES", "8388608"), ("SPILL_MAX_BYTES", "0")];
    let mut fixture = Fixture::start("5 memory limit", &settings);
    // No client is connected yet, and the buffer is empty.
    let (size, resident) = (memory(&fixture, "VmSize:"), memory(&fixture, "VmRSS:"));
    limit(fixture.server.pid(), &format!("--as={}:", size + (128 << 20)));
    fixture.start_load(LoadProfile { connections: 8, batch: 1_000, ..LoadProfile::STEADY });
    for _ in 0..times(2, 10) {
        fixture.proxy.stall();
        let rejected = fixture.server.metric("events_dropped_total");
        until("the buffer is full", || fixture.server.metric("events_dropped_total") > rejected + 100_000);
        fixture.proxy.repair();
        fixture.wait_for_acknowledged(5_000);
    }
    let peak = memory(&fixture, "VmHWM:") - resident;
    assert!(peak <= BUFFER_BYTES * 3 / 2 + REST_BYTES, "{} MiB above the idle server", peak >> 20);
    fixture.verify(1);
}

#[test]
fn f02_a_second_sigterm_ends_the_process_at_once() {
    let mut fixture = Fixture::start("2 second SIGTERM", &[("LINGER", "60000"), ("DRAIN_INTERVAL", "60000")]);
    ids_of(&fixture.server.client().post_ndjson(&vec![event("s", "held"); 10]));
    fixture.postgres.stop_fast();
    fixture.server.signal("TERM");
    until("intake ends", || {
        let asked = Client::try_connect(fixture.server.address());
        !asked.is_ok_and(|mut client| {
            let post = crate::harness::client::post("application/json", event("s", "late").as_bytes());
            client.try_exchange(&post).is_ok_and(|reply| reply.status == 202)
        })
    });
    fixture.server.signal("TERM");
    let status = fixture.server.exit_within(Duration::from_secs(5));
    assert_ne!(status.code(), Some(0), "events were left behind");
    fixture.row.passed();
}
