//! A block of rows, shared by those who hold it: the writer, and the journal until the rows are on disk. One
//! allocation, and one copy of the bytes, however many hold it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use triomphe::{Arc as Shared, HeaderSlice};

use super::occupancy::Occupancy;
use crate::clock::Moment;

/// Where the rows stand: not in the journal yet, in one of its segments (the number plus one), or settled.
const UNPLACED: u64 = 0;
const SETTLED: u64 = u64::MAX;

/// Rows that travel together: what one request brought, in one allocation and one place in a queue. A clone shares
/// the rows; the room they take in the buffer is given back when the last one is dropped.
#[derive(Clone)]
pub struct RowBlock(Shared<HeaderSlice<Head, [u8]>>);

struct Head {
    rows: u32,
    admitted_at: Moment,
    kind: Kind,
    place: AtomicU64,
    room: Option<Room>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// For the writer, and for the journal.
    Plain,
    /// For the writer: an earlier process's.
    Replayed,
    /// For the journal alone.
    Overflow,
}

/// Room in memory. The events' is given back when they are settled, so that capacity is exact; the bytes' when the
/// memory is free, so that it stays bounded while the journal still holds what is settled.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) occupancy: Arc<Occupancy>,
    pub(super) rows: u32,
    pub(super) bytes: usize,
}

impl Drop for Head {
    fn drop(&mut self) {
        if let Some(room) = &self.room {
            let rows = if *self.place.get_mut() == SETTLED { 0 } else { room.rows as usize };
            room.occupancy.release(rows, room.bytes);
        }
    }
}

/// What came of placing a block in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// It is settled: no segment need keep it.
    Settled,
    /// It is in the segment now, and was in no other.
    New,
    /// It is in the segment now, and was in this one before.
    MovedFrom(u64),
}

impl RowBlock {
    /// Rows of nobody's buffer, back to back: at least one.
    pub fn new(bytes: &[u8], rows: u32, admitted_at: Moment) -> Self {
        Self::with(bytes, (rows, admitted_at), Kind::Plain, UNPLACED, None)
    }

    pub(super) fn admitted(bytes: &[u8], rows: u32, admitted_at: Moment, room: Room) -> Self {
        Self::with(bytes, (rows, admitted_at), Kind::Plain, UNPLACED, Some(room))
    }

    /// Rows for the journal alone; the writer gets them from there.
    pub(super) fn overflow(bytes: &[u8], rows: u32, admitted_at: Moment, room: Room) -> Self {
        Self::with(bytes, (rows, admitted_at), Kind::Overflow, UNPLACED, Some(room))
    }

    /// The rows of `overflow`, for the writer after all. They lie where it lay.
    pub(super) fn moved(overflow: &Self, room: Room) -> Self {
        let place = overflow.0.header.place.load(Ordering::Acquire);
        let of = (overflow.rows(), overflow.admitted_at());
        Self::with(overflow.bytes(), of, Kind::Plain, place, Some(room))
    }

    /// Rows that were read from `segment`, and lie there still. They were admitted by an earlier process if they are
    /// `replayed`, else by this one.
    pub(super) fn read_back(
        bytes: &[u8],
        rows: u32,
        now: Moment,
        segment: u64,
        replayed: bool,
        room: Room,
    ) -> Self {
        let kind = if replayed { Kind::Replayed } else { Kind::Plain };
        Self::with(bytes, (rows, now), kind, segment + 1, Some(room))
    }

    fn with(
        bytes: &[u8],
        (rows, admitted_at): (u32, Moment),
        kind: Kind,
        place: u64,
        room: Option<Room>,
    ) -> Self {
        let head = Head { rows, admitted_at, kind, place: AtomicU64::new(place), room };
        Self(Shared::from_header_and_slice(head, bytes))
    }

    /// Encoded rows, back to back.
    pub fn bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// How many; at least one.
    pub fn rows(&self) -> u32 {
        self.0.header.rows
    }

    /// When they were admitted.
    pub fn admitted_at(&self) -> Moment {
        self.0.header.admitted_at
    }

    /// Whether they lie in the journal only: the writer knows nothing of them.
    pub fn is_overflow(&self) -> bool {
        self.0.header.kind == Kind::Overflow
    }

    /// Whether they come from an earlier process's journal, so that they may be stored already.
    pub fn is_replayed(&self) -> bool {
        self.0.header.kind == Kind::Replayed
    }

    /// Every row is committed, one way or another. Tells in which segment of the journal they lie, if any.
    pub fn settle(&self) -> Option<u64> {
        let before = self.0.header.place.swap(SETTLED, Ordering::AcqRel);
        assert_ne!(before, SETTLED, "BUG: a block is settled twice");
        if let Some(room) = &self.0.header.room {
            room.occupancy.release(room.rows as usize, 0);
        }
        before.checked_sub(1)
    }

    pub fn is_settled(&self) -> bool {
        self.0.header.place.load(Ordering::Acquire) == SETTLED
    }

    /// The rows lie in `segment` from here on, unless they are settled. Only the checkpoint thread asks for this.
    pub fn place(&self, segment: u64) -> Placed {
        let placed = self.0.header.place.fetch_update(Ordering::AcqRel, Ordering::Acquire, |place| {
            (place != SETTLED).then_some(segment + 1)
        });
        match placed {
            Err(_settled) => Placed::Settled,
            Ok(UNPLACED) => Placed::New,
            Ok(before) => Placed::MovedFrom(before - 1),
        }
    }
}

impl fmt::Debug for RowBlock {
    /// Leaves out the rows: events are nothing for a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowBlock")
            .field("rows", &self.rows())
            .field("bytes", &self.bytes().len())
            .field("place", &self.0.header.place)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_in_one_segment_until_it_is_settled() {
        let block = RowBlock::new(b"row", 1, Moment::ZERO);
        assert_eq!(block.place(0), Placed::New);
        assert_eq!(block.place(7), Placed::MovedFrom(0));
        assert_eq!(block.clone().settle(), Some(7));
        assert_eq!((block.place(8), block.is_settled()), (Placed::Settled, true));
        assert_eq!(RowBlock::new(b"row", 1, Moment::ZERO).settle(), None);
    }

    #[test]
    fn the_room_for_events_comes_back_when_they_are_settled_and_that_for_bytes_with_the_last_holder() {
        use super::super::Occupied;
        for settle in [true, false] {
            let occupancy = Arc::new(Occupancy::new(1, 3));
            occupancy.reserve(1, 3).unwrap();
            let room = Room { occupancy: occupancy.clone(), rows: 1, bytes: 3 };
            let block = RowBlock::admitted(b"row", 1, Moment::ZERO, room);
            let other = block.clone();
            if settle {
                block.settle();
            }
            drop(block);
            assert_eq!(occupancy.occupied(), Occupied { rows: usize::from(!settle), bytes: 3 });
            drop(other);
            assert_eq!(occupancy.occupied(), Occupied::default());
        }
    }
}
