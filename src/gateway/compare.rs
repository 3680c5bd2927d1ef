//! Compares the series of a Pushgateway with those of this server: for the command `gateway
//! compare`, and for the metric `gateway_mismatched_series` while pushes are forwarded.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use serde::Serialize;

use super::Gateway;
use super::exposition::Exposition;
use super::forward::{DEFAULT_JOB, http_client};
use super::metric::{Label, SeriesValue, render_labels};
use super::names::NameEscaping;
use super::state::{FAILURE_TIME, PUSH_TIME};
use super::text;
use super::validate::ParseLimits;
use crate::logging::is_display_control;
use crate::metrics::text_format::{ExpositionFormat, format_float};

/// The interval between comparisons, and the shorter one after a mismatch.
const COMPARE_INTERVAL: Duration = Duration::from_mins(1);
const MISMATCH_INTERVAL: Duration = Duration::from_secs(10);
/// A difference counts only if a second comparison after this delay finds it again, since a push
/// reaches the two servers at different times.
const RECHECK_DELAY: Duration = Duration::from_secs(2);
/// The largest page that is compared.
const PAGE_BYTES_MAX: u64 = 1 << 30;

/// Values by name and labels of the series.
type PageSeries = BTreeMap<String, f64>;

/// A series that differs. `None` is a missing series.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesDifference {
    pub series: String,
    pub local: Option<f64>,
    pub remote: Option<f64>,
}

impl std::fmt::Display for SeriesDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = |value: Option<f64>| value.map_or("none".to_owned(), format_float);
        write!(f, "{}  here: {}  pushgateway: {}", self.series, value(self.local), value(self.remote))
    }
}

impl SeriesDifference {
    /// A JSON object. Values are text, as in Prometheus' API, since JSON has no NaN.
    fn json(&self) -> std::io::Result<String> {
        #[derive(Serialize)]
        struct DifferenceRow<'a> {
            series: &'a str,
            here: Option<String>,
            pushgateway: Option<String>,
        }
        let row = DifferenceRow {
            series: &self.series,
            here: self.local.map(format_float),
            pushgateway: self.remote.map(format_float),
        };
        sonic_rs::to_string(&row).map_err(std::io::Error::other)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("{url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url}: {error}")]
    Unreadable { url: String, error: text::ParseTextError },
    #[error("{0} series differ")]
    Mismatch(usize),
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

/// Fetches a page in the text format.
fn fetch(url: &str, token: Option<&str>) -> Result<Vec<u8>, CompareError> {
    let unreachable = |reason: String| CompareError::Unreachable { url: url.to_owned(), reason };
    let mut request =
        http_client().get(url).header("Accept", "text/plain; version=0.0.4; escaping=allow-utf-8");
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut response = request.call().map_err(|error| unreachable(error.to_string()))?;
    if response.status() != 200 {
        return Err(unreachable(format!("unexpected status {}", response.status())));
    }
    let body = response.body_mut().with_config().limit(PAGE_BYTES_MAX).read_to_vec();
    body.map_err(|error| unreachable(error.to_string()))
}

/// Parses the series of a page. The times of the last push and the last failure are set to 0: the
/// series must exist, but their values differ.
fn parse_page(page: &[u8]) -> Result<PageSeries, text::ParseTextError> {
    let mut series = PageSeries::new();
    for family in text::parse(page, ParseLimits::NONE)?.families {
        let timed = family.name == PUSH_TIME || family.name == FAILURE_TIME;
        for sample in family.samples {
            let mut put = |suffix: &str, extra: Option<(&'static str, f64)>, value: f64| {
                let mut labels: Vec<Label<'_>> =
                    sample.labels.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
                labels.extend(extra.map(|(name, value)| (name.into(), format_float(value).into())));
                let key = format!("{}{suffix}{{{}}}", family.name, render_labels(&mut labels));
                series.insert(key, if timed { 0.0 } else { value });
            };
            #[expect(clippy::cast_precision_loss, reason = "it came as a float")]
            match &sample.value {
                SeriesValue::Number(number) => put("", None, *number),
                SeriesValue::Histogram(histogram) => {
                    histogram
                        .buckets
                        .iter()
                        .for_each(|(bound, count)| put("_bucket", Some(("le", *bound)), *count as f64));
                    put("_sum", None, histogram.sum);
                    put("_count", None, histogram.count as f64);
                }
                SeriesValue::Summary(summary) => {
                    summary
                        .quantiles
                        .iter()
                        .for_each(|(quantile, value)| put("", Some(("quantile", *quantile)), *value));
                    put("_sum", None, summary.sum);
                    put("_count", None, summary.count as f64);
                }
            }
        }
    }
    Ok(series)
}

