//! The push thread: handles the changes that are too long for one turn of an acceptor. A request is
//! copied into a bounded queue; its promise delivers the response to the acceptor.
//!
//! Rejected: slices of an acceptor's turns, as for events. A push is validated, sorted and indexed
//! as a whole, its cost depends on the group that it replaces, and the gateway's state belongs to no
//! acceptor, so that slices would only let long pushes delay the events of that acceptor.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::handlers::{GatewayHandlers, GatewayRoute, PushOutcome};
use super::responses::durability_not_reached;
use crate::access::Grant;
use crate::http::{Decompressor, Headers, Method, Promise, Request, Response};

/// Limits of the queue: requests and the bytes of their bodies, the running one included.
const QUEUE_MAX: usize = 256;
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// A request whose parts the thread owns.
#[derive(Debug)]
struct PushJob {
    page: GatewayRoute<'static>,
    grant: Grant,
    method: Method,
    path: String,
    query: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    peer: IpAddr,
    promise: Promise,
    _permit: QueuePermit,
}

/// The requests in the queue and the bytes of their bodies.
#[derive(Debug, Default)]
struct QueueSize {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place in the queue until it is dropped.
#[derive(Debug)]
struct QueuePermit {
    size: Arc<QueueSize>,
    bytes: usize,
}

impl QueuePermit {
    /// None if the queue is full. A body of any size may enter an empty queue.
    fn acquire(size: &Arc<QueueSize>, bytes: usize) -> Option<Self> {
        let requests = size.requests.fetch_add(1, Ordering::AcqRel);
        let before = size.bytes.fetch_add(bytes, Ordering::AcqRel);
        let permit = Self { size: Arc::clone(size), bytes };
        let fits = requests == 0 || (requests < QUEUE_MAX && before + bytes <= QUEUE_BYTES_MAX);
        fits.then_some(permit)
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.size.requests.fetch_sub(1, Ordering::AcqRel);
        self.size.bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The sender of requests to the push thread.
#[derive(Clone, Debug)]
pub struct PushQueue {
    jobs: Sender<PushJob>,
    size: Arc<QueueSize>,
}

/// Creates the queue and its receiver.
pub fn queue() -> (PushQueue, PushReceiver) {
    let (jobs, receiver) = unbounded();
    (PushQueue { jobs, size: Arc::default() }, PushReceiver(receiver))
}

/// The receiving end of a [`PushQueue`].
#[derive(Debug)]
pub struct PushReceiver(Receiver<PushJob>);

impl PushQueue {
    /// Copies a request into the queue. Returns false without calling `promise` if the queue is
    /// full.
    pub fn submit(
        &self,
        page: &GatewayRoute<'_>,
        grant: &Grant,
        request: &Request<'_>,
        promise: impl FnOnce() -> Promise,
    ) -> bool {
        let Some(permit) = QueuePermit::acquire(&self.size, request.body.len()) else { return false };
        let headers = request.headers.0.iter();
        let job = PushJob {
            page: page.to_static(),
            grant: grant.clone(),
            method: request.method,
            path: request.path.to_owned(),
            query: request.query.to_owned(),
            headers: headers.map(|header| (header.name.to_owned(), header.value.to_vec())).collect(),
            body: request.body.to_vec(),
            peer: request.peer,
            promise: promise(),
            _permit: permit,
        };
        // If the thread is gone, the promise is dropped, which answers 500.
        self.jobs.send(job).is_ok()
    }
}

#[derive(Debug)]
pub struct PushThread {
    jobs: PushReceiver,
    handlers: GatewayHandlers,
    decompressor: Decompressor,
}

impl PushThread {
    /// `handlers` must have no queue.
    pub fn new(jobs: PushReceiver, handlers: GatewayHandlers, decompressor: Decompressor) -> Self {
        Self { jobs, handlers, decompressor }
    }

    /// Handles requests until all senders are dropped.
    pub fn run(&mut self) {
        while let Ok(job) = self.jobs.0.recv() {
            self.handle(job);
        }
    }

    /// Handles the queued requests.
    #[cfg(test)]
    pub(super) fn run_pending(&mut self) {
        while let Ok(job) = self.jobs.0.try_recv() {
            self.handle(job);
        }
    }

    fn handle(&mut self, job: PushJob) {
        let headers: Vec<_> =
            job.headers.iter().map(|(name, value)| httparse::Header { name, value }).collect();
        let request = Request {
            method: job.method,
            path: &job.path,
            query: &job.query,
            headers: Headers(&headers),
            body: &job.body,
            peer: job.peer,
            promise: &|| unreachable!("BUG: the job has the promise"),
        };
        let mut response = Response::default();
        let outcome =
            self.handlers.handle(&job.page, &job.grant, &request, &mut self.decompressor, &mut response);
        let promise = job.promise;
        match outcome {
            PushOutcome::Ready => promise.fulfil(response),
            PushOutcome::OnDurable(level) => {
                let gateway = self.handlers.gateway();
                gateway.on_durable(
                    level,
                    Box::new(move |durable| {
                        promise.fulfil_without_wake(if durable { response } else { durability_not_reached() })
                    }),
                );
                gateway.wake_log_thread();
            }
        }
    }
}
