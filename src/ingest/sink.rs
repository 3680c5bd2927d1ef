//! What a request's events become while they are decoded: rows in blocks, ids, errors. The allocations are an
//! acceptor's own and are used again.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::encode::{self, Parts};
use crate::event::EventId;
use crate::http::problem::Errors;
use crate::json::Text;

/// Scratch that is kept from one request to the next; what a large batch took beyond is given back.
const SCRATCH_BYTES_KEPT: usize = 512 * 1024;
const IDS_KEPT: usize = 10_000;

/// Where a block ends, and how many rows it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) end: usize,
    pub(super) rows: u32,
}

/// Invariant: `ids` has an entry a row, and the cuts cover the rows but for the last, unfinished block.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) rows: Vec<u8>,
    pub(super) cuts: Vec<Cut>,
    pub(super) ids: Vec<EventId>,
    pub(super) errors: Errors,
    pub(super) rejected: u32,
    /// Of the rejected, those that only their sender was wrong for.
    pub(super) forbidden: u32,
    rows_uncut: u32,
    rows_per_block_max: u32,
    rng: StdRng,
    scratch: Vec<u8>,
}

impl Sink {
    pub(super) fn new(rows_per_block_max: u32, rng: StdRng) -> Self {
        assert!(rows_per_block_max > 0, "BUG: a block holds a row at least");
        Self {
            rows: Vec::new(),
            cuts: Vec::new(),
            ids: Vec::new(),
            errors: Errors::default(),
            rejected: 0,
            forbidden: 0,
            rows_uncut: 0,
            rows_per_block_max,
            rng,
            scratch: Vec::new(),
        }
    }

    /// A generator whose chance is taken from this one's.
    pub(super) fn another_rng(&mut self) -> StdRng {
        StdRng::from_rng(&mut self.rng)
    }

    /// Makes it empty and gives back what a large request took.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.rows.clear();
        self.cuts.clear();
        self.ids.clear();
        self.errors.clear();
        self.rejected = 0;
        self.forbidden = 0;
        self.rows_uncut = 0;
        if self.rows.capacity() > SCRATCH_BYTES_KEPT {
            self.rows.shrink_to(SCRATCH_BYTES_KEPT);
        }
        if self.ids.capacity() > IDS_KEPT {
            self.ids.shrink_to(IDS_KEPT);
        }
    }

    /// The index of the event at hand: how many were before it.
    #[inline]
    pub(super) fn index(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX).saturating_add(self.rejected)
    }

    /// The row that was just appended is an event.
    #[inline]
    pub(super) fn accept(&mut self, id: EventId) {
        self.ids.push(id);
        self.rows_uncut += 1;
        if self.rows_uncut == self.rows_per_block_max {
            self.cut();
        }
    }

    #[cold]
    pub(super) fn reject(&mut self) {
        self.rejected = self.rejected.saturating_add(1);
    }

    /// Ends the block at hand, if it has rows.
    #[inline]
    pub(super) fn cut(&mut self) {
        if self.rows_uncut > 0 {
            self.cuts.push(Cut { end: self.rows.len(), rows: self.rows_uncut });
            self.rows_uncut = 0;
        }
    }

    /// 80 bits from the cryptographic generator.
    #[inline]
    pub(super) fn chance(&mut self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.rng.next_u64().to_le_bytes());
        bytes[8..].copy_from_slice(&self.rng.next_u32().to_le_bytes()[..2]);
        bytes
    }

    /// Both texts as they read.
    pub(super) fn unescaped(&mut self, parts: &Parts<'_>, one: Text, other: Text) -> (&[u8], &[u8]) {
        self.scratch.clear();
        encode::append(&mut self.scratch, parts.source, one);
        encode::append(&mut self.scratch, parts.source, other);
        self.scratch.split_at(one.bytes)
    }
}
