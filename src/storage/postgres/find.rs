//! Questions about stored events. Every one is bounded by a statement timeout and touches the partitions that its
//! range of time lies in and no others.
//!
//! An id begins with the milliseconds of its event's timestamp. So a range of time is a range of ids too, which the
//! planner prunes partitions by, and the order of ids is the order of time down to the millisecond.

use std::fmt::{self, Write as _};

use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::{ToSql, Type};
use postgres::{Client, Row, RowIter};

use super::error;
use super::types::{Time, Uuid};
use crate::event::{Event, EventId, Timestamp};
use crate::storage::{Chunk, Filter, Found, HourCount, Order, Page, StoreError, Totals};

const COLUMNS: &str = "event_id, timestamp, ingested_at, service, message, metadata::text";
const HOUR_MICROS: i64 = 3_600_000_000;
/// One past the last millisecond that an id can begin with.
const MILLIS_END: i64 = 1 << 48;

/// A range of time, as timestamps and as ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: Timestamp,
    to: Timestamp,
    low: EventId,
    high: EventId,
}

impl Span {
    /// No event lies outside of what ids can begin with.
    fn new(from: Timestamp, to: Timestamp) -> Self {
        let from = from.clamp(Timestamp::default(), Timestamp::from_millis(MILLIS_END));
        let to = to.clamp(from, Timestamp::from_millis(MILLIS_END));
        let high =
            if to == from { from.millis() } else { Timestamp::from_micros(to.micros() - 1).millis() + 1 };
        Self { from, to, low: floor(from.millis()), high: floor(high) }
    }

    fn of(filter: &Filter) -> Self {
        Self::new(filter.from, filter.to)
    }

