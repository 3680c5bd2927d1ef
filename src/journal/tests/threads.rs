//! Tests of the journal thread and the sync thread: which of them runs a sync, and that writes
//! continue whichever does.

use std::sync::Condvar;
use std::sync::mpsc::channel;

use super::super::sync::{SyncCompletion, SyncJob};
use super::super::sync_placement::SyncThread;
use super::super::threads::{JournalThread, Shared, Step, Syncer};
use super::*;

const FAST: Duration = Duration::from_micros(100);
const SLOW: Duration = Duration::from_millis(20);
/// Only a failing test waits as long.
const TIMEOUT: Duration = Duration::from_secs(30);

fn must_reach(reached: bool) -> Option<Waker> {
    assert!(reached);
    None
}

/// A filesystem in memory whose syncs take time.
#[derive(Clone, Debug)]
struct SlowFilesystem {
    files: MemoryFilesystem,
    sync: Arc<SyncDelay>,
}

#[derive(Debug)]
enum SyncDelay {
    /// Advances the clock.
    Simulated(Clock, Mutex<Duration>),
    /// Blocks while the gate is closed.
    Gated(Mutex<Gate>, Condvar),
}

#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    /// Syncs that wait for the gate.
    waiting: usize,
}

#[derive(Debug)]
struct SlowFile(Box<dyn File>, Arc<SyncDelay>);

impl SyncDelay {
    fn set(&self, takes: Duration) {
        let Self::Simulated(_, duration) = self else { panic!("its syncs wait at the gate") };
        *duration.lock().unwrap() = takes;
    }

    fn gate(&self) -> (&Mutex<Gate>, &Condvar) {
        let Self::Gated(gate, changed) = self else { panic!("its syncs advance the clock") };
        (gate, changed)
    }

    fn set_closed(&self, closed: bool) {
        let (gate, changed) = self.gate();
        gate.lock().unwrap().closed = closed;
        changed.notify_all();
    }

    fn await_waiting_sync(&self) {
        let (gate, changed) = self.gate();
        let none = |gate: &mut Gate| gate.waiting == 0;
        let (_gate, timeout) = changed.wait_timeout_while(gate.lock().unwrap(), TIMEOUT, none).unwrap();
        assert!(!timeout.timed_out(), "no sync began");
    }

    fn wait(&self) {
        match self {
            Self::Simulated(clock, takes) => clock.advance(*takes.lock().unwrap()),
            Self::Gated(gate, changed) => {
                let mut gate = gate.lock().unwrap();
                gate.waiting += 1;
                changed.notify_all();
                gate = changed.wait_while(gate, |gate| gate.closed).unwrap();
                gate.waiting -= 1;
            }
        }
    }
}

impl Filesystem for SlowFilesystem {
    fn list(&self) -> io::Result<Vec<String>> {
        self.files.list()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(SlowFile(self.files.create(name)?, self.sync.clone())))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.files.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.files.sync_dir()
    }
}

impl File for SlowFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write(at, bytes)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.wait();
        self.0.sync()
    }
    fn bytes(&self) -> io::Result<u64> {
        self.0.bytes()
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(at, into)
    }
}

struct ThreadsHarness {
    thread: JournalThread,
    syncer: Syncer,
    shared: Shared,
    journal: Arc<Journal>,
    disk: SlowFilesystem,
    clock: Clock,
}

impl ThreadsHarness {
    fn new(clock: Clock, delay: SyncDelay) -> Self {
        let (journal, parts) = Journal::new(1);
        let journal = Arc::new(journal);
        let disk = SlowFilesystem { files: MemoryFilesystem::default(), sync: Arc::new(delay) };
        let limits = JournalLimits {
            write_interval: WRITE_INTERVAL,
            sync_interval: Duration::from_secs(5),
            retain: crate::journal::RetainLimits::NONE,
            segment_bytes_max: 1 << 20,
        };
        let buffer_limits = crate::buffer::BufferLimits {
            rows_max: ROWS_MAX,
            bytes_max: 1 << 20,
            batch_rows_max: 2,
            batch_bytes_max: 1 << 20,
            spill_bytes_max: SPILL_BYTES_MAX,
        };
        let buffer = Arc::new(Buffer::new(buffer_limits, 1, Arc::new(Ledger::new(1))).0);
        let shared = (journal.clone(), buffer);
        let writer = JournalWriter::new(
            shared,
            Arc::new(disk.clone()),
            limits,
            clock.clone(),
            &FoundSegments::default(),
        );
        let (thread, syncer) = JournalThread::new(writer, parts.writer);
        Self { shared: thread.shared(), thread, syncer, journal, disk, clock }
    }

