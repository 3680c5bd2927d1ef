//! FAULTS 1 to 5: what can happen to the process itself.

use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use aurore_events::clock::{Clock, Moment};
use aurore_events::http::listener;
use aurore_events::lifecycle::Lifecycle;
use aurore_events::server::{Failed, Outside, open_journal, policy, serve};
use aurore_events::settings::Settings;
use aurore_events::storage::memory::{Fault, MemoryRepository};

use crate::bench::{Bench, Line, seconds, times};
use crate::harness::events::{id_of, ids_of};
use crate::harness::producer::Manner;
use crate::harness::temp::TempDir;
use crate::harness::{Client, event, until};

/// How long before the kill an event may have been acknowledged that is lost at `memory`: `JOURNAL_WRITE_MS` and what
/// a busy machine adds to it.
const WINDOW: Duration = Duration::from_millis(10 + 90);

const LOAD: Manner = Manner::STEADY;

/// Kills the server at random moments under full load, and judges all of its lives together.
#[track_caller]
fn killed(fault: &'static str, rounds: u32, setting: &str, header: Option<&'static str>, window: Duration) {
    let mut bench = Bench::start(fault, &[("DURABILITY", setting)]);
    let clock = Clock::system();
    // By id: whether its loss is inside the window of its life.
    let mut forgiven = std::collections::HashSet::new();
    // Events acknowledged a second, in each life.
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let began = clock.now();
        bench.load(Manner { durability: header, ..Manner::FULL });
        bench.keeps_taking(200);
        let pause = rand::RngExt::random_range(&mut clock.rng(), 0..50);
        thread::sleep(Duration::from_millis(pause));
        let killed_at: Moment = bench.producer().now();
        let taken = u32::try_from(bench.producer().acknowledged()).expect("a life is short");
        rates.push(f64::from(taken) / clock.now().since(began).as_secs_f64());
        bench.server.kill();
        let tally = bench.unload();
        let late = |at: &Moment| *at > killed_at || killed_at.since(*at) <= window;
        if !window.is_zero() {
            forgiven.extend(tally.at.iter().filter(|(_, at)| late(at)).map(|(id, _)| id.clone()));
        }
        bench.forget_times();
        bench.server.start_again();
    }
    rates.sort_by(f64::total_cmp);
    eprintln!(
        "{fault}: {rounds} kills under {:.0} to {:.0} events/s, {:.0} in the middle",
        rates[0],
        rates[rates.len() - 1],
        rates[rates.len() / 2]
    );
    bench.judge_killed(rounds, |_, id| forgiven.contains(id));
}

#[test]
fn f01_kill_9_at_memory_loses_no_more_than_its_window() {
    killed("1 kill -9 under load, memory", times(3, 100), "memory", None, WINDOW);
}

#[test]
fn f01_kill_9_at_written_loses_nothing() {
    killed("1 kill -9 under load, written", times(3, 100), "written", None, Duration::ZERO);
}

#[test]
fn f01_kill_9_at_synced_loses_nothing() {
    killed("1 kill -9 under load, synced", times(3, 100), "synced", None, Duration::ZERO);
}

#[test]
fn f01_kill_9_at_written_by_header_loses_nothing() {
    let rounds = times(2, 20);
    killed("1 kill -9 under load, written by header", rounds, "memory", Some("written"), Duration::ZERO);
}

#[test]
fn f01_kill_9_at_synced_by_header_loses_nothing() {
    let rounds = times(2, 20);
    killed("1 kill -9 under load, synced by header", rounds, "memory", Some("synced"), Duration::ZERO);
}

#[test]
fn f01_kill_9_with_the_database_away_loses_nothing_that_was_written() {
    const FAULT: &str = "1 kill -9 with the database away, written";
    let mut bench = Bench::loaded(FAULT, &[("DURABILITY", "written")]);
    let rounds = times(2, 10);
    for _ in 0..rounds {
        bench.postgres.stop_immediate();
        bench.keeps_taking(2_000);
        bench.server.kill();
        bench.unload();
        bench.postgres.start_again();
        bench.server.start_again();
        bench.load(LOAD);
        bench.keeps_taking(100);
    }
    bench.judge_killed(rounds, |_, _| false);
}

#[test]
fn f02_sigterm_with_a_full_buffer_and_the_database_up_stores_all_of_it() {
    let mut bench = Bench::start(
        "2 SIGTERM, buffer full, database up",
        &[("BUFFER_MAX_SIZE", "20000"), ("SPILL_MAX_BYTES", "0")],
    );
    let rounds = times(1, 10);
    for _ in 0..rounds {
        bench.proxy.fall_silent();
        bench.load(Manner { batch: 1_000, ..LOAD });
        until("the buffer is full", || bench.server.metric("events_dropped_total") > 0);
        bench.proxy.heal();
        bench.server.stop();
        bench.unload();
        bench.server.start_again();
    }
    bench.judge_killed(rounds, |_, _| false);
}

#[test]
fn f02_sigterm_with_a_full_buffer_and_the_database_down_keeps_all_of_it() {
    const FAULT: &str = "2 SIGTERM, then a second, buffer full, database down";
    let settings = [("BUFFER_MAX_SIZE", "20000"), ("SPILL_MAX_BYTES", "0"), ("SHUTDOWN_TIMEOUT_MS", "1000")];
    let mut bench = Bench::start(FAULT, &settings);
    for second in [false, true] {
        bench.load(Manner { batch: 1_000, durability: Some("written"), ..LOAD });
        bench.keeps_taking(1_000);
        bench.postgres.stop_fast();
        until("the buffer is full", || bench.server.metric("events_dropped_total") > 0);
        bench.server.signal("TERM");
        if second {
            bench.server.signal("TERM");
        }
        bench.server.exit_within(Duration::from_secs(20));
        bench.unload();
        bench.postgres.start_again();
        bench.server.start_again();
    }
    bench.judge_killed(2, |_, _| false);
}

