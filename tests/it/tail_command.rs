//! `aurore-events tail` and `aurore-events top`: what they print, and how they end.

use std::io::{BufRead, BufReader};

use sonic_rs::JsonValueTrait;

use crate::harness::events::{id_of, ids_of};
use crate::harness::postgres::free_port;
use crate::harness::program::RunningProgram;
use crate::harness::server::run;
use crate::harness::temp::temp_dir;
use crate::harness::{TestServer, create_token, event, until};

fn url_of(test: &TestServer) -> String {
    format!("http://{}", test.server.address())
}

/// Starts a tail and waits until the server has it.
fn tail(test: &TestServer, arguments: &[&str]) -> RunningProgram {
    let url = url_of(test);
    let program = RunningProgram::start(&[&["tail", "--server", &url], arguments].concat(), true);
    until("the tail is open", || test.server.metric("tails_open") == 1);
    program
}

#[test]
fn tail_prints_the_events_that_match_and_ends_after_a_count() {
    let test = TestServer::start(&[]);
    let tail =
        tail(&test, &["--service", "shop", "--q", "PAID", "--metadata", "k=a b", "--json", "--count", "2"]);
    let with_metadata = |service: &str, message: &str| {
        event(service, message).replacen('{', "{\"metadata\":{\"k\":\"a b\"},", 1)
    };
    let batch = [
        with_metadata("shop", "paid 1"),
        with_metadata("web", "paid 2"),
        with_metadata("shop", "open 3"),
        event("shop", "paid 4"),
        with_metadata("shop", "paid 5"),
    ];
    let ids = ids_of(&test.server.client().post_ndjson(&batch));
    let ended = tail.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let lines: Vec<sonic_rs::Value> =
        ended.stdout.lines().map(|line| sonic_rs::from_str(line).expect("a line is JSON")).collect();
    let found: Vec<_> = lines
        .iter()
        .map(|line| (line["event_id"].as_str().unwrap(), line["message"].as_str().unwrap()))
        .collect();
    assert_eq!(found, [(&*ids[0], "paid 1"), (&*ids[4], "paid 5")]);
}

#[test]
fn tail_goes_on_after_a_restart_of_the_server_and_ends_with_a_signal() {
    let port = free_port().to_string();
    let mut test = TestServer::start(&[("PORT", port.as_str())]);
    let tail = tail(&test, &[]);
    id_of(&test.server.client().post_json(event("shop", "before\\u001b[2J")));
    until("the event is printed", || tail.stdout().contains(" shop before"));
    assert!(!tail.stdout().contains('\u{1b}'), "no colours in a pipe, and no control characters of events");
    test.server.kill();
    until("the loss is stated", || tail.stderr().contains("the tail is interrupted, and is opened again"));
    test.server.restart();
    until("the tail is open again", || tail.stderr().contains("the tail is open again"));
    id_of(&test.server.client().post_json(event("shop", "after")));
    until("the next event is printed", || tail.stdout().contains(" shop after\n"));
    tail.signal("INT");
    let ended = tail.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn tail_ends_when_its_output_is_closed() {
    let test = TestServer::start(&[]);
    let url = url_of(&test);
    let mut silent = RunningProgram::start(&["tail", "--server", &url, "--service", "none"], false);
    let mut busy = RunningProgram::start(&["tail", "--server", &url], false);
    until("the tails are open", || test.server.metric("tails_open") == 2);
    drop(silent.child.stdout.take());
    let mut output = BufReader::new(busy.child.stdout.take().expect("a pipe"));
    id_of(&test.server.client().post_json(event("s", "m")));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert!(line.ends_with(" s m\n"), "{line}");
    drop(output);
    id_of(&test.server.client().post_json(event("s", "into a closed pipe")));
    for program in [silent, busy] {
        let ended = program.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
}

#[test]
fn tail_that_the_server_refuses_fails_with_the_reason() {
    let dir = temp_dir();
    let tokens = dir.path().join("tokens");
    let (token, line) = create_token("reader", "query,metrics", &[]);
    std::fs::write(&tokens, format!("{line}\n")).expect("it can be written");
    let test = TestServer::start(&[("AUTH_TOKENS_FILE", tokens.to_str().expect("UTF-8"))]);
    let url = url_of(&test);
    for command in ["tail", "top"] {
        let refused = run(&[], &[command, "--server", &url, "--token", "wrong"]);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("401: "), "{}", refused.stderr);
    }
    let invalid = run(&[], &["tail", "--server", &url, "--token", &token, "--service", ""]);
    assert!(invalid.code == Some(1) && invalid.stderr.contains("400: "), "{}", invalid.stderr);
    let top = run(&[], &["top", "--server", &url, "--token", &token, "--once", "--json"]);
    assert_eq!(top.code, Some(0), "{}", top.stderr);
    assert_eq!(run(&[], &["tail", "--metadata", "k"]).code, Some(2));
    let gone = format!("http://127.0.0.1:{}", free_port());
    assert_eq!(run(&[], &["top", "--server", &gone]).code, Some(1));
}

#[test]
fn top_prints_the_rate_and_the_share_of_each_service() {
    let test = TestServer::start(&[("DRAIN_INTERVAL", "50")]);
    let url = url_of(&test);
    let top = RunningProgram::start(&["top", "--server", &url, "--json"], true);
    until("a report", || top.stdout().contains('\n'));
    let batch: Vec<_> = (0..400).map(|nth| event(if nth % 4 == 0 { "web" } else { "shop" }, "m")).collect();
    ids_of(&test.server.client().post_ndjson(&batch));
    until("the events are counted", || {
        let out = top.stdout();
        let whole = out.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().any(|line| {
            let report: sonic_rs::Value = sonic_rs::from_str(line).expect("a line is JSON");
            let service = |nth: usize, member: &str| report["services"][nth][member].clone();
            let number = |nth, member| service(nth, member).as_f64().unwrap_or(-1.0);
            let window = report["window_seconds"].as_f64().expect("a number");
            service(0, "service").as_str() == Some("shop")
                && service(1, "service").as_str() == Some("web")
                && (number(0, "events_per_second") * window - 300.0).abs() < 0.1
                && (number(1, "events_per_second") * window - 100.0).abs() < 0.1
                && (number(0, "share_percent"), number(1, "share_percent")) == (75.0, 25.0)
                && (number(0, "events"), number(1, "events")) == (300.0, 100.0)
        })
    });
    top.signal("TERM");
    assert_eq!(top.wait().code, Some(0));
    let table = run(&[], &["top", "--server", &url, "--count", "1", "--services", "1"]);
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    assert!(table.stdout.contains("SERVICE\n") && table.stdout.contains("  shop\n"), "{}", table.stdout);
    assert!(!table.stdout.contains("  web\n") && !table.stdout.contains('\u{1b}'), "{}", table.stdout);
}
