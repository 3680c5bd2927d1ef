//! The threads that wait for the database on behalf of queries, and the bounded line before them. An acceptor only
//! ever puts a job in the line, or refuses at once when the line is full or the breaker is open.
//!
//! Knows storage as its trait and the breaker before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::join::{Join, fulfil};
use super::page::Shown;
use super::params::{Count, Query};
use super::{receipt, stats};
use crate::clock::{Clock, Moment};
use crate::event::{EventId, Timestamp};
use crate::http::{Answer, Promise, Response};
use crate::ingest::problem::{self, Errors, FieldError, Kind};
use crate::logging::Thinned;
use crate::storage::{Breaker, EventRepository, Filter, Page, StoreError};

/// When a client may come again that was refused for the length of the line: queries take milliseconds.
const LINE_RETRY_S: u64 = 1;
/// How often the failures of queries are logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
pub struct ReaderLimits {
    /// Jobs that may wait; a query with a count is two.
    pub jobs_max: usize,
    /// A job that has waited longer is refused: its client has most likely gone.
    pub wait_max: Duration,
}

/// What all acceptors share: the entrance to the line.
#[derive(Clone, Debug)]
pub struct Line {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
    limits: ReaderLimits,
    breaker: Arc<Breaker>,
    clock: Clock,
}

/// What all reader threads share: the other end of the line.
#[derive(Clone, Debug)]
pub struct Readers {
    jobs: Receiver<Job>,
    waiting: Arc<AtomicUsize>,
    wait_max: Duration,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    complaint: Arc<Thinned>,
    clock: Clock,
}

#[derive(Debug)]
struct Job {
    since: Moment,
    task: Task,
}

#[derive(Debug)]
enum Task {
    Page(Arc<Join>, Page),
    Count(Arc<Join>, Filter),
    Find(Promise, EventId),
    Hours(Promise, Filter),
}

/// Makes the line. Each reader thread runs [`Readers::run`] of its own clone; when every [`Line`] is gone and the
/// jobs are done, the threads end.
pub fn line(
    limits: ReaderLimits,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    clock: Clock,
) -> (Line, Readers) {
    let (sender, receiver) = bounded(limits.jobs_max);
    let waiting = Arc::new(AtomicUsize::new(0));
    let readers = Readers {
        jobs: receiver,
        waiting: Arc::clone(&waiting),
        wait_max: limits.wait_max,
        repository,
        breaker: Arc::clone(&breaker),
        complaint: Arc::new(Thinned::new(COMPLAIN_EVERY)),
        clock: clock.clone(),
    };
    (Line { jobs: sender, waiting, limits, breaker, clock }, readers)
}

