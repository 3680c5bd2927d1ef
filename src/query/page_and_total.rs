//! Combines the two results of a query. Page and count run on two threads without waiting for each
//! other; the later result completes the response. An error responds at once and drops the other
//! result.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::page::{self, PageOptions};
use crate::http::{Promise, Response};
use crate::storage::Chunk;

#[derive(Debug)]
pub(super) struct PageAndTotal {
    options: PageOptions,
    pending: Mutex<PendingPage>,
}

/// Invariant: `promise` is present until the response is sent.
#[derive(Debug)]
struct PendingPage {
    promise: Option<Promise>,
    /// The encoded events: one copy, instead of the events and their encoding.
    events: Option<Vec<u8>>,
    total: TotalState,
}

#[derive(Clone, Copy, Debug)]
enum TotalState {
    NotRequested,
    Pending,
    Ready(u64),
}

impl PageAndTotal {
    pub(super) fn new(promise: Promise, options: PageOptions, counted: bool) -> Self {
        let total = if counted { TotalState::Pending } else { TotalState::NotRequested };
        Self { options, pending: Mutex::new(PendingPage { promise: Some(promise), events: None, total }) }
    }

    /// Whether the response has been sent, so that the other job can be skipped.
    pub(super) fn is_answered(&self) -> bool {
        self.lock().promise.is_none()
    }

    pub(super) fn set_events(&self, chunk: Chunk) {
        let encoded = page::encode_events(self.options, &chunk);
        drop(chunk);
        let mut page = self.lock();
        page.events = Some(encoded);
        Self::answer_if_complete(page);
    }

    pub(super) fn set_total(&self, total: u64) {
        let mut page = self.lock();
        page.total = TotalState::Ready(total);
        Self::answer_if_complete(page);
    }

    /// Responds with the output of `write`, unless the response has been sent.
    pub(super) fn fail(&self, write: impl FnOnce(&mut Response)) {
        let promise = self.lock().promise.take();
        if let Some(promise) = promise {
            fulfil(promise, write);
        }
    }

    fn answer_if_complete(mut page: MutexGuard<'_, PendingPage>) {
        let total = match page.total {
            TotalState::Pending => return,
            TotalState::NotRequested => None,
            TotalState::Ready(total) => Some(total),
        };
        let Some(events) = page.events.take() else { return };
        let Some(promise) = page.promise.take() else { return };
        drop(page);
        fulfil(promise, |response| page::write_page(response, events, total));
    }

    fn lock(&self) -> MutexGuard<'_, PendingPage> {
        // Every statement above leaves the state consistent, so a poisoned lock is usable.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn fulfil(promise: Promise, write: impl FnOnce(&mut Response)) {
    let mut response = Response::default();
    write(&mut response);
    promise.fulfil(response);
}
