//! The sweep: deletes expired rows and drops expired partitions, one transaction per step. Its
//! thread runs the sweep on schedule.
//!
//! Every step passes the breaker. A failed step ends the sweep; completed steps stay committed and
//! recorded, and the next sweep continues from there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use sonic_rs::json;

use super::plan::{self, ClockDisagreementError, Plan, agreed_time};
use super::schedule::Schedule;
use crate::clock::Clock;
use crate::event::{EventId, Timestamp};
use crate::metrics::RetentionMetrics;
use crate::storage::{Breaker, Day, EventRepository, Filter, RetentionSweep, StoreError};

/// Rows deleted in one transaction. The default batch size, so that a batch waits for a chunk no
/// longer than for another batch.
const CHUNK_ROWS: u32 = 5000;
/// Attempts to detach a partition, which fails while a query reads it, and the minimum and maximum
/// delay between attempts. Most queries and batches take milliseconds; all attempts together take
/// more than twice the longest query.
const DETACH_TRIES: u32 = 25;
const DETACH_PAUSE: Duration = Duration::from_millis(20);
const DETACH_PAUSE_MAX: Duration = Duration::from_millis(500);
/// After each chunk the sweep pauses for the chunk's own duration, up to this maximum, which leaves
/// half of the disk time to the writer.
const CHUNK_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Retry delay of a failed sweep, unless the next scheduled sweep is earlier.
const FAILED_SWEEP_RETRY: Duration = Duration::from_mins(5);
/// Retry interval for reading the time of the last sweep: on the first start its table does not
/// exist yet.
const LAST_SWEEP_RETRY: Duration = Duration::from_secs(2);
/// Beyond this time since the last sweep of any server, the owner of the tables does not sweep.
const OWNER_SWEEP_INTERVAL_MAX: Duration = Duration::from_hours(48);
/// Maximum sleep between two reads of the wall clock, which may jump.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Runs sweeps: the dependencies and the retention settings.
#[derive(Debug)]
pub struct RetentionSweeper {
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub metrics: Arc<RetentionMetrics>,
    pub clock: Clock,
    pub schedule: Schedule,
    /// `RETENTION_DAYS`.
    pub days: u32,
}

/// Counts of a sweep's deletions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepCounts {
    pub partitions: u64,
    /// Events dropped with their partition.
    pub dropped: u64,
    /// Events deleted row by row.
    pub deleted: u64,
    pub dead: u64,
}

/// Outcome of a sweep that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SweepOutcome {
    Completed(SweepCounts),
    /// Another server holds the sweep lock.
    AlreadyRunning,
    /// The role does not own the tables, so its owner has to sweep.
    NotOwner,
    /// Stopped by the shutdown; the next sweep continues.
    Stopped(SweepCounts),
}

/// What a sweep would delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepPreview {
    pub cutoff: Timestamp,
    /// Partitions to drop, with their number of events from the counters.
    pub days: Vec<(Day, u64)>,
    /// Events to delete row by row.
    pub rows: u64,
}

/// Why a sweep failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SweepError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Clocks(#[from] ClockDisagreementError),
}

/// Why a sweep did not complete.
enum RunSweepError {
    Stopped,
    Failed(SweepError),
}

impl From<StoreError> for RunSweepError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<ClockDisagreementError> for RunSweepError {
    fn from(error: ClockDisagreementError) -> Self {
        Self::Failed(error.into())
    }
}

impl SweepError {
    fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Store(error) => error.sqlstate.as_deref(),
            Self::Clocks(_) => None,
        }
    }
}

