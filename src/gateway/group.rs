//! What is pushed to a group, made ready for the state: labels bound, sorted and judged. Runs on an acceptor before
//! anything shared is touched.

use std::sync::Arc;

use super::metric::{
    Block, Family, Kind, Parsed, Series, Value, is_label_name, is_metric_name, is_reserved_label, render,
};
use super::state::{FAILURE_TIME, PUSH_TIME};
use super::target::Target;
use crate::clock::Moment;
use crate::http::problem::ECHO_BYTES_MAX;
use crate::json::text::shorten;

/// Bytes of a metric's or label's name.
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of a label's value, and of a help text.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Labels of a series, the group's among them.
pub const LABELS_MAX: usize = 64;
/// Buckets of a histogram, or quantiles of a summary.
pub const PLACES_MAX: usize = 1000;

/// Why a push that can be read cannot be taken, whatever else there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    #[error("pushed metrics must not have timestamps")]
    Timestamps,
    #[error("{0}")]
    Body(String),
    #[error("{0:?} is not a valid metric name")]
    MetricName(String),
    #[error("metric {0:?} has a label with an invalid name: {1:?}")]
    LabelName(String, String),
    #[error("metric {0:?} has two or more labels with the same name: {1}")]
    LabelTwice(String, String),
    #[error("{2} {0:?} must not have an explicit {1:?} label")]
    OwnLabel(String, &'static str, &'static str),
    #[error("metric {0}{{{1}}} was pushed before with the same name and label values")]
    Duplicate(String, String),
    #[error("metric {0:?}: {1} is more than {2}")]
    TooMuch(String, &'static str, usize),
}

/// The families by name, each with its series sorted by their labels.
pub fn prepare(
    target: &Target,
    parsed: Parsed<'_>,
    (now, wall_s): (Moment, f64),
) -> Result<Vec<(String, Block)>, Flaw> {
    if parsed.timestamps {
        return Err(Flaw::Timestamps);
    }
    if let Some(flaw) = parsed.flaw {
        return Err(Flaw::Body(flaw));
    }
    let mut families = Vec::with_capacity(parsed.families.len());
    for family in parsed.families {
        if family.name == PUSH_TIME || family.name == FAILURE_TIME {
            // The server has its own, whatever is pushed.
            continue;
        }
        let name = family.name.clone();
        let series = series(target, family.samples.len(), &family)?;
        let help: Arc<str> = family.help.as_ref().into();
        families.push((name.into_owned(), Block { kind: family.kind, help, series, touched: now, wall_s }));
    }
    families.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    Ok(families)
}

fn series(target: &Target, count: usize, family: &Family<'_>) -> Result<Vec<Series>, Flaw> {
    let name = || shorten(&family.name, ECHO_BYTES_MAX);
    if !is_metric_name(family.name.as_bytes()) {
        return Err(Flaw::MetricName(name()));
    }
    if family.name.len() > NAME_BYTES_MAX {
        return Err(Flaw::TooMuch(name(), "its name", NAME_BYTES_MAX));
    }
    if family.help.len() > VALUE_BYTES_MAX {
        return Err(Flaw::TooMuch(name(), "its help text", VALUE_BYTES_MAX));
    }
    let mut series = Vec::with_capacity(count);
    let mut labels = Vec::new();
    for sample in &family.samples {
        labels.clear();
        labels.extend(sample.labels.iter().map(|(name, value)| ((&**name).into(), (&**value).into())));
        target.bind(&mut labels);
        if labels.len() > LABELS_MAX {
            return Err(Flaw::TooMuch(name(), "the number of its labels", LABELS_MAX));
        }
        let rendered = render(&mut labels);
        for (nth, (label, value)) in labels.iter().enumerate() {
            let echo = || shorten(label, ECHO_BYTES_MAX);
            if !is_label_name(label.as_bytes()) || is_reserved_label(label) {
                return Err(Flaw::LabelName(name(), echo()));
            }
            if nth > 0 && labels[nth - 1].0 == *label {
                return Err(Flaw::LabelTwice(name(), echo()));
            }
            match (family.kind, &**label) {
                (Kind::Summary, "quantile") => return Err(Flaw::OwnLabel(name(), "quantile", "summary")),
                (Kind::Histogram, "le") => return Err(Flaw::OwnLabel(name(), "le", "histogram")),
                _ => {}
            }
            if label.len() > NAME_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
                return Err(Flaw::TooMuch(name(), "a label", VALUE_BYTES_MAX));
            }
        }
        let places = match &sample.value {
            Value::Number(_) => 0,
            Value::Histogram(histogram) => histogram.buckets.len(),
            Value::Summary(summary) => summary.quantiles.len(),
        };
        if places > PLACES_MAX {
            return Err(Flaw::TooMuch(name(), "the number of its buckets", PLACES_MAX));
        }
        series.push(Series { labels: rendered.into(), value: sample.value.clone() });
    }
    series.sort_by(|a, b| a.labels.cmp(&b.labels));
    match series.windows(2).find(|pair| pair[0].labels == pair[1].labels) {
        Some(pair) => Err(Flaw::Duplicate(name(), shorten(&pair[0].labels, 4 * ECHO_BYTES_MAX))),
        None => Ok(series),
    }
}
