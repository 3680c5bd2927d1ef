//! The format of the log, its level at run time, and the metrics history.

use sonic_rs::{JsonValueTrait, Value};

use crate::harness::server::run;
use crate::harness::{TestServer, event, until, wait_for_drain};

#[test]
fn every_log_line_is_one_json_object_of_the_same_shape() {
    let mut test = TestServer::start(&[("LOG_FORMAT", "json"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "100")]);
    test.postgres.stop_fast();
    test.server.client().post_json(event("s", "m"));
    until("the outage is logged", || test.server.log().contains(r#""level":"warn""#));
    let log = test.server.log();
    for line in log.lines() {
        let json: Value = sonic_rs::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        for key in ["ts", "level", "thread", "msg"] {
            assert!(json[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {line}");
        }
        assert!(line.starts_with(r#"{"ts":"#), "{line}");
    }
    test.postgres.restart();
    wait_for_drain(&test.server);
}

#[test]
fn signals_change_the_log_level() {
    let test = TestServer::start(&[]);
    test.server.signal("USR1");
    until("it logs more", || test.server.log().contains("the log level is now debug"));
    test.server.signal("USR2");
    until("it logs less", || test.server.log().contains("the log level is now info"));
    assert_eq!(test.server.client().get("/live").status, 200);
}

#[test]
fn the_metrics_history_is_readable_while_the_server_runs() {
    let test = TestServer::start(&[("METRICS_HISTORY_INTERVAL_MS", "50"), ("DRAIN_INTERVAL", "20")]);
    test.server.client().post_ndjson(&vec![event("s", "m"); 7]);
    wait_for_drain(&test.server);
    let path = test.server.data_dir().join("metrics/metrics-history.jsonl");
    let stored = |line: &str| {
        let json: Value = sonic_rs::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        json["stored"].as_u64()
    };
    until("a line has the count", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.lines().any(|line| stored(line) == Some(7)))
    });
    let data_dir = test.server.data_dir().display().to_string();
    let ended = run(&[], &["history", "--data-dir", &data_dir]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.stdout.lines().last().unwrap_or_default().to_owned();
    assert!(ended.stdout.starts_with("time") && last.contains(" 7 ") && last.contains("closed"), "{last}");
}
