//! The state of the standby that serves queries: whether it answers, how far it lags, and by both
//! whether queries read from it.
//!
//! A probe and the queries write the state; queries, health and metrics read it. It is not the
//! state of the breaker: a standby that fails must not stop the writer.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use super::StoreError;

/// How far a standby is behind its primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StandbyLag {
    /// The age of the oldest change that the standby has not replayed.
    pub age: Duration,
    /// None while the primary is not reachable.
    pub bytes: Option<u64>,
}

/// Where queries read, by the state of the standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StandbyCondition {
    /// It does not answer: queries read from the primary.
    Unreachable = 0,
    /// It lags more than allowed: queries read from the primary as long as that answers.
    Lagging = 1,
    /// Queries read from it.
    Current = 2,
}

/// The condition before the first attempt counts as unreachable, and differs from it, so that a standby
/// that never answers is reported once.
const NEVER_ASKED: u8 = 3;

/// The value of a lag that is not known.
const UNKNOWN: u64 = u64::MAX;

#[derive(Debug)]
pub struct StandbyState {
    lag_max: Duration,
    condition: AtomicU8,
    lag_micros: AtomicU64,
    lag_bytes: AtomicU64,
    /// Queries that the standby answered.
    pub queries: AtomicU64,
    /// Queries that the primary answered in place of the standby.
    pub fallbacks: AtomicU64,
}

impl StandbyState {
    /// A standby is unreachable until it has answered.
    pub fn new(lag_max: Duration) -> Self {
        Self {
            lag_max,
            condition: AtomicU8::new(NEVER_ASKED),
            lag_micros: AtomicU64::new(UNKNOWN),
            lag_bytes: AtomicU64::new(UNKNOWN),
            queries: AtomicU64::new(0),
            fallbacks: AtomicU64::new(0),
        }
    }

    pub fn condition(&self) -> StandbyCondition {
        match self.condition.load(Ordering::Acquire) {
            1 => StandbyCondition::Lagging,
            2 => StandbyCondition::Current,
            _ => StandbyCondition::Unreachable,
        }
    }

    /// The last known age of the lag.
    pub fn lag(&self) -> Option<Duration> {
        Some(self.lag_micros.load(Ordering::Acquire))
            .filter(|micros| *micros != UNKNOWN)
            .map(Duration::from_micros)
    }

    pub fn lag_bytes(&self) -> Option<u64> {
        Some(self.lag_bytes.load(Ordering::Acquire)).filter(|bytes| *bytes != UNKNOWN)
    }

    /// The standby has answered. A lag that it does not tell counts as none.
    pub fn record_answer(&self, lag: Option<StandbyLag>) {
        let micros = lag.map_or(UNKNOWN, |lag| u64::try_from(lag.age.as_micros()).unwrap_or(UNKNOWN - 1));
        self.lag_micros.store(micros, Ordering::Release);
        self.lag_bytes.store(lag.and_then(|lag| lag.bytes).unwrap_or(UNKNOWN), Ordering::Release);
        let lags = lag.is_some_and(|lag| lag.age > self.lag_max);
        let condition = if lags { StandbyCondition::Lagging } else { StandbyCondition::Current };
        if self.set(condition) {
            if lags {
                let seconds = lag.map_or(0, |lag| lag.age.as_secs());
                log::warn!(lag_seconds = seconds; "the standby lags: queries read from the primary");
            } else {
                log::info!("the standby answers: queries read from it");
            }
        }
    }

    /// The standby is not reachable. Its last known lag is kept, though it may have grown.
    pub fn record_unreachable(&self, error: &StoreError) {
        self.lag_bytes.store(UNKNOWN, Ordering::Release);
        if self.set(StandbyCondition::Unreachable) {
            log::warn!("the standby is not reachable: queries read from the primary: {error}");
        }
    }

    /// Returns whether the condition has changed.
    fn set(&self, condition: StandbyCondition) -> bool {
        self.condition.swap(condition as u8, Ordering::AcqRel) != condition as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standby_is_current_up_to_its_maximum_lag() {
        let state = StandbyState::new(Duration::from_secs(10));
        assert_eq!((state.condition(), state.lag()), (StandbyCondition::Unreachable, None));
        assert!(state.set(StandbyCondition::Unreachable), "the first failure is reported");
        assert!(!state.set(StandbyCondition::Unreachable), "it is reported once");
        let answer = |micros| {
            let age = Duration::from_micros(micros);
            state.record_answer(Some(StandbyLag { age, bytes: Some(7) }));
            assert_eq!((state.lag(), state.lag_bytes()), (Some(age), Some(7)));
            state.condition()
        };
        assert_eq!(answer(0), StandbyCondition::Current);
        assert_eq!(answer(10_000_000), StandbyCondition::Current);
        assert_eq!(answer(10_000_001), StandbyCondition::Lagging);
        state.record_answer(None);
        assert_eq!((state.condition(), state.lag()), (StandbyCondition::Current, None));
        answer(10_000_001);
        state.record_unreachable(&StoreError::client_side("gone"));
        assert_eq!((state.condition(), state.lag_bytes()), (StandbyCondition::Unreachable, None));
        assert!(state.lag().is_some(), "the last known lag");
    }
}
