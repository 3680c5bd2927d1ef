//! The file format of the gateway's logs and snapshots: a header, then records. A record is framed
//! as in the journal and begins with the random tag of its file; after a corrupt range the reader
//! scans for the tag to resynchronize.
//!
//! ```text
//! header  magic (8) | version (4) | kind (4) | number (8) | tag (8) | CRC32C of these (4)
//! ```

use crate::journal::record::{RECORD_HEADER_BYTES, RecordHeader};

const MAGIC: &[u8; 8] = b"AURGATE\n";
/// The newest format that can be read, and the one that is written.
const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 36;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Log,
    Snapshot,
}

impl FileKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Log => "log-",
            Self::Snapshot => "snapshot-",
        }
    }

    pub fn name(self, number: u64) -> String {
        format!("{}{number:010}", self.prefix())
    }

    /// The name while the file is being written.
    pub fn temporary_name(self, number: u64) -> String {
        format!("{}{TEMPORARY_SUFFIX}", self.name(number))
    }
}

const TEMPORARY_SUFFIX: &str = ".tmp";

pub fn is_temporary(name: &str) -> bool {
    name.strip_suffix(TEMPORARY_SUFFIX).is_some_and(|name| parse_name(name).is_some())
}

/// The kind and number in a file name; `None` for other files.
pub fn parse_name(name: &str) -> Option<(FileKind, u64)> {
    [FileKind::Log, FileKind::Snapshot].into_iter().find_map(|kind| {
        let number = name.strip_prefix(kind.prefix())?.parse().ok()?;
        (kind.name(number) == name).then_some((kind, number))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalFileHeader {
    pub kind: FileKind,
    pub number: u64,
    pub tag: [u8; 8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeWalHeaderError {
    #[error("the header is corrupt or truncated")]
    Corrupt,
    #[error("format version {0} is not supported; this program reads up to version {VERSION}")]
    NewerVersion(u32),
}

impl WalFileHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tag);
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeWalHeaderError> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(DecodeWalHeaderError::Corrupt)?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..8] != *MAGIC || word(32) != crc32c::crc32c(&bytes[..32]) {
            return Err(DecodeWalHeaderError::Corrupt);
        }
        if word(8) > VERSION {
            return Err(DecodeWalHeaderError::NewerVersion(word(8)));
        }
        Ok(Self {
            kind: if word(12) == FileKind::Log as u32 { FileKind::Log } else { FileKind::Snapshot },
            number: u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes")),
            tag: bytes[24..32].try_into().expect("eight bytes"),
        })
    }
}

/// Appends a framed record.
pub fn write_record(out: &mut Vec<u8>, number: u64, tag: [u8; 8], record: &[u8]) {
    out.extend_from_slice(&RecordHeader::new(number, tag, 1, false, record).encode());
    out.extend_from_slice(record);
}

/// Corruption found while reading a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileDamage {
    /// Ranges without a valid record, and records that cannot be decoded or applied.
    pub corrupt_ranges: u64,
    /// Bytes after the last valid record.
    pub torn_bytes: u64,
}

