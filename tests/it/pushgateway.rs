//! Compatibility with the real Pushgateway: the same requests to both, their responses, and the
//! series that a real Prometheus stores of each. Also official clients, and the migration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use sonic_rs::{JsonContainerTrait, JsonValueTrait, Value};

use crate::harness::client::request;
use crate::harness::events::{list, text};
use crate::harness::postgres::free_port;
use crate::harness::process::not_tried;
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Server, TestServer, until};
use crate::monitoring::Program;

const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
const CASES: &str = include_str!("../corpus/pushgateway.txt");

fn start_pushgateway(directory: &Path) -> Program {
    Program::start(
        "prometheus-pushgateway",
        directory,
        &[],
        &["--persistence.file=", "--web.enable-admin-api"],
        "/-/ready",
    )
}

/// Prometheus, which scrapes both twice a second with the label `source`.
fn start_prometheus(directory: &Path, local: SocketAddr, reference: SocketAddr) -> Program {
    let job = |source: &str, path: &str, address: SocketAddr| {
        format!(
            "  - job_name: {source}\n    honor_labels: true\n    metrics_path: {path}\n    static_configs:\n      \
             - targets: [\"{address}\"]\n        labels: {{source: {source}}}\n"
        )
    };
    let config = format!(
        "global: {{scrape_interval: 500ms}}\nscrape_configs:\n{}{}",
        job("ours", "/metrics/pushed", local),
        job("theirs", "/metrics", reference)
    );
    fs::write(directory.join("prometheus.yml"), config).expect("a file can be written");
    let arguments = ["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus"];
    Program::start("prometheus", directory, &[], &arguments, "/-/ready")
}

/// The series of one source in Prometheus, by labels. Times of pushes and failures differ, so only
/// whether they are zero is compared.
fn series_of(prometheus: &Program, source: &str) -> BTreeMap<String, String> {
    let path = format!("/api/v1/query?query=%7Bsource%3D%22{source}%22%2Cjob%3D~%22case.*%22%7D");
    let result = list(&prometheus.ask(&path)["data"]["result"]);
    let series = result.iter().map(|series| {
        let labels: BTreeMap<&str, String> = series["metric"]
            .as_object()
            .expect("a series has labels")
            .iter()
            .filter(|(name, _)| *name != "source")
            .map(|(name, value)| (name, text(value)))
            .collect();
        let value = text(&series["value"][1]);
        let timed = labels["__name__"].starts_with("push_") && labels["__name__"].ends_with("time_seconds");
        let value = if timed { (value != "0").to_string() } else { value };
        (format!("{labels:?}"), value)
    });
    series.collect()
}

/// A message field of protobuf; for short messages.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).expect("a short message")], bytes].concat()
}

