//! The variables that systemd sets for a service. They are no settings: no flag and no file has
//! them.

use std::ffi::OsString;
use std::time::Duration;

use crate::service_manager::PassedSocket;

/// The first descriptor that is passed, `SD_LISTEN_FDS_START`.
const PASSED_START: i32 = 3;
/// More descriptors than a service has sockets.
const PASSED_MAX: i32 = 4096;

/// The environment of a service of systemd; empty without systemd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemdEnvironment {
    /// Where to send the messages of `sd_notify(3)`.
    pub notify_socket: Option<OsString>,
    /// The timeout of the watchdog, `sd_watchdog_enabled(3)`.
    pub watchdog_timeout: Option<Duration>,
    /// The descriptors that are passed, `sd_listen_fds(3)`.
    pub passed_sockets: Vec<PassedSocket>,
    /// Device and inode of the journal's stream, `DEVICE:INODE`.
    pub journal_stream: Option<String>,
}

impl SystemdEnvironment {
    pub(super) fn read() -> Self {
        let text = |name| std::env::var_os(name).and_then(|value| value.into_string().ok());
        Self {
            notify_socket: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()),
            watchdog_timeout: watchdog_timeout(
                text("WATCHDOG_USEC").as_deref(),
                text("WATCHDOG_PID").as_deref(),
                std::process::id(),
            ),
            passed_sockets: passed_sockets(
                text("LISTEN_FDS").as_deref(),
                text("LISTEN_PID").as_deref(),
                text("LISTEN_FDNAMES").as_deref(),
                std::process::id(),
            ),
            journal_stream: text("JOURNAL_STREAM"),
        }
    }
}

/// The watchdog is for the process `pid` only, not for those that inherit its environment.
fn watchdog_timeout(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    let is_own = pid.is_none_or(|pid| pid.parse() == Ok(own_pid));
    let usec = usec?.parse().ok().filter(|usec| is_own && *usec > 0)?;
    Some(Duration::from_micros(usec))
}

/// The descriptors are for the process `pid` only, as the watchdog is. A missing name is that of
/// systemd for descriptors without one.
fn passed_sockets(
    count: Option<&str>,
    pid: Option<&str>,
    names: Option<&str>,
    own_pid: u32,
) -> Vec<PassedSocket> {
    if pid.is_none_or(|pid| pid.parse() != Ok(own_pid)) {
        return Vec::new();
    }
    let count = count.and_then(|count| count.parse::<i32>().ok()).unwrap_or(0).clamp(0, PASSED_MAX);
    let mut names = names.unwrap_or_default().split(':');
    (PASSED_START..PASSED_START + count)
        .map(|descriptor| {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
            PassedSocket { descriptor, name: name.to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_for_their_own_process_and_have_names() {
        for (count, pid, names, sockets) in [
            (Some("2"), Some("7"), Some("a.socket:b"), &[(3, "a.socket"), (4, "b")][..]),
            (Some("2"), Some("7"), Some("a"), &[(3, "a"), (4, "unknown")]),
            (Some("1"), Some("7"), None, &[(3, "unknown")]),
            (Some("1"), Some("8"), Some("a"), &[]),
            (Some("1"), None, Some("a"), &[]),
            (None, Some("7"), None, &[]),
            (Some("-1"), Some("7"), None, &[]),
            (Some("x"), Some("7"), None, &[]),
        ] {
            let passed = passed_sockets(count, pid, names, 7);
            let passed: Vec<_> =
                passed.iter().map(|socket| (socket.descriptor, socket.name.as_str())).collect();
            assert_eq!(passed, sockets, "{count:?} {pid:?} {names:?}");
        }
        assert_eq!(passed_sockets(Some("100000"), Some("7"), None, 7).len(), 4096);
    }

    #[test]
    fn the_watchdog_is_for_its_own_process() {
        for (usec, pid, timeout) in [
            (None, None, None),
            (Some("2000000"), None, Some(2)),
            (Some("2000000"), Some("7"), Some(2)),
            (Some("2000000"), Some("8"), None),
            (Some("2000000"), Some("x"), None),
            (Some("0"), Some("7"), None),
            (Some("-1"), None, None),
        ] {
            assert_eq!(watchdog_timeout(usec, pid, 7), timeout.map(Duration::from_secs), "{usec:?} {pid:?}");
        }
    }
}
