//! How many events and bytes are held: one atomic word, so that a reservation is exact in both at once.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Full;

/// Bits of the word that count bytes. Those above count events, but for the highest, which says that it is closed.
const BYTES_BITS: u32 = 36;
const BYTES_MASK: u64 = (1 << BYTES_BITS) - 1;
const CLOSED: u64 = 1 << 63;

/// The highest bounds that the word can hold.
pub(super) const BYTES_MAX: usize = (1 << BYTES_BITS) - 1;
pub(super) const ROWS_MAX: usize = (1 << (63 - BYTES_BITS)) - 1;

/// What is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupied {
    pub rows: usize,
    pub bytes: usize,
}

/// Invariant: neither rows nor bytes exceed their bound at any moment, but for what is alone.
#[derive(Debug)]
pub(super) struct Occupancy {
    held: AtomicU64,
    rows_max: usize,
    bytes_max: usize,
}

impl Occupancy {
    pub(super) fn new(rows_max: usize, bytes_max: usize) -> Self {
        assert!(rows_max <= ROWS_MAX && bytes_max <= BYTES_MAX, "BUG: the settings bound these");
        Self { held: AtomicU64::new(0), rows_max, bytes_max }
    }

    /// Takes room, and tells what was held before.
    pub(super) fn reserve(&self, rows: usize, bytes: usize) -> Result<Occupied, Full> {
        if rows > self.rows_max || bytes > self.bytes_max {
            return Err(Full::Always);
        }
        if self.held.load(Ordering::Relaxed) & CLOSED != 0 {
            return Err(Full::Closed);
        }
        self.take(rows, bytes, |held, now| held & CLOSED == 0 && self.fits(now, rows, bytes))
    }

    /// Takes room for what was admitted before, also when it is closed.
    pub(super) fn reserve_again(&self, rows: usize, bytes: usize) -> Result<Occupied, Full> {
        self.take(rows, bytes, |_, now| self.fits(now, rows, bytes))
    }

    /// Takes room, and more than there is when nothing is held.
    pub(super) fn reserve_alone(&self, rows: usize, bytes: usize) -> Result<Occupied, Full> {
        self.take(rows, bytes, |held, now| {
            held & CLOSED == 0 && (now.rows == 0 || self.fits(now, rows, bytes))
        })
    }

    fn fits(&self, held: Occupied, rows: usize, bytes: usize) -> bool {
        held.rows + rows <= self.rows_max && held.bytes + bytes <= self.bytes_max
    }

    fn take(
        &self,
        rows: usize,
        bytes: usize,
        fits: impl Fn(u64, Occupied) -> bool,
    ) -> Result<Occupied, Full> {
        // A plain addition that is taken back when it was too much would refuse others that fit meanwhile.
        self.held
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |held| {
                fits(held, unpack(held)).then(|| held + pack(rows, bytes))
            })
            .map(unpack)
            .map_err(|held| if held & CLOSED == 0 { Full::Now } else { Full::Closed })
    }

    /// Counts what has room elsewhere already, and tells what was held before.
    pub(super) fn add(&self, rows: usize, bytes: usize) -> Occupied {
        unpack(self.held.fetch_add(pack(rows, bytes), Ordering::AcqRel))
    }

    /// From here on nothing is reserved any more, whoever is just about to.
    pub(super) fn close(&self) {
        self.held.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) fn release(&self, rows: usize, bytes: usize) {
        let before = unpack(self.held.fetch_sub(pack(rows, bytes), Ordering::AcqRel));
        assert!(before.rows >= rows && before.bytes >= bytes, "BUG: more room given back than was taken");
    }

    pub(super) fn occupied(&self) -> Occupied {
        unpack(self.held.load(Ordering::Acquire))
    }
}

fn pack(rows: usize, bytes: usize) -> u64 {
    (rows as u64) << BYTES_BITS | bytes as u64
}

fn unpack(held: u64) -> Occupied {
    Occupied { rows: ((held & !CLOSED) >> BYTES_BITS) as usize, bytes: (held & BYTES_MASK) as usize }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_bounds_can_be_used_to_the_last() {
        let occupancy = Occupancy::new(ROWS_MAX, BYTES_MAX);
        assert_eq!(occupancy.reserve(ROWS_MAX - 1, BYTES_MAX - 1), Ok(Occupied::default()));
        assert_eq!(occupancy.reserve(2, 0), Err(Full::Now));
        assert_eq!(occupancy.reserve(0, 2), Err(Full::Now));
        assert!(occupancy.reserve(1, 1).is_ok());
        assert_eq!(occupancy.reserve(1, 0), Err(Full::Now));
        assert_eq!(occupancy.occupied(), Occupied { rows: ROWS_MAX, bytes: BYTES_MAX });
        occupancy.close();
        assert_eq!(occupancy.reserve(0, 0), Err(Full::Closed));
        occupancy.release(ROWS_MAX, BYTES_MAX);
        assert_eq!(occupancy.occupied(), Occupied::default());
    }
}
