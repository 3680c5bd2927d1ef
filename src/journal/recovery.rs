//! Replays the segments of earlier processes into the buffer, as capacity allows. A segment is kept
//! until all of its rows are finalized, so that a recovery can be killed and repeated.
//!
//! [`Recovery`] is the state of the recovery thread. It must not depend on SQL.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::sync::Parker;

use super::filesystem::Filesystem;
use super::reader::{OpenSegmentError, SegmentDamage, SegmentReader};
use super::refill::{RecordSource, RefillStopped, Refiller};
use super::retained::{self, CommittedSegment};
use super::{Journal, JournalOp, SegmentUpdate, segment};
use crate::buffer::{Buffer, RefillOrigin};
use crate::clock::Clock;
use crate::lifecycle::Lifecycle;
use crate::recordlog::DecodeHeaderError;
use crate::storage::wal::WalPosition;

const PROBE_FILE: &str = "probe";

/// A segment that existed at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExistingSegment {
    pub segment: u64,
    pub bytes: u64,
}

/// The segments that existed at the start, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundSegments {
    /// Those with events that may not be stored.
    pub pending: Vec<ExistingSegment>,
    /// Those whose events are all committed.
    pub committed: Vec<CommittedSegment>,
}

impl FoundSegments {
    /// The position in the WAL that the earlier process has seen last.
    pub fn last_position(&self) -> Option<WalPosition> {
        retained::last_position(&self.committed)
    }
}

/// The journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenJournalError {
    #[error("cannot use the journal in {path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("cannot read {name} of the journal: {error}; nothing was changed")]
    UnsupportedVersion { name: String, error: DecodeHeaderError },
}

/// Lists the segments of earlier processes, in order, and verifies their format versions, before
/// any segment is changed. Fails if the directory is not writable, since the first event would fail
/// otherwise. A full disk is not an error.
pub fn scan_segments(disk: &dyn Filesystem) -> io::Result<Result<FoundSegments, OpenJournalError>> {
    probe_writable(disk)?;
    // A killed process may not have synced the names of its files. The directory is synced now,
    // before the journal thread creates a segment: a failed sync of another thread would make the
    // next sync of that thread succeed without effect.
    match disk.sync_dir() {
        Err(error) if error.kind() != io::ErrorKind::StorageFull => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut found = FoundSegments::default();
    for name in disk.list()? {
        if let Some((segment, wal)) = retained::parse_file_name(&name) {
            let bytes = disk.open(&name)?.bytes()?;
            found.committed.push(CommittedSegment { segment, bytes, wal });
            continue;
        }
        let Some(segment) = segment::parse_file_name(&name) else {
            if name != PROBE_FILE {
                log::warn!("{name} in the journal is not a segment and is ignored");
            }
            continue;
        };
        let file = disk.open(&name)?;
        let bytes = file.bytes()?;
        match SegmentReader::open(file, segment) {
            Err(OpenSegmentError::UnsupportedVersion(error)) => {
                return Ok(Err(OpenJournalError::UnsupportedVersion { name, error }));
            }
            // An I/O error is counted and logged when the segment is replayed.
            Ok(_) | Err(OpenSegmentError::Io(_)) => {
                found.pending.push(ExistingSegment { segment, bytes });
            }
        }
    }
    found.pending.sort_unstable_by_key(|pending| pending.segment);
    found.committed.sort_unstable_by_key(|committed| committed.segment);
    Ok(Ok(found))
}

fn probe_writable(disk: &dyn Filesystem) -> io::Result<()> {
    let removed = disk.remove(PROBE_FILE);
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    match disk.create(PROBE_FILE).map(drop) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
        Err(error) => Err(error),
        Ok(()) => disk.remove(PROBE_FILE),
    }
}

/// Reads back the segments of earlier processes, then, while the server runs, the spilled events of
/// this process.
#[derive(Debug)]
pub struct Recovery {
    refiller: Refiller,
    existing: Vec<ExistingSegment>,
    events: u64,
    damage: SegmentDamage,
}

impl Recovery {
    pub fn new(
        journal: Arc<Journal>,
        disk: Arc<dyn Filesystem>,
        buffer: Arc<Buffer>,
        lifecycle: Lifecycle,
        clock: Clock,
        parker: Parker,
        existing: Vec<ExistingSegment>,
    ) -> Self {
        journal.metrics.segments_pending.store(existing.len() as u64, Ordering::Release);
        buffer.spill().set_backlog(existing.iter().map(|found| found.bytes).sum());
        let refiller = Refiller { journal, disk, buffer, lifecycle, clock, parker };
        Self { refiller, existing, events: 0, damage: SegmentDamage::default() }
    }

