//! The journal: an append-only log of accepted events, so that acknowledged events survive the
//! process.
//!
//! An acceptor appends each block to its lane and, behind it, a waiter for a durability level. The
//! journal thread ([`JournalThread`]) drains the lanes, writes the blocks that are not finalized as
//! records of the active segment, and completes the waiters. One sync runs at a time: on the journal
//! thread while the disk is fast, otherwise on the sync thread ([`Syncer`]). The recovery thread
//! ([`Recovery`]) reads back the segments of earlier processes, then spilled events. A lane is FIFO,
//! so that a waiter is completed only after every block before it has reached the waiter's level.
//!
//! The module owns the directory `DATA_DIR/journal` and its three threads. It must not depend on
//! HTTP or SQL.
//!
//! # On-disk format
//!
//! A segment is a file `<number>.seg`. The number has at least 10 decimal digits, zero-padded. All
//! integers are little-endian. All checksums are CRC32C (Castagnoli).
//!
//! Segment header, 40 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic, `AURJRNL\n` |
//! | 8 | 4 | format version, `u32`: 3; versions 1 and 2 are read too |
//! | 12 | 8 | segment number, `u64`: that of the file name |
//! | 20 | 8 | tag: random bytes, drawn for each segment |
//! | 28 | 8 | creation time, `i64`: microseconds since 1970 |
//! | 36 | 4 | CRC32C of bytes 0 to 35; at this offset in every version |
//!
//! Then records without padding, one for each block; offsets from the beginning of the record:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | tag of the segment: the sync marker at which a reader resumes after corruption |
//! | 8 | 4 | n, bytes of the rows, `u32` |
//! | 12 | 4 | bits 0 to 30: number of rows, at least 1; bit 31 (since version 2): the block was spilled |
//! | 16 | 4 | CRC32C of segment number (8 bytes, not stored in the record), bytes 0 to 15, and the rows |
//! | 20 | n | rows, each a tuple of PostgreSQL's binary COPY format (`event::row`), since version 3 with the field `id` |
//!
//! Since version 2, zeros may follow the last record: preallocated space. The checksum includes the
//! segment number, so that a stale record of another segment is not valid. The tag is random and
//! unknown to producers, so that no event can contain a valid record.
//!
//! # Constraints and bounds
//!
//! - A record has less than 4 GiB of rows and fewer than 2^31 of them; requests are bounded far
//!   below.
//! - A write is one group of records, at most 1 MiB, unless a single block is larger.
//! - A segment is sealed by the first group that takes it to `JOURNAL_SEGMENT_BYTES`, so that it
//!   exceeds that by less than one group.
//! - A lane holds only blocks with a reservation in the buffer or the spill, and at most one waiter
//!   for each connection and each lookup.
//! - One sync is in flight at a time.
//! - A reader holds a window of 256 KiB and the rows of one record. It allocates the rows only
//!   after the checksum of the record matched.
//! - Adjacent ranges queued for refill are merged, so that there is about one for each segment.
//!
//! # Life of a segment
//!
//! 1. Created: the file is made under its final name and the header is written. Numbers increase
//!    from the highest found at the start; a process uses no number twice, even after a failed
//!    creation.
//! 2. Active: groups are appended at the end. Only the newest segment is active.
//! 3. Preallocated: before a sync with waiters, an active segment of at least 64 KiB with less than
//!    32 KiB of preallocated space is extended with zeros by its own size, at most 1 MiB and at
//!    most to `JOURNAL_SEGMENT_BYTES`. A sync within the file takes half the time of one that
//!    extends it. A failure is ignored: preallocation is an optimization.
//! 4. Sealed: nothing more is appended. It happens to a full segment, and to one of at least 1 MiB
//!    when `CHECKPOINT_INTERVAL_MS` has passed or the server stops. Sealed segments are synced
//!    oldest first.
//! 5. Abandoned, on failure: a segment whose write or sync failed is written and synced no more.
//!    Its blocks that are neither synced nor finalized are written again, to another segment.
//! 6. Pending: a segment of an earlier process, until recovery has read all of it.
//! 7. Retained: when it is not active, not pending, and all of its blocks are finalized or were
//!    moved to another segment. It is renamed to
//!    `<number>.<system identifier>-<timeline>-<LSN>.committed`, the position of its last commit in
//!    the database's WAL. A segment that finishes before its sync is retained without one. A corrupt
//!    segment is renamed to `<number>.seg.damaged` instead, and never read again.
//! 8. Removed: when the database was seen to have its events for `JOURNAL_RETAIN_MS`, or every
//!    standby has flushed the WAL up to its LSN, or the retained segments exceed
//!    `JOURNAL_RETAIN_BYTES`. After a failover it gets the name `<number>.seg` again until it is
//!    replayed, so that it is recovered if the process ends before.
//!
//! The directory is not synced after a rename or a removal. A segment may therefore reappear after a
//! power cut; its events are then replayed, and found to be stored by their ids.
//!
//! # Durability and syncs
//!
//! | level | a 202 is sent | what a kill loses | what a power cut loses |
//! |---|---|---|---|
//! | `memory` | once the block is in the buffer | the last `JOURNAL_WRITE_MS` | the last `CHECKPOINT_INTERVAL_MS` |
//! | `written` | once `pwrite` has returned | nothing | the last `CHECKPOINT_INTERVAL_MS` |
//! | `synced` | once the sync has returned | nothing | nothing |
//!
//! - A write happens every `JOURNAL_WRITE_MS`, or when a waiter wakes the journal thread. It syncs
//!   nothing.
//! - A sync happens every `CHECKPOINT_INTERVAL_MS`, for a `synced` waiter, when spilled events
//!   occupy too much memory or the refill has nothing to read, and when the server stops. It is an
//!   `fdatasync` of the segment; the first sync of a segment is followed by an `fsync` of the
//!   directory, so that the file name is durable too. `synced` waiters that arrive during a sync
//!   share the next one.
//! - The journal thread runs a sync itself if a waiter needs it, it covers at most 256 KiB and no new
//!   file name, and the mean duration of such syncs is short. If it stalls nevertheless, the sync
//!   thread writes in place of the journal thread, so that the bounds above hold during any sync.
//! - At the start: `fsync` of `DATA_DIR` after the directory is made, `fsync` of the directory
//!   before the first segment is made, `fdatasync` of each recovered segment before it is read.
//! - A failed sync is never retried on the same file: the kernel may have dropped the dirty pages
//!   and report success. The blocks of that segment, and of every segment whose name is not durable
//!   yet, are written to a new segment.
//! - A failed creation or write sets [`Fault::NotWritable`] and suspends all levels. A failed sync
//!   sets [`Fault::NotSynced`] and suspends `synced`. Waiters are completed with `false`. Retries
//!   follow after 100 ms, doubling up to 1 s; a success clears the fault.
//!
//! # Recovery
//!
//! - [`scan_segments`] first makes and removes a file `probe`: a directory that is not writable
//!   fails the start, a full disk does not. It then decodes the header of every segment. A newer
//!   format version fails the start ([`OpenJournalError`]), and no segment is changed. Other files
//!   are left alone.
//! - Segments are read in the order of their numbers, and their rows enter the buffer as capacity
//!   allows. The files are not modified, and stay until the rows are finalized: a recovery can be
//!   killed and repeated. Delivery is at least once; PostgreSQL recognizes stored events by their
//!   ids.
//! - Corrupt range: bytes that are no valid record, before a valid one. The reader searches the
//!   next occurrence of the tag that begins a record with a matching checksum; all intact records
//!   are recovered. A record whose checksum matches but whose rows do not decode is a corrupt range
//!   as well. The range is counted (`journal_corrupt_ranges_total`), and the segment is renamed to
//!   `.damaged` once its rows are finalized.
//! - Torn tail: bytes that are no valid record and that no valid record follows, up to the last
//!   non-zero byte. It was not synced, or it is corruption of the last record. It is counted
//!   (`journal_torn_bytes_total`) and ignored; the segment is removed as usual.
//! - Corrupt header: the tag is taken from the first record, if its checksum matches; otherwise the
//!   whole file counts as a torn tail. The segment is renamed to `.damaged` in both cases. A header
//!   that is cut off, or all zeros without a valid first record, was never synced, and only makes
//!   the file a torn tail.
//! - A segment that cannot be read (I/O error) is kept, also after its rows are finalized, and is
//!   read again at the next start.
//!
//! Spilled events are read back by the same reader, while the server runs, from ranges that are
//! synced. Those that cannot be read because of corruption are counted as lost.

