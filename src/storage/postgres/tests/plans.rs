//! Query plans of the server's statements, logged by `auto_explain`: each statement scans only the
//! partitions of its time range, by index.

use std::sync::{Arc, Mutex};

use super::*;
use crate::event::EventKey;
use crate::storage::postgres::{PostgresLimits, PostgresRepository, sweep};
use crate::storage::{CountInterval, EventPage, Filter, RetentionSweep as _, SortOrder};

const HOUR: i64 = 3_600_000_000;
const MINUTE: i64 = 60_000_000;
const DAYS: i64 = 8;

/// Session options that send the plan of each statement as a notice.
const LOG_PLANS: &str = "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0 \
    -c auto_explain.log_level=notice -c client_min_messages=notice";

struct PlanFixture {
    repository: PostgresRepository,
    plans: Arc<Mutex<Vec<String>>>,
    database: TestDatabase,
}

/// Eight days up to today with 5,000 events of ten services each, and dead letters.
fn fixture() -> PlanFixture {
    let (database, repository) = prepared();
    let day =
        "SELECT '2026-01-01 12:00Z'::timestamptz - n * interval '1 day' AS at FROM generate_series(0, 7) n";
    let id = "(lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(at::text), 1, 3) || '8' || substr(md5(at::text), 4, 15))::uuid";
    database.execute(&format!(
        "INSERT INTO events (event_id, timestamp, ingested_at, service, message) SELECT {id}, at, at, 's', 'm' FROM ({day}) d"
    ));
    drain(&repository);
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
    let sink = Arc::clone(&plans);
    target.config.options(LOG_PLANS);
    target.on_notice = Arc::new(move |notice| {
        if notice.message().contains("plan:") {
            sink.lock().unwrap().push(notice.message().to_owned());
        }
    });
    PlanFixture { repository: PostgresRepository::new(&target, PostgresLimits::default()), plans, database }
}

