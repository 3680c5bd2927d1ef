//! Tests of blocks, occupancy and spill. They are not in these files, which `tests/concurrency`
//! compiles too.

use std::sync::Arc;

use super::AdmitError;
use super::block::{Reservation, RowBlock, SegmentAssignment};
use super::occupancy::{BYTES_MAX, Occupancy, Occupied, ROWS_MAX};
use super::spill::{IN_FLIGHT_BYTES_HIGH, IN_FLIGHT_BYTES_MAX, Spill};
use crate::clock::Moment;

#[test]
fn block_is_in_one_segment_until_it_is_finalized() {
    let block = RowBlock::new(b"row", 1, Moment::ZERO);
    assert_eq!(block.assign_segment(0), SegmentAssignment::New);
    assert_eq!(block.assign_segment(7), SegmentAssignment::MovedFrom(0));
    assert_eq!(block.clone().finalize(), Some(7));
    assert_eq!((block.assign_segment(8), block.is_finalized()), (SegmentAssignment::Finalized, true));
    assert_eq!(RowBlock::new(b"row", 1, Moment::ZERO).finalize(), None);
}

#[test]
fn finalize_releases_the_rows_and_the_last_drop_releases_the_bytes() {
    for finalize in [true, false] {
        let occupancy = Arc::new(Occupancy::new(1, 3));
        occupancy.reserve(1, 3).unwrap();
        let reservation = Reservation { occupancy: occupancy.clone(), rows: 1, bytes: 3 };
        let block = RowBlock::admitted(b"row", 1, Moment::ZERO, reservation);
        let other = block.clone();
        if finalize {
            block.finalize();
        }
        drop(block);
        assert_eq!(occupancy.occupied(), Occupied { rows: usize::from(!finalize), bytes: 3 });
        drop(other);
        assert_eq!(occupancy.occupied(), Occupied::default());
    }
}

#[test]
fn occupancy_reserves_up_to_its_highest_bounds() {
    let occupancy = Occupancy::new(ROWS_MAX, BYTES_MAX);
    assert_eq!(occupancy.reserve(ROWS_MAX - 1, BYTES_MAX - 1), Ok(Occupied::default()));
    assert_eq!(occupancy.reserve(2, 0), Err(AdmitError::Full));
    assert_eq!(occupancy.reserve(0, 2), Err(AdmitError::Full));
    assert!(occupancy.reserve(1, 1).is_ok());
    assert_eq!(occupancy.reserve(1, 0), Err(AdmitError::Full));
    assert_eq!(occupancy.occupied(), Occupied { rows: ROWS_MAX, bytes: BYTES_MAX });
    occupancy.close();
    assert_eq!(occupancy.reserve(0, 0), Err(AdmitError::Closed));
    occupancy.release(ROWS_MAX, BYTES_MAX);
    assert_eq!(occupancy.occupied(), Occupied::default());
}

#[test]
fn spill_bounds_are_exact_and_a_failed_reservation_changes_nothing() {
    let spill = Spill::new(100);
    assert_eq!(spill.reserve(1, 60), Ok(()));
    assert!(spill.is_engaged());
    assert_eq!(spill.reserve(1, 41), Err(AdmitError::Full));
    assert_eq!((spill.in_flight().bytes, spill.bytes(), spill.events()), (60, 60, 1));
    assert_eq!(spill.reserve(2, 40), Ok(()));
    assert_eq!((spill.events(), spill.bytes(), spill.events_total()), (3, 100, 3));
    spill.release(1, 60);
    assert_eq!((spill.events(), spill.bytes(), spill.events_total()), (2, 40, 3));
    // The backlog of a previous process counts as well.
    spill.set_backlog(31);
    assert_eq!((spill.reserve(1, 30), spill.reserve(1, 29)), (Err(AdmitError::Full), Ok(())));
    spill.close();
    assert_eq!(spill.reserve(1, 1), Err(AdmitError::Closed));
}

#[test]
fn in_flight_bytes_are_bounded_except_for_a_sole_block() {
    let spill = Spill::new(1 << 40);
    assert_eq!(spill.reserve(1, IN_FLIGHT_BYTES_MAX + 1), Ok(()));
    assert_eq!(spill.reserve(1, 1), Err(AdmitError::Full));
    assert!(spill.is_disk_behind() && !spill.has_capacity() && spill.sync_urgent());
    let spill = Spill::new(1 << 40);
    spill.reserve(1, IN_FLIGHT_BYTES_HIGH - 1).unwrap();
    assert!(!spill.sync_urgent());
    spill.set_refill_starved(true);
    assert!(spill.sync_urgent());
    spill.reserve(1, IN_FLIGHT_BYTES_MAX - IN_FLIGHT_BYTES_HIGH + 1).unwrap();
    assert_eq!(spill.reserve(1, 1), Err(AdmitError::Full));
}

#[test]
fn spill_of_zero_bytes_rejects_everything() {
    let spill = Spill::new(0);
    assert_eq!(spill.reserve(1, 1), Err(AdmitError::Full));
    assert_eq!((spill.is_engaged(), spill.has_capacity(), spill.utilization_percent()), (false, false, None));
}
