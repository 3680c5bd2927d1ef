//! The position of a database in the write-ahead log.

use super::read_query::ReadPool;
use crate::storage::StoreError;

/// Every role may call these functions. The cast fails if the table of events is missing: such a
/// database serves no queries.
const POSITION: &str = "\
    SELECT (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END \
        - '0/0'::pg_lsn)::int8, 'events'::regclass::oid::int8";

pub(super) fn position(pool: ReadPool<'_>) -> Result<Option<u64>, StoreError> {
    let positions = pool.query("reading the position in the log", POSITION, &[], |row| {
        let log_bytes: Option<i64> = row.get(0);
        log_bytes.and_then(|bytes| u64::try_from(bytes).ok())
    });
    positions?.pop().ok_or_else(|| StoreError::client_side("the database returned no position"))
}
