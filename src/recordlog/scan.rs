//! Reads a file record by record, in bounded memory.

use std::fmt::Debug;
use std::io;
use std::ops::Range;

use super::header::{DecodeHeaderError, FileFormat};
use super::record::{RECORD_HEADER_BYTES, RecordHeader};

/// Bytes of one read, and the bound on the memory for a record whose checksum has not been
/// verified.
const WINDOW_BYTES: usize = 256 * 1024;

/// The bytes of a file.
pub trait ReadAt: Debug {
    /// Fills `into` from offset `at`. Fails if the file ends before.
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for &[u8] {
    fn read_at(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let held = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..into.len()));
        into.copy_from_slice(held.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Bytes of a file that are not valid records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Ranges of bytes before the last valid record that are not valid records, and records with a
    /// matching checksum that the caller rejected.
    pub corrupt_ranges: u64,
    /// Bytes after the last valid record, without trailing zeros: a write that a crash interrupted.
    pub torn_bytes: u64,
    pub header_corrupt: bool,
}

/// A file could not be opened for reading.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    UnsupportedVersion(DecodeHeaderError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A scan of one file, or of a range of it.
///
/// Invariant: every byte before `at` belongs to a returned record or is counted in `damage`.
#[derive(Debug)]
pub struct Scan<R> {
    source: R,
    number: u64,
    tag: Option<[u8; 8]>,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    payload: Vec<u8>,
    damage: Damage,
    trailing_zeros: u64,
}

impl<R: ReadAt> Scan<R> {
    /// Begins a scan of all records of a file of `end` bytes, which is expected to have this kind
    /// (0 if the format has none) and number.
    pub fn open(
        source: R,
        end: u64,
        format: &FileFormat,
        (kind, number): (u32, u64),
    ) -> Result<Self, OpenError> {
        let records_at = format.header_bytes() as u64;
        let mut scan = Self::with_span(source, number, None, records_at..end);
        if let Some(bytes) = scan.bytes_at(0, format.header_bytes())? {
            let is_zero = bytes.iter().all(|byte| *byte == 0);
            match format.decode_header(bytes) {
                Ok(header) if (header.kind, header.number) == (kind, number) => scan.tag = Some(header.tag),
                Err(newer @ DecodeHeaderError::UnsupportedVersion { .. }) => {
                    return Err(OpenError::UnsupportedVersion(newer));
                }
                Ok(_) | Err(DecodeHeaderError::Corrupt) => {
                    // The first record contains the tag too.
                    scan.tag = scan.tag_of_record_at(records_at)?;
                    // Zeros without a record were never synced: they are not corruption.
                    scan.damage.header_corrupt = !is_zero || scan.tag.is_some();
                }
            }
        }
        // A header that is cut off was never synced either.
        if scan.tag.is_none() {
            scan.measure_tail(0)?;
        }
        Ok(scan)
    }

    /// Begins a scan of a range, from the beginning of a record to the end of a record.
    pub fn open_range(source: R, number: u64, tag: [u8; 8], span: Range<u64>) -> Self {
        Self::with_span(source, number, Some(tag), span)
    }

    fn with_span(source: R, number: u64, tag: Option<[u8; 8]>, span: Range<u64>) -> Self {
        Self {
            source,
            number,
            tag,
            at: span.start,
            end: span.end,
            window: Vec::new(),
            window_at: 0,
            payload: Vec::new(),
            damage: Damage::default(),
            trailing_zeros: 0,
        }
    }

    /// Moves to the next valid record and reads its payload. Returns `None` at the end.
    pub fn next_record(&mut self) -> io::Result<Option<RecordHeader>> {
        // The offset up to which all bytes are accounted for.
        let begin = self.at;
        let mut at = begin;
        while at < self.end {
            if let Some(header) = self.record_at(at)? {
                self.damage.corrupt_ranges += u64::from(at > begin);
                let payload_at = at + RECORD_HEADER_BYTES as u64;
                self.at = payload_at + u64::from(header.payload_bytes);
                self.read_payload(payload_at, header.payload_bytes as usize)?;
                return Ok(Some(header));
            }
            let Some(found) = self.find_tag(at + 1)? else { break };
            at = found;
        }
        self.measure_tail(begin)?;
        Ok(None)
    }

