use super::*;
use crate::event::{Event, EventKey};
use crate::storage::{Chunk, CountInterval, EventPage, EventStatus, Filter, SortOrder};

fn filter(service: Option<&str>, from: u64, to: u64) -> Filter {
    let time = |micros| Timestamp::from_micros(i64::try_from(micros).unwrap());
    Filter { service: service.map(str::to_owned), ..Filter::between(time(from), time(to)) }
}

/// Events over three days: many in one millisecond, some in one microsecond, some at boundaries.
fn filled() -> (TestDatabase, super::super::PostgresRepository, Vec<(u64, u8, &'static str)>) {
    let (database, repository) = prepared();
    let start = NOON * 1000;
    let mut all = Vec::new();
    for index in 0..120_u8 {
        let micros = match index % 4 {
            0 => start + u64::from(index / 20),
            1 => start + 999,
            2 => start + u64::from(index) * 1_000_000_000,
            _ => start - 86_400_000_000 + u64::from(index % 7) * 250,
        };
        all.push((micros, index.wrapping_mul(91), if index % 3 == 0 { "a" } else { "b" }));
    }
    let rows: Vec<_> = all
        .iter()
        .map(|(micros, tail, service)| event(*micros, *tail, service, &format!("{micros}")))
        .collect();
    let runs: Vec<&[u8]> = rows.iter().map(Vec::as_slice).collect();
    store(&repository, &runs, StorePath::Copy, (120, 0));
    (database, repository, all)
}

fn key(event: &Event) -> (Timestamp, EventId) {
    (event.timestamp, event.event_id)
}

#[test]
fn pages_of_any_size_return_all_events_in_both_orders() {
    let (_database, repository, all) = filled();
    let start = NOON * 1000;
    for service in [None, Some("a"), Some("b"), Some("none")] {
        for (from, to) in [
            (0, u64::MAX >> 1),
            (start, start + 1),
            (start + 1, start + 999),
            (start, start + 1_000_000_000_000),
        ] {
            let mut expected: Vec<_> = all
                .iter()
                .filter(|(micros, _, of)| {
                    (from..to).contains(micros) && service.is_none_or(|service| service == *of)
                })
                .collect();
            // The tail is the number of arrival.
            expected.sort_unstable();
            let mut expected: Vec<_> = expected
                .into_iter()
                .map(|(micros, tail, _)| {
                    (Timestamp::from_micros(i64::try_from(*micros).unwrap()), id(micros / 1000, *tail))
                })
                .collect();
            let filter = filter(service, from, to);
            assert_eq!(repository.count(&filter).unwrap(), expected.len() as u64, "{filter:?}");
            for order in [SortOrder::Asc, SortOrder::Desc] {
                // 1,000 bytes are three events, fewer than some milliseconds have.
                for (limit, bytes_max) in [(1, usize::MAX), (7, usize::MAX), (1001, usize::MAX), (1001, 1000)]
                {
                    let mut page = EventPage { filter: filter.clone(), order, limit, after: None };
                    let mut found = Vec::new();
                    loop {
                        let Chunk { events, has_more } = repository.page(&page, bytes_max).unwrap();
                        assert!(events.len() <= usize::from(limit));
                        let bytes: usize = events.iter().map(Event::json_bytes_max).sum();
                        assert!(bytes <= bytes_max, "{bytes}");
                        found.extend(events.iter().map(key));
                        match events.last() {
                            Some(last) if has_more => page.after = Some(last.key()),
                            _ => break,
                        }
                    }
                    assert_eq!(found, expected, "{service:?} {from}..{to} {order:?} {limit} {bytes_max}");
                }
                expected.reverse();
            }
        }
    }
}

#[test]
fn page_after_a_cursor_is_stable_while_events_arrive() {
    let (_database, repository, _) = filled();
    let filter = filter(None, 0, u64::MAX >> 1);
    let page = EventPage { filter, order: SortOrder::Desc, limit: 10, after: None };
    let first = repository.page(&page, usize::MAX).unwrap().events;
    let next = EventPage { after: Some(first[9].key()), ..page.clone() };
    let before = repository.page(&next, usize::MAX).unwrap().events;
    store(&repository, &[&event(NOON * 1000 + 500_000_000_000, 1, "a", "later")], StorePath::Copy, (1, 0));
    assert_eq!(repository.page(&next, usize::MAX).unwrap().events, before);
}

#[test]
fn filter_from_is_inclusive_and_to_is_exclusive() {
    let (_database, repository) = prepared();
    let at = NOON * 1000 + 500;
    let rows: Vec<u8> =
        (0..3).flat_map(|step| event(at + step, 1 + u8::try_from(step).unwrap(), "a", "m")).collect();
    store(&repository, &[&rows], StorePath::Copy, (3, 0));
    for (from, to, expected) in [
        (at, at + 3, 3),
        (at, at + 2, 2),
        (at + 1, at + 3, 2),
        (at, at, 0),
        (at + 2, at + 3, 1),
        (at + 3, at, 0),
    ] {
        let filter = filter(None, from, to);
        assert_eq!(repository.count(&filter).unwrap(), expected, "{filter:?}");
        let page = EventPage { filter, order: SortOrder::Asc, limit: 10, after: None };
        assert_eq!(repository.page(&page, usize::MAX).unwrap().events.len() as u64, expected, "{page:?}");
    }
}

#[test]
fn count_sums_hours_and_partial_hours() {
    let (_database, repository) = prepared();
    let hour = 3_600_000_000;
    let mut rows = Vec::new();
    for index in 0..100_u64 {
        rows.extend(event(NOON * 1000 + index * hour / 10, 1, if index % 2 == 0 { "a" } else { "b" }, "m"));
    }
    store(&repository, &[&rows], StorePath::Copy, (100, 0));
    let at = NOON * 1000;
    for (from, to) in [
        (at, at + 10 * hour),
        (at + 1, at + 10 * hour),
        (at + hour / 2, at + 3 * hour + hour / 2),
        (at + hour / 2, at + hour + hour / 2),
        (at + hour / 4, at + hour / 2),
        (at + hour, at + 2 * hour),
        (at + hour, at + 2 * hour - 1),
        (at + hour / 4, at + 3 * hour + hour / 4),
        (at + 3 * hour / 4, at + 3 * hour + 3 * hour / 4),
        (at + 3 * hour / 4, at + hour + hour / 4),
        (at + hour / 4, at + 3 * hour / 4),
        (at + hour / 2 - 1, at + hour / 2),
        (at + hour / 2 - 1, at + 2 * hour + hour / 2),
    ] {
        for service in [None, Some("a")] {
            let expected = (0..100_u64)
                .filter(|index| (from..to).contains(&(at + index * hour / 10)))
                .filter(|index| service.is_none() || index % 2 == 0)
                .count();
            assert_eq!(
                repository.count(&filter(service, from, to)).unwrap(),
                expected as u64,
                "{service:?} {from}..{to}"
            );
        }
    }
}

/// Compares counts of many random ranges within three hours with the stored events.
#[track_caller]
fn assert_counts_are_exact(repository: &super::super::PostgresRepository, stored: &[(u64, &str)]) {
    let (at, hours) = (NOON * 1000, 3 * 3_600_000_000);
    let mut chance = 7_u64;
    let mut any = |below: u64| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % below
    };
    for _ in 0..120 {
        // Half of the bounds lie at a minute or one microsecond beside it.
        let (from, to) = (at + any(hours), at + any(hours));
        let round = |time: u64| time / 60_000_000 * 60_000_000;
        let from = if any(2) == 0 { from } else { round(from) + any(3) - 1 };
        let to = if any(2) == 0 { to } else { round(to) + any(3) - 1 };
        let (from, to) = (from.min(to), from.max(to));
        for service in [None, Some("a")] {
            let expected = stored
                .iter()
                .filter(|(micros, of)| (from..to).contains(micros) && service.is_none_or(|name| name == *of))
                .count() as u64;
            let total = repository.count(&filter(service, from, to)).unwrap();
            assert_eq!(total, expected, "{service:?} {from}..{to}");
        }
    }
}