impl PlanFixture {
    /// Returns the plans of the statements that `query` runs.
    fn plans<T>(&self, query: impl FnOnce(&PostgresRepository) -> T) -> String {
        self.plans.lock().unwrap().clear();
        query(&self.repository);
        let plans = self.plans.lock().unwrap().join("\n");
        assert!(plans.contains("Query Text"), "no plan was logged: {plans:?}");
        // The query text may also name partitions.
        plans
            .lines()
            .filter(|line| !line.trim_start().starts_with("Query Text"))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Asserts that `query` scans only the partitions of `days`, each by `index`.
    #[track_caller]
    fn check<T>(&self, days: &[&str], index: &str, query: impl FnOnce(&PostgresRepository) -> T) {
        let plans = self.plans(query);
        assert_eq!(partitions(&plans), days, "{plans}");
        assert!(!plans.contains("Seq Scan on events_2") && !plans.contains("events_default"), "{plans}");
        for day in days {
            assert!(plans.contains(&format!("{day}_{index}")), "{day} not by {index}: {plans}");
        }
    }
}

/// Returns the partitions that the plans name.
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

fn page(service: Option<&str>, from: i64, to: i64, order: SortOrder) -> EventPage {
    let filter = Filter { service: service.map(str::to_owned), ..Filter::between(at(from), at(to)) };
    EventPage { filter, order, limit: 101, after: None }
}

#[test]
fn query_plans_scan_only_their_partitions_by_index() {
    let fixture = fixture();
    let (key, by_service) = ("pkey", "service_timestamp_idx");
    let two = ["events_20251231", "events_20260101"];
    for order in [SortOrder::Desc, SortOrder::Asc] {
        fixture
            .check(&two, key, |repository| repository.page(&page(None, 24, 0, order), usize::MAX).unwrap());
        fixture.check(&two, by_service, |repository| {
            repository.page(&page(Some("s3"), 24, 0, order), usize::MAX).unwrap()
        });
        // A page deep in a week does not scan the pages before it, in either order.
        for (service, index) in [(None, key), (Some("s3"), by_service)] {
            let deep = EventPage {
                after: Some(EventKey {
                    timestamp: at(60),
                    arrival: ArrivalNumber::default(),
                    event_id: EventId::floor(NOON - 60 * 3_600_000),
                }),
                ..page(service, 24 * (DAYS - 1), 0, order)
            };
            let plans = fixture.plans(|repository| repository.page(&deep, usize::MAX).unwrap());
            let (in_it, beyond) = match order {
                SortOrder::Desc => ("events_20251230", "events_20251231"),
                SortOrder::Asc => ("events_20251230", "events_20251229"),
            };
            let named = partitions(&plans);
            assert!(!named.contains(&beyond.to_owned()), "{plans}");
            assert!(plans.contains(&format!("{in_it}_{index}")), "{plans}");
            assert!(!plans.contains("Seq Scan on events_2"), "{plans}");
        }
    }
    // Searches scan the rows of service and time range in the order of the page.
    let search = |service: Option<&str>| {
        let mut page = page(service, 24, 0, SortOrder::Desc);
        page.filter.metadata = vec![vec![r#"{"k":7}"#.to_owned()]];
        page.filter.text = Some("number".to_owned());
        page
    };
    fixture.check(&two, key, |repository| repository.page(&search(None), usize::MAX).unwrap());
    fixture.check(&two, by_service, |repository| repository.page(&search(Some("s7")), usize::MAX).unwrap());
    let plans = fixture.plans(|repository| repository.count(&search(None).filter).unwrap());
    assert_eq!(partitions(&plans), two, "{plans}");
    fixture.check(&two, by_service, |repository| repository.count(&search(Some("s7")).filter).unwrap());
}

#[test]
fn count_plans_scan_events_only_at_the_ends_of_the_range() {
    let fixture = fixture();
    for service in [None, Some("s3")] {
        let mut filter = page(service, 100, 30, SortOrder::Desc).filter;
        // From a quarter past to a quarter to an hour.
        filter.from = Timestamp::from_micros(filter.from.micros() + HOUR / 4);
        filter.to = Timestamp::from_micros(filter.to.micros() + HOUR * 3 / 4);
        // A quarter of a minute more at each end: only these events are scanned.
        filter.from = Timestamp::from_micros(filter.from.micros() + MINUTE / 4);
        filter.to = Timestamp::from_micros(filter.to.micros() - MINUTE / 4);
        let plans = fixture.plans(|repository| repository.count(&filter).unwrap());
        assert_eq!(partitions(&plans), ["events_20251228", "events_20251231"], "{plans}");
        assert!(!plans.contains("Seq Scan on events_2") && plans.contains("event_counts"), "{plans}");
        assert!(
            plans.contains("event_minutes_pkey") && !plans.contains("Seq Scan on event_minutes"),
            "{plans}"
        );
        assert_eq!(plans.matches("plan:").count(), 1, "one statement only: {plans}");
    }
    let hours = page(None, 24, 0, SortOrder::Desc).filter;
    for (interval, read) in
        [(CountInterval::Hour, "event_counts_hour_idx"), (CountInterval::Minute, "event_minutes")]
    {
        let plans = fixture.plans(|repository| repository.interval_counts(&hours, interval, 1000).unwrap());
        assert_eq!(partitions(&plans), [""; 0], "{plans}");
        assert!(plans.contains(read), "{plans}");
    }
    let plans = fixture.plans(|repository| repository.totals(at(24), 50).unwrap());
    assert_eq!(partitions(&plans), [""; 0], "totals read no events: {plans}");
}

#[test]
fn single_event_and_cut_page_plans_scan_one_partition() {
    let fixture = fixture();
    let one =
        fixture.database.client().query_one("SELECT event_id FROM events_20251229 LIMIT 1", &[]).unwrap();
    let id: crate::storage::postgres::types::PgUuid = one.get(0);
    fixture.check(&["events_20251229"], "pkey", |repository| repository.find(id.0).unwrap().unwrap());
    let plans = fixture.plans(|repository| repository.find(EventId::floor(NOON)).unwrap());
    assert!(plans.contains("dead_events_pkey"), "{plans}");
    let hour = Timestamp::from_millis(i64::try_from(NOON).unwrap());
    fixture.check(&["events_20260101"], "pkey", |repository| repository.check_counts(hour).unwrap());
    // A page that is cut.
    fixture.check(&["events_20251231"], "pkey", |repository| {
        repository.page(&page(None, 30, 20, SortOrder::Asc), 1000).unwrap()
    });

    let mut sweep_run = sweep::begin(&fixture.repository.connections, at(24 * 6)).unwrap().unwrap();
    // The cutoff lies six days back, so only the partitions up to that day are scanned.
    let before = EventId::floor(NOON - 6 * 86_400_000);
    let plans = fixture.plans(|_| sweep_run.delete_events(EventId::floor(0), before, 100).unwrap());
    // The default partition is scanned too, since it may hold older events.
    assert_eq!(partitions(&plans), ["events_20251225", "events_20251226"], "{plans}");
    assert!(!plans.contains("Seq Scan on events_"), "{plans}");
    let plans = fixture.plans(|_| sweep_run.delete_dead_letters(100).unwrap());
    assert!(
        plans.contains("dead_events_died_at_idx") && !plans.contains("Seq Scan on dead_events"),
        "{plans}"
    );
    sweep_run.finish(None).unwrap();
}
