//! `aurore-events journal inspect`: prints the contents of the journal, one line for each segment, and
//! lists its files for `journal replay`. It changes no file.

use std::io::{self, Write};

use super::filesystem::Filesystem;
use super::reader::{OpenSegmentError, SegmentReader};
use super::{retained, segment};

/// A file of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    pub number: u64,
    pub name: String,
    /// All of its events were committed.
    pub committed: bool,
}

/// The segments in the order of their numbers, and the names of other files.
pub fn segment_files(disk: &dyn Filesystem) -> io::Result<(Vec<SegmentFile>, Vec<String>)> {
    let (mut segments, mut others) = (Vec::new(), Vec::new());
    for name in disk.list()? {
        if let Some(number) = segment::parse_file_name(&name) {
            segments.push(SegmentFile { number, name, committed: false });
        } else if let Some((number, _)) = retained::parse_file_name(&name) {
            segments.push(SegmentFile { number, name, committed: true });
        } else {
            others.push(name);
        }
    }
    segments.sort_unstable_by_key(|file| file.number);
    others.sort_unstable();
    Ok((segments, others))
}

/// Writes one line for each segment and a total. Returns whether all segments are intact, apart
/// from torn tails.
pub fn inspect(disk: &dyn Filesystem, out: &mut dyn Write) -> io::Result<bool> {
    let (files, others) = segment_files(disk)?;
    for name in others {
        writeln!(out, "{name}: not a segment")?;
    }
    let (mut whole, mut segments, mut all_records, mut all_rows, mut retained) = (true, 0, 0_u64, 0_u64, 0);
    for SegmentFile { number, name, committed } in files {
        let file = disk.open(&name)?;
        let bytes = file.bytes()?;
        let mut reader = match SegmentReader::open(file, number) {
            Ok(reader) => reader,
            Err(OpenSegmentError::Io(error)) => return Err(error),
            Err(OpenSegmentError::UnsupportedVersion(error)) => {
                writeln!(out, "{name}: {bytes} bytes, {error}")?;
                whole = false;
                continue;
            }
        };
        let (mut records, mut rows) = (0_u64, 0_u64);
        while let Some(record) = reader.next_record()? {
            records += 1;
            rows += u64::from(record.rows);
        }
        let damage = reader.damage();
        write!(out, "{name}: {bytes} bytes, {records} records, {rows} events")?;
        if damage.header_corrupt {
            write!(out, ", the header is corrupt")?;
        }
        if damage.corrupt_ranges > 0 {
            write!(out, ", {} corrupt ranges skipped", damage.corrupt_ranges)?;
        }
        if damage.torn_bytes > 0 {
            write!(out, ", {} bytes of torn tail", damage.torn_bytes)?;
        }
        if reader.preallocated() > 0 {
            write!(out, ", {} bytes preallocated", reader.preallocated())?;
        }
        writeln!(out)?;
        whole &= damage.corrupt_ranges == 0 && !damage.header_corrupt;
        if committed {
            retained += rows;
        } else {
            segments += 1;
            all_records += records;
            all_rows += rows;
        }
    }
    if retained > 0 {
        writeln!(out, "{retained} events that are stored, retained for a failover of the database")?;
    }
    writeln!(out, "{segments} segments, {all_records} records, {all_rows} events that may not be stored")?;
    Ok(whole)
}
