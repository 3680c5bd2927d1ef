//! The thread that writes what is asked for of the pushed metrics: acceptors have no time for a million series. A long
//! page is streamed: the thread makes a piece of it and puts the scrape aside until the client has taken an earlier one,
//! so that neither memory nor the other scrapes pay for its length or for a slow client.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Gateway;
use super::exposition::{Exposition, Form};
use super::listing;
use crate::http::{Feed, Promise, Response, stream};

/// Scrapes and listings that may wait or be on their way; Prometheus and a person or two make no more.
const RUNNING_MAX: usize = 32;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Exposition {
        form: Form,
        /// The client takes gzip.
        gzipped: bool,
    },
    /// `/api/v1/metrics`
    Groups,
}

#[derive(Debug)]
enum Job {
    Begin(Asked, Promise, Place),
    GoOn(Box<Scrape>, Feed),
    /// Its client is gone. What it holds may be a whole state of the past, which no acceptor should have to free.
    Drop(Box<Scrape>),
}

/// One of the places for scrapes; given back when dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub struct Line {
    jobs: Sender<Job>,
    running: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub struct Scraper {
    gateway: Arc<Gateway>,
    jobs: Receiver<Job>,
    /// Scrapes that go on when there is room.
    again: Sender<Job>,
    streams: bool,
}

/// Makes both ends. `streams` is whether the engine can send a body while it is made; else each page is made whole.
pub fn line(gateway: Arc<Gateway>, streams: bool) -> (Line, Scraper) {
    let (sender, jobs) = unbounded();
    (
        Line { jobs: sender.clone(), running: Arc::default() },
        Scraper { gateway, jobs, again: sender, streams },
    )
}

impl Line {
    /// Has it answered later. False when too many wait already; then no promise is made.
    pub fn ask(&self, asked: Asked, promise: impl FnOnce() -> Promise) -> bool {
        if self.running.fetch_add(1, Ordering::AcqRel) >= RUNNING_MAX {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        let place = Place(Arc::clone(&self.running));
        // A thread that is gone drops the promise, which answers 500.
        self.jobs.send(Job::Begin(asked, promise(), place)).is_ok()
    }
}

/// A page between two pieces.
#[derive(Debug)]
struct Scrape {
    exposition: Exposition,
    gzip: Option<GzEncoder<Vec<u8>>>,
    _place: Place,
}

/// A scrape that waits for room. Dropped instead, it goes back to the thread.
struct Aside {
    scrape: Option<Box<Scrape>>,
    again: Sender<Job>,
}

impl Aside {
    fn go_on(mut self, feed: Feed) {
        if let Some(scrape) = self.scrape.take() {
            // A thread that is gone drops the feed, which breaks the answer off.
            self.again.send(Job::GoOn(scrape, feed)).ok();
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if let Some(scrape) = self.scrape.take() {
            self.again.send(Job::Drop(scrape)).ok();
        }
    }
}

impl Scraper {
    /// The life of the thread.
    pub fn run(&self) {
        for job in &self.jobs {
            self.work(job);
        }
    }

    /// Does what there is to do now.
    #[cfg(test)]
    pub(super) fn work_off(&self) {
        self.jobs.try_iter().for_each(|job| self.work(job));
    }

    fn work(&self, job: Job) {
        match job {
            Job::Begin(Asked::Exposition { form, gzipped }, promise, place) => {
                self.begin(form, gzipped, promise, place);
            }
            Job::Begin(Asked::Groups, promise, place) => {
                let body = listing::groups(&self.gateway.view()).into_bytes();
                drop(place);
                promise.fulfil(Response { content_type: "application/json", body, ..Response::default() });
            }
            Job::GoOn(scrape, feed) => {
                if !feed.is_gone() {
                    self.go_on(scrape, feed);
                }
            }
            Job::Drop(scrape) => drop(scrape),
        }
    }

    /// Answers with the first piece, if it is all, or begins to stream.
    fn begin(&self, form: Form, gzipped: bool, promise: Promise, place: Place) {
        let mut exposition = Exposition::new(self.gateway.view(), form);
        let mut text = String::new();
        let mut more = exposition.write(&mut text);
        while more && !self.streams {
            more = exposition.write(&mut text);
        }
        let mut response = Response { content_type: form.content_type(), ..Response::default() };
        if !more {
            response.body = text.into_bytes();
            drop((exposition, place));
            promise.fulfil(response);
            return;
        }
        response.header("Vary", "Accept, Accept-Encoding");
        if gzipped {
            response.header("Content-Encoding", "gzip");
        }
        let gzip = gzipped.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        let (feed, body) = stream();
        response.stream = Some(body);
        promise.fulfil(response);
        let mut scrape = Box::new(Scrape { exposition, gzip, _place: place });
        feed.push(scrape.encode(text, false));
        self.put_aside(scrape, feed);
    }

    /// Makes one piece.
    fn go_on(&self, mut scrape: Box<Scrape>, feed: Feed) {
        let mut text = String::new();
        let more = scrape.exposition.write(&mut text);
        feed.push(scrape.encode(text, !more));
        if more {
            self.put_aside(scrape, feed);
        } else {
            // Before the client can see the end and ask for another.
            drop(scrape);
            feed.finish();
        }
    }

    fn put_aside(&self, scrape: Box<Scrape>, feed: Feed) {
        let aside = Aside { scrape: Some(scrape), again: self.again.clone() };
        feed.when_room(move |feed| aside.go_on(feed));
    }
}

impl Scrape {
    /// What of `text` is to be sent now; everything when it is the last.
    fn encode(&mut self, text: String, last: bool) -> Vec<u8> {
        let Some(gzip) = &mut self.gzip else { return text.into_bytes() };
        gzip.write_all(text.as_bytes()).expect("a vector takes all that is written");
        if last {
            gzip.try_finish().expect("a vector takes all that is written");
        }
        std::mem::take(gzip.get_mut())
    }
}
