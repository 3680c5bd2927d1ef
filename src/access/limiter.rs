//! How often a client may ask: a token bucket for each client and limit, in one table that all acceptors share. A table
//! an acceptor would grant every client its rate as many times as there are cores.
//!
//! A bucket is one word: the moment at which it will be full again (the "generic cell rate algorithm"), so that taking
//! from it is one compare-and-swap and no acceptor ever waits for another. A bucket that is full says nothing, and its
//! place is free for the next client.
//!
//! The table is bounded. Buckets lie in rows of eight, a row found by a keyed hash. Where all eight of a row are in use
//! by others, the one that is nearest to full gives way: its client loses the memory of a few requests, and gets at
//! most one burst too many. The same is the worst of two acceptors that put a client into the table at once.
//! Knows neither HTTP nor what the limits are for.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::clock::Moment;

/// Buckets that one client's look-up goes through: two cache lines.
const WAYS: usize = 8;
/// 4,096 rows of eight are 32,768 buckets in 512 KiB: clients that asked within the last second.
pub const ROWS: usize = 4096;
const SECOND_NANOS: u64 = 1_000_000_000;
/// Others that may take from the same bucket at the same moment before one is let through uncounted.
const TRIES_MAX: usize = 64;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// By its address; of IPv6 by its network of 64 bits, since one host has all of it.
    Address(IpAddr),
    /// By its token, wherever it is.
    Token(u64),
}

impl Client {
    pub fn at(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Requests per second, and as many at once; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u32);

impl Rate {
    /// None for 0, which is no limit.
    pub fn per_second(count: u32) -> Option<Self> {
        (count > 0).then_some(Self(count))
    }

    pub fn count(self) -> u32 {
        self.0
    }

    fn interval_nanos(self) -> u64 {
        SECOND_NANOS / u64::from(self.0)
    }
}

/// What a bucket said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub allowed: bool,
    /// Requests that would be allowed right now.
    pub remaining: u32,
    /// Until the bucket is full again; when nothing was taken, until there is something to take.
    pub wait_nanos: u64,
}

impl Taken {
    /// In whole seconds, rounded up.
    pub fn wait_seconds(self) -> u64 {
        self.wait_nanos.div_ceil(SECOND_NANOS)
    }
}

/// Invariant: `full_at` belongs to `key`, but for the moment in which another takes its place.
#[derive(Debug, Default)]
struct Bucket {
    /// A hash of client and limit; 0 where there never was one.
    key: AtomicU64,
    /// In nanoseconds of the clock.
    full_at: AtomicU64,
}

#[derive(Debug)]
pub struct Limiter {
    rows: Box<[CachePadded<[Bucket; WAYS]>]>,
    hasher: RandomState,
}

impl Limiter {
    /// `rows` must be a power of two.
    pub fn new(rows: usize) -> Self {
        assert!(rows.is_power_of_two(), "BUG: a row is found by the bits of a hash");
        let rows = (0..rows).map(|_| CachePadded::default()).collect();
        // Keyed by chance, so that nobody can choose addresses that share a row.
        Self { rows, hasher: RandomState::new() }
    }

    /// Takes one from the bucket that `client` has for `limit`.
    pub fn take(&self, limit: u8, rate: Rate, client: Client, now: Moment) -> Taken {
        let key = self.hasher.hash_one((limit, client)) | 1;
        let row = usize::try_from(key >> 32).expect("32 bits") & (self.rows.len() - 1);
        let row: &[Bucket; WAYS] = &self.rows[row];
        let bucket = row
            .iter()
            .find(|bucket| bucket.key.load(Ordering::Acquire) == key)
            .unwrap_or_else(|| Self::settle(row, key, now.nanos()));
        Self::take_from(bucket, rate, now.nanos())
    }

    /// Gives `key` the place of the bucket that says least: one that is full, or nearest to it.
    fn settle(row: &[Bucket; WAYS], key: u64, now: u64) -> &Bucket {
        let place =
            row.iter().min_by_key(|bucket| bucket.full_at.load(Ordering::Relaxed)).expect("a row has places");
        place.full_at.store(now, Ordering::Relaxed);
        place.key.store(key, Ordering::Release);
        place
    }

