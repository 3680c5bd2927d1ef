//! Brings back what an earlier process left in the journal: segment by segment, record by record, through the buffer
//! to the writer, as room allows. The segments stay where they are until all of their rows are settled, so that a
//! recovery may be killed and run again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Parker;

use super::disk::Disk;
use super::reader::{Damage, Reader, Unreadable};
use super::record::NotAHeader;
use super::{Journal, Note, Op, segment};
use crate::buffer::{Buffer, Full};
use crate::clock::Clock;
use crate::lifecycle::{Lifecycle, Phase};
use crate::row::rows;

/// The writer wakes who waits for room; this is for what else may change.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const PROBE: &str = "probe";

/// A segment that was there at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub segment: u64,
    pub bytes: u64,
}

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StartFailed {
    #[error("cannot use the journal in {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("cannot read {name} of the journal: {error}; nothing was changed")]
    Newer { name: String, error: NotAHeader },
}

/// Looks at what an earlier process left, before anything is done about it. That the directory can be written is
/// tried, since it is better known now than at the first event; that the disk is full is no reason not to start.
pub fn adopt(disk: &dyn Disk) -> io::Result<Result<Vec<Found>, StartFailed>> {
    try_to_write(disk)?;
    // A killed process may not have come to syncing the names of its files. Now, while no segment is made: whoever
    // synced the directory beside the checkpoint thread and failed would make its next sync a lie.
    match disk.sync() {
        Err(error) if error.kind() != io::ErrorKind::StorageFull => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut found = Vec::new();
    for name in disk.names()? {
        let Some(segment) = segment::number(&name) else {
            if name != PROBE {
                log::warn!("{name} in the journal is no segment and is left alone");
            }
            continue;
        };
        let file = disk.open(&name)?;
        let bytes = file.bytes()?;
        match Reader::new(file, segment) {
            Err(Unreadable::Newer(error)) => return Ok(Err(StartFailed::Newer { name, error })),
            // Said again, and counted, when it is read.
            Ok(_) | Err(Unreadable::Io(_)) => found.push(Found { segment, bytes }),
        }
    }
    found.sort_unstable_by_key(|found| found.segment);
    Ok(Ok(found))
}

fn try_to_write(disk: &dyn Disk) -> io::Result<()> {
    let removed = disk.remove(PROBE);
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    match disk.create(PROBE).map(drop) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        Err(error) => Err(error),
        Ok(()) => disk.remove(PROBE),
    }
}

/// Reads segments back.
#[derive(Debug)]
pub struct Recovery {
    journal: Arc<Journal>,
    disk: Arc<dyn Disk>,
    buffer: Arc<Buffer>,
    lifecycle: Lifecycle,
    clock: Clock,
    parker: Parker,
    found: Vec<Found>,
    events: u64,
    damage: Damage,
}

/// The server stops: what was not read stays in the journal.
#[derive(Debug)]
struct Stopped;

impl Recovery {
    pub fn new(
        journal: Arc<Journal>,
        disk: Arc<dyn Disk>,
        buffer: Arc<Buffer>,
        lifecycle: Lifecycle,
        clock: Clock,
        parker: Parker,
        found: Vec<Found>,
    ) -> Self {
        journal.figures.unread.store(found.len() as u64, Ordering::Release);
        let damage = Damage::default();
        Self { journal, disk, buffer, lifecycle, clock, parker, found, events: 0, damage }
    }

