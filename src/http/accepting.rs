//! Taking connections off a listener: how many at once, and what to do when the process has no descriptor left.
//! Knows nothing of requests.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use crate::clock::Moment;

/// How long accepting rests when it fails for want of a resource. Closing connections gives descriptors back;
/// trying all the time would take the core from them.
const PAUSE: Duration = Duration::from_millis(100);
/// `ENFILE` and `EMFILE`, the same on all systems this runs on.
const OUT_OF_DESCRIPTORS: [i32; 2] = [23, 24];

/// What came off the listener.
#[derive(Debug)]
pub(super) enum Arrival {
    Connection(TcpStream, IpAddr),
    /// Nothing waits.
    Nobody,
    /// Accepting fails and rests.
    Failed,
}

/// Invariant: `spare` is open unless descriptors ran out after it was given up, and is taken back first.
#[derive(Debug)]
pub(super) struct Accepting {
    listener: Option<TcpListener>,
    /// A descriptor held in reserve: with it one waiting client can be told, instead of none.
    spare: Option<File>,
    paused_until: Option<Moment>,
    /// Failures since it last worked. The first is logged, and the end of them.
    failures: u64,
    /// Connections may wait: the edge was reported and the queue not seen empty since.
    pending: bool,
}

impl Accepting {
    pub(super) fn new(
        listener: std::net::TcpListener,
        registry: &Registry,
        token: Token,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        registry.register(&mut listener, token, Interest::READABLE)?;
        Ok(Self { listener: Some(listener), spare: spare(), paused_until: None, failures: 0, pending: true })
    }

    pub(super) fn announced(&mut self) {
        self.pending = true;
    }

    /// Whether [`Accepting::next`] may find somebody now.
    pub(super) fn is_pending(&self) -> bool {
        self.pending && self.listener.is_some() && self.paused_until.is_none()
    }

    pub(super) fn paused_until(&self) -> Option<Moment> {
        self.paused_until
    }

    pub(super) fn resume_at(&mut self, now: Moment) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
            if self.spare.is_none() {
                self.spare = spare();
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.listener = None;
    }

    pub(super) fn next(&mut self, now: Moment) -> Arrival {
        let Some(listener) = &self.listener else { return Arrival::Nobody };
        loop {
            match listener.accept() {
                Ok((stream, peer)) => {
                    if self.failures > 0 {
                        log::info!("connections are accepted again after {} failures", self.failures);
                        self.failures = 0;
                    }
                    return Arrival::Connection(stream, peer.ip().to_canonical());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pending = false;
                    return Arrival::Nobody;
                }
                // The peer gave up while it waited: the next one is not to suffer for it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.fail(&error, now);
                    return Arrival::Failed;
                }
            }
        }
    }

    fn fail(&mut self, error: &io::Error, now: Moment) {
        if self.failures == 0 {
            log::error!("connections cannot be accepted, a try every {} ms: {error}", PAUSE.as_millis());
        }
        self.failures += 1;
        self.paused_until = Some(now.plus(PAUSE));
        let out = error.raw_os_error().is_some_and(|code| OUT_OF_DESCRIPTORS.contains(&code));
        if out && self.spare.take().is_some() {
            if let Some(Ok((stream, _))) = self.listener.as_ref().map(TcpListener::accept) {
                turn_away(stream);
            }
            self.spare = spare();
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Tells a client that there is no room, without waiting for it, and hangs up.
pub(super) fn turn_away(mut stream: TcpStream) {
    // Whoever cannot take these few bytes at once is not told: there is no room to wait for it.
    if stream.write_all(NO_ROOM).is_ok() {
        stream.shutdown(Shutdown::Write).ok();
    }
}

const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n\
Content-Length: 143\r\nRetry-After: 1\r\nConnection: close\r\n\r\n\
{\"type\":\"urn:aurore-events:problem:unavailable\",\
\"title\":\"The server cannot answer now\",\"status\":503,\"detail\":\"there are too many connections\"}\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_made_answer_states_its_own_length() {
        let text = std::str::from_utf8(NO_ROOM).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
