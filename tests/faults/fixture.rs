//! The fixture of a fault test: a database, a proxy in front of it, the server, and a producer that
//! records the acknowledgements. The verdict of a test becomes a row of the table that
//! `scripts/faults` prints.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use crate::harness::checker::{CheckResult, check_ledger, wait_for_drain_within};
use crate::harness::producer::{LoadProfile, ProducerRecord};
use crate::harness::server::wait_for_partitions;
use crate::harness::{Postgres, Producer, Proxy, Server, until};

/// A buffer that holds the load of a fault, and a breaker that retries soon.
pub(crate) const SETTINGS: &[(&str, &str)] =
    &[("BUFFER_MAX_SIZE", "500000"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "200"), ("DRAIN_INTERVAL", "20")];

/// The longest time to store a backlog after the repair.
const DRAIN_MAX: Duration = Duration::from_mins(2);

/// Whether the run is the full one of `scripts/faults`, and not the fast one.
pub(crate) fn is_full_run() -> bool {
    std::env::var_os("FAULTS_AT_LENGTH").is_some()
}

/// The number of repetitions of a fault: `fast`, or in a full run `FAULTS_TIMES` (default: `long`).
pub(crate) fn times(fast: u32, long: u32) -> u32 {
    if !is_full_run() {
        return fast;
    }
    let set = std::env::var_os("FAULTS_TIMES").map(|text| {
        let text = text.to_string_lossy();
        text.parse().unwrap_or_else(|error| panic!("FAULTS_TIMES={text}: {error}"))
    });
    set.unwrap_or(long)
}

pub(crate) fn seconds(fast: u64, long: u64) -> Duration {
    Duration::from_secs(if is_full_run() { long } else { fast })
}

/// Fields drop in order: server, proxy, database.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) postgres: Postgres,
    pub(crate) row: ReportRow,
    producer: Option<Producer>,
    record: ProducerRecord,
}

impl Fixture {
    /// Starts database, proxy and server; the server connects through the proxy. `fault` is number
    /// and name in the table.
    pub(crate) fn start(fault: &'static str, settings: &[(&str, &str)]) -> Self {
        Self::start_with_database(fault, settings, |_| ())
    }

    /// Like `start`, after `prepare` has set up the database.
    pub(crate) fn start_with_database(
        fault: &'static str,
        settings: &[(&str, &str)],
        prepare: impl FnOnce(&Postgres),
    ) -> Self {
        let row = ReportRow::new(fault);
        let postgres = Postgres::start();
        prepare(&postgres);
        let proxy = Proxy::to(postgres.port());
        let url = Postgres::url_through(proxy.port(), "secret");
        let mut all = vec![("DATABASE_URL", url.as_str())];
        all.extend(SETTINGS);
        all.retain(|(name, _)| !settings.iter().any(|(own, _)| own == name));
        all.extend(settings);
        let server = Server::start(&all);
        wait_for_partitions(&postgres);
        Self { server, proxy, postgres, row, producer: None, record: ProducerRecord::default() }
    }

    /// Like `start`, under steady load: half of the connections post single events, half post
    /// batches.
    pub(crate) fn start_under_load(fault: &'static str, settings: &[(&str, &str)]) -> Self {
        let mut fixture = Self::start(fault, settings);
        fixture.start_load(LoadProfile::STEADY);
        fixture.wait_for_acknowledged(1_000);
        fixture
    }

    pub(crate) fn start_load(&mut self, profile: LoadProfile) {
        assert!(self.producer.is_none(), "BUG: there is a load already");
        self.producer = Some(Producer::start_with_profile(self.server.address(), profile));
    }

    pub(crate) fn producer(&self) -> &Producer {
        self.producer.as_ref().expect("BUG: there is no load")
    }

    /// Waits until this many more events have been acknowledged.
    #[track_caller]
    pub(crate) fn wait_for_acknowledged(&self, events: u64) {
        let goal = self.producer().acknowledged() + events;
        until("the producer is answered", || self.producer().acknowledged() >= goal);
    }

    /// Stops the load and merges the record of its producer.
    #[track_caller]
    pub(crate) fn stop_load(&mut self) -> &ProducerRecord {
        let record = self.producer.take().expect("BUG: there is no load").stop();
        self.record.merge(record);
        &self.record
    }

