//! The threads that wait for the database on behalf of queries, and the bounded line before them. An acceptor only
//! ever puts a job in the line, or refuses at once when the line is full or the breaker is open.
//!
//! Knows the breaker as a [`Gate`] and storage as its trait.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::join::{Join, fulfil};
use super::page::Shown;
use super::params::{Count, Query};
use super::receipt;
use crate::clock::{Clock, Moment};
use crate::event::{EventId, Timestamp};
use crate::http::{Answer, Promise, Response};
use crate::ingest::problem::{self, Errors, FieldError, Kind};
use crate::storage::{EventRepository, Filter, Page, StoreError};

/// When a client may come again that was refused for the length of the line: queries take milliseconds.
const LINE_RETRY_S: u64 = 1;

/// What lets queries through to the database, or not: the circuit breaker.
pub trait Gate: Send + Sync + Debug {
    /// Asked on an acceptor, once a request. Who is let through reports what came of it.
    fn admit(&self, now: Moment) -> Result<(), Open>;
    fn succeeded(&self, now: Moment);
    fn failed(&self, now: Moment);
}

/// The gate is shut until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub retry_at: Moment,
}

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
    gate: Arc<dyn Gate>,
    clock: Clock,
}

/// What all reader threads share: the other end of the line.
#[derive(Clone, Debug)]
pub struct Readers {
    jobs: Receiver<Job>,
    waiting: Arc<AtomicUsize>,
    wait_max: Duration,
    repository: Arc<dyn EventRepository>,
    gate: Arc<dyn Gate>,
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
}

/// Makes the line. Each reader thread runs [`Readers::run`] of its own clone; when every [`Line`] is gone and the
/// jobs are done, the threads end.
pub fn line(
    limits: ReaderLimits,
    repository: Arc<dyn EventRepository>,
    gate: Arc<dyn Gate>,
    clock: Clock,
) -> (Line, Readers) {
    let (sender, receiver) = bounded(limits.jobs_max);
    let waiting = Arc::new(AtomicUsize::new(0));
    let readers = Readers {
        jobs: receiver,
        waiting: Arc::clone(&waiting),
        wait_max: limits.wait_max,
        repository,
        gate: Arc::clone(&gate),
        clock: clock.clone(),
    };
    (Line { jobs: sender, waiting, limits, gate, clock }, readers)
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

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Takes places in the line for all jobs of a request or for none, and says since when they wait; or writes
    /// the refusal.
    fn enter(&self, jobs: usize, response: &mut Response) -> Option<Moment> {
        let room = |waiting: usize| Some(waiting + jobs).filter(|&total| total <= self.limits.jobs_max);
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            queries_full(response);
            return None;
        }
        let now = self.clock.now();
        // Last, since what the gate admits must report to it.
        if let Err(open) = self.gate.admit(now) {
            self.waiting.fetch_sub(jobs, Ordering::AcqRel);
            unavailable(response, open.retry_at.since(now));
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
            Task::Find(promise, _) if late => fulfil(promise, queries_full),
            Task::Page(join, _) | Task::Count(join, _) if join.over() => {}
            Task::Page(join, page) => match self.ask("page", || self.repository.page(&page)) {
                Ok(events) => join.events(events),
                Err(failure) => join.fail(|response| failure.answer(response)),
            },
            Task::Count(join, filter) => match self.ask("count", || self.repository.count(&filter)) {
                Ok(total) => join.total(total),
                Err(failure) => join.fail(|response| failure.answer(response)),
            },
            Task::Find(promise, id) => {
                let found = self.ask("find", || self.repository.find(id));
                fulfil(promise, |response| match found {
                    Ok(found) => receipt::answer(response, id, found.as_ref()),
                    Err(failure) => failure.answer(response),
                });
            }
        }
    }

    /// Asks the database and tells the gate what came of it.
    fn ask<T>(&self, what: &str, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, Failure> {
        let result = call();
        let now = self.clock.now();
        result.inspect(|_value| self.gate.succeeded(now)).map_err(|error| {
            let failure = Failure::of(&error);
            match failure {
                Failure::Unavailable => self.gate.failed(now),
                // The database answered, and that is all the gate is about.
                Failure::Query => self.gate.succeeded(now),
            }
            let sqlstate = error.sqlstate.as_deref().unwrap_or("none");
            log::warn!(query = what, sqlstate; "a query failed: {error}");
            failure
        })
    }
}

/// A query's one question about an error: whose fault is it?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The database is not able to, now: the same query may succeed later.
    Unavailable,
    /// This query is at fault: ours, since the parameters were checked.
    Query,
}

impl Failure {
    fn of(error: &StoreError) -> Self {
        match error.sqlstate.as_deref().map(|state| state.get(..2).unwrap_or(state)) {
            // Data, syntax of a value, limits of a statement.
            Some("22" | "23" | "21" | "54") => Self::Query,
            Some(_) | None => Self::Unavailable,
        }
    }

    fn answer(self, response: &mut Response) {
        match self {
            Self::Unavailable => unavailable(response, Duration::ZERO),
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
