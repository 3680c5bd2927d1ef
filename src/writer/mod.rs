//! The writer thread: takes row blocks out of the buffer, batches them and settles every row.
//!
//! A row is settled when it is committed to the events table, found there already (duplicate), or
//! committed to `dead_events`. Only then are its buffer space and its journal record released.
//!
//! Up to `WRITER_CONNECTIONS` batches are in flight: store threads run their transactions, which may
//! commit in any order. The writer thread alone forms batches, classifies errors and settles rows. A
//! batch that fails is retried by the writer thread itself; meanwhile it starts no other batch.
//!
//! The thread may block; only the buffer depends on its progress. The module must not depend on
//! requests, and reaches the database through `EventRepository` and `ErrorClass` alone.

mod backoff;
mod batch;
mod drain;
mod error_class;
mod isolate;
mod retry;
mod store_thread;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Parker;
use rand::rngs::StdRng;

pub use batch::{Batch, BatchLimits};
pub use drain::Drain;
pub use error_class::ErrorClass;
pub use store_thread::{StoreCompletion, StoreJob, StoreLink, StoreQueue, StoreThread, store_link};

use crate::buffer::{Buffer, RowBlock};
use crate::clock::{Clock, Moment};
use crate::journal::Journal;
use crate::lifecycle::{Heartbeat, Lifecycle, LifecyclePhase};
use crate::logging::RateLimitedLog;
use crate::metrics::{BatchTimes, Ledger, WriterMetrics};
use crate::storage::{Breaker, CommitPosition, DeadLetter, EventRepository, StoreError, StorePath, Stored};
use backoff::Backoff;
use retry::{FailedBatch, Failure};

/// Interval of `EventRepository::prepare`, which is cheap unless tables were found missing.
const PREPARE_INTERVAL: Duration = Duration::from_mins(1);

/// Interval at which the writer looks at an open breaker.
const BREAKER_CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Dependencies that the writer shares with other threads.
#[derive(Debug)]
pub struct WriterDeps {
    pub buffer: Arc<Buffer>,
    pub journal: Arc<Journal>,
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub ledger: Arc<Ledger>,
    pub metrics: Arc<WriterMetrics>,
    pub drain: Arc<Drain>,
    pub lifecycle: Lifecycle,
    pub clock: Clock,
}

/// Invariant: every event taken out of the buffer is in `batch`, in `carry`, in flight or in `failed`
/// until it is settled.
#[derive(Debug)]
pub struct Writer {
    deps: WriterDeps,
    parker: Parker,
    rng: StdRng,
    /// The batches in flight.
    link: StoreLink,
    /// Batches whose transactions failed, in the order of their failures.
    failed: VecDeque<FailedBatch>,
    batch: Batch,
    /// The block that did not fit into `batch`.
    carry: Option<RowBlock>,
    heartbeat: Heartbeat,
    /// When the last batch in flight completed.
    idle_since: Moment,
    /// The buffer shard to take from next.
    next_shard: usize,
    backoff: Backoff,
    /// When to call `EventRepository::prepare` next.
    prepare_at: Moment,
    /// `prepare` has succeeded once.
    is_prepared: bool,
    error_log: RateLimitedLog,
    /// Database time of the batch that is retried, successful attempts only.
    insert_time: Duration,
    /// Where its rows were committed so far.
    commit: Option<CommitPosition>,
}

/// Result of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriterStep {
    Continue,
    /// Park until this moment or until woken.
    SleepUntil(Moment),
    Stop,
}

/// Why rows were not settled.
enum StoreFailure {
    /// The drain deadline has passed. The rows stay in the batch.
    DeadlinePassed,
    /// PostgreSQL rejects at least one of the rows.
    RowFault(StoreError),
    /// The statement timed out; fewer rows at a time may succeed.
    TimedOut,
}