    fn take_from(bucket: &Bucket, rate: Rate, now: u64) -> Taken {
        let interval = rate.interval_nanos();
        let depth = interval * u64::from(rate.0);
        let mut full_at = bucket.full_at.load(Ordering::Relaxed);
        for _ in 0..TRIES_MAX {
            let then = full_at.max(now) + interval;
            let wait_nanos = then - now;
            if wait_nanos > depth {
                return Taken { allowed: false, remaining: 0, wait_nanos: wait_nanos - depth };
            }
            match bucket.full_at.compare_exchange_weak(full_at, then, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let remaining = u32::try_from((depth - wait_nanos) / interval).unwrap_or(u32::MAX);
                    return Taken { allowed: true, remaining, wait_nanos };
                }
                Err(changed) => full_at = changed,
            }
        }
        Taken { allowed: true, remaining: 0, wait_nanos: SECOND_NANOS }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn client(number: u32) -> Client {
        Client::at(IpAddr::from(number.to_be_bytes()))
    }

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(5000 + millis))
    }

    fn rate(count: u32) -> Rate {
        Rate::per_second(count).unwrap()
    }

    #[test]
    fn a_client_may_ask_as_often_as_its_rate_says_and_all_at_once() {
        let limiter = Limiter::new(16);
        for left in (0..10).rev() {
            let taken = limiter.take(0, rate(10), client(1), at(0));
            assert_eq!((taken.allowed, taken.remaining), (true, left));
            assert_eq!(taken.wait_seconds(), 1);
        }
        let refused = limiter.take(0, rate(10), client(1), at(0));
        assert_eq!(refused, Taken { allowed: false, remaining: 0, wait_nanos: 100_000_000 });
        assert_eq!(refused.wait_seconds(), 1);
        // A refusal costs nothing: the next is there when the last said so.
        assert!(!limiter.take(0, rate(10), client(1), at(99)).allowed);
        assert!(limiter.take(0, rate(10), client(1), at(100)).allowed);
        assert!(!limiter.take(0, rate(10), client(1), at(100)).allowed);
        // Others, and other limits, have their own.
        assert!(limiter.take(0, rate(10), client(2), at(100)).allowed);
        assert!(limiter.take(1, rate(10), client(1), at(100)).allowed);
        // What is not used is not saved up beyond a second.
        for _ in 0..10 {
            assert!(limiter.take(0, rate(10), client(1), at(60_000)).allowed);
        }
        assert!(!limiter.take(0, rate(10), client(1), at(60_000)).allowed);
    }

    #[test]
    fn rates_are_exact_at_their_bounds() {
        #[track_caller]
        fn check(count: u32) {
            let limiter = Limiter::new(1);
            for _ in 0..count {
                assert!(limiter.take(0, rate(count), client(1), at(0)).allowed, "{count}");
            }
            assert!(!limiter.take(0, rate(count), client(1), at(0)).allowed, "{count}");
            assert!(limiter.take(0, rate(count), client(1), at(1000)).allowed, "{count}");
        }
        assert_eq!(Rate::per_second(0), None);
        [1, 3, 7, 50, 100, 1_000_000].into_iter().for_each(check);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client_and_mapped_addresses_are_ipv4() {
        let at = |address: &str| Client::at(address.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:0:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:1.2.3.4"), at("1.2.3.4"));
        assert_ne!(at("1.2.3.4"), at("1.2.3.5"));
    }

    #[test]
    fn a_full_table_lets_the_nearest_to_full_go_and_never_a_busy_client() {
        let limiter = Limiter::new(1);
        while limiter.take(0, rate(100), client(0), at(0)).allowed {}
        // One after the other they push each other out, and not the one that has used up its share.
        for other in 1..10_000 {
            assert!(limiter.take(0, rate(100), client(other), at(0)).allowed);
        }
        assert!(!limiter.take(0, rate(100), client(0), at(0)).allowed);
        assert!(limiter.take(0, rate(100), client(0), at(10)).allowed);
    }

    #[test]
    fn several_acceptors_grant_no_more_than_the_rate() {
        let limiter = Arc::new(Limiter::new(16));
        limiter.take(0, rate(1000), client(1), at(0));
        let allowed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let limiter = Arc::clone(&limiter);
                    scope.spawn(move || {
                        (0..1000).filter(|_| limiter.take(0, rate(1000), client(1), at(0)).allowed).count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(allowed, 999);
    }
}
