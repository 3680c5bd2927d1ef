//! Where the two halves of a query meet: page and count run on two threads, neither waits for the other, and
//! whichever comes last answers. An error answers at once; what comes after it finds the promise gone.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::page::{self, Shown};
use crate::event::Event;
use crate::http::{Promise, Response};

#[derive(Debug)]
pub(super) struct Join {
    shown: Shown,
    parts: Mutex<Parts>,
}

/// Invariant: the promise is there until something has answered.
#[derive(Debug)]
struct Parts {
    promise: Option<Promise>,
    events: Option<Vec<Event>>,
    total: Total,
}

#[derive(Clone, Copy, Debug)]
enum Total {
    NotAsked,
    Awaited,
    Known(u64),
}

impl Join {
    pub(super) fn new(promise: Promise, shown: Shown, counted: bool) -> Self {
        let total = if counted { Total::Awaited } else { Total::NotAsked };
        Self { shown, parts: Mutex::new(Parts { promise: Some(promise), events: None, total }) }
    }

    /// Whether it has been answered, so that the other half need not run.
    pub(super) fn over(&self) -> bool {
        self.lock().promise.is_none()
    }

    pub(super) fn events(&self, events: Vec<Event>) {
        let mut parts = self.lock();
        parts.events = Some(events);
        self.settle(parts);
    }

    pub(super) fn total(&self, total: u64) {
        let mut parts = self.lock();
        parts.total = Total::Known(total);
        self.settle(parts);
    }

    /// Answers with what `write` writes, unless it has been answered.
    pub(super) fn fail(&self, write: impl FnOnce(&mut Response)) {
        let promise = self.lock().promise.take();
        if let Some(promise) = promise {
            fulfil(promise, write);
        }
    }

    fn settle(&self, mut parts: MutexGuard<'_, Parts>) {
        let total = match parts.total {
            Total::Awaited => return,
            Total::NotAsked => None,
            Total::Known(total) => Some(total),
        };
        let Some(events) = parts.events.take() else { return };
        let Some(promise) = parts.promise.take() else { return };
        // The page is written outside the lock; nobody else needs the parts any more.
        drop(parts);
        fulfil(promise, |response| page::answer(response, self.shown, &events, total));
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        // The parts are whole after each statement above, whatever panicked.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn fulfil(promise: Promise, write: impl FnOnce(&mut Response)) {
    let mut response = Response::default();
    write(&mut response);
    promise.fulfil(response);
}
