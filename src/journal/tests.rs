//! Tests of the reader with truncations and flipped bytes at every offset, and of the journal
//! thread with a filesystem whose operations fail on demand.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;

use super::filesystem::{File, Filesystem};
use super::reader::{OpenSegmentError, SegmentReader};
use super::record::SegmentHeader;
use super::refill::Refiller;
use super::segment::{Segment, WriteGroup, file_name};
use super::*;
use crate::buffer::{AdmitError, Buffer};
use crate::clock::{Clock, Moment};
use crate::event::row;
use crate::event::{ArrivalNumber, EventId, Timestamp};
use crate::lifecycle::{Lifecycle, LifecyclePhase};
use crate::metrics::Ledger;
use crate::storage::Stored;

mod progress;
mod retention;
mod threads;

/// A filesystem in memory. The operation in `fails` fails until it is reset.
#[derive(Clone, Debug, Default)]
struct MemoryFilesystem(Arc<Mutex<MemoryFiles>>);

#[derive(Debug, Default)]
struct MemoryFiles {
    /// The contents of each file, and how many bytes are synced.
    files: BTreeMap<String, (Vec<u8>, usize)>,
    fails: Option<JournalOp>,
    renamed: Vec<String>,
    /// Runs while the next file is created, as another thread could.
    during_create: Option<Meanwhile>,
}

struct Meanwhile(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meanwhile")
    }
}

#[derive(Debug)]
struct MemoryFile(MemoryFilesystem, String);

impl MemoryFilesystem {
    fn fail(&self, op: Option<JournalOp>) {
        self.0.lock().unwrap().fails = op;
    }

    fn check(&self, op: JournalOp) -> io::Result<()> {
        if self.0.lock().unwrap().fails == Some(op) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn with(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().files.insert(file_name(1), (bytes, 0));
        disk
    }

    fn content(&self, name: &str) -> Vec<u8> {
        self.0.lock().unwrap().files[name].0.clone()
    }

    fn renamed(&self) -> Vec<String> {
        self.0.lock().unwrap().renamed.clone()
    }

    /// Simulates a power cut: truncates each file to its synced bytes.
    fn cut_power(&self) {
        for (bytes, synced) in self.0.lock().unwrap().files.values_mut() {
            bytes.truncate(*synced);
        }
    }

    /// The messages of all segments.
    fn messages(&self) -> Vec<String> {
        let names = self.list().unwrap();
        let numbers = names.iter().filter_map(|name| segment::parse_file_name(name));
        numbers.flat_map(|number| read(self, number).0).collect()
    }
}

impl Filesystem for MemoryFilesystem {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().files.keys().cloned().collect())
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn File>> {
        self.check(JournalOp::Create)?;
        let meanwhile = self.0.lock().unwrap().during_create.take();
        if let Some(Meanwhile(run)) = meanwhile {
            run();
        }
        self.0.lock().unwrap().files.insert(name.to_owned(), (Vec::new(), 0));
        Ok(Box::new(MemoryFile(self.clone(), name.to_owned())))
    }
    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        Ok(Box::new(MemoryFile(self.clone(), name.to_owned())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.0.lock().unwrap();
        files.renamed.push(from.to_owned());
        let content = files.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.files.insert(to.to_owned(), content);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.check(JournalOp::Remove)?;
        self.0.lock().unwrap().files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl File for MemoryFile {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let failed = self.0.check(JournalOp::Write);
        // A failed write leaves a part of the bytes.
        let part = if failed.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        let mut files = self.0.0.lock().unwrap();
        let file = &mut files.files.get_mut(&self.1).unwrap().0;
        let at = usize::try_from(at).unwrap();
        assert!(at <= file.len(), "a write must not leave a hole");
        file.resize(file.len().max(at + part.len()), 0);
        file[at..at + part.len()].copy_from_slice(part);
        failed
    }
    fn sync(&self) -> io::Result<()> {
        self.0.check(JournalOp::Sync)?;
        // A sync of a removed file succeeds.
        if let Some((bytes, synced)) = self.0.0.lock().unwrap().files.get_mut(&self.1) {
            *synced = bytes.len();
        }
        Ok(())
    }
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.0.content(&self.1).len() as u64)
    }
    fn read(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.check(JournalOp::Read)?;
        let at = usize::try_from(at).unwrap();
        into.copy_from_slice(&self.0.content(&self.1)[at..at + into.len()]);
        Ok(())
    }
}