pub mod filesystem;
pub mod inspect;
pub mod lookup;
pub mod openapi;
mod pipeline;
pub mod reader;
pub mod record;
pub mod recovery;
mod refill;
mod retained;
pub mod segment;
mod segment_table;
pub mod sync;
mod sync_flag;
mod sync_placement;
mod threads;
pub mod writer;

#[cfg(test)]
mod corruption_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{self, AtomicBool, AtomicU8, Ordering};
use std::task::Waker;

use crossbeam::channel::{Receiver, Sender, unbounded};
use crossbeam::queue::SegQueue;
use crossbeam::sync::{Parker, Unparker};
use crossbeam::utils::CachePadded;

pub use lookup::Lookup;
pub use recovery::{ExistingSegment, FoundSegments, OpenJournalError, Recovery, scan_segments};
use refill::{RefillQueue, SegmentRange};
pub use retained::{CommittedSegment, FailoverEvent, RetainLimits, StaleSegment};
use sync_flag::SyncFlag;
pub use threads::{JournalThread, Syncer};
pub use writer::{JournalLimits, JournalWriter};

use crate::buffer::RowBlock;
pub use crate::metrics::journal::{JournalMetrics, JournalOp};
use crate::storage::{CommitPosition, DatabaseState};

/// The guarantee of a 202, set by `DURABILITY` or the `Durability` request header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The event is in the buffer.
    Memory,
    /// The event is in the page cache: it survives the process.
    Written,
    /// The event is on disk: it survives a power cut.
    Synced,
}