    /// On a simulated disk and clock.
    fn simulated() -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1), 1);
        Self::new(clock.clone(), SyncDelay::Simulated(clock, Mutex::new(FAST)))
    }

    fn append(&self, message: &str) -> RowBlock {
        let block = block(message);
        self.journal.append(0, &block);
        block
    }

    /// Ticks as the journal thread does.
    fn step(&self, done: Option<SyncCompletion>) -> Step {
        self.shared.lock().step(done, self.clock.now())
    }

    /// Looks after the journal thread as the sync thread does.
    fn watch(&self) -> bool {
        self.shared.lock().watch(self.clock.now(), WRITE_INTERVAL / 2)
    }

    /// Begins the sync of one event.
    fn begin_sync(&self) -> (SyncJob, SyncThread) {
        drop(self.append("synced"));
        self.journal.on_durable(0, Durability::Synced, Box::new(must_reach));
        self.step(None).job.expect("a waiter needs a sync")
    }

    /// Syncs one event in `takes`. Returns the thread that the sync was placed on.
    fn sync(&self, takes: Duration) -> SyncThread {
        self.disk.sync.set(takes);
        let (job, thread) = self.begin_sync();
        let done = job.run_timed(&self.disk, &self.clock);
        assert!(self.step(Some(done)).job.is_none());
        thread
    }

    /// Syncs until syncs are placed on `thread`.
    fn sync_until(&self, thread: SyncThread, takes: Duration) {
        assert!((0..100).any(|_| self.sync(takes) == thread), "syncs are not placed on {thread:?}");
    }
}

#[test]
fn slow_disk_moves_syncs_to_the_sync_thread_where_writes_continue() {
    let harness = ThreadsHarness::simulated();
    assert_eq!(harness.sync(FAST), SyncThread::Dedicated, "an unknown disk counts as slow");
    harness.sync_until(SyncThread::Journal, FAST);
    assert_eq!(harness.sync(SLOW), SyncThread::Journal);
    harness.disk.sync.set(SLOW);
    let (job, thread) = harness.begin_sync();
    assert_eq!(thread, SyncThread::Dedicated, "one slow sync suffices");
    // The journal thread is free, and writes while the sync is in flight.
    let _block = harness.append("memory");
    harness.clock.advance(WRITE_INTERVAL);
    assert!(harness.step(None).job.is_none());
    assert!(harness.disk.files.messages().contains(&"memory".to_owned()));
    let done = job.run_timed(&harness.disk, &harness.clock);
    assert!(harness.step(Some(done)).job.is_none());
    assert_eq!(harness.sync(SLOW), SyncThread::Dedicated);
    harness.sync_until(SyncThread::Journal, FAST);
}

#[test]
fn sync_thread_writes_while_a_sync_of_the_journal_thread_stalls() {
    let harness = ThreadsHarness::simulated();
    harness.sync_until(SyncThread::Journal, FAST);
    let (job, thread) = harness.begin_sync();
    assert_eq!(thread, SyncThread::Journal);
    let admitted_at = harness.clock.now();
    let _block = harness.append("memory");
    // The sync is too young when the sync thread first looks.
    harness.clock.advance(Duration::from_millis(4));
    assert!(harness.watch());
    while !harness.disk.files.messages().contains(&"memory".to_owned()) {
        harness.clock.advance(WRITE_INTERVAL / 2);
        assert!(harness.clock.now().since(admitted_at) <= WRITE_INTERVAL, "it waits for the sync");
        assert!(harness.watch());
    }
    let done = job.run_timed(&harness.disk, &harness.clock);
    assert!(harness.step(Some(done)).job.is_none(), "no waiter needs a sync");
}

