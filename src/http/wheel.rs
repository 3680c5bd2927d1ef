//! A timer wheel: which connections may be due. It holds a time for each slot of the slab, never a verdict:
//! the deadline itself is a field of the connection, and whoever is told "due" looks there.

use crate::clock::Moment;

/// The grain. Deadlines are seconds; one grain late is nothing to a client.
const GRAIN_MILLIS: u64 = 50;
const GRAIN_NANOS: u64 = GRAIN_MILLIS * 1_000_000;
/// A power of two. With the grain it spans 102 s, which covers the longest wait; a longer one comes round again.
const SLOTS: u64 = 2048;
/// No entry.
const NONE: u64 = u64::MAX;

/// Invariant: for each token at most one entry counts, the one at `armed[token]`; all others are dropped
/// when their time comes.
#[derive(Debug)]
pub(super) struct Wheel {
    slots: Vec<Vec<u32>>,
    /// The tick of each token's entry, or [`NONE`].
    armed: Vec<u64>,
    /// Every tick up to here has fired.
    fired: u64,
    /// No slot before this tick holds an entry; [`NONE`] when none does.
    next: u64,
}

impl Wheel {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            armed: Vec::new(),
            fired: now.nanos() / GRAIN_NANOS,
            next: NONE,
        }
    }

    /// Sees to it that `token` is reported at `deadline` or sooner. Costs nothing when it already would be.
    #[inline]
    pub(super) fn ensure(&mut self, token: usize, deadline: Moment) {
        let tick = (deadline.nanos() / GRAIN_NANOS).saturating_add(1);
        if self.armed.get(token).is_some_and(|armed| *armed <= tick) {
            return;
        }
        self.insert(token, tick);
    }

    fn insert(&mut self, token: usize, tick: u64) {
        let tick = tick.clamp(self.fired + 1, self.fired + SLOTS - 1);
        if self.armed.len() <= token {
            self.armed.resize(token + 1, NONE);
        }
        self.armed[token] = tick;
        let token = u32::try_from(token).expect("fewer connections than 2^32");
        self.slots[slot(tick)].push(token);
        self.next = self.next.min(tick);
    }

    /// When to look again; `None` when nothing is waited for.
    pub(super) fn next(&self) -> Option<Moment> {
        (self.next != NONE).then(|| Moment::from_nanos(self.next.saturating_mul(GRAIN_NANOS)))
    }

    /// Moves the tokens whose time has come into `due`, which forgets them here.
    #[inline]
    pub(super) fn advance(&mut self, now: Moment, due: &mut Vec<usize>) {
        let tick = now.nanos() / GRAIN_NANOS;
        if tick >= self.next {
            self.fire(tick, due);
        } else {
            self.fired = self.fired.max(tick);
        }
    }

    fn fire(&mut self, tick: u64, due: &mut Vec<usize>) {
        // After a pause longer than a round, one round visits every slot.
        let until = tick.min(self.next.saturating_add(SLOTS - 1));
        for past in self.next..=until {
            for token in std::mem::take(&mut self.slots[slot(past)]) {
                let token = token as usize;
                // An entry that does not count belongs to a tick that was replaced by a sooner one.
                if self.armed[token] <= tick {
                    self.armed[token] = NONE;
                    due.push(token);
                }
            }
        }
        self.fired = self.fired.max(tick);
        self.next = (self.fired + 1..=self.fired + SLOTS)
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

    fn due(wheel: &mut Wheel, millis: u64) -> Vec<usize> {
        let mut due = Vec::new();
        wheel.advance(at(millis), &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn a_token_is_due_at_its_deadline_and_once() {
        let mut wheel = Wheel::new(at(0));
        assert_eq!(wheel.next(), None);
        wheel.ensure(3, at(1000));
        wheel.ensure(5, at(2000));
        assert!(due(&mut wheel, 999).is_empty());
        assert_eq!(due(&mut wheel, 1050), [3]);
        assert!(due(&mut wheel, 1999).is_empty());
        assert_eq!(due(&mut wheel, 2050), [5]);
        assert!(due(&mut wheel, 500_000).is_empty());
        assert_eq!(wheel.next(), None);
    }

    #[test]
    fn a_sooner_deadline_replaces_a_later_one_and_a_later_one_does_not() {
        let mut wheel = Wheel::new(at(0));
        wheel.ensure(0, at(70_000));
        wheel.ensure(0, at(10_000));
        wheel.ensure(0, at(20_000));
        assert_eq!(due(&mut wheel, 10_050), [0]);
        wheel.ensure(0, at(90_000));
        // The replaced entry of 70 s is dropped without a word.
        assert!(due(&mut wheel, 71_000).is_empty());
        assert_eq!(due(&mut wheel, 90_050), [0]);
    }

    #[test]
    fn a_deadline_past_the_horizon_is_reported_early_rather_than_never() {
        let mut wheel = Wheel::new(at(0));
        wheel.ensure(1, at(1_000_000));
        assert_eq!(due(&mut wheel, 103_000), [1]);
    }

    #[test]
    fn a_pause_longer_than_a_round_reports_all() {
        let mut wheel = Wheel::new(at(0));
        for token in 0..100 {
            wheel.ensure(token, at(token as u64 * 1000));
        }
        assert_eq!(due(&mut wheel, 10_000_000).len(), 100);
        wheel.ensure(7, at(10_000_100));
        assert_eq!(due(&mut wheel, 10_000_200), [7]);
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_the_next_tick() {
        let mut wheel = Wheel::new(at(5_000));
        wheel.ensure(2, at(0));
        assert_eq!(due(&mut wheel, 5_050), [2]);
    }
}
