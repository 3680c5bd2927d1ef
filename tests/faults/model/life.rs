//! One life of the process: its stages, wired as the server wires them, and without their threads.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use aurore_events::buffer::{self, Buffer};
use aurore_events::clock::Clock;
use aurore_events::journal::disk::Disk;
use aurore_events::journal::sync::{Done, Job};
use aurore_events::journal::{self, Checkpoint, Journal, Recovery};
use aurore_events::lifecycle::Lifecycle;
use aurore_events::metrics::Ledger;
use aurore_events::storage::{Breaker, BreakerLimits, EventRepository};
use aurore_events::writer::{BatchLimits, Drain, Links, Writer};

/// The bounds of a sequence's stages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) buffer: buffer::Limits,
    pub(super) shards: usize,
    pub(super) linger: Duration,
    pub(super) journal: journal::Limits,
    pub(super) breaker: BreakerLimits,
}

/// What the stages share. A stage that is not in its slot is at work, further down the stack.
pub(super) struct Life {
    pub(super) buffer: Arc<Buffer>,
    pub(super) journal: Arc<Journal>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) drain: Arc<Drain>,
    pub(super) lifecycle: Lifecycle,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) checkpoint: Slot<Checkpoint>,
    /// What the sync thread is to do, and what came of it.
    pub(super) job: Slot<Job>,
    pub(super) done: Slot<Done>,
    pub(super) writer: Slot<Writer>,
    pub(super) recovery: Slot<Recovery>,
    pub(super) had_backlog: bool,
}

pub(super) type Slot<T> = Mutex<Option<T>>;

impl Life {
    /// As the server starts. None when it says that the journal cannot be used.
    pub(super) fn begin(
        disk: &Arc<dyn Disk>,
        repository: Arc<dyn EventRepository>,
        clock: &Clock,
        bounds: Bounds,
    ) -> Option<Self> {
        let found = match journal::adopt(&**disk) {
            Ok(Ok(found)) => found,
            Ok(Err(refused)) => panic!("the server does not start: {refused}"),
            Err(_io) => return None,
        };
        let ledger = Arc::new(Ledger::new(bounds.shards));
        let (buffer, parker) = Buffer::new(bounds.buffer, bounds.shards, ledger.clone());
        let (journal, parkers) = Journal::new(bounds.shards);
        let (buffer, journal, drain) = (Arc::new(buffer), Arc::new(journal), Arc::new(Drain::default()));
        let (lifecycle, _notices) = Lifecycle::new();
        let links = Links {
            buffer: buffer.clone(),
            journal: journal.clone(),
            repository,
            breaker: Arc::new(Breaker::new(bounds.breaker)),
            ledger: ledger.clone(),
            figures: Arc::default(),
            drain: drain.clone(),
            lifecycle: lifecycle.clone(),
            clock: clock.clone(),
        };
        let batch = BatchLimits {
            rows_max: bounds.buffer.batch_rows_max,
            bytes_max: bounds.buffer.batch_bytes_max,
            linger: bounds.linger,
        };
        let checkpoint = Checkpoint::new(
            (journal.clone(), buffer.clone()),
            disk.clone(),
            bounds.journal,
            clock.clone(),
            parkers.checkpoint,
            &found,
        );
        let had_backlog = !found.is_empty();
        let recovery = Recovery::new(
            journal.clone(),
            disk.clone(),
            buffer.clone(),
            lifecycle.clone(),
            clock.clone(),
            parkers.recovery,
            found,
        );
        let writer = Mutex::new(Some(Writer::new(links, parker, batch)));
        let (checkpoint, recovery) = (Mutex::new(Some(checkpoint)), Mutex::new(Some(recovery)));
        Some(Self {
            buffer,
            journal,
            ledger,
            drain,
            lifecycle,
            disk: disk.clone(),
            checkpoint,
            job: Mutex::default(),
            done: Mutex::default(),
            writer,
            recovery,
            had_backlog,
        })
    }

    /// Failures of the journal so far.
    pub(super) fn failures(&self) -> u64 {
        let count = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        self.journal.figures.failures.iter().map(count).sum()
    }
}
