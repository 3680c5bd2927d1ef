//! `aurore-events top`: the rates of the services that send events, again every second.
//!
//! The rates by service are those of stored events, from the counts of `GET /health/business`: they
//! are exact, of every server of the database, and cost the server no query. The rate of received
//! events is that of the server asked, from `GET /metrics`. Rejected: counting the events of a tail,
//! which skips events above some rate.
//!
//! It must not depend on the server's stages: it is a client.

mod args;
mod rates;
mod report;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use args::{TopCommand, command};

use super::{server_answer, terminal};
use crate::clock::{Clock, Moment};
use crate::event::Timestamp;
use crate::event::timestamp::parse_rfc3339;
use crate::gateway::forward::http_client;
use rates::{ServiceCounts, WindowRates};
use report::{Layout, Report};

const INTERVAL: Duration = Duration::from_secs(1);
/// A report of 50 services with the longest names takes less.
const RESPONSE_BYTES_MAX: u64 = 1 << 20;

/// Why there are no rates.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    #[error("{url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url}: {reason}")]
    Refused { url: String, reason: String },
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// The members of `GET /health/business` that are used.
#[derive(Debug, Deserialize)]
struct BusinessBody {
    as_of: Option<String>,
    total_events: Option<u64>,
    events_by_service: BTreeMap<String, u64>,
}

/// The members of `GET /metrics` that are used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricsBody {
    total_enqueued: u64,
}

/// What was asked for so far.
#[derive(Debug, Default)]
struct Observation {
    /// Events that the server has received, and when it said so.
    received: Option<(Moment, u64)>,
    received_per_second: Option<f64>,
    /// The latest count, and when it was first seen.
    counts: Option<(Moment, ServiceCounts)>,
    rates: Option<WindowRates>,
}

