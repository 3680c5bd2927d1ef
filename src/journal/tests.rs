//! The reader against every cut and every flipped byte, and the checkpoint against a disk that fails as it is told.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::disk::{Disk, File};
use super::reader::{Reader, Unreadable};
use super::record::Header;
use super::segment::{Group, Segment, name};
use super::*;
use crate::clock::{Clock, Moment};
use crate::event::{EventId, Timestamp};
use crate::row;

/// Files in memory. `fails` names the operation that fails until it is taken back.
#[derive(Clone, Debug, Default)]
struct MemoryDisk(Arc<Mutex<Files>>);

#[derive(Debug, Default)]
struct Files {
    /// What the kernel has, and how much of it is on disk.
    files: BTreeMap<String, (Vec<u8>, usize)>,
    fails: Option<Op>,
}

#[derive(Debug)]
struct MemoryFile(MemoryDisk, String);

impl MemoryDisk {
    fn fail(&self, op: Option<Op>) {
        self.0.lock().unwrap().fails = op;
    }

    fn check(&self, op: Op) -> io::Result<()> {
        if self.0.lock().unwrap().fails == Some(op) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn with(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().files.insert(name(1), (bytes, 0));
        disk
    }

    fn content(&self, name: &str) -> Vec<u8> {
        self.0.lock().unwrap().files[name].0.clone()
    }

    /// Everything that is on disk, as after a power cut.
    fn cut_power(&self) {
        for (bytes, synced) in self.0.lock().unwrap().files.values_mut() {
            bytes.truncate(*synced);
        }
    }

    /// The messages in all segments.
    fn messages(&self) -> Vec<String> {
        let names = self.names().unwrap();
        names.iter().flat_map(|name| read(self, segment::number(name).unwrap()).0).collect()
    }
}

impl Disk for MemoryDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.check(Op::Create)?;
        self.0.lock().unwrap().files.insert(name.to_owned(), (Vec::new(), 0));
        Ok(Box::new(MemoryFile(self.clone(), name.to_owned())))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(MemoryFile(self.clone(), name.to_owned())))
    }
    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.check(Op::Remove)?;
        self.0.lock().unwrap().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemoryFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let failed = self.0.check(Op::Write);
        // A part of it is there all the same.
        let part = if failed.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        let mut files = self.0.0.lock().unwrap();
        let file = &mut files.files.get_mut(&self.1).unwrap().0;
        let at = usize::try_from(at).unwrap();
        assert!(at <= file.len(), "a file has no holes");
        file.resize(file.len().max(at + part.len()), 0);
        file[at..at + part.len()].copy_from_slice(part);
        failed
    }
    fn sync(&self) -> io::Result<()> {
        self.0.check(Op::Sync)?;
        let mut files = self.0.0.lock().unwrap();
        let (bytes, synced) = files.files.get_mut(&self.1).unwrap();
        *synced = bytes.len();
        Ok(())
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.content(&self.1).len() as u64)
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&self.0.content(&self.1)[at..at + into.len()]);
        Ok(())
    }
}

fn block(message: &str) -> RowBlock {
    let mut bytes = Vec::new();
    let time = Timestamp::from_millis(1);
    row::begin(&mut bytes, EventId::floor(1), time, time);
    row::text(&mut bytes, b"s");
    row::text(&mut bytes, message.as_bytes());
    row::metadata(&mut bytes, None);
    RowBlock::new(&bytes, 1, Moment::ZERO)
}

/// The messages of a segment, and what was wrong with it.
fn read(disk: &MemoryDisk, number: u64) -> (Vec<String>, reader::Damage) {
    let mut reader = match Reader::new(disk.open(&name(number)).unwrap(), number) {
        Ok(reader) => reader,
        Err(Unreadable::Newer(error)) => panic!("{error}"),
        Err(Unreadable::Io(error)) => panic!("{error}"),
    };
    let mut messages = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        let texts = row::rows(record.bytes).map(|row| String::from_utf8(row.message().to_vec()).unwrap());
        messages.extend(texts);
    }
    (messages, reader.damage)
}

/// A segment of these messages, and where each record ends.
fn segment_of(messages: &[&str]) -> (Vec<u8>, Vec<usize>) {
    let disk = MemoryDisk::default();
    let header = Header { segment: 1, tag: *b"\x93tag\x07\xf1\0z", made_at: Timestamp::from_millis(1) };
    let mut segment = Segment::create(&disk, header).unwrap();
    let mut ends = Vec::new();
    for message in messages {
        let mut group = Group::default();
        group.push(&segment, &block(message));
        segment.append(&group).unwrap();
        ends.push(usize::try_from(segment.bytes).unwrap());
    }
    (disk.content(&name(1)), ends)
}

