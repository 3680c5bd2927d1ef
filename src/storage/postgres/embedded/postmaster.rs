//! Finds the postmaster of the embedded cluster. No other process is signalled.
//!
//! A crash leaves `postmaster.pid` behind. After a reboot, the pid in it may belong to any process,
//! also to the postmaster of another cluster of the same user. A process is our postmaster only if
//! it runs in the directory of the cluster, and either it has started at the time in the file, or
//! it listens on the socket of the cluster.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// The name of the socket; its lock file has the same name with `.lock` appended.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";
const PID_FILE: &str = "postmaster.pid";
/// The difference between the start time in the pid file and that of the process: the postmaster
/// reads the clock after its start, and the clock may have been adjusted since.
const START_TOLERANCE_SECONDS: u64 = 5;

/// The directories that identify a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterIdentity<'a> {
    pub(super) cluster: &'a Path,
    pub(super) socket_dir: &'a Path,
}

/// The process that a pid file names.
#[derive(Debug)]
pub(super) enum PidFileOwner {
    /// There is no pid file, or its process has ended.
    Ended,
    /// The postmaster of the cluster.
    Postmaster(Postmaster),
    /// Another process has the pid now.
    OtherProcess,
    /// A postmaster that may be that of the cluster. It is neither signalled nor replaced.
    Unverified(Pid),
}

/// The running postmaster of the cluster.
#[derive(Debug)]
pub(super) struct Postmaster {
    pid: Pid,
    /// Refers to the process itself, so that a signal cannot reach a later process with its pid.
    /// None where the kernel has no pidfd.
    pidfd: Option<OwnedFd>,
}

impl Postmaster {
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let sent = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd, signal),
            None => kill_process(self.pid, signal),
        };
        match sent {
            // It has ended meanwhile.
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl ClusterIdentity<'_> {
    /// Returns the process that `postmaster.pid` names.
    pub(super) fn pid_file_owner(self) -> PidFileOwner {
        self.owner_of(&self.cluster.join(PID_FILE))
    }

    /// Removes `postmaster.pid` and the lock file of the socket where another process has their
    /// pid: PostgreSQL would refuse to start. It replaces the file of a process that has ended by
    /// itself. Without the file PostgreSQL still detects a process that uses the directory, by its
    /// shared memory, whose key is derived from the directory.
    pub(super) fn remove_stale_files(self) -> io::Result<()> {
        for path in [self.cluster.join(PID_FILE), self.socket_lock()] {
            if matches!(self.owner_of(&path), PidFileOwner::OtherProcess) {
                log::warn!(
                    file = path.display().to_string().as_str();
                    "removing a stale lock file of the embedded PostgreSQL: another process has its pid"
                );
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn socket_lock(self) -> PathBuf {
        self.socket_dir.join(format!("{SOCKET_NAME}.lock"))
    }

    fn owner_of(self, pid_file: &Path) -> PidFileOwner {
        let Some(file) = fs::read_to_string(pid_file).ok().and_then(|text| PidFile::parse(&text)) else {
            return PidFileOwner::Ended;
        };
        // Opened before the checks: a signal goes to the process that they are about, or to none.
        let pidfd = match pidfd_open(file.pid, PidfdFlags::empty()) {
            Ok(pidfd) => Some(pidfd),
            Err(rustix::io::Errno::SRCH) => return PidFileOwner::Ended,
            Err(_unsupported) => None,
        };
        let process = PathBuf::from(format!("/proc/{}", file.pid));
        let stat = fs::read_to_string(process.join("stat")).ok();
        let Some(stat) = stat.as_deref().and_then(ProcessStat::parse).filter(|stat| !stat.has_exited) else {
            return PidFileOwner::Ended;
        };
        if stat.name != "postgres" || self.has_directory(&process) == Some(false) {
            return PidFileOwner::OtherProcess;
        }
        if stat.has_started_at(file.started) || self.listener() == Some(file.pid) {
            PidFileOwner::Postmaster(Postmaster { pid: file.pid, pidfd })
        } else {
            PidFileOwner::Unverified(file.pid)
        }
    }

    /// Returns whether the process runs in the directory of the cluster, as every postmaster does
    /// in its own; None when that cannot be found out.
    fn has_directory(self, process: &Path) -> Option<bool> {
        let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        if let (Ok(of_process), Ok(of_cluster)) = (identity(&process.join("cwd")), identity(self.cluster)) {
            return Some(of_process == of_cluster);
        }
        // Root without CAP_SYS_PTRACE may not read the directory of another user's process. Its
        // arguments are public, and the server passes the directory as one of them.
        let arguments = fs::read(process.join("cmdline")).ok()?;
        let directory = self.cluster.as_os_str().as_encoded_bytes();
        Some(arguments.split(|byte| *byte == 0).any(|argument| argument == directory))
    }

    /// Returns the process that listens on the socket of the cluster.
    fn listener(self) -> Option<Pid> {
        let address = SocketAddrUnix::new(self.socket_dir.join(SOCKET_NAME)).ok()?;
        // Not blocking: a stopped postmaster accepts no connection.
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).ok()?;
        connect(&socket, &address).ok()?;
        sockopt::socket_peercred(&socket).ok().map(|credentials| credentials.pid)
    }
}

/// The first lines of `postmaster.pid` and of the lock file of a socket.
#[derive(Debug, PartialEq, Eq)]
struct PidFile {
    pid: Pid,
    /// Seconds since 1970.
    started: u64,
}

impl PidFile {
    /// Returns None for an incomplete file, and for that of a single-user session, whose pid is
    /// negative.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 0)?;
        let started = lines.nth(1)?.trim().parse().ok()?;
        Some(Self { pid: Pid::from_raw(pid)?, started })
    }
}

/// The fields of /proc/PID/stat that identify a process.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat<'a> {
    name: &'a str,
    has_exited: bool,
    /// The start of the process in clock ticks since the start of the machine.
    started_ticks: u64,
}

