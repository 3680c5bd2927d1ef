//! The thread that writes what is asked for of the pushed metrics: acceptors have no time for a million series.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::Gateway;
use super::exposition::{Form, all};
use super::listing;
use crate::http::{Promise, Response};

/// Scrapes and listings that may wait; Prometheus and a person or two make no more.
const WAITING_MAX: usize = 32;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Exposition(Form),
    /// `/api/v1/metrics`
    Groups,
}

#[derive(Debug)]
struct Job {
    asked: Asked,
    promise: Promise,
}

/// The way to the thread.
#[derive(Clone, Debug)]
pub struct Line {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub struct Scraper {
    gateway: Arc<Gateway>,
    jobs: Receiver<Job>,
    waiting: Arc<AtomicUsize>,
}

pub fn line(gateway: Arc<Gateway>) -> (Line, Scraper) {
    let (sender, jobs) = unbounded();
    let waiting = Arc::new(AtomicUsize::new(0));
    (Line { jobs: sender, waiting: waiting.clone() }, Scraper { gateway, jobs, waiting })
}

impl Line {
    /// Has it answered later. False when too many wait already; then no promise is made.
    pub fn ask(&self, asked: Asked, promise: impl FnOnce() -> Promise) -> bool {
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            return false;
        }
        // A thread that is gone drops the promise, which answers 500.
        self.jobs.send(Job { asked, promise: promise() }).is_ok()
    }
}

impl Scraper {
    /// Runs until nobody can ask any more.
    pub fn run(&self) {
        for Job { asked, promise } in &self.jobs {
            let mut response = Response::default();
            let view = self.gateway.view();
            match asked {
                Asked::Exposition(form) => {
                    response.content_type = form.content_type();
                    response.body = all(view, form).into_bytes();
                }
                Asked::Groups => {
                    response.content_type = "application/json";
                    response.body = listing::groups(&view).into_bytes();
                }
            }
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            promise.fulfil(response);
        }
    }
}
