//! The reader against every cut and every flipped byte, and the checkpoint against a disk that fails as it is told.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::disk::{Disk, File};
use super::reader::{Reader, Unreadable};
use super::record::Header;
use super::refill::Feed;
use super::segment::{Group, Segment, name};
use super::*;
use crate::buffer::{Buffer, Full};
use crate::clock::{Clock, Moment};
use crate::event::row;
use crate::event::{EventId, Timestamp};
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Ledger;
use crate::storage::Stored;

/// Files in memory. `fails` names the operation that fails until it is taken back.
#[derive(Clone, Debug, Default)]
struct MemoryDisk(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    /// What the kernel has, and how much of it is on disk.
    files: BTreeMap<String, (Vec<u8>, usize)>,
    fails: Option<Op>,
    renamed: Vec<String>,
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

    fn renamed(&self) -> Vec<String> {
        self.0.lock().unwrap().renamed.clone()
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
    fn rename(&self, from: &str, _to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.renamed.push(from.to_owned());
        files.files.remove(from).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
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
        // A file that was removed meanwhile can be synced as well.
        if let Some((bytes, synced)) = self.0.0.lock().unwrap().files.get_mut(&self.1) {
            *synced = bytes.len();
        }
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

fn encoded(messages: &[&str]) -> (Vec<u8>, u32) {
    let mut bytes = Vec::new();
    let time = Timestamp::from_millis(1);
    for message in messages {
        row::begin(&mut bytes, EventId::floor(1), time, time);
        row::text(&mut bytes, b"s");
        row::text(&mut bytes, message.as_bytes());
        row::metadata(&mut bytes, None);
    }
    (bytes, u32::try_from(messages.len()).unwrap())
}

fn block(message: &str) -> RowBlock {
    RowBlock::new(&encoded(&[message]).0, 1, Moment::ZERO)
}

fn messages_of(bytes: &[u8]) -> impl Iterator<Item = String> {
    row::rows(bytes).map(|row| String::from_utf8(row.message().to_vec()).unwrap())
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
        messages.extend(messages_of(record.bytes));
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

fn store(buffer: &Buffer, ledger: &Ledger, journal: &Journal) -> Vec<String> {
    let blocks: Vec<_> = std::iter::from_fn(|| buffer.take(&mut 0)).collect();
    let stored: Vec<_> = blocks.iter().flat_map(|block| messages_of(block.bytes())).collect();
    for block in &blocks {
        buffer.settled(block.rows(), block.bytes().len(), Moment::ZERO);
    }
    ledger.settled(Stored { stored: stored.len() as u64, ..Stored::default() });
    journal.settled(blocks);
    stored
}

#[test]
fn segments_of_version_1_are_read() {
    let bytes = include_bytes!("fixtures/version-1.seg").to_vec();
    let (messages, damage) = read(&MemoryDisk::with(bytes), 1);
    assert_eq!(messages, ["single 1", "single 2", "batch 1", "batch 2"]);
    assert_eq!(damage, reader::Damage::default());
}

struct Bench {
    checkpoint: Checkpoint,
    journal: Arc<Journal>,
    buffer: Arc<Buffer>,
    ledger: Arc<Ledger>,
    feed: Feed,
    disk: MemoryDisk,
    clock: Clock,
}

const SPILL_BYTES_MAX: u64 = 20_000;
/// Events that the bench's buffer holds.
const ROWS_MAX: usize = 10;

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
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let ledger = Arc::new(Ledger::new(1));
        let room = crate::buffer::Limits {
            rows_max: ROWS_MAX,
            bytes_max: 1 << 20,
            batch_rows_max: 2,
            batch_bytes_max: 1 << 20,
            spill_bytes_max: SPILL_BYTES_MAX,
        };
        let buffer = Arc::new(Buffer::new(room, 1, ledger.clone()).0);
        let kept = (journal.clone(), buffer.clone());
        let checkpoint =
            Checkpoint::new(kept, shared.clone(), limits, clock.clone(), parkers.checkpoint, &[]);
        let feed = Feed {
            journal: journal.clone(),
            disk: shared,
            buffer: buffer.clone(),
            lifecycle: Lifecycle::new().0,
            clock: clock.clone(),
            parker: parkers.recovery,
        };
        Self { checkpoint, journal, buffer, ledger, feed, disk, clock }
    }

    /// As an acceptor does, one block of these events.
    fn admit(&self, messages: &[&str]) -> Result<(), Full> {
        let (bytes, rows) = encoded(messages);
        let keep = |block: &RowBlock| self.journal.keep(0, block);
        let blocks = std::iter::once((&*bytes, rows));
        self.buffer.admit(0, (rows, bytes.len()), self.clock.now(), blocks, keep)
    }

    /// As the writer does: stores what the buffer holds, and tells what that is.
    fn store(&self) -> Vec<String> {
        store(&self.buffer, &self.ledger, &self.journal)
    }

    /// Brings back all that is synced and stores it, until nothing is left.
    fn drain(&mut self) -> Vec<String> {
        self.feed.lifecycle.enter(Phase::Draining);
        let mut stored = self.store();
        self.tick();
        let Self { feed, buffer, ledger, journal, .. } = self;
        std::thread::scope(|scope| {
            let refill = move || {
                while let Some(wait) = feed.refill() {
                    if !wait.is_zero() {
                        feed.sleep(wait);
                    }
                }
            };
            let feed = scope.spawn(refill);
            while !feed.is_finished() {
                stored.extend(store(buffer, ledger, journal));
                std::thread::yield_now();
            }
        });
        stored.extend(self.store());
        stored
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

/// So many events that the buffer is full, then `spilled` more.
fn spilling(bench: &Bench, spilled: usize) -> Vec<String> {
    let messages: Vec<_> = (0..ROWS_MAX + spilled).map(|nth| format!("m{nth:03}")).collect();
    for message in &messages {
        bench.admit(&[message]).unwrap();
    }
    messages
}

#[test]
fn what_has_no_room_lies_in_the_journal_alone_and_comes_back_in_order() {
    let mut bench = Bench::new();
    let messages = spilling(&bench, 30);
    let spill = bench.buffer.spill();
    assert_eq!((spill.events(), spill.moving().rows, bench.buffer.occupied().rows), (30, 30, ROWS_MAX));
    bench.tick_after(Duration::from_secs(5));
    let spill = bench.buffer.spill();
    assert_eq!((spill.events(), spill.moving().rows), (30, 0), "synced, it leaves memory");
    // There would be room again, and what comes in queues behind all the same.
    let mut stored = bench.store();
    bench.admit(&["last"]).unwrap();
    assert_eq!(bench.buffer.spill().events(), 31);
    bench.tick_after(Duration::from_secs(5));
    stored.extend(bench.drain());
    assert_eq!(stored, [messages, vec!["last".to_owned()]].concat());
    let balance = bench.ledger.balance();
    assert_eq!((balance.received, balance.stored, balance.buffered(), balance.lost), (41, 41, 0, 0));
    assert_eq!((bench.buffer.spill().bytes(), bench.buffer.occupied().rows), (0, 0));
    bench.tick_after(Duration::from_secs(5));
    assert_eq!(bench.disk.names().unwrap(), Vec::<String>::new(), "its segments go as any other");
}

#[test]
fn what_is_spilled_survives_the_process_and_the_bound_is_exact() {
    let mut bench = Bench::new();
    let messages = spilling(&bench, 3);
    bench.tick();
    assert_eq!(bench.disk.messages(), messages);
    let bytes = encoded(&["m000"]).0.len() as u64;
    let left = (SPILL_BYTES_MAX - bench.buffer.spill().bytes()) / bytes;
    for _ in 0..left {
        bench.admit(&["more"]).unwrap();
    }
    assert_eq!(bench.admit(&["more"]), Err(Full::Now));
    assert!(bench.buffer.spill().bytes() <= SPILL_BYTES_MAX);
    bench.buffer.close();
    assert_eq!(bench.admit(&["more"]), Err(Full::Closed));
}

#[test]
fn a_disk_that_takes_nothing_holds_no_spilled_event_back() {
    for op in [Op::Write, Op::Sync] {
        let mut bench = Bench::new();
        let messages = spilling(&bench, 5);
        bench.disk.fail(Some(op));
        bench.tick_after(Duration::from_secs(5));
        assert!(bench.journal.trouble().is_some());
        assert_eq!(bench.buffer.spill().events(), 5, "there is no room for them yet");
        let mut stored = bench.store();
        bench.tick_after(Duration::from_secs(5));
        assert_eq!((bench.buffer.spill().events(), bench.buffer.spill().moving().rows), (0, 0));
        stored.extend(bench.store());
        assert_eq!(stored, messages);
        assert_eq!(bench.ledger.balance().buffered(), 0);
        bench.disk.fail(None);
        bench.tick_after(Duration::from_secs(5));
        bench.tick_after(Duration::from_secs(5));
        assert_eq!((bench.journal.trouble(), bench.disk.names().unwrap()), (None, Vec::new()));
    }
}

#[test]
fn what_the_disk_has_not_kept_is_counted_and_its_segment_set_aside() {
    let mut bench = Bench::new();
    let mut messages = spilling(&bench, 5);
    bench.tick_after(Duration::from_secs(5));
    {
        let mut files = bench.disk.0.lock().unwrap();
        let (bytes, _) = files.files.get_mut(&name(1)).unwrap();
        let lost = messages.remove(ROWS_MAX + 2);
        let at = bytes.windows(4).position(|four| four == lost.as_bytes()).unwrap();
        bytes[at] ^= 1;
    }
    assert_eq!(bench.drain(), messages);
    let balance = bench.ledger.balance();
    assert_eq!((balance.received, balance.stored, balance.lost, balance.buffered()), (15, 14, 1, 0));
    assert_eq!((bench.buffer.spill().events(), bench.buffer.spill().bytes()), (0, 0));
    bench.tick_after(Duration::from_secs(5));
    assert_eq!(bench.disk.renamed(), [name(1)]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Admit(usize),
    Store,
    /// Advances so many ms, and completes the sync under way or leaves it so.
    Tick(u64, bool),
    Fail(Option<Op>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..4_usize).prop_map(Step::Admit),
        1 => Just(Step::Store),
        4 => (prop_oneof![Just(1), Just(10), Just(6_000)], any::<bool>()).prop_map(|(ms, ends)| Step::Tick(ms, ends)),
        1 => prop_oneof![Just(Op::Write), Just(Op::Sync), Just(Op::Create)].prop_map(|op| Step::Fail(Some(op))),
        2 => Just(Step::Fail(None)),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_fails_each_admitted_event_is_stored_once(steps in steps()) {
        let mut bench = Bench::new();
        let (mut admitted, mut stored, mut number, mut under_way) = (Vec::new(), Vec::new(), 0, None);
        for step in steps {
            match step {
                Step::Admit(count) => {
                    let texts: Vec<_> = (number..number + count).map(|nth| format!("e{nth}")).collect();
                    number += count;
                    if bench.admit(&texts.iter().map(String::as_str).collect::<Vec<_>>()).is_ok() {
                        admitted.extend(texts);
                    }
                }
                Step::Store => stored.extend(bench.store()),
                Step::Tick(ms, ends) => {
                    bench.clock.advance(Duration::from_millis(ms));
                    let done = if ends { under_way.take().map(|job: sync::Job| job.run(&bench.disk)) } else { None };
                    if let Some(job) = bench.checkpoint.tick(done) {
                        prop_assert!(under_way.replace(job).is_none(), "one sync at a time");
                    }
                }
                Step::Fail(op) => bench.disk.fail(op),
            }
            let (spill, balance) = (bench.buffer.spill(), bench.ledger.balance());
            prop_assert!(spill.bytes() <= SPILL_BYTES_MAX);
            prop_assert_eq!(balance.buffered(), bench.buffer.occupied().rows as u64 + spill.events());
            prop_assert_eq!(balance.received, admitted.len() as u64);
        }
        bench.disk.fail(None);
        let done = under_way.map(|job| job.run(&bench.disk));
        let mut job = bench.checkpoint.tick(done);
        while let Some(begun) = job {
            job = bench.checkpoint.tick(Some(begun.run(&bench.disk)));
        }
        for _ in 0..3 {
            bench.tick_after(Duration::from_secs(6));
        }
        prop_assert_eq!(bench.journal.trouble(), None);
        stored.extend(bench.drain());
        stored.sort();
        admitted.sort();
        prop_assert_eq!(stored, admitted);
        for _ in 0..2 {
            bench.tick_after(Duration::from_secs(6));
        }
        prop_assert_eq!(bench.disk.names().unwrap(), Vec::<String>::new());
    }
}
