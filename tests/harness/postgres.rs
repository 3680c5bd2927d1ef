//! A private PostgreSQL cluster that a test may stop, crash and restart.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::types::FromSqlOwned;
use postgres::{Client, NoTls, Row};

use super::process::{exit_within, is_root, pdeathsig_command, signal};
use super::temp::temp_dir;
use super::wait::until;

const MISSING: &str = "these tests need PostgreSQL 14 or later, and none was found. On Debian: \
                       apt-get install postgresql (its programs are enough, no cluster needs to run)";
/// Below the kernel's range of ephemeral ports: while the database is down, no other process may
/// get its port, and a connecting client may not connect to itself.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The cluster: user `postgres` over a unix socket for the test, user and owner `aurore` of the
/// database `aurore` over TCP for the server. `fsync` is off, since no test cuts the power.
pub(crate) struct Postgres {
    port: u16,
    process: Option<Child>,
    dir: tempfile::TempDir,
    /// Additional settings, as `name=value`.
    extra_settings: &'static [&'static str],
}

impl Postgres {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(extra_settings: &'static [&'static str]) -> Self {
        let dir = owned_temp_dir();
        let mut initdb = pdeathsig_command("KILL", user(), program("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C"]);
        run(initdb.arg("-D").arg(dir.path().join("data")), "initdb failed");
        let this = Self::launch(dir, extra_settings);
        let mut client = this.connect("postgres");
        client.batch_execute("CREATE ROLE aurore LOGIN").expect("the role can be made");
        client.batch_execute("CREATE DATABASE aurore OWNER aurore").expect("the database can be made");
        this
    }

    /// Starts a hot standby: a copy of the primary at this port, which it follows through the same
    /// port. The server's role and database are copied with it.
    pub(crate) fn start_standby(primary: u16, extra_settings: &'static [&'static str]) -> Self {
        let dir = owned_temp_dir();
        let mut backup = pdeathsig_command("KILL", user(), program("pg_basebackup"));
        backup.args(["--no-sync", "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"]);
        backup.arg(format!("--dbname=host=127.0.0.1 port={primary} user=postgres application_name=standby"));
        run(backup.arg("-D").arg(dir.path().join("data")), "pg_basebackup failed");
        Self::launch(dir, extra_settings)
    }

    /// Makes a standby that is stopped start as a primary, on its timeline.
    pub(crate) fn forget_primary(&self) {
        fs::remove_file(self.dir.path().join("data/standby.signal")).expect("it is a standby");
    }

    fn launch(dir: tempfile::TempDir, extra_settings: &'static [&'static str]) -> Self {
        let mut this = Self { port: free_port(), process: None, dir, extra_settings };
        while !this.try_launch() {
            this.port = free_port();
        }
        this
    }

    /// The `DATABASE_URL` of the server.
    pub(crate) fn url(&self) -> String {
        format!("postgresql://aurore@127.0.0.1:{}/aurore", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The `DATABASE_URL` of a server that connects through `port` with this password.
    pub(crate) fn url_through(port: u16, password: &str) -> String {
        format!("postgresql://aurore:{password}@127.0.0.1:{port}/aurore?sslmode=disable")
    }

    /// Creates a directory that belongs to the user of PostgreSQL.
    pub(crate) fn make_directory(path: &Path) {
        fs::create_dir(path).expect("it can be made");
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(path), "chown failed");
        }
    }

    /// Requires a password for TCP connections from now on.
    pub(crate) fn require_password(&self) {
        let rules = "local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(self.dir.path().join("data/pg_hba.conf"), rules).expect("the rules can be written");
        self.execute("SELECT pg_reload_conf()");
    }

    /// Terminates the sessions of the server.
    pub(crate) fn terminate_sessions(&self) {
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'aurore'");
    }

    pub(crate) fn stop_fast(&mut self) {
        self.stop("INT");
    }

    /// Stops like a crash: no checkpoint, connections closed, recovery at the next start.
    pub(crate) fn stop_immediate(&mut self) {
        self.stop("QUIT");
    }

    /// Starts the database again on the same port. The calling thread must outlive the database.
    pub(crate) fn restart(&mut self) {
        assert!(self.process.is_none(), "BUG: the database runs already");
        assert!(self.try_launch(), "the database does not restart:\n{}", self.log());
    }

    /// A session of the superuser.
    pub(crate) fn client(&self) -> Client {
        self.connect("aurore")
    }

    #[track_caller]
    pub(crate) fn execute(&self, sql: &str) {
        // A change of the tables may meet a transaction of the server.
        let is_deadlock = |error: &postgres::Error| error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED);
        loop {
            match self.client().batch_execute(sql) {
                Ok(()) => return,
                Err(error) if is_deadlock(&error) => {}
                Err(error) => panic!("{sql}: {error:?}"),
            }
        }
    }

    #[track_caller]
    pub(crate) fn rows(&self, sql: &str) -> Vec<Row> {
        self.client().query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The one value of a query.
    #[track_caller]
    pub(crate) fn value<T: FromSqlOwned>(&self, sql: &str) -> T {
        let rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "{sql}");
        rows[0].get(0)
    }

    /// The number of rows in `events`.
    #[track_caller]
    pub(crate) fn stored(&self) -> i64 {
        self.value("SELECT count(*) FROM events")
    }

    #[track_caller]
    pub(crate) fn dead(&self) -> i64 {
        self.value("SELECT count(*) FROM dead_events")
    }

    fn connect(&self, database: &str) -> Client {
        postgres::Config::new()
            .host_path(self.dir.path())
            .port(self.port)
            .user("postgres")
            .dbname(database)
            .connect(NoTls)
            .expect("the test's own session opens")
    }

    /// Whether the database came up; false when its port is taken.
    fn try_launch(&mut self) -> bool {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"));
        let log = log.expect("the log can be written");
        let mut command = pdeathsig_command("QUIT", user(), program("postgres"));
        command.arg("-D").arg(self.dir.path().join("data"));
        for setting in [
            "listen_addresses=127.0.0.1",
            &format!("port={}", self.port),
            &format!("unix_socket_directories={}", self.dir.path().display()),
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=32MB",
            "max_connections=60",
            "logging_collector=off",
        ] {
            command.args(["-c", setting]);
        }
        for setting in self.extra_settings {
            command.args(["-c", setting]);
        }
        let out = log.try_clone().expect("a file handle can be copied");
        let mut process = command.stdout(out).stderr(log).spawn().expect("setpriv (util-linux) runs");
        let mut up = false;
        until("PostgreSQL answers", || {
            up = postgres::Config::new()
                .host_path(self.dir.path())
                .port(self.port)
                .user("postgres")
                .dbname("postgres")
                .connect(NoTls)
                .is_ok();
            up || process.try_wait().expect("a child can be waited for").is_some()
        });
        self.process = up.then_some(process);
        up
    }

    fn stop(&mut self, how: &str) {
        let mut process = self.process.take().expect("BUG: the database is stopped already");
        signal(how, process.id());
        exit_within(Duration::from_secs(30), "PostgreSQL", &mut process);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.stop("QUIT");
        }
    }
}

pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Tests run in separate processes: each begins at another port.
    let begin = u16::try_from(std::process::id() % 1200).expect("a remainder of 1,200 fits") * 10;
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + (begin + step) % (PORTS.end - PORTS.start);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A temporary directory that belongs to the user of PostgreSQL.
fn owned_temp_dir() -> tempfile::TempDir {
    let dir = temp_dir();
    if is_root() {
        run(Command::new("chown").arg("postgres").arg(dir.path()), MISSING);
    }
    dir
}

fn user() -> Option<&'static str> {
    is_root().then_some("postgres")
}

/// Finds a program of PostgreSQL: in PATH, in the directory of `pg_config`, or in Debian's
/// directories (the newest version).
pub(crate) fn program(name: &str) -> PathBuf {
    let mut dirs: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    if let Ok(output) = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output() {
        dirs.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    packaged.sort_unstable();
    dirs.extend(packaged.into_iter().rev().map(|(_, dir)| dir));
    let found = dirs.iter().map(|dir| dir.join(name)).find(|path: &PathBuf| Path::is_file(path));
    found.unwrap_or_else(|| panic!("{MISSING}"))
}

fn run(command: &mut Command, otherwise: &str) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{otherwise}\n{command:?}: {stderr}");
}
