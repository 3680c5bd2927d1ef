//! Where admitted events wait for the writer: one bounded queue (shard) per acceptor, one bound on them all.
//!
//! Admission reserves room first, by events and by bytes, so that what is admitted always fits and what does not
//! fit leaves nothing behind. Room for events is given back when they are committed, not when they are taken out: what
//! the writer holds is still buffered. Room for their bytes is given back when the memory is free: the journal may hold
//! a block a little longer than the writer.
//!
//! What does not fit may lie in the journal only, until there is room: see [`Spill`].
//!
//! Knows nothing of requests, files or SQL.

mod block;
mod occupancy;
mod spill;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crossbeam::sync::{Parker, Unparker};
use crossbeam::utils::CachePadded;

use crate::clock::Moment;
use crate::metrics::Ledger;

use block::Room;
pub use block::{Placed, RowBlock};
use occupancy::Occupancy;
pub use occupancy::Occupied;
pub use spill::Spill;

/// The bounds on what waits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events in all, 1 to [`occupancy::ROWS_MAX`].
    pub rows_max: usize,
    /// Bytes of encoded rows in all, up to [`occupancy::BYTES_MAX`].
    pub bytes_max: usize,
    /// How many waiting events wake the writer before its linger is over.
    pub batch_rows_max: usize,
    /// How many bytes do.
    pub batch_bytes_max: usize,
    /// Bytes of encoded rows that may lie in the journal only, beside all these; 0 is none.
    pub spill_bytes_max: u64,
}

/// Who put into the journal what is read back from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Not known to this one's ledger, and maybe stored already.
    EarlierProcess,
    /// This one, when the buffer was full.
    Spill,
}

/// There is no room; nothing was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// There will be when the writer has caught up.
    #[error("the buffer is full")]
    Now,
    /// The rows exceed the whole buffer.
    #[error("the batch is larger than the whole buffer")]
    Always,
    /// Intake has ended.
    #[error("the server is shutting down")]
    Closed,
}

/// Invariant: a block lies in a shard only while its rows are reserved in `occupancy`, so there are never more
/// blocks than `rows_max`, which is no more than the places of all shards together.
#[derive(Debug)]
pub struct Buffer {
    shards: Box<[CachePadded<ArrayQueue<RowBlock>>]>,
    occupancy: Arc<Occupancy>,
    /// What is not settled yet. In bytes less than what is occupied, while the journal still holds blocks that are.
    unsettled: CachePadded<Occupancy>,
    spill: Spill,
    limits: Limits,
    ledger: Arc<Ledger>,
    writer: Unparker,
    last_enqueue: Box<[CachePadded<AtomicU64>]>,
    last_drain: AtomicU64,
}

impl Buffer {
    /// A buffer of `shards` queues, and the parker that the writer sleeps on.
    pub fn new(limits: Limits, shards: usize, ledger: Arc<Ledger>) -> (Self, Parker) {
        let places = limits.rows_max.div_ceil(shards);
        let parker = Parker::new();
        let buffer = Self {
            shards: (0..shards).map(|_| CachePadded::new(ArrayQueue::new(places))).collect(),
            occupancy: Arc::new(Occupancy::new(limits.rows_max, limits.bytes_max)),
            unsettled: CachePadded::new(Occupancy::new(limits.rows_max, limits.bytes_max)),
            spill: Spill::new(limits.spill_bytes_max),
            limits,
            ledger,
            writer: parker.unparker().clone(),
            last_enqueue: (0..shards).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
            last_drain: AtomicU64::new(0),
        };
        (buffer, parker)
    }

    /// Admits `rows` events of `bytes` bytes in all, or none of them. `blocks` has the rows of each block and how many
    /// they are. `keep` sees each block before the writer can. Blocks that have no room, and those that come after
    /// them, are for the journal alone. O(1) per block; never blocks.
    pub fn admit<'a>(
        &self,
        shard: usize,
        (rows, bytes): (u32, usize),
        admitted_at: Moment,
        blocks: impl Iterator<Item = (&'a [u8], u32)>,
        mut keep: impl FnMut(&RowBlock),
    ) -> Result<(), Full> {
        if self.spill.is_engaged() {
            return self.admit_overflow(shard, (rows, bytes), admitted_at, blocks, keep);
        }
        match self.occupancy.reserve(rows as usize, bytes) {
            Ok(_) => {}
            Err(Full::Now) => return self.admit_overflow(shard, (rows, bytes), admitted_at, blocks, keep),
            Err(full @ (Full::Always | Full::Closed)) => return Err(full),
        }
        let before = self.unsettled.add(rows as usize, bytes);
        // Counted before the writer can see them: the ledger never shows more stored than received.
        self.ledger.received(shard, u64::from(rows));
        for (bytes, rows) in blocks {
            let block = RowBlock::admitted(bytes, rows, admitted_at, self.room(rows, bytes.len()));
            keep(&block);
            self.push(shard, block);
        }
        self.last_enqueue[shard].store(admitted_at.nanos(), Ordering::Relaxed);
        self.announce(before, rows as usize, bytes);
        Ok(())
    }

