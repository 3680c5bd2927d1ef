//! Exports: all events of a query, streamed while they are read, page after page.
//!
//! A page is a transaction of its own, so that an export of any length and to a client of any patience holds neither a
//! snapshot nor a lock: the sweep and VACUUM do not wait for it. An export is no thread either. A thread makes one block
//! of it and puts it aside until the client has taken an earlier one; so a few threads serve many exports, and slow
//! clients keep none busy.
//!
//! What no index knows (metadata, text) is looked for in windows of time that grow and shrink with what a query may
//! take, so that no timeout ends an export that would only have been long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::asking::{Asking, Failure};
use super::encode::{Encoder, Format};
use super::join::fulfil;
use super::params::{self, Query};
use crate::clock::Clock;
use crate::event::{EventId, Timestamp};
use crate::http::problem::{self, Kind};
use crate::http::{Answer, Feed, Promise, Response, stream};
use crate::storage::{Breaker, Chunk, EventRepository, Filter, Order, Page};

/// Text of one block. With the two that lie in its stream and the one that is being sent, an export holds some four.
const BLOCK_BYTES: usize = 256 * 1024;
/// Events asked for at first, and at most. In between as many as should fill a block.
const ROWS_FIRST: u16 = 500;
const ROWS_MAX: u16 = 5000;
/// The first window of time, the shortest, and how quick a look into one must be for the next to be longer.
const WINDOW_FIRST: Duration = Duration::from_hours(1);
const WINDOW_MIN: Duration = Duration::from_secs(1);
const WINDOW_QUICK: Duration = Duration::from_millis(500);
/// When a client may come again that found too many exports running: they take seconds.
const RETRY_S: u64 = 5;

/// The entrance: shared by all acceptors.
#[derive(Clone, Debug)]
pub struct Exports {
    jobs: Sender<Export>,
    running: Arc<AtomicUsize>,
    running_max: usize,
    asking: Asking,
}

/// The threads' end.
#[derive(Clone, Debug)]
pub struct Exporters {
    jobs: Receiver<Export>,
    /// Exports that go on when there is room.
    again: Sender<Export>,
    repository: Arc<dyn EventRepository>,
    asking: Asking,
}

/// Makes both. `running_max` exports may run at once. Each thread runs [`Exporters::run`] of its own clone, for ever.
pub fn exports(
    running_max: usize,
    repository: Arc<dyn EventRepository>,
    breaker: Arc<Breaker>,
    clock: Clock,
) -> (Exports, Exporters) {
    // Each is in the line once at most.
    let (sender, receiver) = bounded(running_max);
    let asking = Asking::new(breaker, clock);
    let exporters = Exporters { jobs: receiver, again: sender.clone(), repository, asking: asking.clone() };
    (Exports { jobs: sender, running: Arc::default(), running_max, asking }, exporters)
}

impl Exports {
    /// Answers `GET /events?query` in `format`. `promise` is called only when the answer comes later.
    pub fn start(
        &self,
        query: &str,
        now: Timestamp,
        how: How,
        promise: impl FnOnce() -> Promise,
        response: &mut Response,
    ) -> Answer {
        let query = match Query::parse_export(query, now) {
            Ok(query) => query,
            Err(errors) => {
                problem::answer_invalid(response, "the query is not valid", &errors);
                return Answer::Ready;
            }
        };
        if self.asking.refuses(response) {
            return Answer::Ready;
        }
        if how.head_only {
            begin(response, how).finish();
            return Answer::Ready;
        }
        let Some(place) = Place::take(&self.running, self.running_max) else {
            problem::answer_later(response, Kind::QueriesFull, "too many exports are running", RETRY_S);
            return Answer::Ready;
        };
        let export = Export {
            walk: Walk::new(query),
            encoder: Encoder::new(how.format, how.gzipped),
            way: Way::Promised(promise(), how),
            place,
        };
        enqueue(&self.jobs, export);
        Answer::Later
    }
}

/// How the client wants it.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub format: Format,
    pub gzipped: bool,
    /// It asks for the head of the answer alone.
    pub head_only: bool,
}

