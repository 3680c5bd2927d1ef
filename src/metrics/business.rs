//! What is stored, by service and hour, as it was a few seconds ago. A thread of its own asks for it, so that a scrape
//! never does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::rates::float;
use crate::clock::Clock;
use crate::event::Timestamp;
use crate::lifecycle::{Lifecycle, Phase};
use crate::storage::breaker::State;
use crate::storage::{Breaker, EventRepository, Totals};

/// Services that have a figure of their own; the others share one.
const SERVICES_MAX: u16 = 50;
/// The name that the others share.
const OTHER: &str = "other";
const EVERY: Duration = Duration::from_secs(5);
/// How soon to look again while the server starts.
const EARLY: Duration = Duration::from_millis(200);
/// With very many services and hours the counts take a while to add up: it may take a twentieth of the time, no more.
const PAUSE_PER_WORK: u32 = 20;
const HOUR_MICROS: i64 = 3_600_000_000;

/// The figures, once there are any.
#[derive(Debug, Default)]
pub struct Business {
    latest: Mutex<Option<Arc<BusinessFigures>>>,
}

/// Of all events in the table, whichever server stored them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BusinessFigures {
    pub as_of: Timestamp,
    /// Grows with the table and, unlike it, does not shrink when old days are dropped.
    pub counted: u64,
    pub total: u64,
    /// Most first. What is called "other" comes last and holds what the largest leave.
    pub services: Vec<(String, u64)>,
    pub last_24h: u64,
    pub last_hour: u64,
    /// The last 24 hours that have begun, oldest first, those without events left out.
    pub hours: Vec<(Timestamp, u64)>,
}

impl BusinessFigures {
    fn new(totals: Totals, now: Timestamp, before: Option<&Self>) -> Self {
        let counted = before
            .map_or(totals.events, |before| before.counted + totals.events.saturating_sub(before.total));
        let named: u64 = totals.services.iter().map(|(_, events)| events).sum();
        let mut services = totals.services;
        let mut other = totals.events.saturating_sub(named);
        // A service of that very name must not make a second series of the same labels.
        services.retain(|(service, events)| {
            let keep = service != OTHER;
            if !keep {
                other += events;
            }
            keep
        });
        if other > 0 {
            services.push((OTHER.to_owned(), other));
        }
        let (last_hour, last_24h) = (within(&totals.hours, now, 1), within(&totals.hours, now, 24));
        let mut hours = totals.hours;
        let first = now.micros().div_euclid(HOUR_MICROS) * HOUR_MICROS - 23 * HOUR_MICROS;
        hours.retain(|(hour, _)| (first..=now.micros()).contains(&hour.micros()));
        Self { as_of: now, counted, total: totals.events, services, last_24h, last_hour, hours }
    }

    /// Events a minute, over the last hour.
    pub fn per_minute(&self) -> f64 {
        float(self.last_hour) / 60.0
    }
}

/// Events of the last `span` hours. Counts are kept by the hour, so the hour that lies only partly within counts by
/// the part that does.
fn within(hours: &[(Timestamp, u64)], now: Timestamp, span: i64) -> u64 {
    let edge = now.micros() - span * HOUR_MICROS;
    let sum: f64 = hours
        .iter()
        .filter(|(hour, _)| hour.micros() <= now.micros())
        .map(|(hour, events)| {
            let inside = (hour.micros() + HOUR_MICROS - edge).clamp(0, HOUR_MICROS);
            #[expect(clippy::cast_precision_loss, reason = "an hour has far fewer than 2^52 microseconds")]
            let share = inside as f64 / HOUR_MICROS as f64;
            float(*events) * share
        })
        .sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of counts")]
    let rounded = sum.round() as u64;
    rounded
}

impl Business {
    /// None until the database has been asked once.
    pub fn latest(&self) -> Option<Arc<BusinessFigures>> {
        self.lock().clone()
    }

    fn put(&self, totals: Totals, now: Timestamp) {
        let before = self.latest();
        let figures = Arc::new(BusinessFigures::new(totals, now, before.as_deref()));
        *self.lock() = Some(figures);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<BusinessFigures>>> {
        self.latest.lock().expect("BUG: nothing panics while it holds the figures")
    }
}

/// Keeps the figures fresh.
#[derive(Debug)]
pub struct Counting {
    pub business: Arc<Business>,
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub lifecycle: Lifecycle,
    pub clock: Clock,
}

impl Counting {
    /// Runs until the other end of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        loop {
            let wait = self.tick();
            if stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    /// Asks once, and says how long to wait. It only looks: whether the database is well is for others to judge.
    fn tick(&self) -> Duration {
        if self.lifecycle.phase() == Phase::Starting {
            return EARLY;
        }
        if self.breaker.state() != State::Closed {
            return EVERY;
        }
        let started = self.clock.now();
        let now = self.clock.wall();
        let since = Timestamp::from_micros(now.micros() - 25 * HOUR_MICROS);
        match self.repository.totals(since, SERVICES_MAX) {
            Ok(totals) => self.business.put(totals, now),
            Err(error) => log::debug!("business figures stay as they are: {error}"),
        }
        EVERY.max(self.clock.now().since(started) * PAUSE_PER_WORK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 100 * HOUR_MICROS;
    /// A quarter past.
    const NOW: Timestamp = Timestamp::from_micros(HOUR + HOUR_MICROS / 4);

    fn totals(events: u64, services: &[(&str, u64)], hours: &[(i64, u64)]) -> Totals {
        Totals {
            events,
            services: services.iter().map(|(name, events)| ((*name).to_owned(), *events)).collect(),
            hours: hours
                .iter()
                .map(|(ago, events)| (Timestamp::from_micros(HOUR - ago * HOUR_MICROS), *events))
                .collect(),
        }
    }

    #[test]
    fn the_hour_that_is_partly_within_counts_by_its_part() {
        let hours = [(25, 1000), (24, 100), (23, 7), (2, 1000), (1, 100), (0, 10), (-1, 5)];
        let figures = BusinessFigures::new(totals(2222, &[], &hours), NOW, None);
        assert_eq!(figures.last_hour, 75 + 10);
        assert_eq!(figures.last_24h, 75 + 7 + 1000 + 100 + 10);
        assert_eq!(figures.hours.len(), 4, "{:?}", figures.hours);
    }

    #[test]
    fn services_beyond_the_largest_share_a_figure_with_one_of_their_name() {
        let figures =
            BusinessFigures::new(totals(100, &[("a", 50), ("other", 20), ("b", 10)], &[]), NOW, None);
        let services: Vec<_> = figures.services.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(services, [("a", 50), ("b", 10), ("other", 40)]);
        let few = BusinessFigures::new(totals(50, &[("a", 50)], &[]), NOW, None);
        assert_eq!(few.services.len(), 1);
    }

    #[test]
    fn the_counter_never_goes_back() {
        let business = Business::default();
        for (total, counted) in [(100, 100), (150, 150), (40, 150), (45, 155)] {
            business.put(totals(total, &[], &[]), NOW);
            let figures = business.latest().unwrap();
            assert_eq!((figures.total, figures.counted), (total, counted));
        }
    }
}
