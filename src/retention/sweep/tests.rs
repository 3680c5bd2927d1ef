use crossbeam::channel::{Sender, bounded};

use super::*;
use crate::event::{ArrivalNumber, row};
use crate::storage::memory::{InjectedFault, MemoryRepository, RepositoryCall};
use crate::storage::{BreakerLimits, StorePath, SweepConditions};

/// 2026-01-01T12:00:00Z.
const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000);
const DAY_MS: i64 = 86_400_000;

struct SweepFixture {
    retention: RetentionSweeper,
    repository: Arc<MemoryRepository>,
    stop: Receiver<()>,
    stopper: Sender<()>,
}

/// A retention of 30 days, and one event at noon of each of the last 40 days.
fn sweep_fixture() -> SweepFixture {
    let repository = Arc::new(MemoryRepository::new());
    let mut rows = Vec::new();
    for days in 0..40 {
        let time = Timestamp::from_millis(NOON.millis() - days * DAY_MS);
        let millis = u64::try_from(time.millis()).unwrap();
        row::append_header(&mut rows, EventId::keyed(millis, [1; 10]), time, NOON, ArrivalNumber::default());
        row::append_text(&mut rows, b"s");
        row::append_text(&mut rows, b"m");
        row::append_metadata(&mut rows, None);
    }
    repository.store(&[&rows], &[], StorePath::Copy).unwrap();
    repository.create_all_partitions();
    let clock = Clock::manual(plus(NOON, Duration::from_secs(1)), 1);
    repository.set_sweep_conditions(conditions(clock.wall()));
    let (stopper, stop) = bounded(0);
    let retention = RetentionSweeper {
        repository: repository.clone(),
        breaker: Arc::new(Breaker::new(BreakerLimits::default())),
        metrics: Arc::default(),
        clock,
        schedule: Schedule::default(),
        days: 30,
    };
    SweepFixture { retention, repository, stop, stopper }
}

/// The conditions of the owner of the tables, with this clock of the database.
fn conditions(database_time: Timestamp) -> SweepConditions {
    SweepConditions { database_time, is_owner: true }
}

fn lock_timeout() -> StoreError {
    StoreError { sqlstate: Some("55P03".to_owned()), ..StoreError::client_side("a lock") }
}

#[test]
fn sweep_drops_whole_days_and_deletes_other_rows_before_the_cutoff() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    let preview = retention.preview().unwrap();
    assert_eq!((preview.days.len(), preview.rows), (9, 1));
    assert_eq!(repository.events().len(), 40, "the preview is read-only");
    let swept = SweepCounts { partitions: 9, dropped: 9, deleted: 1, dead: 0 };
    assert_eq!(retention.sweep(&stop).unwrap(), SweepOutcome::Completed(swept));
    assert_eq!(repository.events().len(), 30);
    assert_eq!(retention.sweep(&stop).unwrap(), SweepOutcome::Completed(SweepCounts::default()));
    let metrics = &retention.metrics;
    assert_eq!((metrics.runs.load(Ordering::Relaxed), metrics.events.load(Ordering::Relaxed)), (2, 10));
}

#[test]
fn sweeper_sweeps_when_due_and_retries_after_a_failure() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    let due = retention.tick(None, &stop);
    assert_eq!(due.unwrap().to_string(), "2026-01-02T02:00:00.000000Z");
    assert_eq!(repository.events().len(), 40);
    retention.clock.advance(Duration::from_hours(14));
    repository.set_sweep_conditions(conditions(retention.clock.wall()));
    repository.inject_faults([InjectedFault::Fail(StoreError::client_side("away"))]);
    let due = retention.tick(due, &stop);
    assert_eq!(due.unwrap().to_string(), "2026-01-02T02:05:01.000000Z");
    assert_eq!(retention.metrics.failures.load(Ordering::Relaxed), 1);
    retention.clock.advance(FAILED_SWEEP_RETRY);
    let due = retention.tick(due, &stop);
    assert_eq!(due.unwrap().to_string(), "2026-01-03T02:00:00.000000Z");
    assert_eq!(repository.events().len(), 30);
    // The wall clock is set back.
    retention.clock.set_wall(NOON);
    assert_eq!(retention.tick(due, &stop).unwrap().to_string(), "2026-01-02T02:00:00.000000Z");
}

