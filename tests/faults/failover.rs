//! FAULTS 34 to 37: the database fails over and lacks commits, or is set back.

use crate::fixture::{ReportRow, SETTINGS, times};
use crate::harness::checker::{CheckResult, check_ledger, wait_for_drain};
use crate::harness::producer::LoadProfile;
use crate::harness::server::wait_for_partitions;
use crate::harness::{Postgres, Producer, ReplicatedPostgres, Server, until};

/// A server under load on a primary with a standby. Fields drop in order.
struct FailoverBench {
    server: Server,
    producer: Producer,
    database: ReplicatedPostgres,
}

impl FailoverBench {
    fn start(settings: &[(&str, &str)]) -> Self {
        let database = ReplicatedPostgres::start();
        let url = database.url();
        let mut all = vec![("DATABASE_URL", url.as_str())];
        all.extend(SETTINGS);
        all.extend(settings);
        let server = Server::start(&all);
        wait_for_partitions(&database.primary);
        let producer = Producer::start_with_profile(server.address(), LoadProfile::STEADY);
        let bench = Self { server, producer, database };
        bench.wait_for_stored(1_000);
        bench
    }

    #[track_caller]
    fn wait_for_stored(&self, events: u64) {
        let goal = self.server.metric("events_stored_total") + events;
        until("events are stored", || self.server.metric("events_stored_total") >= goal);
    }

    /// Commits events that the standby never gets, then kills the primary and promotes the standby.
    #[track_caller]
    fn fail_over(&mut self) {
        self.database.stall_replication();
        self.wait_for_stored(2_000);
        self.database.kill_primary();
        self.database.promote_standby();
    }

    fn health(&self) -> String {
        self.server.client().get("/health/database").text()
    }

    #[track_caller]
    fn wait_for_failover(&self, failovers: u64) {
        until("the failover is noticed", || self.server.metric("database_failovers_total") == failovers);
        until("the retained segments are replayed", || {
            self.server.metric("database_failover_segments_pending") == 0
                && self.health().contains("\"is_replayed\":true")
        });
    }

    /// Stops the load and compares its acknowledgements with `database`, and the counters of the server.
    #[track_caller]
    fn verify(self, on: impl FnOnce(&ReplicatedPostgres) -> &Postgres) -> (CheckResult, u64) {
        let Self { server, producer, database } = self;
        let database = on(&database);
        let record = producer.stop();
        wait_for_drain(&server);
        until("every retained segment is replayed", || {
            server.metric("database_failover_segments_pending") == 0
        });
        let found = CheckResult::of(&record, database);
        assert!(found.acknowledged > 0, "no event was acknowledged");
        assert!(
            found.lost.is_empty(),
            "{} of {} events are lost:\n{}",
            found.lost.len(),
            found.acknowledged,
            server.log()
        );
        assert_eq!((found.duplicated, found.unexpected), (0, 0), "{}", server.log());
        check_ledger(&server, database);
        let restored = server.metric("events_restored_total");
        (found, restored)
    }
}

fn fail_over_at(row: &'static str, level: &'static str) {
    let mut row = ReportRow::new(row);
    let rounds = times(1, 20);
    for _ in 0..rounds {
        let mut bench = FailoverBench::start(&[("DURABILITY", level)]);
        bench.fail_over();
        bench.wait_for_failover(1);
        bench.wait_for_stored(1_000);
        let health = bench.health();
        assert!(health.contains("\"lost\":null"), "nothing is lost for good: {health}");
        let (found, restored) = bench.verify(|database| &database.standby);
        assert!(restored > 1_000, "{restored} events were restored");
        row.set_counts(rounds, &found);
    }
    row.passed();
}

#[test]
fn f34_events_that_a_promoted_standby_lacks_are_stored_again_at_memory() {
    fail_over_at("34 asynchronous failover with lag, memory", "memory");
}

#[test]
fn f34_events_that_a_promoted_standby_lacks_are_stored_again_at_written() {
    fail_over_at("34 asynchronous failover with lag, written", "written");
}

#[test]
fn f34_events_that_a_promoted_standby_lacks_are_stored_again_at_synced() {
    fail_over_at("34 asynchronous failover with lag, synced", "synced");
}

