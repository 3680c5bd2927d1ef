//! The segments whose files exist, with the number of blocks that still need each of them. Removes
//! the files that no block needs. Must not depend on what is written to a segment or when.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::filesystem::Filesystem;
use super::record::HEADER_BYTES;
use super::{ExistingSegment, Journal, JournalOp, segment};
use crate::clock::Moment;
use crate::logging::RateLimitedLog;

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
}

/// Invariant: a segment has an entry as long as its file exists.
#[derive(Debug)]
pub(super) struct SegmentTable {
    segments: BTreeMap<u64, SegmentState>,
    next_number: u64,
    /// Whether a segment may have become removable since the last removal.
    gc_pending: bool,
    gc_retry_at: Moment,
    error_log: RateLimitedLog,
}

impl SegmentTable {
    pub(super) fn new(existing: &[ExistingSegment]) -> Self {
        let mut table = Self {
            segments: BTreeMap::new(),
            next_number: existing.iter().map(|found| found.segment + 1).max().unwrap_or(1),
            gc_pending: false,
            gc_retry_at: Moment::ZERO,
            error_log: RateLimitedLog::new(ERROR_LOG_INTERVAL),
        };
        for found in existing {
            table.insert(found.segment, found.bytes, true);
        }
        table
    }

    fn insert(&mut self, segment: u64, bytes: u64, pending_recovery: bool) {
        let state = SegmentState { outstanding: 0, bytes, pending_recovery, damaged: false };
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

    /// A segment may have become removable.
    pub(super) fn request_gc(&mut self) {
        self.gc_pending = true;
    }

    /// Whether no block needs the segment.
    pub(super) fn is_idle(&self, segment: u64) -> bool {
        self.segments.get(&segment).is_none_or(|state| state.outstanding == 0)
    }

    /// Removes the files of the segments that no block needs, except that of `active`. A failure is
    /// retried after [`RETRY_DELAY`].
    pub(super) fn remove_finished(
        &mut self,
        (journal, disk): (&Journal, &dyn Filesystem),
        active: Option<u64>,
        now: Moment,
    ) {
        if !self.gc_pending || now < self.gc_retry_at {
            return;
        }
        self.gc_pending = false;
        let is_finished = |(number, state): &(&u64, &SegmentState)| {
            state.outstanding == 0 && !state.pending_recovery && Some(**number) != active
        };
        let states = self.segments.iter().filter(is_finished);
        let finished: Vec<_> = states.map(|(number, state)| (*number, state.damaged)).collect();
        for (number, damaged) in finished {
            let name = segment::file_name(number);
            let removed = if damaged { keep_damaged(disk, &name) } else { disk.remove(&name) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    journal.record_failure(JournalOp::Remove, 0);
                    if let Some(suppressed) = self.error_log.due(now) {
                        log::error!(suppressed = suppressed; "cannot remove the finished segment {name}: {error}");
                    }
                    self.gc_pending = true;
                    self.gc_retry_at = now.plus(RETRY_DELAY);
                }
                Ok(()) | Err(_) => {
                    self.segments.remove(&number);
                }
            }
        }
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
            let mut table = SegmentTable::new(&[]);
            let number = table.add();
            disk.create(&segment::file_name(number)).unwrap();
            table.mark_read(number, true);
            table.remove_finished((&journal, &disk), None, Moment::ZERO);
            assert_eq!(table.totals(), (0, 0));
        }
        let mut names = disk.list().unwrap();
        names.sort();
        assert_eq!(names, ["0000000001.seg.damaged", "0000000001.seg.damaged-2", "0000000001.seg.damaged-3"]);
    }
}
