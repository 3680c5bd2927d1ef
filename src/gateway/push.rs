//! Parses the body of `POST /metrics/push`: `{"metrics":[{"name","type","value",…}]}`. Metrics are
//! parsed one by one, so that an invalid one does not affect the others. No recursion; must not
//! access shared state.

use std::borrow::Cow;

use super::apply::{Change, SampleUpdate};
use super::metric::{Histogram, Label, MetricKind, is_reserved_label, parse_float, render_labels};
use super::names::is_valid_name;
use super::steps;
use super::validate::{BUCKETS_MAX, LABELS_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX};
use crate::http::problem::{ECHO_BYTES_MAX, FieldError, FieldErrors};
use crate::json::text::{BYTE_ORDER_MARK, truncate, unescape};
use crate::json::{JsonValue, ParseJsonError, Scanner};

/// The default buckets of an observation, in seconds, as in Prometheus' client libraries.
const DEFAULT_BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Metrics of one push. Bounds the time for which a push holds the lock of the gateway.
pub const METRICS_MAX: u32 = 10_000;

/// The parsed metrics of a body, and the errors of the others.
#[derive(Debug, Default)]
pub struct ParsedPush {
    /// Each with its index in the list.
    pub updates: Vec<(u32, SampleUpdate)>,
    pub errors: FieldErrors,
    /// The number of metrics with an error.
    pub rejected: u32,
}

/// The reason why the body as a whole cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParsePushError {
    #[error("the body is not UTF-8")]
    NotUtf8,
    #[error("the body is not valid JSON: {what} at byte {at}")]
    Syntax { what: &'static str, at: usize },
    #[error("the body must be an object with the list \"metrics\"")]
    NotAnObject,
    #[error("{0:?} is not a field of a push; the only one is \"metrics\"")]
    UnknownField(String),
    #[error("the list \"metrics\" is empty")]
    Empty,
    #[error("there are more than {METRICS_MAX} metrics; split the push")]
    TooManyMetrics,
}

impl From<ParseJsonError> for ParsePushError {
    fn from(syntax: ParseJsonError) -> Self {
        Self::Syntax { what: syntax.what, at: syntax.at }
    }
}

/// Parses a body. With `jobs` each metric must have one of these values in its label `job`.
pub fn parse(body: &[u8], jobs: Option<&[Box<str>]>) -> Result<ParsedPush, ParsePushError> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if str::from_utf8(body).is_err() {
        return Err(ParsePushError::NotUtf8);
    }
    let mut scanner = Scanner::new(body);
    let mut metrics = None;
    if scanner.next_token() != b'{' {
        // A syntax error takes precedence.
        scanner.value()?;
        return Err(ParsePushError::NotAnObject);
    }
    each_member(&mut scanner, |scanner, name, value| {
        if name != "metrics" {
            return Err(ParsePushError::UnknownField(truncate(&name, ECHO_BYTES_MAX)));
        }
        if scanner.slice(value.start, value.end).first() != Some(&b'[') || metrics.is_some() {
            return Err(ParsePushError::NotAnObject);
        }
        metrics = Some(value);
        Ok(())
    })?;
    scanner.next_token();
    if !scanner.is_at_end() {
        return Err(scanner.error("unexpected data after the JSON value").into());
    }
    let list = metrics.ok_or(ParsePushError::NotAnObject)?;
    let mut pushed = ParsedPush::default();
    let mut index = 0;
    each_item(&body[list.start..list.end], |metric| {
        if index >= METRICS_MAX {
            index = METRICS_MAX + 1;
            return;
        }
        let mut errors = MetricErrors::default();
        match parse_metric(metric, jobs, &mut errors) {
            Some(update) if errors.0.is_empty() => pushed.updates.push((index, update)),
            Some(_) | None => {
                pushed.rejected += 1;
                for (field, detail) in errors.0 {
                    pushed.errors.push(|| FieldError { index: Some(index), field, detail });
                }
            }
        }
        index += 1;
    })?;
    match index {
        0 => Err(ParsePushError::Empty),
        1..=METRICS_MAX => Ok(pushed),
        _ => Err(ParsePushError::TooManyMetrics),
    }
}

/// Calls `each` with the unescaped name and the value of each member of the object at the scanner.
fn each_member<E: From<ParseJsonError>>(
    scanner: &mut Scanner<'_>,
    mut each: impl FnMut(&Scanner<'_>, Cow<'_, str>, JsonValue) -> Result<(), E>,
) -> Result<(), E> {
    scanner.members("a key in double quotes was expected", |scanner, key| {
        steps::add(1);
        let name = unescape_string(scanner.slice(key.start, key.end));
        let value = scanner.value()?;
        each(scanner, name, value)
    })
}

