//! Brings the tables to the version that this binary was built with. Knows nothing of events.

use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, Transaction};
use refinery::{Migration, Runner};

use super::connect::Connections;
use super::error;
use crate::storage::StoreError;

/// The migrations, in order. They only ever add: an older server goes on working beside a newer one.
const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__events", include_str!("../../../sql/V1__events.sql")),
    ("V2__retention", include_str!("../../../sql/V2__retention.sql")),
    ("V3__minutes", include_str!("../../../sql/V3__minutes.sql")),
];

/// The key of the advisory lock under which one server at a time migrates. Any number, the same in all versions.
const LOCK: i64 = 0x6175_726f_7265_0001;

/// Longest wait for another server that migrates, and how often it is asked whether it has done. To wait within the
/// database would look like a database that is silent.
const WAIT: Duration = Duration::from_mins(1);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A step may take its time with a table of any size.
const STEP_PATIENCE: Duration = Duration::from_mins(10);

/// Applies what is missing. A database that is up to date costs one query and no lock.
pub(super) fn run(connections: &Connections) -> Result<(), StoreError> {
    let migrations = MIGRATIONS
        .iter()
        .map(|(name, sql)| Migration::unapplied(name, sql))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StoreError::unreachable(format!("BUG: migrations: {error}")))?;
    let wanted = migrations.iter().map(Migration::version).max().map_or(0, i64::from);
    let mut worker = connections.apart()?;
    if up_to_date(&mut worker.client, wanted)? {
        return Ok(());
    }
    // refinery has its own transactions on its connection, so the lock is held by a transaction on a second one.
    // A session's lock would be lost or stuck behind a transaction-pooling proxy.
    let mut guard = connections.apart()?;
    let told = |error| error::of("waiting for the lock of the migrations", &error);
    let mut guard = guard.client.transaction().map_err(told)?;
    guard.batch_execute("SET LOCAL idle_in_transaction_session_timeout = 0").map_err(told)?;
    lock(&mut guard)?;
    if up_to_date(&mut worker.client, wanted)? {
        return Ok(());
    }
    worker.wait_for(STEP_PATIENCE);
    let report = Runner::new(&migrations).run(&mut worker.client).map_err(|error| of_refinery(&error))?;
    for migration in report.applied_migrations() {
        log::info!(migration = migration.to_string().as_str(); "migration applied");
    }
    guard.commit().map_err(told)
}

fn lock(guard: &mut Transaction<'_>) -> Result<(), StoreError> {
    let told = |error| error::of("waiting for the lock of the migrations", &error);
    for _ in 0..WAIT.as_millis() / ASK_EVERY.as_millis() {
        let asked = guard.query_typed_one(&format!("SELECT pg_try_advisory_xact_lock({LOCK})"), &[]);
        if asked.map_err(told)?.get(0) {
            return Ok(());
        }
        std::thread::sleep(ASK_EVERY);
    }
    let waited = WAIT.as_secs();
    Err(StoreError::unreachable(format!("another server has been migrating for more than {waited} s")))
}

/// Whether the tables are of our version or, in the middle of a rolling upgrade, of a later one.
fn up_to_date(client: &mut Client, wanted: i64) -> Result<bool, StoreError> {
    match client.query_typed_one("SELECT max(version)::bigint FROM refinery_schema_history", &[]) {
        Ok(row) => Ok(row.get::<_, Option<i64>>(0).is_some_and(|applied| applied >= wanted)),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(false),
        Err(error) => Err(error::of("reading which migrations were applied", &error)),
    }
}

fn of_refinery(error: &refinery::Error) -> StoreError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if let Some(inner) = inner.downcast_ref::<postgres::Error>() {
            return error::of("migrating", inner);
        }
        cause = inner.source();
    }
    StoreError::unreachable(format!("migrating: {}", error::chain(error)))
}
