//! Brings spilled events back: reads the stretches of segments in which they lie, in order, into the buffer as room
//! allows. What it reads was admitted by this process and is synced; it is read once, and so cannot be stored already.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::sync::Parker;

use super::disk::Disk;
use super::reader::Reader;
use super::{Journal, Note, Op, segment};
use crate::buffer::{Buffer, Full, Origin};
use crate::clock::{Clock, Moment};
use crate::event::row::rows;
use crate::lifecycle::{Lifecycle, Phase};

/// The writer wakes who waits for room; this is for what else may change.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The same while nothing is spilled.
const LOOK_IDLE: Duration = Duration::from_secs(1);
/// Until a file that could not be read is tried again.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// So long without room for anything, and it is the database that is waited for.
const STALLED: Duration = Duration::from_secs(1);

/// How much is in a stretch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) blocks: u64,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Contents {
    pub(super) fn add(&mut self, rows: u32, bytes: usize) {
        self.blocks += 1;
        self.rows += u64::from(rows);
        self.bytes += bytes as u64;
    }

    fn take(&mut self, rows: u32, bytes: usize) {
        self.blocks -= 1;
        self.rows -= u64::from(rows);
        self.bytes -= bytes as u64;
    }
}

/// A synced part of a segment, with overflow in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) segment: u64,
    pub(super) tag: [u8; 8],
    pub(super) span: Range<u64>,
    pub(super) overflow: Contents,
}

/// What is to be read back, oldest first. Stretches that touch are one, so there are no more than segments.
#[derive(Debug, Default)]
pub(super) struct Stretches(Mutex<VecDeque<Stretch>>);

impl Stretches {
    pub(super) fn push(&self, stretch: Stretch) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.back_mut() {
            Some(last) if last.segment == stretch.segment && last.span.end == stretch.span.start => {
                last.span.end = stretch.span.end;
                last.overflow.blocks += stretch.overflow.blocks;
                last.overflow.rows += stretch.overflow.rows;
                last.overflow.bytes += stretch.overflow.bytes;
            }
            _ => all.push_back(stretch),
        }
    }

    fn pop(&self) -> Option<Stretch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The server stops: what was not read stays in the journal.
#[derive(Debug)]
pub(super) struct Stopped;

/// The way from segments into the buffer.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) journal: Arc<Journal>,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) buffer: Arc<Buffer>,
    pub(super) lifecycle: Lifecycle,
    pub(super) clock: Clock,
    pub(super) parker: Parker,
}

impl Feed {
    /// Brings back a stretch of what is spilled, if something is. Tells when to look again; None once the server stops and
    /// nothing is left.
    pub(super) fn refill(&self) -> Option<Duration> {
        let spill = self.buffer.spill();
        if self.is_over(Origin::Spill) {
            return None;
        }
        let Some(mut stretch) = self.journal.stretches.pop() else {
            spill.disengage();
            let left = spill.events() > 0;
            spill.set_hungry(left);
            return Some(if left { LOOK_EVERY } else { LOOK_IDLE });
        };
        spill.set_hungry(false);
        match self.read_back(&mut stretch) {
            Ok(Ok(())) => self.account_for_damage(&stretch),
            Ok(Err(Stopped)) => return None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.account_for_damage(&stretch),
            // It stays counted as spilled, and in its file.
            Err(error) => {
                self.journal.failed(Op::Read, 0);
                log::error!(
                    segment = stretch.segment, events = stretch.overflow.rows;
                    "spilled events cannot be read back and are tried again: {error}"
                );
                self.journal.stretches.push(stretch);
                return Some(READ_AGAIN);
            }
        }
        Some(Duration::ZERO)
    }

    pub(super) fn sleep(&self, wait: Duration) {
        self.clock.park(&self.parker, wait);
    }

    /// Takes off the stretch what has been read of it.
    fn read_back(&self, stretch: &mut Stretch) -> io::Result<Result<(), Stopped>> {
        let file = self.disk.open(&segment::name(stretch.segment))?;
        let mut reader = Reader::within(file, stretch.segment, stretch.tag, stretch.span.clone())?;
        while let Some(record) = reader.next_record()? {
            if record.overflow {
                if let Err(Stopped) = self.put(stretch.segment, Origin::Spill, record.bytes) {
                    return Ok(Err(Stopped));
                }
                stretch.overflow.take(record.rows, record.bytes.len());
            }
            stretch.span.start = reader.at();
        }
        self.journal.figures.skipped.fetch_add(reader.damage.skipped, Ordering::Relaxed);
        Ok(Ok(()))
    }

    /// What is still in the stretch after it was read is lost: the disk has not kept it.
    fn account_for_damage(&self, stretch: &Stretch) {
        let lost = stretch.overflow;
        if lost.blocks == 0 {
            return;
        }
        log::error!(
            segment = stretch.segment, events = lost.rows;
            "a segment of the journal is damaged: {} spilled events are lost, and the file is kept", lost.rows
        );
        self.buffer.lost(lost.rows, lost.bytes);
        self.journal.note(Note::Read { segment: stretch.segment, damaged: true });
        self.journal.note(Note::Settled { segment: Some(stretch.segment), blocks: lost.blocks });
    }

    /// Puts the rows of a record into the buffer, in pieces that it can hold and that fit a batch.
    pub(super) fn put(&self, segment: u64, origin: Origin, bytes: &[u8]) -> Result<(), Stopped> {
        let limits = self.buffer.limits();
        let rows_max = limits.rows_max.min(limits.batch_rows_max);
        let bytes_max = limits.bytes_max.min(limits.batch_bytes_max);
        let (mut start, mut end, mut count) = (0, 0, 0);
        for row in rows(bytes) {
            let length = row.bytes().len();
            if count as usize == rows_max || (count > 0 && end - start + length > bytes_max) {
                self.admit((segment, origin), count, &bytes[start..end])?;
                (start, count) = (end, 0);
            }
            end += length;
            count += 1;
        }
        self.admit((segment, origin), count, &bytes[start..])?;
        if origin == Origin::Spill {
            // It was one block of its segment, which must not go before the last of the pieces is known to be in it.
            self.journal.note(Note::Settled { segment: Some(segment), blocks: 1 });
        }
        Ok(())
    }

    /// Waits for room.
    fn admit(&self, (segment, origin): (u64, Origin), rows: u32, bytes: &[u8]) -> Result<(), Stopped> {
        let mut since: Option<Moment> = None;
        loop {
            if self.is_over(origin) {
                return Err(Stopped);
            }
            let note = || self.journal.note(Note::Replayed { segment, blocks: 1 });
            let now = self.clock.now();
            match self.buffer.admit_read_back(0, rows, bytes, (segment, origin), now, note) {
                Ok(()) => {
                    self.journal.figures.stalled.store(false, Ordering::Release);
                    return Ok(());
                }
                Err(Full::Now | Full::Closed) => {
                    let waited = now.since(*since.get_or_insert(now));
                    self.journal.figures.stalled.store(waited >= STALLED, Ordering::Release);
                    self.sleep(LOOK_EVERY);
                }
                Err(Full::Always) => unreachable!("BUG: a piece fits the buffer"),
            }
        }
    }

    /// Whether nothing more is to be brought back. A backlog stays in the journal when the server stops; what was spilled is
    /// still drained.
    fn is_over(&self, origin: Origin) -> bool {
        let phase = self.lifecycle.phase();
        phase == Phase::Poisoned
            || self.journal.is_finishing()
            || (phase == Phase::Draining
                && (origin == Origin::EarlierProcess || self.buffer.spill().events() == 0))
    }
}
