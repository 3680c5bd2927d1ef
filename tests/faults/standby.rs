//! FAULTS 34 to 38: a primary with a standby. This test proves the harness.

use crate::harness::ReplicatedPostgres;

/// The database loses what it committed while the replication was stalled.
#[test]
fn a_promoted_standby_misses_rows_of_the_stall() {
    let mut pair = ReplicatedPostgres::start();
    pair.primary.execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)");
    pair.wait_until_caught_up();
    let on_standby = |pair: &ReplicatedPostgres| pair.standby.value::<i64>("SELECT count(*) FROM t");
    assert_eq!(on_standby(&pair), 1);
    pair.stall_replication();
    pair.primary.execute("INSERT INTO t VALUES (2)");
    pair.resume_replication();
    pair.wait_until_caught_up();
    assert_eq!(on_standby(&pair), 2, "a stall that ends loses nothing");

    pair.stall_replication();
    pair.primary.execute("INSERT INTO t SELECT generate_series(3, 1000)");
    pair.kill_primary();
    pair.promote_standby();
    pair.standby.execute("INSERT INTO t VALUES (-1)");
    assert_eq!(on_standby(&pair), 3, "committed rows are gone, and the standby is writable");

    let mut pair = pair.replace_primary();
    pair.primary.execute("INSERT INTO t VALUES (-2)");
    pair.stop_primary();
    pair.promote_standby();
    assert_eq!(on_standby(&pair), 4, "a clean stop sends everything");
}
