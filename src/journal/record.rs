//! The encoding of a segment: a header, then records, each with the encoded rows of one block. The
//! tables with offsets are in the header of [`crate::journal`]. All integers are little-endian.
//!
//! ```text
//! header  magic (8) | version (4) | segment (8) | tag (8) | created at, us since 1970 (8) | CRC32C of these (4)
//! record  tag (8) | bytes of rows (4) | rows and flag (4) | CRC32C of segment, the fields before and the rows (4) | rows
//! ```
//!
//! It must not depend on files.

use crate::event::Timestamp;

pub const MAGIC: &[u8; 8] = b"AURJRNL\n";
/// The version that is written, and the newest that is read.
pub const VERSION: u32 = 2;
pub const HEADER_BYTES: usize = 40;
pub const RECORD_HEADER_BYTES: usize = 20;
/// The bit of the row count that marks a spilled block, since version 2.
const SPILLED_FLAG: u32 = 1 << 31;

/// The first bytes of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub segment: u64,
    pub tag: [u8; 8],
    pub created_at: Timestamp,
}

/// The first bytes of a file are not a supported segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeSegmentHeaderError {
    #[error("the header is corrupt or cut off")]
    Corrupt,
    #[error("format version {0} is newer than this program, which reads up to {VERSION}")]
    UnsupportedVersion(u32),
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.segment.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.tag);
        bytes[28..36].copy_from_slice(&self.created_at.micros().to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes a header. The checksum is at the same offset in every version, future ones included.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeSegmentHeaderError> {
        if bytes[..8] != *MAGIC || u32_at(bytes, 36) != crc32c::crc32c(&bytes[..36]) {
            return Err(DecodeSegmentHeaderError::Corrupt);
        }
        match u32_at(bytes, 8) {
            1..=VERSION => Ok(Self {
                segment: u64_at(bytes, 12),
                tag: bytes[20..28].try_into().expect("the slice has 8 bytes"),
                created_at: Timestamp::from_micros(u64_at(bytes, 28).cast_signed()),
            }),
            0 => Err(DecodeSegmentHeaderError::Corrupt),
            newer => Err(DecodeSegmentHeaderError::UnsupportedVersion(newer)),
        }
    }
}

/// The header of a record; the rows follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub tag: [u8; 8],
    pub payload_bytes: u32,
    /// The number of rows, and `SPILLED_FLAG`.
    rows_and_flag: u32,
    pub crc: u32,
}

impl RecordHeader {
    /// The header for `bytes`, which are `rows` rows, in `segment`.
    ///
    /// # Panics
    /// If `bytes` has 4 GiB or more, or `rows` is 2^31 or more. Requests are bounded far below.
    pub fn new(segment: u64, tag: [u8; 8], rows: u32, spilled: bool, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("BUG: a block is bounded far below 4 GiB");
        assert!(rows < SPILLED_FLAG, "BUG: a block is bounded far below 2^31 rows");
        let rows_and_flag = if spilled { rows | SPILLED_FLAG } else { rows };
        let header = Self { tag, payload_bytes: length, rows_and_flag, crc: 0 };
        Self { crc: crc32c::crc32c_append(header.crc_of_fields(segment), bytes), ..header }
    }

    pub fn rows(&self) -> u32 {
        self.rows_and_flag & !SPILLED_FLAG
    }

    pub fn is_spilled(&self) -> bool {
        self.rows_and_flag & SPILLED_FLAG != 0
    }

    /// The checksum of the segment number and the fields before the checksum, to be continued with
    /// the rows.
    pub fn crc_of_fields(&self, segment: u64) -> u32 {
        let mut fields = [0; 24];
        fields[..8].copy_from_slice(&segment.to_le_bytes());
        fields[8..16].copy_from_slice(&self.tag);
        fields[16..20].copy_from_slice(&self.payload_bytes.to_le_bytes());
        fields[20..].copy_from_slice(&self.rows_and_flag.to_le_bytes());
        crc32c::crc32c(&fields)
    }

    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.tag);
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.rows_and_flag.to_le_bytes());
        bytes[16..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Self {
        Self {
            tag: bytes[..8].try_into().expect("the slice has 8 bytes"),
            payload_bytes: u32_at(bytes, 8),
            rows_and_flag: u32_at(bytes, 12),
            crc: u32_at(bytes, 16),
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader =
        SegmentHeader { segment: 7, tag: *b"tagtagta", created_at: Timestamp::from_micros(-5) };

    #[test]
    fn segment_header_round_trips_and_any_flipped_bit_is_detected() {
        let bytes = HEADER.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(HEADER));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), Err(DecodeSegmentHeaderError::Corrupt), "bit {bit}");
        }
    }

    #[test]
    fn newer_version_is_reported_as_unsupported_not_as_corrupt() {
        let mut bytes = HEADER.encode();
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(DecodeSegmentHeaderError::UnsupportedVersion(9)));
    }

    #[test]
    fn record_checksum_covers_segment_rows_and_spilled_flag() {
        let header = RecordHeader::new(1, HEADER.tag, 2, true, b"rows");
        assert_eq!(RecordHeader::decode(&header.encode()), header);
        assert_eq!((header.rows(), header.is_spilled()), (2, true));
        assert_ne!(RecordHeader::new(2, HEADER.tag, 2, true, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::new(1, HEADER.tag, 3, true, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::new(1, HEADER.tag, 2, false, b"rows").crc, header.crc);
    }
}
