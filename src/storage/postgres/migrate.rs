//! Schema migrations: applies the migrations that are compiled into this binary.

use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, Transaction};
use refinery::{Migration, Runner};

use super::advisory_lock::MIGRATE;
use super::connect::{Connections, TxnOptions};
use super::error;
use crate::storage::StoreError;

/// The migrations, in order. Each one only adds objects, so an older server keeps working beside a
/// newer one.
const MIGRATIONS: &[(&str, &str)] = &[
    ("V1__events", include_str!("../../../sql/V1__events.sql")),
    ("V2__retention", include_str!("../../../sql/V2__retention.sql")),
    ("V3__minutes", include_str!("../../../sql/V3__minutes.sql")),
];

/// Maximum wait for another server's migration, and the interval of polling the lock. A wait inside
/// the database would trigger the I/O timeout.
const LOCK_WAIT_MAX: Duration = Duration::from_mins(1);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(100);
/// I/O timeout of a migration, which may have to process a large table.
const STEP_IO_TIMEOUT: Duration = Duration::from_mins(10);

/// Applies the missing migrations. An up-to-date database costs two queries and no lock.
pub(super) fn run(connections: &Connections) -> Result<(), StoreError> {
    let migrations = MIGRATIONS
        .iter()
        .map(|(name, sql)| Migration::unapplied(name, sql))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| StoreError::client_side(format!("BUG: migrations: {error}")))?;
    let latest = migrations.iter().map(Migration::version).max().map_or(0, i64::from);
    connections.transaction(&read_txn(), check_encoding)?;
    // A pooled transaction reads the schema in which an earlier call found the tables.
    if is_up_to_date(connections.transaction(&read_txn(), latest_applied), latest)? {
        return Ok(());
    }
    let mut connection = connections.dedicated()?;
    // refinery manages transactions on its own connection, so a transaction on a second connection
    // holds the lock. A session lock would be lost or stuck behind a transaction-pooling proxy.
    let mut lock_connection = connections.dedicated()?;
    let to_error = |error| error::from_postgres("acquiring the migration lock", &error);
    let mut lock = lock_connection.client.transaction().map_err(to_error)?;
    lock.batch_execute("SET LOCAL idle_in_transaction_session_timeout = 0").map_err(to_error)?;
    acquire_lock(&mut lock)?;
    if is_up_to_date(latest_applied(&mut connection.client), latest)? {
        return Ok(());
    }
    connection.set_io_timeout(STEP_IO_TIMEOUT);
    let report =
        Runner::new(&migrations).run(&mut connection.client).map_err(|error| from_refinery(&error))?;
    for migration in report.applied_migrations() {
        log::info!(migration = migration.to_string().as_str(); "migration applied");
    }
    lock.commit().map_err(to_error)
}

fn acquire_lock(lock: &mut Transaction<'_>) -> Result<(), StoreError> {
    let to_error = |error| error::from_postgres("acquiring the migration lock", &error);
    for _ in 0..LOCK_WAIT_MAX.as_millis() / LOCK_POLL_INTERVAL.as_millis() {
        let acquired = lock.query_typed_one(&format!("SELECT pg_try_advisory_xact_lock({MIGRATE})"), &[]);
        if acquired.map_err(to_error)?.get(0) {
            return Ok(());
        }
        std::thread::sleep(LOCK_POLL_INTERVAL);
    }
    let seconds = LOCK_WAIT_MAX.as_secs();
    Err(StoreError::client_side(format!(
        "another server has held the migration lock for more than {seconds} s"
    )))
}

/// Fails unless the database stores UTF-8. Another encoding would refuse some texts, event by event,
/// and so dead-letter them; `SQL_ASCII` would refuse the escapes of others in metadata.
fn check_encoding(client: &mut Client) -> Result<(), StoreError> {
    let row = client
        .query_typed_one("SELECT current_setting('server_encoding'), current_database()::text", &[])
        .map_err(|error| error::from_postgres("reading the encoding of the database", &error))?;
    let (encoding, database): (String, String) = (row.get(0), row.get(1));
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(StoreError {
        // feature_not_supported: only an operator can change it, and no event is at fault.
        sqlstate: Some(SqlState::FEATURE_NOT_SUPPORTED.code().to_owned()),
        ..StoreError::client_side(format!(
            "the encoding of the database {database:?} is {encoding}; it must be UTF8. Create a database with \
             CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0, and name it in DATABASE_URL"
        ))
    })
}

/// Returns true when the schema has this version or, during a rolling upgrade, a later one.
fn is_up_to_date(applied: Result<Option<i64>, StoreError>, latest: i64) -> Result<bool, StoreError> {
    match applied {
        Ok(applied) => Ok(applied.is_some_and(|applied| applied >= latest)),
        Err(error) if error.sqlstate.as_deref() == Some(SqlState::UNDEFINED_TABLE.code()) => Ok(false),
        Err(error) => Err(error),
    }
}

fn latest_applied(client: &mut Client) -> Result<Option<i64>, StoreError> {
    client
        .query_typed_one("SELECT max(version)::bigint FROM refinery_schema_history", &[])
        .map(|row| row.get(0))
        .map_err(|error| error::from_postgres("reading refinery_schema_history", &error))
}

fn read_txn() -> TxnOptions {
    TxnOptions {
        begin_sql: "BEGIN READ ONLY; SET LOCAL statement_timeout = '10s'".to_owned(),
        io_timeout: Duration::from_secs(13),
    }
}

fn from_refinery(error: &refinery::Error) -> StoreError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if let Some(inner) = inner.downcast_ref::<postgres::Error>() {
            return error::from_postgres("migrating", inner);
        }
        cause = inner.source();
    }
    StoreError::client_side(format!("migrating: {}", error::error_chain(error)))
}
