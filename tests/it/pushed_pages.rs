//! Whatever is pushed can be scraped: pages of arbitrary pushes, and of those of official clients,
//! are read by parsers of others, promtool's and Python's, the latter also with the strict rules of
//! OpenMetrics.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestError, TestRunner};

use crate::harness::client::{JSON, request};
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Reply, TestServer};

const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// Reads the page in both formats. Each series must occur once, and both must have the same series.
const READ_PAGES: &str = r"
import re, sys
from prometheus_client.parser import text_string_to_metric_families as text
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
def series(families):
    found = {}
    for family in families:
        for name, labels, value, *_ in family.samples:
            # Bounds are written differently: 1 and 1.0.
            bounds = {label: repr(float(labels[label])) for label in ('le', 'quantile') if label in labels}
            # An empty label is an absent one. Prometheus adds only an absent `instance`.
            kept = {label: text for label, text in {**labels, **bounds}.items() if text or label == 'instance'}
            key = (name, tuple(sorted(kept.items())))
            assert key not in found, f'{key} is there twice'
            found[key] = repr(float(value))
    return found
plain, strict = (open(path, newline='\n', encoding='utf-8').read() for path in sys.argv[1:])
list(text(plain))
# The parser of the text format renames counters, which would hide a clash.
plain = series(text(re.sub(r'(?m)^# TYPE (\S+) counter$', r'# TYPE \1 untyped', plain)))
strict = series(openmetrics(strict))
assert plain == strict, f'{set(plain.items()) ^ set(strict.items())}'
print(len(plain))
";

struct Pages {
    test: TestServer,
    client: Client,
    directory: tempfile::TempDir,
}

impl Pages {
    fn start() -> Self {
        let test = TestServer::start(&[]);
        let (client, directory) = (test.server.client(), temp_dir());
        fs::write(directory.path().join("read.py"), READ_PAGES).expect("a file can be written");
        Self { test, client, directory }
    }

    fn push(&mut self, method: &str, path: &str, content_type: Option<&str>, body: &[u8]) -> Reply {
        let headers: Vec<_> = content_type.map(|name| ("Content-Type", name)).into_iter().collect();
        self.client.exchange(&request(method, path, &headers, body))
    }

