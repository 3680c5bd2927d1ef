//! The room beyond the buffer: events that lie in the journal only, until the writer has caught up. An outage of the
//! database fills the disk before a producer is turned away.
//!
//! Counts; it moves nothing. Knows nothing of files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Full;
use super::block::Room;
use super::occupancy::{Occupancy, Occupied, ROWS_MAX};

/// Bytes that may be in memory on their way to the disk. A disk that takes less than comes in is felt here.
pub(super) const MOVING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// So many of them, and they are synced without waiting for more: only then is the memory free.
pub(super) const MOVING_BYTES_HIGH: usize = 8 * 1024 * 1024;

/// What a small event takes: with less left, there is no room.
const EVENT_BYTES: u64 = 256;

/// Invariant: `bytes` with `backlog_bytes` never exceeds `bytes_max`, unless the backlog alone does. What is counted is
/// in memory, counted in `moving` too, or synced in the journal.
#[derive(Debug)]
pub struct Spill {
    bytes_max: u64,
    /// What comes in goes to the journal, behind what is there.
    engaged: AtomicBool,
    /// Whoever reads back has nothing to read: what is in memory should be synced soon.
    hungry: AtomicBool,
    events: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that an earlier process left in the journal and that are not read yet.
    backlog_bytes: AtomicU64,
    moving: Arc<Occupancy>,
    events_total: AtomicU64,
}

impl Spill {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            engaged: AtomicBool::new(false),
            hungry: AtomicBool::new(false),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            backlog_bytes: AtomicU64::new(0),
            moving: Arc::new(Occupancy::new(ROWS_MAX, MOVING_BYTES_MAX)),
            events_total: AtomicU64::new(0),
        }
    }

    /// Takes room for both ways: on the disk, and in memory until it is there.
    pub(super) fn reserve(&self, rows: u32, bytes: usize) -> Result<(), Full> {
        if self.bytes_max == 0 {
            return Err(Full::Now);
        }
        self.moving.reserve_alone(rows as usize, bytes)?;
        let added = bytes as u64;
        let fits = |held: u64| {
            let all = held + self.backlog_bytes.load(Ordering::Relaxed) + added;
            (all <= self.bytes_max).then_some(held + added)
        };
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fits).is_err() {
            self.moving.release(rows as usize, bytes);
            return Err(Full::Now);
        }
        self.events.fetch_add(u64::from(rows), Ordering::AcqRel);
        self.events_total.fetch_add(u64::from(rows), Ordering::Relaxed);
        self.engaged.store(true, Ordering::Release);
        Ok(())
    }

    /// A block's share of what was reserved in memory.
    pub(super) fn room(&self, rows: u32, bytes: usize) -> Room {
        Room { occupancy: self.moving.clone(), rows, bytes }
    }

    /// So much is in the buffer now, or lost: it is not spilled any more.
    pub(super) fn release(&self, rows: u64, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.events.fetch_sub(rows, Ordering::AcqRel);
    }

    pub(super) fn close(&self) {
        self.moving.close();
    }

    /// Whether what comes in goes behind what is spilled, room in the buffer or not.
    #[inline]
    pub fn is_engaged(&self) -> bool {
        self.engaged.load(Ordering::Relaxed)
    }

    /// All that is on disk has been read back: what comes in may go into the buffer again. What is still on its way to the
    /// disk is overtaken by it, by a moment.
    pub fn disengage(&self) {
        self.engaged.store(false, Ordering::Release);
    }

    pub fn set_hungry(&self, hungry: bool) {
        self.hungry.store(hungry, Ordering::Release);
    }

    /// Whether what is in memory should be synced now: there is much of it, or somebody waits for it.
    pub fn is_pressing(&self) -> bool {
        let moving = self.moving.occupied();
        moving.bytes >= MOVING_BYTES_HIGH || (moving.rows > 0 && self.hungry.load(Ordering::Acquire))
    }

    /// An earlier process left so much, or a part of it has been read.
    pub fn set_backlog(&self, bytes: u64) {
        self.backlog_bytes.store(bytes, Ordering::Release);
    }

    /// Whether some more could be spilled now.
    pub fn has_room(&self) -> bool {
        self.has_room_on_disk() && self.moving.occupied().bytes < MOVING_BYTES_MAX
    }

    /// Whether the bound is not reached, however busy the disk is.
    pub fn has_room_on_disk(&self) -> bool {
        self.bytes() + self.backlog_bytes.load(Ordering::Acquire) + EVENT_BYTES <= self.bytes_max
    }

    /// Whether it is the disk that takes less than comes in, for a moment, and not the bound that is reached.
    pub fn is_disk_behind(&self) -> bool {
        self.moving.occupied().bytes >= MOVING_BYTES_HIGH && self.has_room_on_disk()
    }

    /// Events that lie in the journal only, those on their way there among them.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// How full it is; none where nothing may be spilled.
    pub fn utilization_percent(&self) -> Option<f64> {
        let held = self.bytes() + self.backlog_bytes.load(Ordering::Acquire);
        #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
        let share = |held: u64, max: u64| 100.0 * held as f64 / max as f64;
        (self.bytes_max > 0).then(|| share(held, self.bytes_max))
    }

    /// In memory, on its way to the disk.
    pub fn moving(&self) -> Occupied {
        self.moving.occupied()
    }

    /// Events ever spilled.
    pub fn events_total(&self) -> u64 {
        self.events_total.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_are_exact_and_what_does_not_fit_leaves_nothing_behind() {
        let spill = Spill::new(100);
        assert_eq!(spill.reserve(1, 60), Ok(()));
        assert!(spill.is_engaged());
        assert_eq!(spill.reserve(1, 41), Err(Full::Now));
        assert_eq!((spill.moving().bytes, spill.bytes(), spill.events()), (60, 60, 1));
        assert_eq!(spill.reserve(2, 40), Ok(()));
        assert_eq!((spill.events(), spill.bytes(), spill.events_total()), (3, 100, 3));
        spill.release(1, 60);
        assert_eq!((spill.events(), spill.bytes(), spill.events_total()), (2, 40, 3));
        // What an earlier process left takes room as well.
        spill.set_backlog(31);
        assert_eq!((spill.reserve(1, 30), spill.reserve(1, 29)), (Err(Full::Now), Ok(())));
        spill.close();
        assert_eq!(spill.reserve(1, 1), Err(Full::Closed));
    }

    #[test]
    fn the_disk_may_be_behind_by_so_much_and_anything_fits_that_is_alone() {
        let spill = Spill::new(1 << 40);
        assert_eq!(spill.reserve(1, MOVING_BYTES_MAX + 1), Ok(()));
        assert_eq!(spill.reserve(1, 1), Err(Full::Now));
        assert!(spill.is_disk_behind() && !spill.has_room() && spill.is_pressing());
        let spill = Spill::new(1 << 40);
        spill.reserve(1, MOVING_BYTES_HIGH - 1).unwrap();
        assert!(!spill.is_pressing());
        spill.set_hungry(true);
        assert!(spill.is_pressing());
        spill.reserve(1, MOVING_BYTES_MAX - MOVING_BYTES_HIGH + 1).unwrap();
        assert_eq!(spill.reserve(1, 1), Err(Full::Now));
    }

    #[test]
    fn nothing_is_spilled_where_that_is_off() {
        let spill = Spill::new(0);
        assert_eq!(spill.reserve(1, 1), Err(Full::Now));
        assert_eq!((spill.is_engaged(), spill.has_room(), spill.utilization_percent()), (false, false, None));
    }
}