impl Durability {
    pub const ALL: [Self; 3] = [Self::Memory, Self::Written, Self::Synced];

    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Written => "written",
            Self::Synced => "synced",
        }
    }

    pub fn parse(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|level| name.eq_ignore_ascii_case(level.name().as_bytes()))
    }
}

/// Called once, with whether the level was reached. It may be dropped without a call. It returns what
/// wakes the thread that the result is for.
pub type DurabilityCallback = Box<dyn FnOnce(bool) -> Option<Waker> + Send>;

/// Calls the callbacks with whether their levels were reached, then wakes each thread once: it finds
/// all results in one turn, and a wake-up is a system call.
pub fn complete_group(callbacks: impl IntoIterator<Item = (DurabilityCallback, bool)>) {
    let mut wakers: Vec<Waker> = Vec::new();
    for (callback, reached) in callbacks {
        if let Some(waker) = callback(reached)
            && !wakers.iter().any(|known| known.will_wake(&waker))
        {
            wakers.push(waker);
        }
    }
    wakers.into_iter().for_each(Waker::wake);
}

/// Waits until every block before it in its lane has reached `level`.
struct DurabilityWaiter {
    level: Durability,
    callback: DurabilityCallback,
}

impl fmt::Debug for DurabilityWaiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DurabilityWaiter").field(&self.level).finish()
    }
}

#[derive(Debug)]
enum LaneEntry {
    Block(RowBlock),
    Waiter(DurabilityWaiter),
}

