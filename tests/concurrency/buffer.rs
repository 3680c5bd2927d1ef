//! The buffer: reservations of its capacity, and the hand-over of spilled events to it.
//!
//! The blocks, their reservations and the accounting are the server's. The steps of its threads are
//! copied, since queues and files are not part of the models.

use std::collections::VecDeque;
use std::sync::Arc;

// The atomics of the files below.
use loom::sync::atomic::{self, AtomicBool, Ordering};
use loom::sync::{Mutex, MutexGuard};
use loom::thread;

use super::parker::{Parker, Stuck, explore, explore_with};
use crate::clock::Moment;
use aurore_events::buffer::AdmitError;
use block::{Reservation, RowBlock};
use occupancy::{Occupancy, Occupied};
use spill::Spill;

#[path = "../../src/buffer/block.rs"]
#[expect(dead_code, unreachable_pub, reason = "only the reservations are modelled")]
mod block;
#[path = "../../src/buffer/occupancy.rs"]
#[expect(unreachable_pub, reason = "only the reservations are modelled")]
mod occupancy;
#[path = "../../src/buffer/spill.rs"]
#[expect(dead_code, unreachable_pub, reason = "only the reservations are modelled")]
mod spill;

/// The counted reference of a block, on that of `loom`.
mod counted {
    use std::ops::Deref;

    pub(super) struct HeaderSlice<H, T: ?Sized> {
        pub(super) header: H,
        pub(super) slice: Box<T>,
    }

    pub(super) struct Arc<T>(loom::sync::Arc<T>);

    impl<H> Arc<HeaderSlice<H, [u8]>> {
        pub(super) fn from_header_and_slice(header: H, slice: &[u8]) -> Self {
            Self(loom::sync::Arc::new(HeaderSlice { header, slice: slice.into() }))
        }
    }

    impl<T> Clone for Arc<T> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    impl<T> Deref for Arc<T> {
        type Target = T;

        fn deref(&self) -> &T {
            &self.0
        }
    }
}

/// A queue of blocks or of synced ranges.
struct Queue<T>(Mutex<VecDeque<T>>);

impl<T> Queue<T> {
    fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.0.lock().expect("no thread panics")
    }

    fn push(&self, item: T) {
        self.lock().push_back(item);
    }

    fn pop(&self) -> Option<T> {
        self.lock().pop_front()
    }
}

/// Reservations by an acceptor, which takes no for an answer, and by a refill, which waits for
/// capacity.
struct Reservations {
    occupancy: Arc<Occupancy>,
    shard: Queue<RowBlock>,
    writer: Parker,
    refill: Parker,
}

/// The order in which the writer settles a block and wakes the refill.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// That of the server.
    FinalizeThenWake,
    WakeThenFinalize,
}

/// Asserts that a buffer for one event never holds two, that the refill gets its capacity, and that
/// all of it is free in the end.
fn check_reservations(order: Order) {
    explore(move || {
        let shared = loom::sync::Arc::new(Reservations {
            // The bytes of all: they are free later than the rows, and wake nobody.
            occupancy: Arc::new(Occupancy::new(1, 3)),
            shard: Queue::new(),
            writer: Parker::new(1),
            refill: Parker::new(1),
        });
        assert!(shared.admit());
        let acceptor = loom::sync::Arc::clone(&shared);
        let acceptor = thread::spawn(move || {
            acceptor.admit();
            acceptor.writer.waker_ends();
        });
        let writer = loom::sync::Arc::clone(&shared);
        let writer = thread::spawn(move || writer.write(order));
        while !shared.admit() {
            let parked = shared.refill.park();
            parked.unwrap_or_else(|Stuck| panic!("the refill sleeps, and the buffer is empty"));
        }
        acceptor.join().expect("no thread panics");
        writer.join().expect("no thread panics");
        shared.settle(order);
        assert_eq!(shared.occupancy.occupied(), Occupied::default());
    });
}

