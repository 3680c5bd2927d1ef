//! Event counts: of a filter, per hour, and overall.
//!
//! They are sums of the tables of counts per hour and minute. Event rows are counted only at the
//! two ends of a time range, or when a predicate is not part of the counts.

use std::fmt::{self, Write as _};

use postgres::Row;
use postgres::types::{ToSql, Type};

use super::find::{EventRange, ExtraPredicates, IN_RANGE};
use super::read_query::ReadPool;
use super::types::{PgTimestamp, PgUuid};
use crate::event::{EventId, HOUR_MICROS, MINUTE_MICROS, Timestamp};
use crate::storage::{CountInterval, Filter, IntervalCount, StoreError, Totals};

const COUNT_OPERATION: &str = "counting events";

/// Counts the events that match, in one statement, so that all parts see one snapshot.
pub(super) fn count(pool: ReadPool<'_>, filter: &Filter) -> Result<u64, StoreError> {
    let range = EventRange::from_filter(filter);
    if range.is_empty() {
        return Ok(0);
    }
    let extra = ExtraPredicates::from_filter(filter);
    if !extra.is_empty() {
        return count_rows(pool, filter, range, &extra);
    }
    let by_service = filter.service.is_some();
    if let Some(query) = CountQuery::from_minute_counts(range, by_service)
        && let Some(total) = query.run(pool, filter)?
    {
        return Ok(total);
    }
    Ok(CountQuery::from_hour_counts(range, by_service).run(pool, filter)?.unwrap_or(0))
}

/// Builds the SQL of a sum of counts. `$1` is the service or null; `$2` is the service name in
/// `event_minutes`, where the empty name stands for all services.
struct CountQuery {
    sql: String,
    params: Vec<CountParam>,
    service: &'static str,
}

enum CountParam {
    Id(PgUuid),
    Time(PgTimestamp),
}

impl CountParam {
    fn as_sql(&self) -> (&(dyn ToSql + Sync), Type) {
        match self {
            Self::Id(id) => (id, Type::UUID),
            Self::Time(time) => (time, Type::TIMESTAMPTZ),
        }
    }
}

impl From<EventId> for CountParam {
    fn from(id: EventId) -> Self {
        Self::Id(PgUuid(id))
    }
}

impl From<Timestamp> for CountParam {
    fn from(time: Timestamp) -> Self {
        Self::Time(PgTimestamp(time))
    }
}

impl CountQuery {
    fn new(by_service: bool) -> Self {
        let service = if by_service { " AND service = $1" } else { "" };
        Self { sql: String::new(), params: Vec::new(), service }
    }

    /// Sums whole hours from `event_counts`. At each end, the rows between the range's bound and
    /// the nearest hour, at most half an hour of events, are counted and added or subtracted. The
    /// current hour has no events after now; so when the bound is nearer to now than to the start
    /// of the hour, the rows after the bound are subtracted from the whole hour.
    fn from_hour_counts(range: EventRange, by_service: bool) -> Self {
        let mut query = Self::new(by_service);
        query.sql.push_str("SELECT 0");
        let (first, last) = (round_to(range.from, HOUR_MICROS), round_to(range.to, HOUR_MICROS));
        if first >= last {
            // The range holds no whole hour: count its rows.
            query.add_events('+', range);
        } else {
            query.add_start(first, range.from);
            query.add_hours_to(first, last, range.to);
        }
        query
    }

    /// Sums whole hours, and minutes from `event_minutes` at each end, so that at most half a
    /// minute of rows is counted per end. This matters at thousands of events per second. The
    /// result is null when the minutes of the first or last hour do not add up to that hour's
    /// `event_counts`.
    fn from_minute_counts(range: EventRange, by_service: bool) -> Option<Self> {
        if range.to.micros() - range.from.micros() < 2 * MINUTE_MICROS {
            return None;
        }
        let mut query = Self::new(by_service);
        let (first, last) = (floor_to(range.from, HOUR_MICROS), floor_to(range.to, HOUR_MICROS));
        let (from, to) = (round_to(range.from, MINUTE_MICROS), round_to(range.to, MINUTE_MICROS));
        query.sql.push_str("SELECT CASE WHEN first.whole = first.counted AND last.whole = last.counted THEN last.part - first.part");
        query.add_hours(first, last);
        // The counted part of the first hour begins at `from`.
        query.add_start(from, range.from);
        if range.to <= to {
            query.add_events('-', EventRange::new(range.to, to));
        } else {
            let (at, minute) = (query.param(range.to), query.param(to));
            query.push(format_args!(
                " + CASE WHEN now() - ${at} < ${at} - ${minute} THEN (SELECT coalesce(sum(count), 0)::bigint \
                 FROM event_minutes WHERE service = $2 AND minute = ${minute})"
            ));
            query.add_events('-', EventRange::new(range.to, plus(to, MINUTE_MICROS)));
            query.sql.push_str(" ELSE 0");
            query.add_events('+', EventRange::new(to, range.to));
            query.sql.push_str(" END");
        }
        query.sql.push_str(" END FROM ");
        query.add_minute_sums(first, from, "first");
        query.sql.push_str(", ");
        query.add_minute_sums(last, to, "last");
        Some(query)
    }

