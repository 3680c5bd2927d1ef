//! The checker of all fault tests: compares the acknowledged events with the rows of the tables.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aurore_events::event::Timestamp;
use aurore_events::event::row::Row;

use super::events::EventFields;
use super::postgres::Postgres;
use super::producer::ProducerRecord;
use super::server::{Server, metric};
use super::wait::{WAIT_MAX, until_within};

/// Waits until no event is buffered, then checks that the ledger balances.
#[track_caller]
pub(crate) fn wait_for_drain(server: &Server) {
    wait_for_drain_within(WAIT_MAX, server);
}

#[track_caller]
pub(crate) fn wait_for_drain_within(timeout: Duration, server: &Server) {
    until_within(timeout, "no event is buffered", || server.metric("events_buffered") == 0);
    let page = server.metrics();
    let counter = |name: &str| metric(&page, name);
    assert_eq!(
        counter("events_received_total"),
        counter("events_stored_total")
            + counter("events_duplicate_total")
            + counter("events_dead_total")
            + counter("events_buffered"),
        "the ledger does not balance (received = stored + duplicate + dead + buffered):\n{page}"
    );
}

/// The result of a comparison.
#[derive(Debug)]
pub(crate) struct CheckResult {
    pub(crate) acknowledged: usize,
    /// Ids that were acknowledged and are not stored with the message that was sent.
    pub(crate) lost: Vec<String>,
    /// The number of rows whose message or id is stored more than once.
    pub(crate) duplicated: usize,
    /// The number of stored rows that were never sent with this message, service, time and
    /// metadata.
    pub(crate) unexpected: usize,
}

impl CheckResult {
    pub(crate) fn of(record: &ProducerRecord, postgres: &Postgres) -> Self {
        let mut messages_by_id: HashMap<String, String> = HashMap::new();
        let mut messages: HashSet<String> = HashSet::new();
        let (mut duplicated, mut unexpected) = (0, 0);
        for (id, message, fields) in stored_events(postgres) {
            unexpected += usize::from(record.sent.get(&message) != Some(&fields));
            let fresh = messages.insert(message.clone());
            let known = messages_by_id.insert(id, message).is_some();
            duplicated += usize::from(known || !fresh);
        }
        let is_lost = |(id, message): &(&String, &String)| messages_by_id.get(*id) != Some(message);
        let lost = record.acknowledged.iter().filter(is_lost).map(|(id, _)| id.clone()).collect();
        Self { acknowledged: record.acknowledged.len(), lost, duplicated, unexpected }
    }
}

/// Asserts that each acknowledged event is stored as it was sent, that none is stored twice, and
/// that no other event is stored.
#[track_caller]
pub(crate) fn check_stored(record: &ProducerRecord, postgres: &Postgres) {
    let result = CheckResult::of(record, postgres);
    assert_eq!(result.unexpected, 0, "events are stored that were never sent");
    assert_eq!(result.duplicated, 0, "events are stored twice");
    assert!(
        result.lost.is_empty(),
        "{} of {} acknowledged events are lost, such as {:?}",
        result.lost.len(),
        result.acknowledged,
        result.lost.first()
    );
}

/// Asserts that the counters of the server equal the numbers of rows. Holds for one process that
/// started with empty tables, if the producer sends no event twice: then a duplicate is an event
/// whose COMMIT got no reply.
#[track_caller]
pub(crate) fn check_ledger(server: &Server, postgres: &Postgres) {
    let page = server.metrics();
    let counter = |name: &str| i64::try_from(metric(&page, name)).expect("counters are small here");
    assert_eq!(
        counter("events_stored_total") + counter("events_duplicate_total"),
        postgres.stored(),
        "the ledger and the table differ"
    );
    assert_eq!(counter("events_dead_total"), postgres.dead(), "the ledger and the dead letters differ");
}

/// Id, message and the other fields of every event in the tables.
#[track_caller]
fn stored_events(postgres: &Postgres) -> Vec<(String, String, EventFields)> {
    let stored = postgres.rows(
        "SELECT event_id::text, message, (extract(epoch FROM timestamp) * 1000000)::bigint, service, \
         metadata::text FROM events",
    );
    let fields = |row: &::postgres::Row| EventFields {
        time: Timestamp::from_micros(row.get(2)),
        service: row.get(3),
        metadata: row.get(4),
    };
    let mut all: Vec<_> = stored.iter().map(|row| (row.get(0), row.get(1), fields(row))).collect();
    for dead in postgres.rows("SELECT event_id::text, row FROM dead_events") {
        let bytes: Vec<u8> = dead.get(1);
        let (row, rest) = Row::split(&bytes).expect("a dead letter holds the row as it was encoded");
        assert!(rest.is_empty(), "a dead letter holds one row");
        let event = row.to_event();
        let fields = EventFields { time: event.timestamp, service: event.service, metadata: event.metadata };
        all.push((dead.get(0), event.message, fields));
    }
    all
}
