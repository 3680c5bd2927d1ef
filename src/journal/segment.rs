//! The segment that is being written. It only grows; whoever meets an error abandons it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::disk::{Disk, File};
use super::record::{HEADER_BYTES, Header, RECORD_HEADER_BYTES, RecordHeader};
use super::sync::Job;
use crate::buffer::RowBlock;

/// A segment that holds less is not worth reserving for: few syncs go by before it is ended or forgotten.
const RESERVE_FROM: u64 = 64 * 1024;
/// The most that is reserved at a time, so that no sync takes long for it.
const RESERVE_BYTES_MAX: u64 = 1024 * 1024;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// The name of a segment's file.
pub fn name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// The number of the segment that a file of this name holds, if it is one.
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let number = digits.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

/// Records for one write. The blocks' bytes are copied here and no longer than until they are written.
#[derive(Debug, Default)]
pub struct Group {
    bytes: Vec<u8>,
    pub rows: u64,
}

impl Group {
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// What one block takes.
    pub fn bytes_of(block: &RowBlock) -> usize {
        RECORD_HEADER_BYTES + block.bytes().len()
    }

    pub fn push(&mut self, segment: &Segment, block: &RowBlock) {
        let header =
            RecordHeader::of(segment.number, segment.tag, block.rows(), block.is_overflow(), block.bytes());
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(block.bytes());
        self.rows += u64::from(block.rows());
    }

    /// Makes it empty, and gives back what a large block took beyond `bytes_kept`.
    pub fn clear(&mut self, bytes_kept: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(bytes_kept);
        self.rows = 0;
    }
}

/// Invariant: the file holds the header and whole records, `bytes` of them, and zeros from there on, unless a write
/// has failed.
#[derive(Debug)]
pub struct Segment {
    pub number: u64,
    pub tag: [u8; 8],
    file: Arc<dyn File>,
    /// Whether the file's name survives the power.
    named: bool,
    pub bytes: u64,
    /// How much of it is on disk, or is being synced.
    begun: u64,
    synced: u64,
    /// How long the file is, with what is reserved.
    length: u64,
}

impl Segment {
    /// Makes the file. It has its final name from the start: a file without a whole header is one whose first sync
    /// never came, so there is nothing in it that was promised.
    pub fn create(disk: &dyn Disk, header: Header) -> io::Result<Self> {
        let file = disk.create(&name(header.segment))?;
        file.write(0, &header.encode())?;
        let bytes = HEADER_BYTES as u64;
        Ok(Self {
            number: header.segment,
            tag: header.tag,
            file: file.into(),
            named: false,
            bytes,
            begun: 0,
            synced: 0,
            length: bytes,
        })
    }

    pub fn append(&mut self, group: &Group) -> io::Result<()> {
        self.file.write(self.bytes, &group.bytes)?;
        self.bytes += group.bytes.len() as u64;
        self.length = self.length.max(self.bytes);
        Ok(())
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Whether its name is on disk.
    pub fn is_named(&self) -> bool {
        self.named
    }

    /// Whether there is something in it that no sync has begun with.
    pub fn is_dirty(&self) -> bool {
        self.bytes > self.begun
    }

    /// Whether all of it is on disk.
    pub fn is_synced(&self) -> bool {
        self.bytes == self.synced
    }

    /// Makes the file longer than it need be, with zeros, since a sync of bytes that lie within a file takes half the
    /// time of one that has to make it longer. As much again as there is, so that a segment that stays small stays
    /// so. That it fails is no harm: the next write does without.
    pub fn reserve(&mut self, bytes_max: u64) {
        if self.bytes < RESERVE_FROM || self.length - self.bytes >= RESERVE_FROM / 2 {
            return;
        }
        let to = (self.bytes + self.bytes.min(RESERVE_BYTES_MAX)).min(bytes_max);
        while self.length < to {
            let some = usize::try_from(to - self.length).unwrap_or(usize::MAX).min(ZEROS.len());
            if self.file.write(self.length, &ZEROS[..some]).is_err() {
                return;
            }
            self.length += some as u64;
        }
    }

    /// Begins a sync of everything that is there, and tells what of it no sync has begun with before. The next must
    /// not begin before this one has ended.
    pub fn begin_sync(&mut self) -> (Range<u64>, Job) {
        let from = std::mem::replace(&mut self.begun, self.bytes).max(HEADER_BYTES as u64);
        (from..self.bytes, Job::new(self.number, Arc::clone(&self.file), !self.named))
    }

    /// The sync that was begun has succeeded.
    pub fn synced(&mut self) {
        self.named = true;
        self.synced = self.begun;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_segments_have_are_segments() {
        assert_eq!(name(7), "0000000007.seg");
        for number in [0, 7, 9_999_999_999, 10_000_000_000] {
            assert_eq!(self::number(&name(number)), Some(number));
        }
        for other in ["7.seg", "0000000007.tmp", "0000000007.seg.damaged", "+000000007.seg", ".seg", "x"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
