//! Phases, named threads, what ends the process (a signal to stop, or a thread that died), and what is read again
//! while it runs.
//!
//! A thread that panics, or returns while the server still needs it, is never restarted: the process says so and
//! ends, since what it held can no longer be vouched for.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Receiver, Sender, unbounded};

/// How far the process is in its life. It only goes on, never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Not ready: the database has not been tried yet.
    Starting,
    Serving,
    /// Intake has stopped, the writer empties the buffer.
    Draining,
    /// A thread died: nothing can be promised any more.
    Poisoned,
}

const PHASES: [Phase; 4] = [Phase::Starting, Phase::Serving, Phase::Draining, Phase::Poisoned];

/// What the main thread waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Someone asked the server to stop: drain first. Asked again, it ends at once.
    Stop,
    ThreadDied {
        name: String,
    },
}

/// Shared by all that take part in the process's life.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: Arc<AtomicU8>,
    notices: Sender<Notice>,
    reloads: Reloads,
}

/// What is run on SIGHUP, each with the name that the log gives it.
#[derive(Clone, Default)]
struct Reloads(Arc<Mutex<Vec<(&'static str, Reload)>>>);

type Reload = Box<dyn FnMut() + Send>;

impl fmt::Debug for Reloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reloads")
    }
}

impl Lifecycle {
    pub fn new() -> (Self, Receiver<Notice>) {
        let (notices, receiver) = unbounded();
        let phase = Arc::new(AtomicU8::new(Phase::Starting as u8));
        (Self { phase, notices, reloads: Reloads::default() }, receiver)
    }

    #[inline]
    pub fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Ordering::Acquire))]
    }

    /// Goes on to `phase`, unless the process is already past it.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Asks the server to stop.
    pub fn stop(&self) {
        self.notify(Notice::Stop);
    }

    /// Subscribes to SIGHUP: `again` reads `what` anew. It runs on the thread that takes signals, one after the
    /// other, and may read files; what it cannot use it leaves as it was, and says so in the log.
    pub fn on_reload(&self, what: &'static str, again: impl FnMut() + Send + 'static) {
        self.reloads.0.lock().unwrap_or_else(PoisonError::into_inner).push((what, Box::new(again)));
    }

    /// Runs what has subscribed, in the order in which it did.
    pub fn reload(&self) {
        let mut reloads = self.reloads.0.lock().unwrap_or_else(PoisonError::into_inner);
        let what: Vec<&str> = reloads.iter().map(|(what, _)| *what).collect();
        log::info!(
            "SIGHUP: reading again: {}",
            if what.is_empty() { "nothing".into() } else { what.join(", ") }
        );
        for (_, again) in reloads.iter_mut() {
            again();
        }
    }

    /// Starts a thread whose end before the drain is the end of the process. Names show up in `top -H`, which cuts
    /// them at 15 bytes.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        self.start(name, false, body)
    }

    /// Starts a thread that may end when its work is done, and whose panic is the end of the process.
    pub fn spawn_task(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        self.start(name, true, body)
    }

    fn start(
        &self,
        name: &str,
        may_end: bool,
        body: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let guard = DeathNotice { lifecycle: self.clone(), name: name.to_owned(), may_end };
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _guard = guard;
            body();
        })
    }

    fn notify(&self, notice: Notice) {
        if let Err(lost) = self.notices.send(notice) {
            log::debug!("nobody is left to be told of {:?}", lost.0);
        }
    }
}

/// Dropped when its thread ends, however it ends.
struct DeathNotice {
    lifecycle: Lifecycle,
    name: String,
    may_end: bool,
}

impl Drop for DeathNotice {
    fn drop(&mut self) {
        let early = !self.may_end && self.lifecycle.phase() < Phase::Draining;
        if std::thread::panicking() || early {
            self.lifecycle.enter(Phase::Poisoned);
            self.lifecycle.notify(Notice::ThreadDied { name: std::mem::take(&mut self.name) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_thread_that_panics_poisons_the_process_even_while_it_drains() {
        let (lifecycle, notices) = Lifecycle::new();
        lifecycle.enter(Phase::Draining);
        let thread = lifecycle.spawn("doomed", || panic!("on purpose")).unwrap();
        assert_eq!(notices.recv_timeout(SOON), Ok(Notice::ThreadDied { name: "doomed".into() }));
        assert!(thread.join().is_err());
        assert_eq!(lifecycle.phase(), Phase::Poisoned);
    }

    #[test]
    fn a_thread_that_leaves_early_is_noticed_and_one_that_leaves_in_time_is_not() {
        let (lifecycle, notices) = Lifecycle::new();
        lifecycle.spawn("early", || ()).unwrap().join().unwrap();
        assert_eq!(notices.recv_timeout(SOON), Ok(Notice::ThreadDied { name: "early".into() }));
        let (lifecycle, notices) = Lifecycle::new();
        lifecycle.enter(Phase::Draining);
        lifecycle.spawn("in time", || ()).unwrap().join().unwrap();
        assert!(notices.try_recv().is_err());
    }

    #[test]
    fn a_reload_runs_what_has_subscribed_in_its_order() {
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
    fn the_phase_never_goes_back() {
        let (lifecycle, _notices) = Lifecycle::new();
        lifecycle.enter(Phase::Draining);
        lifecycle.enter(Phase::Serving);
        assert_eq!(lifecycle.phase(), Phase::Draining);
    }
}