    fn is_empty(self) -> bool {
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

pub(super) fn page(client: &mut Client, page: &Page) -> Result<Vec<Event>, StoreError> {
    chunk(client, page, usize::MAX).map(|chunk| chunk.events)
}

/// Reads no further than `bytes_max` needs: what comes after it is thrown away where it arrives.
pub(super) fn chunk(client: &mut Client, page: &Page, bytes_max: usize) -> Result<Chunk, StoreError> {
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
    if page.filter.service.is_none() {
        // Most often a few events more than asked for show that the last millisecond is whole.
        if bytes_max == usize::MAX
            && let Some(events) = by_millisecond(client, &condition, direction, span, page, &more)?
        {
            return Ok(Chunk { more: events.len() == usize::from(page.limit), events });
        }
        // No index has the order asked for, but the primary key has it down to the millisecond. So the last event of
        // the page by id is looked up, and what is sorted is what lies up to the end of its millisecond.
        let edge = ask(
            client,
            &format!(
                "SELECT event_id FROM events WHERE {condition} ORDER BY event_id {direction} OFFSET $8 - 1 LIMIT 1"
            ),
            span,
            page,
            &more,
        )?
        .next()
        .map_err(told)?;
        if let Some(row) = edge {
            let millis = i64::try_from(row.get::<_, Uuid>(0).0.millis()).unwrap_or(MILLIS_END);
            match page.order {
                Order::Desc => span.low = floor(millis),
                Order::Asc => span.high = floor(millis + 1),
            }
        }
    }
    let rows = ask(
        client,
        &format!(
            "SELECT {COLUMNS} FROM events WHERE {condition} \
             ORDER BY timestamp {direction}, event_id {direction} LIMIT $8"
        ),
        span,
        page,
        &more,
    )?;
    Chunk::gather(rows.iterator().map(|row| row.map(|row| event(&row)).map_err(told)), page.limit, bytes_max)
}

/// A page in the order of ids, put into that of times: None when the millisecond that it ends in is too full to tell
/// whether all of it was read.
fn by_millisecond(
    client: &mut Client,
    condition: &str,
    direction: &str,
    span: Span,
    page: &Page,
    more: &More,
) -> Result<Option<Vec<Event>>, StoreError> {
    let wider = Page { limit: page.limit.saturating_add(BEYOND), ..page.clone() };
    let statement =
        format!("SELECT {COLUMNS} FROM events WHERE {condition} ORDER BY event_id {direction} LIMIT $8");
    let rows = ask(client, &statement, span, &wider, more)?;
    let mut events: Vec<Event> = rows.map(|row| Ok(event(&row))).collect().map_err(told)?;
    if events.len() == usize::from(wider.limit) {
        let last = events.last().map(|event| event.event_id.millis());
        events.retain(|event| Some(event.event_id.millis()) != last);
        if events.len() < usize::from(page.limit) {
            return Ok(None);
        }
    }
    events.sort_unstable_by_key(|event| (event.timestamp, event.event_id));
    if page.order == Order::Desc {
        events.reverse();
    }
    events.truncate(usize::from(page.limit));
    Ok(Some(events))
}

/// Events read beyond a page, to learn whether the millisecond that it ends in is whole.
const BEYOND: u16 = 16;

const IN_SPAN: &str = "event_id >= $1 AND event_id < $2 AND timestamp >= $3 AND timestamp < $4";

/// All parameters are given each time, whether the statement speaks of them or not.
fn ask<'a>(
    client: &'a mut Client,
    statement: &str,
    span: Span,
    page: &Page,
    more: &More,
) -> Result<RowIter<'a>, StoreError> {
    let (low, high) = (Uuid(span.low), Uuid(span.high));
    let (from, to) = (Time(span.from), Time(span.to));
    let (timestamp, id) = page.after.unwrap_or((span.from, span.low));
    let (timestamp, id) = (Time(timestamp), Uuid(id));
    let limit = i64::from(page.limit);
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
    more.give(&mut params);
    client.query_typed_raw(statement, params).map_err(told)
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
fn told(error: postgres::Error) -> StoreError {
    error::of("reading events", &error)
}

/// Whole hours are added up from `event_counts`, in the same statement as the rest, so that everything is of one
/// moment. At either end, what lies between the time asked for and the nearest hour is counted event by event, and added
/// or taken off: half an hour of events at most. Of the hour that is being filled, nothing is there past now; so when
/// the time asked for is nearer to now than to its beginning, what is left of it is taken off the whole.
pub(super) fn count(client: &mut Client, filter: &Filter) -> Result<u64, StoreError> {
    let span = Span::of(filter);
    if span.is_empty() {
        return Ok(0);
    }
    let more = More::of(filter);
    if !more.is_empty() {
        return count_each(client, filter, span, &more);
    }
    let (first, last) = (nearest_hour(span.from), nearest_hour(span.to));
    let service = if filter.service.is_some() { " AND service = $1" } else { "" };
    let mut sum = Sum::new(service);
    if first >= last {
        // Without an hour between them there is only the span itself.
        sum.add_events('+', span);
    } else {
        sum.add_edge(first, span.from);
        sum.add_tail(first, last, span.to);
    }
    let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![(&filter.service, Type::TEXT)];
    params.extend(sum.params.iter().map(Param::as_sql));
    let row = client
        .query_typed_one(&format!("SELECT {}", sum.sql), &params)
        .map_err(|error| error::of("counting events", &error))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// A sum in the making, as an expression of SQL. Its first parameter is the service.
struct Sum {
    sql: String,
    params: Vec<Param>,
    service: &'static str,
}

enum Param {
    Id(Uuid),
    Time(Time),
}

impl Param {
    fn as_sql(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Id(id) => (id, Type::UUID),
            Self::Time(time) => (time, Type::TIMESTAMPTZ),
        }
    }
}

impl Sum {
    fn new(service: &'static str) -> Self {
        Self { sql: "0".to_owned(), params: Vec::new(), service }
    }

    fn push(&mut self, text: fmt::Arguments<'_>) {
        self.sql.write_fmt(text).expect("a string takes all that is written");
    }

    fn param(&mut self, param: Param) -> usize {
        self.params.push(param);
        self.params.len() + 1
    }