#[test]
fn count_is_exact_for_any_range_even_when_minute_counts_are_wrong() {
    let (database, repository) = prepared();
    let at = NOON * 1000;
    // Seven events per minute, some at its boundaries, not in time order.
    let mut stored: Vec<(u64, &str)> = (0..3 * 60 * 7_u64)
        .map(|index| {
            let (minute, nth) = (at + index * 53 % (3 * 60) * 60_000_000, index % 7);
            let within = [0, 1, 999, 29_999_999, 30_000_000, 45_000_123, 59_999_999];
            (minute + within[usize::try_from(nth).unwrap()], if index % 3 == 0 { "a" } else { "b" })
        })
        .collect();
    stored.sort_unstable();
    stored.dedup_by_key(|(micros, _)| *micros);
    // Events of one millisecond have distinct ids.
    let tail = |micros: u64| u8::try_from(micros % 251).unwrap();
    let rows: Vec<_> =
        stored.iter().map(|(micros, service)| event(*micros, tail(*micros), service, "m")).collect();
    // The first 600 by COPY, then all of them through the staging table.
    store(&repository, &[&rows[..600].concat()], StorePath::Copy, (600, 0));
    store(&repository, &[&rows.concat()], StorePath::Staging, (stored.len() as u64 - 600, 600));
    let uncounted = "SELECT count(*) FROM (SELECT coalesce(service, ''), \
         date_trunc('minute', timestamp, 'UTC') AS minute, count(*) FROM events \
         GROUP BY GROUPING SETS ((service, 2), (2)) EXCEPT TABLE event_minutes) AS t";
    assert_eq!(database.number(uncounted), 0, "event_minutes counts each service and all services");
    assert_counts_are_exact(&repository, &stored);
    // The minute counts of one hour are incomplete, as after stores by an older server; then none
    // exist.
    database.execute("UPDATE event_minutes SET count = count - 1 WHERE minute = '2026-01-01 13:20Z'");
    assert_counts_are_exact(&repository, &stored);
    database.execute("DELETE FROM event_minutes");
    assert_counts_are_exact(&repository, &stored);
}

