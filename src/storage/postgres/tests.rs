//! Tests of `PostgresRepository` against a real PostgreSQL.

mod counts;
mod embedded;
mod faults;
mod network;
mod order;
mod plans;
mod queries;
mod schema;
mod session;
mod store;
mod sweeps;
mod tls;

use std::time::Duration;

use super::test_database::TestDatabase;
use crate::event::row;
use crate::event::{ArrivalNumber, EventId, Timestamp};
use crate::storage::{
    CreatePartitionLimits, CreatePartitionOutcome, Day, EventRepository as _, StorePath, Stored,
};

/// 2026-01-01T12:00:00Z, in milliseconds.
const NOON: u64 = 1_767_268_800_000;

fn now() -> Timestamp {
    Timestamp::from_micros(i64::try_from(NOON * 1000).unwrap())
}

fn id(millis: u64, tail: u8) -> EventId {
    EventId::keyed(millis, [tail; 10])
}

/// An encoded event. `tail` is its number of arrival.
fn event(micros: u64, tail: u8, service: &str, message: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let arrival = ArrivalNumber::from_nanos(i64::from(tail));
    let timestamp = Timestamp::from_micros(i64::try_from(micros).unwrap());
    row::append_header(&mut bytes, id(micros / 1000, tail), timestamp, now(), arrival);
    row::append_text(&mut bytes, service.as_bytes());
    row::append_text(&mut bytes, message.as_bytes());
    row::append_metadata(&mut bytes, Some(br#"{"k": 1}"#));
    bytes
}

fn prepared() -> (TestDatabase, super::PostgresRepository) {
    let database = TestDatabase::new();
    let repository = database.repository();
    repository.prepare().unwrap();
    create_partitions(&repository, now());
    (database, repository)
}

const LIMITS: CreatePartitionLimits =
    CreatePartitionLimits { moved_rows_max: 200_000, locked_max: Duration::from_secs(30) };

/// Creates a partition and tries again while others hold locks.
fn create_partition(repository: &super::PostgresRepository, day: Day) -> CreatePartitionOutcome {
    loop {
        match repository.create_partition(day, LIMITS) {
            Err(error) if matches!(error.sqlstate.as_deref(), Some("55P03" | "40P01")) => {}
            result => return result.unwrap(),
        }
    }
}

/// Creates the partitions from the day before `time` to a week after it.
fn create_partitions(repository: &super::PostgresRepository, time: Timestamp) {
    let today = Day::from_timestamp(time).number();
    for day in today - 1..=today + 7 {
        create_partition(repository, Day::from_number(day));
    }
}

/// Moves all rows out of the default partition and returns their number.
fn drain(repository: &super::PostgresRepository) -> u64 {
    let days = repository.default_partition().unwrap().days;
    days.into_iter()
        .map(|day| match create_partition(repository, day) {
            CreatePartitionOutcome::Created { moved } => moved,
            CreatePartitionOutcome::Exists
            | CreatePartitionOutcome::NameTaken
            | CreatePartitionOutcome::TooManyRows => 0,
        })
        .sum()
}

#[track_caller]
fn store(repository: &super::PostgresRepository, runs: &[&[u8]], path: StorePath, expected: (u64, u64)) {
    let stored = repository.store(runs, &[], path).unwrap();
    assert_eq!(stored, Stored { stored: expected.0, duplicate: expected.1, dead: 0, commit: stored.commit });
}
