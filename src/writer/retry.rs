//! How long to wait before the next try: exponential backoff with full jitter, so that servers that failed together
//! do not come back together.

use std::time::Duration;

use rand::{Rng, RngExt};

const FIRST: Duration = Duration::from_millis(50);
/// Low, since the breaker does the long waiting.
const LONGEST: Duration = Duration::from_secs(2);

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure, and tells how long to wait: evenly between nothing and a bound that doubles each time.
    pub(super) fn failed(&mut self, chance: &mut impl Rng) -> Duration {
        let bound = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        chance.random_range(Duration::ZERO..=bound)
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn waits_grow_to_a_bound_and_start_again_after_a_success() {
        let mut chance = StdRng::seed_from_u64(1);
        let mut longest = [Duration::ZERO; 8];
        for _ in 0..1000 {
            let mut backoff = Backoff::default();
            for longest in &mut longest {
                *longest = (*longest).max(backoff.failed(&mut chance));
            }
        }
        for (tries, longest) in longest.into_iter().enumerate() {
            let bound = FIRST.saturating_mul(1 << tries).min(LONGEST);
            assert!(longest <= bound && longest > bound / 2, "{tries}: {longest:?}");
        }
        let mut backoff = Backoff { failures: u32::MAX };
        assert!(backoff.failed(&mut chance) <= LONGEST);
        backoff.succeeded();
        assert!(backoff.failed(&mut chance) <= FIRST);
    }
}
