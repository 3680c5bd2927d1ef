//! Accepts connections from the listeners of an acceptor and handles exhausted file descriptors. Must not depend on
//! requests.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use super::encode::closing_response;
use super::problem::ProblemKind;
use crate::clock::Moment;

/// Pause after a failed accept(2). Closing connections frees descriptors; retrying in a loop would
/// take the CPU from them.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// `ENFILE` and `EMFILE`, the same on all systems this runs on.
const OUT_OF_DESCRIPTORS: [i32; 2] = [23, 24];

/// The outcome of one accept(2).
#[derive(Debug)]
pub(super) enum Accepted {
    Connection(TcpStream, IpAddr),
    /// No connection is waiting.
    WouldBlock,
    /// accept(2) failed; accepting pauses for [`RETRY_DELAY`].
    Failed,
}

/// Invariant: `spare_descriptor` is open, except after descriptors ran out and until it can be
/// reopened.
#[derive(Debug)]
pub(super) struct AcceptQueue {
    /// Empty once closed. All have the token of the queue.
    listeners: Vec<TcpListener>,
    /// The listener to accept from next, modulo their number: a busy one must not starve the others.
    next: usize,
    /// A reserved descriptor. Closing it lets one waiting client be accepted and sent a 503.
    spare_descriptor: Option<File>,
    paused_until: Option<Moment>,
    /// Consecutive failures. The first one and the recovery are logged.
    failures: u64,
    /// Connections may be waiting: since the last readiness event, not every listener has returned
    /// `WouldBlock`.
    pending: bool,
}

impl AcceptQueue {
    pub(super) fn new(
        listeners: Vec<std::net::TcpListener>,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        let register = |listener: std::net::TcpListener| {
            listener.set_nonblocking(true)?;
            let mut listener = TcpListener::from_std(listener);
            registry.register(&mut listener, token, Interest::READABLE)?;
            Ok(listener)
        };
        Ok(Self {
            listeners: listeners.into_iter().map(register).collect::<io::Result<_>>()?,
            next: 0,
            spare_descriptor: open_spare(),
            paused_until: None,
            failures: 0,
            pending: true,
        })
    }

    pub(super) fn mark_pending(&mut self) {
        self.pending = true;
    }

    /// Whether [`AcceptQueue::accept`] may return a connection now.
    pub(super) fn is_pending(&self) -> bool {
        self.pending && !self.listeners.is_empty() && self.paused_until.is_none()
    }

    pub(super) fn paused_until(&self) -> Option<Moment> {
        self.paused_until
    }

    pub(super) fn resume_at(&mut self, now: Moment) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            if self.spare_descriptor.is_none() {
                self.spare_descriptor = open_spare();
            }
        }
    }

    /// Closes the listeners. Another process may have them open too, so that closing alone would leave
    /// them registered with `registry`.
    pub(super) fn close(&mut self, registry: &Registry) {
        for mut listener in self.listeners.drain(..) {
            if let Err(error) = registry.deregister(&mut listener) {
                log::debug!("deregistering a listener failed: {error}");
            }
        }
    }

    pub(super) fn accept(&mut self, now: Moment) -> Accepted {
        let mut blocked = 0;
        while blocked < self.listeners.len() {
            let nth = self.next % self.listeners.len();
            match self.listeners[nth].accept() {
                Ok((stream, peer)) => {
                    self.next = nth + 1;
                    if self.failures > 0 {
                        log::info!("accepting connections works again after {} failures", self.failures);
                        self.failures = 0;
                    }
                    return Accepted::Connection(stream, peer.ip().to_canonical());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.next = nth + 1;
                    blocked += 1;
                }
                // The peer closed the connection while it was queued.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.on_accept_error(nth, &error, now);
                    return Accepted::Failed;
                }
            }
        }
        self.pending = false;
        Accepted::WouldBlock
    }

    fn on_accept_error(&mut self, nth: usize, error: &io::Error, now: Moment) {
        if self.failures == 0 {
            log::error!(
                "accepting connections failed, retrying every {} ms: {error}",
                RETRY_DELAY.as_millis()
            );
        }
        self.failures += 1;
        self.paused_until = Some(now.plus(RETRY_DELAY));
        let out = error.raw_os_error().is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code));
        if out && self.spare_descriptor.take().is_some() {
            if let Ok((stream, _)) = self.listeners[nth].accept() {
                reject(stream);
            }
            self.spare_descriptor = open_spare();
        }
    }
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Sends a 503 without blocking and closes the connection.
pub(super) fn reject(mut stream: TcpStream) {
    // If the socket buffer does not take these few bytes at once, the client gets no response.
    if stream.write_all(&closing_response(ProblemKind::Unavailable, "there are too many connections")).is_ok()
    {
        stream.shutdown(Shutdown::Write).ok();
    }
}
