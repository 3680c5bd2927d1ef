//! The checkpoint thread: writes what the lanes hold, syncs it, answers who waits, and drops finished segments.
//!
//! A failed write or sync ends the segment it hit. What of it is neither synced nor settled is still in memory and is
//! written again into another segment; a sync is never tried twice on the same file, since the second may succeed
//! without having written anything.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Parker;
use rand::Rng;
use rand::rngs::StdRng;

use super::disk::Disk;
use super::record::{HEADER_BYTES, Header};
use super::segment::{self, Group, Segment};
use super::{Entry, Found, Journal, Level, NOT_SYNCED, NOT_WRITABLE, Note, Op, Waiter};
use crate::buffer::{Placed, RowBlock};
use crate::clock::{Clock, Moment};
use crate::logging::Thinned;

/// Bytes written at once, but for a block that is larger by itself.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// A segment that has grown so far is ended at a checkpoint: its events are soon committed, and the file goes. What is
/// read again after a crash is then what a few checkpoints wrote, not a whole segment.
const CHECKPOINT_BYTES_MIN: u64 = 1024 * 1024;
/// The first and the longest wait after a failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The longest that a block lies in memory only.
    pub write_every: Duration,
    /// The longest that it lies with the kernel only.
    pub sync_every: Duration,
    pub segment_bytes_max: u64,
}

/// When something that failed is tried again.
#[derive(Debug)]
struct Retry {
    at: Moment,
    after: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { at: Moment::ZERO, after: RETRY_FIRST }
    }
}

impl Retry {
    fn failed(&mut self, now: Moment) {
        self.at = now.plus(self.after);
        self.after = (self.after * 2).min(RETRY_LONGEST);
    }
}

/// A segment whose file is there.
#[derive(Debug)]
struct Kept {
    /// Blocks in it, or read from it, that are not settled.
    outstanding: u64,
    bytes: u64,
    /// Whether there may be blocks in it that have not been read yet.
    unread: bool,
    /// Set aside for people to look at, not removed.
    damaged: bool,
}

/// Invariant: a block that is neither settled nor in a synced segment is in a lane, in `pending` or in `unsynced`.
#[derive(Debug)]
pub struct Checkpoint {
    journal: Arc<Journal>,
    disk: Arc<dyn Disk>,
    limits: Limits,
    clock: Clock,
    parker: Parker,
    chance: StdRng,
    /// To be written.
    pending: VecDeque<RowBlock>,
    waiters: Vec<Waiter>,
    /// Written to the active segment, not synced, and when last looked at not settled.
    unsynced: VecDeque<RowBlock>,
    active: Option<Segment>,
    kept: BTreeMap<u64, Kept>,
    next_number: u64,
    group: Group,
    sync_at: Moment,
    writing: Retry,
    syncing: Retry,
    rows_unsynced: u64,
    /// Whether a segment may have finished since they were last looked through.
    look_through: bool,
    remove_at: Moment,
    complaint: Thinned,
}

impl Checkpoint {
    pub fn new(
        journal: Arc<Journal>,
        disk: Arc<dyn Disk>,
        limits: Limits,
        clock: Clock,
        parker: Parker,
        found: &[Found],
    ) -> Self {
        let next_number = found.iter().map(|found| found.segment + 1).max().unwrap_or(1);
        let kept = found.iter().map(|found| {
            (found.segment, Kept { outstanding: 0, bytes: found.bytes, unread: true, damaged: false })
        });
        let mut checkpoint = Self {
            chance: clock.rng(),
            sync_at: clock.now().plus(limits.sync_every),
            kept: kept.collect(),
            journal,
            disk,
            limits,
            clock,
            parker,
            pending: VecDeque::new(),
            waiters: Vec::new(),
            unsynced: VecDeque::new(),
            active: None,
            next_number,
            group: Group::default(),
            writing: Retry::default(),
            syncing: Retry::default(),
            rows_unsynced: 0,
            look_through: false,
            remove_at: Moment::ZERO,
            complaint: Thinned::new(COMPLAIN_EVERY),
        };
        checkpoint.show();
        checkpoint
    }

    /// Runs until it is told to finish.
    pub fn run(&mut self) {
        loop {
            let finishing = self.journal.is_finishing();
            self.tick();
            if finishing {
                return;
            }
            self.parker.park_timeout(self.limits.write_every);
        }
    }

    /// One checkpoint: everything that the lanes hold now is written, and synced if that is due or asked for.
    pub fn tick(&mut self) {
        let now = self.clock.now();
        let finishing = self.journal.is_finishing();
        self.read_notes();
        self.empty_lanes();
        if now >= self.writing.at || finishing {
            if let Err((op, error)) = self.write_and_sync(now, finishing) {
                self.failed(op, &error, now);
            }
        } else {
            self.disappoint();
        }
        if self.look_through && now >= self.remove_at {
            self.remove_finished(now);
        }
        self.show();
    }

