//! Where queries read: from the primary, or from a standby with the primary in its place when the
//! standby lags or does not answer.
//!
//! Calls to the primary pass its breaker. A failure of the standby never reaches that breaker.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::breaker_guard::{BreakerGuard, RunQueryError};
use crate::clock::{Clock, Moment};
use crate::event::EventId;
use crate::logging::RateLimitedLog;
use crate::storage::{
    Breaker, DeadLetters, EventRepository, EventStatus, StandbyCondition, StandbyState, StoreError,
};

/// SQLSTATE of a missing permission.
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// Minimum interval between two log lines about queries that fail on the standby only.
const ERROR_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// Shared by all reader and exporter threads.
#[derive(Clone, Debug)]
pub struct QueryDatabase {
    primary: Arc<dyn EventRepository>,
    pub(super) guard: BreakerGuard,
    standby: Option<Arc<StandbyReader>>,
}

#[derive(Debug)]
struct StandbyReader {
    repository: Arc<dyn EventRepository>,
    state: Arc<StandbyState>,
    error_log: RateLimitedLog,
}

impl QueryDatabase {
    pub fn new(primary: Arc<dyn EventRepository>, breaker: Arc<Breaker>, clock: Clock) -> Self {
        Self { primary, guard: BreakerGuard::new(breaker, clock), standby: None }
    }

    /// Reads from the standby where its state allows it.
    #[must_use]
    pub fn with_standby(mut self, repository: Arc<dyn EventRepository>, state: Arc<StandbyState>) -> Self {
        self.guard.standby = Some(state.clone());
        let error_log = RateLimitedLog::new(ERROR_LOG_INTERVAL);
        self.standby = Some(Arc::new(StandbyReader { repository, state, error_log }));
        self
    }

    /// Runs a query whose result may be as old as the lag of the standby.
    pub(super) fn read<T>(
        &self,
        what: &str,
        query: impl Fn(&dyn EventRepository) -> Result<T, StoreError>,
    ) -> Result<T, RunQueryError> {
        let on_primary = || self.guard.call(what, || query(&*self.primary));
        let Some(standby) = &self.standby else { return on_primary() };
        match standby.state.condition() {
            StandbyCondition::Current => {
                if let Some(result) = standby.try_read(&query, &self.guard.clock) {
                    return result;
                }
            }
            StandbyCondition::Lagging => {
                // Old events are better than none.
                let result = on_primary();
                if let Err(RunQueryError::Unavailable { .. }) = result
                    && let Some(result) = standby.try_read(&query, &self.guard.clock)
                {
                    return result;
                }
                standby.state.fallbacks.fetch_add(1, Ordering::Relaxed);
                return result;
            }
            StandbyCondition::Unreachable => {}
        }
        standby.state.fallbacks.fetch_add(1, Ordering::Relaxed);
        on_primary()
    }

    /// Runs a query whose result may not be as old as the lag of a standby.
    pub(super) fn read_primary<T>(
        &self,
        what: &str,
        query: impl FnOnce(&dyn EventRepository) -> Result<T, StoreError>,
    ) -> Result<T, RunQueryError> {
        self.guard.call(what, || query(&*self.primary))
    }

    /// Runs an operation on the dead letters, on the primary.
    pub fn dead_letters<T>(
        &self,
        what: &str,
        run: impl FnOnce(&dyn DeadLetters) -> Result<T, StoreError>,
    ) -> Result<T, RunQueryError> {
        let Some(letters) = self.primary.dead_letters() else { return Err(RunQueryError::Unsupported) };
        // A missing permission is that of these operations, not of the writer, so it is no failure of
        // the database.
        self.guard.call(what, || match run(letters) {
            Ok(value) => Ok(Ok(value)),
            Err(error) if error.sqlstate.as_deref() == Some(INSUFFICIENT_PRIVILEGE) => {
                log::warn!(query = what; "the server's role may not change dead letters: {error}");
                Ok(Err(RunQueryError::Denied))
            }
            Err(error) => Err(error),
        })?
    }

    pub fn now(&self) -> Moment {
        self.guard.clock.now()
    }

    /// Finds an event. Only the primary decides that it is not stored, or dead: a standby that lags
    /// would deny a stored event.
    pub(super) fn find(&self, id: EventId) -> Result<Option<EventStatus>, RunQueryError> {
        let find = |repository: &dyn EventRepository| repository.find(id);
        if let Some(standby) = &self.standby
            && standby.state.condition() != StandbyCondition::Unreachable
            && let Some(Ok(Some(stored @ EventStatus::Stored(_)))) =
                standby.try_read(&find, &self.guard.clock)
        {
            return Ok(Some(stored));
        }
        self.guard.call("find", || find(&*self.primary))
    }
}

impl StandbyReader {
    /// Runs the query. None if another database may succeed.
    fn try_read<T>(
        &self,
        query: &impl Fn(&dyn EventRepository) -> Result<T, StoreError>,
        clock: &Clock,
    ) -> Option<Result<T, RunQueryError>> {
        let error = match query(&*self.repository) {
            Ok(value) => {
                self.state.queries.fetch_add(1, Ordering::Relaxed);
                return Some(Ok(value));
            }
            Err(error) => error,
        };
        match RunQueryError::of(&error) {
            // The query is at fault: the primary is not burdened with it too.
            failure @ (RunQueryError::TimedOut
            | RunQueryError::Statement
            | RunQueryError::Denied
            | RunQueryError::Unsupported) => Some(Err(failure)),
            RunQueryError::Unavailable { .. } => {
                if is_unreachable(&error) {
                    self.state.record_unreachable(&error);
                } else if let Some(suppressed) = self.error_log.due(clock.now()) {
                    // Such as a conflict with the replay (40001), or a missing permission.
                    let sqlstate = error.sqlstate.as_deref().unwrap_or("none");
                    log::warn!(sqlstate, suppressed; "a query failed on the standby: {error}");
                }
                None
            }
        }
    }
}