const MESSAGES: [&str; 4] = ["one", "two", "three", "four"];

#[test]
fn a_segment_cut_anywhere_gives_the_records_before_the_cut() {
    let (bytes, ends) = segment_of(&MESSAGES);
    for cut in 0..=bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (messages, damage) = read(&MemoryDisk::with(bytes[..cut].to_vec()), 1);
        assert_eq!(messages, MESSAGES[..whole], "cut at {cut}");
        assert_eq!(damage.skipped, 0, "cut at {cut}");
    }
}

#[test]
fn a_flipped_byte_costs_the_record_it_hits_and_no_other() {
    let (bytes, ends) = segment_of(&MESSAGES);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            let hit = ends.iter().position(|end| at < *end).filter(|_| at >= record::HEADER_BYTES);
            let wanted: Vec<_> =
                MESSAGES.iter().enumerate().filter(|(nth, _)| Some(*nth) != hit).map(|(_, m)| *m).collect();
            let (messages, damage) = read(&MemoryDisk::with(flipped), 1);
            assert_eq!(messages, wanted, "byte {at} ^ {flip:#x}");
            assert!(damage != reader::Damage::default(), "byte {at} ^ {flip:#x} went unnoticed");
        }
    }
}

struct Bench {
    checkpoint: Checkpoint,
    journal: Arc<Journal>,
    disk: MemoryDisk,
    clock: Clock,
}

impl Bench {
    fn new() -> Self {
        let (journal, parkers) = Journal::new(1);
        let (journal, disk) = (Arc::new(journal), MemoryDisk::default());
        let clock = Clock::manual(Timestamp::from_millis(1), 1);
        let limits = Limits {
            write_every: Duration::from_millis(10),
            sync_every: Duration::from_secs(5),
            segment_bytes_max: 4096,
        };
        let shared = Arc::new(disk.clone());
        let checkpoint =
            Checkpoint::new(journal.clone(), shared, limits, clock.clone(), parkers.checkpoint, &[]);
        Self { checkpoint, journal, disk, clock }
    }

    fn keep(&self, message: &str) -> RowBlock {
        let block = block(message);
        self.journal.keep(0, &block);
        block
    }

    /// Asks for a level; what was told comes to stand in the cell.
    fn when(&self, level: Level) -> Arc<Mutex<Option<bool>>> {
        let told = Arc::new(Mutex::new(None));
        let cell = told.clone();
        self.journal.when(0, level, Box::new(move |holds| *cell.lock().unwrap() = Some(holds)));
        told
    }

    /// Ticks until nothing is left to sync.
    fn tick(&mut self) {
        let mut job = self.checkpoint.tick(None);
        while let Some(begun) = job {
            job = self.checkpoint.tick(Some(begun.run(&self.disk)));
        }
    }

    fn tick_after(&mut self, wait: Duration) {
        self.clock.advance(wait);
        self.tick();
    }
}

#[test]
fn who_waits_is_told_when_the_level_holds() {
    let mut bench = Bench::new();
    let _block = bench.keep("one");
    let written = bench.when(Level::Written);
    bench.tick();
    assert_eq!((*written.lock().unwrap(), bench.disk.messages()), (Some(true), vec!["one".to_owned()]));
    let _other = bench.keep("two");
    let synced = bench.when(Level::Synced);
    bench.tick();
    assert_eq!(*synced.lock().unwrap(), Some(true));
    bench.disk.cut_power();
    assert_eq!(bench.disk.messages(), ["one", "two"]);
}

#[test]
fn what_is_committed_is_not_written_and_a_segment_goes_with_its_last_block() {
    let mut bench = Bench::new();
    let early = bench.keep("early");
    let late = bench.keep("late");
    bench.journal.settled(vec![early]);
    bench.tick();
    assert_eq!(bench.disk.messages(), ["late"]);
    bench.journal.settled(vec![late]);
    bench.tick_after(Duration::from_secs(5));
    assert!(bench.disk.names().unwrap().is_empty());
}

#[test]
fn a_full_disk_loses_nothing_and_is_left_behind_by_itself() {
    let mut bench = Bench::new();
    let _one = bench.keep("one");
    bench.tick();
    bench.disk.fail(Some(Op::Write));
    let _two = bench.keep("two");
    let told = bench.when(Level::Written);
    bench.tick();
    assert_eq!(*told.lock().unwrap(), Some(false));
    assert!(!bench.journal.promises(Level::Memory) && bench.journal.trouble() == Some(Trouble::NotWritable));
    bench.disk.fail(None);
    bench.tick_after(Duration::from_secs(5));
    assert!(bench.journal.promises(Level::Synced));
    bench.disk.cut_power();
    let mut messages = bench.disk.messages();
    messages.sort();
    messages.dedup();
    assert_eq!(messages, ["one", "two"]);
}