    fn run(&self, pool: ReadPool<'_>, filter: &Filter) -> Result<Option<u64>, StoreError> {
        let name = filter.service.as_deref().unwrap_or_default();
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> =
            vec![(&filter.service, Type::TEXT), (&name, Type::TEXT)];
        params.extend(self.params.iter().map(CountParam::as_sql));
        let sums = pool.query(COUNT_OPERATION, &self.sql, &params, |row| row.get::<_, Option<i64>>(0))?;
        Ok(sums.into_iter().flatten().next().map(|sum| u64::try_from(sum).unwrap_or(0)))
    }

    fn push(&mut self, text: fmt::Arguments<'_>) {
        self.sql.write_fmt(text).expect("writing to a String cannot fail");
    }

    fn param(&mut self, param: impl Into<CountParam>) -> usize {
        self.params.push(param.into());
        self.params.len() + 2
    }

    /// Counts the rows of a range. For whole milliseconds the ids suffice, so an index-only scan of
    /// the primary key counts all but the first and the last millisecond.
    fn add_events(&mut self, sign: char, range: EventRange) {
        let whole = |micros: i64| Timestamp::from_millis(Timestamp::from_micros(micros).millis());
        if range.is_empty() {
            return;
        }
        let (from, to) = (whole(range.from.micros() + 999), whole(range.to.micros()));
        if !self.service.is_empty() || from >= to {
            return self.add_events_by_time(sign, range);
        }
        if range.from < from {
            self.add_events_by_time(sign, EventRange::new(range.from, from));
        }
        if to < range.to {
            self.add_events_by_time(sign, EventRange::new(to, range.to));
        }
        let ids = EventRange::new(from, to);
        let [low, high] = [ids.low, ids.high].map(|id| self.param(id));
        self.push(format_args!(
            " {sign} (SELECT count(*) FROM events WHERE event_id >= ${low} AND event_id < ${high})"
        ));
    }

    fn add_events_by_time(&mut self, sign: char, range: EventRange) {
        let [low, high] = [range.low, range.high].map(|id| self.param(id));
        let [from, to] = [range.from, range.to].map(|time| self.param(time));
        let service = self.service;
        self.push(format_args!(
            " {sign} (SELECT count(*) FROM events WHERE event_id >= ${low} AND event_id < ${high} \
               AND timestamp >= ${from} AND timestamp < ${to}{service})",
        ));
    }

    /// Adds the counts of whole hours.
    fn add_hours(&mut self, first: Timestamp, last: Timestamp) {
        let [first, last] = [first, last].map(|time| self.param(time));
        let service = self.service;
        self.push(format_args!(
            " + (SELECT coalesce(sum(count), 0)::bigint FROM event_counts \
               WHERE hour >= ${first} AND hour < ${last}{service})",
        ));
    }

