//! Time and randomness: the only module that reads the system's clocks and seeds random generators.
//!
//! Other modules take the time from a [`Clock`] or as an argument. Tests use a manual clock with
//! seeded generators, so that a run is reproducible.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::sync::Parker;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::event::Timestamp;

/// A point on the monotonic clock, in nanoseconds since the [`Clock`] was created. It has no
/// relation to the time of day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    pub const ZERO: Self = Self(0);

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    #[must_use]
    pub fn plus(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    pub fn nanos(self) -> u64 {
        self.0
    }

    pub fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }
}

/// A source of monotonic time, the time of day, and random generators.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System { origin: Instant },
    Manual(Arc<ManualClock>),
}

#[derive(Debug)]
struct ManualClock {
    moment_nanos: AtomicU64,
    wall_micros: AtomicI64,
    seed: AtomicU64,
    idle: OnceLock<IdleCallback>,
}

/// The microseconds of `CLOCK_MONOTONIC`, which other processes of the machine read too.
pub fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default() / 1000
}

/// A callback that replaces sleeping on a manual clock.
struct IdleCallback(Box<dyn Fn(Duration) + Send + Sync>);

impl fmt::Debug for IdleCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idle")
    }
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the rule sends others to")]
    pub fn system() -> Self {
        Self(ClockSource::System { origin: Instant::now() })
    }

    /// A clock that advances only by [`Clock::advance`] and [`Clock::set_wall`], with the time of
    /// day at `wall`.
    pub fn manual(wall: Timestamp, seed: u64) -> Self {
        Self(ClockSource::Manual(Arc::new(ManualClock {
            moment_nanos: AtomicU64::new(0),
            wall_micros: AtomicI64::new(wall.micros()),
            seed: AtomicU64::new(seed),
            idle: OnceLock::new(),
        })))
    }

    /// Sets the callback that [`Clock::park`] calls with the wait instead of sleeping. A test that
    /// runs everything on one thread uses it to do the work of other threads and to advance the
    /// clock.
    ///
    /// # Panics
    /// On a system clock, and if a callback is already set.
    pub fn on_idle(&self, idle: impl Fn(Duration) + Send + Sync + 'static) {
        let ClockSource::Manual(manual) = &self.0 else {
            panic!("BUG: only a manual clock has an idle callback");
        };
        manual.idle.set(IdleCallback(Box::new(idle))).expect("BUG: the idle callback is already set");
    }

    /// Blocks until the parker is unparked or `wait` has passed.
    pub fn park(&self, parker: &Parker, wait: Duration) {
        match &self.0 {
            ClockSource::Manual(manual) if let Some(idle) = manual.idle.get() => (idle.0)(wait),
            ClockSource::System { .. } | ClockSource::Manual(_) => parker.park_timeout(wait),
        }
    }

    #[inline]
    pub fn now(&self) -> Moment {
        match &self.0 {
            // 2^64 ns are 584 years of uptime.
            #[expect(clippy::cast_possible_truncation, reason = "584 years of uptime")]
            ClockSource::System { origin } => Moment(origin.elapsed().as_nanos() as u64),
            ClockSource::Manual(manual) => Moment(manual.moment_nanos.load(Ordering::Acquire)),
        }
    }

    /// The time of day, UTC. It may jump in both directions; durations must not be measured with
    /// it.
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the rule sends others to")]
    pub fn wall(&self) -> Timestamp {
        match &self.0 {
            ClockSource::System { .. } => {
                let micros = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                    Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                    Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
                };
                Timestamp::from_micros(micros)
            }
            ClockSource::Manual(manual) => Timestamp::from_micros(manual.wall_micros.load(Ordering::Acquire)),
        }
    }

    /// A new random generator (`ChaCha12`, cryptographic), seeded by the operating system or, on a
    /// manual clock, from the test's seed.
    pub fn rng(&self) -> StdRng {
        match &self.0 {
            ClockSource::System { .. } => rand::make_rng(),
            ClockSource::Manual(manual) => StdRng::seed_from_u64(manual.seed.fetch_add(1, Ordering::AcqRel)),
        }
    }

    /// Advances a manual clock, both the monotonic time and the time of day.
    ///
    /// # Panics
    /// On a system clock.
    pub fn advance(&self, by: Duration) {
        let ClockSource::Manual(manual) = &self.0 else {
            panic!("BUG: only a manual clock can be advanced");
        };
        manual.moment_nanos.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
        manual.wall_micros.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    /// Sets the time of day of a manual clock without changing the monotonic time, as a clock step
    /// does.
    ///
    /// # Panics
    /// On a system clock.
    pub fn set_wall(&self, wall: Timestamp) {
        let ClockSource::Manual(manual) = &self.0 else {
            panic!("BUG: only a manual clock can be set");
        };
        manual.wall_micros.store(wall.micros(), Ordering::Release);
    }
}