    /// The events of a span, one by one. Where ids alone tell, which is all but the first and the last millisecond, the
    /// primary key is read and no table.
    fn add_events(&mut self, sign: char, span: Span) {
        let whole = |micros: i64| Timestamp::from_millis(Timestamp::from_micros(micros).millis());
        let (from, to) = (whole(span.from.micros() + 999), whole(span.to.micros()));
        if !self.service.is_empty() || from >= to {
            return self.add_events_by_time(sign, span);
        }
        if span.from < from {
            self.add_events_by_time(sign, Span::new(span.from, from));
        }
        if to < span.to {
            self.add_events_by_time(sign, Span::new(to, span.to));
        }
        let ids = Span::new(from, to);
        let [low, high] = [ids.low, ids.high].map(|id| self.param(Param::Id(Uuid(id))));
        self.push(format_args!(
            " {sign} (SELECT count(*) FROM events WHERE event_id >= ${low} AND event_id < ${high})"
        ));
    }

    fn add_events_by_time(&mut self, sign: char, span: Span) {
        let params = [
            Param::Id(Uuid(span.low)),
            Param::Id(Uuid(span.high)),
            Param::Time(Time(span.from)),
            Param::Time(Time(span.to)),
        ];
        let [low, high, from, to] = params.map(|param| self.param(param));
        let service = self.service;
        self.push(format_args!(
            " {sign} (SELECT count(*) FROM events WHERE event_id >= ${low} AND event_id < ${high} \
               AND timestamp >= ${from} AND timestamp < ${to}{service})",
        ));
    }

    /// The counts of whole hours.
    fn add_hours(&mut self, first: Timestamp, last: Timestamp) {
        let [first, last] = [first, last].map(|time| self.param(Param::Time(Time(time))));
        let service = self.service;
        self.push(format_args!(
            " + (SELECT coalesce(sum(count), 0)::bigint FROM event_counts \
               WHERE hour >= ${first} AND hour < ${last}{service})",
        ));
    }

    /// What lies between the hour that the sum begins with and the time asked for.
    fn add_edge(&mut self, hour: Timestamp, from: Timestamp) {
        if from < hour {
            self.add_events('+', Span::new(from, hour));
        } else if from > hour {
            self.add_events('-', Span::new(hour, from));
        }
    }

    /// The hours from `first` on, up to the time asked for, which `last` is the nearest hour to.
    fn add_tail(&mut self, first: Timestamp, last: Timestamp, to: Timestamp) {
        if to <= last {
            self.add_hours(first, last);
            if to < last {
                self.add_events('-', Span::new(to, last));
            }
            return;
        }
        let (at, from) = (self.param(Param::Time(Time(to))), self.param(Param::Time(Time(last))));
        self.push(format_args!(" + CASE WHEN now() - ${at} < ${at} - ${from} THEN 0"));
        let end = Timestamp::from_micros(last.micros() + HOUR_MICROS);
        self.add_hours(first, end);
        self.add_events('-', Span::new(to, end));
        self.sql.push_str(" ELSE 0");
        self.add_hours(first, last);
        self.add_events('+', Span::new(last, to));
        self.sql.push_str(" END");
    }
}

/// What the counts know nothing of is counted event by event; the timeout bounds it.
fn count_each(client: &mut Client, filter: &Filter, span: Span, more: &More) -> Result<u64, StoreError> {
    let service = if filter.service.is_some() { " AND service = $5" } else { "" };
    let mut statement = format!("SELECT count(*) FROM events WHERE {IN_SPAN}{service}");
    more.require(&mut statement, 6);
    let (low, high, from, to) = (Uuid(span.low), Uuid(span.high), Time(span.from), Time(span.to));
    let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&low, Type::UUID),
        (&high, Type::UUID),
        (&from, Type::TIMESTAMPTZ),
        (&to, Type::TIMESTAMPTZ),
        (&filter.service, Type::TEXT),
    ];
    more.give(&mut params);
    let row =
        client.query_typed_one(&statement, &params).map_err(|error| error::of("counting events", &error))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// The conditions that no index has, and their parameters.
#[derive(Debug)]
struct More {
    pattern: Option<String>,
    /// For each member the objects of which one has to be contained.
    members: Vec<Vec<String>>,
}

