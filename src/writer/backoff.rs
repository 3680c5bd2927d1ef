//! Exponential backoff with full jitter: spreads the retries of servers that failed at the same
//! time.

use std::time::Duration;

use rand::{Rng, RngExt};

const INITIAL: Duration = Duration::from_millis(50);
/// Short, since the breaker provides the long waits.
const MAX: Duration = Duration::from_secs(2);

/// Counts consecutive failures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts a failure and returns the delay: uniform between zero and a bound that doubles each
    /// time.
    pub(super) fn next_delay(&mut self, rng: &mut impl Rng) -> Duration {
        let bound = INITIAL.saturating_mul(1 << self.failures.min(16)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        rng.random_range(Duration::ZERO..=bound)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn backoff_doubles_up_to_its_maximum_and_resets_on_success() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut longest = [Duration::ZERO; 8];
        for _ in 0..1000 {
            let mut backoff = Backoff::default();
            for longest in &mut longest {
                *longest = (*longest).max(backoff.next_delay(&mut rng));
            }
        }
        for (tries, longest) in longest.into_iter().enumerate() {
            let bound = INITIAL.saturating_mul(1 << tries).min(MAX);
            assert!(longest <= bound && longest > bound / 2, "{tries}: {longest:?}");
        }
        let mut backoff = Backoff { failures: u32::MAX };
        assert!(backoff.next_delay(&mut rng) <= MAX);
        backoff.reset();
        assert!(backoff.next_delay(&mut rng) <= INITIAL);
    }
}
