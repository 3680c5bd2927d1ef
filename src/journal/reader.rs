//! Reads the rows of a segment record by record, in bounded memory, and converts rows of earlier
//! format versions. A record whose checksum matches but whose rows do not decode counts as corrupt.
//!
//! It must not depend on what is done with the rows.

use std::borrow::Cow;
use std::io;
use std::ops::Range;

use super::filesystem::File;
use super::record::FORMAT;
use crate::event::row::{self, Row};
use crate::recordlog::{ReadAt, Scan};

pub use crate::recordlog::{Damage as SegmentDamage, OpenError as OpenSegmentError};

impl ReadAt for Box<dyn File> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(at, into)
    }
}

/// A reader of one segment, or of a range of it.
#[derive(Debug)]
pub struct SegmentReader {
    scan: Scan<Box<dyn File>>,
    /// The rows of the last record, if an earlier version wrote them.
    converted: Option<Vec<u8>>,
}

/// One record, with rows that were verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRecord<'a> {
    pub rows: u32,
    /// Whether the block was spilled, so that the writer gets the rows from the journal.
    pub spilled: bool,
    pub bytes: &'a [u8],
}

impl SegmentReader {
    pub fn open(file: Box<dyn File>, segment: u64) -> Result<Self, OpenSegmentError> {
        let end = file.bytes()?;
        Ok(Self::new(Scan::open(file, end, &FORMAT, (0, segment))?))
    }

    /// Opens a range of a segment, from the beginning of a record to the end of a record.
    pub fn open_range(file: Box<dyn File>, segment: u64, tag: [u8; 8], span: Range<u64>) -> io::Result<Self> {
        let end = file.bytes()?.min(span.end);
        Ok(Self::new(Scan::open_range(file, segment, tag, span.start..end)))
    }

    fn new(scan: Scan<Box<dyn File>>) -> Self {
        Self { scan, converted: None }
    }

    /// Returns the next valid record, or `None` at the end.
    pub fn next_record(&mut self) -> io::Result<Option<JournalRecord<'_>>> {
        while let Some(header) = self.scan.next_record()? {
            let (rows, spilled) = (header.count(), header.flag());
            // Rows that cannot be converted are invalid as they are.
            self.converted = match row::convert_rows(self.scan.payload()) {
                Ok(Cow::Owned(converted)) => Some(converted),
                Ok(Cow::Borrowed(_)) | Err(_) => None,
            };
            if are_valid_rows(self.rows(), rows) {
                return Ok(Some(JournalRecord { rows, spilled, bytes: self.rows() }));
            }
            self.scan.reject();
        }
        Ok(None)
    }

    /// The rows of the last record.
    fn rows(&self) -> &[u8] {
        self.converted.as_deref().unwrap_or(self.scan.payload())
    }

    /// The offset up to which all records were returned and all corruption was counted.
    pub fn position(&self) -> u64 {
        self.scan.position()
    }

    /// The damage found so far.
    pub fn damage(&self) -> SegmentDamage {
        self.scan.damage()
    }

    /// Preallocated bytes: zeros at the end of the file. Set once the end is reached.
    pub fn preallocated(&self) -> u64 {
        self.scan.trailing_zeros()
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
