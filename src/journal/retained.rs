//! The segments that are retained after all of their events are committed, so that a failover to a
//! database that lacks some of these commits loses nothing. Decides how long each is kept and which of
//! them must be replayed.
//!
//! Must not depend on files or threads: `segment_table` renames and removes the files, and
//! `crate::failover` replays them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Moment;
use crate::storage::wal::WalPosition;
use crate::storage::{CommitPosition, DatabaseState};

/// Bounds on retained segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainLimits {
    /// The time for which a segment is kept after its last commit, as long as the database is seen to
    /// have it. Zero: nothing is retained.
    pub time: Duration,
    /// Maximum bytes of all retained segments.
    pub bytes_max: u64,
}

impl RetainLimits {
    pub const NONE: Self = Self { time: Duration::ZERO, bytes_max: 0 };

    pub fn is_enabled(&self) -> bool {
        !self.time.is_zero() && self.bytes_max > 0
    }
}

/// A retained segment that an earlier process left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommittedSegment {
    pub segment: u64,
    pub bytes: u64,
    /// Where its events were committed.
    pub wal: Option<WalPosition>,
}

/// A retained segment whose events the database may have lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaleSegment {
    pub segment: u64,
    /// The name of the file.
    pub name: String,
    pub bytes: u64,
}

/// What the journal thread reports to the failover thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailoverEvent {
    /// The database is another one, or was set back. The segments are replayed in this order; `open`
    /// others follow.
    Noticed { from: WalPosition, to: WalPosition, stale: Vec<StaleSegment>, open: usize },
    /// A segment with events from before the last failover, which had uncommitted events too, has none
    /// any more.
    Stale(StaleSegment),
}

#[derive(Debug)]
struct RetainedSegment {
    bytes: u64,
    commit: Option<CommitPosition>,
    committed_at: Moment,
    /// Whether it was reported as stale, and is not replayed yet.
    replaying: bool,
}

/// The epoch of segments of an earlier process, until the first position of the database shows
/// whether it has their events.
const EPOCH_UNKNOWN: u64 = 0;

/// Invariant: a segment has an entry as long as its file exists under a name of [`file_name`].
#[derive(Debug)]
pub(super) struct RetainedSegments {
    limits: RetainLimits,
    segments: BTreeMap<u64, RetainedSegment>,
    /// The latest position of the database, and its epoch.
    latest: CommitPosition,
    /// When the database of that epoch was last seen.
    confirmed_at: Moment,
    standby_flushed: Option<u64>,
}

impl RetainedSegments {
    pub(super) fn new(limits: RetainLimits, committed: &[CommittedSegment], now: Moment) -> Self {
        let of = |found: &CommittedSegment| {
            let commit = found.wal.map(|wal| CommitPosition { epoch: EPOCH_UNKNOWN, wal });
            let retained =
                RetainedSegment { bytes: found.bytes, commit, committed_at: now, replaying: false };
            (found.segment, retained)
        };
        Self {
            limits,
            segments: committed.iter().map(of).collect(),
            latest: CommitPosition {
                epoch: EPOCH_UNKNOWN,
                wal: WalPosition { system: 0, timeline: 0, lsn: 0 },
            },
            confirmed_at: now,
            standby_flushed: None,
        }
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.limits.is_enabled()
    }

    /// Records that the database was seen in this state. Returns the positions before and after a
    /// failover, if this shows one.
    pub(super) fn observe(
        &mut self,
        state: DatabaseState,
        now: Moment,
    ) -> Option<(WalPosition, WalPosition)> {
        let Some(position) = state.position else {
            self.confirmed_at = now;
            return None;
        };
        if position.epoch < self.latest.epoch {
            return None;
        }
        self.confirmed_at = now;
        self.standby_flushed = state.standby_flushed;
        let before = std::mem::replace(&mut self.latest, position);
        match before.epoch {
            EPOCH_UNKNOWN => self.compare_with_first(position),
            epoch if epoch == position.epoch => {
                if position.wal.lsn < before.wal.lsn || position.wal.lsn == WalPosition::LSN_UNKNOWN {
                    self.latest = before;
                }
                None
            }
            _ => Some((before.wal, position.wal)),
        }
    }

    /// Compares the segments of an earlier process with the first position of the database. Returns
    /// the positions before and after a failover that happened since.
    fn compare_with_first(&mut self, first: CommitPosition) -> Option<(WalPosition, WalPosition)> {
        if first.wal.lsn == WalPosition::LSN_UNKNOWN {
            // A later position will tell.
            self.latest.epoch = EPOCH_UNKNOWN;
            return None;
        }
        let mut newest_lost = None;
        for commit in self.segments.values_mut().filter_map(|retained| retained.commit.as_mut()) {
            // An unknown LSN was on this timeline, or is not.
            let wal = WalPosition {
                lsn: if commit.wal.lsn == WalPosition::LSN_UNKNOWN { 0 } else { commit.wal.lsn },
                ..commit.wal
            };
            if wal.is_before(&first.wal) {
                commit.epoch = first.epoch;
            } else {
                newest_lost = Some(commit.wal);
            }
        }
        newest_lost.map(|lost| (lost, first.wal))
    }

