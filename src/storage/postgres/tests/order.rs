//! Events of one timestamp are returned in the order of arrival, page by page, whatever their ids are
//! and in whatever order they are stored.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::*;
use crate::event::id_generator::IdGenerator;
use crate::event::row::Row;
use crate::event::{Event, EventKey};
use crate::storage::DeadLetters as _;
use crate::storage::{DeadLetter, EventPage, EventStatus, Filter, SortOrder};

/// Requests of events of few timestamps, of which some have ids of keys. Returns the rows of each
/// request, and the messages with their timestamps in the order in which they were sent.
fn requests(random: &mut StdRng) -> (Vec<Vec<u8>>, Vec<(u64, String)>) {
    let mut generator = IdGenerator::new(StdRng::seed_from_u64(random.random()));
    let (mut requests, mut sent, mut clock) = (Vec::new(), Vec::new(), now().micros());
    for _ in 0..random.random_range(1..12) {
        clock += random.random_range(-2..3);
        let mut rows = Vec::new();
        for _ in 0..random.random_range(1..40) {
            let micros = NOON * 1000 + [0, 0, 1, 999, 60_000_000][random.random_range(0..5)];
            let arrival = generator.next_arrival(Timestamp::from_micros(clock));
            let is_keyed: bool = random.random();
            let id = if is_keyed {
                EventId::keyed(micros / 1000, random.random())
            } else {
                generator.event_id(micros / 1000)
            };
            let timestamp = Timestamp::from_micros(micros.cast_signed());
            row::append_header(&mut rows, id, timestamp, now(), arrival);
            row::append_text(&mut rows, if random.random() { b"a" } else { b"b" });
            let message = format!("m{}", sent.len());
            row::append_text(&mut rows, message.as_bytes());
            row::append_metadata(&mut rows, None);
            sent.push((micros, message));
        }
        requests.push(rows);
    }
    (requests, sent)
}

/// Reads all pages, and stores an event of another time after each of them.
fn walk(repository: &super::super::PostgresRepository, mut page: EventPage, later: &Cell<u64>) -> Vec<Event> {
    let mut found = Vec::new();
    loop {
        let chunk = repository.page(&page, 2_000).unwrap();
        let last = chunk.events.last().map(Event::key);
        found.extend(chunk.events);
        if !chunk.has_more {
            return found;
        }
        page.after = last;
        later.set(later.get() + 1);
        let other = event(NOON * 1000 + 90_000_000 + later.get() * 1000, 1, "a", "later");
        store(repository, &[&other], StorePath::Copy, (1, 0));
    }
}

#[test]
fn pages_return_events_of_one_timestamp_in_the_order_in_which_they_were_sent() {
    let (database, repository) = prepared();
    let later = Cell::new(0);
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let strategy = (any::<u64>(), 1_u16..60, any::<bool>());
    let result = runner.run(&strategy, |(seed, limit, is_staged)| {
        database.execute("TRUNCATE events, event_counts, event_minutes");
        let mut random = StdRng::seed_from_u64(seed);
        let (mut requests, mut sent) = requests(&mut random);
        // The writer may store requests of several acceptors in another order.
        for last in (1..requests.len()).rev() {
            requests.swap(last, random.random_range(0..=last));
        }
        let path = if is_staged { StorePath::Staging } else { StorePath::Copy };
        for rows in &requests {
            store(&repository, &[rows], path, (row::rows(rows).count() as u64, 0));
        }
        sent.sort_by_key(|(micros, _)| *micros);
        let mut expected: Vec<String> = sent.into_iter().map(|(_, message)| message).collect();
        let time = |micros: u64| Timestamp::from_micros(micros.cast_signed());
        let filter = Filter::between(time(NOON * 1000), time(NOON * 1000 + 80_000_000));
        for order in [SortOrder::Asc, SortOrder::Desc] {
            let page = EventPage { filter: filter.clone(), order, limit, after: None };
            let events = walk(&repository, page.clone(), &later);
            let messages: Vec<_> = events.iter().map(|event| event.message.clone()).collect();
            prop_assert_eq!(&messages, &expected, "{:?}", order);
            let of_a: Vec<_> = events.into_iter().filter(|event| event.service == "a").collect();
            let filter = Filter { service: Some("a".to_owned()), ..filter.clone() };
            prop_assert_eq!(walk(&repository, EventPage { filter, ..page }, &later), of_a);
            expected.reverse();
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn rows_of_an_older_server_precede_and_have_numbers_of_the_sequence() {
    let (database, repository) = prepared();
    store(&repository, &[&event(NOON * 1000, 0xff, "a", "new")], StorePath::Copy, (1, 0));
    database.execute("UPDATE events SET id = 1795435200000000000");
    // The columns that servers before arrival numbers copied.
    database.execute(&format!(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) \
         SELECT event_id, timestamp, ingested_at, 'a', 'old' FROM \
         (VALUES ('{}'::uuid, '2026-01-01 12:00Z'::timestamptz, '2026-01-01 12:00Z'::timestamptz)) AS new \
         (event_id, timestamp, ingested_at)",
        id(NOON, 0xfe)
    ));
    let filter = Filter::between(now(), Timestamp::from_micros(now().micros() + 1));
    let page = EventPage { filter, order: SortOrder::Asc, limit: 10, after: None };
    let events = repository.page(&page, usize::MAX).unwrap().events;
    let found: Vec<_> = events.iter().map(|event| (event.message.as_str(), event.arrival.nanos())).collect();
    assert_eq!(found, [("old", 1), ("new", 1_795_435_200_000_000_000)]);
    assert!(events[0].key() < EventKey { arrival: ArrivalNumber::from_nanos(2), ..events[0].key() });
}

#[test]
fn replay_stores_dead_letters_of_either_row_format() {
    let (database, repository) = prepared();
    let rows = [event(NOON * 1000, 1, "a", "new"), event(NOON * 1000, 2, "a", "old")];
    let dead: Vec<_> = rows
        .iter()
        .map(|row| DeadLetter {
            row: Row::split(row).unwrap().0,
            sqlstate: "22000".to_owned(),
            reason: "r".to_owned(),
        })
        .collect();
    repository.store(&[], &dead, StorePath::Copy).unwrap();
    let old = row::without_arrival(&rows[1]);
    let update = "UPDATE dead_events SET row = $1 WHERE event_id::text = $2";
    let old_id = id(NOON, 2).to_string();
    assert_eq!(database.client().execute(update, &[&old, &old_id]).unwrap(), 1);
    let replayed = repository.replay_dead(&[id(NOON, 1), id(NOON, 2)]).unwrap();
    assert_eq!((replayed.stored, replayed.unreadable), (2, 0));
    let arrival = |tail| match repository.find(id(NOON, tail)).unwrap() {
        Some(EventStatus::Stored(event)) => event.arrival.nanos(),
        other => panic!("{other:?}"),
    };
    assert_eq!((arrival(1), arrival(2)), (1, now().micros() * 1000));
}