impl Reservations {
    /// Like `Buffer::admit` and `admit_refill`. Returns whether there is capacity.
    fn admit(&self) -> bool {
        let before = match self.occupancy.reserve(1, 1) {
            Ok(before) => before,
            Err(AdmitError::Full) => return false,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(before.rows, 0, "two events in a buffer for one");
        let reservation = Reservation { occupancy: Arc::clone(&self.occupancy), rows: 1, bytes: 1 };
        let block = RowBlock::admitted(&[0], 1, Moment::ZERO, reservation);
        // That of the journal, which drops it at any time.
        let of_journal = block.clone();
        self.shard.push(block);
        self.writer.unpark();
        drop(of_journal);
        true
    }

    /// Like `Writer::run`, until the acceptor has ended.
    fn write(&self, order: Order) {
        loop {
            self.settle(order);
            if let Err(Stuck) = self.writer.park() {
                self.refill.waker_ends();
                return;
            }
        }
    }

    /// Like `Journal::finalize`.
    fn settle(&self, order: Order) {
        while let Some(block) = self.shard.pop() {
            if order == Order::WakeThenFinalize {
                self.refill.unpark();
            }
            block.finalize();
            drop(block);
            if order == Order::FinalizeThenWake {
                self.refill.unpark();
            }
        }
    }
}

#[test]
fn capacity_is_never_exceeded_and_all_of_it_is_given_back() {
    check_reservations(Order::FinalizeThenWake);
}

#[test]
#[should_panic(expected = "the refill sleeps")]
fn the_model_finds_a_wake_up_before_the_release() {
    check_reservations(Order::WakeThenFinalize);
}

/// Two acceptors spill. There is space for one of them.
#[test]
fn the_spill_never_exceeds_its_bound_and_a_refused_reservation_changes_nothing() {
    explore(|| {
        let spill = loom::sync::Arc::new(Spill::new(10));
        let other = loom::sync::Arc::clone(&spill);
        let reserves = |spill: &Spill| spill.reserve(1, 6).is_ok();
        let first = thread::spawn(move || reserves(&other));
        let second = reserves(&spill);
        let first = first.join().expect("no thread panics");
        assert!(first != second, "reserved: {first} and {second}");
        assert_eq!((spill.events(), spill.bytes()), (1, 6));
        assert_eq!(spill.in_flight(), Occupied { rows: 1, bytes: 6 });
        assert!(spill.is_engaged());
    });
}

/// Each further one takes ten times as long, and finds nothing more.
const SPILL_PREEMPTIONS_MAX: usize = 2;

/// An acceptor whose events exceed the buffer, and the threads that bring the others to the writer. One
/// thread plays the acceptor and the journal: it syncs spilled blocks after the last admission.
struct SpillModel {
    spill: Spill,
    occupancy: Arc<Occupancy>,
    /// The events of synced ranges.
    ranges: Queue<u8>,
    shard: Queue<RowBlock>,
    /// Nothing more is admitted.
    closed: AtomicBool,
    refill: Parker,
    writer: Parker,
}

/// How the writer learns that it has stored everything.
#[derive(Clone, Copy, PartialEq)]
enum DrainCheck {
    /// That of the server.
    SpillThenBuffer,
    BufferThenSpill,
}

/// Asserts that the writer gets each event once, spilled ones in their order, before it finds
/// nothing left, and that all capacity is free then.
fn check_spill(events: u8, check: DrainCheck) {
    explore_with(SPILL_PREEMPTIONS_MAX, move || {
        let shared = loom::sync::Arc::new(SpillModel {
            spill: Spill::new(100),
            occupancy: Arc::new(Occupancy::new(1, 100)),
            ranges: Queue::new(),
            shard: Queue::new(),
            closed: AtomicBool::new(false),
            refill: Parker::new(2),
            writer: Parker::new(2),
        });
        let acceptor = loom::sync::Arc::clone(&shared);
        thread::spawn(move || acceptor.admit(events));
        let refill = loom::sync::Arc::clone(&shared);
        thread::spawn(move || refill.refill());
        let stored = shared.write(check);
        let mut each = stored.clone();
        each.sort_unstable();
        assert!(each.into_iter().eq(0..events), "the writer ends with {stored:?} of {events} events");
        assert_eq!((shared.spill.events(), shared.spill.bytes()), (0, 0));
        assert_eq!(shared.spill.in_flight(), Occupied::default());
        assert_eq!(shared.occupancy.occupied(), Occupied::default());
    });
}

impl SpillModel {
    /// Like `Buffer::admit`, then `JournalWriter::on_sync_result`, where a block leaves memory after
    /// its range is queued, and `Buffer::close`.
    fn admit(&self, events: u8) {
        let mut lane = Vec::new();
        for event in 0..events {
            let bytes = [event];
            if !self.spill.is_engaged() && self.occupancy.reserve(1, 1).is_ok() {
                let reservation = Reservation { occupancy: Arc::clone(&self.occupancy), rows: 1, bytes: 1 };
                self.shard.push(RowBlock::admitted(&bytes, 1, Moment::ZERO, reservation));
                self.writer.unpark();
            } else {
                self.spill.reserve(1, 1).expect("there is space on disk");
                let reservation = self.spill.reservation(1, 1);
                lane.push(RowBlock::spilled(&bytes, 1, Moment::ZERO, reservation));
            }
        }
        for block in lane {
            self.ranges.push(block.bytes()[0]);
            self.refill.unpark();
            drop(block);
        }
        self.closed.store(true, Ordering::Release);
        self.refill.unpark();
        self.refill.waker_ends();
        self.writer.unpark();
        self.writer.waker_ends();
    }

