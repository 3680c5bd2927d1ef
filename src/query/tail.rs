//! Tails: events streamed to clients as they are admitted, before they are stored, as server-sent
//! events. A tail works while the database is unavailable, and shows the events of this server only.
//!
//! Acceptors pass clones of admitted blocks into a bounded queue while a tail is open. One thread
//! filters and encodes their rows for each tail. Nothing waits for a client: a tail whose client reads
//! too slowly skips events, and tells how many.

mod matcher;
mod resume;
mod tap;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};

use super::export::Permit;
use super::params::{Query, TailQuery};
use super::readers::QueryQueue;
use super::request::QueryRequest;
use crate::clock::Clock;
use crate::event::EventId;
use crate::http::problem::{self, FieldError, FieldErrors, ProblemKind};
use crate::http::{HandlerResult, Response, body_channel};
use crate::lifecycle::Lifecycle;
use crate::metrics::TailMetrics;

use matcher::RowMatcher;
use resume::read_backlog;
pub use tap::EventTap;
use thread::Tail;
pub use thread::TailThread;

/// `Retry-After` of a tail rejected because too many are open: tails last minutes.
const RETRY_S: u64 = 30;
/// Maximum time between two blocks of a tail, so that client and proxies know it is alive.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Bytes of blocks in the queue. They are also reserved in the buffer, so they are few.
const QUEUED_BYTES_MAX: usize = 4 << 20;

#[derive(Clone, Copy, Debug)]
pub struct TailLimits {
    /// Tails open at once.
    pub tails_max: usize,
    /// Bytes of blocks between acceptors and the tail thread; exceeded by a block at most.
    pub queued_bytes_max: usize,
    pub heartbeat: Duration,
}

impl TailLimits {
    /// The queue of a server with a buffer of this size: a small part of it.
    pub fn queued_bytes_max(buffer_bytes_max: usize) -> usize {
        QUEUED_BYTES_MAX.min(buffer_bytes_max / 16)
    }

    /// A stream without a block for as long as `response_timeout` would be aborted.
    pub fn heartbeat(response_timeout: Duration) -> Duration {
        HEARTBEAT.min(response_timeout / 3)
    }
}

/// Opens tails. Shared by all acceptors.
#[derive(Clone, Debug)]
pub struct Tails {
    opened: Sender<Tail>,
    tap: EventTap,
    open_max: usize,
    /// Names this server.
    instance: Arc<str>,
    clock: Clock,
}

/// Creates both ends. One thread runs [`TailThread::run`].
pub fn tails(
    limits: TailLimits,
    instance: &str,
    metrics: Arc<TailMetrics>,
    lifecycle: Lifecycle,
    clock: Clock,
) -> (Tails, TailThread) {
    // A tail is in the queue at most once, and has a permit.
    let (opened, new_tails) = bounded(limits.tails_max);
    let tap = EventTap::new(metrics.open.clone(), limits.queued_bytes_max);
    let thread = TailThread::new(new_tails, (tap.clone(), limits), metrics, lifecycle, clock.clone());
    let tails = Tails { opened, tap, open_max: limits.tails_max, instance: instance.into(), clock };
    (tails, thread)
}

impl Tails {
    /// What acceptors pass admitted blocks to.
    pub fn tap(&self) -> EventTap {
        self.tap.clone()
    }

    /// Handles `GET /events/tail?query`. The response is complete but for its body. With `last_event_id`
    /// the tail begins with the events that its client has missed since, which `queue` reads.
    pub fn start(
        &self,
        request: QueryRequest<'_>,
        (head_only, last_event_id): (bool, Option<&[u8]>),
        queue: &QueryQueue,
        response: &mut Response,
    ) -> HandlerResult {
        let Some(TailQuery { filter, sample }) =
            request.parse(Query::parse_tail, |query| query.filter.service.as_deref(), response)
        else {
            return HandlerResult::Done;
        };
        let Ok(last) = parse_last_event_id(last_event_id, response) else { return HandlerResult::Done };
        if head_only {
            write_head(response);
            return HandlerResult::Done;
        }
        let Some(permit) = Permit::try_acquire(self.tap.open(), self.open_max) else {
            let detail = "too many tails are open; see TAILS_MAX";
            problem::write_retryable(response, ProblemKind::QueriesFull, detail, RETRY_S);
            return HandlerResult::Done;
        };
        let (feed, body) = body_channel();
        let matcher = RowMatcher::new(&filter);
        let mut tail = Tail::new((matcher, sample), feed, permit, self.clock.now());
        tail.write_hello(&self.instance, sample, last.is_some());
        if let Some(last) = last {
            // The tail is open, so it gets the events that are admitted from now on.
            let (sender, backlog) = bounded(1);
            tail.resume_with(backlog);
            let now = request.now;
            queue.run_detached(move |database, lookup| {
                let read = read_backlog(database, lookup, &filter, last, now);
                if sender.try_send(read).is_err() {
                    log::debug!("a tail ended before its missed events were read");
                }
            });
        }
        if self.opened.try_send(tail).is_err() {
            // The body is aborted: its sender is dropped.
            log::error!("BUG: the queue of new tails is full; the tail is aborted");
        }
        write_head(response);
        response.stream = Some(body);
        HandlerResult::Done
    }
}

/// Writes 400 if the header is not the id of an event. An empty one, which a browser sends before the
/// first event, is none.
fn parse_last_event_id(header: Option<&[u8]>, response: &mut Response) -> Result<Option<EventId>, ()> {
    let Some(text) = header.filter(|text| !text.is_empty()) else { return Ok(None) };
    let parsed = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    if parsed.is_some() {
        return Ok(parsed);
    }
    let mut errors = FieldErrors::default();
    errors.push(|| FieldError {
        index: None,
        field: "Last-Event-ID".into(),
        detail: "Last-Event-ID must be the id of an event".to_owned(),
    });
    problem::write_invalid(response, "the header Last-Event-ID is not valid", &errors);
    Err(())
}

fn write_head(response: &mut Response) {
    response.status = 200;
    response.content_type = "text/event-stream";
    response.header("Cache-Control", "no-store");
    // Proxies of the nginx family would collect the body otherwise.
    response.header("X-Accel-Buffering", "no");
}

#[cfg(test)]
mod tests;
