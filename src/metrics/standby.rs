//! The metrics of the standby that serves queries.

use std::sync::atomic::Ordering;

use prometheus::proto::MetricFamily;

use super::family::{MetricValue, family};
use super::rates::to_f64;
use crate::storage::{StandbyCondition, StandbyState};

/// A lag that is not known has no sample.
pub(super) fn standby_families(standby: &StandbyState) -> Vec<MetricFamily> {
    let condition = standby.condition();
    let flag = |holds: bool| MetricValue::Gauge(f64::from(u8::from(holds)));
    let mut all = vec![
        (
            "database_standby_connection_status",
            "Whether the standby that serves queries answers: 1 yes, 0 no.",
            flag(condition != StandbyCondition::Unreachable),
        ),
        (
            "database_standby_serves_queries",
            "Whether queries read from the standby: 1 yes, 0 no, since it lags or does not answer.",
            flag(condition == StandbyCondition::Current),
        ),
        (
            "database_standby_queries_total",
            "Queries that the standby answered.",
            MetricValue::Counter(to_f64(standby.queries.load(Ordering::Relaxed))),
        ),
        (
            "database_standby_fallbacks_total",
            "Queries that read from the primary, since the standby lagged or did not answer.",
            MetricValue::Counter(to_f64(standby.fallbacks.load(Ordering::Relaxed))),
        ),
    ];
    all.extend(standby.lag().map(|lag| {
        let help = "Age of the oldest change that the standby has not replayed, when it was last known.";
        ("database_standby_lag_seconds", help, MetricValue::Gauge(lag.as_secs_f64()))
    }));
    all.extend(standby.lag_bytes().map(|bytes| {
        let help = "Bytes of the write-ahead log that the standby has not replayed.";
        ("database_standby_lag_bytes", help, MetricValue::Gauge(to_f64(bytes)))
    }));
    all.into_iter().map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)])).collect()
}