    /// Like `Refiller::refill`.
    fn refill(&self) {
        let sleep = || self.refill.park().unwrap_or_else(|Stuck| panic!("the refill sleeps"));
        while !(self.closed.load(Ordering::Acquire) && self.spill.events() == 0) {
            let Some(event) = self.ranges.pop() else {
                self.spill.disengage();
                self.spill.set_refill_starved(self.spill.events() > 0);
                sleep();
                continue;
            };
            self.spill.set_refill_starved(false);
            while self.occupancy.reserve_ignoring_close(1, 1).is_err() {
                sleep();
            }
            let reservation = Reservation { occupancy: Arc::clone(&self.occupancy), rows: 1, bytes: 1 };
            self.shard.push(RowBlock::refilled(&[event], 1, Moment::ZERO, 0, false, reservation));
            self.spill.release(1, 1);
            self.writer.unpark();
        }
        self.writer.waker_ends();
    }

    /// Like `Writer::run` while it drains. Returns the stored events.
    fn write(&self, check: DrainCheck) -> Vec<u8> {
        let (mut stored, mut spilled) = (Vec::new(), None);
        loop {
            while let Some(block) = self.shard.pop() {
                let event = block.bytes()[0];
                if block.finalize().is_some() {
                    assert!(spilled < Some(event), "{event} after {spilled:?}");
                    spilled = Some(event);
                }
                stored.push(event);
                drop(block);
                self.refill.unpark();
            }
            let is_empty = || match check {
                DrainCheck::SpillThenBuffer => self.spill.is_empty_with(&self.occupancy),
                DrainCheck::BufferThenSpill => {
                    self.occupancy.occupied().rows == 0 && self.spill.events() == 0
                }
            };
            // In this order: what is admitted before the end must be seen.
            if self.closed.load(Ordering::Acquire) && is_empty() {
                self.refill.waker_ends();
                return stored;
            }
            self.writer.park().unwrap_or_else(|Stuck| panic!("the writer sleeps with {stored:?}"));
        }
    }
}

#[test]
fn each_spilled_event_reaches_the_writer_once_and_in_order() {
    check_spill(3, DrainCheck::SpillThenBuffer);
}

#[test]
#[should_panic(expected = "the writer ends with")]
fn the_model_finds_a_drain_that_looks_into_the_buffer_first() {
    check_spill(2, DrainCheck::BufferThenSpill);
}