#[test]
fn sweep_refuses_clocks_that_disagree_and_deletes_nothing() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    let month = Duration::from_hours(45 * 24);
    // The clock of the server is wrong, then that of the database, by a month and by ten minutes.
    for (local, database) in
        [(month, 0), (Duration::from_mins(10), 0), (Duration::ZERO, 45), (Duration::ZERO, -45)]
    {
        retention.clock.set_wall(plus(NOON, local));
        repository
            .set_sweep_conditions(conditions(Timestamp::from_millis(NOON.millis() + database * DAY_MS)));
        let before = retention.metrics.failures.load(Ordering::Relaxed);
        let error = retention.sweep(&stop).unwrap_err();
        assert!(error.to_string().contains("differ by more than 300 s"), "{error}");
        assert!(matches!(retention.preview(), Err(SweepError::Clocks(_))));
        assert_eq!(retention.metrics.failures.load(Ordering::Relaxed), before + 1);
    }
    assert_eq!(repository.events().len(), 40);
    assert!(!repository.calls().contains(&RepositoryCall::Sweep), "no sweep began");
    assert_eq!(retention.breaker.transitions(), 0, "a wrong clock is no outage");
}

#[test]
fn sweep_uses_the_earlier_one_of_two_clocks_that_agree() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    // The event of 30 days ago is one second past the retention by one clock only.
    for (local, database) in [(1, -1), (-1, 1)] {
        let at = |seconds: i64| Timestamp::from_millis(NOON.millis() + seconds * 1000);
        retention.clock.set_wall(at(local));
        repository.set_sweep_conditions(conditions(at(database)));
        assert_eq!(retention.preview().unwrap().rows, 0);
        retention.sweep(&stop).unwrap();
        assert_eq!(repository.events().len(), 31);
    }
}

#[test]
fn sweep_of_a_role_that_is_not_the_owner_deletes_nothing_and_is_no_failure() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    repository
        .set_sweep_conditions(SweepConditions { is_owner: false, ..conditions(retention.clock.wall()) });
    assert_eq!(retention.sweep(&stop).unwrap(), SweepOutcome::NotOwner);
    assert_eq!(repository.events().len(), 40);
    let metrics = &retention.metrics;
    assert_eq!((metrics.runs.load(Ordering::Relaxed), metrics.failures.load(Ordering::Relaxed)), (0, 0));
}

#[test]
fn drop_day_retries_lock_conflicts() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    let fault = || InjectedFault::Fail(lock_timeout());
    let error = {
        repository.inject_faults([fault()]);
        retention.sweep(&stop).unwrap_err()
    };
    assert_eq!(error.sqlstate(), Some("55P03"), "only drop_day retries");
    let mut sweeping = repository.begin_sweep(NOON).unwrap().unwrap();
    repository.inject_faults([fault(), fault()]);
    let day = Day::from_timestamp(NOON);
    assert!(matches!(retention.drop_day(&mut *sweeping, day, &stop), Ok(1)));
    assert_eq!(retention.breaker.transitions(), 0, "a lock conflict is no outage");
}

#[test]
fn sweep_failures_open_the_breaker_and_an_open_breaker_stops_sweeps() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    repository.set_outage(Some(StoreError::client_side("away")));
    for _ in 0..7 {
        retention.sweep(&stop).unwrap_err();
    }
    let tries = repository.calls().iter().filter(|call| **call == RepositoryCall::SweepConditions).count();
    assert_eq!(tries, 5, "the fifth failure opens the breaker");
}

#[test]
fn sweep_stops_between_two_steps() {
    let SweepFixture { retention, repository, stop, stopper } = sweep_fixture();
    drop(stopper);
    let swept = SweepCounts { partitions: 1, dropped: 1, deleted: 0, dead: 0 };
    assert_eq!(retention.sweep(&stop).unwrap(), SweepOutcome::Stopped(swept));
    assert_eq!(repository.events().len(), 39);
    retention.run(&stop);
}

#[test]
fn missed_sweep_is_made_up_for() {
    let SweepFixture { retention, repository, stop, stopper: _stopper } = sweep_fixture();
    assert_eq!(
        retention.first_due().unwrap().to_string(),
        "2026-01-02T02:00:00.000000Z",
        "no sweep is recorded"
    );
    repository.set_last_sweep(Timestamp::from_millis(NOON.millis() - 2 * DAY_MS));
    let due = retention.first_due();
    assert_eq!(due.unwrap().to_string(), "2025-12-31T02:00:00.000000Z");
    assert_eq!(retention.tick(due, &stop).unwrap().to_string(), "2026-01-02T02:00:00.000000Z");
    assert_eq!(repository.events().len(), 30);
    repository.set_last_sweep(Timestamp::from_millis(NOON.millis() - DAY_MS / 12));
    assert_eq!(
        retention.first_due().unwrap().to_string(),
        "2026-01-02T02:00:00.000000Z",
        "nothing was missed"
    );
    repository.set_outage(Some(StoreError::client_side("away")));
    assert_eq!(retention.first_due(), None, "retried later");
}