impl Line {
    /// Answers `GET /events?query`. `promise` is called only when the answer comes later.
    pub fn list(
        &self,
        query: &str,
        now: Timestamp,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> Answer {
        let query = match Query::parse(query, now) {
            Ok(query) => query,
            Err(errors) => {
                problem::answer_invalid(response, "the query is not valid", &errors);
                return Answer::Ready;
            }
        };
        let counted = query.count == Count::Exact;
        let Some(since) = self.enter(if counted { 2 } else { 1 }, response) else { return Answer::Ready };
        let shown = Shown { limit: query.limit, order: query.order };
        let join = Arc::new(Join::new(promise(), shown, counted));
        let page = query.page();
        if counted {
            self.put(since, Task::Count(Arc::clone(&join), query.filter));
        }
        self.put(since, Task::Page(join, page));
        Answer::Later
    }

    /// Answers `GET /events/{id}`. `promise` is called only when the answer comes later.
    pub fn find(&self, id: &str, promise: impl FnOnce() -> Promise, response: &mut Response) -> Answer {
        let id = match id.parse() {
            Ok(id) => id,
            Err(error @ crate::event::NotAnEventId) => {
                let mut errors = Errors::default();
                errors.push(|| FieldError {
                    index: None,
                    field: "event_id".into(),
                    detail: format!("event_id is {error}"),
                });
                problem::answer_invalid(response, "the event id is not valid", &errors);
                return Answer::Ready;
            }
        };
        let Some(since) = self.enter(1, response) else { return Answer::Ready };
        self.put(since, Task::Find(promise(), id));
        Answer::Later
    }

    /// Answers `GET /stats?query`. `promise` is called only when the answer comes later.
    pub fn stats(
        &self,
        query: &str,
        now: Timestamp,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> Answer {
        let filter = match Query::parse_stats(query, now) {
            Ok(filter) => stats::whole_hours(filter),
            Err(errors) => {
                problem::answer_invalid(response, "the query is not valid", &errors);
                return Answer::Ready;
            }
        };
        let Some(since) = self.enter(1, response) else { return Answer::Ready };
        self.put(since, Task::Hours(promise(), filter));
        Answer::Later
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes places in the line for all jobs of a request or for none, and says since when they wait; or writes
    /// the refusal.
    fn enter(&self, jobs: usize, response: &mut Response) -> Option<Moment> {
        let now = self.clock.now();
        // Only looked at: who is admitted must report, and a job may yet be skipped.
        if let Some(retry_at) = self.breaker.retry_at().filter(|&retry_at| now < retry_at) {
            unavailable(response, retry_at.since(now));
            return None;
        }
        let room = |waiting: usize| Some(waiting + jobs).filter(|&total| total <= self.limits.jobs_max);
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            queries_full(response);
            return None;
        }
        Some(now)
    }

    fn put(&self, since: Moment, task: Task) {
        // The place was taken above. When every reader has ended, the promise in the job answers 500 as it drops.
        if self.jobs.try_send(Job { since, task }).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            log::error!("the query threads have ended; a query cannot be answered");
        }
    }
}

impl Readers {
    /// The life of a reader thread.
    pub fn run(&self) {
        while let Ok(job) = self.jobs.recv() {
            self.tick(job);
        }
    }

    fn tick(&self, job: Job) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let late = self.clock.now().since(job.since) > self.wait_max;
        match job.task {
            Task::Page(join, _) | Task::Count(join, _) if late => join.fail(queries_full),
            Task::Find(promise, _) | Task::Hours(promise, _) if late => fulfil(promise, queries_full),
            Task::Page(join, _) | Task::Count(join, _) if join.over() => {}
            Task::Page(join, page) => match self.ask("page", || self.repository.page(&page)) {
                Ok(events) => join.events(events),
                Err(failure) => join.fail(|response| failure.answer(response)),
            },
            Task::Count(join, filter) => match self.ask("count", || self.repository.count(&filter)) {
                Ok(total) => join.total(total),
                Err(failure) => join.fail(|response| failure.answer(response)),
            },
            Task::Hours(promise, filter) => {
                // One more than is shown tells that there are too many.
                let hours = self.ask("stats", || self.repository.hours(&filter, stats::ROWS_MAX + 1));
                fulfil(promise, |response| match hours {
                    Ok(hours) => stats::answer(response, &filter, &hours),
                    Err(failure) => failure.answer(response),
                });
            }
            Task::Find(promise, id) => {
                let found = self.ask("find", || self.repository.find(id));
                fulfil(promise, |response| match found {
                    Ok(found) => receipt::answer(response, id, found.as_ref()),
                    Err(failure) => failure.answer(response),
                });
            }
        }
    }

    /// Asks the database, unless the breaker is open, and tells the breaker what came of it.
    fn ask<T>(&self, what: &str, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, Failure> {
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
enum Failure {
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

    fn answer(self, response: &mut Response) {
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

fn queries_full(response: &mut Response) {
    problem::answer_later(response, Kind::QueriesFull, "too many queries are waiting", LINE_RETRY_S);
}

fn unavailable(response: &mut Response, wait: Duration) {
    let retry_s = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    problem::answer_later(response, Kind::DatabaseUnavailable, "the database does not answer now", retry_s);
}

#[cfg(test)]
mod tests;
