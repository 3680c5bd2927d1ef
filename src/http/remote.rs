//! How other threads reach an acceptor: late answers, a nudge, the order to drain or to end.
//! Knows nothing of connections but their tokens.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};

use crossbeam::queue::SegQueue;
use mio::{Registry, Token, Waker};

use super::addresses::Addresses;
use super::{Promise, Response};

/// What all acceptors of a server count together.
#[derive(Debug, Default)]
pub struct Shared {
    pub(super) connections: AtomicUsize,
    pub(super) addresses: Addresses,
    pub(super) accepted: AtomicU64,
    pub(super) turned_away: AtomicU64,
    pub(super) accept_errors: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) panics: AtomicU64,
}

impl Shared {
    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Connections ever accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections answered 503 or dropped because there were too many.
    pub fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Failures of accept(2), out of file descriptors among them.
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }

    /// Connections ended because their client was too slow. Idle ones do not count.
    pub fn timeouts(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed)
    }

    /// Requests whose handler panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}

/// An answer on its way to the connection that waits for it.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) token: usize,
    /// Which request of the acceptor's life it answers: an answer nobody waits for any more is dropped.
    pub(super) serial: u64,
    pub(super) response: Response,
}

/// What an acceptor is told to do, in the order in which it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Order {
    Serve = 0,
    Drain = 1,
    End = 2,
}

/// Invariant: there are never more late answers in it than promises open, so connections bound it.
struct Mailbox {
    late: SegQueue<Late>,
    order: AtomicU8,
    /// Whether a wake-up would be wasted: the acceptor is awake, or one is on its way.
    awake: AtomicBool,
    waker: Waker,
}

/// A handle on one acceptor, for any thread. It stays valid, and without effect, after the acceptor's end.
#[derive(Clone)]
pub struct Remote(Arc<Mailbox>);

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("late", &self.0.late.len()).finish_non_exhaustive()
    }
}

impl Remote {
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        Ok(Self(Arc::new(Mailbox {
            late: SegQueue::new(),
            order: AtomicU8::new(Order::Serve as u8),
            awake: AtomicBool::new(true),
            waker: Waker::new(registry, token)?,
        })))
    }

    /// Has the acceptor take a turn now, and with it call [`super::Handler::turn_ended`].
    pub fn wake(&self) {
        // The fence pairs with the one in `doze`: either the acceptor sees what was said before this call, or
        // this call sees that it sleeps.
        fence(Ordering::SeqCst);
        if !self.0.awake.swap(true, Ordering::SeqCst) {
            // The eventfd can only be full of wake-ups that are not yet seen.
            if let Err(error) = self.0.waker.wake() {
                log::error!("an acceptor could not be woken: {error}");
            }
        }
    }

    /// Stop accepting, close what is idle, answer what has been asked, then end.
    pub fn drain(&self) {
        self.order(Order::Drain);
    }

    /// Close everything and end now.
    pub fn end(&self) {
        self.order(Order::End);
    }

    fn order(&self, order: Order) {
        self.0.order.fetch_max(order as u8, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn promise(&self, token: usize, serial: u64) -> Promise {
        let remote = self.clone();
        Promise::new(move |response| {
            remote.0.late.push(Late { token, serial, response });
            remote.wake();
        })
    }

    pub(super) fn ordered(&self) -> Order {
        match self.0.order.load(Ordering::SeqCst) {
            0 => Order::Serve,
            1 => Order::Drain,
            2.. => Order::End,
        }
    }

    pub(super) fn next_late(&self) -> Option<Late> {
        self.0.late.pop()
    }

    /// Announces sleep: from here on others wake the acceptor. Says whether there is nothing to stay awake for.
    pub(super) fn doze(&self) -> bool {
        self.0.awake.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.0.late.is_empty()
    }

    /// Announces that it is awake, so that nobody pays for a wake-up.
    pub(super) fn rise(&self) {
        self.0.awake.store(true, Ordering::SeqCst);
    }
}
