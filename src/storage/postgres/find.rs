//! Queries for events: a page, one event by id. Each query has a statement timeout and reads only
//! the partitions of its time range.
//!
//! An id begins with the milliseconds of its event's timestamp. So a time range is also an id
//! range, by which the planner prunes partitions, and id order equals time order down to the
//! millisecond.

use std::ops::ControlFlow;

use postgres::Row;
use postgres::types::{ToSql, Type};

use super::read_query::ReadPool;
use super::types::{PgTimestamp, PgUuid};
use crate::event::{ArrivalNumber, Event, EventId, EventKey, MILLIS_END, Timestamp};
use crate::storage::{Chunk, ChunkBuilder, EventPage, EventStatus, Filter, SortOrder, StoreError};

/// The reason of a dead letter. PostgreSQL's messages may quote the row, so its size is bounded.
pub(super) const DEAD_REASON: &str = "left(reason, 4096)";

const COLUMNS: &str = "event_id, timestamp, ingested_at, service, message, metadata::text, id";

/// A time range, as timestamps and as ids. Both upper bounds are exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EventRange {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) low: EventId,
    pub(super) high: EventId,
}

impl EventRange {
    /// Clamps the range to the times that fit an id; no event lies outside of them.
    pub(super) fn new(from: Timestamp, to: Timestamp) -> Self {
        let from = from.clamp(Timestamp::default(), Timestamp::from_millis(MILLIS_END));
        let to = to.clamp(from, Timestamp::from_millis(MILLIS_END));
        let high =
            if to == from { from.millis() } else { Timestamp::from_micros(to.micros() - 1).millis() + 1 };
        Self { from, to, low: floor(from.millis()), high: floor(high) }
    }

    pub(super) fn from_filter(filter: &Filter) -> Self {
        Self::new(filter.from, filter.to)
    }

    pub(super) fn is_empty(self) -> bool {
        self.from == self.to
    }

    /// The rest of the range after an event, including the microsecond of the event.
    fn after(self, order: SortOrder, timestamp: Timestamp) -> Self {
        match order {
            SortOrder::Desc => Self::new(
                self.from,
                self.to.min(Timestamp::from_micros(timestamp.micros().saturating_add(1))),
            ),
            SortOrder::Asc => Self::new(self.from.max(timestamp), self.to.max(timestamp)),
        }
    }
}

fn floor(millis: i64) -> EventId {
    if millis >= MILLIS_END {
        return EventId::from_bytes([0xff; 16]);
    }
    EventId::floor(u64::try_from(millis).unwrap_or(0))
}

/// Reads the events of the page that fit into `bytes_max`. The bound applies as rows arrive: the
/// statement ends with the first row that does not fit.
pub(super) fn page(pool: ReadPool<'_>, page: &EventPage, bytes_max: usize) -> Result<Chunk, StoreError> {
    let mut range = EventRange::from_filter(&page.filter);
    if let Some(after) = page.after {
        range = range.after(page.order, after.timestamp);
    }
    if range.is_empty() || page.limit == 0 {
        return Ok(Chunk { events: Vec::new(), has_more: false });
    }
    let (direction, beyond) = match page.order {
        SortOrder::Desc => ("DESC", "<"),
        SortOrder::Asc => ("ASC", ">"),
    };
    let mut condition = IN_RANGE.to_owned();
    if page.filter.service.is_some() {
        condition.push_str(" AND service = $5");
    }
    if page.after.is_some() {
        condition.push_str(" AND (timestamp, id, event_id) ");
        condition.push_str(beyond);
        condition.push_str(" ($6, $7, $9)");
    }
    let extra = ExtraPredicates::from_filter(&page.filter);
    extra.append_sql(&mut condition, 10);
    let query = PageQuery { pool, page, extra: &extra, condition, direction, bytes_max };
    if page.filter.service.is_none() {
        return query.page_by_id(range);
    }
    let mut builder = ChunkBuilder::new(bytes_max);
    query.read_sorted(range, page.limit, &mut builder)?;
    Ok(builder.finish(page.limit))
}

/// The parts that all statements of one page query share.
struct PageQuery<'a> {
    pool: ReadPool<'a>,
    page: &'a EventPage,
    extra: &'a ExtraPredicates,
    condition: String,
    direction: &'static str,
    bytes_max: usize,
}

/// Events read beyond a page, to detect whether its last millisecond is complete.
const LOOKAHEAD: u16 = 16;

pub(super) const IN_RANGE: &str = "event_id >= $1 AND event_id < $2 AND timestamp >= $3 AND timestamp < $4";

