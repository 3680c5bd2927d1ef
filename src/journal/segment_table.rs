//! The segments whose files exist, with the number of blocks that still need each of them. Removes
//! the files that no block needs, or retains them for a failover. Must not depend on what is written
//! to a segment or when.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::filesystem::Filesystem;
use super::record::HEADER_BYTES;
use super::retained::{FailoverEvent, NameChange, RetainLimits, RetainedSegments, StaleSegment};
use super::{FoundSegments, Journal, JournalOp, segment};
use crate::clock::Moment;
use crate::logging::RateLimitedLog;
use crate::storage::{CommitPosition, DatabaseState};

/// Delay before a failed removal is retried.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct SegmentState {
    /// Blocks in the segment, or read from it, that are not finalized. Negative for a moment if a
    /// block read from a segment is written to another one before the update that counts it is
    /// applied; `pending_recovery` is set until then.
    outstanding: i64,
    bytes: u64,
    /// Whether recovery may not have read all of the segment.
    pending_recovery: bool,
    /// The file is renamed to `.damaged` instead of removed.
    damaged: bool,
    /// Where its finalized blocks were committed, if that is known.
    commit: Option<CommitPosition>,
}

/// Invariant: a segment has an entry as long as its file exists.
#[derive(Debug)]
pub(super) struct SegmentTable {
    segments: BTreeMap<u64, SegmentState>,
    retained: RetainedSegments,
    /// Where blocks were committed that are in no segment yet.
    unassigned: Option<CommitPosition>,
    /// The first number of this process.
    first_number: u64,
    next_number: u64,
    /// Whether a segment may have become removable since the last removal.
    gc_pending: bool,
    gc_retry_at: Moment,
    error_log: RateLimitedLog,
}

impl SegmentTable {
    pub(super) fn new(found: &FoundSegments, limits: RetainLimits, now: Moment) -> Self {
        let FoundSegments { pending, committed } = found;
        let numbers =
            pending.iter().map(|found| found.segment).chain(committed.iter().map(|found| found.segment));
        let first_number = numbers.max().map_or(1, |last| last + 1);
        let mut table = Self {
            segments: BTreeMap::new(),
            retained: RetainedSegments::new(limits, committed, now),
            unassigned: None,
            first_number,
            next_number: first_number,
            // Those of an earlier process may exceed the limits of this one.
            gc_pending: true,
            gc_retry_at: Moment::ZERO,
            error_log: RateLimitedLog::new(ERROR_LOG_INTERVAL),
        };
        for found in pending {
            table.insert(found.segment, found.bytes, true);
        }
        table
    }

    fn insert(&mut self, segment: u64, bytes: u64, pending_recovery: bool) {
        let state = SegmentState { outstanding: 0, bytes, pending_recovery, damaged: false, commit: None };
        self.segments.insert(segment, state);
    }

    /// Adds the next segment and returns its number. A number is never reused: the file of a failed
    /// creation may exist.
    pub(super) fn add(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.insert(number, HEADER_BYTES as u64, false);
        number
    }

    /// The number of the newest segment; 0 before the first one.
    pub(super) fn last_added(&self) -> u64 {
        self.next_number - 1
    }

    pub(super) fn is_of_earlier_process(&self, segment: u64) -> bool {
        segment < self.first_number
    }

    fn state(&mut self, segment: u64) -> &mut SegmentState {
        self.segments.get_mut(&segment).expect("BUG: a segment in use has no entry")
    }

    pub(super) fn set_bytes(&mut self, segment: u64, bytes: u64) {
        self.state(segment).bytes = bytes;
    }

    pub(super) fn update_outstanding(&mut self, segment: u64, change: i64) {
        let state = self.state(segment);
        state.outstanding += change;
        self.gc_pending |= state.outstanding == 0;
    }

    /// Recovery has read all of the segment.
    pub(super) fn mark_read(&mut self, segment: u64, damaged: bool) {
        let state = self.state(segment);
        state.pending_recovery = false;
        state.damaged = damaged;
        self.gc_pending = true;
    }

    /// Whether segments are retained after their last commit.
    pub(super) fn retains(&self) -> bool {
        self.retained.is_enabled()
    }