fn encoded(messages: &[&str]) -> (Vec<u8>, u32) {
    let mut bytes = Vec::new();
    let time = Timestamp::from_millis(1);
    for message in messages {
        row::append_header(&mut bytes, EventId::floor(1), time, time, ArrivalNumber::default());
        row::append_text(&mut bytes, b"s");
        row::append_text(&mut bytes, message.as_bytes());
        row::append_metadata(&mut bytes, None);
    }
    (bytes, u32::try_from(messages.len()).unwrap())
}

fn block(message: &str) -> RowBlock {
    RowBlock::new(&encoded(&[message]).0, 1, Moment::ZERO)
}

fn messages_of(bytes: &[u8]) -> impl Iterator<Item = String> {
    row::rows(bytes).map(|row| String::from_utf8(row.message().to_vec()).unwrap())
}

/// The messages of a segment, and its damage.
fn read(disk: &MemoryFilesystem, number: u64) -> (Vec<String>, reader::SegmentDamage) {
    let mut reader = match SegmentReader::open(disk.open(&file_name(number)).unwrap(), number) {
        Ok(reader) => reader,
        Err(OpenSegmentError::UnsupportedVersion(error)) => panic!("{error}"),
        Err(OpenSegmentError::Io(error)) => panic!("{error}"),
    };
    let mut messages = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        messages.extend(messages_of(record.bytes));
    }
    (messages, reader.damage())
}

/// The bytes of a segment of these messages, and the end offset of each record.
fn segment_of(messages: &[&str]) -> (Vec<u8>, Vec<usize>) {
    let disk = MemoryFilesystem::default();
    let header =
        SegmentHeader { segment: 1, tag: *b"\x93tag\x07\xf1\0z", created_at: Timestamp::from_millis(1) };
    let mut segment = Segment::create(&disk, header).unwrap();
    let mut ends = Vec::new();
    for message in messages {
        let mut group = WriteGroup::default();
        group.push(&segment, &block(message));
        segment.append(&group).unwrap();
        ends.push(usize::try_from(segment.bytes).unwrap());
    }
    (disk.content(&file_name(1)), ends)
}

const MESSAGES: [&str; 4] = ["one", "two", "three", "four"];

#[test]
fn reader_returns_the_records_before_a_truncation_at_any_byte() {
    let (bytes, ends) = segment_of(&MESSAGES);
    for cut in 0..=bytes.len() {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        let (messages, damage) = read(&MemoryFilesystem::with(bytes[..cut].to_vec()), 1);
        assert_eq!(messages, MESSAGES[..whole], "cut at {cut}");
        assert_eq!(damage.corrupt_ranges, 0, "cut at {cut}");
    }
}

#[test]
fn reader_skips_only_the_record_with_a_flipped_byte() {
    let (bytes, ends) = segment_of(&MESSAGES);
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut flipped = bytes.clone();
            flipped[at] ^= flip;
            let hit = ends.iter().position(|end| at < *end).filter(|_| at >= record::HEADER_BYTES);
            let wanted: Vec<_> =
                MESSAGES.iter().enumerate().filter(|(nth, _)| Some(*nth) != hit).map(|(_, m)| *m).collect();
            let (messages, damage) = read(&MemoryFilesystem::with(flipped), 1);
            assert_eq!(messages, wanted, "byte {at} ^ {flip:#x}");
            assert!(damage != reader::SegmentDamage::default(), "byte {at} ^ {flip:#x} was not detected");
        }
    }
}

