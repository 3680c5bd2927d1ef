//! The embedded default: a private cluster in the data directory, for a server that was given no `DATABASE_URL`.
//!
//! It listens on a socket only, belongs to an unprivileged user, and is started and stopped with the server. One that
//! an earlier server left running, because it was killed, is taken over. Nothing here weakens durability.
//!
//! `programs` finds PostgreSQL's programs, `home` prepares the directories and whose they are, `keeper` starts again
//! what somebody else has ended.

mod home;
mod keeper;
mod programs;

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postgres::{Client, NoTls};

use self::home::Home;
pub use self::keeper::Keeper;
use self::programs::Programs;
use super::error::chain;
use super::target::Target;
use crate::clock::{Clock, Moment};

/// The database's name and its superuser's. Only the owner of the directory and root reach the socket.
const DATABASE: &str = "aurore_events";
const USER: &str = "postgres";

/// How often a starting cluster is tried. A try that fails costs a few system calls.
const RETRY: Duration = Duration::from_millis(10);

/// What the cluster runs with, besides its own defaults. `fsync` and `synchronous_commit` are said aloud, since an
/// acknowledgement rests on them; the rest suits a stream of large inserts: checkpoints less often, no just-in-time
/// compilation for queries of milliseconds.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "max_wal_size=2GB",
    "checkpoint_timeout=10min",
    "max_connections=60",
    "jit=off",
    "log_checkpoints=off",
    // Whoever reads should find clean buffers: one that has to write a page first waits for the WAL to be synced.
    "bgwriter_delay=20ms",
    "bgwriter_lru_maxpages=1000",
    "bgwriter_lru_multiplier=4",
];

/// Megabytes of shared buffers: an eighth of the memory, 128 at least and 2,048 at most.
fn shared_buffers_mb() -> u64 {
    const PART: u64 = 8;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let total_kb = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // A container may have less than the machine.
    let bound_kb = read("/sys/fs/cgroup/memory.max").trim().parse::<u64>().ok().map(|bytes| bytes / 1024);
    let memory_kb = [total_kb, bound_kb].into_iter().flatten().min().unwrap_or(0);
    (memory_kb / 1024 / PART).clamp(128, 2048)
}

/// How long the cluster may take.
#[derive(Clone, Copy, Debug)]
pub struct ClusterLimits {
    /// Until it takes connections, recovery from a crash included.
    pub start_timeout: Duration,
    /// For a fast stop, before an immediate one.
    pub stop_timeout: Duration,
}

impl Default for ClusterLimits {
    fn default() -> Self {
        Self { start_timeout: Duration::from_mins(2), stop_timeout: Duration::from_secs(20) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error(
        "DATABASE_URL is not set and no PostgreSQL (14 or later) was found on this machine to run: install it \
         (Debian and Ubuntu: apt-get install postgresql) or set DATABASE_URL"
    )]
    NotInstalled,
    #[error(
        "{directory} was made by PostgreSQL {theirs}, and of PostgreSQL there is only {ours}: install version {theirs} \
         or move the data with pg_upgrade"
    )]
    Version { directory: PathBuf, theirs: String, ours: String },
    #[error(
        "the user {user}, as whom PostgreSQL has to run, may not pass {directory}: chmod o+x {directory}, or choose \
         another DATA_DIR, or set DATABASE_URL"
    )]
    Barred { user: String, directory: PathBuf },
    #[error(
        "there is neither a user postgres nor nobody, and PostgreSQL does not run as root: set DATABASE_URL"
    )]
    NoUser,
    #[error("{doing} {path}: {source}")]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{program} failed: {said}")]
    Program { program: &'static str, said: String },
    #[error("{0} belongs to somebody else or is open to others, and cannot hold a socket")]
    SocketDirectory(PathBuf),
    #[error("the embedded PostgreSQL does not answer after {seconds} s: {said}")]
    Silent { seconds: u64, said: String },
    #[error("the embedded PostgreSQL: {0}")]
    Database(String),
}