impl RetentionSweeper {
    /// The body of the thread. Runs until the sender of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        let mut due = None;
        loop {
            due = due.or_else(|| self.first_due());
            let until_due = due.map_or(LAST_SWEEP_RETRY, |due| duration_until(self.clock.wall(), due));
            match stop.recv_timeout(until_due.min(CLOCK_CHECK_INTERVAL)) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if due.is_some() {
                due = self.tick(due, stop);
            }
        }
    }

    /// The first sweep is due one schedule step after the last recorded sweep, so a sweep missed
    /// while no server ran is made up for; without a recorded sweep, one step after now. None if
    /// the database is unavailable.
    fn first_due(&self) -> Option<Timestamp> {
        let last = self.call(|| self.repository.last_sweep()).ok()?;
        let due = self.schedule.after(last.unwrap_or_else(|| self.clock.wall()));
        if due.is_some_and(|due| due < self.clock.wall()) {
            log::info!("retention: a scheduled sweep was missed while no server ran");
        }
        due
    }

    /// Sweeps if due. Returns when the next sweep is due.
    fn tick(&self, due: Option<Timestamp>, stop: &Receiver<()>) -> Option<Timestamp> {
        let wall = self.clock.wall();
        if due.is_none_or(|due| wall < due) {
            // After the wall clock was set back, `due` is too late.
            return earlier(due, self.schedule.after(wall));
        }
        let result = self.sweep(stop);
        let wall = self.clock.wall();
        let next = self.schedule.after(wall);
        match result {
            Ok(_) => next,
            Err(_) => earlier(next, Some(plus(wall, FAILED_SWEEP_RETRY))),
        }
    }

    /// Sweeps now; logs and counts the outcome.
    pub fn sweep(&self, stop: &Receiver<()>) -> Result<SweepOutcome, SweepError> {
        let begin = self.clock.now();
        let mut counts = SweepCounts::default();
        let end = match self.sweep_exclusively(&mut counts, stop) {
            Ok(end) => end,
            Err(RunSweepError::Stopped) => SweepOutcome::Stopped(counts),
            Err(RunSweepError::Failed(error)) => {
                self.metrics.failures.fetch_add(1, Ordering::Relaxed);
                log::error!(
                    sqlstate = error.sqlstate().unwrap_or("none"), partitions = counts.partitions,
                    events = counts.dropped + counts.deleted;
                    "retention failed; the next sweep continues: {error}"
                );
                return Err(error);
            }
        };
        match end {
            SweepOutcome::AlreadyRunning => log::info!("retention: another server holds the sweep lock"),
            SweepOutcome::NotOwner => self.log_not_owner(),
            SweepOutcome::Completed(_) | SweepOutcome::Stopped(_) => {
                if matches!(end, SweepOutcome::Completed(_)) {
                    self.metrics.runs.fetch_add(1, Ordering::Relaxed);
                    let now_s = self.clock.wall().millis() / 1000;
                    self.metrics.last_run_s.store(now_s, Ordering::Relaxed);
                }
                log::info!(
                    partitions = counts.partitions, dropped = counts.dropped, deleted = counts.deleted,
                    dead = counts.dead, finished = matches!(end, SweepOutcome::Completed(_)),
                    ms:? = self.clock.now().since(begin).as_millis();
                    "retention: expired events removed"
                );
            }
        }
        Ok(end)
    }

    /// A role that may only read and write rows is a supported deployment, in which the owner of the
    /// tables sweeps. It is a fault only if the owner does not.
    fn log_not_owner(&self) {
        let last = self.call(|| self.repository.last_sweep()).ok().flatten();
        let is_recent =
            last.is_some_and(|last| duration_until(last, self.clock.wall()) < OWNER_SWEEP_INTERVAL_MAX);
        let level = if is_recent { log::Level::Debug } else { log::Level::Warn };
        log::log!(
            level,
            last_sweep:% = last.map_or_else(|| "none".to_owned(), |last| last.to_string());
            "retention: nothing is deleted, since this role does not own the tables; their owner must run \
             `aurore-events retention run` every day"
        );
    }

    /// Reports what a sweep would delete, from the counters. Read-only.
    pub fn preview(&self) -> Result<SweepPreview, SweepError> {
        let now = agreed_time(self.clock.wall(), self.repository.sweep_conditions()?.database_time)?;
        let cutoff = plan::cutoff(now, self.days);
        let plan = Plan::new(&self.repository.partition_days()?, cutoff, now);
        let mut all = self.repository.count(&Filter::between(Timestamp::default(), cutoff))?;
        let mut days = Vec::with_capacity(plan.days.len());
        for day in plan.days {
            let events = self.repository.count(&Filter::between(day.start(), day.end()))?;
            all = all.saturating_sub(events);
            days.push((day, events));
        }
        Ok(SweepPreview { cutoff, days, rows: all })
    }

    /// Sweeps under the sweep lock, if the clocks agree and the role owns the tables.
    fn sweep_exclusively(
        &self,
        counts: &mut SweepCounts,
        stop: &Receiver<()>,
    ) -> Result<SweepOutcome, RunSweepError> {
        let conditions = self.call(|| self.repository.sweep_conditions())?;
        let now = agreed_time(self.clock.wall(), conditions.database_time)?;
        if !conditions.is_owner {
            return Ok(SweepOutcome::NotOwner);
        }
        let cutoff = plan::cutoff(now, self.days);
        let Some(mut sweeping) = self.call(|| self.repository.begin_sweep(cutoff))? else {
            return Ok(SweepOutcome::AlreadyRunning);
        };
        let result = self.delete_expired(&mut *sweeping, (cutoff, now), counts, stop);
        let error = match &result {
            Ok(()) => None,
            Err(RunSweepError::Stopped) => Some("stopped".to_owned()),
            Err(RunSweepError::Failed(error)) => Some(error.to_string()),
        };
        let noted = sweeping.finish(error.as_deref());
        result?;
        noted?;
        Ok(SweepOutcome::Completed(*counts))
    }

    fn delete_expired(
        &self,
        sweeping: &mut dyn RetentionSweep,
        (cutoff, now): (Timestamp, Timestamp),
        counts: &mut SweepCounts,
        stop: &Receiver<()>,
    ) -> Result<(), RunSweepError> {
        self.call(|| sweeping.drop_detached_partitions())?;
        let plan = Plan::new(&self.call(|| self.repository.partition_days())?, cutoff, now);
        for day in plan.days {
            let begin = self.clock.now();
            let events = self.drop_day(sweeping, day, stop)?;
            log::info!(
                day:% = day, events, ms:? = self.clock.now().since(begin).as_millis();
                "retention: partition dropped"
            );
            counts.partitions += 1;
            counts.dropped += events;
            self.metrics.partitions.fetch_add(1, Ordering::Relaxed);
            self.metrics.events.fetch_add(events, Ordering::Relaxed);
            pause(stop, Duration::ZERO)?;
        }
        let mut after = EventId::floor(0);
        loop {
            let begin = self.clock.now();
            let chunk = self.call(|| sweeping.delete_events(after, plan.row_cutoff, CHUNK_ROWS))?;
            counts.deleted += chunk.rows;
            self.metrics.events.fetch_add(chunk.rows, Ordering::Relaxed);
            let Some(next) = chunk.next else { break };
            after = next;
            pause(stop, self.clock.now().since(begin).min(CHUNK_PAUSE_MAX))?;
        }
        loop {
            let begin = self.clock.now();
            let rows = self.call(|| sweeping.delete_dead_letters(CHUNK_ROWS))?;
            counts.dead += rows;
            self.metrics.dead.fetch_add(rows, Ordering::Relaxed);
            if rows < u64::from(CHUNK_ROWS) {
                break;
            }
            pause(stop, self.clock.now().since(begin).min(CHUNK_PAUSE_MAX))?;
        }
        while self.call(|| sweeping.delete_minute_counts())? {
            pause(stop, Duration::ZERO)?;
        }
        Ok(())
    }

    /// Drops the partition of `day`; retries lock conflicts with running queries.
    fn drop_day(
        &self,
        sweeping: &mut dyn RetentionSweep,
        day: Day,
        stop: &Receiver<()>,
    ) -> Result<u64, RunSweepError> {
        let (mut tries, mut wait) = (1, DETACH_PAUSE);
        loop {
            match self.call(|| sweeping.drop_partition(day)) {
                Err(error) if tries < DETACH_TRIES && is_lock_conflict(&error) => {
                    tries += 1;
                    log::debug!("retention: {error}; trying again");
                    pause(stop, wait)?;
                    wait = DETACH_PAUSE_MAX.min(wait * 2);
                }
                result => return Ok(result?),
            }
        }
    }

    /// Runs `call` unless the breaker is open, and reports the outcome to the breaker.
    fn call<T>(&self, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(open) = self.breaker.admit(self.clock.now()) {
            return Err(StoreError::client_side(open.to_string()));
        }
        let result = call();
        let now = self.clock.now();
        match &result {
            Err(error) if is_outage(error) => self.breaker.record_failure(now),
            Ok(_) | Err(_) => self.breaker.record_success(now),
        }
        result
    }
}

