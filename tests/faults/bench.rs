//! The bench: a database, a proxy before it, the server and a producer that remembers. A test breaks something,
//! heals it and has it judged; the verdict becomes a line of the table that `scripts/faults` prints.

use std::fs::File;
use std::io::Write as _;
use std::time::Duration;

use crate::harness::judge::{Findings, compare_ledger, settle_within};
use crate::harness::producer::{Manner, Tally};
use crate::harness::{Postgres, Producer, Server, until};
use crate::proxy::Proxy;

/// Room for what a producer sends during a fault, and a breaker that tries again soon.
pub(crate) const SETTINGS: &[(&str, &str)] =
    &[("BUFFER_MAX_SIZE", "500000"), ("CIRCUIT_BREAKER_TIMEOUT_MS", "200"), ("DRAIN_INTERVAL", "20")];

/// The longest that a backlog may take to be written after the fault is healed.
const SETTLE_MAX: Duration = Duration::from_mins(2);

/// Whether all of it is asked for, at length, and not the fast half.
pub(crate) fn at_length() -> bool {
    std::env::var_os("FAULTS_AT_LENGTH").is_some()
}

/// How often to break something: `fast` times, or at length `FAULTS_TIMES` times (`long` when that is not set).
pub(crate) fn times(fast: u32, long: u32) -> u32 {
    if !at_length() {
        return fast;
    }
    let set = std::env::var_os("FAULTS_TIMES").map(|text| {
        let text = text.to_string_lossy();
        text.parse().unwrap_or_else(|error| panic!("FAULTS_TIMES={text}: {error}"))
    });
    set.unwrap_or(long)
}

pub(crate) fn seconds(fast: u64, long: u64) -> Duration {
    Duration::from_secs(if at_length() { long } else { fast })
}

/// Fields: server, proxy, database end in this order.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) postgres: Postgres,
    pub(crate) line: Line,
    producer: Option<Producer>,
    tally: Tally,
}

impl Bench {
    /// All of it up, with the server reaching its database through the proxy. `fault` is the number and the name in
    /// the table.
    pub(crate) fn start(fault: &'static str, settings: &[(&str, &str)]) -> Self {
        Self::prepared(fault, settings, |_| ())
    }

    /// The same, on a database that `prepare` has seen to.
    pub(crate) fn prepared(
        fault: &'static str,
        settings: &[(&str, &str)],
        prepare: impl FnOnce(&Postgres),
    ) -> Self {
        let line = Line::of(fault);
        let postgres = Postgres::start();
        prepare(&postgres);
        let proxy = Proxy::to(postgres.port());
        let url = Postgres::url_through(proxy.port(), "secret");
        let mut all = vec![("DATABASE_URL", url.as_str())];
        all.extend(SETTINGS);
        all.retain(|(name, _)| !settings.iter().any(|(own, _)| own == name));
        all.extend(settings);
        let server = Server::start(&all);
        Self { server, proxy, postgres, line, producer: None, tally: Tally::default() }
    }

    /// And under a steady load: some connections that post single events, and as many that post batches.
    pub(crate) fn loaded(fault: &'static str, settings: &[(&str, &str)]) -> Self {
        let mut bench = Self::start(fault, settings);
        bench.load(Manner::STEADY);
        bench.keeps_taking(1_000);
        bench
    }

    pub(crate) fn load(&mut self, manner: Manner) {
        assert!(self.producer.is_none(), "BUG: there is a load already");
        self.producer = Some(Producer::start_as(self.server.address(), manner));
    }

    pub(crate) fn producer(&self) -> &Producer {
        self.producer.as_ref().expect("BUG: there is no load")
    }

    /// Waits until so many more events have been acknowledged.
    #[track_caller]
    pub(crate) fn keeps_taking(&self, events: u64) {
        let goal = self.producer().acknowledged() + events;
        until("the producer is answered", || self.producer().acknowledged() >= goal);
    }

