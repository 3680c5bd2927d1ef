//! What was pushed, as Prometheus scrapes it: a piece at a time, from a view of one moment, families and series in the
//! order of their names. However much there is, no more than a piece of it is held as text.

use std::ops::Bound;

use super::metric::{Block, Kind, Series, Value, escape, write_float};
use super::state::{FAILURE_TIME, Group, Name, Owner, PUSH_TIME, View};

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus' text format 0.0.4.
    Text,
    /// `OpenMetrics` 1.0. Every series has the name that it has in text: a counter without `_total` is written as of
    /// unknown type, since that form would have it renamed.
    OpenMetrics,
}

impl Form {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Bytes after which a piece ends. The last series of a piece may take it past that.
const PIECE_BYTES: usize = 64 * 1024;
pub const PUSH_HELP: &str = "Last Unix time when changing this group in the Pushgateway succeeded.";
pub const FAILURE_HELP: &str = "Last Unix time when changing this group in the Pushgateway failed.";

/// One of a group's two times.
type Time = fn(&Group) -> f64;

/// Where the writing stands.
#[derive(Debug)]
enum At {
    /// Behind so many series of the block of this key; None before the first block.
    Blocks(Option<((Name, Owner), usize)>),
    /// Behind the group of this key, in the family of this number.
    Times(usize, Option<std::sync::Arc<str>>),
    End,
}

#[derive(Debug)]
pub struct Exposition {
    view: View,
    form: Form,
    at: At,
    /// The name whose head was written last.
    head: Option<Name>,
}

impl Exposition {
    pub fn new(view: View, form: Form) -> Self {
        Self { view, form, at: At::Blocks(None), head: None }
    }

    /// Appends the next piece. Tells whether there may be more.
    pub fn write(&mut self, out: &mut String) -> bool {
        let full = out.len() + PIECE_BYTES;
        while out.len() < full {
            match &self.at {
                At::Blocks(_) => self.write_blocks(out, full),
                At::Times(..) => self.write_times(out, full),
                At::End => return false,
            }
        }
        true
    }

    fn write_blocks(&mut self, out: &mut String, full: usize) {
        let At::Blocks(position) = &mut self.at else { return };
        let position = position.take();
        let (from, mut skip) = match position {
            None => (Bound::Unbounded, 0),
            Some((key, series)) => (Bound::Included(key), series),
        };
        for (key, block) in self.view.blocks.range((from, Bound::Unbounded)) {
            let (name, _) = key;
            let head = Head::of(self.form, name, block.kind, &self.view);
            if self.head.as_ref() != Some(name) {
                head.write(out, self.form, &block.help);
                self.head = Some(name.clone());
            }
            for (nth, series) in block.series.iter().enumerate().skip(skip) {
                if out.len() >= full {
                    self.at = At::Blocks(Some((key.clone(), nth)));
                    return;
                }
                write_series(out, self.form, name, series);
            }
            skip = 0;
        }
        self.at = At::Times(0, None);
    }

    fn write_times(&mut self, out: &mut String, full: usize) {
        const FAMILIES: [(&str, &str, Time); 2] = [
            (FAILURE_TIME, FAILURE_HELP, |group| group.failure_s),
            (PUSH_TIME, PUSH_HELP, |group| group.push_s),
        ];
        let At::Times(nth, behind) = &mut self.at else { return };
        let (nth, behind) = (*nth, behind.take());
        let Some((name, help, of)) = FAMILIES.get(nth).filter(|_| !self.view.groups.is_empty()) else {
            if self.form == Form::OpenMetrics {
                out.push_str("# EOF\n");
            }
            self.at = At::End;
            return;
        };
        let from = match behind {
            None => {
                Head { name, kind: "gauge" }.write(out, self.form, help);
                Bound::Unbounded
            }
            Some(key) => Bound::Excluded(key),
        };
        for (key, group) in self.view.groups.range((from, Bound::Unbounded)) {
            out.push_str(name);
            out.push('{');
            write_group_labels(out, group);
            out.push_str("} ");
            write_float(out, of(group));
            out.push('\n');
            if out.len() >= full {
                self.at = At::Times(nth, Some(key.clone()));
                return;
            }
        }
        self.at = At::Times(nth + 1, None);
    }
}

/// The labels that all series of a group have.
fn write_group_labels(out: &mut String, group: &Group) {
    let labels = &group.target.labels;
    // An empty `instance` stands where its name belongs.
    let at = labels.partition_point(|(name, _)| name.as_str() < "instance");
    let has = labels.get(at).is_some_and(|(name, _)| name == "instance");
    let own = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let (front, back) = (own.clone().take(at), own.skip(at));
    let all = front.chain((!has).then_some(("instance", ""))).chain(back);
    for (nth, (name, value)) in all.enumerate() {
        if nth > 0 {
            out.push(',');
        }
        write_label(out, name, value);
    }
}

fn write_label(out: &mut String, name: &str, value: &str) {
    out.push_str(name);
    out.push_str("=\"");
    escape(out, value, true);
    out.push('"');
}

/// What `# TYPE` and `# HELP` call a family.
struct Head<'a> {
    name: &'a str,
    kind: &'static str,
}

