//! Parses the query strings of `GET /events` and `GET /stats`. All errors are reported together,
//! each with the name of its parameter. An unknown or repeated parameter is an error, since
//! ignoring a filter would return the wrong events.

use std::time::Duration;

use super::cursor::Cursor;
use super::metadata_filter;
use super::parameters::{ParameterReader, pairs, parse_number, parse_service, percent_decode};
use crate::event::timestamp::{self, ParseTimestampError};
use crate::event::{EventKey, MILLIS_END, Timestamp};
use crate::http::problem::{ECHO_BYTES_MAX, FieldError, FieldErrors};
use crate::json::text;
use crate::storage::{CountInterval, EventPage, Filter, SortOrder};

pub const LIMIT_MAX: u16 = 1000;
/// Maximum `limit` of an export: more events than a table holds.
const EXPORT_LIMIT_MAX: u64 = 1_000_000_000_000;
pub const LIMIT_DEFAULT: u16 = 100;
/// Time range of a query without `from`.
const SPAN_DEFAULT: Duration = Duration::from_hours(24);

/// Whether the response contains the total number of matching events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Exact,
    None,
}

/// A query for a page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub filter: Filter,
    pub order: SortOrder,
    /// 1 to [`LIMIT_MAX`].
    pub limit: u16,
    pub after: Option<EventKey>,
    pub count: Count,
}

impl Query {
    /// Parses the query string of `GET /events`.
    pub fn parse(query: &str, now: Timestamp) -> Result<Self, FieldErrors> {
        Params::read(query, NAMES).into_query(now)
    }

    /// Parses the query string of `GET /stats`: service, time range and interval.
    pub fn parse_stats(query: &str, now: Timestamp) -> Result<StatsQuery, FieldErrors> {
        let params = Params::read(query, STATS_NAMES);
        let interval = params.interval.unwrap_or_default();
        params.into_query(now).map(|query| StatsQuery { filter: query.filter, interval })
    }

    /// Parses the query string of an export: all events of the time range, unless a limit is given.
    pub fn parse_export(query: &str, now: Timestamp) -> Result<ExportQuery, FieldErrors> {
        let mut params = Params::read_up_to(query, EXPORT_NAMES, EXPORT_LIMIT_MAX);
        let limit = params.limit.take();
        params.into_query(now).map(|query| ExportQuery {
            filter: query.filter,
            order: query.order,
            after: query.after,
            limit: limit.unwrap_or(u64::MAX),
        })
    }

    /// Parses the query string of `GET /events/tail`: the filters that do not depend on time.
    pub fn parse_tail(query: &str, now: Timestamp) -> Result<TailQuery, FieldErrors> {
        let mut params = Params::read(query, TAIL_NAMES);
        let sample = params.sample.take().unwrap_or(1);
        params.into_query(now).map(|query| TailQuery { filter: query.filter, sample })
    }

    /// The page to read: one event more than the limit, to detect a next page.
    pub fn page(&self) -> EventPage {
        EventPage { filter: self.filter.clone(), order: self.order, limit: self.limit + 1, after: self.after }
    }
}

/// A query for all events that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportQuery {
    pub filter: Filter,
    pub order: SortOrder,
    pub after: Option<EventKey>,
    pub limit: u64,
}

/// A query for counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsQuery {
    pub filter: Filter,
    pub interval: CountInterval,
}

/// The events that a tail shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailQuery {
    /// Its time range is without meaning.
    pub filter: Filter,
    /// One of this many matching events is shown.
    pub sample: u32,
}

/// The parameters parsed so far.
#[derive(Default)]
struct Params {
    reader: ParameterReader,
    service: Option<String>,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    limit_max: u64,
    limit: Option<u64>,
    cursor: Option<Cursor>,
    order: Option<SortOrder>,
    count: Option<Count>,
    interval: Option<CountInterval>,
    metadata: Vec<Vec<String>>,
    text: Option<String>,
    sample: Option<u32>,
}

