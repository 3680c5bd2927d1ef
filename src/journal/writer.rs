//! The work of the journal thread: drains the lanes, writes blocks to the active segment, schedules
//! syncs, completes waiters, and removes finished segments.
//!
//! [`JournalWriter`] is a state machine without threads: [`JournalWriter::tick`] takes the
//! completion of the last sync and returns the next sync. Blocks may be written while a sync is in
//! flight.
//!
//! A failed write or sync abandons the segment. Its blocks that are neither synced nor finalized
//! are still in memory and are written to another segment. A sync is never retried on the same
//! file: the retry may succeed without having written anything.
//!
//! It must not depend on what the rows contain.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::filesystem::Filesystem;
use super::pipeline::{Pipeline, complete, drop_finalized};
use super::record::SegmentHeader;
use super::retained::RetainLimits;
use super::segment::{Segment, WriteGroup};
use super::segment_table::SegmentTable;
use super::sync::{SyncCompletion, SyncJob};
use super::{
    Durability, DurabilityWaiter, FoundSegments, Journal, JournalOp, LaneEntry, NOT_SYNCED, NOT_WRITABLE,
    SegmentUpdate,
};
use crate::buffer::{Buffer, RowBlock, SegmentAssignment};
use crate::clock::{Clock, Moment};
use crate::logging::RateLimitedLog;
use crate::storage::DatabaseState;

/// Bound on the bytes of one write, unless a single block is larger.
const GROUP_BYTES_MAX: usize = 1024 * 1024;
/// A segment of this size is sealed when the sync interval has passed. Its events are soon
/// committed and its file is removed, so that a crash replays a few intervals of events, not a
/// whole segment.
const SEAL_BYTES_MIN: u64 = 1024 * 1024;
/// The first and the maximum delay after a failure.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(1);
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub struct JournalLimits {
    /// Maximum time that a block is in memory only.
    pub write_interval: Duration,
    /// Maximum time that a block is in the page cache only.
    pub sync_interval: Duration,
    pub segment_bytes_max: u64,
    pub retain: RetainLimits,
}

/// Exponential backoff of writes or syncs.
#[derive(Debug)]
struct RetryDelay {
    retry_at: Moment,
    delay: Duration,
}

impl Default for RetryDelay {
    fn default() -> Self {
        Self { retry_at: Moment::ZERO, delay: RETRY_DELAY_MIN }
    }
}

impl RetryDelay {
    fn schedule_retry(&mut self, now: Moment) {
        self.retry_at = now.plus(self.delay);
        self.delay = (self.delay * 2).min(RETRY_DELAY_MAX);
    }
}

/// The state of the journal thread.
///
/// Invariant: a block that is neither finalized nor synced is in a lane, in `unwritten` or in
/// `pipeline`. A waiter is completed with `true` only if every block before it has reached its
/// level: each failed write or sync completes all waiters with `false`, except those of another
/// sync in flight.
#[derive(Debug)]
pub struct JournalWriter {
    journal: Arc<Journal>,
    buffer: Arc<Buffer>,
    disk: Arc<dyn Filesystem>,
    limits: JournalLimits,
    clock: Clock,
    rng: StdRng,
    /// Blocks to be written, oldest first.
    unwritten: VecDeque<RowBlock>,
    /// Waiters for the blocks in `unwritten`.
    waiters: Vec<DurabilityWaiter>,
    pipeline: Pipeline,
    segments: SegmentTable,
    group: WriteGroup,
    sync_at: Moment,
    write_retry: RetryDelay,
    sync_retry: RetryDelay,
    error_log: RateLimitedLog,
}

impl JournalWriter {
    pub fn new(
        (journal, buffer): (Arc<Journal>, Arc<Buffer>),
        disk: Arc<dyn Filesystem>,
        limits: JournalLimits,
        clock: Clock,
        found: &FoundSegments,
    ) -> Self {
        let mut writer = Self {
            rng: clock.rng(),
            sync_at: clock.now().plus(limits.sync_interval),
            segments: SegmentTable::new(found, limits.retain, clock.now()),
            journal,
            buffer,
            disk,
            limits: JournalLimits {
                segment_bytes_max: limits.retain.segment_bytes_max(limits.segment_bytes_max),
                ..limits
            },
            clock,
            unwritten: VecDeque::new(),
            waiters: Vec::new(),
            pipeline: Pipeline::default(),
            group: WriteGroup::default(),
            write_retry: RetryDelay::default(),
            sync_retry: RetryDelay::default(),
            error_log: RateLimitedLog::new(ERROR_LOG_INTERVAL),
        };
        writer.publish_metrics();
        writer
    }

