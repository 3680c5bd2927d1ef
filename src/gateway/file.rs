//! The files of the gateway's directory: a header, then records. A record is framed as the journal's are, with the
//! file's random tag before it, where reading goes on after damage.
//!
//! ```text
//! header  magic (8) | version (4) | kind (4) | number (8) | tag (8) | CRC32C of these (4)
//! ```

use crate::journal::record::{RECORD_HEADER_BYTES, RecordHeader};

const MAGIC: &[u8; 8] = b"AURGATE\n";
/// The newest format that is understood, and the one that is written.
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

    /// While it is being written.
    pub fn unfinished(self, number: u64) -> String {
        format!("{}{UNFINISHED}", self.name(number))
    }
}

const UNFINISHED: &str = ".tmp";

pub fn is_unfinished(name: &str) -> bool {
    name.strip_suffix(UNFINISHED).is_some_and(|name| number(name).is_some())
}

/// What a file of this name is, if it is one of ours.
pub fn number(name: &str) -> Option<(FileKind, u64)> {
    [FileKind::Log, FileKind::Snapshot].into_iter().find_map(|kind| {
        let number = name.strip_prefix(kind.prefix())?.parse().ok()?;
        (kind.name(number) == name).then_some((kind, number))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: FileKind,
    pub number: u64,
    pub tag: [u8; 8],
}

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
        bytes[12..16].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tag);
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, NotAHeader> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(NotAHeader::Damaged)?;
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..8] != *MAGIC || word(32) != crc32c::crc32c(&bytes[..32]) {
            return Err(NotAHeader::Damaged);
        }
        if word(8) > VERSION {
            return Err(NotAHeader::Newer(word(8)));
        }
        Ok(Self {
            kind: if word(12) == FileKind::Log as u32 { FileKind::Log } else { FileKind::Snapshot },
            number: u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes")),
            tag: bytes[24..32].try_into().expect("eight bytes"),
        })
    }
}

/// Appends a record with its frame.
pub fn frame(out: &mut Vec<u8>, number: u64, tag: [u8; 8], record: &[u8]) {
    out.extend_from_slice(&RecordHeader::of(number, tag, 1, false, record).encode());
    out.extend_from_slice(record);
}

/// What was found besides good records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Stretches that are no record, and records that cannot be understood.
    pub skipped: u64,
    /// Bytes after the last good record.
    pub torn_bytes: u64,
}

/// Calls `each` with every good record of a file; false from it counts as damage.
pub fn read(
    bytes: &[u8],
    (kind, number): (FileKind, u64),
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<Damage, NotAHeader> {
    let mut damage = Damage::default();
    if bytes.len() < HEADER_BYTES {
        // Cut off within the header: nothing was ever promised of it.
        return Ok(Damage { skipped: 0, torn_bytes: bytes.len() as u64 });
    }
    let tag = match Header::decode(bytes) {
        Ok(header) if (header.kind, header.number) == (kind, number) => header.tag,
        Err(newer @ NotAHeader::Newer(_)) => return Err(newer),
        Ok(_) | Err(NotAHeader::Damaged) => {
            damage.skipped += 1;
            // The first record, if it is whole, says the tag too.
            match bytes.get(HEADER_BYTES..HEADER_BYTES + 8) {
                Some(tag) => tag.try_into().expect("eight bytes"),
                None => return Ok(damage),
            }
        }
    };
    let (mut at, mut begin) = (HEADER_BYTES, HEADER_BYTES);
    while at < bytes.len() {
        if let Some(record) = record_at(bytes, at, number, tag) {
            damage.skipped += u64::from(at > begin) + u64::from(!each(record));
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
    let header = bytes.get(at..at + RECORD_HEADER_BYTES)?.try_into().expect("as many were asked for");
    let header = RecordHeader::decode(header);
    let start = at + RECORD_HEADER_BYTES;
    let record = bytes.get(start..start.checked_add(header.bytes as usize)?)?;
    let good = header.tag == tag
        && header.rows() == 1
        && crc32c::crc32c_append(header.crc_of_counts(number), record) == header.crc;
    good.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { kind: FileKind::Log, number: 7, tag: *b"tagtagta" };

    fn file(records: &[&[u8]]) -> Vec<u8> {
        let mut bytes = HEADER.encode().to_vec();
        for record in records {
            frame(&mut bytes, 7, HEADER.tag, record);
        }
        bytes
    }

    fn read_all(bytes: &[u8]) -> (Vec<Vec<u8>>, Damage) {
        let mut records = Vec::new();
        let damage = read(bytes, (FileKind::Log, 7), |record| {
            records.push(record.to_vec());
            true
        });
        (records, damage.unwrap())
    }

    #[test]
    fn every_flipped_bit_is_noticed_and_costs_no_more_than_its_record() {
        let records: [&[u8]; 3] = [b"one", b"", b"three"];
        let good = file(&records);
        assert_eq!(read_all(&good), (records.map(<[u8]>::to_vec).to_vec(), Damage::default()));
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(Ok((found, damage))) = std::panic::catch_unwind(|| Ok::<_, NotAHeader>(read_all(&bytes)))
            else {
                // A version that is newer, but then the checksum would not hold.
                panic!("bit {bit}");
            };
            assert!(damage != Damage::default(), "bit {bit} went unnoticed");
            assert!(found.len() >= 2, "bit {bit} cost more than its record");
        }
    }

    #[test]
    fn a_torn_tail_is_cut_at_every_byte() {
        let good = file(&[b"one", b"two"]);
        for end in 0..good.len() {
            let (records, damage) = read_all(&good[..end]);
            let whole = (end.saturating_sub(HEADER_BYTES)) / (RECORD_HEADER_BYTES + 3);
            assert_eq!(records.len(), whole, "{end}");
            assert_eq!(damage.skipped, 0, "{end}");
        }
    }

    #[test]
    fn names_and_newer_versions_are_known() {
        assert_eq!(number("log-0000000007"), Some((FileKind::Log, 7)));
        assert_eq!(number("snapshot-0000000007"), Some((FileKind::Snapshot, 7)));
        for other in ["log-7", "log-0000000007.tmp", "snapshot-", "x"] {
            assert_eq!(number(other), None);
        }
        assert!(is_unfinished("snapshot-0000000007.tmp") && !is_unfinished("x.tmp"));
        let mut bytes = file(&[]);
        bytes[8] = 9;
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read(&bytes, (FileKind::Log, 7), |_| true), Err(NotAHeader::Newer(9)));
    }
}
