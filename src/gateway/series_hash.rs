//! Hashes of series, which identify a series in the sets of the state. Must not depend on the state.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use super::metric::{Block, BlockIndex, escaped_labels};

/// Passes a `u64` through, for sets whose keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("BUG: only u64 keys are hashed")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Hashes series. All copies return the same hashes.
#[derive(Clone, Debug, Default)]
pub struct SeriesHasher(RandomState);

impl SeriesHasher {
    /// The hash of a series as Prometheus identifies it: a label with an empty value equals an absent
    /// one. `instance` is an exception, since Prometheus adds its own only if it is absent.
    pub(super) fn hash(&self, name: &str, labels: &str) -> u64 {
        let mut hasher = self.0.build_hasher();
        name.hash(&mut hasher);
        for (label, value) in escaped_labels(labels) {
            if !value.is_empty() || label == "instance" {
                (label, value).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    /// Computes the index of a block that has none yet.
    pub fn index(&self, name: &str, block: &mut Block) {
        if block.index.hashes.len() != block.series.len() {
            let hashes = block.series.iter().map(|series| self.hash(name, &series.labels));
            let hashes = hashes.collect();
            block.index = BlockIndex { hashes, samples: block.samples(), bytes: block.bytes() };
        }
    }
}
