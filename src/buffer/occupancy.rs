//! Counts reserved events and bytes in one atomic word, so that a reservation checks both bounds
//! atomically.
//!
//! It must not depend on anything but its atomics and its error: `tests/concurrency` compiles this
//! file against the atomics of `loom`.

use super::AdmitError;
use super::atomic::{AtomicU64, Ordering};

/// Low bits of the word that count bytes. The bits above count events, except the highest: the
/// closed flag.
const BYTES_BITS: u32 = 36;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const CLOSED: u64 = 1 << 63;

/// The highest bounds that the word can represent.
pub(super) const BYTES_MAX: usize = (1 << BYTES_BITS) - 1;
pub(super) const ROWS_MAX: usize = (1 << (63 - BYTES_BITS)) - 1;

/// Reserved events and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupied {
    pub rows: usize,
    pub bytes: usize,
}

/// Invariant: neither rows nor bytes exceed their bound, except through `reserve_or_sole`.
#[derive(Debug)]
pub(super) struct Occupancy {
    packed: AtomicU64,
    rows_max: usize,
    bytes_max: usize,
}

impl Occupancy {
    pub(super) fn new(rows_max: usize, bytes_max: usize) -> Self {
        assert!(rows_max <= ROWS_MAX && bytes_max <= BYTES_MAX, "BUG: the settings bound these");
        Self { packed: AtomicU64::new(0), rows_max, bytes_max }
    }

    /// Reserves capacity. Returns the occupancy before.
    pub(super) fn reserve(&self, rows: usize, bytes: usize) -> Result<Occupied, AdmitError> {
        if rows > self.rows_max || bytes > self.bytes_max {
            return Err(AdmitError::TooLarge);
        }
        if self.packed.load(Ordering::Relaxed) & CLOSED != 0 {
            return Err(AdmitError::Closed);
        }
        self.reserve_if(rows, bytes, |packed, occupied| {
            packed & CLOSED == 0 && self.fits(occupied, rows, bytes)
        })
    }

    /// Reserves capacity for events that were admitted before, even if the occupancy is closed.
    pub(super) fn reserve_ignoring_close(&self, rows: usize, bytes: usize) -> Result<Occupied, AdmitError> {
        self.reserve_if(rows, bytes, |_, occupied| self.fits(occupied, rows, bytes))
    }

    /// Reserves capacity; exceeds the bounds if nothing else is reserved.
    pub(super) fn reserve_or_sole(&self, rows: usize, bytes: usize) -> Result<Occupied, AdmitError> {
        self.reserve_if(rows, bytes, |packed, occupied| {
            packed & CLOSED == 0 && (occupied.rows == 0 || self.fits(occupied, rows, bytes))
        })
    }

    fn fits(&self, occupied: Occupied, rows: usize, bytes: usize) -> bool {
        occupied.rows + rows <= self.rows_max && occupied.bytes + bytes <= self.bytes_max
    }

    fn reserve_if(
        &self,
        rows: usize,
        bytes: usize,
        fits: impl Fn(u64, Occupied) -> bool,
    ) -> Result<Occupied, AdmitError> {
        // An addition that is undone when it exceeds a bound would meanwhile reject reservations
        // that fit.
        self.packed
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |packed| {
                fits(packed, unpack(packed)).then(|| packed + pack(rows, bytes))
            })
            .map(unpack)
            .map_err(|packed| if packed & CLOSED == 0 { AdmitError::Full } else { AdmitError::Closed })
    }

    /// Closes the occupancy: every later reservation fails, except `reserve_ignoring_close`.
    pub(super) fn close(&self) {
        self.packed.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) fn release(&self, rows: usize, bytes: usize) {
        let before = unpack(self.packed.fetch_sub(pack(rows, bytes), Ordering::AcqRel));
        assert!(before.rows >= rows && before.bytes >= bytes, "BUG: released more than was reserved");
    }

    pub(super) fn occupied(&self) -> Occupied {
        unpack(self.packed.load(Ordering::Acquire))
    }
}

fn pack(rows: usize, bytes: usize) -> u64 {
    (rows as u64) << BYTES_BITS | bytes as u64
}

fn unpack(packed: u64) -> Occupied {
    Occupied { rows: ((packed & !CLOSED) >> BYTES_BITS) as usize, bytes: (packed & BYTES_MASK) as usize }
}
