//! The reader threads, which run queries, and their bounded queue. An acceptor enqueues a job, or
//! rejects the request at once when the queue is full or the breaker is open; it never blocks.
//!
//! Depends on storage through `QueryDatabase`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::breaker_guard::{BreakerGuard, QUEUE_RETRY_S, RunQueryError};
use super::database::QueryDatabase;
use super::page::PageOptions;
use super::page_and_total::{PageAndTotal, fulfil};
use super::params::{Count, Query, StatsQuery};
use super::request::QueryRequest;
use super::{receipt, stats};
use crate::access::Services;
use crate::clock::Moment;
use crate::event::EventId;
use crate::http::problem::{self, FieldError, FieldErrors, ProblemKind};
use crate::http::{HandlerResult, Promise, Response};
use crate::journal::lookup::{self, Lookup};
use crate::storage::{EventPage, EventStatus, Filter};

#[derive(Clone, Copy, Debug)]
pub struct ReaderLimits {
    /// Maximum jobs in the queue; a query with a count is two jobs.
    pub jobs_max: usize,
    /// A job that has waited longer is rejected: its client has most likely disconnected.
    pub wait_max: Duration,
    /// Maximum bytes of a response. A page ends early.
    pub response_bytes_max: usize,
}

/// The sending side of the queue, shared by all acceptors.
#[derive(Clone, Debug)]
pub struct QueryQueue {
    jobs: Sender<QueryJob>,
    waiting: Arc<AtomicUsize>,
    limits: ReaderLimits,
    guard: BreakerGuard,
}

/// The receiving side of the queue, shared by all reader threads.
#[derive(Clone, Debug)]
pub struct Readers {
    jobs: Receiver<QueryJob>,
    waiting: Arc<AtomicUsize>,
    limits: ReaderLimits,
    database: QueryDatabase,
    lookup: Option<Arc<Lookup>>,
}

#[derive(Debug)]
struct QueryJob {
    enqueued_at: Moment,
    task: QueryTask,
}

#[derive(Debug)]
enum QueryTask {
    Page(Arc<PageAndTotal>, EventPage),
    Count(Arc<PageAndTotal>, Filter),
    Find(Promise, EventId, Option<Services>),
    Stats(Promise, StatsQuery),
    Run(Promise, QueryFn),
    Detached(DetachedFn),
}

type RunFn = Box<dyn FnOnce(&QueryDatabase, &mut Response) + Send>;
type RunDetachedFn = Box<dyn FnOnce(&QueryDatabase, Option<&Lookup>) + Send>;

/// Work of another module: reads or changes the database and writes the response.
struct QueryFn(RunFn);

/// Work that no response waits for.
struct DetachedFn(RunDetachedFn);

impl fmt::Debug for DetachedFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DetachedFn")
    }
}

impl fmt::Debug for QueryFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueryFn")
    }
}

/// Creates the queue. Each reader thread runs [`Readers::run`] on its own clone and ends when every
/// [`QueryQueue`] is dropped and the jobs are done.
pub fn query_queue(limits: ReaderLimits, database: QueryDatabase) -> (QueryQueue, Readers) {
    let (sender, receiver) = bounded(limits.jobs_max);
    let waiting = Arc::new(AtomicUsize::new(0));
    let guard = database.guard.clone();
    let readers = Readers { jobs: receiver, waiting: Arc::clone(&waiting), limits, database, lookup: None };
    (QueryQueue { jobs: sender, waiting, limits, guard }, readers)
}

impl QueryQueue {
    /// Handles `GET /events?query`. Calls `promise` only for a pending response.
    pub fn list(
        &self,
        request: QueryRequest<'_>,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> HandlerResult {
        let Some(query) = request.parse_list(response) else { return HandlerResult::Done };
        let counted = query.count == Count::Exact;
        let Some(enqueued_at) = self.reserve(if counted { 2 } else { 1 }, response) else {
            return HandlerResult::Done;
        };
        let options = PageOptions { limit: query.limit, order: query.order };
        let combined = Arc::new(PageAndTotal::new(promise(), options, counted));
        let page = query.page();
        if counted {
            self.enqueue(enqueued_at, QueryTask::Count(Arc::clone(&combined), query.filter));
        }
        self.enqueue(enqueued_at, QueryTask::Page(combined, page));
        HandlerResult::Pending
    }

