//! The segments that are retained after all of their events are committed, so that a failover to a
//! database that lacks some of these commits loses nothing. Decides how long each is kept and which of
//! them must be replayed.
//!
//! Must not depend on files or threads: `segment_table` renames and removes the files, and
//! `crate::failover` replays them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::segment;
use crate::clock::Moment;
use crate::storage::wal::{EPOCH_FIRST, WalPosition};
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

    /// The size of a segment, so that several can be retained: at most `wanted`.
    pub(super) fn segment_bytes_max(&self, wanted: u64) -> u64 {
        if self.is_enabled() { wanted.min(self.bytes_max / 4) } else { wanted }
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
    /// The name of its file.
    name: String,
    bytes: u64,
    commit: Option<CommitPosition>,
    committed_at: Moment,
    /// Whether it was reported as stale, and is not replayed yet.
    replaying: bool,
}

/// The names of a segment's file before and after a change of its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NameChange {
    pub(super) segment: u64,
    pub(super) before: String,
    pub(super) after: String,
}

/// No position of the database is known.
const EPOCH_UNKNOWN: u64 = 0;

/// Invariant: a segment has an entry as long as its file exists. The file of a segment to be replayed has
/// the name of an uncommitted one, so that it is recovered if the process ends before.
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
            let commit = found.wal.map(|wal| CommitPosition { epoch: EPOCH_FIRST, wal });
            let name = file_name(found.segment, found.wal);
            let retained =
                RetainedSegment { name, bytes: found.bytes, commit, committed_at: now, replaying: false };
            (found.segment, retained)
        };
        let unknown =
            CommitPosition { epoch: EPOCH_UNKNOWN, wal: WalPosition { system: 0, timeline: 0, lsn: 0 } };
        let last = last_position(committed).map(|wal| CommitPosition { epoch: EPOCH_FIRST, wal });
        Self {
            limits,
            segments: committed.iter().map(of).collect(),
            latest: last.unwrap_or(unknown),
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
            EPOCH_UNKNOWN => None,
            epoch if epoch == position.epoch => {
                if position.wal.lsn < before.wal.lsn || position.wal.lsn == WalPosition::LSN_UNKNOWN {
                    self.latest = before;
                }
                None
            }
            _ => Some((before.wal, position.wal)),
        }
    }

    /// Adds a segment, all events of which are committed. Its file has the name of an uncommitted one;
    /// returns the name that it gets.
    pub(super) fn insert(
        &mut self,
        segment: u64,
        bytes: u64,
        commit: Option<CommitPosition>,
        now: Moment,
    ) -> NameChange {
        // Of the latest known epoch, at an LSN that was not read.
        let unread = || {
            let wal = WalPosition { lsn: WalPosition::LSN_UNKNOWN, ..self.latest.wal };
            (self.latest.epoch != EPOCH_UNKNOWN).then_some(CommitPosition { wal, ..self.latest })
        };
        let commit = commit.or_else(unread);
        let before = segment::file_name(segment);
        let is_stale = self.is_stale(commit);
        let after =
            if is_stale { before.clone() } else { file_name(segment, commit.map(|commit| commit.wal)) };
        let name = after.clone();
        let retained = RetainedSegment { name, bytes, commit, committed_at: now, replaying: false };
        self.segments.insert(segment, retained);
        NameChange { segment, before, after }
    }

    /// Its file has another name: a change was made, or failed.
    pub(super) fn set_name(&mut self, segment: u64, name: &str) {
        if let Some(retained) = self.segments.get_mut(&segment) {
            name.clone_into(&mut retained.name);
        }
    }

    /// Whether events of these commits may be lost: a failover was noticed after them.
    pub(super) fn is_stale(&self, commit: Option<CommitPosition>) -> bool {
        self.latest.epoch != EPOCH_UNKNOWN && commit.is_some_and(|commit| commit.epoch < self.latest.epoch)
    }

    /// Returns the segments that became stale, oldest first, each once. The names of their files are to
    /// be changed to those of uncommitted segments.
    pub(super) fn take_stale(&mut self) -> Vec<StaleSegment> {
        let (latest, mut stale) = (self.latest.epoch, Vec::new());
        for (number, retained) in &mut self.segments {
            let is_stale = latest != EPOCH_UNKNOWN && retained.commit.is_some_and(|it| it.epoch < latest);
            if is_stale && !std::mem::replace(&mut retained.replaying, true) {
                let name = retained.name.clone();
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
    ) -> Option<NameChange> {
        // A segment without events needs no commit.
        let commit = Some(commit.unwrap_or(self.latest));
        let is_stale = self.is_stale(commit);
        let retained = self.segments.get_mut(&segment)?;
        (retained.commit, retained.committed_at, retained.replaying) = (commit, now, false);
        let before = retained.name.clone();
        // The next failover may have been noticed meanwhile.
        let after =
            if is_stale { before.clone() } else { file_name(segment, commit.map(|commit| commit.wal)) };
        Some(NameChange { segment, before, after })
    }

    /// The segments to be removed, with the names of their files: the database, or every standby, is
    /// known to have their events, or they exceed the bound on bytes once `incoming` bytes are added.
    pub(super) fn removable(&self, incoming: u64) -> Vec<(u64, String)> {
        let mut bytes = self.bytes() + incoming;
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
                    removed.push((*number, retained.name.clone()));
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

    /// Whether a segment may be added.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.bytes() + bytes <= self.limits.bytes_max
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

/// The position that the database had when an earlier process ended: a failover since shows in the first
/// position of this process.
pub(super) fn last_position(committed: &[CommittedSegment]) -> Option<WalPosition> {
    let newest = committed.iter().rev().find_map(|found| found.wal)?;
    let is_same = |wal: &WalPosition| (wal.system, wal.timeline) == (newest.system, newest.timeline);
    let known = committed.iter().filter_map(|found| found.wal).filter(is_same).map(|wal| wal.lsn);
    // An LSN that was not read is on this timeline.
    let lsn = known.filter(|lsn| *lsn != WalPosition::LSN_UNKNOWN).max().unwrap_or(0);
    Some(WalPosition { lsn, ..newest })
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
