//! The store threads: run the transactions of batches for the writer thread, one at a time each, so
//! that one batch is copied while another commits.
//!
//! A store thread makes one attempt per job and reports its result. It classifies no error and
//! retries nothing; the writer does, on its own thread.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::batch::Batch;
use crate::buffer::Buffer;
use crate::clock::{Clock, Moment};
use crate::storage::{EventRepository, StoreError, StorePath, Stored};

/// One attempt to store a batch.
#[derive(Debug)]
#[must_use]
pub struct StoreJob {
    batch: Batch,
    path: StorePath,
    /// When the writer started the batch.
    started: Moment,
}

/// The result of a [`StoreJob`].
#[derive(Debug)]
pub struct StoreCompletion {
    pub(super) batch: Batch,
    pub(super) path: StorePath,
    pub(super) started: Moment,
    /// The duration of the attempt.
    pub(super) insert_time: Duration,
    pub(super) result: Result<Stored, StoreError>,
}

impl StoreJob {
    pub(super) fn new(batch: Batch, path: StorePath, started: Moment) -> Self {
        Self { batch, path, started }
    }

    /// Stores the batch in one transaction.
    pub fn run(self, repository: &dyn EventRepository, clock: &Clock) -> StoreCompletion {
        let Self { batch, path, started } = self;
        let begun = clock.now();
        let result = repository.store(&batch.runs(), &[], path);
        StoreCompletion { batch, path, started, insert_time: clock.now().since(begun), result }
    }
}

/// The writer's end of the channels to and from the store threads.
#[derive(Debug)]
pub struct StoreLink {
    jobs: Sender<StoreJob>,
    completions: Receiver<StoreCompletion>,
    /// Jobs without a completion that the writer has received.
    in_flight: usize,
    in_flight_max: usize,
}

/// The store threads' end of the channels. Each thread has a clone.
#[derive(Clone, Debug)]
pub struct StoreQueue {
    pub jobs: Receiver<StoreJob>,
    pub completions: Sender<StoreCompletion>,
}

/// Creates the channels for `connections` store threads.
pub fn store_link(connections: usize) -> (StoreLink, StoreQueue) {
    let (job_sender, job_receiver) = bounded(connections);
    let (completion_sender, completion_receiver) = bounded(connections);
    (
        StoreLink {
            jobs: job_sender,
            completions: completion_receiver,
            in_flight: 0,
            in_flight_max: connections,
        },
        StoreQueue { jobs: job_receiver, completions: completion_sender },
    )
}

impl StoreLink {
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.in_flight < self.in_flight_max
    }

    pub(super) fn start(&mut self, job: StoreJob) {
        self.in_flight += 1;
        // Fails only when the store threads are dead, which ends the process.
        if let Err(unsent) = self.jobs.send(job) {
            log::error!("no store thread takes a batch of {} events", unsent.0.batch.count());
        }
    }

    pub(super) fn completion(&mut self) -> Option<StoreCompletion> {
        let completion = self.completions.try_recv().ok()?;
        self.in_flight -= 1;
        Some(completion)
    }
}

/// The state of one store thread.
#[derive(Clone, Debug)]
pub struct StoreThread {
    pub queue: StoreQueue,
    pub repository: Arc<dyn EventRepository>,
    pub buffer: Arc<Buffer>,
    pub clock: Clock,
}

impl StoreThread {
    /// Runs until the writer has ended.
    pub fn run(&self) {
        while let Ok(job) = self.queue.jobs.recv() {
            if self.queue.completions.send(job.run(&*self.repository, &self.clock)).is_err() {
                return;
            }
            self.buffer.wake_writer();
        }
    }
}
