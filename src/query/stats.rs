//! The response of `GET /stats`: events by hour and service, from the counters maintained as events
//! are stored. No event row is read, so the resolution is one hour.

use serde::Serialize;

use crate::event::{HOUR_MICROS, Timestamp};
use crate::http::Response;
use crate::http::problem::{self, ProblemKind};
use crate::storage::{Filter, HourCount};

/// Maximum rows of a response: a week of 59 services.
pub const ROWS_MAX: u32 = 10_000;

/// Extends the time range of `filter` to whole hours.
pub(super) fn whole_hours(filter: Filter) -> Filter {
    let hour = |micros: i64| Timestamp::from_micros(micros.div_euclid(HOUR_MICROS) * HOUR_MICROS);
    let to = hour(filter.to.micros().saturating_add(HOUR_MICROS - 1));
    Filter { from: hour(filter.from.micros()), to, ..filter }
}

pub(super) fn write_stats(response: &mut Response, filter: &Filter, hours: &[HourCount], bytes_max: usize) {
    if hours.len() > ROWS_MAX as usize {
        return write_too_long(response, &format!("{ROWS_MAX} counts"));
    }
    let total: u64 = hours.iter().map(|hour| hour.count).sum();
    let stats = Stats {
        from: filter.from.to_string(),
        to: filter.to.to_string(),
        total,
        hours: hours.iter().map(StatsHour::from).collect(),
    };
    let body = sonic_rs::to_vec(&stats).expect("BUG: strings and numbers are serializable");
    if body.len() > bytes_max {
        return write_too_long(response, &format!("{bytes_max} bytes of counts"));
    }
    response.status = 200;
    response.content_type = "application/json";
    response.body = body;
}

#[derive(Serialize)]
struct Stats<'a> {
    from: String,
    to: String,
    total: u64,
    hours: Vec<StatsHour<'a>>,
}

#[derive(Serialize)]
struct StatsHour<'a> {
    hour: String,
    service: &'a str,
    count: u64,
}

impl<'a> From<&'a HourCount> for StatsHour<'a> {
    fn from(count: &'a HourCount) -> Self {
        Self { hour: count.hour.to_string(), service: &count.service, count: count.count }
    }
}

fn write_too_long(response: &mut Response, maximum: &str) {
    let detail = format!("there are more than {maximum}; request a shorter time range or one service");
    problem::write(response, ProblemKind::Invalid, &detail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_hours_extends_the_range_to_hour_boundaries() {
        #[track_caller]
        fn check(from: i64, to: i64, expected: (i64, i64)) {
            let filter = Filter::between(Timestamp::from_micros(from), Timestamp::from_micros(to));
            let hours = whole_hours(filter);
            assert_eq!((hours.from.micros() / HOUR_MICROS, hours.to.micros() / HOUR_MICROS), expected);
        }
        check(0, HOUR_MICROS, (0, 1));
        check(HOUR_MICROS - 1, HOUR_MICROS + 1, (0, 2));
        check(HOUR_MICROS, HOUR_MICROS + 1, (1, 2));
    }

    #[test]
    fn stats_response_rejects_more_than_the_maximum_rows_or_bytes() {
        let hour = HourCount { hour: Timestamp::default(), service: "s\"".into(), count: 2 };
        let filter = Filter::between(Timestamp::default(), Timestamp::from_micros(HOUR_MICROS));
        let mut response = Response::default();
        write_stats(&mut response, &filter, &[hour.clone(), hour.clone()], 1000);
        let wanted = r#"{"from":"1970-01-01T00:00:00.000000Z","to":"1970-01-01T01:00:00.000000Z","total":4,"hours":[{"hour":"1970-01-01T00:00:00.000000Z","service":"s\"","count":2},{"hour":"1970-01-01T00:00:00.000000Z","service":"s\"","count":2}]}"#;
        assert_eq!(String::from_utf8(response.body).unwrap(), wanted);
        let mut response = Response::default();
        write_stats(&mut response, &filter, &[hour.clone(), hour.clone()], 100);
        assert_eq!(response.status, 400);
        let mut response = Response::default();
        write_stats(&mut response, &filter, &vec![hour; ROWS_MAX as usize + 1], usize::MAX);
        assert_eq!(response.status, 400);
    }
}
