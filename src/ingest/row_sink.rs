//! Collects the output of decoding one request: rows in blocks, ids, errors. The allocations belong
//! to one acceptor and are reused.

use super::encode::{self, EventParts};
use super::idempotency::ContentCounts;
use crate::event::EventId;
use crate::event::id_generator::IdGenerator;
use crate::http::problem::FieldErrors;
use crate::json::JsonString;

/// Capacity that is kept from one request to the next. `clear` frees the rest.
const RETAINED_BYTES: usize = 512 * 1024;
const RETAINED_IDS: usize = 10_000;

/// The end offset of a block in `rows`, and its row count.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockEnd {
    pub(super) end: usize,
    pub(super) rows: u32,
}

/// Invariants: `ids` has one entry per row; `block_ends` covers all rows except those of the open
/// last block.
#[derive(Debug)]
pub(super) struct RowSink {
    pub(super) rows: Vec<u8>,
    pub(super) block_ends: Vec<BlockEnd>,
    pub(super) ids: Vec<EventId>,
    pub(super) errors: FieldErrors,
    pub(super) rejected: u32,
    /// Rejected events that are valid but whose service the token may not write.
    pub(super) forbidden: u32,
    /// Whether an id is derived from an idempotency key.
    pub(super) has_keyed_ids: bool,
    /// The equal events so far of a request with the header `Idempotency-Key`.
    pub(super) content_counts: ContentCounts,
    open_block_rows: u32,
    rows_per_block_max: u32,
    pub(super) id_generator: IdGenerator,
    scratch: Vec<u8>,
}

impl RowSink {
    pub(super) fn new(rows_per_block_max: u32, id_generator: IdGenerator) -> Self {
        assert!(rows_per_block_max > 0, "BUG: a block holds at least one row");
        Self {
            rows: Vec::new(),
            block_ends: Vec::new(),
            ids: Vec::new(),
            errors: FieldErrors::default(),
            rejected: 0,
            forbidden: 0,
            has_keyed_ids: false,
            content_counts: ContentCounts::default(),
            open_block_rows: 0,
            rows_per_block_max,
            id_generator,
            scratch: Vec::new(),
        }
    }

    /// Empties the sink and frees the memory that a large request allocated.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.block_ends.clear();
        self.ids.clear();
        self.errors.clear();
        self.rejected = 0;
        self.forbidden = 0;
        if self.has_keyed_ids {
            self.has_keyed_ids = false;
            self.content_counts.clear();
        }
        self.open_block_rows = 0;
        if self.rows.capacity() > RETAINED_BYTES {
            self.rows.shrink_to(RETAINED_BYTES);
        }
        if self.ids.capacity() > RETAINED_IDS {
            self.ids.shrink_to(RETAINED_IDS);
        }
    }

    /// The index of the current event: the number of events before it.
    #[inline]
    pub(super) fn index(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX).saturating_add(self.rejected)
    }

    /// Counts the row that was just appended as an accepted event.
    #[inline]
    pub(super) fn accept(&mut self, id: EventId) {
        self.ids.push(id);
        self.open_block_rows += 1;
        if self.open_block_rows == self.rows_per_block_max {
            self.end_block();
        }
    }

    #[cold]
    pub(super) fn reject(&mut self) {
        self.rejected = self.rejected.saturating_add(1);
    }

    /// Ends the open block, if it has rows.
    #[inline]
    pub(super) fn end_block(&mut self) {
        if self.open_block_rows > 0 {
            self.block_ends.push(BlockEnd { end: self.rows.len(), rows: self.open_block_rows });
            self.open_block_rows = 0;
        }
    }

    /// Both strings, unescaped.
    pub(super) fn unescape_pair(
        &mut self,
        parts: &EventParts<'_>,
        one: JsonString,
        other: JsonString,
    ) -> (&[u8], &[u8]) {
        self.scratch.clear();
        encode::append_unescaped(&mut self.scratch, parts.source, one);
        encode::append_unescaped(&mut self.scratch, parts.source, other);
        self.scratch.split_at(one.bytes)
    }
}
