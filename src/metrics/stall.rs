//! Detects that events wait for the writer although the database is up and nothing is stored: a
//! lock, a database that is too slow, or a fault of the server itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::ledger::Balance;
use crate::clock::Moment;

/// A stall of this length degrades the health and is counted.
const STALL_MIN: Duration = Duration::from_secs(5);

/// The state of the detector. Written by the sampler, once a second; read by health checks and
/// scrapes.
#[derive(Debug)]
pub struct StallDetector {
    /// Events may wait this long for their batch to fill.
    linger: Duration,
    /// Monotonic nanoseconds, plus one, since which events wait and none is stored; zero: no event
    /// waits, or the database is down.
    since: AtomicU64,
    /// The events settled until the last sample.
    settled: AtomicU64,
    /// The value of `since` whose stall was counted.
    counted: AtomicU64,
    stalls: AtomicU64,
}

impl StallDetector {
    pub fn new(linger: Duration) -> Self {
        Self {
            linger,
            since: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
        }
    }

    /// Takes a sample. Time counts only while the database is up: an outage is reported as such.
    pub fn sample(&self, now: Moment, balance: Balance, database_up: bool) {
        let settled = balance.settled();
        let progressed = self.settled.swap(settled, Ordering::Relaxed) != settled;
        let since = self.since.load(Ordering::Relaxed);
        if balance.buffered() == 0 || !database_up {
            self.since.store(0, Ordering::Relaxed);
        } else if since == 0 || progressed {
            self.since.store(now.nanos().saturating_add(1), Ordering::Relaxed);
        } else if self.is_stalled(now) && self.counted.swap(since, Ordering::Relaxed) != since {
            self.stalls.fetch_add(1, Ordering::Relaxed);
            log::error!(
                events = balance.buffered(), seconds = self.stalled(now).as_secs();
                "events wait and none is stored, although the database is up"
            );
        }
    }

    /// How long events have waited beyond the linger while none was stored. Lags by at most one
    /// interval of the sampler.
    pub fn stalled(&self, now: Moment) -> Duration {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1).map(Moment::from_nanos);
        since.map_or(Duration::ZERO, |since| now.since(since.plus(self.linger)))
    }

    pub fn is_stalled(&self, now: Moment) -> bool {
        self.stalled(now) >= STALL_MIN
    }

    /// Stalls of at least [`STALL_MIN`] since the start.
    pub fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGER: Duration = Duration::from_secs(2);

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    fn balance(received: u64, stored: u64) -> Balance {
        Balance { received, stored, ..Balance::default() }
    }

    #[test]
    fn stall_begins_after_the_linger_and_ends_with_the_next_stored_event() {
        let detector = StallDetector::new(LINGER);
        for second in 0..=7 {
            detector.sample(at(second), balance(3, 0), true);
            assert_eq!(detector.stalled(at(second)).as_secs(), second.saturating_sub(2), "{second}");
            assert_eq!(
                (detector.is_stalled(at(second)), detector.stalls()),
                (second == 7, u64::from(second == 7))
            );
        }
        detector.sample(at(8), balance(3, 0), true);
        assert_eq!(detector.stalls(), 1, "a stall is counted once");
        detector.sample(at(9), balance(3, 1), true);
        assert!(!detector.is_stalled(at(9)));
        for second in 10..=16 {
            detector.sample(at(second), balance(3, 1), true);
        }
        assert_eq!((detector.is_stalled(at(16)), detector.stalls()), (true, 2));
        detector.sample(at(17), balance(3, 3), true);
        assert_eq!(detector.stalled(at(60)), Duration::ZERO, "no event waits");
    }

    #[test]
    fn time_without_events_or_without_a_database_is_no_stall() {
        let detector = StallDetector::new(LINGER);
        for second in 0..100 {
            // A single event each time, which is stored before the next sample.
            detector.sample(at(second), balance(second + 1, second), true);
            assert_eq!(detector.stalled(at(second)), Duration::ZERO);
        }
        for second in 100..200 {
            detector.sample(at(second), balance(200, 100), false);
            assert_eq!(detector.stalled(at(second)), Duration::ZERO);
        }
        detector.sample(at(200), balance(200, 100), true);
        assert_eq!((detector.is_stalled(at(206)), detector.is_stalled(at(207))), (false, true));
    }
}