/// A change to the state of a segment, sent to the journal thread by the writer and by recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SegmentUpdate {
    /// `blocks` blocks of the segment, or of none yet, are finalized.
    Finalized { segment: Option<u64>, blocks: u64, commit: Option<CommitPosition> },
    /// `blocks` blocks read from the segment are in the buffer.
    Replayed { segment: u64, blocks: u64 },
    /// The segment was read to its end.
    FullyRead { segment: u64, damaged: bool },
    /// The database was seen in this state.
    Observed(DatabaseState),
    /// The database has all events of a retained segment since `commit`.
    Restored { segment: u64, commit: Option<CommitPosition> },
}

/// A condition that suspends durability levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The last creation or write failed. No level is guaranteed.
    NotWritable,
    /// A sync failed and none has succeeded since. [`Durability::Synced`] is not guaranteed.
    NotSynced,
}

/// The bits of `Journal::faults`.
const NOT_WRITABLE: u8 = 1;
const NOT_SYNCED: u8 = 2;

/// The part of the journal that other threads share.
///
/// Invariant: a lane holds no more blocks than the buffer and the spill have rows reserved, since a
/// block holds its reservation while it is in the lane, and no more waiters than there are
/// connections.
#[derive(Debug)]
pub struct Journal {
    lanes: Box<[CachePadded<SegQueue<LaneEntry>>]>,
    segment_updates: SegQueue<SegmentUpdate>,
    writer: Unparker,
    recovery: Unparker,
    failovers: Sender<FailoverEvent>,
    faults: AtomicU8,
    finishing: AtomicBool,
    sync_in_flight: SyncFlag,
    /// Synced ranges with spilled events, to be read back when the buffer has capacity.
    refill_queue: RefillQueue,
    pub metrics: JournalMetrics,
}

/// The parkers of the journal thread and the recovery thread, and what the failover thread receives.
#[derive(Debug)]
pub struct JournalParts {
    pub writer: Parker,
    pub recovery: Parker,
    pub failovers: Receiver<FailoverEvent>,
}

impl Journal {
    pub fn new(lanes: usize) -> (Self, JournalParts) {
        // At most one event for each failover and each segment.
        let (failovers, received) = unbounded();
        let parts = JournalParts { writer: Parker::new(), recovery: Parker::new(), failovers: received };
        let journal = Self {
            lanes: (0..lanes).map(|_| CachePadded::new(SegQueue::new())).collect(),
            segment_updates: SegQueue::new(),
            writer: parts.writer.unparker().clone(),
            recovery: parts.recovery.unparker().clone(),
            failovers,
            faults: AtomicU8::new(0),
            finishing: AtomicBool::new(false),
            sync_in_flight: SyncFlag::new(),
            refill_queue: RefillQueue::default(),
            metrics: JournalMetrics::default(),
        };
        (journal, parts)
    }

    /// Appends a block to a lane. It must be called before the writer can pop the block, so that
    /// every finalized block has passed through a lane.
    #[inline]
    pub fn append(&self, lane: usize, block: &RowBlock) {
        self.lanes[lane].push(LaneEntry::Block(block.clone()));
    }

    /// Calls `callback` once every block that is now in the lane has reached `level`, or cannot
    /// reach it. The caller wakes the journal thread, once for any number of callbacks.
    pub fn on_durable(&self, lane: usize, level: Durability, callback: DurabilityCallback) {
        self.lanes[lane].push(LaneEntry::Waiter(DurabilityWaiter { level, callback }));
    }

    pub fn wake(&self) {
        self.writer.unpark();
    }

    /// Wakes the journal thread for a waiter of `level`. A waiter for a sync needs no wake while
    /// another sync is in flight: its end drains the lanes, and the waiters share the next sync.
    pub fn wake_for(&self, level: Durability) {
        if self.sync_in_flight.must_wake() || level != Durability::Synced {
            self.wake();
        }
    }

