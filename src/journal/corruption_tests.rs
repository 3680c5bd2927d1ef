//! Property tests of the reader, with random records in either format version and random
//! corruption: it never panics, returns only records that were written, and returns every intact
//! record.

use std::io;
use std::ops::Range;

use proptest::prelude::*;

use super::filesystem::File;
use super::reader::SegmentReader;
use super::record::{HEADER_BYTES, RECORD_HEADER_BYTES, RecordHeader, SegmentHeader, VERSION};
use crate::event::row;
use crate::event::{ArrivalNumber, EventId, Timestamp};

const SEGMENT: u64 = 7;

#[derive(Debug)]
struct BytesFile(Vec<u8>);

impl File for BytesFile {
    fn write(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        unreachable!("the reader must not write")
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(self.0.get(at..at + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// The number of rows, the spilled flag and the bytes of one record.
type ExpectedRecord = (u32, bool, Vec<u8>);

fn expected_records() -> impl Strategy<Value = Vec<ExpectedRecord>> {
    let messages = prop::collection::vec("[a-z]{1,40}", 1..5);
    let record = (messages, any::<bool>()).prop_map(|(messages, spilled)| {
        let mut bytes = Vec::new();
        for message in &messages {
            let time = Timestamp::from_millis(1);
            row::append_header(&mut bytes, EventId::floor(1), time, time, ArrivalNumber::default());
            row::append_text(&mut bytes, b"s");
            row::append_text(&mut bytes, message.as_bytes());
            row::append_metadata(&mut bytes, None);
        }
        (u32::try_from(messages.len()).unwrap(), spilled, bytes)
    });
    prop::collection::vec(record, 0..12)
}

fn header(version: u32, tag: [u8; 8]) -> [u8; HEADER_BYTES] {
    let mut bytes = SegmentHeader { segment: SEGMENT, tag, created_at: Timestamp::from_millis(1) }.encode();
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The bytes of a segment, and the span of each record.
fn segment(version: u32, tag: [u8; 8], records: &[ExpectedRecord]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut bytes = header(version, tag).to_vec();
    let mut record_spans = Vec::new();
    for (rows, spilled, body) in records {
        let start = bytes.len();
        bytes.extend_from_slice(&RecordHeader::new(SEGMENT, tag, *rows, *spilled, body).encode());
        bytes.extend_from_slice(body);
        assert_eq!(bytes.len(), start + RECORD_HEADER_BYTES + body.len());
        record_spans.push(start..bytes.len());
    }
    (bytes, record_spans)
}

#[track_caller]
fn read(bytes: Vec<u8>) -> Vec<ExpectedRecord> {
    let mut reader =
        SegmentReader::open(Box::new(BytesFile(bytes)), SEGMENT).expect("the version is supported");
    let mut read_records = Vec::new();
    while let Some(record) = reader.next_record().expect("reads from memory succeed") {
        read_records.push((record.rows, record.spilled, record.bytes.to_vec()));
    }
    read_records
}

#[derive(Clone, Debug)]
enum Corruption {
    Flip(u8),
    Zeros(usize),
    Noise(Vec<u8>),
    /// Bytes copied from elsewhere in the segment, like a stale disk block.
    Stale {
        from: usize,
        bytes: usize,
    },
}

fn corruption() -> impl Strategy<Value = Corruption> {
    prop_oneof![
        (1..=255_u8).prop_map(Corruption::Flip),
        (1..600_usize).prop_map(Corruption::Zeros),
        prop::collection::vec(any::<u8>(), 1..100).prop_map(Corruption::Noise),
        (any::<usize>(), 1..600_usize).prop_map(|(from, bytes)| Corruption::Stale { from, bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn reader_returns_all_records_of_either_format_version(records in expected_records(), tag: [u8; 8], zeros in 0..3_000_usize) {
        let plain: Vec<ExpectedRecord> = records.iter().map(|(rows, _, bytes)| (*rows, false, bytes.clone())).collect();
        prop_assert_eq!(read(segment(1, tag, &plain).0), plain);
        let (mut bytes, _) = segment(VERSION, tag, &records);
        bytes.resize(bytes.len() + zeros, 0);
        prop_assert_eq!(read(bytes), records);
    }

    #[test]
    fn reader_returns_every_intact_record_and_no_other(
        records in expected_records(),
        // Without zeros, since the corruption writes zeros; a real tag is random.
        tag in prop::array::uniform8(1..=255_u8),
        corruptions in prop::collection::vec((any::<usize>(), corruption()), 0..6),
        cut in prop::option::weighted(0.3, any::<usize>()),
    ) {
        let (whole, record_spans) = segment(VERSION, tag, &records);
        let mut bytes = whole.clone();
        for (at, corruption) in corruptions {
            let at = at % bytes.len();
            match corruption {
                Corruption::Flip(bits) => bytes[at] ^= bits,
                Corruption::Zeros(count) => {
                    let end = (at + count).min(bytes.len());
                    bytes[at..end].fill(0);
                }
                Corruption::Noise(noise) => {
                    let end = (at + noise.len()).min(bytes.len());
                    bytes[at..end].copy_from_slice(&noise[..end - at]);
                }
                Corruption::Stale { from, bytes: count } => {
                    let from = from % whole.len();
                    let count = count.min(whole.len() - from).min(bytes.len() - at);
                    bytes[at..at + count].copy_from_slice(&whole[from..from + count]);
                }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % (bytes.len() + 1));
        }
        let is_intact = |span: &Range<usize>| bytes.get(span.clone()) == whole.get(span.clone());
        // The tag is read from the header or from the first record. Without both, no record can be
        // recognized.
        let is_tag_known = is_intact(&(0..HEADER_BYTES)) || record_spans.first().is_some_and(is_intact);
        let read_records = read(bytes.clone());
        for one in &read_records {
            prop_assert!(records.contains(one), "{:?} was never written", one);
        }
        for (span, record) in record_spans.iter().zip(&records).filter(|(span, _)| is_tag_known && is_intact(span)) {
            prop_assert!(read_records.contains(record), "the record at {:?} is intact and was not returned", span);
        }
    }
}
