//! Monitoring with the real programs: Prometheus, promtool, Alertmanager and PostgreSQL's exporter,
//! with the configuration of `docker/` except addresses and times.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sonic_rs::{JsonContainerTrait, JsonValueTrait, Value};

use crate::harness::client::Client;
use crate::harness::events::{list, text};
use crate::harness::postgres::free_port;
use crate::harness::process::pdeathsig_command;
use crate::harness::temp::temp_dir;
use crate::harness::wait::until_within;
use crate::harness::{Postgres, Producer, Server, TestServer, until};

const MISSING: &str = "these tests need Prometheus (with promtool), its Alertmanager, its Pushgateway and PostgreSQL's \
                       exporter. On Debian: apt-get install prometheus prometheus-alertmanager \
                       prometheus-pushgateway prometheus-postgres-exporter docker-compose \
                       (their programs are enough, no service needs to run)";
const DASHBOARD: &str = include_str!("../../docker/grafana/dashboards/aurore-dashboard.json");
/// Scrapes, evaluations and `for:` of a second each, on a busy machine.
const SOON: Duration = Duration::from_secs(90);
fn docker(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker").join(path)
}

/// Runs a program and returns its output. Panics if it fails, unless `lenient`.
#[track_caller]
fn run(program: &str, arguments: &[&str], input: &str, lenient: bool) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}. {MISSING}"));
    child.stdin.take().expect("it is a pipe").write_all(input.as_bytes()).expect("the program reads");
    let output = child.wait_with_output().expect("a child can be waited for");
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(lenient || output.status.success(), "{program} {arguments:?}: {printed}");
    printed
}

#[test]
fn rules_and_configurations_pass_their_checks() {
    let path = |name| docker(name).display().to_string();
    run("promtool", &["check", "config", &path("prometheus/prometheus.yml")], "", false);
    run("promtool", &["test", "rules", &path("prometheus/rules_test.yaml")], "", false);
    run("amtool", &["check-config", &path("alertmanager/alertmanager.yml")], "", false);
    let runbook = fs::read_to_string(docker("../docs/observability.md")).expect("the runbook is there");
    let rules = fs::read_to_string(docker("prometheus/rules.yml")).expect("the rules are there");
    let tests = fs::read_to_string(docker("prometheus/rules_test.yaml")).expect("their tests are there");
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(runbook.contains(&format!("### {alert}\n")), "no line on what to do about {alert}");
        assert!(rules.contains(&format!("#{}\n", alert.to_lowercase())), "{alert} does not name its line");
        assert!(tests.contains(&format!("alertname: {alert}\n")), "nothing tries {alert}");
    }
}

#[test]
fn the_compose_file_passes_its_check() {
    let path = docker("compose.yaml").display().to_string();
    let plugin = Command::new("docker").args(["compose", "version"]).output();
    if plugin.is_ok_and(|output| output.status.success()) {
        run("docker", &["compose", "-f", &path, "config", "--quiet"], "", false);
    } else {
        // Debian's version does not support a project name in the file.
        let file = fs::read_to_string(&path).expect("the file is there");
        let file = file.replacen("\nname: aurore\n", "\n", 1);
        let directory = docker("").display().to_string();
        run(
            "docker-compose",
            &["-f", "-", "--project-directory", &directory, "config", "--quiet"],
            &file,
            false,
        );
    }
}

#[test]
fn promtool_lint_reports_only_the_units_of_the_specified_names() {
    let test = TestServer::start(&[]);
    let printed = run("promtool", &["check", "metrics"], &test.server.metrics(), true);
    let offence = |line: &&str| {
        let named = line.contains("_ms") || line.starts_with("partitions_ahead_days");
        let unit = named && line.contains("base unit");
        !line.is_empty() && !unit && !line.contains("metric names should not contain abbreviated units")
    };
    let offences: Vec<_> = printed.lines().filter(offence).collect();
    assert!(offences.is_empty(), "{printed}");
}

