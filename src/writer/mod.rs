//! The writer: the one thread that takes events out of the buffer and sees each of them settled - stored, found to
//! be a duplicate, or set aside as a dead letter - before their room is given back.
//!
//! It may block; nothing waits for it but the buffer. Knows nothing of requests, and of the database only what the
//! repository and the verdicts say.

mod batch;
mod isolate;
mod retry;
mod verdict;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::sync::Parker;
use rand::rngs::StdRng;

pub use batch::{Batch, BatchLimits};
pub use verdict::Verdict;

use crate::buffer::{Buffer, RowBlock};
use crate::clock::{Clock, Moment};
use crate::event::row;
use crate::journal::Journal;
use crate::lifecycle::{Lifecycle, Phase};
use crate::logging::Thinned;
use crate::metrics::{BatchTimes, Ledger, WriterFigures};
use crate::storage::{Breaker, DeadLetter, EventRepository, StoreError, StorePath, Stored};
use isolate::PIECE_MIN;
use retry::Backoff;

/// How often the partitions are seen to: those ahead, and the late events that wait for one of their own.
const PREPARE_EVERY: Duration = Duration::from_mins(1);

/// Asks the writer to empty the buffer and end, by a deadline.
#[derive(Debug, Default)]
pub struct Drain {
    /// Nanoseconds of the deadline's moment, plus one; zero while there is none.
    deadline: AtomicU64,
}

impl Drain {
    /// The caller wakes the writer afterwards, and again when it moves the deadline.
    pub fn by(&self, deadline: Moment) {
        self.deadline.store(deadline.nanos().saturating_add(1), Ordering::Release);
    }

    fn deadline(&self) -> Option<Moment> {
        self.deadline.load(Ordering::Acquire).checked_sub(1).map(Moment::from_nanos)
    }
}

/// What the writer shares with others.
#[derive(Debug)]
pub struct Links {
    pub buffer: Arc<Buffer>,
    pub journal: Arc<Journal>,
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub ledger: Arc<Ledger>,
    pub figures: Arc<WriterFigures>,
    pub drain: Arc<Drain>,
    pub lifecycle: Lifecycle,
    pub clock: Clock,
}

/// Invariant: every event taken out of the buffer is in `batch` or `carry` until it is settled.
#[derive(Debug)]
pub struct Writer {
    links: Links,
    parker: Parker,
    chance: StdRng,
    batch: Batch,
    /// A block that did not fit the batch before it.
    carry: Option<RowBlock>,
    /// The shard to take from next.
    turn: usize,
    backoff: Backoff,
    /// When the database is to be prepared (again).
    prepare_at: Moment,
    complaint: Thinned,
    /// Time in the database for the current batch, of attempts that succeeded.
    insert: Duration,
}

/// Whether there is another tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Tick,
    /// Nothing may happen before this moment, unless the writer is woken.
    Sleep(Moment),
    End,
}

/// Why rows are not settled.
enum Unsettled {
    /// The deadline of the drain has passed. The events stay where they are.
    GaveUp,
    /// A row among them is refused.
    Refused(StoreError),
    /// They took longer than they may: fewer at a time may not.
    TooMany,
}

impl Writer {
    pub fn new(links: Links, parker: Parker, limits: BatchLimits) -> Self {
        let chance = links.clock.rng();
        Self {
            links,
            parker,
            chance,
            batch: Batch::new(limits),
            carry: None,
            turn: 0,
            backoff: Backoff::default(),
            prepare_at: Moment::ZERO,
            complaint: Thinned::new(Duration::from_secs(5)),
            insert: Duration::ZERO,
        }
    }

    /// Runs until the buffer is drained or the deadline of the drain has passed.
    pub fn run(&mut self) {
        loop {
            match self.tick() {
                Next::Tick => {}
                Next::Sleep(until) => {
                    let clock = &self.links.clock;
                    clock.park(&self.parker, until.since(clock.now()));
                }
                Next::End => return,
            }
        }
    }

