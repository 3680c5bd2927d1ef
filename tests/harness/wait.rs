//! Waits for a condition, never for a fixed time.

use std::thread;
use std::time::Duration;

use aurore_events::clock::Clock;

/// Long enough for a busy machine: only a failing test waits this long.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds; panics with the text `what` after the timeout.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(WAIT_MAX, what, condition);
}

#[track_caller]
pub(crate) fn until_within(timeout: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let clock = Clock::system();
    let start = clock.now();
    while !condition() {
        assert!(clock.now().since(start) < timeout, "timeout of {timeout:?} waiting until {what}");
        thread::sleep(POLL);
    }
}
