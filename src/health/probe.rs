//! Pings the database every few seconds, so that health checks answer from memory and an idle
//! server detects the start and the end of an outage, and a failover.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::clock::{Clock, Moment};
use crate::event::Timestamp;
use crate::journal::Journal;
use crate::storage::{Breaker, EventRepository};

/// Interval of the pings while the breaker awaits the return of the database, as after a failover.
const RETURN_INTERVAL: Duration = Duration::from_secs(1);
/// Otherwise every fifth interval has a ping.
const PING_EVERY: u32 = 5;
/// A ping without an answer for this long counts as an outage, though the ping itself may go on: on
/// a Unix socket no timeout ends it.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The result of the last ping; down until the first success.
#[derive(Debug, Default)]
pub struct ProbeState {
    up: AtomicBool,
    /// Monotonic nanoseconds at which the pending ping was sent, plus one; zero if no ping is
    /// pending.
    ping_sent_at: AtomicU64,
    /// Epoch microseconds since which the database has not been reachable; zero while it is.
    down_since: AtomicI64,
}

impl ProbeState {
    pub fn is_up(&self, now: Moment) -> bool {
        let asked = self.ping_sent_at.load(Ordering::Acquire).checked_sub(1).map(Moment::from_nanos);
        self.up.load(Ordering::Acquire) && asked.is_none_or(|asked| now.since(asked) < PING_TIMEOUT)
    }

    /// Records whether the database was reachable at `now`, in addition to the pings: the breaker may
    /// know it earlier.
    pub fn record(&self, up: bool, now: Timestamp) {
        if up {
            self.down_since.store(0, Ordering::Relaxed);
        } else if self.down_since.load(Ordering::Relaxed) == 0 {
            self.down_since.store(now.micros(), Ordering::Relaxed);
        }
    }

    /// The first record of the outage that lasts.
    pub fn down_since(&self) -> Option<Timestamp> {
        Some(self.down_since.load(Ordering::Relaxed)).filter(|since| *since != 0).map(Timestamp::from_micros)
    }

    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
    }
}

#[derive(Debug)]
pub struct DatabaseProbe {
    pub state: Arc<ProbeState>,
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    /// Learns how far the database's WAL reaches.
    pub journal: Arc<Journal>,
    pub clock: Clock,
}

impl DatabaseProbe {
    /// Pings periodically until the sender of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        for interval in (0..PING_EVERY).cycle() {
            if interval == 0 || self.breaker.awaits_return() {
                self.tick();
            }
            match stop.recv_timeout(RETURN_INTERVAL) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Pings once, unless the breaker is open for another reason than that the database is not
    /// reachable: then the database counts as down.
    pub fn tick(&self) {
        let awaits_return = self.breaker.awaits_return();
        if !awaits_return && self.breaker.admit(self.clock.now()).is_err() {
            self.state.set_up(false);
            return;
        }
        let asked = self.clock.now().nanos().saturating_add(1);
        self.state.ping_sent_at.store(asked, Ordering::Release);
        let answer = self.repository.state();
        self.state.ping_sent_at.store(0, Ordering::Release);
        let now = self.clock.now();
        if self.state.up.swap(answer.is_ok(), Ordering::AcqRel) != answer.is_ok() {
            match &answer {
                Ok(_) => log::info!("the database is reachable"),
                Err(error) => log::warn!("the database is not reachable: {error}"),
            }
        }
        match answer {
            Ok(state) => {
                self.journal.observe(state);
                if awaits_return {
                    self.breaker.record_return();
                } else {
                    self.breaker.record_success(now);
                }
            }
            Err(error) => {
                self.breaker.set_unreachable(error.is_unreachable());
                self.breaker.record_failure(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_begins_with_its_first_record() {
        let (state, at) = (ProbeState::default(), Timestamp::from_millis);
        assert_eq!(state.down_since(), None);
        for now in [1, 2] {
            state.record(false, at(now));
            assert_eq!(state.down_since(), Some(at(1)));
        }
        state.record(true, at(3));
        assert_eq!(state.down_since(), None);
        state.record(false, at(4));
        assert_eq!(state.down_since(), Some(at(4)));
    }

    #[test]
    fn unanswered_ping_counts_as_down_after_the_timeout() {
        let database = ProbeState::default();
        let at = |wait: Duration| Moment::from_nanos(7).plus(wait);
        assert!(!database.is_up(at(Duration::ZERO)), "no ping has succeeded yet");
        database.set_up(true);
        database.ping_sent_at.store(8, Ordering::Release);
        assert!(database.is_up(at(PING_TIMEOUT.saturating_sub(Duration::from_nanos(1)))));
        assert!(!database.is_up(at(PING_TIMEOUT)));
        database.ping_sent_at.store(0, Ordering::Release);
        assert!(database.is_up(at(PING_TIMEOUT)));
    }
}