    /// One step: prepare the database when that is due, gather a batch, write it when it is due.
    pub fn tick(&mut self) -> Next {
        let now = self.links.clock.now();
        if now >= self.prepare_at && self.prepare().is_err() {
            return Next::End;
        }
        let draining = self.links.drain.deadline().is_some();
        self.gather();
        match self.batch.due() {
            None if draining && self.is_drained(now) => Next::End,
            // Somebody has reserved room and not pushed yet, or spilled events are on their way back.
            None if draining => Next::Sleep(now.plus(Duration::from_millis(1))),
            None => Next::Sleep(self.prepare_at),
            Some(due) if due > now && !draining && !self.is_due_by_size() => {
                Next::Sleep(due.min(self.prepare_at))
            }
            Some(_) => match self.write() {
                Ok(()) => Next::Tick,
                Err(_gave_up) => Next::End,
            },
        }
    }

    /// Whether nothing is left, or there is no time left to wait for it.
    fn is_drained(&self, now: Moment) -> bool {
        let buffer = &self.links.buffer;
        let is_empty = buffer.occupied().rows == 0 && buffer.spill().events() == 0;
        is_empty || self.links.drain.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// A block that did not fit says that the batch is as full as it gets.
    fn is_due_by_size(&self) -> bool {
        self.batch.is_full() || self.carry.is_some()
    }

    fn gather(&mut self) {
        while !self.is_due_by_size() {
            let Some(block) = self.links.buffer.take(&mut self.turn) else { return };
            self.add(block);
        }
    }

    fn add(&mut self, block: RowBlock) {
        if self.batch.admits(&block) {
            self.batch.push(block);
        } else {
            self.carry = Some(block);
        }
    }

    /// Brings the database into shape, waiting for it as for any batch. The first try decides when the server is
    /// ready: it takes events in whether or not the database is there.
    fn prepare(&mut self) -> Result<(), GaveUp> {
        loop {
            let tried = self.links.repository.prepare(self.links.clock.wall());
            self.links.lifecycle.enter(Phase::Serving);
            self.prepare_at = self.links.clock.now().plus(PREPARE_EVERY);
            match tried {
                Ok(()) => {
                    self.succeeded();
                    return Ok(());
                }
                Err(error) => self.failed(&error, "preparing the database")?,
            }
        }
    }

    /// Writes the batch until all of it is settled.
    fn write(&mut self) -> Result<(), GaveUp> {
        let started = self.links.clock.now();
        self.insert = Duration::ZERO;
        let emptied = Batch::new(self.batch.limits());
        let batch = std::mem::replace(&mut self.batch, emptied);
        // What the journal brought back may be stored already, and COPY would fail on it.
        let path = if batch.is_replayed() { StorePath::Stage } else { StorePath::Copy };
        let settled = match self.settle(&batch.runs(), &[], path) {
            Ok(()) => Ok(()),
            Err(Unsettled::GaveUp) => Err(GaveUp),
            Err(Unsettled::Refused(error)) => self.isolate(&batch.rows(), &error),
            Err(Unsettled::TooMany) => self.piecemeal(&batch.rows()),
        };
        if settled.is_ok() {
            let total = self.links.clock.now().since(started);
            let times = BatchTimes { insert: self.insert, total };
            self.links.figures.batch(batch.count() as u64, times);
            log::debug!(
                events = batch.count(), insert_ms = times.insert.as_millis(), total_ms = total.as_millis();
                "batch written"
            );
            self.links.journal.settled(batch.into_blocks());
        } else {
            // They stay counted as held; what settled of them is told apart by their ids, should they be replayed.
            self.batch = batch;
        }
        if settled.is_ok()
            && let Some(carry) = self.carry.take()
        {
            self.add(carry);
        }
        settled
    }

    /// Sees `runs` stored and `dead` buried in one transaction, however often that has to be tried, unless a row is
    /// refused. Then the ledger knows of it and the room is given back.
    fn settle(
        &mut self,
        runs: &[&[u8]],
        dead: &[DeadLetter<'_>],
        mut path: StorePath,
    ) -> Result<(), Unsettled> {
        loop {
            self.wait_for_breaker()?;
            let started = self.links.clock.now();
            match self.links.repository.store(runs, dead, path) {
                Ok(stored) => {
                    self.succeeded();
                    self.insert += self.links.clock.now().since(started);
                    self.account(runs, dead, stored);
                    return Ok(());
                }
                Err(error) => match Verdict::of(&error) {
                    Verdict::Split => {
                        self.succeeded();
                        return Err(Unsettled::Refused(error));
                    }
                    // A stage cannot meet a duplicate: then it is another unique key, and no row to blame.
                    Verdict::Duplicates | Verdict::Retry
                        if path == StorePath::Copy && verdict::is_clearer_from_the_stage(&error) =>
                    {
                        self.succeeded();
                        path = StorePath::Stage;
                    }
                    Verdict::Retry | Verdict::Duplicates | Verdict::Halt => {
                        if error.in_doubt {
                            path = StorePath::Stage;
                        }
                        self.failed(&error, "storing a batch")?;
                        let count = || runs.iter().flat_map(|run| row::rows(run)).count();
                        if error.timed_out && count() > PIECE_MIN {
                            return Err(Unsettled::TooMany);
                        }
                    }
                },
            }
        }
    }

    fn account(&mut self, runs: &[&[u8]], dead: &[DeadLetter<'_>], stored: Stored) {
        let buried = dead.len() as u64;
        // A dead letter that was there already is the duplicate of one.
        let stored = Stored { duplicate: stored.duplicate + (buried - stored.dead), ..stored };
        let bytes = runs.iter().map(|run| run.len()).sum::<usize>()
            + dead.iter().map(|letter| letter.row.bytes().len()).sum::<usize>();
        let rows = stored.stored + stored.duplicate + stored.dead;
        let rows = u32::try_from(rows).expect("BUG: a batch has fewer than 2^32 rows");
        self.links.ledger.settled(stored);
        self.links.buffer.settled(rows, bytes, self.links.clock.now());
    }

    fn succeeded(&mut self) {
        self.backoff.succeeded();
        self.links.breaker.succeeded(self.links.clock.now());
    }

    /// The database failed at `what`: says so, tells the breaker, and waits before the next try.
    fn failed(&mut self, error: &StoreError, what: &str) -> Result<(), GaveUp> {
        let now = self.links.clock.now();
        self.links.figures.retries.fetch_add(1, Ordering::Relaxed);
        let verdict = Verdict::of(error);
        if let Some(held_back) = self.complaint.due(now) {
            let level = if verdict == Verdict::Halt { log::Level::Error } else { log::Level::Warn };
            log::log!(
                level,
                sqlstate = error.sqlstate.as_deref().unwrap_or("none"),
                verdict:? = verdict,
                events = self.links.ledger.balance().buffered(),
                held_back = held_back;
                "{what} failed, everything is kept: {error}"
            );
        }
        if verdict == Verdict::Halt {
            self.links.breaker.trip(now);
        } else {
            self.links.breaker.writer_failed(now);
        }
        let wait = self.backoff.failed(&mut self.chance);
        self.wait_until(now.plus(wait))
    }

    /// Waits while the breaker is open. A drain does not: its time is short, and each try tells.
    fn wait_for_breaker(&mut self) -> Result<(), GaveUp> {
        while self.links.drain.deadline().is_none() {
            match self.links.breaker.admit(self.links.clock.now()) {
                Ok(()) => return Ok(()),
                Err(open) => {
                    let drain = self.links.drain.deadline();
                    self.wait(
                        |writer, now| now >= open.retry_at || writer.links.drain.deadline() != drain,
                        open.retry_at,
                    )?;
                }
            }
        }
        Ok(())
    }

    fn wait_until(&mut self, until: Moment) -> Result<(), GaveUp> {
        self.wait(|_, now| now >= until, until)
    }

    /// Sleeps until `over`, which is asked whenever the writer is woken; that the deadline of a drain passes ends it
    /// too.
    fn wait(&self, over: impl Fn(&Self, Moment) -> bool, until: Moment) -> Result<(), GaveUp> {
        loop {
            let now = self.links.clock.now();
            let deadline = self.links.drain.deadline();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(GaveUp);
            }
            if over(self, now) {
                return Ok(());
            }
            let until = deadline.map_or(until, |deadline| until.min(deadline));
            self.links.clock.park(&self.parker, until.since(now));
        }
    }
}

/// The deadline of the drain has passed.
#[derive(Debug)]
struct GaveUp;

impl From<GaveUp> for Unsettled {
    fn from(_: GaveUp) -> Self {
        Self::GaveUp
    }
}
