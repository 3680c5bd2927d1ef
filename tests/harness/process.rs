//! Child processes that end with the test, however it ends.

use std::ffi::OsStr;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::wait::until_within;

/// A command whose process gets `signal` when the thread that spawned it dies, so that not even a killed test
/// leaves it behind. (setpriv replaces itself by the program: the process id is the program's own.)
pub(crate) fn bound_command(signal: &str, user: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", signal]);
    if let Some(user) = user {
        command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
    }
    command.arg("--").arg(program).stdin(Stdio::null());
    command
}

/// Sends a signal. The shell's own `kill` is there on every machine. That the process has just ended is no
/// failure: whoever sends waits for the end next.
pub(crate) fn signal(name: &str, pid: u32) {
    Command::new("sh")
        .args(["-c", &format!("kill -{name} {pid}")])
        .stderr(Stdio::null())
        .status()
        .expect("sh runs");
}

/// Waits for the end of a child.
#[track_caller]
pub(crate) fn exit_within(most: Duration, what: &str, child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    until_within(most, &format!("{what} ends"), || {
        status = child.try_wait().expect("a child can be waited for");
        status.is_some()
    });
    status.expect("the wait ended because there is a status")
}

/// Whether a process of this id runs. One that has ended and was not waited for does not.
pub(crate) fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// Whether the tests run as root, which PostgreSQL refuses to do.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
