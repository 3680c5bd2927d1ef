//! One connection: its transport, its session and its unsent output. Must not depend on other
//! connections or on the timer wheel; it only computes its deadline.

use std::io;

use mio::Registry;

use super::Handler;
use super::acceptor_context::AcceptorContext;
use super::limits::HttpLimits;
use super::session::{HttpSession, Progress};
use super::transport::Transport;
use crate::clock::Moment;

/// Reads per turn, of 64 KiB each. A faster sender continues in the next turn.
const READS_MAX: u32 = 16;

/// Unsent output up to this size is copied out of the buffer of the turn, which is kept for the next
/// turn. Of longer output a second copy would cost more than a new buffer.
const OUTPUT_COPY_MAX: usize = 256 * 1024;

/// The action that the acceptor takes on a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionAction {
    /// Wait for socket readiness, a completion or the deadline.
    Wait,
    /// Push it to the ready queue: it has work that the socket will not signal.
    Requeue,
    /// Push it to the queue of long requests.
    QueueLong,
    Close,
}

/// Invariant: `output` is empty, without an allocation, unless the socket buffer is full.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one socket, not states of one machine"
)]
pub(super) struct Connection {
    pub(super) transport: Transport,
    pub(super) session: HttpSession,
    output: Vec<u8>,
    written: usize,
    /// When the unsent output must have been sent at the minimum rate.
    output_due: Moment,
    /// When a byte was last read or written; while lingering, when that began.
    last_activity: Moment,
    /// The socket may have input. Readiness is edge-triggered, so the event is not repeated.
    pub(super) readable: bool,
    /// The end of input was signalled, so that an end of file follows a short read.
    pub(super) read_closed: bool,
    eof: bool,
    /// The socket is registered for write readiness.
    writable_registered: bool,
    /// The connection is in the ready queue.
    pub(super) in_ready_queue: bool,
    /// The connection is in the queue of long requests.
    pub(super) in_long_queue: bool,
    /// Lingering close: the write side is shut down; this many bytes are still read and discarded.
    lingering: Option<usize>,
    /// This connection's share of the acceptor's `buffered_bytes`.
    pub(super) accounted_bytes: usize,
    /// The connection exceeds a connection limit: it is not counted and only gets a 503.
    pub(super) over_limit: bool,
}

impl Connection {
    pub(super) fn new(transport: Transport, session: HttpSession, now: Moment) -> Self {
        Self {
            transport,
            session,
            output: Vec::new(),
            written: 0,
            output_due: now,
            last_activity: now,
            readable: false,
            read_closed: false,
            eof: false,
            writable_registered: false,
            in_ready_queue: false,
            in_long_queue: false,
            lingering: None,
            accounted_bytes: 0,
            over_limit: false,
        }
    }

    /// When the connection times out.
    pub(super) fn deadline(&self, limits: &HttpLimits) -> Moment {
        if self.lingering.is_some() {
            self.last_activity.plus(limits.linger_timeout)
        } else if self.transport.is_handshaking() {
            // The handshake does not update `last_activity`, so this runs from the accept.
            self.last_activity.plus(limits.header_timeout)
        } else if self.has_unsent() {
            let stalled = self.last_activity.plus(limits.write_timeout);
            if limits.response_rate_min == 0 { stalled } else { stalled.min(self.output_due) }
        } else {
            self.session.deadline(self.last_activity, limits)
        }
    }

    fn has_unsent(&self) -> bool {
        !self.output.is_empty() || self.transport.has_unsent_records()
    }

    /// Whether a timeout response is impossible: output is blocked, or the last response is already
    /// sent.
    pub(super) fn cannot_respond(&self) -> bool {
        self.lingering.is_some() || self.has_unsent()
    }

    /// Bytes allocated for incomplete requests and unsent output.
    #[inline]
    pub(super) fn buffered_bytes(&self) -> usize {
        self.session.buffered_bytes() + self.output.capacity() + self.transport.buffered_bytes()
    }

    /// The bytes that all connections of the acceptor may buffer before this one is dropped. Above the
    /// limit itself a request gets a 503, but a handshake cannot get a response.
    #[cold]
    pub(super) fn buffered_bytes_max(&self, limits: &HttpLimits) -> usize {
        let limit = limits.connection_memory_bytes_max;
        if self.transport.is_handshaking() { limit } else { limit.saturating_mul(2) }
    }

    /// Whether no request has begun and no output is unsent.
    pub(super) fn is_idle(&self) -> bool {
        self.lingering.is_none() && !self.has_unsent() && self.session.is_idle()
    }

    /// Runs a turn: flushes unsent output, reads input, serves requests and writes the responses.
    /// `ctx.out` may already hold output of this turn.
    pub(super) fn drive<H: Handler>(
        &mut self,
        ctx: &mut AcceptorContext<H>,
        scratch: &mut [u8],
        registry: &Registry,
    ) -> ConnectionAction {
        if self.lingering.is_some() {
            return self.linger(scratch);
        }
        match self.run_turn(ctx, scratch, registry) {
            Ok(next) => next,
            // ECONNRESET, ETIMEDOUT or EPIPE: the peer is gone.
            Err(_) => ConnectionAction::Close,
        }
    }

