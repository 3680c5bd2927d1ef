//! FAULTS 35 and 38: a primary with an asynchronous standby, which is promoted, or serves queries.

use std::time::Duration;

use sonic_rs::JsonValueTrait;

use crate::fixture::{ReportRow, SETTINGS, times};
use crate::harness::checker::{CheckResult, wait_for_drain_within};
use crate::harness::events::{id_of, list};
use crate::harness::producer::{LoadProfile, ProducerRecord};
use crate::harness::server::wait_for_partitions;
use crate::harness::{Postgres, Producer, Proxy, ReplicatedPostgres, Server, event, until};
use aurore_events::clock::Clock;

/// A switchover takes less than 5 s on an idle machine. Tests run beside others.
const SWITCHOVER_MAX: Duration = Duration::from_secs(20);

/// The database loses what it committed while the replication was stalled: this proves the harness.
#[test]
fn a_promoted_standby_misses_rows_of_the_stall() {
    let mut pair = ReplicatedPostgres::start();
    pair.primary.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    pair.wait_until_caught_up();
    let on_standby = |pair: &ReplicatedPostgres| pair.standby.value::<i64>("SELECT count(*) FROM t");
    assert_eq!(on_standby(&pair), 1);
    pair.stall_replication();
    pair.primary.execute("INSERT INTO t VALUES (2)");
    pair.resume_replication();
    pair.wait_until_caught_up();
    assert_eq!(on_standby(&pair), 2, "a stall that ends loses nothing");

    pair.stall_replication();
    pair.primary.execute("INSERT INTO t SELECT generate_series(3, 1000)");
    pair.kill_primary();
    pair.promote_standby();
    pair.standby.execute("INSERT INTO t VALUES (-1)");
    assert_eq!(on_standby(&pair), 3, "committed rows are gone, and the standby is writable");

    let mut pair = pair.replace_primary();
    pair.primary.execute("INSERT INTO t VALUES (-2)");
    pair.stop_primary();
    pair.promote_standby();
    assert_eq!(on_standby(&pair), 4, "a clean stop sends everything");
}

/// Switchovers, each to the standby of the one before, under one load.
#[test]
fn f35_a_clean_switchover_loses_nothing_and_stores_each_event_once() {
    let mut row = ReportRow::new("35 clean switchover under load");
    let rounds = times(1, 10);
    let clock = Clock::system();
    let (mut took, mut all) = (Vec::new(), ProducerRecord::default());
    let mut pair = ReplicatedPostgres::start();
    // A server per round: the next standby has another port.
    for round in 1..=rounds {
        let url = pair.url();
        let mut settings = vec![("DATABASE_URL", url.as_str()), ("DURABILITY", "synced")];
        settings.extend(SETTINGS);
        let mut server = Server::start(&settings);
        wait_for_partitions(&pair.primary);
        let producer = Producer::start_with_profile(server.address(), LoadProfile::STEADY);
        until("events are stored", || server.metric("events_stored_total") > 1_000);
        let began = clock.now();
        pair.stop_primary();
        pair.promote_standby();
        let before = server.metric("events_stored_total");
        crate::harness::wait::until_within(SWITCHOVER_MAX, "events are stored again", || {
            server.metric("events_stored_total") > before
        });
        took.push(clock.now().since(began));
        until("the backlog is stored", || server.metric("events_stored_total") > before + 1_000);
        let record = producer.stop();
        assert_eq!(record.statuses.keys().copied().collect::<Vec<_>>(), [202], "no producer is refused");
        assert_eq!(record.unanswered, 0);
        all.merge(record);
        wait_for_drain_within(Duration::from_mins(2), &server);
        server.stop();
        let found = CheckResult::of(&all, &pair.standby);
        row.set_counts(round, &found);
        assert_eq!((found.lost.len(), found.duplicated, found.unexpected), (0, 0, 0));
        if round < rounds {
            pair = pair.replace_primary();
        }
    }
    took.sort();
    eprintln!("35: {rounds} switchovers, until stores resume: {took:?}");
    row.passed();
}

/// The breaker opens for 30 s, its default, but the probe finds the promoted standby.
#[test]
fn f35_stores_resume_soon_after_a_switchover_that_opened_the_breaker() {
    let mut row = ReportRow::new("35 switchover that opens the breaker");
    let clock = Clock::system();
    let mut pair = ReplicatedPostgres::start();
    let server = Server::start(&[("DATABASE_URL", &pair.url()), ("DRAIN_INTERVAL", "50")]);
    wait_for_partitions(&pair.primary);
    let producer = Producer::start_with_profile(server.address(), LoadProfile::STEADY);
    until("events are stored", || server.metric("events_stored_total") > 100);
    pair.stop_primary();
    until("the breaker opens", || server.metric("circuit_breaker_state") == 2);
    let before = server.metric("events_stored_total");
    pair.promote_standby();
    let promoted = clock.now();
    crate::harness::wait::until_within(SWITCHOVER_MAX, "events are stored again", || {
        server.metric("events_stored_total") > before
    });
    eprintln!("35: stores resume {:?} after the promotion", clock.now().since(promoted));
    let record = producer.stop();
    wait_for_drain_within(Duration::from_mins(2), &server);
    let found = CheckResult::of(&record, &pair.standby);
    row.set_counts(1, &found);
    assert_eq!((found.lost.len(), found.duplicated, found.unexpected), (0, 0, 0));
    row.passed();
}

