//! One event among those that are not stored yet: for the receipt of an event that was acknowledged a moment ago.
//!
//! The journal has them all on disk, soon after they came. So nobody on an event's way keeps an index for the few that
//! are ever asked for: whoever asks has the lanes written and reads the segments, on a thread that may block.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;
use memchr::memmem::Finder;

use super::disk::{Disk, File};
use super::{Journal, Level, segment};
use crate::buffer::Buffer;
use crate::event::row::{ROW_BYTES_MAX, Row};
use crate::event::{Event, EventId};

/// Bytes read at once; few in a test, so that rows lie across.
const WINDOW_BYTES: usize = if cfg!(test) { 64 } else { 1024 * 1024 };
/// Longest wait until what is in memory is written.
const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Lookup {
    pub journal: Arc<Journal>,
    pub disk: Arc<dyn Disk>,
    pub buffer: Arc<Buffer>,
}

/// The journal does not work, so that nobody can say what is in memory alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal does not work")]
pub struct Unknown;

impl Lookup {
    /// The event of this id, if it is in the journal: not stored yet, or stored a moment ago. One that was acknowledged
    /// before this call and is not found is stored by its end.
    pub fn find(&self, id: EventId) -> Result<Option<Event>, Unknown> {
        if self.buffer.occupied().rows == 0 && self.buffer.spill().events() == 0 {
            return Ok(None);
        }
        self.have_written()?;
        find(&*self.disk, id).map_err(|error| {
            log::warn!("looking for an event in the journal: {error}");
            Unknown
        })
    }

    /// Waits until all that the lanes hold now is in a segment, or stored.
    fn have_written(&self) -> Result<(), Unknown> {
        let lanes = self.journal.lanes.len();
        let (sender, told) = bounded(lanes);
        for lane in 0..lanes {
            let sender = sender.clone();
            let told = Box::new(move |holds| {
                if sender.try_send(holds).is_err() {
                    log::debug!("nobody waits any more for the journal to be written");
                }
            });
            self.journal.when(lane, Level::Written, told);
        }
        self.journal.wake();
        for _ in 0..lanes {
            if told.recv_timeout(WRITTEN_WITHIN) != Ok(true) {
                return Err(Unknown);
            }
        }
        Ok(())
    }
}

fn find(disk: &dyn Disk, id: EventId) -> io::Result<Option<Event>> {
    let head = Row::head(id);
    let finder = Finder::new(&head);
    let mut window = Vec::new();
    for name in disk.names()?.iter().filter(|name| segment::number(name).is_some()) {
        // A segment that goes meanwhile held nothing but what is stored.
        match disk.open(name).and_then(|file| find_in(&*file, &finder, &mut window)) {
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
    }
    Ok(None)
}

fn find_in(file: &dyn File, finder: &Finder<'_>, window: &mut Vec<u8>) -> io::Result<Option<Event>> {
    let (end, mut at) = (file.bytes()?, 0);
    while at < end {
        read(file, at, end, WINDOW_BYTES, window)?;
        if let Some(found) = finder.find(window) {
            let row_at = at + found as u64;
            read(file, row_at, end, ROW_BYTES_MAX, window)?;
            // Texts hold no NUL, so that nothing but a row looks like the beginning of one.
            return Ok(Row::split(window).ok().map(|(row, _)| row.event()));
        }
        // A row may begin in one window and go on in the next.
        let passed = window.len().saturating_sub(finder.needle().len() - 1).max(1);
        at += passed as u64;
    }
    Ok(None)
}

fn read(file: &dyn File, at: u64, end: u64, most: usize, into: &mut Vec<u8>) -> io::Result<()> {
    into.resize(usize::try_from(end - at).unwrap_or(usize::MAX).min(most), 0);
    file.read(at, into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Timestamp;
    use crate::event::row;
    use crate::journal::disk::Directory;

    #[test]
    fn an_event_is_found_wherever_it_lies() {
        let path = std::env::temp_dir().join(format!("aurore-lookup-{}", std::process::id()));
        let disk = Directory::open(path.clone()).unwrap();
        let file = disk.create(&segment::name(3)).unwrap();
        disk.create("0000000004.seg.damaged").unwrap();
        let ids: Vec<_> = (1..60_u64).map(|millis| EventId::keyed(millis, [7; 10])).collect();
        let mut bytes = vec![0; 24];
        for (nth, id) in ids.iter().enumerate() {
            row::begin(&mut bytes, *id, Timestamp::from_millis(5), Timestamp::from_millis(6));
            row::text(&mut bytes, format!("service {nth}").as_bytes());
            row::text(&mut bytes, &vec![b'm'; nth * 13 + 1]);
            row::metadata(&mut bytes, None);
        }
        file.write(0, &bytes).unwrap();
        for (nth, id) in ids.iter().enumerate() {
            let event = find(&disk, *id).unwrap().expect("it is there");
            assert_eq!((event.event_id, event.service), (*id, format!("service {nth}")));
        }
        assert_eq!(find(&disk, EventId::keyed(9, [8; 10])).unwrap(), None);
        std::fs::remove_dir_all(path).unwrap();
    }
}