impl ClusterError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// A running cluster. Stops it when dropped, unless [`Cluster::stop`] did.
#[derive(Debug)]
pub struct Cluster {
    home: Home,
    programs: Programs,
    limits: ClusterLimits,
    settings: &'static [&'static str],
    /// None for PostgreSQL's own default.
    shared_buffers_mb: Option<u64>,
    /// The postmaster when we started it; None when we took it over, or stopped it.
    child: Option<Child>,
    running: bool,
}

impl Cluster {
    /// Makes the cluster in `data_dir`/postgres when there is none, and starts it or takes it over.
    pub fn start(data_dir: &Path, limits: ClusterLimits, clock: &Clock) -> Result<Self, ClusterError> {
        Self::start_sized(data_dir, limits, clock, SETTINGS, Some(shared_buffers_mb()))
    }

    /// Which settings it runs with is for tests to vary.
    #[cfg(test)]
    pub(super) fn start_with(
        data_dir: &Path,
        limits: ClusterLimits,
        clock: &Clock,
        settings: &'static [&'static str],
    ) -> Result<Self, ClusterError> {
        Self::start_sized(data_dir, limits, clock, settings, None)
    }

    fn start_sized(
        data_dir: &Path,
        limits: ClusterLimits,
        clock: &Clock,
        settings: &'static [&'static str],
        shared_buffers_mb: Option<u64>,
    ) -> Result<Self, ClusterError> {
        let home = Home::prepare(data_dir)?;
        let programs = Programs::find(&home)?;
        if !home.exists() {
            initialize(&home, &programs)?;
        }
        let mut cluster =
            Self { home, programs, limits, settings, shared_buffers_mb, child: None, running: true };
        let mut client = cluster.await_answer(clock, &|| false)?;
        create_database(&mut client)?;
        Ok(cluster)
    }

    /// Where a cluster answers that a running server keeps. Starts nothing.
    pub fn of_a_running_server(data_dir: &Path) -> Result<Target, ClusterError> {
        Ok(Target::socket(Home::prepare(data_dir)?.socket_dir(), USER, DATABASE))
    }

    /// Where to connect.
    pub fn target(&self) -> Target {
        Target::socket(self.home.socket_dir(), USER, DATABASE)
    }

    /// Where it writes what happens to it.
    pub fn log_path(&self) -> &Path {
        self.home.log()
    }

    /// Ends it: fast, which rolls back what is open, and after the timeout at once, which the next start recovers from.
    pub fn stop(mut self) -> Result<(), ClusterError> {
        self.end()
    }

    /// Whether the postmaster is there.
    fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => self.home.postmaster().is_some(),
        }
    }

    /// Starts it again after it has ended, and waits until it answers.
    fn revive(&mut self, clock: &Clock, is_stopped: &dyn Fn() -> bool) -> Result<(), ClusterError> {
        self.child = None;
        self.running = true;
        self.await_answer(clock, is_stopped).map(drop)
    }

    fn end(&mut self) -> Result<(), ClusterError> {
        if !std::mem::take(&mut self.running) {
            return Ok(());
        }
        let fast = self.pg_ctl_stop("fast");
        let stopped = fast.or_else(|error| {
            log::warn!("the embedded PostgreSQL did not stop in time and is ended at once: {error}");
            self.pg_ctl_stop("immediate")
        });
        if stopped.is_ok()
            && let Some(mut child) = self.child.take()
        {
            // It has gone already; this takes its entry out of the table of processes.
            child.wait().map_err(ClusterError::io("waiting for", self.home.cluster()))?;
        }
        if self.home.postmaster().is_none() { Ok(()) } else { stopped }
    }

    fn pg_ctl_stop(&self, mode: &str) -> Result<(), ClusterError> {
        let seconds = self.limits.stop_timeout.as_secs().max(1).to_string();
        let mut command = self.home.command(&self.programs.path("pg_ctl"));
        command.args(["stop", "-w", "-s", "-m", mode, "-t", &seconds, "-D"]).arg(self.home.cluster());
        run("pg_ctl", &mut command)
    }

    /// Connects, starting the postmaster when none is there, until it answers, the time is over or nobody wants it any
    /// more.
    fn await_answer(&mut self, clock: &Clock, is_stopped: &dyn Fn() -> bool) -> Result<Client, ClusterError> {
        let deadline = clock.now().plus(self.limits.start_timeout);
        loop {
            let why = match self.connect("postgres") {
                Ok(client) => return Ok(client),
                Err(error) => chain(&error),
            };
            let ended = match &mut self.child {
                Some(child) => {
                    child.try_wait().map_err(ClusterError::io("waiting for", self.home.cluster()))?
                }
                None => None,
            };
            if let Some(status) = ended {
                self.child = None;
                // One that was just stopping held the directory: its going away is waited for.
                if self.home.postmaster().is_none() {
                    self.running = false;
                    let said = format!("{status}: {}", self.home.log_tail());
                    return Err(ClusterError::Program { program: "postgres", said });
                }
            } else if self.child.is_none() && self.home.postmaster().is_none() {
                self.child = Some(self.launch()?);
            }
            self.give_up_after(if is_stopped() { Moment::ZERO } else { deadline }, clock.now(), &why)?;
            std::thread::sleep(RETRY);
        }
    }

    fn give_up_after(&self, deadline: Moment, now: Moment, why: &str) -> Result<(), ClusterError> {
        if now < deadline {
            return Ok(());
        }
        let said = format!("{why}; {}", self.home.log_tail());
        Err(ClusterError::Silent { seconds: self.limits.start_timeout.as_secs(), said })
    }

    fn launch(&self) -> Result<Child, ClusterError> {
        let log = self.home.log();
        let open = || File::options().create(true).append(true).open(log);
        let out = open().map_err(ClusterError::io("opening", log))?;
        let err = out.try_clone().map_err(ClusterError::io("opening", log))?;
        let mut command = self.home.command(&self.programs.path("postgres"));
        command.arg("-D").arg(self.home.cluster()).arg("-k").arg(self.home.socket_dir());
        for setting in self.settings {
            command.args(["-c", setting]);
        }
        if let Some(size) = self.shared_buffers_mb {
            command.arg("-c").arg(format!("shared_buffers={size}MB"));
        }
        // A process group of its own: Ctrl-C in a terminal is for the server, which stops the cluster in good order.
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        command.spawn().map_err(ClusterError::io("starting", &self.programs.path("postgres")))
    }

    fn connect(&self, database: &str) -> Result<Client, postgres::Error> {
        Target::socket(self.home.socket_dir(), USER, database).blocking().connect(NoTls)
    }
}

fn create_database(client: &mut Client) -> Result<(), ClusterError> {
    let told = |error: postgres::Error| ClusterError::Database(chain(&error));
    let found = client.query("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]).map_err(told)?;
    if found.is_empty() {
        client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).map_err(told)?;
    }
    Ok(())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!("the embedded PostgreSQL could not be stopped: {error}");
        }
    }
}

/// Makes the cluster under another name and renames it, so that one whose making was interrupted is made anew.
fn initialize(home: &Home, programs: &Programs) -> Result<(), ClusterError> {
    let unfinished = home.begin_cluster()?;
    log::info!(directory = home.cluster().display().to_string().as_str(); "making the embedded PostgreSQL cluster");
    let mut command = home.command(&programs.path("initdb"));
    command
        .args(["-U", USER, "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject", "-D"])
        .arg(&unfinished);
    if cfg!(test) {
        command.arg("--no-sync");
    }
    run("initdb", &mut command)?;
    fs::rename(&unfinished, home.cluster()).map_err(ClusterError::io("renaming", &unfinished))?;
    home.sync()
}

fn run(program: &'static str, command: &mut Command) -> Result<(), ClusterError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(ClusterError::io("running", Path::new(command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(ClusterError::Program { program, said })
}
