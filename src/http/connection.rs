//! One connection: its socket, its conversation, and what is left to write. Knows no other connection and no
//! timer; it says by when it must have moved.

use std::io;

use mio::Registry;

use super::Handler;
use super::limits::Limits;
use super::session::{Desk, Progress, Session};
use super::wire::Wire;
use crate::clock::Moment;

/// Reads in one turn: 16 of 64 KiB. A body that comes faster lets others have their turn in between.
const READS_MAX: u32 = 16;

/// What the acceptor does with a connection after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for the socket, a late answer or the deadline.
    Sleep,
    /// Give it another turn after the others: the socket will not ask for one.
    Again,
    /// Give it its place in the line of those that take long.
    Line,
    Close,
}

/// Invariant: `output` is empty, and not allocated, unless the socket refused to take more.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts about one socket, not states of one machine"
)]
pub(super) struct Connection {
    pub(super) wire: Wire,
    pub(super) session: Session,
    output: Vec<u8>,
    written: usize,
    /// When a byte last moved; while lingering, when that began.
    active: Moment,
    /// The socket may hold bytes: with edge-triggered readiness it says so once.
    pub(super) readable: bool,
    /// The peer's end was announced, so that a short read does not mean that nothing follows.
    pub(super) end_announced: bool,
    eof: bool,
    /// Readiness to write is reported.
    watches_writable: bool,
    /// It stands in the ready line.
    pub(super) queued: bool,
    /// It stands in the line of those that take long.
    pub(super) lined: bool,
    /// All is said and the sending side shut; so many bytes are still read, and discarded.
    lingering: Option<usize>,
    /// What it is counted with in the acceptor's sum of bytes held.
    pub(super) counted: usize,
    /// It is one too many: not counted, only told so.
    pub(super) guest: bool,
}

impl Connection {
    pub(super) fn new(wire: Wire, session: Session, now: Moment) -> Self {
        Self {
            wire,
            session,
            output: Vec::new(),
            written: 0,
            active: now,
            readable: false,
            end_announced: false,
            eof: false,
            watches_writable: false,
            queued: false,
            lined: false,
            lingering: None,
            counted: 0,
            guest: false,
        }
    }

    /// By when it must have moved.
    pub(super) fn deadline(&self, limits: &Limits) -> Moment {
        if self.lingering.is_some() {
            self.active.plus(limits.linger_timeout)
        } else if self.wire.is_handshaking() {
            // Nothing of it counts as having moved, so that this runs from the beginning.
            self.active.plus(limits.header_timeout)
        } else if self.has_unsent() {
            self.active.plus(limits.slow_reader_timeout)
        } else {
            self.session.deadline(self.active, limits)
        }
    }

    fn has_unsent(&self) -> bool {
        !self.output.is_empty() || self.wire.is_pending()
    }

    /// Its client does not take what it asked for, or has had its time to read the last answer.
    pub(super) fn is_past_words(&self) -> bool {
        self.lingering.is_some() || self.has_unsent()
    }

    /// Bytes allocated for what is unfinished.
    #[inline]
    pub(super) fn held(&self) -> usize {
        self.session.held() + self.output.capacity() + self.wire.held()
    }

    /// Nothing is asked and nothing is left to say.
    pub(super) fn is_idle(&self) -> bool {
        self.lingering.is_none() && !self.has_unsent() && self.session.is_idle()
    }

    /// Takes a turn: writes what is left, reads what is there, answers what is asked, writes the answers at once.
    /// `desk.out` may already hold the beginning of them.
    pub(super) fn drive<H: Handler>(
        &mut self,
        desk: &mut Desk<H>,
        scratch: &mut [u8],
        registry: &Registry,
    ) -> Next {
        if self.lingering.is_some() {
            return self.linger(scratch);
        }
        match self.take_turn(desk, scratch, registry) {
            Ok(next) => next,
            // Reset, timed out, broken pipe: the peer is gone, and nobody is left to be told.
            Err(_) => Next::Close,
        }
    }

