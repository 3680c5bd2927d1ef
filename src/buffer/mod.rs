//! The buffer between acceptors and the writer: one bounded queue (shard) per acceptor, and one
//! bound on the total of events and of bytes.
//!
//! Admission first reserves capacity in events and bytes, so that an admitted request always fits
//! and a rejected one changes nothing. The reservation of events is released when they are
//! committed, not when the writer pops them: events in the writer count as buffered. The
//! reservation of bytes is released when the memory is freed, since the journal may hold a block
//! longer than the writer.
//!
//! Events that do not fit are written to the journal only, until the buffer has capacity: see
//! [`Spill`].
//!
//! It must not depend on requests, files or SQL.

mod block;
mod handover;
mod occupancy;
mod spill;

#[cfg(test)]
mod accounting_tests;

use std::sync::Arc;
use std::sync::atomic::{self, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::sync::{Parker, Unparker};
use crossbeam::utils::CachePadded;
use triomphe as counted;

use crate::clock::Moment;
use crate::metrics::Ledger;

use block::Reservation;
pub use block::{RowBlock, SegmentAssignment};
use handover::Handover;
use occupancy::Occupancy;
pub use occupancy::Occupied;
pub use spill::Spill;

/// Bounds of the buffer and of the spill.
#[derive(Clone, Copy, Debug)]
pub struct BufferLimits {
    /// Maximum events in total, 1 to [`occupancy::ROWS_MAX`].
    pub rows_max: usize,
    /// Maximum bytes of encoded rows in total, up to [`occupancy::BYTES_MAX`].
    pub bytes_max: usize,
    /// The number of events in the batch of the writer and in the shards that wakes the writer
    /// before its linger ends.
    pub batch_rows_max: usize,
    /// The number of such bytes that wakes the writer before its linger ends.
    pub batch_bytes_max: usize,
    /// Maximum bytes of encoded rows in the journal only, not counted in `bytes_max`; 0 disables
    /// the spill.
    pub spill_bytes_max: u64,
}

/// The origin of rows that a refill reads from the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefillOrigin {
    /// A previous process admitted the rows: the ledger has not counted them, and they may already
    /// be stored.
    PreviousProcess,
    /// This process spilled the rows because the buffer was full.
    Spill,
}

/// The rows were not admitted, not even in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The buffer has no capacity until the writer commits.
    #[error("the buffer is full")]
    Full,
    /// The rows exceed the capacity of the empty buffer.
    #[error("the batch is larger than the whole buffer")]
    TooLarge,
    /// Intake has ended.
    #[error("the server is shutting down")]
    Closed,
}

/// Invariant: the rows of a block in a shard are reserved in `occupancy`. Hence the number of
/// blocks never exceeds `rows_max`, and `rows_max` never exceeds the total capacity of the shards.
#[derive(Debug)]
pub struct Buffer {
    shards: Box<[CachePadded<ArrayQueue<RowBlock>>]>,
    occupancy: Arc<Occupancy>,
    handover: CachePadded<Handover>,
    spill: Spill,
    limits: BufferLimits,
    ledger: Arc<Ledger>,
    writer: Unparker,
    last_enqueue: Box<[CachePadded<AtomicU64>]>,
    last_drain: AtomicU64,
}

impl Buffer {
    /// Creates a buffer of `shards` queues and the parker on which the writer parks.
    pub fn new(limits: BufferLimits, shards: usize, ledger: Arc<Ledger>) -> (Self, Parker) {
        let shard_capacity = limits.rows_max.div_ceil(shards);
        let parker = Parker::new();
        let buffer = Self {
            shards: (0..shards).map(|_| CachePadded::new(ArrayQueue::new(shard_capacity))).collect(),
            occupancy: Arc::new(Occupancy::new(limits.rows_max, limits.bytes_max)),
            handover: CachePadded::new(Handover::new(limits.batch_rows_max, limits.batch_bytes_max)),
            spill: Spill::new(limits.spill_bytes_max),
            limits,
            ledger,
            writer: parker.unparker().clone(),
            last_enqueue: (0..shards).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            last_drain: AtomicU64::new(0),
        };
        (buffer, parker)
    }

