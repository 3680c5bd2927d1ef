use crossbeam::channel::{Sender, bounded};

use super::*;
use crate::event::row;
use crate::storage::memory::{Call, Fault, MemoryRepository};
use crate::storage::{BreakerLimits, StorePath};

/// 2026-01-01T12:00:00Z.
const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000);
const DAY_MS: i64 = 86_400_000;

struct World {
    retention: Retention,
    repository: Arc<MemoryRepository>,
    stop: Receiver<()>,
    stopper: Sender<()>,
}

/// Events are kept for 30 days; there is one at noon of each of the last 40.
fn world() -> World {
    let repository = Arc::new(MemoryRepository::new());
    let mut rows = Vec::new();
    for days in 0..40 {
        let time = Timestamp::from_millis(NOON.millis() - days * DAY_MS);
        let millis = u64::try_from(time.millis()).unwrap();
        row::begin(&mut rows, EventId::keyed(millis, [1; 10]), time, NOON);
        row::text(&mut rows, b"s");
        row::text(&mut rows, b"m");
        row::metadata(&mut rows, None);
    }
    repository.store(&[&rows], &[], StorePath::Copy).unwrap();
    let (stopper, stop) = bounded(0);
    let retention = Retention {
        repository: repository.clone(),
        breaker: Arc::new(Breaker::new(BreakerLimits::default())),
        figures: Arc::default(),
        clock: Clock::manual(plus(NOON, Duration::from_secs(1)), 1),
        schedule: Schedule::default(),
        days: 30,
    };
    World { retention, repository, stop, stopper }
}

fn lock_timeout() -> StoreError {
    StoreError { sqlstate: Some("55P03".to_owned()), ..StoreError::unreachable("a lock") }
}

#[test]
fn whole_days_go_and_of_the_rest_what_is_before_the_edge() {
    let World { retention, repository, stop, stopper: _stopper } = world();
    let preview = retention.preview().unwrap();
    assert_eq!((preview.days.len(), preview.rest), (9, 1));
    assert_eq!(repository.events().len(), 40, "looking changes nothing");
    let swept = Swept { partitions: 9, dropped: 9, deleted: 1, dead: 0 };
    assert_eq!(retention.sweep(&stop).unwrap(), SweepEnd::Done(swept));
    assert_eq!(repository.events().len(), 30);
    assert_eq!(retention.sweep(&stop).unwrap(), SweepEnd::Done(Swept::default()));
    let figures = &retention.figures;
    assert_eq!((figures.runs.load(Ordering::Relaxed), figures.events.load(Ordering::Relaxed)), (2, 10));
}

#[test]
fn it_sweeps_when_it_is_due_and_again_soon_when_it_failed() {
    let World { retention, repository, stop, stopper: _stopper } = world();
    let due = retention.tick(None, &stop);
    assert_eq!(due.unwrap().to_string(), "2026-01-02T02:00:00.000000Z");
    assert_eq!(repository.events().len(), 40);
    retention.clock.advance(Duration::from_hours(14));
    repository.meet([Fault::Fail(StoreError::unreachable("away"))]);
    let due = retention.tick(due, &stop);
    assert_eq!(due.unwrap().to_string(), "2026-01-02T02:05:01.000000Z");
    assert_eq!(retention.figures.failures.load(Ordering::Relaxed), 1);
    retention.clock.advance(RETRY);
    let due = retention.tick(due, &stop);
    assert_eq!(due.unwrap().to_string(), "2026-01-03T02:00:00.000000Z");
    assert_eq!(repository.events().len(), 30);
    // The clock was wrong by a month, and is put right.
    retention.clock.set_wall(NOON);
    assert_eq!(retention.tick(due, &stop).unwrap().to_string(), "2026-01-02T02:00:00.000000Z");
}

#[test]
fn a_query_in_the_way_of_a_partition_is_waited_out() {
    let World { retention, repository, stop, stopper: _stopper } = world();
    let fault = || Fault::Fail(lock_timeout());
    let error = {
        repository.meet([fault()]);
        retention.sweep(&stop).unwrap_err()
    };
    assert_eq!(error.sqlstate.as_deref(), Some("55P03"), "only a partition is tried for again");
    let mut sweeping = repository.sweep(NOON).unwrap().unwrap();
    repository.meet([fault(), fault()]);
    let day = Day::of(NOON);
    assert!(matches!(retention.drop_day(&mut *sweeping, day, &stop), Ok(1)));
    assert_eq!(retention.breaker.transitions(), 0, "locks are no outage");
}

#[test]
fn an_open_breaker_keeps_it_away_and_its_failures_open_it() {
    let World { retention, repository, stop, stopper: _stopper } = world();
    repository.set_outage(Some(StoreError::unreachable("away")));
    for _ in 0..7 {
        retention.sweep(&stop).unwrap_err();
    }
    let tries = repository.calls().iter().filter(|call| **call == Call::Sweep).count();
    assert_eq!(tries, 5, "the breaker opened at the fifth");
}

#[test]
fn told_to_stop_it_ends_between_two_steps() {
    let World { retention, repository, stop, stopper } = world();
    drop(stopper);
    let swept = Swept { partitions: 1, dropped: 1, deleted: 0, dead: 0 };
    assert_eq!(retention.sweep(&stop).unwrap(), SweepEnd::Stopped(swept));
    assert_eq!(repository.events().len(), 39);
    retention.run(&stop);
}

#[test]
fn a_sweep_that_was_missed_is_made_up_for() {
    let World { retention, repository, stop, stopper: _stopper } = world();
    assert_eq!(retention.first_due().unwrap().to_string(), "2026-01-02T02:00:00.000000Z", "none was before");
    repository.set_swept(Timestamp::from_millis(NOON.millis() - 2 * DAY_MS));
    let due = retention.first_due();
    assert_eq!(due.unwrap().to_string(), "2025-12-31T02:00:00.000000Z");
    assert_eq!(retention.tick(due, &stop).unwrap().to_string(), "2026-01-02T02:00:00.000000Z");
    assert_eq!(repository.events().len(), 30);
    repository.set_swept(Timestamp::from_millis(NOON.millis() - DAY_MS / 12));
    assert_eq!(
        retention.first_due().unwrap().to_string(),
        "2026-01-02T02:00:00.000000Z",
        "nothing was missed"
    );
    repository.set_outage(Some(StoreError::unreachable("away")));
    assert_eq!(retention.first_due(), None, "asked again");
}
