//! The segments with unsynced blocks, oldest first, and their waiters. The oldest is synced first,
//! one sync at a time, while the newest is written.
//!
//! It must not depend on time or limits: the journal thread decides when to sync and to seal.

use std::collections::VecDeque;
use std::ops::Range;

use super::DurabilityWaiter;
use super::refill::{RangeTotals, SegmentRange};
use super::segment::Segment;
use super::sync::SyncJob;
use crate::buffer::RowBlock;

/// A segment that is active, or sealed and not completely synced.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) segment: Segment,
    /// Nothing more is appended to the segment.
    sealed: bool,
    /// The segment is to be synced even without a waiter.
    sync_due: bool,
    /// The blocks written since the last sync of the segment began.
    tail: UnsyncedTail,
}

/// Unsynced blocks, and the waiters for the sync of these and all earlier blocks.
#[derive(Debug, Default)]
pub(super) struct UnsyncedTail {
    pub(super) blocks: VecDeque<RowBlock>,
    pub(super) rows: u64,
    /// Totals of the spilled blocks.
    spilled: RangeTotals,
    /// The segments of earlier processes that some of the blocks were moved from.
    sources: Vec<u64>,
    waiters: Vec<DurabilityWaiter>,
}

/// Invariant: every block that is written and neither synced nor finalized is in the tail of its
/// segment or in flight. Only the last segment may be active.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    open: VecDeque<OpenSegment>,
    in_flight: Option<InFlightSync>,
    /// The sources of blocks that are written again after a failure.
    requeued_sources: Vec<u64>,
}

#[derive(Debug)]
struct InFlightSync {
    segment: u64,
    tag: [u8; 8],
    span: Range<u64>,
    tail: UnsyncedTail,
}

impl Pipeline {
    /// The segment that is appended to.
    pub(super) fn active(&mut self) -> Option<&mut Segment> {
        self.open.back_mut().filter(|open| !open.sealed).map(|open| &mut open.segment)
    }

    pub(super) fn active_number(&self) -> Option<u64> {
        self.open.back().filter(|open| !open.sealed).map(|open| open.segment.number)
    }

    /// Makes `segment` the active one.
    pub(super) fn activate(&mut self, segment: Segment) {
        debug_assert!(self.active_number().is_none(), "BUG: the previous segment was not sealed");
        self.open.push_back(OpenSegment {
            segment,
            sealed: false,
            sync_due: false,
            tail: UnsyncedTail::default(),
        });
    }

    /// Seals the active segment and marks it due for its last sync.
    pub(super) fn seal_active(&mut self) {
        if let Some(open) = self.open.back_mut() {
            open.sealed = true;
            open.sync_due = true;
        }
    }

    /// Records a block that was written to the active segment. An earlier process may have synced it
    /// in the segment `source`, which stays until the block is synced here.
    pub(super) fn push_block(&mut self, block: RowBlock, source: Option<u64>) {
        let open = self.open.back_mut().expect("BUG: no segment is active");
        if block.is_spilled() {
            open.tail.spilled.add(block.rows(), block.bytes().len());
        }
        open.tail.blocks.push_back(block);
        for source in source.iter().chain(&self.requeued_sources) {
            if !open.tail.sources.contains(source) {
                open.tail.sources.push(*source);
            }
        }
    }

    /// Every block that was written again after a failure is in a segment. Returns whether that may
    /// have ended the need for another one.
    pub(super) fn clear_requeued(&mut self) -> bool {
        !std::mem::take(&mut self.requeued_sources).is_empty()
    }

    /// Whether blocks of the segment were moved to another one and are not synced there.
    pub(super) fn is_source(&self, segment: u64) -> bool {
        let in_flight = self.in_flight.iter().map(|in_flight| &in_flight.tail);
        let mut tails = in_flight.chain(self.open.iter().map(|open| &open.tail));
        self.requeued_sources.contains(&segment) || tails.any(|tail| tail.sources.contains(&segment))
    }

    pub(super) fn add_rows(&mut self, rows: u64) {
        self.open.back_mut().expect("BUG: no segment is active").tail.rows += rows;
    }

    /// Drops finalized blocks, of which there are about `count`.
    pub(super) fn drop_finalized(&mut self, mut count: u64) {
        let in_flight = self.in_flight.iter_mut().map(|in_flight| &mut in_flight.tail);
        for tail in in_flight.chain(self.open.iter_mut().map(|open| &mut open.tail)) {
            if count == 0 {
                return;
            }
            count = count.saturating_sub(drop_finalized(&mut tail.blocks, count));
        }
    }

    /// Marks every segment due for a sync.
    pub(super) fn mark_all_due(&mut self) {
        self.open.iter_mut().for_each(|open| open.sync_due = true);
    }

