//! Runs the real server binary.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::Client;
use super::postgres::Postgres;
use super::process::{exit_within, is_alive, pdeathsig_command, signal};
use super::temp::temp_dir;
use super::wait::{until, until_within};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_aurore-events");
/// The log message of the listening server, up to the port, without and with TLS.
const LISTENING: [&str; 2] = ["listening on http://127.0.0.1:", "listening on https://127.0.0.1:"];
/// The partitions of a new database: from yesterday to two weeks ahead, and the default partition.
pub(crate) const PARTITIONS: i64 = 17;
/// Longer than the drain of any test takes.
const EXIT_MAX: Duration = Duration::from_secs(45);

/// A server and its database. Fields drop in order: the server stops first.
pub(crate) struct TestServer {
    pub(crate) server: Server,
    pub(crate) postgres: Postgres,
}

impl TestServer {
    /// Starts both, the server with these additional settings, and waits until the server is ready
    /// and has created its partitions.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let postgres = Postgres::start();
        let server = Server::start_on(&postgres, settings);
        wait_for_partitions(&postgres);
        Self { server, postgres }
    }
}

/// Waits until the server has created its partitions, so that SQL of a test does not run beside that.
pub(crate) fn wait_for_partitions(postgres: &Postgres) {
    until("the partitions are created", || {
        postgres.value::<i64>("SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('events')")
            >= PARTITIONS
    });
}

/// A server with its own port and data directory, and a clean environment.
pub(crate) struct Server {
    settings: Vec<(String, String)>,
    /// Passed to each process, as a service manager does.
    sockets: Vec<TcpListener>,
    process: Option<Running>,
    data: tempfile::TempDir,
}

struct Running {
    child: Child,
    stderr: Arc<Mutex<String>>,
    /// None until the server listens.
    address: Option<SocketAddr>,
}

impl Server {
    /// Starts a server on a database and waits until it is ready.
    pub(crate) fn start_on(postgres: &Postgres, settings: &[(&str, &str)]) -> Self {
        let url = postgres.url();
        let mut all = vec![("DATABASE_URL", url.as_str())];
        all.extend(settings);
        Self::start(&all)
    }

    /// Starts a server with these settings only and waits until it is ready.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let mut server = Self::stopped(settings);
        server.restart();
        server
    }

    /// Starts a server with these settings only, to which a service manager passes `sockets`, and waits
    /// until it listens.
    pub(crate) fn start_with_sockets(settings: &[(&str, &str)], sockets: Vec<TcpListener>) -> Self {
        let mut server = Self::stopped(settings);
        server.sockets = sockets;
        server.launch();
        server
    }

    /// Changes the sockets that are passed, effective from the next start.
    pub(crate) fn set_sockets(&mut self, sockets: Vec<TcpListener>) {
        self.sockets = sockets;
    }

    /// Starts a server with these settings only and waits until it listens.
    pub(crate) fn start_unready(settings: &[(&str, &str)]) -> Self {
        let mut server = Self::stopped(settings);
        server.launch();
        server
    }

    fn stopped(settings: &[(&str, &str)]) -> Self {
        let settings = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { settings, sockets: Vec::new(), process: None, data: temp_dir() }
    }

    /// Starts the server again in the same data directory and waits until it is ready.
    pub(crate) fn restart(&mut self) {
        self.launch();
        until("the server is ready", || self.client().get("/ready").status == 200);
    }

    /// Starts the process and waits until it listens.
    fn launch(&mut self) {
        assert!(self.process.is_none(), "BUG: the server runs already");
        let child = self.spawn();
        self.process = Some(Running::follow(child));
        let process = self.process.as_mut().expect("just set");
        until("the server listens", || process.listens());
    }

    /// Starts a process that the caller ends. Nothing reads its log.
    pub(crate) fn spawn(&self) -> Child {
        with_sockets(command(&self.settings, self.data.path()), &self.sockets)
            .stderr(Stdio::piped())
            .spawn()
            .expect("setpriv (util-linux) runs")
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running().address.expect("BUG: the server does not listen yet")
    }

    /// Opens a new connection.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address())
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.data.path()
    }

    /// The files of the journal, without those that are retained for a failover of the database.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let journal = fs::read_dir(self.data_dir().join("journal")).expect("the journal is there");
        let mut paths: Vec<_> = journal.map(|entry| entry.expect("it can be read").path()).collect();
        paths.retain(|path| path.extension().is_none_or(|extension| extension != "committed"));
        paths.sort();
        paths
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running().child.id()
    }

    /// The resident memory of the process, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.memory_status("VmRSS:")
    }

    /// The peak of the resident memory, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.memory_status("VmHWM:")
    }

    fn memory_status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux reports it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The log since the start of the process.
    pub(crate) fn log(&self) -> String {
        self.running().log()
    }

    /// Changes a setting, effective from the next start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.settings.retain(|(known, _)| known != name);
        self.settings.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.running().child.id());
    }

    /// Waits for the process to end.
    #[track_caller]
    pub(crate) fn exit_within(&mut self, timeout: Duration) -> ExitStatus {
        let process = self.process.as_mut().expect("BUG: the server is stopped");
        let status = exit_within(timeout, "the server", &mut process.child);
        let process = self.process.take().expect("it was there a line ago");
        if thread::panicking() || !status.success() {
            eprintln!("the server ended ({status}). Its log:\n{}", process.log());
        }
        status
    }

    /// Sends SIGTERM and asserts exit code 0.
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

    /// The sum of a metric over its labels; panics if the metric is missing.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> u64 {
        metric(&self.metrics(), name)
    }

    /// The Prometheus page.
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
        let Some((_, rest)) = LISTENING.iter().find_map(|text| log.split_once(text)) else { return false };
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
                until_within(EXIT_MAX, "the embedded cluster ends", || !is_alive(pid));
            }
            if thread::panicking() {
                eprintln!("the log of the server:\n{}", process.log());
            }
        }
    }
}

