//! Questions about stored events. Every one is bounded by a statement timeout and touches the partitions that its
//! range of time lies in and no others.
//!
//! An id begins with the milliseconds of its event's timestamp. So a range of time is a range of ids too, which the
//! planner prunes partitions by, and the order of ids is the order of time down to the millisecond.

use std::ops::ControlFlow;

use postgres::Row;
use postgres::types::{ToSql, Type};

use super::ask::Desk;
use super::types::{Time, Uuid};
use crate::event::{Event, EventId, Timestamp};
use crate::storage::{Chunk, Filter, Found, Gathering, Order, Page, StoreError};

const COLUMNS: &str = "event_id, timestamp, ingested_at, service, message, metadata::text";
/// One past the last millisecond that an id can begin with.
const MILLIS_END: i64 = 1 << 48;

/// A range of time, as timestamps and as ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) low: EventId,
    pub(super) high: EventId,
}

impl Span {
    /// No event lies outside of what ids can begin with.
    pub(super) fn new(from: Timestamp, to: Timestamp) -> Self {
        let from = from.clamp(Timestamp::default(), Timestamp::from_millis(MILLIS_END));
        let to = to.clamp(from, Timestamp::from_millis(MILLIS_END));
        let high =
            if to == from { from.millis() } else { Timestamp::from_micros(to.micros() - 1).millis() + 1 };
        Self { from, to, low: floor(from.millis()), high: floor(high) }
    }

    pub(super) fn of(filter: &Filter) -> Self {
        Self::new(filter.from, filter.to)
    }

    pub(super) fn is_empty(self) -> bool {
        self.from == self.to
    }

    /// What is left of it after an event, whose own microsecond stays in.
    fn after(self, order: Order, timestamp: Timestamp) -> Self {
        match order {
            Order::Desc => Self::new(
                self.from,
                self.to.min(Timestamp::from_micros(timestamp.micros().saturating_add(1))),
            ),
            Order::Asc => Self::new(self.from.max(timestamp), self.to.max(timestamp)),
        }
    }
}

fn floor(millis: i64) -> EventId {
    if millis >= MILLIS_END {
        return EventId::from_bytes([0xff; 16]);
    }
    EventId::floor(u64::try_from(millis).unwrap_or(0))
}

pub(super) fn page(desk: Desk<'_>, page: &Page) -> Result<Vec<Event>, StoreError> {
    chunk(desk, page, usize::MAX).map(|chunk| chunk.events)
}

/// Reads no further than `bytes_max` needs: what comes after it is thrown away where it arrives.
pub(super) fn chunk(desk: Desk<'_>, page: &Page, bytes_max: usize) -> Result<Chunk, StoreError> {
    let mut span = Span::of(&page.filter);
    if let Some((timestamp, _)) = page.after {
        span = span.after(page.order, timestamp);
    }
    if span.is_empty() || page.limit == 0 {
        return Ok(Chunk { events: Vec::new(), more: false });
    }
    let (direction, beyond) = match page.order {
        Order::Desc => ("DESC", "<"),
        Order::Asc => ("ASC", ">"),
    };
    let mut condition = IN_SPAN.to_owned();
    if page.filter.service.is_some() {
        condition.push_str(" AND service = $5");
    }
    if page.after.is_some() {
        condition.push_str(" AND (timestamp, event_id) ");
        condition.push_str(beyond);
        condition.push_str(" ($6, $7)");
    }
    let more = More::of(&page.filter);
    more.require(&mut condition, 9);
    let asking = Asking { desk, page, more: &more, condition, direction };
    if page.filter.service.is_none() {
        // Most often a few events more than asked for show that the last millisecond is whole.
        if bytes_max == usize::MAX
            && let Some(events) = asking.by_millisecond(span)?
        {
            return Ok(Chunk { more: events.len() == usize::from(page.limit), events });
        }
        // No index has the order asked for, but the primary key has it down to the millisecond. So the last event of
        // the page by id is looked up, and what is sorted is what lies up to the end of its millisecond.
        if let Some(millis) = asking.edge(span)? {
            match page.order {
                Order::Desc => span.low = floor(millis),
                Order::Asc => span.high = floor(millis + 1),
            }
        }
    }
    asking.in_order(span, bytes_max)
}

