//! Primitives of the models.

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex, MutexGuard};

/// Preemptions per execution. Bounds the number of executions; a race of three threads needs fewer.
const PREEMPTIONS_MAX: usize = 3;

/// Runs `body` in every interleaving.
pub(crate) fn explore(body: impl Fn() + Send + Sync + 'static) {
    explore_with(PREEMPTIONS_MAX, body);
}

/// Runs `body` in every interleaving with at most so many preemptions.
pub(crate) fn explore_with(preemptions_max: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions_max);
    builder.check(body);
}

/// A parker, as crossbeam's or eventfd(2): a wake-up is kept for the next call of `park`. It also
/// counts the threads that may still wake it, to detect a sleep without end.
#[derive(Debug)]
pub(crate) struct Parker {
    state: Mutex<ParkerState>,
    changed: Condvar,
}

#[derive(Debug)]
struct ParkerState {
    token: bool,
    wakers: usize,
}

/// The thread sleeps, and no other thread is left to wake it.
#[derive(Debug)]
pub(crate) struct Stuck;

impl Parker {
    pub(crate) fn new(wakers: usize) -> Self {
        Self { state: Mutex::new(ParkerState { token: false, wakers }), changed: Condvar::new() }
    }

    pub(crate) fn park(&self) -> Result<(), Stuck> {
        let mut state = self.lock();
        while !std::mem::take(&mut state.token) {
            if state.wakers == 0 {
                return Err(Stuck);
            }
            state = self.changed.wait(state).expect("no thread panics");
        }
        Ok(())
    }

    pub(crate) fn unpark(&self) {
        self.lock().token = true;
        self.changed.notify_one();
    }

    /// Adds a thread that will wake the parker.
    pub(crate) fn add_waker(&self) {
        self.lock().wakers += 1;
    }

    /// The last call of a thread that may wake the parker.
    pub(crate) fn waker_ends(&self) {
        self.lock().wakers -= 1;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, ParkerState> {
        self.state.lock().expect("no thread panics")
    }
}

/// A queue of one producer, reduced to its slots. It orders a push before the pop that finds it, and
/// nothing else: a pop may miss an item unless another synchronization makes the push visible.
#[derive(Debug)]
pub(crate) struct Slots(Vec<AtomicBool>);

impl Slots {
    pub(crate) fn new(capacity: usize) -> Self {
        Self((0..capacity).map(|_| AtomicBool::new(false)).collect())
    }

    pub(crate) fn push(&self, nth: usize) {
        self.0[nth].store(true, Ordering::Release);
    }

    /// Pops the next item. `next` is the position of the consumer.
    pub(crate) fn pop(&self, next: &mut usize) -> bool {
        let found = self.0.get(*next).is_some_and(|slot| slot.load(Ordering::Acquire));
        *next += usize::from(found);
        found
    }
}
