use super::*;
use crate::event::{ArrivalNumber, EventId, row};
use crate::storage::StorePath;
use crate::storage::memory::{MemoryRepository, RepositoryCall};

/// 2026-01-01T12:00:00Z.
const NOON: Timestamp = Timestamp::from_millis(1_767_268_800_000);
const DAY_MS: i64 = 86_400_000;

struct MaintenanceFixture {
    maintenance: PartitionMaintenance,
    repository: Arc<MemoryRepository>,
    metrics: Arc<PartitionMetrics>,
    clock: Clock,
    schedule: MaintenanceSchedule,
}

impl MaintenanceFixture {
    fn new() -> Self {
        let (repository, metrics) =
            (Arc::new(MemoryRepository::new()), Arc::new(PartitionMetrics::default()));
        let clock = Clock::manual(NOON, 1);
        let maintenance = PartitionMaintenance::new(repository.clone(), metrics.clone(), clock.clone());
        Self { maintenance, repository, metrics, clock, schedule: MaintenanceSchedule::default() }
    }

    /// Stores an event of the day `days` after today.
    fn store(&self, days: i64) {
        let time = Timestamp::from_millis(NOON.millis() + days * DAY_MS);
        let mut bytes = Vec::new();
        let id = EventId::keyed(u64::try_from(time.millis()).unwrap(), [1; 10]);
        row::append_header(&mut bytes, id, time, NOON, ArrivalNumber::default());
        row::append_text(&mut bytes, b"s");
        row::append_text(&mut bytes, b"m");
        row::append_metadata(&mut bytes, None);
        self.repository.store(&[&bytes], &[], StorePath::Copy).unwrap();
    }

    /// Runs the maintenance at its next due time, and returns how long after the last call that is.
    fn next_tick(&mut self) -> Duration {
        let wait = self.schedule.due.since(self.clock.now());
        self.clock.advance(wait);
        self.maintenance.tick(&mut self.schedule);
        wait
    }

    fn created(&self) -> Vec<Day> {
        let created = |call| if let RepositoryCall::CreatePartition(day) = call { Some(day) } else { None };
        self.repository.calls().into_iter().filter_map(created).collect()
    }

    fn default_rows(&self) -> u64 {
        self.metrics.default_rows.load(Ordering::Relaxed)
    }

    fn days_ahead(&self) -> Option<u64> {
        self.metrics.days_ahead(self.clock.wall())
    }
}

fn day(offset: i64) -> Day {
    Day::from_number(Day::from_timestamp(NOON).number() + offset)
}

fn error(sqlstate: &str) -> StoreError {
    StoreError { sqlstate: Some(sqlstate.to_owned()), ..StoreError::client_side("on purpose") }
}

#[test]
fn partitions_are_created_two_weeks_ahead_today_first() {
    let mut fixture = MaintenanceFixture::new();
    assert_eq!(fixture.days_ahead(), None);
    fixture.next_tick();
    let expected: Vec<_> = (0..=14).chain([-1]).map(day).collect();
    assert_eq!(fixture.created(), expected);
    assert_eq!(fixture.days_ahead(), Some(15));
    // Nothing is missing until the next day, which then needs one partition more.
    assert_eq!(fixture.next_tick(), CHECK_INTERVAL);
    assert_eq!(fixture.created().len(), 16);
    fixture.clock.advance(Duration::from_hours(24));
    assert_eq!(fixture.days_ahead(), Some(14));
    fixture.maintenance.tick(&mut fixture.schedule);
    assert_eq!(fixture.created()[16..], [day(15)]);
    assert_eq!(fixture.days_ahead(), Some(15));
    assert_eq!(required_days(Day::from_number(0)).count(), 15, "no day before 1970");
    assert_eq!(required_days(Day::LAST).collect::<Vec<_>>().len(), 2, "no day after the last");
}