impl PageQuery<'_> {
    /// Reads the page in id order, which is the order of time down to the millisecond, and sorts
    /// it: no index has the order of the keys. A few events beyond the page usually
    /// prove that its last millisecond is complete. If they do not, the events of that millisecond
    /// are read in time order, and only those: a scan of the newest events passes all rows of the
    /// batches that are being stored.
    fn page_by_id(&self, range: EventRange) -> Result<Chunk, StoreError> {
        let read_max = self.page.limit.saturating_add(LOOKAHEAD);
        let (condition, direction) = (&self.condition, self.direction);
        let statement =
            format!("SELECT {COLUMNS} FROM events WHERE {condition} ORDER BY event_id {direction} LIMIT $8");
        let mut builder = ChunkBuilder::new(self.bytes_max);
        self.query_each(&statement, range, read_max, |row| builder.push(decode_event(row)))?;
        let is_cut = builder.is_cut();
        let Chunk { mut events, has_more } = builder.finish(read_max);
        let incomplete = events.last().map(|event| event.event_id.millis()).filter(|_| has_more);
        events.retain(|event| Some(event.event_id.millis()) != incomplete);
        events.sort_unstable_by_key(Event::key);
        if self.page.order == SortOrder::Desc {
            events.reverse();
        }
        events.truncate(usize::from(self.page.limit));
        let missing = self.page.limit - u16::try_from(events.len()).unwrap_or(self.page.limit);
        if let Some(millis) = incomplete.and_then(|millis| i64::try_from(millis).ok())
            && missing > 0
            // A page that is cut may be shorter than its limit.
            && (!is_cut || events.is_empty())
        {
            let mut builder = ChunkBuilder::new(self.bytes_max);
            // These events fit: the builder above had them too.
            _ = events.into_iter().try_for_each(|event| builder.push(event));
            let range = EventRange { low: floor(millis), high: floor(millis + 1), ..range };
            self.read_sorted(range, missing, &mut builder)?;
            events = builder.finish(self.page.limit).events;
        }
        let has_more = events.len() == usize::from(self.page.limit) || (has_more && !events.is_empty());
        Ok(Chunk { events, has_more })
    }

    /// Reads events in time order. The subquery sorts metadata as it is stored, so that the text of
    /// a row is made when the row is sent: a sort of the texts would make all of them first.
    fn read_sorted(
        &self,
        range: EventRange,
        limit: u16,
        builder: &mut ChunkBuilder,
    ) -> Result<(), StoreError> {
        let (condition, direction) = (&self.condition, self.direction);
        let statement = format!(
            "SELECT {COLUMNS} FROM (SELECT event_id, timestamp, ingested_at, service, message, metadata, id \
             FROM events WHERE {condition} \
             ORDER BY timestamp {direction}, id {direction}, event_id {direction} LIMIT $8) AS page"
        );
        self.query_each(&statement, range, limit, |row| builder.push(decode_event(row)))
    }

    /// Runs a statement with all parameters of the page, including unused ones.
    fn query_each(
        &self,
        statement: &str,
        range: EventRange,
        limit: u16,
        each: impl FnMut(&Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let page = self.page;
        let (low, high) = (PgUuid(range.low), PgUuid(range.high));
        let (from, to) = (PgTimestamp(range.from), PgTimestamp(range.to));
        let after = page.after.map(|EventKey { timestamp, arrival, event_id }| {
            (PgTimestamp(timestamp), arrival.nanos(), PgUuid(event_id))
        });
        let (timestamp, arrival, id) = after.unwrap_or((PgTimestamp(range.from), 0, PgUuid(range.low)));
        let limit = i64::from(limit);
        let mut params: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&low, Type::UUID),
            (&high, Type::UUID),
            (&from, Type::TIMESTAMPTZ),
            (&to, Type::TIMESTAMPTZ),
            (&page.filter.service, Type::TEXT),
            (&timestamp, Type::TIMESTAMPTZ),
            (&arrival, Type::INT8),
            (&limit, Type::INT8),
            (&id, Type::UUID),
        ];
        self.extra.append_params(&mut params);
        self.pool.query_each("reading events", statement, &params, each)
    }
}

/// The predicates that no index supports, and their parameters.
#[derive(Debug)]
pub(super) struct ExtraPredicates {
    pattern: Option<String>,
    /// See [`Filter::metadata`].
    metadata: Vec<Vec<String>>,
    arrived_from: Option<i64>,
}

