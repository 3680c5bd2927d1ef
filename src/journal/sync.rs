//! A sync of a segment, for the thread that runs it.
//!
//! It must not depend on the contents of files or on which thread runs it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::filesystem::{File, Filesystem};
use crate::clock::Clock;

/// A sync of more bytes is not short.
const SHORT_BYTES_MAX: u64 = 256 * 1024;

/// A sync of one segment.
#[derive(Debug)]
#[must_use]
pub struct SyncJob {
    segment: u64,
    file: Arc<dyn File>,
    /// Bytes that no earlier sync covers.
    bytes: u64,
    /// Whether the directory is synced too, so that the file name is durable.
    sync_dir: bool,
    /// Whether a response waits for the sync.
    awaited: bool,
}

/// The result of a [`SyncJob`].
#[derive(Debug)]
pub struct SyncCompletion {
    pub segment: u64,
    pub result: io::Result<()>,
    /// The duration of a short sync, if it was measured.
    pub took: Option<Duration>,
}

impl SyncJob {
    pub(super) fn new(segment: u64, file: Arc<dyn File>, bytes: u64, sync_dir: bool) -> Self {
        Self { segment, file, bytes, sync_dir, awaited: false }
    }

    pub(super) fn with_waiters(self, awaited: bool) -> Self {
        Self { awaited, ..self }
    }

    /// Whether a fast disk runs the sync in less time than two threads need to hand it over. A sync
    /// that no response waits for is not urgent, so it never delays a write.
    pub(super) fn is_short(&self) -> bool {
        self.awaited && !self.sync_dir && self.bytes <= SHORT_BYTES_MAX
    }

    /// Syncs the segment. On success, all bytes written before the job was created survive a power
    /// cut. After an error, the file must not be synced again.
    pub fn run(self, disk: &dyn Filesystem) -> SyncCompletion {
        let synced = self.file.sync();
        let result = if self.sync_dir { synced.and_then(|()| disk.sync_dir()) } else { synced };
        SyncCompletion { segment: self.segment, result, took: None }
    }

    /// Like [`SyncJob::run`], and measures the duration of a short sync.
    pub(super) fn run_timed(self, disk: &dyn Filesystem, clock: &Clock) -> SyncCompletion {
        if !self.is_short() {
            return self.run(disk);
        }
        let began = clock.now();
        let completion = self.run(disk);
        SyncCompletion { took: Some(clock.now().since(began)), ..completion }
    }
}
