//! The sweep: finishes what an earlier one left, drops whole days, deletes the rest in chunks. And the thread that does
//! it when it is due, and which keeps the default partition empty in between.
//!
//! Every step asks the breaker first. A failure ends the sweep and nothing else: what it removed is noted, and the next
//! one goes on from there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::plan::{self, Plan};
use super::schedule::Schedule;
use crate::clock::{Clock, Moment};
use crate::event::{EventId, Timestamp};
use crate::metrics::RetentionFigures;
use crate::storage::{Breaker, Day, EventRepository, Filter, StoreError, Sweeping};

/// Rows deleted in one transaction: as many as a batch stores, so that a batch waits for one no longer than for another.
const CHUNK_ROWS: u32 = 5000;
/// A partition cannot be detached while a query reads it: tries, and the shortest and longest wait between them. Most
/// queries and batches are over within milliseconds; together it is more than twice the longest query.
const DETACH_TRIES: u32 = 25;
const DETACH_PAUSE: Duration = Duration::from_millis(20);
const DETACH_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Chunks alternate with pauses of their own length, up to this: half of the time the disk is the writer's.
const CHUNK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// When a sweep that failed is tried again, unless the next is due before.
const RETRY: Duration = Duration::from_mins(5);
/// How often the last sweep is asked for until the database says: at a first start its tables are still being made.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often the default partition is looked into.
const TIDY_EVERY: Duration = Duration::from_mins(1);
/// The time of day may jump: it is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What it takes to sweep.
#[derive(Debug)]
pub struct Retention {
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub figures: Arc<RetentionFigures>,
    pub clock: Clock,
    pub schedule: Schedule,
    /// How long events are kept.
    pub days: u32,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub partitions: u64,
    /// With their partition.
    pub dropped: u64,
    /// Row by row.
    pub deleted: u64,
    pub dead: u64,
}

/// How a sweep ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepEnd {
    Done(Swept),
    /// Another server is at it.
    Elsewhere,
    /// Told to stop: the next sweep goes on.
    Stopped(Swept),
}

/// What a sweep would remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    pub edge: Timestamp,
    /// Whole days, with the events that the counts know of.
    pub days: Vec<(Day, u64)>,
    /// Events that would go row by row.
    pub rest: u64,
}

/// Why a sweep did not come to its end.
enum Halt {
    Stopped,
    Failed(StoreError),
}