/// Whether a series has a label `job`, as all pushed series have and none of a Pushgateway's own.
fn has_job(series: &str) -> bool {
    series.contains("{job=\"") || series.contains(",job=\"")
}

/// The series that differ between two pages.
fn diff_pages(ours: &[u8], theirs: &[u8]) -> Result<Vec<SeriesDifference>, text::ParseTextError> {
    let mut own = PageSeries::new();
    for (series, value) in parse_page(ours)? {
        // An aggregated series without a label `job` is forwarded with the default one.
        let series = if has_job(&series) { series } else { with_default_job(&series) };
        own.insert(series, value);
    }
    let mut found = Vec::new();
    let mut theirs = parse_page(theirs)?;
    theirs.retain(|series, _| has_job(series));
    for (series, ours) in &own {
        let other = theirs.remove(series);
        let same =
            other.is_some_and(|other| other.to_bits() == ours.to_bits() || (other.is_nan() && ours.is_nan()));
        if !same {
            found.push(SeriesDifference { series: series.clone(), local: Some(*ours), remote: other });
        }
    }
    // Aggregated series are forwarded to groups whose times exist on the Pushgateway only.
    let labels_of = |series: &str| series.split_once('{').map_or("", |(_, labels)| labels).to_owned();
    let labels: HashSet<String> = own.keys().map(|series| labels_of(series)).collect();
    let is_time = |series: &str| [PUSH_TIME, FAILURE_TIME].iter().any(|name| series.starts_with(name));
    theirs.retain(|series, _| !(is_time(series) && labels.contains(&labels_of(series))));
    let missing = theirs.into_iter().map(|(series, value)| SeriesDifference {
        series,
        local: None,
        remote: Some(value),
    });
    found.extend(missing);
    found.sort_by(|a, b| a.series.cmp(&b.series));
    Ok(found)
}

fn with_default_job(series: &str) -> String {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap_or(labels);
    let mut all: Vec<Label<'_>> = super::metric::rendered_labels(labels).collect();
    all.push(("job".into(), DEFAULT_JOB.into()));
    format!("{name}{{{}}}", render_labels(&mut all))
}

/// The differences that a second comparison finds again. `wait` returns whether to compare again.
fn persistent_differences(
    mut compare: impl FnMut() -> Result<Vec<SeriesDifference>, CompareError>,
    wait: impl FnOnce() -> bool,
) -> Result<Vec<SeriesDifference>, CompareError> {
    let first = compare()?;
    if first.is_empty() || !wait() {
        return Ok(first);
    }
    let mut second = compare()?;
    second.retain(|difference| first.iter().any(|known| known.series == difference.series));
    Ok(second)
}

/// The command `aurore-events gateway compare`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareCommand {
    pub pushgateway: String,
    pub server: String,
    pub token: Option<String>,
    pub json: bool,
}

impl CompareCommand {
    /// Writes one line per series that differs; returns an error if there is one.
    pub fn run(&self, out: &mut impl std::io::Write) -> Result<(), CompareError> {
        let (ours, theirs) =
            (format!("{}/metrics/pushed", self.server), format!("{}/metrics", self.pushgateway));
        let compare = || {
            let (our_page, their_page) = (fetch(&ours, self.token.as_deref())?, fetch(&theirs, None)?);
            diff_pages(&our_page, &their_page)
                .map_err(|error| CompareError::Unreadable { url: format!("{ours} or {theirs}"), error })
        };
        let found = persistent_differences(compare, || {
            std::thread::sleep(RECHECK_DELAY);
            true
        })?;
        for difference in &found {
            let line = if self.json {
                difference.json()?
            } else {
                difference.to_string().replace(is_display_control, " ")
            };
            writeln!(out, "{line}")?;
        }
        if found.is_empty() {
            if self.json {
                eprintln!("no series differs");
            } else {
                writeln!(out, "no series differs")?;
            }
            return Ok(());
        }
        Err(CompareError::Mismatch(found.len()))
    }
}