    /// Records where blocks of the segment were committed, or blocks of no segment yet.
    pub(super) fn record_commit(&mut self, segment: Option<u64>, commit: Option<CommitPosition>) {
        if !self.retains() || commit.is_none() {
            return;
        }
        if let Some(segment) = segment {
            let state = self.state(segment);
            state.commit = CommitPosition::merge_known(state.commit, commit);
            return;
        }
        // They may have been written after they were finalized, or will be.
        self.unassigned = CommitPosition::merge_known(self.unassigned, commit);
        for state in self.segments.values_mut().filter(|state| !state.pending_recovery) {
            state.commit = CommitPosition::merge_known(state.commit, commit);
        }
    }

    /// Blocks that were finalized before are written to the segment.
    pub(super) fn adopt_finalized(&mut self, segment: u64) {
        self.record_commit(Some(segment), self.unassigned);
    }

    /// Every finalized block is written.
    pub(super) fn clear_unassigned(&mut self) {
        self.unassigned = None;
    }

    /// Records that the database was seen in this state. Returns a failover that this shows.
    pub(super) fn observe(
        &mut self,
        files: (&Journal, &dyn Filesystem),
        state: DatabaseState,
        now: Moment,
    ) -> Option<FailoverEvent> {
        if !self.retains() {
            return None;
        }
        self.gc_pending |= self.retained.count() > 0;
        let (from, to) = self.retained.observe(state, now)?;
        let lost = self.take_stale(files, now);
        let open = self.segments.values().filter(|state| self.retained.is_stale(state.commit)).count();
        Some(FailoverEvent::Noticed { from, to, stale: lost, open })
    }

    /// Whether the segment has events from before the last failover.
    pub(super) fn is_stale(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_some_and(|state| self.retained.is_stale(state.commit))
    }

    /// Records that the database has all events of a retained segment since `commit`.
    pub(super) fn restored(
        &mut self,
        files: (&Journal, &dyn Filesystem),
        segment: u64,
        commit: Option<CommitPosition>,
        now: Moment,
    ) {
        if let Some(change) = self.retained.restored(segment, commit, now) {
            // If it fails, the segment is recovered after a restart.
            self.change_name(files, &change, now);
        }
    }

    /// Returns the segments that became stale. Their files get the names of uncommitted segments, so that
    /// they are recovered if the process ends before they are replayed.
    fn take_stale(&mut self, files: (&Journal, &dyn Filesystem), now: Moment) -> Vec<StaleSegment> {
        let mut stale = self.retained.take_stale();
        for segment in &mut stale {
            let (number, before) = (segment.segment, segment.name.clone());
            let change = NameChange { segment: number, before, after: segment::file_name(number) };
            if self.change_name(files, &change, now) {
                segment.name = change.after;
            }
        }
        stale
    }

    /// Renames the file of a retained segment. Returns whether it has the new name.
    fn change_name(
        &mut self,
        (journal, disk): (&Journal, &dyn Filesystem),
        NameChange { segment, before, after }: &NameChange,
        now: Moment,
    ) -> bool {
        let renamed = if before == after { Ok(()) } else { disk.rename(before, after) };
        if let Err(error) = &renamed {
            self.report_failure(
                journal,
                now,
                &format!("cannot rename the retained segment {before}: {error}"),
            );
        }
        self.retained.set_name(*segment, if renamed.is_ok() { after } else { before });
        renamed.is_ok()
    }

    /// A segment may have become removable.
    pub(super) fn request_gc(&mut self) {
        self.gc_pending = true;
    }

    /// Whether no block needs the segment.
    pub(super) fn is_idle(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_none_or(|state| state.outstanding == 0)
    }

    /// Removes or retains the files of the segments that no block needs, unless they are needed
    /// otherwise, and removes retained files whose time is over. A failure is retried after
    /// [`RETRY_DELAY`].
    pub(super) fn remove_finished(
        &mut self,
        (journal, disk): (&Journal, &dyn Filesystem),
        is_needed: impl Fn(u64) -> bool,
        now: Moment,
    ) {
        if !self.gc_pending || now < self.gc_retry_at {
            return;
        }
        self.gc_pending = false;
        let is_finished = |(number, state): &(&u64, &SegmentState)| {
            state.outstanding == 0 && !state.pending_recovery && !is_needed(**number)
        };
        let states = self.segments.iter().filter(is_finished);
        let finished: Vec<_> = states.map(|(number, state)| (*number, state.damaged)).collect();
        for (number, damaged) in finished {
            let finished = if damaged {
                keep_damaged(disk, &segment::file_name(number))
            } else if self.retains() && self.make_room((journal, disk), number, now) {
                self.retain(disk, number, now)
            } else {
                disk.remove(&segment::file_name(number))
            };
            if self.is_done(finished, (journal, number), now) {
                self.segments.remove(&number);
            }
        }
        for event in self.take_stale((journal, disk), now).into_iter().map(FailoverEvent::Stale) {
            journal.report_failover(event);
        }
        self.remove_retained((journal, disk), 0, now);
    }