impl Retention {
    /// The life of the thread: until the other end of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        let mut due = None;
        let mut tidy_at = Moment::ZERO;
        loop {
            due = due.or_else(|| self.first_due());
            let until_due = due.map_or(ASK_EVERY, |due| between(self.clock.wall(), due));
            match stop.recv_timeout(until_due.min(LOOK_EVERY)) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if due.is_some() {
                due = self.tick(due, stop);
            }
            if self.clock.now() >= tidy_at {
                self.tidy();
                tidy_at = self.clock.now().plus(TIDY_EVERY);
            }
        }
    }

    /// A sweep that was due while no server ran is made up for. Where there never was one, the schedule begins. None
    /// while the database cannot be asked.
    fn first_due(&self) -> Option<Timestamp> {
        let last = self.ask(|| self.repository.last_sweep()).ok()?;
        let due = self.schedule.after(last.unwrap_or_else(|| self.clock.wall()));
        if due.is_some_and(|due| due < self.clock.wall()) {
            log::info!("retention: a sweep was due while no server ran");
        }
        due
    }

    /// Empties the default partition and tells what is in it.
    fn tidy(&self) {
        match self.ask(|| self.repository.tidy()) {
            Ok(tidied) => {
                self.figures.default_moved.fetch_add(tidied.moved, Ordering::Relaxed);
                self.figures.default_rows.store(tidied.left, Ordering::Relaxed);
            }
            Err(Halt::Stopped) => {}
            Err(Halt::Failed(error)) => {
                let sqlstate = error.sqlstate.as_deref().unwrap_or("none");
                log::warn!(sqlstate; "the default partition could not be emptied, and is tried again: {error}");
            }
        }
    }

    /// Sweeps if it is due, and says when it will be next.
    fn tick(&self, due: Option<Timestamp>, stop: &Receiver<()>) -> Option<Timestamp> {
        let wall = self.clock.wall();
        if due.is_none_or(|due| wall < due) {
            // After a jump back of the clock, what was due is too far away.
            return earlier(due, self.schedule.after(wall));
        }
        let swept = self.sweep(stop);
        let wall = self.clock.wall();
        let next = self.schedule.after(wall);
        match swept {
            Ok(_) => next,
            Err(_) => earlier(next, Some(plus(wall, RETRY))),
        }
    }

    /// Sweeps now. What comes of it is logged and counted here.
    pub fn sweep(&self, stop: &Receiver<()>) -> Result<SweepEnd, StoreError> {
        let begin = self.clock.now();
        let edge = plan::edge(self.clock.wall(), self.days);
        let mut swept = Swept::default();
        let end = match self.steps(edge, &mut swept, stop) {
            Ok(true) => SweepEnd::Done(swept),
            Ok(false) => SweepEnd::Elsewhere,
            Err(Halt::Stopped) => SweepEnd::Stopped(swept),
            Err(Halt::Failed(error)) => {
                self.figures.failures.fetch_add(1, Ordering::Relaxed);
                let sqlstate = error.sqlstate.as_deref().unwrap_or("none");
                log::error!(
                    sqlstate, partitions = swept.partitions, events = swept.dropped + swept.deleted;
                    "retention failed, and goes on later: {error}"
                );
                return Err(error);
            }
        };
        match end {
            SweepEnd::Elsewhere => log::info!("retention: another server is at it"),
            SweepEnd::Done(_) | SweepEnd::Stopped(_) => {
                if matches!(end, SweepEnd::Done(_)) {
                    self.figures.runs.fetch_add(1, Ordering::Relaxed);
                    let now_s = self.clock.wall().millis() / 1000;
                    self.figures.last_run_s.store(now_s, Ordering::Relaxed);
                }
                log::info!(
                    edge = edge.to_string().as_str(), partitions = swept.partitions, dropped = swept.dropped,
                    deleted = swept.deleted, dead = swept.dead, finished = matches!(end, SweepEnd::Done(_)),
                    ms:? = self.clock.now().since(begin).as_millis();
                    "retention: old events removed"
                );
            }
        }
        Ok(end)
    }

    /// What a sweep would remove, by the counts. Changes nothing.
    pub fn preview(&self) -> Result<Preview, StoreError> {
        let edge = plan::edge(self.clock.wall(), self.days);
        let plan = Plan::new(&self.repository.days()?, edge);
        let mut all = self.repository.count(&Filter::between(Timestamp::default(), edge))?;
        let mut days = Vec::with_capacity(plan.days.len());
        for day in plan.days {
            let events = self.repository.count(&Filter::between(day.begin(), day.end()))?;
            all = all.saturating_sub(events);
            days.push((day, events));
        }
        Ok(Preview { edge, days, rest: all })
    }

    /// False when another server sweeps.
    fn steps(&self, edge: Timestamp, swept: &mut Swept, stop: &Receiver<()>) -> Result<bool, Halt> {
        let Some(mut sweeping) = self.ask(|| self.repository.sweep(edge))? else { return Ok(false) };
        let result = self.remove(&mut *sweeping, edge, swept, stop);
        let error = match &result {
            Ok(()) => None,
            Err(Halt::Stopped) => Some("told to stop".to_owned()),
            Err(Halt::Failed(error)) => Some(error.to_string()),
        };
        let noted = sweeping.end(error.as_deref());
        if let (Ok(()), Err(error)) = (&result, noted) {
            return Err(Halt::Failed(error));
        }
        result.map(|()| true)
    }

    fn remove(
        &self,
        sweeping: &mut dyn Sweeping,
        edge: Timestamp,
        swept: &mut Swept,
        stop: &Receiver<()>,
    ) -> Result<(), Halt> {
        self.ask(|| sweeping.finish_drops())?;
        let plan = Plan::new(&self.ask(|| self.repository.days())?, edge);
        for day in plan.days {
            let begin = self.clock.now();
            let events = self.drop_day(sweeping, day, stop)?;
            let date = day.begin().to_string();
            log::info!(
                day = &date[..10], events, ms:? = self.clock.now().since(begin).as_millis();
                "retention: a day was dropped"
            );
            swept.partitions += 1;
            swept.dropped += events;
            self.figures.partitions.fetch_add(1, Ordering::Relaxed);
            self.figures.events.fetch_add(events, Ordering::Relaxed);
            pause(stop, Duration::ZERO)?;
        }
        let mut after = EventId::floor(0);
        loop {
            let begin = self.clock.now();
            let chunk = self.ask(|| sweeping.delete_events(after, plan.rest, CHUNK_ROWS))?;
            swept.deleted += chunk.rows;
            self.figures.events.fetch_add(chunk.rows, Ordering::Relaxed);
            let Some(next) = chunk.next else { break };
            after = next;
            pause(stop, self.clock.now().since(begin).min(CHUNK_PAUSE_MAX))?;
        }
        loop {
            let begin = self.clock.now();
            let rows = self.ask(|| sweeping.delete_dead(CHUNK_ROWS))?;
            swept.dead += rows;
            self.figures.dead.fetch_add(rows, Ordering::Relaxed);
            if rows < u64::from(CHUNK_ROWS) {
                break;
            }
            pause(stop, self.clock.now().since(begin).min(CHUNK_PAUSE_MAX))?;
        }
        while self.ask(|| sweeping.delete_minutes())? {
            pause(stop, Duration::ZERO)?;
        }
        Ok(())
    }

    /// Tries again while a query is in the way.
    fn drop_day(&self, sweeping: &mut dyn Sweeping, day: Day, stop: &Receiver<()>) -> Result<u64, Halt> {
        let (mut tries, mut wait) = (1, DETACH_PAUSE);
        loop {
            match self.ask(|| sweeping.drop_day(day)) {
                Err(Halt::Failed(error)) if tries < DETACH_TRIES && in_the_way(&error) => {
                    tries += 1;
                    log::debug!("retention: {error}; trying again");
                    pause(stop, wait)?;
                    wait = DETACH_PAUSE_MAX.min(wait * 2);
                }
                result => return result,
            }
        }
    }

    /// Asks the database, unless the breaker is open, and tells the breaker what came of it.
    fn ask<T>(&self, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, Halt> {
        if let Err(open) = self.breaker.admit(self.clock.now()) {
            return Err(Halt::Failed(StoreError::unreachable(open.to_string())));
        }
        let result = call();
        let now = self.clock.now();
        match &result {
            Err(error) if is_away(error) => self.breaker.failed(now),
            Ok(_) | Err(_) => self.breaker.answered(now),
        }
        result.map_err(Halt::Failed)
    }
}

