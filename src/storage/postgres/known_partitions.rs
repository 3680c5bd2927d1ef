//! The days that are known to have a partition, and the requests for the partitions of other days.
//!
//! A batch with an event of another day asks the partition maintenance for the day's partition and
//! waits briefly. Otherwise a late import would fill the default partition, from where its rows
//! would have to be moved under a lock.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::storage::{Day, PartitionRequest};

/// Maximum wait of a batch for the partitions of its days; creating one takes some 10 ms. A day is
/// waited for once between two refreshes of the known days, so at most once a minute.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// Only the writer requests partitions, one batch at a time.
const REQUESTS_MAX: usize = 1;

#[derive(Debug, Default)]
pub(super) struct KnownPartitions {
    days: Mutex<KnownDays>,
    /// Set once the partition maintenance of this process takes requests.
    requests: OnceLock<Sender<PartitionRequest>>,
}

#[derive(Debug, Default)]
struct KnownDays {
    existing: BTreeSet<Day>,
    /// Days requested since the last refresh.
    requested: BTreeSet<Day>,
}

impl KnownPartitions {
    /// Returns the receiver of the requests. From now on batches wait for them.
    ///
    /// # Panics
    /// On a second call: a request has one receiver.
    pub(super) fn requests(&self) -> Receiver<PartitionRequest> {
        let (sender, receiver) = bounded(REQUESTS_MAX);
        self.requests.set(sender).expect("BUG: another thread takes the partition requests");
        receiver
    }

    /// Requests the partitions of the days that are not known to have one, and waits until the
    /// request is done, or [`WAIT_MAX`]. Whether the partitions exist then makes no difference to
    /// the caller: rows of the other days enter the default partition.
    pub(super) fn request_missing(&self, days: &[Day]) {
        let Some(requests) = self.requests.get() else { return };
        let days: Vec<Day> = {
            let mut known = self.lock();
            let KnownDays { existing, requested } = &mut *known;
            // `insert` returns whether the day was not requested yet.
            days.iter().copied().filter(|day| !existing.contains(day) && requested.insert(*day)).collect()
        };
        if days.is_empty() {
            return;
        }
        let (pending, done) = bounded::<()>(0);
        // Fails while the maintenance is busy with an earlier request, and when it has ended.
        if requests.try_send(PartitionRequest { days, _pending: pending }).is_ok() {
            // Nothing is ever sent: the wait ends when the request is dropped, or after the timeout.
            _ = done.recv_timeout(WAIT_MAX);
        }
    }

    /// Replaces the known days, so that missing days may be requested again.
    pub(super) fn refresh(&self, days: &[Day]) {
        *self.lock() = KnownDays { existing: days.iter().copied().collect(), requested: BTreeSet::new() };
    }

    pub(super) fn insert(&self, day: Day) {
        self.lock().existing.insert(day);
    }

    /// Forgets all days: the tables were found missing.
    pub(super) fn clear(&self) {
        *self.lock() = KnownDays::default();
    }

    fn lock(&self) -> MutexGuard<'_, KnownDays> {
        self.days.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(numbers: &[i64]) -> Vec<Day> {
        numbers.iter().map(|number| Day::from_number(*number)).collect()
    }

    #[test]
    fn a_day_is_requested_once_until_the_known_days_are_refreshed() {
        let known = KnownPartitions::default();
        known.request_missing(&days(&[1]));
        let requests = known.requests();
        known.refresh(&days(&[1, 2]));
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| (0..3).map(|_| requests.recv().unwrap().days).collect::<Vec<_>>());
            // Each call returns when its request is dropped.
            known.request_missing(&days(&[1, 2, 3, 4]));
            known.request_missing(&days(&[3, 4, 1]));
            known.insert(Day::from_number(5));
            known.request_missing(&days(&[5, 6]));
            known.refresh(&days(&[3]));
            known.request_missing(&days(&[3, 4]));
            assert_eq!(taken.join().unwrap(), [days(&[3, 4]), days(&[6]), days(&[4])]);
        });
    }

    #[test]
    fn a_busy_or_ended_maintenance_is_not_waited_for_again() {
        let known = KnownPartitions::default();
        let requests = known.requests();
        // Not taken: the batch goes on after the timeout, and the next ones at once.
        known.request_missing(&days(&[1]));
        known.request_missing(&days(&[1]));
        known.request_missing(&days(&[2]));
        assert_eq!(requests.try_iter().map(|request| request.days).collect::<Vec<_>>(), [days(&[1])]);
        drop(requests);
        known.request_missing(&days(&[3]));
    }
}
