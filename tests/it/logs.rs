//! The shape of the log, its level while the server runs, and the history of its figures.

use sonic_rs::{JsonValueTrait, Value};

use crate::harness::server::run;
use crate::harness::{World, event, settle, until};

#[test]
fn every_line_of_the_log_is_one_json_object_of_the_same_shape() {
    let mut world = World::start(&[("LOG_FORMAT", "json"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "100")]);
    world.postgres.stop_fast();
    world.server.client().post_json(event("s", "m"));
    until("the outage is logged", || world.server.log().contains(r#""level":"warn""#));
    let log = world.server.log();
    for line in log.lines() {
        let json: Value = sonic_rs::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        for key in ["ts", "level", "thread", "msg"] {
            assert!(json[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {line}");
        }
        assert!(line.starts_with(r#"{"ts":"#), "{line}");
    }
    world.postgres.start_again();
    settle(&world.server);
}

#[test]
fn signals_change_the_level_of_the_log() {
    let world = World::start(&[]);
    world.server.signal("USR1");
    until("it logs more", || world.server.log().contains("the log level is now debug"));
    world.server.signal("USR2");
    until("it logs less", || world.server.log().contains("the log level is now info"));
    assert_eq!(world.server.client().get("/live").status, 200);
}

#[test]
fn the_history_of_the_figures_can_be_read_while_the_server_runs() {
    let world = World::start(&[("METRICS_HISTORY_INTERVAL_MS", "50"), ("DRAIN_INTERVAL", "20")]);
    world.server.client().post_ndjson(&vec![event("s", "m"); 7]);
    settle(&world.server);
    let path = world.server.data_dir().join("metrics/metrics-history.jsonl");
    let stored = |line: &str| {
        let json: Value = sonic_rs::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        json["stored"].as_u64()
    };
    until("a line says so", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.lines().any(|line| stored(line) == Some(7)))
    });
    let data_dir = world.server.data_dir().display().to_string();
    let ended = run(&[], &["history", "--data-dir", &data_dir]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.stdout.lines().last().unwrap_or_default().to_owned();
    assert!(ended.stdout.starts_with("time") && last.contains(" 7 ") && last.contains("closed"), "{last}");
}
