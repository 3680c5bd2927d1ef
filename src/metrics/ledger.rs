//! The event ledger. Invariant: `received = stored + duplicate + dead + lost + buffered`, at any
//! time.
//!
//! Events rejected before admission are not received; they are counted as dropped, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::storage::Stored;

/// Why events were rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    BufferFull,
    /// Larger than the whole buffer.
    TooLarge,
    Invalid,
    ShuttingDown,
    /// The journal cannot be written, or not with the requested durability.
    JournalUnavailable,
}

impl DropReason {
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

/// The way in which an event was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventInput {
    /// The server's own format.
    Events,
    /// JSON of any fields, mapped by query parameters.
    Mapped,
    CloudEvents,
    Otlp,
    Loki,
    Splunk,
}

impl EventInput {
    pub const ALL: [Self; 6] =
        [Self::Events, Self::Mapped, Self::CloudEvents, Self::Otlp, Self::Loki, Self::Splunk];

    pub fn label(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Mapped => "mapped",
            Self::CloudEvents => "cloudevents",
            Self::Otlp => "otlp",
            Self::Loki => "loki",
            Self::Splunk => "splunk",
        }
    }
}

/// Invariant: events are counted as received before the writer can take them, and as stored,
/// duplicate or dead only after the commit. So the sum of the three never exceeds `received`.
#[derive(Debug)]
pub struct Ledger {
    /// One per acceptor, so that acceptors do not share a cache line.
    received: Box<[CachePadded<AtomicU64>]>,
    /// The same without those of the journal, by input.
    by_input: Box<[CachePadded<[AtomicU64; EventInput::ALL.len()]>]>,
    stored: AtomicU64,
    duplicate: AtomicU64,
    dead: AtomicU64,
    lost: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

/// The ledger at one point in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub received: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub dead: u64,
    /// Spilled events whose journal records could not be read back.
    pub lost: u64,
    /// By reason, in the order of [`DropReason::ALL`].
    pub dropped: [u64; DropReason::ALL.len()],
}

impl Balance {
    /// Admitted and not yet committed, in the buffer or spilled.
    pub fn buffered(&self) -> u64 {
        self.received - self.settled() - self.lost
    }

    /// Committed: stored, duplicate or dead.
    pub fn settled(&self) -> u64 {
        self.stored + self.duplicate + self.dead
    }

    /// Valid events rejected by a full buffer.
    pub fn rejected(&self) -> u64 {
        self.dropped[DropReason::BufferFull as usize]
    }
}

impl Ledger {
    pub fn new(acceptors: usize) -> Self {
        Self {
            received: (0..acceptors).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            by_input: (0..acceptors).map(|_| CachePadded::default()).collect(),
            stored: AtomicU64::new(0),
            duplicate: AtomicU64::new(0),
            dead: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            dropped: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
        }
    }

    #[inline]
    pub fn record_received(&self, acceptor: usize, events: u64) {
        self.received[acceptor].fetch_add(events, Ordering::Relaxed);
    }

    /// Counts admitted events by input. They are not part of the balance.
    #[inline]
    pub fn record_input(&self, acceptor: usize, input: EventInput, events: u64) {
        self.by_input[acceptor][input as usize].fetch_add(events, Ordering::Relaxed);
    }

    /// Admitted events by input, in the order of [`EventInput::ALL`].
    pub fn received_by_input(&self) -> [u64; EventInput::ALL.len()] {
        std::array::from_fn(|input| {
            self.by_input.iter().map(|counts| counts[input].load(Ordering::Relaxed)).sum()
        })
    }

    pub fn record_settled(&self, outcome: Stored) {
        // Release: a thread that reads these counts also reads the earlier `received` counts.
        self.stored.fetch_add(outcome.stored, Ordering::Release);
        self.duplicate.fetch_add(outcome.duplicate, Ordering::Release);
        self.dead.fetch_add(outcome.dead, Ordering::Release);
    }

    pub fn record_lost(&self, events: u64) {
        self.lost.fetch_add(events, Ordering::Release);
    }

    pub fn record_dropped(&self, reason: DropReason, events: u64) {
        self.dropped[reason as usize].fetch_add(events, Ordering::Relaxed);
    }

    pub fn balance(&self) -> Balance {
        // The settled counts are read before `received`, so that they cannot exceed it.
        let stored = self.stored.load(Ordering::Acquire);
        let duplicate = self.duplicate.load(Ordering::Acquire);
        let dead = self.dead.load(Ordering::Acquire);
        let lost = self.lost.load(Ordering::Acquire);
        let received = self.received.iter().map(|count| count.load(Ordering::Acquire)).sum();
        let dropped = std::array::from_fn(|reason| self.dropped[reason].load(Ordering::Relaxed));
        Balance { received, stored, duplicate, dead, lost, dropped }
    }
}