#[test]
fn the_dashboard_has_the_specified_panels_in_its_rows() {
    let rows = panels_by_row();
    let count: Vec<_> = rows.iter().map(|(row, panels)| (row.as_str(), panels.len())).collect();
    assert_eq!(
        count[..5],
        [("Buffer", 6), ("Batch worker", 2), ("Business", 2), ("Health", 4), ("Infrastructure", 2)]
    );
    assert_eq!((count[5].0, count[6]), ("PostgreSQL", ("Gateway", 4)));
    let dashboard: Value = sonic_rs::from_str(DASHBOARD).expect("the dashboard is JSON");
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 36));
    assert_eq!(dashboard["uid"].as_str(), Some("aurore-events"));
    let mut ids = Vec::new();
    for panel in list(&dashboard["panels"]) {
        ids.push(panel["id"].as_u64().expect("a panel has an id"));
        let place = &panel["gridPos"];
        let (x, w) = (place["x"].as_u64().expect("x"), place["w"].as_u64().expect("w"));
        assert!(x + w <= 24 && place["h"].as_u64().is_some() && place["y"].as_u64().is_some(), "{panel}");
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"].as_str(), Some("prometheus"), "as provisioned");
        }
    }
    let panels = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), panels, "two panels of one id");
}

/// A panel's title and its expressions with their legends.
type Panel = (String, Vec<(String, String)>);

fn panels_by_row() -> Vec<(String, Vec<Panel>)> {
    let dashboard: Value = sonic_rs::from_str(DASHBOARD).expect("the dashboard is JSON");
    let mut rows: Vec<(String, Vec<Panel>)> = Vec::new();
    for panel in list(&dashboard["panels"]) {
        let title = text(&panel["title"]);
        if panel["type"].as_str() == Some("row") {
            rows.push((title, Vec::new()));
            continue;
        }
        let targets = list(&panel["targets"])
            .iter()
            .map(|target| (text(&target["expr"]).replace("$instance", ".*"), text(&target["legendFormat"])))
            .collect();
        rows.last_mut().expect("a row comes first").1.push((title, targets));
    }
    rows
}

