//! The bounded queue of admitted blocks from the acceptors to the tail thread. It must not depend on
//! tails: no acceptor ever waits for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::buffer::RowBlock;

/// Slots of the queue: single events at more than 100,000 per second, for one tick of the thread.
const BLOCKS_MAX: usize = 4096;

/// Passes admitted blocks to the tail thread. Shared by all acceptors.
#[derive(Clone, Debug)]
pub struct EventTap {
    /// Open tails.
    open: Arc<AtomicUsize>,
    queue: Arc<BlockQueue>,
}

#[derive(Debug)]
struct BlockQueue {
    blocks: ArrayQueue<RowBlock>,
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Rows of blocks that did not fit.
    rejected_rows: AtomicU64,
}

impl EventTap {
    pub(super) fn new(open: Arc<AtomicUsize>, bytes_max: usize) -> Self {
        let queue = BlockQueue {
            blocks: ArrayQueue::new(BLOCKS_MAX),
            bytes: AtomicUsize::new(0),
            bytes_max,
            rejected_rows: AtomicU64::new(0),
        };
        Self { open, queue: Arc::new(queue) }
    }

    pub(super) fn open(&self) -> &Arc<AtomicUsize> {
        &self.open
    }

    /// Whether a tail is open. Acceptors ask before they offer blocks.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) != 0
    }

    /// Queues a block, or counts its rows if the queue is full. Never blocks, and wakes no thread: the
    /// tail thread polls.
    #[cold]
    pub fn offer(&self, block: &RowBlock) {
        let queue = &*self.queue;
        let bytes = block.bytes().len();
        let is_full = queue.bytes.load(Ordering::Relaxed) >= queue.bytes_max;
        // Counted before the push, so that `pop` never subtracts more than was added.
        queue.bytes.fetch_add(bytes, Ordering::Relaxed);
        if is_full || queue.blocks.push(block.clone()).is_err() {
            queue.bytes.fetch_sub(bytes, Ordering::Relaxed);
            queue.rejected_rows.fetch_add(u64::from(block.rows()), Ordering::Relaxed);
        }
    }

    pub(super) fn pop(&self) -> Option<RowBlock> {
        let block = self.queue.blocks.pop()?;
        self.queue.bytes.fetch_sub(block.bytes().len(), Ordering::Relaxed);
        Some(block)
    }

    /// Takes the number of rows that did not fit since the last call.
    pub(super) fn take_rejected_rows(&self) -> u64 {
        self.queue.rejected_rows.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    #[test]
    fn full_queue_counts_the_rows_of_later_blocks() {
        let tap = EventTap::new(Arc::default(), 10);
        let block = RowBlock::new(&[0; 10], 3, Moment::ZERO);
        tap.offer(&block);
        tap.offer(&block);
        assert_eq!((tap.take_rejected_rows(), tap.take_rejected_rows()), (3, 0));
        assert!(tap.pop().is_some() && tap.pop().is_none());
        tap.offer(&block);
        assert!(tap.pop().is_some());
        let block = RowBlock::new(&[], 1, Moment::ZERO);
        (0..=BLOCKS_MAX).for_each(|_| tap.offer(&block));
        assert_eq!(tap.take_rejected_rows(), 1);
    }
}