/// The server is killed between the commits and the failover: the names of the retained segments tell
/// what the database had.
#[test]
fn f34_failover_while_the_server_is_down_is_noticed_after_its_start() {
    let mut row = ReportRow::new("34 asynchronous failover while the server is down");
    let database = ReplicatedPostgres::start();
    let url = database.url();
    let mut settings = vec![("DATABASE_URL", url.as_str()), ("DURABILITY", "written")];
    settings.extend(SETTINGS);
    let mut server = Server::start(&settings);
    wait_for_partitions(&database.primary);
    let producer = Producer::start_with_profile(server.address(), LoadProfile::STEADY);
    until("events are stored", || server.metric("events_stored_total") > 1_000);
    let mut database = database;
    database.stall_replication();
    let goal = server.metric("events_stored_total") + 2_000;
    until("events are stored", || server.metric("events_stored_total") > goal);
    let record = producer.stop();
    wait_for_drain(&server);
    server.kill();
    database.kill_primary();
    database.promote_standby();
    server.restart();
    until("the failover is noticed", || {
        server.metric("database_failovers_total") == 1 || {
            // Segments that were not renamed yet are recovered like those of any crash.
            server.metric("journal_recovered_total") > 0
        }
    });
    until("all is stored", || {
        server.metric("events_buffered") == 0 && server.metric("database_failover_segments_pending") == 0
    });
    until("every acknowledged event is stored", || {
        CheckResult::of(&record, &database.standby).lost.is_empty()
    });
    let found = CheckResult::of(&record, &database.standby);
    assert_eq!((found.duplicated, found.unexpected), (0, 0));
    row.set_counts(1, &found);
    row.passed();
}

#[test]
fn f36_events_since_a_restored_backup_are_stored_again() {
    let mut row = ReportRow::new("36 older backup restored under a running server");
    let mut bench = FailoverBench::start(&[("DURABILITY", "written")]);
    bench.database.stall_replication();
    bench.wait_for_stored(2_000);
    bench.database.kill_primary();
    bench.database.restore_standby_as_primary();
    let timeline: String =
        bench.database.standby.value("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)");
    assert_eq!(timeline, "00000001", "the same timeline: only the end of the WAL tells");
    bench.wait_for_failover(1);
    bench.wait_for_stored(1_000);
    let (found, restored) = bench.verify(|database| &database.standby);
    assert!(restored > 1_000, "{restored} events were restored");
    row.set_counts(1, &found);
    row.passed();
}

#[test]
fn f36_loss_beyond_the_retained_segments_is_named() {
    let mut bench = FailoverBench::start(&[
        ("DURABILITY", "written"),
        ("JOURNAL_RETAIN_BYTES", "65536"),
        ("JOURNAL_SEGMENT_BYTES", "16384"),
    ]);
    bench.fail_over();
    bench.wait_for_failover(1);
    let health = bench.health();
    assert!(health.contains("\"lost\":{\"from\":\"20"), "{health}");
    assert!(bench.server.metric("database_failover_events_lost") == 1);
    assert!(bench.server.log().contains("may be lost: no retained segment"), "{}", bench.server.log());
    drop(bench.producer.stop());
}

#[test]
fn f37_old_primary_that_comes_back_is_not_written_to() {
    let mut row = ReportRow::new("37 old primary comes back on its old timeline");
    let mut bench = FailoverBench::start(&[("DURABILITY", "written")]);
    bench.fail_over();
    bench.wait_for_failover(1);
    bench.database.primary.restart();
    let on_old = bench.database.primary.stored();
    for _ in 0..3 {
        bench.database.standby.terminate_sessions();
        bench.wait_for_stored(500);
    }
    assert_eq!(bench.database.primary.stored(), on_old, "nothing is written to the old timeline");
    assert_eq!(bench.server.metric("database_failovers_total"), 1);
    assert!(bench.server.log().contains("a server of an old timeline accepts writes"), "it is said");
    let (found, _) = bench.verify(|database| &database.standby);
    row.set_counts(1, &found);
    row.passed();
}

/// When only the old primary answers, it is used, and that is said and counted; when the new one is back,
/// so are its events.
#[test]
fn f37_change_of_the_timeline_is_said_in_both_directions() {
    let mut bench = FailoverBench::start(&[("DURABILITY", "written")]);
    bench.fail_over();
    bench.wait_for_failover(1);
    bench.wait_for_stored(500);
    bench.database.standby.stop_fast();
    bench.database.primary.restart();
    bench.wait_for_failover(2);
    bench.wait_for_stored(500);
    assert!(bench.server.log().contains("no other host answers, so it is used"));
    let (_, restored) = bench.verify(|database| &database.primary);
    assert!(restored > 0);
}