    /// Handles `GET /events/{id}`. Calls `promise` only for a pending response.
    pub fn find(
        &self,
        id: &str,
        services: Option<Services>,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> HandlerResult {
        let id = match id.parse() {
            Ok(id) => id,
            Err(error @ crate::event::ParseEventIdError) => {
                let mut errors = FieldErrors::default();
                errors.push(|| FieldError {
                    index: None,
                    field: "event_id".into(),
                    detail: format!("event_id is {error}"),
                });
                problem::write_invalid(response, "the event id is not valid", &errors);
                return HandlerResult::Done;
            }
        };
        let Some(enqueued_at) = self.reserve(1, response) else { return HandlerResult::Done };
        self.enqueue(enqueued_at, QueryTask::Find(promise(), id, services));
        HandlerResult::Pending
    }

    /// Handles `GET /stats?query`. Calls `promise` only for a pending response.
    pub fn stats(
        &self,
        request: QueryRequest<'_>,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> HandlerResult {
        let Some(query) =
            request.parse(Query::parse_stats, |query| query.filter.service.as_deref(), response)
        else {
            return HandlerResult::Done;
        };
        let query = stats::whole_intervals(query);
        let Some(enqueued_at) = self.reserve(1, response) else { return HandlerResult::Done };
        self.enqueue(enqueued_at, QueryTask::Stats(promise(), query));
        HandlerResult::Pending
    }

    /// Runs `run` on a reader thread. Calls `promise` only for a pending response.
    pub fn submit(
        &self,
        run: impl FnOnce(&QueryDatabase, &mut Response) + Send + 'static,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> HandlerResult {
        let Some(enqueued_at) = self.reserve(1, response) else { return HandlerResult::Done };
        self.enqueue(enqueued_at, QueryTask::Run(promise(), QueryFn(Box::new(run))));
        HandlerResult::Pending
    }

    /// Runs `run` on a reader thread, or drops it if the queue is full, also while the breaker is open.
    pub(super) fn run_detached(&self, run: impl FnOnce(&QueryDatabase, Option<&Lookup>) + Send + 'static) {
        if let Some(enqueued_at) = self.reserve_slots(1) {
            self.enqueue(enqueued_at, QueryTask::Detached(DetachedFn(Box::new(run))));
        }
    }

    /// Maximum bytes of a response.
    pub fn response_bytes_max(&self) -> usize {
        self.limits.response_bytes_max
    }

    /// Jobs in the queue.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Reserves queue slots for all jobs of a request or for none. Returns the enqueue time;
    /// without room, or with an open breaker, writes a 503 and returns None.
    fn reserve(&self, jobs: usize, response: &mut Response) -> Option<Moment> {
        if self.guard.reject_if_open(response) {
            return None;
        }
        let enqueued_at = self.reserve_slots(jobs);
        if enqueued_at.is_none() {
            write_queue_full(response);
        }
        enqueued_at
    }

    fn reserve_slots(&self, jobs: usize) -> Option<Moment> {
        let room = |waiting: usize| Some(waiting + jobs).filter(|&total| total <= self.limits.jobs_max);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(self.guard.clock.now())
    }

    fn enqueue(&self, enqueued_at: Moment, task: QueryTask) {
        // `reserve` guarantees a slot, so the send fails only if every reader has ended; then the
        // dropped promise responds with 500.
        if self.jobs.try_send(QueryJob { enqueued_at, task }).is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            log::error!("the query threads have ended; a query cannot be answered");
        }
    }
}

