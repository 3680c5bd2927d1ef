//! The embedded PostgreSQL: a private cluster in the data directory, used when `DATABASE_URL` is
//! not set.
//!
//! The cluster listens on a Unix socket only, runs as an unprivileged user, and starts and stops
//! with the server. A cluster that a killed server left running is adopted; no other process is
//! signalled. No setting weakens durability.
//!
//! `programs` finds PostgreSQL's programs, `paths` prepares the directories and their owner,
//! `postmaster` identifies the running postmaster, `supervisor` restarts the postmaster after an unexpected exit.

mod paths;
mod postmaster;
mod programs;
mod supervisor;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};

use self::paths::ClusterPaths;
use self::postmaster::PidFileOwner;
use self::programs::Programs;
pub use self::supervisor::ClusterSupervisor;
use super::error::error_chain;
use super::target::ConnectTarget;
use crate::clock::{Clock, Moment};

/// The names of the database and of its superuser. Only the owner of the directory and root can
/// connect to the socket.
const DATABASE: &str = "aurore_events";
const USER: &str = "postgres";

/// The interval of connection attempts while the cluster starts. A failed attempt costs a few
/// system calls.
const RETRY: Duration = Duration::from_millis(10);

/// The settings that differ from PostgreSQL's defaults, plus those that durability requires:
/// `fsync`, `synchronous_commit` and `full_page_writes` are explicit, since acknowledgements depend
/// on them. The others suit a stream of large inserts: fewer checkpoints, no JIT for queries of
/// milliseconds.
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
    // A backend that must evict a dirty buffer waits for a WAL sync, so the background writer keeps
    // buffers clean.
    "bgwriter_delay=20ms",
    "bgwriter_lru_maxpages=1000",
    "bgwriter_lru_multiplier=4",
];

/// PostgreSQL compresses a row of more than 2 KB. With lz4 an event of 16 KB takes a fifth of the CPU
/// that it takes with pglz, the default, and a third more of the disk.
const COMPRESS_WITH_LZ4: &str = "ALTER DATABASE aurore_events SET default_toast_compression = 'lz4'";

/// Returns `shared_buffers` in megabytes: an eighth of the memory, between 128 and 2,048.
fn shared_buffers_mb() -> u64 {
    const FRACTION: u64 = 8;
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let total_kb = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    // The memory limit of a container may be lower than the machine's memory.
    let limit_kb = read("/sys/fs/cgroup/memory.max").trim().parse::<u64>().ok().map(|bytes| bytes / 1024);
    let memory_kb = [total_kb, limit_kb].into_iter().flatten().min().unwrap_or(0);
    (memory_kb / 1024 / FRACTION).clamp(128, 2048)
}

/// Time limits of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct ClusterLimits {
    /// The time until the cluster accepts connections, including crash recovery.
    pub start_timeout: Duration,
    /// The time of a fast shutdown, after which an immediate one follows.
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
        "DATABASE_URL is not set and no PostgreSQL (14 or later) was found on this machine: install it \
         (Debian and Ubuntu: apt-get install postgresql) or set DATABASE_URL"
    )]
    NotInstalled,
    #[error(
        "{directory} was created by PostgreSQL {cluster_version}, but only PostgreSQL {installed} is installed: \
         install version {cluster_version} or migrate the data with pg_upgrade"
    )]
    VersionMismatch { directory: PathBuf, cluster_version: String, installed: String },
    #[error(
        "PostgreSQL has to run as the user {user}, which has no search permission on {directory}: \
         chmod o+x {directory}, or choose another DATA_DIR, or set DATABASE_URL"
    )]
    NotTraversable { user: String, directory: PathBuf },
    #[error(
        "PostgreSQL does not run as root, and neither the user postgres nor nobody exists: set DATABASE_URL"
    )]
    NoUnprivilegedUser,
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{program} failed: {detail}")]
    ProgramFailed { program: &'static str, detail: String },
    #[error("{0} belongs to another user or is accessible to others, so it must not hold the socket")]
    UnsafeSocketDirectory(PathBuf),
    #[error("the embedded PostgreSQL did not accept connections within {seconds} s: {detail}")]
    NotReady { seconds: u64, detail: String },
    #[error("the embedded PostgreSQL did not stop within {seconds} s")]
    NotStopped { seconds: u64 },
    #[error(
        "postmaster.pid of the embedded PostgreSQL names the process {pid}, which may be its postmaster \
         and does not answer: stop it, or remove the file if it is another process"
    )]
    UnverifiedPostmaster { pid: i32 },
    #[error("the embedded PostgreSQL: {0}")]
    Database(String),
}

impl ClusterError {
    fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }
}

