//! The body of `POST /metrics/push`: `{"metrics":[{"name","type","value",…}]}`, read metric by metric, so that a bad one
//! costs no other. No recursion, and nothing shared is touched.

use std::borrow::Cow;

use super::group::{LABELS_MAX, NAME_BYTES_MAX, PLACES_MAX, VALUE_BYTES_MAX};
use super::metric::{
    Histogram, Kind, Label, is_label_name, is_metric_name, is_reserved_label, parse_float, render,
};
use super::state::{Addition, Change};
use crate::http::problem::{ECHO_BYTES_MAX, Errors, FieldError};
use crate::json::text::{shorten, unescape};
use crate::json::{Scanner, Syntax, Value};

/// The buckets of an observation that names none: those of Prometheus' client libraries, for seconds.
const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Metrics of one push: what is changed at once, and keeps others waiting meanwhile.
pub const METRICS_MAX: u32 = 10_000;

/// What a body came to.
#[derive(Debug, Default)]
pub struct Pushed {
    /// Each with its place among the metrics.
    pub additions: Vec<(u32, Addition)>,
    pub errors: Errors,
    /// Metrics with an error.
    pub rejected: u32,
}

/// The body as a whole cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    #[error("the body is not UTF-8")]
    NotUtf8,
    #[error("the body is not valid JSON: {what} at byte {at}")]
    Syntax { what: &'static str, at: usize },
    #[error("the body must be an object with the list \"metrics\"")]
    Shape,
    #[error("{0:?} is not a field of a push; there is only \"metrics\"")]
    Unknown(String),
    #[error("the list \"metrics\" is empty")]
    Empty,
    #[error("there are more than {METRICS_MAX} metrics; send them in parts")]
    TooMany,
}

impl From<Syntax> for BadBody {
    fn from(syntax: Syntax) -> Self {
        Self::Syntax { what: syntax.what, at: syntax.at }
    }
}

/// `jobs`: those whose label a metric must have; none where it may have any.
pub fn parse(body: &[u8], jobs: Option<&[Box<str>]>) -> Result<Pushed, BadBody> {
    if str::from_utf8(body).is_err() {
        return Err(BadBody::NotUtf8);
    }
    let mut scanner = Scanner::new(body);
    let mut metrics = None;
    if scanner.next_token() != b'{' {
        // Whether it is JSON at all is the first thing to say.
        scanner.value()?;
        return Err(BadBody::Shape);
    }
    each_member(&mut scanner, |scanner, name, value| {
        if name != "metrics" {
            return Err(BadBody::Unknown(shorten(&name, ECHO_BYTES_MAX)));
        }
        if scanner.slice(value.start, value.end).first() != Some(&b'[') || metrics.is_some() {
            return Err(BadBody::Shape);
        }
        metrics = Some(value);
        Ok(())
    })?;
    scanner.next_token();
    if !scanner.done() {
        return Err(scanner.error("the JSON is over and more follows").into());
    }
    let list = metrics.ok_or(BadBody::Shape)?;
    let mut pushed = Pushed::default();
    let mut index = 0;
    each_item(&body[list.start..list.end], |metric| {
        if index >= METRICS_MAX {
            index = METRICS_MAX + 1;
            return;
        }
        let mut flaws = Flaws::default();
        match addition(metric, jobs, &mut flaws) {
            Some(addition) if flaws.0.is_empty() => pushed.additions.push((index, addition)),
            Some(_) | None => {
                pushed.rejected += 1;
                for (field, detail) in flaws.0 {
                    pushed.errors.push(|| FieldError { index: Some(index), field, detail });
                }
            }
        }
        index += 1;
    })?;
    match index {
        0 => Err(BadBody::Empty),
        1..=METRICS_MAX => Ok(pushed),
        _ => Err(BadBody::TooMany),
    }
}

/// Calls `each` with the members of the object that begins here: name, unescaped, and value.
fn each_member<E: From<Syntax>>(
    scanner: &mut Scanner<'_>,
    mut each: impl FnMut(&Scanner<'_>, Cow<'_, str>, Value) -> Result<(), E>,
) -> Result<(), E> {
    scanner.step();
    if scanner.next_token() == b'}' {
        scanner.step();
        return Ok(());
    }
    loop {
        if scanner.next_token() != b'"' {
            return Err(scanner.error("a key in double quotes was expected").into());
        }
        let key = scanner.string()?;
        let name = text_of(scanner.slice(key.start, key.end));
        scanner.expect(b':', "':' was expected")?;
        scanner.next_token();
        let value = scanner.value()?;
        each(scanner, name, value)?;
        match scanner.next_token() {
            b',' => scanner.step(),
            b'}' => {
                scanner.step();
                return Ok(());
            }
            _ => return Err(scanner.error("',' or '}' was expected").into()),
        }
    }
}