    #[cold]
    fn admit_overflow<'a>(
        &self,
        shard: usize,
        (rows, bytes): (u32, usize),
        admitted_at: Moment,
        blocks: impl Iterator<Item = (&'a [u8], u32)>,
        mut keep: impl FnMut(&RowBlock),
    ) -> Result<(), Full> {
        if rows as usize > self.limits.rows_max || bytes > self.limits.bytes_max {
            return Err(Full::Always);
        }
        self.spill.reserve(rows, bytes)?;
        self.ledger.received(shard, u64::from(rows));
        for (bytes, rows) in blocks {
            let room = self.spill.room(rows, bytes.len());
            keep(&RowBlock::overflow(bytes, rows, admitted_at, room));
        }
        self.last_enqueue[shard].store(admitted_at.nanos(), Ordering::Relaxed);
        Ok(())
    }

    /// Admits rows that were read from `segment` of the journal, where they lie still: by an earlier process, or spilled by this
    /// one. `note` is called before the writer can see them.
    pub fn admit_read_back(
        &self,
        shard: usize,
        rows: u32,
        bytes: &[u8],
        (segment, origin): (u64, Origin),
        now: Moment,
        note: impl FnOnce(),
    ) -> Result<(), Full> {
        let replayed = origin == Origin::EarlierProcess;
        if replayed {
            self.occupancy.reserve(rows as usize, bytes.len())?;
            self.ledger.received(shard, u64::from(rows));
        } else {
            // These were admitted long ago.
            self.occupancy.reserve_again(rows as usize, bytes.len())?;
        }
        let before = self.unsettled.add(rows as usize, bytes.len());
        note();
        let room = self.room(rows, bytes.len());
        self.push(shard, RowBlock::read_back(bytes, rows, now, segment, replayed, room));
        if !replayed {
            self.spill.release(u64::from(rows), bytes.len() as u64);
        }
        self.announce(before, rows as usize, bytes.len());
        Ok(())
    }

    /// Gives an overflow block to the writer after all, since the disk does not take it. What comes back is the block
    /// that the journal is to hold in its place.
    pub fn admit_moved(&self, shard: usize, overflow: &RowBlock) -> Result<RowBlock, Full> {
        let (rows, bytes) = (overflow.rows(), overflow.bytes().len());
        self.occupancy.reserve_again(rows as usize, bytes)?;
        let before = self.unsettled.add(rows as usize, bytes);
        let block = RowBlock::moved(overflow, self.room(rows, bytes));
        self.push(shard, block.clone());
        self.spill.release(u64::from(rows), bytes as u64);
        self.announce(before, rows as usize, bytes);
        Ok(block)
    }

    fn room(&self, rows: u32, bytes: usize) -> Room {
        Room { occupancy: self.occupancy.clone(), rows, bytes }
    }

    /// Wakes the writer if these rows, added to what was there before, are news to it.
    fn announce(&self, before: Occupied, rows: usize, bytes: usize) {
        let crosses = |before: usize, added: usize, bound: usize| before < bound && before + added >= bound;
        // The first event starts the linger, a full batch ends it. In between the writer need not know.
        if before.rows == 0
            || crosses(before.rows, rows, self.limits.batch_rows_max)
            || crosses(before.bytes, bytes, self.limits.batch_bytes_max)
        {
            self.writer.unpark();
        }
    }

    /// Pushes into the acceptor's own shard, or the next one with a place.
    fn push(&self, shard: usize, mut block: RowBlock) {
        let count = self.shards.len();
        // Room is reserved, so a place exists; a full round can only miss it while others push and pop.
        for at in (0..count).cycle() {
            match self.shards[(shard + at) % count].push(block) {
                Ok(()) => return,
                Err(back) => block = back,
            }
        }
    }

