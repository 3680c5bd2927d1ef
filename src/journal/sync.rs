//! The sync thread: makes durable what the checkpoint thread has written, one job at a time, so that writing goes on
//! meanwhile.
//!
//! Knows files and nothing of what is in them.

use std::io;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::Journal;
use super::disk::{Disk, File};

/// A sync of one segment.
#[derive(Debug)]
#[must_use]
pub struct Job {
    segment: u64,
    file: Arc<dyn File>,
    /// Whether the directory has to be synced too, for the file to be found.
    name: bool,
}

/// What came of a job.
#[derive(Debug)]
pub struct Done {
    pub segment: u64,
    pub result: io::Result<()>,
}

impl Job {
    pub(super) fn new(segment: u64, file: Arc<dyn File>, name: bool) -> Self {
        Self { segment, file, name }
    }

    /// Everything that was written before the job was given out is on disk afterwards, and found there. After an
    /// error it must not be tried again on this file.
    pub fn run(self, disk: &dyn Disk) -> Done {
        let synced = self.file.sync();
        let result = if self.name { synced.and_then(|()| disk.sync()) } else { synced };
        Done { segment: self.segment, result }
    }
}

/// The checkpoint thread's end: jobs out, what came of them in. Of neither is there ever more than one.
#[derive(Debug)]
pub struct Link {
    pub(super) jobs: Sender<Job>,
    pub(super) done: Receiver<Done>,
}

/// The sync thread's end.
#[derive(Debug)]
pub struct Syncer {
    journal: Arc<Journal>,
    disk: Arc<dyn Disk>,
    jobs: Receiver<Job>,
    done: Sender<Done>,
}

impl Syncer {
    pub fn new(journal: Arc<Journal>, disk: Arc<dyn Disk>) -> (Self, Link) {
        let (jobs, taken) = bounded(1);
        let (told, done) = bounded(1);
        (Self { journal, disk, jobs: taken, done: told }, Link { jobs, done })
    }

    /// Runs until the checkpoint thread has ended.
    pub fn run(&self) {
        while let Ok(job) = self.jobs.recv() {
            if self.done.send(job.run(&*self.disk)).is_err() {
                return;
            }
            self.journal.wake();
        }
    }
}
