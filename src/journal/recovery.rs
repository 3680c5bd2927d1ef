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
use super::refill::{Feed, Stopped};
use super::{Journal, Note, Op, segment};
use crate::buffer::{Buffer, Origin};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;

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

/// Reads segments back: those of an earlier process first, and then, for as long as the server runs, what this one spills.
#[derive(Debug)]
pub struct Recovery {
    feed: Feed,
    found: Vec<Found>,
    events: u64,
    damage: Damage,
}

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
        buffer.spill().set_backlog(found.iter().map(|found| found.bytes).sum());
        let feed = Feed { journal, disk, buffer, lifecycle, clock, parker };
        Self { feed, found, events: 0, damage: Damage::default() }
    }

    /// Runs until the server stops.
    pub fn run(mut self) {
        while let Some(wait) = self.tick() {
            if !wait.is_zero() {
                self.feed.sleep(wait);
            }
        }
    }

    /// Brings back all that an earlier process left, or one stretch of what is spilled, waiting for room. Tells when to
    /// look again; None once the server stops.
    pub fn tick(&mut self) -> Option<Duration> {
        if self.found.is_empty() {
            return self.feed.refill();
        }
        self.recover();
        Some(Duration::ZERO)
    }

    fn recover(&mut self) {
        let started = self.feed.clock.now();
        let mut bytes: u64 = self.found.iter().map(|found| found.bytes).sum();
        log::info!(segments = self.found.len(), bytes = bytes; "recovering what the journal holds");
        for found in std::mem::take(&mut self.found) {
            let segment = found.segment;
            match self.read(segment) {
                Ok(Ok(damaged)) => self.feed.journal.note(Note::Read { segment, damaged }),
                Ok(Err(Stopped)) => return,
                // What could be read of it is in the buffer; the file stays for another start.
                Err(error) => {
                    self.feed.journal.failed(Op::Read, 0);
                    log::error!(segment = segment; "a segment of the journal cannot be read and is kept: {error}");
                }
            }
            self.feed.journal.figures.unread.fetch_sub(1, Ordering::Release);
            bytes -= found.bytes;
            self.feed.buffer.spill().set_backlog(bytes);
        }
        let took = self.feed.clock.now().since(started);
        log::info!(
            events = self.events, skipped = self.damage.skipped, torn_bytes = self.damage.torn_bytes,
            took_ms = took.as_millis();
            "recovered: all that the journal held is in the buffer or stored"
        );
    }

    /// Reads one segment. Tells whether it is damaged otherwise than at its end.
    fn read(&mut self, segment: u64) -> io::Result<Result<bool, Stopped>> {
        let file = self.feed.disk.open(&segment::name(segment))?;
        // A killed process may have left it with the kernel only. That it is then on disk is more than was promised.
        if let Err(error) = file.sync() {
            self.feed.journal.failed(Op::Sync, 0);
            log::warn!(segment = segment; "a segment that is recovered could not be synced: {error}");
        }
        let mut reader = match Reader::new(file, segment) {
            Ok(reader) => reader,
            Err(Unreadable::Io(error)) => return Err(error),
            Err(Unreadable::Newer(error)) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        while let Some(record) = reader.next_record()? {
            if let Err(Stopped) = self.feed.put(segment, Origin::EarlierProcess, record.bytes) {
                return Ok(Err(Stopped));
            }
            self.events += u64::from(record.rows);
            self.feed.journal.figures.recovered.fetch_add(u64::from(record.rows), Ordering::Relaxed);
        }
        let damage = reader.damage;
        let figures = &self.feed.journal.figures;
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
}
