//! Child processes that end with the test, even when the test is killed.

use std::ffi::OsStr;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::wait::until_within;

/// A command whose process gets `signal` when the spawning thread dies (`PR_SET_PDEATHSIG`), so
/// that even a killed test leaves no process behind. setpriv replaces itself by `exec`, so the
/// process id is that of the program.
pub(crate) fn pdeathsig_command(signal: &str, user: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command.arg("--").arg(program).stdin(Stdio::null());
    command
}

/// Sends a signal with the built-in `kill` of the shell, which needs no package. A process that has
/// just ended is not an error, since every caller waits for the end next.
pub(crate) fn signal(name: &str, pid: u32) {
    Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stderr(Stdio::null())
        .status()
        .expect("sh runs");
}

/// Waits for a child to end.
#[track_caller]
pub(crate) fn exit_within(timeout: Duration, what: &str, child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    until_within(timeout, &format!("{what} ends"), || {
        status = child.try_wait().expect("a child can be waited for");
        status.is_some()
    });
    status.expect("the wait ended with a status")
}

/// Whether a process of this id runs. A zombie does not count.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// Whether the tests run as root. PostgreSQL does not run as root.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Reports a part of a test that cannot run for want of a program. It fails where `REQUIRE_PROGRAMS` is
/// set, as in `scripts/test`, which installs them.
#[track_caller]
pub(crate) fn not_tried(missing: &str) {
    assert!(std::env::var_os("REQUIRE_PROGRAMS").is_none(), "{missing}");
    eprintln!("NOT TRIED: {missing}");
}