#[test]
fn failures_are_retried_with_backoff_and_counted_and_days_left_decrease() {
    let mut fixture = MaintenanceFixture::new();
    fixture.next_tick();
    fixture.clock.advance(Duration::from_hours(12 * 24));
    fixture.repository.set_outage(Some(StoreError::client_side("away")));
    let waits: Vec<_> = (0..12).map(|_| fixture.next_tick()).collect();
    assert_eq!(waits[..3], [Duration::ZERO, RETRY_MIN, 2 * RETRY_MIN]);
    assert_eq!(waits[11], CHECK_INTERVAL, "at most the interval of the checks");
    assert_eq!(fixture.metrics.failures.load(Ordering::Relaxed), 12);
    assert_eq!(fixture.days_ahead(), Some(3), "known without the database");
    fixture.repository.set_outage(None);
    fixture.next_tick();
    assert_eq!(fixture.days_ahead(), Some(15));
    assert_eq!(fixture.next_tick(), CHECK_INTERVAL);
}

#[test]
fn default_partition_is_drained_and_a_day_with_too_many_rows_blocks_no_other() {
    let mut fixture = MaintenanceFixture::new();
    fixture.next_tick();
    for days in [-20, -10, -5] {
        fixture.store(days);
    }
    let limits = |refused: Day| {
        move |day| {
            let moved_rows_max = if day == refused { 0 } else { 10 };
            CreatePartitionLimits { moved_rows_max, locked_max: Duration::ZERO }
        }
    };
    let error = fixture.maintenance.maintain(limits(day(-20))).unwrap_err();
    assert!(error.to_string().starts_with("more than 0 events of 2025-12-12 are in the"), "{error}");
    assert_eq!(fixture.created()[16..], [day(-20), day(-10), day(-5)]);
    let moved = |fixture: &MaintenanceFixture| fixture.metrics.default_moved.load(Ordering::Relaxed);
    assert_eq!((moved(&fixture), fixture.default_rows()), (2, 1));
    fixture.maintenance.maintain(limits(day(-1))).unwrap();
    assert_eq!((moved(&fixture), fixture.default_rows()), (3, 0));
}

#[test]
fn a_failure_of_all_days_is_tried_for_one_day_per_run() {
    let mut fixture = MaintenanceFixture::new();
    fixture.store(-20);
    fixture.store(-10);
    fixture.repository.refuse_partitions(Some(error("42501")));
    fixture.next_tick();
    assert_eq!(fixture.created(), [day(0)], "and nothing is drained");
    assert_eq!((fixture.days_ahead(), fixture.default_rows()), (Some(0), 2));
    fixture.repository.refuse_partitions(None);
    fixture.next_tick();
    assert_eq!((fixture.days_ahead(), fixture.default_rows()), (Some(15), 0));
    fixture.store(-21);
    fixture.store(-11);
    fixture.repository.refuse_partitions(Some(error("55P03")));
    let before = fixture.created().len();
    fixture.next_tick();
    assert_eq!(fixture.created()[before..], [day(-21)]);
    assert_eq!((fixture.days_ahead(), fixture.default_rows()), (Some(15), 2));
}

#[test]
fn requested_days_are_created_and_a_failure_is_retried_with_the_backoff_of_the_runs() {
    let mut fixture = MaintenanceFixture::new();
    fixture.next_tick();
    let request = |days: &[i64]| PartitionRequest::for_test(days.iter().copied().map(day).collect());
    fixture.maintenance.create_requested(&request(&[-20, -30]), &mut fixture.schedule);
    assert_eq!(fixture.created()[16..], [day(-20), day(-30)]);
    assert_eq!(fixture.schedule.due.since(fixture.clock.now()), CHECK_INTERVAL);
    fixture.repository.refuse_partitions(Some(error("55P03")));
    fixture.store(-25);
    fixture.maintenance.create_requested(&request(&[-25, -26]), &mut fixture.schedule);
    assert_eq!(fixture.created()[18..], [day(-25)], "a lock affects all days");
    assert_eq!(fixture.next_tick(), RETRY_MIN);
    // Further requests neither hasten nor delay the next run.
    fixture.maintenance.create_requested(&request(&[-25]), &mut fixture.schedule);
    assert_eq!(fixture.next_tick(), 2 * RETRY_MIN);
    fixture.repository.refuse_partitions(None);
    fixture.next_tick();
    assert_eq!((fixture.default_rows(), fixture.days_ahead()), (0, Some(15)));
}

#[test]
fn command_moves_any_number_of_rows_but_of_yesterday_and_today() {
    let limits = command_limits(NOON);
    assert_eq!([-40, -2, 1, 14].map(|offset| limits(day(offset))), [UNLIMITED; 4]);
    assert_eq!([-1, 0].map(|offset| limits(day(offset))), [ONLINE; 2]);
}
