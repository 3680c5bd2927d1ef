//! The response of `GET /stats`: events by interval and service, from the counters maintained as
//! events are stored. No event row is read, so the resolution is an hour or a minute.

use serde::Serialize;

use super::params::StatsQuery;
use crate::event::Timestamp;
use crate::http::Response;
use crate::http::problem::{self, ProblemKind};
use crate::storage::{CountInterval, Filter, IntervalCount};

/// Maximum rows of a response: a week of 59 services by hour, three hours of 55 services by minute.
pub const ROWS_MAX: u32 = 10_000;

/// Extends the time range of the query to whole intervals.
pub(super) fn whole_intervals(query: StatsQuery) -> StatsQuery {
    let micros = query.interval.micros();
    let floor = |time: i64| Timestamp::from_micros(time.div_euclid(micros) * micros);
    let StatsQuery { filter, interval } = query;
    let to = floor(filter.to.micros().saturating_add(micros - 1));
    StatsQuery { filter: Filter { from: floor(filter.from.micros()), to, ..filter }, interval }
}

pub(super) fn write_stats(
    response: &mut Response,
    query: &StatsQuery,
    counts: &[IntervalCount],
    bytes_max: usize,
) {
    if counts.len() > ROWS_MAX as usize {
        return write_too_long(response, &format!("{ROWS_MAX} counts"));
    }
    let StatsQuery { filter, interval } = query;
    let by_hour = *interval == CountInterval::Hour;
    let stats = Stats {
        from: filter.from.to_string(),
        to: filter.to.to_string(),
        total: counts.iter().map(|count| count.count).sum(),
        hours: by_hour.then(|| {
            let count = |count| HourStats { hour: start(count), service: &count.service, count: count.count };
            counts.iter().map(count).collect()
        }),
        minutes: (!by_hour).then(|| {
            let count =
                |count| MinuteStats { minute: start(count), service: &count.service, count: count.count };
            counts.iter().map(count).collect()
        }),
    };
    let body = sonic_rs::to_vec(&stats).expect("BUG: strings and numbers are serializable");
    if body.len() > bytes_max {
        return write_too_long(response, &format!("{bytes_max} bytes of counts"));
    }
    response.status = 200;
    response.content_type = "application/json";
    response.body = body;
}

fn start(count: &IntervalCount) -> String {
    count.start.to_string()
}

#[derive(Serialize)]
struct Stats<'a> {
    from: String,
    to: String,
    total: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    hours: Option<Vec<HourStats<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    minutes: Option<Vec<MinuteStats<'a>>>,
}

#[derive(Serialize)]
struct HourStats<'a> {
    hour: String,
    service: &'a str,
    count: u64,
}

#[derive(Serialize)]
struct MinuteStats<'a> {
    minute: String,
    service: &'a str,
    count: u64,
}

fn write_too_long(response: &mut Response, maximum: &str) {
    let detail = format!("there are more than {maximum}; request a shorter time range or one service");
    problem::write(response, ProblemKind::Invalid, &detail);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::HOUR_MICROS;

    fn query(from: i64, to: i64, interval: CountInterval) -> StatsQuery {
        let filter = Filter::between(Timestamp::from_micros(from), Timestamp::from_micros(to));
        StatsQuery { filter, interval }
    }

    #[test]
    fn whole_intervals_extends_the_range_to_their_boundaries() {
        #[track_caller]
        fn check(from: i64, to: i64, interval: CountInterval, expected: (i64, i64)) {
            let filter = whole_intervals(query(from, to, interval)).filter;
            let unit = interval.micros();
            assert_eq!((filter.from.micros() % unit, filter.to.micros() % unit), (0, 0));
            assert_eq!((filter.from.micros() / unit, filter.to.micros() / unit), expected);
        }
        for interval in [CountInterval::Hour, CountInterval::Minute] {
            let unit = interval.micros();
            check(0, unit, interval, (0, 1));
            check(unit - 1, unit + 1, interval, (0, 2));
            check(unit, unit + 1, interval, (1, 2));
        }
    }

    #[test]
    fn stats_response_rejects_more_than_the_maximum_rows_or_bytes() {
        let count = IntervalCount { start: Timestamp::default(), service: "s\"".into(), count: 2 };
        let by_hour = query(0, HOUR_MICROS, CountInterval::Hour);
        let mut response = Response::default();
        write_stats(&mut response, &by_hour, &[count.clone(), count.clone()], 1000);
        let wanted = r#"{"from":"1970-01-01T00:00:00.000000Z","to":"1970-01-01T01:00:00.000000Z","total":4,"hours":[{"hour":"1970-01-01T00:00:00.000000Z","service":"s\"","count":2},{"hour":"1970-01-01T00:00:00.000000Z","service":"s\"","count":2}]}"#;
        assert_eq!(String::from_utf8(response.body).unwrap(), wanted);
        let mut response = Response::default();
        let by_minute = query(0, HOUR_MICROS, CountInterval::Minute);
        write_stats(&mut response, &by_minute, std::slice::from_ref(&count), 1000);
        let wanted = r#"{"from":"1970-01-01T00:00:00.000000Z","to":"1970-01-01T01:00:00.000000Z","total":2,"minutes":[{"minute":"1970-01-01T00:00:00.000000Z","service":"s\"","count":2}]}"#;
        assert_eq!(String::from_utf8(response.body).unwrap(), wanted);
        let mut response = Response::default();
        write_stats(&mut response, &by_hour, &[count.clone(), count.clone()], 100);
        assert_eq!(response.status, 400);
        let mut response = Response::default();
        write_stats(&mut response, &by_hour, &vec![count; ROWS_MAX as usize + 1], usize::MAX);
        assert_eq!(response.status, 400);
    }
}
