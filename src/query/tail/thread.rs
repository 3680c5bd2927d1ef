//! The tail thread: filters the rows of admitted blocks for each tail and encodes them as server-sent
//! events. It polls, so that acceptors need not wake it, and never waits for a client.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::matcher::RowMatcher;
use super::tap::EventTap;
use super::{Permit, TailLimits};
use crate::buffer::RowBlock;
use crate::clock::{Clock, Moment};
use crate::event::row::{self, Row};
use crate::http::BodySender;
use crate::lifecycle::{Lifecycle, LifecyclePhase};
use crate::metrics::TailMetrics;
use crate::query::page::{write_id, write_members};

/// Interval of polls while a tail is open, and while none is.
const TICK: Duration = Duration::from_millis(20);
const IDLE_TICK: Duration = Duration::from_secs(1);
/// Encoded bytes of a tail that wait for its stream, exceeded by an event at most. With two blocks in
/// the stream and one being sent, a tail has four times that.
const PENDING_BYTES_MAX: usize = 256 * 1024;
/// A tail ends at this age, so that its client shows its token again.
const AGE_MAX: Duration = Duration::from_hours(1);

/// An open tail.
#[derive(Debug)]
pub(super) struct Tail {
    matcher: RowMatcher,
    feed: BodySender,
    pending: Vec<u8>,
    /// Events not examined since the client was last told.
    skipped: u64,
    opened_at: Moment,
    /// None before the first block.
    sent_at: Option<Moment>,
    permit: Permit,
}

#[derive(Debug)]
pub struct TailThread {
    new_tails: Receiver<Tail>,
    tails: Vec<Tail>,
    tap: EventTap,
    limits: TailLimits,
    metrics: Arc<TailMetrics>,
    lifecycle: Lifecycle,
    clock: Clock,
}

impl TailThread {
    pub(super) fn new(
        new_tails: Receiver<Tail>,
        (tap, limits): (EventTap, TailLimits),
        metrics: Arc<TailMetrics>,
        lifecycle: Lifecycle,
        clock: Clock,
    ) -> Self {
        Self { new_tails, tails: Vec::new(), tap, limits, metrics, lifecycle, clock }
    }

    /// The body of the thread. Ends when no acceptor is left.
    pub fn run(mut self) {
        loop {
            let wait = if self.tails.is_empty() { IDLE_TICK } else { TICK };
            match self.new_tails.recv_timeout(wait) {
                Ok(tail) => self.tails.push(tail),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.tick();
        }
    }

    /// Examines the queued blocks and sends what the streams have room for.
    pub(super) fn tick(&mut self) {
        let mut bytes = 0;
        // Bounded, so that tails are served while blocks arrive faster than they are examined.
        while bytes <= self.limits.queued_bytes_max
            && let Some(block) = self.tap.pop()
        {
            bytes += block.bytes().len();
            // After the pop: a tail that was opened before the block was admitted must see it.
            self.tails.extend(self.new_tails.try_iter());
            for tail in &mut self.tails {
                tail.examine(&block, &self.metrics);
            }
        }
        let rejected = self.tap.take_rejected_rows();
        let now = self.clock.now();
        let is_ending = self.lifecycle.phase() > LifecyclePhase::Serving;
        for mut tail in std::mem::take(&mut self.tails) {
            tail.skip(rejected, &self.metrics);
            tail.flush(now, self.limits.heartbeat);
            if is_ending || now.since(tail.opened_at) >= AGE_MAX {
                tail.finish();
            } else if !tail.feed.is_closed() {
                self.tails.push(tail);
            }
        }
    }
}

impl Tail {
    pub(super) fn new(matcher: RowMatcher, feed: BodySender, permit: Permit, now: Moment) -> Self {
        Self { matcher, feed, pending: Vec::new(), skipped: 0, opened_at: now, sent_at: None, permit }
    }

    /// Encodes the rows of the block that match. Those for which there is no room are not examined.
    fn examine(&mut self, block: &RowBlock, metrics: &TailMetrics) {
        let mut remaining = u64::from(block.rows());
        let mut sent = 0;
        for row in row::rows(block.bytes()) {
            if self.pending.len() >= PENDING_BYTES_MAX {
                break;
            }
            remaining -= 1;
            if self.matcher.matches(&row) {
                write_event(&mut self.pending, &row);
                sent += 1;
            }
        }
        metrics.sent.fetch_add(sent, Ordering::Relaxed);
        self.skip(remaining, metrics);
    }

    fn skip(&mut self, rows: u64, metrics: &TailMetrics) {
        self.skipped += rows;
        metrics.skipped.fetch_add(rows, Ordering::Relaxed);
    }

    /// Sends what is pending, or a comment when the stream was silent for `heartbeat`.
    fn flush(&mut self, now: Moment, heartbeat: Duration) {
        if !self.feed.has_capacity() {
            return;
        }
        if self.skipped > 0 {
            let skipped = std::mem::take(&mut self.skipped);
            let event = format!("event: skipped\ndata: {{\"events\":{skipped}}}\n\n");
            self.pending.extend_from_slice(event.as_bytes());
        }
        if self.pending.is_empty() {
            match self.sent_at {
                None => self.pending.extend_from_slice(b": events admitted by this server from now on\n\n"),
                Some(sent_at) if now.since(sent_at) >= heartbeat => {
                    self.pending.extend_from_slice(b": heartbeat\n\n");
                }
                Some(_) => return,
            }
        }
        self.sent_at = Some(now);
        self.feed.send(std::mem::take(&mut self.pending));
    }

    fn finish(self) {
        // Released before the client sees the end and may open another tail.
        drop(self.permit);
        self.feed.finish();
    }
}

/// Writes an event with the members that it has in a page.
fn write_event(out: &mut Vec<u8>, row: &Row<'_>) {
    let event = row.to_event();
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(&event.event_id.text());
    out.extend_from_slice(b"\ndata: {");
    let json_at = out.len();
    write_id(out, event.event_id);
    write_members(out, &event);
    // The metadata is as the client sent it. A line break in JSON is white space, and would end the
    // field.
    for byte in &mut out[json_at..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"}\n\n");
}