impl TopCommand {
    /// Prints reports until `stop` is disconnected, the output is closed, or there were `count`.
    pub fn run(&self, clock: &Clock, stop: &Receiver<()>) -> Result<(), TopError> {
        let out = io::stdout();
        let is_screen = !self.json && out.is_terminal();
        match self.observe(clock, stop, is_screen, &mut out.lock()) {
            Err(TopError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn observe(
        &self,
        clock: &Clock,
        stop: &Receiver<()>,
        is_screen: bool,
        out: &mut impl Write,
    ) -> Result<(), TopError> {
        let agent = http_client();
        let mut seen = Observation::default();
        let mut reports = 0;
        let mut is_first = true;
        loop {
            match self.ask(&agent, clock, &mut seen) {
                Ok(()) => {}
                // A server that has answered once may come back.
                Err(TopError::Unreachable { url, reason }) if !is_first => {
                    log::warn!("{url}: {reason}");
                }
                Err(error) => return Err(error),
            }
            is_first = false;
            let report = seen.report(clock);
            if is_screen {
                let lines_max = terminal::rows(&io::stdout()).map_or(usize::MAX, usize::from);
                let layout = Layout { services_max: self.services_max, lines_max, colours: self.colours };
                // To the upper left corner, and clear what is below.
                write!(out, "\x1b[H\x1b[J{}", report.text(&self.server, layout))?;
                out.flush()?;
            } else if report.rates.is_some() {
                if self.json {
                    writeln!(out, "{}", report.json())?;
                } else {
                    let layout =
                        Layout { services_max: self.services_max, lines_max: usize::MAX, colours: false };
                    writeln!(out, "{}", report.text(&self.server, layout))?;
                }
                out.flush()?;
            }
            reports += u64::from(report.rates.is_some());
            if self.count.is_some_and(|count| reports >= count)
                || stop.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout)
                || terminal::is_closed(&io::stdout())
            {
                return Ok(());
            }
        }
    }

    /// Asks the server once.
    fn ask(&self, agent: &ureq::Agent, clock: &Clock, seen: &mut Observation) -> Result<(), TopError> {
        let metrics: MetricsBody = self.get(agent, "/metrics")?;
        seen.add_received(clock.now(), metrics.total_enqueued);
        let business: BusinessBody = self.get(agent, "/health/business")?;
        let as_of = business.as_of.and_then(|text| parse_rfc3339(text.as_bytes()).ok());
        if let (Some(as_of), Some(total)) = (as_of, business.total_events) {
            seen.add_counts(
                clock.now(),
                ServiceCounts { as_of, total, services: business.events_by_service },
            );
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, agent: &ureq::Agent, path: &str) -> Result<T, TopError> {
        let url = format!("{}{path}", self.server);
        let unreachable = |reason: String| TopError::Unreachable { url: url.clone(), reason };
        let mut request = agent.get(&url).header("Accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("Authorization", server_answer::bearer(token));
        }
        let mut response = request.call().map_err(|error| unreachable(error.to_string()))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(RESPONSE_BYTES_MAX).read_to_vec();
        let body = body.map_err(|error| unreachable(error.to_string()))?;
        if status == 200 {
            return sonic_rs::from_slice(&body).map_err(|error| unreachable(error.to_string()));
        }
        let reason = server_answer::reason(status.as_u16(), &body);
        if status.is_client_error() && status != 408 && status != 429 {
            Err(TopError::Refused { url, reason })
        } else {
            Err(unreachable(reason))
        }
    }
}

impl Observation {
    fn add_received(&mut self, now: Moment, received: u64) {
        self.received_per_second = self.received.and_then(|(then, before)| {
            // Fewer than before: the server has started again.
            let events = received.checked_sub(before)?;
            rates::per_second(events, now.since(then).as_secs_f64())
        });
        self.received = Some((now, received));
    }

    fn add_counts(&mut self, now: Moment, counts: ServiceCounts) {
        if let Some((_, before)) = &self.counts {
            if before.as_of == counts.as_of {
                return;
            }
            self.rates = WindowRates::between(before, &counts);
        }
        self.counts = Some((now, counts));
    }

    fn report(&self, clock: &Clock) -> Report<'_> {
        let counted = self.counts.as_ref();
        Report {
            time: Timestamp::from_millis(clock.wall().millis()),
            received_per_second: self.received_per_second,
            as_of: counted.map(|(_, counts)| counts.as_of),
            age: counted.map(|(seen, _)| clock.now().since(*seen)),
            rates: self.rates.as_ref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(as_of_s: i64, total: u64) -> ServiceCounts {
        let services = BTreeMap::from([("a".to_owned(), total)]);
        ServiceCounts { as_of: Timestamp::from_millis(as_of_s * 1000), total, services }
    }

    #[test]
    fn rates_are_those_between_two_counts_however_often_one_is_seen() {
        let clock = Clock::manual(Timestamp::from_millis(0), 1);
        let mut seen = Observation::default();
        seen.add_counts(clock.now(), counts(10, 100));
        assert!(seen.rates.is_none());
        clock.advance(Duration::from_secs(1));
        seen.add_counts(clock.now(), counts(10, 100));
        assert!(seen.rates.is_none());
        assert_eq!(seen.report(&clock).age, Some(Duration::from_secs(1)));
        seen.add_counts(clock.now(), counts(14, 300));
        seen.add_counts(clock.now(), counts(14, 300));
        let rates = seen.rates.as_ref().unwrap();
        assert!((rates.stored_per_second - 50.0).abs() < 1e-9, "{rates:?}");
        assert_eq!(seen.report(&clock).age, Some(Duration::ZERO));
    }

    #[test]
    fn restarted_server_has_no_rate_of_received_events_for_a_moment() {
        let clock = Clock::manual(Timestamp::from_millis(0), 1);
        let mut seen = Observation::default();
        let mut after = |seconds, received| {
            clock.advance(Duration::from_secs(seconds));
            seen.add_received(clock.now(), received);
            seen.received_per_second
        };
        assert_eq!(after(0, 5), None);
        assert_eq!(after(2, 25), Some(10.0));
        assert_eq!(after(1, 3), None);
        assert_eq!(after(1, 4), Some(1.0));
    }
}
