//! Partitions: they are created far ahead, and when they cannot be created, nothing else stops.

use std::fs;

use aurore_events::event::Timestamp;

use crate::harness::events::{id_of, ids_of, keyed};
use crate::harness::server::run;
use crate::harness::{Postgres, Server, TestServer, event, event_at, now, until, wait_for_drain};

const SETTINGS: &[(&str, &str)] = &[("DRAIN_INTERVAL", "20"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "100")];

/// The name of the partition of the day `days` after today.
fn partition(postgres: &Postgres, days: i32) -> String {
    postgres.value(&format!(
        "SELECT to_char((now() AT TIME ZONE 'UTC') + interval '{days} days', '\"events_\"YYYYMMDD')"
    ))
}

fn default_rows(postgres: &Postgres) -> i64 {
    postgres.value("SELECT count(*) FROM events_default")
}

/// Posts 100 events and waits until they are stored. Neither the buffer nor the breaker may notice
/// what happens to the partitions.
#[track_caller]
fn store_100(server: &Server, postgres: &Postgres) {
    let before = postgres.stored();
    ids_of(&server.client().post_ndjson(&(0..100).map(|_| event("s", "m")).collect::<Vec<_>>()));
    wait_for_drain(server);
    assert_eq!(postgres.stored(), before + 100);
    let page = server.client().get("/events?limit=10");
    assert_eq!(page.status, 200, "{}", page.text());
    assert_eq!(server.metric("circuit_breaker_transitions_total"), 0);
}

/// Waits until partitions exist for `days` days, today included.
#[track_caller]
fn wait_for_days_ahead(server: &Server, days: u64) {
    until(&format!("there are partitions for {days} days"), || {
        let page = server.metrics();
        page.contains("\npartitions_ahead_days ")
            && crate::harness::server::metric(&page, "partitions_ahead_days") == days
    });
}

/// As `pg_dump` does, which holds ACCESS SHARE on all tables until it ends.
#[test]
fn a_long_read_of_events_delays_the_creation_of_partitions_and_nothing_else() {
    let postgres = Postgres::start();
    let mut server = Server::start_on(&postgres, SETTINGS);
    store_100(&server, &postgres);
    wait_for_days_ahead(&server, 15);
    for (missing, days_left) in [([13, 14], 13), ([0, 1], 0)] {
        server.stop();
        for days in missing {
            postgres.execute(&format!("DROP TABLE {}", partition(&postgres, days)));
        }
        let mut reader = postgres.client();
        reader.batch_execute("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE").unwrap();
        server.restart();
        store_100(&server, &postgres);
        wait_for_days_ahead(&server, days_left);
        until("a warning is logged", || {
            server.log().lines().any(|line| {
                line.contains("preparing partitions failed")
                    && line.contains(&format!("days_left={days_left} "))
            })
        });
        assert!(server.metric("partition_failures_total") > 0);
        store_100(&server, &postgres);
        assert_eq!(default_rows(&postgres), if days_left == 0 { 200 } else { 0 });

        let stored = postgres.stored();
        reader.batch_execute("COMMIT").unwrap();
        wait_for_days_ahead(&server, 15);
        until("the default partition is empty", || default_rows(&postgres) == 0);
        assert_eq!(postgres.stored(), stored);
        store_100(&server, &postgres);
        assert_eq!(default_rows(&postgres), 0);
    }
}

/// Ten events of each of the last `days` days but today, as an import sends them.
fn old_events(days: i64) -> Vec<String> {
    let at = |day: i64| Timestamp::from_micros(now().micros() - day * 86_400_000_000);
    (0..10).flat_map(|_| (1..=days).map(|day| event_at(at(day), "s", "old"))).collect()
}

#[test]
fn a_late_day_gets_its_partition_before_its_first_events_are_stored() {
    let TestServer { server, postgres } = TestServer::start(SETTINGS);
    ids_of(&server.client().post_ndjson(&old_events(20)));
    wait_for_drain(&server);
    assert_eq!((postgres.stored(), default_rows(&postgres)), (200, 0));
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'events'::regclass";
    assert!(postgres.value::<i64>(partitions) >= 21);
    assert_eq!(server.metric("events_default_moved_total"), 0, "no row was moved");
}