impl<'a> Head<'a> {
    fn of(form: Form, name: &'a str, kind: Kind, view: &View) -> Self {
        if form == Form::Text {
            return Self { name, kind: kind.name() };
        }
        match kind {
            Kind::Counter => match name.strip_suffix("_total") {
                Some(base) if !base.is_empty() && !has_family(view, base) => {
                    Self { name: base, kind: "counter" }
                }
                Some(_) | None => Self { name, kind: "unknown" },
            },
            Kind::Untyped => Self { name, kind: "unknown" },
            Kind::Gauge | Kind::Summary | Kind::Histogram => Self { name, kind: kind.name() },
        }
    }

    fn write(&self, out: &mut String, form: Form, help: &str) {
        if !help.is_empty() {
            out.push_str("# HELP ");
            out.push_str(self.name);
            out.push(' ');
            escape(out, help, form == Form::OpenMetrics);
            out.push('\n');
        }
        for part in ["# TYPE ", self.name, " ", self.kind, "\n"] {
            out.push_str(part);
        }
    }
}

fn has_family(view: &View, name: &str) -> bool {
    let first = (Name::from(name), Owner::Summed("".into()));
    view.blocks.range(first..).next().is_some_and(|((found, _), _)| **found == *name)
}

fn write_series(out: &mut String, form: Form, name: &str, series: &Series) {
    let labels = &*series.labels;
    match &series.value {
        Value::Number(number) => line(out, (name, ""), labels, None, *number),
        Value::Histogram(histogram) => {
            for (bound, count) in &histogram.buckets {
                line(out, (name, "_bucket"), labels, Some(("le", &place(form, *bound))), float_of(*count));
            }
            if !histogram.has_infinity() {
                line(out, (name, "_bucket"), labels, Some(("le", "+Inf")), float_of(histogram.count));
            }
            line(out, (name, "_sum"), labels, None, histogram.sum);
            line(out, (name, "_count"), labels, None, float_of(histogram.count));
        }
        Value::Summary(summary) => {
            for (quantile, value) in &summary.quantiles {
                line(out, (name, ""), labels, Some(("quantile", &place(form, *quantile))), *value);
            }
            line(out, (name, "_sum"), labels, None, summary.sum);
            line(out, (name, "_count"), labels, None, float_of(summary.count));
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "what the formats hold is a float")]
fn float_of(count: u64) -> f64 {
    count as f64
}

/// A bound as a label's value. `OpenMetrics` wants whole numbers to have a decimal point there.
fn place(form: Form, value: f64) -> String {
    let mut text = super::metric::float(value);
    if form == Form::OpenMetrics && value.is_finite() && !text.contains(['.', 'e']) {
        text.push_str(".0");
    }
    text
}

fn line(out: &mut String, name: (&str, &str), labels: &str, extra: Option<(&str, &str)>, value: f64) {
    out.push_str(name.0);
    out.push_str(name.1);
    if extra.is_some() || !labels.is_empty() {
        out.push('{');
        out.push_str(labels);
        if let Some((name, value)) = extra {
            if !labels.is_empty() {
                out.push(',');
            }
            write_label(out, name, value);
        }
        out.push('}');
    }
    out.push(' ');
    write_float(out, value);
    out.push('\n');
}

/// All of it at once, for what is small.
pub fn all(view: View, form: Form) -> String {
    let (mut exposition, mut out) = (Exposition::new(view, form), String::new());
    while exposition.write(&mut out) {}
    out
}

/// The series of a block, written as they are scraped; for listings.
pub fn series_of(name: &str, block: &Block) -> String {
    let mut out = String::new();
    block.series.iter().for_each(|series| write_series(&mut out, Form::Text, name, series));
    out
}