fn double(number: u8, value: f64) -> Vec<u8> {
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

/// A metric family in protobuf.
fn protobuf(name: &str, kind: u8, metric: &[u8]) -> Vec<u8> {
    let family =
        [field(1, name.as_bytes()), field(2, b"help"), vec![3 << 3, kind], field(4, metric)].concat();
    [&[u8::try_from(family.len()).expect("a short message")], &family[..]].concat()
}

fn label(name: &str, value: &str) -> Vec<u8> {
    field(1, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
}

/// The bodies that cannot be written as text.
fn named_body(name: &str) -> Vec<u8> {
    let counter = |value| field(3, &double(1, value));
    match name {
        "counter" => protobuf("pb_total", 0, &[label("a", "b"), counter(3.0)].concat()),
        "gauge" => protobuf("pb_gauge", 1, &field(2, &double(1, -1.5))),
        "untyped" => protobuf("pb_untyped", 3, &field(5, &double(1, 7.0))),
        "two" => [
            protobuf("pb_one", 1, &field(2, &double(1, 1.0))),
            protobuf("pb_two", 1, &field(2, &double(1, 2.0))),
        ]
        .concat(),
        "twice" => [
            protobuf("pb_same", 1, &field(2, &double(1, 1.0))),
            protobuf("pb_same", 1, &field(2, &double(1, 2.0))),
        ]
        .concat(),
        "summary" => {
            let quantile = field(3, &[double(1, 0.9), double(2, 4.0)].concat());
            protobuf("pb_summary", 2, &field(4, &[vec![1 << 3, 5], double(2, 6.0), quantile].concat()))
        }
        "histogram" => {
            let bucket = field(3, &[vec![1 << 3, 2], double(2, 0.5)].concat());
            protobuf("pb_histogram", 4, &field(7, &[vec![1 << 3, 5], double(2, 6.0), bucket].concat()))
        }
        "timestamp" => protobuf("pb_timed", 1, &[field(2, &double(1, 1.0)), vec![6 << 3, 5]].concat()),
        "mismatch" => protobuf("pb_mismatch", 1, &counter(1.0)),
        "reserved" => protobuf("pb_reserved", 0, &[label("__a", "b"), counter(1.0)].concat()),
        "cut" => {
            let mut body = protobuf("pb_cut", 0, &counter(1.0));
            body.pop();
            body
        }
        "latin1" => b"latin_text{a=\"\xe9\"} 1\n".to_vec(),
        other => panic!("no body is called {other}"),
    }
}

/// One request of a case.
struct Step {
    method: String,
    path: String,
    kind: Option<&'static str>,
    body: Vec<u8>,
}

/// The cases: a name, and requests one after the other.
fn cases() -> Vec<(String, Vec<Step>)> {
    let mut cases: Vec<(String, Vec<Step>)> = Vec::new();
    for line in CASES.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        if let Some(name) = line.strip_prefix("== ") {
            cases.push((name.to_owned(), Vec::new()));
            continue;
        }
        let nth = cases.len();
        let mut words = line.splitn(3, ' ');
        let method = words.next().expect("a method").to_owned();
        let path =
            format!("/metrics/{}", words.next().expect("a path").replace("JOB", &format!("case{nth:02}")));
        let rest = words.next().unwrap_or("");
        let (kind, body) = match rest.strip_prefix("@") {
            Some("latin1") => (None, named_body("latin1")),
            Some(name) => (Some(PROTOBUF), named_body(name)),
            None => (None, unescaped(rest).replace("N_", &format!("c{nth:02}_")).into_bytes()),
        };
        cases.last_mut().expect("a name comes first").1.push(Step { method, path, kind, body });
    }
    cases
}

fn unescaped(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(char) = chars.next() {
        out.push(match char {
            '\\' => match chars.next().expect("something is escaped") {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            },
            other => other,
        });
    }
    out
}

fn send(client: &mut Client, step: &Step) -> (u16, String) {
    let mut headers = Vec::new();
    let length = step.body.len().to_string();
    headers.extend(step.kind.map(|kind| ("Content-Type", kind)));
    if step.body.is_empty() && step.method == "PUT" {
        headers.push(("Content-Length", &length));
    }
    let reply = client.exchange(&request(&step.method, &step.path, &headers, &step.body));
    (reply.status, reply.text())
}

#[test]
fn prometheus_stores_the_same_series_from_this_server_as_from_pushgateway() {
    let (test, directory) = (TestServer::start(&[]), temp_dir());
    let reference = start_pushgateway(directory.path());
    let prometheus = start_prometheus(directory.path(), test.server.address(), reference.address);
    let cases = cases();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let (mut local_client, mut reference_client) = (test.server.client(), Client::connect(reference.address));
    let mut differ = String::new();
    let mut requests = 0;
    for (name, steps) in &cases {
        for step in steps {
            requests += 1;
            let (local, reference) = (send(&mut local_client, step), send(&mut reference_client, step));
            if local.0 != reference.0 {
                writeln!(
                    differ,
                    "{name}: {} {}: ours {local:?}, theirs {reference:?}",
                    step.method, step.path
                )
                .expect("it fits");
            }
        }
    }
    assert!(differ.is_empty(), "other answers:\n{differ}");
    // The last push: once it is scraped, all are.
    let last = Step {
        method: "PUT".into(),
        path: "/metrics/job/case_last".into(),
        kind: None,
        body: b"last 1\n".to_vec(),
    };
    assert_eq!((send(&mut local_client, &last).0, send(&mut reference_client, &last).0), (200, 200));
    let (mut local, mut reference) = (BTreeMap::new(), BTreeMap::new());
    until("Prometheus has scraped both", || {
        (local, reference) = (series_of(&prometheus, "ours"), series_of(&prometheus, "theirs"));
        [&local, &reference].iter().all(|stored| stored.keys().any(|series| series.contains("\"last\"")))
    });
    // A deleted series may stay for one more scrape.
    let mut differences = BTreeSet::new();
    for (series, value) in &local {
        if reference.get(series) != Some(value) {
            differences.insert(format!("{series}: ours {value}, theirs {:?}", reference.get(series)));
        }
    }
    differences.extend(
        reference
            .keys()
            .filter(|series| !local.contains_key(*series))
            .map(|series| format!("{series}: only theirs")),
    );
    assert!(differences.is_empty(), "of {} series differ: {differences:#?}", reference.len());
    println!("{} cases, {requests} requests, {} series: no difference", cases.len(), local.len());
}

#[test]
fn prometheus_scrapes_native_histograms_that_were_pushed() {
    let (mut test, directory) = (TestServer::start(&[("DURABILITY", "written")]), temp_dir());
    // 3 observations: one in the zero bucket, and one in each of two buckets of schema 0.
    let span = field(12, &[1 << 3, 0, 2 << 3, 2]);
    let head = [vec![1 << 3, 3], double(2, 4.5), vec![5 << 3, 0], double(6, 0.001), vec![7 << 3, 1]].concat();
    let histogram = [head, span, field(13, &[2, 0])].concat();
    let body = protobuf("native_seconds", 4, &[label("a", "b"), field(7, &histogram)].concat());
    let step = |body: Vec<u8>| Step {
        method: "PUT".into(),
        path: "/metrics/job/case".into(),
        kind: Some(PROTOBUF),
        body,
    };
    let mut broken = body.clone();
    // The count.
    let at = broken.windows(3).position(|bytes| bytes == [1 << 3, 3, 2 << 3 | 1]).expect("a count");
    broken[at + 1] = 4;
    let (status, reason) = send(&mut test.server.client(), &step(broken));
    assert!(
        status == 400 && reason.contains("its count must be the sum of its buckets"),
        "{status} {reason}"
    );
    assert_eq!(send(&mut test.server.client(), &step(body)).0, 200);
    test.server.kill();
    test.server.restart();
    let page = test.server.client().get("/metrics/pushed").text();
    assert!(
        page.contains("native_seconds_bucket{a=\"b\",instance=\"\",job=\"case\",le=\"+Inf\"} 3\n"),
        "{page}"
    );
    let config = format!(
        "global: {{scrape_interval: 500ms}}\nscrape_configs:\n  - job_name: ours\n    honor_labels: true\n    \
         metrics_path: /metrics/pushed\n    static_configs: [{{targets: [\"{}\"]}}]\n",
        test.server.address()
    );
    fs::write(directory.path().join("prometheus.yml"), config).expect("a file can be written");
    let arguments = [
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=prometheus",
        "--enable-feature=native-histograms",
    ];
    let prometheus = Program::start("prometheus", directory.path(), &[], &arguments, "/-/ready");
    let value = |query: &str| {
        let result = list(&prometheus.ask(&format!("/api/v1/query?query={query}"))["data"]["result"]);
        result.first().map(|series| text(&series["value"][1]))
    };
    until("the histogram is scraped", || value("histogram_count(native_seconds)").is_some());
    assert_eq!(value("histogram_count(native_seconds)").as_deref(), Some("3"));
    assert_eq!(value("histogram_sum(native_seconds)").as_deref(), Some("4.5"));
    assert_eq!(value("histogram_quantile(1,native_seconds)").as_deref(), Some("2"));
    assert!(value("push_time_seconds%7Bjob%3D%22case%22%7D%3E0").is_some());
}

/// The listing of a group, without times.
fn listed(address: SocketAddr, job: &str) -> Value {
    let mut client = Client::connect(address);
    let all = list(&client.get_json("/api/v1/metrics")["data"]);
    all.into_iter()
        .find(|group| group["labels"]["job"].as_str() == Some(job))
        .unwrap_or_else(|| panic!("no {job}"))
}

#[test]
fn the_api_listing_has_the_shape_of_pushgateways() {
    let (test, directory) = (TestServer::start(&[]), temp_dir());
    let reference = start_pushgateway(directory.path());
    let body = "# HELP a A.\n# TYPE a counter\na{x=\"1\"} 1234567\n# TYPE h histogram\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n# TYPE s summary\ns{quantile=\"0.5\"} 1e-7\ns_sum 3\ns_count 2\n";
    let mut found = Vec::new();
    for address in [test.server.address(), reference.address] {
        let mut client = Client::connect(address);
        assert_eq!(
            client.exchange(&request("PUT", "/metrics/job/j/instance/i", &[], body.as_bytes())).status,
            200
        );
        let group = listed(address, "j");
        assert_eq!(group["last_push_successful"].as_bool(), Some(true));
        for name in ["a", "h", "s", "push_time_seconds", "push_failure_time_seconds"] {
            assert!(group[name]["time_stamp"].as_str().is_some_and(|time| time.contains('T')), "{name}");
        }
        let parts: Vec<String> = ["a", "h", "s"]
            .iter()
            .flat_map(|name| {
                [&group[*name]["type"], &group[*name]["help"], &group[*name]["metrics"]].map(sorted)
            })
            .collect();
        found.push((sorted(&group["labels"]), parts));
        let status = client.get_json("/api/v1/status");
        assert!(status["data"]["build_information"]["version"].as_str().is_some());
        assert!(status["data"]["flags"].is_object() && status["data"]["start_time"].as_str().is_some());
        assert_eq!(
            client.exchange(&request("PUT", "/api/v1/admin/wipe", &[("Content-Length", "0")], b"")).status,
            202
        );
        until("all is wiped", || list(&client.get_json("/api/v1/metrics")["data"]).is_empty());
        for path in ["/-/healthy", "/-/ready"] {
            let reply = client.get(path);
            assert_eq!((reply.status, reply.text().as_str()), (200, "OK"), "{path}");
        }
    }
    assert_eq!(found[0], found[1]);
}

/// JSON with sorted members.
fn sorted(value: &Value) -> String {
    if let Some(object) = value.as_object() {
        let members: BTreeMap<&str, String> =
            object.iter().map(|(name, value)| (name, sorted(value))).collect();
        return format!("{members:?}");
    }
    match value.as_array() {
        Some(items) => format!("{:?}", items.iter().map(sorted).collect::<Vec<_>>()),
        None => value.to_string(),
    }
}

const PYTHON: &str = r#"
import sys
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, Info
from prometheus_client import push_to_gateway, pushadd_to_gateway, delete_from_gateway, instance_ip_grouping_key
gateway = sys.argv[1]
def registry(value):
    r = CollectorRegistry()
    Counter('py_c', 'c "q" \\', ['l'], registry=r).labels('x/"y"\n').inc(value)
    Gauge('py_g', 'g', registry=r).set(float('-inf'))
    h = Histogram('py_h', 'h', ['a'], buckets=(1, 2.5), registry=r)
    h.labels('b').observe(2); h.labels('c').observe(9)
    Summary('py_s', 's', registry=r).observe(3)
    return r
push_to_gateway(gateway, job='case py', registry=registry(3))
push_to_gateway(gateway, job='case/py', registry=registry(5), grouping_key={'path': '/var/tmp', 'empty': '', 'u': 'Πρ'})
other = CollectorRegistry()
Gauge('py_added', 'added', registry=other).set(4)
pushadd_to_gateway(gateway, job='case py', registry=other)
push_to_gateway(gateway, job='case gone', registry=registry(1))
delete_from_gateway(gateway, job='case gone')
"#;

const NODE: &str = r"
const client = require('prom-client');
const registry = new client.Registry();
new client.Counter({ name: 'node_c_total', help: 'c', labelNames: ['l'], registers: [registry] }).inc({ l: 'v' }, 3);
new client.Histogram({ name: 'node_h', help: 'h', buckets: [0.1, 1], registers: [registry] }).observe(0.5);
new client.Summary({ name: 'node_s', help: 's', registers: [registry] }).observe(2);
const gateway = new client.Pushgateway(process.argv[2], {}, registry);
(async () => {
  await gateway.push({ jobName: 'case node', groupings: { key: 'a b' } });
  registry.clear();
  new client.Gauge({ name: 'node_g', help: 'g', registers: [registry] }).set(1.5);
  await gateway.pushAdd({ jobName: 'case node', groupings: { key: 'a b' } });
  await gateway.pushAdd({ jobName: 'case gone' });
  await gateway.delete({ jobName: 'case gone' });
})().catch((error) => { console.error(error); process.exit(1); });
";

/// Runs a script with a client library against a gateway.
#[track_caller]
fn run_client(
    program: &str,
    arguments: &[&str],
    script: &Path,
    gateway: &str,
    environment: &[(&str, &Path)],
) {
    let output = Command::new(program)
        .args(arguments)
        .arg(script)
        .arg(gateway)
        .envs(environment.iter().copied())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{program}: {errors}; on Debian: apt-get install python3-prometheus-client"
    );
}