    /// Adds a segment, all events of which are committed. Returns the position for the name of its
    /// file.
    pub(super) fn insert(
        &mut self,
        segment: u64,
        bytes: u64,
        commit: Option<CommitPosition>,
        now: Moment,
    ) -> Option<WalPosition> {
        // Of the latest known epoch, at an LSN that was not read.
        let unread = || {
            let wal = WalPosition { lsn: WalPosition::LSN_UNKNOWN, ..self.latest.wal };
            (self.latest.epoch != EPOCH_UNKNOWN).then_some(CommitPosition { wal, ..self.latest })
        };
        let commit = commit.or_else(unread);
        let retained = RetainedSegment { bytes, commit, committed_at: now, replaying: false };
        self.segments.insert(segment, retained);
        commit.map(|commit| commit.wal)
    }

    /// Whether events of these commits may be lost: a failover was noticed after them.
    pub(super) fn is_stale(&self, commit: Option<CommitPosition>) -> bool {
        self.latest.epoch != EPOCH_UNKNOWN && commit.is_some_and(|commit| commit.epoch < self.latest.epoch)
    }

    /// Returns the segments that became stale, oldest first, each once.
    pub(super) fn take_stale(&mut self) -> Vec<StaleSegment> {
        let (latest, mut stale) = (self.latest.epoch, Vec::new());
        for (number, retained) in &mut self.segments {
            let is_stale = latest != EPOCH_UNKNOWN && retained.commit.is_some_and(|it| it.epoch < latest);
            if is_stale && !std::mem::replace(&mut retained.replaying, true) {
                let name = file_name(*number, retained.commit.map(|commit| commit.wal));
                stale.push(StaleSegment { segment: *number, name, bytes: retained.bytes });
            }
        }
        stale
    }

    /// Records that the database has all events of the segment since `commit`. Returns the names of
    /// its file before and after.
    pub(super) fn restored(
        &mut self,
        segment: u64,
        commit: Option<CommitPosition>,
        now: Moment,
    ) -> Option<(String, String)> {
        let retained = self.segments.get_mut(&segment)?;
        let before = file_name(segment, retained.commit.map(|commit| commit.wal));
        // A segment without events needs no commit.
        retained.commit = Some(commit.unwrap_or(self.latest));
        (retained.committed_at, retained.replaying) = (now, false);
        Some((before, file_name(segment, retained.commit.map(|commit| commit.wal))))
    }

    /// The segments to be removed, with the names of their files: the database, or every standby, is
    /// known to have their events, or they exceed the bound on bytes.
    pub(super) fn removable(&self) -> Vec<(u64, String)> {
        let mut bytes = self.bytes();
        let mut removed = Vec::new();
        let rank = |retained: &RetainedSegment| match retained {
            retained if self.is_safe(retained) => 0,
            // Those that a replay needs go last.
            retained if self.is_stale(retained.commit) => 2,
            _ => 1,
        };
        for wanted in 0..=2 {
            for (number, retained) in self.segments.iter().filter(|(_, retained)| rank(retained) == wanted) {
                if wanted == 0 || bytes > self.limits.bytes_max {
                    bytes -= retained.bytes;
                    removed.push((*number, file_name(*number, retained.commit.map(|commit| commit.wal))));
                }
            }
        }
        removed
    }

    /// Whether a failover cannot lose the events any more, as far as it is known.
    fn is_safe(&self, retained: &RetainedSegment) -> bool {
        if self.is_stale(retained.commit) {
            return false;
        }
        let is_old = self.confirmed_at.since(retained.committed_at) >= self.limits.time;
        let is_flushed = |commit: CommitPosition| {
            commit.epoch == self.latest.epoch
                && self.standby_flushed.is_some_and(|flushed| commit.wal.lsn <= flushed)
        };
        is_old || retained.commit.is_some_and(is_flushed)
    }

    pub(super) fn remove(&mut self, segment: u64) {
        self.segments.remove(&segment);
    }

    pub(super) fn count(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.segments.values().map(|retained| retained.bytes).sum()
    }
}

/// The file name of a retained segment: number, system identifier, timeline and LSN. All but the
/// number are hexadecimal.
pub(super) fn file_name(segment: u64, wal: Option<WalPosition>) -> String {
    match wal {
        Some(WalPosition { system, timeline, lsn }) => {
            format!("{segment:010}.{system:016x}-{timeline:08x}-{lsn:016x}.committed")
        }
        None => format!("{segment:010}.committed"),
    }
}

/// Returns the number and the position of a file name, or `None` if it is not that of a retained
/// segment.
pub(super) fn parse_file_name(name: &str) -> Option<(u64, Option<WalPosition>)> {
    let stem = name.strip_suffix(".committed")?;
    let (number, wal) = match stem.split_once('.') {
        None => (stem, None),
        Some((number, position)) => {
            let mut parts = position.split('-');
            let wal = WalPosition {
                system: u64::from_str_radix(parts.next()?, 16).ok()?,
                timeline: u32::from_str_radix(parts.next()?, 16).ok()?,
                lsn: u64::from_str_radix(parts.next()?, 16).ok()?,
            };
            (number, Some(wal))
        }
    };
    let number = number.parse().ok()?;
    (file_name(number, wal) == name).then_some((number, wal))
}

#[cfg(test)]
#[path = "retained_tests.rs"]
mod tests;