    /// Takes out one block, from the shard at `turn` or the next that has one, and moves `turn` on: no shard waits
    /// for another to run dry. Its events' room stays reserved until it is settled, its bytes' until
    /// the last clone of it is dropped.
    pub fn take(&self, turn: &mut usize) -> Option<RowBlock> {
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

    /// Events have been committed.
    pub fn settled(&self, rows: u32, bytes: usize, now: Moment) {
        self.unsettled.release(rows as usize, bytes);
        self.last_drain.store(now.nanos(), Ordering::Relaxed);
    }

    /// Ends intake: whatever is admitted from here on is refused, and once `occupied` says nothing, nothing will come.
    pub fn close(&self) {
        self.occupancy.close();
        self.spill.close();
    }

    /// Wakes the writer, so that it looks at what else has changed.
    pub fn wake_writer(&self) {
        self.writer.unpark();
    }

    pub fn occupied(&self) -> Occupied {
        self.occupancy.occupied()
    }

    /// Whether not even one more event would be admitted now.
    #[inline]
    pub fn is_full(&self) -> bool {
        let occupied = self.occupied();
        let memory = occupied.rows >= self.limits.rows_max || occupied.bytes >= self.limits.bytes_max;
        (memory || self.spill.is_engaged()) && !self.spill.has_room()
    }

    /// Spilled events were not kept by the disk.
    pub fn lost(&self, rows: u64, bytes: u64) {
        self.ledger.lost(rows);
        self.spill.release(rows, bytes);
    }

    /// What lies in the journal only.
    pub fn spill(&self) -> &Spill {
        &self.spill
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// How full it is, by events or by bytes, whichever is more.
    pub fn utilization_percent(&self) -> f64 {
        let occupied = self.occupied();
        let share = |held: usize, max: usize| {
            #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
            let share = held as f64 / max as f64;
            100.0 * share
        };
        share(occupied.rows, self.limits.rows_max).max(share(occupied.bytes, self.limits.bytes_max))
    }

    /// When events last came in and were last committed; `Moment::ZERO` before the first.
    pub fn last_moments(&self) -> (Moment, Moment) {
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
        let limits = Limits {
            rows_max,
            bytes_max: 1 << 20,
            batch_rows_max: 10,
            batch_bytes_max: 1 << 20,
            spill_bytes_max: 0,
        };
        Buffer::new(limits, shards, Arc::new(Ledger::new(shards))).0
    }

    fn admit(buffer: &Buffer, shard: usize, rows: u32) -> Result<(), Full> {
        admit_bytes(buffer, shard, rows, 8)
    }

    fn admit_bytes(buffer: &Buffer, shard: usize, rows: u32, bytes: usize) -> Result<(), Full> {
        let block = vec![0; bytes];
        buffer.admit(shard, (rows, bytes), Moment::ZERO, std::iter::once((&*block, rows)), |_| ())
    }

    #[test]
    fn one_acceptor_can_use_the_whole_capacity_and_not_one_more() {
        let buffer = buffer(7, 3);
        for _ in 0..7 {
            assert_eq!(admit(&buffer, 1, 1), Ok(()));
        }
        assert_eq!(admit(&buffer, 0, 1), Err(Full::Now));
        assert_eq!(buffer.occupied(), Occupied { rows: 7, bytes: 56 });
        let taken = buffer.take(&mut 0).unwrap();
        assert_eq!(admit(&buffer, 0, 1), Err(Full::Now), "what the writer holds is still buffered");
        buffer.settled(taken.rows(), taken.bytes().len(), Moment::ZERO);
        assert_eq!(admit(&buffer, 0, 1), Err(Full::Now), "so is what somebody holds on to");
        drop(taken);
        assert_eq!(admit(&buffer, 0, 1), Ok(()));
    }

    #[test]
    fn a_batch_that_does_not_fit_whole_is_refused_whole() {
        let buffer = buffer(10, 2);
        assert_eq!(admit(&buffer, 0, 8), Ok(()));
        assert_eq!(admit(&buffer, 0, 3), Err(Full::Now));
        assert_eq!(admit(&buffer, 0, 11), Err(Full::Always));
        assert_eq!(admit(&buffer, 0, 2), Ok(()));
    }

    #[test]
    fn bytes_are_bounded_as_well() {
        let buffer = buffer(10, 2);
        assert_eq!(admit_bytes(&buffer, 0, 1, 1 << 20), Ok(()));
        assert_eq!(admit(&buffer, 0, 1), Err(Full::Now));
        assert_eq!(admit_bytes(&buffer, 0, 1, (1 << 20) + 1), Err(Full::Always));
    }

    #[test]
    fn a_closed_buffer_refuses_and_keeps_what_it_holds() {
        let buffer = buffer(10, 2);
        admit(&buffer, 0, 3).unwrap();
        buffer.close();
        assert_eq!(admit(&buffer, 0, 1), Err(Full::Closed));
        assert_eq!(buffer.occupied().rows, 3);
        assert_eq!(buffer.take(&mut 0).unwrap().rows(), 3);
        assert_eq!(admit(&buffer, 0, 1), Err(Full::Closed));
    }

    #[test]
    fn the_writer_takes_from_every_shard_in_turn() {
        let buffer = buffer(6, 3);
        for (shard, rows) in [(0, 1), (0, 2), (2, 1)] {
            admit(&buffer, shard, rows).unwrap();
        }
        let mut turn = 0;
        let taken: Vec<_> = std::iter::from_fn(|| buffer.take(&mut turn)).map(|block| block.rows()).collect();
        assert_eq!(taken, [1, 1, 2]);
    }

    #[test]
    fn producers_and_a_writer_side_by_side_lose_nothing() {
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
                match buffer.take(&mut turn) {
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
        fn it_admits_exactly_what_a_plain_sum_would(
            steps in prop::collection::vec((0..3_usize, 1..6_u32, any::<bool>()), 1..200)
        ) {
            let buffer = buffer(12, 3);
            let (mut held, mut turn) = (0, 0);
            for (shard, rows, take) in steps {
                if take {
                    if let Some(block) = buffer.take(&mut turn) {
                        held -= block.rows();
                    }
                } else if admit(&buffer, shard, rows).is_ok() {
                    held += rows;
                } else {
                    prop_assert!(held + rows > 12);
                }
                prop_assert_eq!(buffer.occupied().rows, held as usize);
                prop_assert!(held <= 12);
            }
        }
    }
}
