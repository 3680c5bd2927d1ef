//! What is written and not known to be on disk: segments in the order of their writing. The oldest is synced first,
//! one sync at a time, while the newest is written.
//!
//! Knows nothing of time and of what is needed; it decides nothing.

use std::collections::VecDeque;
use std::ops::Range;

use super::Waiter;
use super::refill::{Contents, Stretch};
use super::segment::Segment;
use super::sync::Job;
use crate::buffer::RowBlock;

/// A segment that is being written, or waits for its last sync.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) segment: Segment,
    /// Nothing more is written to it.
    ended: bool,
    /// It is to be synced, whether or not somebody waits.
    due: bool,
    /// What was written to it since its last sync began.
    tail: Tail,
}

/// Blocks, and who waits until they and all before them are synced.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub(super) blocks: VecDeque<RowBlock>,
    pub(super) rows: u64,
    /// Those of the blocks that are overflow.
    overflow: Contents,
    waiters: Vec<Waiter>,
}

/// Invariant: every block written to a segment and not known to be on disk is in the segment's tail or in flight.
/// Only the last of the segments may be written to.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    open: VecDeque<Open>,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
struct InFlight {
    segment: u64,
    tag: [u8; 8],
    span: Range<u64>,
    tail: Tail,
}

impl Pipeline {
    /// The segment that is written to.
    pub(super) fn active(&mut self) -> Option<&mut Segment> {
        self.open.back_mut().filter(|open| !open.ended).map(|open| &mut open.segment)
    }

    pub(super) fn active_number(&self) -> Option<u64> {
        self.open.back().filter(|open| !open.ended).map(|open| open.segment.number)
    }

    /// From now on this one is written to.
    pub(super) fn begin(&mut self, segment: Segment) {
        debug_assert!(self.active_number().is_none(), "BUG: the one before was not ended");
        self.open.push_back(Open { segment, ended: false, due: false, tail: Tail::default() });
    }

    /// Nothing more is written to the active segment; it is synced in its turn.
    pub(super) fn end_active(&mut self) {
        if let Some(open) = self.open.back_mut() {
            open.ended = true;
            open.due = true;
        }
    }

    /// The block was just written to the active segment.
    pub(super) fn push(&mut self, block: RowBlock) {
        let open = self.open.back_mut().expect("BUG: it was written to a segment");
        if block.is_overflow() {
            open.tail.overflow.add(block.rows(), block.bytes().len());
        }
        open.tail.blocks.push_back(block);
    }

    pub(super) fn count_rows(&mut self, rows: u64) {
        self.open.back_mut().expect("BUG: they were written to a segment").tail.rows += rows;
    }

    /// Lets go of blocks that are settled, of which there are about `count`.
    pub(super) fn forget_settled(&mut self, mut count: u64) {
        let in_flight = self.in_flight.iter_mut().map(|in_flight| &mut in_flight.tail);
        for tail in in_flight.chain(self.open.iter_mut().map(|open| &mut open.tail)) {
            if count == 0 {
                return;
            }
            count = count.saturating_sub(forget_settled(&mut tail.blocks, count));
        }
    }

    /// All that is there is to be synced.
    pub(super) fn all_due(&mut self) {
        self.open.iter_mut().for_each(|open| open.due = true);
    }

    /// Has the waiter told when all that is written by now is synced. Gives it back if it is.
    pub(super) fn wait(&mut self, waiter: Waiter) -> Option<Waiter> {
        let dirty = self.open.iter_mut().rev().find(|open| open.segment.is_dirty());
        let last =
            dirty.map(|open| &mut open.tail).or(self.in_flight.as_mut().map(|in_flight| &mut in_flight.tail));
        match last {
            Some(tail) => {
                tail.waiters.push(waiter);
                None
            }
            None => Some(waiter),
        }
    }

