//! A timer wheel over connection tokens. Reports tokens that may be due; the caller compares the
//! deadline, which is a property of the connection.

use crate::clock::Moment;

/// Resolution of the wheel. Deadlines are seconds, so one tick of delay is negligible.
const TICK_MILLIS: u64 = 50;
const TICK_NANOS: u64 = TICK_MILLIS * 1_000_000;
/// A power of two. The wheel spans 102 s, which covers the default timeouts; a token with a later
/// deadline is reported early and scheduled again.
const SLOTS: u64 = 2048;
/// The token has no entry.
const NONE: u64 = u64::MAX;

/// Invariant: at most one entry per token is valid, the one at `scheduled[token]`; stale entries
/// are dropped when their slot fires.
#[derive(Debug)]
pub(super) struct TimerWheel {
    slots: Vec<Vec<u32>>,
    /// The tick of each token's entry, or [`NONE`].
    scheduled: Vec<u64>,
    /// All ticks up to and including this one have fired.
    fired_tick: u64,
    /// No slot before this tick has an entry; [`NONE`] if the wheel is empty.
    next_tick: u64,
}

impl TimerWheel {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            scheduled: Vec::new(),
            fired_tick: now.nanos() / TICK_NANOS,
            next_tick: NONE,
        }
    }

    /// Schedules `token` to be reported at `deadline` or earlier. A no-op if an entry exists that
    /// is early enough.
    #[inline]
    pub(super) fn schedule_by(&mut self, token: usize, deadline: Moment) {
        let tick = (deadline.nanos() / TICK_NANOS).saturating_add(1);
        if self.scheduled.get(token).is_some_and(|armed| *armed <= tick) {
            return;
        }
        self.insert(token, tick);
    }

    fn insert(&mut self, token: usize, tick: u64) {
        let tick = tick.clamp(self.fired_tick + 1, self.fired_tick + SLOTS - 1);
        if self.scheduled.len() <= token {
            self.scheduled.resize(token + 1, NONE);
        }
        self.scheduled[token] = tick;
        let token = u32::try_from(token).expect("fewer connections than 2^32");
        self.slots[slot(tick)].push(token);
        self.next_tick = self.next_tick.min(tick);
    }

    /// When to call [`TimerWheel::advance`] next; `None` if the wheel is empty.
    pub(super) fn next_due(&self) -> Option<Moment> {
        (self.next_tick != NONE).then(|| Moment::from_nanos(self.next_tick.saturating_mul(TICK_NANOS)))
    }

    /// Removes the tokens that are due from the wheel and appends them to `due`.
    #[inline]
    pub(super) fn advance(&mut self, now: Moment, due: &mut Vec<usize>) {
        let tick = now.nanos() / TICK_NANOS;
        if tick >= self.next_tick {
            self.fire(tick, due);
        } else {
            self.fired_tick = self.fired_tick.max(tick);
        }
    }

    fn fire(&mut self, tick: u64, due: &mut Vec<usize>) {
        // After a pause longer than one round, one round visits every slot.
        let until = tick.min(self.next_tick.saturating_add(SLOTS - 1));
        for past in self.next_tick..=until {
            for token in std::mem::take(&mut self.slots[slot(past)]) {
                let token = token as usize;
                // A stale entry belongs to a tick that an earlier one has replaced.
                if self.scheduled[token] <= tick {
                    self.scheduled[token] = NONE;
                    due.push(token);
                }
            }
        }
        self.fired_tick = self.fired_tick.max(tick);
        self.next_tick = (self.fired_tick + 1..=self.fired_tick + SLOTS)
            .find(|tick| !self.slots[slot(*tick)].is_empty())
            .unwrap_or(NONE);
    }
}

fn slot(tick: u64) -> usize {
    usize::try_from(tick % SLOTS).expect("a remainder of 2048")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(millis))
    }

    fn due(wheel: &mut TimerWheel, millis: u64) -> Vec<usize> {
        let mut due = Vec::new();
        wheel.advance(at(millis), &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn token_is_due_once_at_its_deadline() {
        let mut wheel = TimerWheel::new(at(0));
        assert_eq!(wheel.next_due(), None);
        wheel.schedule_by(3, at(1000));
        wheel.schedule_by(5, at(2000));
        assert!(due(&mut wheel, 999).is_empty());
        assert_eq!(due(&mut wheel, 1050), [3]);
        assert!(due(&mut wheel, 1999).is_empty());
        assert_eq!(due(&mut wheel, 2050), [5]);
        assert!(due(&mut wheel, 500_000).is_empty());
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn earlier_deadline_replaces_a_later_one_but_not_vice_versa() {
        let mut wheel = TimerWheel::new(at(0));
        wheel.schedule_by(0, at(70_000));
        wheel.schedule_by(0, at(10_000));
        wheel.schedule_by(0, at(20_000));
        assert_eq!(due(&mut wheel, 10_050), [0]);
        wheel.schedule_by(0, at(90_000));
        // The replaced entry at 70 s is dropped.
        assert!(due(&mut wheel, 71_000).is_empty());
        assert_eq!(due(&mut wheel, 90_050), [0]);
    }

    #[test]
    fn deadline_beyond_the_wheel_is_reported_early() {
        let mut wheel = TimerWheel::new(at(0));
        wheel.schedule_by(1, at(1_000_000));
        assert_eq!(due(&mut wheel, 103_000), [1]);
    }

    #[test]
    fn pause_longer_than_a_round_reports_all_tokens() {
        let mut wheel = TimerWheel::new(at(0));
        for token in 0..100 {
            wheel.schedule_by(token, at(token as u64 * 1000));
        }
        assert_eq!(due(&mut wheel, 10_000_000).len(), 100);
        wheel.schedule_by(7, at(10_000_100));
        assert_eq!(due(&mut wheel, 10_000_200), [7]);
    }

    #[test]
    fn past_deadline_is_due_at_the_next_tick() {
        let mut wheel = TimerWheel::new(at(5_000));
        wheel.schedule_by(2, at(0));
        assert_eq!(due(&mut wheel, 5_050), [2]);
    }
}
