//! FAULTS 9 for the gateway, whose snapshots are written under a temporary name: killed between
//! write, fsync, rename and fsync of the directory. Other faults of the gateway are in
//! `tests/it/gateway.rs` and `src/gateway/tests.rs`.

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::disk::thread_id;
use crate::fixture::{ReportRow, times};
use crate::harness::client::request;
use crate::harness::{Server, until};

/// Series of a push. With their labels, about half a megabyte: some pushes fill the log.
const SERIES: usize = 4_000;
const GROUPS: u64 = 3;
/// Pushes within which a snapshot is written, several times over.
const PUSHES_MAX: u64 = 400;

/// The system calls of the thread that writes logs and snapshots, and how many of each may pass: about
/// as many as between the start and the second snapshot.
const CALLS: [(&str, u32); 6] = [
    ("rename,renameat,renameat2", 2),
    ("fsync", 5),
    ("fdatasync", 6),
    ("openat", 5),
    ("unlink,unlinkat", 4),
    ("pwrite64", 60),
];

/// A group whose series all have the value `round`. They are new series, whose records are long.
fn body(round: u64) -> String {
    let mut text = String::new();
    for series in 0..SERIES {
        let padding = "x".repeat(100);
        writeln!(text, "m{{of=\"{round}\",padding=\"{padding}\",series=\"{series}\"}} {round}")
            .expect("it is a String");
    }
    text
}

/// Kills the process as its thread `gateway-log` enters the nth of these system calls.
fn kill_at(server: &Server, calls: &str, nth: u32) -> Child {
    Command::new("strace")
        .args(["-p", &thread_id(server.pid(), "gateway-log"), "-o", "/dev/null"])
        .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:signal=KILL:when={nth}")])
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs strace: apt-get install strace")
}

/// The value of every series of a group; None if they differ, or any is missing.
fn value_of(page: &str, group: u64) -> Option<u64> {
    let job = format!("job=\"g{group}\"");
    let lines = page.lines().filter(|line| line.starts_with("m{") && line.contains(&job));
    let values: Vec<u64> = lines.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    let first = *values.first()?;
    (values.len() == SERIES && values.iter().all(|value| *value == first)).then_some(first)
}

#[test]
fn f09_a_kill_at_any_call_of_a_gateway_snapshot_loses_no_acknowledged_push() {
    let mut row = ReportRow::new("9 killed at write, fsync, rename, directory fsync of a gateway snapshot");
    // Pushes need no database.
    let settings = [("DATABASE_URL", "postgresql://x@127.0.0.1:1/x"), ("CHECKPOINT_INTERVAL_MS", "100")];
    let mut server = Server::start(&settings);
    let rounds = times(6, 60);
    let chance = &mut aurore_events::clock::Clock::system().rng();
    let (mut sent, mut acknowledged) = (0, [0; 3]);
    for round in 0..rounds as usize {
        let (calls, most) = CALLS[round % CALLS.len()];
        let mut strace = kill_at(&server, calls, rand::RngExt::random_range(chance, 1..=most));
        let mut client = server.client();
        let begun = sent;
        // The group and the value of the push that got no response.
        let (group, unanswered) = loop {
            sent += 1;
            let snapshots = || server.metric("gateway_snapshots_total");
            assert!(sent - begun < PUSHES_MAX, "not killed at {calls} in {} snapshots", snapshots());
            let group = sent % GROUPS;
            let level = if sent % 2 == 0 { "written" } else { "synced" };
            let path = format!("/metrics/job/g{group}");
            let push = request("PUT", &path, &[("Durability", level)], body(sent).as_bytes());
            let Ok(reply) = client.try_exchange(&push) else { break (group, sent) };
            assert_eq!(reply.status, 200, "{}", reply.text());
            acknowledged[usize::try_from(group).expect("there are three")] = sent;
        };
        server.exit_within(Duration::from_mins(1));
        strace.wait().expect("a child can be waited for");
        server.restart();
        until("the page is there", || server.client().get("/metrics/pushed").status == 200);
        let page = server.client().get("/metrics/pushed").text();
        for (nth, expected) in (0..).zip(acknowledged) {
            let found = value_of(&page, nth);
            let fits = |value| value == expected || (nth == group && value == unanswered);
            let is_new = expected == 0 && found.is_none();
            assert!(is_new || found.is_some_and(fits), "{calls}: g{nth} is {found:?}, not {expected}");
        }
        for (nth, value) in (0..).zip(&mut acknowledged) {
            *value = value_of(&page, nth).unwrap_or(*value);
        }
    }
    let snapshots = server.metric("gateway_snapshots_total");
    eprintln!("9: {rounds} kills, {sent} pushes, {snapshots} snapshots since the last start");
    row.passed_after(rounds, sent);
}
