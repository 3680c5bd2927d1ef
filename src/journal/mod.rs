//! The append-only log of what is buffered, so that what was acknowledged outlives the process.
//!
//! An acceptor puts each block into its lane, and behind it whoever waits for a level of durability. The checkpoint
//! thread empties the lanes, writes what is not committed yet in groups, has the sync thread sync them, and answers
//! those who wait: a lane keeps its order, so whoever stands behind a block is answered after it. Segments go when all their rows are settled.
//!
//! Blocks that the buffer has no room for are in the journal alone: synced, they leave memory, and are read back when
//! the writer has caught up.
//!
//! Knows nothing of requests or SQL.

pub mod checkpoint;
pub mod disk;
pub mod inspect;
pub mod lookup;
mod pipeline;
pub mod reader;
pub mod record;
pub mod recovery;
mod refill;
pub mod segment;
pub mod sync;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};

use crossbeam::queue::SegQueue;
use crossbeam::sync::{Parker, Unparker};
use crossbeam::utils::CachePadded;

pub use checkpoint::{Checkpoint, Limits};
pub use lookup::Lookup;
pub use recovery::{Found, Recovery, StartFailed, adopt};
use refill::{Stretch, Stretches};
pub use sync::Syncer;

use crate::buffer::RowBlock;

/// What a 202 says of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// It is in the buffer.
    Memory,
    /// The kernel has it: it outlives the process.
    Written,
    /// It is on disk: it outlives the power.
    Synced,
}

impl Level {
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

/// Told once whether the level holds. Dropped without being told, it has to make do.
pub type Told = Box<dyn FnOnce(bool) + Send>;

/// Somebody who waits until what stands before it in its lane is written or synced.
struct Waiter {
    level: Level,
    told: Told,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waiter").field(&self.level).finish()
    }
}

#[derive(Debug)]
enum Entry {
    Block(RowBlock),
    Waiter(Waiter),
}

/// What others tell the checkpoint thread of rows in segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// So many blocks are settled, in this segment or not yet in one.
    Settled { segment: Option<u64>, blocks: u64 },
    /// So many blocks of the segment are in the buffer again.
    Replayed { segment: u64, blocks: u64 },
    /// All of the segment has been read.
    Read { segment: u64, damaged: bool },
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    Create,
    Write,
    Sync,
    Remove,
    Read,
}

impl Op {
    pub const ALL: [Self; 5] = [Self::Create, Self::Write, Self::Sync, Self::Remove, Self::Read];

    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Remove => "remove",
            Self::Read => "read",
        }
    }
}

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing can be written.
    NotWritable,
    /// A sync has failed, and none has succeeded since.
    NotSynced,
}

/// Nothing can be written; no level but what memory gives holds.
const NOT_WRITABLE: u8 = 1;
/// A sync has failed and none has succeeded since.
const NOT_SYNCED: u8 = 2;

/// What the journal counts. Events, unless it says bytes or segments.
#[derive(Debug, Default)]
pub struct Figures {
    pub segments: AtomicU64,
    pub bytes: AtomicU64,
    pub written: AtomicU64,
    pub synced: AtomicU64,
    pub recovered: AtomicU64,
    /// Damaged stretches of segments that were skipped.
    pub skipped: AtomicU64,
    pub torn_bytes: AtomicU64,
    pub failures: [AtomicU64; Op::ALL.len()],
    /// Nanoseconds that the oldest block waited, when the last group was written.
    pub lag_nanos: AtomicU64,
    /// Segments from before the start that are still to be read.
    pub unread: AtomicU64,
    /// What is read back has found no room for a while.
    pub stalled: AtomicBool,
}

/// The journal as the other threads see it.
///
/// Invariant: a lane holds no more blocks than the buffer or the spill has rows reserved, since a block keeps its room
/// until the lane has let go of it, and no more waiters than there are connections.
#[derive(Debug)]
pub struct Journal {
    lanes: Box<[CachePadded<SegQueue<Entry>>]>,
    notes: SegQueue<Note>,
    checkpoint: Unparker,
    recovery: Unparker,
    trouble: AtomicU8,
    finishing: AtomicBool,
    /// A sync is under way; when it ends the checkpoint thread empties the lanes.
    syncing: AtomicBool,
    /// Synced, and to be brought back when there is room.
    stretches: Stretches,
    pub figures: Figures,
}

