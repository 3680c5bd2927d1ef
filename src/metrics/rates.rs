//! Rates over the last ten seconds, from samples taken once a second, so that the hot path only
//! counts.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use super::ledger::Balance;
use super::process::{Process, ProcessUsage};
use crate::clock::Moment;

/// Length of the window in samples, one per second.
const WINDOW: usize = 10;

/// Rates per second over the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct WindowRates {
    pub received: f64,
    /// Committed: stored, duplicate or dead.
    pub settled: f64,
    /// Percentage of valid events rejected by a full buffer.
    pub drop_percent: f64,
    pub cpu_percent: f64,
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct RateSample {
    at: Moment,
    balance: Balance,
    usage: ProcessUsage,
}

/// The window of samples. Locked by the sampler and by scrapes, for a few additions.
#[derive(Debug, Default)]
pub struct Sampler {
    samples: Mutex<VecDeque<RateSample>>,
}

impl Sampler {
    pub fn sample(&self, at: Moment, balance: Balance, process: &Process) {
        let sample = RateSample { at, balance, usage: process.usage() };
        let mut samples = self.lock();
        if samples.len() > WINDOW {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub fn rates(&self) -> WindowRates {
        let samples = self.lock();
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
            return WindowRates::default();
        };
        let seconds = last.at.since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            return WindowRates { memory_bytes: last.usage.memory_bytes, ..WindowRates::default() };
        }
        let received = last.balance.received - first.balance.received;
        let rejected = last.balance.rejected() - first.balance.rejected();
        WindowRates {
            received: to_f64(received) / seconds,
            settled: to_f64(last.balance.settled() - first.balance.settled()) / seconds,
            drop_percent: 100.0 * to_f64(rejected) / to_f64((received + rejected).max(1)),
            cpu_percent: 100.0 * (last.usage.cpu.saturating_sub(first.usage.cpu)).as_secs_f64() / seconds,
            memory_bytes: last.usage.memory_bytes,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<RateSample>> {
        self.samples.lock().expect("BUG: nothing panics while it holds the samples")
    }
}

/// `Retry-After` seconds of a rejected producer: the time to bring `held` events down to half of
/// `capacity` at the current rate, or `stalled` if nothing is being settled. Clamped to 1 to 60 s.
pub fn retry_after(held: usize, capacity: usize, settled_per_second: f64, stalled: Duration) -> u64 {
    const LONGEST: u64 = 60;
    let excess = to_f64(held.saturating_sub(capacity / 2) as u64);
    if settled_per_second < 1.0 {
        return stalled.as_secs().clamp(1, LONGEST);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; clamped")]
    let seconds = (excess / settled_per_second).ceil() as u64;
    seconds.clamp(1, LONGEST)
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
pub(crate) fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_cover_the_window_only() {
        let (sampler, process) = (Sampler::default(), Process::new());
        let at = |s| Moment::ZERO.plus(Duration::from_secs(s));
        let balance = |received, rejected| Balance {
            received,
            stored: received / 2,
            dropped: [rejected, 0, 7, 0, 0],
            ..Balance::default()
        };
        for second in 0..=20 {
            // 100 received a second; in the last ten seconds, 100 rejected a second.
            sampler.sample(at(second), balance(second * 100, second.saturating_sub(10) * 100), &process);
        }
        let rates = sampler.rates();
        assert!((rates.received - 100.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.settled - 50.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.drop_percent - 50.0).abs() < 1e-9, "{rates:?}");
    }

    #[test]
    fn retry_after_is_the_time_the_writer_needs() {
        let stalled = Duration::from_secs(7);
        assert_eq!(retry_after(50_000, 50_000, 10_000.0, stalled), 3);
        assert_eq!(retry_after(50_000, 50_000, 1e9, stalled), 1);
        assert_eq!(retry_after(50_000, 50_000, 0.0, stalled), 7);
        assert_eq!(retry_after(50_000, 50_000, 2.0, stalled), 60);
        assert_eq!(retry_after(1, 1, 0.0, Duration::ZERO), 1);
    }
}