    fn take_turn<H: Handler>(
        &mut self,
        desk: &mut Desk<H>,
        scratch: &mut [u8],
        registry: &Registry,
    ) -> io::Result<Next> {
        if self.has_unsent() {
            self.output.append(&mut desk.out);
            if !self.flush(desk.now)? {
                return Ok(Next::Sleep);
            }
        }
        let progress = self.converse(desk, scratch)?;
        if !self.send(desk, registry)? {
            return Ok(Next::Sleep);
        }
        Ok(match progress {
            // Whatever a client has begun to say before it left stays unsaid.
            Progress::Hungry | Progress::Over if self.eof => Next::Close,
            Progress::Hungry | Progress::Waiting | Progress::Streaming => Next::Sleep,
            Progress::Paused => Next::Again,
            Progress::Working => Next::Line,
            Progress::Broken => Next::Close,
            Progress::Over => {
                self.wire.shutdown()?;
                self.lingering = Some(desk.limits.linger_bytes_max);
                self.active = desk.now;
                self.readable = true;
                self.linger(scratch)
            }
        })
    }

    fn converse<H: Handler>(&mut self, desk: &mut Desk<H>, scratch: &mut [u8]) -> io::Result<Progress> {
        // What came behind a request waits until the answer that has begun is whole.
        let streams = self.session.sending().is_some();
        let mut progress = if self.session.has_backlog() && !streams {
            self.session.take(&[], desk)
        } else {
            self.session.progress()
        };
        let mut reads = 0;
        while progress == Progress::Hungry && self.readable && !self.eof {
            if reads == READS_MAX {
                return Ok(Progress::Paused);
            }
            reads += 1;
            match self.wire.read(scratch) {
                Ok(0) => self.eof = true,
                Ok(count) => {
                    self.active = desk.now;
                    // epoll(7): a short read means that the socket is empty. Only an end already announced may
                    // follow, one that comes later is an event of its own.
                    self.readable =
                        count == scratch.len() || self.end_announced || !self.wire.reads_short_when_empty();
                    progress = self.session.take(&scratch[..count], desk);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if progress == Progress::Streaming {
            progress = self.session.pump(desk);
        }
        Ok(progress)
    }

    /// Writes `desk.out` and keeps what the socket does not take. Says whether it took all.
    fn send<H>(&mut self, desk: &mut Desk<H>, registry: &Registry) -> io::Result<bool> {
        if desk.out.is_empty() && !self.wire.is_pending() {
            return Ok(true);
        }
        let count = self.wire.write(&desk.out)?;
        // Also when it took nothing: the time of a slow reader begins with the answer, not with its request.
        self.active = desk.now;
        if count == desk.out.len() && !self.wire.is_pending() {
            return Ok(true);
        }
        self.output = desk.out[count..].to_vec();
        self.written = 0;
        if !self.watches_writable {
            self.watches_writable = true;
            self.wire.watch_writable(registry, desk.token())?;
        }
        Ok(false)
    }

    /// Writes on with `output`. Says whether nothing is left.
    fn flush(&mut self, now: Moment) -> io::Result<bool> {
        while self.written < self.output.len() {
            let count = self.wire.write(&self.output[self.written..])?;
            if count == 0 {
                return Ok(false);
            }
            self.written += count;
            self.active = now;
        }
        self.output = Vec::new();
        self.written = 0;
        self.wire.flush()
    }

    /// Reads and discards, so that the kernel does not answer unread bytes with a reset, which could take the
    /// last answer from the client's hands.
    fn linger(&mut self, scratch: &mut [u8]) -> Next {
        let Some(left) = &mut self.lingering else {
            unreachable!("BUG: only called when lingering");
        };
        for _ in 0..READS_MAX {
            if *left == 0 {
                return Next::Close;
            }
            let room = scratch.len().min(*left);
            match self.wire.discard(&mut scratch[..room]) {
                Ok(0) => return Next::Close,
                Ok(count) => *left -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Next::Sleep,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Next::Close,
            }
        }
        Next::Again
    }
}
