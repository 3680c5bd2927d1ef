//! Reads the position of the database in its write-ahead log (WAL). It does not decide what a position
//! means; `storage::wal` does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use postgres::Client;

use super::error;
use super::session::SynchronousCommit;
use crate::storage::StoreError;
use crate::storage::wal::{CommitPosition, FailoverDetector, KnownPosition, WalPosition};

/// The standbys that count: those that COMMIT waits for, or all if there are none. Those of a role
/// without `pg_monitor` have no `flush_lsn`.
const STANDBYS: &str = "\
    SELECT count(*), count(flush_lsn), (min(flush_lsn) - '0/0'::pg_lsn)::bigint FROM pg_stat_replication \
    WHERE state = 'streaming' AND (sync_state IN ('sync', 'quorum') OR NOT EXISTS \
        (SELECT FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')))";

/// Reads positions, and passes them to the detector of failovers.
#[derive(Debug)]
pub(super) struct WalReader {
    pub(super) detector: FailoverDetector,
    /// Selects system identifier, timeline and end of the WAL; no timeline of a standby.
    database_sql: String,
    /// Selects timeline and end of the WAL.
    commit_sql: String,
    /// The database has refused to tell, which was logged.
    refused: AtomicBool,
}

/// The database at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectedDatabase {
    /// The epoch in which the connection was opened. In a later one the connection may lead to a server
    /// that was replaced.
    pub(super) epoch: u64,
    /// Its position when the connection was opened. None if it did not tell.
    pub(super) wal: Option<WalPosition>,
}

impl WalReader {
    /// A commit that does not wait for the flush may be after its end. `last`: the position that an
    /// earlier process has seen last.
    pub(super) fn new(synchronous_commit: SynchronousCommit, last: Option<WalPosition>) -> Self {
        let end_of_wal = match synchronous_commit {
            SynchronousCommit::Off => "pg_current_wal_insert_lsn()",
            SynchronousCommit::Local
            | SynchronousCommit::RemoteWrite
            | SynchronousCommit::On
            | SynchronousCommit::RemoteApply => "pg_current_wal_flush_lsn()",
        };
        let timeline_and_lsn = "substr(pg_walfile_name(lsn), 1, 8), (lsn - '0/0'::pg_lsn)::bigint";
        Self {
            detector: FailoverDetector::new(last),
            database_sql: format!(
                "SELECT system_identifier, {timeline_and_lsn} FROM pg_control_system(), \
                 LATERAL (SELECT CASE WHEN NOT pg_is_in_recovery() THEN {end_of_wal} END AS lsn) AS wal"
            ),
            commit_sql: format!("SELECT {timeline_and_lsn} FROM (SELECT {end_of_wal} AS lsn) AS wal"),
            refused: AtomicBool::new(false),
        }
    }

    /// Records the database of a new connection, which was opened when `before` was known.
    pub(super) fn connected(&self, before: KnownPosition, wal: Option<WalPosition>) -> ConnectedDatabase {
        let epoch = wal.map_or(before.epoch, |wal| self.detector.observe(before, wal));
        ConnectedDatabase { epoch, wal }
    }

    /// The database's position. None if it does not tell, or is a standby. Fails if the connection does.
    pub(super) fn read(&self, client: &mut Client) -> Result<Option<WalPosition>, postgres::Error> {
        match client.query_typed_one(&self.database_sql, &[]) {
            Ok(row) => {
                self.refused.store(false, Ordering::Relaxed);
                let system = row.get::<_, i64>(0).cast_unsigned();
                Ok(wal_position(system, row.get(1), row.get(2)))
            }
            Err(error) if error::leaves_connection_usable(&error) => {
                if !self.refused.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "the database does not tell its position in the WAL, so a failover that loses events \
                         cannot be noticed: {}",
                        error::from_postgres("reading the position", &error)
                    );
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The position after a commit on a connection to `database`, which the commit preceded. Its LSN is
    /// unknown if it cannot be read: the rows are committed nevertheless.
    pub(super) fn after_commit(
        &self,
        client: &mut Client,
        database: ConnectedDatabase,
    ) -> Option<CommitPosition> {
        let connected = database.wal?;
        let before = self.detector.known();
        let row = client.query_typed_one(&self.commit_sql, &[]).ok();
        let wal = row.and_then(|row| wal_position(connected.system, row.get(0), row.get(1)));
        if let Some(wal) = wal {
            self.detector.observe(before, wal);
        }
        let unknown = WalPosition { lsn: WalPosition::LSN_UNKNOWN, ..connected };
        Some(CommitPosition { epoch: database.epoch, wal: wal.unwrap_or(unknown) })
    }

    /// Records the answer to a question for the position.
    pub(super) fn observe(&self, before: KnownPosition, wal: WalPosition) -> CommitPosition {
        CommitPosition { epoch: self.detector.observe(before, wal), wal }
    }
}

/// The most standbys that were seen at a time since the last failover. One that is missing now may be
/// promoted later, so that its position counts although it is not known.
#[derive(Debug, Default)]
pub(super) struct StandbyCount(Mutex<(Option<WalPosition>, i64)>);

impl StandbyCount {
    /// The LSN that all standbys have flushed, if none of those that were seen is missing.
    pub(super) fn flushed_by_all(
        &self,
        primary: WalPosition,
        (standbys, flushed): (i64, Option<u64>),
    ) -> Option<u64> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, most) = *seen;
        let most = if at.is_some_and(|at| at.is_before(&primary)) { most.max(standbys) } else { standbys };
        *seen = (Some(primary), most);
        flushed.filter(|_| standbys == most)
    }
}

/// The number of streaming standbys that count, and the LSN that all of them have flushed, if it is
/// known.
pub(super) fn standbys(client: &mut Client) -> Result<(i64, Option<u64>), StoreError> {
    let row = client
        .query_typed_one(STANDBYS, &[])
        .map_err(|error| error::from_postgres("reading the standbys", &error))?;
    let (all, known): (i64, i64) = (row.get(0), row.get(1));
    let flushed = row.get::<_, Option<i64>>(2).map(i64::cast_unsigned);
    Ok((all, flushed.filter(|_| all == known)))
}

fn wal_position(system: u64, timeline: Option<&str>, lsn: Option<i64>) -> Option<WalPosition> {
    let timeline = u32::from_str_radix(timeline?, 16).ok()?;
    Some(WalPosition { system, timeline, lsn: lsn?.cast_unsigned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_standby_leaves_the_flushed_position_unknown() {
        let at = |timeline, lsn| WalPosition { system: 7, timeline, lsn };
        let count = StandbyCount::default();
        assert_eq!(count.flushed_by_all(at(1, 10), (0, None)), None);
        assert_eq!(count.flushed_by_all(at(1, 20), (2, Some(15))), Some(15));
        assert_eq!(count.flushed_by_all(at(1, 30), (2, None)), None, "the role may not read it");
        assert_eq!(count.flushed_by_all(at(1, 40), (1, Some(40))), None, "one is missing");
        assert_eq!(count.flushed_by_all(at(1, 50), (2, Some(45))), Some(45));
        assert_eq!(count.flushed_by_all(at(2, 50), (1, Some(50))), Some(50), "the other is the primary");
    }
}
