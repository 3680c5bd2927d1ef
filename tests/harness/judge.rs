//! The judge of every fault: what was acknowledged against what lies in the tables.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aurore_events::row::Row;

use super::postgres::Postgres;
use super::producer::Tally;
use super::server::{Server, metric};
use super::wait::{WAIT_MAX, until_within};

/// Waits until everything buffered has come to rest, then checks that the ledger balances.
#[track_caller]
pub(crate) fn settle(server: &Server) {
    settle_within(WAIT_MAX, server);
}

#[track_caller]
pub(crate) fn settle_within(most: Duration, server: &Server) {
    until_within(most, "the buffer is empty", || server.metric("buffer_size") == 0);
    let page = server.metrics();
    let figure = |name: &str| metric(&page, name);
    assert_eq!(
        figure("events_received_total"),
        figure("events_stored_total")
            + figure("events_duplicate_total")
            + figure("events_dead_total")
            + figure("buffer_size"),
        "the ledger does not balance (received = stored + duplicate + dead + buffered):\n{page}"
    );
}

/// Every acknowledged event has come to rest as it was sent, none twice, and nothing that was not sent.
#[track_caller]
pub(crate) fn judge(tally: &Tally, postgres: &Postgres) {
    let mut resting: HashMap<String, String> = HashMap::new();
    let mut messages: HashSet<String> = HashSet::new();
    for (id, message) in resting_events(postgres) {
        assert!(tally.sent.contains(&message), "{message} is stored and was never sent");
        assert!(messages.insert(message.clone()), "{message} is stored twice");
        assert!(resting.insert(id, message).is_none(), "an id is stored twice");
    }
    let lost: Vec<_> =
        tally.acknowledged.iter().filter(|(id, message)| resting.get(*id) != Some(message)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged events are lost, such as {:?}",
        lost.len(),
        tally.acknowledged.len(),
        lost.first()
    );
}

/// Id and message of every event in the tables.
#[track_caller]
fn resting_events(postgres: &Postgres) -> Vec<(String, String)> {
    let stored = postgres.rows("SELECT event_id::text, message FROM events");
    let mut all: Vec<(String, String)> = stored.iter().map(|row| (row.get(0), row.get(1))).collect();
    for dead in postgres.rows("SELECT event_id::text, row FROM dead_events") {
        let bytes: Vec<u8> = dead.get(1);
        let (row, rest) = Row::split(&bytes).expect("a dead letter holds the row as it was encoded");
        assert!(rest.is_empty(), "a dead letter holds one row");
        all.push((dead.get(0), String::from_utf8_lossy(row.message()).into_owned()));
    }
    all
}
