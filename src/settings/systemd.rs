//! The variables that systemd sets for a service. They are no settings: no flag and no file has
//! them.

use std::ffi::OsString;
use std::time::Duration;

/// The environment of a service of systemd; empty without systemd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemdEnvironment {
    /// Where to send the messages of `sd_notify(3)`.
    pub notify_socket: Option<OsString>,
    /// The timeout of the watchdog, `sd_watchdog_enabled(3)`.
    pub watchdog_timeout: Option<Duration>,
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

#[cfg(test)]
mod tests {
    use super::*;

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