impl Readers {
    /// Also finds events that are buffered and not stored yet.
    #[must_use]
    pub fn with_lookup(self, lookup: Arc<Lookup>) -> Self {
        Self { lookup: Some(lookup), ..self }
    }

    /// The body of a reader thread.
    pub fn run(&self) {
        while let Ok(job) = self.jobs.recv() {
            self.tick(job);
        }
    }

    /// Runs the jobs that wait.
    #[cfg(test)]
    pub(super) fn run_waiting(&self) {
        while let Ok(job) = self.jobs.try_recv() {
            self.tick(job);
        }
    }

    fn tick(&self, job: QueryJob) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let expired = self.database.guard.clock.now().since(job.enqueued_at) > self.limits.wait_max;
        let bytes_max = self.limits.response_bytes_max;
        match job.task {
            QueryTask::Page(combined, _) | QueryTask::Count(combined, _) if expired => {
                combined.fail(write_queue_full);
            }
            QueryTask::Find(promise, ..) | QueryTask::Stats(promise, _) | QueryTask::Run(promise, _)
                if expired =>
            {
                fulfil(promise, write_queue_full);
            }
            QueryTask::Page(combined, _) | QueryTask::Count(combined, _) if combined.is_answered() => {}
            QueryTask::Page(combined, page) => {
                match self.database.read("page", |events| events.page(&page, bytes_max)) {
                    Ok(chunk) => combined.set_events(chunk),
                    Err(failure) => combined.fail(|response| failure.write(response)),
                }
            }
            QueryTask::Count(combined, filter) => {
                match self.database.read("count", |events| events.count(&filter)) {
                    Ok(total) => combined.set_total(total),
                    Err(failure) => combined.fail(|response| failure.write(response)),
                }
            }
            QueryTask::Stats(promise, query) => {
                // One row above the maximum detects a result that is too large.
                let counts = self.database.read("stats", |events| {
                    events.interval_counts(&query.filter, query.interval, stats::ROWS_MAX + 1)
                });
                fulfil(promise, |response| match counts {
                    Ok(counts) => stats::write_stats(response, &query, &counts, bytes_max),
                    Err(failure) => failure.write(response),
                });
            }
            QueryTask::Run(promise, QueryFn(run)) => {
                fulfil(promise, |response| run(&self.database, response));
            }
            // Dropped: the other end notices it.
            QueryTask::Detached(_) if expired => {}
            QueryTask::Detached(DetachedFn(run)) => run(&self.database, self.lookup.as_deref()),
            QueryTask::Find(promise, id, services) => {
                let found = self.find(id);
                let readable = |status: &EventStatus| receipt::is_readable(status, services.as_deref());
                fulfil(promise, |response| match found.map(|found| found.filter(readable)) {
                    Ok(found) => receipt::write_receipt(response, id, found.as_ref()),
                    Err(failure) => failure.write(response),
                });
            }
        }
    }
}

impl Readers {
    /// Finds a stored, dead or buffered event. An event may be stored and leave the journal between
    /// the two lookups, so the database is read again after the journal.
    fn find(&self, id: EventId) -> Result<Option<EventStatus>, RunQueryError> {
        let found = self.database.find(id)?;
        let Some(lookup) = self.lookup.as_ref().filter(|_| found.is_none()) else { return Ok(found) };
        let waiting = lookup.find(id);
        if let Some(found) = self.database.find(id)? {
            return Ok(Some(found));
        }
        match waiting {
            Ok(event) => Ok(event.map(EventStatus::Buffered)),
            Err(lookup::FindEventError) => Err(RunQueryError::Unavailable { retry_in: Duration::ZERO }),
        }
    }
}

fn write_queue_full(response: &mut Response) {
    problem::write_retryable(
        response,
        ProblemKind::QueriesFull,
        "too many queries are waiting",
        QUEUE_RETRY_S,
    );
}

#[cfg(test)]
mod tests;
