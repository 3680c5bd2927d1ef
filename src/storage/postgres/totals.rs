//! How many events: of a filter, by the hour, in all.
//!
//! From the counts by hour and minute; the events themselves are counted only at the ends of a time.

use std::fmt::{self, Write as _};

use postgres::Row;
use postgres::types::{ToSql, Type};

use super::ask::Desk;
use super::find::{IN_SPAN, More, Span};
use super::types::{Time, Uuid};
use crate::event::{EventId, Timestamp};
use crate::storage::{Filter, HourCount, StoreError, Totals};

const HOUR_MICROS: i64 = 3_600_000_000;
const MINUTE_MICROS: i64 = 60_000_000;
const COUNTING: &str = "counting events";

/// Added up from the counts in one statement, so that everything is of one moment.
pub(super) fn count(desk: Desk<'_>, filter: &Filter) -> Result<u64, StoreError> {
    let span = Span::of(filter);
    if span.is_empty() {
        return Ok(0);
    }
    let more = More::of(filter);
    if !more.is_empty() {
        return count_each(desk, filter, span, &more);
    }
    let of_service = filter.service.is_some();
    if let Some(sum) = Sum::by_minutes(span, of_service)
        && let Some(total) = sum.ask(desk, filter)?
    {
        return Ok(total);
    }
    Ok(Sum::by_hours(span, of_service).ask(desk, filter)?.unwrap_or(0))
}

/// A sum in the making, as a statement of SQL. Its first parameter is the service or null, its second the name that this
/// has in `event_minutes`.
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

impl From<EventId> for Param {
    fn from(id: EventId) -> Self {
        Self::Id(Uuid(id))
    }
}

impl From<Timestamp> for Param {
    fn from(time: Timestamp) -> Self {
        Self::Time(Time(time))
    }
}

impl Sum {
    fn new(of_service: bool) -> Self {
        let service = if of_service { " AND service = $1" } else { "" };
        Self { sql: String::new(), params: Vec::new(), service }
    }

    /// Whole hours from `event_counts`. At either end, what lies between the time asked for and the nearest hour is counted
    /// event by event, and added or taken off: half an hour of events at most. Of the hour that is being filled,
    /// nothing is there past now; so when the time asked for is nearer to now than to its beginning, what is left of it
    /// is taken off the whole.
    fn by_hours(span: Span, of_service: bool) -> Self {
        let mut sum = Self::new(of_service);
        sum.sql.push_str("SELECT 0");
        let (first, last) = (nearest(span.from, HOUR_MICROS), nearest(span.to, HOUR_MICROS));
        if first >= last {
            // Without an hour between them there is only the span itself.
            sum.add_events('+', span);
        } else {
            sum.add_edge(first, span.from);
            sum.add_tail(first, last, span.to);
        }
        sum
    }

    /// The same with minutes at either end, from `event_minutes`, and half a minute of events at most: what hours are
    /// made of where thousands of events a second are stored. Null when the minutes of one of the two hours that
    /// the time begins and ends in do not add up to what `event_counts` has of it.
    fn by_minutes(span: Span, of_service: bool) -> Option<Self> {
        if span.to.micros() - span.from.micros() < 2 * MINUTE_MICROS {
            return None;
        }
        let mut sum = Self::new(of_service);
        let (first, last) = (begin(span.from, HOUR_MICROS), begin(span.to, HOUR_MICROS));
        let (from, to) = (nearest(span.from, MINUTE_MICROS), nearest(span.to, MINUTE_MICROS));
        sum.sql.push_str("SELECT CASE WHEN first.whole = first.counted AND last.whole = last.counted THEN last.part - first.part");
        sum.add_hours(first, last);
        // What is left of the first hour begins with `from`.
        sum.add_edge(from, span.from);
        if span.to <= to {
            sum.add_events('-', Span::new(span.to, to));
        } else {
            let (at, minute) = (sum.param(span.to), sum.param(to));
            sum.push(format_args!(
                " + CASE WHEN now() - ${at} < ${at} - ${minute} THEN (SELECT coalesce(sum(count), 0)::bigint \
                 FROM event_minutes WHERE service = $2 AND minute = ${minute})"
            ));
            sum.add_events('-', Span::new(span.to, plus(to, MINUTE_MICROS)));
            sum.sql.push_str(" ELSE 0");
            sum.add_events('+', Span::new(to, span.to));
            sum.sql.push_str(" END");
        }
        sum.sql.push_str(" END FROM ");
        sum.add_minutes_of(first, from, "first");
        sum.sql.push_str(", ");
        sum.add_minutes_of(last, to, "last");
        Some(sum)
    }

    fn ask(&self, desk: Desk<'_>, filter: &Filter) -> Result<Option<u64>, StoreError> {
        let name = filter.service.as_deref().unwrap_or_default();
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> =
            vec![(&filter.service, Type::TEXT), (&name, Type::TEXT)];
        params.extend(self.params.iter().map(Param::as_sql));
        let sums = desk.ask(COUNTING, &self.sql, &params, |row| row.get::<_, Option<i64>>(0))?;
        Ok(sums.into_iter().flatten().next().map(|sum| u64::try_from(sum).unwrap_or(0)))
    }

    fn push(&mut self, text: fmt::Arguments<'_>) {
        self.sql.write_fmt(text).expect("a string takes all that is written");
    }

