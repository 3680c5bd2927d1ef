//! The rate limiter: a token bucket for each client and limit, in one table shared by all
//! acceptors. With a table per acceptor, a client would get its rate once per core.
//!
//! A bucket is one atomic word, the time at which it will be full again (the generic cell rate
//! algorithm, GCRA). Taking a token is one compare-and-swap and never blocks. A full bucket carries
//! no information, so its slot can be reused.
//!
//! The table is bounded and set-associative: a keyed hash selects a row of eight buckets. When a
//! row has no bucket of the client, the bucket nearest to full is evicted; its client may then
//! exceed its rate by at most one burst. The same bound holds when two acceptors insert a client
//! concurrently. The limiter must not depend on HTTP.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::clock::Moment;

/// Buckets per row: two cache lines.
const WAYS: usize = 8;
/// 4,096 rows of eight are 32,768 buckets in 512 KiB. Only clients of the last second need one.
pub const ROWS: usize = 4096;
const SECOND_NANOS: u64 = 1_000_000_000;
/// Failed compare-and-swaps after which a request is allowed uncounted.
const CAS_ATTEMPTS_MAX: usize = 64;

/// The identity by which a client is rate-limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// The IPv4 address, or the IPv6 /64 network, since one host usually has a whole /64.
    Address(IpAddr),
    /// A valid token, at any address; see
    /// [`Token::identity`](super::tokens::Token::identity).
    Token(u64),
}

impl ClientKey {
    pub fn from_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// Requests per second, which is also the burst size; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(u32);

impl Rate {
    /// None for 0, which means unlimited.
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

/// The result of taking a token from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateDecision {
    pub allowed: bool,
    /// Requests that would be allowed now.
    pub remaining: u32,
    /// Time until the bucket is full again; if the request is not allowed, until one is.
    pub wait_nanos: u64,
}

impl RateDecision {
    /// `wait_nanos` in seconds, rounded up.
    pub fn wait_seconds(self) -> u64 {
        self.wait_nanos.div_ceil(SECOND_NANOS)
    }
}

/// Invariant: `full_at` belongs to `key`, except while [`Limiter::claim_bucket`] replaces the two.
#[derive(Debug, Default)]
struct Bucket {
    /// A hash of client and limit; 0 if the bucket was never used.
    key: AtomicU64,
    /// Monotonic time in nanoseconds.
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
        assert!(rows.is_power_of_two(), "BUG: the number of rows must be a power of two");
        let rows = (0..rows).map(|_| CachePadded::default()).collect();
        // The hash has a random key, so that an attacker cannot choose addresses that share a row.
        Self { rows, hasher: RandomState::new() }
    }

    /// Takes a token from the bucket of `client` for `limit`.
    pub fn take(&self, limit: u8, rate: Rate, client: ClientKey, now: Moment) -> RateDecision {
        let key = self.hasher.hash_one((limit, client)) | 1;
        let row = usize::try_from(key >> 32).expect("32 bits") & (self.rows.len() - 1);
        let row: &[Bucket; WAYS] = &self.rows[row];
        let bucket = row
            .iter()
            .find(|bucket| bucket.key.load(Ordering::Acquire) == key)
            .unwrap_or_else(|| Self::claim_bucket(row, key, now.nanos()));
        Self::take_from_bucket(bucket, rate, now.nanos())
    }

    /// Evicts the bucket that is full or nearest to full, and assigns it to `key`.
    fn claim_bucket(row: &[Bucket; WAYS], key: u64, now: u64) -> &Bucket {
        let place =
            row.iter().min_by_key(|bucket| bucket.full_at.load(Ordering::Relaxed)).expect("a row has places");
        place.full_at.store(now, Ordering::Relaxed);
        place.key.store(key, Ordering::Release);
        place
    }

    fn take_from_bucket(bucket: &Bucket, rate: Rate, now: u64) -> RateDecision {
        let interval = rate.interval_nanos();
        let depth = interval * u64::from(rate.0);
        let mut full_at = bucket.full_at.load(Ordering::Relaxed);
        for _ in 0..CAS_ATTEMPTS_MAX {
            let then = full_at.max(now) + interval;
            let wait_nanos = then - now;
            if wait_nanos > depth {
                return RateDecision { allowed: false, remaining: 0, wait_nanos: wait_nanos - depth };
            }
            match bucket.full_at.compare_exchange_weak(full_at, then, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    let remaining = u32::try_from((depth - wait_nanos) / interval).unwrap_or(u32::MAX);
                    return RateDecision { allowed: true, remaining, wait_nanos };
                }
                Err(changed) => full_at = changed,
            }
        }
        RateDecision { allowed: true, remaining: 0, wait_nanos: SECOND_NANOS }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn client(number: u32) -> ClientKey {
        ClientKey::from_address(IpAddr::from(number.to_be_bytes()))
    }

    fn at(millis: u64) -> Moment {
        Moment::ZERO.plus(Duration::from_millis(5000 + millis))
    }

    fn rate(count: u32) -> Rate {
        Rate::per_second(count).unwrap()
    }

    #[test]
    fn limiter_allows_a_client_its_rate_including_one_full_burst() {
        let limiter = Limiter::new(16);
        for left in (0..10).rev() {
            let decision = limiter.take(0, rate(10), client(1), at(0));
            assert_eq!((decision.allowed, decision.remaining), (true, left));
            assert_eq!(decision.wait_seconds(), 1);
        }
        let refused = limiter.take(0, rate(10), client(1), at(0));
        assert_eq!(refused, RateDecision { allowed: false, remaining: 0, wait_nanos: 100_000_000 });
        assert_eq!(refused.wait_seconds(), 1);
        // A refused request takes no token.
        assert!(!limiter.take(0, rate(10), client(1), at(99)).allowed);
        assert!(limiter.take(0, rate(10), client(1), at(100)).allowed);
        assert!(!limiter.take(0, rate(10), client(1), at(100)).allowed);
        // Other clients and other limits have buckets of their own.
        assert!(limiter.take(0, rate(10), client(2), at(100)).allowed);
        assert!(limiter.take(1, rate(10), client(1), at(100)).allowed);
        // A bucket holds no more than one second of tokens.
        for _ in 0..10 {
            assert!(limiter.take(0, rate(10), client(1), at(60_000)).allowed);
        }
        assert!(!limiter.take(0, rate(10), client(1), at(60_000)).allowed);
    }

    #[test]
    fn limiter_rates_are_exact_at_their_bounds() {
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
    fn client_key_groups_ipv6_by_64_and_maps_ipv4() {
        let at = |address: &str| ClientKey::from_address(address.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:0:0:2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:1.2.3.4"), at("1.2.3.4"));
        assert_ne!(at("1.2.3.4"), at("1.2.3.5"));
    }

    #[test]
    fn limiter_evicts_the_fullest_bucket_and_never_an_exhausted_one() {
        let limiter = Limiter::new(1);
        while limiter.take(0, rate(100), client(0), at(0)).allowed {}
        // The other clients evict each other and not the exhausted one.
        for other in 1..10_000 {
            assert!(limiter.take(0, rate(100), client(other), at(0)).allowed);
        }
        assert!(!limiter.take(0, rate(100), client(0), at(0)).allowed);
        assert!(limiter.take(0, rate(100), client(0), at(10)).allowed);
    }

    #[test]
    fn limiter_grants_no_more_than_the_rate_across_threads() {
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