    /// Runs until the server stops.
    pub fn run(mut self) {
        while let Some(wait) = self.tick() {
            if !wait.is_zero() {
                self.refiller.sleep(wait);
            }
        }
    }

    /// Replays all segments of earlier processes, or one range of spilled events, and waits for
    /// capacity. Returns how long to sleep before the next call, or `None` once the server stops.
    pub fn tick(&mut self) -> Option<Duration> {
        if self.existing.is_empty() {
            return self.refiller.refill();
        }
        self.replay_existing();
        Some(Duration::ZERO)
    }

    fn replay_existing(&mut self) {
        let started = self.refiller.clock.now();
        let mut bytes: u64 = self.existing.iter().map(|found| found.bytes).sum();
        log::info!(segments = self.existing.len(), bytes = bytes; "recovering the journal");
        for found in std::mem::take(&mut self.existing) {
            let segment = found.segment;
            match self.replay_segment(segment) {
                Ok(Ok(damaged)) => {
                    self.refiller.journal.push_update(SegmentUpdate::FullyRead { segment, damaged });
                }
                Ok(Err(RefillStopped)) => return,
                // The rows read so far are in the buffer; the file is kept for the next start.
                Err(error) => {
                    self.refiller.journal.record_failure(JournalOp::Read, 0);
                    log::error!(segment = segment; "cannot read a segment of the journal; it is kept: {error}");
                }
            }
            self.refiller.journal.metrics.segments_pending.fetch_sub(1, Ordering::Release);
            bytes -= found.bytes;
            self.refiller.buffer.spill().set_backlog(bytes);
        }
        let took = self.refiller.clock.now().since(started);
        log::info!(
            events = self.events, corrupt_ranges = self.damage.corrupt_ranges, torn_bytes = self.damage.torn_bytes,
            took_ms = took.as_millis();
            "recovered: all events of the journal are in the buffer or stored"
        );
    }

    /// Replays one segment. Returns whether it is corrupt, apart from a torn tail.
    fn replay_segment(&mut self, segment: u64) -> io::Result<Result<bool, RefillStopped>> {
        let file = self.refiller.disk.open(&segment::file_name(segment))?;
        // A killed process may have left data in the page cache only. After a failed sync it stays
        // there or is lost with the next power cut, however long the events wait for the database.
        let synced = file.sync();
        if let Err(error) = &synced {
            self.refiller.journal.record_failure(JournalOp::Sync, 0);
            log::error!(
                segment = segment;
                "cannot sync a segment during recovery, its events are written to a new one: {error}"
            );
        }
        let source =
            RecordSource { segment, origin: RefillOrigin::PreviousProcess, rewrite: synced.is_err() };
        let mut reader = match SegmentReader::open(file, segment) {
            Ok(reader) => reader,
            Err(OpenSegmentError::Io(error)) => return Err(error),
            Err(OpenSegmentError::UnsupportedVersion(error)) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        };
        while let Some(record) = reader.next_record()? {
            if let Err(RefillStopped) = self.refiller.enqueue_record(source, record.bytes) {
                return Ok(Err(RefillStopped));
            }
            self.events += u64::from(record.rows);
            self.refiller
                .journal
                .metrics
                .events_recovered
                .fetch_add(u64::from(record.rows), Ordering::Relaxed);
        }
        let damage = reader.damage();
        let metrics = &self.refiller.journal.metrics;
        metrics
            .corrupt_ranges
            .fetch_add(damage.corrupt_ranges + u64::from(damage.header_corrupt), Ordering::Relaxed);
        metrics.torn_bytes.fetch_add(damage.torn_bytes, Ordering::Relaxed);
        self.damage.corrupt_ranges += damage.corrupt_ranges;
        self.damage.torn_bytes += damage.torn_bytes;
        let damaged = damage.corrupt_ranges > 0 || damage.header_corrupt;
        if damaged {
            log::error!(
                segment = segment, corrupt_ranges = damage.corrupt_ranges, header_corrupt = damage.header_corrupt;
                "a segment of the journal is corrupt: its intact records are recovered, and the file is kept as .damaged"
            );
        } else if damage.torn_bytes > 0 {
            log::warn!(
                segment = segment, bytes = damage.torn_bytes;
                "a segment of the journal has a torn tail: a crash interrupted its last write"
            );
        }
        Ok(Ok(damaged))
    }
}
