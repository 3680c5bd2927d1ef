//! The real server, started as a user would start it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::Client;
use super::postgres::Postgres;
use super::process::{alive, bound_command, exit_within, signal};
use super::temp::TempDir;
use super::wait::{until, until_within};

const PROGRAM: &str = env!("CARGO_BIN_EXE_aurore-events");
/// What the server says once it takes connections, before the port.
const LISTENING: &str = "listening on http://127.0.0.1:";
/// A drain of what a test has sent takes far less.
const EXIT_MAX: Duration = Duration::from_secs(45);

/// A server and its database. The server goes first.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) postgres: Postgres,
}

impl World {
    /// Both up and ready, the server with these settings besides.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let postgres = Postgres::start();
        let server = Server::on(&postgres, settings);
        Self { server, postgres }
    }
}

/// The server on a port and in a data directory of its own, with a clean environment.
pub(crate) struct Server {
    settings: Vec<(String, String)>,
    process: Option<Running>,
    data: TempDir,
}

struct Running {
    child: Child,
    stderr: Arc<Mutex<String>>,
    /// None until it listens.
    address: Option<SocketAddr>,
}

impl Server {
    /// Started on a database, and ready.
    pub(crate) fn on(postgres: &Postgres, settings: &[(&str, &str)]) -> Self {
        let url = postgres.url();
        let mut all = vec![("DATABASE_URL", url.as_str())];
        all.extend(settings);
        Self::start(&all)
    }

    /// Started with these settings alone, and ready.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let owned = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut server = Self { settings: owned, process: None, data: TempDir::new() };
        server.start_again();
        server
    }

    /// Starts it where it was, in the same data directory, and waits until it is ready.
    pub(crate) fn start_again(&mut self) {
        assert!(self.process.is_none(), "BUG: the server runs already");
        let child = command(&self.settings, self.data.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv (util-linux) runs");
        self.process = Some(Running::follow(child));
        let process = self.process.as_mut().expect("just set");
        until("the server listens", || process.listens());
        until("the server is ready", || self.client().get("/ready").status == 200);
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running().address.expect("BUG: it was waited for")
    }

    /// A connection of its own.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address())
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.data.path()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running().child.id()
    }

    /// What it has said since its start.
    pub(crate) fn log(&self) -> String {
        self.running().log()
    }

    /// From its next start on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.running().child.id());
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn exit_within(&mut self, most: Duration) -> ExitStatus {
        let process = self.process.as_mut().expect("BUG: the server is stopped");
        let status = exit_within(most, "the server", &mut process.child);
        let process = self.process.take().expect("it was there a line ago");
        if thread::panicking() || !status.success() {
            eprintln!("the server ended ({status}), having said:\n{}", process.log());
        }
        status
    }

    /// SIGTERM, and an exit that must say that all went well.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        let status = self.exit_within(EXIT_MAX);
        assert_eq!(status.code(), Some(0), "after SIGTERM");
    }

    pub(crate) fn kill(&mut self) {
        self.signal("KILL");
        self.exit_within(EXIT_MAX);
    }

    /// The sum of a metric over its labels. It must be there.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(&self.metrics(), name)
    }

    /// The whole Prometheus page.
    #[track_caller]
    pub(crate) fn metrics(&self) -> String {
        let reply = self.client().get("/metrics/prometheus");
        assert_eq!(reply.status, 200);
        reply.text()
    }

    #[track_caller]
    fn running(&self) -> &Running {
        self.process.as_ref().expect("BUG: the server is stopped")
    }
}

impl Running {
    fn follow(mut child: Child) -> Self {
        let stderr = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        let copy = Arc::clone(&stderr);
        let follow = move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut text = copy.lock().unwrap_or_else(PoisonError::into_inner);
                text.push_str(&line);
                text.push('\n');
            }
        };
        thread::Builder::new().name("stderr".into()).spawn(follow).expect("a thread starts");
        Self { child, stderr, address: None }
    }

    fn log(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn listens(&mut self) -> bool {
        let log = self.log();
        if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
            panic!("the server ended ({status}) before it listened:\n{log}");
        }
        let Some((_, rest)) = log.split_once(LISTENING) else { return false };
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        self.address = digits.parse().ok().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
        self.address.is_some()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let embedded = embedded_postmaster(self.data.path());
            signal("KILL", process.child.id());
            process.child.wait().expect("a child can be waited for");
            if let Some(pid) = embedded {
                signal("QUIT", pid);
                until_within(EXIT_MAX, "the embedded cluster ends", || !alive(pid));
            }
            if thread::panicking() {
                eprintln!("the server said:\n{}", process.log());
            }
        }
    }
}

/// The process of the cluster that a server keeps in its data directory.
pub(crate) fn embedded_postmaster(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join("postgres/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Runs the program to its end, with this environment and these arguments.
#[track_caller]
pub(crate) fn run(settings: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let data = TempDir::new();
    let owned: Vec<_> = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut child = command(&owned, data.path())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv (util-linux) runs");
    // Read meanwhile: a program that says more than a pipe holds would never end.
    let stdout = read_aside(child.stdout.take().expect("it is a pipe"));
    let stderr = read_aside(child.stderr.take().expect("it is a pipe"));
    let status = exit_within(EXIT_MAX, "the program", &mut child);
    let said = |reader: JoinHandle<String>| reader.join().expect("output is UTF-8");
    Ended { code: status.code(), stdout: said(stdout), stderr: said(stderr) }
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    let reading = std::thread::Builder::new().name("reading".to_owned()).spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("output is UTF-8");
        text
    });
    reading.expect("a thread starts")
}

/// How a run went.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

fn command(settings: &[(String, String)], data: &Path) -> Command {
    let mut command = bound_command("KILL", None, PROGRAM);
    command.env_clear().env("RUST_BACKTRACE", "1").env("DATA_DIR", data);
    command.env("HOST", "127.0.0.1").env("PORT", "0");
    // Tests wait by asking again and again, all from one address.
    command.env("RATE_LIMIT_QUERY", "0").env("RATE_LIMIT_HEALTH", "0");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    command
}

/// The sum of a metric over its labels in a Prometheus page.
#[track_caller]
pub(crate) fn metric(page: &str, name: &str) -> u64 {
    let mut samples = page
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .map(|rest| {
            let value = rest.rsplit(' ').next().unwrap_or_default();
            value.parse::<u64>().unwrap_or_else(|error| panic!("{name}{rest}: {error}"))
        })
        .peekable();
    assert!(samples.peek().is_some(), "no metric {name} in:\n{page}");
    samples.sum()
}