/// Calls `each` with the bytes of every item of a list that has been scanned.
fn each_item(list: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Syntax> {
    let mut scanner = Scanner::new(list);
    scanner.step();
    if scanner.next_token() == b']' {
        return Ok(());
    }
    loop {
        scanner.next_token();
        let item = scanner.value()?;
        each(scanner.slice(item.start, item.end));
        match scanner.next_token() {
            b',' => scanner.step(),
            _ => return Ok(()),
        }
    }
}

/// What stands between quotes, unescaped. Half a surrogate pair becomes a question mark.
fn text_of(raw: &[u8]) -> Cow<'_, str> {
    if !raw.contains(&b'\\') {
        return String::from_utf8_lossy(raw);
    }
    let mut out = Vec::with_capacity(raw.len());
    unescape(&mut out, raw);
    String::from_utf8_lossy(&out).into_owned().into()
}

/// What is wrong with a metric, field by field.
#[derive(Default)]
struct Flaws(Vec<(Cow<'static, str>, String)>);

/// Errors that are told of one metric.
const FLAWS_MAX: usize = 16;

impl Flaws {
    fn add(&mut self, field: impl Into<Cow<'static, str>>, detail: impl Into<String>) {
        if self.0.len() < FLAWS_MAX {
            self.0.push((field.into(), detail.into()));
        }
    }
}

/// A metric's fields as they stand in the JSON.
#[derive(Default)]
struct Draft<'a> {
    name: Option<Cow<'a, str>>,
    kind: Option<Kind>,
    help: Option<Cow<'a, str>>,
    labels: Option<&'a [u8]>,
    value: Option<f64>,
    sum: Option<f64>,
    count: Option<u64>,
    buckets: Option<Vec<(f64, u64)>>,
    bounds: Option<Vec<f64>>,
}

fn addition(json: &[u8], jobs: Option<&[Box<str>]>, flaws: &mut Flaws) -> Option<Addition> {
    if json.first() != Some(&b'{') {
        flaws.add("metrics", "a metric must be an object");
        return None;
    }
    let mut draft = Draft::default();
    let mut seen: Vec<String> = Vec::new();
    let mut scanner = Scanner::new(json);
    scanner.next_token();
    let read = each_member::<Syntax>(&mut scanner, |_, name, value| {
        let raw = &json[value.start..value.end];
        if let Some(fault) = value.fault {
            flaws.add(shorten(&name, ECHO_BYTES_MAX), fault.to_string());
        } else if seen.iter().any(|known| *known == name) {
            flaws.add(shorten(&name, ECHO_BYTES_MAX), "stands more than once");
        } else {
            draft.read(&name, raw, flaws);
        }
        seen.push(name.into_owned());
        Ok(())
    });
    read.ok()?;
    draft.finish(jobs, flaws)
}

impl<'a> Draft<'a> {
    fn read(&mut self, name: &str, raw: &'a [u8], flaws: &mut Flaws) {
        match name {
            "name" => self.name = string(raw).or_else(|| wrong(flaws, "name", "must be a string")),
            "help" => self.help = string(raw).or_else(|| wrong(flaws, "help", "must be a string")),
            "type" => {
                const TYPES: &str = "must be counter, gauge or histogram";
                let known = |text: Cow<'_, str>| match &*text {
                    "counter" => Some(Kind::Counter),
                    "gauge" => Some(Kind::Gauge),
                    "histogram" => Some(Kind::Histogram),
                    _ => None,
                };
                self.kind = string(raw).and_then(known).or_else(|| wrong(flaws, "type", TYPES));
            }
            "labels" => {
                self.labels = Some(raw).filter(|raw| raw.first() == Some(&b'{'));
                if self.labels.is_none() {
                    flaws.add("labels", "must be an object of strings");
                }
            }
            "value" => self.value = number(raw).or_else(|| wrong(flaws, "value", "must be a number")),
            "sum" => self.sum = number(raw).or_else(|| wrong(flaws, "sum", "must be a number")),
            "count" => {
                self.count =
                    count(raw).or_else(|| wrong(flaws, "count", "must be a whole number, 0 or more"));
            }
            "buckets" => {
                const BUCKETS: &str = "must be an object of cumulative counts by upper bound, such as {\"0.5\":2,\"+Inf\":3}, with ascending bounds";
                self.buckets = buckets(raw).or_else(|| wrong(flaws, "buckets", BUCKETS));
            }
            "bounds" => {
                const BOUNDS: &str = "must be a list of ascending numbers";
                self.bounds = bounds(raw).or_else(|| wrong(flaws, "bounds", BOUNDS));
            }
            other => flaws.add(shorten(other, ECHO_BYTES_MAX), "is not a field of a metric"),
        }
    }

    fn finish(self, jobs: Option<&[Box<str>]>, flaws: &mut Flaws) -> Option<Addition> {
        for (missing, field) in [(self.name.is_none(), "name"), (self.kind.is_none(), "type")] {
            if missing && !flaws.0.iter().any(|(known, _)| known == field) {
                flaws.add(field, "is required");
            }
        }
        if let Some(name) = &self.name {
            if name.len() > NAME_BYTES_MAX {
                flaws.add("name", format!("must be at most {NAME_BYTES_MAX} bytes"));
            } else if !is_metric_name(name.as_bytes()) {
                flaws.add("name", "must begin with a letter, _ or : and have only these and digits");
            }
        }
        if self.help.as_ref().is_some_and(|help| help.len() > VALUE_BYTES_MAX) {
            flaws.add("help", format!("must be at most {VALUE_BYTES_MAX} bytes"));
        }
        let kind = self.kind?;
        let labels = labels(self.labels.unwrap_or(b"{}"), kind, jobs, flaws);
        let change = self.change(kind, flaws)?;
        Some(Addition {
            name: self.name?.into_owned(),
            kind,
            help: self.help.unwrap_or_default().into_owned(),
            labels: labels.into(),
            change,
        })
    }

    fn change(&self, kind: Kind, flaws: &mut Flaws) -> Option<Change> {
        let told = |flaws: &Flaws, field: &str| flaws.0.iter().any(|(known, _)| known == field);
        let has = [
            (self.sum.is_some(), "sum"),
            (self.count.is_some(), "count"),
            (self.buckets.is_some(), "buckets"),
            (self.bounds.is_some(), "bounds"),
        ];
        if kind != Kind::Histogram {
            for (_, field) in has.into_iter().filter(|(has, _)| *has) {
                flaws.add(field, "is for histograms only");
            }
            let Some(value) = self.value else {
                if !told(flaws, "value") {
                    flaws.add("value", "is required");
                }
                return None;
            };
            if kind == Kind::Gauge {
                return Some(Change::Set(value));
            }
            if value < 0.0 {
                flaws.add("value", "of a counter must not be negative: it is added to what there is");
                return None;
            }
            return Some(Change::Add(value));
        }
        let Some(buckets) = &self.buckets else {
            let Some(value) = self.value else {
                if !told(flaws, "value") && !told(flaws, "buckets") {
                    flaws.add("value", "is required, or else buckets, sum and count");
                }
                return None;
            };
            for (_, field) in has.into_iter().filter(|(has, field)| *has && *field != "bounds") {
                flaws.add(field, "goes with buckets, not with a value");
            }
            let bounds = self.bounds.as_deref().unwrap_or(&BOUNDS);
            return Some(Change::Observe { value, bounds: bounds.into() });
        };
        if self.value.is_some() {
            flaws.add("value", "is one observation and does not go with buckets");
        }
        if self.bounds.is_some() {
            flaws.add("bounds", "goes with a value, not with buckets");
        }
        merged(buckets, self.sum, self.count, flaws).map(Change::Merge)
    }
}

