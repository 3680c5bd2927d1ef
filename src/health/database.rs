//! The health of the database as `/health/database` reports it: the primary, the last failover and the
//! standby that serves queries.

use std::sync::atomic::Ordering;

use serde::Serialize;

use super::{HealthInputs, HealthStatus};
use crate::event::Timestamp;
use crate::metrics::{FailoverMetrics, FailoverReport};
use crate::storage::wal::WalPosition;
use crate::storage::{StandbyCondition, StandbyState};

#[derive(Serialize)]
pub(super) struct DatabaseHealth {
    status: HealthStatus,
    connected: bool,
    /// Start of the outage that lasts, to the second.
    down_since: Option<String>,
    circuit_breaker: &'static str,
    /// Since the start of the process.
    failovers: u64,
    last_failover: Option<FailoverHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standby: Option<StandbyHealth>,
}

#[derive(Serialize)]
struct FailoverHealth {
    noticed_at: String,
    from: WalHealth,
    to: WalHealth,
    /// Events that were stored again, in all failovers.
    events_restored: u64,
    /// Retained segments that are not replayed yet.
    segments_pending: u64,
    is_replayed: bool,
    /// Set if events that were received in this time may be lost for good.
    lost: Option<LostHealth>,
}

#[derive(Serialize)]
struct WalHealth {
    /// A string, since a number of JSON has 53 bits.
    system: String,
    timeline: u32,
    lsn: String,
}

#[derive(Serialize)]
struct LostHealth {
    /// None: from the beginning.
    from: Option<String>,
    to: String,
}

/// The standby that serves queries.
#[derive(Serialize)]
struct StandbyHealth {
    /// Degraded while queries read from the primary.
    status: HealthStatus,
    connected: bool,
    /// Whether queries read from the standby.
    serves_queries: bool,
    /// None: unknown.
    lag_seconds: Option<f64>,
    lag_bytes: Option<u64>,
}

impl DatabaseHealth {
    pub(super) fn new(
        inputs: &HealthInputs,
        down_since: Option<Timestamp>,
        failover: &FailoverMetrics,
        standby: Option<&StandbyState>,
    ) -> Self {
        let down_since = down_since.filter(|_| !inputs.database_up);
        Self {
            status: inputs.database(),
            connected: inputs.database_up,
            down_since: down_since.map(|since| since.to_string()),
            circuit_breaker: inputs.breaker.name(),
            failovers: failover.failovers.load(Ordering::Relaxed),
            last_failover: failover.last().map(|last| failover_health(failover, last)),
            standby: standby.map(standby_health),
        }
    }
}

fn failover_health(metrics: &FailoverMetrics, last: FailoverReport) -> FailoverHealth {
    FailoverHealth {
        noticed_at: last.noticed_at.to_string(),
        from: wal_health(last.from),
        to: wal_health(last.to),
        events_restored: metrics.restored.load(Ordering::Relaxed),
        segments_pending: metrics.pending(),
        is_replayed: last.is_replayed,
        lost: last
            .lost
            .map(|lost| LostHealth { from: lost.from.map(|from| from.to_string()), to: lost.to.to_string() }),
    }
}

fn standby_health(standby: &StandbyState) -> StandbyHealth {
    let condition = standby.condition();
    let serves_queries = condition == StandbyCondition::Current;
    StandbyHealth {
        status: if serves_queries { HealthStatus::Healthy } else { HealthStatus::Degraded },
        connected: condition != StandbyCondition::Unreachable,
        serves_queries,
        lag_seconds: standby.lag().map(|lag| lag.as_secs_f64()),
        lag_bytes: standby.lag_bytes(),
    }
}

fn wal_health(wal: WalPosition) -> WalHealth {
    WalHealth { system: wal.system.to_string(), timeline: wal.timeline, lsn: wal.lsn_text() }
}
