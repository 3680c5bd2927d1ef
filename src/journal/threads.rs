//! The journal thread and the sync thread, which share the [`JournalWriter`].
//!
//! The journal thread ticks it. It runs a sync itself while syncs are fast ([`SyncPlacement`]);
//! otherwise it passes the sync to the sync thread and continues to write. The disk may stall in a
//! sync of the journal thread nevertheless. Therefore the sync thread looks twice per write interval
//! whether that sync has ended, and ticks in place of the journal thread until it has: a block waits
//! no longer for its write than with a sync on the sync thread.
//!
//! It must not depend on segments, waiters or the contents of files.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use crossbeam::sync::Parker;

use super::filesystem::Filesystem;
use super::sync::{SyncCompletion, SyncJob};
use super::sync_placement::{SyncPlacement, SyncThread};
use super::{Journal, JournalWriter};
use crate::clock::{Clock, Moment};
use crate::lifecycle::Heartbeat;

/// A message to the sync thread.
#[derive(Debug)]
enum SyncRequest {
    Run(SyncJob),
    /// The journal thread runs syncs itself.
    Watch,
}

/// The state that both threads share.
///
/// Invariant: at most one sync is in flight, on either thread; `on_journal_since` is set while it is
/// on the journal thread.
#[derive(Debug)]
pub(super) struct SharedState {
    writer: JournalWriter,
    placement: SyncPlacement,
    /// The start of the sync that the journal thread runs.
    on_journal_since: Option<Moment>,
    /// Whether the sync thread watches the syncs of the journal thread.
    watched: bool,
    /// Whether the journal thread has begun a sync since the sync thread last looked.
    synced_since_watch: bool,
}

/// What [`SharedState::step`] asks of the journal thread.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) job: Option<(SyncJob, SyncThread)>,
    /// The sync thread must be told to watch.
    pub(super) start_watch: bool,
    finished: bool,
}

impl SharedState {
    /// Ticks for the journal thread, and places the next sync.
    pub(super) fn step(&mut self, completion: Option<SyncCompletion>, now: Moment) -> Step {
        self.on_journal_since = None;
        if let Some(took) = completion.as_ref().and_then(|completion| completion.took) {
            self.placement.record(took);
        }
        let finishing = self.writer.is_finishing();
        let job = self.writer.tick(completion).map(|job| {
            let thread = if job.is_short() { self.placement.thread() } else { SyncThread::Dedicated };
            (job, thread)
        });
        let mut start_watch = false;
        if let Some((_, SyncThread::Journal)) = job {
            self.on_journal_since = Some(now);
            self.synced_since_watch = true;
            start_watch = !std::mem::replace(&mut self.watched, true);
        }
        Step { job, start_watch, finished: finishing && self.writer.is_finished() }
    }

    /// Ticks in place of the journal thread if that is in a sync which began `stall_min` ago. Returns
    /// whether the sync thread must continue to watch.
    pub(super) fn watch(&mut self, now: Moment, stall_min: Duration) -> bool {
        if let Some(since) = self.on_journal_since {
            if now.since(since) >= stall_min {
                let job = self.writer.tick(None);
                assert!(job.is_none(), "BUG: a second sync began while one is in flight");
            }
            return true;
        }
        self.watched = std::mem::take(&mut self.synced_since_watch);
        self.watched
    }
}

#[derive(Clone, Debug)]
pub(super) struct Shared {
    state: Arc<Mutex<SharedState>>,
    journal: Arc<Journal>,
    disk: Arc<dyn Filesystem>,
    clock: Clock,
    write_interval: Duration,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().expect("BUG: a panic while the journal was written")
    }
}

/// The state of the journal thread.
#[derive(Debug)]
pub struct JournalThread {
    shared: Shared,
    parker: Parker,
    requests: Sender<SyncRequest>,
    results: Receiver<SyncCompletion>,
    heartbeat: Heartbeat,
}

/// The state of the sync thread.
#[derive(Debug)]
pub struct Syncer {
    shared: Shared,
    requests: Receiver<SyncRequest>,
    results: Sender<SyncCompletion>,
}

#[cfg(test)]
impl SharedState {
    pub(super) fn placement(&self) -> SyncThread {
        self.placement.thread()
    }
}

#[cfg(test)]
impl JournalThread {
    pub(super) fn shared(&self) -> Shared {
        self.shared.clone()
    }
}

impl JournalThread {
    /// `parker` is that of the journal's writer. The sync thread must outlive the journal thread.
    pub fn new(writer: JournalWriter, parker: Parker) -> (Self, Syncer) {
        let shared = Shared {
            journal: writer.journal().clone(),
            disk: writer.disk().clone(),
            clock: writer.clock().clone(),
            write_interval: writer.limits().write_interval,
            state: Arc::new(Mutex::new(SharedState {
                writer,
                placement: SyncPlacement::new(),
                on_journal_since: None,
                watched: false,
                synced_since_watch: false,
            })),
        };
        // At most one `Watch` and one job are queued.
        let (request_sender, request_receiver) = bounded(2);
        let (result_sender, result_receiver) = bounded(1);
        let syncer = Syncer { shared: shared.clone(), requests: request_receiver, results: result_sender };
        let heartbeat = Heartbeat::default();
        (Self { shared, parker, requests: request_sender, results: result_receiver, heartbeat }, syncer)
    }

    /// Sets the heartbeat that counts the turns of the thread.
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Runs until `Journal::finish` was called and all blocks are synced, or cannot be.
    pub fn run(&self) {
        let Shared { disk, clock, write_interval, .. } = &self.shared;
        let mut completion = None;
        loop {
            self.heartbeat.beat();
            let done = completion.take().or_else(|| self.results.try_recv().ok());
            let step = self.shared.lock().step(done, clock.now());
            if step.start_watch {
                self.request(SyncRequest::Watch);
            }
            match step.job {
                Some((job, SyncThread::Journal)) => {
                    completion = Some(job.run_timed(&**disk, clock));
                    continue;
                }
                Some((job, SyncThread::Dedicated)) => self.request(SyncRequest::Run(job)),
                None => {}
            }
            if step.finished {
                return;
            }
            clock.park(&self.parker, *write_interval);
        }
    }

    fn request(&self, request: SyncRequest) {
        self.requests.send(request).expect("BUG: the sync thread outlives this one");
    }
}

impl Syncer {
    /// Runs until the journal thread has ended.
    pub fn run(&self) {
        let Shared { journal, disk, clock, write_interval, .. } = &self.shared;
        // A sync is at most this old when it is first seen, and twice as old when it is next seen.
        let stall_min = *write_interval / 2;
        let mut watches = false;
        loop {
            let request = if watches {
                self.requests.recv_timeout(stall_min)
            } else {
                self.requests.recv().map_err(|_closed| RecvTimeoutError::Disconnected)
            };
            match request {
                Ok(SyncRequest::Watch) => watches = true,
                Ok(SyncRequest::Run(job)) => {
                    if self.results.send(job.run_timed(&**disk, clock)).is_err() {
                        return;
                    }
                    journal.wake();
                }
                Err(RecvTimeoutError::Timeout) => watches = self.shared.lock().watch(clock.now(), stall_min),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}
