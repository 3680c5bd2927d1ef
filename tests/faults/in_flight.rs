//! FAULTS 39: several transactions in flight. The proxy holds the COMMIT of one batch, while another
//! batch commits or fails.

use std::time::Duration;

use crate::fixture::{Fixture, times};
use crate::harness::checker::check_ledger;
use crate::harness::events::{event_at, ids_of};
use crate::harness::{now, until, wait_for_drain};

/// Acknowledged events survive a kill.
const WRITTEN: (&str, &str) = ("DURABILITY", "written");
const ROWS: i64 = 50;

/// Posts a batch of one service. Batches with different `hours` share no row of the counts, so that
/// their transactions do not wait for each other.
fn post(fixture: &Fixture, hours: i64) {
    let time = aurore_events::event::Timestamp::from_micros(now().micros() - hours * 3_600_000_000);
    let batch: Vec<_> = (0..ROWS).map(|_| event_at(time, &format!("s{hours}"), "m")).collect();
    ids_of(&fixture.server.client().post_ndjson(&batch));
}

/// Posts a batch whose COMMIT the proxy holds.
fn post_held(fixture: &Fixture, hours: i64) {
    fixture.proxy.hold_next_commit();
    post(fixture, hours);
    until("a COMMIT is held", || fixture.proxy.is_commit_held());
}

#[track_caller]
fn wait_for_stored(fixture: &Fixture, rows: i64) {
    until("the other batch is stored", || fixture.postgres.stored() == rows);
}

#[track_caller]
fn check_all_stored(fixture: &Fixture, rows: i64) {
    wait_for_drain(&fixture.server);
    assert_eq!((fixture.postgres.stored(), fixture.postgres.dead()), (rows, 0));
    assert_eq!(fixture.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), rows);
    let segments = || fixture.server.metric("journal_segments");
    until("the journal is empty but for its active segment", || segments() <= 1);
}

#[test]
fn f39_batches_commit_out_of_order() {
    let mut fixture = Fixture::start("39 commits out of order", &[WRITTEN]);
    let rounds = times(2, 20);
    for round in 0..i64::from(rounds) {
        post_held(&fixture, 0);
        post(&fixture, 2);
        wait_for_stored(&fixture, (2 * round + 1) * ROWS);
        until("the later batch is settled", || fixture.server.metric("buffer_size") == ROWS.unsigned_abs());
        fixture.proxy.release_commit();
        check_all_stored(&fixture, (2 * round + 2) * ROWS);
    }
    check_ledger(&fixture.server, &fixture.postgres);
    fixture.row.passed_after(rounds, fixture.postgres.stored().unsigned_abs());
}

#[test]
fn f39_a_kill_between_two_commits_loses_and_duplicates_no_event() {
    let mut fixture = Fixture::start("39 kill -9 between two COMMITs", &[WRITTEN]);
    let rounds = times(2, 20);
    for round in 0..i64::from(rounds) {
        post_held(&fixture, 0);
        post(&fixture, 2);
        wait_for_stored(&fixture, (2 * round + 1) * ROWS);
        fixture.server.kill();
        fixture.proxy.cut_held_commit();
        fixture.server.restart();
        check_all_stored(&fixture, (2 * round + 2) * ROWS);
    }
    fixture.row.passed_after(rounds, fixture.postgres.stored().unsigned_abs());
}

#[test]
fn f39_one_connection_fails_while_another_commits() {
    let mut fixture = Fixture::start("39 one connection fails, another commits", &[]);
    let rounds = times(2, 20);
    for round in 0..i64::from(rounds) {
        post_held(&fixture, 0);
        post(&fixture, 2);
        wait_for_stored(&fixture, (2 * round + 1) * ROWS);
        fixture.proxy.cut_held_commit();
        check_all_stored(&fixture, (2 * round + 2) * ROWS);
    }
    check_ledger(&fixture.server, &fixture.postgres);
    assert_eq!(fixture.server.metric("events_duplicate_total"), 0, "no COMMIT was executed twice");
    fixture.row.passed_after(rounds, fixture.postgres.stored().unsigned_abs());
}

#[test]
fn f39_a_lost_reply_to_one_of_two_commits() {
    let mut fixture = Fixture::start("39 answer to one of two COMMITs lost", &[]);
    let rounds = times(2, 20);
    for round in 0..i64::from(rounds) {
        post_held(&fixture, 0);
        fixture.proxy.drop_next_commit_reply();
        post(&fixture, 2);
        let rows = (round + 1).unsigned_abs() * ROWS.unsigned_abs();
        until("the batch is found stored", || fixture.server.metric("events_duplicate_total") == rows);
        fixture.proxy.release_commit();
        check_all_stored(&fixture, (2 * round + 2) * ROWS);
    }
    check_ledger(&fixture.server, &fixture.postgres);
    fixture.row.passed_after(rounds, fixture.postgres.stored().unsigned_abs());
}

#[test]
fn f39_held_cut_and_unanswered_commits_under_load() {
    // The lock timeout of a batch that waits for the counts of the held one is 5 s.
    let mut fixture = Fixture::start_under_load("39 two COMMITs in flight, under load", &[]);
    let rounds = times(6, 60);
    for round in 0..rounds {
        fixture.proxy.hold_next_commit();
        until("a COMMIT is held", || fixture.proxy.is_commit_held());
        fixture.wait_for_acknowledged(100);
        let dropped = fixture.proxy.dropped_replies();
        match round % 3 {
            0 => fixture.proxy.release_commit(),
            1 => fixture.proxy.cut_held_commit(),
            _ => {
                fixture.proxy.drop_next_commit_reply();
                fixture.proxy.release_commit();
                until("a reply is dropped", || fixture.proxy.dropped_replies() > dropped);
            }
        }
        fixture.wait_for_acknowledged(200);
    }
    fixture.verify(rounds);
    assert_eq!(fixture.postgres.dead(), 0);
}

#[test]
fn f39_batches_that_share_ids_in_any_order_are_stored_once() {
    let mut fixture = Fixture::start("39 two batches with the same keys", &[("BATCH_SIZE", "200")]);
    let rounds = times(20, 200);
    let time = now();
    let key = |row: u32| crate::harness::events::keyed(time, &format!("s{}", row % 7), &format!("k{row}"));
    for round in 0..rounds {
        let ascending: Vec<_> = (0..200).map(|row| key(200 * (round % 3) + row)).collect();
        let descending: Vec<_> = ascending.iter().rev().cloned().collect();
        ids_of(&fixture.server.client().post_ndjson(&ascending));
        ids_of(&fixture.server.client().post_ndjson(&descending));
    }
    crate::harness::checker::wait_for_drain_within(Duration::from_mins(1), &fixture.server);
    assert_eq!((fixture.postgres.stored(), fixture.postgres.dead()), (600, 0));
    assert_eq!(fixture.postgres.value::<i64>("SELECT sum(count)::bigint FROM event_counts"), 600);
    let duplicates = u64::from(rounds) * 400 - 600;
    assert_eq!(fixture.server.metric("events_duplicate_total"), duplicates);
    fixture.row.passed_after(rounds, 600);
}