/// The process id of the embedded cluster in a data directory.
pub(crate) fn embedded_postmaster(data: &Path) -> Option<u32> {
    let text = fs::read_to_string(data.join("postgres/postmaster.pid")).ok()?;
    text.lines().next()?.trim().parse().ok()
}

/// Runs the program with this environment and these arguments until it ends.
#[track_caller]
pub(crate) fn run(settings: &[(&str, &str)], arguments: &[&str]) -> ProgramOutput {
    let data = temp_dir();
    let owned: Vec<_> = settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let mut child = command(&owned, data.path())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv (util-linux) runs");
    // Read concurrently: a program that writes more than the pipe holds would block.
    let stdout = read_in_background(child.stdout.take().expect("it is a pipe"));
    let stderr = read_in_background(child.stderr.take().expect("it is a pipe"));
    let status = exit_within(EXIT_MAX, "the program", &mut child);
    let output = |reader: JoinHandle<String>| reader.join().expect("output is UTF-8");
    ProgramOutput { code: status.code(), stdout: output(stdout), stderr: output(stderr) }
}

fn read_in_background(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    let reading = std::thread::Builder::new().name("reading".to_owned()).spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("output is UTF-8");
        text
    });
    reading.expect("a thread starts")
}

/// Exit code and output of a run.
pub(crate) struct ProgramOutput {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with this environment, without arguments.
pub(crate) fn command(settings: &[(String, String)], data: &Path) -> Command {
    let mut command = pdeathsig_command("KILL", None, PROGRAM);
    command.env_clear().env("RUST_BACKTRACE", "1").env("DATA_DIR", data);
    command.env("HOST", "127.0.0.1").env("PORT", "0");
    // Tests poll, all from one address.
    command.env("RATE_LIMIT_QUERY", "0").env("RATE_LIMIT_HEALTH", "0");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    command
}

/// The command with `sockets`, two at most, as its descriptors from 3 on, and with the variables of
/// `sd_listen_fds(3)`. A shell moves them there from standard input and output.
pub(crate) fn with_sockets(program: Command, sockets: &[TcpListener]) -> Command {
    const SCRIPT: &str = "export LISTEN_PID=$$; exec \"$@\" 3<&0 4<&1 0</dev/null 1>/dev/null";
    assert!(sockets.len() <= 2, "BUG: a shell has no third descriptor to take a socket from");
    let socket = |nth: usize| {
        sockets.get(nth).map_or_else(Stdio::null, |socket| {
            OwnedFd::from(socket.try_clone().expect("a descriptor is free")).into()
        })
    };
    if sockets.is_empty() {
        let mut program = program;
        program.stdout(Stdio::null());
        return program;
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", SCRIPT, "sh"]).arg(program.get_program()).args(program.get_args());
    shell.env_clear().env("LISTEN_FDS", sockets.len().to_string());
    shell.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stdin(socket(0)).stdout(socket(1));
    shell
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
