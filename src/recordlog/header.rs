//! The header of a file.

use super::{u32_at, u64_at};

const VERSION_AT: usize = 8;
const FIELDS_AT: usize = 12;
const CRC_BYTES: usize = 4;

/// The constants of one file format.
#[derive(Debug)]
pub struct FileFormat {
    pub magic: [u8; 8],
    /// The version that is written, and the newest that is read.
    pub version: u32,
    /// Whether the header contains [`FileHeader::kind`].
    pub has_kind: bool,
    /// Whether the header contains [`FileHeader::created_at_us`].
    pub has_created_at: bool,
}

/// The fields of a header. A field that the format does not contain is not written, and is 0 when
/// it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileHeader {
    pub kind: u32,
    pub number: u64,
    pub tag: [u8; 8],
    /// Microseconds since 1970.
    pub created_at_us: i64,
}

/// The first bytes of a file are not a supported header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeHeaderError {
    #[error("the header is corrupt or cut off")]
    Corrupt,
    #[error("format version {version} is newer than this program, which reads up to {newest}")]
    UnsupportedVersion { version: u32, newest: u32 },
}

impl FileFormat {
    /// The length of a header.
    pub const fn header_bytes(&self) -> usize {
        self.created_at_at() + if self.has_created_at { 8 } else { 0 } + CRC_BYTES
    }

    const fn number_at(&self) -> usize {
        FIELDS_AT + if self.has_kind { 4 } else { 0 }
    }

    const fn tag_at(&self) -> usize {
        self.number_at() + 8
    }

    const fn created_at_at(&self) -> usize {
        self.tag_at() + 8
    }

    pub fn encode_header(&self, header: &FileHeader) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.header_bytes());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        if self.has_kind {
            bytes.extend_from_slice(&header.kind.to_le_bytes());
        }
        bytes.extend_from_slice(&header.number.to_le_bytes());
        bytes.extend_from_slice(&header.tag);
        if self.has_created_at {
            bytes.extend_from_slice(&header.created_at_us.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes the header at the beginning of `bytes`. The checksum is at the same offset in every
    /// version of a format, future ones included.
    pub fn decode_header(&self, bytes: &[u8]) -> Result<FileHeader, DecodeHeaderError> {
        let bytes = bytes.get(..self.header_bytes()).ok_or(DecodeHeaderError::Corrupt)?;
        let crc_at = bytes.len() - CRC_BYTES;
        if bytes[..VERSION_AT] != self.magic || u32_at(bytes, crc_at) != crc32c::crc32c(&bytes[..crc_at]) {
            return Err(DecodeHeaderError::Corrupt);
        }
        let version = u32_at(bytes, VERSION_AT);
        if version == 0 {
            return Err(DecodeHeaderError::Corrupt);
        }
        if version > self.version {
            return Err(DecodeHeaderError::UnsupportedVersion { version, newest: self.version });
        }
        let tag_at = self.tag_at();
        Ok(FileHeader {
            kind: if self.has_kind { u32_at(bytes, FIELDS_AT) } else { 0 },
            number: u64_at(bytes, self.number_at()),
            tag: bytes[tag_at..tag_at + 8].try_into().expect("the slice has 8 bytes"),
            created_at_us: if self.has_created_at {
                u64_at(bytes, self.created_at_at()).cast_signed()
            } else {
                0
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: FileHeader = FileHeader { kind: 3, number: 7, tag: *b"tagtagta", created_at_us: -5 };

    fn formats() -> impl Iterator<Item = FileFormat> {
        [(false, false), (false, true), (true, false), (true, true)].into_iter().map(
            |(has_kind, has_created_at)| FileFormat {
                magic: *b"AURTEST\n",
                version: 2,
                has_kind,
                has_created_at,
            },
        )
    }

    #[test]
    fn header_round_trips_and_any_flipped_bit_is_detected() {
        for format in formats() {
            let bytes = format.encode_header(&HEADER);
            assert_eq!(bytes.len(), format.header_bytes());
            let wanted = FileHeader {
                kind: if format.has_kind { 3 } else { 0 },
                created_at_us: if format.has_created_at { -5 } else { 0 },
                ..HEADER
            };
            assert_eq!(format.decode_header(&bytes), Ok(wanted));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(format.decode_header(&flipped), Err(DecodeHeaderError::Corrupt), "bit {bit}");
            }
            for end in 0..bytes.len() {
                assert_eq!(format.decode_header(&bytes[..end]), Err(DecodeHeaderError::Corrupt), "{end}");
            }
        }
    }

    #[test]
    fn newer_version_is_reported_as_unsupported_not_as_corrupt() {
        for format in formats() {
            let bytes = FileFormat { version: 9, ..format }.encode_header(&HEADER);
            let error = DecodeHeaderError::UnsupportedVersion { version: 9, newest: 2 };
            assert_eq!(format.decode_header(&bytes), Err(error));
            let bytes = FileFormat { version: 0, ..format }.encode_header(&HEADER);
            assert_eq!(format.decode_header(&bytes), Err(DecodeHeaderError::Corrupt));
        }
    }
}