    /// Marks blocks as finalized and drops them, which releases their reservations. `commit`: where
    /// their rows were committed, if the database tells.
    pub fn finalize(&self, blocks: Vec<RowBlock>, commit: Option<CommitPosition>) {
        if commit.is_some() {
            // Before the blocks are finalized: the journal thread, which may write one that it finds
            // finalized, then finds the position too.
            self.push_finalized(Some((None, 0)), commit);
        }
        let mut run: Option<(Option<u64>, u64)> = None;
        for block in blocks {
            let segment = block.finalize();
            drop(block);
            match &mut run {
                Some((of, blocks)) if *of == segment => *blocks += 1,
                _ => {
                    let ended = run.replace((segment, 1));
                    self.push_finalized(ended, commit);
                }
            }
        }
        self.push_finalized(run, commit);
        self.recovery.unpark();
    }

    fn push_finalized(&self, run: Option<(Option<u64>, u64)>, commit: Option<CommitPosition>) {
        if let Some((segment, blocks)) = run {
            self.segment_updates.push(SegmentUpdate::Finalized { segment, blocks, commit });
        }
    }

    /// Records that the database was seen in this state: retained segments become removable, or a
    /// failover is noticed.
    pub fn observe(&self, state: DatabaseState) {
        self.segment_updates.push(SegmentUpdate::Observed(state));
    }

    /// Records that the database has all events of a retained segment since `commit`.
    pub fn restored(&self, segment: u64, commit: Option<CommitPosition>) {
        self.segment_updates.push(SegmentUpdate::Restored { segment, commit });
    }

    /// The segments that were reported to [`Self::restored`].
    #[cfg(test)]
    pub fn take_restored(&self) -> Vec<u64> {
        let updates = std::iter::from_fn(|| self.segment_updates.pop());
        let segments = updates.filter_map(|update| {
            if let SegmentUpdate::Restored { segment, .. } = update { Some(segment) } else { None }
        });
        segments.collect()
    }

    fn report_failover(&self, event: FailoverEvent) {
        // Without a failover thread, as in a test of the journal, nobody needs it.
        if let Err(unsent) = self.failovers.send(event) {
            log::debug!("no thread replays {:?}", unsent.0);
        }
    }

    fn push_update(&self, update: SegmentUpdate) {
        self.segment_updates.push(update);
    }

    /// Whether `level` can be reached now: no fault suspends it.
    #[inline]
    pub fn guarantees(&self, level: Durability) -> bool {
        let faults = self.faults.load(Ordering::Acquire);
        match level {
            Durability::Memory | Durability::Written => faults & NOT_WRITABLE == 0,
            Durability::Synced => faults == 0,
        }
    }

    pub fn fault(&self) -> Option<Fault> {
        match self.faults.load(Ordering::Acquire) {
            0 => None,
            NOT_SYNCED => Some(Fault::NotSynced),
            _ => Some(Fault::NotWritable),
        }
    }

    /// Whether recovery has not read all segments of earlier processes.
    pub fn is_recovering(&self) -> bool {
        self.metrics.segments_pending.load(Ordering::Acquire) > 0
    }

    /// Whether recovery or refill has waited for capacity in the buffer for at least 1 s.
    pub fn is_stalled(&self) -> bool {
        self.metrics.refill_stalled.load(Ordering::Acquire)
    }

    /// Queues a synced range whose spilled events are to be read back.
    fn enqueue_refill(&self, range: SegmentRange) {
        self.refill_queue.push(range);
        self.recovery.unpark();
    }

    /// Makes the journal thread write and sync all blocks, then end.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        self.wake();
    }

    fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Acquire)
    }

    fn record_failure(&self, op: JournalOp, fault: u8) {
        self.metrics.failures[op as usize].fetch_add(1, Ordering::Relaxed);
        self.faults.fetch_or(fault, Ordering::AcqRel);
    }

    fn clear_fault(&self, fault: u8) {
        if self.faults.load(Ordering::Relaxed) & fault != 0 {
            self.faults.fetch_and(!fault, Ordering::AcqRel);
        }
    }
}