/// A page on its way: what all its statements have in common.
struct Asking<'a> {
    desk: Desk<'a>,
    page: &'a Page,
    more: &'a More,
    condition: String,
    direction: &'static str,
}

/// Events read beyond a page, to learn whether the millisecond that it ends in is whole.
const BEYOND: u16 = 16;

pub(super) const IN_SPAN: &str = "event_id >= $1 AND event_id < $2 AND timestamp >= $3 AND timestamp < $4";

impl Asking<'_> {
    /// A page in the order of ids, put into that of times: None when the millisecond that it ends in is too full to
    /// tell whether all of it was read.
    fn by_millisecond(&self, span: Span) -> Result<Option<Vec<Event>>, StoreError> {
        let limit = self.page.limit.saturating_add(BEYOND);
        let (condition, direction) = (&self.condition, self.direction);
        let statement =
            format!("SELECT {COLUMNS} FROM events WHERE {condition} ORDER BY event_id {direction} LIMIT $8");
        let mut events = Vec::new();
        self.ask(&statement, span, limit, |row| {
            events.push(event(row));
            ControlFlow::Continue(())
        })?;
        if events.len() == usize::from(limit) {
            let last = events.last().map(|event| event.event_id.millis());
            events.retain(|event| Some(event.event_id.millis()) != last);
            if events.len() < usize::from(self.page.limit) {
                return Ok(None);
            }
        }
        events.sort_unstable_by_key(|event| (event.timestamp, event.event_id));
        if self.page.order == Order::Desc {
            events.reverse();
        }
        events.truncate(usize::from(self.page.limit));
        Ok(Some(events))
    }

    /// The millisecond that the page ends in, when it is full.
    fn edge(&self, span: Span) -> Result<Option<i64>, StoreError> {
        let (condition, direction) = (&self.condition, self.direction);
        let statement = format!(
            "SELECT event_id FROM events WHERE {condition} ORDER BY event_id {direction} OFFSET $8 - 1 LIMIT 1"
        );
        let mut edge = None;
        self.ask(&statement, span, self.page.limit, |row| {
            edge = Some(i64::try_from(row.get::<_, Uuid>(0).0.millis()).unwrap_or(MILLIS_END));
            ControlFlow::Break(())
        })?;
        Ok(edge)
    }

    fn in_order(&self, span: Span, bytes_max: usize) -> Result<Chunk, StoreError> {
        let (condition, direction) = (&self.condition, self.direction);
        let statement = format!(
            "SELECT {COLUMNS} FROM events WHERE {condition} \
             ORDER BY timestamp {direction}, event_id {direction} LIMIT $8"
        );
        let mut gathering = Gathering::new(bytes_max);
        self.ask(&statement, span, self.page.limit, |row| gathering.add(event(row)))?;
        Ok(gathering.finish(self.page.limit))
    }

    /// All parameters are given each time, whether the statement speaks of them or not.
    fn ask(
        &self,
        statement: &str,
        span: Span,
        limit: u16,
        each: impl FnMut(&Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let page = self.page;
        let (low, high) = (Uuid(span.low), Uuid(span.high));
        let (from, to) = (Time(span.from), Time(span.to));
        let (timestamp, id) = page.after.unwrap_or((span.from, span.low));
        let (timestamp, id) = (Time(timestamp), Uuid(id));
        let limit = i64::from(limit);
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&low, Type::UUID),
            (&high, Type::UUID),
            (&from, Type::TIMESTAMPTZ),
            (&to, Type::TIMESTAMPTZ),
            (&page.filter.service, Type::TEXT),
            (&timestamp, Type::TIMESTAMPTZ),
            (&id, Type::UUID),
            (&limit, Type::INT8),
        ];
        self.more.give(&mut params);
        self.desk.ask_each("reading events", statement, &params, each)
    }
}

/// The conditions that no index has, and their parameters.
#[derive(Debug)]
pub(super) struct More {
    pattern: Option<String>,
    /// For each member the objects of which one has to be contained.
    members: Vec<Vec<String>>,
}

