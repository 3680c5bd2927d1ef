//! The plans of what the server really asks, as `auto_explain` tells them: only the partitions of the time asked for,
//! and by an index.

use std::sync::{Arc, Mutex};

use super::*;
use crate::storage::postgres::{Limits, PostgresRepository, sweep};
use crate::storage::{Filter, Order, Page, Sweeping as _};

const HOUR: i64 = 3_600_000_000;
const MINUTE: i64 = 60_000_000;
const DAYS: i64 = 8;

/// What a session is told so that it sends its plans along.
const TELL_PLANS: &str = "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0 \
    -c auto_explain.log_level=notice -c client_min_messages=notice";

struct Bench {
    repository: PostgresRepository,
    plans: Arc<Mutex<Vec<String>>>,
    database: Database,
}

/// A day of 5,000 events of ten services for each of the days before and up to now's, and dead letters.
fn bench() -> Bench {
    let (database, repository) = prepared();
    let day =
        "SELECT '2026-01-01 12:00Z'::timestamptz - n * interval '1 day' AS at FROM generate_series(0, 7) n";
    let id = "(lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(at::text), 1, 3) || '8' || substr(md5(at::text), 4, 15))::uuid";
    database.execute(&format!(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) SELECT {id}, at, at, 's', 'm' FROM ({day}) d"
    ));
    repository.tidy().unwrap();
    database.execute(&format!(
        "DELETE FROM events; \
         INSERT INTO events (event_id, timestamp, ingested_at, service, message, metadata) \
         SELECT {id}, at, at, 's' || n % 10, 'message number ' || n, jsonb_build_object('k', n % 1000) FROM ( \
             SELECT n, '2026-01-02 00:00Z'::timestamptz - n * interval '17.28 s' AS at FROM generate_series(1, 40000) n) t; \
         INSERT INTO event_counts SELECT service, date_trunc('hour', timestamp, 'UTC'), count(*) FROM events GROUP BY 1, 2; \
         INSERT INTO event_minutes SELECT coalesce(service, ''), date_trunc('minute', timestamp, 'UTC'), count(*) \
         FROM events GROUP BY GROUPING SETS ((service, 2), (2)); \
         INSERT INTO dead_events (event_id, timestamp, service, row, sqlstate, reason, died_at) \
         SELECT gen_random_uuid(), now(), 's', '\\x00', '22000', 'r', '2026-01-01 12:00Z'::timestamptz - n * interval '1 min' \
         FROM generate_series(1, 20000) n; \
         ANALYZE"
    ));
    let plans = Arc::new(Mutex::new(Vec::new()));
    let mut target = database.target();
    let told = Arc::clone(&plans);
    target.config.options(TELL_PLANS);
    target.notices = Arc::new(move |notice| {
        if notice.message().contains("plan:") {
            told.lock().unwrap().push(notice.message().to_owned());
        }
    });
    Bench { repository: PostgresRepository::new(&target, Limits::default()), plans, database }
}

