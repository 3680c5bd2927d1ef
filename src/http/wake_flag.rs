//! Whether an event loop must be woken for a message, so that most messages make no system call and
//! none waits while the loop sleeps.
//!
//! It must not depend on anything but its atomics: `tests/concurrency` compiles this file against
//! the atomics of `loom`.

use super::atomic::{AtomicBool, Ordering};

/// Set while the event loop runs, or while a wake-up is on its way.
///
/// The protocol: a sender queues its message, then calls [`WakeFlag::must_wake`]. The event loop calls
/// [`WakeFlag::prepare_park`], then reads its queue, and sleeps if it is empty. Both calls are swaps of
/// one flag, so one of them is first. If it is that of the sender, the event loop finds the message
/// (release and acquire); otherwise the sender sees that the loop sleeps.
#[derive(Debug)]
pub(super) struct WakeFlag(AtomicBool);

impl WakeFlag {
    /// The flag of an event loop that runs.
    pub(super) fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    /// Called after a message was queued. Returns whether the caller must wake the event loop.
    #[must_use]
    pub(super) fn must_wake(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// Announces that the event loop sleeps. It must read its queue once more before it does.
    pub(super) fn prepare_park(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }

    /// Records that the event loop runs and will read its queue before it sleeps.
    pub(super) fn mark_awake(&self) {
        // A plain store would end the release sequences of the senders.
        self.0.swap(true, Ordering::AcqRel);
    }
}
