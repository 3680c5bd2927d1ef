//! Runs database calls of queries behind the circuit breaker and maps their errors to responses.

use std::time::Duration;

use std::sync::Arc;

use crate::clock::Clock;
use crate::http::Response;
use crate::http::problem::{self, ProblemKind};
use crate::logging::RateLimitedLog;
use crate::storage::{Breaker, StandbyCondition, StandbyState, StoreError};

/// `Retry-After` of a query rejected by a full queue: queries take milliseconds.
pub(super) const QUEUE_RETRY_S: u64 = 1;
/// Minimum interval between two log lines about failed queries.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Shared by all reader and exporter threads.
#[derive(Clone, Debug)]
pub(super) struct BreakerGuard {
    pub(super) breaker: Arc<Breaker>,
    pub(super) clock: Clock,
    /// The standby that may answer in place of the primary.
    pub(super) standby: Option<Arc<StandbyState>>,
    error_log: Arc<RateLimitedLog>,
}

impl BreakerGuard {
    pub(super) fn new(breaker: Arc<Breaker>, clock: Clock) -> Self {
        Self { breaker, clock, standby: None, error_log: Arc::new(RateLimitedLog::new(ERROR_LOG_INTERVAL)) }
    }

    /// Whether no database may answer, since the breaker is open; then writes a 503 to `response`.
    pub(super) fn reject_if_open(&self, response: &mut Response) -> bool {
        let answers = |standby: &StandbyState| standby.condition() != StandbyCondition::Unreachable;
        if self.standby.as_deref().is_some_and(answers) {
            return false;
        }
        let now = self.clock.now();
        // `retry_at` is read without `admit`: an admitted caller must report an outcome, and the
        // job may still be skipped.
        let wait = self.breaker.retry_at().filter(|&retry_at| now < retry_at).map(|at| at.since(now));
        if let Some(wait) = wait {
            write_unavailable(response, wait);
        }
        wait.is_some()
    }

    /// Runs `call` unless the breaker is open, and reports the outcome to the breaker.
    pub(super) fn call<T>(
        &self,
        what: &str,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, RunQueryError> {
        let now = self.clock.now();
        if let Err(open) = self.breaker.admit(now) {
            return Err(RunQueryError::Unavailable { retry_in: open.retry_at.since(now) });
        }
        let result = call();
        let now = self.clock.now();
        result.inspect(|_value| self.breaker.record_success(now)).map_err(|error| {
            let failure = RunQueryError::of(&error);
            match failure {
                RunQueryError::Unavailable { .. } => self.breaker.record_failure(now),
                // The database is reachable.
                RunQueryError::TimedOut
                | RunQueryError::Statement
                | RunQueryError::Denied
                | RunQueryError::Unsupported => self.breaker.record_success(now),
            }
            if let Some(suppressed) = self.error_log.due(now) {
                let sqlstate = error.sqlstate.as_deref().unwrap_or("none");
                log::warn!(query = what, sqlstate, suppressed; "a query failed: {error}");
            }
            failure
        })
    }
}

/// Why a query failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunQueryError {
    /// The database is unavailable: the same query may succeed later.
    Unavailable { retry_in: Duration },
    /// The statement timed out. Expensive queries must not trip the breaker and stop the writer.
    TimedOut,
    /// PostgreSQL rejected the statement: a server bug, since the parameters were validated.
    Statement,
    /// The role of the server has not the permission for an operation that the server itself does not
    /// need.
    Denied,
    /// The repository has no such operation.
    Unsupported,
}

impl RunQueryError {
    pub(super) fn of(error: &StoreError) -> Self {
        match error.sqlstate.as_deref().map(|state| (state, state.get(..2).unwrap_or(state))) {
            Some(("57014", _)) => Self::TimedOut,
            // Data exceptions, constraint and cardinality violations, program limits.
            Some((_, "22" | "23" | "21" | "54")) => Self::Statement,
            Some(_) | None => Self::Unavailable { retry_in: Duration::ZERO },
        }
    }

    pub fn write(self, response: &mut Response) {
        match self {
            Self::Unavailable { retry_in } => write_unavailable(response, retry_in),
            Self::TimedOut => {
                let detail = "the query timed out; request a shorter time range, or count=none";
                problem::write_retryable(response, ProblemKind::DatabaseUnavailable, detail, QUEUE_RETRY_S);
            }
            Self::Statement => {
                problem::write(response, ProblemKind::Internal, "the query failed; see the server log");
            }
            Self::Denied => {
                let detail = "the server's role in the database lacks the permission; use the command as the \
                              owner of the tables";
                problem::write(response, ProblemKind::Forbidden, detail);
            }
            Self::Unsupported => {
                problem::write(response, ProblemKind::NotImplemented, "the storage has no such operation");
            }
        }
    }
}

fn write_unavailable(response: &mut Response, wait: Duration) {
    let retry_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    problem::write_retryable(
        response,
        ProblemKind::DatabaseUnavailable,
        "the database is unavailable",
        retry_s,
    );
}