    /// Reads all of it, or until the server stops.
    pub fn run(mut self) {
        if self.found.is_empty() {
            return;
        }
        let started = self.clock.now();
        let bytes: u64 = self.found.iter().map(|found| found.bytes).sum();
        log::info!(segments = self.found.len(), bytes = bytes; "recovering what the journal holds");
        for Found { segment, .. } in std::mem::take(&mut self.found) {
            match self.read(segment) {
                Ok(Ok(damaged)) => self.journal.note(Note::Read { segment, damaged }),
                Ok(Err(Stopped)) => return,
                // What could be read of it is in the buffer; the file stays for another start.
                Err(error) => {
                    self.journal.failed(Op::Read, 0);
                    log::error!(segment = segment; "a segment of the journal cannot be read and is kept: {error}");
                }
            }
            self.journal.figures.unread.fetch_sub(1, Ordering::Release);
        }
        let took = self.clock.now().since(started);
        log::info!(
            events = self.events, skipped = self.damage.skipped, torn_bytes = self.damage.torn_bytes,
            took_ms = took.as_millis();
            "recovered: all that the journal held is in the buffer or stored"
        );
    }

    /// Reads one segment. Tells whether it is damaged otherwise than at its end.
    fn read(&mut self, segment: u64) -> io::Result<Result<bool, Stopped>> {
        let file = self.disk.open(&segment::name(segment))?;
        // A killed process may have left it with the kernel only. That it is then on disk is more than was promised.
        if let Err(error) = file.sync() {
            self.journal.failed(Op::Sync, 0);
            log::warn!(segment = segment; "a segment that is recovered could not be synced: {error}");
        }
        let mut reader = match Reader::new(file, segment) {
            Ok(reader) => reader,
            Err(Unreadable::Io(error)) => return Err(error),
            Err(Unreadable::Newer(error)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        while let Some(record) = reader.next_record()? {
            if self.replay(segment, record.bytes).is_err() {
                return Ok(Err(Stopped));
            }
        }
        let damage = reader.damage;
        let figures = &self.journal.figures;
        figures.skipped.fetch_add(damage.skipped + u64::from(damage.header), Ordering::Relaxed);
        figures.torn_bytes.fetch_add(damage.torn_bytes, Ordering::Relaxed);
        self.damage.skipped += damage.skipped;
        self.damage.torn_bytes += damage.torn_bytes;
        let damaged = damage.skipped > 0 || damage.header;
        if damaged {
            log::error!(
                segment = segment, skipped = damage.skipped, header = damage.header;
                "a segment of the journal is damaged: what was hit is lost, the rest is recovered, and the file is kept"
            );
        } else if damage.torn_bytes > 0 {
            log::warn!(
                segment = segment, bytes = damage.torn_bytes;
                "the end of a segment was cut off: it was being written when the process or the power went"
            );
        }
        Ok(Ok(damaged))
    }

    /// Puts the rows of a record into the buffer, in pieces that it can hold and that fit a batch.
    fn replay(&mut self, segment: u64, bytes: &[u8]) -> Result<(), Stopped> {
        let limits = self.buffer.limits();
        let rows_max = limits.rows_max.min(limits.batch_rows_max);
        let bytes_max = limits.bytes_max.min(limits.batch_bytes_max);
        let (mut start, mut end, mut count) = (0, 0, 0);
        for row in rows(bytes) {
            let length = row.bytes().len();
            if count as usize == rows_max || (count > 0 && end - start + length > bytes_max) {
                self.admit(segment, count, &bytes[start..end])?;
                (start, count) = (end, 0);
            }
            end += length;
            count += 1;
        }
        self.admit(segment, count, &bytes[start..])
    }

    /// Waits for room.
    fn admit(&mut self, segment: u64, rows: u32, bytes: &[u8]) -> Result<(), Stopped> {
        loop {
            if self.lifecycle.phase() >= Phase::Draining {
                return Err(Stopped);
            }
            let note = || self.journal.note(Note::Replayed { segment, blocks: 1 });
            match self.buffer.admit_replayed(0, rows, bytes, segment, self.clock.now(), note) {
                Ok(()) => {
                    self.events += u64::from(rows);
                    self.journal.figures.recovered.fetch_add(u64::from(rows), Ordering::Relaxed);
                    return Ok(());
                }
                Err(Full::Now) => self.clock.park(&self.parker, LOOK_EVERY),
                Err(Full::Closed) => return Err(Stopped),
                Err(Full::Always) => unreachable!("BUG: a piece fits the buffer"),
            }
        }
    }
}