/// The pushed lines, sorted, without times.
fn pushed_lines(page: &str) -> BTreeSet<String> {
    let timed = |line: &str| line.starts_with("push_") || line.contains("_created{");
    let pushed = page.lines().filter(|line| line.contains("job=\"case") && !timed(line));
    pushed.map(str::to_owned).collect()
}

#[test]
fn official_clients_push_to_this_server_as_to_pushgateway() {
    let (test, directory) = (TestServer::start(&[]), temp_dir());
    let reference = start_pushgateway(directory.path());
    let (python, node) = (directory.path().join("push.py"), directory.path().join("push.js"));
    fs::write(&python, PYTHON).expect("a file can be written");
    fs::write(&node, NODE).expect("a file can be written");
    // In the target directory, where scripts/test installs it.
    let modules = Path::new(env!("CARGO_BIN_EXE_aurore-events"))
        .ancestors()
        .nth(2)
        .expect("a target directory")
        .join("clients/node_modules");
    let has_node = modules.join("prom-client").is_dir();
    if !has_node {
        not_tried(&format!("Node's prom-client is not in {}; scripts/test puts it there", modules.display()));
    }
    for address in [test.server.address(), reference.address] {
        run_client("/usr/bin/python3", &[], &python, &address.to_string(), &[]);
        if has_node {
            run_client("node", &[], &node, &format!("http://{address}"), &[("NODE_PATH", &modules)]);
        }
        let mut curl = Command::new("curl");
        curl.args([
            "-sSf",
            "--data-binary",
            "# TYPE curl_metric counter\ncurl_metric{label=\"val1\"} 42\ncurl_other 2398.283\n",
        ]);
        assert!(
            curl.arg(format!("http://{address}/metrics/job/case_curl/instance/i"))
                .status()
                .expect("curl runs")
                .success()
        );
    }
    let local = pushed_lines(&test.server.client().get("/metrics/pushed").text());
    let reference = pushed_lines(&Client::connect(reference.address).get("/metrics").text());
    assert!(local.len() >= 30, "{local:#?}");
    assert_eq!(local, reference);
}

