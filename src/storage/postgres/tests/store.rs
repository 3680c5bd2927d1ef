use super::*;
use crate::event::row::Row;
use crate::storage::DeadLetter;

const COUNTED: &str = "SELECT coalesce(sum(count), 0)::bigint FROM event_counts";
const EVENTS: &str = "SELECT count(*) FROM events";

#[test]
fn copy_stores_rows_unchanged_and_counts_them() {
    let (database, repository) = prepared();
    let runs = [event(NOON * 1000 + 1, 1, "a", "one"), event(NOON * 1000 + 2, 2, "a", "two")].concat();
    let other = event(NOON * 1000 + 3_600_000_000, 3, "b", "three \u{1f980}");
    store(&repository, &[&runs, &other], StorePath::Copy, (3, 0));
    let row = database
        .client()
        .query_one(
            "SELECT service, message, metadata::text, extract(epoch FROM timestamp)::text, created_at IS NOT NULL, id > 0, \
             (SELECT string_agg(service || count || to_char(hour AT TIME ZONE 'UTC', 'HH24'), ',' ORDER BY service) \
              FROM event_counts) \
             FROM events WHERE service = 'b'",
            &[],
        )
        .unwrap();
    assert_eq!(row.get::<_, &str>(1), "three \u{1f980}");
    assert_eq!(row.get::<_, &str>(2), r#"{"k": 1}"#);
    assert_eq!(row.get::<_, &str>(3), "1767272400.000000");
    assert!(row.get::<_, bool>(4) && row.get::<_, bool>(5));
    assert_eq!(row.get::<_, &str>(6), "a212,b113");
}

#[test]
fn copy_splits_rows_of_any_size_and_number_into_chunks() {
    let (database, repository) = prepared();
    let mut rows = Vec::new();
    for (index, length) in [1, 65_536, 3, 65_000, 600, 1, 65_536, 65_536, 40_000].into_iter().enumerate() {
        rows.push(event(NOON * 1000, u8::try_from(index).unwrap(), "s", &"x".repeat(length)));
    }
    let many: Vec<u8> =
        (0..250_u8).flat_map(|tail| event(NOON * 1000 + 1_000_000, tail, "s", &"y".repeat(900))).collect();
    let mut runs: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    runs.push(&many);
    store(&repository, &runs, StorePath::Copy, (259, 0));
    assert_eq!(database.number("SELECT sum(length(message))::bigint FROM events"), 302_213 + 225_000);
    store(&repository, &runs, StorePath::Staging, (0, 259));
}

#[test]
fn store_accepts_an_empty_batch() {
    let (database, repository) = prepared();
    for path in [StorePath::Copy, StorePath::Staging] {
        store(&repository, &[], path, (0, 0));
        store(&repository, &[&[]], path, (0, 0));
    }
    assert_eq!(database.number(EVENTS), 0);
}

#[test]
fn staging_stores_and_counts_only_new_rows() {
    let (database, repository) = prepared();
    let (one, two, three) =
        (event(NOON * 1000, 1, "a", "1"), event(NOON * 1000, 2, "a", "2"), event(NOON * 1000, 3, "a", "3"));
    store(&repository, &[&one], StorePath::Copy, (1, 0));
    store(&repository, &[&one, &two, &two, &three, &one], StorePath::Staging, (2, 3));
    store(&repository, &[&three, &two, &one], StorePath::Staging, (0, 3));
    assert_eq!(database.number(EVENTS), 3);
    assert_eq!(database.number(COUNTED), 3);
    assert_eq!(database.number("SELECT count(*) FROM event_counts"), 1);
}

#[test]
fn copy_with_a_duplicate_fails_and_reports_the_constraint() {
    let (database, repository) = prepared();
    let (one, two) = (event(NOON * 1000, 1, "a", "1"), event(NOON * 1000, 2, "a", "2"));
    store(&repository, &[&one], StorePath::Copy, (1, 0));
    for runs in [[&two, &one], [&two, &two]] {
        let error = repository.store(&[runs[0], runs[1]], &[], StorePath::Copy).unwrap_err();
        assert_eq!(error.sqlstate.as_deref(), Some("23505"));
        assert_eq!(error.constraint.as_deref(), Some("events_20260101_pkey"));
        assert!(!error.in_doubt);
    }
    assert_eq!((database.number(EVENTS), database.number(COUNTED)), (1, 1));
}

#[test]
fn copy_reports_the_index_of_a_rejected_row_and_stores_nothing() {
    let (database, repository) = prepared();
    database.execute("ALTER TABLE events ADD CONSTRAINT no_bad CHECK (message <> 'bad')");
    let rows: Vec<_> = (0..200_u8)
        .map(|tail| event(NOON * 1000 + u64::from(tail), tail, "a", if tail == 137 { "bad" } else { "good" }))
        .collect();
    let runs: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    let error = repository.store(&runs, &[], StorePath::Copy).unwrap_err();
    assert_eq!(error.sqlstate.as_deref(), Some("23514"));
    assert_eq!((error.row, error.constraint.as_deref()), (Some(137), Some("no_bad")));
    assert!(!error.message.contains("bad,"), "the event is quoted: {}", error.message);
    assert_eq!((database.number(EVENTS), database.number(COUNTED)), (0, 0));
    let error = repository.store(&runs, &[], StorePath::Staging).unwrap_err();
    assert_eq!((error.sqlstate.as_deref(), error.row), (Some("23514"), None));
    store(&repository, &runs[..137], StorePath::Copy, (137, 0));
}

#[test]
fn copy_reports_row_and_column_of_invalid_json_and_text() {
    let (_database, repository) = prepared();
    let good = event(NOON * 1000, 1, "a", "good");
    let mut no_json = Vec::new();
    row::append_header(&mut no_json, id(NOON, 2), now(), now(), ArrivalNumber::default());
    row::append_text(&mut no_json, b"a");
    row::append_text(&mut no_json, b"m");
    row::append_metadata(&mut no_json, Some(b"{secret}"));
    let mut no_text = Vec::new();
    row::append_header(&mut no_text, id(NOON, 3), now(), now(), ArrivalNumber::default());
    row::append_text(&mut no_text, b"a");
    row::append_text(&mut no_text, b"\xff");
    row::append_metadata(&mut no_text, None);
    for path in [StorePath::Copy, StorePath::Staging] {
        let error = repository.store(&[&good, &no_json], &[], path).unwrap_err();
        assert_eq!((error.sqlstate.as_deref(), error.row), (Some("22P02"), Some(1)), "{error}");
        assert_eq!(error.column.as_deref(), Some("metadata"));
        assert!(!error.message.contains("secret"), "the event is quoted: {}", error.message);
        let error = repository.store(&[&good, &good, &no_text], &[], path).unwrap_err();
        assert_eq!((error.sqlstate.as_deref(), error.row), (Some("22021"), Some(2)), "{error}");
    }
}

#[test]
fn store_inserts_dead_letters_with_the_batch_or_not_at_all() {
    let (database, repository) = prepared();
    let good = event(NOON * 1000, 1, "a", "good");
    let mut bytes = Vec::new();
    row::append_header(
        &mut bytes,
        id(NOON, 9),
        Timestamp::from_micros(i64::MAX - 5),
        now(),
        ArrivalNumber::default(),
    );
    row::append_text(&mut bytes, b"a\0\xff");
    row::append_text(&mut bytes, b"m");
    row::append_metadata(&mut bytes, None);
    let (row, _) = Row::split(&bytes).unwrap();
    let dead = [DeadLetter { row, sqlstate: "22021".to_owned(), reason: "no\0text".to_owned() }];
    repository.store(&[&good, &good], &dead, StorePath::Copy).unwrap_err();
    assert_eq!(database.number("SELECT count(*) FROM dead_events"), 0);
    let stored = repository.store(&[&good], &dead, StorePath::Copy).unwrap();
    assert_eq!(stored, Stored { stored: 1, duplicate: 0, dead: 1, commit: stored.commit });
    let stored = repository.store(&[], &dead, StorePath::Staging).unwrap();
    assert_eq!(
        stored,
        Stored { stored: 0, duplicate: 0, dead: 0, commit: stored.commit },
        "already a dead letter"
    );
    let kept: Vec<u8> = database.client().query_one("SELECT row FROM dead_events", &[]).unwrap().get(0);
    assert_eq!(kept, bytes, "the row is kept unchanged for a replay");
    let found = repository.find(id(NOON, 9)).unwrap();
    assert_eq!(
        found,
        Some(crate::storage::EventStatus::Dead {
            sqlstate: "22021".to_owned(),
            reason: "no\u{fffd}text".to_owned()
        })
    );
}
