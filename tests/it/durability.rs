//! What the three levels promise when the process is killed: acknowledged events are in the tables once, after a
//! restart at the latest.

use std::fs;
use std::path::PathBuf;

use crate::harness::client::{JSON, request};
use crate::harness::events::{id_of, ids_of};
use crate::harness::server::run;
use crate::harness::{Producer, Reply, Server, World, event, judge, settle, until};

/// A batch is written soon, so that a kill finds events in every stage.
const SETTINGS: &[(&str, &str)] = &[("DRAIN_INTERVAL", "50"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "100")];
/// Nothing is stored before the kill.
const NEVER: (&str, &str) = ("DRAIN_INTERVAL", "600000");

fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [SETTINGS, more].concat()
}

fn post_at(server: &Server, level: &str, body: &str) -> Reply {
    let headers = [("Content-Type", JSON), ("Durability", level)];
    server.client().exchange(&request("POST", "/events", &headers, body.as_bytes()))
}

fn segments(server: &Server) -> Vec<PathBuf> {
    let journal = fs::read_dir(server.data_dir().join("journal")).expect("the journal is there");
    let mut paths: Vec<_> = journal.map(|entry| entry.expect("it can be read").path()).collect();
    paths.sort();
    paths
}

#[track_caller]
fn kills_lose_nothing(level: &str, kills: u32) {
    let mut world = World::start(&with(&[("DURABILITY", level), ("JOURNAL_SEGMENT_BYTES", "65536")]));
    for _ in 0..kills {
        let producer = Producer::start(world.server.address(), 4);
        until("it is under load", || producer.acknowledged() > 300);
        world.server.kill();
        let tally = producer.stop();
        world.server.start_again();
        settle(&world.server);
        judge_one_of_many(&tally, &world);
    }
}

/// Judges what this producer sent; the table has what was sent before as well.
#[track_caller]
fn judge_one_of_many(tally: &crate::harness::producer::Tally, world: &World) {
    judge(tally, &world.postgres);
    world.postgres.execute("TRUNCATE events");
}

#[test]
fn a_kill_loses_nothing_that_was_written() {
    kills_lose_nothing("written", 5);
}

#[test]
fn a_kill_loses_nothing_that_was_synced() {
    kills_lose_nothing("synced", 5);
}

#[test]
fn a_kill_loses_of_memory_only_what_was_not_written_yet() {
    let mut world = World::start(&[NEVER]);
    ids_of(&world.server.client().post_ndjson(&vec![event("s", "m"); 500]));
    until("it is written", || world.server.metric("journal_written_total") == 500);
    world.server.kill();
    world.server.start_again();
    assert_eq!(world.server.metric("journal_recovered_total"), 500);
    assert_eq!(world.server.metric("events_received_total"), 500);
    // Killed again before anything was stored: the same are there.
    world.server.kill();
    world.server.start_again();
    assert_eq!(world.server.metric("journal_recovered_total"), 500);
    world.server.stop();
    assert_eq!(world.postgres.stored(), 500);
    assert!(segments(&world.server).is_empty());
}

#[test]
fn a_request_says_which_level_it_wants_and_the_answer_which_holds() {
    let world = World::start(&with(&[("DURABILITY", "written")]));
    for level in ["memory", "written", "synced"] {
        let reply = post_at(&world.server, level, &event("s", "m"));
        id_of(&reply);
        assert_eq!(reply.header("durability"), Some(level));
    }
    assert!(world.server.metric("journal_synced_total") >= 1);
    let reply = world.server.client().post_json(event("s", "m"));
    assert_eq!(reply.header("durability"), Some("written"), "the setting");
    let reply = post_at(&world.server, "eternal", &event("s", "m"));
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("eternal"), "{}", reply.text());
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 4);
}

#[test]
fn a_backlog_larger_than_the_buffer_streams_through_it() {
    let mut world = World::start(&[NEVER, ("JOURNAL_SEGMENT_BYTES", "65536")]);
    for _ in 0..10 {
        ids_of(&world.server.client().post_ndjson(&vec![event("s", "m"); 300]));
    }
    until("it is written", || world.server.metric("journal_written_total") == 3_000);
    world.server.kill();
    world.server.set("BUFFER_MAX_SIZE", "100");
    world.server.set("DRAIN_INTERVAL", "10");
    world.server.start_again();
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 3_000);
    assert_eq!(world.server.metric("events_received_total"), 3_000);
    until("the segments are gone", || segments(&world.server).is_empty());
}