/// A running cluster. Drop stops it, unless [`Cluster::stop`] did.
#[derive(Debug)]
pub struct Cluster {
    paths: ClusterPaths,
    programs: Programs,
    limits: ClusterLimits,
    settings: &'static [&'static str],
    /// None for PostgreSQL's default.
    shared_buffers_mb: Option<u64>,
    /// The postmaster process; None when it was adopted or has been stopped.
    child: Option<Child>,
    running: bool,
}

impl Cluster {
    /// Initializes the cluster in `data_dir`/postgres if it does not exist, then starts or adopts
    /// it.
    pub fn start(data_dir: &Path, limits: ClusterLimits, clock: &Clock) -> Result<Self, ClusterError> {
        Self::start_with_buffers(data_dir, limits, clock, SETTINGS, Some(shared_buffers_mb()))
    }

    /// Starts the cluster with the settings of a test.
    #[cfg(test)]
    pub(super) fn start_with(
        data_dir: &Path,
        limits: ClusterLimits,
        clock: &Clock,
        settings: &'static [&'static str],
    ) -> Result<Self, ClusterError> {
        Self::start_with_buffers(data_dir, limits, clock, settings, None)
    }

    fn start_with_buffers(
        data_dir: &Path,
        limits: ClusterLimits,
        clock: &Clock,
        settings: &'static [&'static str],
        shared_buffers_mb: Option<u64>,
    ) -> Result<Self, ClusterError> {
        let paths = ClusterPaths::prepare(data_dir)?;
        let programs = Programs::find(&paths)?;
        if !paths.exists() {
            initialize(&paths, &programs)?;
        }
        let mut cluster =
            Self { paths, programs, limits, settings, shared_buffers_mb, child: None, running: true };
        let mut client = cluster.wait_until_ready(clock, &|| false)?;
        create_database(&mut client)?;
        Ok(cluster)
    }

    /// Returns the connection parameters of the cluster of a running server. Starts nothing.
    pub fn running_target(data_dir: &Path) -> Result<ConnectTarget, ClusterError> {
        Ok(ConnectTarget::unix_socket(ClusterPaths::prepare(data_dir)?.socket_dir(), USER, DATABASE))
    }

    /// Returns the connection parameters.
    pub fn target(&self) -> ConnectTarget {
        ConnectTarget::unix_socket(self.paths.socket_dir(), USER, DATABASE)
    }

    /// Returns the path of PostgreSQL's log.
    pub fn log_path(&self) -> &Path {
        self.paths.log()
    }

    /// Stops the cluster with a fast shutdown, which rolls back open transactions; after the
    /// timeout with an immediate one, after which the next start runs crash recovery.
    pub fn stop(mut self) -> Result<(), ClusterError> {
        self.shut_down()
    }

    /// Returns true while the postmaster runs.
    fn is_running(&mut self) -> bool {
        match &mut self.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => self.is_pid_file_held(),
        }
    }

    /// Whether `postmaster.pid` names a process that is or may be the postmaster.
    fn is_pid_file_held(&self) -> bool {
        match self.paths.identity().pid_file_owner() {
            PidFileOwner::Postmaster(_) | PidFileOwner::Unverified(_) => true,
            PidFileOwner::Ended | PidFileOwner::OtherProcess => false,
        }
    }

    /// Restarts the postmaster after it has exited, and waits until it accepts connections.
    fn restart(&mut self, clock: &Clock, is_stopped: &dyn Fn() -> bool) -> Result<(), ClusterError> {
        self.child = None;
        self.running = true;
        self.wait_until_ready(clock, is_stopped).map(drop)
    }

    fn shut_down(&mut self) -> Result<(), ClusterError> {
        if !std::mem::take(&mut self.running) {
            return Ok(());
        }
        self.signal_and_wait(Signal::INT).or_else(|error| {
            log::warn!("the embedded PostgreSQL did not stop in time; stopping it immediately: {error}");
            self.signal_and_wait(Signal::QUIT)
        })
    }

    /// Signals the postmaster, and waits for its end up to the stop timeout.
    fn signal_and_wait(&mut self, signal: Signal) -> Result<(), ClusterError> {
        let to_error = ClusterError::io("stopping", self.paths.cluster());
        match &self.child {
            // A child that was not waited for keeps its pid, also after its end.
            Some(child) => {
                kill_process(Pid::from_child(child), signal).map_err(|error| to_error(error.into()))?;
            }
            None => match self.paths.identity().pid_file_owner() {
                PidFileOwner::Postmaster(postmaster) => postmaster.signal(signal).map_err(to_error)?,
                PidFileOwner::Unverified(pid) => {
                    return Err(ClusterError::UnverifiedPostmaster { pid: pid.as_raw_nonzero().get() });
                }
                PidFileOwner::Ended | PidFileOwner::OtherProcess => return Ok(()),
            },
        }
        for _ in 0..self.limits.stop_timeout.as_millis().div_ceil(RETRY.as_millis()) {
            if !self.is_running() {
                return Ok(());
            }
            std::thread::sleep(RETRY);
        }
        Err(ClusterError::NotStopped { seconds: self.limits.stop_timeout.as_secs() })
    }

    /// Retries to connect, and starts the postmaster when none runs, until a connection succeeds,
    /// the start timeout expires or `is_stopped` returns true.
    fn wait_until_ready(
        &mut self,
        clock: &Clock,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<Client, ClusterError> {
        let deadline = clock.now().plus(self.limits.start_timeout);
        loop {
            let last_error = match self.connect("postgres") {
                Ok(client) => return Ok(client),
                Err(error) => error_chain(&error),
            };
            let exit_status = match &mut self.child {
                Some(child) => {
                    child.try_wait().map_err(ClusterError::io("waiting for", self.paths.cluster()))?
                }
                None => None,
            };
            if let Some(status) = exit_status {
                self.child = None;
                // A postmaster that is shutting down still holds the directory: wait for its exit.
                if !self.is_pid_file_held() {
                    self.running = false;
                    let detail = format!("{status}: {}", self.paths.log_tail());
                    return Err(ClusterError::ProgramFailed { program: "postgres", detail });
                }
            } else if self.child.is_none() && !self.is_pid_file_held() {
                self.paths
                    .identity()
                    .remove_stale_files()
                    .map_err(ClusterError::io("removing a lock file of", self.paths.cluster()))?;
                self.child = Some(self.spawn_postmaster()?);
            }
            self.check_deadline(
                if is_stopped() { Moment::ZERO } else { deadline },
                clock.now(),
                &last_error,
            )?;
            std::thread::sleep(RETRY);
        }
    }

    fn check_deadline(&self, deadline: Moment, now: Moment, last_error: &str) -> Result<(), ClusterError> {
        if now < deadline {
            return Ok(());
        }
        let detail = format!("{last_error}; {}", self.paths.log_tail());
        Err(ClusterError::NotReady { seconds: self.limits.start_timeout.as_secs(), detail })
    }

    fn spawn_postmaster(&self) -> Result<Child, ClusterError> {
        let log = self.paths.log();
        // Error messages of PostgreSQL may contain rows.
        let open = || File::options().create(true).append(true).mode(0o600).open(log);
        let out = open().map_err(ClusterError::io("opening", log))?;
        let err = out.try_clone().map_err(ClusterError::io("opening", log))?;
        let mut command = self.paths.command(&self.programs.path("postgres"));
        command.arg("-D").arg(self.paths.cluster()).arg("-k").arg(self.paths.socket_dir());
        for setting in self.settings {
            command.args(["-c", setting]);
        }
        if let Some(size) = self.shared_buffers_mb {
            command.arg("-c").arg(format!("shared_buffers={size}MB"));
        }
        // A separate process group: Ctrl-C in a terminal signals only the server, which then shuts
        // the cluster down.
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        command.spawn().map_err(ClusterError::io("starting", &self.programs.path("postgres")))
    }

    fn connect(&self, database: &str) -> Result<Client, postgres::Error> {
        ConnectTarget::unix_socket(self.paths.socket_dir(), USER, database)
            .to_blocking_config()
            .connect(NoTls)
    }
}