impl Writer {
    pub fn new(deps: WriterDeps, parker: Parker, limits: BatchLimits, link: StoreLink) -> Self {
        let rng = deps.clock.rng();
        Self {
            idle_since: deps.clock.now(),
            heartbeat: deps.lifecycle.heartbeat("writer"),
            deps,
            parker,
            rng,
            link,
            failed: VecDeque::new(),
            batch: Batch::new(limits),
            carry: None,
            next_shard: 0,
            backoff: Backoff::default(),
            prepare_at: Moment::ZERO,
            is_prepared: false,
            error_log: RateLimitedLog::new(Duration::from_secs(5)),
            insert_time: Duration::ZERO,
            commit: None,
        }
    }

    /// Runs until the buffer is drained or the drain deadline has passed.
    pub fn run(&mut self) {
        loop {
            match self.tick() {
                WriterStep::Continue => {}
                WriterStep::SleepUntil(until) => {
                    let clock = &self.deps.clock;
                    clock.park(&self.parker, until.since(clock.now()));
                }
                WriterStep::Stop => return,
            }
        }
    }

    /// One step: prepares the database when due, settles the batches that store threads have
    /// completed, gathers a batch, starts the batch when due.
    pub fn tick(&mut self) -> WriterStep {
        let now = self.deps.clock.now();
        if now >= self.prepare_at && self.prepare().is_err() {
            return WriterStep::Stop;
        }
        self.receive_completions();
        if let Some(failed) = self.failed.pop_front() {
            return match self.retry(failed) {
                Ok(()) => WriterStep::Continue,
                Err(DeadlinePassed) => WriterStep::Stop,
            };
        }
        let deadline = self.deps.drain.deadline();
        self.gather();
        let idle_since = self.link.is_idle().then_some(self.idle_since);
        match (self.batch.due(idle_since), deadline) {
            (_, Some(deadline)) if now >= deadline => WriterStep::Stop,
            (None, Some(_)) if self.deps.buffer.is_empty() => WriterStep::Stop,
            // A batch is in flight, a reservation has not been pushed yet, or spilled events are
            // being refilled.
            (None, Some(_)) => WriterStep::SleepUntil(now.plus(Duration::from_millis(1))),
            (None, None) => self.prepare_sleep(self.prepare_at),
            (Some(due), None) if due > now && !self.is_due_by_size() => {
                self.prepare_sleep(due.min(self.prepare_at))
            }
            // The next completion wakes the writer; producers need not.
            (Some(_), deadline) if !self.link.has_capacity() => {
                WriterStep::SleepUntil(deadline.unwrap_or(self.prepare_at))
            }
            (Some(_), _) => match self.start_batch() {
                Ok(()) => WriterStep::Continue,
                Err(DeadlinePassed) => WriterStep::Stop,
            },
        }
    }

    /// A carried block means that the batch cannot grow any further.
    fn is_due_by_size(&self) -> bool {
        self.batch.is_full() || self.carry.is_some()
    }

    /// Announces the sleep to the producers. A block that was pushed before wakes nobody, so the
    /// shards are read once more.
    fn prepare_sleep(&mut self, until: Moment) -> WriterStep {
        self.deps.buffer.prepare_park(self.batch.count(), self.batch.bytes());
        if self.gather() { WriterStep::Continue } else { WriterStep::SleepUntil(until) }
    }

    /// Moves blocks from the shards into the batch. Returns whether there were any.
    fn gather(&mut self) -> bool {
        let mut any = false;
        while !self.is_due_by_size() {
            let Some(block) = self.deps.buffer.pop(&mut self.next_shard) else { break };
            self.add(block);
            any = true;
        }
        any
    }

    fn add(&mut self, block: RowBlock) {
        if self.batch.admits(&block) {
            self.batch.push(block);
        } else {
            self.carry = Some(block);
        }
    }