    /// Adds a subquery `name` for one hour: the sum of its minutes (`whole`), the sum of the
    /// minutes before `part`, and the hour's count (`counted`).
    fn add_minute_sums(&mut self, hour: Timestamp, part: Timestamp, name: &str) {
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

    /// Adds or subtracts the rows between `whole`, where the sum of counts begins, and `from`.
    fn add_start(&mut self, whole: Timestamp, from: Timestamp) {
        if from < whole {
            self.add_events('+', EventRange::new(from, whole));
        } else if from > whole {
            self.add_events('-', EventRange::new(whole, from));
        }
    }

    /// Adds the hours from `first` up to `to`; `last` is the hour nearest to `to`.
    fn add_hours_to(&mut self, first: Timestamp, last: Timestamp, to: Timestamp) {
        if to <= last {
            self.add_hours(first, last);
            if to < last {
                self.add_events('-', EventRange::new(to, last));
            }
            return;
        }
        let (at, from) = (self.param(to), self.param(last));
        self.push(format_args!(" + CASE WHEN now() - ${at} < ${at} - ${from} THEN 0"));
        let end = plus(last, HOUR_MICROS);
        self.add_hours(first, end);
        self.add_events('-', EventRange::new(to, end));
        self.sql.push_str(" ELSE 0");
        self.add_hours(first, last);
        self.add_events('+', EventRange::new(last, to));
        self.sql.push_str(" END");
    }
}

/// Counts rows for predicates that are not part of the counts. The statement timeout bounds it.
fn count_rows(
    pool: ReadPool<'_>,
    filter: &Filter,
    range: EventRange,
    extra: &ExtraPredicates,
) -> Result<u64, StoreError> {
    let service = if filter.service.is_some() { " AND service = $5" } else { "" };
    let mut statement = format!("SELECT count(*) FROM events WHERE {IN_RANGE}{service}");
    extra.append_sql(&mut statement, 6);
    let (low, high, from, to) =
        (PgUuid(range.low), PgUuid(range.high), PgTimestamp(range.from), PgTimestamp(range.to));
    let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
        (&low, Type::UUID),
        (&high, Type::UUID),
        (&from, Type::TIMESTAMPTZ),
        (&to, Type::TIMESTAMPTZ),
        (&filter.service, Type::TEXT),
    ];
    extra.append_params(&mut params);
    Ok(one(&pool.query(COUNT_OPERATION, &statement, &params, |row| number(row, 0))?))
}

fn one(counts: &[u64]) -> u64 {
    counts.first().copied().unwrap_or(0)
}

fn number(row: &Row, column: usize) -> u64 {
    u64::try_from(row.get::<_, i64>(column)).unwrap_or(0)
}

pub(super) fn interval_counts(
    pool: ReadPool<'_>,
    filter: &Filter,
    interval: CountInterval,
    rows_max: u32,
) -> Result<Vec<IntervalCount>, StoreError> {
    let (table, start) = match interval {
        CountInterval::Hour => ("event_counts", "hour"),
        CountInterval::Minute => ("event_minutes", "minute"),
    };
    // In event_minutes the empty name is the sum of all services.
    let service = match (&filter.service, interval) {
        (Some(_), _) => "AND service = $4",
        (None, CountInterval::Minute) => "AND service <> ''",
        (None, CountInterval::Hour) => "",
    };
    let statement = format!(
        "SELECT {start}, service, count FROM {table} WHERE {start} >= $1 AND {start} < $2 {service} \
         ORDER BY {start}, service LIMIT $3"
    );
    let (from, to, limit) = (PgTimestamp(filter.from), PgTimestamp(filter.to), i64::from(rows_max));
    let params: [(&(dyn ToSql + Sync), Type); 4] = [
        (&from, Type::TIMESTAMPTZ),
        (&to, Type::TIMESTAMPTZ),
        (&limit, Type::INT8),
        (&filter.service, Type::TEXT),
    ];
    pool.query("reading the counts", &statement, &params, |row| IntervalCount {
        start: row.get::<_, PgTimestamp>(0).0,
        service: row.get(1),
        count: number(row, 2),
    })
}

/// Sums `event_counts`, which has one row per service and hour.
pub(super) fn totals(pool: ReadPool<'_>, since: Timestamp, services_max: u16) -> Result<Totals, StoreError> {
    const OPERATION: &str = "adding up the counts";
    let services = pool.query(
        OPERATION,
        "WITH sums AS (SELECT service, sum(count)::bigint AS events FROM event_counts GROUP BY service) \
         SELECT service, events, (SELECT sum(events)::bigint FROM sums) FROM sums \
         ORDER BY events DESC, service LIMIT $1",
        &[(&i64::from(services_max), Type::INT8)],
        |row| ((row.get(0), number(row, 1)), number(row, 2)),
    )?;
    let hours = pool.query(
        OPERATION,
        "SELECT hour, sum(count)::bigint FROM event_counts WHERE hour >= $1 GROUP BY hour ORDER BY hour",
        &[(&PgTimestamp(since), Type::TIMESTAMPTZ)],
        |row| (row.get::<_, PgTimestamp>(0).0, number(row, 1)),
    )?;
    Ok(Totals {
        events: services.first().map_or(0, |(_, all)| *all),
        services: services.into_iter().map(|(service, _)| service).collect(),
        hours,
    })
}

/// Rounds a time down to a multiple of `micros`.
fn floor_to(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.micros().div_euclid(micros) * micros)
}

fn round_to(time: Timestamp, micros: i64) -> Timestamp {
    floor_to(plus(time, micros / 2), micros)
}

fn plus(time: Timestamp, micros: i64) -> Timestamp {
    Timestamp::from_micros(time.micros() + micros)
}
