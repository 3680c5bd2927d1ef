//! Decides which thread runs a sync: the journal thread while syncs are fast, the sync thread
//! otherwise.
//!
//! It must not depend on threads, files or the clock: it is told how long each sync took.

use std::time::Duration;

/// The thread that runs a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyncThread {
    /// The journal thread itself. It saves two hand-offs between threads a sync, which cost more
    /// than a fast sync, and nothing is written meanwhile.
    Journal,
    /// The sync thread, while the journal thread continues to write.
    Dedicated,
}

/// Above this mean, syncs move to the sync thread.
const SLOW_MEAN: Duration = Duration::from_millis(1);
/// Below this mean, they move to the journal thread. The gap prevents that a disk near one bound
/// moves them all the time.
const FAST_MEAN: Duration = Duration::from_micros(500);
/// The weight of the latest duration in the mean is the inverse of this.
const MEAN_WEIGHT: u32 = 8;
/// A longer duration counts as this: it moves syncs away whatever the mean was, and some 25 fast
/// syncs move them back, however long it was.
const COUNTED_MAX: Duration = Duration::from_millis(10);

/// It is told only of syncs that are comparable: of few bytes, and without a sync of the directory.
#[derive(Debug)]
pub(super) struct SyncPlacement {
    /// Exponentially weighted mean of the durations.
    mean: Duration,
    thread: SyncThread,
}

impl SyncPlacement {
    /// An unknown disk counts as slow.
    pub(super) fn new() -> Self {
        Self { mean: SLOW_MEAN, thread: SyncThread::Dedicated }
    }

    /// The thread for the next comparable sync.
    pub(super) fn thread(&self) -> SyncThread {
        self.thread
    }

    /// Records the duration of a comparable sync, whichever thread ran it.
    pub(super) fn record(&mut self, took: Duration) {
        let sum = self.mean * (MEAN_WEIGHT - 1) + took.min(COUNTED_MAX);
        self.mean = sum / MEAN_WEIGHT;
        if self.mean > SLOW_MEAN {
            self.thread = SyncThread::Dedicated;
        } else if self.mean < FAST_MEAN {
            self.thread = SyncThread::Journal;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// The placement after syncs of these durations in microseconds.
    fn after(durations: &[u64]) -> SyncPlacement {
        let mut placement = SyncPlacement::new();
        for took in durations {
            placement.record(micros(*took));
        }
        placement
    }

    #[track_caller]
    fn check(durations: &[u64], expected: SyncThread) {
        assert_eq!(after(durations).thread(), expected, "{durations:?}");
    }

    #[test]
    fn syncs_run_on_the_journal_thread_only_while_they_are_fast() {
        check(&[], SyncThread::Dedicated);
        check(&[90], SyncThread::Dedicated);
        check(&[90; 7], SyncThread::Journal);
        check(&[900; 100], SyncThread::Dedicated);
        check(&[[90; 50], [900; 50]].concat(), SyncThread::Journal);
        check(&[[90; 50], [1_100; 50]].concat(), SyncThread::Dedicated);
        // A single slow sync, of a new extent for example, moves nothing; a stall does.
        check(&[&[90; 50][..], &[5_000]].concat(), SyncThread::Journal);
        check(&[&[90; 50][..], &[8_100]].concat(), SyncThread::Dedicated);
        // However long a stall is, its end is noticed.
        check(&[&[60_000_000][..], &[90; 30]].concat(), SyncThread::Journal);
    }

    fn durations() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec(prop_oneof![0..2_000_u64, 0..60_000_000_u64], 0..200)
    }

    proptest! {
        #[test]
        fn stall_moves_syncs_away_and_25_fast_ones_move_them_back(before in durations(), stall in 8_100..u64::MAX / 2) {
            let mut placement = after(&before);
            // Before the second stall, syncs are on the journal thread.
            for _ in 0..2 {
                placement.record(micros(stall));
                prop_assert_eq!(placement.thread(), SyncThread::Dedicated);
                for _ in 0..25 {
                    placement.record(micros(100));
                }
                prop_assert_eq!(placement.thread(), SyncThread::Journal);
            }
        }

        #[test]
        fn steady_disk_moves_syncs_at_most_once(before in durations(), steady in 0..5_000_u64) {
            let mut placement = after(&before);
            let mut moves = 0;
            for _ in 0..300 {
                let thread = placement.thread();
                placement.record(micros(steady));
                moves += u32::from(placement.thread() != thread);
            }
            prop_assert!(moves <= 1);
        }
    }
}
