//! The interface of an acceptor to other threads: a completion queue, a command and a waker.
//! Addresses connections by token; must not depend on connection state. Also holds the shared
//! connection counters.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{self, Wake};

use crossbeam::queue::SegQueue;
use mio::{Registry, Token, Waker};

use super::per_address_limit::PerAddressLimit;
use super::wake_flag::WakeFlag;
use super::{Promise, Response};

/// Connection counters, shared by all acceptors of a server.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    pub(super) connections: AtomicUsize,
    pub(super) per_address: PerAddressLimit,
    pub(super) accepted: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) accept_errors: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) panics: AtomicU64,
}

impl ConnectionStats {
    /// Open connections.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections that got a 503 or were dropped because of a connection or memory limit.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Failures of accept(2), including exhausted file descriptors.
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }

    /// Connections closed by a timeout other than the idle timeout.
    pub fn timeouts(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed)
    }

    /// Requests whose handler panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}

/// A message from another thread to a connection.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) token: usize,
    /// The request serial of the acceptor. A completion whose request is no longer pending is
    /// dropped.
    pub(super) serial: u64,
    pub(super) kind: CompletionKind,
}

#[derive(Debug)]
pub(super) enum CompletionKind {
    Response(Response),
    /// The body channel of a streaming response may hold a block.
    BodyReady,
}

/// The command of an acceptor. It only ever increases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Command {
    Run = 0,
    Drain = 1,
    Stop = 2,
}

/// Invariant: `completions` holds at most one response per open promise and one notification per
/// streaming response, so the number of connections bounds it.
struct AcceptorMailbox {
    completions: SegQueue<Completion>,
    command: AtomicU8,
    wake_flag: WakeFlag,
    waker: Waker,
}

impl Wake for AcceptorMailbox {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.wake_flag.must_wake()
            && let Err(error) = self.waker.wake()
        {
            log::error!("waking an acceptor failed: {error}");
        }
    }
}

/// A handle to one acceptor, for any thread. After the acceptor has stopped, its methods have no
/// effect.
#[derive(Clone)]
pub struct AcceptorHandle(Arc<AcceptorMailbox>);

impl fmt::Debug for AcceptorHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcceptorHandle")
            .field("completions", &self.0.completions.len())
            .finish_non_exhaustive()
    }
}

impl AcceptorHandle {
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Self(Arc::new(AcceptorMailbox {
            completions: SegQueue::new(),
            command: AtomicU8::new(Command::Run as u8),
            wake_flag: WakeFlag::new(),
            waker: Waker::new(registry, token)?,
        })))
    }

    /// Wakes the acceptor for a turn: for a completion or a command, the state that it reads before it
    /// sleeps, or to see that it moves.
    pub fn wake(&self) {
        self.0.wake_by_ref();
    }

    /// Stops accepting, closes idle connections, finishes requests that have begun, then stops.
    pub fn drain(&self) {
        self.send_command(Command::Drain);
    }

    /// Closes all connections and stops at once.
    pub fn stop(&self) {
        self.send_command(Command::Stop);
    }

    fn send_command(&self, command: Command) {
        self.0.command.fetch_max(command as u8, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn promise(&self, token: usize, serial: u64) -> Promise {
        let mailbox = self.0.clone();
        Promise::with_waker(move |response| {
            mailbox.completions.push(Completion { token, serial, kind: CompletionKind::Response(response) });
            Some(task::Waker::from(mailbox))
        })
    }

    /// Notifies the acceptor that the body channel of request `serial` has changed.
    pub(super) fn notify_body(&self, token: usize, serial: u64) {
        self.0.completions.push(Completion { token, serial, kind: CompletionKind::BodyReady });
        self.wake();
    }

    pub(super) fn command(&self) -> Command {
        match self.0.command.load(Ordering::SeqCst) {
            0 => Command::Run,
            1 => Command::Drain,
            2.. => Command::Stop,
        }
    }

    pub(super) fn pop_completion(&self) -> Option<Completion> {
        // A pop of the empty queue has a fence, and most turns have no completions.
        if self.0.completions.is_empty() { None } else { self.0.completions.pop() }
    }

    /// Marks the acceptor as about to park: other threads wake it from now on. Returns whether the
    /// completion queue is empty.
    pub(super) fn prepare_park(&self) -> bool {
        self.0.wake_flag.prepare_park();
        self.0.completions.is_empty()
    }

    /// Marks the acceptor as awake, so that other threads skip the wake-up system call.
    pub(super) fn mark_awake(&self) {
        self.0.wake_flag.mark_awake();
    }
}
