//! Holds what a Pushgateway shows against what we show, series by series: the command `gateway compare`, and the figure
//! `gateway_mismatched_series` while pushes are forwarded.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::Gateway;
use super::exposition::{Exposition, Form};
use super::forward::{DEFAULT_JOB, agent};
use super::metric::{Label, Value, float, render};
use super::state::{FAILURE_TIME, PUSH_TIME};
use super::text;

/// How often the figure is made, and how soon again when something differed.
const EVERY: Duration = Duration::from_mins(1);
const AGAIN: Duration = Duration::from_secs(10);
/// What differs must do so twice, this far apart: a push reaches one before the other.
const SETTLE: Duration = Duration::from_secs(2);
/// Bytes of a page that is compared.
const PAGE_BYTES_MAX: u64 = 1 << 30;

/// Series with their labels, and their values.
type Page = BTreeMap<String, f64>;

/// What one of the two has otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    pub series: String,
    pub ours: Option<f64>,
    pub theirs: Option<f64>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = |value: Option<f64>| value.map_or("none".to_owned(), float);
        write!(f, "{}  here: {}  pushgateway: {}", self.series, value(self.ours), value(self.theirs))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url}: {mistake}")]
    Unreadable { url: String, mistake: text::Mistake },
    #[error("{0} series differ")]
    Different(usize),
    #[error("cannot write: {0}")]
    Output(#[from] std::io::Error),
}

/// Fetches a page in the text format.
fn fetch(url: &str, token: Option<&str>) -> Result<Vec<u8>, CompareError> {
    let unreachable = |why: String| CompareError::Unreachable { url: url.to_owned(), why };
    let mut request = agent().get(url).header("Accept", "text/plain; version=0.0.4");
    if let Some(token) = token {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    let mut answer = request.call().map_err(|error| unreachable(error.to_string()))?;
    if answer.status() != 200 {
        return Err(unreachable(format!("answered {}", answer.status())));
    }
    let body = answer.body_mut().with_config().limit(PAGE_BYTES_MAX).read_to_vec();
    body.map_err(|error| unreachable(error.to_string()))
}

/// The series of a page. When the last push was and the last failure must be there, but cannot be at the same moment.
fn read(page: &[u8]) -> Result<Page, text::Mistake> {
    let mut series = Page::new();
    for family in text::parse(page)?.families {
        let timed = family.name == PUSH_TIME || family.name == FAILURE_TIME;
        for sample in family.samples {
            let mut put = |suffix: &str, extra: Option<(&'static str, f64)>, value: f64| {
                let mut labels: Vec<Label<'_>> =
                    sample.labels.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
                labels.extend(extra.map(|(name, value)| (name.into(), float(value).into())));
                let key = format!("{}{suffix}{{{}}}", family.name, render(&mut labels));
                series.insert(key, if timed { 0.0 } else { value });
            };
            #[expect(clippy::cast_precision_loss, reason = "it came as a float")]
            match &sample.value {
                Value::Number(number) => put("", None, *number),
                Value::Histogram(histogram) => {
                    histogram
                        .buckets
                        .iter()
                        .for_each(|(bound, count)| put("_bucket", Some(("le", *bound)), *count as f64));
                    put("_sum", None, histogram.sum);
                    put("_count", None, histogram.count as f64);
                }
                Value::Summary(summary) => {
                    summary
                        .quantiles
                        .iter()
                        .for_each(|(place, value)| put("", Some(("quantile", *place)), *value));
                    put("_sum", None, summary.sum);
                    put("_count", None, summary.count as f64);
                }
            }
        }
    }
    Ok(series)
}

/// Whether a series has a label `job`: all that was pushed to a Pushgateway has, and nothing of its own.
fn has_job(series: &str) -> bool {
    series.contains("{job=\"") || series.contains(",job=\"")
}

/// What differs between two pages.
fn differences(ours: &[u8], theirs: &[u8]) -> Result<Vec<Difference>, text::Mistake> {
    let mut own = Page::new();
    for (series, value) in read(ours)? {
        // A series that is added up here, and has no job, is forwarded with one.
        let series = if has_job(&series) { series } else { with_default_job(&series) };
        own.insert(series, value);
    }
    let mut found = Vec::new();
    let mut theirs = read(theirs)?;
    theirs.retain(|series, _| has_job(series));
    for (series, ours) in &own {
        let other = theirs.remove(series);
        let same =
            other.is_some_and(|other| other.to_bits() == ours.to_bits() || (other.is_nan() && ours.is_nan()));
        if !same {
            found.push(Difference { series: series.clone(), ours: Some(*ours), theirs: other });
        }
    }
    // What is added up here is forwarded to groups, whose times only the Pushgateway has.
    let labels_of = |series: &str| series.split_once('{').map_or("", |(_, labels)| labels).to_owned();
    let labels: HashSet<String> = own.keys().map(|series| labels_of(series)).collect();
    let is_time = |series: &str| [PUSH_TIME, FAILURE_TIME].iter().any(|name| series.starts_with(name));
    theirs.retain(|series, _| !(is_time(series) && labels.contains(&labels_of(series))));
    let missing =
        theirs.into_iter().map(|(series, value)| Difference { series, ours: None, theirs: Some(value) });
    found.extend(missing);
    found.sort_by(|a, b| a.series.cmp(&b.series));
    Ok(found)
}

fn with_default_job(series: &str) -> String {
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.strip_suffix('}').unwrap_or(labels);
    let mut all: Vec<Label<'_>> =
        super::metric::rendered(labels).map(|(name, value)| (name.into(), value)).collect();
    all.push(("job".into(), DEFAULT_JOB.into()));
    format!("{name}{{{}}}", render(&mut all))
}

/// What differs now and still does a while later. `wait` tells whether to look again.
fn lasting(
    mut look: impl FnMut() -> Result<Vec<Difference>, CompareError>,
    wait: impl FnOnce() -> bool,
) -> Result<Vec<Difference>, CompareError> {
    let first = look()?;
    if first.is_empty() || !wait() {
        return Ok(first);
    }
    let mut second = look()?;
    second.retain(|difference| first.iter().any(|known| known.series == difference.series));
    Ok(second)
}

/// `aurore-events gateway compare`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareTask {
    pub pushgateway: String,
    pub server: String,
    pub token: Option<String>,
}