/// Buckets that come with their sum and count, the last of them without a bound left out.
fn merged(
    buckets: &[(f64, u64)],
    sum: Option<f64>,
    count: Option<u64>,
    flaws: &mut Flaws,
) -> Option<Histogram> {
    let (bounded, infinite) = match buckets.split_last() {
        Some(((bound, all), rest)) if *bound == f64::INFINITY => (rest, Some(*all)),
        Some(_) | None => (buckets, None),
    };
    let Some(count) = count.or(infinite) else {
        flaws.add("count", "is required, unless there is a bucket \"+Inf\"");
        return None;
    };
    if infinite.is_some_and(|infinite| infinite != count) {
        flaws.add("count", "must be what the bucket \"+Inf\" has");
    }
    let ascending = bounded.windows(2).all(|pair| pair[0].1 <= pair[1].1);
    if !ascending || bounded.last().is_some_and(|(_, below)| *below > count) {
        flaws.add("buckets", "must be cumulative: no count is less than the one before it");
    }
    let Some(sum) = sum else {
        flaws.add("sum", "is required");
        return None;
    };
    Some(Histogram { buckets: bounded.to_vec(), sum, count })
}

/// The labels, rendered. An empty value is as good as no label.
fn labels(json: &[u8], kind: Kind, jobs: Option<&[Box<str>]>, flaws: &mut Flaws) -> String {
    let mut labels: Vec<(String, String)> = Vec::new();
    let mut scanner = Scanner::new(json);
    scanner.next_token();
    let read = each_member::<Syntax>(&mut scanner, |_, name, value| {
        let field = || Cow::Owned(format!("labels.{}", shorten(&name, ECHO_BYTES_MAX)));
        let text = string(&json[value.start..value.end]);
        if !is_label_name(name.as_bytes()) || name.len() > NAME_BYTES_MAX {
            flaws.add(field(), "is not a label's name: a letter or _, then letters, _ and digits");
        } else if is_reserved_label(&name) || (kind == Kind::Histogram && name == "le") {
            flaws.add(field(), "is reserved");
        } else if labels.iter().any(|(known, _)| *known == *name) {
            flaws.add(field(), "stands more than once");
        } else if labels.len() == LABELS_MAX {
            flaws.add("labels", format!("must be at most {LABELS_MAX}"));
        } else {
            match text {
                None => flaws.add(field(), "must be a string"),
                Some(text) if text.len() > VALUE_BYTES_MAX => {
                    flaws.add(field(), format!("must be at most {VALUE_BYTES_MAX} bytes"));
                }
                Some(text) => labels.push((name.into_owned(), text.into_owned())),
            }
        }
        Ok(())
    });
    debug_assert!(read.is_ok(), "BUG: the object was scanned before");
    if let Some(jobs) = jobs {
        let job = labels.iter().find(|(name, _)| name == "job").map_or("", |(_, job)| job);
        if !crate::access::holds(jobs, job) {
            flaws.add("labels.job", "must be one of the services that the token is for");
        }
    }
    labels.retain(|(_, value)| !value.is_empty());
    let mut labels: Vec<Label<'_>> =
        labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
    render(&mut labels)
}

