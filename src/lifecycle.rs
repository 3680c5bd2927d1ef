//! The process's lifecycle: its phase, its named threads, the events that end it (a stop signal or
//! the death of a thread), and callbacks that reload configuration on SIGHUP.
//!
//! A thread that panics, or returns before the drain, is never restarted: the process logs the
//! death and exits, since the thread's state may be inconsistent.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};

/// The phase of the process. It never goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LifecyclePhase {
    /// Not ready: the first attempt to connect to the database is not finished.
    Starting,
    Serving,
    /// Intake has stopped and the writer drains the buffer.
    Draining,
    /// A thread has died: no guarantee holds any more.
    Poisoned,
}

const PHASES: [LifecyclePhase; 4] =
    [LifecyclePhase::Starting, LifecyclePhase::Serving, LifecyclePhase::Draining, LifecyclePhase::Poisoned];

/// An event that the main thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifecycleEvent {
    /// A request to stop: the first one starts the drain, a second one ends the process at once.
    Stop,
    ThreadDied {
        name: String,
    },
}

/// A shared handle to the process's lifecycle.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Arc<AtomicU8>,
    events: Sender<LifecycleEvent>,
    reloads: Reloads,
    heartbeats: Arc<Mutex<Vec<(String, Heartbeat)>>>,
}

/// Counts the turns of a thread's loop, so that another thread can see that it moves.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// Records a turn. Only the thread itself calls it.
    #[inline]
    pub fn beat(&self) {
        self.0.store(self.turns().wrapping_add(1), Ordering::Relaxed);
    }

    pub fn turns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The callbacks to run on SIGHUP, each with its name in the log.
#[derive(Clone, Default)]
struct Reloads(Arc<Mutex<Vec<(&'static str, Reload)>>>);

type Reload = Box<dyn FnMut() + Send>;

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloads")
    }
}

impl Lifecycle {
    pub fn new() -> (Self, Receiver<LifecycleEvent>) {
        let (events, receiver) = unbounded();
        let phase = Arc::new(AtomicU8::new(LifecyclePhase::Starting as u8));
        (Self { phase, events, reloads: Reloads::default(), heartbeats: Arc::default() }, receiver)
    }

    #[inline]
    pub fn phase(&self) -> LifecyclePhase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Advances to `phase`, unless the process is already in it or past it.
    pub fn advance_to(&self, phase: LifecyclePhase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Returns the heartbeat of the thread `name`, which the watchdog checks from now on.
    pub fn heartbeat(&self, name: &str) -> Heartbeat {
        let heartbeat = Heartbeat::default();
        let mut heartbeats = self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner);
        heartbeats.push((name.to_owned(), heartbeat.clone()));
        heartbeat
    }

    /// The heartbeats in the order of their registration.
    pub fn heartbeats(&self) -> Vec<(String, Heartbeat)> {
        self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests a stop, as SIGTERM does.
    pub fn request_stop(&self) {
        self.send(LifecycleEvent::Stop);
    }

    /// Registers a callback for SIGHUP that reloads the configuration called `name`. It runs on the
    /// signal thread, after the callbacks registered before it, and may read files. If the new
    /// configuration is not valid, the callback must keep the current one and log the error.
    pub fn on_reload(&self, name: &'static str, reload: impl FnMut() + Send + 'static) {
        self.reloads.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, Box::new(reload)));
    }

    /// Runs all callbacks in the order of registration.
    pub fn reload(&self) {
        let mut reloads = self.reloads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = reloads.iter().map(|(name, _)| *name).collect();
        log::info!(
            "SIGHUP: reloading {}",
            if names.is_empty() { "nothing".into() } else { names.join(", ") }
        );
        for (_, reload) in reloads.iter_mut() {
            reload();
        }
    }

    /// Spawns a thread whose exit before the drain ends the process. `top -H` shows the first 15
    /// bytes of its name.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        self.spawn_guarded(name, false, body)
    }

    /// Spawns a thread that may exit when its work is done. Its panic ends the process.
    pub fn spawn_task(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        self.spawn_guarded(name, true, body)
    }

    fn spawn_guarded(
        &self,
        name: &str,
        may_end: bool,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let guard = ThreadExitGuard { lifecycle: self.clone(), name: name.to_owned(), may_end };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = guard;
            body();
        })
    }

    fn send(&self, event: LifecycleEvent) {
        if let Err(unsent) = self.events.send(event) {
            log::debug!("lifecycle event {:?} dropped: its receiver is gone", unsent.0);
        }
    }
}

/// Reports the death of its thread when it is dropped, by return or by panic.
struct ThreadExitGuard {
    lifecycle: Lifecycle,
    name: String,
    may_end: bool,
}

impl Drop for ThreadExitGuard {
    fn drop(&mut self) {
        let early = !self.may_end && self.lifecycle.phase() < LifecyclePhase::Draining;
        if std::thread::panicking() || early {
            self.lifecycle.advance_to(LifecyclePhase::Poisoned);
            self.lifecycle.send(LifecycleEvent::ThreadDied { name: std::mem::take(&mut self.name) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn thread_panic_poisons_the_process_even_while_draining() {
        let (lifecycle, events) = Lifecycle::new();
        lifecycle.advance_to(LifecyclePhase::Draining);
        let thread = lifecycle.spawn("doomed", || panic!("on purpose")).unwrap();
        assert_eq!(events.recv_timeout(SOON), Ok(LifecycleEvent::ThreadDied { name: "doomed".into() }));
        assert!(thread.join().is_err());
        assert_eq!(lifecycle.phase(), LifecyclePhase::Poisoned);
    }

    #[test]
    fn thread_exit_is_reported_before_the_drain_and_not_during_it() {
        let (lifecycle, events) = Lifecycle::new();
        lifecycle.spawn("early", || ()).unwrap().join().unwrap();
        assert_eq!(events.recv_timeout(SOON), Ok(LifecycleEvent::ThreadDied { name: "early".into() }));
        let (lifecycle, events) = Lifecycle::new();
        lifecycle.advance_to(LifecyclePhase::Draining);
        lifecycle.spawn("in time", || ()).unwrap().join().unwrap();
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn reload_runs_callbacks_in_registration_order() {
        let (lifecycle, _notices) = Lifecycle::new();
        lifecycle.reload();
        let (sender, receiver) = unbounded();
        for nth in 0..2 {
            let sender = sender.clone();
            lifecycle.on_reload("a number", move || sender.send(nth).unwrap());
        }
        lifecycle.clone().reload();
        lifecycle.reload();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 0, 1]);
    }

    #[test]
    fn phase_never_goes_back() {
        let (lifecycle, _notices) = Lifecycle::new();
        lifecycle.advance_to(LifecyclePhase::Draining);
        lifecycle.advance_to(LifecyclePhase::Serving);
        assert_eq!(lifecycle.phase(), LifecyclePhase::Draining);
    }
}
