//! Segments that are kept after their last commit.

use super::*;
use crate::storage::wal::WalPosition;

const RETAIN: RetainLimits = RetainLimits { time: Duration::from_mins(1), bytes_max: 1 << 20 };

fn commit(epoch: u64, lsn: u64) -> CommitPosition {
    let timeline = u32::try_from(epoch).unwrap();
    CommitPosition { epoch, wal: WalPosition { system: 7, timeline, lsn } }
}

fn seen(position: CommitPosition) -> DatabaseState {
    DatabaseState { position: Some(position), standby_flushed: None }
}

fn harness() -> JournalHarness {
    JournalHarness::with_found(MemoryFilesystem::default(), &FoundSegments::default(), RETAIN)
}

/// The messages of all retained segments.
fn retained(disk: &MemoryFilesystem) -> Vec<String> {
    let (files, _) = inspect::segment_files(disk).unwrap();
    let committed = files.into_iter().filter(|file| file.committed);
    committed
        .flat_map(|file| {
            let mut reader = SegmentReader::open(disk.open(&file.name).unwrap(), file.number).unwrap();
            let mut messages = Vec::new();
            while let Some(record) = reader.next_record().unwrap() {
                messages.extend(messages_of(record.bytes));
            }
            messages
        })
        .collect()
}

/// Makes the journal thread end, so that it finishes the active segment.
fn finish(harness: &mut JournalHarness) {
    harness.journal.finish();
    harness.tick();
    assert!(harness.writer.is_finished());
}

#[test]
fn committed_blocks_are_written_and_retained_with_the_position_of_the_last_commit() {
    let mut harness = harness();
    let (early, late) = (harness.append("early"), harness.append("late"));
    harness.journal.finalize(vec![early], Some(commit(1, 5)));
    harness.tick();
    assert_eq!(harness.disk.messages(), ["early", "late"], "the early one too");
    harness.journal.finalize(vec![late], Some(commit(1, 9)));
    finish(&mut harness);
    assert_eq!(retained(&harness.disk), ["early", "late"]);
    let found = scan_segments(&harness.disk).unwrap().unwrap();
    assert_eq!(found.pending, []);
    assert_eq!(found.committed[0].wal, Some(commit(1, 9).wal));
}

/// Without the position, a failover before the next start would not be noticed.
#[test]
fn block_that_is_committed_while_its_segment_is_created_is_retained_with_the_position() {
    let mut harness = harness();
    let (block, journal) = (harness.append("one"), harness.journal.clone());
    let finalize = move || journal.finalize(vec![block], Some(commit(1, 5)));
    harness.disk.0.lock().unwrap().during_create = Some(Meanwhile(Box::new(finalize)));
    finish(&mut harness);
    assert_eq!(retained(&harness.disk), ["one"]);
    let found = scan_segments(&harness.disk).unwrap().unwrap();
    assert_eq!(found.committed[0].wal, Some(commit(1, 5).wal));
}

/// The journal thread knows the position before it finds the block, and must not forget it.
#[test]
fn block_that_is_found_finalized_after_its_position_is_retained_with_it() {
    let mut harness = harness();
    let full = harness.append(&"m".repeat(4096));
    let (late, journal) = (block("late"), harness.journal.clone());
    let finalize = move || {
        journal.finalize(vec![full], Some(commit(1, 5)));
        // A part of the next call: the rest of it comes after the last tick.
        journal.append(0, &late);
        journal.push_finalized(Some((None, 0)), Some(commit(1, 9)));
        assert_eq!(late.finalize(), None);
    };
    harness.disk.0.lock().unwrap().during_create = Some(Meanwhile(Box::new(finalize)));
    harness.tick();
    finish(&mut harness);
    let found = scan_segments(&harness.disk).unwrap().unwrap();
    let positions: Vec<_> = found.committed.iter().map(|found| found.wal).collect();
    assert_eq!(positions, [Some(commit(1, 9).wal); 2]);
}

#[test]
fn committed_blocks_do_not_wait_for_a_failing_disk() {
    let mut harness = harness();
    harness.disk.fail(Some(JournalOp::Write));
    harness.admit(&["one"]).unwrap();
    harness.tick();
    assert_eq!(harness.store(), ["one"]);
    harness.tick();
    assert_eq!(harness.buffer.occupied().bytes, 0, "its memory is free");
}

