//! Waiters for a sync, from acceptors to the journal thread, which wait for the next sync while one
//! is in flight.

use loom::sync::Arc;
// The atomics of `sync_flag`.
use loom::sync::atomic::{self, AtomicBool, Ordering};
use loom::thread;

use super::parker::{Parker, Slots, Stuck, explore};
use sync_flag::SyncFlag;

#[path = "../../src/journal/sync_flag.rs"]
mod sync_flag;

struct Shared {
    flag: SyncFlag,
    lanes: Vec<Slots>,
    journal: Parker,
    /// Wakes the sync thread for a job.
    job: Parker,
    completed: AtomicBool,
}

/// The thread that runs the syncs.
#[derive(Clone, Copy, PartialEq)]
enum SyncedBy {
    SyncThread,
    JournalThread,
}

/// Ends if all waiters are completed. `drains_after`: whether the lanes are drained after the end of
/// a sync was recorded, or before.
fn check(acceptors: usize, waiters: usize, by: SyncedBy, drains_after: bool) {
    explore(move || {
        let shared = Arc::new(Shared {
            flag: SyncFlag::new(),
            lanes: (0..acceptors).map(|_| Slots::new(waiters)).collect(),
            journal: Parker::new(acceptors),
            job: Parker::new(1),
            completed: AtomicBool::new(false),
        });
        for acceptor in 0..acceptors {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for nth in 0..waiters {
                    shared.lanes[acceptor].push(nth);
                    if shared.flag.must_wake() {
                        shared.journal.unpark();
                    }
                }
                shared.journal.waker_ends();
            });
        }
        let syncer = Arc::clone(&shared);
        thread::spawn(move || {
            while let Ok(()) = syncer.job.park() {
                syncer.completed.store(true, Ordering::Release);
                syncer.journal.unpark();
                syncer.journal.waker_ends();
            }
        });
        shared.run(acceptors * waiters, by, drains_after);
    });
}

impl Shared {
    /// Like `JournalThread::run`.
    fn run(&self, mut left: usize, by: SyncedBy, drains_after: bool) {
        let mut next = vec![0; self.lanes.len()];
        let (mut waiting, mut in_flight) = (0, None);
        let drain = |next: &mut Vec<usize>, waiting: &mut usize| {
            for (lane, next) in self.lanes.iter().zip(next) {
                while lane.pop(next) {
                    *waiting += 1;
                }
            }
        };
        loop {
            if !drains_after {
                drain(&mut next, &mut waiting);
            }
            if self.completed.load(Ordering::Acquire)
                && let Some(covered) = in_flight.take()
            {
                self.completed.store(false, Ordering::Relaxed);
                self.flag.mark_ended();
                left -= covered;
            }
            if left == 0 {
                // Ends the sync thread.
                self.job.waker_ends();
                return;
            }
            if drains_after {
                drain(&mut next, &mut waiting);
            }
            if waiting > 0 && in_flight.is_none() {
                in_flight = Some(std::mem::take(&mut waiting));
                self.flag.mark_started();
                if by == SyncedBy::JournalThread {
                    // It does not park before the next tick.
                    self.completed.store(true, Ordering::Relaxed);
                    continue;
                }
                self.journal.add_waker();
                self.job.unpark();
            }
            self.journal
                .park()
                .unwrap_or_else(|Stuck| panic!("the journal thread sleeps, {left} waiters wait"));
        }
    }
}

#[test]
fn each_waiter_for_a_sync_is_completed() {
    check(1, 2, SyncedBy::SyncThread, true);
    check(1, 2, SyncedBy::JournalThread, true);
}

#[test]
#[should_panic(expected = "the journal thread sleeps")]
fn the_model_finds_lanes_that_are_drained_before_the_end_of_a_sync_is_recorded() {
    check(1, 2, SyncedBy::SyncThread, false);
}
