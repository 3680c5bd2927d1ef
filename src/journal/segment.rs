//! A segment that is written: creation, append, preallocation and sync bookkeeping, and the names
//! of segment files. The caller abandons the segment after an error.
//!
//! It must not depend on lanes, waiters or time.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::filesystem::{File, Filesystem};
use super::record::{HEADER_BYTES, RECORD_HEADER_BYTES, SegmentHeader};
use super::sync::SyncJob;
use crate::buffer::RowBlock;
use crate::recordlog;

/// A smaller segment is not preallocated: it gets few syncs before it is sealed or removed.
const PREALLOCATE_BYTES_MIN: u64 = 64 * 1024;
/// Maximum bytes of one preallocation, to bound the duration of the sync that follows.
const PREALLOCATE_BYTES_MAX: u64 = 1024 * 1024;
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// Returns the file name of a segment.
pub fn file_name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// Returns the segment number of a file name, or `None` if it is not that of a segment.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let number = digits.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// The records of one write. The bytes of the blocks are copied and dropped after the write.
#[derive(Debug, Default)]
pub struct WriteGroup {
    bytes: Vec<u8>,
    pub rows: u64,
}

impl WriteGroup {
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes of the record of a block.
    pub fn record_bytes(block: &RowBlock) -> usize {
        RECORD_HEADER_BYTES + block.bytes().len()
    }

    pub fn push(&mut self, segment: &Segment, block: &RowBlock) {
        recordlog::append_record(
            &mut self.bytes,
            (segment.number, segment.tag),
            (block.rows(), block.is_spilled()),
            block.bytes(),
        );
        self.rows += u64::from(block.rows());
    }

    /// Clears the group, and frees capacity beyond `bytes_kept`.
    pub fn clear(&mut self, bytes_kept: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(bytes_kept);
        self.rows = 0;
    }
}

/// A segment file that is being written.
///
/// Invariant: unless a write failed, the first `bytes` of the file are the header and complete
/// records, and the rest are zeros.
#[derive(Debug)]
pub struct Segment {
    pub number: u64,
    pub tag: [u8; 8],
    file: Arc<dyn File>,
    /// Whether the directory was synced since the file was created, so that its name survives a
    /// power cut.
    dir_synced: bool,
    pub bytes: u64,
    /// Bytes that are synced or covered by the sync in flight.
    sync_started_bytes: u64,
    synced_bytes: u64,
    /// Length of the file, preallocated bytes included.
    file_bytes: u64,
}

impl Segment {
    /// Creates the file under its final name and writes the header. A file whose header is
    /// incomplete after a crash was never synced, so that no event in it was acknowledged as
    /// synced.
    pub fn create(disk: &dyn Filesystem, header: SegmentHeader) -> io::Result<Self> {
        let file = disk.create(&file_name(header.segment))?;
        file.write(0, &header.encode())?;
        let bytes = HEADER_BYTES as u64;
        Ok(Self {
            number: header.segment,
            tag: header.tag,
            file: file.into(),
            dir_synced: false,
            bytes,
            sync_started_bytes: 0,
            synced_bytes: 0,
            file_bytes: bytes,
        })
    }

    pub fn append(&mut self, group: &WriteGroup) -> io::Result<()> {
        self.file.write(self.bytes, &group.bytes)?;
        self.bytes += group.bytes.len() as u64;
        self.file_bytes = self.file_bytes.max(self.bytes);
        Ok(())
    }

    /// Length of the file, preallocated bytes included.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Whether the name of the file survives a power cut.
    pub fn is_dir_synced(&self) -> bool {
        self.dir_synced
    }

    /// Whether there are bytes that no sync covers, not even the one in flight.
    pub fn is_dirty(&self) -> bool {
        self.bytes > self.sync_started_bytes
    }

    /// Whether all bytes are synced.
    pub fn is_synced(&self) -> bool {
        self.bytes == self.synced_bytes
    }

    /// Extends the file with zeros, since a sync of bytes within the file takes half the time of
    /// one that extends the file. It adds at most the bytes that the segment has, so that a small
    /// segment remains small. A failure is ignored: the next write extends the file itself.
    pub fn preallocate(&mut self, bytes_max: u64) {
        if self.bytes < PREALLOCATE_BYTES_MIN || self.file_bytes - self.bytes >= PREALLOCATE_BYTES_MIN / 2 {
            return;
        }
        let to = (self.bytes + self.bytes.min(PREALLOCATE_BYTES_MAX)).min(bytes_max);
        while self.file_bytes < to {
            let some = usize::try_from(to - self.file_bytes).unwrap_or(usize::MAX).min(ZEROS.len());
            if self.file.write(self.file_bytes, &ZEROS[..some]).is_err() {
                return;
            }
            self.file_bytes += some as u64;
        }
    }

    /// Begins a sync of all bytes, and returns the range that no earlier sync covers. It must not
    /// be called again before this sync has ended.
    pub fn begin_sync(&mut self) -> (Range<u64>, SyncJob) {
        let from = std::mem::replace(&mut self.sync_started_bytes, self.bytes).max(HEADER_BYTES as u64);
        let span = from..self.bytes;
        let job = SyncJob::new(self.number, Arc::clone(&self.file), span.end - span.start, !self.dir_synced);
        (span, job)
    }

    /// Records that the sync in flight succeeded.
    pub fn mark_synced(&mut self) {
        self.dir_synced = true;
        self.synced_bytes = self.sync_started_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_file_name_accepts_only_canonical_segment_names() {
        assert_eq!(file_name(7), "0000000007.seg");
        for number in [0, 7, 9_999_999_999, 10_000_000_000] {
            assert_eq!(self::parse_file_name(&file_name(number)), Some(number));
        }
        for other in ["7.seg", "0000000007.tmp", "0000000007.seg.damaged", "+000000007.seg", ".seg", "x"] {
            assert_eq!(parse_file_name(other), None, "{other}");
        }
    }
}
