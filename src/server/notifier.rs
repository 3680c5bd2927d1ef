//! The thread that reports the state of the server to the service manager: ready, a status line,
//! more time for a long start or drain, and the watchdog while the threads of the pipeline move.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};

use crate::clock::Moment;
use crate::health::status::Status;
use crate::http::AcceptorHandle;
use crate::lifecycle::LifecyclePhase;
use crate::service_manager::{ServiceManager, Watchdog};

/// Interval until the server is ready: the start of dependent units waits for it.
const STARTING_INTERVAL: Duration = Duration::from_millis(50);
/// Interval of status lines and of requests for more time.
const INTERVAL_MAX: Duration = Duration::from_secs(1);
/// The time asked for with each request: many intervals, so that a busy machine misses none.
const EXTENSION: Duration = Duration::from_secs(15);
/// How often per timeout of the watchdog the threads are woken and checked.
const CHECKS_PER_TIMEOUT: u32 = 4;

pub(super) struct Notifier {
    pub(super) manager: ServiceManager,
    pub(super) status: Arc<Status>,
    pub(super) acceptors: Vec<AcceptorHandle>,
    /// None: the service manager has no watchdog for this process.
    pub(super) watchdog_timeout: Option<Duration>,
}

impl Notifier {
    /// Runs until the sender of `stop` is dropped.
    pub(super) fn run(&self, stop: &Receiver<()>) {
        let mut feeder =
            WatchdogFeeder { watchdog: Watchdog::default(), fed_at: self.status.clock.now(), warned: false };
        let interval = self
            .watchdog_timeout
            .map_or(INTERVAL_MAX, |timeout| INTERVAL_MAX.min(timeout / CHECKS_PER_TIMEOUT));
        let (mut was_ready, mut last_status) = (false, String::new());
        loop {
            let phase = self.status.lifecycle.phase();
            match phase {
                LifecyclePhase::Starting | LifecyclePhase::Draining => {
                    self.manager.extend_timeout(EXTENSION);
                }
                LifecyclePhase::Serving if !was_ready => {
                    was_ready = true;
                    self.manager.ready();
                }
                LifecyclePhase::Serving | LifecyclePhase::Poisoned => {}
            }
            let line = self.status_line(phase);
            if line != last_status {
                self.manager.status(&line);
                last_status = line;
            }
            if let Some(timeout) = self.watchdog_timeout {
                self.check_watchdog(&mut feeder, timeout, phase);
            }
            let wait = if phase == LifecyclePhase::Starting { STARTING_INTERVAL } else { interval };
            if stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    fn status_line(&self, phase: LifecyclePhase) -> String {
        let buffered = self.status.ledger.balance().buffered();
        match phase {
            LifecyclePhase::Starting => "starting".to_owned(),
            LifecyclePhase::Serving => {
                let connections = self.status.connections.connections();
                format!("accepting events; {buffered} not stored yet; {connections} connections")
            }
            LifecyclePhase::Draining => draining_line(buffered),
            LifecyclePhase::Poisoned => "a thread has died".to_owned(),
        }
    }

    /// Feeds the watchdog if the acceptors, the writer and the journal thread have moved, then wakes
    /// those that may be idle, so that they have moved by the next check. A drain ends the
    /// acceptors, and has a timeout of its own.
    fn check_watchdog(&self, feeder: &mut WatchdogFeeder, timeout: Duration, phase: LifecyclePhase) {
        let now = self.status.clock.now();
        let heartbeats = self.status.lifecycle.heartbeats();
        let turns: Vec<u64> = heartbeats.iter().map(|(_, heartbeat)| heartbeat.turns()).collect();
        match feeder.watchdog.check(&turns) {
            Err(stuck) if phase == LifecyclePhase::Serving => {
                if !feeder.warned && now.since(feeder.fed_at) >= timeout / 2 {
                    feeder.warned = true;
                    let thread = heartbeats[stuck].0.as_str();
                    log::warn!(thread = thread; "the watchdog is not fed: the thread does not move");
                }
            }
            Ok(()) | Err(_) => {
                feeder.fed_at = now;
                feeder.warned = false;
                self.manager.feed_watchdog();
            }
        }
        self.acceptors.iter().for_each(AcceptorHandle::wake);
        self.status.buffer.wake_writer();
    }
}

struct WatchdogFeeder {
    watchdog: Watchdog,
    fed_at: Moment,
    /// The thread that does not move was named since the watchdog was fed last.
    warned: bool,
}

/// The status line of a drain.
pub(super) fn draining_line(buffered: u64) -> String {
    format!("draining; {buffered} events not stored yet")
}