#[test]
fn late_events_are_stored_though_their_partitions_cannot_be_created() {
    let TestServer { server, postgres } = TestServer::start(SETTINGS);
    store_100(&server, &postgres);
    wait_for_days_ahead(&server, 15);
    let mut reader = postgres.client();
    reader.batch_execute("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE").unwrap();
    for round in 1..=3 {
        ids_of(&server.client().post_ndjson(&old_events(20)));
        wait_for_drain(&server);
        assert_eq!(default_rows(&postgres), round * 190, "yesterday has a partition");
    }
    store_100(&server, &postgres);
    reader.batch_execute("COMMIT").unwrap();
    until("the default partition is empty", || default_rows(&postgres) == 0);
    assert_eq!(postgres.stored(), 800);
    assert_eq!(server.metric("events_dead_total"), 0);
}

/// The grants of docs/storage.md, which creates a role `app`.
fn documented_grants() -> Vec<String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let text = fs::read_to_string(format!("{root}/docs/storage.md")).expect("the document is there");
    let grants: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("    GRANT "))
        .map(|rest| format!("GRANT {rest}"))
        .collect();
    assert!(grants.len() >= 4, "{grants:?}");
    grants
}

#[test]
fn a_role_that_may_only_read_and_write_rows_runs_the_server_and_the_owner_creates_partitions() {
    let postgres = Postgres::start();
    let migrate = || run(&[("DATABASE_URL", &postgres.url())], &["migrate"]);
    let ended = migrate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    postgres.execute("CREATE ROLE app LOGIN");
    for grant in documented_grants() {
        postgres.execute(&grant);
    }
    let url = postgres.url().replace("aurore@", "app@");
    let mut settings = vec![("DATABASE_URL", url.as_str()), ("RETENTION_CRON_SCHEDULE", "* * * * * *")];
    settings.extend(SETTINGS);
    let mut server = Server::start(&settings);
    store_100(&server, &postgres);

    // Duplicates, which take the staging path, receipts, totals and dead letters.
    postgres.execute("ALTER TABLE events ADD CONSTRAINT no_poison CHECK (message <> 'poison')");
    let again = keyed(now(), "s", "key");
    for _ in 0..2 {
        let id = id_of(&server.client().post_json(&again));
        wait_for_drain(&server);
        assert_eq!(server.client().get(&format!("/events/{id}")).status, 200);
    }
    id_of(&server.client().post_json(event("s", "poison")));
    wait_for_drain(&server);
    assert_eq!((postgres.stored(), postgres.dead()), (101, 1));
    for path in ["/events?service=s&count=exact", "/stats", "/health/business", "/health/database"] {
        let reply = server.client().get(path);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    wait_for_days_ahead(&server, 15);
    assert!(!server.log().contains("preparing partitions failed"), "{}", server.log());

    // Its sweeps do nothing, and say so until the owner sweeps.
    until("a sweep is due", || server.log().contains("this role does not own the tables"));
    let retention = |url: &str| run(&[("DATABASE_URL", url)], &["retention", "run"]);
    let ended = retention(&url);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("as their owner"), "{}", ended.stderr);
    assert_eq!(retention(&postgres.url()).code, Some(0));
    assert_eq!(server.metric("retention_failures_total"), 0);

    // The owner's job has not run for two weeks.
    server.stop();
    for days in 1..=14 {
        postgres.execute(&format!("DROP TABLE {}", partition(&postgres, days)));
    }
    postgres.execute(&format!("ALTER TABLE events DETACH PARTITION {}", partition(&postgres, 0)));
    postgres.execute(&format!("DROP TABLE {}", partition(&postgres, 0)));
    server.restart();
    store_100(&server, &postgres);
    wait_for_days_ahead(&server, 0);
    until("a warning is logged", || server.log().contains("preparing partitions failed"));
    store_100(&server, &postgres);
    assert_eq!((postgres.stored(), default_rows(&postgres)), (200, 200));

    let ended = migrate();
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!((postgres.stored(), default_rows(&postgres)), (200, 0));
    wait_for_days_ahead(&server, 15);
    store_100(&server, &postgres);
    assert_eq!(default_rows(&postgres), 0);
}

#[test]
fn migrate_reports_a_lock_that_keeps_it_from_creating_partitions() {
    let postgres = Postgres::start();
    let migrate = || run(&[("DATABASE_URL", &postgres.url())], &["migrate"]);
    assert_eq!(migrate().code, Some(0));
    postgres.execute(&format!("DROP TABLE {}", partition(&postgres, 14)));
    let mut reader = postgres.client();
    reader.batch_execute("BEGIN; LOCK TABLE events IN ACCESS SHARE MODE").unwrap();
    let ended = migrate();
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("partitions are missing"), "{}", ended.stderr);
    reader.batch_execute("COMMIT").unwrap();
    assert_eq!(migrate().code, Some(0));
}
