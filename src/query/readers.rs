//! The threads that wait for the database on behalf of queries, and the bounded line before them. An acceptor only
//! ever puts a job in the line, or refuses at once when the line is full or the breaker is open.
//!
//! Knows storage as its trait and the breaker before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::asking::{Asking, Failure, LINE_RETRY_S};
use super::join::{Join, fulfil};
use super::page::Shown;
use super::params::{Count, Query};
use super::{receipt, stats};
use crate::clock::{Clock, Moment};
use crate::event::{EventId, Timestamp};
use crate::http::problem::{self, Errors, FieldError, Kind};
use crate::http::{Answer, Promise, Response};
use crate::journal::lookup::{self, Lookup};
use crate::storage::{Breaker, EventRepository, Filter, Found, Page};

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
    asking: Asking,
}

/// What all reader threads share: the other end of the line.
#[derive(Clone, Debug)]
pub struct Readers {
    jobs: Receiver<Job>,
    waiting: Arc<AtomicUsize>,
    wait_max: Duration,
    repository: Arc<dyn EventRepository>,
    asking: Asking,
    lookup: Option<Arc<Lookup>>,
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
    let asking = Asking::new(breaker, clock);
    let readers = Readers {
        jobs: receiver,
        waiting: Arc::clone(&waiting),
        wait_max: limits.wait_max,
        repository,
        asking: asking.clone(),
        lookup: None,
    };
    (Line { jobs: sender, waiting, limits, asking }, readers)
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
        if self.asking.refuses(response) {
            return None;
        }
        let room = |waiting: usize| Some(waiting + jobs).filter(|&total| total <= self.limits.jobs_max);
        if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_err() {
            queries_full(response);
            return None;
        }
        Some(self.asking.clock.now())
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
    /// Also finds what is not stored yet.
    #[must_use]
    pub fn with_lookup(self, lookup: Arc<Lookup>) -> Self {
        Self { lookup: Some(lookup), ..self }
    }

    /// The life of a reader thread.
    pub fn run(&self) {
        while let Ok(job) = self.jobs.recv() {
            self.tick(job);
        }
    }

    fn tick(&self, job: Job) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let late = self.asking.clock.now().since(job.since) > self.wait_max;
        match job.task {
            Task::Page(join, _) | Task::Count(join, _) if late => join.fail(queries_full),
            Task::Find(promise, _) | Task::Hours(promise, _) if late => fulfil(promise, queries_full),
            Task::Page(join, _) | Task::Count(join, _) if join.over() => {}
            Task::Page(join, page) => match self.asking.ask("page", || self.repository.page(&page)) {
                Ok(events) => join.events(events),
                Err(failure) => join.fail(|response| failure.answer(response)),
            },
            Task::Count(join, filter) => match self.asking.ask("count", || self.repository.count(&filter)) {
                Ok(total) => join.total(total),
                Err(failure) => join.fail(|response| failure.answer(response)),
            },
            Task::Hours(promise, filter) => {
                // One more than is shown tells that there are too many.
                let hours = self.asking.ask("stats", || self.repository.hours(&filter, stats::ROWS_MAX + 1));
                fulfil(promise, |response| match hours {
                    Ok(hours) => stats::answer(response, &filter, &hours),
                    Err(failure) => failure.answer(response),
                });
            }
            Task::Find(promise, id) => {
                let found = self.find(id);
                fulfil(promise, |response| match found {
                    Ok(found) => receipt::answer(response, id, found.as_ref()),
                    Err(failure) => failure.answer(response),
                });
            }
        }
    }
}

impl Readers {
    /// Stored, dead, or waiting in the journal. What left the journal between two looks is stored, so that whoever is
    /// not found there is asked for once more.
    fn find(&self, id: EventId) -> Result<Option<Found>, Failure> {
        let find = || self.asking.ask("find", || self.repository.find(id));
        let found = find()?;
        let Some(lookup) = self.lookup.as_ref().filter(|_| found.is_none()) else { return Ok(found) };
        let waiting = lookup.find(id);
        if let Some(found) = find()? {
            return Ok(Some(found));
        }
        match waiting {
            Ok(event) => Ok(event.map(Found::Buffered)),
            Err(lookup::Unknown) => Err(Failure::Unavailable { retry_in: Duration::ZERO }),
        }
    }
}

fn queries_full(response: &mut Response) {
    problem::answer_later(response, Kind::QueriesFull, "too many queries are waiting", LINE_RETRY_S);
}

#[cfg(test)]
mod tests;