    fn read_notes(&mut self) {
        let (mut unplaced, mut placed) = (0, 0);
        // Those that come meanwhile are for the next tick.
        for _ in 0..self.journal.notes.len() {
            let Some(note) = self.journal.notes.pop() else { break };
            match note {
                Note::Settled { segment: None, blocks } => unplaced += blocks,
                Note::Settled { segment: Some(segment), blocks } => {
                    placed += blocks;
                    self.outstanding(segment, |outstanding| outstanding - blocks);
                }
                Note::Replayed { segment, blocks } => {
                    self.outstanding(segment, |outstanding| outstanding + blocks);
                }
                Note::Read { segment, damaged } => {
                    let kept = self.kept.get_mut(&segment).expect("BUG: a segment was read twice");
                    kept.unread = false;
                    kept.damaged = damaged;
                    self.look_through = true;
                }
            }
        }
        if unplaced > 0 {
            forget_settled(&mut self.pending, unplaced);
        }
        if placed > 0 {
            forget_settled(&mut self.unsynced, placed);
        }
    }

    fn outstanding(&mut self, segment: u64, change: impl FnOnce(u64) -> u64) {
        let kept = self.kept.get_mut(&segment).expect("BUG: a segment with rows outstanding is gone");
        kept.outstanding = change(kept.outstanding);
        self.look_through |= kept.outstanding == 0;
    }

    fn empty_lanes(&mut self) {
        for lane in &self.journal.lanes {
            for _ in 0..lane.len() {
                match lane.pop() {
                    Some(Entry::Block(block)) if block.is_settled() => {}
                    Some(Entry::Block(block)) => self.pending.push_back(block),
                    Some(Entry::Waiter(waiter)) => self.waiters.push(waiter),
                    None => break,
                }
            }
        }
    }

    fn write_and_sync(&mut self, now: Moment, finishing: bool) -> Result<(), (Op, io::Error)> {
        // After a failure it takes a write, or a sync, to know that the next would succeed.
        let heal_write = !self.journal.promises(Level::Written);
        let heal_sync = !self.journal.promises(Level::Synced);
        if heal_write {
            self.segment()?;
        }
        if let Some(oldest) = self.pending.front() {
            let lag = u64::try_from(now.since(oldest.admitted_at()).as_nanos()).unwrap_or(u64::MAX);
            self.journal.figures.lag_nanos.store(lag, Ordering::Relaxed);
        }
        self.write()?;
        self.journal.healed(NOT_WRITABLE);
        self.writing = Retry::default();
        self.answer(Level::Written);
        if now < self.syncing.at && !finishing {
            self.disappoint();
            return Ok(());
        }
        let due = now >= self.sync_at || finishing;
        if due && self.waiters.is_empty() && !heal_sync && self.forget_active() {
            self.sync_at = now.plus(self.limits.sync_every);
            return Ok(());
        }
        if due || heal_sync || !self.waiters.is_empty() {
            if heal_sync {
                self.segment()?;
            }
            self.sync(now)?;
            self.journal.healed(NOT_SYNCED);
            self.syncing = Retry::default();
            self.answer(Level::Synced);
            let ended = |active: &Segment| active.bytes >= CHECKPOINT_BYTES_MIN;
            if due && self.active.as_ref().is_some_and(ended) {
                self.active = None;
                self.look_through = true;
            }
        }
        Ok(())
    }

    /// Writes all that is pending, in groups.
    fn write(&mut self) -> Result<(), (Op, io::Error)> {
        while !self.pending.is_empty() {
            let segment = self.segment()?;
            let segment_number = segment.number;
            let mut blocks = 0;
            // Taken out of `self` while the segment is.
            let mut group = std::mem::take(&mut self.group);
            group.clear(GROUP_BYTES_MAX);
            let active = self.active.as_mut().expect("it was made above");
            for block in &self.pending {
                if !block.is_settled() {
                    if group.bytes() > 0 && group.bytes() + Group::bytes_of(block) > GROUP_BYTES_MAX {
                        break;
                    }
                    group.push(active, block);
                }
                blocks += 1;
            }
            let written = if group.bytes() > 0 { active.append(&group) } else { Ok(()) };
            let full = active.bytes >= self.limits.segment_bytes_max;
            let (rows, bytes) = (group.rows, active.bytes);
            self.group = group;
            written.map_err(|error| (Op::Write, error))?;
            self.rows_unsynced += rows;
            self.journal.figures.written.fetch_add(rows, Ordering::Relaxed);
            self.kept.get_mut(&segment_number).expect("BUG: the active segment is kept").bytes = bytes;
            for _ in 0..blocks {
                let block = self.pending.pop_front().expect("as many were looked at");
                self.place(segment_number, block);
            }
            if full {
                self.sync(self.clock.now())?;
                self.active = None;
                self.look_through = true;
            }
        }
        Ok(())
    }

    fn place(&mut self, segment: u64, block: RowBlock) {
        match block.place(segment) {
            Placed::Settled => return,
            Placed::New => {}
            Placed::MovedFrom(before) => self.outstanding(before, |outstanding| outstanding - 1),
        }
        self.outstanding(segment, |outstanding| outstanding + 1);
        self.unsynced.push_back(block);
    }

