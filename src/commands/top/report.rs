//! One report of the rates, as a table or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::rates::WindowRates;
use crate::event::Timestamp;
use crate::logging::is_display_control;

/// A name of a service is cut after as many characters in a table.
const NAME_CHARS_MAX: usize = 40;
/// Lines of a table that are not services.
const HEAD_LINES: usize = 4;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Report<'a> {
    pub(super) time: Timestamp,
    /// By the server asked.
    pub(super) received_per_second: Option<f64>,
    /// Of the latest count.
    pub(super) as_of: Option<Timestamp>,
    /// How long that count has been known.
    pub(super) age: Option<Duration>,
    pub(super) rates: Option<&'a WindowRates>,
}

/// The bounds of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) services_max: usize,
    pub(super) lines_max: usize,
    pub(super) colours: bool,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    time: String,
    received_per_second: Option<f64>,
    as_of: Option<String>,
    age_seconds: Option<f64>,
    window_seconds: Option<f64>,
    stored_per_second: Option<f64>,
    services: Vec<ServiceJson<'a>>,
}

#[derive(Serialize)]
struct ServiceJson<'a> {
    service: &'a str,
    events_per_second: f64,
    share_percent: f64,
    events: u64,
}

impl Report<'_> {
    /// One line.
    pub(super) fn json(&self) -> String {
        let services = self.rates.map_or(&[][..], |rates| &rates.services).iter().map(|rate| ServiceJson {
            service: &rate.service,
            events_per_second: thousandths(rate.events_per_second),
            share_percent: thousandths(rate.share_percent),
            events: rate.events,
        });
        let report = ReportJson {
            time: self.time.to_string(),
            received_per_second: self.received_per_second.map(thousandths),
            as_of: self.as_of.map(|as_of| as_of.to_string()),
            age_seconds: self.age.map(|age| thousandths(age.as_secs_f64())),
            window_seconds: self.rates.map(|rates| thousandths(rates.window_s)),
            stored_per_second: self.rates.map(|rates| thousandths(rates.stored_per_second)),
            services: services.collect(),
        };
        sonic_rs::to_string(&report).expect("BUG: numbers and strings are serializable")
    }

    /// Some lines, each with its end.
    pub(super) fn text(&self, server: &str, layout: Layout) -> String {
        let mut out = format!("{}  {server}\n", self.time);
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        let mut line = format!("received here {}/s", rate(self.received_per_second));
        match (self.rates, self.age) {
            (Some(rates), Some(age)) => {
                let (stored, window, age) = (rates.stored_per_second, rates.window_s, age.as_secs_f64());
                write!(
                    line,
                    "   stored by all servers {stored:.1}/s, over {window:.1} s until {age:.0} s ago"
                )
            }
            (None, Some(_)) => line.write_str("   waiting for the next count of the table"),
            (_, None) => line.write_str("   the table was not counted yet"),
        }
        .expect("a write to a String does not fail");
        out.push_str(&line);
        out.push_str("\n\n");
        let (bold, plain) = if layout.colours { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        writeln!(out, "{bold}{:>12} {:>7} {:>14}  SERVICE{plain}", "EVENTS/S", "SHARE", "IN TABLE")
            .expect("a write to a String does not fail");
        let rows = layout.services_max.min(layout.lines_max.saturating_sub(HEAD_LINES + 1));
        for service in self.rates.iter().flat_map(|rates| &rates.services).take(rows) {
            let name: String = service
                .service
                .chars()
                .take(NAME_CHARS_MAX)
                .map(|c| if is_display_control(c) { '\u{fffd}' } else { c })
                .collect();
            writeln!(
                out,
                "{:>12.1} {:>6.1}% {:>14}  {name}",
                service.events_per_second, service.share_percent, service.events
            )
            .expect("a write to a String does not fail");
        }
        out
    }
}

fn thousandths(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::top::rates::ServiceRate;

    fn rates() -> WindowRates {
        let service = |service: &str, events_per_second, share_percent, events| ServiceRate {
            service: service.to_owned(),
            events_per_second,
            share_percent,
            events,
        };
        WindowRates {
            window_s: 5.0,
            stored_per_second: 3.0,
            services: vec![service("a\u{1b}b", 2.0, 200.0 / 3.0, 10), service("c", 1.0, 100.0 / 3.0, 9)],
        }
    }

    fn report(rates: Option<&WindowRates>) -> Report<'_> {
        Report {
            time: Timestamp::from_millis(1000),
            received_per_second: Some(4.25),
            as_of: Some(Timestamp::from_millis(0)),
            age: Some(Duration::from_secs(2)),
            rates,
        }
    }

    #[test]
    fn table_has_the_services_that_fit() {
        let rates = rates();
        let layout = Layout { services_max: 20, lines_max: usize::MAX, colours: false };
        let text = report(Some(&rates)).text("http://h", layout);
        let expected = "1970-01-01T00:00:01.000000Z  http://h\n\
             received here 4.2/s   stored by all servers 3.0/s, over 5.0 s until 2 s ago\n\n    \
             EVENTS/S   SHARE       IN TABLE  SERVICE\n         \
             2.0   66.7%             10  a\u{fffd}b\n         \
             1.0   33.3%              9  c\n";
        assert_eq!(text, expected);
        for (services_max, lines_max, lines) in [(1, usize::MAX, 5), (20, 6, 5), (20, 7, 6), (20, 0, 4)] {
            let text = report(Some(&rates)).text("", Layout { services_max, lines_max, colours: true });
            assert_eq!(text.lines().count(), lines, "{services_max} {lines_max}: {text}");
        }
        assert!(report(None).text("", layout).contains("waiting for the next count"));
    }

    #[test]
    fn json_has_all_services_in_a_line() {
        let (rates, unknown) = (rates(), Report { received_per_second: None, ..report(None) });
        assert_eq!(
            report(Some(&rates)).json(),
            r#"{"time":"1970-01-01T00:00:01.000000Z","received_per_second":4.25,"as_of":"1970-01-01T00:00:00.000000Z","age_seconds":2.0,"window_seconds":5.0,"stored_per_second":3.0,"services":[{"service":"a\u001bb","events_per_second":2.0,"share_percent":66.667,"events":10},{"service":"c","events_per_second":1.0,"share_percent":33.333,"events":9}]}"#
        );
        assert!(unknown.json().contains(r#""received_per_second":null"#), "{}", unknown.json());
    }
}