    /// Removes retained segments whose time is over, or that exceed the bound once `incoming` bytes are
    /// added.
    fn remove_retained(&mut self, (journal, disk): (&Journal, &dyn Filesystem), incoming: u64, now: Moment) {
        for (number, name) in self.retained.removable(incoming) {
            if self.is_done(disk.remove(&name), (journal, number), now) {
                self.retained.remove(number);
            }
        }
    }

    /// Removes the oldest retained segments, so that the bound holds once this one is retained. Returns
    /// whether it can be.
    fn make_room(&mut self, files: (&Journal, &dyn Filesystem), number: u64, now: Moment) -> bool {
        let bytes = self.state(number).bytes;
        self.remove_retained(files, bytes, now);
        self.retained.has_room(bytes)
    }

    /// Renames the file of a finished segment, which stays for a failover.
    fn retain(&mut self, disk: &dyn Filesystem, number: u64, now: Moment) -> io::Result<()> {
        let SegmentState { bytes, commit, .. } = *self.state(number);
        let NameChange { before, after, .. } = self.retained.insert(number, bytes, commit, now);
        let renamed = if before == after { Ok(()) } else { disk.rename(&before, &after) };
        if renamed.is_err() {
            self.retained.remove(number);
        }
        renamed
    }

    /// Whether the file is no longer under its name. Otherwise the operation is retried.
    fn is_done(&mut self, done: io::Result<()>, (journal, number): (&Journal, u64), now: Moment) -> bool {
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let text = format!("cannot remove or rename the finished segment {number}: {error}");
                self.report_failure(journal, now, &text);
                self.gc_pending = true;
                self.gc_retry_at = now.plus(RETRY_DELAY);
                false
            }
            Ok(()) | Err(_) => true,
        }
    }

    fn report_failure(&mut self, journal: &Journal, now: Moment, text: &str) {
        journal.record_failure(JournalOp::Remove, 0);
        if let Some(suppressed) = self.error_log.due(now) {
            log::error!(suppressed = suppressed; "{text}");
        }
    }

    /// The number of retained segments and their bytes.
    pub(super) fn retained_totals(&self) -> (u64, u64) {
        (self.retained.count() as u64, self.retained.bytes())
    }

    /// The number of segments and their bytes.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.segments.len() as u64, self.segments.values().map(|state| state.bytes).sum())
    }
}

/// Renames the file of a corrupt segment. Numbers begin again when no segment is left, so that an
/// earlier segment of this number may have been kept: its file must not be replaced.
fn keep_damaged(disk: &dyn Filesystem, name: &str) -> io::Result<()> {
    let taken = disk.list()?;
    let mut kept = format!("{name}.damaged");
    let mut nth = 2;
    while taken.contains(&kept) {
        kept = format!("{name}.damaged-{nth}");
        nth += 1;
    }
    disk.rename(name, &kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::filesystem::OsDirectory;

    #[test]
    fn damaged_segment_does_not_replace_an_earlier_one_of_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let disk = OsDirectory::open(directory.path().to_owned()).unwrap();
        let journal = Journal::new(1).0;
        for _ in 0..3 {
            let mut table = SegmentTable::new(&FoundSegments::default(), RetainLimits::NONE, Moment::ZERO);
            let number = table.add();
            disk.create(&segment::file_name(number)).unwrap();
            table.mark_read(number, true);
            table.remove_finished((&journal, &disk), |_| false, Moment::ZERO);
            assert_eq!(table.totals(), (0, 0));
        }
        let mut names = disk.list().unwrap();
        names.sort();
        assert_eq!(names, ["0000000001.seg.damaged", "0000000001.seg.damaged-2", "0000000001.seg.damaged-3"]);
    }
}