/// Calls `each` with the bytes of each item of a list that is known to be valid JSON.
fn each_item(list: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), ParseJsonError> {
    let mut scanner = Scanner::new(list);
    scanner.advance();
    if scanner.next_token() == b']' {
        return Ok(());
    }
    loop {
        steps::add(1);
        scanner.next_token();
        let item = scanner.value()?;
        each(scanner.slice(item.start, item.end));
        match scanner.next_token() {
            b',' => scanner.advance(),
            _ => return Ok(()),
        }
    }
}

/// The content of a JSON string, unescaped. An unpaired surrogate becomes a question mark.
fn unescape_string(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'\\') {
        return String::from_utf8_lossy(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    unescape(&mut out, raw);
    String::from_utf8_lossy(&out).into_owned().into()
}

/// The errors of one metric: field and detail.
#[derive(Default)]
struct MetricErrors(Vec<(Cow<'static, str>, String)>);

/// Errors reported for one metric.
const ERRORS_MAX: usize = 16;

impl MetricErrors {
    fn add(&mut self, field: impl Into<Cow<'static, str>>, detail: impl Into<String>) {
        if self.0.len() < ERRORS_MAX {
            self.0.push((field.into(), detail.into()));
        }
    }
}

/// The fields of a metric before validation.
#[derive(Default)]
struct RawMetric<'a> {
    name: Option<Cow<'a, str>>,
    kind: Option<MetricKind>,
    help: Option<Cow<'a, str>>,
    labels: Option<&'a [u8]>,
    value: Option<f64>,
    sum: Option<f64>,
    count: Option<u64>,
    buckets: Option<Vec<(f64, u64)>>,
    bounds: Option<Vec<f64>>,
}

/// The fields of a metric.
const FIELDS: [&str; 9] = ["name", "type", "help", "labels", "value", "sum", "count", "buckets", "bounds"];

fn parse_metric(json: &[u8], jobs: Option<&[Box<str>]>, errors: &mut MetricErrors) -> Option<SampleUpdate> {
    if json.first() != Some(&b'{') {
        errors.add("metrics", "a metric must be an object");
        return None;
    }
    let mut metric = RawMetric::default();
    // A bit per known field. An unknown one is an error anyway.
    let mut seen = 0_u16;
    let mut scanner = Scanner::new(json);
    scanner.next_token();
    let read = each_member::<ParseJsonError>(&mut scanner, |_, name, value| {
        let raw = &json[value.start..value.end];
        let bit = FIELDS.iter().position(|field| *field == name).map_or(0, |nth| 1 << nth);
        if let Some(fault) = value.violation {
            errors.add(truncate(&name, ECHO_BYTES_MAX), fault.to_string());
        } else if seen & bit != 0 {
            errors.add(truncate(&name, ECHO_BYTES_MAX), "occurs more than once");
        } else {
            metric.set_field(&name, raw, errors);
        }
        seen |= bit;
        Ok(())
    });
    read.ok()?;
    metric.into_update(jobs, errors)
}

impl<'a> RawMetric<'a> {
    fn set_field(&mut self, name: &str, raw: &'a [u8], errors: &mut MetricErrors) {
        match name {
            "name" => self.name = parse_string(raw).or_else(|| reject(errors, "name", "must be a string")),
            "help" => self.help = parse_string(raw).or_else(|| reject(errors, "help", "must be a string")),
            "type" => {
                const TYPES: &str = "must be counter, gauge or histogram";
                let known = |text: Cow<'_, str>| match &*text {
                    "counter" => Some(MetricKind::Counter),
                    "gauge" => Some(MetricKind::Gauge),
                    "histogram" => Some(MetricKind::Histogram),
                    _ => None,
                };
                self.kind = parse_string(raw).and_then(known).or_else(|| reject(errors, "type", TYPES));
            }
            "labels" => {
                self.labels = Some(raw).filter(|raw| raw.first() == Some(&b'{'));
                if self.labels.is_none() {
                    errors.add("labels", "must be an object of strings");
                }
            }
            "value" => self.value = parse_number(raw).or_else(|| reject(errors, "value", "must be a number")),
            "sum" => self.sum = parse_number(raw).or_else(|| reject(errors, "sum", "must be a number")),
            "count" => {
                self.count =
                    parse_count(raw).or_else(|| reject(errors, "count", "must be a whole number, 0 or more"));
            }
            "buckets" => {
                const BUCKETS: &str = "must be an object of cumulative counts by upper bound, such as {\"0.5\":2,\"+Inf\":3}, with ascending bounds";
                self.buckets = parse_buckets(raw).or_else(|| reject(errors, "buckets", BUCKETS));
            }
            "bounds" => {
                const BOUNDS: &str = "must be a list of ascending numbers";
                self.bounds = parse_bounds(raw).or_else(|| reject(errors, "bounds", BOUNDS));
            }
            other => errors.add(truncate(other, ECHO_BYTES_MAX), "is not a field of a metric"),
        }
    }

    fn into_update(self, jobs: Option<&[Box<str>]>, errors: &mut MetricErrors) -> Option<SampleUpdate> {
        for (missing, field) in [(self.name.is_none(), "name"), (self.kind.is_none(), "type")] {
            if missing && !errors.0.iter().any(|(known, _)| known == field) {
                errors.add(field, "is required");
            }
        }
        if let Some(name) = &self.name {
            if name.len() > NAME_BYTES_MAX {
                errors.add("name", format!("must be at most {NAME_BYTES_MAX} bytes"));
            } else if !is_valid_name(name) {
                errors.add("name", "must not be empty and must not begin with U__");
            }
        }
        if self.help.as_ref().is_some_and(|help| help.len() > VALUE_BYTES_MAX) {
            errors.add("help", format!("must be at most {VALUE_BYTES_MAX} bytes"));
        }
        let kind = self.kind?;
        let labels = parse_labels(self.labels.unwrap_or(b"{}"), kind, jobs, errors);
        let change = self.to_change(kind, errors)?;
        Some(SampleUpdate {
            name: self.name?.into_owned(),
            kind,
            help: self.help.unwrap_or_default().into_owned(),
            labels: labels.into(),
            change,
        })
    }

    fn to_change(&self, kind: MetricKind, errors: &mut MetricErrors) -> Option<Change> {
        let reported = |errors: &MetricErrors, field: &str| errors.0.iter().any(|(known, _)| known == field);
        let has = [
            (self.sum.is_some(), "sum"),
            (self.count.is_some(), "count"),
            (self.buckets.is_some(), "buckets"),
            (self.bounds.is_some(), "bounds"),
        ];
        if kind != MetricKind::Histogram {
            for (_, field) in has.into_iter().filter(|(has, _)| *has) {
                errors.add(field, "is for histograms only");
            }
            let Some(value) = self.value else {
                if !reported(errors, "value") {
                    errors.add("value", "is required");
                }
                return None;
            };
            if kind == MetricKind::Gauge {
                return Some(Change::Set(value));
            }
            if value < 0.0 {
                errors.add("value", "of a counter must not be negative, since it is added");
                return None;
            }
            return Some(Change::Add(value));
        }
        let Some(buckets) = &self.buckets else {
            let Some(value) = self.value else {
                if !reported(errors, "value") && !reported(errors, "buckets") {
                    errors.add("value", "is required unless there are buckets, sum and count");
                }
                return None;
            };
            for (_, field) in has.into_iter().filter(|(has, field)| *has && *field != "bounds") {
                errors.add(field, "is allowed with buckets only, not with a value");
            }
            let bounds = self.bounds.as_deref().unwrap_or(&DEFAULT_BOUNDS);
            return Some(Change::Observe { value, bounds: bounds.into() });
        };
        if self.value.is_some() {
            errors.add("value", "is a single observation and is not allowed with buckets");
        }
        if self.bounds.is_some() {
            errors.add("bounds", "is allowed with a value only, not with buckets");
        }
        complete_histogram(buckets, self.sum, self.count, errors).map(Change::Merge)
    }
}

/// Checks cumulative buckets against sum and count, and drops the `+Inf` bucket.
fn complete_histogram(
    buckets: &[(f64, u64)],
    sum: Option<f64>,
    count: Option<u64>,
    errors: &mut MetricErrors,
) -> Option<Histogram> {
    let (bounded, infinite) = match buckets.split_last() {
        Some(((bound, all), rest)) if *bound == f64::INFINITY => (rest, Some(*all)),
        Some(_) | None => (buckets, None),
    };
    let Some(count) = count.or(infinite) else {
        errors.add("count", "is required, unless there is a bucket \"+Inf\"");
        return None;
    };
    if infinite.is_some_and(|infinite| infinite != count) {
        errors.add("count", "must equal the count of the bucket \"+Inf\"");
    }
    let ascending = bounded.windows(2).all(|pair| pair[0].1 <= pair[1].1);
    if !ascending || bounded.last().is_some_and(|(_, below)| *below > count) {
        errors.add("buckets", "must be cumulative: no count is less than the one before it");
    }
    let Some(sum) = sum else {
        errors.add("sum", "is required");
        return None;
    };
    Some(Histogram { buckets: bounded.to_vec(), sum, count, native: None })
}

/// The rendered labels. An empty value equals an absent label.
fn parse_labels(
    json: &[u8],
    kind: MetricKind,
    jobs: Option<&[Box<str>]>,
    errors: &mut MetricErrors,
) -> String {
    let mut labels: Vec<(String, String)> = Vec::new();
    let mut scanner = Scanner::new(json);
    scanner.next_token();
    let read = each_member::<ParseJsonError>(&mut scanner, |_, name, value| {
        steps::add(labels.len());
        let field = || Cow::Owned(format!("labels.{}", truncate(&name, ECHO_BYTES_MAX)));
        let text = parse_string(&json[value.start..value.end]);
        if !is_valid_name(&name) || name.len() > NAME_BYTES_MAX {
            errors.add(
                field(),
                format!("is not a valid label name: it must have 1 to {NAME_BYTES_MAX} bytes and must not begin with U__"),
            );
        } else if is_reserved_label(&name) || (kind == MetricKind::Histogram && name == "le") {
            errors.add(field(), "is reserved");
        } else if labels.iter().any(|(known, _)| *known == *name) {
            errors.add(field(), "occurs more than once");
        } else if labels.len() == LABELS_MAX {
            errors.add("labels", format!("must be at most {LABELS_MAX}"));
        } else {
            match text {
                None => errors.add(field(), "must be a string"),
                Some(text) if text.len() > VALUE_BYTES_MAX => {
                    errors.add(field(), format!("must be at most {VALUE_BYTES_MAX} bytes"));
                }
                Some(text) => labels.push((name.into_owned(), text.into_owned())),
            }
        }
        Ok(())
    });
    debug_assert!(read.is_ok(), "BUG: the object is valid JSON");
    if let Some(jobs) = jobs {
        let job = labels.iter().find(|(name, _)| name == "job").map_or("", |(_, job)| job);
        if !crate::access::allows_service(jobs, job) {
            errors.add("labels.job", "must be one of the services of the token");
        }
    }
    labels.retain(|(_, value)| !value.is_empty());
    let mut labels: Vec<Label<'_>> =
        labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
    render_labels(&mut labels)
}

fn reject<T>(errors: &mut MetricErrors, field: &'static str, detail: &'static str) -> Option<T> {
    errors.add(field, detail);
    None
}

fn parse_string(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some(unescape_string(inner))
}

/// A finite number.
fn parse_number(raw: &[u8]) -> Option<f64> {
    let first = raw.first()?;
    (first.is_ascii_digit() || *first == b'-').then_some(())?;
    str::from_utf8(raw).ok()?.parse().ok().filter(|value: &f64| value.is_finite())
}

fn parse_count(raw: &[u8]) -> Option<u64> {
    str::from_utf8(raw).ok()?.parse().ok()
}

fn parse_buckets(raw: &[u8]) -> Option<Vec<(f64, u64)>> {
    if raw.first() != Some(&b'{') {
        return None;
    }
    let (mut buckets, mut good) = (Vec::new(), true);
    let mut scanner = Scanner::new(raw);
    scanner.next_token();
    let read = each_member::<ParseJsonError>(&mut scanner, |_, name, value| {
        match (parse_float(&name), parse_count(&raw[value.start..value.end])) {
            (Some(bound), Some(below)) if !bound.is_nan() && buckets.len() < BUCKETS_MAX => {
                buckets.push((bound, below));
            }
            _ => good = false,
        }
        Ok(())
    });
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let apart = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0);
    (read.is_ok() && good && apart && !buckets.is_empty()).then_some(buckets)
}

fn parse_bounds(raw: &[u8]) -> Option<Vec<f64>> {
    if raw.first() != Some(&b'[') {
        return None;
    }
    let mut bounds = Vec::new();
    each_item(raw, |item| bounds.push(parse_number(item))).ok()?;
    let bounds: Vec<f64> = bounds.into_iter().collect::<Option<_>>()?;
    let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
    (ascending && !bounds.is_empty() && bounds.len() <= BUCKETS_MAX).then_some(bounds)
}
