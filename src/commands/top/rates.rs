//! Rates between two counts of the stored events. Must not depend on time or HTTP.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::event::Timestamp;

/// Services that a count has by name. A count with fewer has all.
const SERVICES_MAX: usize = 50;
/// The name under which a count has the other services.
const OTHER: &str = "other";

/// The events in the table at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceCounts {
    pub(super) as_of: Timestamp,
    pub(super) total: u64,
    pub(super) services: BTreeMap<String, u64>,
}

/// The rates between two counts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WindowRates {
    pub(super) window_s: f64,
    pub(super) stored_per_second: f64,
    /// The highest rate first.
    pub(super) services: Vec<ServiceRate>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct ServiceRate {
    pub(super) service: String,
    pub(super) events_per_second: f64,
    /// Of all events that were stored.
    pub(super) share_percent: f64,
    /// In the table.
    pub(super) events: u64,
}

/// None if no time has passed.
pub(super) fn per_second(events: u64, seconds: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let events = events as f64;
    (seconds > 0.0).then(|| events / seconds)
}

impl WindowRates {
    /// None if `after` is not later.
    pub(super) fn between(before: &ServiceCounts, after: &ServiceCounts) -> Option<Self> {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a few days at most")]
        let window_s = (after.as_of.micros() - before.as_of.micros()) as f64 / 1e6;
        // Old events expire meanwhile; a count that shrinks has no rate.
        let stored_per_second = per_second(after.total.saturating_sub(before.total), window_s)?;
        let had_all = before.services.len() < SERVICES_MAX && !before.services.contains_key(OTHER);
        let mut services: Vec<_> = after
            .services
            .iter()
            .filter_map(|(service, &events)| {
                let earlier = before.services.get(service).copied();
                // A service that is new among the largest was in the table before, unless all were named.
                let earlier = earlier.or((had_all || service == OTHER).then_some(0))?;
                let events_per_second = per_second(events.saturating_sub(earlier), window_s)?;
                let share_percent = if stored_per_second > 0.0 {
                    (100.0 * events_per_second / stored_per_second).min(100.0)
                } else {
                    0.0
                };
                Some(ServiceRate { service: service.clone(), events_per_second, share_percent, events })
            })
            .collect();
        services.sort_by(|one, two| {
            two.events_per_second
                .total_cmp(&one.events_per_second)
                .then_with(|| Reverse(one.events).cmp(&Reverse(two.events)))
        });
        Some(Self { window_s, stored_per_second, services })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(as_of_ms: i64, services: &[(&str, u64)]) -> ServiceCounts {
        ServiceCounts {
            as_of: Timestamp::from_millis(as_of_ms),
            total: services.iter().map(|(_, events)| events).sum(),
            services: services.iter().map(|&(service, events)| (service.to_owned(), events)).collect(),
        }
    }

    #[track_caller]
    fn check(before: &[(&str, u64)], after: &[(&str, u64)], expected: &[(&str, f64, f64)]) {
        let rates = WindowRates::between(&counts(1000, before), &counts(5000, after)).unwrap();
        assert!((rates.window_s - 4.0).abs() < 1e-9, "{rates:?}");
        let found: Vec<_> = rates
            .services
            .iter()
            .map(|rate| (&*rate.service, rate.events_per_second, rate.share_percent))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn rates_and_shares_are_of_the_window() {
        check(&[("a", 100), ("b", 4)], &[("a", 110), ("b", 34)], &[("b", 7.5, 75.0), ("a", 2.5, 25.0)]);
        check(&[], &[], &[]);
        check(&[("a", 1), ("b", 2)], &[("a", 1), ("b", 2)], &[("b", 0.0, 0.0), ("a", 0.0, 0.0)]);
        check(&[("a", 1)], &[("a", 1), ("new", 8)], &[("new", 2.0, 100.0), ("a", 0.0, 0.0)]);
    }

    #[test]
    fn counts_that_shrink_have_no_rate_and_a_late_count_has_none() {
        check(&[("a", 9)], &[("a", 5)], &[("a", 0.0, 0.0)]);
        assert_eq!(WindowRates::between(&counts(5, &[("a", 1)]), &counts(5, &[("a", 2)])), None);
        assert_eq!(WindowRates::between(&counts(5, &[("a", 1)]), &counts(4, &[("a", 2)])), None);
    }

    #[test]
    fn service_that_was_among_the_others_has_no_rate_in_its_first_window() {
        check(
            &[("a", 100), ("other", 50)],
            &[("a", 104), ("b", 60), ("other", 8)],
            &[("a", 1.0, 100.0 / 22.0 * 4.0), ("other", 0.0, 0.0)],
        );
    }
}
