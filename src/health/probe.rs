//! Asks the database every few seconds whether it is there, so that health answers at once and an idle server
//! notices an outage, and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::clock::Clock;
use crate::storage::{Breaker, EventRepository};

const EVERY: Duration = Duration::from_secs(5);

/// What was learnt last. Down until the database has answered once.
#[derive(Debug, Default)]
pub struct Database {
    up: AtomicBool,
}

impl Database {
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub fn set(&self, up: bool) {
        self.up.store(up, Ordering::Release);
    }
}

#[derive(Debug)]
pub struct Probe {
    pub database: Arc<Database>,
    pub repository: Arc<dyn EventRepository>,
    pub breaker: Arc<Breaker>,
    pub clock: Clock,
}

impl Probe {
    /// Runs until the other end of `stop` is dropped.
    pub fn run(&self, stop: &Receiver<()>) {
        loop {
            self.tick();
            match stop.recv_timeout(EVERY) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Asks once, unless the breaker is open: then the answer is known.
    pub fn tick(&self) {
        if self.breaker.admit(self.clock.now()).is_err() {
            self.database.set(false);
            return;
        }
        let answer = self.repository.ping();
        let now = self.clock.now();
        if self.database.up.swap(answer.is_ok(), Ordering::AcqRel) != answer.is_ok() {
            match &answer {
                Ok(()) => log::info!("the database is reachable"),
                Err(error) => log::warn!("the database is not reachable: {error}"),
            }
        }
        match answer {
            Ok(()) => self.breaker.succeeded(now),
            Err(_) => self.breaker.failed(now),
        }
    }
}