/// What the journal's threads sleep on.
#[derive(Debug)]
pub struct Parkers {
    pub checkpoint: Parker,
    pub recovery: Parker,
}

impl Journal {
    pub fn new(lanes: usize) -> (Self, Parkers) {
        let parkers = Parkers { checkpoint: Parker::new(), recovery: Parker::new() };
        let journal = Self {
            lanes: (0..lanes).map(|_| CachePadded::new(SegQueue::new())).collect(),
            notes: SegQueue::new(),
            checkpoint: parkers.checkpoint.unparker().clone(),
            recovery: parkers.recovery.unparker().clone(),
            trouble: AtomicU8::new(0),
            finishing: AtomicBool::new(false),
            syncing: AtomicBool::new(false),
            stretches: Stretches::default(),
            figures: Figures::default(),
        };
        (journal, parkers)
    }

    /// Takes a block along. Before the writer can see it: then whatever is settled has been here.
    #[inline]
    pub fn keep(&self, lane: usize, block: &RowBlock) {
        self.lanes[lane].push(Entry::Block(block.clone()));
    }

    /// Has `told` called when all that the lane holds now has reached `level`, or cannot. The caller wakes the
    /// checkpoint thread, once for as many as it likes.
    pub fn when(&self, lane: usize, level: Level, told: Told) {
        self.lanes[lane].push(Entry::Waiter(Waiter { level, told }));
    }

    pub fn wake(&self) {
        self.checkpoint.unpark();
    }

    /// Wakes the checkpoint thread for somebody who waits for `level`. Who waits for a sync while another is under way
    /// is seen when that ends, with all the others that have come by then.
    pub fn wake_for(&self, level: Level) {
        // Pairs with the one in `sync_has_ended`: either that sync's end is seen here, or the waiter there.
        fence(Ordering::SeqCst);
        if level != Level::Synced || !self.syncing.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn sync_has_begun(&self) {
        self.syncing.store(true, Ordering::SeqCst);
    }

    fn sync_has_ended(&self) {
        self.syncing.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Every row of these is committed. Drops them, and with them what they take of the buffer.
    pub fn settled(&self, blocks: Vec<RowBlock>) {
        let mut run: Option<(Option<u64>, u64)> = None;
        for block in blocks {
            let segment = block.settle();
            drop(block);
            match &mut run {
                Some((of, blocks)) if *of == segment => *blocks += 1,
                _ => {
                    let ended = run.replace((segment, 1));
                    self.note_settled(ended);
                }
            }
        }
        self.note_settled(run);
        self.recovery.unpark();
    }

    fn note_settled(&self, run: Option<(Option<u64>, u64)>) {
        if let Some((segment, blocks)) = run {
            self.notes.push(Note::Settled { segment, blocks });
        }
    }

    fn note(&self, note: Note) {
        self.notes.push(note);
    }

    /// Whether `level` can be promised now.
    #[inline]
    pub fn promises(&self, level: Level) -> bool {
        let trouble = self.trouble.load(Ordering::Acquire);
        match level {
            Level::Memory | Level::Written => trouble & NOT_WRITABLE == 0,
            Level::Synced => trouble == 0,
        }
    }

    pub fn trouble(&self) -> Option<Trouble> {
        match self.trouble.load(Ordering::Acquire) {
            0 => None,
            NOT_SYNCED => Some(Trouble::NotSynced),
            _ => Some(Trouble::NotWritable),
        }
    }

    /// Whether there is something from before the start that is not in the buffer again.
    pub fn is_recovering(&self) -> bool {
        self.figures.unread.load(Ordering::Acquire) > 0
    }

    /// Whether what is read back waits for room, and has for a while.
    pub fn is_stalled(&self) -> bool {
        self.figures.stalled.load(Ordering::Acquire)
    }

    /// Has spilled events brought back.
    fn hand(&self, stretch: Stretch) {
        self.stretches.push(stretch);
        self.recovery.unpark();
    }

    /// Has the checkpoint thread write and sync what it has and end.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        self.wake();
    }

    fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Acquire)
    }

    fn failed(&self, op: Op, trouble: u8) {
        self.figures.failures[op as usize].fetch_add(1, Ordering::Relaxed);
        self.trouble.fetch_or(trouble, Ordering::AcqRel);
    }

    fn healed(&self, trouble: u8) {
        if self.trouble.load(Ordering::Relaxed) & trouble != 0 {
            self.trouble.fetch_and(!trouble, Ordering::AcqRel);
        }
    }
}
