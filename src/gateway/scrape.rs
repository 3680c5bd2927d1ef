//! The scrape thread: renders pages off the acceptors, since a state may have a million series.
//! Long pages are streamed: the thread renders one chunk and parks the scrape until the client has
//! read an earlier one, so that neither a long page nor a slow client costs memory or delays other
//! scrapes.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::Gateway;
use super::api_v1::GroupsPage;
use super::exposition::Exposition;
use super::page_format::{PageEncoding, PageFormat};
use super::protobuf_page::ProtobufPage;
use crate::http::{BodySender, Promise, Response, body_channel};

/// Scrapes and listings that may be queued or running.
const RUNNING_MAX: usize = 32;

/// A page to render.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScrapeRequest {
    Exposition {
        format: PageFormat,
        /// The client accepts gzip.
        gzipped: bool,
    },
    /// `/api/v1/metrics`
    Groups { gzipped: bool },
}

#[derive(Debug)]
enum ScrapeJob {
    Start(ScrapeRequest, Promise, ScrapePermit),
    Resume(Box<Scrape>, BodySender),
    /// The client is gone. Frees a snapshot on this thread, since it may be large.
    Discard(Box<Scrape>),
}

/// Counts one running scrape until it is dropped.
#[derive(Debug)]
struct ScrapePermit(Arc<AtomicUsize>);

impl Drop for ScrapePermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The sender of requests to the scrape thread.
#[derive(Clone, Debug)]
pub struct ScrapeQueue {
    jobs: Sender<ScrapeJob>,
    running: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub struct Scraper {
    gateway: Arc<Gateway>,
    jobs: Receiver<ScrapeJob>,
    /// Sends parked scrapes back to this thread.
    resume_jobs: Sender<ScrapeJob>,
    can_stream: bool,
}

/// Creates the queue and its thread's receiver. `streams`: the HTTP engine supports streaming;
/// without it each page is rendered as a whole.
pub fn queue(gateway: Arc<Gateway>, streams: bool) -> (ScrapeQueue, Scraper) {
    let (sender, jobs) = unbounded();
    (
        ScrapeQueue { jobs: sender.clone(), running: Arc::default() },
        Scraper { gateway, jobs, resume_jobs: sender, can_stream: streams },
    )
}

impl ScrapeQueue {
    /// Submits a request. Returns false without calling `promise` if too many are running.
    pub fn submit(&self, request: ScrapeRequest, promise: impl FnOnce() -> Promise) -> bool {
        if self.running.fetch_add(1, Ordering::AcqRel) >= RUNNING_MAX {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        let permit = ScrapePermit(Arc::clone(&self.running));
        // If the thread is gone, the promise is dropped, which answers 500.
        self.jobs.send(ScrapeJob::Start(request, promise(), permit)).is_ok()
    }
}

/// A page that is rendered chunk by chunk.
#[derive(Debug)]
enum Page {
    Lines(Exposition),
    Protobuf(ProtobufPage),
    Groups(GroupsPage),
}

impl Page {
    /// The next chunk, and whether there may be more.
    fn next_chunk(&mut self) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let more = match self {
            Self::Lines(exposition) => {
                let mut text = String::new();
                let more = exposition.write_chunk(&mut text);
                bytes = text.into_bytes();
                more
            }
            Self::Protobuf(page) => page.write_chunk(&mut bytes),
            Self::Groups(page) => page.write_chunk(&mut bytes),
        };
        (bytes, more)
    }
}

/// A page between two chunks.
#[derive(Debug)]
struct Scrape {
    page: Page,
    gzip: Option<GzEncoder<Vec<u8>>>,
    _permit: ScrapePermit,
}

/// A scrape that waits for the client. On drop the scrape is sent back to the thread to be freed.
struct ParkedScrape {
    scrape: Option<Box<Scrape>>,
    resume_jobs: Sender<ScrapeJob>,
}

impl ParkedScrape {
    fn resume(mut self, sender: BodySender) {
        if let Some(scrape) = self.scrape.take() {
            // If the thread is gone, the sender is dropped, which aborts the response.
            self.resume_jobs.send(ScrapeJob::Resume(scrape, sender)).ok();
        }
    }
}

impl Drop for ParkedScrape {
    fn drop(&mut self) {
        if let Some(scrape) = self.scrape.take() {
            self.resume_jobs.send(ScrapeJob::Discard(scrape)).ok();
        }
    }
}

impl Scraper {
    /// Handles requests until all senders are dropped.
    pub fn run(&self) {
        for job in &self.jobs {
            self.handle(job);
        }
    }

