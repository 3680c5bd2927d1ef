//! Exports: all events of a query, read page by page and streamed.
//!
//! Every page is read in its own transaction, so an export holds neither a snapshot nor a lock
//! between pages, however long it runs: the retention sweep and VACUUM do not wait for it. An
//! export does not occupy a thread either. A thread produces one block and requeues the export
//! until the client has taken an earlier block; so a few threads serve many exports, and slow
//! clients block none of them.
//!
//! Filters without an index (metadata, text) are evaluated in time windows. The window grows after
//! a fast page and shrinks after a statement timeout, so that a slow export does not fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::breaker_guard::{BreakerGuard, RunQueryError};
use super::database::QueryDatabase;
use super::encode::{Encoder, ExportFormat};
use super::page_and_total::fulfil;
use super::params::{self, Query};
use super::request::QueryRequest;
use crate::event::{Event, EventKey, Timestamp};
use crate::http::problem::{self, ProblemKind};
use crate::http::{BodySender, HandlerResult, Promise, Response, body_channel};
use crate::storage::{Chunk, EventPage, Filter, SortOrder};

/// Target size of a block. An export holds about four: one in the making, two in its stream, one
/// being sent.
const BLOCK_BYTES: usize = 256 * 1024;
/// Rows of the first page, and the maximum. Other pages have the number of rows that fills a block.
const ROWS_INITIAL: u16 = 500;
const ROWS_MAX: u16 = 5000;
/// The first time window, the shortest one, and the page time below which the next window is
/// doubled.
const WINDOW_INITIAL: Duration = Duration::from_hours(1);
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_GROW_BELOW: Duration = Duration::from_millis(500);
/// `Retry-After` of an export rejected because too many are running: exports take seconds.
const RETRY_S: u64 = 5;

/// Starts exports. Shared by all acceptors.
#[derive(Clone, Debug)]
pub struct Exports {
    jobs: Sender<ExportJob>,
    running: Arc<AtomicUsize>,
    running_max: usize,
    guard: BreakerGuard,
}

/// Runs exports. Shared by all exporter threads.
#[derive(Clone, Debug)]
pub struct Exporters {
    jobs: Receiver<ExportJob>,
    /// Requeues an export when its stream has room.
    requeue: Sender<ExportJob>,
    database: QueryDatabase,
}

/// Creates both ends. At most `running_max` exports run at once. Each exporter thread runs
/// [`Exporters::run`] on its own clone and never ends.
pub fn exports(running_max: usize, database: QueryDatabase) -> (Exports, Exporters) {
    // An export is in the queue at most once.
    let (sender, receiver) = bounded(running_max);
    let guard = database.guard.clone();
    let exporters = Exporters { jobs: receiver, requeue: sender.clone(), database };
    (Exports { jobs: sender, running: Arc::default(), running_max, guard }, exporters)
}

impl Exports {
    /// Handles `GET /events?query` as an export. Calls `promise` only for a pending response.
    pub fn start(
        &self,
        request: QueryRequest<'_>,
        options: ExportOptions,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> HandlerResult {
        let Some(query) =
            request.parse(Query::parse_export, |query| query.filter.service.as_deref(), response)
        else {
            return HandlerResult::Done;
        };
        if self.guard.reject_if_open(response) {
            return HandlerResult::Done;
        }
        if options.head_only {
            start_response(response, options).finish();
            return HandlerResult::Done;
        }
        let Some(permit) = Permit::try_acquire(&self.running, self.running_max) else {
            problem::write_retryable(
                response,
                ProblemKind::QueriesFull,
                "too many exports are running",
                RETRY_S,
            );
            return HandlerResult::Done;
        };
        let export = ExportJob {
            cursor: ExportCursor::new(query),
            encoder: Encoder::new(options.format, options.gzipped),
            state: ExportState::Pending(promise(), options),
            permit,
        };
        enqueue(&self.jobs, export);
        HandlerResult::Pending
    }
}

/// Options of an export that the request headers select.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    pub format: ExportFormat,
    pub content_type: &'static str,
    pub gzipped: bool,
    /// HEAD: respond with the header fields only.
    pub head_only: bool,
}

/// One of a bounded number of permits; released on drop.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicUsize>);