fn store(buffer: &Buffer, ledger: &Ledger, journal: &Journal) -> Vec<String> {
    let blocks: Vec<_> = std::iter::from_fn(|| buffer.pop(&mut 0)).collect();
    let stored: Vec<_> = blocks.iter().flat_map(|block| messages_of(block.bytes())).collect();
    buffer.record_committed(Moment::ZERO);
    ledger.record_settled(Stored { stored: stored.len() as u64, ..Stored::default() });
    journal.finalize(blocks, None);
    stored
}

#[test]
fn reader_reads_format_version_1() {
    let bytes = include_bytes!("fixtures/version-1.seg").to_vec();
    let (messages, damage) = read(&MemoryFilesystem::with(bytes), 1);
    assert_eq!(messages, ["single 1", "single 2", "batch 1", "batch 2"]);
    assert_eq!(damage, reader::SegmentDamage::default());
}

#[test]
fn reader_converts_rows_of_format_version_2() {
    let bytes = include_bytes!("fixtures/version-2.seg").to_vec();
    let disk = MemoryFilesystem::with(bytes);
    let mut reader = SegmentReader::open(disk.open(&file_name(1)).unwrap(), 1).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        for (row, nth) in row::rows(record.bytes).zip(0..) {
            assert_eq!(row.arrival().nanos(), row.ingested_at().micros() * 1000 + nth);
        }
        records.push((record.spilled, messages_of(record.bytes).collect::<Vec<_>>().join(", ")));
    }
    let expected =
        [(false, "single 1"), (false, "single 2"), (true, "batch 1, batch 2"), (true, "batch 3, batch 4")];
    assert_eq!(records, expected.map(|(spilled, messages)| (spilled, messages.to_owned())));
    assert_eq!(reader.damage(), reader::SegmentDamage::default());
}

struct JournalHarness {
    writer: JournalWriter,
    parker: crossbeam::sync::Parker,
    journal: Arc<Journal>,
    buffer: Arc<Buffer>,
    ledger: Arc<Ledger>,
    refiller: Refiller,
    failovers: Receiver<FailoverEvent>,
    disk: MemoryFilesystem,
    clock: Clock,
}

#[test]
fn journal_thread_sleeps_for_the_write_interval() {
    let harness = JournalHarness::new();
    let waits = Arc::new(Mutex::new(Vec::new()));
    let (seen, journal) = (waits.clone(), harness.journal.clone());
    harness.clock.on_idle(move |wait| {
        let mut seen = seen.lock().unwrap();
        seen.push(wait);
        if seen.len() == 3 {
            journal.finish();
        }
    });
    let (thread, _syncer) = JournalThread::new(harness.writer, harness.parker);
    thread.run();
    assert_eq!(*waits.lock().unwrap(), [WRITE_INTERVAL; 3]);
}

const WRITE_INTERVAL: Duration = Duration::from_millis(10);
const SPILL_BYTES_MAX: u64 = 20_000;
/// Capacity of the harness's buffer in events.
const ROWS_MAX: usize = 10;

impl JournalHarness {
    fn new() -> Self {
        Self::with_segments(MemoryFilesystem::default(), &[])
    }

    /// A harness on `disk`, which holds these segments of an earlier process.
    fn with_segments(disk: MemoryFilesystem, existing: &[ExistingSegment]) -> Self {
        let found = FoundSegments { pending: existing.to_vec(), committed: Vec::new() };
        Self::with_found(disk, &found, RetainLimits::NONE)
    }