/// A program of the stack, on its own port.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Program {
    /// Starts the program and waits until it answers at `path`.
    pub(crate) fn start(
        name: &str,
        directory: &Path,
        environment: &[(&str, &str)],
        arguments: &[&str],
        path: &str,
    ) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        Self::start_at(address, name, directory, environment, arguments, path)
    }

    pub(crate) fn start_at(
        address: SocketAddr,
        name: &str,
        directory: &Path,
        environment: &[(&str, &str)],
        arguments: &[&str],
        path: &str,
    ) -> Self {
        let log = directory.join(format!("{name}.log"));
        let out = File::create(&log).expect("the log can be written");
        let mut command = pdeathsig_command("KILL", None, name);
        command.current_dir(directory).envs(environment.iter().copied()).args(arguments);
        command.arg(format!("--web.listen-address={address}"));
        let both = out.try_clone().expect("a file handle can be copied");
        let mut child = command.stdout(both).stderr(out).spawn().expect("setpriv (util-linux) runs");
        until(&format!("{name} answers"), || {
            let runs = child.try_wait().expect("a child can be waited for").is_none();
            assert!(runs, "{name}: {}. {MISSING}", fs::read_to_string(&log).unwrap_or_default());
            Client::try_connect(address).is_ok_and(|mut client| client.get(path).status == 200)
        });
        Self { child, address, log }
    }

    #[track_caller]
    pub(crate) fn ask(&self, path: &str) -> Value {
        Client::connect(self.address).get_json(path)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if std::thread::panicking() {
            eprintln!("{ended:?} {}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Prometheus with its targets and Alertmanager.
struct Stack {
    prometheus: Program,
    alertmanager: Program,
    _exporter: Program,
    _directory: tempfile::TempDir,
}

impl Stack {
    fn start(server: &Server, postgres: &Postgres) -> Self {
        let directory = temp_dir();
        let dir = directory.path();
        let queries = format!("--extend.query-path={}", docker("postgres_exporter/queries.yaml").display());
        let source = format!("{}?sslmode=disable", postgres.url());
        let exporter = Program::start(
            "prometheus-postgres-exporter",
            dir,
            &[("DATA_SOURCE_NAME", &source)],
            &[&queries],
            "/metrics",
        );
        let config = format!("--config.file={}", docker("alertmanager/alertmanager.yml").display());
        let alertmanager = Program::start(
            "prometheus-alertmanager",
            dir,
            &[],
            &[&config, "--storage.path=alertmanager", "--cluster.listen-address="],
            "/-/ready",
        );
        let rules = fs::read_to_string(docker("prometheus/rules.yml")).expect("the rules are there");
        let rules = rules.replace("for: 1m", "for: 1s").replace("for: 5m", "for: 1s").replace("[2m]", "[5s]");
        fs::write(dir.join("rules.yml"), rules).expect("a file can be written");
        let config = fs::read_to_string(docker("prometheus/prometheus.yml")).expect("the file is there");
        let mut config = config
            .replace("_interval: 15s", "_interval: 1s")
            .replace("aurore-events:3000", &server.address().to_string())
            .replace("postgres-exporter:9187", &exporter.address.to_string())
            .replace("alertmanager:9093", &alertmanager.address.to_string());
        // The same metrics as OpenMetrics: Prometheus prefers it, and /metrics returns it then.
        config.push_str("\n  - job_name: openmetrics\n    metrics_path: /metrics\n    static_configs:\n");
        writeln!(config, "      - targets: [\"{}\"]", server.address()).expect("a string takes it");
        fs::write(dir.join("prometheus.yml"), config).expect("a file can be written");
        let prometheus = Program::start(
            "prometheus",
            dir,
            &[],
            &["--config.file=prometheus.yml", "--storage.tsdb.path=prometheus"],
            "/-/ready",
        );
        Self { prometheus, alertmanager, _exporter: exporter, _directory: directory }
    }

    /// The result of an expression: labels and value of each series.
    #[track_caller]
    fn query(&self, expression: &str) -> Vec<(Value, String)> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in expression.bytes() {
            if byte.is_ascii_alphanumeric() {
                path.push(char::from(byte));
            } else {
                write!(path, "%{byte:02X}").expect("a string takes it");
            }
        }
        let result = list(&self.prometheus.ask(&path)["data"]["result"]);
        result.into_iter().map(|series| (series["metric"].clone(), text(&series["value"][1]))).collect()
    }

    /// Names of the firing alerts, in Prometheus and in Alertmanager.
    fn firing(&self) -> (Vec<String>, Vec<String>) {
        let name = |alert: &Value| text(&alert["labels"]["alertname"]);
        let alerts = list(&self.prometheus.ask("/api/v1/alerts")["data"]["alerts"]);
        let fire = |alert: &&Value| alert["state"].as_str() == Some("firing");
        let here = alerts.iter().filter(fire).map(name).collect();
        let there = list(&self.alertmanager.ask("/api/v2/alerts")).iter().map(name).collect();
        (here, there)
    }
}

/// `name{labels}` for each series that an expression selects.
fn selectors(expression: &str) -> Vec<&str> {
    let bytes = expression.as_bytes();
    let open = expression.match_indices('{').map(|(at, _)| at);
    open.filter_map(|at| {
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
        let length = bytes[..at].iter().rev().take_while(|byte| is_name(byte)).count();
        let end = at + expression[at..].find('}')?;
        (length > 0).then(|| &expression[at - length..=end])
    })
    .collect()
}

#[test]
fn every_panel_and_rule_has_data_and_an_outage_fires_and_resolves_the_right_alerts() {
    const WANTED: [&str; 7] = [
        "AuroreDatabaseDown",
        "AuroreBreakerOpen",
        "AuroreBufferFilling",
        "AuroreSpilling",
        "AuroreSpillFilling",
        "AuroreDropRate",
        "AurorePostgresExporterDown",
    ];
    let mut postgres = Postgres::start_with(&["shared_preload_libraries=pg_stat_statements"]);
    postgres.execute("CREATE EXTENSION pg_stat_statements");
    let settings = [
        ("BUFFER_MAX_SIZE", "5000"),
        ("SPILL_MAX_BYTES", "1000000"),
        ("CIRCUIT_BREAKER_TIMEOUT_MS", "2000"),
        ("DRAIN_INTERVAL", "50"),
    ];
    let server = Server::start_on(&postgres, &settings);
    let stack = Stack::start(&server, &postgres);
    let producer = Producer::start(server.address(), 4);

    // Every expression of every panel. Rules have no result while all is well, so their selectors.
    let mut wanted: Vec<String> = panels_by_row()
        .into_iter()
        .flat_map(|(_, panels)| panels.into_iter().flat_map(|(_, targets)| targets))
        .map(|(expression, _)| expression)
        .collect();
    let mut rules = 0;
    for group in list(&stack.prometheus.ask("/api/v1/rules")["data"]["groups"]) {
        for rule in list(&group["rules"]) {
            rules += 1;
            wanted.extend(selectors(&text(&rule["query"])).into_iter().map(str::to_owned));
            if rule["type"].as_str() == Some("recording") {
                wanted.push(text(&rule["query"]));
                wanted.push(text(&rule["name"]));
            }
        }
    }
    assert!(rules >= 17, "{rules} rules");
    // Empty as intended: an error series exists only after an error.
    wanted.retain(|expression| !expression.contains("5..") && !expression.contains("http_errors"));
    // This server has no standby.
    wanted.retain(|expression| !expression.contains("database_standby_"));
    let mut missing = wanted.clone();
    until_within(SOON, "every expression returns data", || {
        missing.retain(|expression| {
            let found = stack.query(expression);
            found.is_empty() || found.iter().all(|(_, value)| value == "NaN")
        });
        if !missing.is_empty() {
            eprintln!("still without data: {}, {} among them", missing.len(), missing[0]);
            std::thread::sleep(Duration::from_secs(1));
        }
        missing.is_empty()
    });
    // Prometheus does not listen at the address of the configuration.
    assert_eq!(
        stack.query("up{job!='prometheus'} == 1").len(),
        4,
        "OpenMetrics and pushed metrics among them"
    );
    render(&stack);

    postgres.stop_fast();
    until_within(SOON, "the right alerts fire", || {
        let (here, there) = stack.firing();
        let fired = |alert: &str| [&here, &there].iter().all(|all| all.iter().any(|name| name == alert));
        std::thread::sleep(Duration::from_millis(500));
        WANTED.iter().all(|alert| fired(alert))
    });
    let (here, _) = stack.firing();
    for alert in here.iter().filter(|alert| *alert != "AuroreDiskNearlyFull") {
        assert!(WANTED.contains(&alert.as_str()), "{alert} fires without a reason");
    }

    postgres.restart();
    until_within(SOON, "the alerts are laid", || {
        let (here, there) = stack.firing();
        std::thread::sleep(Duration::from_millis(500));
        !here.iter().chain(&there).any(|alert| WANTED.contains(&alert.as_str()))
    });

    // A stall is not an outage: the database answers, and nothing is stored.
    let stalled = || stack.firing().0.iter().any(|alert| alert == "AuroreWriterStalled");
    assert!(!stalled(), "an outage is no stall");
    let mut session = postgres.client();
    let mut lock = session.transaction().expect("it is up");
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").expect("it is up");
    until_within(SOON, "a stall fires its alert", || {
        std::thread::sleep(Duration::from_millis(500));
        stalled()
    });
    lock.rollback().expect("it is up");
    until_within(SOON, "the alert is laid", || {
        std::thread::sleep(Duration::from_millis(500));
        !stalled()
    });
    for group in list(&stack.prometheus.ask("/api/v1/rules")["data"]["groups"]) {
        for rule in list(&group["rules"]) {
            assert_eq!(rule["health"].as_str(), Some("ok"), "{rule}");
        }
    }
    producer.stop();
}

/// Prints the dashboard as text.
fn render(stack: &Stack) {
    for (row, panels) in panels_by_row() {
        eprintln!("\n{row}");
        for (title, targets) in panels {
            eprintln!("  {title}");
            for (expression, legend) in targets {
                for (labels, value) in stack.query(&expression) {
                    let mut name = legend.clone();
                    for (label, value) in labels.as_object().into_iter().flat_map(|labels| labels.iter()) {
                        name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
                    }
                    let value: f64 = value.parse().unwrap_or(f64::NAN);
                    eprintln!("    {name:<70} {value:>16.3}");
                }
            }
        }
    }
}