impl More {
    fn of(filter: &Filter) -> Self {
        Self { pattern: filter.text.as_deref().map(pattern), members: filter.metadata.clone() }
    }

    fn is_empty(&self) -> bool {
        self.pattern.is_none() && self.members.is_empty()
    }

    /// Adds the conditions, with parameters that are numbered from `first` on.
    fn require(&self, condition: &mut String, first: usize) {
        let of_text = self.pattern.iter().map(|_| "message ILIKE $# ESCAPE '!'");
        let of_members = self.members.iter().map(|_| "metadata @> ANY ($#::text[]::jsonb[])");
        for (number, part) in (first..).zip(of_text.chain(of_members)) {
            condition.push_str(" AND ");
            condition.push_str(&part.replace('#', &number.to_string()));
        }
    }

    fn give<'a>(&'a self, params: &mut Vec<(&'a (dyn ToSql + Sync), Type)>) {
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

pub(super) fn hours(
    client: &mut Client,
    filter: &Filter,
    rows_max: u32,
) -> Result<Vec<HourCount>, StoreError> {
    let service = if filter.service.is_some() { "AND service = $4" } else { "" };
    let statement = format!(
        "SELECT hour, service, count FROM event_counts WHERE hour >= $1 AND hour < $2 {service} \
         ORDER BY hour, service LIMIT $3"
    );
    let (from, to, limit) = (Time(filter.from), Time(filter.to), i64::from(rows_max));
    let params: [(&(dyn ToSql + Sync), Type); 4] = [
        (&from, Type::TIMESTAMPTZ),
        (&to, Type::TIMESTAMPTZ),
        (&limit, Type::INT8),
        (&filter.service, Type::TEXT),
    ];
    let rows =
        client.query_typed(&statement, &params).map_err(|error| error::of("reading the counts", &error))?;
    let count = |row: &Row| HourCount {
        hour: row.get::<_, Time>(0).0,
        service: row.get(1),
        count: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
    };
    Ok(rows.iter().map(count).collect())
}

/// All of it from `event_counts`, which has a row a service and hour.
pub(super) fn totals(client: &mut Client, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
    let failed = |error| error::of("adding up the counts", &error);
    let number = |row: &Row, column| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
    let services = client
        .query_typed(
            "WITH sums AS (SELECT service, sum(count)::bigint AS events FROM event_counts GROUP BY service) \
             SELECT service, events, (SELECT sum(events)::bigint FROM sums) FROM sums \
             ORDER BY events DESC, service LIMIT $1",
            &[(&i64::from(services_max), Type::INT8)],
        )
        .map_err(failed)?;
    let hours = client
        .query_typed(
            "SELECT hour, sum(count)::bigint FROM event_counts WHERE hour >= $1 GROUP BY hour ORDER BY hour",
            &[(&Time(since), Type::TIMESTAMPTZ)],
        )
        .map_err(failed)?;
    Ok(Totals {
        events: services.first().map_or(0, |row| number(row, 2)),
        services: services.iter().map(|row| (row.get(0), number(row, 1))).collect(),
        hours: hours.iter().map(|row| (row.get::<_, Time>(0).0, number(row, 1))).collect(),
    })
}

fn nearest_hour(time: Timestamp) -> Timestamp {
    Timestamp::from_micros((time.micros() + HOUR_MICROS / 2).div_euclid(HOUR_MICROS) * HOUR_MICROS)
}

pub(super) fn find(client: &mut Client, id: EventId) -> Result<Option<Found>, StoreError> {
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&Uuid(id), Type::UUID)];
    let rows = client
        .query_typed(&format!("SELECT {COLUMNS} FROM events WHERE event_id = $1"), &params)
        .map_err(|error| error::of("finding an event", &error))?;
    if let Some(row) = rows.first() {
        return Ok(Some(Found::Stored(event(row))));
    }
    let rows = client
        .query_typed("SELECT sqlstate, reason FROM dead_events WHERE event_id = $1", &params)
        .map_err(|error| error::of("finding a dead event", &error))?;
    Ok(rows.first().map(|row| Found::Dead { sqlstate: row.get(0), reason: row.get(1) }))
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
