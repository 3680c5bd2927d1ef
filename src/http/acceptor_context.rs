//! The state of one event loop that its connections share. It must not depend on sockets.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Response;
use super::acceptor_handle::{AcceptorHandle, ConnectionStats};
use super::encode::DateLine;
use super::limits::HttpLimits;
use crate::clock::Moment;

/// Work per turn of a connection, in bytes of requests and responses and in
/// [`Response::work_bytes`]: about 100 us.
const TURN_BYTES: usize = 128 * 1024;
/// Capacity of the output buffer that is kept for the next turn.
const OUT_RETAINED_BYTES: usize = 512 * 1024;

/// The state of one event loop that its connections share, passed to the session whose turn it is.
#[derive(Debug)]
pub(super) struct AcceptorContext<H> {
    pub(super) handler: H,
    pub(super) response: Response,
    /// The output of the current turn.
    pub(super) out: Vec<u8>,
    pub(super) date: DateLine,
    pub(super) limits: HttpLimits,
    pub(super) handle: AcceptorHandle,
    pub(super) stats: Arc<ConnectionStats>,
    pub(super) now: Moment,
    /// The connection of the current turn.
    pub(super) token: usize,
    /// Requests that may still be served in this turn.
    pub(super) requests_left: u32,
    /// The rest of [`TURN_BYTES`].
    pub(super) bytes_left: usize,
    /// Counts handler calls and responses of the acceptor.
    pub(super) serial: u64,
    /// Bytes buffered by all connections of the acceptor; the share of the current connection is
    /// that from before this turn.
    pub(super) buffered_bytes: usize,
    /// Every response closes its connection.
    pub(super) draining: bool,
}

impl<H> AcceptorContext<H> {
    /// Prepares for the turn of connection `token`.
    #[inline]
    pub(super) fn begin_turn(&mut self, token: usize) {
        self.token = token;
        self.requests_left = self.limits.pipelined_max;
        self.bytes_left = TURN_BYTES;
        self.out.clear();
    }

    /// Releases a large output buffer at the end of a turn of the acceptor, since the next turn may
    /// be far away.
    #[inline]
    pub(super) fn end_turn(&mut self) {
        if self.out.capacity() > OUT_RETAINED_BYTES {
            self.out = Vec::new();
        }
    }

    /// Subtracts a request of `bytes` bytes and its response from the budget of the turn.
    #[inline]
    pub(super) fn spend_budget(&mut self, bytes: usize) {
        let bytes = bytes + self.response.body.len() + self.response.work_bytes;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }

    /// Counts a new connection, or returns the limit that it exceeds as a problem detail.
    pub(super) fn admit(&self, peer: IpAddr) -> Option<&'static str> {
        let (stats, limits) = (&self.stats, &self.limits);
        let per_address_max = limits.connections_per_address_max;
        if stats.connections.fetch_add(1, Ordering::Relaxed) >= limits.connections_max {
            stats.connections.fetch_sub(1, Ordering::Relaxed);
            return Some("there are too many connections");
        }
        if per_address_max > 0 && !stats.per_address.acquire(peer, per_address_max) {
            stats.connections.fetch_sub(1, Ordering::Relaxed);
            return Some("there are too many connections from this address");
        }
        None
    }

    /// Releases the slot of an admitted connection.
    pub(super) fn release(&self, peer: IpAddr) {
        self.stats.connections.fetch_sub(1, Ordering::Relaxed);
        if self.limits.connections_per_address_max > 0 {
            self.stats.per_address.release(peer);
        }
    }

    pub(super) fn token(&self) -> mio::Token {
        mio::Token(self.token)
    }
}
