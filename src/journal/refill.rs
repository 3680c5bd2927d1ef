//! Refill: reads spilled events from synced ranges of segments into the buffer, in order, as
//! capacity allows. The events were admitted by this process and are read once, so that they cannot
//! be stored already.
//!
//! It must not depend on SQL.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::sync::Parker;

use super::filesystem::Filesystem;
use super::reader::SegmentReader;
use super::{Journal, JournalOp, SegmentUpdate, segment};
use crate::buffer::{AdmitError, Buffer, RefillOrigin, RowBlock};
use crate::clock::{Clock, Moment};
use crate::event::row::rows;
use crate::lifecycle::{Lifecycle, LifecyclePhase};

/// Sleep while the buffer is full or spilled events are not synced yet. The writer wakes the thread
/// when it finalizes blocks; the bound is for other changes, such as a stop.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Sleep while nothing is spilled.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Delay before a failed read is retried.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Time without capacity after which the refill counts as stalled by the database.
const STALL_THRESHOLD: Duration = Duration::from_secs(1);

/// Totals of the spilled blocks in a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RangeTotals {
    pub(super) blocks: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl RangeTotals {
    pub(super) fn add(&mut self, rows: u32, bytes: usize) {
        self.blocks += 1;
        self.rows += u64::from(rows);
        self.bytes += bytes as u64;
    }

    fn subtract(&mut self, rows: u32, bytes: usize) {
        self.blocks -= 1;
        self.rows -= u64::from(rows);
        self.bytes -= bytes as u64;
    }
}

/// A synced range of a segment that contains spilled blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentRange {
    pub(super) segment: u64,
    pub(super) tag: [u8; 8],
    pub(super) span: Range<u64>,
    pub(super) spilled: RangeTotals,
}

/// The ranges to be read back, oldest first; a range whose read failed is moved to the end.
/// Adjacent ranges are merged, so that there is about one for each segment.
#[derive(Debug, Default)]
pub(super) struct RefillQueue(Mutex<VecDeque<SegmentRange>>);

impl RefillQueue {
    pub(super) fn push(&self, range: SegmentRange) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.back_mut() {
            Some(last) if last.segment == range.segment && last.span.end == range.span.start => {
                last.span.end = range.span.end;
                last.spilled.blocks += range.spilled.blocks;
                last.spilled.rows += range.spilled.rows;
                last.spilled.bytes += range.spilled.bytes;
            }
            _ => all.push_back(range),
        }
    }

    fn pop(&self) -> Option<SegmentRange> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The origin of the rows of a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordSource {
    pub(super) segment: u64,
    pub(super) origin: RefillOrigin,
    /// The segment could not be synced: its rows are written again, to another segment.
    pub(super) rewrite: bool,
}

/// The server stops; events that were not read remain in the journal.
#[derive(Debug)]
pub(super) struct RefillStopped;

/// Moves rows from segments to the buffer.
#[derive(Debug)]
pub(super) struct Refiller {
    pub(super) journal: Arc<Journal>,
    pub(super) disk: Arc<dyn Filesystem>,
    pub(super) buffer: Arc<Buffer>,
    pub(super) lifecycle: Lifecycle,
    pub(super) clock: Clock,
    pub(super) parker: Parker,
}

impl Refiller {
    /// Reads back one range of spilled events, if there is one. Returns how long to sleep before
    /// the next call, or `None` once the server stops and nothing is spilled.
    pub(super) fn refill(&self) -> Option<Duration> {
        let spill = self.buffer.spill();
        if self.must_stop(RefillOrigin::Spill) {
            return None;
        }
        let Some(mut range) = self.journal.refill_queue.pop() else {
            spill.disengage();
            let left = spill.events() > 0;
            spill.set_refill_starved(left);
            return Some(if left { POLL_INTERVAL } else { IDLE_POLL_INTERVAL });
        };
        spill.set_refill_starved(false);
        match self.read_range(&mut range) {
            Ok(Ok(())) => self.record_loss(&range),
            Ok(Err(RefillStopped)) => return None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.record_loss(&range),
            // The events remain in the file and counted as spilled.
            Err(error) => {
                self.journal.record_failure(JournalOp::Read, 0);
                log::error!(
                    segment = range.segment, events = range.spilled.rows;
                    "cannot read back spilled events; the read is retried: {error}"
                );
                self.journal.refill_queue.push(range);
                return Some(READ_RETRY_DELAY);
            }
        }
        Some(Duration::ZERO)
    }

    pub(super) fn sleep(&self, wait: Duration) {
        self.clock.park(&self.parker, wait);
    }

