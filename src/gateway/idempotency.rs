//! Remembers the idempotency keys of accepted pushes, so that a retried push counts once. Bounded
//! in number and age; the oldest keys are evicted first.

use imbl::OrdMap;
use sha2::{Digest, Sha256};

use crate::clock::Moment;
use std::time::Duration;

/// A truncated SHA-256 of the header `Idempotency-Key`, of the client that chose it, and of the path.
pub type KeyHash = [u8; 16];

#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    pub count_max: usize,
    pub age_max: Duration,
}

/// The result of the first push with the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PushCounts {
    pub accepted: u32,
    pub rejected: u32,
}

/// Invariant: `order` contains each key of `entries` once, by insertion sequence.
#[derive(Clone, Debug)]
pub struct IdempotencyKeys {
    limits: KeyLimits,
    entries: OrdMap<KeyHash, (PushCounts, Moment)>,
    order: OrdMap<u64, KeyHash>,
    next_sequence: u64,
}

/// The hash of a key. Two clients with different tokens may choose the same key for different
/// pushes, and so may one client for different paths.
pub fn hash(token: Option<u64>, path: &str, key: &[u8]) -> KeyHash {
    let mut sha = Sha256::new();
    sha.update(token.map_or([0; 9], |token| {
        let mut bytes = [1; 9];
        bytes[1..].copy_from_slice(&token.to_le_bytes());
        bytes
    }));
    sha.update(path.as_bytes());
    // A path has no NUL.
    sha.update([0]);
    sha.update(key);
    let digest = sha.finalize();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

impl IdempotencyKeys {
    pub fn new(limits: KeyLimits) -> Self {
        Self { limits, entries: OrdMap::new(), order: OrdMap::new(), next_sequence: 0 }
    }

    pub fn get(&self, key: &KeyHash, now: Moment) -> Option<PushCounts> {
        let (counts, at) = self.entries.get(key)?;
        (now.since(*at) < self.limits.age_max).then_some(*counts)
    }

    /// Adds a key and evicts keys beyond the limits.
    pub fn insert(&mut self, key: KeyHash, counts: PushCounts, now: Moment) {
        if self.entries.insert(key, (counts, now)).is_none() {
            self.order.insert(self.next_sequence, key);
            self.next_sequence += 1;
        }
        self.evict(now);
    }

    fn evict(&mut self, now: Moment) {
        while let Some((number, key)) = self.order.get_min().copied() {
            let old = self.entries.get(&key).is_none_or(|(_, at)| now.since(*at) >= self.limits.age_max);
            if !old && self.entries.len() <= self.limits.count_max {
                return;
            }
            self.entries.remove(&key);
            self.order.remove(&number);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// In insertion order.
    pub fn iter(&self) -> impl Iterator<Item = (KeyHash, PushCounts)> {
        self.order.values().filter_map(|key| Some((*key, self.entries.get(key)?.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTS: PushCounts = PushCounts { accepted: 1, rejected: 0 };

    fn hash(key: &[u8]) -> KeyHash {
        super::hash(None, "/metrics/push", key)
    }

    #[test]
    fn keys_of_other_tokens_and_paths_differ() {
        let all = [
            super::hash(None, "/a", b"k"),
            super::hash(None, "/b", b"k"),
            super::hash(Some(0), "/a", b"k"),
            super::hash(Some(1), "/a", b"k"),
            super::hash(None, "/", b"ak"),
        ];
        for (nth, one) in all.iter().enumerate() {
            assert!(!all[..nth].contains(one), "{nth}");
        }
        assert_eq!(all[0], super::hash(None, "/a", b"k"));
    }

    #[test]
    fn keys_are_evicted_by_age_and_number() {
        let limits = KeyLimits { count_max: 2, age_max: Duration::from_secs(10) };
        let mut keys = IdempotencyKeys::new(limits);
        let at = |seconds| Moment::ZERO.plus(Duration::from_secs(seconds));
        keys.insert(hash(b"a"), COUNTS, at(0));
        assert_eq!(keys.get(&hash(b"a"), at(9)), Some(COUNTS));
        assert_eq!(keys.get(&hash(b"a"), at(10)), None);
        assert_eq!(keys.get(&hash(b"b"), at(0)), None);
        keys.insert(hash(b"b"), COUNTS, at(1));
        keys.insert(hash(b"c"), COUNTS, at(2));
        assert_eq!(keys.get(&hash(b"a"), at(3)), None, "the oldest of three was evicted");
        assert_eq!((keys.len(), keys.iter().count()), (2, 2));
        keys.insert(hash(b"d"), COUNTS, at(30));
        assert_eq!(keys.len(), 1, "expired keys were evicted");
    }
}
