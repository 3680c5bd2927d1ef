use std::sync::atomic::AtomicBool;

use crossbeam::channel::unbounded;

use super::*;
use crate::event::row;
use crate::event::{ArrivalNumber, EventId};
use crate::journal::filesystem::{File, OsDirectory};
use crate::storage::memory::{InjectedFault, MemoryRepository};

/// Rows with these ids and messages that name them.
fn encoded(ids: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in ids {
        let time = Timestamp::from_millis(1_800_000_000_000 + id.cast_signed());
        let id = EventId::keyed(time.millis().cast_unsigned(), [1; 10]);
        row::append_header(&mut bytes, id, time, time, ArrivalNumber::default());
        row::append_text(&mut bytes, b"s");
        row::append_text(&mut bytes, id.to_string().as_bytes());
        row::append_metadata(&mut bytes, None);
    }
    bytes
}

fn restore_all(repository: &MemoryRepository, bytes: &[u8], failures: &mut u32) -> Restored {
    let rows: Vec<_> = row::rows(bytes).collect();
    let clock = Clock::manual(Timestamp::from_millis(1), 1);
    let on_failure = &mut |_: &StoreError| {
        *failures += 1;
        if *failures < 100 { Ok(()) } else { Err("never ends") }
    };
    restore(repository, &clock, &rows, on_failure).unwrap()
}

fn error(sqlstate: &str) -> StoreError {
    StoreError { sqlstate: Some(sqlstate.to_owned()), ..StoreError::client_side("test") }
}

#[test]
fn restore_stores_what_is_missing_and_tells_it_from_what_is_there() {
    let repository = MemoryRepository::new();
    let (mut failures, bytes) = (0, encoded(0..10));
    let all = restore_all(&repository, &encoded(0..4), &mut failures);
    assert_eq!((all.restored, all.present), (4, 0));
    repository.inject_faults([
        InjectedFault::Fail(error("57P01")),
        InjectedFault::FailAfter(StoreError { in_doubt: true, ..StoreError::client_side("lost") }),
    ]);
    let all = restore_all(&repository, &bytes, &mut failures);
    assert_eq!((all.restored + all.present, failures, repository.events().len()), (10, 2, 10));
}

#[test]
fn restore_makes_dead_letters_of_rows_that_were_dead_letters_before() {
    let repository = MemoryRepository::new();
    let is_bad = |row: &Row<'_>| row.timestamp().millis() % 1000 % 7 == 3;
    repository.reject_rows(false, move |row| is_bad(row).then_some("22021"));
    let mut failures = 0;
    for (restored, present) in [(100, 0), (0, 100)] {
        let all = restore_all(&repository, &encoded(0..100), &mut failures);
        assert_eq!((all.restored, all.present, failures), (restored, present, 0));
    }
    assert_eq!((repository.events().len(), repository.dead().len()), (86, 14));
}

#[test]
fn restore_waits_while_the_database_refuses_every_row() {
    let repository = MemoryRepository::new();
    let refuses = Arc::new(AtomicBool::new(true));
    let is_refusing = refuses.clone();
    repository.reject_rows(false, move |_| is_refusing.load(Ordering::Relaxed).then_some("23514"));
    let bytes = encoded(0..3);
    let rows: Vec<_> = row::rows(&bytes).collect();
    let clock = Clock::manual(Timestamp::from_millis(1), 1);
    let mut failures = 0;
    let all = restore(&repository, &clock, &rows, &mut |_| {
        failures += 1;
        Err::<(), _>("stopped")
    });
    assert_eq!((all, failures, repository.dead().len()), (Err("stopped"), 1, 0));
}

/// A journal directory with a retained segment for each list of ids.
fn directory(segments: &[Vec<u64>]) -> (tempfile::TempDir, Arc<dyn Filesystem>, Vec<StaleSegment>) {
    let directory = tempfile::tempdir().unwrap();
    let disk = OsDirectory::open(directory.path().to_owned()).unwrap();
    let stale = (1..).zip(segments).map(|(segment, ids)| {
        let name = format!("{segment:010}.committed");
        let header = crate::journal::record::SegmentHeader {
            segment,
            tag: *b"\x93tag\x07\xf1\0z",
            created_at: Timestamp::from_millis(1),
        };
        let mut bytes = header.encode().to_vec();
        for id in ids {
            let (marker, row) = ((header.segment, header.tag), encoded([*id]));
            crate::recordlog::append_record(&mut bytes, marker, (1, false), &row);
        }
        let file: Box<dyn File> = disk.create(&name).unwrap();
        file.write(0, &bytes).unwrap();
        StaleSegment { segment, name, bytes: bytes.len() as u64 }
    });
    let stale = stale.collect();
    (directory, Arc::new(disk), stale)
}

