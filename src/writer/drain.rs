//! The request to drain, and whether the database lets the writer make progress. The server decides
//! by it when a drain ends.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Moment;

/// Request to empty the buffer and stop, with a deadline.
#[derive(Debug)]
pub struct Drain {
    /// Nanoseconds of the deadline's moment plus one; zero: no drain is requested.
    deadline: AtomicU64,
    /// Since when every attempt has failed, as nanoseconds plus one; zero: the last attempt succeeded.
    failing_since: AtomicU64,
}

impl Default for Drain {
    /// No drain is requested. A database that was never reached counts as failing.
    fn default() -> Self {
        Self { deadline: AtomicU64::new(0), failing_since: AtomicU64::new(encode(Moment::ZERO)) }
    }
}

impl Drain {
    /// The caller must wake the writer after each call.
    pub fn set_deadline(&self, deadline: Moment) {
        self.deadline.store(encode(deadline), Ordering::Release);
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        decode(self.deadline.load(Ordering::Acquire))
    }

    /// The database did what was asked, or refused rows for their own fault.
    pub(super) fn record_success(&self) {
        self.failing_since.store(0, Ordering::Release);
    }

    pub(super) fn record_failure(&self, now: Moment) {
        // The first failure after a success sets the time; later ones keep it.
        _ = self.failing_since.compare_exchange(0, encode(now), Ordering::AcqRel, Ordering::Acquire);
    }

    /// Since when every attempt of the writer has failed. None if the last one succeeded.
    pub fn failing_since(&self) -> Option<Moment> {
        decode(self.failing_since.load(Ordering::Acquire))
    }
}

fn encode(moment: Moment) -> u64 {
    moment.nanos().saturating_add(1)
}

fn decode(value: u64) -> Option<Moment> {
    value.checked_sub(1).map(Moment::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_reports_the_first_failure_since_the_last_success() {
        let drain = Drain::default();
        let at = Moment::from_nanos;
        assert_eq!(drain.failing_since(), Some(Moment::ZERO), "the database was never reached");
        drain.record_failure(at(5));
        assert_eq!(drain.failing_since(), Some(Moment::ZERO));
        drain.record_success();
        assert_eq!(drain.failing_since(), None);
        drain.record_failure(at(7));
        drain.record_failure(at(9));
        assert_eq!(drain.failing_since(), Some(at(7)));
        assert_eq!(drain.deadline(), None);
        drain.set_deadline(at(0));
        assert_eq!(drain.deadline(), Some(at(0)));
    }
}