/// Calls `each` with every valid record of a file; if it returns false, the record counts as
/// corrupt.
pub fn read(
    bytes: &[u8],
    (kind, number): (FileKind, u64),
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<FileDamage, DecodeWalHeaderError> {
    let mut damage = FileDamage::default();
    if bytes.len() < HEADER_BYTES {
        // Truncated within the header: no record was ever acknowledged.
        return Ok(FileDamage { corrupt_ranges: 0, torn_bytes: bytes.len() as u64 });
    }
    let tag = match WalFileHeader::decode(bytes) {
        Ok(header) if (header.kind, header.number) == (kind, number) => header.tag,
        Err(newer @ DecodeWalHeaderError::NewerVersion(_)) => return Err(newer),
        Ok(_) | Err(DecodeWalHeaderError::Corrupt) => {
            damage.corrupt_ranges += 1;
            // The first record, if it is intact, contains the tag too.
            match bytes.get(HEADER_BYTES..HEADER_BYTES + 8) {
                Some(tag) => tag.try_into().expect("eight bytes"),
                None => return Ok(damage),
            }
        }
    };
    let (mut at, mut begin) = (HEADER_BYTES, HEADER_BYTES);
    while at < bytes.len() {
        if let Some(record) = record_at(bytes, at, number, tag) {
            damage.corrupt_ranges += u64::from(at > begin) + u64::from(!each(record));
            at += RECORD_HEADER_BYTES + record.len();
            begin = at;
        } else {
            let rest = bytes.get(at + 1..).unwrap_or_default();
            let Some(found) = rest.windows(tag.len()).position(|window| window == tag) else { break };
            at += 1 + found;
        }
    }
    damage.torn_bytes = (bytes.len() - begin) as u64;
    Ok(damage)
}

fn record_at(bytes: &[u8], at: usize, number: u64, tag: [u8; 8]) -> Option<&[u8]> {
    let header = bytes.get(at..at + RECORD_HEADER_BYTES)?.try_into().expect("take returns this many bytes");
    let header = RecordHeader::decode(header);
    let start = at + RECORD_HEADER_BYTES;
    let record = bytes.get(start..start.checked_add(header.payload_bytes as usize)?)?;
    let good = header.tag == tag
        && header.rows() == 1
        && crc32c::crc32c_append(header.crc_of_fields(number), record) == header.crc;
    good.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: WalFileHeader = WalFileHeader { kind: FileKind::Log, number: 7, tag: *b"tagtagta" };

    fn file(records: &[&[u8]]) -> Vec<u8> {
        let mut bytes = HEADER.encode().to_vec();
        for record in records {
            write_record(&mut bytes, 7, HEADER.tag, record);
        }
        bytes
    }

    fn read_all(bytes: &[u8]) -> (Vec<Vec<u8>>, FileDamage) {
        let mut records = Vec::new();
        let damage = read(bytes, (FileKind::Log, 7), |record| {
            records.push(record.to_vec());
            true
        });
        (records, damage.unwrap())
    }

    #[test]
    fn reader_detects_any_flipped_bit_and_loses_one_record_at_most() {
        let records: [&[u8]; 3] = [b"one", b"", b"three"];
        let good = file(&records);
        assert_eq!(read_all(&good), (records.map(<[u8]>::to_vec).to_vec(), FileDamage::default()));
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(Ok((found, damage))) =
                std::panic::catch_unwind(|| Ok::<_, DecodeWalHeaderError>(read_all(&bytes)))
            else {
                // Only a newer version is an error, and then the checksum would not match.
                panic!("bit {bit}");
            };
            assert!(damage != FileDamage::default(), "bit {bit} was not detected");
            assert!(found.len() >= 2, "bit {bit} lost more than its record");
        }
    }

    #[test]
    fn reader_ignores_a_torn_tail_at_any_byte() {
        let good = file(&[b"one", b"two"]);
        for end in 0..good.len() {
            let (records, damage) = read_all(&good[..end]);
            let whole = (end.saturating_sub(HEADER_BYTES)) / (RECORD_HEADER_BYTES + 3);
            assert_eq!(records.len(), whole, "{end}");
            assert_eq!(damage.corrupt_ranges, 0, "{end}");
        }
    }

    #[test]
    fn file_names_are_parsed_and_newer_versions_refused() {
        assert_eq!(parse_name("log-0000000007"), Some((FileKind::Log, 7)));
        assert_eq!(parse_name("snapshot-0000000007"), Some((FileKind::Snapshot, 7)));
        for other in ["log-7", "log-0000000007.tmp", "snapshot-", "x"] {
            assert_eq!(parse_name(other), None);
        }
        assert!(is_temporary("snapshot-0000000007.tmp") && !is_temporary("x.tmp"));
        let mut bytes = file(&[]);
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read(&bytes, (FileKind::Log, 7), |_| true), Err(DecodeWalHeaderError::NewerVersion(9)));
    }
}