    /// Reads a range into the buffer. Removes from the range each record that was read.
    fn read_range(&self, range: &mut SegmentRange) -> io::Result<Result<(), RefillStopped>> {
        let file = self.disk.open(&segment::file_name(range.segment))?;
        let mut reader = SegmentReader::open_range(file, range.segment, range.tag, range.span.clone())?;
        let source = RecordSource { segment: range.segment, origin: RefillOrigin::Spill, rewrite: false };
        while let Some(record) = reader.next_record()? {
            if record.spilled {
                if let Err(RefillStopped) = self.enqueue_record(source, record.bytes) {
                    return Ok(Err(RefillStopped));
                }
                range.spilled.subtract(record.rows, record.bytes.len());
            }
            range.span.start = reader.position();
        }
        self.journal.metrics.corrupt_ranges.fetch_add(reader.damage().corrupt_ranges, Ordering::Relaxed);
        Ok(Ok(()))
    }

    /// Counts the spilled blocks that a completed read did not find as lost: their records are
    /// corrupt.
    fn record_loss(&self, range: &SegmentRange) {
        let lost = range.spilled;
        if lost.blocks == 0 {
            return;
        }
        log::error!(
            segment = range.segment, events = lost.rows;
            "a segment of the journal is corrupt: {} spilled events are lost, and the file is kept as .damaged", lost.rows
        );
        self.buffer.record_spill_lost(lost.rows, lost.bytes);
        self.journal.push_update(SegmentUpdate::FullyRead { segment: range.segment, damaged: true });
        self.journal.push_update(SegmentUpdate::Finalized {
            segment: Some(range.segment),
            blocks: lost.blocks,
            commit: None,
        });
    }

    /// Admits the rows of a record to the buffer, in blocks that fit the buffer and a batch.
    pub(super) fn enqueue_record(&self, source: RecordSource, bytes: &[u8]) -> Result<(), RefillStopped> {
        let limits = self.buffer.limits();
        let rows_max = limits.rows_max.min(limits.batch_rows_max);
        let bytes_max = limits.bytes_max.min(limits.batch_bytes_max);
        let (mut start, mut end, mut count) = (0, 0, 0);
        for row in rows(bytes) {
            let length = row.bytes().len();
            if count as usize == rows_max || (count > 0 && end - start + length > bytes_max) {
                self.admit_when_room(source, count, &bytes[start..end])?;
                (start, count) = (end, 0);
            }
            end += length;
            count += 1;
        }
        self.admit_when_room(source, count, &bytes[start..])?;
        if source.origin == RefillOrigin::Spill {
            // The spilled block counted as one outstanding block of its segment. It is finalized
            // only after the last of its parts was counted, so that the segment is not removed
            // before.
            self.journal.push_update(SegmentUpdate::Finalized {
                segment: Some(source.segment),
                blocks: 1,
                commit: None,
            });
        }
        Ok(())
    }

    /// Admits one block, and waits until the buffer has capacity.
    fn admit_when_room(
        &self,
        RecordSource { segment, origin, rewrite }: RecordSource,
        rows: u32,
        bytes: &[u8],
    ) -> Result<(), RefillStopped> {
        let mut since: Option<Moment> = None;
        loop {
            if self.must_stop(origin) {
                return Err(RefillStopped);
            }
            let record_block = |block: &RowBlock| {
                self.journal.push_update(SegmentUpdate::Replayed { segment, blocks: 1 });
                if rewrite {
                    self.journal.append(0, block);
                }
            };
            let now = self.clock.now();
            match self.buffer.admit_refill(0, rows, bytes, (segment, origin), now, record_block) {
                Ok(()) => {
                    self.journal.metrics.refill_stalled.store(false, Ordering::Release);
                    return Ok(());
                }
                Err(AdmitError::Full | AdmitError::Closed) => {
                    let waited = now.since(*since.get_or_insert(now));
                    self.journal.metrics.refill_stalled.store(waited >= STALL_THRESHOLD, Ordering::Release);
                    self.sleep(POLL_INTERVAL);
                }
                Err(AdmitError::TooLarge) => unreachable!("BUG: a part fits the buffer"),
            }
        }
    }

    /// Whether no more rows of `origin` are to be read. When the server drains, the backlog of
    /// earlier processes remains in the journal, and spilled events are still read.
    fn must_stop(&self, origin: RefillOrigin) -> bool {
        let phase = self.lifecycle.phase();
        phase == LifecyclePhase::Poisoned
            || self.journal.is_finishing()
            || (phase == LifecyclePhase::Draining
                && (origin == RefillOrigin::PreviousProcess || self.buffer.spill().events() == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between two ranges that are not adjacent may be one whose read failed.
    #[test]
    fn queue_merges_only_adjacent_ranges_of_a_segment() {
        let of = |segment, span| {
            let spilled = RangeTotals { blocks: 1, rows: 2, bytes: 3 };
            SegmentRange { segment, tag: [0; 8], span, spilled }
        };
        let queue = RefillQueue::default();
        for range in [of(1, 40..50), of(1, 50..60), of(1, 70..80), of(2, 80..90)] {
            queue.push(range);
        }
        let popped: Vec<_> = std::iter::from_fn(|| queue.pop())
            .map(|range| (range.segment, range.span, range.spilled.rows))
            .collect();
        assert_eq!(popped, [(1, 40..60, 4), (1, 70..80, 2), (2, 80..90, 2)]);
    }
}
