//! Validates a push to a group and converts it for the state: adds the labels of the grouping key,
//! sorts, checks limits. Runs on an acceptor without access to shared state.

use std::sync::Arc;

use super::grouping_key::GroupingKey;
use super::metric::{
    Block, BlockIndex, MetricKind, ParsedBody, ParsedFamily, Series, SeriesValue, is_reserved_label,
    render_labels,
};
use super::names::is_valid_name;
use super::state::{FAILURE_TIME, PUSH_TIME};
use crate::clock::Moment;
use crate::http::problem::ECHO_BYTES_MAX;
use crate::json::text::truncate;
use crate::metrics::text_format::format_float;

/// Bytes of the name of a metric or label.
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of a label value or a help text.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Labels of a series, with those of the grouping key.
pub const LABELS_MAX: usize = 64;
/// Buckets of a histogram, or quantiles of a summary.
pub const BUCKETS_MAX: usize = 1000;

/// Metric names of one push, and of one group. Bounds the time for which a push holds the lock of the
/// gateway.
pub const FAMILIES_MAX: usize = 10_000;

/// Bounds on the work for one body.
#[derive(Clone, Copy, Debug)]
pub struct ParseLimits {
    pub families_max: usize,
    /// Lines of the text format, or metrics in protobuf. A push with more is refused by the state,
    /// so there is no need to read it to its end.
    pub samples_max: usize,
}

impl ParseLimits {
    /// For bodies that no client sent.
    pub const NONE: Self = Self { families_max: usize::MAX, samples_max: usize::MAX };
}