#[test]
fn a_sync_that_failed_is_not_believed_later_and_all_is_written_again_elsewhere() {
    let mut bench = Bench::new();
    let _one = bench.keep("one");
    bench.disk.fail(Some(Op::Sync));
    let told = bench.when(Level::Synced);
    bench.tick();
    assert_eq!(*told.lock().unwrap(), Some(false));
    assert!(bench.journal.promises(Level::Written) && !bench.journal.promises(Level::Synced));
    // Writing goes on at once; the abandoned file is not needed any more.
    bench.tick();
    assert_eq!((bench.disk.messages(), bench.disk.names().unwrap()), (vec!["one".to_owned()], vec![name(2)]));
    bench.disk.fail(None);
    bench.tick_after(Duration::from_secs(1));
    assert!(bench.journal.promises(Level::Synced));
    assert_eq!(bench.journal.figures.failures[Op::Sync as usize].load(Ordering::Relaxed), 1);
}

#[test]
fn writing_goes_on_while_a_sync_is_under_way_and_the_next_takes_all_that_came() {
    let mut bench = Bench::new();
    let _one = bench.keep("one");
    let first = bench.when(Level::Synced);
    let job = bench.checkpoint.tick(None).expect("somebody waits");
    let _two = bench.keep("two");
    let (written, second) = (bench.when(Level::Written), bench.when(Level::Synced));
    assert!(bench.checkpoint.tick(None).is_none(), "one at a time");
    assert_eq!((*first.lock().unwrap(), *written.lock().unwrap()), (None, Some(true)));
    assert_eq!(bench.disk.messages(), ["one", "two"]);
    let next = bench.checkpoint.tick(Some(job.run(&bench.disk))).expect("somebody waits");
    assert_eq!((*first.lock().unwrap(), *second.lock().unwrap()), (Some(true), None));
    assert!(bench.checkpoint.tick(Some(next.run(&bench.disk))).is_none());
    assert_eq!(*second.lock().unwrap(), Some(true));
}

#[test]
fn full_segments_wait_for_their_syncs_in_order_and_who_waits_hears_of_the_last() {
    let mut bench = Bench::new();
    let text = "x".repeat(5000);
    let _blocks = [bench.keep(&text)];
    let job = bench.checkpoint.tick(None).expect("a full segment is synced");
    let _more = [bench.keep(&text), bench.keep("last")];
    let told = bench.when(Level::Synced);
    assert!(bench.checkpoint.tick(None).is_none());
    let second = bench.checkpoint.tick(Some(job.run(&bench.disk))).expect("the second");
    assert_eq!(bench.disk.names().unwrap().len(), 2);
    let third = bench.checkpoint.tick(Some(second.run(&bench.disk)));
    // Both came in one group: it went into one segment.
    assert!(third.is_none());
    assert_eq!(*told.lock().unwrap(), Some(true));
    bench.disk.cut_power();
    assert_eq!(bench.disk.messages().len(), 3);
}

#[test]
fn a_write_that_fails_while_a_sync_is_under_way_leaves_that_its_own_end() {
    let mut bench = Bench::new();
    let _one = bench.keep("one");
    let first = bench.when(Level::Synced);
    let job = bench.checkpoint.tick(None).unwrap();
    bench.disk.fail(Some(Op::Write));
    let _two = bench.keep("two");
    let second = bench.when(Level::Synced);
    assert!(bench.checkpoint.tick(None).is_none());
    assert_eq!((*first.lock().unwrap(), *second.lock().unwrap()), (None, Some(false)));
    bench.disk.fail(None);
    let done = job.run(&bench.disk);
    assert!(bench.checkpoint.tick(Some(done)).is_none());
    assert_eq!(*first.lock().unwrap(), Some(true));
    bench.tick_after(Duration::from_secs(5));
    bench.disk.cut_power();
    let mut messages = bench.disk.messages();
    messages.sort();
    assert_eq!(messages, ["one", "two"]);
}

#[test]
fn zeros_at_the_end_are_reserved_and_no_damage() {
    let (mut bytes, _) = segment_of(&MESSAGES);
    let end = bytes.len();
    bytes.resize(end + 300_000, 0);
    let (messages, damage) = read(&MemoryDisk::with(bytes.clone()), 1);
    assert_eq!((messages.len(), damage), (4, reader::Damage::default()));
    bytes[end + 7] = 1;
    assert_eq!(read(&MemoryDisk::with(bytes), 1).1.torn_bytes, 8);
    let nothing = read(&MemoryDisk::with(vec![0; 1000]), 1);
    assert_eq!(nothing, (Vec::new(), reader::Damage::default()));
}