/// The standby of a server that reads from it through a proxy. Fields drop in order.
struct StandbyFixture {
    server: Server,
    reads: Proxy,
    pair: ReplicatedPostgres,
}

impl StandbyFixture {
    /// How often the server has said that the standby is gone.
    fn losses_logged(&self) -> usize {
        self.server.log().matches("the standby is not reachable").count()
    }

    fn start(settings: &[(&str, &str)]) -> Self {
        let fixture = Self::start_with(settings, |_| ());
        fixture.wait_for_standby("serves_queries", true);
        fixture
    }

    /// Starts the server after `prepare` has set up the proxy in front of the standby.
    fn start_with(settings: &[(&str, &str)], prepare: impl FnOnce(&Proxy)) -> Self {
        let pair = ReplicatedPostgres::start();
        let reads = Proxy::to(pair.standby.port());
        prepare(&reads);
        let url = pair.primary.url();
        // A silent host costs this time, not the default of 5 s.
        let read_url = format!("{}&connect_timeout=1", Postgres::url_through(reads.port(), "secret"));
        let mut all = vec![("DATABASE_URL", url.as_str()), ("DATABASE_READ_URL", read_url.as_str())];
        all.extend(SETTINGS);
        all.extend(settings);
        let server = Server::start(&all);
        wait_for_partitions(&pair.primary);
        Self { server, reads, pair }
    }

    #[track_caller]
    fn wait_for_standby(&self, field: &str, wanted: bool) {
        until(&format!("{field} is {wanted}"), || {
            self.server.client().get_json("/health/database")["standby"][field].as_bool() == Some(wanted)
        });
    }

    fn post(&self, message: &str) -> String {
        id_of(&self.server.client().post_json(event("s", message)))
    }

    /// The number of events that `GET /events` returns.
    fn listed(&self) -> usize {
        list(&self.server.client().get_json("/events?service=s")["events"]).len()
    }

    /// Waits until the receipt says so. At no time may it deny the event.
    #[track_caller]
    fn wait_for_stored(&self, id: &str) {
        until("the event is stored", || {
            let reply = self.server.client().get(&format!("/events/{id}"));
            assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
            reply.status == 200 && reply.json()["status"].as_str() == Some("stored")
        });
    }
}

#[test]
fn f38_a_standby_that_lags_never_denies_an_event_and_queries_leave_it() {
    let mut row = ReportRow::new("38 the standby that serves queries lags");
    let fixture = StandbyFixture::start(&[("DATABASE_READ_MAX_LAG_MS", "2000")]);
    let server = &fixture.server;
    let first = fixture.post("first");
    fixture.wait_for_stored(&first);
    fixture.pair.wait_until_caught_up();
    assert_eq!(fixture.listed(), 1);
    let answered = server.metric("database_standby_queries_total");
    assert!(answered > 0, "the standby serves queries");

    fixture.pair.standby.execute("SELECT pg_wal_replay_pause()");
    let second = fixture.post("second");
    // Buffered, then stored, though the standby does not have it.
    fixture.wait_for_stored(&second);
    let on_standby = "SELECT count(*) FROM events";
    assert_eq!(fixture.pair.standby.value::<i64>(on_standby), 1);
    fixture.wait_for_standby("serves_queries", false);
    assert_eq!(fixture.listed(), 2, "queries read from the primary");
    let health = server.client().get_json("/health/database");
    let standby = &health["standby"];
    assert_eq!(standby["status"].as_str(), Some("degraded"), "{health}");
    assert_eq!(standby["connected"].as_bool(), Some(true), "{health}");
    assert!(standby["lag_seconds"].as_f64().is_some_and(|lag| lag >= 2.0), "{health}");
    assert!(standby["lag_bytes"].as_u64().is_some_and(|lag| lag > 0), "{health}");
    assert_eq!(health["status"].as_str(), Some("healthy"), "the primary answers");
    assert!(server.metric("database_standby_fallbacks_total") > 0);
    assert_eq!(server.metric("database_standby_serves_queries"), 0);
    assert!(server.log().contains("the standby lags"), "{}", server.log());

    fixture.pair.standby.execute("SELECT pg_wal_replay_resume()");
    fixture.wait_for_standby("serves_queries", true);
    assert_eq!(fixture.listed(), 2);
    row.passed_after(1, 2);
}