impl Bench {
    /// The plans of what `ask` asks.
    fn plans<T>(&self, ask: impl FnOnce(&PostgresRepository) -> T) -> String {
        self.plans.lock().unwrap().clear();
        ask(&self.repository);
        let plans = self.plans.lock().unwrap().join("\n");
        assert!(plans.contains("Query Text"), "no plan was told: {plans:?}");
        // What a plan names besides the partitions themselves.
        plans
            .lines()
            .filter(|line| !line.trim_start().starts_with("Query Text"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Asks, and checks that of the partitions only these days' were looked into, each by an index.
    #[track_caller]
    fn check<T>(&self, days: &[&str], index: &str, ask: impl FnOnce(&PostgresRepository) -> T) {
        let plans = self.plans(ask);
        assert_eq!(partitions(&plans), days, "{plans}");
        assert!(!plans.contains("Seq Scan on events_2") && !plans.contains("events_default"), "{plans}");
        for day in days {
            assert!(plans.contains(&format!("{day}_{index}")), "{day} not by {index}: {plans}");
        }
    }
}

/// The partitions that a plan names.
fn partitions(plans: &str) -> Vec<String> {
    let mut found: Vec<String> = plans
        .match_indices("events_20")
        .map(|(at, _)| plans[at..at + "events_20260101".len()].to_owned())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn at(hours_back: i64) -> Timestamp {
    Timestamp::from_micros(now().micros() - hours_back * HOUR)
}

fn page(service: Option<&str>, from: i64, to: i64, order: Order) -> Page {
    let filter = Filter { service: service.map(str::to_owned), ..Filter::between(at(from), at(to)) };
    Page { filter, order, limit: 101, after: None }
}

#[test]
fn every_query_looks_into_its_partitions_only_and_by_an_index() {
    let bench = bench();
    let (key, by_service) = ("pkey", "service_timestamp_idx");
    let two = ["events_20251231", "events_20260101"];
    for order in [Order::Desc, Order::Asc] {
        bench.check(&two, key, |repository| repository.page(&page(None, 24, 0, order)).unwrap());
        bench.check(&two, by_service, |repository| repository.page(&page(Some("s3"), 24, 0, order)).unwrap());
        // Deep in a week, the pages before it are not looked at, whichever way it goes.
        for (service, index) in [(None, key), (Some("s3"), by_service)] {
            let deep = Page {
                after: Some((at(60), EventId::floor(NOON - 60 * 3_600_000))),
                ..page(service, 24 * (DAYS - 1), 0, order)
            };
            let plans = bench.plans(|repository| repository.page(&deep).unwrap());
            let (in_it, beyond) = match order {
                Order::Desc => ("events_20251230", "events_20251231"),
                Order::Asc => ("events_20251230", "events_20251229"),
            };
            let named = partitions(&plans);
            assert!(!named.contains(&beyond.to_owned()), "{plans}");
            assert!(plans.contains(&format!("{in_it}_{index}")), "{plans}");
            assert!(!plans.contains("Seq Scan on events_2"), "{plans}");
        }
    }
    // Searches read what service and time leave, in the order of the page.
    let search = |service: Option<&str>| {
        let mut page = page(service, 24, 0, Order::Desc);
        page.filter.metadata = vec![vec![r#"{"k":7}"#.to_owned()]];
        page.filter.text = Some("number".to_owned());
        page
    };
    bench.check(&two, key, |repository| repository.page(&search(None)).unwrap());
    bench.check(&two, by_service, |repository| repository.page(&search(Some("s7"))).unwrap());
    let plans = bench.plans(|repository| repository.count(&search(None).filter).unwrap());
    assert_eq!(partitions(&plans), two, "{plans}");
    bench.check(&two, by_service, |repository| repository.count(&search(Some("s7")).filter).unwrap());
}

#[test]
fn totals_read_the_ends_of_their_time_and_for_the_rest_the_counts() {
    let bench = bench();
    for service in [None, Some("s3")] {
        let mut filter = page(service, 100, 30, Order::Desc).filter;
        // A quarter past and a quarter to.
        filter.from = Timestamp::from_micros(filter.from.micros() + HOUR / 4);
        filter.to = Timestamp::from_micros(filter.to.micros() + HOUR * 3 / 4);
        // A quarter of a minute past and to: the events of that are all that is read.
        filter.from = Timestamp::from_micros(filter.from.micros() + MINUTE / 4);
        filter.to = Timestamp::from_micros(filter.to.micros() - MINUTE / 4);
        let plans = bench.plans(|repository| repository.count(&filter).unwrap());
        assert_eq!(partitions(&plans), ["events_20251228", "events_20251231"], "{plans}");
        assert!(!plans.contains("Seq Scan on events_2") && plans.contains("event_counts"), "{plans}");
        assert!(
            plans.contains("event_minutes_pkey") && !plans.contains("Seq Scan on event_minutes"),
            "{plans}"
        );
        assert_eq!(plans.matches("plan:").count(), 1, "one statement tells it all: {plans}");
    }
    let hours = page(None, 24, 0, Order::Desc).filter;
    let plans = bench.plans(|repository| repository.hours(&hours, 1000).unwrap());
    assert_eq!(partitions(&plans), [""; 0], "{plans}");
    assert!(plans.contains("event_counts_hour_idx"), "{plans}");
    let plans = bench.plans(|repository| repository.totals(at(24), 50).unwrap());
    assert_eq!(partitions(&plans), [""; 0], "business figures read no event: {plans}");
}

#[test]
fn what_is_one_event_or_of_one_time_touches_one_partition() {
    let bench = bench();
    let one = bench.database.client().query_one("SELECT event_id FROM events_20251229 LIMIT 1", &[]).unwrap();
    let id: crate::storage::postgres::types::Uuid = one.get(0);
    bench.check(&["events_20251229"], "pkey", |repository| repository.find(id.0).unwrap().unwrap());
    let plans = bench.plans(|repository| repository.find(EventId::floor(NOON)).unwrap());
    assert!(plans.contains("dead_events_pkey"), "{plans}");
    let hour = Timestamp::from_millis(i64::try_from(NOON).unwrap());
    bench.check(&["events_20260101"], "pkey", |repository| repository.counts_check(hour).unwrap());
    // Page after page of an export.
    bench.check(&["events_20251231"], "pkey", |repository| {
        repository.chunk(&page(None, 30, 20, Order::Asc), 1000).unwrap()
    });

    let mut sweeping = sweep::begin(&bench.repository.connections, at(24 * 6)).unwrap().unwrap();
    // The edge lies within the seventh day back; what is before it are the partitions up to that day.
    let before = EventId::floor(NOON - 6 * 86_400_000);
    let plans = bench.plans(|_| sweeping.delete_events(EventId::floor(0), before, 100).unwrap());
    // And the default one, which may hold what is older than all of them.
    assert_eq!(partitions(&plans), ["events_20251225", "events_20251226"], "{plans}");
    assert!(!plans.contains("Seq Scan on events_"), "{plans}");
    let plans = bench.plans(|_| sweeping.delete_dead(100).unwrap());
    assert!(
        plans.contains("dead_events_died_at_idx") && !plans.contains("Seq Scan on dead_events"),
        "{plans}"
    );
    sweeping.end(None).unwrap();
}
