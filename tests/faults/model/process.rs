//! One simulated process: the stages of the server, wired as in the server, without threads.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aurore_events::buffer::{self, Buffer};
use aurore_events::clock::{Clock, Moment};
use aurore_events::failover::FailoverReplay;
use aurore_events::journal::filesystem::Filesystem;
use aurore_events::journal::sync::{SyncCompletion, SyncJob};
use aurore_events::journal::{self, FailoverEvent, Journal, JournalWriter, Recovery};
use aurore_events::lifecycle::Lifecycle;
use aurore_events::metrics::Ledger;
use aurore_events::storage::wal::WalPosition;
use aurore_events::storage::{Breaker, BreakerLimits, EventRepository};
use aurore_events::writer::{BatchLimits, Drain, StoreQueue, Writer, WriterDeps, store_link};
use crossbeam::channel::Receiver;

/// The limits of the stages in a sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) buffer: buffer::BufferLimits,
    pub(super) shards: usize,
    pub(super) linger: Duration,
    pub(super) wait_max: Duration,
    /// Batches in flight at most.
    pub(super) connections: usize,
    pub(super) journal: journal::JournalLimits,
    pub(super) breaker: BreakerLimits,
}

/// The stages and their shared state. A slot is empty while its stage runs, further down the stack.
pub(super) struct Process {
    pub(super) buffer: Arc<Buffer>,
    pub(super) journal: Arc<Journal>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) drain: Arc<Drain>,
    pub(super) lifecycle: Lifecycle,
    pub(super) disk: Arc<dyn Filesystem>,
    pub(super) repository: Arc<dyn EventRepository>,
    pub(super) journal_writer: Slot<JournalWriter>,
    /// The next job of the sync thread, and the result of the last.
    pub(super) job: Slot<SyncJob>,
    pub(super) done: Slot<SyncCompletion>,
    pub(super) writer: Slot<Writer>,
    /// When the writer wakes up if nothing wakes it before; none while it is awake.
    pub(super) store_queue: StoreQueue,
    /// Store threads within a call to the database, further down the stack.
    pub(super) storing: AtomicUsize,
    pub(super) writer_sleeps_until: Slot<Moment>,
    pub(super) recovery: Slot<Recovery>,
    pub(super) failover: Slot<FailoverReplay>,
    pub(super) failovers: Receiver<FailoverEvent>,
    /// The acceptors with an admission in progress, further down the stack.
    pub(super) admitting: Mutex<Vec<usize>>,
    pub(super) had_backlog: bool,
}

pub(super) type Slot<T> = Mutex<Option<T>>;

impl Process {
    /// Starts like the server. None if the journal cannot be read.
    pub(super) fn start(
        disk: &Arc<dyn Filesystem>,
        repository: impl Fn(Option<WalPosition>) -> [Arc<dyn EventRepository>; 2],
        clock: &Clock,
        bounds: Bounds,
    ) -> Option<Self> {
        let found = match journal::scan_segments(&**disk) {
            Ok(Ok(found)) => found,
            Ok(Err(refused)) => panic!("the server does not start: {refused}"),
            Err(_io) => return None,
        };
        let [repository, replays] = repository(found.last_position());
        let ledger = Arc::new(Ledger::new(bounds.shards));
        let (buffer, parker) = Buffer::new(bounds.buffer, bounds.shards, ledger.clone());
        let (journal, parts) = Journal::new(bounds.shards);
        let (buffer, journal, drain) = (Arc::new(buffer), Arc::new(journal), Arc::new(Drain::default()));
        let (lifecycle, _notices) = Lifecycle::new();
        let links = WriterDeps {
            buffer: buffer.clone(),
            journal: journal.clone(),
            repository: repository.clone(),
            breaker: Arc::new(Breaker::new(bounds.breaker)),
            ledger: ledger.clone(),
            metrics: Arc::default(),
            drain: drain.clone(),
            lifecycle: lifecycle.clone(),
            clock: clock.clone(),
        };
        let batch = BatchLimits {
            rows_max: bounds.buffer.batch_rows_max,
            bytes_max: bounds.buffer.batch_bytes_max,
            linger: bounds.linger,
            wait_max: bounds.wait_max,
        };
        let journal_writer = JournalWriter::new(
            (journal.clone(), buffer.clone()),
            disk.clone(),
            bounds.journal,
            clock.clone(),
            &found,
        );
        let had_backlog = !found.pending.is_empty();
        let recovery = Recovery::new(
            journal.clone(),
            disk.clone(),
            buffer.clone(),
            lifecycle.clone(),
            clock.clone(),
            parts.recovery,
            found.pending,
        );
        let (store_link, store_queue) = store_link(bounds.connections);
        let writer = Mutex::new(Some(Writer::new(links, parker, batch, store_link)));
        let failover = FailoverReplay::new(
            (journal.clone(), disk.clone()),
            replays,
            Arc::default(),
            lifecycle.clone(),
            clock.clone(),
        );
        let (journal_writer, recovery) = (Mutex::new(Some(journal_writer)), Mutex::new(Some(recovery)));
        Some(Self {
            buffer,
            journal,
            ledger,
            drain,
            lifecycle,
            disk: disk.clone(),
            repository,
            journal_writer,
            job: Mutex::default(),
            done: Mutex::default(),
            writer,
            store_queue,
            storing: AtomicUsize::new(0),
            writer_sleeps_until: Mutex::default(),
            recovery,
            failover: Mutex::new(Some(failover)),
            failovers: parts.failovers,
            admitting: Mutex::default(),
            had_backlog,
        })
    }

    /// The number of failures of the journal.
    pub(super) fn failures(&self) -> u64 {
        let count = |count: &std::sync::atomic::AtomicU64| count.load(std::sync::atomic::Ordering::Relaxed);
        self.journal.metrics.failures.iter().map(count).sum()
    }
}