#[test]
fn a_backlog_waits_for_a_database_that_is_away() {
    let mut world = World::start(&[NEVER]);
    ids_of(&world.server.client().post_ndjson(&vec![event("s", "m"); 1_000]));
    until("it is written", || world.server.metric("journal_written_total") == 1_000);
    world.server.kill();
    world.postgres.stop_fast();
    world.server.set("CIRCUIT_BREAKER_TIMEOUT_MS", "100");
    world.server.set("DRAIN_INTERVAL", "10");
    world.server.start_again();
    assert_eq!(world.server.metric("buffer_size"), 1_000);
    world.postgres.start_again();
    settle(&world.server);
    assert_eq!(world.postgres.stored(), 1_000);
}

#[test]
fn a_journal_of_the_first_format_is_recovered() {
    let mut world = World::start(&[NEVER]);
    world.server.stop();
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/src/journal/fixtures/version-1.seg");
    fs::copy(old, world.server.data_dir().join("journal/0000000001.seg")).unwrap();
    world.server.start_again();
    assert_eq!(world.server.metric("journal_recovered_total"), 4);
    world.server.stop();
    assert_eq!(world.postgres.stored(), 4);
    assert!(segments(&world.server).is_empty());
}

#[test]
fn damage_costs_what_it_hits_and_the_file_is_kept() {
    let mut world = World::start(&[NEVER]);
    for index in 0..10 {
        id_of(&post_at(&world.server, "written", &event("s", &format!("m{index}"))));
    }
    world.server.kill();
    let segment = segments(&world.server).pop().expect("there is one");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let data = world.server.data_dir().display().to_string();
    let ended = run(&[], &["journal", "inspect", "--data-dir", &data]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stdout.contains("9 records, 9 events, 1 damaged"), "{}", ended.stdout);
    world.server.start_again();
    assert_eq!(world.server.metric("journal_corrupt_ranges_total"), 1);
    world.server.stop();
    assert_eq!(world.postgres.stored(), 9);
    let left = segments(&world.server);
    assert!(left.len() == 1 && left[0].extension().is_some_and(|end| end == "damaged"), "{left:?}");
    world.server.start_again();
    world.server.stop();
    assert_eq!(world.postgres.stored(), 9);
}

#[test]
fn a_journal_that_cannot_be_used_is_said_at_the_start() {
    let mut world = World::start(SETTINGS);
    world.server.stop();
    let journal = world.server.data_dir().join("journal");
    fs::remove_dir(&journal).unwrap();
    fs::write(&journal, "in the way").unwrap();
    let data = world.server.data_dir().display().to_string();
    let ended = run(&[("DATABASE_URL", &world.postgres.url())], &["serve", "--data-dir", &data]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("cannot use the journal"), "{}", ended.stderr);

    // A format of the future is refused too, and left as it is.
    fs::remove_file(&journal).unwrap();
    fs::create_dir(&journal).unwrap();
    let mut header = b"AURJRNL\n\x09\0\0\0".to_vec();
    header.resize(36, 0);
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    fs::write(journal.join("0000000001.seg"), &header).unwrap();
    let ended = run(&[("DATABASE_URL", &world.postgres.url())], &["serve", "--data-dir", &data]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("version 9 is newer"), "{}", ended.stderr);
    assert_eq!(fs::read(journal.join("0000000001.seg")).unwrap(), header);
}

#[test]
fn fifty_thousand_events_are_recovered_in_a_second() {
    let mut world = World::start(&[NEVER, ("BATCH_SIZE", "100000")]);
    for _ in 0..10 {
        ids_of(&world.server.client().post_ndjson(&vec![event("s", "m"); 5_000]));
    }
    until("it is written", || world.server.metric("journal_written_total") == 50_000);
    world.server.kill();
    world.server.start_again();
    let said = world.server.log();
    let took = said.lines().find(|line| line.contains("recovered: all")).expect("it says so");
    let took_ms = took.split("took_ms=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(took_ms.is_some_and(|took| took < 1_000), "{took}");
    assert_eq!(world.server.metric("journal_recovered_total"), 50_000);
    world.server.stop();
    assert_eq!(world.postgres.stored(), 50_000);
}