/// Compares periodically while pushes are forwarded.
#[derive(Debug)]
pub struct Comparer {
    pub gateway: Arc<Gateway>,
    /// Without a trailing slash.
    pub url: String,
}

impl Comparer {
    /// Runs until the sender of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        let stopped = |wait| stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        let theirs = format!("{}/metrics", self.url);
        let metrics = &self.gateway.metrics.forward;
        let mut wait = RECHECK_DELAY;
        while !stopped(wait) {
            let compare = || {
                let their_page = fetch(&theirs, None)?;
                let mut exposition =
                    Exposition::new(self.gateway.snapshot(), ExpositionFormat::Text, NameEscaping::AllowUtf8);
                let mut ours = String::new();
                while exposition.write_chunk(&mut ours) {}
                diff_pages(ours.as_bytes(), &their_page)
                    .map_err(|error| CompareError::Unreadable { url: theirs.clone(), error })
            };
            match persistent_differences(compare, || !stopped(RECHECK_DELAY)) {
                Ok(found) => {
                    let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
                    metrics.mismatched.store(count, Ordering::Relaxed);
                    if let Some(first) = found.first() {
                        log::warn!(series = count; "series differ between this server and the Pushgateway, such as {first}");
                    }
                }
                Err(error) => {
                    metrics.compare_failures.fetch_add(1, Ordering::Relaxed);
                    metrics.mismatched.store(-1, Ordering::Relaxed);
                    log::debug!("cannot compare with the Pushgateway: {error}");
                }
            }
            wait = if metrics.mismatched.load(Ordering::Relaxed) == 0 {
                COMPARE_INTERVAL
            } else {
                MISMATCH_INTERVAL
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ours: &str, theirs: &str, expected: &[&str]) {
        let found = diff_pages(ours.as_bytes(), theirs.as_bytes()).unwrap();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn comparison_ignores_unpushed_series_and_empty_labels() {
        check("a{job=\"x\",instance=\"\"} 1\n", "a{instance=\"\",job=\"x\"} 1\ngo_goroutines 7\n", &[]);
        check("a{job=\"x\"} NaN\n", "a{job=\"x\"} NaN\n", &[]);
        check("push_time_seconds{job=\"x\"} 1\n", "push_time_seconds{job=\"x\"} 2\n", &[]);
        check("a{page=\"p\"} 1\n", "a{instance=\"\",job=\"aurore-events\",page=\"p\"} 1\n", &[]);
        check("a 1\n", "a{job=\"aurore-events\"} 1\npush_time_seconds{job=\"aurore-events\"} 5\n", &[]);
        let page = "# TYPE h histogram\nh_bucket{job=\"x\",le=\"1\"} 2\nh_bucket{job=\"x\",le=\"+Inf\"} 3\nh_sum{job=\"x\"} 1\nh_count{job=\"x\"} 3\n";
        check(page, page, &[]);
    }

    #[test]
    fn differences_show_both_values() {
        check(
            "a{job=\"x\"} 1\nb{job=\"x\"} 2\npush_time_seconds{job=\"y\"} 3\n",
            "a{job=\"x\"} 1.5\nc{job=\"x\"} 4\n",
            &[
                "a{job=\"x\"}  here: 1  pushgateway: 1.5",
                "b{job=\"x\"}  here: 2  pushgateway: none",
                "c{job=\"x\"}  here: none  pushgateway: 4",
                "push_time_seconds{job=\"y\"}  here: 0  pushgateway: none",
            ],
        );
    }

    #[test]
    fn transient_differences_are_ignored() {
        let difference =
            |series: &str| SeriesDifference { series: series.into(), local: Some(1.0), remote: None };
        let mut looks = vec![vec![difference("b"), difference("c")], vec![difference("a"), difference("b")]];
        let found = persistent_differences(|| Ok(looks.pop().unwrap()), || true).unwrap();
        assert_eq!(found, [difference("b")]);
    }
}
