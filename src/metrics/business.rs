//! Stored events by service and hour, at most a few seconds old. A background thread reads them
//! from the database, so that a scrape does not.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;
use crate::clock::Clock;
use crate::event::{HOUR_MICROS, Timestamp};
use crate::lifecycle::{Lifecycle, LifecyclePhase};
use crate::storage::breaker::BreakerState;
use crate::storage::{Breaker, EventRepository, Totals};

/// Services with a series of their own; all others share one.
const SERVICES_MAX: u16 = 50;
/// The label of the shared series.
const OTHER: &str = "other";
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);
/// Interval while the server starts.
const STARTUP_INTERVAL: Duration = Duration::from_millis(200);
/// Minimum ratio of idle time to query time: with very many services and hours the query is slow
/// and must not take more than a twentieth of the time.
const IDLE_PER_BUSY: u32 = 20;
/// The latest business metrics.
#[derive(Debug, Default)]
pub struct BusinessCache {
    latest: Mutex<Option<Arc<BusinessMetrics>>>,
}

/// Counts of all events in the table, stored by any server.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BusinessMetrics {
    pub as_of: Timestamp,
    /// Monotonic: grows with the table and does not shrink when partitions are dropped.
    pub cumulative: u64,
    pub total: u64,
    /// Largest first; the shared series "other" is last.
    pub services: Vec<(String, u64)>,
    pub last_24h: u64,
    pub last_hour: u64,
    /// The current hour and the 23 before it, oldest first, without hours that have no events.
    pub hours: Vec<(Timestamp, u64)>,
}

impl BusinessMetrics {
    fn new(totals: Totals, now: Timestamp, before: Option<&Self>) -> Self {
        let counted = before
            .map_or(totals.events, |before| before.cumulative + totals.events.saturating_sub(before.total));
        let named: u64 = totals.services.iter().map(|(_, events)| events).sum();
        let mut services = totals.services;
        let mut other = totals.events.saturating_sub(named);
        // A service named "other" must not create a second series with the same labels.
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
        let (last_hour, last_24h) =
            (events_within(&totals.hours, now, 1), events_within(&totals.hours, now, 24));
        let mut hours = totals.hours;
        let first = now.micros().div_euclid(HOUR_MICROS) * HOUR_MICROS - 23 * HOUR_MICROS;
        hours.retain(|(hour, _)| (first..=now.micros()).contains(&hour.micros()));
        Self { as_of: now, cumulative: counted, total: totals.events, services, last_24h, last_hour, hours }
    }

    /// Events per minute over the last hour.
    pub fn per_minute(&self) -> f64 {
        to_f64(self.last_hour) / 60.0
    }
}

/// Events of the last `span` hours. The counters have a resolution of one hour, so an hour partly
/// within the span counts in proportion.
fn events_within(hours: &[(Timestamp, u64)], now: Timestamp, span: i64) -> u64 {
    let edge = now.micros() - span * HOUR_MICROS;
    let sum: f64 = hours
        .iter()
        .filter(|(hour, _)| hour.micros() <= now.micros())
        .map(|(hour, events)| {
            let inside = (hour.micros() + HOUR_MICROS - edge).clamp(0, HOUR_MICROS);
            #[expect(clippy::cast_precision_loss, reason = "an hour has far fewer than 2^52 microseconds")]
            let share = inside as f64 / HOUR_MICROS as f64;
            to_f64(*events) * share
        })
        .sum();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of counts")]
    let rounded = sum.round() as u64;
    rounded
}

impl BusinessCache {
    /// None before the first successful read.
    pub fn latest(&self) -> Option<Arc<BusinessMetrics>> {
        self.lock().clone()
    }

