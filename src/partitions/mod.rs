//! Partition maintenance: creates the partitions of the coming days long before they are needed,
//! those of late days when a batch requests them, and drains the default partition into the
//! partitions of its days.
//!
//! It runs on a thread and a connection of its own, so a lock or a missing permission delays
//! nothing else: meanwhile the writer stores events of such days in the default partition. It does
//! not report to the breaker, since batches and queries succeed while it fails, and does not ask
//! it, since a missing partition may be the reason why the breaker is open.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, select};

use crate::clock::{Clock, Moment};
use crate::event::Timestamp;
use crate::lifecycle::{Lifecycle, LifecyclePhase};
use crate::logging::RateLimitedLog;
use crate::metrics::PartitionMetrics;
use crate::storage::{
    CreatePartitionLimits, CreatePartitionOutcome, Day, EventRepository, PartitionRequest, StoreError,
};

/// Days before and after today that have a partition. Events may be late by a day; a lock that lasts
/// a week, or a job that fails for a week, leaves another week for a repair.
const DAYS_BEFORE: i64 = 1;
const DAYS_AFTER: i64 = 14;
/// With fewer days left, a role that may not create partitions warns too. The alert
/// `AurorePartitionsRunOut` has the same bound.
const DAYS_LEFT_MIN: u64 = 7;

/// Interval of checking the partitions and draining the default partition.
const CHECK_INTERVAL: Duration = Duration::from_mins(1);
/// Delays after consecutive failures: doubled from the first up to the check's interval.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Interval of looking whether the writer has migrated the database, at the start.
const STARTING_INTERVAL: Duration = Duration::from_millis(20);
/// A lock may be held for hours: the reason is logged again after this time.
const LOG_INTERVAL: Duration = Duration::from_mins(10);

/// The bounds while servers run: moving 200,000 rows takes 1.4 s, and attaching a partition scans the
/// default partition, 0.3 s per million rows. A batch waits 5 s for a lock, so no batch fails.
pub const ONLINE: CreatePartitionLimits =
    CreatePartitionLimits { moved_rows_max: 200_000, locked_max: Duration::from_secs(3) };
/// The bounds of the command `migrate`: it moves any number of rows, and scans as many.
pub const UNLIMITED: CreatePartitionLimits =
    CreatePartitionLimits { moved_rows_max: u64::MAX, locked_max: Duration::from_mins(10) };

/// Why partitions are missing or the default partition has rows.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MaintainPartitionsError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error(
        "more than {rows} events of {day} are in the default partition; `aurore-events migrate` moves them \
         when the day is over"
    )]
    TooManyRows { day: Day, rows: u64 },
}

impl MaintainPartitionsError {
    fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Store(error) => error.sqlstate.as_deref(),
            Self::TooManyRows { .. } => None,
        }
    }

    /// Whether another session held a lock for too long.
    pub fn is_lock_conflict(&self) -> bool {
        matches!(self.sqlstate(), Some("55P03" | "40P01"))
    }

    /// False when other days may succeed: moving the rows of this one takes too long.
    fn affects_all_days(&self) -> bool {
        match self {
            Self::Store(error) => error.sqlstate.as_deref() != Some("57014"),
            Self::TooManyRows { .. } => false,
        }
    }
}

/// Creates partitions and drains the default partition.
#[derive(Debug)]
pub struct PartitionMaintenance {
    repository: Arc<dyn EventRepository>,
    metrics: Arc<PartitionMetrics>,
    clock: Clock,
    failure_log: RateLimitedLog,
    /// A warning was logged since the last success.
    warned: bool,
    /// The missing permission was logged.
    permission_logged: bool,
}

/// When to run next.
#[derive(Debug, Default)]
struct MaintenanceSchedule {
    due: Moment,
    failures: u32,
}

impl MaintenanceSchedule {
    fn succeeded(&mut self, now: Moment) {
        *self = Self { due: now.plus(CHECK_INTERVAL), failures: 0 };
    }

    fn failed(&mut self, now: Moment) {
        let delay = RETRY_MIN.saturating_mul(1 << self.failures.min(16)).min(CHECK_INTERVAL);
        *self = Self { due: now.plus(delay), failures: self.failures.saturating_add(1) };
    }
}

impl PartitionMaintenance {
    pub fn new(repository: Arc<dyn EventRepository>, metrics: Arc<PartitionMetrics>, clock: Clock) -> Self {
        Self {
            repository,
            metrics,
            clock,
            failure_log: RateLimitedLog::new(LOG_INTERVAL),
            warned: false,
            permission_logged: false,
        }
    }

    /// The body of the thread. Runs until the sender of `stop` is dropped.
    pub fn run(&mut self, lifecycle: &Lifecycle, stop: &Receiver<()>) {
        let requests = self.repository.partition_requests();
        let mut schedule = MaintenanceSchedule::default();
        loop {
            // The writer migrates the database before it stores the first event.
            let is_starting = lifecycle.phase() == LifecyclePhase::Starting;
            let wait = if is_starting { STARTING_INTERVAL } else { schedule.due.since(self.clock.now()) };
            select! {
                recv(stop) -> _ => return,
                recv(requests) -> request => {
                    let request = request.expect("BUG: the repository has dropped its sender of requests");
                    self.create_requested(&request, &mut schedule);
                }
                default(wait) => if !is_starting {
                    self.tick(&mut schedule);
                }
            }
        }
    }

    /// Creates the partitions that a batch waits for. After a failure the next run is due soon, since
    /// rows of the day are entering the default partition, unless runs are failing already.
    fn create_requested(&mut self, request: &PartitionRequest, schedule: &mut MaintenanceSchedule) {
        for day in &request.days {
            if let Err(error) = self.create(*day, ONLINE) {
                self.report(&error);
                if schedule.failures == 0 {
                    schedule.failed(self.clock.now());
                }
                if error.affects_all_days() {
                    return;
                }
            }
        }
    }

