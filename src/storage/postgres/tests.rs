//! Tests of `PostgresRepository` against a real PostgreSQL.

mod counts;
mod embedded;
mod faults;
mod network;
mod plans;
mod queries;
mod schema;
mod session;
mod store;
mod sweeps;
mod tls;

use super::test_database::TestDatabase;
use crate::event::row;
use crate::event::{EventId, Timestamp};
use crate::storage::{EventRepository as _, StorePath, Stored};

/// 2026-01-01T12:00:00Z, in milliseconds.
const NOON: u64 = 1_767_268_800_000;

fn now() -> Timestamp {
    Timestamp::from_micros(i64::try_from(NOON * 1000).unwrap())
}

fn id(millis: u64, tail: u8) -> EventId {
    EventId::keyed(millis, [tail; 10])
}

/// An encoded event.
fn event(micros: u64, tail: u8, service: &str, message: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let timestamp = Timestamp::from_micros(i64::try_from(micros).unwrap());
    row::append_header(&mut bytes, id(micros / 1000, tail), timestamp, now());
    row::append_text(&mut bytes, service.as_bytes());
    row::append_text(&mut bytes, message.as_bytes());
    row::append_metadata(&mut bytes, Some(br#"{"k": 1}"#));
    bytes
}

fn prepared() -> (TestDatabase, super::PostgresRepository) {
    let database = TestDatabase::new();
    let repository = database.repository();
    repository.prepare(now()).unwrap();
    (database, repository)
}

#[track_caller]
fn store(repository: &super::PostgresRepository, runs: &[&[u8]], path: StorePath, expected: (u64, u64)) {
    let stored = repository.store(runs, &[], path).unwrap();
    assert_eq!(stored, Stored { stored: expected.0, duplicate: expected.1, dead: 0 });
}