#[test]
fn f38_queries_read_from_the_primary_while_the_standby_is_away() {
    let mut row = ReportRow::new("38 the standby that serves queries goes, and comes back");
    let mut fixture = StandbyFixture::start(&[]);
    let id = fixture.post("first");
    fixture.wait_for_stored(&id);
    let before = fixture.losses_logged();
    fixture.pair.standby.stop_immediate();
    // Also the first query after the loss is answered.
    for _ in 0..20 {
        assert_eq!(fixture.listed(), 1);
        assert_eq!(fixture.server.client().get(&format!("/events/{id}")).status, 200);
    }
    fixture.wait_for_standby("connected", false);
    let server = &fixture.server;
    assert_eq!(server.metric("circuit_breaker_transitions_total"), 0, "the writer is not concerned");
    assert_eq!(fixture.losses_logged(), before + 1, "it is said once");
    fixture.pair.standby.restart();
    fixture.wait_for_standby("serves_queries", true);
    row.passed_after(1, 1);
}

/// Its host accepts connections and never answers: no error ends a wait, only a timeout does.
#[test]
fn f38_a_standby_that_was_never_heard_delays_neither_start_nor_queries_nor_stop() {
    let mut row = ReportRow::new("38 the standby that serves queries is silent from the start");
    let mut fixture = StandbyFixture::start_with(&[], Proxy::stall);
    let id = fixture.post("first");
    fixture.wait_for_stored(&id);
    assert_eq!(fixture.listed(), 1, "the primary answers");
    let server = &fixture.server;
    until("the attempt is given up", || server.log().contains("the standby is not reachable"));
    let health = server.client().get_json("/health/database");
    assert_eq!(health["standby"]["connected"].as_bool(), Some(false), "{health}");
    assert_eq!(health["standby"]["status"].as_str(), Some("degraded"), "{health}");
    assert_eq!(health["status"].as_str(), Some("healthy"), "the primary answers");
    assert_eq!(server.metric("database_standby_queries_total"), 0);
    assert!(server.metric("database_standby_fallbacks_total") > 0);
    assert_eq!(server.metric("circuit_breaker_transitions_total"), 0);
    fixture.reads.repair();
    fixture.wait_for_standby("serves_queries", true);
    assert_eq!(fixture.listed(), 1);

    fixture.reads.stall();
    fixture.wait_for_standby("connected", false);
    // The probe waits for an answer now.
    fixture.server.stop();
    row.passed_after(1, 1);
}

#[test]
fn f38_queries_are_answered_when_the_standby_falls_silent() {
    let mut row = ReportRow::new("38 the standby that serves queries falls silent");
    let mut fixture = StandbyFixture::start(&[]);
    let id = fixture.post("first");
    fixture.wait_for_stored(&id);
    fixture.pair.wait_until_caught_up();
    assert_eq!(fixture.listed(), 1);
    let before = fixture.losses_logged();
    fixture.reads.stall();
    // Also the queries that are waiting for the standby are answered.
    let address = fixture.server.address();
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            let query = move || {
                let page = crate::harness::client::Client::connect(address).get_json("/events?service=s");
                list(&page["events"]).len()
            };
            std::thread::Builder::new().spawn(query).expect("a thread starts")
        })
        .collect();
    for query in waiting {
        assert_eq!(query.join().expect("a response came"), 1);
    }
    fixture.wait_for_standby("connected", false);
    let second = fixture.post("second");
    fixture.wait_for_stored(&second);
    assert_eq!(fixture.listed(), 2);
    let server = &fixture.server;
    assert!(server.metric("database_standby_fallbacks_total") >= 5);
    assert_eq!(server.metric("circuit_breaker_transitions_total"), 0, "the writer is not concerned");
    assert_eq!(fixture.losses_logged(), before + 1, "it is said once");
    fixture.reads.repair();
    fixture.wait_for_standby("serves_queries", true);
    assert_eq!(fixture.listed(), 2);
    fixture.server.stop();
    row.passed_after(1, 2);
}

#[test]
fn f38_a_standby_answers_queries_while_the_primary_is_away() {
    let mut row = ReportRow::new("38 the primary goes, and the standby serves queries");
    let mut fixture = StandbyFixture::start(&[]);
    let id = fixture.post("first");
    fixture.wait_for_stored(&id);
    fixture.pair.wait_until_caught_up();
    fixture.pair.primary.stop_fast();
    let held = fixture.post("held");
    until("the breaker opens", || fixture.server.metric("circuit_breaker_state") != 0);
    assert_eq!(fixture.listed(), 1);
    fixture.wait_for_stored(&id);
    // Only the primary knows whether this event is stored.
    let reply = fixture.server.client().get(&format!("/events/{held}"));
    assert_eq!(reply.status, 503, "{}", reply.text());
    fixture.pair.primary.restart();
    fixture.wait_for_stored(&held);
    row.passed_after(1, 2);
}