    fn with_found(disk: MemoryFilesystem, found: &FoundSegments, retain: RetainLimits) -> Self {
        let (journal, parts) = Journal::new(1);
        let journal = Arc::new(journal);
        let clock = Clock::manual(Timestamp::from_millis(1), 1);
        let limits = JournalLimits {
            write_interval: WRITE_INTERVAL,
            sync_interval: Duration::from_secs(5),
            segment_bytes_max: 4096,
            retain,
        };
        let dyn_disk: Arc<dyn Filesystem> = Arc::new(disk.clone());
        let ledger = Arc::new(Ledger::new(1));
        let buffer_limits = crate::buffer::BufferLimits {
            rows_max: ROWS_MAX,
            bytes_max: 1 << 20,
            batch_rows_max: 2,
            batch_bytes_max: 1 << 20,
            spill_bytes_max: SPILL_BYTES_MAX,
        };
        let buffer = Arc::new(Buffer::new(buffer_limits, 1, ledger.clone()).0);
        let shared = (journal.clone(), buffer.clone());
        let writer = JournalWriter::new(shared, dyn_disk.clone(), limits, clock.clone(), found);
        let refiller = Refiller {
            journal: journal.clone(),
            disk: dyn_disk,
            buffer: buffer.clone(),
            lifecycle: Lifecycle::new().0,
            clock: clock.clone(),
            parker: parts.recovery,
        };
        let failovers = parts.failovers;
        Self { writer, parker: parts.writer, journal, buffer, ledger, refiller, failovers, disk, clock }
    }

    /// Admits one block of these events, as an acceptor does.
    fn admit(&self, messages: &[&str]) -> Result<(), AdmitError> {
        let (bytes, rows) = encoded(messages);
        let append = |block: &RowBlock| self.journal.append(0, block);
        let blocks = std::iter::once((&*bytes, rows));
        self.buffer.admit(0, (rows, bytes.len()), self.clock.now(), blocks, append)
    }

    /// Stores the events of the buffer, as the writer does, and returns their messages.
    fn store(&self) -> Vec<String> {
        store(&self.buffer, &self.ledger, &self.journal)
    }

    /// Refills and stores all spilled events. Returns the messages stored.
    fn drain(&mut self) -> Vec<String> {
        self.refiller.lifecycle.advance_to(LifecyclePhase::Draining);
        let mut stored = self.store();
        self.tick();
        let Self { refiller, buffer, ledger, journal, .. } = self;
        std::thread::scope(|scope| {
            let refill = move || {
                while let Some(wait) = refiller.refill() {
                    if !wait.is_zero() {
                        refiller.sleep(wait);
                    }
                }
            };
            let refiller = scope.spawn(refill);
            while !refiller.is_finished() {
                stored.extend(store(buffer, ledger, journal));
                std::thread::yield_now();
            }
        });
        stored.extend(self.store());
        stored
    }

    fn append(&self, message: &str) -> RowBlock {
        let block = block(message);
        self.journal.append(0, &block);
        block
    }

    /// Appends a waiter. The cell receives the value that it is completed with.
    fn on_durable(&self, level: Durability) -> Arc<Mutex<Option<bool>>> {
        let outcome = Arc::new(Mutex::new(None));
        let cell = outcome.clone();
        let callback = move |reached| {
            *cell.lock().unwrap() = Some(reached);
            None
        };
        self.journal.on_durable(0, level, Box::new(callback));
        outcome
    }

    /// Ticks until no sync is returned.
    fn tick(&mut self) {
        let mut job = self.writer.tick(None);
        while let Some(sync) = job {
            job = self.writer.tick(Some(sync.run(&self.disk)));
        }
    }

    fn tick_after(&mut self, wait: Duration) {
        self.clock.advance(wait);
        self.tick();
    }
}

#[test]
fn writer_completes_a_waiter_once_its_durability_is_reached() {
    let mut harness = JournalHarness::new();
    let _block = harness.append("one");
    let written = harness.on_durable(Durability::Written);
    harness.tick();
    assert_eq!((*written.lock().unwrap(), harness.disk.messages()), (Some(true), vec!["one".to_owned()]));
    let _other = harness.append("two");
    let synced = harness.on_durable(Durability::Synced);
    harness.tick();
    assert_eq!(*synced.lock().unwrap(), Some(true));
    harness.disk.cut_power();
    assert_eq!(harness.disk.messages(), ["one", "two"]);
}

