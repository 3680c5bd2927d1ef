//! Waiting for a condition, never for a time.

use std::thread;
use std::time::Duration;

use aurore_events::clock::Clock;

/// Long enough for a busy machine: only a broken promise waits this long.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` holds, and names `what` it waited for when it never does.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(WAIT_MAX, what, condition);
}

#[track_caller]
pub(crate) fn until_within(most: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let clock = Clock::system();
    let start = clock.now();
    while !condition() {
        assert!(clock.now().since(start) < most, "waited {most:?} in vain until {what}");
        thread::sleep(POLL);
    }
}
