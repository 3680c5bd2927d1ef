//! The mailbox of an acceptor: completions from other threads.

use loom::sync::Arc;
// The atomics of `wake_flag`.
use loom::sync::atomic;
use loom::thread;

use super::parker::{Parker, Slots, Stuck, explore};
use wake_flag::WakeFlag;

#[path = "../../src/http/wake_flag.rs"]
mod wake_flag;

struct Shared {
    flag: WakeFlag,
    mailboxes: Vec<Slots>,
    /// The waker of the event loop: one wake-up is kept, as in eventfd(2).
    waker: Parker,
}

/// Asserts that the acceptor gets all completions. `looks_again`: whether it reads its queue after
/// `prepare_park`.
fn check(senders: usize, messages: usize, looks_again: bool) {
    explore(move || {
        let shared = Arc::new(Shared {
            flag: WakeFlag::new(),
            mailboxes: (0..senders).map(|_| Slots::new(messages)).collect(),
            waker: Parker::new(senders),
        });
        for sender in 0..senders {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for nth in 0..messages {
                    shared.mailboxes[sender].push(nth);
                    if shared.flag.must_wake() {
                        shared.waker.unpark();
                    }
                }
                shared.waker.waker_ends();
            });
        }
        shared.run(senders * messages, looks_again);
    });
}

impl Shared {
    /// Like `Acceptor::turn`.
    fn run(&self, mut left: usize, looks_again: bool) {
        let mut next = vec![0; self.mailboxes.len()];
        let deliver = |next: &mut Vec<usize>| {
            let mut found = 0;
            for (mailbox, next) in self.mailboxes.iter().zip(next) {
                while mailbox.pop(next) {
                    found += 1;
                }
            }
            found
        };
        loop {
            left -= deliver(&mut next);
            if left == 0 {
                return;
            }
            self.flag.prepare_park();
            let found = if looks_again { deliver(&mut next) } else { 0 };
            left -= found;
            if found == 0 {
                self.waker
                    .park()
                    .unwrap_or_else(|Stuck| panic!("the acceptor sleeps, {left} completions wait"));
            }
            self.flag.mark_awake();
        }
    }
}

#[test]
fn each_completion_reaches_the_acceptor() {
    check(2, 1, true);
    check(1, 3, true);
}

#[test]
#[should_panic(expected = "the acceptor sleeps")]
fn the_model_finds_an_acceptor_that_does_not_look_again() {
    check(1, 1, false);
}