#[test]
fn writer_skips_finalized_blocks_and_removes_a_segment_after_its_last_block() {
    let mut harness = JournalHarness::new();
    let early = harness.append("early");
    let late = harness.append("late");
    harness.journal.finalize(vec![early], None);
    harness.tick();
    assert_eq!(harness.disk.messages(), ["late"]);
    harness.journal.finalize(vec![late], None);
    harness.tick_after(Duration::from_secs(5));
    assert!(harness.disk.list().unwrap().is_empty());
}

#[test]
fn writer_rewrites_blocks_and_clears_the_fault_after_a_full_disk() {
    let mut harness = JournalHarness::new();
    let _one = harness.append("one");
    harness.tick();
    harness.disk.fail(Some(JournalOp::Write));
    let _two = harness.append("two");
    let outcome = harness.on_durable(Durability::Written);
    harness.tick();
    assert_eq!(*outcome.lock().unwrap(), Some(false));
    assert!(
        !harness.journal.guarantees(Durability::Memory)
            && harness.journal.fault() == Some(Fault::NotWritable)
    );
    harness.disk.fail(None);
    harness.tick_after(Duration::from_secs(5));
    assert!(harness.journal.guarantees(Durability::Synced));
    harness.disk.cut_power();
    let mut messages = harness.disk.messages();
    messages.sort();
    messages.dedup();
    assert_eq!(messages, ["one", "two"]);
}

#[test]
fn writer_rewrites_blocks_to_a_new_segment_after_a_failed_sync() {
    let mut harness = JournalHarness::new();
    let _one = harness.append("one");
    harness.disk.fail(Some(JournalOp::Sync));
    let outcome = harness.on_durable(Durability::Synced);
    harness.tick();
    assert_eq!(*outcome.lock().unwrap(), Some(false));
    assert!(
        harness.journal.guarantees(Durability::Written) && !harness.journal.guarantees(Durability::Synced)
    );
    // Writes continue at once, and the abandoned segment is removed.
    harness.tick();
    assert_eq!(
        (harness.disk.messages(), harness.disk.list().unwrap()),
        (vec!["one".to_owned()], vec![file_name(2)])
    );
    harness.disk.fail(None);
    harness.tick_after(Duration::from_secs(1));
    assert!(harness.journal.guarantees(Durability::Synced));
    assert_eq!(harness.journal.metrics.failures[JournalOp::Sync as usize].load(Ordering::Relaxed), 1);
}

/// A journal after the recovery of a segment of "one" and "two", the sync of which failed.
fn recovered_without_a_sync() -> JournalHarness {
    let (bytes, _) = segment_of(&["one", "two"]);
    let existing = ExistingSegment { segment: 1, bytes: bytes.len() as u64 };
    let harness = JournalHarness::with_segments(MemoryFilesystem::with(bytes), &[existing]);
    harness.disk.fail(Some(JournalOp::Sync));
    let JournalHarness { refiller, disk, .. } = &harness;
    let mut recovery = Recovery::new(
        refiller.journal.clone(),
        refiller.disk.clone(),
        refiller.buffer.clone(),
        refiller.lifecycle.clone(),
        refiller.clock.clone(),
        crossbeam::sync::Parker::new(),
        vec![existing],
    );
    recovery.tick();
    disk.fail(None);
    harness
}

#[test]
fn recovery_rewrites_a_segment_that_cannot_be_synced() {
    let mut harness = recovered_without_a_sync();
    harness.tick_after(Duration::from_secs(5));
    harness.tick();
    assert_eq!(harness.disk.list().unwrap(), [file_name(2)], "the unsynced segment is removed");
    harness.disk.cut_power();
    assert_eq!(harness.disk.messages(), ["one", "two"]);
    assert_eq!(harness.store(), ["one", "two"]);
}