    /// Admits all `rows` events of `bytes` bytes in total, or none. `blocks` yields the rows of
    /// each block and their number. `on_block` is called with each block before the writer can pop
    /// it. If the buffer has no capacity, or the spill is engaged, the blocks go to the journal
    /// only. O(1) per block; never blocks.
    pub fn admit<'a>(
        &self,
        shard: usize,
        (rows, bytes): (u32, usize),
        admitted_at: Moment,
        blocks: impl Iterator<Item = (&'a [u8], u32)>,
        mut on_block: impl FnMut(&RowBlock),
    ) -> Result<(), AdmitError> {
        if self.spill.is_engaged() {
            return self.admit_to_spill(shard, (rows, bytes), admitted_at, blocks, on_block);
        }
        match self.occupancy.reserve(rows as usize, bytes) {
            Ok(_) => {}
            Err(AdmitError::Full) => {
                return self.admit_to_spill(shard, (rows, bytes), admitted_at, blocks, on_block);
            }
            Err(error @ (AdmitError::TooLarge | AdmitError::Closed)) => return Err(error),
        }
        // Counted before the writer can pop them, so that the ledger never shows more stored than
        // received.
        self.ledger.record_received(shard, u64::from(rows));
        for (bytes, rows) in blocks {
            let block = RowBlock::admitted(bytes, rows, admitted_at, self.reservation(rows, bytes.len()));
            on_block(&block);
            self.push(shard, block);
        }
        self.last_enqueue[shard].store(admitted_at.nanos(), Ordering::Relaxed);
        self.announce(rows as usize, bytes);
        Ok(())
    }

    #[cold]
    fn admit_to_spill<'a>(
        &self,
        shard: usize,
        (rows, bytes): (u32, usize),
        admitted_at: Moment,
        blocks: impl Iterator<Item = (&'a [u8], u32)>,
        mut on_block: impl FnMut(&RowBlock),
    ) -> Result<(), AdmitError> {
        if rows as usize > self.limits.rows_max || bytes > self.limits.bytes_max {
            return Err(AdmitError::TooLarge);
        }
        self.spill.reserve(rows, bytes)?;
        self.ledger.record_received(shard, u64::from(rows));
        for (bytes, rows) in blocks {
            let reservation = self.spill.reservation(rows, bytes.len());
            on_block(&RowBlock::spilled(bytes, rows, admitted_at, reservation));
        }
        self.last_enqueue[shard].store(admitted_at.nanos(), Ordering::Relaxed);
        Ok(())
    }

    /// Admits rows read from `segment` of the journal, which still holds them. `before_enqueue` is
    /// called with the block before the writer can pop it.
    pub fn admit_refill(
        &self,
        shard: usize,
        rows: u32,
        bytes: &[u8],
        (segment, origin): (u64, RefillOrigin),
        now: Moment,
        before_enqueue: impl FnOnce(&RowBlock),
    ) -> Result<(), AdmitError> {
        let replayed = origin == RefillOrigin::PreviousProcess;
        if replayed {
            self.occupancy.reserve(rows as usize, bytes.len())?;
            self.ledger.record_received(shard, u64::from(rows));
        } else {
            // Spilled rows were already admitted.
            self.occupancy.reserve_ignoring_close(rows as usize, bytes.len())?;
        }
        let reservation = self.reservation(rows, bytes.len());
        let block = RowBlock::refilled(bytes, rows, now, segment, replayed, reservation);
        before_enqueue(&block);
        self.push(shard, block);
        if !replayed {
            self.spill.release(u64::from(rows), bytes.len() as u64);
        }
        self.announce(rows as usize, bytes.len());
        Ok(())
    }

