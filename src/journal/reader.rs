//! Reads the rows of a segment record by record, in bounded memory. A record whose checksum matches
//! but whose rows do not decode counts as corrupt.
//!
//! It must not depend on what is done with the rows.

use std::io;
use std::ops::Range;

use super::filesystem::File;
use super::record::FORMAT;
use crate::event::row::Row;
use crate::recordlog::{ReadAt, Scan};

pub use crate::recordlog::{Damage as SegmentDamage, OpenError as OpenSegmentError};

impl ReadAt for Box<dyn File> {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(at, into)
    }
}

/// A reader of one segment, or of a range of it.
#[derive(Debug)]
pub struct SegmentReader(Scan<Box<dyn File>>);

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
        Ok(Self(Scan::open(file, end, &FORMAT, (0, segment))?))
    }

    /// Opens a range of a segment, from the beginning of a record to the end of a record.
    pub fn open_range(file: Box<dyn File>, segment: u64, tag: [u8; 8], span: Range<u64>) -> io::Result<Self> {
        let end = file.bytes()?.min(span.end);
        Ok(Self(Scan::open_range(file, segment, tag, span.start..end)))
    }

    /// Returns the next valid record, or `None` at the end.
    pub fn next_record(&mut self) -> io::Result<Option<JournalRecord<'_>>> {
        while let Some(header) = self.0.next_record()? {
            let (rows, spilled) = (header.count(), header.flag());
            if are_valid_rows(self.0.payload(), rows) {
                return Ok(Some(JournalRecord { rows, spilled, bytes: self.0.payload() }));
            }
            self.0.reject();
        }
        Ok(None)
    }

    /// The offset up to which all records were returned and all corruption was counted.
    pub fn position(&self) -> u64 {
        self.0.position()
    }

    /// The damage found so far.
    pub fn damage(&self) -> SegmentDamage {
        self.0.damage()
    }

    /// Preallocated bytes: zeros at the end of the file. Set once the end is reached.
    pub fn preallocated(&self) -> u64 {
        self.0.trailing_zeros()
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
