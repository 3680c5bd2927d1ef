//! The checks of a change before it is applied: limits, kinds and names, and each series once.

use std::collections::HashMap;
use std::sync::Arc;

use super::{GatewayState, Name};
use crate::gateway::apply::{ApplyPushError, kind_mismatch};
use crate::gateway::metric::{Block, MetricKind};
use crate::gateway::steps;

impl GatewayState {
    pub(super) fn check_limits(&self, samples: usize, bytes: usize) -> Result<(), ApplyPushError> {
        // A change that does not grow the state passes even above the limits: the limits may have
        // been lowered.
        if samples > self.limits.series_max && samples > self.samples {
            Err(ApplyPushError::TooManySeries(self.limits.series_max))
        } else if bytes > self.limits.bytes_max && bytes > self.bytes {
            Err(ApplyPushError::TooManyBytes(self.limits.bytes_max))
        } else {
            Ok(())
        }
    }

    /// Checks that names and kinds fit together once `held`, families of one group, are replaced by
    /// `pushed`.
    pub(super) fn check_kinds(
        &self,
        pushed: &HashMap<&str, MetricKind>,
        held: &HashMap<Name, Arc<Block>>,
    ) -> Result<(), ApplyPushError> {
        let others = |name: &str| {
            steps::add(1);
            let named = self.names.get(name)?;
            let own = usize::from(held.contains_key(name));
            (named.blocks > own).then_some(named.kind)
        };
        let kind_of = |name: &str| pushed.get(name).copied().or_else(|| others(name));
        for (name, kind) in pushed {
            if let Some(other) = others(name).filter(|other| other != kind) {
                return Err(kind_mismatch(name, other, *kind));
            }
            for suffix in ["_count", "_sum", "_bucket"] {
                let Some(base) = name.strip_suffix(suffix) else { continue };
                if let Some(other) = kind_of(base).filter(|other| other.suffixes().contains(&suffix)) {
                    return Err(ApplyPushError::Collision {
                        name: (*name).to_owned(),
                        with: base.to_owned(),
                        kind: other.name(),
                    });
                }
            }
            for suffix in kind.suffixes() {
                let part = format!("{name}{suffix}");
                if kind_of(&part).is_some() {
                    return Err(ApplyPushError::Collision {
                        name: part,
                        with: (*name).to_owned(),
                        kind: kind.name(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Inserts the hashes of all series of these families, or none if one of them exists.
    pub(super) fn insert_hashes(&mut self, families: &[(Name, Block)]) -> Result<(), ApplyPushError> {
        let all = || families.iter().flat_map(|(_, block)| &block.index.hashes);
        let Some(nth) = all().position(|hash| !self.series_hashes.insert(*hash)) else { return Ok(()) };
        for hash in all().take(nth) {
            self.series_hashes.remove(hash);
        }
        let series =
            families.iter().flat_map(|(name, block)| block.series.iter().map(move |one| (name, one)));
        let (name, labels) =
            series.map(|(name, one)| (name, &one.labels)).nth(nth).expect("BUG: a hash without its series");
        Err(ApplyPushError::Duplicate { name: name.to_string(), labels: labels.to_string() })
    }
}
