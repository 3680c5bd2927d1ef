//! Positions in the write-ahead log (WAL) of the database, and the detection of a failover by them.
//!
//! A failover to another server, a restore and a crash that lost commits look alike: the database
//! has another system identifier, is on another timeline, or its WAL ends before a commit that it
//! has confirmed. The module must not depend on how a position is read.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A position in the WAL of one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPosition {
    /// The system identifier, which `initdb` draws.
    pub system: u64,
    /// The timeline, which every promotion of a standby increases.
    pub timeline: u32,
    /// The log sequence number: bytes of WAL before the position.
    pub lsn: u64,
}

impl WalPosition {
    /// The LSN of a commit whose position could not be read. It is after every other.
    pub const LSN_UNKNOWN: u64 = u64::MAX;

    /// The LSN as PostgreSQL writes it.
    pub fn lsn_text(&self) -> String {
        if self.lsn == Self::LSN_UNKNOWN {
            return "unknown".to_owned();
        }
        format!("{:X}/{:X}", self.lsn >> 32, self.lsn & 0xffff_ffff)
    }

    /// Whether a database at `current` has everything that was committed up to this position.
    pub fn is_before(&self, current: &Self) -> bool {
        self.system == current.system && self.timeline == current.timeline && self.lsn <= current.lsn
    }
}

impl fmt::Display for WalPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {}, timeline {}, LSN {}", self.system, self.timeline, self.lsn_text())
    }
}

/// Where rows were committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPosition {
    /// The number of failovers that this process had noticed when the transaction began, plus one.
    pub epoch: u64,
    /// After the commit.
    pub wal: WalPosition,
}

impl CommitPosition {
    /// The position of two commits together: a failover after the first one concerns both.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if self.epoch < other.epoch || (self.epoch == other.epoch && self.wal.lsn >= other.wal.lsn) {
            self
        } else {
            other
        }
    }

    /// [`CommitPosition::merge`] where the positions may be unknown.
    pub fn merge_known(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(one.merge(other)),
            (one, other) => one.or(other),
        }
    }
}

/// The database, as a probe finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatabaseState {
    /// The end of its WAL. None if the database does not tell.
    pub position: Option<CommitPosition>,
    /// The LSN up to which every standby that counts has flushed the WAL. None if there is none, or
    /// one is missing, or the role may not read it.
    pub standby_flushed: Option<u64>,
}

/// What was known before a question to the database, so that an answer which arrives late is not
/// taken for a failover.
#[derive(Clone, Copy, Debug)]
pub struct KnownPosition {
    pub epoch: u64,
    pub wal: Option<WalPosition>,
}

/// Notices failovers by the positions that the connections read.
#[derive(Debug)]
pub struct FailoverDetector(Mutex<KnownPosition>);

/// The epoch before the first failover.
pub const EPOCH_FIRST: u64 = 1;

impl FailoverDetector {
    /// `last`: the position that an earlier process has seen last.
    pub fn new(last: Option<WalPosition>) -> Self {
        Self(Mutex::new(KnownPosition { epoch: EPOCH_FIRST, wal: last }))
    }

    fn lock(&self) -> MutexGuard<'_, KnownPosition> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be read before the database is asked for its position.
    pub fn known(&self) -> KnownPosition {
        *self.lock()
    }

    /// Records the answer `wal` to a question that was asked when `before` was known. Returns the epoch
    /// to which the answer belongs.
    pub fn observe(&self, before: KnownPosition, wal: WalPosition) -> u64 {
        let mut known = self.lock();
        if before.epoch != known.epoch {
            // Asked before the failover, and possibly answered by the database of that time.
            return before.epoch;
        }
        match (before.wal, known.wal) {
            (Some(before), _) if !before.is_before(&wal) => {
                *known = KnownPosition { epoch: known.epoch + 1, wal: Some(wal) };
            }
            // Another thread was the first to learn a position, or a later one.
            (_, Some(latest)) if !latest.is_before(&wal) => {}
            _ => known.wal = Some(wal),
        }
        known.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(timeline: u32, lsn: u64) -> WalPosition {
        WalPosition { system: 7, timeline, lsn }
    }

    /// Asks and answers without anything in between.
    fn observe(detector: &FailoverDetector, wal: WalPosition) -> u64 {
        detector.observe(detector.known(), wal)
    }

    #[test]
    fn another_system_another_timeline_or_an_earlier_end_is_a_failover() {
        let detector = FailoverDetector::new(None);
        let answers = [
            (at(1, 100), 1),
            (at(1, 100), 1),
            (at(1, 250), 1),
            (at(2, 250), 2),
            (at(2, 249), 3),
            (at(2, 249), 3),
            (at(1, 900), 4),
            (WalPosition { system: 8, ..at(1, 1000) }, 5),
        ];
        for (wal, epoch) in answers {
            assert_eq!(observe(&detector, wal), epoch, "{wal}");
        }
    }

    #[test]
    fn failover_since_an_earlier_process_is_noticed() {
        assert_eq!(observe(&FailoverDetector::new(Some(at(1, 100))), at(1, 100)), 1);
        assert_eq!(observe(&FailoverDetector::new(Some(at(1, 100))), at(1, 99)), 2);
        assert_eq!(observe(&FailoverDetector::new(Some(at(1, 100))), at(2, 200)), 2);
    }

    #[test]
    fn late_answer_is_no_failover() {
        let detector = FailoverDetector::new(None);
        observe(&detector, at(1, 100));
        let before = detector.known();
        assert_eq!(observe(&detector, at(1, 200)), 1);
        assert_eq!(detector.observe(before, at(1, 150)), 1, "read before the later position");
        assert_eq!(detector.known().wal, Some(at(1, 200)));
        assert_eq!(observe(&detector, at(2, 180)), 2);
        assert_eq!(detector.observe(before, at(1, 210)), 1, "of the old server");
        assert_eq!(detector.known().wal, Some(at(2, 180)));
    }

    #[test]
    fn first_answers_of_two_threads_are_no_failover() {
        let detector = FailoverDetector::new(None);
        let before = detector.known();
        assert_eq!(detector.observe(before, at(1, 200)), 1);
        assert_eq!(detector.observe(before, at(1, 150)), 1);
        assert_eq!(detector.known().wal, Some(at(1, 200)));
    }

    #[test]
    fn merged_commits_belong_to_the_earlier_epoch_and_the_later_position() {
        let commit = |epoch, lsn| CommitPosition { epoch, wal: at(1, lsn) };
        assert_eq!(commit(1, 5).merge(commit(2, 9)), commit(1, 5));
        assert_eq!(commit(2, 9).merge(commit(1, 5)), commit(1, 5));
        assert_eq!(commit(1, 5).merge(commit(1, 9)), commit(1, 9));
        assert_eq!(CommitPosition::merge_known(None, Some(commit(1, 5))), Some(commit(1, 5)));
    }

    #[test]
    fn position_is_written_as_postgresql_does() {
        assert_eq!(at(3, 0x1_016b_3740).to_string(), "system 7, timeline 3, LSN 1/16B3740");
    }
}