    /// Moves a spilled block to the writer's queue, for a disk that cannot store it. Returns the
    /// block that the journal must hold in place of `spilled`.
    pub fn unspill(&self, shard: usize, spilled: &RowBlock) -> Result<RowBlock, AdmitError> {
        let (rows, bytes) = (spilled.rows(), spilled.bytes().len());
        self.occupancy.reserve_ignoring_close(rows as usize, bytes)?;
        let block = RowBlock::unspilled(spilled, self.reservation(rows, bytes));
        self.push(shard, block.clone());
        self.spill.release(u64::from(rows), bytes as u64);
        self.announce(rows as usize, bytes);
        Ok(block)
    }

    fn reservation(&self, rows: u32, bytes: usize) -> Reservation {
        Reservation { occupancy: self.occupancy.clone(), rows, bytes }
    }

    /// Announces pushed rows to the writer, and wakes it if they start its linger or complete a
    /// batch.
    fn announce(&self, rows: usize, bytes: usize) {
        if self.handover.announce(rows, bytes) {
            self.writer.unpark();
        }
    }

    /// Pushes into `shard`, or into the next shard that is not full.
    fn push(&self, shard: usize, mut block: RowBlock) {
        let count = self.shards.len();
        // The reservation guarantees a free slot; a round can miss it only during concurrent pushes
        // and pops.
        for at in (0..count).cycle() {
            match self.shards[(shard + at) % count].push(block) {
                Ok(()) => return,
                Err(back) => block = back,
            }
        }
    }

    /// Pops a block from the shard at `turn`, or from the next that is not empty, and advances
    /// `turn` past that shard (round robin). The block's rows stay reserved until it is finalized,
    /// its bytes until its last clone is dropped.
    pub fn pop(&self, turn: &mut usize) -> Option<RowBlock> {
        let count = self.shards.len();
        for at in 0..count {
            let shard = (*turn + at) % count;
            if let Some(block) = self.shards[shard].pop() {
                *turn = (shard + 1) % count;
                return Some(block);
            }
        }
        None
    }

    /// Announces that the writer parks with `rows` and `bytes` in its batch. It must pop once more
    /// before it parks: later blocks wake it, but not those that were pushed before this call.
    pub fn prepare_park(&self, rows: usize, bytes: usize) {
        self.handover.prepare_park(rows, bytes);
    }

    /// Whether the writer is parked, or about to park, and no wake-up is on its way.
    pub fn is_writer_parked(&self) -> bool {
        self.handover.is_parked()
    }

    /// Records that the writer committed events.
    pub fn record_committed(&self, now: Moment) {
        self.last_drain.store(now.nanos(), Ordering::Relaxed);
    }

    /// Closes the buffer: later admissions fail. Once `occupied` returns zero, no more events
    /// arrive.
    pub fn close(&self) {
        self.occupancy.close();
        self.spill.close();
    }

    /// Wakes the writer, so that it checks its other inputs.
    pub fn wake_writer(&self) {
        self.handover.clear_parked();
        self.writer.unpark();
    }

    pub fn occupied(&self) -> Occupied {
        self.occupancy.occupied()
    }

    /// Whether every event that was admitted before the call is settled: none is in memory, in flight
    /// or spilled.
    pub fn is_empty(&self) -> bool {
        self.spill.is_empty_with(&self.occupancy)
    }

    /// Whether the buffer would reject even a single event now.
    #[inline]
    pub fn is_full(&self) -> bool {
        let occupied = self.occupied();
        let memory = occupied.rows >= self.limits.rows_max || occupied.bytes >= self.limits.bytes_max;
        (memory || self.spill.is_engaged()) && !self.spill.has_capacity()
    }

    /// Records that the disk lost spilled events.
    pub fn record_spill_lost(&self, rows: u64, bytes: u64) {
        self.ledger.record_lost(rows);
        self.spill.release(rows, bytes);
    }