    /// Queues a waiter until every block written so far is synced. Returns the waiter if they are
    /// synced.
    pub(super) fn add_sync_waiter(&mut self, waiter: DurabilityWaiter) -> Option<DurabilityWaiter> {
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

    /// Begins the next sync that is due or waited for, if none is in flight. Drops a segment
    /// without a sync if it has no waiters and `is_idle` returns that all of its blocks are
    /// finalized. Preallocates an active segment with waiters, up to `preallocate_max` bytes.
    pub(super) fn next_sync(
        &mut self,
        is_idle: impl Fn(u64) -> bool,
        preallocate_max: u64,
    ) -> Option<SyncJob> {
        if self.in_flight.is_some() {
            return None;
        }
        while self.open.iter().any(|open| open.sync_due || !open.tail.waiters.is_empty()) {
            let open = self.open.front_mut().expect("BUG: a segment is due");
            let is_idle = open.tail.waiters.is_empty() && is_idle(open.segment.number);
            if is_idle || (open.sealed && open.segment.is_synced()) {
                self.open.pop_front();
                continue;
            }
            open.sync_due = false;
            if open.segment.is_synced() {
                // It is the active segment, and therefore the last.
                return None;
            }
            if !open.sealed && !open.tail.waiters.is_empty() {
                open.segment.preallocate(preallocate_max);
            }
            let (span, job) = open.segment.begin_sync();
            let (segment, tag) = (open.segment.number, open.segment.tag);
            let tail = std::mem::take(&mut open.tail);
            let job = job.with_waiters(!tail.waiters.is_empty());
            self.in_flight = Some(InFlightSync { segment, tag, span, tail });
            return Some(job);
        }
        None
    }

    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Records that the sync in flight succeeded. Returns the blocks that are now durable, and the
    /// range with spilled blocks, if there are any.
    pub(super) fn complete_sync(&mut self, segment: u64) -> (UnsyncedTail, Option<SegmentRange>) {
        let InFlightSync { tag, span, tail, .. } = self.take_in_flight(segment);
        // The segment is gone if a write to it failed during the sync. The synced blocks are
        // durable nevertheless.
        if let Some(at) = self.open.iter().position(|open| open.segment.number == segment) {
            let open = &mut self.open[at];
            open.segment.mark_synced();
            if open.sealed && open.segment.is_synced() {
                self.open.remove(at);
            }
        }
        let spilled = tail.spilled;
        let range = (spilled.blocks > 0).then_some(SegmentRange { segment, tag, span, spilled });
        (tail, range)
    }

    /// Records that the sync in flight failed. Returns the blocks that are not known to be durable,
    /// oldest first, and abandons their segments: the segment of the sync, and every segment whose
    /// file name is not durable, since the sync of the directory may have failed, and a later one
    /// may succeed without effect.
    pub(super) fn fail_sync(&mut self, segment: u64) -> UnsyncedTail {
        let mut unconfirmed = self.take_in_flight(segment).tail;
        for open in &mut self.open {
            if open.segment.number == segment || !open.segment.is_dir_synced() {
                unconfirmed.blocks.append(&mut open.tail.blocks);
                unconfirmed.waiters.append(&mut open.tail.waiters);
                unconfirmed.sources.append(&mut open.tail.sources);
            }
        }
        self.requeued_sources.append(&mut unconfirmed.sources);
        self.open.retain(|open| open.segment.number != segment && open.segment.is_dir_synced());
        unconfirmed
    }

    /// Abandons the active segment after a failed write. Returns the blocks written since its last
    /// sync began. A sync in flight is not affected.
    pub(super) fn abandon_active(&mut self) -> UnsyncedTail {
        let abandoned = self.open.pop_back_if(|open| !open.sealed);
        let mut unconfirmed = abandoned.map(|open| open.tail).unwrap_or_default();
        self.requeued_sources.append(&mut unconfirmed.sources);
        unconfirmed
    }

    fn take_in_flight(&mut self, segment: u64) -> InFlightSync {
        let in_flight = self.in_flight.take().expect("BUG: no sync is in flight");
        assert_eq!(in_flight.segment, segment, "BUG: another sync is in flight");
        in_flight
    }

    /// Removes and returns all waiters, except those of the sync in flight.
    pub(super) fn take_waiters(&mut self) -> Vec<DurabilityWaiter> {
        self.open.iter_mut().flat_map(|open| std::mem::take(&mut open.tail.waiters)).collect()
    }

    /// Whether every written block is synced or finalized.
    pub(super) fn is_fully_synced(&self) -> bool {
        self.in_flight.is_none() && self.open.iter().all(|open| open.segment.is_synced())
    }
}

impl UnsyncedTail {
    /// Completes the waiters.
    pub(super) fn complete(&mut self, reached: bool) {
        complete(std::mem::take(&mut self.waiters), reached);
    }
}

pub(super) fn complete(waiters: impl IntoIterator<Item = DurabilityWaiter>, reached: bool) {
    super::complete_group(waiters.into_iter().map(|waiter| (waiter.callback, reached)));
}

/// Drops finalized blocks, of which there are about `count`, mostly the oldest. Returns how many
/// were dropped.
pub(super) fn drop_finalized(blocks: &mut VecDeque<RowBlock>, count: u64) -> u64 {
    let before = blocks.len();
    while blocks.front().is_some_and(RowBlock::is_finalized) {
        blocks.pop_front();
    }
    if ((before - blocks.len()) as u64) < count {
        blocks.retain(|block| !block.is_finalized());
    }
    (before - blocks.len()) as u64
}