    /// Ends the load and keeps what its producer knows.
    #[track_caller]
    pub(crate) fn unload(&mut self) -> &Tally {
        let tally = self.producer.take().expect("BUG: there is no load").stop();
        self.tally.merge(tally);
        &self.tally
    }

    /// Each producer has a clock of its own: what the times say has to be read before the next one starts.
    pub(crate) fn forget_times(&mut self) {
        self.tally.at.clear();
    }

    #[track_caller]
    pub(crate) fn breaker_opens(&self) {
        until("the breaker opens", || self.server.metric("circuit_breaker_state") != 0);
    }

    /// Ends the load, waits until all has come to rest, and judges: nothing lost, nothing twice, nothing strange, and
    /// the server's own count is right.
    #[track_caller]
    pub(crate) fn judge(&mut self, times: u32) {
        self.judge_refusing(times, &[202, 429]);
    }

    /// The same, where producers may get other answers too.
    #[track_caller]
    pub(crate) fn judge_refusing(&mut self, times: u32, answers: &[u16]) {
        let found = self.settle();
        self.line.tell(times, &found);
        compare_ledger(&self.server, &self.postgres);
        let other = self.tally.answers.keys().find(|status| !answers.contains(status));
        assert_eq!(other, None, "a status that nobody expects");
        assert!(found.lost.is_empty(), "{} events are lost", found.lost.len());
        Self::judge_rest(&found);
        self.line.passed();
    }

    /// As above for a server that was killed: `may_be_lost` says of which ids the loss lies inside the window.
    #[track_caller]
    pub(crate) fn judge_killed(&mut self, times: u32, may_be_lost: impl Fn(&Tally, &str) -> bool) {
        let found = self.settle();
        self.line.tell(times, &found);
        let outside = found.lost.iter().filter(|id| !may_be_lost(&self.tally, id)).count();
        assert_eq!(outside, 0, "of {} lost events so many lie outside the window", found.lost.len());
        Self::judge_rest(&found);
        self.line.passed();
    }

    #[track_caller]
    fn settle(&mut self) -> Findings {
        if self.producer.is_some() {
            self.unload();
        }
        settle_within(SETTLE_MAX, &self.server);
        let found = Findings::of(&self.tally, &self.postgres);
        assert!(found.acknowledged > 0, "nothing was under way");
        found
    }

    #[track_caller]
    fn judge_rest(found: &Findings) {
        assert_eq!(found.twice, 0, "events are stored twice");
        assert_eq!(found.strangers, 0, "events are stored that were never sent");
    }
}

/// A line of the table: fault, times, acknowledged, lost, twice, verdict. Written when it goes, as failed unless it
/// was said to have passed.
pub(crate) struct Line {
    fault: &'static str,
    figures: String,
    verdict: String,
}

impl Line {
    pub(crate) fn of(fault: &'static str) -> Self {
        Self { fault, figures: "-\t-\t-\t-".into(), verdict: "FAILED".into() }
    }

    pub(crate) fn tell(&mut self, times: u32, found: &Findings) {
        self.figures = format!("{times}\t{}\t{}\t{}", found.acknowledged, found.lost.len(), found.twice);
    }

    pub(crate) fn passed(&mut self) {
        self.verdict = "passed".into();
    }

    /// For sequences of the model.
    pub(crate) fn passed_model(&mut self, sequences: u64, acknowledged: u64) {
        self.figures = format!("{sequences}\t{acknowledged}\t0\t0");
        self.passed();
    }

    /// For a fault without a producer.
    pub(crate) fn passed_after(&mut self, times: u32, stored: u64) {
        self.figures = format!("{times}\t{stored}\t0\t0");
        self.passed();
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Some(path) = std::env::var_os("FAULTS_REPORT") else { return };
        let line = format!("{}\t{}\t{}\n", self.fault, self.figures, self.verdict);
        let file = File::options().create(true).append(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
            eprintln!("the report cannot be written: {error}");
        }
    }
}