    /// The payload of the record that [`Self::next_record`] returned last.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Counts the record returned last as corrupt: its checksum matches but its payload does not
    /// decode, so that it was corrupt when it was written.
    pub fn reject(&mut self) {
        self.damage.corrupt_ranges += 1;
    }

    /// The offset up to which all records were returned and all corruption was counted.
    pub fn position(&self) -> u64 {
        self.at
    }

    pub fn damage(&self) -> Damage {
        self.damage
    }

    /// Zeros at the end of the file. Set once the end is reached.
    pub fn trailing_zeros(&self) -> u64 {
        self.trailing_zeros
    }

    /// Counts the bytes from `begin` to the end, where no valid record begins: a torn tail up to
    /// the last non-zero byte, then zeros.
    fn measure_tail(&mut self, begin: u64) -> io::Result<()> {
        let (mut from, mut torn_to) = (begin, begin);
        while from < self.end {
            let some = usize::try_from(self.end - from).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            let bytes = self.bytes_at(from, some)?.unwrap_or_default();
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                torn_to = from + last as u64 + 1;
            }
            from += some as u64;
        }
        self.damage.torn_bytes += torn_to - begin;
        self.trailing_zeros += self.end - torn_to.min(self.end);
        self.at = self.end;
        Ok(())
    }

    /// Returns the header of the record at `at` if its tag and checksum match.
    fn record_at(&mut self, at: u64) -> io::Result<Option<RecordHeader>> {
        let (number, tag) = (self.number, self.tag);
        let Some(bytes) = self.bytes_at(at, RECORD_HEADER_BYTES)? else { return Ok(None) };
        let header = RecordHeader::decode(bytes.try_into().expect("as many were asked for"));
        let payload_at = at + RECORD_HEADER_BYTES as u64;
        if Some(header.tag) != tag
            || header.count() == 0
            || payload_at + u64::from(header.payload_bytes) > self.end
        {
            return Ok(None);
        }
        // In windows: a corrupt length must not allocate memory before the checksum is verified.
        let mut crc = header.crc_of_fields(number);
        let mut from = payload_at;
        let mut left = header.payload_bytes as usize;
        while left > 0 {
            let some = left.min(WINDOW_BYTES);
            let Some(bytes) = self.bytes_at(from, some)? else { return Ok(None) };
            crc = crc32c::crc32c_append(crc, bytes);
            from += some as u64;
            left -= some;
        }
        Ok((crc == header.crc).then_some(header))
    }

    fn read_payload(&mut self, at: u64, length: usize) -> io::Result<()> {
        self.payload.clear();
        self.payload.shrink_to(WINDOW_BYTES);
        self.payload.resize(length, 0);
        let in_window =
            at >= self.window_at && at + length as u64 <= self.window_at + self.window.len() as u64;
        if in_window {
            let start = usize::try_from(at - self.window_at).expect("a window is small");
            self.payload.copy_from_slice(&self.window[start..start + length]);
            return Ok(());
        }
        self.source.read_at(at, &mut self.payload)
    }

    /// Returns the offset of the next occurrence of the tag at or after `from`.
    fn find_tag(&mut self, mut from: u64) -> io::Result<Option<u64>> {
        let Some(tag) = self.tag else { return Ok(None) };
        loop {
            let left = usize::try_from(self.end.saturating_sub(from)).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            let Some(bytes) = self.bytes_at(from, left)? else { return Ok(None) };
            if bytes.len() < tag.len() {
                return Ok(None);
            }
            if let Some(found) = bytes.windows(tag.len()).position(|window| window == tag) {
                return Ok(Some(from + found as u64));
            }
            // The windows overlap, since a tag may cross their boundary.
            from += (left - tag.len() + 1) as u64;
        }
    }

