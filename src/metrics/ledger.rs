//! The sum that must balance: `received = stored + duplicate + dead + buffered`, at every moment.
//!
//! What was refused at the edge was never received; it is counted by its reason.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::storage::Stored;

/// Why events were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    BufferFull,
    /// More than the whole buffer holds.
    TooLarge,
    Invalid,
    ShuttingDown,
    /// The journal cannot be written, or not with the durability asked for.
    JournalUnavailable,
}

impl Reason {
    pub const ALL: [Self; 5] =
        [Self::BufferFull, Self::TooLarge, Self::Invalid, Self::ShuttingDown, Self::JournalUnavailable];

    pub fn label(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::TooLarge => "too_large",
            Self::Invalid => "invalid",
            Self::ShuttingDown => "shutting_down",
            Self::JournalUnavailable => "journal_unavailable",
        }
    }
}

/// Invariant: events are counted as received before the writer can see them, and as stored, duplicate or dead only
/// once that is committed. So the three never exceed the first.
#[derive(Debug)]
pub struct Ledger {
    /// One per acceptor, so that acceptors do not share a cache line.
    received: Box<[CachePadded<AtomicU64>]>,
    stored: AtomicU64,
    duplicate: AtomicU64,
    dead: AtomicU64,
    lost: AtomicU64,
    dropped: [AtomicU64; Reason::ALL.len()],
}

/// The ledger at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub received: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub dead: u64,
    /// Spilled to a disk that has not kept them. Nothing else loses an event.
    pub lost: u64,
    /// By reason, in the order of [`Reason::ALL`].
    pub dropped: [u64; Reason::ALL.len()],
}

impl Balance {
    /// Admitted and not yet committed: in the buffer, or spilled.
    pub fn buffered(&self) -> u64 {
        self.received - self.settled() - self.lost
    }

    /// Committed one way or another.
    pub fn settled(&self) -> u64 {
        self.stored + self.duplicate + self.dead
    }

    /// Refused for want of room, of what could have been admitted.
    pub fn turned_away(&self) -> u64 {
        self.dropped[Reason::BufferFull as usize]
    }
}

impl Ledger {
    pub fn new(acceptors: usize) -> Self {
        Self {
            received: (0..acceptors).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            stored: AtomicU64::new(0),
            duplicate: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            dropped: [const { AtomicU64::new(0) }; Reason::ALL.len()],
        }
    }

    #[inline]
    pub fn received(&self, acceptor: usize, events: u64) {
        self.received[acceptor].fetch_add(events, Ordering::Relaxed);
    }

    pub fn settled(&self, outcome: Stored) {
        // Release: whoever sees these also sees what was received before them.
        self.stored.fetch_add(outcome.stored, Ordering::Release);
        self.duplicate.fetch_add(outcome.duplicate, Ordering::Release);
        self.dead.fetch_add(outcome.dead, Ordering::Release);
    }

    pub fn lost(&self, events: u64) {
        self.lost.fetch_add(events, Ordering::Release);
    }

    pub fn dropped(&self, reason: Reason, events: u64) {
        self.dropped[reason as usize].fetch_add(events, Ordering::Relaxed);
    }

    pub fn balance(&self) -> Balance {
        // What is settled is read first, so that it cannot exceed what is read as received after it.
        let stored = self.stored.load(Ordering::Acquire);
        let duplicate = self.duplicate.load(Ordering::Acquire);
        let dead = self.dead.load(Ordering::Acquire);
        let lost = self.lost.load(Ordering::Acquire);
        let received = self.received.iter().map(|count| count.load(Ordering::Acquire)).sum();
        let dropped = std::array::from_fn(|reason| self.dropped[reason].load(Ordering::Relaxed));
        Balance { received, stored, duplicate, dead, lost, dropped }
    }
}