impl More {
    pub(super) fn of(filter: &Filter) -> Self {
        Self { pattern: filter.text.as_deref().map(pattern), members: filter.metadata.clone() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pattern.is_none() && self.members.is_empty()
    }

    /// Adds the conditions, with parameters that are numbered from `first` on.
    pub(super) fn require(&self, condition: &mut String, first: usize) {
        let of_text = self.pattern.iter().map(|_| "message ILIKE $# ESCAPE '!'");
        let of_members = self.members.iter().map(|_| "metadata @> ANY ($#::text[]::jsonb[])");
        for (number, part) in (first..).zip(of_text.chain(of_members)) {
            condition.push_str(" AND ");
            condition.push_str(&part.replace('#', &number.to_string()));
        }
    }

    pub(super) fn give<'a>(&'a self, params: &mut Vec<(&'a (dyn ToSql + Sync), Type)>) {
        params.extend(self.pattern.iter().map(|pattern| (pattern as &(dyn ToSql + Sync), Type::TEXT)));
        params.extend(self.members.iter().map(|objects| (objects as &(dyn ToSql + Sync), Type::TEXT_ARRAY)));
    }
}

/// The pattern of ILIKE that means this text and nothing else, anywhere.
fn pattern(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len() + 2);
    pattern.push('%');
    for char in text.chars() {
        if matches!(char, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(char);
    }
    pattern.push('%');
    pattern
}

pub(super) fn find(desk: Desk<'_>, id: EventId) -> Result<Option<Found>, StoreError> {
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&Uuid(id), Type::UUID)];
    let statement = format!("SELECT {COLUMNS} FROM events WHERE event_id = $1");
    let stored = desk.ask("finding an event", &statement, &params, event)?;
    if let Some(event) = stored.into_iter().next() {
        return Ok(Some(Found::Stored(event)));
    }
    let dead = |row: &Row| Found::Dead { sqlstate: row.get(0), reason: row.get(1) };
    let statement = "SELECT sqlstate, reason FROM dead_events WHERE event_id = $1";
    Ok(desk.ask("finding a dead event", statement, &params, dead)?.pop())
}

fn event(row: &Row) -> Event {
    Event {
        event_id: row.get::<_, Uuid>(0).0,
        timestamp: row.get::<_, Time>(1).0,
        ingested_at: row.get::<_, Time>(2).0,
        service: row.get(3),
        message: row.get(4),
        metadata: row.get(5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: i64, to: i64) -> Span {
        Span::new(Timestamp::from_micros(from), Timestamp::from_micros(to))
    }

    #[test]
    fn a_span_of_time_is_the_narrowest_span_of_ids() {
        let check = |from, to, low, high| {
            let span = span(from, to);
            assert_eq!((span.low, span.high), (EventId::floor(low), EventId::floor(high)), "{from}..{to}");
        };
        check(1000, 2000, 1, 2);
        check(1999, 2001, 1, 3);
        check(1500, 1501, 1, 2);
        check(-5, 1, 0, 1);
    }

    #[test]
    fn a_text_is_looked_for_as_it_stands() {
        for (text, expected) in [("a", "%a%"), ("100%", "%100!%%"), ("a_b!c", "%a!_b!!c%"), ("\\", "%\\%")] {
            assert_eq!(pattern(text), expected);
        }
    }

    #[test]
    fn a_span_may_be_empty_reversed_or_all_of_time() {
        assert!(span(5, 5).is_empty());
        assert!(span(6, 5).is_empty());
        assert!(span(i64::MIN, 0).is_empty());
        let all = span(i64::MIN, i64::MAX);
        assert_eq!((all.low, all.high), (EventId::floor(0), EventId::from_bytes([0xff; 16])));
        assert!(span(i64::MAX, i64::MAX).is_empty());
    }

    #[test]
    fn the_span_after_an_event_keeps_its_microsecond() {
        let whole = span(1_000_000, 2_000_000);
        let at = Timestamp::from_micros(1_500_000);
        assert_eq!(whole.after(Order::Desc, at), span(1_000_000, 1_500_001));
        assert_eq!(whole.after(Order::Asc, at), span(1_500_000, 2_000_000));
        assert!(whole.after(Order::Desc, Timestamp::from_micros(0)).is_empty());
        assert!(whole.after(Order::Asc, Timestamp::from_micros(3_000_000)).is_empty());
    }
}
