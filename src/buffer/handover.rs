//! The hand-over of blocks to the writer: decides which producer wakes a parked writer, so that no
//! block waits in a shard while the writer sleeps, and few producers make the system call.
//!
//! It must not depend on anything but its atomics: `tests/concurrency` compiles this file against
//! the atomics of `loom`.

use super::atomic::{AtomicU64, Ordering};

/// Lowest bit of the word: the writer parks, or is about to. No carry of a sum reaches it.
const PARKED: u64 = 1;
/// The bits above count bytes, the highest ones events. They wrap around while the writer is busy,
/// when nothing reads them.
const BYTES_SHIFT: u32 = 1;
const ROWS_SHIFT: u32 = 37;
const BYTES_MASK: u64 = (1 << (ROWS_SHIFT - BYTES_SHIFT)) - 1;

/// While the writer is parked, the word counts the events and bytes that it has taken into its
/// batch, and those that were pushed since.
///
/// The protocol: a producer pushes, then calls [`Handover::announce`]. The writer calls
/// [`Handover::prepare_park`], then looks into the shards, and parks if they are empty. Both calls
/// are read-modify-writes of one word, so one of them is first. If it is that of the producer, the
/// writer finds the block (release and acquire); otherwise the producer sees that the writer parks,
/// and wakes it if its batch was empty or is now full.
#[derive(Debug)]
pub(super) struct Handover {
    word: AtomicU64,
    rows_max: u64,
    bytes_max: u64,
}

impl Handover {
    /// A parked writer is woken before its linger ends when its batch would reach one of the
    /// bounds.
    pub(super) fn new(rows_max: usize, bytes_max: usize) -> Self {
        Self { word: AtomicU64::new(0), rows_max: rows_max as u64, bytes_max: bytes_max as u64 }
    }

    /// Announces events that were pushed. Returns whether the caller must wake the writer.
    #[inline]
    #[must_use]
    pub(super) fn announce(&self, rows: usize, bytes: usize) -> bool {
        let added = pack(rows, bytes);
        let before = self.word.fetch_add(added, Ordering::Release);
        let is_due = before & PARKED != 0 && {
            let after = before.wrapping_add(added);
            // The first event starts the linger; a full batch ends it.
            before >> ROWS_SHIFT == 0
                || after >> ROWS_SHIFT >= self.rows_max
                || after >> BYTES_SHIFT & BYTES_MASK >= self.bytes_max
        };
        if is_due {
            self.clear_parked();
        }
        is_due
    }

    /// Announces that the writer parks with `rows` and `bytes` in its batch. It must look into the
    /// shards once more before it parks.
    pub(super) fn prepare_park(&self, rows: usize, bytes: usize) {
        // A swap, since a plain store would end the release sequences of the announcements.
        self.word.swap(pack(rows, bytes) | PARKED, Ordering::Acquire);
    }

    /// Whether the writer has announced to park and nobody has woken it since.
    pub(super) fn is_parked(&self) -> bool {
        self.word.load(Ordering::Relaxed) & PARKED != 0
    }

    /// Records that the writer is being woken, so that other producers do not wake it too.
    pub(super) fn clear_parked(&self) {
        self.word.fetch_and(!PARKED, Ordering::Relaxed);
    }
}

fn pack(rows: usize, bytes: usize) -> u64 {
    (rows as u64) << ROWS_SHIFT | (bytes as u64 & BYTES_MASK) << BYTES_SHIFT
}
