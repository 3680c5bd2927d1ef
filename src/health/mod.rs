//! Health and readiness: derives them from metrics that other modules own, and from the database
//! probes. Only the probes query the database.

mod database;
pub mod openapi;
mod probe;
mod standby_probe;
pub mod status;

use serde::Serialize;

pub use probe::{DatabaseProbe, ProbeState};
pub use standby_probe::StandbyProbe;

use crate::journal::Fault;
use crate::lifecycle::LifecyclePhase;
use crate::storage::breaker::BreakerState;

/// The health of a component or of the server. The numbers are the values of the health metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum HealthStatus {
    Critical = 0,
    Degraded = 1,
    Healthy = 2,
}

impl HealthStatus {
    /// The status of a buffer with this utilization: healthy below 80 %, critical from 95 %.
    pub fn from_utilization(percent: f64) -> Self {
        if percent < 80.0 {
            Self::Healthy
        } else if percent < 95.0 {
            Self::Degraded
        } else {
            Self::Critical
        }
    }
}

/// The inputs from which health and readiness are derived.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and any of them go together")]
pub struct HealthInputs {
    pub phase: LifecyclePhase,
    pub utilization_percent: f64,
    /// Whether the buffer would admit another event.
    pub has_room: bool,
    /// Utilization of the spill capacity in the journal, if spilling is configured.
    pub spill_percent: Option<f64>,
    /// Whether the journal is being replayed. False while the replay is stalled because the buffer
    /// is full and the database is down: a stalled replay is no reason to refuse events that can be
    /// admitted.
    pub recovering: bool,
    /// The current fault of the journal.
    pub journal_fault: Option<Fault>,
    pub database_up: bool,
    pub breaker: BreakerState,
    /// Whether events wait and none is stored, although the database is up.
    pub stalled: bool,
    /// Whether the log of the metrics gateway can be written. Pushes of metrics are refused while it
    /// cannot.
    pub gateway_log_available: bool,
}

impl HealthInputs {
    /// The reasons why the server should get no traffic; empty if it is ready. An outage of the
    /// database alone is no reason, since the buffer absorbs it.
    pub fn not_ready_reasons(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        match self.phase {
            LifecyclePhase::Starting => {
                reasons.push("starting: the first connection to the database is pending");
            }
            LifecyclePhase::Serving => {}
            LifecyclePhase::Draining => reasons.push("shutting down"),
            LifecyclePhase::Poisoned => reasons.push("a thread died: the process is exiting"),
        }
        if self.recovering {
            reasons.push("recovering: the journal is being replayed");
        }
        match self.journal_fault {
            None => {}
            Some(Fault::NotWritable) => reasons.push("the journal cannot be written"),
            Some(Fault::NotSynced) => {
                reasons.push("the journal cannot be synced: the durability level synced is unavailable");
            }
        }
        if !self.database_up && !self.has_room {
            reasons.push("the database is not reachable, and the buffer and the spill capacity are full");
        }
        reasons
    }