impl<'a> ProcessStat<'a> {
    fn parse(stat: &'a str) -> Option<Self> {
        // The name may contain parentheses and spaces.
        let (before, fields) = stat.rsplit_once(')')?;
        let (_pid, name) = before.split_once('(')?;
        let mut fields = fields.split_ascii_whitespace();
        let has_exited = matches!(fields.next()?, "Z" | "X");
        let started_ticks = fields.nth(18)?.parse().ok()?;
        Some(Self { name, has_exited, started_ticks })
    }

    fn has_started_at(&self, seconds: u64) -> bool {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let machine_started =
            stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        let since_start = self.started_ticks / rustix::param::clock_ticks_per_second();
        machine_started
            .is_some_and(|start| (start + since_start).abs_diff(seconds) <= START_TOLERANCE_SECONDS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_needs_pid_and_start_time() {
        let text = "4711\n/data/postgres\n1767268800\n5432\n/data/postgres\n\n  1234  56\nready   \n";
        let expected = PidFile { pid: Pid::from_raw(4711).unwrap(), started: 1_767_268_800 };
        assert_eq!(PidFile::parse(text), Some(expected));
        for text in ["", "4711\n", "4711\n/data\n", "-4711\n/data\n1\n", "0\n/data\n1\n", "x\n/data\n1\n"] {
            assert_eq!(PidFile::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn process_stat_is_parsed_after_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 98765 20";
        for name in ["postgres", "a) S 1 (b", "x y"] {
            let stat = format!("4711 ({name}) {fields}");
            let expected = ProcessStat { name, has_exited: false, started_ticks: 98_765 };
            assert_eq!(ProcessStat::parse(&stat), Some(expected));
        }
        assert!(
            ProcessStat::parse("1 (postgres) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1")
                .unwrap()
                .has_exited
        );
        assert_eq!(ProcessStat::parse("1 (postgres) S 1"), None);
    }

    #[test]
    fn own_process_has_started_at_its_start_time() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let stat = ProcessStat::parse(&stat).unwrap();
        let now = crate::clock::Clock::system().wall().millis() / 1000;
        let now = u64::try_from(now).unwrap();
        // A test ends within an hour of its start.
        assert!((now - 3_600..=now).any(|second| stat.has_started_at(second)));
        assert!(!stat.has_started_at(now - 86_400 * 365));
    }
}