/// The reason for refusing a push whatever the state is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidatePushError {
    #[error("pushed metrics must not have timestamps")]
    Timestamps,
    #[error("{0}")]
    Body(String),
    #[error("{0:?} is not a valid metric name")]
    MetricName(String),
    #[error("metric {0:?} has a label with an invalid name: {1:?}")]
    LabelName(String, String),
    #[error("metric {0:?} has two or more labels with the same name: {1}")]
    DuplicateLabel(String, String),
    #[error("{2} {0:?} must not have an explicit {1:?} label")]
    ReservedLabel(String, &'static str, &'static str),
    #[error("metric {0}{{{1}}} was pushed before with the same name and label values")]
    Duplicate(String, String),
    #[error("{kind} {name:?} has two values of the label {label:?} that are the number {bound}")]
    DuplicateBound { name: String, kind: &'static str, label: &'static str, bound: String },
    #[error("{1} {0:?} has a bucket or quantile that is not a number")]
    InvalidBound(String, &'static str),
    #[error("native histogram {0:?}: {1}")]
    Native(String, &'static str),
    #[error("metric {0:?}: {1} is more than {2}")]
    LimitExceeded(String, &'static str, usize),
}

/// Returns the families sorted by name, each with its series sorted by labels.
pub fn validate_push(
    grouping_key: &GroupingKey,
    parsed: ParsedBody<'_>,
    (now, wall_s): (Moment, f64),
) -> Result<Vec<(String, Block)>, ValidatePushError> {
    if parsed.has_timestamps {
        return Err(ValidatePushError::Timestamps);
    }
    if let Some(inconsistency) = parsed.inconsistency {
        return Err(ValidatePushError::Body(inconsistency));
    }
    let mut families = Vec::with_capacity(parsed.families.len());
    for family in parsed.families {
        if family.name == PUSH_TIME || family.name == FAILURE_TIME {
            // The server maintains these two series itself and ignores pushed ones.
            continue;
        }
        let name = family.name.clone();
        let series = validate_series(grouping_key, family.samples.len(), &family)?;
        let help: Arc<str> = family.help.as_ref().into();
        families.push((
            name.into_owned(),
            Block {
                kind: family.kind,
                help,
                series,
                last_push: now,
                last_push_wall_s: wall_s,
                index: BlockIndex::default(),
            },
        ));
    }
    families.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(families)
}

fn validate_series(
    grouping_key: &GroupingKey,
    count: usize,
    family: &ParsedFamily<'_>,
) -> Result<Vec<Series>, ValidatePushError> {
    let name = || truncate(&family.name, ECHO_BYTES_MAX);
    if !is_valid_name(&family.name) {
        return Err(ValidatePushError::MetricName(name()));
    }
    if family.name.len() > NAME_BYTES_MAX {
        return Err(ValidatePushError::LimitExceeded(name(), "its name", NAME_BYTES_MAX));
    }
    if family.help.len() > VALUE_BYTES_MAX {
        return Err(ValidatePushError::LimitExceeded(name(), "its help text", VALUE_BYTES_MAX));
    }
    let mut series = Vec::with_capacity(count);
    let mut labels = Vec::new();
    for sample in &family.samples {
        labels.clear();
        labels.extend(sample.labels.iter().map(|(name, value)| ((&**name).into(), (&**value).into())));
        grouping_key.apply_to(&mut labels);
        if labels.len() > LABELS_MAX {
            return Err(ValidatePushError::LimitExceeded(name(), "the number of its labels", LABELS_MAX));
        }
        let rendered = render_labels(&mut labels);
        for (nth, (label, value)) in labels.iter().enumerate() {
            let echo = || truncate(label, ECHO_BYTES_MAX);
            if !is_valid_name(label) || is_reserved_label(label) {
                return Err(ValidatePushError::LabelName(name(), echo()));
            }
            if nth > 0 && labels[nth - 1].0 == *label {
                return Err(ValidatePushError::DuplicateLabel(name(), echo()));
            }
            match (family.kind, &**label) {
                (MetricKind::Summary, "quantile") => {
                    return Err(ValidatePushError::ReservedLabel(name(), "quantile", "summary"));
                }
                (MetricKind::Histogram, "le") => {
                    return Err(ValidatePushError::ReservedLabel(name(), "le", "histogram"));
                }
                _ => {}
            }
            if label.len() > NAME_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
                return Err(ValidatePushError::LimitExceeded(name(), "a label", VALUE_BYTES_MAX));
            }
        }
        let places = match &sample.value {
            SeriesValue::Number(_) => 0,
            SeriesValue::Histogram(histogram) => histogram.buckets.len(),
            SeriesValue::Summary(summary) => summary.quantiles.len(),
        };
        if places > BUCKETS_MAX {
            return Err(ValidatePushError::LimitExceeded(name(), "the number of its buckets", BUCKETS_MAX));
        }
        let mut value = sample.value.clone();
        sort_bounds(family, &mut value)?;
        series.push(Series { labels: rendered.into(), value });
    }
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    match series.windows(2).find(|pair| pair[0].labels == pair[1].labels) {
        Some(pair) => {
            Err(ValidatePushError::Duplicate(name(), truncate(&pair[0].labels, 4 * ECHO_BYTES_MAX)))
        }
        None => Ok(series),
    }
}

/// Sorts buckets and quantiles. Each number may occur once, however it is written: `1`, `1.0` and
/// `1e0` are one series to Prometheus.
fn sort_bounds(family: &ParsedFamily<'_>, value: &mut SeriesValue) -> Result<(), ValidatePushError> {
    match value {
        SeriesValue::Number(_) => Ok(()),
        SeriesValue::Histogram(histogram) => {
            if let Some(native) = &histogram.native {
                let name = || truncate(&family.name, ECHO_BYTES_MAX);
                native
                    .check(histogram.count, histogram.sum)
                    .map_err(|reason| ValidatePushError::Native(name(), reason))?;
            }
            sort_pairs(family, "le", &mut histogram.buckets)
        }
        SeriesValue::Summary(summary) => sort_pairs(family, "quantile", &mut summary.quantiles),
    }
}

fn sort_pairs<T>(
    family: &ParsedFamily<'_>,
    label: &'static str,
    pairs: &mut [(f64, T)],
) -> Result<(), ValidatePushError> {
    let (name, kind) = (|| truncate(&family.name, ECHO_BYTES_MAX), family.kind.name());
    if pairs.iter().any(|(bound, _)| bound.is_nan()) {
        return Err(ValidatePushError::InvalidBound(name(), kind));
    }
    pairs.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    // `>=` also finds -0 before 0.
    match pairs.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
        Some(pair) => {
            let bound = format_float(pair[1].0);
            Err(ValidatePushError::DuplicateBound { name: name(), kind, label, bound })
        }
        None => Ok(()),
    }
}