    /// Prepares the database, with the retries of a batch until it has succeeded once. Afterwards
    /// the tables exist, so a failure is no reason to stop storing: the next batch shows whether it
    /// matters. The first attempt, successful or not, makes the server ready: it accepts events
    /// without a database too.
    fn prepare(&mut self) -> Result<(), DeadlinePassed> {
        loop {
            let tried = self.deps.repository.prepare();
            self.deps.lifecycle.advance_to(LifecyclePhase::Serving);
            self.prepare_at = self.deps.clock.now().plus(PREPARE_INTERVAL);
            match tried {
                Ok(()) => {
                    self.is_prepared = true;
                    self.on_success();
                    return Ok(());
                }
                Err(error) if self.is_prepared => {
                    log::warn!("preparing the database failed; trying again in a minute: {error}");
                    return Ok(());
                }
                Err(error) => self.on_failure(&error, "preparing the database")?,
            }
        }
    }

    /// Hands the batch to a store thread.
    fn start_batch(&mut self) -> Result<(), DeadlinePassed> {
        self.wait_for_breaker()?;
        let batch = self.take_batch();
        let path = first_path(&batch);
        self.link.start(StoreJob::new(batch, path, self.deps.clock.now()));
        Ok(())
    }

    /// Takes the batch; the carried block begins the next one.
    fn take_batch(&mut self) -> Batch {
        let batch = self.batch.take();
        if let Some(carry) = self.carry.take() {
            self.add(carry);
        }
        batch
    }

    /// Settles the batches that store threads have stored, and queues the failed ones.
    fn receive_completions(&mut self) {
        // Every loop of the writer comes here.
        self.heartbeat.beat();
        while let Some(completion) = self.link.completion() {
            let StoreCompletion { batch, path, started, insert_time, result } = completion;
            self.idle_since = self.deps.clock.now();
            match result {
                Ok(stored) => {
                    self.on_success();
                    self.record_outcome(&[], stored);
                    self.finish(batch, started, insert_time, stored.commit);
                }
                Err(error) => {
                    self.report_store_error(&error, path);
                    let failure = Failure::Failed(error);
                    self.failed.push_back(FailedBatch { batch, path, started, failure });
                }
            }
        }
    }

    /// Releases the batch, every row of which is settled.
    fn finish(&self, batch: Batch, started: Moment, insert: Duration, commit: Option<CommitPosition>) {
        let times = BatchTimes { insert, total: self.deps.clock.now().since(started) };
        self.deps.metrics.record_batch(batch.count() as u64, times);
        log::debug!(
            events = batch.count(), insert_ms = times.insert.as_millis(), total_ms = times.total.as_millis();
            "batch written"
        );
        self.deps.journal.finalize(batch.into_blocks(), commit);
    }

