//! What lies in a segment: a header, then records, each with the rows of one block as they are encoded. All numbers
//! are little-endian.
//!
//! ```text
//! header  magic (8) | version (4) | segment (8) | tag (8) | made at, us since 1970 (8) | CRC32C of these (4)
//! record  tag (8) | bytes of rows (4) | rows (4) | CRC32C of segment, tag, both counts and the rows (4) | rows
//! ```
//!
//! Since version 2 the highest bit of a record's count of rows says that they are overflow: the writer had no room for
//! them, and is to get them from here. After the last record there may be zeros.
//!
//! The tag is drawn at random for each segment. It is where reading goes on after damage; since no producer can know
//! it, no event can hold bytes that would be taken for a record.

use crate::event::Timestamp;

pub const MAGIC: &[u8; 8] = b"AURJRNL\n";
/// The newest format that is understood, and the one that is written.
pub const VERSION: u32 = 2;
pub const HEADER_BYTES: usize = 40;
pub const RECORD_HEADER_BYTES: usize = 20;
const OVERFLOW: u32 = 1 << 31;

/// What a segment's file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub segment: u64,
    pub tag: [u8; 8],
    pub made_at: Timestamp,
}

/// Why the first bytes of a file are not the header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAHeader {
    #[error("the header is damaged or cut off")]
    Damaged,
    #[error("format version {0} is newer than this program, which reads up to {VERSION}")]
    Newer(u32),
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.segment.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.tag);
        bytes[28..36].copy_from_slice(&self.made_at.micros().to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Every version, also of the future, has the checksum at the same place.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, NotAHeader> {
        if bytes[..8] != *MAGIC || u32_at(bytes, 36) != crc32c::crc32c(&bytes[..36]) {
            return Err(NotAHeader::Damaged);
        }
        match u32_at(bytes, 8) {
            1..=VERSION => Ok(Self {
                segment: u64_at(bytes, 12),
                tag: bytes[20..28].try_into().expect("the slice has 8 bytes"),
                made_at: Timestamp::from_micros(u64_at(bytes, 28).cast_signed()),
            }),
            0 => Err(NotAHeader::Damaged),
            newer => Err(NotAHeader::Newer(newer)),
        }
    }
}

/// What stands before the rows of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub tag: [u8; 8],
    pub bytes: u32,
    /// How many, and whether they are overflow.
    counts: u32,
    pub crc: u32,
}

impl RecordHeader {
    /// For these rows of a segment.
    ///
    /// # Panics
    /// When there are 4 GiB of rows or more, or 2^31 of them: a request is bounded far below.
    pub fn of(segment: u64, tag: [u8; 8], rows: u32, overflow: bool, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("BUG: a block is bounded far below 4 GiB");
        assert!(rows < OVERFLOW, "BUG: a block is bounded far below 2^31 rows");
        let counts = if overflow { rows | OVERFLOW } else { rows };
        let header = Self { tag, bytes: length, counts, crc: 0 };
        Self { crc: crc32c::crc32c_append(header.crc_of_counts(segment), bytes), ..header }
    }

    pub fn rows(&self) -> u32 {
        self.counts & !OVERFLOW
    }

    pub fn is_overflow(&self) -> bool {
        self.counts & OVERFLOW != 0
    }

    /// The checksum of all but the rows, to go on with them.
    pub fn crc_of_counts(&self, segment: u64) -> u32 {
        let mut counts = [0; 24];
        counts[..8].copy_from_slice(&segment.to_le_bytes());
        counts[8..16].copy_from_slice(&self.tag);
        counts[16..20].copy_from_slice(&self.bytes.to_le_bytes());
        counts[20..].copy_from_slice(&self.counts.to_le_bytes());
        crc32c::crc32c(&counts)
    }

    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.tag);
        bytes[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.counts.to_le_bytes());
        bytes[16..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Self {
        Self {
            tag: bytes[..8].try_into().expect("the slice has 8 bytes"),
            bytes: u32_at(bytes, 8),
            counts: u32_at(bytes, 12),
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

    const HEADER: Header = Header { segment: 7, tag: *b"tagtagta", made_at: Timestamp::from_micros(-5) };

    #[test]
    fn a_header_survives_and_any_flipped_bit_of_it_shows() {
        let bytes = HEADER.encode();
        assert_eq!(Header::decode(&bytes), Ok(HEADER));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&flipped), Err(NotAHeader::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_named_and_not_taken_for_damage() {
        let mut bytes = HEADER.encode();
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bytes), Err(NotAHeader::Newer(9)));
    }

    #[test]
    fn the_checksum_of_a_record_is_of_its_place_too() {
        let header = RecordHeader::of(1, HEADER.tag, 2, true, b"rows");
        assert_eq!(RecordHeader::decode(&header.encode()), header);
        assert_eq!((header.rows(), header.is_overflow()), (2, true));
        assert_ne!(RecordHeader::of(2, HEADER.tag, 2, true, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::of(1, HEADER.tag, 3, true, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::of(1, HEADER.tag, 2, false, b"rows").crc, header.crc);
    }
}
