use proptest::prelude::*;

use super::*;

const LIMITS: RetainLimits = RetainLimits { time: Duration::from_mins(1), bytes_max: 100 };

fn at(seconds: u64) -> Moment {
    Moment::ZERO.plus(Duration::from_secs(seconds))
}

fn wal(timeline: u32, lsn: u64) -> WalPosition {
    WalPosition { system: 7, timeline, lsn }
}

fn commit(epoch: u64, timeline: u32, lsn: u64) -> CommitPosition {
    CommitPosition { epoch, wal: wal(timeline, lsn) }
}

fn seen(position: CommitPosition) -> DatabaseState {
    DatabaseState { position: Some(position), standby_flushed: None }
}

fn numbers(removable: &[(u64, String)]) -> Vec<u64> {
    removable.iter().map(|(number, _)| *number).collect()
}

fn stale(segments: &[StaleSegment]) -> Vec<u64> {
    segments.iter().map(|stale| stale.segment).collect()
}

/// Segments 1, 2 and 3 of 10 bytes, committed at 10, 20 and 30 s and at the LSNs 100, 200 and 300.
fn three() -> RetainedSegments {
    let mut retained = RetainedSegments::new(LIMITS, &[], Moment::ZERO);
    assert_eq!(retained.observe(seen(commit(1, 1, 50)), at(1)), None);
    for number in 1..=3 {
        retained.insert(number, 10, Some(commit(1, 1, number * 100)), at(number * 10));
    }
    retained
}

#[test]
fn segment_is_kept_until_the_database_is_seen_to_have_it_for_the_retention_time() {
    let mut retained = three();
    assert_eq!(numbers(&retained.removable(0)), [0; 0]);
    retained.observe(seen(commit(1, 1, 300)), at(69));
    assert_eq!(numbers(&retained.removable(0)), [0; 0], "no time passes while the database is not seen");
    retained.observe(seen(commit(1, 1, 300)), at(80));
    assert_eq!(numbers(&retained.removable(0)), [1, 2]);
}

#[test]
fn segment_is_kept_until_every_standby_has_flushed_its_commits() {
    let mut retained = three();
    let standby_flushed = Some(200);
    retained.observe(DatabaseState { standby_flushed, ..seen(commit(1, 1, 300)) }, at(31));
    assert_eq!(numbers(&retained.removable(0)), [1, 2]);
    retained.insert(4, 1, None, at(32));
    retained.observe(DatabaseState { standby_flushed: Some(400), ..seen(commit(1, 1, 400)) }, at(33));
    assert_eq!(numbers(&retained.removable(0)), [1, 2, 3], "the LSN of segment 4 is unknown");
}

#[test]
fn oldest_segments_beyond_the_bound_on_bytes_are_removed() {
    let mut retained = three();
    retained.insert(4, 85, Some(commit(1, 1, 400)), at(40));
    assert_eq!(numbers(&retained.removable(0)), [1, 2]);
}

#[test]
fn failover_makes_the_segments_from_before_it_stale() {
    let mut retained = three();
    assert_eq!(retained.observe(seen(commit(2, 2, 250)), at(40)), Some((wal(1, 50), wal(2, 250))));
    assert_eq!(stale(&retained.take_stale()), [1, 2, 3]);
    assert_eq!(retained.take_stale(), [], "each once");
    retained.insert(4, 10, Some(commit(2, 2, 260)), at(41));
    let late = retained.insert(5, 10, Some(commit(1, 1, 310)), at(42));
    assert_eq!(late.after, segment::file_name(5), "it is recovered if the process ends");
    assert_eq!(stale(&retained.take_stale()), [5], "its batch was in flight during the failover");
    retained.observe(seen(commit(2, 2, 260)), at(1000));
    assert_eq!(numbers(&retained.removable(0)), [4], "those to be replayed are kept");
    retained.set_name(1, "0000000001.seg");
    let change = retained.restored(1, Some(commit(2, 2, 300)), at(1000)).unwrap();
    assert_eq!(
        (change.before, change.after.clone()),
        (segment::file_name(1), file_name(1, Some(wal(2, 300))))
    );
    retained.set_name(1, &change.after);
    assert_eq!(numbers(&retained.removable(0)), [4]);
    retained.observe(seen(commit(2, 2, 300)), at(1060));
    assert_eq!(numbers(&retained.removable(0)), [1, 4]);
}

