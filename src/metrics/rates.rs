//! Rates over the last ten seconds, sampled once a second, so that the hot path counts and never divides.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use super::ledger::Balance;
use super::process::{Process, Usage};
use crate::clock::Moment;

/// How many samples the window spans; one is taken a second.
const WINDOW: usize = 10;

/// Per second, over the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub received: f64,
    /// Committed: stored, duplicate or dead.
    pub settled: f64,
    /// Refused for want of room, in percent of what came and was valid.
    pub drop_percent: f64,
    pub cpu_percent: f64,
    pub memory_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Moment,
    balance: Balance,
    usage: Usage,
}

/// The window. Locked for a few additions at a time, by the sampler and by scrapes.
#[derive(Debug, Default)]
pub struct Sampler {
    samples: Mutex<VecDeque<Sample>>,
}

impl Sampler {
    pub fn sample(&self, at: Moment, balance: Balance, process: &Process) {
        let sample = Sample { at, balance, usage: process.usage() };
        let mut samples = self.lock();
        if samples.len() > WINDOW {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    pub fn rates(&self) -> Rates {
        let samples = self.lock();
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
            return Rates::default();
        };
        let seconds = last.at.since(first.at).as_secs_f64();
        if seconds <= 0.0 {
            return Rates { memory_bytes: last.usage.memory_bytes, ..Rates::default() };
        }
        let received = last.balance.received - first.balance.received;
        let turned_away = last.balance.turned_away() - first.balance.turned_away();
        Rates {
            received: float(received) / seconds,
            settled: float(last.balance.settled() - first.balance.settled()) / seconds,
            drop_percent: 100.0 * float(turned_away) / float((received + turned_away).max(1)),
            cpu_percent: 100.0 * (last.usage.cpu.saturating_sub(first.usage.cpu)).as_secs_f64() / seconds,
            memory_bytes: last.usage.memory_bytes,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Sample>> {
        self.samples.lock().expect("BUG: nothing panics while it holds the samples")
    }
}

/// Seconds a refused producer is told to wait: as long as the writer needs, at the rate of late, to bring `held`
/// events down to half of `capacity`. At least 1 s, at most a minute; `stalled` when nothing has been settled of late.
pub fn retry_after(held: usize, capacity: usize, settled_per_second: f64, stalled: Duration) -> u64 {
    const LONGEST: u64 = 60;
    let excess = float(held.saturating_sub(capacity / 2) as u64);
    if settled_per_second < 1.0 {
        return stalled.as_secs().clamp(1, LONGEST);
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; clamped")]
    let seconds = (excess / settled_per_second).ceil() as u64;
    seconds.clamp(1, LONGEST)
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_window() {
        let (sampler, process) = (Sampler::default(), Process::new());
        let at = |s| Moment::ZERO.plus(Duration::from_secs(s));
        let balance = |received, turned_away| Balance {
            received,
            stored: received / 2,
            dropped: [turned_away, 0, 7, 0, 0],
            ..Balance::default()
        };
        for second in 0..=20 {
            // 100 a second, and in the last ten seconds 100 turned away a second as well.
            sampler.sample(at(second), balance(second * 100, second.saturating_sub(10) * 100), &process);
        }
        let rates = sampler.rates();
        assert!((rates.received - 100.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.settled - 50.0).abs() < 1e-9, "{rates:?}");
        assert!((rates.drop_percent - 50.0).abs() < 1e-9, "{rates:?}");
    }

    #[test]
    fn a_refused_producer_is_told_how_long_the_writer_needs() {
        let stalled = Duration::from_secs(7);
        assert_eq!(retry_after(50_000, 50_000, 10_000.0, stalled), 3);
        assert_eq!(retry_after(50_000, 50_000, 1e9, stalled), 1);
        assert_eq!(retry_after(50_000, 50_000, 0.0, stalled), 7);
        assert_eq!(retry_after(50_000, 50_000, 2.0, stalled), 60);
        assert_eq!(retry_after(1, 1, 0.0, Duration::ZERO), 1);
    }
}