    fn run_turn<H: Handler>(
        &mut self,
        ctx: &mut AcceptorContext<H>,
        scratch: &mut [u8],
        registry: &Registry,
    ) -> io::Result<ConnectionAction> {
        if self.has_unsent() {
            self.output_due = self.output_due.plus(ctx.limits.output_time(ctx.out.len()));
            self.output.append(&mut ctx.out);
            if !self.flush(ctx.now)? {
                return Ok(ConnectionAction::Wait);
            }
        }
        let progress = self.process_input(ctx, scratch)?;
        if !self.write_output(ctx, registry)? {
            return Ok(ConnectionAction::Wait);
        }
        Ok(match progress {
            // A request that is incomplete at the end of input is discarded.
            Progress::NeedsInput | Progress::Closed if self.eof => ConnectionAction::Close,
            Progress::NeedsInput | Progress::Pending | Progress::Streaming => ConnectionAction::Wait,
            Progress::Paused => ConnectionAction::Requeue,
            Progress::Yielded => ConnectionAction::QueueLong,
            Progress::Aborted => ConnectionAction::Close,
            Progress::Closed => {
                self.transport.shutdown()?;
                self.lingering = Some(ctx.limits.linger_bytes_max);
                self.last_activity = ctx.now;
                self.readable = true;
                self.linger(scratch)
            }
        })
    }

    fn process_input<H: Handler>(
        &mut self,
        ctx: &mut AcceptorContext<H>,
        scratch: &mut [u8],
    ) -> io::Result<Progress> {
        // Pipelined requests wait until the streaming body ends.
        let streams = self.session.streaming_body().is_some();
        let mut progress = if self.session.has_backlog() && !streams {
            self.session.receive(&[], ctx)
        } else {
            self.session.progress()
        };
        let mut reads = 0;
        while progress == Progress::NeedsInput && self.readable && !self.eof {
            if reads == READS_MAX {
                return Ok(Progress::Paused);
            }
            reads += 1;
            match self.transport.read(scratch) {
                Ok(0) => self.eof = true,
                Ok(count) => {
                    self.last_activity = ctx.now;
                    // epoll(7): a short read implies that the socket is empty. Only an end of input
                    // that was already signalled may follow; a later one is a new event.
                    self.readable = count == scratch.len()
                        || self.read_closed
                        || !self.transport.short_read_means_empty();
                    progress = self.session.receive(&scratch[..count], ctx);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if progress == Progress::Streaming {
            progress = self.session.pump(ctx);
        }
        Ok(progress)
    }

    /// Writes `ctx.out` and buffers the part that the socket does not accept. Returns whether all
    /// was written.
    fn write_output<H>(&mut self, ctx: &mut AcceptorContext<H>, registry: &Registry) -> io::Result<bool> {
        if ctx.out.is_empty() && !self.transport.has_unsent_records() {
            return Ok(true);
        }
        let count = self.transport.write(&ctx.out)?;
        // Also if nothing was accepted: the write timeout starts with the response, not with its
        // request.
        self.last_activity = ctx.now;
        if count == ctx.out.len() && !self.transport.has_unsent_records() {
            return Ok(true);
        }
        if ctx.out.len() - count > OUTPUT_COPY_MAX {
            self.output = std::mem::take(&mut ctx.out);
            self.written = count;
        } else {
            self.output = ctx.out[count..].to_vec();
            self.written = 0;
        }
        let bytes = self.output.len() - self.written + self.transport.buffered_bytes();
        self.output_due = ctx.now.plus(ctx.limits.write_timeout + ctx.limits.output_time(bytes));
        if !self.writable_registered {
            self.writable_registered = true;
            self.transport.watch_writable(registry, ctx.token())?;
        }
        Ok(false)
    }

    /// Writes the rest of `output`. Returns whether all was written.
    fn flush(&mut self, now: Moment) -> io::Result<bool> {
        while self.written < self.output.len() {
            let count = self.transport.write(&self.output[self.written..])?;
            if count == 0 {
                return Ok(false);
            }
            self.written += count;
            self.last_activity = now;
        }
        self.output = Vec::new();
        self.written = 0;
        self.transport.flush()
    }

    /// Reads and discards input. Closing a socket with unread input sends a RST, which could
    /// destroy the last response before the client reads it.
    fn linger(&mut self, scratch: &mut [u8]) -> ConnectionAction {
        let Some(left) = &mut self.lingering else {
            unreachable!("BUG: the connection is not lingering");
        };
        for _ in 0..READS_MAX {
            if *left == 0 {
                return ConnectionAction::Close;
            }
            let room = scratch.len().min(*left);
            match self.transport.discard(&mut scratch[..room]) {
                Ok(0) => return ConnectionAction::Close,
                Ok(count) => *left -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return ConnectionAction::Wait,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return ConnectionAction::Close,
            }
        }
        ConnectionAction::Requeue
    }
}