    /// Returns the first 8 bytes at `at` if they begin a record with a matching checksum.
    fn tag_of_record_at(&mut self, at: u64) -> io::Result<Option<[u8; 8]>> {
        let Some(bytes) = self.bytes_at(at, 8)? else { return Ok(None) };
        self.tag = Some(bytes.try_into().expect("as many were asked for"));
        Ok(self.record_at(at)?.map(|header| header.tag))
    }

    /// Returns `length` bytes at `at`, or `None` if the file ends before.
    fn bytes_at(&mut self, at: u64, length: usize) -> io::Result<Option<&[u8]>> {
        debug_assert!(length <= WINDOW_BYTES, "BUG: a window is bounded");
        if at + length as u64 > self.end {
            return Ok(None);
        }
        let held_to = self.window_at + self.window.len() as u64;
        if at < self.window_at || at + length as u64 > held_to {
            let left = usize::try_from(self.end - at).unwrap_or(usize::MAX).min(WINDOW_BYTES);
            self.window.resize(left, 0);
            self.source.read_at(at, &mut self.window)?;
            self.window_at = at;
        }
        let start = usize::try_from(at - self.window_at).expect("a window is small");
        Ok(Some(&self.window[start..start + length]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FileHeader, append_record};
    use super::*;

    const FORMAT: FileFormat =
        FileFormat { magic: *b"AURTEST\n", version: 1, has_kind: true, has_created_at: false };
    const HEADER: FileHeader = FileHeader { kind: 1, number: 7, tag: *b"tagtagta", created_at_us: 0 };

    fn file(payloads: &[&[u8]]) -> Vec<u8> {
        let mut bytes = FORMAT.encode_header(&HEADER);
        for payload in payloads {
            append_record(&mut bytes, (HEADER.number, HEADER.tag), (1, false), payload);
        }
        bytes
    }

    fn scan_all(bytes: &[u8], kind: u32) -> (Vec<Vec<u8>>, Damage, u64) {
        let mut scan = Scan::open(bytes, bytes.len() as u64, &FORMAT, (kind, HEADER.number)).unwrap();
        let mut found = Vec::new();
        while scan.next_record().unwrap().is_some() {
            found.push(scan.payload().to_vec());
        }
        (found, scan.damage(), scan.trailing_zeros())
    }

    #[test]
    fn scan_resumes_at_the_next_tag_across_windows() {
        let long = vec![b'x'; WINDOW_BYTES - 30];
        let larger = vec![b'y'; 2 * WINDOW_BYTES];
        let payloads: [&[u8]; 3] = [&long, &larger, b"last"];
        let mut bytes = file(&payloads);
        assert_eq!(scan_all(&bytes, 1), (payloads.map(<[u8]>::to_vec).to_vec(), Damage::default(), 0));
        bytes[WINDOW_BYTES + 100] ^= 1;
        bytes.extend_from_slice(&[b't', 0, 0]);
        let damage = Damage { corrupt_ranges: 1, torn_bytes: 1, header_corrupt: false };
        assert_eq!(scan_all(&bytes, 1), (vec![long, b"last".to_vec()], damage, 2));
    }

    #[test]
    fn corrupt_header_is_replaced_by_the_tag_of_the_first_record() {
        let whole = file(&[b"one", b"two"]);
        let mut zeroed = whole.clone();
        zeroed[..FORMAT.header_bytes()].fill(0);
        let damage = Damage { header_corrupt: true, ..Damage::default() };
        let payloads = vec![b"one".to_vec(), b"two".to_vec()];
        assert_eq!(scan_all(&zeroed, 1), (payloads.clone(), damage, 0));
        // The header is that of a file of another kind.
        assert_eq!(scan_all(&whole, 2), (payloads, damage, 0));
    }

    #[test]
    fn header_that_was_never_synced_is_not_corruption() {
        let zeros = [0; 100];
        assert_eq!(scan_all(&zeros, 1), (Vec::new(), Damage::default(), 100));
        let header = FORMAT.encode_header(&HEADER);
        let damage = Damage { torn_bytes: 26, ..Damage::default() };
        assert_eq!(scan_all(&header[..26], 1), (Vec::new(), damage, 0));
    }
}
