//! The frame of a record.

use super::u32_at;

pub const RECORD_HEADER_BYTES: usize = 20;
/// The bit of the count that holds the flag.
const FLAG: u32 = 1 << 31;

/// The header of a record; the payload follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub tag: [u8; 8],
    pub payload_bytes: u32,
    /// The number of items in the payload, and `FLAG`.
    count_and_flag: u32,
    pub crc: u32,
}

impl RecordHeader {
    /// The header for `payload`, which has `count` items, in the file `number`.
    ///
    /// # Panics
    /// If `payload` has 4 GiB or more, or `count` is 2^31 or more. Requests are bounded far below.
    pub fn new(number: u64, tag: [u8; 8], count: u32, flag: bool, payload: &[u8]) -> Self {
        let length = u32::try_from(payload.len()).expect("BUG: a record is bounded far below 4 GiB");
        assert!(count < FLAG, "BUG: a record is bounded far below 2^31 items");
        let count_and_flag = if flag { count | FLAG } else { count };
        let header = Self { tag, payload_bytes: length, count_and_flag, crc: 0 };
        Self { crc: crc32c::crc32c_append(header.crc_of_fields(number), payload), ..header }
    }

    /// The number of items in the payload. A record with none is not valid.
    pub fn count(&self) -> u32 {
        self.count_and_flag & !FLAG
    }

    pub fn flag(&self) -> bool {
        self.count_and_flag & FLAG != 0
    }

    /// The checksum of the file's number and the fields before the checksum, to be continued with
    /// the payload.
    pub(super) fn crc_of_fields(&self, number: u64) -> u32 {
        let mut fields = [0; 24];
        fields[..8].copy_from_slice(&number.to_le_bytes());
        fields[8..16].copy_from_slice(&self.tag);
        fields[16..20].copy_from_slice(&self.payload_bytes.to_le_bytes());
        fields[20..].copy_from_slice(&self.count_and_flag.to_le_bytes());
        crc32c::crc32c(&fields)
    }

    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.tag);
        bytes[8..12].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.count_and_flag.to_le_bytes());
        bytes[16..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Self {
        Self {
            tag: bytes[..8].try_into().expect("the slice has 8 bytes"),
            payload_bytes: u32_at(bytes, 8),
            count_and_flag: u32_at(bytes, 12),
            crc: u32_at(bytes, 16),
        }
    }
}

/// Appends a record to `out`.
///
/// # Panics
/// As [`RecordHeader::new`].
pub fn append_record(
    out: &mut Vec<u8>,
    (number, tag): (u64, [u8; 8]),
    (count, flag): (u32, bool),
    payload: &[u8],
) {
    out.extend_from_slice(&RecordHeader::new(number, tag, count, flag, payload).encode());
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: [u8; 8] = *b"tagtagta";

    #[test]
    fn record_checksum_covers_number_count_flag_and_payload() {
        let header = RecordHeader::new(1, TAG, 2, true, b"rows");
        assert_eq!(RecordHeader::decode(&header.encode()), header);
        assert_eq!((header.count(), header.flag()), (2, true));
        assert_ne!(RecordHeader::new(2, TAG, 2, true, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::new(1, TAG, 3, true, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::new(1, TAG, 2, false, b"rows").crc, header.crc);
        assert_ne!(RecordHeader::new(1, TAG, 2, true, b"rowS").crc, header.crc);
    }
}
