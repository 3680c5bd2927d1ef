//! What must go on after a failure or while the server stops: refills, retries and waiters.

use std::sync::atomic::AtomicUsize;
use std::task::Wake;

use super::*;
use crate::buffer::RefillOrigin;

/// Without it, spilled events would wait for the next start.
#[test]
fn range_that_could_not_be_read_is_read_again() {
    let mut harness = JournalHarness::new();
    let messages = spilling(&harness, 3);
    harness.tick_after(Duration::from_secs(5));
    let mut stored = harness.store();
    harness.disk.fail(Some(JournalOp::Read));
    assert_ne!(harness.refiller.refill(), Some(Duration::ZERO));
    harness.disk.fail(None);
    assert_eq!(harness.refiller.refill(), Some(Duration::ZERO));
    stored.extend(harness.store());
    assert_eq!(stored, messages);
}

/// Without it, a stop would leave every spilled event to the next start.
#[test]
fn closed_buffer_takes_spilled_events() {
    let mut harness = JournalHarness::new();
    let messages = spilling(&harness, 1);
    harness.tick_after(Duration::from_secs(5));
    harness.store();
    harness.buffer.close();
    let (bytes, rows) = encoded(&[messages.last().unwrap()]);
    let now = harness.clock.now();
    assert_eq!(harness.buffer.admit_refill(0, rows, &bytes, (1, RefillOrigin::Spill), now, |_| ()), Ok(()));
    assert!(!harness.buffer.is_empty());
}

/// The failed creation may have left a file, which a second one of that name could not replace.
#[test]
fn number_of_a_failed_creation_is_not_used_again() {
    let mut harness = JournalHarness::new();
    let _block = harness.append("one");
    harness.disk.fail(Some(JournalOp::Create));
    harness.tick();
    harness.disk.fail(None);
    harness.tick_after(Duration::from_secs(1));
    assert_eq!(harness.disk.list().unwrap(), [file_name(2)]);
}

/// A segment without uncommitted events needs no sync, but its waiter needs an answer.
#[test]
fn waiter_for_a_sync_is_answered_though_its_events_are_committed_before() {
    let mut harness = JournalHarness::new();
    let block = harness.append("one");
    harness.tick();
    let outcome = harness.on_durable(Durability::Synced);
    harness.journal.finalize(vec![block], None);
    harness.tick();
    assert_eq!(*outcome.lock().unwrap(), Some(true));
}

/// Appends a waiter for `level` whose thread is `waker`'s.
fn wait_with(harness: &JournalHarness, level: Durability, waker: &Waker) {
    let waker = waker.clone();
    harness.journal.on_durable(0, level, Box::new(move |_| Some(waker)));
}

#[derive(Debug, Default)]
struct CountingWake(AtomicUsize);

impl Wake for CountingWake {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A wake-up for each waiter would be a system call for each event.
#[test]
fn waiters_that_are_completed_together_wake_their_thread_once() {
    let mut harness = JournalHarness::new();
    let threads = [(); 2].map(|()| Arc::new(CountingWake::default()));
    let wakers = threads.clone().map(Waker::from);
    for (nth, level) in [Durability::Written, Durability::Synced].into_iter().enumerate() {
        let _block = harness.append("event");
        (0..10).for_each(|waiter| wait_with(&harness, level, &wakers[waiter % 2]));
        harness.tick();
        assert_eq!(threads.each_ref().map(|thread| thread.0.load(Ordering::Relaxed)), [nth + 1; 2]);
    }
}
