//! Changes of aggregated series (`POST /metrics/push`): the value of a series after a change, and
//! the reasons for which the state refuses one.

use std::sync::Arc;

use super::metric::{Histogram, MetricKind, SeriesValue};

/// The reason for refusing a change that conflicts with the state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyPushError {
    #[error("{0} is a metric that the server adds to each group")]
    GroupMetric(String),
    #[error("metric {name} is already a {is} and cannot be a {wanted}")]
    KindMismatch { name: String, is: &'static str, wanted: &'static str },
    #[error("metric {name} collides with the {kind} {with}")]
    Collision { name: String, with: String, kind: &'static str },
    #[error("metric {name}{{{labels}}} already exists with the same name and label values")]
    Duplicate { name: String, labels: String },
    #[error("the buckets differ from those of the existing series of {0}")]
    BucketMismatch(String),
    #[error("the sum of {0} would not be a finite number")]
    Overflow(String),
    #[error("there would be more than {0} series; see PUSHED_SERIES_MAX")]
    TooManySeries(usize),
    #[error("the group would have more than {0} metric names")]
    TooManyFamilies(usize),
    #[error("the pushed metrics would take more than {0} bytes; see PUSHED_MAX_BYTES")]
    TooManyBytes(usize),
}

impl ApplyPushError {
    /// The value of the label `reason` of `gateway_refused_total`.
    pub fn reason(&self) -> crate::metrics::gateway::RefusalReason {
        use crate::metrics::gateway::RefusalReason;
        match self {
            Self::GroupMetric(_) => RefusalReason::OwnName,
            Self::KindMismatch { .. } | Self::Collision { .. } | Self::BucketMismatch(_) => {
                RefusalReason::Type
            }
            Self::Duplicate { .. } => RefusalReason::Duplicate,
            Self::Overflow(_) => RefusalReason::Invalid,
            Self::TooManySeries(_) | Self::TooManyFamilies(_) | Self::TooManyBytes(_) => RefusalReason::Full,
        }
    }
}

/// The effect of a metric of `POST /metrics/push` on its series.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Add(f64),
    Set(f64),
    Merge(Histogram),
    /// Adds one observation; `bounds` are the buckets of a new series.
    Observe {
        value: f64,
        bounds: Arc<[f64]>,
    },
}

/// One metric of `POST /metrics/push`, valid on its own.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleUpdate {
    pub name: String,
    pub kind: MetricKind,
    pub help: String,
    pub labels: Arc<str>,
    pub change: Change,
}

pub(super) fn kind_mismatch(name: &str, is: MetricKind, wanted: MetricKind) -> ApplyPushError {
    ApplyPushError::KindMismatch { name: name.to_owned(), is: is.name(), wanted: wanted.name() }
}

/// The value of a series after a change.
pub(super) fn apply(
    name: &str,
    before: Option<&SeriesValue>,
    change: &Change,
) -> Result<SeriesValue, ApplyPushError> {
    let finite =
        |sum: f64| if sum.is_finite() { Ok(sum) } else { Err(ApplyPushError::Overflow(name.to_owned())) };
    let number = match before {
        Some(SeriesValue::Number(number)) => *number,
        Some(SeriesValue::Histogram(_) | SeriesValue::Summary(_)) | None => 0.0,
    };
    let held = match before {
        Some(SeriesValue::Histogram(histogram)) => Some(&**histogram),
        Some(SeriesValue::Number(_) | SeriesValue::Summary(_)) | None => None,
    };
    Ok(match change {
        Change::Add(by) => SeriesValue::Number(finite(number + by)?),
        Change::Set(to) => SeriesValue::Number(*to),
        Change::Merge(with) => {
            let Some(held) = held else { return Ok(SeriesValue::Histogram(Box::new(with.clone()))) };
            let bounds =
                |histogram: &Histogram| histogram.buckets.iter().map(|(bound, _)| *bound).collect::<Vec<_>>();
            if bounds(held) != bounds(with) {
                return Err(ApplyPushError::BucketMismatch(name.to_owned()));
            }
            let pairs = held.buckets.iter().zip(&with.buckets);
            SeriesValue::Histogram(Box::new(Histogram {
                buckets: pairs.map(|((bound, a), (_, b))| (*bound, a.saturating_add(*b))).collect(),
                sum: finite(held.sum + with.sum)?,
                count: held.count.saturating_add(with.count),
                native: None,
            }))
        }
        Change::Observe { value, bounds } => {
            let empty = || Histogram {
                buckets: bounds.iter().map(|bound| (*bound, 0)).collect(),
                sum: 0.0,
                count: 0,
                native: None,
            };
            let mut histogram = held.cloned().unwrap_or_else(empty);
            for (_, count) in histogram.buckets.iter_mut().filter(|(bound, _)| value <= bound) {
                *count = count.saturating_add(1);
            }
            histogram.sum = finite(histogram.sum + value)?;
            histogram.count = histogram.count.saturating_add(1);
            SeriesValue::Histogram(Box::new(histogram))
        }
    })
}
