//! Accounting of the spill: events that are in the journal only, because the buffer is full, until
//! a refill reads them back. During a database outage the disk fills before a producer is rejected.
//!
//! It only counts; `journal` writes and reads the events. It must not depend on files.
//! `tests/concurrency` compiles this file against the atomics of `loom`.

use std::sync::Arc;

use super::AdmitError;
use super::atomic::{AtomicBool, AtomicU64, Ordering};
use super::block::Reservation;
use super::occupancy::{Occupancy, Occupied, ROWS_MAX};

/// Maximum spilled bytes in memory that are not synced to disk. It bounds memory when the disk is
/// slower than the intake.
pub(super) const IN_FLIGHT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// In-flight bytes from which on a sync is urgent, since a sync frees their memory.
pub(super) const IN_FLIGHT_BYTES_HIGH: usize = 8 * 1024 * 1024;

/// Bytes of a small event. With less capacity left, the spill counts as full.
const SMALL_EVENT_BYTES: u64 = 256;

/// Invariants: `bytes` plus `backlog_bytes` never exceeds `bytes_max`, unless the backlog alone
/// does. Every counted event is either in memory, and counted in `in_flight` too, or synced in the
/// journal.
#[derive(Debug)]
pub struct Spill {
    bytes_max: u64,
    /// New events go to the journal only, behind the spilled ones.
    engaged: AtomicBool,
    /// The refill has nothing to read: in-flight events should be synced soon.
    refill_starved: AtomicBool,
    events: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that a previous process left in the journal and that are not replayed yet.
    backlog_bytes: AtomicU64,
    in_flight: Arc<Occupancy>,
    events_total: AtomicU64,
}

impl Spill {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            engaged: AtomicBool::new(false),
            refill_starved: AtomicBool::new(false),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            backlog_bytes: AtomicU64::new(0),
            in_flight: Arc::new(Occupancy::new(ROWS_MAX, IN_FLIGHT_BYTES_MAX)),
            events_total: AtomicU64::new(0),
        }
    }

    /// Reserves capacity on disk, and in memory until the rows are synced.
    pub(super) fn reserve(&self, rows: u32, bytes: usize) -> Result<(), AdmitError> {
        if self.bytes_max == 0 {
            return Err(AdmitError::Full);
        }
        self.in_flight.reserve_or_sole(rows as usize, bytes)?;
        let added = bytes as u64;
        let fits = |used: u64| {
            let all = used + self.backlog_bytes.load(Ordering::Relaxed) + added;
            (all <= self.bytes_max).then_some(used + added)
        };
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fits).is_err() {
            self.in_flight.release(rows as usize, bytes);
            return Err(AdmitError::Full);
        }
        self.events.fetch_add(u64::from(rows), Ordering::AcqRel);
        self.events_total.fetch_add(u64::from(rows), Ordering::Relaxed);
        self.engaged.store(true, Ordering::Release);
        Ok(())
    }

    /// A block's share of the memory reservation.
    pub(super) fn reservation(&self, rows: u32, bytes: usize) -> Reservation {
        Reservation { occupancy: self.in_flight.clone(), rows, bytes }
    }

    /// Releases capacity on disk, for rows that moved to the buffer or were lost.
    pub(super) fn release(&self, rows: u64, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.events.fetch_sub(rows, Ordering::AcqRel);
    }

    pub(super) fn close(&self) {
        self.in_flight.close();
    }

    /// Whether neither the spill nor `buffer` has an event. A refill reserves in the buffer before it
    /// releases here, so the spill is read first: an event that moves meanwhile is seen there or in the
    /// buffer.
    pub(super) fn is_empty_with(&self, buffer: &Occupancy) -> bool {
        self.events() == 0 && buffer.occupied().rows == 0
    }

    /// Whether new events are spilled even if the buffer has capacity, to keep them behind the
    /// spilled ones.
    #[inline]
    pub fn is_engaged(&self) -> bool {
        self.engaged.load(Ordering::Relaxed)
    }

    /// Lets new events enter the buffer again, once the refill has read all synced events. New
    /// events may briefly overtake those in flight.
    pub fn disengage(&self) {
        self.engaged.store(false, Ordering::Release);
    }

    pub fn set_refill_starved(&self, starved: bool) {
        self.refill_starved.store(starved, Ordering::Release);
    }

    /// Whether in-flight events should be synced now: there are many bytes, or the refill is
    /// starved.
    pub fn sync_urgent(&self) -> bool {
        let in_flight = self.in_flight.occupied();
        in_flight.bytes >= IN_FLIGHT_BYTES_HIGH
            || (in_flight.rows > 0 && self.refill_starved.load(Ordering::Acquire))
    }

    /// Sets the bytes of a previous process that are not replayed yet.
    pub fn set_backlog(&self, bytes: u64) {
        self.backlog_bytes.store(bytes, Ordering::Release);
    }

    /// Whether a small event could be spilled now.
    pub fn has_capacity(&self) -> bool {
        self.has_disk_capacity() && self.in_flight.occupied().bytes < IN_FLIGHT_BYTES_MAX
    }

    /// Whether the bound on disk allows a small event, regardless of the bytes in flight.
    pub fn has_disk_capacity(&self) -> bool {
        self.bytes() + self.backlog_bytes.load(Ordering::Acquire) + SMALL_EVENT_BYTES <= self.bytes_max
    }

    /// Whether the disk is slower than the intake while the bound on disk is not reached.
    pub fn is_disk_behind(&self) -> bool {
        self.in_flight.occupied().bytes >= IN_FLIGHT_BYTES_HIGH && self.has_disk_capacity()
    }

    /// Spilled events, including those in flight.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Acquire)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Utilization of the bound on disk; none if the spill is disabled.
    pub fn utilization_percent(&self) -> Option<f64> {
        let used = self.bytes() + self.backlog_bytes.load(Ordering::Acquire);
        #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
        let share = |used: u64, max: u64| 100.0 * used as f64 / max as f64;
        (self.bytes_max > 0).then(|| share(used, self.bytes_max))
    }

    /// Spilled events in memory that are not synced to disk yet.
    pub fn in_flight(&self) -> Occupied {
        self.in_flight.occupied()
    }

    /// Total events spilled since the start.
    pub fn events_total(&self) -> u64 {
        self.events_total.load(Ordering::Relaxed)
    }
}
