//! Row blocks that are written together. Must not depend on threads or the database.

use std::time::Duration;

use crate::buffer::RowBlock;
use crate::clock::Moment;
use crate::event::row::{Row, rows};

/// Bounds of a batch. The first one reached closes it.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    pub rows_max: usize,
    pub bytes_max: usize,
    /// How long the oldest event waits for others while no batch is in flight.
    pub linger: Duration,
    /// Maximum time the oldest event waits for the batch to fill, also while others are in flight.
    pub wait_max: Duration,
}

/// A batch that is a fifth full after one linger is full after five: the fixed cost of a
/// transaction is worth that wait.
const LINGERS_MAX: u32 = 5;

/// Blocks in the order they were taken out of the buffer.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    blocks: Vec<RowBlock>,
    rows: usize,
    bytes: usize,
    oldest: Option<Moment>,
}

impl Batch {
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, blocks: Vec::new(), rows: 0, bytes: 0, oldest: None }
    }

    /// Whether `block` fits. An empty batch admits any block: one above the bounds could otherwise
    /// never be written.
    pub fn admits(&self, block: &RowBlock) -> bool {
        self.rows == 0
            || (self.rows + block.rows() as usize <= self.limits.rows_max
                && self.bytes + block.bytes().len() <= self.limits.bytes_max)
    }

    pub fn push(&mut self, block: RowBlock) {
        self.rows += block.rows() as usize;
        self.bytes += block.bytes().len();
        let admitted_at = block.admitted_at();
        self.oldest = Some(self.oldest.map_or(admitted_at, |oldest| oldest.min(admitted_at)));
        self.blocks.push(block);
    }

    pub fn is_full(&self) -> bool {
        self.rows >= self.limits.rows_max || self.bytes >= self.limits.bytes_max
    }

    pub fn count(&self) -> usize {
        self.rows
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the batch is to be written although it is not full. `idle_since`: when the last batch in
    /// flight completed; none while one is in flight. None for an empty batch.
    pub fn due(&self, idle_since: Option<Moment>) -> Option<Moment> {
        let oldest = self.oldest?;
        let BatchLimits { rows_max, bytes_max, linger, wait_max } = self.limits;
        let parts = LINGERS_MAX as usize;
        let fills_slowly =
            self.rows.saturating_mul(parts) < rows_max && self.bytes.saturating_mul(parts) < bytes_max;
        let wait = match (idle_since, fills_slowly) {
            // The batch in flight ends the wait when it commits.
            (None, _) => wait_max,
            // Events are rarer than one a linger: no other would join in that time.
            (Some(idle_since), true) if oldest >= idle_since.plus(linger) => Duration::ZERO,
            (Some(_), true) => linger,
            (Some(_), false) => linger.saturating_mul(LINGERS_MAX),
        };
        Some(oldest.plus(wait.min(wait_max)))
    }

    /// Takes all blocks out of the batch.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(self.limits))
    }

    /// Adds the blocks of another batch, beyond the bounds.
    pub fn append(&mut self, other: Self) {
        other.blocks.into_iter().for_each(|block| self.push(block));
    }

    /// The row bytes of each block, for one COPY.
    pub fn runs(&self) -> Vec<&[u8]> {
        self.blocks.iter().map(RowBlock::bytes).collect()
    }

    pub fn into_blocks(self) -> Vec<RowBlock> {
        self.blocks
    }

    /// Whether a block was replayed from the journal, so that its rows may be stored already.
    pub fn is_replayed(&self) -> bool {
        self.blocks.iter().any(RowBlock::is_replayed)
    }

    /// The single rows, for isolating a row fault.
    pub fn rows(&self) -> Vec<Row<'_>> {
        self.blocks.iter().flat_map(|block| rows(block.bytes())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: BatchLimits = BatchLimits { rows_max: 10, bytes_max: 100, linger: ms(5), wait_max: ms(30) };

    const IDLE: Option<Moment> = Some(Moment::ZERO);

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(ms(millis))
    }

    fn block(rows: u32, bytes: usize, at_ms: u64) -> RowBlock {
        RowBlock::new(&vec![0; bytes], rows, at(at_ms))
    }

    #[test]
    fn batch_is_full_at_its_row_or_byte_bound() {
        let mut batch = Batch::new(LIMITS);
        batch.push(block(9, 10, 0));
        assert!(!batch.is_full() && batch.admits(&block(1, 90, 0)));
        assert!(!batch.admits(&block(2, 10, 0)) && !batch.admits(&block(1, 91, 0)));
        batch.push(block(1, 10, 0));
        assert!(batch.is_full());
    }

    #[test]
    fn empty_batch_admits_any_block() {
        assert!(Batch::new(LIMITS).admits(&block(11, 101, 0)));
    }

    #[test]
    fn batch_is_due_when_its_oldest_event_has_lingered() {
        let mut batch = Batch::new(LIMITS);
        assert_eq!((batch.due(IDLE), batch.due(None)), (None, None));
        batch.push(block(0, 1, 7));
        batch.push(block(1, 1, 3));
        assert_eq!(batch.due(IDLE), Some(at(8)));
        assert_eq!(batch.due(None), Some(at(33)), "the batch in flight ends the wait");
    }

    #[test]
    fn event_after_an_idle_linger_is_due_at_once() {
        let mut batch = Batch::new(LIMITS);
        batch.push(block(1, 1, 20));
        assert_eq!(batch.due(Some(at(15))), Some(at(20)));
        assert_eq!(batch.due(Some(at(16))), Some(at(25)), "the writer stored a batch 4 ms before");
        batch.push(block(1, 1, 20));
        assert_eq!(batch.due(Some(at(15))), Some(at(45)), "others come quickly");
    }

    #[test]
    fn batch_that_fills_quickly_waits_until_it_is_full() {
        for (rows, bytes) in [(2, 1), (1, 20)] {
            let mut batch = Batch::new(LIMITS);
            batch.push(block(rows, bytes, 3));
            assert_eq!(batch.due(IDLE), Some(at(28)), "{rows} rows, {bytes} bytes");
        }
        let mut bounded = Batch::new(BatchLimits { wait_max: ms(12), ..LIMITS });
        bounded.push(block(9, 1, 3));
        assert_eq!((bounded.due(IDLE), bounded.due(None)), (Some(at(15)), Some(at(15))));
    }

    #[test]
    fn appended_batch_keeps_the_order_of_its_blocks() {
        let (mut batch, mut other) = (Batch::new(LIMITS), Batch::new(LIMITS));
        batch.push(block(9, 90, 1));
        other.push(block(8, 80, 2));
        batch.append(other.take());
        assert_eq!((batch.count(), batch.bytes(), other.count(), other.due(IDLE)), (17, 170, 0, None));
        assert!(batch.into_blocks().is_sorted_by_key(RowBlock::admitted_at));
    }
}
