//! The changes that wait for the log thread, and the responses that wait for their durability. Must not
//! depend on the content of a change.

use std::fmt;
use std::sync::atomic::Ordering;

use super::Gateway;
use super::state::Snapshot;
use crate::journal::{self, Durability, DurabilityCallback};

/// A callback for the moment when all earlier changes have reached `level`.
pub struct WalWaiter {
    pub level: Durability,
    pub on_durable: DurabilityCallback,
}

impl fmt::Debug for WalWaiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WalWaiter").field(&self.level).finish()
    }
}

/// Encoded records in the order of their changes, and their total size.
#[derive(Debug, Default)]
pub struct PendingRecords(Vec<Vec<u8>>, usize);

impl PendingRecords {
    pub(super) fn push(&mut self, record: Vec<u8>) {
        self.1 += record.len();
        self.0.push(record);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn bytes(&self) -> usize {
        self.1
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

impl Gateway {
    /// Calls `callback` with true once all changes so far have reached `level`, with false if the
    /// log fails first.
    pub fn on_durable(&self, level: Durability, callback: DurabilityCallback) {
        self.lock().waiters.push(WalWaiter { level, on_durable: callback });
    }

    pub fn wake_log_thread(&self) {
        self.log_thread.unpark();
    }

    /// Makes the log thread write and sync all pending records and exit.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        self.wake_log_thread();
    }

    pub(super) fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Acquire)
    }

    pub(super) fn has_waiters(&self) -> bool {
        !self.lock().waiters.is_empty()
    }

    pub(super) fn take_pending(&self) -> (PendingRecords, Vec<WalWaiter>) {
        let mut inner = self.lock();
        (std::mem::take(&mut inner.records), std::mem::take(&mut inner.waiters))
    }

    /// A snapshot, and the records and waiters that are not in the log yet.
    pub(super) fn take_snapshot(&self) -> (Snapshot, PendingRecords, Vec<WalWaiter>) {
        let mut inner = self.lock();
        (inner.state.snapshot(), std::mem::take(&mut inner.records), std::mem::take(&mut inner.waiters))
    }

    /// A snapshot that covers all changes so far, so that the pending records are dropped.
    pub(super) fn take_unlogged_snapshot(&self) -> (Snapshot, Vec<WalWaiter>) {
        let (snapshot, _, waiters) = self.take_snapshot();
        (snapshot, waiters)
    }

    /// Calls the callbacks of all waiters with whether `level` meets their level.
    pub(super) fn complete_waiters(waiters: Vec<WalWaiter>, level: Durability) {
        journal::complete_group(waiters.into_iter().map(|waiter| (waiter.on_durable, waiter.level <= level)));
    }

    pub(super) fn fail_waiters(&self) {
        let waiters = std::mem::take(&mut self.lock().waiters);
        Self::complete_waiters(waiters, Durability::Memory);
    }

    pub(super) fn set_log_failed(&self) {
        self.log_failed.store(true, Ordering::Release);
    }

    pub(super) fn clear_log_failed(&self) {
        self.log_failed.store(false, Ordering::Release);
    }
}
