//! A reference-counted block of rows, shared by the writer and by the journal until the rows are on
//! disk. One allocation holds the header and the rows.
//!
//! `tests/concurrency` compiles this file against the atomics and the counted references of `loom`.

use std::fmt;
use std::sync::Arc;

use super::atomic::{AtomicU64, Ordering};
use super::counted::{Arc as Shared, HeaderSlice};
use super::occupancy::Occupancy;
use crate::clock::Moment;

/// States of `segment`: not in the journal, in a segment (its number plus one), or finalized.
const NO_SEGMENT: u64 = 0;
const FINALIZED: u64 = u64::MAX;

/// The rows of one request, or a part of them: one allocation and one queue entry. A clone shares
/// the rows. Dropping the last clone releases the reservation.
#[derive(Clone)]
pub struct RowBlock(Shared<HeaderSlice<RowBlockHeader, [u8]>>);

struct RowBlockHeader {
    rows: u32,
    admitted_at: Moment,
    kind: BlockKind,
    segment: AtomicU64,
    reservation: Option<Reservation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    /// For the writer and the journal.
    Plain,
    /// For the writer; admitted by a previous process.
    Replayed,
    /// For the journal only.
    Spilled,
}

/// A reservation of buffer capacity. Its rows are released when the block is finalized, so that the
/// bound on events is exact; its bytes when the memory is freed, so that memory stays bounded while
/// the journal still holds finalized blocks.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) occupancy: Arc<Occupancy>,
    pub(super) rows: u32,
    pub(super) bytes: usize,
}

impl Drop for RowBlockHeader {
    fn drop(&mut self) {
        if let Some(reservation) = &self.reservation {
            // The count of references orders the other clones before this.
            let is_finalized = self.segment.load(Ordering::Relaxed) == FINALIZED;
            let rows = if is_finalized { 0 } else { reservation.rows as usize };
            reservation.occupancy.release(rows, reservation.bytes);
        }
    }
}

/// The result of [`RowBlock::assign_segment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentAssignment {
    /// The block is finalized; no segment needs to retain it.
    Finalized,
    /// The block was in no segment before.
    New,
    /// The block was in this segment before.
    MovedFrom(u64),
}

impl RowBlock {
    /// A block without a buffer reservation. `bytes` holds `rows` encoded rows, at least one.
    pub fn new(bytes: &[u8], rows: u32, admitted_at: Moment) -> Self {
        Self::with(bytes, (rows, admitted_at), BlockKind::Plain, NO_SEGMENT, None)
    }

    pub(super) fn admitted(bytes: &[u8], rows: u32, admitted_at: Moment, reservation: Reservation) -> Self {
        Self::with(bytes, (rows, admitted_at), BlockKind::Plain, NO_SEGMENT, Some(reservation))
    }

    /// A block for the journal only; a refill reads it back for the writer.
    pub(super) fn spilled(bytes: &[u8], rows: u32, admitted_at: Moment, reservation: Reservation) -> Self {
        Self::with(bytes, (rows, admitted_at), BlockKind::Spilled, NO_SEGMENT, Some(reservation))
    }

    /// A copy of `spilled` for the writer, in the same segment.
    pub(super) fn unspilled(spilled: &Self, reservation: Reservation) -> Self {
        let segment = spilled.0.header.segment.load(Ordering::Acquire);
        let admitted = (spilled.rows(), spilled.admitted_at());
        Self::with(spilled.bytes(), admitted, BlockKind::Plain, segment, Some(reservation))
    }

    /// A block read from `segment`, which still holds it. `replayed`: a previous process admitted
    /// it; otherwise this process did.
    pub(super) fn refilled(
        bytes: &[u8],
        rows: u32,
        now: Moment,
        segment: u64,
        replayed: bool,
        reservation: Reservation,
    ) -> Self {
        let kind = if replayed { BlockKind::Replayed } else { BlockKind::Plain };
        Self::with(bytes, (rows, now), kind, segment + 1, Some(reservation))
    }

    fn with(
        bytes: &[u8],
        (rows, admitted_at): (u32, Moment),
        kind: BlockKind,
        segment: u64,
        reservation: Option<Reservation>,
    ) -> Self {
        let head = RowBlockHeader { rows, admitted_at, kind, segment: AtomicU64::new(segment), reservation };
        Self(Shared::from_header_and_slice(head, bytes))
    }

    /// The concatenated encoded rows.
    pub fn bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// The number of rows; at least one.
    pub fn rows(&self) -> u32 {
        self.0.header.rows
    }

    pub fn admitted_at(&self) -> Moment {
        self.0.header.admitted_at
    }

    /// Whether the block is in the journal only and not queued for the writer.
    pub fn is_spilled(&self) -> bool {
        self.0.header.kind == BlockKind::Spilled
    }

    /// Whether a previous process admitted the rows, so that they may already be stored.
    pub fn is_replayed(&self) -> bool {
        self.0.header.kind == BlockKind::Replayed
    }

    /// Marks the block as finalized: every row is stored, found to be a duplicate, or
    /// dead-lettered. Releases the reservation of its rows. Returns the journal segment that holds
    /// the block, if any.
    pub fn finalize(&self) -> Option<u64> {
        let before = self.0.header.segment.swap(FINALIZED, Ordering::AcqRel);
        assert_ne!(before, FINALIZED, "BUG: a block is finalized twice");
        if let Some(reservation) = &self.0.header.reservation {
            reservation.occupancy.release(reservation.rows as usize, 0);
        }
        before.checked_sub(1)
    }

    pub fn is_finalized(&self) -> bool {
        self.0.header.segment.load(Ordering::Acquire) == FINALIZED
    }

    /// Records that `segment` holds the block, unless it is finalized. Only the journal writer
    /// thread calls this.
    pub fn assign_segment(&self, segment: u64) -> SegmentAssignment {
        let previous = self.0.header.segment.fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
            (current != FINALIZED).then_some(segment + 1)
        });
        match previous {
            Err(_finalized) => SegmentAssignment::Finalized,
            Ok(NO_SEGMENT) => SegmentAssignment::New,
            Ok(before) => SegmentAssignment::MovedFrom(before - 1),
        }
    }
}

impl fmt::Debug for RowBlock {
    /// Omits the rows: events must not appear in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowBlock")
            .field("rows", &self.rows())
            .field("bytes", &self.bytes().len())
            .field("segment", &self.0.header.segment)
            .finish_non_exhaustive()
    }
}