/// The earlier process may have synced it.
#[test]
fn rewritten_segment_is_removed_once_its_events_are_synced_in_another() {
    let mut harness = recovered_without_a_sync();
    // The sync interval has not passed.
    assert!(harness.writer.tick(None).is_none());
    assert_eq!(harness.disk.list().unwrap(), [file_name(1), file_name(2)]);
    harness.disk.fail(Some(JournalOp::Sync));
    harness.tick_after(Duration::from_secs(5));
    harness.tick();
    assert_eq!(harness.disk.list().unwrap(), [file_name(1), file_name(3)], "the second sync failed too");
    harness.disk.fail(None);
    harness.tick_after(Duration::from_secs(5));
    harness.tick();
    assert_eq!(harness.disk.list().unwrap(), [file_name(3)]);
    harness.disk.cut_power();
    assert_eq!(harness.disk.messages(), ["one", "two"]);
}

#[test]
fn writer_keeps_writing_during_a_sync_and_the_next_sync_covers_all_of_it() {
    let mut harness = JournalHarness::new();
    let _one = harness.append("one");
    let first = harness.on_durable(Durability::Synced);
    let job = harness.writer.tick(None).expect("a waiter needs a sync");
    let _two = harness.append("two");
    let (written, second) = (harness.on_durable(Durability::Written), harness.on_durable(Durability::Synced));
    assert!(harness.writer.tick(None).is_none(), "one sync at a time");
    assert_eq!((*first.lock().unwrap(), *written.lock().unwrap()), (None, Some(true)));
    assert_eq!(harness.disk.messages(), ["one", "two"]);
    let next = harness.writer.tick(Some(job.run(&harness.disk))).expect("a waiter needs a sync");
    assert_eq!((*first.lock().unwrap(), *second.lock().unwrap()), (Some(true), None));
    assert!(harness.writer.tick(Some(next.run(&harness.disk))).is_none());
    assert_eq!(*second.lock().unwrap(), Some(true));
}

#[test]
fn writer_syncs_full_segments_in_order_and_completes_waiters_after_the_last() {
    let mut harness = JournalHarness::new();
    let text = "x".repeat(5000);
    let _blocks = [harness.append(&text)];
    let job = harness.writer.tick(None).expect("a full segment is synced");
    let _more = [harness.append(&text), harness.append("last")];
    let outcome = harness.on_durable(Durability::Synced);
    assert!(harness.writer.tick(None).is_none());
    let second = harness.writer.tick(Some(job.run(&harness.disk))).expect("the second segment is synced");
    assert_eq!(harness.disk.list().unwrap().len(), 2);
    let third = harness.writer.tick(Some(second.run(&harness.disk)));
    // Both blocks were in one group, hence in one segment.
    assert!(third.is_none());
    assert_eq!(*outcome.lock().unwrap(), Some(true));
    harness.disk.cut_power();
    assert_eq!(harness.disk.messages().len(), 3);
}

#[test]
fn failed_write_does_not_fail_the_sync_in_flight() {
    let mut harness = JournalHarness::new();
    let _one = harness.append("one");
    let first = harness.on_durable(Durability::Synced);
    let job = harness.writer.tick(None).unwrap();
    harness.disk.fail(Some(JournalOp::Write));
    let _two = harness.append("two");
    let second = harness.on_durable(Durability::Synced);
    assert!(harness.writer.tick(None).is_none());
    assert_eq!((*first.lock().unwrap(), *second.lock().unwrap()), (None, Some(false)));
    harness.disk.fail(None);
    let done = job.run(&harness.disk);
    assert!(harness.writer.tick(Some(done)).is_none());
    assert_eq!(*first.lock().unwrap(), Some(true));
    harness.tick_after(Duration::from_secs(5));
    harness.disk.cut_power();
    let mut messages = harness.disk.messages();
    messages.sort();
    assert_eq!(messages, ["one", "two"]);
}

#[test]
fn reader_counts_trailing_zeros_as_preallocated_not_as_damage() {
    let (mut bytes, _) = segment_of(&MESSAGES);
    let end = bytes.len();
    bytes.resize(end + 300_000, 0);
    let (messages, damage) = read(&MemoryFilesystem::with(bytes.clone()), 1);
    assert_eq!((messages.len(), damage), (4, reader::SegmentDamage::default()));
    bytes[end + 7] = 1;
    assert_eq!(read(&MemoryFilesystem::with(bytes), 1).1.torn_bytes, 8);
    let nothing = read(&MemoryFilesystem::with(vec![0; 1000]), 1);
    assert_eq!(nothing, (Vec::new(), reader::SegmentDamage::default()));
}

