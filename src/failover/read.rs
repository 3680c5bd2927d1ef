//! Reads the rows of a segment in batches. Must not depend on what is done with them.

use std::io;

use crate::event::row::{Row, rows};
use crate::journal::filesystem::Filesystem;
use crate::journal::reader::{OpenSegmentError, SegmentDamage, SegmentReader};

/// Rows and bytes of one batch.
pub const BATCH_ROWS_MAX: usize = 5_000;
const BATCH_BYTES_MAX: usize = 8 << 20;

/// Reads the segment in the file `name` and passes its rows on, in the order of their arrival: at most
/// `first_rows` first. Returns the damage, whose intact records are read.
pub fn read_batches<E: From<io::Error>>(
    disk: &dyn Filesystem,
    (number, name): (u64, &str),
    first_rows: usize,
    on_rows: &mut dyn FnMut(&[Row<'_>]) -> Result<(), E>,
) -> Result<SegmentDamage, E> {
    let mut reader = SegmentReader::open(disk.open(name)?, number).map_err(|error| match error {
        OpenSegmentError::Io(error) => error,
        OpenSegmentError::UnsupportedVersion(error) => io::Error::new(io::ErrorKind::InvalidData, error),
    })?;
    let (mut bytes, mut count, mut rows_max) = (Vec::new(), 0, first_rows);
    while let Some(record) = reader.next_record()? {
        for row in rows(record.bytes) {
            if count == rows_max || (count > 0 && bytes.len() + row.bytes().len() > BATCH_BYTES_MAX) {
                on_rows(&rows(&bytes).collect::<Vec<_>>())?;
                bytes.clear();
                (count, rows_max) = (0, BATCH_ROWS_MAX);
            }
            bytes.extend_from_slice(row.bytes());
            count += 1;
        }
    }
    if count > 0 {
        on_rows(&rows(&bytes).collect::<Vec<_>>())?;
    }
    Ok(reader.damage())
}