#[test]
fn f03_a_process_that_is_stopped_for_a_while_goes_on_where_it_was() {
    let mut bench = Bench::loaded("3 SIGSTOP", &[]);
    bench.server.signal("STOP");
    thread::sleep(seconds(2, 30));
    bench.server.signal("CONT");
    bench.keeps_taking(1_000);
    bench.judge(1);
}

#[test]
fn f04_a_writer_that_panics_ends_the_process_and_its_202s() {
    let mut line = Line::of("4 writer panics");
    let (_, settings) =
        Settings::load(["aurore-events", "--drain-interval=10", "--acceptors=1"].map(Into::into))
            .expect("the settings are right");
    let listeners = listener::bind(([127, 0, 0, 1], 0).into(), 1).expect("a port is free");
    let address = listeners[0].local_addr().expect("it is bound");
    let (lifecycle, notices) = Lifecycle::new();
    let repository = Arc::new(MemoryRepository::new());
    let faulty = Arc::clone(&repository);
    let clock = Clock::system();
    let data = TempDir::new();
    let journal = open_journal(data.path()).expect("the directory is empty");
    let policy = policy(&settings, &lifecycle).expect("no file is named");
    let outside = Outside {
        listeners,
        policy,
        identity: None,
        repository: faulty,
        journal,
        cluster_restarts: Arc::default(),
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
    // The probe may meet it first; whoever dies, the process ends.
    repository.meet([Fault::Panic]);
    id_of(&client.post_json(event("s", "held")));
    let ended = serving.join().expect("the server itself does not panic");
    let Err(failed @ Failed::ThreadDied(_)) = ended else { panic!("{ended:?}") };
    assert_eq!(format!("{:?}", failed.exit_code()), format!("{:?}", std::process::ExitCode::from(70)));
    // Never a 202 into a dead buffer.
    let late = crate::harness::client::post("application/json", event("s", "late").as_bytes());
    let after = Client::try_connect(address).and_then(|mut client| client.try_exchange(&late));
    assert!(after.is_err() || after.is_ok_and(|reply| reply.status != 202), "a 202 after the writer died");
    line.passed_after(1, 1);
}

/// Bounds a resource of a running process.
#[track_caller]
fn limit(pid: u32, what: &str) {
    let done = Command::new("prlimit").args(["--pid", &pid.to_string(), what]).status();
    assert!(done.expect("prlimit (util-linux) runs").success(), "{what}");
}

#[test]
fn f05_out_of_file_descriptors_connections_wait_and_nothing_is_lost() {
    let mut bench = Bench::loaded("5 out of file descriptors", &[]);
    let open = std::fs::read_dir(format!("/proc/{}/fd", bench.server.pid())).expect("it runs").count();
    limit(bench.server.pid(), &format!("--nofile={}:", open + 5));
    let storm: Vec<_> =
        (0..100).filter_map(|_| std::net::TcpStream::connect(bench.server.address()).ok()).collect();
    // Those who are connected are served as before.
    bench.keeps_taking(1_000);
    bench.postgres.end_sessions();
    bench.keeps_taking(1_000);
    limit(bench.server.pid(), "--nofile=1024:");
    drop(storm);
    until("new connections are taken", || bench.server.client().get("/live").status == 200);
    bench.judge(1);
}

#[test]
fn f05_within_its_memory_a_full_buffer_refuses_and_the_process_lives() {
    let settings = [("BUFFER_MAX_BYTES", "8388608"), ("SPILL_MAX_BYTES", "0")];
    let mut bench = Bench::start("5 memory limit", &settings);
    let status = std::fs::read_to_string(format!("/proc/{}/status", bench.server.pid())).expect("it runs");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("it has a size");
    let kib: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    // Nobody is connected yet, and the buffer is empty.
    limit(bench.server.pid(), &format!("--as={}:", (kib + 128 * 1024) * 1024));
    bench.proxy.fall_silent();
    bench.load(Manner { connections: 8, batch: 1_000, ..Manner::STEADY });
    until("the buffer is full", || bench.server.metric("events_dropped_total") > 1_000);
    bench.proxy.heal();
    bench.keeps_taking(5_000);
    bench.judge(1);
}

#[test]
fn f02_a_second_sigterm_ends_it_at_once() {
    let mut bench = Bench::start("2 second SIGTERM", &[("DRAIN_INTERVAL", "60000")]);
    ids_of(&bench.server.client().post_ndjson(&vec![event("s", "held"); 10]));
    bench.postgres.stop_fast();
    bench.server.signal("TERM");
    until("intake ends", || {
        let asked = Client::try_connect(bench.server.address());
        !asked.is_ok_and(|mut client| {
            let post = crate::harness::client::post("application/json", event("s", "late").as_bytes());
            client.try_exchange(&post).is_ok_and(|reply| reply.status == 202)
        })
    });
    bench.server.signal("TERM");
    let status = bench.server.exit_within(Duration::from_secs(5));
    assert_ne!(status.code(), Some(0), "events were left behind");
    bench.line.passed();
}
