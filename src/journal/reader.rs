//! Reads a segment record by record, in bounded memory. Corruption loses only the records it hits:
//! the reader resumes at the next occurrence of the segment's tag that begins a record with a
//! matching checksum.
//!
//! It must not depend on what is done with the rows.

use std::io;
use std::ops::Range;

use super::filesystem::File;
use super::record::{
    DecodeSegmentHeaderError, HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, SegmentHeader,
};
use crate::event::row::Row;

/// Bytes of one read, and the bound on the memory for a record whose checksum has not been
/// verified.
const WINDOW_BYTES: usize = 256 * 1024;

/// Bytes of a segment that are not valid records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentDamage {
    /// Ranges of bytes before the last valid record that are not valid records, and records with a
    /// matching checksum whose rows do not decode.
    pub corrupt_ranges: u64,
    /// Bytes after the last valid record, without trailing zeros: a write that a crash interrupted.
    pub torn_bytes: u64,
    pub header_corrupt: bool,
}

/// A reader of one segment, or of a range of it.
///
/// Invariant: every byte before `at` belongs to a returned record or is counted in `damage`.
#[derive(Debug)]
pub struct SegmentReader {
    file: Box<dyn File>,
    segment: u64,
    tag: Option<[u8; 8]>,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    rows: Vec<u8>,
    pub damage: SegmentDamage,
    /// Zeros at the end of the file. Set once the end is reached.
    pub preallocated: u64,
}

/// One record, with rows that were verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRecord<'a> {
    pub rows: u32,
    /// Whether the block was spilled, so that the writer gets the rows from the journal.
    pub spilled: bool,
    pub bytes: &'a [u8],
}