fn replay(
    journal: (Arc<Journal>, Arc<dyn Filesystem>),
    repository: &Arc<MemoryRepository>,
) -> (FailoverReplay, Arc<FailoverMetrics>) {
    let metrics = Arc::new(FailoverMetrics::default());
    let clock = Clock::manual(Timestamp::from_millis(1_900_000_000_000), 1);
    let lifecycle = Lifecycle::new().0;
    (FailoverReplay::new(journal, repository.clone(), metrics.clone(), lifecycle, clock), metrics)
}

/// A failover to a standby that lacks the end of the WAL.
fn noticed(stale: Vec<StaleSegment>, open: usize) -> FailoverEvent {
    let wal = |timeline, lsn| WalPosition { system: 7, timeline, lsn };
    FailoverEvent::Noticed { from: wal(1, 100), to: wal(2, 90), stale, open }
}

/// The report after a failover to a database that has the events `present`.
fn report(segments: &[Vec<u64>], open: usize, present: &[u64]) -> (u64, FailoverReport) {
    let (_directory, disk, mut stale) = directory(segments);
    let repository = Arc::new(MemoryRepository::new());
    restore_all(&repository, &encoded(present.iter().copied()), &mut 0);
    let (mut replay, metrics) = replay((Arc::new(Journal::new(1).0), disk), &repository);
    let (events, received) = unbounded();
    let open = stale.split_off(stale.len() - open);
    events.send(noticed(stale, open.len())).unwrap();
    for segment in open {
        events.send(FailoverEvent::Stale(segment)).unwrap();
    }
    drop(events);
    replay.run(&received);
    let mut ids: Vec<_> = repository.events().iter().map(|event| event.event_id).collect();
    ids.dedup();
    let mut wanted: Vec<_> = segments.iter().flatten().chain(present).copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    assert_eq!(ids.len(), wanted.len(), "every event is stored once");
    assert_eq!(metrics.pending(), 0);
    (metrics.restored.load(Ordering::Relaxed), metrics.last().unwrap())
}

fn time(id: i64) -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000 + id)
}

#[test]
fn failover_within_the_retained_segments_loses_nothing() {
    let (restored, report) = report(&[(10..20).collect(), (20..30).collect()], 1, &[8, 9, 10, 11, 12]);
    assert_eq!((restored, report.is_replayed, report.lost), (17, true, None));
}

#[test]
fn failover_beyond_the_retained_segments_names_the_window() {
    let (restored, beyond) = report(&[(10..20).collect(), (20..30).collect()], 0, &[3, 4]);
    let window = LostWindow { from: Some(time(4)), to: time(10) };
    assert_eq!((restored, beyond.lost), (20, Some(window)));
    let (_, nothing) = report(&[], 0, &[3, 4]);
    let now = Timestamp::from_millis(1_900_000_000_000);
    assert_eq!(
        nothing.lost,
        Some(LostWindow { from: Some(time(4)), to: now }),
        "the WAL ends before a commit"
    );
}

/// It would be removed: the journal believes that the database has its events.
#[test]
fn segment_that_cannot_be_read_is_not_reported_as_restored() {
    let (_directory, disk, stale) = directory(&[vec![1, 2], vec![3], vec![4]]);
    disk.remove(&stale[1].name).unwrap();
    let (repository, journal) = (Arc::new(MemoryRepository::new()), Arc::new(Journal::new(1).0));
    let (mut replay, metrics) = replay((journal.clone(), disk), &repository);
    replay.on_event(noticed(stale, 0));
    assert_eq!(journal.take_restored(), [1, 3]);
    assert_eq!((repository.events().len(), metrics.pending()), (3, 0));
}
