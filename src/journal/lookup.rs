//! Finds one event that is not stored yet, for its receipt.
//!
//! A lookup makes the journal thread write the lanes, then searches the segments. It replaces an
//! index of buffered events, which every event would pay for and few receipts would use. It blocks,
//! and must not run on an acceptor.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;
use memchr::memmem::Finder;

use super::filesystem::{File, Filesystem};
use super::reader::{OpenSegmentError, SegmentReader};
use super::{Durability, Journal, segment};
use crate::buffer::Buffer;
use crate::event::row::{self, FIRST_FIELD_AT, ROW_BYTES_MAX, Row};
use crate::event::{Event, EventId};

/// Bytes of one read. Few in a test, so that rows cross the boundaries of windows.
const WINDOW_BYTES: usize = if cfg!(test) { 64 } else { 1024 * 1024 };
/// Maximum wait for the lanes to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Lookup {
    pub journal: Arc<Journal>,
    pub disk: Arc<dyn Filesystem>,
    pub buffer: Arc<Buffer>,
}

/// The journal could not be written or read, so that events that are only in memory cannot be
/// searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal is unavailable")]
pub struct FindEventError;

impl Lookup {
    /// Returns the event with this id if the journal still has it: it is not stored yet, or was
    /// stored recently. An event that was acknowledged before the call and is not found is stored
    /// when the call returns.
    pub fn find(&self, id: EventId) -> Result<Option<Event>, FindEventError> {
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.flush_lanes()?;
        find_in_segments(&*self.disk, id).map_err(|error| {
            log::warn!("cannot search the journal for an event: {error}");
            FindEventError
        })
    }

