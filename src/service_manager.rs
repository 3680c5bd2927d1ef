//! The protocol of `sd_notify(3)`: reports the state of the server to the service manager (systemd),
//! and decides whether its watchdog is fed. `sockets` takes the sockets that it passes.
//!
//! It must not read the environment, which `settings` does, and must not know the stages.

mod sockets;

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

pub use sockets::{PassedSocket, TakeSocketError, take_listeners};

use crate::clock;

/// A handle to the socket of the service manager, for any thread. Without a socket its methods have
/// no effect.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager(Option<Arc<NotifySocket>>);

#[derive(Debug)]
struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl ServiceManager {
    /// `path` is the value of `NOTIFY_SOCKET`: a path, or `@` and the name of an abstract socket.
    pub fn connect(path: Option<&OsStr>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A service manager that does not read must not block the server.
        socket.set_nonblocking(true)?;
        Ok(Self(Some(Arc::new(NotifySocket { socket, address }))))
    }

    pub fn is_connected(&self) -> bool {
        self.0.is_some()
    }

    /// The start, or a reload, is complete.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_usec()));
    }

    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
    }

    /// A line for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={text}"));
    }

    /// Asks for `more` time, from now, to start or to stop.
    pub fn extend_timeout(&self, more: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", more.as_micros()));
    }

    pub fn feed_watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, state: &str) {
        let Some(notify) = &self.0 else { return };
        // The next message tells the same or more; a lost READY ends in the timeout of the start.
        if let Err(error) = notify.socket.send_to_addr(state.as_bytes(), &notify.address) {
            log::debug!("the service manager was not notified: {error}");
        }
    }
}

/// Decides whether the watchdog is fed.
///
/// Invariant: it is fed only if every thread has moved since it was fed last.
#[derive(Debug, Default)]
pub struct Watchdog {
    /// The turns of each thread when it was fed last.
    fed: Vec<u64>,
}

impl Watchdog {
    /// `turns` are the numbers of turns of the threads, in a constant order. Returns the index of a
    /// thread that has not moved.
    pub fn check(&mut self, turns: &[u64]) -> Result<(), usize> {
        if let Some(stuck) = self.fed.iter().zip(turns).position(|(fed, now)| fed == now) {
            return Err(stuck);
        }
        self.fed = turns.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_fed_only_if_every_thread_has_moved_since_it_was_fed_last() {
        let mut watchdog = Watchdog::default();
        for (turns, result) in [
            ([0, 0], Ok(())),
            ([1, 0], Err(1)),
            ([2, 0], Err(1)),
            // One thread need not have moved since the last check.
            ([2, 1], Ok(())),
            ([2, 2], Err(0)),
            ([3, 3], Ok(())),
        ] {
            assert_eq!(watchdog.check(&turns), result, "{turns:?}");
        }
        assert_eq!(Watchdog::default().check(&[]), Ok(()));
    }

    #[test]
    fn messages_reach_a_socket_with_a_path_and_an_abstract_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let name = format!("@aurore-events-test-{}", std::process::id());
        let named = UnixDatagram::bind(&path).unwrap();
        let address = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let unnamed = UnixDatagram::bind_addr(&address).unwrap();
        for (socket, path) in [(named, path.as_os_str()), (unnamed, OsStr::new(&name))] {
            let manager = ServiceManager::connect(Some(path)).unwrap();
            manager.extend_timeout(Duration::from_secs(2));
            let mut text = [0; 100];
            let length = socket.recv(&mut text).unwrap();
            assert_eq!(&text[..length], b"EXTEND_TIMEOUT_USEC=2000000");
        }
        // It is gone.
        ServiceManager::connect(Some(path.as_os_str())).unwrap().ready();
        ServiceManager::connect(None).unwrap().ready();
        assert!(ServiceManager::connect(Some(OsStr::new("/x\0y"))).is_err());
    }
}