/// A segment could not be opened for reading.
#[derive(Debug, thiserror::Error)]
pub enum OpenSegmentError {
    #[error("{0}")]
    UnsupportedVersion(DecodeSegmentHeaderError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl SegmentReader {
    pub fn open(file: Box<dyn File>, segment: u64) -> Result<Self, OpenSegmentError> {
        let end = file.bytes()?;
        let mut reader = Self::with_span(file, segment, HEADER_BYTES as u64..end);
        // A header that is all zeros or cut off was never synced: it is not corruption.
        let header = reader.bytes_at(0, HEADER_BYTES)?.filter(|bytes| bytes.iter().any(|byte| *byte != 0));
        let header =
            header.map(|bytes| SegmentHeader::decode(bytes.try_into().expect("as many were asked for")));
        match header {
            Some(Ok(header)) if header.segment == segment => reader.tag = Some(header.tag),
            Some(Err(newer @ DecodeSegmentHeaderError::UnsupportedVersion(_))) => {
                return Err(OpenSegmentError::UnsupportedVersion(newer));
            }
            // The first record contains the tag too.
            Some(Ok(_) | Err(DecodeSegmentHeaderError::Corrupt)) => {
                reader.damage.header_corrupt = true;
                reader.tag = reader.tag_from_first_record()?;
            }
            None => {}
        }
        if reader.tag.is_none() {
            reader.measure_tail(0)?;
        }
        Ok(reader)
    }

    /// Opens a range of a segment, from the beginning of a record to the end of a record.
    pub fn open_range(file: Box<dyn File>, segment: u64, tag: [u8; 8], span: Range<u64>) -> io::Result<Self> {
        let end = file.bytes()?.min(span.end);
        Ok(Self { tag: Some(tag), ..Self::with_span(file, segment, span.start..end) })
    }

    fn with_span(file: Box<dyn File>, segment: u64, span: Range<u64>) -> Self {
        Self {
            file,
            segment,
            tag: None,
            at: span.start,
            end: span.end,
            window: Vec::new(),
            window_at: 0,
            rows: Vec::new(),
            damage: SegmentDamage::default(),
            preallocated: 0,
        }
    }

    /// Returns the next valid record, or `None` at the end.
    pub fn next_record(&mut self) -> io::Result<Option<JournalRecord<'_>>> {
        Ok(self.advance()?.map(|header| JournalRecord {
            rows: header.rows(),
            spilled: header.is_spilled(),
            bytes: &self.rows,
        }))
    }

    /// The offset up to which all records were returned and all corruption was counted.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// Moves to the next valid record and reads its rows.
    fn advance(&mut self) -> io::Result<Option<RecordHeader>> {
        // The offset up to which all bytes are accounted for.
        let mut begin = self.at;
        let mut at = begin;
        while at < self.end {
            let Some(header) = self.record_at(at)? else {
                let Some(found) = self.find_tag(at + 1)? else { break };
                at = found;
                continue;
            };
            if at > begin {
                self.damage.corrupt_ranges += 1;
            }
            let rows_at = at + RECORD_HEADER_BYTES as u64;
            self.at = rows_at + u64::from(header.payload_bytes);
            self.read_rows(rows_at, header.payload_bytes as usize)?;
            if are_valid_rows(&self.rows, header.rows()) {
                return Ok(Some(header));
            }
            // The checksum matches but the rows do not decode: they were corrupt when they were
            // written.
            self.damage.corrupt_ranges += 1;
            begin = self.at;
            at = begin;
        }
        self.measure_tail(begin)?;
        Ok(None)
    }

    /// Counts the bytes from `begin` to the end, where no valid record begins: a torn tail up to
    /// the last non-zero byte, then preallocated zeros.
    fn measure_tail(&mut self, begin: u64) -> io::Result<()> {
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
        self.preallocated = self.end - torn_to.min(self.end);
        self.at = self.end;
        Ok(())
    }

    /// Returns the header of the record at `at` if its tag and checksum match.
    fn record_at(&mut self, at: u64) -> io::Result<Option<RecordHeader>> {
        let (segment, tag) = (self.segment, self.tag);
        let Some(bytes) = self.bytes_at(at, RECORD_HEADER_BYTES)? else { return Ok(None) };
        let header = RecordHeader::decode(bytes.try_into().expect("as many were asked for"));
        let rows_at = at + RECORD_HEADER_BYTES as u64;
        if Some(header.tag) != tag
            || header.rows() == 0
            || rows_at + u64::from(header.payload_bytes) > self.end
        {
            return Ok(None);
        }
        // In windows: a corrupt length must not allocate memory before the checksum is verified.
        let mut crc = header.crc_of_fields(segment);
        let mut from = rows_at;
        let mut left = header.payload_bytes as usize;
        while left > 0 {
            let some = left.min(WINDOW_BYTES);
            let Some(bytes) = self.bytes_at(from, some)? else { return Ok(None) };
            crc = crc32c::crc32c_append(crc, bytes);
            from += some as u64;
            left -= some;
        }
        Ok((crc == header.crc).then_some(header))
    }

    fn read_rows(&mut self, at: u64, length: usize) -> io::Result<()> {
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

    /// Returns the offset of the next occurrence of the tag at or after `from`.
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
            // The windows overlap, since a tag may cross their boundary.
            from += (left - tag.len() + 1) as u64;
        }
    }

    fn tag_from_first_record(&mut self) -> io::Result<Option<[u8; 8]>> {
        let Some(bytes) = self.bytes_at(HEADER_BYTES as u64, 8)? else { return Ok(None) };
        self.tag = Some(bytes.try_into().expect("as many were asked for"));
        Ok(self.record_at(HEADER_BYTES as u64)?.map(|header| header.tag))
    }

    /// Returns `length` bytes at `at`, or `None` if the file ends before.
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

/// Whether `bytes` are exactly `count` rows that PostgreSQL accepts.
fn are_valid_rows(mut bytes: &[u8], count: u32) -> bool {
    for _ in 0..count {
        match Row::split(bytes) {
            Ok((row, rest)) if row.validate_text().is_ok() => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}