    fn sync(&mut self, now: Moment) -> Result<(), (Op, io::Error)> {
        if let Some(active) = &mut self.active
            && active.bytes > active.bytes_synced
        {
            active.sync(&*self.disk).map_err(|error| (Op::Sync, error))?;
        }
        self.journal.figures.synced.fetch_add(self.rows_unsynced, Ordering::Relaxed);
        self.rows_unsynced = 0;
        self.unsynced.clear();
        self.sync_at = now.plus(self.limits.sync_every);
        Ok(())
    }

    /// Lets go of the active segment if nothing in it is needed any more, which spares a sync.
    fn forget_active(&mut self) -> bool {
        let idle = |active: &Segment| self.kept.get(&active.number).is_some_and(|kept| kept.outstanding == 0);
        if !self.active.as_ref().is_some_and(idle) {
            return false;
        }
        self.active = None;
        self.unsynced.clear();
        self.rows_unsynced = 0;
        self.look_through = true;
        true
    }

    /// The active segment, made if there is none.
    fn segment(&mut self) -> Result<&mut Segment, (Op, io::Error)> {
        if self.active.is_none() {
            let number = self.next_number;
            // A number is never used twice: a file that could not be made whole may still be there.
            self.next_number += 1;
            self.kept.insert(
                number,
                Kept { outstanding: 0, bytes: HEADER_BYTES as u64, unread: false, damaged: false },
            );
            let mut tag = [0; 8];
            self.chance.fill_bytes(&mut tag);
            let header = Header { segment: number, tag, made_at: self.clock.wall() };
            match Segment::create(&*self.disk, header) {
                Ok(segment) => self.active = Some(segment),
                Err(error) => {
                    self.look_through = true;
                    return Err((Op::Create, error));
                }
            }
        }
        Ok(self.active.as_mut().expect("it was made above"))
    }

    fn failed(&mut self, op: Op, error: &io::Error, now: Moment) {
        let trouble = if op == Op::Sync { NOT_SYNCED } else { NOT_WRITABLE };
        self.journal.failed(op, trouble);
        if let Some(held_back) = self.complaint.due(now) {
            log::error!(
                operation = op.label(), segment = self.active.as_ref().map_or(0, |active| active.number),
                held_back = held_back;
                "the journal failed, its promises are withdrawn until it works again: {error}"
            );
        }
        // Whatever of the segment is not synced yet is in doubt. All of it that matters is in memory.
        self.active = None;
        self.look_through = true;
        self.rows_unsynced = 0;
        while let Some(block) = self.unsynced.pop_back() {
            self.pending.push_front(block);
        }
        if op == Op::Sync {
            self.syncing.failed(now);
        } else {
            self.writing.failed(now);
        }
        self.disappoint();
    }

    /// Tells those who wait that it will not be, for now.
    fn disappoint(&mut self) {
        for waiter in std::mem::take(&mut self.waiters) {
            (waiter.told)(false);
        }
    }

    /// Tells those who wait for no more than `level` that it holds.
    fn answer(&mut self, level: Level) {
        for waiter in self.waiters.extract_if(.., |waiter| waiter.level <= level) {
            (waiter.told)(true);
        }
    }

    fn remove_finished(&mut self, now: Moment) {
        self.look_through = false;
        let active = self.active.as_ref().map(|active| active.number);
        let is_finished = |(number, kept): &(&u64, &Kept)| {
            kept.outstanding == 0 && !kept.unread && Some(**number) != active
        };
        let finished: Vec<_> =
            self.kept.iter().filter(is_finished).map(|(number, kept)| (*number, kept.damaged)).collect();
        for (number, damaged) in finished {
            let name = segment::name(number);
            let removed = if damaged {
                self.disk.rename(&name, &format!("{name}.damaged"))
            } else {
                self.disk.remove(&name)
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.journal.failed(Op::Remove, 0);
                    if let Some(held_back) = self.complaint.due(now) {
                        log::error!(held_back = held_back; "the finished segment {name} stays: {error}");
                    }
                    self.look_through = true;
                    self.remove_at = now.plus(RETRY_LONGEST);
                }
                Ok(()) | Err(_) => {
                    self.kept.remove(&number);
                }
            }
        }
    }

    fn show(&mut self) {
        let figures = &self.journal.figures;
        figures.segments.store(self.kept.len() as u64, Ordering::Relaxed);
        figures.bytes.store(self.kept.values().map(|kept| kept.bytes).sum(), Ordering::Relaxed);
    }
}

/// Drops blocks that are settled, of which there are about `count`. They are mostly the oldest.
fn forget_settled(blocks: &mut VecDeque<RowBlock>, count: u64) {
    let mut dropped = 0;
    while blocks.front().is_some_and(RowBlock::is_settled) {
        blocks.pop_front();
        dropped += 1;
    }
    if dropped < count {
        blocks.retain(|block| !block.is_settled());
    }
}
