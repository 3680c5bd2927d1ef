//! The sync thread: runs syncs for the journal thread, one at a time, so that writes continue
//! during a sync.
//!
//! It must not depend on the contents of files.

use std::io;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::Journal;
use super::filesystem::{File, Filesystem};

/// A sync of one segment.
#[derive(Debug)]
#[must_use]
pub struct SyncJob {
    segment: u64,
    file: Arc<dyn File>,
    /// Whether the directory is synced too, so that the file name is durable.
    sync_dir: bool,
}

/// The result of a [`SyncJob`].
#[derive(Debug)]
pub struct SyncCompletion {
    pub segment: u64,
    pub result: io::Result<()>,
}

impl SyncJob {
    pub(super) fn new(segment: u64, file: Arc<dyn File>, name: bool) -> Self {
        Self { segment, file, sync_dir: name }
    }

    /// Syncs the segment. On success, all bytes written before the job was created survive a power
    /// cut. After an error, the file must not be synced again.
    pub fn run(self, disk: &dyn Filesystem) -> SyncCompletion {
        let synced = self.file.sync();
        let result = if self.sync_dir { synced.and_then(|()| disk.sync_dir()) } else { synced };
        SyncCompletion { segment: self.segment, result }
    }
}

/// The journal thread's end of the channels to and from the sync thread. Each holds at most one
/// message.
#[derive(Debug)]
pub struct SyncLink {
    pub(super) jobs: Sender<SyncJob>,
    pub(super) results: Receiver<SyncCompletion>,
}

/// The state of the sync thread.
#[derive(Debug)]
pub struct Syncer {
    journal: Arc<Journal>,
    disk: Arc<dyn Filesystem>,
    jobs: Receiver<SyncJob>,
    results: Sender<SyncCompletion>,
}

impl Syncer {
    pub fn new(journal: Arc<Journal>, disk: Arc<dyn Filesystem>) -> (Self, SyncLink) {
        let (job_sender, job_receiver) = bounded(1);
        let (result_sender, result_receiver) = bounded(1);
        (
            Self { journal, disk, jobs: job_receiver, results: result_sender },
            SyncLink { jobs: job_sender, results: result_receiver },
        )
    }

    /// Runs until the journal thread has ended.
    pub fn run(&self) {
        while let Ok(job) = self.jobs.recv() {
            if self.results.send(job.run(&*self.disk)).is_err() {
                return;
            }
            self.journal.wake();
        }
    }
}