    fn param(&mut self, param: impl Into<Param>) -> usize {
        self.params.push(param.into());
        self.params.len() + 2
    }

    /// The events of a span, one by one. Where ids alone tell, which is all but the first and the last millisecond, the
    /// primary key is read and no table.
    fn add_events(&mut self, sign: char, span: Span) {
        let whole = |micros: i64| Timestamp::from_millis(Timestamp::from_micros(micros).millis());
        if span.is_empty() {
            return;
        }
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
        let [low, high] = [ids.low, ids.high].map(|id| self.param(id));
        self.push(format_args!(
            " {sign} (SELECT count(*) FROM events WHERE event_id >= ${low} AND event_id < ${high})"
        ));
    }

    fn add_events_by_time(&mut self, sign: char, span: Span) {
        let [low, high] = [span.low, span.high].map(|id| self.param(id));
        let [from, to] = [span.from, span.to].map(|time| self.param(time));
        let service = self.service;
        self.push(format_args!(
            " {sign} (SELECT count(*) FROM events WHERE event_id >= ${low} AND event_id < ${high} \
               AND timestamp >= ${from} AND timestamp < ${to}{service})",
        ));
    }

    /// The counts of whole hours.
    fn add_hours(&mut self, first: Timestamp, last: Timestamp) {
        let [first, last] = [first, last].map(|time| self.param(time));
        let service = self.service;
        self.push(format_args!(
            " + (SELECT coalesce(sum(count), 0)::bigint FROM event_counts \
               WHERE hour >= ${first} AND hour < ${last}{service})",
        ));
    }

    /// A row named `name` of the minutes of an hour: how many events they have in all, before `part`, and how many
    /// the hour has.
    fn add_minutes_of(&mut self, hour: Timestamp, part: Timestamp, name: &str) {
        let end = plus(hour, HOUR_MICROS);
        let [hour, end, part] = [hour, end, part].map(|time| self.param(time));
        let service = self.service;
        self.push(format_args!(
            "(SELECT coalesce(sum(count), 0)::bigint AS whole, \
             coalesce(sum(count) FILTER (WHERE minute < ${part}), 0)::bigint AS part, \
             (SELECT coalesce(sum(count), 0)::bigint FROM event_counts WHERE hour = ${hour}{service}) AS counted \
             FROM event_minutes WHERE service = $2 AND minute >= ${hour} AND minute < ${end}) AS {name}"
        ));
    }

    /// What lies between the hour or minute that the sum begins with and the time asked for.
    fn add_edge(&mut self, whole: Timestamp, from: Timestamp) {
        if from < whole {
            self.add_events('+', Span::new(from, whole));
        } else if from > whole {
            self.add_events('-', Span::new(whole, from));
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
        let (at, from) = (self.param(to), self.param(last));
        self.push(format_args!(" + CASE WHEN now() - ${at} < ${at} - ${from} THEN 0"));
        let end = plus(last, HOUR_MICROS);
        self.add_hours(first, end);
        self.add_events('-', Span::new(to, end));
        self.sql.push_str(" ELSE 0");
        self.add_hours(first, last);
        self.add_events('+', Span::new(last, to));
        self.sql.push_str(" END");
    }
}

/// What the counts know nothing of is counted event by event; the timeout bounds it.
fn count_each(desk: Desk<'_>, filter: &Filter, span: Span, more: &More) -> Result<u64, StoreError> {
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
    Ok(one(&desk.ask(COUNTING, &statement, &params, |row| number(row, 0))?))
}

fn one(counts: &[u64]) -> u64 {
    counts.first().copied().unwrap_or(0)
}

fn number(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).unwrap_or(0)
}

pub(super) fn hours(desk: Desk<'_>, filter: &Filter, rows_max: u32) -> Result<Vec<HourCount>, StoreError> {
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
    desk.ask("reading the counts", &statement, &params, |row| HourCount {
        hour: row.get::<_, Time>(0).0,
        service: row.get(1),
        count: number(row, 2),
    })
}

/// All of it from `event_counts`, which has a row a service and hour.
pub(super) fn totals(desk: Desk<'_>, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
    const DOING: &str = "adding up the counts";
    let services = desk.ask(
        DOING,
        "WITH sums AS (SELECT service, sum(count)::bigint AS events FROM event_counts GROUP BY service) \
         SELECT service, events, (SELECT sum(events)::bigint FROM sums) FROM sums \
         ORDER BY events DESC, service LIMIT $1",
        &[(&i64::from(services_max), Type::INT8)],
        |row| ((row.get(0), number(row, 1)), number(row, 2)),
    )?;
    let hours = desk.ask(
        DOING,
        "SELECT hour, sum(count)::bigint FROM event_counts WHERE hour >= $1 GROUP BY hour ORDER BY hour",
        &[(&Time(since), Type::TIMESTAMPTZ)],
        |row| (row.get::<_, Time>(0).0, number(row, 1)),
    )?;
    Ok(Totals {
        events: services.first().map_or(0, |(_, all)| *all),
        services: services.into_iter().map(|(service, _)| service).collect(),
        hours,
    })
}

/// The whole hour or minute that a time lies in.
fn begin(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.micros().div_euclid(micros) * micros)
}

fn nearest(time: Timestamp, micros: i64) -> Timestamp {
    begin(plus(time, micros / 2), micros)
}

fn plus(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.micros() + micros)
}