/// Fills the buffer, then admits `spilled` more events.
fn spilling(harness: &JournalHarness, spilled: usize) -> Vec<String> {
    let messages: Vec<_> = (0..ROWS_MAX + spilled).map(|nth| format!("m{nth:03}")).collect();
    for message in &messages {
        harness.admit(&[message]).unwrap();
    }
    messages
}

#[test]
fn spilled_events_leave_memory_once_synced_and_are_refilled_in_order() {
    let mut harness = JournalHarness::new();
    let messages = spilling(&harness, 30);
    let spill = harness.buffer.spill();
    assert_eq!((spill.events(), spill.in_flight().rows, harness.buffer.occupied().rows), (30, 30, ROWS_MAX));
    harness.tick_after(Duration::from_secs(5));
    let spill = harness.buffer.spill();
    assert_eq!((spill.events(), spill.in_flight().rows), (30, 0), "synced blocks leave memory");
    // New events are spilled behind the spilled ones although the buffer has capacity.
    let mut stored = harness.store();
    harness.admit(&["last"]).unwrap();
    assert_eq!(harness.buffer.spill().events(), 31);
    harness.tick_after(Duration::from_secs(5));
    stored.extend(harness.drain());
    assert_eq!(stored, [messages, vec!["last".to_owned()]].concat());
    let balance = harness.ledger.balance();
    assert_eq!((balance.received, balance.stored, balance.buffered(), balance.lost), (41, 41, 0, 0));
    assert_eq!((harness.buffer.spill().bytes(), harness.buffer.occupied().rows), (0, 0));
    harness.tick_after(Duration::from_secs(5));
    assert_eq!(harness.disk.list().unwrap(), Vec::<String>::new(), "the segments are removed");
}

#[test]
fn spilled_events_survive_a_restart_and_spill_bytes_max_is_exact() {
    let mut harness = JournalHarness::new();
    let messages = spilling(&harness, 3);
    harness.tick();
    assert_eq!(harness.disk.messages(), messages);
    let bytes = encoded(&["m000"]).0.len() as u64;
    let left = (SPILL_BYTES_MAX - harness.buffer.spill().bytes()) / bytes;
    for _ in 0..left {
        harness.admit(&["more"]).unwrap();
    }
    assert_eq!(harness.admit(&["more"]), Err(AdmitError::Full));
    assert!(harness.buffer.spill().bytes() <= SPILL_BYTES_MAX);
    harness.buffer.close();
    assert_eq!(harness.admit(&["more"]), Err(AdmitError::Closed));
}

#[test]
fn failing_disk_moves_spilled_events_to_the_buffer() {
    for op in [JournalOp::Write, JournalOp::Sync] {
        let mut harness = JournalHarness::new();
        let messages = spilling(&harness, 5);
        harness.disk.fail(Some(op));
        harness.tick_after(Duration::from_secs(5));
        assert!(harness.journal.fault().is_some());
        assert_eq!(harness.buffer.spill().events(), 5, "the buffer has no capacity yet");
        let mut stored = harness.store();
        harness.tick_after(Duration::from_secs(5));
        assert_eq!((harness.buffer.spill().events(), harness.buffer.spill().in_flight().rows), (0, 0));
        stored.extend(harness.store());
        assert_eq!(stored, messages);
        assert_eq!(harness.ledger.balance().buffered(), 0);
        harness.disk.fail(None);
        harness.tick_after(Duration::from_secs(5));
        harness.tick_after(Duration::from_secs(5));
        assert_eq!((harness.journal.fault(), harness.disk.list().unwrap()), (None, Vec::new()));
    }
}

