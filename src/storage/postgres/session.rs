//! The PostgreSQL settings on which the server's guarantees depend.
//!
//! A default of the database, of the role or of another client of a transaction-pooling proxy must
//! not weaken a guarantee, and session settings do not reach every session behind such a proxy. So
//! each transaction sets what it needs by `SET LOCAL`, in the message of BEGIN. `check` reports the
//! settings that no session can change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use postgres::Client;

use super::error;
use crate::storage::StoreError;

/// The value of `synchronous_commit` in transactions that write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SynchronousCommit {
    Off,
    Local,
    RemoteWrite,
    #[default]
    On,
    RemoteApply,
}

impl SynchronousCommit {
    pub const ALL: [Self; 5] = [Self::On, Self::Off, Self::Local, Self::RemoteWrite, Self::RemoteApply];

    /// PostgreSQL's name of the value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Local => "local",
            Self::RemoteWrite => "remote_write",
            Self::On => "on",
            Self::RemoteApply => "remote_apply",
        }
    }
}

/// The settings that every transaction adds to those of its kind.
#[derive(Debug)]
pub(super) struct SessionSettings {
    synchronous_commit: SynchronousCommit,
    /// Sets the schema of `events` and those that follow it; None until `prepare` has found it.
    search_path: Mutex<Option<String>>,
}

impl SessionSettings {
    pub(super) fn new(synchronous_commit: SynchronousCommit) -> Self {
        Self { synchronous_commit, search_path: Mutex::default() }
    }

    /// Completes the SQL that begins a transaction.
    pub(super) fn complete(&self, begin_sql: &str) -> String {
        let commit = self.synchronous_commit.name();
        // With policies in force, `row_security = off` makes a statement fail that would otherwise
        // skip rows without an error: DELETE of a sweep, or the comparison of counts with events.
        let settings = format!("SET LOCAL synchronous_commit = {commit}; SET LOCAL row_security = off");
        self.complete_read(&format!("{begin_sql}; {settings}"))
    }

    /// Completes the SQL that begins a transaction of one query.
    pub(super) fn complete_read(&self, begin_sql: &str) -> String {
        match &*self.search_path() {
            Some(search_path) => format!("{begin_sql}; {search_path}"),
            None => begin_sql.to_owned(),
        }
    }

    /// Makes later transactions look up tables in `schemas`. Another default of `search_path` would
    /// lead them to other tables of the same names.
    pub(super) fn set_search_path(&self, schemas: &[String]) {
        let quoted: Vec<_> =
            schemas.iter().map(|schema| format!("\"{}\"", schema.replace('"', "\"\""))).collect();
        *self.search_path() = Some(format!("SET LOCAL search_path = {}", quoted.join(", ")));
    }

    /// Returns to the default of `search_path`.
    pub(super) fn clear_search_path(&self) {
        *self.search_path() = None;
    }

    fn search_path(&self) -> MutexGuard<'_, Option<String>> {
        self.search_path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs the settings that weaken a guarantee. Returns the schema of `events`, followed by those
    /// of the default `search_path`, which functions of triggers may need.
    pub(super) fn check(&self, client: &mut Client) -> Result<Vec<String>, StoreError> {
        let to_error = |error| error::from_postgres("reading the settings of the database", &error);
        let settings = client
            .query_typed(
                "SELECT name, reset_val FROM pg_settings \
                 WHERE name IN ('fsync', 'full_page_writes', 'session_replication_role', 'synchronous_commit')",
                &[],
            )
            .map_err(to_error)?;
        for setting in &settings {
            self.report(setting.get(0), setting.get(1));
        }
        if self.synchronous_commit == SynchronousCommit::Off {
            log::warn!(
                "DATABASE_SYNCHRONOUS_COMMIT=off: a crash of PostgreSQL loses the events of its last \
                 moments, at every level of durability"
            );
        }
        let schemas = client
            .query_typed_one(
                "SELECT nspname::text || current_schemas(false)::text[] FROM pg_namespace \
                 WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = 'events'::regclass)",
                &[],
            )
            .map_err(to_error)?;
        Ok(schemas.get(0))
    }

    fn report(&self, name: &str, value: &str) {
        match (name, value) {
            ("fsync" | "full_page_writes", "off") => log::warn!(
                "the database runs with {name}=off: a power cut of its machine can lose or corrupt stored \
                 events, at every level of durability"
            ),
            ("session_replication_role", role) if role != "origin" => log::warn!(
                "the database's session_replication_role is {role}: triggers and foreign keys do not apply \
                 to events"
            ),
            ("synchronous_commit", default) if default != self.synchronous_commit.name() => log::info!(
                "events are committed with synchronous_commit={}, not with the database's default {default} \
                 (DATABASE_SYNCHRONOUS_COMMIT)",
                self.synchronous_commit.name()
            ),
            _ => {}
        }
    }
}
