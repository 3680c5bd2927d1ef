//! The events that a tail missed since `Last-Event-ID`: those that are not stored yet, from the
//! journal, then stored ones, from the database. It runs on a reader thread.
//!
//! Invariant: an event that was admitted before the tail was opened is in the journal when that is
//! read, or was committed before, and is then in the database, which is read later. Events that are
//! admitted later are seen by the tail. So none is missed, and some are seen twice: the tail skips
//! those.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::matcher::RowMatcher;
use crate::event::row::Row;
use crate::event::{ArrivalNumber, Event, EventId, MILLIS_END, Timestamp};
use crate::journal::lookup::Lookup;
use crate::query::QueryDatabase;
use crate::query::breaker_guard::RunQueryError;
use crate::storage::{EventPage, EventStatus, Filter, SortOrder};

/// Bounds on what one tail is sent.
const EVENTS_MAX: usize = 5000;
const BYTES_MAX: usize = 4 << 20;
/// Events of one page.
const PAGE_EVENTS: u16 = 1000;
/// Acceptors number arrivals and pass events to tails in slightly different orders. Events that
/// arrived this long before the last one are repeated, so that none is missed.
const OVERLAP_MICROS: i64 = 1_000_000;
/// How far the timestamp of a stored event may lie before that of the last one. The search reads the
/// rows of this time, so it is short.
const LATE_MICROS: i64 = 60_000_000;

/// Why events may be missing between the last one and those that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapReason {
    /// More events were missed than are sent.
    TooMany,
    DatabaseUnavailable,
    JournalUnavailable,
    /// No event has this id. Events with a later time of arrival than its milliseconds were searched.
    UnknownId,
    /// Too many queries wait.
    QueriesFull,
}

impl GapReason {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TooMany => "too-many",
            Self::DatabaseUnavailable => "database-unavailable",
            Self::JournalUnavailable => "journal-unavailable",
            Self::UnknownId => "unknown-id",
            Self::QueriesFull => "queries-full",
        }
    }
}

/// The missed events in the order of their arrival.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    pub(super) events: Vec<Event>,
    pub(super) gap: Option<GapReason>,
}

/// Collects events, each once, up to the bounds.
struct Collector {
    events: Vec<Event>,
    ids: HashSet<EventId>,
    bytes: usize,
    gap: Option<GapReason>,
}

impl Collector {
    fn push(&mut self, event: Event) -> ControlFlow<()> {
        if !self.ids.insert(event.event_id) {
            return ControlFlow::Continue(());
        }
        self.bytes = self.bytes.saturating_add(event.json_bytes_max());
        if self.events.len() == EVENTS_MAX || self.bytes > BYTES_MAX {
            self.gap = Some(GapReason::TooMany);
            return ControlFlow::Break(());
        }
        self.events.push(event);
        ControlFlow::Continue(())
    }
}

/// Reads the events that match and arrived after `after`, this event excepted.
pub(super) fn read_backlog(
    database: &QueryDatabase,
    lookup: Option<&Lookup>,
    filter: &Filter,
    after: EventId,
    now: Timestamp,
) -> Backlog {
    let (last, mut gap) = find_last(database, lookup, after, now);
    let since = ArrivalNumber::first_at(Timestamp::from_micros(last.arrived.micros() - OVERLAP_MICROS));
    let mut collector = Collector { events: Vec::new(), ids: HashSet::from([after]), bytes: 0, gap: None };
    if let Some(lookup) = lookup {
        let matcher = RowMatcher::new(filter);
        let read = lookup.for_each_pending(&mut |row: &Row<'_>| {
            if row.arrival() >= since && matcher.matches(row) {
                return collector.push(row.to_event());
            }
            ControlFlow::Continue(())
        });
        if read.is_err() {
            gap = Some(GapReason::JournalUnavailable);
        }
    }
    let from = last.timestamp.micros().min(last.arrived.micros()) - LATE_MICROS;
    let filter = Filter {
        from: Timestamp::from_micros(from.max(0)),
        to: Timestamp::from_millis(MILLIS_END),
        arrived_from: Some(since),
        ..filter.clone()
    };
    // The bounds apply to stored events apart, so that a journal with many events hides none of them.
    let pending = std::mem::take(&mut collector.events);
    collector.bytes = 0;
    if let Err(_unavailable) = read_stored(database, filter, &mut collector) {
        gap = Some(GapReason::DatabaseUnavailable);
    }
    let mut events = collector.events;
    events.extend(pending);
    events.sort_unstable_by_key(|event| (event.arrival, event.event_id));
    Backlog { events, gap: gap.or(collector.gap) }
}

fn read_stored(
    database: &QueryDatabase,
    filter: Filter,
    collector: &mut Collector,
) -> Result<(), RunQueryError> {
    let mut page = EventPage { filter, order: SortOrder::Asc, limit: PAGE_EVENTS, after: None };
    loop {
        let chunk = database.read_primary("tail", |events| events.page(&page, BYTES_MAX))?;
        let Some(last) = chunk.events.last().map(Event::key) else { return Ok(()) };
        for event in chunk.events {
            if collector.push(event).is_break() {
                return Ok(());
            }
        }
        if !chunk.has_more {
            return Ok(());
        }
        page.after = Some(last);
    }
}

/// The times of the last event.
struct LastEvent {
    timestamp: Timestamp,
    arrived: Timestamp,
}

/// Finds the last event where it is: stored or in the journal.
fn find_last(
    database: &QueryDatabase,
    lookup: Option<&Lookup>,
    id: EventId,
    now: Timestamp,
) -> (LastEvent, Option<GapReason>) {
    let of = |event: &Event| LastEvent { timestamp: event.timestamp, arrived: event.arrival.time() };
    let stored = database.read_primary("tail", |events| events.find(id));
    match &stored {
        Ok(Some(EventStatus::Stored(event) | EventStatus::Buffered(event))) => return (of(event), None),
        Ok(Some(EventStatus::Dead { .. }) | None) | Err(_) => {}
    }
    if let Some(Ok(Some(event))) = lookup.map(|lookup| lookup.find(id)) {
        return (of(&event), None);
    }
    // An event may be stored and leave the journal between the two.
    if let Ok(Some(EventStatus::Stored(event))) = database.read_primary("tail", |events| events.find(id)) {
        return (of(&event), None);
    }
    // A live event arrives soon after its timestamp, with which its id begins.
    let timestamp = Timestamp::from_millis(i64::try_from(id.millis()).unwrap_or(MILLIS_END));
    let gap = if stored.is_err() { GapReason::DatabaseUnavailable } else { GapReason::UnknownId };
    (LastEvent { timestamp, arrived: timestamp.min(now) }, Some(gap))
}