impl ExtraPredicates {
    pub(super) fn from_filter(filter: &Filter) -> Self {
        Self {
            pattern: filter.text.as_deref().map(ilike_pattern),
            metadata: filter.metadata.clone(),
            arrived_from: filter.arrived_from.map(ArrivalNumber::nanos),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pattern.is_none() && self.metadata.is_empty() && self.arrived_from.is_none()
    }

    /// Appends the predicates, with parameters numbered from `first` on.
    pub(super) fn append_sql(&self, condition: &mut String, first: usize) {
        let of_text = self.pattern.iter().map(|_| "message ILIKE $# ESCAPE '!'");
        let of_metadata = self.metadata.iter().map(|_| "metadata @> ANY ($#::text[]::jsonb[])");
        let of_arrival = self.arrived_from.iter().map(|_| "id >= $#");
        for (number, part) in (first..).zip(of_text.chain(of_metadata).chain(of_arrival)) {
            condition.push_str(" AND ");
            condition.push_str(&part.replace('#', &number.to_string()));
        }
    }

    pub(super) fn append_params<'a>(&'a self, params: &mut Vec<(&'a (dyn ToSql + Sync), Type)>) {
        params.extend(self.pattern.iter().map(|pattern| (pattern as &(dyn ToSql + Sync), Type::TEXT)));
        params.extend(self.metadata.iter().map(|objects| (objects as &(dyn ToSql + Sync), Type::TEXT_ARRAY)));
        params.extend(self.arrived_from.iter().map(|from| (from as &(dyn ToSql + Sync), Type::INT8)));
    }
}

/// Returns the ILIKE pattern that matches `text` literally as a substring, with `!` as the escape.
fn ilike_pattern(text: &str) -> String {
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

pub(super) fn find(pool: ReadPool<'_>, id: EventId) -> Result<Option<EventStatus>, StoreError> {
    let params: [(&(dyn ToSql + Sync), Type); 1] = [(&PgUuid(id), Type::UUID)];
    let statement = format!("SELECT {COLUMNS} FROM events WHERE event_id = $1");
    let stored = pool.query("reading an event", &statement, &params, decode_event)?;
    if let Some(event) = stored.into_iter().next() {
        return Ok(Some(EventStatus::Stored(event)));
    }
    let dead = |row: &Row| EventStatus::Dead { sqlstate: row.get(0), reason: row.get(1) };
    let statement = format!("SELECT sqlstate, {DEAD_REASON} FROM dead_events WHERE event_id = $1");
    Ok(pool.query("reading a dead letter", &statement, &params, dead)?.pop())
}

fn decode_event(row: &Row) -> Event {
    Event {
        event_id: row.get::<_, PgUuid>(0).0,
        timestamp: row.get::<_, PgTimestamp>(1).0,
        ingested_at: row.get::<_, PgTimestamp>(2).0,
        service: row.get(3),
        message: row.get(4),
        metadata: row.get(5),
        arrival: ArrivalNumber::from_nanos(row.get(6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: i64, to: i64) -> EventRange {
        EventRange::new(Timestamp::from_micros(from), Timestamp::from_micros(to))
    }

    #[test]
    fn event_range_is_the_narrowest_id_range_of_a_time_range() {
        let check = |from, to, low, high| {
            let range = range(from, to);
            assert_eq!((range.low, range.high), (EventId::floor(low), EventId::floor(high)), "{from}..{to}");
        };
        check(1000, 2000, 1, 2);
        check(1999, 2001, 1, 3);
        check(1500, 1501, 1, 2);
        check(-5, 1, 0, 1);
    }

    #[test]
    fn ilike_pattern_escapes_wildcards() {
        for (text, expected) in [("a", "%a%"), ("100%", "%100!%%"), ("a_b!c", "%a!_b!!c%"), ("\\", "%\\%")] {
            assert_eq!(ilike_pattern(text), expected);
        }
    }

    #[test]
    fn event_range_handles_empty_reversed_and_unbounded_ranges() {
        assert!(range(5, 5).is_empty());
        assert!(range(6, 5).is_empty());
        assert!(range(i64::MIN, 0).is_empty());
        let all = range(i64::MIN, i64::MAX);
        assert_eq!((all.low, all.high), (EventId::floor(0), EventId::from_bytes([0xff; 16])));
        assert!(range(i64::MAX, i64::MAX).is_empty());
    }

    #[test]
    fn event_range_after_an_event_includes_its_microsecond() {
        let whole = range(1_000_000, 2_000_000);
        let at = Timestamp::from_micros(1_500_000);
        assert_eq!(whole.after(SortOrder::Desc, at), range(1_000_000, 1_500_001));
        assert_eq!(whole.after(SortOrder::Asc, at), range(1_500_000, 2_000_000));
        assert!(whole.after(SortOrder::Desc, Timestamp::from_micros(0)).is_empty());
        assert!(whole.after(SortOrder::Asc, Timestamp::from_micros(3_000_000)).is_empty());
    }
}