fn create_database(client: &mut Client) -> Result<(), ClusterError> {
    let to_error = |error: postgres::Error| ClusterError::Database(error_chain(&error));
    let found =
        client.query("SELECT 1 FROM pg_database WHERE datname = $1", &[&DATABASE]).map_err(to_error)?;
    if found.is_empty() {
        client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).map_err(to_error)?;
        // A setting of the database and not of the command line, since PostgreSQL would not start
        // with it where it was built without lz4.
        if let Err(error) = client.batch_execute(COMPRESS_WITH_LZ4) {
            log::debug!("large events are compressed with pglz: {}", error_chain(&error));
        }
    }
    Ok(())
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            log::error!("cannot stop the embedded PostgreSQL: {error}");
        }
    }
}

/// Initializes the cluster in a temporary directory and renames it, so that an interrupted
/// initialization starts over.
fn initialize(paths: &ClusterPaths, programs: &Programs) -> Result<(), ClusterError> {
    let unfinished = paths.create_unfinished_dir()?;
    log::info!(
        directory = paths.cluster().display().to_string().as_str();
        "initializing the embedded PostgreSQL cluster"
    );
    let mut command = paths.command(&programs.path("initdb"));
    command
        .args(["-U", USER, "-E", "UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject", "-D"])
        .arg(&unfinished);
    if cfg!(test) {
        command.arg("--no-sync");
    }
    run("initdb", &mut command)?;
    fs::rename(&unfinished, paths.cluster()).map_err(ClusterError::io("renaming", &unfinished))?;
    paths.sync_data_dir()
}

fn run(program: &'static str, command: &mut Command) -> Result<(), ClusterError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(ClusterError::io("running", Path::new(command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    let detail = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(ClusterError::ProgramFailed { program, detail })
}