    /// Reads the pages with the foreign parsers. Returns the number of series, or the error.
    fn read(&mut self) -> Result<usize, String> {
        let plain = self.client.get("/metrics/pushed").text();
        let accept = [("Accept", "application/openmetrics-text; version=1.0.0")];
        let strict = self.client.exchange(&request("GET", "/metrics/pushed", &accept, b"")).text();
        let file = |name| self.directory.path().join(name);
        fs::write(file("plain"), &plain).expect("a file can be written");
        fs::write(file("strict"), &strict).expect("a file can be written");
        check_metrics(&plain)?;
        let output = Command::new("/usr/bin/python3")
            .args(["read.py", "plain", "strict"].map(file))
            .output()
            .expect("Python runs; on Debian: apt-get install python3-prometheus-client");
        let (printed, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let series = printed.trim().parse();
        series.map_err(|_none| format!("{errors}\n{plain}\n{strict}"))
    }
}

/// `promtool check metrics`. Exit code 3 is for names and units that it dislikes.
fn check_metrics(page: &str) -> Result<(), String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs; on Debian: apt-get install prometheus");
    child.stdin.take().expect("it is a pipe").write_all(page.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("a child can be waited for");
    match output.status.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(format!("{}\n{page}", String::from_utf8_lossy(&output.stderr))),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Summary,
    Untyped,
}

/// A metric with one series, valid on its own or not.
#[derive(Clone, Debug)]
struct Metric {
    name: String,
    kind: Kind,
    help: &'static str,
    labels: Vec<(&'static str, &'static str)>,
    value: &'static str,
    bounds: Vec<(&'static str, u8)>,
    count: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Text,
    Protobuf,
    Json,
}

#[derive(Clone, Debug)]
struct Push {
    api: Api,
    method: &'static str,
    group: &'static str,
    metrics: Vec<Metric>,
}

fn metric() -> impl Strategy<Value = Metric> {
    use Kind::{Counter, Gauge, Histogram, Summary, Untyped};
    let suffixes = [
        "",
        "_total",
        "_created",
        "_info",
        "_bucket",
        "_sum",
        "_count",
        "_created_total",
        "_sum_total",
        "_total_total",
        "_total_created",
    ];
    let name = (select(vec!["f", "g", "push_time_seconds"]), select(suffixes.to_vec()))
        .prop_map(|(base, suffix)| format!("{base}{suffix}"));
    let labels = vec(
        (
            select(vec!["a", "b", "instance", "x", "job"]),
            select(vec!["", "v", "q\"\\\n", " # {", "ä}", "a,b=\"c\""]),
        ),
        0..3,
    );
    let values = vec!["0", "1", "-1", "2.5", "NaN", "+Inf", "-Inf", "1e9", "-0", "123456789", "1e-7"];
    let bounds = vec!["-1", "-0", "0", "0.5", "1", "1.0", "1e3", "+Inf", "2", "0.99"];
    (
        name,
        select(vec![Counter, Gauge, Histogram, Summary, Untyped]),
        select(vec!["", "Help.", "a \\ \"q\"", "\u{2028} ü"]),
        labels,
        select(values),
        vec((select(bounds), 0_u8..4), 0..4),
        select(vec!["0", "1", "3", "3", "3", "2.5"]),
    )
        .prop_map(|(name, kind, help, labels, value, bounds, count)| Metric {
            name,
            kind,
            help,
            labels,
            value,
            bounds,
            count,
        })
}

fn push() -> impl Strategy<Value = Push> {
    (
        select(vec![Api::Text, Api::Text, Api::Protobuf, Api::Json]),
        select(vec!["PUT", "POST"]),
        select(vec!["job/a", "job/a/x/1", "job/b", "job/a/x@base64/="]),
        vec(metric(), 1..4),
    )
        .prop_map(|(api, method, group, metrics)| Push { api, method, group, metrics })
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

impl Metric {
    fn write_text(&self, out: &mut String) {
        let Self { name, help, value, count, .. } = self;
        let labels = |extra: Option<(&str, &str)>| {
            let own = self.labels.iter().copied().chain(extra);
            own.map(|(label, value)| format!("{label}={}", quote(value))).collect::<Vec<_>>().join(",")
        };
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Summary => "summary",
            Kind::Untyped => "untyped",
        };
        let mut line = |line: String| writeln!(out, "{line}").expect("it fits");
        if !help.is_empty() {
            line(format!("# HELP {name} {}", help.replace('\\', "\\\\")));
        }
        line(format!("# TYPE {name} {kind}"));
        match self.kind {
            Kind::Counter | Kind::Gauge | Kind::Untyped => {
                line(format!("{name}{{{}}} {value}", labels(None)));
            }
            Kind::Histogram | Kind::Summary => {
                for (bound, below) in &self.bounds {
                    let (part, label) =
                        if self.kind == Kind::Histogram { ("_bucket", "le") } else { ("", "quantile") };
                    line(format!("{name}{part}{{{}}} {below}", labels(Some((label, bound)))));
                }
                line(format!("{name}_sum{{{}}} {value}", labels(None)));
                line(format!("{name}_count{{{}}} {count}", labels(None)));
            }
        }
    }

    fn json(&self) -> String {
        let labels: Vec<String> =
            self.labels.iter().map(|(label, value)| format!("{}:{}", quote(label), quote(value))).collect();
        let fields = match self.kind {
            Kind::Counter => format!("\"type\":\"counter\",\"value\":{}", self.value),
            Kind::Histogram if self.bounds.is_empty() => {
                format!("\"type\":\"histogram\",\"value\":{}", self.value)
            }
            Kind::Histogram => {
                let bounds = self.bounds.iter().map(|(bound, below)| format!("\"{bound}\":{below}"));
                let bounds: Vec<_> = bounds.collect();
                format!(
                    "\"type\":\"histogram\",\"buckets\":{{{}}},\"sum\":{},\"count\":{}",
                    bounds.join(","),
                    self.value,
                    self.count
                )
            }
            Kind::Gauge | Kind::Summary | Kind::Untyped => {
                format!("\"type\":\"gauge\",\"value\":{}", self.value)
            }
        };
        format!("{{\"name\":\"{}\",{fields},\"labels\":{{{}}}}}", self.name, labels.join(","))
    }

    /// A delimited `MetricFamily`.
    fn write_protobuf(&self, out: &mut Vec<u8>) {
        let value = double(
            if self.kind == Kind::Histogram || self.kind == Kind::Summary { 2 } else { 1 },
            self.value,
        );
        let mut metric = Vec::new();
        for (label, value) in &self.labels {
            metric.extend(field(1, &[field(1, label.as_bytes()), field(2, value.as_bytes())].concat()));
        }
        let (kind, number) = match self.kind {
            Kind::Counter => (0, 3),
            Kind::Gauge => (1, 2),
            Kind::Summary => (2, 4),
            Kind::Untyped => (3, 5),
            Kind::Histogram => (4, 7),
        };
        let mut inner = value;
        if self.kind == Kind::Histogram {
            // The count of a float histogram.
            inner.extend(double(4, self.count));
        }
        for (bound, below) in &self.bounds {
            match self.kind {
                Kind::Histogram => inner.extend(field(3, &[vec![1 << 3, *below], double(2, bound)].concat())),
                Kind::Summary => {
                    inner.extend(field(3, &[double(1, bound), double(2, &below.to_string())].concat()));
                }
                Kind::Counter | Kind::Gauge | Kind::Untyped => {}
            }
        }
        metric.extend(field(number, &inner));
        let family = [
            field(1, self.name.as_bytes()),
            field(2, self.help.as_bytes()),
            vec![3 << 3, kind],
            field(4, &metric),
        ]
        .concat();
        varint(out, family.len());
        out.extend(family);
    }
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    varint(&mut out, bytes.len());
    out.extend(bytes);
    out
}

fn double(number: u8, value: &str) -> Vec<u8> {
    let value: f64 = value.parse().expect("a number");
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

/// Sends a push. Returns whether it was accepted, wholly or in part.
fn send(pages: &mut Pages, push: &Push) -> bool {
    let path = format!("/metrics/{}", push.group);
    let reply = match push.api {
        Api::Text => {
            let mut body = String::new();
            push.metrics.iter().for_each(|metric| metric.write_text(&mut body));
            pages.push(push.method, &path, None, body.as_bytes())
        }
        Api::Protobuf => {
            let mut body = Vec::new();
            push.metrics.iter().for_each(|metric| metric.write_protobuf(&mut body));
            pages.push(push.method, &path, Some(PROTOBUF), &body)
        }
        Api::Json => {
            let metrics: Vec<String> = push.metrics.iter().map(Metric::json).collect();
            let body = format!("{{\"metrics\":[{}]}}", metrics.join(","));
            pages.push("POST", "/metrics/push", Some(JSON), body.as_bytes())
        }
    };
    assert!(matches!(reply.status, 200 | 202 | 400), "{push:?}: {}", reply.text());
    reply.status < 300
}

#[test]
fn foreign_parsers_read_the_pages_of_arbitrary_pushes() {
    let pages = RefCell::new(Pages::start());
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let (accepted, refused, series) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let result = runner.run(&vec(push(), 1..12), |pushes| {
        let pages = &mut *pages.borrow_mut();
        let wiped = pages.push("PUT", "/api/v1/admin/wipe", None, b"");
        prop_assert_eq!(wiped.status, 202);
        for push in &pushes {
            let counter = if send(pages, push) { &accepted } else { &refused };
            counter.set(counter.get() + 1);
        }
        series.set(series.get() + pages.read().map_err(TestCaseError::fail)?);
        Ok(())
    });
    if let Err(TestError::Fail(reason, pushes)) = &result {
        panic!("{reason}\nafter {pushes:#?}");
    }
    result.expect("the run was not aborted");
    // The pushes are neither all valid nor all invalid.
    let (accepted, refused, series) = (accepted.get(), refused.get(), series.get());
    assert!(accepted > 20 && refused > 20 && series > 100, "{accepted} {refused} {series}");
    pages.into_inner().test.server.stop();
}

#[test]
fn foreign_parsers_read_the_default_metrics_of_official_clients() {
    let mut pages = Pages::start();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/clients");
    for client in ["go", "java", "node", "python"] {
        let body = fs::read(corpus.join(format!("{client}.txt"))).expect("a page of each client");
        let reply = pages.push("PUT", &format!("/metrics/job/{client}"), None, &body);
        assert_eq!(reply.status, 200, "{client}: {}", reply.text());
        let series = pages.read().unwrap_or_else(|error| panic!("{client}: {error}"));
        assert!(series > 20, "{client}: {series}");
    }
    // Names that clash in OpenMetrics only.
    for name in ["foo", "foo_total", "foo_created", "foo_info", "foo_created_total", "foo_bucket"] {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let body = format!("# TYPE {name} {kind}\n{name} 1\n");
        assert_eq!(pages.push("POST", "/metrics/job/foo", None, body.as_bytes()).status, 200);
        pages.read().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    pages.test.server.stop();
}
