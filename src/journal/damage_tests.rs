//! Any records, in either format, and any damage to them: the reader never panics, gives out nothing that was not
//! written, and loses nothing that was not hit.

use std::io;
use std::ops::Range;

use proptest::prelude::*;

use super::disk::File;
use super::reader::Reader;
use super::record::{HEADER_BYTES, Header, RECORD_HEADER_BYTES, RecordHeader, VERSION};
use crate::event::row;
use crate::event::{EventId, Timestamp};

const SEGMENT: u64 = 7;

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl File for Bytes {
    fn write(&self, _at: u64, _bytes: &[u8]) -> io::Result<()> {
        unreachable!("a reader does not write")
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

/// The rows of one record.
type Written = (u32, bool, Vec<u8>);

fn written() -> impl Strategy<Value = Vec<Written>> {
    let messages = prop::collection::vec("[a-z]{1,40}", 1..5);
    let record = (messages, any::<bool>()).prop_map(|(messages, overflow)| {
        let mut bytes = Vec::new();
        for message in &messages {
            let time = Timestamp::from_millis(1);
            row::begin(&mut bytes, EventId::floor(1), time, time);
            row::text(&mut bytes, b"s");
            row::text(&mut bytes, message.as_bytes());
            row::metadata(&mut bytes, None);
        }
        (u32::try_from(messages.len()).unwrap(), overflow, bytes)
    });
    prop::collection::vec(record, 0..12)
}

fn header(version: u32, tag: [u8; 8]) -> [u8; HEADER_BYTES] {
    let mut bytes = Header { segment: SEGMENT, tag, made_at: Timestamp::from_millis(1) }.encode();
    bytes[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// A segment, and where its records lie.
fn segment(version: u32, tag: [u8; 8], records: &[Written]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut bytes = header(version, tag).to_vec();
    let mut places = Vec::new();
    for (rows, overflow, body) in records {
        let start = bytes.len();
        bytes.extend_from_slice(&RecordHeader::of(SEGMENT, tag, *rows, *overflow, body).encode());
        bytes.extend_from_slice(body);
        assert_eq!(bytes.len(), start + RECORD_HEADER_BYTES + body.len());
        places.push(start..bytes.len());
    }
    (bytes, places)
}

#[track_caller]
fn read(bytes: Vec<u8>) -> Vec<Written> {
    let mut reader = Reader::new(Box::new(Bytes(bytes)), SEGMENT).expect("the format is known");
    let mut found = Vec::new();
    while let Some(record) = reader.next_record().expect("memory can be read") {
        found.push((record.rows, record.overflow, record.bytes.to_vec()));
    }
    found
}

#[derive(Clone, Debug)]
enum Hit {
    Flip(u8),
    Zeros(usize),
    Noise(Vec<u8>),
    /// What lay elsewhere in the segment, as from a block that was used before.
    Stale {
        from: usize,
        bytes: usize,
    },
}

fn hit() -> impl Strategy<Value = Hit> {
    prop_oneof![
        (1..=255_u8).prop_map(Hit::Flip),
        (1..600_usize).prop_map(Hit::Zeros),
        prop::collection::vec(any::<u8>(), 1..100).prop_map(Hit::Noise),
        (any::<usize>(), 1..600_usize).prop_map(|(from, bytes)| Hit::Stale { from, bytes }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_is_written_is_read_in_either_format(records in written(), tag: [u8; 8], zeros in 0..3_000_usize) {
        let plain: Vec<Written> = records.iter().map(|(rows, _, bytes)| (*rows, false, bytes.clone())).collect();
        prop_assert_eq!(read(segment(1, tag, &plain).0), plain);
        let (mut bytes, _) = segment(VERSION, tag, &records);
        bytes.resize(bytes.len() + zeros, 0);
        prop_assert_eq!(read(bytes), records);
    }

    #[test]
    fn damage_costs_what_it_hits_and_invents_nothing(
        records in written(),
        // A tag of zeros, or one that repeats, would be found in what is none: it is drawn at random.
        tag in prop::array::uniform8(1..=255_u8),
        hits in prop::collection::vec((any::<usize>(), hit()), 0..6),
        cut in prop::option::weighted(0.3, any::<usize>()),
    ) {
        let (whole, places) = segment(VERSION, tag, &records);
        let mut bytes = whole.clone();
        for (at, hit) in hits {
            let at = at % bytes.len();
            match hit {
                Hit::Flip(bits) => bytes[at] ^= bits,
                Hit::Zeros(count) => {
                    let end = (at + count).min(bytes.len());
                    bytes[at..end].fill(0);
                }
                Hit::Noise(noise) => {
                    let end = (at + noise.len()).min(bytes.len());
                    bytes[at..end].copy_from_slice(&noise[..end - at]);
                }
                Hit::Stale { from, bytes: count } => {
                    let from = from % whole.len();
                    let count = count.min(whole.len() - from).min(bytes.len() - at);
                    bytes[at..at + count].copy_from_slice(&whole[from..from + count]);
                }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut % (bytes.len() + 1));
        }
        let is_whole = |place: &Range<usize>| bytes.get(place.clone()) == whole.get(place.clone());
        // Without the header the first record tells the tag; without either nothing can be told from noise.
        let is_known = is_whole(&(0..HEADER_BYTES)) || places.first().is_some_and(is_whole);
        let found = read(bytes.clone());
        for one in &found {
            prop_assert!(records.contains(one), "{:?} was never written", one);
        }
        for (place, record) in places.iter().zip(&records).filter(|(place, _)| is_known && is_whole(place)) {
            prop_assert!(found.contains(record), "the record at {:?} was not hit and is lost", place);
        }
    }
}
