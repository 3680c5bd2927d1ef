//! Counts the steps of the loops that read a push, so that tests and fuzz targets can bound the work
//! per byte without a clock. Outside of tests it costs nothing.

#[cfg(any(test, feature = "fuzzing"))]
thread_local! {
    static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Steps allowed per byte of a body. A label of four bytes is compared with up to 63 others.
#[cfg(any(test, feature = "fuzzing"))]
pub const PER_BYTE_MAX: u64 = 16;

/// Counts `steps` of the current thread.
#[inline]
pub(super) fn add(steps: usize) {
    #[cfg(any(test, feature = "fuzzing"))]
    STEPS.set(STEPS.get() + steps as u64);
    #[cfg(not(any(test, feature = "fuzzing")))]
    let _: usize = steps;
}

/// The steps since the last call.
#[cfg(any(test, feature = "fuzzing"))]
pub fn take() -> u64 {
    STEPS.replace(0)
}