    /// Begins the next sync that somebody waits for or that is due, if none is under way. A segment of which `is_idle`
    /// says that nothing in it is needed any more goes without. Reserves up to `reserve_max` in a segment that is
    /// synced for who waits.
    pub(super) fn next_job(&mut self, is_idle: impl Fn(u64) -> bool, reserve_max: u64) -> Option<Job> {
        if self.in_flight.is_some() {
            return None;
        }
        while self.open.iter().any(|open| open.due || !open.tail.waiters.is_empty()) {
            let open = self.open.front_mut().expect("there is one at least");
            let is_idle = open.tail.waiters.is_empty() && is_idle(open.segment.number);
            if is_idle || (open.ended && open.segment.is_synced()) {
                self.open.pop_front();
                continue;
            }
            open.due = false;
            if open.segment.is_synced() {
                // The active one, and therefore the last.
                return None;
            }
            if !open.ended && !open.tail.waiters.is_empty() {
                open.segment.reserve(reserve_max);
            }
            let (span, job) = open.segment.begin_sync();
            let (segment, tag) = (open.segment.number, open.segment.tag);
            let tail = std::mem::take(&mut open.tail);
            self.in_flight = Some(InFlight { segment, tag, span, tail });
            return Some(job);
        }
        None
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// The sync under way has succeeded. Gives out what it made durable, and where in it there is overflow.
    pub(super) fn succeeded(&mut self, segment: u64) -> (Tail, Option<Stretch>) {
        let InFlight { tag, span, tail, .. } = self.take_in_flight(segment);
        // It is not there if a write to it has failed meanwhile: then what is synced is good all the same.
        if let Some(at) = self.open.iter().position(|open| open.segment.number == segment) {
            let open = &mut self.open[at];
            open.segment.synced();
            if open.ended && open.segment.is_synced() {
                self.open.remove(at);
            }
        }
        let overflow = tail.overflow;
        let stretch = (overflow.blocks > 0).then_some(Stretch { segment, tag, span, overflow });
        (tail, stretch)
    }

    /// The sync under way has failed: whatever of the segment was not known to be on disk is in doubt, and so is every
    /// segment whose name is not, since it may have been the directory's sync, which must not be believed later either.
    /// Gives it out, oldest first, and lets go of these segments.
    pub(super) fn failed(&mut self, segment: u64) -> Tail {
        let mut doubtful = self.take_in_flight(segment).tail;
        for open in &mut self.open {
            if open.segment.number == segment || !open.segment.is_named() {
                doubtful.blocks.append(&mut open.tail.blocks);
                doubtful.waiters.append(&mut open.tail.waiters);
            }
        }
        self.open.retain(|open| open.segment.number != segment && open.segment.is_named());
        doubtful
    }

    /// A write to the active segment has failed: what was written since its last sync began is in doubt. Gives it
    /// out, and lets go of the segment. A sync under way comes to its own end.
    pub(super) fn abandon_active(&mut self) -> Tail {
        let abandoned = self.open.pop_back_if(|open| !open.ended);
        abandoned.map(|open| open.tail).unwrap_or_default()
    }

    fn take_in_flight(&mut self, segment: u64) -> InFlight {
        let in_flight = self.in_flight.take().expect("BUG: no sync is under way");
        assert_eq!(in_flight.segment, segment, "BUG: another sync is under way");
        in_flight
    }

    /// Takes out all who wait and are not in flight.
    pub(super) fn take_waiters(&mut self) -> Vec<Waiter> {
        self.open.iter_mut().flat_map(|open| std::mem::take(&mut open.tail.waiters)).collect()
    }

    /// Whether all that was written is on disk, or not needed.
    pub(super) fn is_at_rest(&self) -> bool {
        self.in_flight.is_none() && self.open.iter().all(|open| open.segment.is_synced())
    }
}

impl Tail {
    /// Tells those who wait.
    pub(super) fn tell(&mut self, holds: bool) {
        tell(std::mem::take(&mut self.waiters), holds);
    }
}

pub(super) fn tell(waiters: impl IntoIterator<Item = Waiter>, holds: bool) {
    waiters.into_iter().for_each(|waiter| (waiter.told)(holds));
}

/// Drops blocks that are settled, of which there are about `count`, and tells how many it found. They are mostly the
/// oldest.
pub(super) fn forget_settled(blocks: &mut VecDeque<RowBlock>, count: u64) -> u64 {
    let before = blocks.len();
    while blocks.front().is_some_and(RowBlock::is_settled) {
        blocks.pop_front();
    }
    if ((before - blocks.len()) as u64) < count {
        blocks.retain(|block| !block.is_settled());
    }
    (before - blocks.len()) as u64
}
