//! Reads the positions of primary and standby every second, and derives the lag from them: neither
//! a pause of the replay nor a lost connection to the primary hides it, and no clocks are compared.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::clock::{Clock, Moment};
use crate::storage::breaker::BreakerState;
use crate::storage::{Breaker, EventRepository, StandbyLag, StandbyState};

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Positions of the primary that the standby has not reached. Beyond it every other one is dropped,
/// so that a long lag is known less exactly.
const POSITIONS_MAX: usize = 256;

#[derive(Debug)]
pub struct StandbyProbe {
    state: Arc<StandbyState>,
    standby: Arc<dyn EventRepository>,
    primary: Arc<dyn EventRepository>,
    /// The breaker of the primary. The probe reads it only.
    breaker: Arc<Breaker>,
    clock: Clock,
    positions: PrimaryPositions,
}

impl StandbyProbe {
    pub fn new(
        state: Arc<StandbyState>,
        (primary, standby): (Arc<dyn EventRepository>, Arc<dyn EventRepository>),
        breaker: Arc<Breaker>,
        clock: Clock,
    ) -> Self {
        Self { state, standby, primary, breaker, clock, positions: PrimaryPositions::default() }
    }

    /// Probes periodically until the sender of `stop` is dropped.
    pub fn run(&mut self, stop: &Receiver<()>) {
        loop {
            self.tick();
            match stop.recv_timeout(PROBE_INTERVAL) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Reads the primary first: what the standby replays in between is not a lag.
    pub fn tick(&mut self) {
        let is_open = self.breaker.state() == BreakerState::Open;
        let written = if is_open { None } else { self.primary.replication_position().ok().flatten() };
        if let Some(written) = written {
            self.positions.observe(self.clock.now(), written);
        }
        match self.standby.replication_position() {
            Ok(position) => {
                let lag = position.map(|replayed| StandbyLag {
                    age: self.positions.age_beyond(replayed, self.clock.now()),
                    bytes: written.map(|written| written.saturating_sub(replayed)),
                });
                self.state.record_answer(lag);
            }
            Err(error) => self.state.record_unreachable(&error),
        }
    }
}

/// Positions of the primary and when they were first seen, oldest first.
///
/// Invariant: both ascend.
#[derive(Debug, Default)]
struct PrimaryPositions(VecDeque<(Moment, u64)>);

impl PrimaryPositions {
    fn observe(&mut self, now: Moment, written: u64) {
        let positions = &mut self.0;
        // Another primary, whose log is shorter.
        if positions.back().is_some_and(|(_, last)| written < *last) {
            positions.clear();
        }
        if positions.back().is_some_and(|(_, last)| written == *last) {
            return;
        }
        if positions.len() == POSITIONS_MAX {
            let mut nth = 0_usize;
            positions.retain(|_| {
                nth += 1;
                nth % 2 == 1
            });
        }
        positions.push_back((now, written));
    }

    /// The age of the oldest position beyond `replayed`. Forgets those up to it.
    fn age_beyond(&mut self, replayed: u64, now: Moment) -> Duration {
        while self.0.front().is_some_and(|(_, written)| *written <= replayed) {
            self.0.pop_front();
        }
        self.0.front().map_or(Duration::ZERO, |(seen, _)| now.since(*seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_position_that_is_not_replayed() {
        let mut positions = PrimaryPositions::default();
        let mut lag = |written, replayed, now| {
            positions.observe(at(now), written);
            positions.age_beyond(replayed, at(now)).as_secs()
        };
        assert_eq!(lag(100, 100, 1), 0);
        assert_eq!(lag(200, 100, 2), 0, "it was written just now");
        assert_eq!(lag(300, 100, 3), 1);
        assert_eq!(lag(300, 100, 9), 7, "a pause of the primary does not hide the lag");
        assert_eq!(lag(300, 250, 9), 6);
        assert_eq!(lag(300, 300, 10), 0);
        assert_eq!(lag(400, 300, 11), 0);
        assert_eq!(lag(50, 40, 15), 0, "another primary");
        assert_eq!(lag(50, 40, 16), 1);
    }

    #[test]
    fn positions_are_bounded_and_keep_the_oldest() {
        let mut positions = PrimaryPositions::default();
        for second in 0..100_000 {
            positions.observe(at(second), second + 1);
            assert!(positions.0.len() <= POSITIONS_MAX);
            assert_eq!(positions.age_beyond(0, at(second)), Duration::from_secs(second));
        }
    }
}