    /// Trouble that is no reason to send traffic elsewhere. A fault of the gateway's log refuses pushed
    /// metrics only: a server that accepts events must stay reachable for them.
    pub fn warnings(&self) -> Vec<&'static str> {
        if self.gateway_log_available {
            Vec::new()
        } else {
            vec!["the log of the metrics gateway cannot be written: pushed metrics are refused"]
        }
    }

    pub fn gateway(&self) -> HealthStatus {
        if self.gateway_log_available { HealthStatus::Healthy } else { HealthStatus::Degraded }
    }

    /// A full buffer is critical only if the spill capacity is full too. A stall degrades: events
    /// are accepted, and kept.
    pub fn buffer(&self) -> HealthStatus {
        let memory = HealthStatus::from_utilization(self.utilization_percent);
        let capacity = self.spill_percent.map_or(memory, |percent| {
            memory.max(HealthStatus::from_utilization(percent).min(HealthStatus::Degraded))
        });
        if self.stalled { capacity.min(HealthStatus::Degraded) } else { capacity }
    }

    pub fn database(&self) -> HealthStatus {
        match (self.database_up, self.breaker) {
            (true, BreakerState::Closed) => HealthStatus::Healthy,
            (true, BreakerState::HalfOpen | BreakerState::Open) | (false, BreakerState::Closed) => {
                HealthStatus::Degraded
            }
            (false, BreakerState::HalfOpen | BreakerState::Open) => HealthStatus::Critical,
        }
    }

    /// The status of the server. With the database down it is degraded, not critical, since it
    /// still accepts events.
    pub fn overall(&self) -> HealthStatus {
        if self.phase == LifecyclePhase::Poisoned {
            return HealthStatus::Critical;
        }
        self.buffer().min(self.database().max(HealthStatus::Degraded)).min(self.journal()).min(self.gateway())
    }

    pub fn journal(&self) -> HealthStatus {
        match self.journal_fault {
            None => HealthStatus::Healthy,
            Some(Fault::NotSynced) => HealthStatus::Degraded,
            Some(Fault::NotWritable) => HealthStatus::Critical,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTHY: HealthInputs = HealthInputs {
        phase: LifecyclePhase::Serving,
        utilization_percent: 0.0,
        has_room: true,
        spill_percent: None,
        recovering: false,
        journal_fault: None,
        database_up: true,
        breaker: BreakerState::Closed,
        stalled: false,
        gateway_log_available: true,
    };

    #[test]
    fn buffer_is_degraded_from_80_and_critical_from_95_percent() {
        let of = HealthStatus::from_utilization;
        assert_eq!(
            [of(79.99), of(80.0), of(94.99), of(95.0)],
            [HealthStatus::Healthy, HealthStatus::Degraded, HealthStatus::Degraded, HealthStatus::Critical]
        );
    }

    #[test]
    fn database_outage_leaves_the_server_ready_until_the_buffer_is_full() {
        let outage = HealthInputs { database_up: false, breaker: BreakerState::Open, ..HEALTHY };
        assert_eq!((outage.not_ready_reasons().len(), outage.overall()), (0, HealthStatus::Degraded));
        let full = HealthInputs { has_room: false, utilization_percent: 100.0, ..outage };
        assert_eq!((full.not_ready_reasons().len(), full.overall()), (1, HealthStatus::Critical));
    }

    #[test]
    fn full_buffer_is_critical_only_when_nothing_can_be_spilled() {
        let of = |memory, spill| {
            HealthInputs { utilization_percent: memory, spill_percent: spill, ..HEALTHY }.buffer()
        };
        assert_eq!(of(100.0, None), HealthStatus::Critical);
        assert_eq!(of(100.0, Some(0.0)), HealthStatus::Degraded);
        assert_eq!(of(100.0, Some(94.9)), HealthStatus::Degraded);
        assert_eq!(of(100.0, Some(95.0)), HealthStatus::Critical);
        assert_eq!(of(10.0, Some(100.0)), HealthStatus::Healthy);
    }

    #[test]
    fn stall_degrades_the_buffer_and_leaves_the_server_ready() {
        let stalled = HealthInputs { stalled: true, ..HEALTHY };
        assert_eq!((stalled.buffer(), stalled.overall()), (HealthStatus::Degraded, HealthStatus::Degraded));
        assert!(stalled.not_ready_reasons().is_empty());
        let full = HealthInputs { utilization_percent: 100.0, ..stalled };
        assert_eq!(full.buffer(), HealthStatus::Critical);
    }

    #[test]
    fn journal_fault_makes_the_server_not_ready() {
        let unsynced = HealthInputs { journal_fault: Some(Fault::NotSynced), ..HEALTHY };
        assert_eq!((unsynced.not_ready_reasons().len(), unsynced.overall()), (1, HealthStatus::Degraded));
        let unwritable = HealthInputs { journal_fault: Some(Fault::NotWritable), ..HEALTHY };
        assert_eq!((unwritable.not_ready_reasons().len(), unwritable.overall()), (1, HealthStatus::Critical));
        assert_eq!(HealthInputs { recovering: true, ..HEALTHY }.not_ready_reasons().len(), 1);
    }

    #[test]
    fn fault_of_the_gateways_log_degrades_and_warns_and_leaves_the_server_ready() {
        let failed = HealthInputs { gateway_log_available: false, ..HEALTHY };
        assert_eq!((failed.gateway(), failed.overall()), (HealthStatus::Degraded, HealthStatus::Degraded));
        assert_eq!((failed.not_ready_reasons().len(), failed.warnings().len()), (0, 1));
        assert_eq!((HEALTHY.overall(), HEALTHY.warnings().len()), (HealthStatus::Healthy, 0));
    }

    #[test]
    fn server_is_not_ready_while_starting_or_stopping() {
        assert!(HEALTHY.not_ready_reasons().is_empty());
        for phase in [LifecyclePhase::Starting, LifecyclePhase::Draining, LifecyclePhase::Poisoned] {
            assert_eq!(HealthInputs { phase, ..HEALTHY }.not_ready_reasons().len(), 1);
        }
    }
}
