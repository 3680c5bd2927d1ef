//! The keys of pushes that were taken, so that one sent again counts once. Bounded in number and age; the oldest go
//! first.

use imbl::OrdMap;
use sha2::{Digest, Sha256};

use crate::clock::Moment;
use std::time::Duration;

/// A hash of `Idempotency-Key`.
pub type Key = [u8; 16];

#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    pub count_max: usize,
    pub age_max: Duration,
}

/// What came of the push that had the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub accepted: u32,
    pub rejected: u32,
}

/// Invariant: `order` holds each key of `known` once, by the number that it has there.
#[derive(Clone, Debug)]
pub struct Keys {
    limits: KeyLimits,
    known: OrdMap<Key, (Verdict, Moment)>,
    order: OrdMap<u64, Key>,
    next: u64,
}

pub fn hash(text: &[u8]) -> Key {
    let digest = Sha256::digest(text);
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

impl Keys {
    pub fn new(limits: KeyLimits) -> Self {
        Self { limits, known: OrdMap::new(), order: OrdMap::new(), next: 0 }
    }

    pub fn get(&self, key: &Key, now: Moment) -> Option<Verdict> {
        let (verdict, at) = self.known.get(key)?;
        (now.since(*at) < self.limits.age_max).then_some(*verdict)
    }

    /// Remembers a key, and forgets what is over the bounds.
    pub fn put(&mut self, key: Key, verdict: Verdict, now: Moment) {
        if self.known.insert(key, (verdict, now)).is_none() {
            self.order.insert(self.next, key);
            self.next += 1;
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Moment) {
        while let Some((number, key)) = self.order.get_min().copied() {
            let old = self.known.get(&key).is_none_or(|(_, at)| now.since(*at) >= self.limits.age_max);
            if !old && self.known.len() <= self.limits.count_max {
                return;
            }
            self.known.remove(&key);
            self.order.remove(&number);
        }
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// In the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Verdict)> {
        self.order.values().filter_map(|key| Some((*key, self.known.get(key)?.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERDICT: Verdict = Verdict { accepted: 1, rejected: 0 };

    #[test]
    fn a_key_is_known_until_it_is_too_old_or_too_many_came_after_it() {
        let limits = KeyLimits { count_max: 2, age_max: Duration::from_secs(10) };
        let mut keys = Keys::new(limits);
        let at = |seconds| Moment::ZERO.plus(Duration::from_secs(seconds));
        keys.put(hash(b"a"), VERDICT, at(0));
        assert_eq!(keys.get(&hash(b"a"), at(9)), Some(VERDICT));
        assert_eq!(keys.get(&hash(b"a"), at(10)), None);
        assert_eq!(keys.get(&hash(b"b"), at(0)), None);
        keys.put(hash(b"b"), VERDICT, at(1));
        keys.put(hash(b"c"), VERDICT, at(2));
        assert_eq!(keys.get(&hash(b"a"), at(3)), None, "the oldest of three went");
        assert_eq!((keys.len(), keys.iter().count()), (2, 2));
        keys.put(hash(b"d"), VERDICT, at(30));
        assert_eq!(keys.len(), 1, "those too old went");
    }
}
