//! How the server is: alive, ready, and in what condition. Judges figures that others hold; asks nothing of the
//! database itself but through the probe.

mod probe;
pub mod status;

use serde::Serialize;

pub use probe::{Database, Probe};

use crate::journal::Trouble;
use crate::lifecycle::Phase;
use crate::storage::breaker::State as BreakerState;

/// One word for a figure that has grown too far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Condition {
    Critical = 0,
    Degraded = 1,
    Healthy = 2,
}

impl Condition {
    /// Of a buffer that is this full: healthy below 80 %, critical from 95 %.
    pub fn of_utilization(percent: f64) -> Self {
        if percent < 80.0 {
            Self::Healthy
        } else if percent < 95.0 {
            Self::Degraded
        } else {
            Self::Critical
        }
    }
}

/// What the judgement rests on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub phase: Phase,
    pub utilization_percent: f64,
    /// Whether one more event would be admitted.
    pub room: bool,
    /// How full the room in the journal is that lies beyond the buffer, if there is any.
    pub spill_percent: Option<f64>,
    /// Whether the journal holds what is not in the buffer again, and that is being read. When it cannot go on for
    /// want of room, because the database is away, it is no reason to turn away what there is room for.
    pub recovering: bool,
    /// What is the matter with the journal.
    pub journal: Option<Trouble>,
    pub database_up: bool,
    pub breaker: BreakerState,
}

impl Facts {
    /// Why the server should get no traffic; empty when it should. An outage of the database alone is no reason: that
    /// is what the buffer is for.
    pub fn not_ready(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        match self.phase {
            Phase::Starting => reasons.push("starting: the database has not been tried yet"),
            Phase::Serving => {}
            Phase::Draining => reasons.push("shutting down"),
            Phase::Poisoned => reasons.push("a thread died: the process is ending"),
        }
        if self.recovering {
            reasons.push("recovering: the journal is being replayed");
        }
        match self.journal {
            None => {}
            Some(Trouble::NotWritable) => reasons.push("the journal cannot be written"),
            Some(Trouble::NotSynced) => {
                reasons.push("the journal cannot be synced: the level synced is not promised");
            }
        }
        if !self.database_up && !self.room {
            reasons.push("the database is not reachable, and the buffer and what may be spilled are full");
        }
        reasons
    }

    /// A full buffer is critical only when nothing can be spilled any more.
    pub fn buffer(&self) -> Condition {
        let memory = Condition::of_utilization(self.utilization_percent);
        self.spill_percent
            .map_or(memory, |percent| memory.max(Condition::of_utilization(percent).min(Condition::Degraded)))
    }

    pub fn database(&self) -> Condition {
        match (self.database_up, self.breaker) {
            (true, BreakerState::Closed) => Condition::Healthy,
            (true, BreakerState::HalfOpen | BreakerState::Open) | (false, BreakerState::Closed) => {
                Condition::Degraded
            }
            (false, BreakerState::HalfOpen | BreakerState::Open) => Condition::Critical,
        }
    }

    /// The server as a whole. Without its database it is degraded, since it still does its main job.
    pub fn overall(&self) -> Condition {
        if self.phase == Phase::Poisoned {
            return Condition::Critical;
        }
        self.buffer().min(self.database().max(Condition::Degraded)).min(self.journal())
    }

    pub fn journal(&self) -> Condition {
        match self.journal {
            None => Condition::Healthy,
            Some(Trouble::NotSynced) => Condition::Degraded,
            Some(Trouble::NotWritable) => Condition::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Facts = Facts {
        phase: Phase::Serving,
        utilization_percent: 0.0,
        room: true,
        spill_percent: None,
        recovering: false,
        journal: None,
        database_up: true,
        breaker: BreakerState::Closed,
    };

    #[test]
    fn the_buffer_is_degraded_from_80_and_critical_from_95_percent() {
        let of = Condition::of_utilization;
        assert_eq!(
            [of(79.99), of(80.0), of(94.99), of(95.0)],
            [Condition::Healthy, Condition::Degraded, Condition::Degraded, Condition::Critical]
        );
    }

    #[test]
    fn an_outage_of_the_database_leaves_the_server_ready_until_the_buffer_is_full() {
        let outage = Facts { database_up: false, breaker: BreakerState::Open, ..WELL };
        assert_eq!((outage.not_ready().len(), outage.overall()), (0, Condition::Degraded));
        let full = Facts { room: false, utilization_percent: 100.0, ..outage };
        assert_eq!((full.not_ready().len(), full.overall()), (1, Condition::Critical));
    }

    #[test]
    fn a_full_buffer_is_critical_only_when_nothing_can_be_spilled() {
        let of = |memory, spill| Facts { utilization_percent: memory, spill_percent: spill, ..WELL }.buffer();
        assert_eq!(of(100.0, None), Condition::Critical);
        assert_eq!(of(100.0, Some(0.0)), Condition::Degraded);
        assert_eq!(of(100.0, Some(94.9)), Condition::Degraded);
        assert_eq!(of(100.0, Some(95.0)), Condition::Critical);
        assert_eq!(of(10.0, Some(100.0)), Condition::Healthy);
    }

    #[test]
    fn a_journal_that_does_not_work_is_a_reason_not_to_be_ready() {
        let unsynced = Facts { journal: Some(Trouble::NotSynced), ..WELL };
        assert_eq!((unsynced.not_ready().len(), unsynced.overall()), (1, Condition::Degraded));
        let unwritable = Facts { journal: Some(Trouble::NotWritable), ..WELL };
        assert_eq!((unwritable.not_ready().len(), unwritable.overall()), (1, Condition::Critical));
        assert_eq!(Facts { recovering: true, ..WELL }.not_ready().len(), 1);
    }

    #[test]
    fn a_server_that_starts_or_stops_is_not_ready() {
        assert!(WELL.not_ready().is_empty());
        for phase in [Phase::Starting, Phase::Draining, Phase::Poisoned] {
            assert_eq!(Facts { phase, ..WELL }.not_ready().len(), 1);
        }
    }
}
