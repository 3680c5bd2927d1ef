//! The guarantees of the three durability levels when the process is killed: each acknowledged
//! event is stored once, after a restart at the latest.

use std::fs;
use std::path::Path;

use crate::harness::client::{JSON, request};
use crate::harness::events::{id_of, ids_of};
use crate::harness::server::run;
use crate::harness::{Producer, Reply, Server, TestServer, check_stored, event, until, wait_for_drain};

/// A short linger, so that a kill finds events in every stage.
const SETTINGS: &[(&str, &str)] = &[("DRAIN_INTERVAL", "50"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "100")];
/// A linger so long that nothing is stored before the kill.
const LINGER: (&str, &str) = ("LINGER", "600000");
const NEVER: (&str, &str) = ("DRAIN_INTERVAL", "600000");

fn settings_with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [SETTINGS, more].concat()
}

fn post_at(server: &Server, level: &str, body: &str) -> Reply {
    let headers = [("Content-Type", JSON), ("Durability", level)];
    server.client().exchange(&request("POST", "/events", &headers, body.as_bytes()))
}

#[track_caller]
fn kills_lose_nothing(level: &str, kills: u32) {
    let mut test =
        TestServer::start(&settings_with(&[("DURABILITY", level), ("JOURNAL_SEGMENT_BYTES", "65536")]));
    for _ in 0..kills {
        let producer = Producer::start(test.server.address(), 4);
        until("it is under load", || producer.acknowledged() > 300);
        test.server.kill();
        let record = producer.stop();
        test.server.restart();
        wait_for_drain(&test.server);
        check_one_of_many(&record, &test);
    }
}

/// Checks the events of this producer; the table also has events of earlier ones.
#[track_caller]
fn check_one_of_many(record: &crate::harness::producer::ProducerRecord, test: &TestServer) {
    check_stored(record, &test.postgres);
    test.postgres.execute("TRUNCATE events");
}

#[test]
fn a_kill_loses_no_event_at_written() {
    kills_lose_nothing("written", 5);
}

#[test]
fn a_kill_loses_no_event_at_synced() {
    kills_lose_nothing("synced", 5);
}

#[test]
fn a_kill_loses_only_unwritten_events_at_memory() {
    let mut test = TestServer::start(&[LINGER, NEVER]);
    ids_of(&test.server.client().post_ndjson(&vec![event("s", "m"); 500]));
    until("it is written", || test.server.metric("journal_written_total") == 500);
    test.server.kill();
    test.server.restart();
    assert_eq!(test.server.metric("journal_recovered_total"), 500);
    assert_eq!(test.server.metric("events_received_total"), 500);
    // A second kill before anything was stored loses nothing more.
    test.server.kill();
    test.server.restart();
    assert_eq!(test.server.metric("journal_recovered_total"), 500);
    test.server.stop();
    assert_eq!(test.postgres.stored(), 500);
    assert!(test.server.segments().is_empty());
}

#[test]
fn the_durability_header_sets_the_level_and_the_response_reports_it() {
    let test = TestServer::start(&settings_with(&[("DURABILITY", "written")]));
    for level in ["memory", "written", "synced"] {
        let reply = post_at(&test.server, level, &event("s", "m"));
        id_of(&reply);
        assert_eq!(reply.header("durability"), Some(level));
    }
    assert!(test.server.metric("journal_synced_total") >= 1);
    let reply = test.server.client().post_json(event("s", "m"));
    assert_eq!(reply.header("durability"), Some("written"), "the setting");
    let reply = post_at(&test.server, "eternal", &event("s", "m"));
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("eternal"), "{}", reply.text());
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 4);
}

#[test]
fn a_backlog_larger_than_the_buffer_streams_through_it() {
    let mut test = TestServer::start(&[LINGER, NEVER, ("JOURNAL_SEGMENT_BYTES", "65536")]);
    for _ in 0..10 {
        ids_of(&test.server.client().post_ndjson(&vec![event("s", "m"); 300]));
    }
    until("it is written", || test.server.metric("journal_written_total") == 3_000);
    test.server.kill();
    test.server.set("BUFFER_MAX_SIZE", "100");
    test.server.set("DRAIN_INTERVAL", "10");
    test.server.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 3_000);
    assert_eq!(test.server.metric("events_received_total"), 3_000);
    until("the segments are gone", || test.server.segments().is_empty());
}

#[test]
fn a_backlog_waits_for_an_unreachable_database() {
    let mut test = TestServer::start(&[LINGER, NEVER]);
    ids_of(&test.server.client().post_ndjson(&vec![event("s", "m"); 1_000]));
    until("it is written", || test.server.metric("journal_written_total") == 1_000);
    test.server.kill();
    test.postgres.stop_fast();
    test.server.set("CIRCUIT_BREAKER_TIMEOUT_MS", "100");
    test.server.set("DRAIN_INTERVAL", "10");
    test.server.restart();
    assert_eq!(test.server.metric("buffer_size"), 1_000);
    test.postgres.restart();
    wait_for_drain(&test.server);
    assert_eq!(test.postgres.stored(), 1_000);
}