/// Whether further queries would fail too: connection, login, resources, shutdown.
fn is_unreachable(error: &StoreError) -> bool {
    let class = error.sqlstate.as_deref().and_then(|sqlstate| sqlstate.get(..2));
    class.is_none_or(|class| matches!(class, "08" | "28" | "3D" | "53" | "57" | "58"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{ArrivalNumber, Timestamp, row};
    use crate::storage::memory::MemoryRepository;
    use crate::storage::{BreakerLimits, Filter, StandbyLag, StorePath};

    const ALL: (Timestamp, Timestamp) = (Timestamp::from_millis(0), Timestamp::from_millis(1_000_000));

    struct Databases {
        primary: Arc<MemoryRepository>,
        standby: Arc<MemoryRepository>,
        state: Arc<StandbyState>,
        breaker: Arc<Breaker>,
        database: QueryDatabase,
    }

    fn id() -> EventId {
        EventId::keyed(5, [0; 10])
    }

    fn gone() -> StoreError {
        StoreError::client_side("gone")
    }

    fn refusal(sqlstate: &str) -> StoreError {
        StoreError { sqlstate: Some(sqlstate.to_owned()), ..gone() }
    }

    impl Databases {
        /// The primary has one event, the standby has not.
        fn new() -> Self {
            let (primary, standby) = (Arc::new(MemoryRepository::new()), Arc::new(MemoryRepository::new()));
            let state = Arc::new(StandbyState::new(Duration::from_secs(10)));
            let breaker = Arc::new(Breaker::new(BreakerLimits::default()));
            let clock = Clock::manual(Timestamp::from_millis(0), 1);
            let database = QueryDatabase::new(primary.clone(), breaker.clone(), clock)
                .with_standby(standby.clone(), state.clone());
            store_event(&primary);
            Self { primary, standby, state, breaker, database }
        }

        fn answer_with_lag(&self, seconds: u64) {
            let age = Duration::from_secs(seconds);
            self.state.record_answer(Some(StandbyLag { age, bytes: None }));
        }

        fn count(&self) -> Result<u64, RunQueryError> {
            self.database.read("count", |events| events.count(&Filter::between(ALL.0, ALL.1)))
        }

        /// Queries of the standby, and of the primary in its place.
        fn counts(&self) -> (u64, u64) {
            (self.state.queries.load(Ordering::Relaxed), self.state.fallbacks.load(Ordering::Relaxed))
        }
    }

    fn store_event(repository: &MemoryRepository) {
        let mut rows = Vec::new();
        let time = Timestamp::from_millis(5);
        row::append_header(&mut rows, id(), time, time, ArrivalNumber::default());
        row::append_text(&mut rows, b"s");
        row::append_text(&mut rows, b"m");
        row::append_metadata(&mut rows, None);
        repository.store(&[&rows], &[], StorePath::Copy).expect("no fault is injected");
    }

    #[test]
    fn queries_read_from_the_standby_while_it_is_current() {
        let databases = Databases::new();
        assert_eq!(databases.count(), Ok(1), "it has not answered yet");
        databases.answer_with_lag(10);
        assert_eq!(databases.count(), Ok(0));
        databases.answer_with_lag(11);
        assert_eq!(databases.count(), Ok(1), "it lags");
        assert_eq!(databases.counts(), (1, 2));
    }

    #[test]
    fn queries_read_from_the_primary_when_the_standby_fails() {
        let databases = Databases::new();
        databases.answer_with_lag(0);
        databases.standby.set_outage(Some(gone()));
        assert_eq!(databases.count(), Ok(1));
        assert_eq!(databases.state.condition(), StandbyCondition::Unreachable);
        assert_eq!(databases.breaker.transitions(), 0);
        // A conflict with the replay concerns one query only.
        databases.answer_with_lag(0);
        databases.standby.set_outage(Some(refusal("40001")));
        assert_eq!(databases.count(), Ok(1));
        assert_eq!(databases.state.condition(), StandbyCondition::Current);
        // A query that takes too long would take as long on the primary.
        databases.standby.set_outage(Some(refusal("57014")));
        assert_eq!(databases.count(), Err(RunQueryError::TimedOut));
        assert_eq!(databases.counts(), (0, 2));
    }

    #[test]
    fn standby_that_lags_answers_while_the_primary_does_not() {
        let databases = Databases::new();
        databases.answer_with_lag(11);
        databases.primary.set_outage(Some(gone()));
        assert_eq!(databases.count(), Ok(0));
        databases.state.record_unreachable(&gone());
        assert!(matches!(databases.count(), Err(RunQueryError::Unavailable { .. })));
    }

    #[test]
    fn standby_that_misses_an_event_never_denies_it() {
        let databases = Databases::new();
        databases.answer_with_lag(0);
        let is_stored = || matches!(databases.database.find(id()), Ok(Some(EventStatus::Stored(_))));
        assert!(is_stored(), "the primary has it");
        databases.primary.set_outage(Some(gone()));
        assert!(matches!(databases.database.find(id()), Err(RunQueryError::Unavailable { .. })));
        store_event(&databases.standby);
        databases.answer_with_lag(60);
        assert!(is_stored(), "the standby has it now");
    }
}