    fn update(&self, totals: Totals, now: Timestamp) {
        let before = self.latest();
        let metrics = Arc::new(BusinessMetrics::new(totals, now, before.as_deref()));
        *self.lock() = Some(metrics);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<BusinessMetrics>>> {
        self.latest.lock().expect("BUG: nothing panics while it holds the metrics")
    }
}

/// Refreshes the business metrics.
#[derive(Debug)]
pub struct BusinessCollector {
    pub business: Arc<BusinessCache>,
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub lifecycle: Lifecycle,
    pub clock: Clock,
}

impl BusinessCollector {
    /// Runs until the sender of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        loop {
            let wait = self.tick();
            if stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    /// Reads once and returns the time to wait. Reads the breaker's state but does not report to
    /// it.
    fn tick(&self) -> Duration {
        if self.lifecycle.phase() == LifecyclePhase::Starting {
            return STARTUP_INTERVAL;
        }
        if self.breaker.state() != BreakerState::Closed {
            return REFRESH_INTERVAL;
        }
        let started = self.clock.now();
        let now = self.clock.wall();
        let since = Timestamp::from_micros(now.micros() - 25 * HOUR_MICROS);
        match self.repository.totals(since, SERVICES_MAX) {
            Ok(totals) => self.business.update(totals, now),
            Err(error) => log::debug!("business metrics not refreshed: {error}"),
        }
        REFRESH_INTERVAL.max(self.clock.now().since(started) * IDLE_PER_BUSY)
    }
}

/// Families of all events in the table, stored by any server.
pub(super) fn business_families(metrics: &BusinessMetrics) -> Vec<MetricFamily> {
    let gauge =
        |name, help, events| family(name, help, vec![(Vec::new(), MetricValue::Gauge(to_f64(events)))]);
    let mut families = vec![
        family(
            "business_events_total",
            "Events stored by all servers on this database. Does not decrease when events expire.",
            vec![(Vec::new(), MetricValue::Counter(to_f64(metrics.cumulative)))],
        ),
        gauge(
            "business_events_last_24h",
            "Stored events of the last 24 hours, by timestamp.",
            metrics.last_24h,
        ),
        gauge(
            "business_events_last_hour",
            "Stored events of the last hour, by timestamp.",
            metrics.last_hour,
        ),
    ];
    if !metrics.services.is_empty() {
        let services = metrics.services.iter();
        let metrics = services.map(|(service, events)| {
            (vec![("service", service.as_str())], MetricValue::Gauge(to_f64(*events)))
        });
        families.push(family(
            "business_events_by_service",
            "Events in the table by service: the 50 largest, all others together.",
            metrics.collect(),
        ));
    }
    families
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 100 * HOUR_MICROS;
    /// 15 minutes past the hour.
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
    fn partly_covered_hour_counts_in_proportion() {
        let hours = [(25, 1000), (24, 100), (23, 7), (2, 1000), (1, 100), (0, 10), (-1, 5)];
        let metrics = BusinessMetrics::new(totals(2222, &[], &hours), NOW, None);
        assert_eq!(metrics.last_hour, 75 + 10);
        assert_eq!(metrics.last_24h, 75 + 7 + 1000 + 100 + 10);
        assert_eq!(metrics.hours.len(), 4, "{:?}", metrics.hours);
    }

    #[test]
    fn services_beyond_the_largest_share_one_series_with_a_service_named_other() {
        let metrics =
            BusinessMetrics::new(totals(100, &[("a", 50), ("other", 20), ("b", 10)], &[]), NOW, None);
        let services: Vec<_> = metrics.services.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(services, [("a", 50), ("b", 10), ("other", 40)]);
        let few = BusinessMetrics::new(totals(50, &[("a", 50)], &[]), NOW, None);
        assert_eq!(few.services.len(), 1);
    }

    #[test]
    fn cumulative_count_never_decreases() {
        let business = BusinessCache::default();
        for (total, counted) in [(100, 100), (150, 150), (40, 150), (45, 155)] {
            business.update(totals(total, &[], &[]), NOW);
            let metrics = business.latest().unwrap();
            assert_eq!((metrics.total, metrics.cumulative), (total, counted));
        }
    }
}