impl CompareTask {
    /// Writes what differs, a line a series; an error when anything does.
    pub fn run(&self, out: &mut impl std::io::Write) -> Result<(), CompareError> {
        let (ours, theirs) =
            (format!("{}/metrics/pushed", self.server), format!("{}/metrics", self.pushgateway));
        let look = || {
            let (our_page, their_page) = (fetch(&ours, self.token.as_deref())?, fetch(&theirs, None)?);
            differences(&our_page, &their_page)
                .map_err(|mistake| CompareError::Unreadable { url: format!("{ours} or {theirs}"), mistake })
        };
        let found = lasting(look, || {
            std::thread::sleep(SETTLE);
            true
        })?;
        for difference in &found {
            writeln!(out, "{difference}")?;
        }
        if found.is_empty() {
            writeln!(out, "no series differs")?;
            return Ok(());
        }
        Err(CompareError::Different(found.len()))
    }
}

/// Compares now and then, while pushes are forwarded.
#[derive(Debug)]
pub struct Comparer {
    pub gateway: Arc<Gateway>,
    /// Without a slash at its end.
    pub url: String,
}

impl Comparer {
    /// Runs until the other end of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        let ended = |wait| stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        let theirs = format!("{}/metrics", self.url);
        let figures = &self.gateway.figures.forward;
        let mut wait = SETTLE;
        while !ended(wait) {
            let look = || {
                let their_page = fetch(&theirs, None)?;
                let mut exposition = Exposition::new(self.gateway.view(), Form::Text);
                let mut ours = String::new();
                while exposition.write(&mut ours) {}
                differences(ours.as_bytes(), &their_page)
                    .map_err(|mistake| CompareError::Unreadable { url: theirs.clone(), mistake })
            };
            match lasting(look, || !ended(SETTLE)) {
                Ok(found) => {
                    let count = i64::try_from(found.len()).unwrap_or(i64::MAX);
                    figures.mismatched.store(count, Ordering::Relaxed);
                    if let Some(first) = found.first() {
                        log::warn!(series = count; "the Pushgateway has series otherwise than we do, such as {first}");
                    }
                }
                Err(error) => {
                    figures.compare_failures.fetch_add(1, Ordering::Relaxed);
                    figures.mismatched.store(-1, Ordering::Relaxed);
                    log::debug!("no comparison with the Pushgateway: {error}");
                }
            }
            wait = if figures.mismatched.load(Ordering::Relaxed) == 0 { EVERY } else { AGAIN };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(ours: &str, theirs: &str, expected: &[&str]) {
        let found = differences(ours.as_bytes(), theirs.as_bytes()).unwrap();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn only_what_was_pushed_is_compared_and_no_empty_label_counts() {
        check("a{job=\"x\",instance=\"\"} 1\n", "a{instance=\"\",job=\"x\"} 1\ngo_goroutines 7\n", &[]);
        check("a{job=\"x\"} NaN\n", "a{job=\"x\"} NaN\n", &[]);
        check("push_time_seconds{job=\"x\"} 1\n", "push_time_seconds{job=\"x\"} 2\n", &[]);
        check("a{page=\"p\"} 1\n", "a{instance=\"\",job=\"aurore-events\",page=\"p\"} 1\n", &[]);
        check("a 1\n", "a{job=\"aurore-events\"} 1\npush_time_seconds{job=\"aurore-events\"} 5\n", &[]);
        let page = "# TYPE h histogram\nh_bucket{job=\"x\",le=\"1\"} 2\nh_bucket{job=\"x\",le=\"+Inf\"} 3\nh_sum{job=\"x\"} 1\nh_count{job=\"x\"} 3\n";
        check(page, page, &[]);
    }

    #[test]
    fn each_difference_is_told_with_both_values() {
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
    fn what_passes_within_a_while_is_no_difference() {
        let difference = |series: &str| Difference { series: series.into(), ours: Some(1.0), theirs: None };
        let mut looks = vec![vec![difference("b"), difference("c")], vec![difference("a"), difference("b")]];
        let found = lasting(|| Ok(looks.pop().unwrap()), || true).unwrap();
        assert_eq!(found, [difference("b")]);
    }
}