#[test]
fn segments_of_earlier_format_versions_are_recovered_beside_new_ones() {
    for (fixture, events) in [("version-1.seg", 4), ("version-2.seg", 6)] {
        let mut test = TestServer::start(&[LINGER, NEVER]);
        test.server.stop();
        let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/journal/fixtures").join(fixture);
        fs::copy(old, test.server.data_dir().join("journal/0000000001.seg")).unwrap();
        test.server.restart();
        assert_eq!(test.server.metric("journal_recovered_total"), events);
        id_of(&post_at(&test.server, "written", &event("new", "m")));
        let data = test.server.data_dir().display().to_string();
        let inspected = run(&[], &["journal", "inspect", "--data-dir", &data]).stdout;
        assert!(inspected.contains(&format!("{} events that may not be stored", events + 1)), "{inspected}");
        test.server.kill();
        test.server.restart();
        assert_eq!(test.server.metric("journal_recovered_total"), events + 1);
        test.server.stop();
        assert_eq!(test.postgres.stored().cast_unsigned(), events + 1);
        assert!(test.server.segments().is_empty());
        let arrivals = "SELECT count(DISTINCT id) FROM events WHERE service <> 'new' \
                        AND id / 1000 = (extract(epoch FROM ingested_at) * 1000000)::bigint";
        assert_eq!(test.postgres.value::<i64>(arrivals).cast_unsigned(), events, "{fixture}");
    }
}

#[test]
fn corruption_loses_only_the_records_it_hits_and_the_file_is_kept() {
    let mut test = TestServer::start(&[LINGER, NEVER]);
    for index in 0..10 {
        id_of(&post_at(&test.server, "written", &event("s", &format!("m{index}"))));
    }
    test.server.kill();
    let segment = test.server.segments().pop().expect("there is one");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let data = test.server.data_dir().display().to_string();
    let ended = run(&[], &["journal", "inspect", "--data-dir", &data]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stdout.contains("9 records, 9 events, 1 corrupt"), "{}", ended.stdout);
    test.server.restart();
    assert_eq!(test.server.metric("journal_corrupt_ranges_total"), 1);
    test.server.stop();
    assert_eq!(test.postgres.stored(), 9);
    let left = test.server.segments();
    assert!(left.len() == 1 && left[0].extension().is_some_and(|end| end == "damaged"), "{left:?}");
    test.server.restart();
    test.server.stop();
    assert_eq!(test.postgres.stored(), 9);
}

#[test]
fn an_unusable_journal_fails_the_start_with_a_reason() {
    let mut test = TestServer::start(SETTINGS);
    test.server.stop();
    let journal = test.server.data_dir().join("journal");
    fs::remove_dir(&journal).unwrap();
    fs::write(&journal, "in the way").unwrap();
    let data = test.server.data_dir().display().to_string();
    let ended = run(&[("DATABASE_URL", &test.postgres.url())], &["serve", "--data-dir", &data]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("cannot use the journal"), "{}", ended.stderr);

    // A newer format version is rejected too, and its file is left unchanged.
    fs::remove_file(&journal).unwrap();
    fs::create_dir(&journal).unwrap();
    let mut header = b"AURJRNL\n\x09\0\0\0".to_vec();
    header.resize(36, 0);
    header.extend(crc32c::crc32c(&header).to_le_bytes());
    fs::write(journal.join("0000000001.seg"), &header).unwrap();
    let ended = run(&[("DATABASE_URL", &test.postgres.url())], &["serve", "--data-dir", &data]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("version 9 is newer"), "{}", ended.stderr);
    assert_eq!(fs::read(journal.join("0000000001.seg")).unwrap(), header);
}

#[test]
fn fifty_thousand_events_are_recovered_in_a_second() {
    let mut test = TestServer::start(&[LINGER, NEVER, ("BATCH_SIZE", "100000")]);
    for _ in 0..10 {
        ids_of(&test.server.client().post_ndjson(&vec![event("s", "m"); 5_000]));
    }
    until("it is written", || test.server.metric("journal_written_total") == 50_000);
    test.server.kill();
    test.server.restart();
    let log_text = test.server.log();
    let took = log_text.lines().find(|line| line.contains("recovered: all")).expect("recovery is logged");
    let took_ms = took.split("took_ms=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    assert!(took_ms.is_some_and(|took| took < 1_000), "{took}");
    assert_eq!(test.server.metric("journal_recovered_total"), 50_000);
    test.server.stop();
    assert_eq!(test.postgres.stored(), 50_000);
}