fn wrong<T>(flaws: &mut Flaws, field: &'static str, detail: &'static str) -> Option<T> {
    flaws.add(field, detail);
    None
}

fn string(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some(text_of(inner))
}

/// A number that a float can hold.
fn number(raw: &[u8]) -> Option<f64> {
    let first = raw.first()?;
    (first.is_ascii_digit() || *first == b'-').then_some(())?;
    str::from_utf8(raw).ok()?.parse().ok().filter(|value: &f64| value.is_finite())
}

fn count(raw: &[u8]) -> Option<u64> {
    str::from_utf8(raw).ok()?.parse().ok()
}

fn buckets(raw: &[u8]) -> Option<Vec<(f64, u64)>> {
    if raw.first() != Some(&b'{') {
        return None;
    }
    let (mut buckets, mut good) = (Vec::new(), true);
    let mut scanner = Scanner::new(raw);
    scanner.next_token();
    let read = each_member::<Syntax>(&mut scanner, |_, name, value| {
        match (parse_float(&name), count(&raw[value.start..value.end])) {
            (Some(bound), Some(below)) if !bound.is_nan() => buckets.push((bound, below)),
            _ => good = false,
        }
        Ok(())
    });
    buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let apart = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0);
    (read.is_ok() && good && apart && !buckets.is_empty() && buckets.len() <= PLACES_MAX).then_some(buckets)
}

fn bounds(raw: &[u8]) -> Option<Vec<f64>> {
    if raw.first() != Some(&b'[') {
        return None;
    }
    let mut bounds = Vec::new();
    each_item(raw, |item| bounds.push(number(item))).ok()?;
    let bounds: Vec<f64> = bounds.into_iter().collect::<Option<_>>()?;
    let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]);
    (ascending && !bounds.is_empty() && bounds.len() <= PLACES_MAX).then_some(bounds)
}