    /// Runs the maintenance if it is due.
    fn tick(&mut self, schedule: &mut MaintenanceSchedule) {
        if self.clock.now() < schedule.due {
            return;
        }
        match self.maintain(|_| ONLINE) {
            Ok(()) => {
                self.report_success();
                schedule.succeeded(self.clock.now());
            }
            Err(error) => {
                self.report(&error);
                schedule.failed(self.clock.now());
            }
        }
    }

    /// Creates the missing partitions of the days around today and drains the default partition.
    /// Returns the first failure; the rest was done as far as possible.
    pub fn maintain(
        &self,
        limits: impl Fn(Day) -> CreatePartitionLimits,
    ) -> Result<(), MaintainPartitionsError> {
        let today = Day::from_timestamp(self.clock.wall());
        let mut days: BTreeSet<Day> = self.repository.partition_days()?.into_iter().collect();
        let created = self.create_required(today, &mut days, &limits);
        self.metrics.set_first_missing(first_missing(today, &days));
        let drained = self.drain_default(created.is_ok(), &limits);
        created.and(drained)
    }

    /// Stops at the first failure, since its cause affects all days.
    fn create_required(
        &self,
        today: Day,
        days: &mut BTreeSet<Day>,
        limits: &impl Fn(Day) -> CreatePartitionLimits,
    ) -> Result<(), MaintainPartitionsError> {
        for day in required_days(today) {
            if !days.contains(&day) && self.create(day, limits(day))? {
                days.insert(day);
            }
        }
        Ok(())
    }

    /// Creates a partition for each day that has rows in the default partition, if `create` is set,
    /// and records the number of rows that remain.
    fn drain_default(
        &self,
        create: bool,
        limits: &impl Fn(Day) -> CreatePartitionLimits,
    ) -> Result<(), MaintainPartitionsError> {
        let found = self.repository.default_partition()?;
        let mut result = Ok(());
        let mut moved = false;
        for day in found.days.into_iter().filter(|_| create) {
            match self.create(day, limits(day)) {
                Ok(created) => moved |= created,
                Err(error) => {
                    let affects_all = error.affects_all_days();
                    result = result.and(Err(error));
                    if affects_all {
                        break;
                    }
                }
            }
        }
        let rows = if moved { self.repository.default_partition()?.rows } else { found.rows };
        self.metrics.default_rows.store(rows, Ordering::Relaxed);
        result
    }

    /// Creates the partition of `day`. Returns whether it exists now.
    fn create(&self, day: Day, limits: CreatePartitionLimits) -> Result<bool, MaintainPartitionsError> {
        match self.repository.create_partition(day, limits)? {
            CreatePartitionOutcome::Created { moved } => {
                self.metrics.default_moved.fetch_add(moved, Ordering::Relaxed);
                Ok(true)
            }
            CreatePartitionOutcome::Exists => Ok(true),
            CreatePartitionOutcome::NameTaken => Ok(false),
            CreatePartitionOutcome::TooManyRows => {
                Err(MaintainPartitionsError::TooManyRows { rows: limits.moved_rows_max, day })
            }
        }
    }

    fn report_success(&mut self) {
        if std::mem::take(&mut self.warned) {
            log::info!(days_left = self.days_left(); "the partitions are complete again");
        }
    }

    /// Counts and logs a failure. A role that may only read and write rows is a supported
    /// deployment: its failures are warnings only when few days are left.
    fn report(&mut self, error: &MaintainPartitionsError) {
        self.metrics.failures.fetch_add(1, Ordering::Relaxed);
        let sqlstate = error.sqlstate().unwrap_or("none");
        let days_left = self.days_left();
        if sqlstate == "42501" && days_left >= DAYS_LEFT_MIN {
            if !std::mem::replace(&mut self.permission_logged, true) {
                log::info!(
                    days_left;
                    "this role may not create partitions; the owner of the tables must run \
                     `aurore-events migrate` every day: {error}"
                );
            }
            return;
        }
        self.warned = true;
        if let Some(suppressed) = self.failure_log.due(self.clock.now()) {
            log::warn!(
                sqlstate, days_left, suppressed;
                "preparing partitions failed; there are partitions for {days_left} days, and events of \
                 other days enter the default partition; retrying: {error}"
            );
        }
    }

    /// The days from today on that have a partition; zero while unknown.
    fn days_left(&self) -> u64 {
        self.metrics.days_ahead(self.clock.wall()).unwrap_or(0)
    }
}

/// The days around `today` that need a partition, the most urgent first.
fn required_days(today: Day) -> impl Iterator<Item = Day> {
    let days = (0..=DAYS_AFTER).chain((1..=DAYS_BEFORE).map(|back| -back));
    days.map(move |offset| today.number() + offset)
        .filter(|day| (0..=Day::LAST.number()).contains(day))
        .map(Day::from_number)
}

/// The first day from `today` on without a partition.
fn first_missing(today: Day, days: &BTreeSet<Day>) -> Day {
    let mut day = today;
    while days.contains(&day) && day < Day::LAST {
        day = Day::from_number(day.number() + 1);
    }
    day
}

/// The bounds of the command `migrate`. Events of yesterday and today may be coming in now, and moving
/// many of them would make their batches wait.
pub fn command_limits(now: Timestamp) -> impl Fn(Day) -> CreatePartitionLimits {
    let today = Day::from_timestamp(now).number();
    move |day| if (today - 1..=today).contains(&day.number()) { ONLINE } else { UNLIMITED }
}
