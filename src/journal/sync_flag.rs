//! Whether the journal thread must be woken for a waiter of a sync.
//!
//! It must not depend on anything but its atomics: `tests/concurrency` compiles this file against
//! the atomics of `loom`.

use super::atomic::{AtomicBool, Ordering, fence};

/// Set while a sync is in flight, whose end wakes the journal thread. A waiter that is queued
/// meanwhile needs no wake-up of its own.
///
/// Both sides publish, run a `SeqCst` fence and then read: an acceptor queues its waiter and reads the
/// flag, the journal thread clears the flag and reads the lanes. So at least one sees the other.
#[derive(Debug)]
pub(super) struct SyncFlag(AtomicBool);

impl SyncFlag {
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Called after a waiter was queued. Returns whether the caller must wake the journal thread.
    #[must_use]
    pub(super) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        !self.0.load(Ordering::SeqCst)
    }

    /// Called after the lanes were drained, before the sync begins.
    pub(super) fn mark_started(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Called when the journal thread has the result of the sync, before it drains the lanes.
    pub(super) fn mark_ended(&self) {
        self.0.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}
