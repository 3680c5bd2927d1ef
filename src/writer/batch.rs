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
    /// Maximum time the oldest event waits for the batch to fill.
    pub linger: Duration,
}

/// Blocks in the order they were taken out of the buffer.
#[derive(Debug)]
pub struct Batch {
    limits: BatchLimits,
    blocks: Vec<RowBlock>,
    rows: usize,
    bytes: usize,
}

impl Batch {
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, blocks: Vec::new(), rows: 0, bytes: 0 }
    }

    pub fn limits(&self) -> BatchLimits {
        self.limits
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

    /// When the oldest event has waited for `linger`. None for an empty batch.
    pub fn due(&self) -> Option<Moment> {
        self.blocks.iter().map(RowBlock::admitted_at).min().map(|first| first.plus(self.limits.linger))
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

    const LIMITS: BatchLimits =
        BatchLimits { rows_max: 10, bytes_max: 100, linger: Duration::from_millis(5) };

    fn block(rows: u32, bytes: usize, at_ms: u64) -> RowBlock {
        let admitted_at = Moment::ZERO.plus(Duration::from_millis(at_ms));
        RowBlock::new(&vec![0; bytes], rows, admitted_at)
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
    fn batch_is_due_by_its_oldest_event() {
        let mut batch = Batch::new(LIMITS);
        assert_eq!(batch.due(), None);
        batch.push(block(1, 1, 7));
        batch.push(block(1, 1, 3));
        assert_eq!(batch.due(), Some(Moment::ZERO.plus(Duration::from_millis(8))));
    }
}