#[test]
fn refiller_counts_corrupt_spilled_events_as_lost_and_renames_the_segment() {
    let mut harness = JournalHarness::new();
    let mut messages = spilling(&harness, 5);
    harness.tick_after(Duration::from_secs(5));
    {
        let mut files = harness.disk.0.lock().unwrap();
        let (bytes, _) = files.files.get_mut(&file_name(1)).unwrap();
        let lost = messages.remove(ROWS_MAX + 2);
        let at = bytes.windows(4).position(|four| four == lost.as_bytes()).unwrap();
        bytes[at] ^= 1;
    }
    assert_eq!(harness.drain(), messages);
    let balance = harness.ledger.balance();
    assert_eq!((balance.received, balance.stored, balance.lost, balance.buffered()), (15, 14, 1, 0));
    assert_eq!((harness.buffer.spill().events(), harness.buffer.spill().bytes()), (0, 0));
    harness.tick_after(Duration::from_secs(5));
    assert_eq!(harness.disk.renamed(), [file_name(1)]);
}

#[derive(Clone, Copy, Debug)]
enum JournalStep {
    Admit(usize),
    Store,
    /// Advances the clock by milliseconds, and completes the sync in flight if the flag is set.
    Tick(u64, bool),
    Fail(Option<JournalOp>),
}

fn steps() -> impl Strategy<Value = Vec<JournalStep>> {
    let step = prop_oneof![
        8 => (1..4_usize).prop_map(JournalStep::Admit),
        1 => Just(JournalStep::Store),
        4 => (prop_oneof![Just(1), Just(10), Just(6_000)], any::<bool>()).prop_map(|(ms, ends)| JournalStep::Tick(ms, ends)),
        1 => prop_oneof![Just(JournalOp::Write), Just(JournalOp::Sync), Just(JournalOp::Create)].prop_map(|op| JournalStep::Fail(Some(op))),
        2 => Just(JournalStep::Fail(None)),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn each_admitted_event_is_stored_once_under_any_failures(steps in steps()) {
        let mut harness = JournalHarness::new();
        let (mut admitted, mut stored, mut number, mut in_flight) = (Vec::new(), Vec::new(), 0, None);
        for step in steps {
            match step {
                JournalStep::Admit(count) => {
                    let texts: Vec<_> = (number..number + count).map(|nth| format!("e{nth}")).collect();
                    number += count;
                    if harness.admit(&texts.iter().map(String::as_str).collect::<Vec<_>>()).is_ok() {
                        admitted.extend(texts);
                    }
                }
                JournalStep::Store => stored.extend(harness.store()),
                JournalStep::Tick(ms, ends) => {
                    harness.clock.advance(Duration::from_millis(ms));
                    let done = if ends { in_flight.take().map(|job: sync::SyncJob| job.run(&harness.disk)) } else { None };
                    if let Some(job) = harness.writer.tick(done) {
                        prop_assert!(in_flight.replace(job).is_none(), "one sync at a time");
                    }
                }
                JournalStep::Fail(op) => harness.disk.fail(op),
            }
            let (spill, balance) = (harness.buffer.spill(), harness.ledger.balance());
            prop_assert!(spill.bytes() <= SPILL_BYTES_MAX);
            prop_assert_eq!(balance.buffered(), harness.buffer.occupied().rows as u64 + spill.events());
            prop_assert_eq!(balance.received, admitted.len() as u64);
        }
        harness.disk.fail(None);
        let done = in_flight.map(|job| job.run(&harness.disk));
        let mut job = harness.writer.tick(done);
        while let Some(sync) = job {
            job = harness.writer.tick(Some(sync.run(&harness.disk)));
        }
        for _ in 0..3 {
            harness.tick_after(Duration::from_secs(6));
        }
        prop_assert_eq!(harness.journal.fault(), None);
        stored.extend(harness.drain());
        stored.sort();
        admitted.sort();
        prop_assert_eq!(stored, admitted);
        for _ in 0..2 {
            harness.tick_after(Duration::from_secs(6));
        }
        prop_assert_eq!(harness.disk.list().unwrap(), Vec::<String>::new());
    }
}
