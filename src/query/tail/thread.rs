//! The tail thread: filters the rows of admitted blocks for each tail and encodes them as server-sent
//! events. It polls, so that acceptors need not wake it, and never waits for a client.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError};

use super::matcher::RowMatcher;
use super::resume::{Backlog, GapReason};
use super::tap::EventTap;
use super::{Permit, TailLimits};
use crate::buffer::RowBlock;
use crate::clock::{Clock, Moment};
use crate::event::row;
use crate::event::{Event, EventId};
use crate::http::BodySender;
use crate::json::text::quote;
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

/// How long the ids of missed events are kept after they were read: longer than a block may be in the
/// queue.
const SEEN_FOR: Duration = Duration::from_secs(10);

/// An open tail.
#[derive(Debug)]
pub(super) struct Tail {
    matcher: RowMatcher,
    /// One of `sample` matching events is shown.
    sample: u32,
    matched: u32,
    resume: Option<Resume>,
    /// The ids of missed events, and until when they may come again.
    seen: HashSet<EventId>,
    seen_until: Option<Moment>,
    feed: BodySender,
    pending: Vec<u8>,
    /// Events not examined since the client was last told.
    skipped: u64,
    opened_at: Moment,
    /// None before the first block.
    sent_at: Option<Moment>,
    permit: Permit,
}

/// A tail that has not yet sent all events that its client missed. Events that are admitted meanwhile
/// wait behind them.
#[derive(Debug)]
struct Resume {
    /// None once it was received.
    receiver: Option<Receiver<Backlog>>,
    missed: VecDeque<Event>,
    waiting: Vec<Event>,
    waiting_bytes: usize,
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
        self.tails.extend(self.new_tails.try_iter());
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
            tail.send_missed(now, &self.metrics);
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
    pub(super) fn new(
        (matcher, sample): (RowMatcher, u32),
        feed: BodySender,
        permit: Permit,
        now: Moment,
    ) -> Self {
        Self {
            matcher,
            sample,
            matched: 0,
            resume: None,
            seen: HashSet::new(),
            seen_until: None,
            feed,
            pending: Vec::new(),
            skipped: 0,
            opened_at: now,
            sent_at: None,
            permit,
        }
    }

    /// Writes the first event: which server this is, since each shows its own events only, the factor of
    /// the sample, and whether missed events follow.
    pub(super) fn write_hello(&mut self, instance: &str, sample: u32, resumed: bool) {
        self.pending.extend_from_slice(b"event: tail\ndata: {\"instance\":");
        quote(&mut self.pending, instance);
        self.pending
            .extend_from_slice(format!(",\"sample\":{sample},\"resumed\":{resumed}}}\n\n").as_bytes());
    }

    /// Sends the events of `backlog` before those that are admitted from now on.
    pub(super) fn resume_with(&mut self, backlog: Receiver<Backlog>) {
        self.resume = Some(Resume {
            receiver: Some(backlog),
            missed: VecDeque::new(),
            waiting: Vec::new(),
            waiting_bytes: 0,
        });
    }

    /// Whether an event is one of the sample.
    fn is_sampled(&mut self) -> bool {
        let is_sampled = self.matched == 0;
        self.matched = (self.matched + 1) % self.sample;
        is_sampled
    }

    /// Receives the missed events and writes as many as there is room for; then those that have waited.
    fn send_missed(&mut self, now: Moment, metrics: &TailMetrics) {
        if self.seen_until.is_some_and(|until| now >= until) {
            (self.seen, self.seen_until) = (HashSet::new(), None);
        }
        let Some(mut resume) = self.resume.take() else { return };
        if let Some(receiver) = &resume.receiver {
            let backlog = match receiver.try_recv() {
                Ok(backlog) => backlog,
                Err(TryRecvError::Empty) => {
                    self.resume = Some(resume);
                    return;
                }
                // The queue of queries was full.
                Err(TryRecvError::Disconnected) => {
                    Backlog { gap: Some(GapReason::QueriesFull), ..Backlog::default() }
                }
            };
            resume.receiver = None;
            self.seen = backlog.events.iter().map(|event| event.event_id).collect();
            self.seen_until = Some(now.plus(SEEN_FOR));
            if let Some(gap) = backlog.gap {
                let event = format!("event: gap\ndata: {{\"reason\":\"{}\"}}\n\n", gap.name());
                self.pending.extend_from_slice(event.as_bytes());
            }
            resume.missed = backlog.events.into();
            resume.waiting.retain(|event| !self.seen.contains(&event.event_id));
        }
        let mut sent = 0;
        while self.pending.len() < PENDING_BYTES_MAX
            && let Some(event) = resume.missed.pop_front()
        {
            if self.is_sampled() {
                write_event(&mut self.pending, &event);
                sent += 1;
            }
        }
        if resume.missed.is_empty() {
            // At most as many bytes as a tail may have pending.
            for event in std::mem::take(&mut resume.waiting) {
                if self.is_sampled() {
                    write_event(&mut self.pending, &event);
                    sent += 1;
                }
            }
        } else {
            self.resume = Some(resume);
        }
        metrics.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// Encodes the rows of the block that match. Those for which there is no room are not examined.
    fn examine(&mut self, block: &RowBlock, metrics: &TailMetrics) {
        let mut remaining = u64::from(block.rows());
        let mut sent = 0;
        for row in row::rows(block.bytes()) {
            let waiting = self.resume.as_ref().map_or(self.pending.len(), |resume| resume.waiting_bytes);
            if waiting >= PENDING_BYTES_MAX {
                break;
            }
            remaining -= 1;
            if !self.matcher.matches(&row) || self.seen.contains(&row.event_id()) {
                continue;
            }
            if let Some(resume) = &mut self.resume {
                let event = row.to_event();
                resume.waiting_bytes += event.json_bytes_max();
                resume.waiting.push(event);
            } else if self.is_sampled() {
                write_event(&mut self.pending, &row.to_event());
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
            if self.sent_at.is_some_and(|sent_at| now.since(sent_at) < heartbeat) {
                return;
            }
            self.pending.extend_from_slice(b": heartbeat\n\n");
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
fn write_event(out: &mut Vec<u8>, event: &Event) {
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(&event.event_id.text());
    out.extend_from_slice(b"\ndata: {");
    let json_at = out.len();
    write_id(out, event.event_id);
    write_members(out, event);
    // The metadata is as the client sent it. A line break in JSON is white space, and would end the
    // field.
    for byte in &mut out[json_at..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"}\n\n");
}
