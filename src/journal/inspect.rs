//! `aurore-events journal inspect`: what lies in the journal, segment by segment, read and not touched.

use std::io::{self, Write};

use super::disk::Disk;
use super::reader::{Reader, Unreadable};
use super::segment;

/// Writes a line a segment, and one for all. Tells whether all is whole but for torn ends.
pub fn inspect(disk: &dyn Disk, out: &mut dyn Write) -> io::Result<bool> {
    let mut names = disk.names()?;
    names.sort_unstable();
    let (mut whole, mut segments, mut all_records, mut all_rows) = (true, 0, 0_u64, 0_u64);
    for name in names {
        let Some(number) = segment::number(&name) else {
            writeln!(out, "{name}: not a segment")?;
            continue;
        };
        segments += 1;
        let file = disk.open(&name)?;
        let bytes = file.bytes()?;
        let mut reader = match Reader::new(file, number) {
            Ok(reader) => reader,
            Err(Unreadable::Io(error)) => return Err(error),
            Err(Unreadable::Newer(error)) => {
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
        let damage = reader.damage;
        write!(out, "{name}: {bytes} bytes, {records} records, {rows} events")?;
        if damage.header {
            write!(out, ", the header is damaged")?;
        }
        if damage.skipped > 0 {
            write!(out, ", {} damaged stretches skipped", damage.skipped)?;
        }
        if damage.torn_bytes > 0 {
            write!(out, ", {} bytes torn off at the end", damage.torn_bytes)?;
        }
        if reader.reserved > 0 {
            write!(out, ", {} bytes reserved and not used", reader.reserved)?;
        }
        writeln!(out)?;
        whole &= damage.skipped == 0 && !damage.header;
        all_records += records;
        all_rows += rows;
    }
    writeln!(out, "{segments} segments, {all_records} records, {all_rows} events not known to be stored")?;
    Ok(whole)
}