    /// Clears the times of the acknowledgements. Each producer has a clock of its own, so the times
    /// of two producers cannot be compared.
    pub(crate) fn clear_timestamps(&mut self) {
        self.record.acknowledged_at.clear();
    }

    #[track_caller]
    pub(crate) fn wait_for_open_breaker(&self) {
        until("the breaker opens", || self.server.metric("circuit_breaker_state") != 0);
    }

    /// Stops the load, waits for the drain, and asserts: no event lost, duplicated or unexpected,
    /// and the counters of the server equal the tables.
    #[track_caller]
    pub(crate) fn verify(&mut self, times: u32) {
        self.verify_with_statuses(times, &[202, 429]);
    }

    /// Like `verify`, with other statuses allowed.
    #[track_caller]
    pub(crate) fn verify_with_statuses(&mut self, times: u32, answers: &[u16]) {
        let found = self.drain_and_check();
        self.row.set_counts(times, &found);
        check_ledger(&self.server, &self.postgres);
        let other = self.record.statuses.keys().find(|status| !answers.contains(status));
        assert_eq!(other, None, "an unexpected status");
        assert!(found.lost.is_empty(), "{} events are lost", found.lost.len());
        Self::check_no_extra(&found);
        self.row.passed();
    }

    /// Like `verify`, for a server that was killed: `may_be_lost` returns whether the loss of an id
    /// is inside the window of its level.
    #[track_caller]
    pub(crate) fn verify_after_kill(
        &mut self,
        times: u32,
        may_be_lost: impl Fn(&ProducerRecord, &str) -> bool,
    ) {
        let found = self.drain_and_check();
        self.row.set_counts(times, &found);
        let outside = found.lost.iter().filter(|id| !may_be_lost(&self.record, id)).count();
        assert_eq!(outside, 0, "of {} lost events this many are outside the window", found.lost.len());
        Self::check_no_extra(&found);
        self.row.passed();
    }

    /// Asserts that every acknowledged event is in the tables now.
    #[track_caller]
    pub(crate) fn check_nothing_is_left_behind(&self) {
        let found = CheckResult::of(&self.record, &self.postgres);
        assert!(found.acknowledged > 0, "no event was acknowledged");
        assert!(found.lost.is_empty(), "{} of {} are not stored", found.lost.len(), found.acknowledged);
    }

    #[track_caller]
    fn drain_and_check(&mut self) -> CheckResult {
        if self.producer.is_some() {
            self.stop_load();
        }
        wait_for_drain_within(DRAIN_MAX, &self.server);
        let found = CheckResult::of(&self.record, &self.postgres);
        assert!(found.acknowledged > 0, "no event was acknowledged");
        found
    }

    #[track_caller]
    fn check_no_extra(found: &CheckResult) {
        assert_eq!(found.duplicated, 0, "events are stored twice");
        assert_eq!(found.unexpected, 0, "events are stored that were never sent");
    }
}

/// A row of the table: fault, times, acknowledged, lost, duplicated, verdict. It is written on drop, as
/// failed unless `passed` was called.
pub(crate) struct ReportRow {
    fault: &'static str,
    counts: String,
    verdict: String,
}

impl ReportRow {
    pub(crate) fn new(fault: &'static str) -> Self {
        Self { fault, counts: "-\t-\t-\t-".into(), verdict: "FAILED".into() }
    }

    pub(crate) fn set_counts(&mut self, times: u32, found: &CheckResult) {
        self.counts = format!("{times}\t{}\t{}\t{}", found.acknowledged, found.lost.len(), found.duplicated);
    }

    pub(crate) fn passed(&mut self) {
        self.verdict = "passed".into();
    }

    /// The row of the model: counts sequences.
    pub(crate) fn passed_model(&mut self, sequences: u64, acknowledged: u64) {
        self.counts = format!("{sequences}\t{acknowledged}\t0\t0");
        self.passed();
    }

    /// The row of a fault without a producer.
    pub(crate) fn passed_after(&mut self, times: u32, stored: u64) {
        self.counts = format!("{times}\t{stored}\t0\t0");
        self.passed();
    }
}

impl Drop for ReportRow {
    fn drop(&mut self) {
        let Some(path) = std::env::var_os("FAULTS_REPORT") else { return };
        let line = format!("{}\t{}\t{}\n", self.fault, self.counts, self.verdict);
        let file = File::options().create(true).append(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("cannot write the report: {error}");
        }
    }
}