    /// Calls `each` with the rows that the journal still has: of events that are not stored yet, or were
    /// stored recently. An event that was acknowledged before the call and is not among them is stored
    /// when the call returns.
    pub fn for_each_pending(
        &self,
        each: &mut dyn FnMut(&Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), FindEventError> {
        if self.buffer.occupied().rows == 0 && self.buffer.spill().events() == 0 {
            return Ok(());
        }
        self.flush_lanes()?;
        rows_in_segments(&*self.disk, each).map_err(|error| {
            log::warn!("cannot read the events of the journal: {error}");
            FindEventError
        })
    }

    /// Waits until every block that is now in a lane is written to a segment or stored.
    fn flush_lanes(&self) -> Result<(), FindEventError> {
        let lanes = self.journal.lanes.len();
        let (sender, receiver) = bounded(lanes);
        for lane in 0..lanes {
            let sender = sender.clone();
            let callback = Box::new(move |reached| {
                if sender.try_send(reached).is_err() {
                    log::debug!("a lookup ended before the journal was written");
                }
                None
            });
            self.journal.on_durable(lane, Durability::Written, callback);
        }
        self.journal.wake();
        for _ in 0..lanes {
            if receiver.recv_timeout(FLUSH_TIMEOUT) != Ok(true) {
                return Err(FindEventError);
            }
        }
        Ok(())
    }
}

fn find_in_segments(disk: &dyn Filesystem, id: EventId) -> io::Result<Option<Event>> {
    let field = Row::first_field_of(id);
    let finder = Finder::new(&field);
    let mut window = Vec::new();
    for name in disk.list()?.iter().filter(|name| segment::parse_file_name(name).is_some()) {
        // All events of a segment that is removed during the search are stored.
        match disk.open(name).and_then(|file| find_in_file(&*file, &finder, &mut window)) {
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Ok(None)
}

fn rows_in_segments(
    disk: &dyn Filesystem,
    each: &mut dyn FnMut(&Row<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let names = disk.list()?;
    let mut segments: Vec<_> =
        names.iter().filter_map(|name| Some((segment::parse_file_name(name)?, name))).collect();
    segments.sort_unstable();
    for (number, name) in segments {
        // All events of a segment that is removed or renamed during the search are stored.
        let file = match disk.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        let mut reader = match SegmentReader::open(file, number) {
            Ok(reader) => reader,
            Err(OpenSegmentError::Io(error)) => return Err(error),
            Err(OpenSegmentError::UnsupportedVersion(error)) => {
                log::warn!("the segment {name} cannot be read: {error}");
                continue;
            }
        };
        while let Some(record) = reader.next_record()? {
            if row::rows(record.bytes).try_for_each(|row| each(&row)).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn find_in_file(file: &dyn File, finder: &Finder<'_>, window: &mut Vec<u8>) -> io::Result<Option<Event>> {
    let (end, mut at, mut bytes) = (file.bytes()?, 0, Vec::new());
    while at < end {
        read_window(file, at, end, WINDOW_BYTES, window)?;
        // Texts contain no NUL, so that the needle matches only at the beginning of a row, or at a
        // text that equals the id.
        for found in finder.find_iter(window) {
            let row_at = (at + found as u64).saturating_sub(FIRST_FIELD_AT as u64);
            read_window(file, row_at, end, ROW_BYTES_MAX, &mut bytes)?;
            if let Ok((row, _)) = row::split_converted(&bytes, 0)
                && let Ok((row, _)) = Row::split(&row)
                && finder.needle().ends_with(row.event_id().bytes())
            {
                return Ok(Some(row.to_event()));
            }
        }
        // The windows overlap, since the beginning of a row may cross their boundary.
        let passed = window.len().saturating_sub(finder.needle().len() - 1).max(1);
        at += passed as u64;
    }
    Ok(None)
}

fn read_window(file: &dyn File, at: u64, end: u64, most: usize, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize(usize::try_from(end - at).unwrap_or(usize::MAX).min(most), 0);
    file.read(at, into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ArrivalNumber, Timestamp};
    use crate::journal::filesystem::OsDirectory;

    #[test]
    fn lookup_finds_an_event_at_any_offset() {
        let path = std::env::temp_dir().join(format!("aurore-lookup-{}", std::process::id()));
        let disk = OsDirectory::open(path.clone()).unwrap();
        let file = disk.create(&segment::file_name(3)).unwrap();
        disk.create("0000000004.seg.damaged").unwrap();
        let ids: Vec<_> = (1..60_u64).map(|millis| EventId::keyed(millis, [7; 10])).collect();
        let mut bytes = vec![0; 24];
        for (nth, id) in ids.iter().enumerate() {
            let begin = bytes.len();
            row::append_header(
                &mut bytes,
                *id,
                Timestamp::from_millis(5),
                Timestamp::from_millis(6),
                ArrivalNumber::default(),
            );
            row::append_text(&mut bytes, format!("service {nth}").as_bytes());
            row::append_text(&mut bytes, &vec![b'm'; nth * 13 + 1]);
            row::append_metadata(&mut bytes, None);
            if nth % 3 == 0 {
                let row = bytes.split_off(begin);
                bytes.extend(row::without_arrival(&row));
            }
        }
        // A text that equals the first field of another row.
        let other: EventId = "01234567-3031-7233-8000-000000000000".parse().unwrap();
        row::append_header(
            &mut bytes,
            EventId::floor(0),
            Timestamp::default(),
            Timestamp::default(),
            ArrivalNumber::default(),
        );
        row::append_text(&mut bytes, other.bytes());
        row::append_text(&mut bytes, b"m");
        row::append_metadata(&mut bytes, None);
        file.write(0, &bytes).unwrap();
        for (nth, id) in ids.iter().enumerate() {
            let event = find_in_segments(&disk, *id).unwrap().expect("the event is in the segment");
            assert_eq!((event.event_id, event.service), (*id, format!("service {nth}")));
        }
        assert_eq!(find_in_segments(&disk, other).unwrap(), None);
        assert_eq!(find_in_segments(&disk, EventId::keyed(9, [8; 10])).unwrap(), None);
        std::fs::remove_dir_all(path).unwrap();
    }
}
