//! The constants of the segment format: a [`recordlog`](crate::recordlog) file whose records have
//! the encoded rows of one block. The count of a record is the number of rows, and the flag marks a
//! spilled block, since version 2. Rows have an arrival number since version 3. The tables with
//! offsets are in the header of [`crate::journal`].
//!
//! It must not depend on files.

use crate::event::Timestamp;
use crate::recordlog::{FileFormat, FileHeader};

pub use crate::recordlog::{RECORD_HEADER_BYTES, RecordHeader};

pub const FORMAT: FileFormat =
    FileFormat { magic: *b"AURJRNL\n", version: VERSION, has_kind: false, has_created_at: true };
/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 3;
pub const HEADER_BYTES: usize = FORMAT.header_bytes();

/// The first bytes of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub segment: u64,
    pub tag: [u8; 8],
    pub created_at: Timestamp,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let header = FileHeader {
            kind: 0,
            number: self.segment,
            tag: self.tag,
            created_at_us: self.created_at.micros(),
        };
        FORMAT.encode_header(&header).try_into().expect("the format has headers of this length")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_documented_layout() {
        let created_at = Timestamp::from_micros(-5);
        let bytes = SegmentHeader { segment: 7, tag: *b"tagtagta", created_at }.encode();
        let mut wanted = b"AURJRNL\n\x03\0\0\0\x07\0\0\0\0\0\0\0tagtagta".to_vec();
        wanted.extend_from_slice(&(-5_i64).to_le_bytes());
        wanted.extend_from_slice(&crc32c::crc32c(&wanted).to_le_bytes());
        assert_eq!(bytes.len(), 40);
        assert_eq!(bytes[..], wanted);
    }
}