#[test]
fn find_returns_the_whole_event() {
    let (_database, repository) = prepared();
    store(&repository, &[&event(NOON * 1000 + 123_456, 1, "svc", "héllo")], StorePath::Copy, (1, 0));
    let expected = Event {
        event_id: id(NOON + 123, 1),
        timestamp: Timestamp::from_micros(i64::try_from(NOON * 1000 + 123_456).unwrap()),
        service: "svc".to_owned(),
        message: "héllo".to_owned(),
        metadata: Some(r#"{"k": 1}"#.to_owned()),
        ingested_at: now(),
        arrival: ArrivalNumber::from_nanos(1),
    };
    assert_eq!(repository.find(expected.event_id).unwrap(), Some(EventStatus::Stored(expected)));
    assert_eq!(repository.find(id(NOON, 9)).unwrap(), None);
    repository.ping().unwrap();
}

#[test]
fn query_scans_only_the_partitions_of_its_range() {
    let (database, _repository) = prepared();
    let plan: Vec<String> = database
        .client()
        .query(
            &format!(
                "EXPLAIN SELECT * FROM events WHERE event_id >= '{}' AND event_id < '{}'",
                EventId::floor(NOON),
                EventId::floor(NOON + 1000)
            ),
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let plan = plan.join("\n");
    assert!(plan.contains("events_20260101") && !plan.contains("events_20260102"), "{plan}");
    assert!(!plan.contains("events_default"), "{plan}");
}

#[test]
fn filter_matches_metadata_and_text_literally_in_pages_and_counts() {
    let (_database, repository) = prepared();
    let rows: Vec<u8> = [
        ("one 100% Sure", r#"{"k": 1, "s": "x"}"#),
        ("two 100 sure", r#"{"k": "1", "b": true}"#),
        ("three a_b!c\\d", r#"{"k": 1.0, "n": null}"#),
        ("four aXb", r#"{"k": [1], "o": {"k": 1}}"#),
    ]
    .iter()
    .zip(1..)
    .flat_map(|((message, metadata), tail)| {
        let mut bytes = Vec::new();
        row::append_header(&mut bytes, id(NOON, tail), now(), now(), ArrivalNumber::default());
        row::append_text(&mut bytes, b"s");
        row::append_text(&mut bytes, message.as_bytes());
        row::append_metadata(&mut bytes, Some(metadata.as_bytes()));
        bytes
    })
    .collect();
    store(&repository, &[&rows], StorePath::Copy, (4, 0));
    for (text, metadata, expected) in [
        (None, vec![vec![r#"{"k":"1"}"#, r#"{"k":1}"#]], 3),
        (None, vec![vec![r#"{"k":"1"}"#]], 1),
        (None, vec![vec![r#"{"k":"1"}"#, r#"{"k":1}"#], vec![r#"{"s":"x"}"#]], 1),
        (None, vec![vec![r#"{"b":"true"}"#, r#"{"b":true}"#]], 1),
        (None, vec![vec![r#"{"n":"null"}"#, r#"{"n":null}"#]], 1),
        (None, vec![vec![r#"{"x":"1"}"#]], 0),
        (Some("100%"), vec![], 1),
        (Some("SURE"), vec![], 2),
        (Some("a_b!C\\"), vec![], 1),
        (Some("%"), vec![], 1),
        (Some("sure"), vec![vec![r#"{"b":true}"#]], 1),
    ] {
        let metadata: Vec<Vec<String>> =
            metadata.iter().map(|any: &Vec<&str>| any.iter().map(ToString::to_string).collect()).collect();
        for service in [None, Some("s")] {
            let mut filter = filter(service, 0, NOON * 2000);
            filter.text = text.map(str::to_owned);
            filter.metadata.clone_from(&metadata);
            assert_eq!(repository.count(&filter).unwrap(), expected, "{filter:?}");
            for order in [SortOrder::Asc, SortOrder::Desc] {
                let page = EventPage { filter: filter.clone(), order, limit: 10, after: None };
                assert_eq!(
                    repository.page(&page, usize::MAX).unwrap().events.len() as u64,
                    expected,
                    "{page:?}"
                );
                let next = EventPage {
                    after: Some(EventKey {
                        timestamp: Timestamp::from_micros(1),
                        arrival: ArrivalNumber::default(),
                        event_id: id(0, 0),
                    }),
                    order: SortOrder::Asc,
                    ..page
                };
                assert_eq!(
                    repository.page(&next, usize::MAX).unwrap().events.len() as u64,
                    expected,
                    "{next:?}"
                );
            }
        }
    }
}

#[test]
fn interval_counts_are_ordered_and_limited() {
    let (_database, repository, _) = filled();
    for interval in [CountInterval::Hour, CountInterval::Minute] {
        let counts = |filter: &Filter, most| repository.interval_counts(filter, interval, most).unwrap();
        let all = counts(&filter(None, 0, NOON * 2000), 1000);
        // Without the sum of all services, which the minutes have too.
        assert_eq!(all.iter().map(|count| count.count).sum::<u64>(), 120, "{interval:?}");
        assert!(all.is_sorted_by_key(|count| (count.start, count.service.clone())));
        assert!(all.iter().all(|count| count.start.micros() % interval.micros() == 0));
        assert_eq!(counts(&filter(None, 0, NOON * 2000), 3), all[..3]);
        let end = NOON * 1000 + u64::try_from(interval.micros()).unwrap();
        let of_a = counts(&filter(Some("a"), NOON * 1000, end), 1000);
        assert!(of_a.len() == 1 && of_a[0].service == "a" && of_a[0].start == now(), "{interval:?}");
    }
}

#[test]
fn totals_return_the_largest_services_and_recent_hours() {
    let (_database, repository, all) = filled();
    let since = Timestamp::from_micros(i64::try_from(NOON).unwrap() * 1000);
    let totals = repository.totals(since, 50).unwrap();
    assert_eq!(totals.events, 120);
    assert_eq!(totals.services, [("b".to_owned(), 80), ("a".to_owned(), 40)]);
    let recent = all.iter().filter(|(micros, ..)| *micros >= NOON * 1000).count();
    assert_eq!(totals.hours.iter().map(|(_, events)| events).sum::<u64>(), recent as u64);
    assert!(totals.hours.is_sorted() && totals.hours[0].0 == since, "{totals:?}");
    let one = repository.totals(since, 1).unwrap();
    assert_eq!((one.events, one.services.len()), (120, 1));
}