impl Permit {
    pub(super) fn try_acquire(running: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let room = |running: usize| (running < most).then_some(running + 1);
        running.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Self(Arc::clone(running)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An export between two blocks.
#[derive(Debug)]
struct ExportJob {
    cursor: ExportCursor,
    encoder: Encoder,
    state: ExportState,
    permit: Permit,
}

/// Whether the response has begun.
#[derive(Debug)]
enum ExportState {
    /// Not begun: the first page decides the status.
    Pending(Promise, ExportOptions),
    Streaming(BodySender),
}

/// Never blocks: the queue has a slot for every permit.
fn enqueue(jobs: &Sender<ExportJob>, export: ExportJob) {
    if jobs.try_send(export).is_err() {
        log::error!("BUG: the export queue is full; the export is aborted");
    }
}

/// Writes the response head and returns the sender of its streaming body.
fn start_response(response: &mut Response, options: ExportOptions) -> BodySender {
    response.status = 200;
    response.content_type = options.content_type;
    response.vary("Accept");
    response.vary("Accept-Encoding");
    if options.gzipped {
        response.header("Content-Encoding", "gzip");
    }
    let (feed, body) = body_channel();
    response.stream = Some(body);
    feed
}

impl Exporters {
    /// The body of an exporter thread.
    pub fn run(&self) {
        while let Ok(export) = self.jobs.recv() {
            self.tick(export);
        }
    }

    /// Produces one block.
    fn tick(&self, mut export: ExportJob) {
        if matches!(&export.state, ExportState::Streaming(feed) if feed.is_closed()) {
            return;
        }
        let begin = self.database.guard.clock.now();
        let page = export.cursor.next_page();
        match self.database.read("export", |events| events.page(&page, BLOCK_BYTES)) {
            Ok(chunk) => {
                export.cursor.advance(&page, &chunk, self.database.guard.clock.now().since(begin));
                for event in &chunk.events {
                    export.encoder.write(event);
                }
                self.send(export);
            }
            Err(RunQueryError::TimedOut) if export.cursor.shrink_window() => {
                self.send_and_requeue(export, Vec::new());
            }
            Err(failure) => match export.state {
                ExportState::Pending(promise, _) => fulfil(promise, |response| failure.write(response)),
                ExportState::Streaming(_feed) => log::warn!("an export was aborted: its query failed"),
            },
        }
    }

    fn send(&self, mut export: ExportJob) {
        let done = export.cursor.is_done();
        let block = export.encoder.block(done);
        if !done {
            return self.send_and_requeue(export, block);
        }
        let feed = export.state.into_feed();
        feed.send(block);
        // Release the permit before the client sees the end and may start another export.
        drop(export.permit);
        feed.finish();
    }

    /// Sends `block` and requeues the export when the stream has room for the next block.
    fn send_and_requeue(&self, export: ExportJob, block: Vec<u8>) {
        let ExportJob { cursor, encoder, state, permit } = export;
        let feed = state.into_feed();
        feed.send(block);
        let requeue = self.requeue.clone();
        feed.on_capacity(move |feed| {
            enqueue(&requeue, ExportJob { cursor, encoder, state: ExportState::Streaming(feed), permit });
        });
    }
}

impl ExportState {
    /// Begins the response if it has not begun.
    fn into_feed(self) -> BodySender {
        match self {
            Self::Streaming(feed) => feed,
            Self::Pending(promise, options) => {
                let mut response = Response::default();
                let feed = start_response(&mut response, options);
                promise.fulfil(response);
                feed
            }
        }
    }
}

/// Position of an export within its query, and the size of its next page.
#[derive(Debug)]
struct ExportCursor {
    /// Its time range is the part not yet read.
    filter: Filter,
    order: SortOrder,
    after: Option<EventKey>,
    remaining: u64,
    rows: u16,
    /// None if an index serves the filter.
    window: Option<Duration>,
    done: bool,
}

impl ExportCursor {
    fn new(query: params::ExportQuery) -> Self {
        let params::ExportQuery { filter, order, after, limit } = query;
        let searches = !filter.metadata.is_empty() || filter.text.is_some();
        Self {
            filter,
            order,
            after,
            remaining: limit,
            rows: ROWS_INITIAL,
            window: searches.then_some(WINDOW_INITIAL),
            done: false,
        }
    }

    fn is_done(&self) -> bool {
        self.done
    }

    /// The next page to read.
    fn next_page(&self) -> EventPage {
        let mut filter = self.filter.clone();
        if let Some(window) = self.window {
            let micros = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
            match self.order {
                SortOrder::Asc => {
                    let end = filter.from.micros().saturating_add(micros);
                    filter.to = filter.to.min(Timestamp::from_micros(end));
                }
                SortOrder::Desc => {
                    let begin = filter.to.micros().saturating_sub(micros);
                    filter.from = filter.from.max(Timestamp::from_micros(begin));
                }
            }
        }
        let limit = u16::try_from(self.remaining.min(u64::from(self.rows))).unwrap_or(self.rows);
        EventPage { filter, order: self.order, limit, after: self.after }
    }

    /// Advances the position past `chunk`, and adapts page size and window.
    fn advance(&mut self, page: &EventPage, chunk: &Chunk, time: Duration) {
        self.remaining -= chunk.events.len() as u64;
        if let Some(last) = chunk.events.last() {
            self.after = Some(last.key());
            let bytes: usize = chunk.events.iter().map(Event::json_bytes_max).sum();
            let fitting = BLOCK_BYTES * chunk.events.len() / bytes;
            self.rows = u16::try_from(fitting).unwrap_or(ROWS_MAX).clamp(1, ROWS_MAX);
        }
        if !chunk.has_more {
            // The window is exhausted.
            match self.order {
                SortOrder::Asc => self.filter.from = page.filter.to,
                SortOrder::Desc => self.filter.to = page.filter.from,
            }
            self.window = self
                .window
                .map(|window| if time < WINDOW_GROW_BELOW { window.saturating_mul(2) } else { window });
        }
        self.done = self.remaining == 0 || self.filter.from >= self.filter.to;
    }

    /// Shrinks the window. Returns false if there is none or it is the shortest already.
    fn shrink_window(&mut self) -> bool {
        let Some(window) = self.window.filter(|window| *window > WINDOW_MIN) else { return false };
        self.window = Some((window / 4).max(WINDOW_MIN));
        true
    }
}

#[cfg(test)]
mod tests;
