//! Reads a segment back, record by record, in bounded memory. Damage costs the records it hits and no other: after
//! it, reading goes on where the segment's tag is next found before a record whose checksum holds.

use std::io;
use std::ops::Range;

use super::disk::File;
use super::record::{HEADER_BYTES, Header, NotAHeader, RECORD_HEADER_BYTES, RecordHeader};
use crate::event::row::Row;

/// Bytes read at once, and the most that is held of a record that has not proved to be one.
const WINDOW_BYTES: usize = 256 * 1024;

/// What was found besides good records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Stretches of bytes within the segment that are no record, or one whose rows are none.
    pub skipped: u64,
    /// Bytes after the last good record: what was being written when the process or the power went.
    pub torn_bytes: u64,
    pub header: bool,
}

/// Invariant: everything before `at` has been given out or counted as damage.
#[derive(Debug)]
pub struct Reader {
    file: Box<dyn File>,
    segment: u64,
    tag: Option<[u8; 8]>,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    rows: Vec<u8>,
    pub damage: Damage,
    /// Zeros at the end, known once that was reached.
    pub reserved: u64,
}

/// One record: rows that have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub rows: u32,
    /// Whether the writer was to get them from here.
    pub overflow: bool,
    pub bytes: &'a [u8],
}

/// Why a segment cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    #[error("{0}")]
    Newer(NotAHeader),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Reader {
    pub fn new(file: Box<dyn File>, segment: u64) -> Result<Self, Unreadable> {
        let end = file.bytes()?;
        let mut reader = Self::of(file, segment, HEADER_BYTES as u64..end);
        // Where nothing but zeros came to the disk, nothing was ever synced; nor where it is cut off.
        let header = reader.bytes_at(0, HEADER_BYTES)?.filter(|bytes| bytes.iter().any(|byte| *byte != 0));
        let header = header.map(|bytes| Header::decode(bytes.try_into().expect("as many were asked for")));
        match header {
            Some(Ok(header)) if header.segment == segment => reader.tag = Some(header.tag),
            Some(Err(newer @ NotAHeader::Newer(_))) => return Err(Unreadable::Newer(newer)),
            // The first record, if it is whole, says the tag too.
            Some(Ok(_) | Err(NotAHeader::Damaged)) => {
                reader.damage.header = true;
                reader.tag = reader.tag_of_first_record()?;
            }
            None => {}
        }
        if reader.tag.is_none() {
            reader.torn_from(0)?;
        }
        Ok(reader)
    }

    /// Reads a stretch of a segment, from the beginning of a record to the end of one.
    pub fn within(file: Box<dyn File>, segment: u64, tag: [u8; 8], span: Range<u64>) -> io::Result<Self> {
        let end = file.bytes()?.min(span.end);
        Ok(Self { tag: Some(tag), ..Self::of(file, segment, span.start..end) })
    }

    fn of(file: Box<dyn File>, segment: u64, span: Range<u64>) -> Self {
        Self {
            file,
            segment,
            tag: None,
            at: span.start,
            end: span.end,
            window: Vec::new(),
            window_at: 0,
            rows: Vec::new(),
            damage: Damage::default(),
            reserved: 0,
        }
    }

    /// The next good record. None at the end.
    pub fn next_record(&mut self) -> io::Result<Option<Record<'_>>> {
        Ok(self.advance()?.map(|header| Record {
            rows: header.rows(),
            overflow: header.is_overflow(),
            bytes: &self.rows,
        }))
    }

    /// Everything before has been given out, or counted as damage.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Goes to the next good record.
    fn advance(&mut self) -> io::Result<Option<RecordHeader>> {
        // Where what is neither a record nor yet counted as damage begins.
        let mut begin = self.at;
        let mut at = begin;
        while at < self.end {
            let Some(header) = self.record_at(at)? else {
                let Some(found) = self.find_tag(at + 1)? else { break };
                at = found;
                continue;
            };
            if at > begin {
                self.damage.skipped += 1;
            }
            let rows_at = at + RECORD_HEADER_BYTES as u64;
            self.at = rows_at + u64::from(header.bytes);
            self.take_rows(rows_at, header.bytes as usize)?;
            if are_rows(&self.rows, header.rows()) {
                return Ok(Some(header));
            }
            // The checksum holds and the rows are none: they were wrong when they were written.
            self.damage.skipped += 1;
            begin = self.at;
            at = begin;
        }
        self.torn_from(begin)?;
        Ok(None)
    }

    /// What begins here is no record, and none follows. Zeros at the end are what was reserved and not used.
    fn torn_from(&mut self, begin: u64) -> io::Result<()> {
        let (mut from, mut torn_to) = (begin, begin);
        while from < self.end {
            let some = usize::try_from(self.end - from).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            let bytes = self.bytes_at(from, some)?.unwrap_or_default();
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                torn_to = from + last as u64 + 1;
            }
            from += some as u64;
        }
        self.damage.torn_bytes += torn_to - begin;
        self.reserved = self.end - torn_to.min(self.end);
        self.at = self.end;
        Ok(())
    }

    /// The record at `at`, if there is one and its checksum holds.
    fn record_at(&mut self, at: u64) -> io::Result<Option<RecordHeader>> {
        let (segment, tag) = (self.segment, self.tag);
        let Some(bytes) = self.bytes_at(at, RECORD_HEADER_BYTES)? else { return Ok(None) };
        let header = RecordHeader::decode(bytes.try_into().expect("as many were asked for"));
        let rows_at = at + RECORD_HEADER_BYTES as u64;
        if Some(header.tag) != tag || header.rows() == 0 || rows_at + u64::from(header.bytes) > self.end {
            return Ok(None);
        }
        // Not taken into memory as a whole before the checksum has proved that it is a record.
        let mut crc = header.crc_of_counts(segment);
        let mut from = rows_at;
        let mut left = header.bytes as usize;
        while left > 0 {
            let some = left.min(WINDOW_BYTES);
            let Some(bytes) = self.bytes_at(from, some)? else { return Ok(None) };
            crc = crc32c::crc32c_append(crc, bytes);
            from += some as u64;
            left -= some;
        }
        Ok((crc == header.crc).then_some(header))
    }

    fn take_rows(&mut self, at: u64, length: usize) -> io::Result<()> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        rows.shrink_to(WINDOW_BYTES);
        rows.resize(length, 0);
        let in_window =
            at >= self.window_at && at + length as u64 <= self.window_at + self.window.len() as u64;
        if in_window {
            let start = usize::try_from(at - self.window_at).expect("a window is small");
            rows.copy_from_slice(&self.window[start..start + length]);
        } else {
            self.file.read(at, &mut rows)?;
        }
        self.rows = rows;
        Ok(())
    }

    /// Where the tag next stands, from `from` on.
    fn find_tag(&mut self, mut from: u64) -> io::Result<Option<u64>> {
        let Some(tag) = self.tag else { return Ok(None) };
        loop {
            let left = usize::try_from(self.end.saturating_sub(from)).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            let Some(bytes) = self.bytes_at(from, left)? else { return Ok(None) };
            if bytes.len() < tag.len() {
                return Ok(None);
            }
            if let Some(found) = bytes.windows(tag.len()).position(|window| window == tag) {
                return Ok(Some(from + found as u64));
            }
            // A tag that begins in this window may end in the next.
            from += (left - tag.len() + 1) as u64;
        }
    }

    fn tag_of_first_record(&mut self) -> io::Result<Option<[u8; 8]>> {
        let Some(bytes) = self.bytes_at(HEADER_BYTES as u64, 8)? else { return Ok(None) };
        self.tag = Some(bytes.try_into().expect("as many were asked for"));
        Ok(self.record_at(HEADER_BYTES as u64)?.map(|header| header.tag))
    }

    /// `length` bytes from `at`, or None where the file ends before.
    fn bytes_at(&mut self, at: u64, length: usize) -> io::Result<Option<&[u8]>> {
        debug_assert!(length <= WINDOW_BYTES, "BUG: a window is bounded");
        if at + length as u64 > self.end {
            return Ok(None);
        }
        let held_to = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + length as u64 > held_to {
            let left = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            self.window.resize(left, 0);
            self.file.read(at, &mut self.window)?;
            self.window_at = at;
        }
        let start = usize::try_from(at - self.window_at).expect("a window is small");
        Ok(Some(&self.window[start..start + length]))
    }
}

/// Whether these are `count` whole rows that PostgreSQL would take.
fn are_rows(mut bytes: &[u8], count: u32) -> bool {
    for _ in 0..count {
        match Row::split(bytes) {
            Ok((row, rest)) if row.check().is_ok() => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}
