//! The checkpoint thread: writes what the lanes hold, has it synced, answers who waits, and drops finished segments.
//!
//! Syncs are done by another thread, one at a time, while this one goes on writing: what comes in meanwhile is the next
//! group. [`Checkpoint`] itself is a state machine that is told what came of a sync and gives out the next.
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
use super::pipeline::{Pipeline, forget_settled, tell};
use super::record::{HEADER_BYTES, Header};
use super::segment::{self, Group, Segment};
use super::sync::{Done, Job, Link};
use super::{Entry, Found, Journal, Level, NOT_SYNCED, NOT_WRITABLE, Note, Op, Waiter};
use crate::buffer::{Buffer, Placed, RowBlock};
use crate::clock::{Clock, Moment};
use crate::logging::Thinned;

/// Bytes written at once, but for a block that is larger by itself.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// A segment that has grown so far is ended at a checkpoint: its events are soon committed, and the file goes. What is
/// read again after a crash is then what a few checkpoints wrote, not a whole segment.
const CHECKPOINT_BYTES_MIN: u64 = 1024 * 1024;
/// The first and the longest wait after a failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(1);
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

/// Invariant: a block that is neither settled nor synced is in a lane, in `pending` or in `pipeline`. Who waits for a
/// sync is told that it holds only when no block before it is anywhere else: whenever a write or a sync fails, all are
/// told that it does not.
#[derive(Debug)]
pub struct Checkpoint {
    journal: Arc<Journal>,
    buffer: Arc<Buffer>,
    disk: Arc<dyn Disk>,
    limits: Limits,
    clock: Clock,
    parker: Parker,
    chance: StdRng,
    /// To be written.
    pending: VecDeque<RowBlock>,
    /// They wait for what is pending.
    waiters: Vec<Waiter>,
    pipeline: Pipeline,
    kept: BTreeMap<u64, Kept>,
    next_number: u64,
    group: Group,
    sync_at: Moment,
    writing: Retry,
    syncing: Retry,
    /// Whether a segment may have finished since they were last looked through.
    look_through: bool,
    remove_at: Moment,
    complaint: Thinned,
}

