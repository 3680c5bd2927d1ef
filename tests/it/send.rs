//! `aurore-events send`: every line is stored once, whatever happens to the server or the command.

use std::fs;
use std::io::Write;

use sonic_rs::JsonValueTrait;

use crate::harness::postgres::free_port;
use crate::harness::program::RunningProgram;
use crate::harness::server::run;
use crate::harness::temp::temp_dir;
use crate::harness::{TestServer, event, until, wait_for_drain};

/// Lines with events, each with another message.
fn lines(count: usize) -> String {
    (0..count).map(|nth| event("sent", &format!("line {nth}")) + "\n").collect()
}

#[test]
fn sent_lines_are_stored_once_across_a_killed_server() {
    const LINES: usize = 30_000;
    let port = free_port().to_string();
    let settings = [
        ("DURABILITY", "written"),
        ("BUFFER_MAX_SIZE", "5000"),
        ("SPILL_MAX_BYTES", "0"),
        ("PORT", port.as_str()),
    ];
    let mut test = TestServer::start(&settings);
    let dir = temp_dir();
    let file = dir.path().join("events.ndjson");
    fs::write(&file, lines(LINES)).expect("a temporary file can be written");
    let url = format!("http://{}", test.server.address());
    let sending = std::thread::Builder::new().name("sending".to_owned()).spawn(move || {
        let file = file.to_str().expect("temporary paths are UTF-8");
        run(
            &[],
            &["send", file, "--server", &url, "--lines", "100", "--connections", "3", "--gzip", "--json"],
        )
    });
    let sending = sending.expect("a thread starts");
    until("some lines are stored", || test.postgres.stored() > 0);
    test.server.kill();
    test.server.restart();
    let ended = sending.join().expect("the thread does not panic");
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let counts: sonic_rs::Value = sonic_rs::from_str(&ended.stdout).expect("the output is JSON");
    assert_eq!(counts["accepted"].as_u64(), Some(LINES as u64), "{}", ended.stdout);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), i64::try_from(LINES).expect("a small number"));
}

#[test]
fn interrupted_send_continues_and_a_repeated_one_stores_nothing_twice() {
    let port = free_port().to_string();
    let mut test = TestServer::start(&[("DURABILITY", "written"), ("PORT", port.as_str())]);
    let dir = temp_dir();
    let (file, resume) = (dir.path().join("lines.txt"), dir.path().join("resume"));
    let numbers: Vec<_> = (0..500).map(|nth| (nth % 400).to_string()).collect();
    fs::write(&file, numbers.join("\n")).expect("it can be written");
    let url = format!("http://{}", test.server.address());
    let (path, state) = (file.to_str().expect("UTF-8"), resume.to_str().expect("UTF-8"));
    let send =
        ["send", path, "--server", &url, "--text", "--service", "text", "--lines", "50", "--resume", state];
    test.server.kill();
    let given_up = run(&[], &[&send[..], &["--retry-for", "1"]].concat());
    assert_eq!(given_up.code, Some(1), "{}", given_up.stderr);
    let begun = fs::read(&resume).expect("an incomplete run keeps its file");
    test.server.restart();
    let ended = run(&[], &send);
    assert_eq!((ended.code, resume.exists()), (Some(0), false), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("accepted 500, rejected 0, "), "{}", ended.stdout);
    // The command was killed after the server had taken everything and before it wrote its position.
    fs::write(&resume, begun).expect("it can be written");
    assert_eq!(run(&[], &send).code, Some(0));
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 500, "equal lines of a file are separate events");
}

#[test]
fn rejected_lines_end_with_code_1_and_cost_no_other() {
    let test = TestServer::start(&[]);
    let dir = temp_dir();
    let file = dir.path().join("mixed.ndjson");
    fs::write(&file, "{\"log\":\"one\"}\nnonsense\n\n{\"log\":\"two\"}\n").expect("it can be written");
    let url = format!("http://{}", test.server.address());
    let path = file.to_str().expect("UTF-8");
    let send = ["send", path, "--server", &url, "--service", "mixed", "--extra", "metadata"];
    let ended = run(&[], &send);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("accepted 2, rejected 1, "), "{}", ended.stdout);
    assert!(
        ended.stderr.contains("line 2") && ended.stderr.contains("1 lines were rejected"),
        "{}",
        ended.stderr
    );
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 2);
    let missing = run(&[], &["send", "/nonexistent", "--server", &url]);
    assert!(missing.code == Some(1) && missing.stderr.contains("/nonexistent"), "{}", missing.stderr);
    let wrong = run(&[], &["send", path, "--text"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

#[test]
fn send_that_is_interrupted_prints_its_counts_and_how_to_continue() {
    const LINES: u64 = 100_000;
    let test = TestServer::start(&[]);
    let dir = temp_dir();
    let (file, state) = (dir.path().join("events.ndjson"), dir.path().join("state"));
    fs::write(&file, lines(usize::try_from(LINES).expect("a small number"))).expect("it can be written");
    let url = format!("http://{}", test.server.address());
    let (path, state) = (file.to_str().expect("UTF-8"), state.to_str().expect("UTF-8"));
    let send = ["send", path, "--server", &url, "--lines", "10", "--json", "--resume", state];
    let accepted = |stdout: &str| {
        let counts: sonic_rs::Value = sonic_rs::from_str(stdout).expect("the output is JSON");
        counts["accepted"].as_u64().expect("a number")
    };
    let sending = RunningProgram::start(&send, true);
    until("some events are received", || test.server.metric("events_received_total") > 100);
    sending.signal("INT");
    let interrupted = sending.wait();
    assert_eq!(interrupted.code, Some(1), "{}", interrupted.stderr);
    let first = accepted(&interrupted.stdout);
    assert!((100..LINES).contains(&first), "{}", interrupted.stdout);
    assert!(interrupted.stdout.contains("\"complete\":false"), "{}", interrupted.stdout);
    for part in ["interrupted: the same command continues at byte", path, state] {
        assert!(interrupted.stderr.contains(part), "{part}: {}", interrupted.stderr);
    }
    let ended = run(&[], &send);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(accepted(&ended.stdout) + first >= LINES, "{first} {}", ended.stdout);
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), i64::try_from(LINES).expect("a small number"));
}

#[test]
fn send_of_a_pipe_ends_with_a_signal_while_nothing_comes() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let url = format!("http://{}", test.server.address());
    let mut sending = RunningProgram::start(&["send", "--server", &url, "-"], true);
    let input = sending.child.stdin.as_mut().expect("a pipe");
    writeln!(input, "{}", event("sent", "one")).expect("it reads");
    until("the line is stored", || test.postgres.stored() == 1);
    sending.signal("TERM");
    let ended = sending.wait();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stdout.starts_with("accepted 1, rejected 0, "), "{}", ended.stdout);
    assert!(ended.stderr.contains("interrupted: byte"), "{}", ended.stderr);
}
