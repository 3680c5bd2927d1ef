//! Asks the database every few seconds whether it is there, so that health answers at once and an idle server
//! notices an outage, and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::clock::{Clock, Moment};
use crate::storage::{Breaker, EventRepository};

const EVERY: Duration = Duration::from_secs(5);
/// A database that takes longer to answer a ping counts as away, though nobody may be able to end the wait: on a Unix
/// socket nothing does.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What was learnt last. Down until the database has answered once.
#[derive(Debug, Default)]
pub struct Database {
    up: AtomicBool,
    /// Nanoseconds of the moment at which the ping on its way was sent, plus one; zero while there is none.
    asked: AtomicU64,
}

impl Database {
    pub fn is_up(&self, now: Moment) -> bool {
        let asked = self.asked.load(Ordering::Acquire).checked_sub(1).map(Moment::from_nanos);
        self.up.load(Ordering::Acquire) && asked.is_none_or(|asked| now.since(asked) < ANSWER_MAX)
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
        let asked = self.clock.now().nanos().saturating_add(1);
        self.database.asked.store(asked, Ordering::Release);
        let answer = self.repository.ping();
        self.database.asked.store(0, Ordering::Release);
        let now = self.clock.now();
        if self.database.up.swap(answer.is_ok(), Ordering::AcqRel) != answer.is_ok() {
            match &answer {
                Ok(()) => log::info!("the database is reachable"),
                Err(error) => log::warn!("the database is not reachable: {error}"),
            }
        }
        match answer {
            Ok(()) => self.breaker.answered(now),
            Err(_) => self.breaker.failed(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_without_an_answer_counts_as_an_outage_after_a_while() {
        let database = Database::default();
        let at = |wait: Duration| Moment::from_nanos(7).plus(wait);
        assert!(!database.is_up(at(Duration::ZERO)), "it has not answered yet");
        database.set(true);
        database.asked.store(8, Ordering::Release);
        assert!(database.is_up(at(ANSWER_MAX.saturating_sub(Duration::from_nanos(1)))));
        assert!(!database.is_up(at(ANSWER_MAX)));
        database.asked.store(0, Ordering::Release);
        assert!(database.is_up(at(ANSWER_MAX)));
    }
}