/// The breaker's one question about an error: is the database away? Locks and slow steps are no sign of it.
fn is_away(error: &StoreError) -> bool {
    match error.sqlstate.as_deref() {
        None => true,
        Some("57014") => false,
        Some(code) => ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)),
    }
}

/// Somebody held the lock for too long, or wanted one of ours.
fn in_the_way(error: &StoreError) -> bool {
    matches!(error.sqlstate.as_deref(), Some("55P03" | "40P01"))
}

/// Waits, unless it is time to stop.
fn pause(stop: &Receiver<()>, time: Duration) -> Result<(), Halt> {
    match stop.recv_timeout(time) {
        Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => Err(Halt::Stopped),
    }
}

fn between(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(then.micros().saturating_sub(now.micros())).unwrap_or(0))
}

fn plus(time: Timestamp, wait: Duration) -> Timestamp {
    Timestamp::from_micros(time.micros().saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    [one, other].into_iter().flatten().min()
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "events before {} would go", self.edge)?;
        for (day, events) in &self.days {
            let date = day.begin().to_string();
            writeln!(f, "partition of {}: {events} events", &date[..date.find('T').unwrap_or(date.len())])?;
        }
        write!(f, "row by row: {} events", self.rest)
    }
}

#[cfg(test)]
mod tests;
