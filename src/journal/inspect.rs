//! `aurore-events journal inspect`: prints the contents of the journal, one line for each segment.
//! It changes no file.

use std::io::{self, Write};

use super::filesystem::Filesystem;
use super::reader::{OpenSegmentError, SegmentReader};
use super::segment;

/// Writes one line for each segment and a total. Returns whether all segments are intact, apart
/// from torn tails.
pub fn inspect(disk: &dyn Filesystem, out: &mut dyn Write) -> io::Result<bool> {
    let mut names = disk.list()?;
    names.sort_unstable();
    let (mut whole, mut segments, mut all_records, mut all_rows) = (true, 0, 0_u64, 0_u64);
    for name in names {
        let Some(number) = segment::parse_file_name(&name) else {
            writeln!(out, "{name}: not a segment")?;
            continue;
        };
        segments += 1;
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
        all_records += records;
        all_rows += rows;
    }
    writeln!(out, "{segments} segments, {all_records} records, {all_rows} events that may not be stored")?;
    Ok(whole)
}
