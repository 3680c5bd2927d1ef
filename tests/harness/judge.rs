//! The judge of every fault: what was acknowledged against what lies in the tables.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use aurore_events::event::row::Row;

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
    until_within(most, "nothing waits", || server.metric("events_buffered") == 0);
    let page = server.metrics();
    let figure = |name: &str| metric(&page, name);
    assert_eq!(
        figure("events_received_total"),
        figure("events_stored_total")
            + figure("events_duplicate_total")
            + figure("events_dead_total")
            + figure("events_buffered"),
        "the ledger does not balance (received = stored + duplicate + dead + buffered):\n{page}"
    );
}

/// What the judge found.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) acknowledged: usize,
    /// Ids that were acknowledged and have not come to rest as they were sent.
    pub(crate) lost: Vec<String>,
    /// Messages or ids that lie there more than once.
    pub(crate) twice: usize,
    /// Messages that lie there and were never sent.
    pub(crate) strangers: usize,
}

impl Findings {
    pub(crate) fn of(tally: &Tally, postgres: &Postgres) -> Self {
        let mut resting: HashMap<String, String> = HashMap::new();
        let mut messages: HashSet<String> = HashSet::new();
        let (mut twice, mut strangers) = (0, 0);
        for (id, message) in resting_events(postgres) {
            strangers += usize::from(!tally.sent.contains(&message));
            let fresh = messages.insert(message.clone());
            let known = resting.insert(id, message).is_some();
            twice += usize::from(known || !fresh);
        }
        let is_lost = |(id, message): &(&String, &String)| resting.get(*id) != Some(message);
        let lost = tally.acknowledged.iter().filter(is_lost).map(|(id, _)| id.clone()).collect();
        Self { acknowledged: tally.acknowledged.len(), lost, twice, strangers }
    }
}

/// Every acknowledged event has come to rest as it was sent, none twice, and nothing that was not sent.
#[track_caller]
pub(crate) fn judge(tally: &Tally, postgres: &Postgres) {
    let found = Findings::of(tally, postgres);
    assert_eq!(found.strangers, 0, "events are stored that were never sent");
    assert_eq!(found.twice, 0, "events are stored twice");
    assert!(
        found.lost.is_empty(),
        "{} of {} acknowledged events are lost, such as {:?}",
        found.lost.len(),
        found.acknowledged,
        found.lost.first()
    );
}

/// What the server counted is what lies in the tables. Holds for one life of a server that began with empty ones,
/// as long as the producer repeats nothing: then a duplicate is an event whose COMMIT had got no answer.
#[track_caller]
pub(crate) fn compare_ledger(server: &Server, postgres: &Postgres) {
    let page = server.metrics();
    let figure = |name: &str| i64::try_from(metric(&page, name)).expect("counters are small here");
    assert_eq!(
        figure("events_stored_total") + figure("events_duplicate_total"),
        postgres.stored(),
        "the ledger and the table differ"
    );
    assert_eq!(figure("events_dead_total"), postgres.dead(), "the ledger and the dead letters differ");
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