#[test]
fn retained_segment_is_removed_once_the_database_was_seen_to_have_it_for_the_time() {
    let mut harness = harness();
    let block = harness.append("one");
    harness.tick();
    harness.journal.finalize(vec![block], Some(commit(1, 5)));
    finish(&mut harness);
    harness.tick_after(Duration::from_hours(1));
    assert_eq!(retained(&harness.disk), ["one"], "the database was not seen since");
    harness.journal.observe(seen(commit(1, 5)));
    harness.tick();
    assert!(harness.disk.list().unwrap().is_empty());
    assert_eq!(harness.journal.metrics.retained_segments.load(Ordering::Relaxed), 0);
}

#[test]
fn failover_reports_the_retained_segments_and_then_the_open_one() {
    let mut harness = harness();
    let first = harness.append(&"1".repeat(4096));
    harness.tick();
    let (second, third) = (harness.append("2"), harness.append("3"));
    harness.tick();
    harness.journal.finalize(vec![first], Some(commit(1, 5)));
    harness.tick_after(Duration::from_secs(5));
    assert_eq!(retained(&harness.disk).len(), 1, "the first segment was full");
    harness.journal.finalize(vec![second], Some(commit(1, 6)));
    harness.journal.observe(seen(commit(2, 5)));
    harness.tick();
    let Ok(FailoverEvent::Noticed { stale, open, from, to }) = harness.failovers.try_recv() else {
        panic!("the failover is reported");
    };
    assert_eq!((stale.len(), open, from.lsn, to.timeline), (1, 1, 6, 2));
    harness.tick();
    assert!(harness.failovers.is_empty(), "an event of the open segment is not committed yet");
    harness.journal.finalize(vec![third], Some(commit(2, 8)));
    harness.tick_after(Duration::from_secs(5));
    let Ok(FailoverEvent::Stale(open)) = harness.failovers.try_recv() else {
        panic!("the open segment is reported");
    };
    assert_eq!(open.name, file_name(open.segment), "it is recovered if the process ends now");

    // Replayed, it is retained at its new position.
    harness.journal.restored(open.segment, Some(commit(2, 20)));
    harness.tick();
    let found = scan_segments(&harness.disk).unwrap().unwrap();
    let of = |segment| found.committed.iter().find(|found| found.segment == segment).unwrap().wal;
    assert_eq!(of(open.segment), Some(commit(2, 20).wal));
}

#[test]
fn retained_segments_of_an_earlier_process_are_not_recovered() {
    let mut before = harness();
    let block = before.append("one");
    before.tick();
    before.journal.finalize(vec![block], Some(commit(1, 9)));
    finish(&mut before);
    let found = scan_segments(&before.disk).unwrap().unwrap();
    assert_eq!(found.last_position(), Some(commit(1, 9).wal));
    for (position, noticed) in [(commit(1, 9), false), (commit(2, 9), true)] {
        let mut after = JournalHarness::with_found(before.disk.clone(), &found, RETAIN);
        after.journal.observe(seen(position));
        after.tick();
        assert_eq!(!after.failovers.is_empty(), noticed, "{position:?}");
        let _block = after.append("new");
        after.tick();
        // A stale segment has the name of an uncommitted one again.
        let wanted: &[&str] = if noticed { &["one", "new"] } else { &["new"] };
        assert_eq!(after.disk.messages(), wanted, "in a segment of another number");
        after.disk.remove(&file_name(2)).unwrap();
    }
}

/// Without it, a steady load would delay the replay until the segment is full.
#[test]
fn stale_active_segment_takes_no_more_events() {
    let mut harness = harness();
    let (first, second) = (harness.append("1"), harness.append("2"));
    harness.tick();
    harness.journal.finalize(vec![first], Some(commit(1, 5)));
    harness.journal.observe(seen(commit(2, 3)));
    harness.tick();
    let _new = harness.append("new");
    harness.tick();
    harness.journal.finalize(vec![second], Some(commit(2, 4)));
    harness.tick_after(Duration::from_secs(5));
    let events: Vec<_> = harness.failovers.try_iter().collect();
    assert!(
        matches!(&events[..], [FailoverEvent::Noticed { open: 1, .. }, FailoverEvent::Stale(_)]),
        "{events:?}"
    );
}

/// Without it, a failover after that commit would lose the event.
#[test]
fn event_written_between_its_commit_and_the_report_of_it_keeps_its_position() {
    let mut harness = harness();
    let block = harness.append("one");
    assert_eq!(block.finalize(), None);
    harness.tick();
    let commit = Some(commit(1, 5));
    harness.journal.push_update(SegmentUpdate::Finalized { segment: None, blocks: 1, commit });
    finish(&mut harness);
    let found = scan_segments(&harness.disk).unwrap().unwrap();
    assert_eq!(found.committed[0].wal, commit.map(|commit| commit.wal));
}