    pub(super) fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    pub(super) fn disk(&self) -> &Arc<dyn Filesystem> {
        &self.disk
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn limits(&self) -> &JournalLimits {
        &self.limits
    }

    /// Whether all blocks are to be written and synced for the end of the process.
    pub(super) fn is_finishing(&self) -> bool {
        self.journal.is_finishing()
    }

    /// Writes every block that is in the lanes, and returns a sync if one is due or waited for and
    /// none is in flight. `completion` is the result of the previous sync, once it has ended.
    pub fn tick(&mut self, completion: Option<SyncCompletion>) -> Option<SyncJob> {
        let now = self.clock.now();
        let finishing = self.journal.is_finishing();
        if let Some(completion) = completion {
            // Before the lanes are drained: a waiter that is appended later wakes this thread.
            self.journal.sync_in_flight.mark_ended();
            self.on_sync_result(completion, now);
        }
        self.apply_segment_updates(now);
        if self.pipeline.active_number().is_some_and(|active| self.segments.is_stale(active)) {
            // It must be finished before it can be replayed.
            self.pipeline.seal_active();
        }
        self.drain_lanes();
        if self.journal.fault().is_some() {
            self.unspill_unwritten();
        }
        if now >= self.write_retry.retry_at || finishing {
            match self.write_unwritten(now) {
                Ok(()) => self.on_all_written(),
                Err((op, error)) => self.on_write_failure(op, &error, now),
            }
        } else {
            self.fail_waiters();
        }
        let job = self.next_sync(now, finishing);
        // A block that was written may have been finalized since the first call: its segment must not be
        // retained without the position of the commit.
        self.apply_segment_updates(now);
        let (active, pipeline) = (self.pipeline.active_number(), &self.pipeline);
        let is_needed = |segment| Some(segment) == active || pipeline.is_source(segment);
        self.segments.remove_finished((&self.journal, &*self.disk), is_needed, now);
        self.publish_metrics();
        job
    }

    /// Whether all blocks are synced, or a fault prevents it, and no sync is in flight.
    pub fn is_finished(&self) -> bool {
        let all = self.unwritten.is_empty() && self.pipeline.is_fully_synced();
        !self.pipeline.is_in_flight() && (all || self.journal.fault().is_some())
    }

    fn apply_segment_updates(&mut self, now: Moment) {
        let (mut unassigned, mut assigned) = (0, 0);
        // Updates pushed after this load are left to the next tick.
        for _ in 0..self.journal.segment_updates.len() {
            let Some(update) = self.journal.segment_updates.pop() else { break };
            match update {
                SegmentUpdate::Finalized { segment, blocks, commit } => {
                    self.segments.record_commit(segment, commit);
                    if let Some(segment) = segment {
                        assigned += blocks;
                        self.segments.update_outstanding(segment, -to_signed(blocks));
                    } else {
                        unassigned += blocks;
                    }
                    if commit.is_some() {
                        self.observe(DatabaseState { position: commit, standby_flushed: None }, now);
                    }
                }
                SegmentUpdate::Replayed { segment, blocks } => {
                    self.segments.update_outstanding(segment, to_signed(blocks));
                }
                SegmentUpdate::FullyRead { segment, damaged } => self.segments.mark_read(segment, damaged),
                SegmentUpdate::Observed(state) => self.observe(state, now),
                SegmentUpdate::Restored { segment, commit } => {
                    self.segments.restored((&self.journal, &*self.disk), segment, commit, now);
                }
            }
        }
        if unassigned > 0 && !self.writes_finalized() {
            drop_finalized(&mut self.unwritten, unassigned);
        }
        if assigned > 0 {
            self.pipeline.drop_finalized(assigned);
        }
    }

    fn observe(&mut self, state: DatabaseState, now: Moment) {
        let files = (&*self.journal, &*self.disk);
        if let Some(failover) = self.segments.observe(files, state, now) {
            self.journal.report_failover(failover);
        }
    }

    /// Whether blocks are written that were committed before: a failover may lose them. They must not
    /// occupy the buffer while the disk fails.
    fn writes_finalized(&self) -> bool {
        self.segments.retains() && self.journal.fault().is_none()
    }

    fn drain_lanes(&mut self) {
        let drops_finalized = !self.writes_finalized();
        for lane in &self.journal.lanes {
            for _ in 0..lane.len() {
                match lane.pop() {
                    Some(LaneEntry::Block(block)) if drops_finalized && block.is_finalized() => {}
                    Some(LaneEntry::Block(block)) => self.unwritten.push_back(block),
                    Some(LaneEntry::Waiter(waiter)) => self.waiters.push(waiter),
                    None => break,
                }
            }
        }
    }

    /// Moves unwritten spilled blocks to the buffer, as far as it has capacity: they must not wait
    /// for a failing disk.
    fn unspill_unwritten(&mut self) {
        for block in self.unwritten.iter_mut().filter(|block| block.is_spilled()) {
            match self.buffer.unspill(0, block) {
                Ok(unspilled) => *block = unspilled,
                Err(_full) => return,
            }
        }
    }

    fn write_unwritten(&mut self, now: Moment) -> Result<(), (JournalOp, io::Error)> {
        if !self.journal.guarantees(Durability::Written) {
            // Only a successful write clears the fault, even if no block is unwritten.
            self.active_or_new_segment()?;
        }
        if let Some(oldest) = self.unwritten.front() {
            let lag = u64::try_from(now.since(oldest.admitted_at()).as_nanos()).unwrap_or(u64::MAX);
            self.journal.metrics.lag_nanos.store(lag, Ordering::Relaxed);
        }
        while !self.unwritten.is_empty() {
            self.write_group()?;
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), (JournalOp, io::Error)> {
        // Moved out of `self`, since the active segment borrows `self`.
        let mut group = std::mem::take(&mut self.group);
        let bytes_max = self.limits.segment_bytes_max;
        let writes_finalized = self.writes_finalized();
        self.active_or_new_segment()?;
        let active = self.pipeline.active().expect("BUG: it was created above");
        group.clear(GROUP_BYTES_MAX);
        let mut blocks = 0;
        for block in &self.unwritten {
            if writes_finalized || !block.is_finalized() {
                if group.bytes() > 0 && group.bytes() + WriteGroup::record_bytes(block) > GROUP_BYTES_MAX {
                    break;
                }
                group.push(active, block);
            }
            blocks += 1;
        }
        let written = if group.bytes() > 0 { active.append(&group) } else { Ok(()) };
        let (segment, is_full, length) = (active.number, active.bytes >= bytes_max, active.file_bytes());
        let rows = group.rows;
        self.group = group;
        written.map_err(|error| (JournalOp::Write, error))?;
        self.pipeline.add_rows(rows);
        self.journal.metrics.events_written.fetch_add(rows, Ordering::Relaxed);
        self.segments.set_bytes(segment, length);
        for _ in 0..blocks {
            let block = self.unwritten.pop_front().expect("BUG: the group has as many blocks");
            self.assign_to_segment(segment, block);
        }
        if is_full {
            self.pipeline.seal_active();
        }
        Ok(())
    }

    fn assign_to_segment(&mut self, segment: u64, block: RowBlock) {
        let source = match block.assign_segment(segment) {
            SegmentAssignment::Finalized => return self.segments.adopt_finalized(segment),
            SegmentAssignment::New => None,
            SegmentAssignment::MovedFrom(before) => {
                self.segments.update_outstanding(before, -1);
                // In a segment of this process it was not synced.
                Some(before).filter(|before| self.segments.is_of_earlier_process(*before))
            }
        };
        self.segments.update_outstanding(segment, 1);
        self.pipeline.push_block(block, source);
    }

    /// Every unwritten block was written: completes the waiters for a write and queues those for a
    /// sync.
    fn on_all_written(&mut self) {
        self.journal.clear_fault(NOT_WRITABLE);
        self.write_retry = RetryDelay::default();
        self.segments.clear_unassigned();
        if self.pipeline.clear_requeued() {
            self.segments.request_gc();
        }
        let reached = std::mem::take(&mut self.waiters).into_iter().filter_map(|waiter| match waiter.level {
            Durability::Memory | Durability::Written => Some(waiter),
            Durability::Synced => self.pipeline.add_sync_waiter(waiter),
        });
        complete(reached, true);
    }

    fn next_sync(&mut self, now: Moment, finishing: bool) -> Option<SyncJob> {
        if now < self.sync_retry.retry_at && !finishing {
            complete(self.pipeline.take_waiters(), false);
            return None;
        }
        let probe = !self.journal.guarantees(Durability::Synced);
        let interval_elapsed = now >= self.sync_at || finishing;
        let due = interval_elapsed || self.buffer.spill().sync_urgent();
        if due || probe {
            self.sync_at = now.plus(self.limits.sync_interval);
            if interval_elapsed && self.pipeline.active().is_some_and(|active| active.bytes >= SEAL_BYTES_MIN)
            {
                self.pipeline.seal_active();
                self.segments.request_gc();
            }
            // Only a successful sync clears the fault, even if no block is unsynced.
            if probe && self.journal.guarantees(Durability::Written) && !self.pipeline.is_in_flight() {
                match self.active_or_new_segment() {
                    Ok(_) => {}
                    Err((op, error)) => self.on_write_failure(op, &error, now),
                }
            }
            self.pipeline.mark_all_due();
        }
        let segments = &self.segments;
        let is_idle = |segment| !probe && segments.is_idle(segment);
        let job = self.pipeline.next_sync(is_idle, self.limits.segment_bytes_max);
        if due {
            self.segments.request_gc();
        }
        if let Some(active) = self.pipeline.active() {
            self.segments.set_bytes(active.number, active.file_bytes());
        }
        if job.is_some() {
            self.journal.sync_in_flight.mark_started();
        }
        job
    }

    fn on_sync_result(&mut self, completion: SyncCompletion, now: Moment) {
        match completion.result {
            Ok(()) => {
                let (mut synced, spilled) = self.pipeline.complete_sync(completion.segment);
                if let Some(range) = spilled {
                    self.journal.enqueue_refill(range);
                }
                self.journal.metrics.events_synced.fetch_add(synced.rows, Ordering::Relaxed);
                self.journal.clear_fault(NOT_SYNCED);
                self.sync_retry = RetryDelay::default();
                self.segments.request_gc();
                synced.complete(true);
            }
            Err(error) => {
                let mut unconfirmed = self.pipeline.fail_sync(completion.segment);
                self.requeue(&mut unconfirmed.blocks);
                unconfirmed.complete(false);
                self.record_failure(JournalOp::Sync, completion.segment, &error, now);
                self.sync_retry.schedule_retry(now);
                self.fail_waiters();
            }
        }
    }

    /// Returns the active segment. Creates it if there is none.
    fn active_or_new_segment(&mut self) -> Result<&mut Segment, (JournalOp, io::Error)> {
        if self.pipeline.active_number().is_none() {
            let number = self.segments.add();
            let mut tag = [0; 8];
            self.rng.fill_bytes(&mut tag);
            let header = SegmentHeader { segment: number, tag, created_at: self.clock.wall() };
            match Segment::create(&*self.disk, header) {
                Ok(segment) => self.pipeline.activate(segment),
                Err(error) => {
                    self.segments.request_gc();
                    return Err((JournalOp::Create, error));
                }
            }
        }
        Ok(self.pipeline.active().expect("BUG: it was created above"))
    }

    /// Abandons the active segment after a failed write or creation.
    fn on_write_failure(&mut self, op: JournalOp, error: &io::Error, now: Moment) {
        let segment = self.pipeline.active_number().unwrap_or(self.segments.last_added());
        // The blocks written since its last sync began are not durable. Those not finalized are
        // still in memory.
        let mut unconfirmed = self.pipeline.abandon_active();
        self.requeue(&mut unconfirmed.blocks);
        unconfirmed.complete(false);
        self.record_failure(op, segment, error, now);
        self.write_retry.schedule_retry(now);
        self.fail_waiters();
    }

    fn requeue(&mut self, blocks: &mut VecDeque<RowBlock>) {
        blocks.append(&mut self.unwritten);
        std::mem::swap(blocks, &mut self.unwritten);
        self.segments.request_gc();
    }

    fn record_failure(&mut self, op: JournalOp, segment: u64, error: &io::Error, now: Moment) {
        self.journal.record_failure(op, if op == JournalOp::Sync { NOT_SYNCED } else { NOT_WRITABLE });
        if let Some(suppressed) = self.error_log.due(now) {
            log::error!(
                operation = op.label(), segment = segment, suppressed = suppressed;
                "the journal failed; durability is unavailable until a retry succeeds: {error}"
            );
        }
    }

    /// Fails waiters: durability is unavailable. Waiters of a sync in flight are completed by its
    /// result.
    fn fail_waiters(&mut self) {
        complete(std::mem::take(&mut self.waiters), false);
        complete(self.pipeline.take_waiters(), false);
    }

    fn publish_metrics(&mut self) {
        let metrics = &self.journal.metrics;
        let (segments, bytes) = self.segments.totals();
        metrics.segments.store(segments, Ordering::Relaxed);
        metrics.bytes.store(bytes, Ordering::Relaxed);
        let (segments, bytes) = self.segments.retained_totals();
        metrics.retained_segments.store(segments, Ordering::Relaxed);
        metrics.retained_bytes.store(bytes, Ordering::Relaxed);
    }
}

fn to_signed(blocks: u64) -> i64 {
    i64::try_from(blocks).expect("BUG: fewer blocks than fit in memory")
}
