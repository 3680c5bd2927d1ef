//! `aurore-events journal replay`: stores the events of the journal again, by hand.

use std::fs;

use crate::harness::events::{event, id_of, now};
use crate::harness::server::run;
use crate::harness::{Server, TestServer, until, wait_for_drain};

/// The names and sizes of the retained segments.
fn retained_files(server: &Server) -> Vec<(String, u64)> {
    let files = fs::read_dir(server.data_dir().join("journal")).expect("the journal is there");
    let retained = files.map(|file| file.expect("it can be read")).filter_map(|file| {
        let name = file.file_name().into_string().expect("its name is text");
        // A segment may be removed meanwhile.
        let metadata = file.metadata().ok().filter(|_| name.ends_with(".committed"))?;
        Some((name, metadata.len()))
    });
    let mut retained: Vec<_> = retained.collect();
    retained.sort();
    retained
}

/// The bytes at one moment: a listing during which files change may have a file that is removed before
/// another gets its name.
fn retained_bytes(server: &Server) -> u64 {
    let mut files = retained_files(server);
    loop {
        let again = retained_files(server);
        if again == files {
            return files.iter().map(|(_, bytes)| bytes).sum();
        }
        files = again;
    }
}

fn replay(test: &TestServer, more: &[&str]) -> String {
    let (url, data) = (test.postgres.url(), test.server.data_dir().display().to_string());
    let arguments = [&["journal", "replay", "--data-dir", &data], more].concat();
    let ended = run(&[("DATABASE_URL", &url)], &arguments);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout
}

#[test]
fn journal_replay_stores_lost_events_once_beside_the_server() {
    let test = TestServer::start(&[("CHECKPOINT_INTERVAL_MS", "50")]);
    for number in 0..20 {
        id_of(&test.server.client().post_json(event("s", &format!("m{number}"))));
    }
    wait_for_drain(&test.server);
    until("they are written", || test.server.metric("journal_written_total") == 20);
    let half = "DELETE FROM events WHERE event_id IN (SELECT event_id FROM events ORDER BY event_id LIMIT 8)";
    test.postgres.execute(half);
    let output = replay(&test, &[]);
    assert!(output.ends_with(" segments: 8 events stored, 12 were there\n"), "{output}");
    let output = replay(&test, &["--json"]);
    assert!(output.ends_with("\"restored\":0,\"present\":20}\n"), "{output}");
    let output = replay(&test, &["--since", &now().to_string()]);
    assert!(output.ends_with(" segments: 0 events stored, 0 were there\n"), "{output}");
    assert_eq!(test.postgres.stored(), 20);
    assert_eq!(
        test.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"),
        28,
        "8 were deleted by hand"
    );
    let inspected =
        run(&[], &["journal", "inspect", "--data-dir", &test.server.data_dir().display().to_string()]);
    assert!(inspected.stdout.contains("events that are stored, retained"), "{}", inspected.stdout);
}

#[test]
fn journal_replay_refuses_a_time_that_is_none_and_reports_a_database_that_is_away() {
    let mut test = TestServer::start(&[]);
    id_of(&test.server.client().post_json(event("s", "m")));
    test.server.stop();
    let data = test.server.data_dir().display().to_string();
    let wrong = run(&[], &["journal", "replay", "--data-dir", &data, "--since", "yesterday"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    let url = "postgresql://aurore@127.0.0.1:1/aurore";
    let away = run(&[("DATABASE_URL", url)], &["journal", "replay", "--data-dir", &data]);
    assert_eq!(away.code, Some(1), "{}", away.stderr);
    let output = replay(&test, &[]);
    assert!(output.ends_with("1 segments: 0 events stored, 1 were there\n"), "{output}");
}

#[test]
fn retained_bytes_stay_below_their_bound_and_end_with_the_retention_time() {
    const BOUND: u64 = 100_000;
    let test = TestServer::start(&[
        ("JOURNAL_RETAIN_BYTES", "100000"),
        ("JOURNAL_RETAIN_MS", "10000"),
        ("CHECKPOINT_INTERVAL_MS", "100"),
        ("DRAIN_INTERVAL", "20"),
    ]);
    let (message, mut numbers) = ("x".repeat(1_000), 0..);
    let mut client = test.server.client();
    until("several bounds were sent, and more than half of one is retained", || {
        for number in numbers.by_ref().take(20) {
            id_of(&client.post_json(event("s", &format!("{number} {message}"))));
        }
        let retained = retained_bytes(&test.server);
        assert!(retained <= BOUND, "{retained} bytes are retained");
        numbers.start >= 300 && retained > BOUND / 2
    });
    // The probe sees the database every 5 s.
    until("the time of all is over", || test.server.metric("journal_retained_bytes") == 0);
    assert_eq!(retained_bytes(&test.server), 0);
}