    /// Handles the queued requests.
    #[cfg(test)]
    pub(super) fn run_pending(&self) {
        self.jobs.try_iter().for_each(|job| self.handle(job));
    }

    fn handle(&self, job: ScrapeJob) {
        match job {
            ScrapeJob::Start(ScrapeRequest::Exposition { format, gzipped }, promise, permit) => {
                let (snapshot, escaping) = (self.gateway.snapshot(), format.escaping.unwrap_or_default());
                let page = match format.encoding {
                    PageEncoding::Lines(lines) => Page::Lines(Exposition::new(snapshot, lines, escaping)),
                    PageEncoding::Protobuf => Page::Protobuf(ProtobufPage::new(snapshot, escaping)),
                };
                let mut response = Response { content_type: format.content_type(), ..Response::default() };
                response.vary("Accept");
                self.start(page, response, gzipped, promise, permit);
            }
            ScrapeJob::Start(ScrapeRequest::Groups { gzipped }, promise, permit) => {
                let page = Page::Groups(GroupsPage::new(self.gateway.snapshot()));
                let response = Response { content_type: "application/json", ..Response::default() };
                self.start(page, response, gzipped, promise, permit);
            }
            ScrapeJob::Resume(scrape, sender) => {
                if !sender.is_closed() {
                    self.resume(scrape, sender);
                }
            }
            ScrapeJob::Discard(scrape) => drop(scrape),
        }
    }

    /// Responds with the first chunk if that is the whole page, else starts to stream.
    fn start(
        &self,
        mut page: Page,
        mut response: Response,
        gzipped: bool,
        promise: Promise,
        permit: ScrapePermit,
    ) {
        let (mut bytes, mut more) = page.next_chunk();
        while more && !self.can_stream {
            let (next, is_more) = page.next_chunk();
            bytes.extend_from_slice(&next);
            more = is_more;
        }
        if !more {
            response.body = bytes;
            drop((page, permit));
            promise.fulfil(response);
            return;
        }
        response.vary("Accept-Encoding");
        if gzipped {
            response.header("Content-Encoding", "gzip");
        }
        let gzip = gzipped.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        let (sender, body) = body_channel();
        response.stream = Some(body);
        promise.fulfil(response);
        let mut scrape = Box::new(Scrape { page, gzip, _permit: permit });
        sender.send(scrape.encode(bytes, false));
        self.park(scrape, sender);
    }

    /// Renders the next chunk.
    fn resume(&self, mut scrape: Box<Scrape>, sender: BodySender) {
        let (bytes, more) = scrape.page.next_chunk();
        sender.send(scrape.encode(bytes, !more));
        if more {
            self.park(scrape, sender);
        } else {
            // Releases the permit before the client can see the end and submit another scrape.
            drop(scrape);
            sender.finish();
        }
    }

    fn park(&self, scrape: Box<Scrape>, sender: BodySender) {
        let parked = ParkedScrape { scrape: Some(scrape), resume_jobs: self.resume_jobs.clone() };
        sender.on_capacity(move |sender| parked.resume(sender));
    }
}

impl Scrape {
    /// The bytes to send for `bytes`; all buffered ones with `last`.
    fn encode(&mut self, bytes: Vec<u8>, last: bool) -> Vec<u8> {
        let Some(gzip) = &mut self.gzip else { return bytes };
        gzip.write_all(&bytes).expect("writing to a vector cannot fail");
        if last {
            gzip.try_finish().expect("writing to a vector cannot fail");
        }
        std::mem::take(gzip.get_mut())
    }
}
