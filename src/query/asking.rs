//! Asking the database on behalf of a query: the breaker before it, and what its errors mean to a client.

use std::time::Duration;

use std::sync::Arc;

use crate::clock::Clock;
use crate::http::Response;
use crate::http::problem::{self, Kind};
use crate::logging::Thinned;
use crate::storage::{Breaker, StoreError};

/// When a client may come again that was refused for the length of the line: queries take milliseconds.
pub(super) const LINE_RETRY_S: u64 = 1;
/// How often the failures of queries are logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

/// What all who ask share.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    pub(super) breaker: Arc<Breaker>,
    pub(super) clock: Clock,
    complaint: Arc<Thinned>,
}

impl Asking {
    pub(super) fn new(breaker: Arc<Breaker>, clock: Clock) -> Self {
        Self { breaker, clock, complaint: Arc::new(Thinned::new(COMPLAIN_EVERY)) }
    }

    /// Whether nothing can be asked now, which `response` then says.
    pub(super) fn refuses(&self, response: &mut Response) -> bool {
        let now = self.clock.now();
        // Only looked at: who is admitted must report, and a job may yet be skipped.
        let wait = self.breaker.retry_at().filter(|&retry_at| now < retry_at).map(|at| at.since(now));
        if let Some(wait) = wait {
            unavailable(response, wait);
        }
        wait.is_some()
    }

    /// Asks the database, unless the breaker is open, and tells the breaker what came of it.
    pub(super) fn ask<T>(
        &self,
        what: &str,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, Failure> {
        let now = self.clock.now();
        if let Err(open) = self.breaker.admit(now) {
            return Err(Failure::Unavailable { retry_in: open.retry_at.since(now) });
        }
        let result = call();
        let now = self.clock.now();
        result.inspect(|_value| self.breaker.answered(now)).map_err(|error| {
            let failure = Failure::of(&error);
            match failure {
                Failure::Unavailable { .. } => self.breaker.failed(now),
                // The database answered, and that is all the breaker is about.
                Failure::TooSlow | Failure::Query => self.breaker.answered(now),
            }
            if let Some(held_back) = self.complaint.due(now) {
                let sqlstate = error.sqlstate.as_deref().unwrap_or("none");
                log::warn!(query = what, sqlstate, held_back; "a query failed: {error}");
            }
            failure
        })
    }
}

/// A query's one question about an error: whose fault is it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The database is not able to, now: the same query may succeed later.
    Unavailable { retry_in: Duration },
    /// It took longer than a query may. That must not open the breaker, or a few dear questions would stop the writer.
    TooSlow,
    /// This query is at fault: ours, since the parameters were checked.
    Query,
}

impl Failure {
    fn of(error: &StoreError) -> Self {
        match error.sqlstate.as_deref().map(|state| (state, state.get(..2).unwrap_or(state))) {
            Some(("57014", _)) => Self::TooSlow,
            // Data, syntax of a value, limits of a statement.
            Some((_, "22" | "23" | "21" | "54")) => Self::Query,
            Some(_) | None => Self::Unavailable { retry_in: Duration::ZERO },
        }
    }

    pub(super) fn answer(self, response: &mut Response) {
        match self {
            Self::Unavailable { retry_in } => unavailable(response, retry_in),
            Self::TooSlow => {
                let detail = "the query took too long; ask for less time, or for count=none";
                problem::answer_later(response, Kind::DatabaseUnavailable, detail, LINE_RETRY_S);
            }
            Self::Query => problem::answer(response, Kind::Internal, "the query failed; the log says why"),
        }
    }
}

fn unavailable(response: &mut Response, wait: Duration) {
    let retry_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    problem::answer_later(response, Kind::DatabaseUnavailable, "the database does not answer now", retry_s);
}