impl Checkpoint {
    pub fn new(
        (journal, buffer): (Arc<Journal>, Arc<Buffer>),
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
            buffer,
            disk,
            limits,
            clock,
            parker,
            pending: VecDeque::new(),
            waiters: Vec::new(),
            pipeline: Pipeline::default(),
            next_number,
            group: Group::default(),
            writing: Retry::default(),
            syncing: Retry::default(),
            look_through: false,
            remove_at: Moment::ZERO,
            complaint: Thinned::new(COMPLAIN_EVERY),
        };
        checkpoint.show();
        checkpoint
    }

    /// Runs until it is told to finish and has.
    pub fn run(&mut self, syncs: &Link) {
        loop {
            let finishing = self.journal.is_finishing();
            if let Some(job) = self.tick(syncs.done.try_recv().ok()) {
                syncs.jobs.send(job).expect("BUG: the sync thread outlives this one");
            }
            if finishing && self.is_finished() {
                return;
            }
            self.parker.park_timeout(self.limits.write_every);
        }
    }

    /// One checkpoint: everything that the lanes hold now is written, and a sync begun if one is due or asked for and
    /// none is under way. Is told what came of the sync before, once it has ended.
    pub fn tick(&mut self, done: Option<Done>) -> Option<Job> {
        let now = self.clock.now();
        let finishing = self.journal.is_finishing();
        if let Some(done) = done {
            // Before the lanes are emptied: whoever comes after it wakes this thread itself.
            self.journal.sync_has_ended();
            self.ended(done, now);
        }
        self.read_notes();
        self.empty_lanes();
        if self.journal.trouble().is_some() {
            self.give_to_writer();
        }
        if now >= self.writing.at || finishing {
            match self.write_all(now) {
                Ok(()) => self.written(),
                Err((op, error)) => self.failed(op, &error, now),
            }
        } else {
            self.disappoint();
        }
        let job = self.next_sync(now, finishing);
        if self.look_through && now >= self.remove_at {
            self.remove_finished(now);
        }
        self.show();
        job
    }

    /// Whether there is nothing left to be done before the end, or no way to do it.
    pub fn is_finished(&self) -> bool {
        let all = self.pending.is_empty() && self.pipeline.is_at_rest();
        !self.pipeline.is_in_flight() && (all || self.journal.trouble().is_some())
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
            self.pipeline.forget_settled(placed);
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

    /// What the disk does not take need not wait for it: overflow goes to the writer where the buffer has room for it.
    fn give_to_writer(&mut self) {
        for block in self.pending.iter_mut().filter(|block| block.is_overflow()) {
            match self.buffer.admit_moved(0, block) {
                Ok(moved) => *block = moved,
                Err(_full) => return,
            }
        }
    }

    fn write_all(&mut self, now: Moment) -> Result<(), (Op, io::Error)> {
        if !self.journal.promises(Level::Written) {
            // After a failure it takes a write to know that the next would succeed.
            self.segment()?;
        }
        if let Some(oldest) = self.pending.front() {
            let lag = u64::try_from(now.since(oldest.admitted_at()).as_nanos()).unwrap_or(u64::MAX);
            self.journal.figures.lag_nanos.store(lag, Ordering::Relaxed);
        }
        while !self.pending.is_empty() {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), (Op, io::Error)> {
        // Taken out of `self` while the segment is.
        let mut group = std::mem::take(&mut self.group);
        let bytes_max = self.limits.segment_bytes_max;
        self.segment()?;
        let active = self.pipeline.active().expect("it was just made");
        group.clear(GROUP_BYTES_MAX);
        let mut blocks = 0;
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
        let (segment, is_full, length) = (active.number, active.bytes >= bytes_max, active.length());
        let rows = group.rows;
        self.group = group;
        written.map_err(|error| (Op::Write, error))?;
        self.pipeline.count_rows(rows);
        self.journal.figures.written.fetch_add(rows, Ordering::Relaxed);
        self.kept.get_mut(&segment).expect("BUG: the active segment is kept").bytes = length;
        for _ in 0..blocks {
            let block = self.pending.pop_front().expect("as many were looked at");
            self.place(segment, block);
        }
        if is_full {
            self.pipeline.end_active();
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
        self.pipeline.push(block);
    }

    /// All that was pending is written.
    fn written(&mut self) {
        self.journal.healed(NOT_WRITABLE);
        self.writing = Retry::default();
        for waiter in std::mem::take(&mut self.waiters) {
            let held = match waiter.level {
                Level::Memory | Level::Written => Some(waiter),
                Level::Synced => self.pipeline.wait(waiter),
            };
            tell(held, true);
        }
    }

    fn next_sync(&mut self, now: Moment, finishing: bool) -> Option<Job> {
        if now < self.syncing.at && !finishing {
            tell(self.pipeline.take_waiters(), false);
            return None;
        }
        let heal = !self.journal.promises(Level::Synced);
        let timely = now >= self.sync_at || finishing;
        let due = timely || self.buffer.spill().is_pressing();
        if due || heal {
            self.sync_at = now.plus(self.limits.sync_every);
            if timely && self.pipeline.active().is_some_and(|active| active.bytes >= CHECKPOINT_BYTES_MIN) {
                self.pipeline.end_active();
                self.look_through = true;
            }
            // As for writing: it takes a sync to know.
            if heal && self.journal.promises(Level::Written) && !self.pipeline.is_in_flight() {
                match self.segment() {
                    Ok(_) => {}
                    Err((op, error)) => self.failed(op, &error, now),
                }
            }
            self.pipeline.all_due();
        }
        let kept = &self.kept;
        let is_idle = |segment| !heal && kept.get(&segment).is_none_or(|kept| kept.outstanding == 0);
        let job = self.pipeline.next_job(is_idle, self.limits.segment_bytes_max);
        self.look_through |= due;
        if let Some(active) = self.pipeline.active() {
            let kept = self.kept.get_mut(&active.number).expect("BUG: the active segment is kept");
            kept.bytes = active.length();
        }
        if job.is_some() {
            self.journal.sync_has_begun();
        }
        job
    }

    fn ended(&mut self, done: Done, now: Moment) {
        match done.result {
            Ok(()) => {
                let (mut synced, overflow) = self.pipeline.succeeded(done.segment);
                if let Some(stretch) = overflow {
                    self.journal.hand(stretch);
                }
                self.journal.figures.synced.fetch_add(synced.rows, Ordering::Relaxed);
                self.journal.healed(NOT_SYNCED);
                self.syncing = Retry::default();
                self.look_through = true;
                synced.tell(true);
            }
            Err(error) => {
                let mut doubtful = self.pipeline.failed(done.segment);
                self.write_again(&mut doubtful.blocks);
                doubtful.tell(false);
                self.complain(Op::Sync, done.segment, &error, now);
                self.syncing.failed(now);
                self.disappoint();
            }
        }
    }

    /// The active segment, made if there is none.
    fn segment(&mut self) -> Result<&mut Segment, (Op, io::Error)> {
        if self.pipeline.active_number().is_none() {
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
                Ok(segment) => self.pipeline.begin(segment),
                Err(error) => {
                    self.look_through = true;
                    return Err((Op::Create, error));
                }
            }
        }
        Ok(self.pipeline.active().expect("it was made above"))
    }

    /// A write has failed, or a segment could not be made.
    fn failed(&mut self, op: Op, error: &io::Error, now: Moment) {
        let segment = self.pipeline.active_number().unwrap_or(self.next_number - 1);
        // What was written since its last sync began is in doubt. All of it that matters is in memory.
        let mut doubtful = self.pipeline.abandon_active();
        self.write_again(&mut doubtful.blocks);
        doubtful.tell(false);
        self.complain(op, segment, error, now);
        self.writing.failed(now);
        self.disappoint();
    }

    fn write_again(&mut self, blocks: &mut VecDeque<RowBlock>) {
        blocks.append(&mut self.pending);
        std::mem::swap(blocks, &mut self.pending);
        self.look_through = true;
    }

    fn complain(&mut self, op: Op, segment: u64, error: &io::Error, now: Moment) {
        self.journal.failed(op, if op == Op::Sync { NOT_SYNCED } else { NOT_WRITABLE });
        if let Some(held_back) = self.complaint.due(now) {
            log::error!(
                operation = op.label(), segment = segment, held_back = held_back;
                "the journal failed, its promises are withdrawn until it works again: {error}"
            );
        }
    }

    /// Tells those who wait that it will not be, for now. Those of a sync under way hear what comes of it.
    fn disappoint(&mut self) {
        tell(std::mem::take(&mut self.waiters), false);
        tell(self.pipeline.take_waiters(), false);
    }

    fn remove_finished(&mut self, now: Moment) {
        self.look_through = false;
        let active = self.pipeline.active_number();
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