/// Runs `aurore-events gateway compare`: exit code and output.
fn compare(server: &Server, pushgateway: SocketAddr) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_aurore-events"))
        .args(["gateway", "compare", "--pushgateway", &format!("http://{pushgateway}")])
        .args(["--server", &format!("http://{}", server.address())])
        .output()
        .expect("the program runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_site_migrates_from_pushgateway_in_four_phases() {
    let directory = temp_dir();
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let start = || {
        Program::start_at(
            address,
            "prometheus-pushgateway",
            directory.path(),
            &[],
            &["--persistence.file="],
            "/-/ready",
        )
    };
    let pushgateway = start();
    let push = |to: SocketAddr, method: &str, path: &str, body: &str| {
        let reply = Client::connect(to).exchange(&request(method, path, &[], body.as_bytes()));
        assert!((200..300).contains(&reply.status), "{}", reply.text());
    };
    // Phase 1: clients use Pushgateway; this server runs beside it with its address.
    push(address, "PUT", "/metrics/job/nightly", "rows 1\n");
    let url = format!("http://{address}");
    let mut test = TestServer::start(&[("PUSHGATEWAY_URL", &url)]);
    let local = test.server.address();
    let (code, errors) = compare(&test.server, address);
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("rows{job=\"nightly\"}  here: none  pushgateway: 1"), "{errors}");

    // Phase 2: clients push to this server, which forwards; Prometheus still scrapes Pushgateway.
    push(local, "PUT", "/metrics/job/nightly", "rows 2\n");
    push(local, "POST", "/metrics/job/nightly/part/a%20b", "rows 3\n");
    push(local, "PUT", "/metrics/job/gone", "x 1\n");
    push(local, "DELETE", "/metrics/job/gone", "");
    let sums = r#"{"metrics":[{"name":"clicks_total","type":"counter","value":2,"labels":{"page":"/a"}},{"name":"took_seconds","type":"histogram","value":0.3}]}"#;
    let mut client = test.server.client();
    let post = |client: &mut Client| {
        let json = [("Content-Type", "application/json")];
        assert_eq!(client.exchange(&request("POST", "/metrics/push", &json, sums.as_bytes())).status, 202);
    };
    post(&mut client);
    post(&mut client);
    until("every push is forwarded", || test.server.metric("gateway_forward_sent_total") >= 8);
    assert_eq!(compare(&test.server, address), (Some(0), "no series differs\n".to_owned()));

    // Pushgateway is down for a while: pushes wait and are forwarded later.
    drop(pushgateway);
    push(local, "PUT", "/metrics/job/nightly", "rows 5\n");
    until("an attempt has failed", || test.server.metric("gateway_forward_retries_total") > 0);
    let pushgateway = start();
    until("the pushes are forwarded", || test.server.metric("gateway_forward_sent_total") >= 9);
    // It has no persistence, so it has only the later pushes.
    let (code, errors) = compare(&test.server, address);
    assert!(code == Some(1) && errors.contains("clicks_total"), "{errors}");
    assert!(!errors.contains("rows{job=\"nightly\"}"), "{errors}");
    post(&mut client);
    push(local, "POST", "/metrics/job/nightly/part/a%20b", "rows 3\n");
    until("the pushes are forwarded", || test.server.metric("gateway_forward_sent_total") >= 12);
    assert_eq!(compare(&test.server, address).0, Some(0));
    // Phase 3: Prometheus scrapes this server. The way back is its configuration alone, since
    // Pushgateway has the same series.
    let mismatched =
        || test.server.client().get("/metrics/prometheus").text().contains("gateway_mismatched_series 0");
    until("the metric agrees", mismatched);

    // Phase 4: Pushgateway and the setting are removed.
    drop(pushgateway);
    let alone = &mut test.server;
    alone.stop();
    alone.set("PUSHGATEWAY_URL", "");
    alone.restart();
    let page = alone.client().get("/metrics/pushed").text();
    assert!(page.contains("rows{instance=\"\",job=\"nightly\"} 5\n"), "{page}");
    assert!(page.contains("clicks_total{page=\"/a\"} 6\n"), "{page}");
    assert!(!alone.metrics().contains("gateway_forward"));
    alone.stop();
}
