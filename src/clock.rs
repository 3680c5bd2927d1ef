//! The only reader of time and chance.
//!
//! Everything that waits, ages or expires is told the time by its caller, who took it here. A manual
//! clock stands in for the system's in tests, and its generator is seeded, so that a run repeats.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use crossbeam::sync::Parker;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::event::Timestamp;

/// A point on the monotonic clock, in nanoseconds since the clock was made. It never goes back and says
/// nothing about the time of day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    pub const ZERO: Self = Self(0);

    /// The time from `earlier` to here; zero when `earlier` is later.
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

/// Reads the monotonic clock, the time of day, and chance.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { origin: Instant },
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    moment_nanos: AtomicU64,
    wall_micros: AtomicI64,
    seed: AtomicU64,
    idle: OnceLock<Idle>,
}

/// What a test does while somebody would sleep.
struct Idle(Box<dyn Fn(Duration) + Send + Sync>);

impl fmt::Debug for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Idle")
    }
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the rule sends others to")]
    pub fn system() -> Self {
        Self(Source::System { origin: Instant::now() })
    }

    /// A clock that stands still until [`Clock::advance`], with the time of day at `wall`.
    pub fn manual(wall: Timestamp, seed: u64) -> Self {
        Self(Source::Manual(Arc::new(Manual {
            moment_nanos: AtomicU64::new(0),
            wall_micros: AtomicI64::new(wall.micros()),
            seed: AtomicU64::new(seed),
            idle: OnceLock::new(),
        })))
    }

    /// Has `idle` called with the wait wherever somebody would sleep by this manual clock: a test that runs everything
    /// on one thread then does what others would, and moves the clock.
    ///
    /// # Panics
    /// On a system clock, and when it was called before.
    pub fn on_idle(&self, idle: impl Fn(Duration) + Send + Sync + 'static) {
        let Source::Manual(manual) = &self.0 else {
            panic!("BUG: only by a manual clock nobody sleeps");
        };
        manual.idle.set(Idle(Box::new(idle))).expect("BUG: what to do instead of sleeping is said once");
    }

    /// Sleeps until the parker is woken or `wait` is over.
    pub fn park(&self, parker: &Parker, wait: Duration) {
        match &self.0 {
            Source::Manual(manual) if let Some(idle) = manual.idle.get() => (idle.0)(wait),
            Source::System { .. } | Source::Manual(_) => parker.park_timeout(wait),
        }
    }

    #[inline]
    pub fn now(&self) -> Moment {
        match &self.0 {
            // 2^64 ns are 584 years of uptime.
            #[expect(clippy::cast_possible_truncation, reason = "584 years of uptime")]
            Source::System { origin } => Moment(origin.elapsed().as_nanos() as u64),
            Source::Manual(manual) => Moment(manual.moment_nanos.load(Ordering::Acquire)),
        }
    }

    /// The time of day, UTC. It may jump both ways; nothing is timed by it.
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "this is the clock that the rule sends others to")]
    pub fn wall(&self) -> Timestamp {
        match &self.0 {
            Source::System { .. } => {
                let micros = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                    Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
                    Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |us| -us),
                };
                Timestamp::from_micros(micros)
            }
            Source::Manual(manual) => Timestamp::from_micros(manual.wall_micros.load(Ordering::Acquire)),
        }
    }

    /// A generator of its own for one thread: cryptographic (`ChaCha12`) and seeded by the operating system,
    /// or seeded by the test.
    pub fn rng(&self) -> StdRng {
        match &self.0 {
            Source::System { .. } => rand::make_rng(),
            Source::Manual(manual) => StdRng::seed_from_u64(manual.seed.fetch_add(1, Ordering::AcqRel)),
        }
    }

    /// Moves a manual clock, the time of day with it.
    ///
    /// # Panics
    /// On a system clock.
    pub fn advance(&self, by: Duration) {
        let Source::Manual(manual) = &self.0 else {
            panic!("BUG: only a manual clock can be moved");
        };
        manual.moment_nanos.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::AcqRel);
        manual.wall_micros.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::AcqRel);
    }

    /// Sets the time of day of a manual clock and leaves the monotonic one alone, as a jump does.
    ///
    /// # Panics
    /// On a system clock.
    pub fn set_wall(&self, wall: Timestamp) {
        let Source::Manual(manual) = &self.0 else {
            panic!("BUG: only a manual clock can be set");
        };
        manual.wall_micros.store(wall.micros(), Ordering::Release);
    }
}