    /// Stores `runs` and inserts the dead letters of `dead` in one transaction, and retries
    /// transient failures. On success updates the ledger and releases the buffer space. Fails on a
    /// row fault.
    fn settle(
        &mut self,
        runs: &[&[u8]],
        dead: &[DeadLetter<'_>],
        mut path: StorePath,
    ) -> Result<(), StoreFailure> {
        loop {
            self.wait_for_breaker()?;
            let started = self.deps.clock.now();
            match self.deps.repository.store(runs, dead, path) {
                Ok(stored) => {
                    self.on_success();
                    self.insert_time += self.deps.clock.now().since(started);
                    self.commit = CommitPosition::merge_known(self.commit, stored.commit);
                    self.record_outcome(dead, stored);
                    return Ok(());
                }
                Err(error) => {
                    self.report_store_error(&error, path);
                    path = self.prepare_retry(&error, runs, path)?;
                }
            }
        }
    }

    fn record_outcome(&self, dead: &[DeadLetter<'_>], stored: Stored) {
        let dead_letters = dead.len() as u64;
        // A dead letter that exists already counts as a duplicate.
        let stored = Stored { duplicate: stored.duplicate + (dead_letters - stored.dead), ..stored };
        self.deps.ledger.record_settled(stored);
        self.deps.buffer.record_committed(self.deps.clock.now());
    }

    fn on_success(&mut self) {
        self.backoff.reset();
        self.deps.drain.record_success();
        self.deps.breaker.record_writer_success(self.deps.clock.now());
    }

    /// Logs the failure of `what`, reports it to the breaker and waits for the backoff delay.
    fn on_failure(&mut self, error: &StoreError, what: &str) -> Result<(), DeadlinePassed> {
        self.on_failure_of(ErrorClass::of(error), error, what)
    }

    /// PostgreSQL refuses the rows of a batch, and also copies of events that it has stored before.
    fn on_every_row_refused(&mut self, error: &StoreError) -> Result<(), DeadlinePassed> {
        const WHAT: &str = "every row is refused, also copies of stored events, which points to the \
                            configuration of the database; storing a batch";
        self.on_failure_of(ErrorClass::Misconfigured, error, WHAT)
    }

    fn on_failure_of(
        &mut self,
        class: ErrorClass,
        error: &StoreError,
        what: &str,
    ) -> Result<(), DeadlinePassed> {
        self.report_failure(class, error, what);
        self.wait_for_backoff()
    }

    fn report_failure(&mut self, class: ErrorClass, error: &StoreError, what: &str) {
        let now = self.deps.clock.now();
        self.deps.metrics.retries.fetch_add(1, Ordering::Relaxed);
        self.deps.drain.record_failure(now);
        if let Some(suppressed) = self.error_log.due(now) {
            let level = if class == ErrorClass::Misconfigured { log::Level::Error } else { log::Level::Warn };
            log::log!(
                level,
                sqlstate = error.sqlstate.as_deref().unwrap_or("none"),
                error_class:? = class,
                events = self.deps.ledger.balance().buffered(),
                suppressed;
                "{what} failed, no event is lost; retrying: {error}"
            );
        }
        if class == ErrorClass::Misconfigured {
            self.deps.breaker.trip(now);
        } else {
            self.deps.breaker.set_unreachable(error.is_unreachable());
            self.deps.breaker.record_writer_failure(now);
        }
    }

    /// A drain that begins meanwhile ends the wait: its time is limited.
    fn wait_for_backoff(&mut self) -> Result<(), DeadlinePassed> {
        let until = self.deps.clock.now().plus(self.backoff.next_delay(&mut self.rng));
        let drains = self.deps.drain.deadline().is_some();
        let begins = move |writer: &Self| !drains && writer.deps.drain.deadline().is_some();
        self.wait(|writer, now| now >= until || begins(writer), until)
    }

    /// Waits while the breaker is open. A drain ignores the breaker: its time is limited, and every
    /// attempt may succeed.
    fn wait_for_breaker(&mut self) -> Result<(), DeadlinePassed> {
        self.receive_completions();
        while self.deps.drain.deadline().is_none() {
            match self.deps.breaker.admit(self.deps.clock.now()) {
                Ok(()) => return Ok(()),
                Err(open) => {
                    let drain = self.deps.drain.deadline();
                    // The probe may end the open phase earlier.
                    let until = open.retry_at.min(self.deps.clock.now().plus(BREAKER_CHECK_INTERVAL));
                    self.wait(|writer, now| now >= until || writer.deps.drain.deadline() != drain, until)?;
                }
            }
        }
        Ok(())
    }

    /// Parks until `over` returns true (evaluated at every wake-up and at `until`) or the drain
    /// deadline has passed.
    fn wait(&mut self, over: impl Fn(&Self, Moment) -> bool, until: Moment) -> Result<(), DeadlinePassed> {
        loop {
            self.receive_completions();
            let now = self.deps.clock.now();
            let deadline = self.deps.drain.deadline();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(DeadlinePassed);
            }
            if over(self, now) {
                return Ok(());
            }
            let until = deadline.map_or(until, |deadline| until.min(deadline));
            self.deps.clock.park(&self.parker, until.since(now));
        }
    }
}

/// The path of the first attempt. Replayed rows may be stored already; a plain COPY would fail on the
/// duplicates.
fn first_path(batch: &Batch) -> StorePath {
    if batch.is_replayed() { StorePath::Staging } else { StorePath::Copy }
}

/// The drain deadline has passed.
#[derive(Debug)]
struct DeadlinePassed;

impl From<DeadlinePassed> for StoreFailure {
    fn from(_: DeadlinePassed) -> Self {
        Self::DeadlinePassed
    }
}