#[test]
fn segments_to_be_replayed_are_the_last_to_be_removed_for_the_bound() {
    let mut retained = three();
    retained.observe(seen(commit(2, 2, 250)), at(40));
    retained.take_stale();
    retained.insert(4, 60, Some(commit(2, 2, 260)), at(41));
    retained.insert(5, 60, Some(commit(2, 2, 270)), at(42));
    assert_eq!(numbers(&retained.removable(0)), [4]);
    retained.insert(6, 90, Some(commit(2, 2, 280)), at(43));
    assert_eq!(numbers(&retained.removable(0)), [4, 5, 6]);
}

#[test]
fn last_position_of_an_earlier_process_is_the_latest_known_one_of_its_last_timeline() {
    let found = |segment, wal| CommittedSegment { segment, bytes: 10, wal };
    let committed = [
        found(1, Some(wal(1, 900))),
        found(2, Some(wal(2, 300))),
        found(3, Some(wal(2, 200))),
        found(4, Some(wal(2, WalPosition::LSN_UNKNOWN))),
        found(5, None),
    ];
    assert_eq!(last_position(&committed), Some(wal(2, 300)));
    assert_eq!(last_position(&committed[3..]), Some(wal(2, 0)));
    assert_eq!(last_position(&committed[4..]), None);
    let mut retained = RetainedSegments::new(LIMITS, &committed[1..3], Moment::ZERO);
    assert_eq!(retained.observe(seen(commit(1, 2, 300)), at(1)), None);
    assert_eq!(retained.observe(seen(commit(2, 3, 310)), at(1)), Some((wal(2, 300), wal(3, 310))));
    assert_eq!(stale(&retained.take_stale()), [2, 3]);
}

#[test]
fn database_that_does_not_tell_its_position_has_segments_kept_by_time() {
    let mut retained = RetainedSegments::new(LIMITS, &[], Moment::ZERO);
    retained.insert(1, 10, None, at(1));
    retained.observe(DatabaseState::default(), at(60));
    assert_eq!(numbers(&retained.removable(0)), [0; 0]);
    retained.observe(DatabaseState::default(), at(61));
    assert_eq!(numbers(&retained.removable(0)), [1]);
}

#[test]
fn parse_file_name_accepts_only_canonical_names() {
    assert_eq!(
        file_name(7, Some(wal(2, 0x16b_3740))),
        "0000000007.0000000000000007-00000002-00000000016b3740.committed"
    );
    for other in ["7.committed", "0000000007.1-2-3.committed", "0000000007.seg", ".committed"] {
        assert_eq!(parse_file_name(other), None, "{other}");
    }
}

proptest! {
    #[test]
    fn file_name_has_number_and_position(number: u64, system: u64, timeline: u32, lsn: u64, some: bool) {
        let wal = some.then_some(WalPosition { system, timeline, lsn });
        prop_assert_eq!(parse_file_name(&file_name(number, wal)), Some((number, wal)));
    }

    /// Whatever happens, the bound on bytes holds after each removal, and no segment is removed before
    /// its time, its standbys or the bound allow it.
    #[test]
    fn bound_on_bytes_holds(steps in prop::collection::vec((0..4_u8, 1..60_u64, 0..3_u64), 1..100)) {
        let mut retained = RetainedSegments::new(LIMITS, &[], Moment::ZERO);
        let (mut now, mut epoch, mut lsn, mut number) = (0, 1, 0, 0);
        for (action, bytes, newer) in steps {
            now += 1;
            lsn += 10;
            match action {
                0 => {
                    epoch += newer / 2;
                    let timeline = u32::try_from(epoch).unwrap();
                    retained.observe(seen(commit(epoch, timeline, lsn)), at(now));
                }
                1 => {
                    for stale in retained.take_stale().iter().skip(1) {
                        retained.restored(stale.segment, Some(commit(epoch, 1, lsn)), at(now));
                    }
                }
                _ => {
                    number += 1;
                    retained.insert(number, bytes, Some(commit(epoch, 1, lsn)), at(now));
                }
            }
            for (number, _) in retained.removable(0) {
                retained.remove(number);
            }
            prop_assert!(retained.bytes() <= LIMITS.bytes_max && retained.has_room(0));
        }
    }
}

#[test]
fn late_answer_of_the_former_database_is_no_failover() {
    let mut retained = three();
    assert!(retained.observe(seen(commit(2, 2, 250)), at(31)).is_some());
    assert_eq!(retained.observe(seen(commit(1, 1, 400)), at(32)), None);
    assert_eq!(retained.observe(seen(commit(2, 2, 260)), at(33)), None);
}