/// One of the places for exports; given back when dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(running: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let room = |running: usize| (running < most).then_some(running + 1);
        running.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).ok()?;
        Some(Self(Arc::clone(running)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An export between two blocks.
#[derive(Debug)]
struct Export {
    walk: Walk,
    encoder: Encoder,
    way: Way,
    place: Place,
}

/// Where its blocks go.
#[derive(Debug)]
enum Way {
    /// Nothing is said yet: the first page decides on the status.
    Promised(Promise, How),
    Begun(Feed),
}

/// Never blocks: there is a place in the line for each export.
fn enqueue(jobs: &Sender<Export>, export: Export) {
    if jobs.try_send(export).is_err() {
        log::error!("BUG: an export found no place in its line, and is broken off");
    }
}

/// Writes the head of the answer, whose body comes from the feed.
fn begin(response: &mut Response, how: How) -> Feed {
    response.status = 200;
    response.content_type = how.format.content_type();
    response.header("Vary", "Accept, Accept-Encoding");
    if how.gzipped {
        response.header("Content-Encoding", "gzip");
    }
    let (feed, body) = stream();
    response.stream = Some(body);
    feed
}

impl Exporters {
    /// The life of a thread.
    pub fn run(&self) {
        while let Ok(export) = self.jobs.recv() {
            self.tick(export);
        }
    }

    /// Makes one block.
    fn tick(&self, mut export: Export) {
        if matches!(&export.way, Way::Begun(feed) if feed.is_gone()) {
            return;
        }
        let begin = self.asking.clock.now();
        let page = export.walk.page();
        match self.asking.ask("export", || self.repository.chunk(&page, BLOCK_BYTES)) {
            Ok(chunk) => {
                export.walk.took(&page, &chunk, self.asking.clock.now().since(begin));
                for event in &chunk.events {
                    export.encoder.write(event);
                }
                self.hand_over(export);
            }
            Err(Failure::TooSlow) if export.walk.narrow() => self.go_on(export, Vec::new()),
            Err(failure) => match export.way {
                Way::Promised(promise, _) => fulfil(promise, |response| failure.answer(response)),
                Way::Begun(_feed) => log::warn!("an export is broken off, since its query failed"),
            },
        }
    }

    fn hand_over(&self, mut export: Export) {
        let over = export.walk.is_over();
        let block = export.encoder.block(over);
        if !over {
            return self.go_on(export, block);
        }
        let feed = export.way.begin();
        feed.push(block);
        // Before the client can see the end and ask for another.
        drop(export.place);
        feed.finish();
    }

    /// Sends `block`, and puts the export aside until there is room for the next.
    fn go_on(&self, export: Export, block: Vec<u8>) {
        let Export { walk, encoder, way, place } = export;
        let feed = way.begin();
        feed.push(block);
        let again = self.again.clone();
        feed.when_room(move |feed| enqueue(&again, Export { walk, encoder, way: Way::Begun(feed), place }));
    }
}

impl Way {
    /// Begins the answer if it has not begun.
    fn begin(self) -> Feed {
        match self {
            Self::Begun(feed) => feed,
            Self::Promised(promise, how) => {
                let mut response = Response::default();
                let feed = begin(&mut response, how);
                promise.fulfil(response);
                feed
            }
        }
    }
}

/// The way through the events: where it is, and how far the next step goes.
#[derive(Debug)]
struct Walk {
    /// Its time is what is left.
    filter: Filter,
    order: Order,
    after: Option<(Timestamp, EventId)>,
    left: u64,
    rows: u16,
    /// None where an index leads from event to event.
    window: Option<Duration>,
    over: bool,
}

impl Walk {
    fn new(query: params::Export) -> Self {
        let params::Export { filter, order, after, limit } = query;
        let searches = !filter.metadata.is_empty() || filter.text.is_some();
        Self {
            filter,
            order,
            after,
            left: limit,
            rows: ROWS_FIRST,
            window: searches.then_some(WINDOW_FIRST),
            over: false,
        }
    }

    fn is_over(&self) -> bool {
        self.over
    }

    /// What to ask for next.
    fn page(&self) -> Page {
        let mut filter = self.filter.clone();
        if let Some(window) = self.window {
            let micros = i64::try_from(window.as_micros()).unwrap_or(i64::MAX);
            match self.order {
                Order::Asc => {
                    let end = filter.from.micros().saturating_add(micros);
                    filter.to = filter.to.min(Timestamp::from_micros(end));
                }
                Order::Desc => {
                    let begin = filter.to.micros().saturating_sub(micros);
                    filter.from = filter.from.max(Timestamp::from_micros(begin));
                }
            }
        }
        let limit = u16::try_from(self.left.min(u64::from(self.rows))).unwrap_or(self.rows);
        Page { filter, order: self.order, limit, after: self.after }
    }

    /// Goes past what was read.
    fn took(&mut self, page: &Page, chunk: &Chunk, time: Duration) {
        self.left -= chunk.events.len() as u64;
        if let Some(last) = chunk.events.last() {
            self.after = Some((last.timestamp, last.event_id));
            let bytes: usize = chunk.events.iter().map(|event| event.bytes() + 1).sum();
            let fitting = BLOCK_BYTES * chunk.events.len() / bytes;
            self.rows = u16::try_from(fitting).unwrap_or(ROWS_MAX).clamp(1, ROWS_MAX);
        }
        if !chunk.more {
            // The window is done with.
            match self.order {
                Order::Asc => self.filter.from = page.filter.to,
                Order::Desc => self.filter.to = page.filter.from,
            }
            self.window =
                self.window.map(|window| if time < WINDOW_QUICK { window.saturating_mul(2) } else { window });
        }
        self.over = self.left == 0 || self.filter.from >= self.filter.to;
    }

    /// Whether less can be asked for at a time.
    fn narrow(&mut self) -> bool {
        let Some(window) = self.window.filter(|window| *window > WINDOW_MIN) else { return false };
        self.window = Some((window / 4).max(WINDOW_MIN));
        true
    }
}

#[cfg(test)]
mod tests;