    pub fn spill(&self) -> &Spill {
        &self.spill
    }

    pub fn limits(&self) -> BufferLimits {
        self.limits
    }

    /// Utilization by events or by bytes, whichever is higher.
    pub fn utilization_percent(&self) -> f64 {
        let occupied = self.occupied();
        let share = |used: usize, max: usize| {
            #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
            let share = used as f64 / max as f64;
            100.0 * share
        };
        share(occupied.rows, self.limits.rows_max).max(share(occupied.bytes, self.limits.bytes_max))
    }

    /// The times of the last admission and of the last commit; `Moment::ZERO` before the first.
    pub fn last_enqueue_and_drain(&self) -> (Moment, Moment) {
        let enqueue = self.last_enqueue.iter().map(|nanos| nanos.load(Ordering::Relaxed)).max();
        (
            Moment::from_nanos(enqueue.unwrap_or(0)),
            Moment::from_nanos(self.last_drain.load(Ordering::Relaxed)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buffer(rows_max: usize, shards: usize) -> Buffer {
        spilling_buffer(rows_max, shards, 0)
    }

    fn spilling_buffer(rows_max: usize, shards: usize, spill_bytes_max: u64) -> Buffer {
        let limits = BufferLimits {
            rows_max,
            bytes_max: 1 << 20,
            batch_rows_max: 10,
            batch_bytes_max: 1 << 20,
            spill_bytes_max,
        };
        Buffer::new(limits, shards, Arc::new(Ledger::new(shards))).0
    }

    fn admit(buffer: &Buffer, shard: usize, rows: u32) -> Result<(), AdmitError> {
        admit_bytes(buffer, shard, rows, 8)
    }

    fn admit_bytes(buffer: &Buffer, shard: usize, rows: u32, bytes: usize) -> Result<(), AdmitError> {
        let block = vec![0; bytes];
        buffer.admit(shard, (rows, bytes), Moment::ZERO, std::iter::once((&*block, rows)), |_| ())
    }

    #[test]
    fn ledger_counts_events_before_the_writer_can_pop_them() {
        let buffer = buffer(4, 1);
        let blocks = [(&[0; 8][..], 1), (&[0; 8][..], 1)].into_iter();
        let admitted = buffer.admit(0, (2, 16), Moment::ZERO, blocks, |_| {
            assert_eq!(buffer.ledger.balance().received, 2);
        });
        assert_eq!(admitted, Ok(()));
    }

    #[test]
    fn one_shard_can_use_the_whole_capacity() {
        let buffer = buffer(7, 3);
        for _ in 0..7 {
            assert_eq!(admit(&buffer, 1, 1), Ok(()));
        }
        assert_eq!(admit(&buffer, 0, 1), Err(AdmitError::Full));
        assert_eq!(buffer.occupied(), Occupied { rows: 7, bytes: 56 });
        let taken = buffer.pop(&mut 0).unwrap();
        assert_eq!(admit(&buffer, 0, 1), Err(AdmitError::Full), "a popped block still counts as buffered");
        buffer.record_committed(Moment::ZERO);
        assert_eq!(
            admit(&buffer, 0, 1),
            Err(AdmitError::Full),
            "a committed block keeps its bytes until the last clone is dropped"
        );
        drop(taken);
        assert_eq!(admit(&buffer, 0, 1), Ok(()));
    }

    /// A refill could never bring back what exceeds the buffer.
    #[test]
    fn spill_takes_a_batch_of_the_size_of_the_buffer_and_no_larger_one() {
        let buffer = spilling_buffer(10, 1, 1 << 30);
        assert_eq!(admit(&buffer, 0, 10), Ok(()));
        assert_eq!(admit(&buffer, 0, 1), Ok(()));
        assert!(buffer.spill().is_engaged());
        assert_eq!(admit(&buffer, 0, 11), Err(AdmitError::TooLarge));
        assert_eq!(admit_bytes(&buffer, 0, 1, (1 << 20) + 1), Err(AdmitError::TooLarge));
        assert_eq!(admit_bytes(&buffer, 0, 10, 1 << 20), Ok(()));
        assert_eq!(buffer.spill().events(), 11);
    }

    #[test]
    fn admit_rejects_a_batch_that_does_not_fit_as_a_whole() {
        let buffer = buffer(10, 2);
        assert_eq!(admit(&buffer, 0, 8), Ok(()));
        assert_eq!(admit(&buffer, 0, 3), Err(AdmitError::Full));
        assert_eq!(admit(&buffer, 0, 11), Err(AdmitError::TooLarge));
        assert_eq!(admit(&buffer, 0, 2), Ok(()));
    }

    #[test]
    fn admit_bounds_bytes() {
        let buffer = buffer(10, 2);
        assert_eq!(admit_bytes(&buffer, 0, 1, 1 << 20), Ok(()));
        assert_eq!(admit(&buffer, 0, 1), Err(AdmitError::Full));
        assert_eq!(admit_bytes(&buffer, 0, 1, (1 << 20) + 1), Err(AdmitError::TooLarge));
    }

    #[test]
    fn closed_buffer_rejects_new_events_and_keeps_admitted_ones() {
        let buffer = buffer(10, 2);
        admit(&buffer, 0, 3).unwrap();
        buffer.close();
        assert_eq!(admit(&buffer, 0, 1), Err(AdmitError::Closed));
        assert_eq!(buffer.occupied().rows, 3);
        assert_eq!(buffer.pop(&mut 0).unwrap().rows(), 3);
        assert_eq!(admit(&buffer, 0, 1), Err(AdmitError::Closed));
    }

    #[test]
    fn pop_visits_the_shards_in_turn() {
        let buffer = buffer(6, 3);
        for (shard, rows) in [(0, 1), (0, 2), (2, 1)] {
            admit(&buffer, shard, rows).unwrap();
        }
        let mut turn = 0;
        let taken: Vec<_> = std::iter::from_fn(|| buffer.pop(&mut turn)).map(|block| block.rows()).collect();
        assert_eq!(taken, [1, 1, 2]);
    }

    #[test]
    fn concurrent_producers_and_writer_lose_no_events() {
        let buffer = &buffer(50, 2);
        let taken = std::thread::scope(|scope| {
            for shard in 0..2 {
                scope.spawn(move || {
                    let mut left = 20_000;
                    while left > 0 {
                        match admit(buffer, shard, 1) {
                            Ok(()) => left -= 1,
                            Err(_) => std::thread::yield_now(),
                        }
                    }
                });
            }
            let (mut taken, mut turn) = (0, 0);
            while taken < 40_000 {
                match buffer.pop(&mut turn) {
                    Some(block) => {
                        assert!(buffer.occupied().rows <= 50);
                        taken += block.rows();
                    }
                    None => std::thread::yield_now(),
                }
            }
            taken
        });
        assert_eq!((taken, buffer.occupied().rows), (40_000, 0));
    }

    proptest! {
        #[test]
        fn admit_agrees_with_a_plain_sum(
            steps in prop::collection::vec((0..3_usize, 1..6_u32, any::<bool>()), 1..200)
        ) {
            let buffer = buffer(12, 3);
            let (mut reserved, mut turn) = (0, 0);
            for (shard, rows, take) in steps {
                if take {
                    if let Some(block) = buffer.pop(&mut turn) {
                        reserved -= block.rows();
                    }
                } else if admit(&buffer, shard, rows).is_ok() {
                    reserved += rows;
                } else {
                    prop_assert!(reserved + rows > 12);
                }
                prop_assert_eq!(buffer.occupied().rows, reserved as usize);
                prop_assert!(reserved <= 12);
            }
        }
    }
}
