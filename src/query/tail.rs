//! Tails: events streamed to clients as they are admitted, before they are stored, as server-sent
//! events. A tail works while the database is unavailable, and shows the events of this server only.
//!
//! Acceptors pass clones of admitted blocks into a bounded queue while a tail is open. One thread
//! filters and encodes their rows for each tail. Nothing waits for a client: a tail whose client reads
//! too slowly skips events, and tells how many.

mod matcher;
mod tap;
mod thread;

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};

use super::export::Permit;
use super::params::Query;
use super::request::QueryRequest;
use crate::clock::Clock;
use crate::http::problem::{self, ProblemKind};
use crate::http::{HandlerResult, Response, body_channel};
use crate::lifecycle::Lifecycle;
use crate::metrics::TailMetrics;

use matcher::RowMatcher;
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
    clock: Clock,
}

/// Creates both ends. One thread runs [`TailThread::run`].
pub fn tails(
    limits: TailLimits,
    metrics: Arc<TailMetrics>,
    lifecycle: Lifecycle,
    clock: Clock,
) -> (Tails, TailThread) {
    // A tail is in the queue at most once, and has a permit.
    let (opened, new_tails) = bounded(limits.tails_max);
    let tap = EventTap::new(metrics.open.clone(), limits.queued_bytes_max);
    let thread = TailThread::new(new_tails, (tap.clone(), limits), metrics, lifecycle, clock.clone());
    (Tails { opened, tap, open_max: limits.tails_max, clock }, thread)
}

impl Tails {
    /// What acceptors pass admitted blocks to.
    pub fn tap(&self) -> EventTap {
        self.tap.clone()
    }

    /// Handles `GET /events/tail?query`. The response is complete but for its body.
    pub fn start(
        &self,
        request: QueryRequest<'_>,
        head_only: bool,
        response: &mut Response,
    ) -> HandlerResult {
        let Some(filter) = request.parse(Query::parse_tail, |filter| filter, response) else {
            return HandlerResult::Done;
        };
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
        let tail = Tail::new(RowMatcher::new(&filter), feed, permit, self.clock.now());
        if self.opened.try_send(tail).is_err() {
            // The body is aborted: its sender is dropped.
            log::error!("BUG: the queue of new tails is full; the tail is aborted");
        }
        write_head(response);
        response.stream = Some(body);
        HandlerResult::Done
    }
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