/// Whether the error is an outage of the database. Lock conflicts and statement timeouts are not.
fn is_outage(error: &StoreError) -> bool {
    match error.sqlstate.as_deref() {
        None => true,
        Some("57014") => false,
        Some(code) => ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)),
    }
}

/// Whether the error is a lock timeout or a deadlock.
fn is_lock_conflict(error: &StoreError) -> bool {
    matches!(error.sqlstate.as_deref(), Some("55P03" | "40P01"))
}

/// Waits for `time`; fails if the sender of `stop` is dropped.
fn pause(stop: &Receiver<()>, time: Duration) -> Result<(), RunSweepError> {
    match stop.recv_timeout(time) {
        Ok(()) | Err(RecvTimeoutError::Timeout) => Ok(()),
        Err(RecvTimeoutError::Disconnected) => Err(RunSweepError::Stopped),
    }
}

fn duration_until(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_micros(u64::try_from(then.micros().saturating_sub(now.micros())).unwrap_or(0))
}

fn plus(time: Timestamp, wait: Duration) -> Timestamp {
    Timestamp::from_micros(time.micros().saturating_add(i64::try_from(wait.as_micros()).unwrap_or(i64::MAX)))
}

fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    [one, other].into_iter().flatten().min()
}

impl SweepPreview {
    /// For scripts.
    pub fn json(&self) -> String {
        let partitions =
            self.days.iter().map(|(day, events)| json!({"day": day.to_string(), "events": *events}));
        let cutoff = self.cutoff.to_string();
        json!({"cutoff": cutoff, "partitions": partitions.collect::<Vec<_>>(), "rows": self.rows}).to_string()
    }
}

impl SweepOutcome {
    /// For scripts.
    pub fn json(&self) -> String {
        let (outcome, counts) = match self {
            Self::Completed(counts) => ("completed", counts),
            Self::Stopped(counts) => ("stopped", counts),
            Self::AlreadyRunning => ("already-running", &SweepCounts::default()),
            Self::NotOwner => ("not-owner", &SweepCounts::default()),
        };
        json!({
            "outcome": outcome,
            "partitions": counts.partitions,
            "dropped": counts.dropped,
            "deleted": counts.deleted,
            "dead": counts.dead,
        })
        .to_string()
    }
}

impl fmt::Display for SweepPreview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "events before {} would be deleted", self.cutoff)?;
        for (day, events) in &self.days {
            writeln!(f, "partition of {day}: {events} events")?;
        }
        write!(f, "row by row: {} events", self.rows)
    }
}

#[cfg(test)]
mod tests;