#[test]
fn sync_thread_stops_watching_once_the_journal_thread_runs_no_syncs() {
    let harness = ThreadsHarness::simulated();
    harness.sync_until(SyncThread::Journal, FAST);
    assert!(harness.watch(), "syncs began since it last looked");
    assert!(!harness.watch());
    let _block = harness.append("synced");
    harness.journal.on_durable(0, Durability::Synced, Box::new(must_reach));
    let step = harness.step(None);
    assert!(step.start_watch, "it must be told to watch again");
    let (job, _) = step.job.expect("a waiter needs a sync");
    let step = harness.step(Some(job.run_timed(&harness.disk, &harness.clock)));
    assert!(step.job.is_none() && !step.start_watch);
}

#[test]
fn syncs_without_waiters_and_of_a_new_file_name_are_placed_on_the_sync_thread() {
    let harness = ThreadsHarness::simulated();
    harness.sync_until(SyncThread::Journal, FAST);
    let _block = harness.append("memory");
    harness.clock.advance(Duration::from_secs(5));
    let (job, thread) = harness.step(None).job.expect("the sync interval has passed");
    assert_eq!(thread, SyncThread::Dedicated);
    drop(harness.step(Some(job.run_timed(&harness.disk, &harness.clock))));
    let _filler = harness.append(&"x".repeat(1 << 20));
    let (job, thread) = harness.step(None).job.expect("a full segment is synced");
    assert_eq!(thread, SyncThread::Dedicated);
    assert!(harness.step(Some(job.run_timed(&harness.disk, &harness.clock))).job.is_none());
    let (_, thread) = harness.begin_sync();
    assert_eq!(thread, SyncThread::Dedicated, "its directory is synced too");
}

/// Ends the threads, also if the test fails.
struct EndThreads<'a>(&'a Journal, &'a SyncDelay);

impl Drop for EndThreads<'_> {
    fn drop(&mut self) {
        self.1.set_closed(false);
        self.0.finish();
    }
}

#[test]
fn threads_write_events_while_the_disk_stalls_and_sync_them_afterwards() {
    let harness = ThreadsHarness::new(Clock::system(), SyncDelay::Gated(Mutex::default(), Condvar::new()));
    let ThreadsHarness { thread, syncer, shared, journal, disk, clock } = harness;
    let (sender, receiver) = channel();
    let append = |message| journal.append(0, &block(message));
    let sync = |message| {
        let sender = sender.clone();
        append(message);
        journal.on_durable(
            0,
            Durability::Synced,
            Box::new(move |reached| {
                sender.send(reached).unwrap();
                None
            }),
        );
        journal.wake_for(Durability::Synced);
    };
    std::thread::scope(|scope| {
        scope.spawn(move || thread.run());
        scope.spawn(move || syncer.run());
        let _end = EndThreads(&journal, &disk.sync);
        while shared.lock().placement() != SyncThread::Journal {
            sync("before");
            assert_eq!(receiver.recv_timeout(TIMEOUT), Ok(true));
        }
        disk.sync.set_closed(true);
        sync("during");
        disk.sync.await_waiting_sync();
        append("memory");
        let began = clock.now();
        while !disk.files.messages().contains(&"memory".to_owned()) {
            assert!(clock.now().since(began) < TIMEOUT, "the write waits for the sync");
            std::thread::yield_now();
        }
        assert!(receiver.try_recv().is_err(), "the sync has not ended");
        disk.sync.set_closed(false);
        assert_eq!(receiver.recv_timeout(TIMEOUT), Ok(true));
    });
    disk.files.cut_power();
    let messages = disk.files.messages();
    assert!(["during", "memory"].iter().all(|message| messages.contains(&(*message).to_owned())));
}
