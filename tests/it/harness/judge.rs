//! The judge of every fault: what was acknowledged against what lies in the tables.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

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
    let rows = postgres.rows(
        "SELECT event_id::text, message FROM events UNION ALL SELECT event_id::text, message FROM dead_events",
    );
    let mut resting: HashMap<String, String> = HashMap::with_capacity(rows.len());
    let mut messages: HashSet<String> = HashSet::with_capacity(rows.len());
    for row in &rows {
        let (id, message): (String, String) = (row.get(0), row.get(1));
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
