//! The names and the format of the gateway's logs and snapshots: [`recordlog`](crate::recordlog)
//! files with a kind. Each record has one item, a change or a part of a snapshot.

use crate::recordlog::{self, Damage, FileFormat, FileHeader, OpenError, Scan};

/// Version 2 has names in quotes among rendered labels, and native histograms. Version 1 is read.
const FORMAT: FileFormat =
    FileFormat { magic: *b"AURGATE\n", version: 2, has_kind: true, has_created_at: false };

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

/// Returns the header of a new file.
pub fn encode_header(kind: FileKind, number: u64, tag: [u8; 8]) -> Vec<u8> {
    FORMAT.encode_header(&FileHeader { kind: kind as u32, number, tag, created_at_us: 0 })
}

/// Appends a record to `out`.
pub fn write_record(out: &mut Vec<u8>, number: u64, tag: [u8; 8], record: &[u8]) {
    recordlog::append_record(out, (number, tag), (1, false), record);
}

/// Calls `each` with every valid record of a file; if it returns false, the record counts as
/// corrupt.
pub fn read(
    bytes: &[u8],
    (kind, number): (FileKind, u64),
    mut each: impl FnMut(&[u8]) -> bool,
) -> Result<Damage, OpenError> {
    let mut scan = Scan::open(bytes, bytes.len() as u64, &FORMAT, (kind as u32, number))?;
    while let Some(header) = scan.next_record()? {
        if header.count() != 1 || !each(scan.payload()) {
            scan.reject();
        }
    }
    let damage = scan.damage();
    // These files are not preallocated: zeros at the end are an interrupted write too.
    Ok(Damage { torn_bytes: damage.torn_bytes + scan.trailing_zeros(), ..damage })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: [u8; 8] = *b"tagtagta";
    const HEADER_BYTES: usize = FORMAT.header_bytes();

    fn file(records: &[&[u8]]) -> Vec<u8> {
        let mut bytes = encode_header(FileKind::Log, 7, TAG);
        for record in records {
            write_record(&mut bytes, 7, TAG, record);
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
    fn header_and_records_have_the_documented_layout() {
        let snapshot = encode_header(FileKind::Snapshot, 7, TAG);
        let mut wanted = b"AURGATE\n\x02\0\0\0\x01\0\0\0\x07\0\0\0\0\0\0\0tagtagta".to_vec();
        wanted.extend_from_slice(&crc32c::crc32c(&wanted).to_le_bytes());
        assert_eq!((snapshot, HEADER_BYTES), (wanted, 36));
        let mut record = Vec::new();
        write_record(&mut record, 7, TAG, b"one");
        let mut wanted = b"tagtagta\x03\0\0\0\x01\0\0\0".to_vec();
        let crc = crc32c::crc32c(&[&7_u64.to_le_bytes(), &wanted[..], b"one"].concat());
        wanted.extend_from_slice(&crc.to_le_bytes());
        wanted.extend_from_slice(b"one");
        assert_eq!(record, wanted);
    }

    #[test]
    fn reader_detects_any_flipped_bit_and_loses_one_record_at_most() {
        let records: [&[u8]; 3] = [b"one", b"", b"three"];
        let good = file(&records);
        assert_eq!(read_all(&good), (records.map(<[u8]>::to_vec).to_vec(), Damage::default()));
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (found, damage) = read_all(&bytes);
            assert!(damage != Damage::default(), "bit {bit} was not detected");
            assert!(found.len() >= 2, "bit {bit} lost more than its record");
        }
    }

    #[test]
    fn reader_ignores_a_torn_tail_at_any_byte() {
        let good = file(&[b"one", b"two"]);
        for end in 0..good.len() {
            let (records, damage) = read_all(&good[..end]);
            let whole = (end.saturating_sub(HEADER_BYTES)) / (recordlog::RECORD_HEADER_BYTES + 3);
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
        let of_version = |version| {
            let mut bytes = file(&[b"one"]);
            bytes[8] = version;
            let crc = crc32c::crc32c(&bytes[..32]);
            bytes[32..36].copy_from_slice(&crc.to_le_bytes());
            bytes
        };
        assert_eq!(read_all(&of_version(1)), (vec![b"one".to_vec()], Damage::default()));
        let error = read(&of_version(3), (FileKind::Log, 7), |_| true).unwrap_err();
        assert!(matches!(error, OpenError::UnsupportedVersion(_)), "{error}");
    }
}