const NAMES: &[&str] = &["service", "from", "to", "limit", "cursor", "order", "count", "q", "metadata.KEY"];
/// Parameters of `GET /stats`.
const STATS_NAMES: &[&str] = &["service", "from", "to", "interval"];
/// Parameters of an export: all but `count`.
const EXPORT_NAMES: &[&str] = &["service", "from", "to", "limit", "cursor", "order", "q", "metadata.KEY"];
/// Parameters of `GET /events/tail`.
const TAIL_NAMES: &[&str] = &["service", "q", "metadata.KEY", "sample"];
/// Maximum of `sample`.
pub(super) const SAMPLE_MAX: u64 = 1_000_000;
/// Prefix of a metadata filter's name; the key follows.
const METADATA_PREFIX: &str = "metadata.";

/// Maximum metadata filters of a query.
const METADATA_MAX: usize = 8;
/// Maximum bytes of a metadata filter's key, and of its value.
pub(super) const METADATA_BYTES_MAX: usize = 256;
/// Maximum bytes of `q`, the text searched for in messages.
pub(super) const TEXT_BYTES_MAX: usize = 256;

impl Params {
    fn read(query: &str, names: &[&'static str]) -> Self {
        Self::read_up_to(query, names, u64::from(LIMIT_MAX))
    }

    fn read_up_to(query: &str, names: &[&'static str], limit_max: u64) -> Self {
        let mut params = Self { limit_max, ..Self::default() };
        for pair in pairs(query) {
            params.pair(pair, names);
        }
        params
    }

    fn pair(&mut self, pair: &str, names: &[&'static str]) {
        if names.contains(&"metadata.KEY") {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = percent_decode(name);
            if let Some(key) = decoded.as_deref().and_then(|name| name.strip_prefix(METADATA_PREFIX)) {
                return self.metadata_filter(key, value);
            }
        }
        // Moved out of `self`, since `set` borrows `self`.
        let mut reader = std::mem::take(&mut self.reader);
        reader.read(pair, names, |name, value| self.set(name, value));
        self.reader = reader;
    }

    fn set(&mut self, name: &'static str, value: String) -> Result<(), String> {
        match name {
            "service" => self.service = Some(parse_service(value)?),
            "from" => self.from = Some(parse_time(value)?),
            "to" => self.to = Some(parse_time(value)?),
            "limit" => self.limit = Some(parse_number(&value, 1, self.limit_max)?),
            "cursor" => self.cursor = Some(Cursor::decode(&value).map_err(|error| error.to_string())?),
            "order" => self.order = Some(one_of(&value, ("desc", SortOrder::Desc), ("asc", SortOrder::Asc))?),
            "sample" => self.sample = parse_number(&value, 1, SAMPLE_MAX)?.try_into().ok(),
            "q" => self.text = Some(parse_text(value)?),
            "interval" => {
                let values = (("hour", CountInterval::Hour), ("minute", CountInterval::Minute));
                self.interval = Some(one_of(&value, values.0, values.1)?);
            }
            "count" => self.count = Some(one_of(&value, ("exact", Count::Exact), ("none", Count::None))?),
            _ => unreachable!("BUG: {name} is in NAMES and has no parser"),
        }
        Ok(())
    }

    /// `metadata.KEY=VALUE`. Several filters must all match.
    fn metadata_filter(&mut self, key: &str, value: &str) {
        let fits = |text: &str| text.len() <= METADATA_BYTES_MAX && !text.contains('\0');
        let value = percent_decode(value).filter(|value| fits(value));
        let detail = match value {
            _ if self.metadata.len() == METADATA_MAX => {
                format!("{METADATA_PREFIX}KEY is given more than {METADATA_MAX} times")
            }
            Some(value) if !key.is_empty() && fits(key) => {
                self.metadata.push(metadata_filter::containment_objects(key, &value));
                return;
            }
            Some(_) | None => format!(
                "{METADATA_PREFIX}KEY=VALUE has a key of 1 to {METADATA_BYTES_MAX} bytes and a value of up to \
                 {METADATA_BYTES_MAX}, percent-encoded UTF-8 without NUL"
            ),
        };
        let field = format!("{METADATA_PREFIX}{}", text::truncate(key, ECHO_BYTES_MAX));
        self.reader.errors.push(|| FieldError { index: None, field: field.into(), detail });
    }

    fn into_query(mut self, now: Timestamp) -> Result<Query, FieldErrors> {
        let span = i64::try_from(SPAN_DEFAULT.as_micros()).unwrap_or(i64::MAX);
        let to = self.to.unwrap_or(now);
        // The day before `to`, which defaults to now.
        let from = self.from.unwrap_or_else(|| Timestamp::from_micros((to.micros() - span).max(0)));
        if from >= to && !["from", "to"].iter().any(|name| self.reader.has_error(name)) {
            self.reader.push_error("from", &format!("must be before to, which is {to}"));
        }
        let order = match (self.order, self.cursor) {
            (Some(order), Some(cursor)) if order != cursor.order => {
                self.reader.push_error("cursor", "belongs to a query in the other order");
                order
            }
            (Some(order), _) => order,
            (None, Some(cursor)) => cursor.order,
            (None, None) => SortOrder::Desc,
        };
        if !self.reader.errors.is_empty() {
            return Err(self.reader.errors);
        }
        Ok(Query {
            filter: Filter {
                service: self.service,
                metadata: self.metadata,
                text: self.text,
                ..Filter::between(from, to)
            },
            order,
            limit: self.limit.and_then(|limit| limit.try_into().ok()).unwrap_or(LIMIT_DEFAULT),
            after: self.cursor.map(|cursor| cursor.last),
            count: self.count.unwrap_or(Count::Exact),
        })
    }
}

fn parse_text(value: String) -> Result<String, String> {
    if value.is_empty() || value.len() > TEXT_BYTES_MAX || value.contains('\0') {
        return Err(format!("must be 1 to {TEXT_BYTES_MAX} bytes without NUL"));
    }
    Ok(value)
}

fn parse_time(value: String) -> Result<Timestamp, String> {
    let mut bytes = value.into_bytes();
    let number = bytes.iter().all(|byte| byte.is_ascii_digit() || b"-.".contains(byte))
        && bytes.first() != Some(&b'0');
    let read = if number || bytes == b"0" {
        timestamp::parse_epoch_millis(&bytes).map_err(|fault| {
            let names_unit = matches!(fault, ParseTimestampError::WrongUnit { .. });
            if names_unit { fault } else { ParseTimestampError::InvalidFormat }
        })
    } else {
        // A `+` not encoded as %2B arrives as a space. RFC 3339 has no other space before the
        // offset.
        if let Some(sign) = bytes.len().checked_sub(6)
            && sign > 10
            && bytes[sign] == b' '
        {
            bytes[sign] = b'+';
        }
        timestamp::parse_rfc3339(&bytes)
    };
    match read {
        Ok(time) if time.micros() < 0 => Err("is before 1970".to_owned()),
        Ok(time) if time.millis() >= MILLIS_END => Err("is after the year 10889".to_owned()),
        Ok(time) => Ok(time),
        Err(fault) => Err(fault.to_string()),
    }
}

fn one_of<T>(value: &str, one: (&str, T), other: (&str, T)) -> Result<T, String> {
    if value == one.0 {
        Ok(one.1)
    } else if value == other.0 {
        Ok(other.1)
    } else {
        Err(format!("must be {} or {}", one.0, other.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ArrivalNumber, EventId};
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

    #[track_caller]
    fn check(query: &str, change: impl FnOnce(&mut Query)) {
        let day = Timestamp::from_micros(NOW.micros() - 86_400_000_000);
        let mut wanted = Query {
            filter: Filter::between(day, NOW),
            order: SortOrder::Desc,
            limit: 100,
            after: None,
            count: Count::Exact,
        };
        change(&mut wanted);
        assert_eq!(
            Query::parse(query, NOW).map_err(|errors| errors.listed().to_vec()),
            Ok(wanted),
            "{query}"
        );
    }

    #[track_caller]
    fn check_refused(query: &str, wanted: &[(&str, &str)]) {
        let errors = Query::parse(query, NOW).unwrap_err();
        let got: Vec<_> = errors.listed().iter().map(|e| (e.field.as_ref(), e.detail.as_str())).collect();
        assert_eq!(got.len(), wanted.len(), "{query}: {got:?}");
        for ((field, detail), (wanted_field, part)) in got.iter().zip(wanted) {
            assert_eq!(field, wanted_field, "{query}");
            assert!(detail.contains(part), "{query}: {detail}");
        }
    }

    #[test]
    fn parse_reads_every_parameter() {
        let hour = Timestamp::from_millis(1_795_435_200_000 - 3_600_000);
        check("", |_| {});
        check("&&", |_| {});
        check("service=a%20b+%C3%A9%26", |q| q.filter.service = Some("a b é&".to_owned()));
        check("%73ervice=s", |q| q.filter.service = Some("s".to_owned()));
        check("from=1795431600000", |q| q.filter.from = hour);
        check("from=2026-11-23T11:00:00Z&to=2026-11-23T11:00:00.000001Z", |q| {
            q.filter.from = hour;
            q.filter.to = Timestamp::from_micros(hour.micros() + 1);
        });
        check("from=2026-11-23T13:00:00%2B02:00", |q| q.filter.from = hour);
        check("from=2026-11-23T13:00:00+02:00", |q| q.filter.from = hour);
        check("from=2026-11-23+11:00:00Z", |q| q.filter.from = hour);
        check("from=0", |q| q.filter.from = Timestamp::from_micros(0));
        check("to=1795431600000", |q| {
            q.filter.from = Timestamp::from_micros(hour.micros() - 86_400_000_000);
            q.filter.to = hour;
        });
        check("limit=1", |q| q.limit = 1);
        check("limit=1000", |q| q.limit = 1000);
        check("order=asc&count=none", |q| {
            q.order = SortOrder::Asc;
            q.count = Count::None;
        });
        check("q=100%25+Sure", |q| q.filter.text = Some("100% Sure".to_owned()));
        check("metadata.region=eu&metadata.a.b%3D=1", |q| {
            let any = |objects: &[&str]| objects.iter().map(ToString::to_string).collect::<Vec<_>>();
            q.filter.metadata =
                vec![any(&[r#"{"region":"eu"}"#]), any(&[r#"{"a.b=":"1"}"#, r#"{"a.b=":1}"#])];
        });
        let last =
            EventKey { timestamp: hour, arrival: ArrivalNumber::from_nanos(7), event_id: EventId::floor(5) };
        let cursor = Cursor { order: SortOrder::Asc, last };
        for order in ["", "&order=asc"] {
            check(&format!("cursor={}{order}", cursor.encode()), |q| {
                q.order = SortOrder::Asc;
                q.after = Some(last);
            });
        }
        check_refused(&format!("order=desc&cursor={}", cursor.encode()), &[("cursor", "other order")]);
    }

    #[test]
    fn parse_reports_all_errors_together() {
        check_refused("limit=0", &[("limit", "from 1 to 1000")]);
        for limit in ["", "1001", "-1", "%2B5", "1.0", "99999999999", "ten"] {
            check_refused(&format!("limit={limit}"), &[("limit", "from 1 to 1000")]);
        }
        check_refused("limit", &[("limit", "from 1 to 1000")]);
        check_refused("service=", &[("service", "1 to 100 bytes")]);
        check_refused("service=a%00", &[("service", "without NUL")]);
        check_refused(&format!("service={}", "s".repeat(101)), &[("service", "1 to 100 bytes")]);
        check_refused("service=%ff", &[("service", "percent-encoded")]);
        check_refused("service=%4", &[("service", "percent-encoded")]);
        check_refused("service=%zz", &[("service", "percent-encoded")]);
        check_refused("order=down", &[("order", "desc or asc")]);
        check_refused("count=some", &[("count", "exact or none")]);
        check_refused("cursor=abc", &[("cursor", "next_cursor")]);
        check_refused("from=yesterday", &[("from", "RFC 3339")]);
        check_refused("from=-1", &[("from", "before 1970")]);
        check_refused("from=1969-12-31T23:59:59Z", &[("from", "before 1970")]);
        check_refused("to=281474976710656", &[("to", "10889")]);
        check_refused("to=99999999999999999999", &[("to", "10889")]);
        check_refused("from=1795435200000", &[("from", "before to")]);
        check_refused("from=1795435200000&to=1", &[("from", "before to")]);
        check_refused("limit=1&limit=1", &[("limit", "more than once")]);
        check_refused("Limit=1", &[("Limit", "not a parameter")]);
        check_refused("%zz=1", &[("%zz", "not a parameter")]);
        check_refused("q=", &[("q", "1 to 256 bytes")]);
        check_refused(&format!("q={}", "s".repeat(257)), &[("q", "1 to 256 bytes")]);
        check_refused("metadata.=1", &[("metadata.", "1 to 256 bytes")]);
        check_refused("metadata.k=%00", &[("metadata.k", "without NUL")]);
        check_refused("metadata=1", &[("metadata", "not a parameter")]);
        assert!(Query::parse(&"metadata.k=1&".repeat(METADATA_MAX), NOW).is_ok());
        check_refused(&"metadata.k=1&".repeat(METADATA_MAX + 1), &[("metadata.k", "more than 8 times")]);
        check_refused("=", &[("", "not a parameter")]);
        check_refused(
            "from=x&to=y&limit=z&user=u",
            &[("from", "RFC"), ("to", "RFC"), ("limit", "1000"), ("user", "not a parameter")],
        );
        let long = "n".repeat(9000);
        check_refused(&long, &[(&format!("{}...", "n".repeat(64)), "not a parameter")]);
    }

    #[test]
    fn a_time_in_another_unit_than_milliseconds_is_named() {
        for (time, unit) in [
            ("1795435200", "epoch seconds"),
            ("1795435200.25", "epoch seconds"),
            ("1795435200123456", "epoch microseconds"),
            ("1795435200123456789", "epoch nanoseconds"),
        ] {
            check_refused(&format!("from={time}"), &[("from", unit)]);
            check_refused(&format!("to={time}"), &[("to", unit)]);
            for name in ["from", "to"] {
                let query = format!("{name}={time}");
                for errors in [
                    Query::parse_stats(&query, NOW).unwrap_err(),
                    Query::parse_export(&query, NOW).unwrap_err(),
                ] {
                    assert!(errors.listed()[0].detail.contains(unit), "{query}");
                }
            }
        }
        check_refused("from=1795435200123.5", &[("from", "RFC 3339")]);
        check_refused("from=2026-11-23", &[("from", "RFC 3339")]);
    }

    #[test]
    fn parse_stats_accepts_service_time_and_interval_only() {
        for (query, interval) in [
            ("service=a&from=0", CountInterval::Hour),
            ("interval=hour", CountInterval::Hour),
            ("interval=minute", CountInterval::Minute),
        ] {
            assert_eq!(Query::parse_stats(query, NOW).unwrap().interval, interval, "{query}");
        }
        let errors = Query::parse_stats("interval=day", NOW).unwrap_err();
        assert_eq!(errors.listed()[0].detail, "interval must be hour or minute");
        let filter = Query::parse_stats("service=a&from=0", NOW).unwrap().filter;
        assert_eq!(
            (filter.service.as_deref(), filter.from, filter.to),
            (Some("a"), Timestamp::default(), NOW)
        );
        for query in ["q=a", "limit=1", "metadata.k=1", "count=none"] {
            assert!(Query::parse_stats(query, NOW).is_err(), "{query}");
        }
    }

    #[test]
    fn parse_tail_accepts_the_filters_without_time_only() {
        let TailQuery { filter, sample } = Query::parse_tail("service=a&q=b&metadata.k=1", NOW).unwrap();
        assert_eq!((sample, Query::parse_tail("sample=10", NOW).unwrap().sample), (1, 10));
        assert_eq!((filter.service.as_deref(), filter.text.as_deref()), (Some("a"), Some("b")));
        assert_eq!(filter.metadata, [[r#"{"k":"1"}"#, r#"{"k":1}"#]]);
        for query in ["from=0", "to=1", "limit=1", "cursor=x", "order=asc", "count=none", "sample=0"] {
            assert!(Query::parse_tail(query, NOW).is_err(), "{query}");
        }
    }

    #[test]
    fn parse_export_has_no_limit_by_default() {
        assert_eq!(Query::parse_export("", NOW).unwrap().limit, u64::MAX);
        let query = Query::parse_export("limit=1000000&order=asc&q=a&metadata.k=1&service=s", NOW).unwrap();
        assert_eq!((query.limit, query.order), (1_000_000, SortOrder::Asc));
        for query in ["count=none", "limit=0", "limit=1000000000001", "limit=-1"] {
            assert!(Query::parse_export(query, NOW).is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn parse_does_not_panic(query in "((service|from|to|limit|cursor|order|count)?[=&%+0-9A-Fa-f:TZ.-]{0,30}){0,4}\\PC{0,9}") {
            if let Ok(query) = Query::parse(&query, NOW) {
                prop_assert!(query.filter.from < query.filter.to && (1..=1000).contains(&query.limit));
            }
        }
    }
}
