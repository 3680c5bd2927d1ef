//! The segment that is being written. It only grows; whoever meets an error abandons it.

use std::io;

use super::disk::{Disk, File};
use super::record::{HEADER_BYTES, Header, RECORD_HEADER_BYTES, RecordHeader};
use crate::buffer::RowBlock;

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
        let header = RecordHeader::of(segment.number, segment.tag, block.rows(), block.bytes());
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

/// Invariant: the file holds the header and whole records, `bytes` of them, unless an append has failed.
#[derive(Debug)]
pub struct Segment {
    pub number: u64,
    tag: [u8; 8],
    file: Box<dyn File>,
    /// Whether the file's name would be lost with the power.
    named: bool,
    pub bytes: u64,
    pub bytes_synced: u64,
}

impl Segment {
    /// Makes the file. It has its final name from the start: a file without a whole header is one whose first sync
    /// never came, so there is nothing in it that was promised.
    pub fn create(disk: &dyn Disk, header: Header) -> io::Result<Self> {
        let mut file = disk.create(&name(header.segment))?;
        file.append(&header.encode())?;
        Ok(Self {
            number: header.segment,
            tag: header.tag,
            file,
            named: false,
            bytes: HEADER_BYTES as u64,
            bytes_synced: 0,
        })
    }

    pub fn append(&mut self, group: &Group) -> io::Result<()> {
        self.file.append(&group.bytes)?;
        self.bytes += group.bytes.len() as u64;
        Ok(())
    }

    /// Everything appended so far is on disk afterwards, and found there. After an error it must not be tried again.
    pub fn sync(&mut self, disk: &dyn Disk) -> io::Result<()> {
        self.file.sync()?;
        if !self.named {
            disk.sync()?;
            self.named = true;
        }
        self.bytes_synced = self.bytes;
        Ok(())
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
