//! The in-memory state and its invariants: one kind per name, each series once, limits on series
//! and bytes.
//!
//! The maps are persistent ([`imbl`]): a clone copies a few words and stays unchanged, so a scrape
//! or a snapshot reads it while pushes go on. The cost of a push depends on its own size and on the
//! logarithm of the size of the state.
//!
//! Must not depend on HTTP, files or clocks; callers pass the time.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::apply::{ApplyPushError, SampleUpdate, apply, kind_mismatch};
use super::grouping_key::GroupingKey;
use super::idempotency::IdempotencyKeys;
use super::metric::{Block, MetricKind, Series};
use crate::clock::Moment;

/// The name of a family, interned: one allocation per name.
pub type Name = Arc<str>;

/// The owner of a block.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// An aggregated series of `POST /metrics/push`, identified by its labels.
    Aggregated(Arc<str>),
    /// A group of Pushgateway's protocol, identified by its rendered grouping key.
    Group(Arc<str>),
}

#[derive(Clone, Debug)]
pub struct MetricGroup {
    pub grouping_key: Arc<GroupingKey>,
    /// Seconds since 1970 of the last push that was accepted; 0 for none.
    pub last_success_s: f64,
    /// Seconds since 1970 of the last push that was refused; 0 for none.
    pub last_failure_s: f64,
    pub last_push: Moment,
}

/// The two series that the server adds to each group.
pub const PUSH_TIME: &str = "push_time_seconds";
pub const FAILURE_TIME: &str = "push_failure_time_seconds";
const GROUP_SAMPLES: usize = 2;
/// Approximate memory of a group without its blocks.
const GROUP_BYTES: usize = 400;

#[derive(Clone, Copy, Debug)]
pub struct GatewayLimits {
    /// Series as Prometheus counts them.
    pub series_max: usize,
    /// Approximate memory of all series and groups.
    pub bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct NameUsage {
    kind: MetricKind,
    blocks: usize,
}

/// Passes a `u64` through, for sets whose keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
struct IdentityHasher(u64);

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

/// An immutable copy of the state.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub blocks: OrdMap<(Name, Owner), Arc<Block>>,
    pub groups: OrdMap<Arc<str>, MetricGroup>,
    /// The names of the families of each group.
    pub group_families: OrdSet<(Arc<str>, Name)>,
    pub keys: IdempotencyKeys,
}

/// Invariant: `names`, `series_hashes`, `samples`, `bytes` and `group_families` are derived from
/// `blocks` and `groups`.
#[derive(Debug)]
pub struct GatewayState {
    limits: GatewayLimits,
    maps: Snapshot,
    names: HashMap<Name, NameUsage>,
    /// Hashes of name and labels. Two series with the same hash count as duplicates; for a million
    /// series the probability is about 2^-44 per new series.
    series_hashes: HashSet<u64, BuildHasherDefault<IdentityHasher>>,
    samples: usize,
    bytes: usize,
    hasher: RandomState,
}

impl GatewayState {
    /// Without limits, for recovery: the records were within the limits when they were written.
    pub fn new(keys: IdempotencyKeys) -> Self {
        let limits = GatewayLimits { series_max: usize::MAX, bytes_max: usize::MAX };
        Self::with_limits(limits, keys)
    }

    /// Sets the limits for later changes.
    pub fn set_limits(&mut self, limits: GatewayLimits) {
        self.limits = limits;
    }

    fn with_limits(limits: GatewayLimits, keys: IdempotencyKeys) -> Self {
        let maps =
            Snapshot { blocks: OrdMap::new(), groups: OrdMap::new(), group_families: OrdSet::new(), keys };
        Self {
            limits,
            maps,
            names: HashMap::new(),
            series_hashes: HashSet::default(),
            samples: 0,
            bytes: 0,
            hasher: RandomState::new(),
        }
    }

    /// An immutable copy. Copies a few words.
    pub fn snapshot(&self) -> Snapshot {
        self.maps.clone()
    }

    pub fn keys(&mut self) -> &mut IdempotencyKeys {
        &mut self.maps.keys
    }

    pub fn samples(&self) -> usize {
        self.samples
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn groups(&self) -> usize {
        self.maps.groups.len()
    }

    pub fn group(&self, key: &str) -> Option<&MetricGroup> {
        self.maps.groups.get(key)
    }

    fn hash(&self, name: &str, labels: &str) -> u64 {
        self.hasher.hash_one((name, labels))
    }

    /// The interned name if a family has it, else a new allocation.
    fn intern_name(&self, name: &str) -> Name {
        self.names.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }

    /// Applies a push to a group: all families or none. With `replace` the group keeps no other
    /// family. The caller guarantees that series are sorted and unique in each block, and that
    /// family names are unique. Returns the replaced blocks, to be dropped without the lock.
    pub fn push(
        &mut self,
        grouping_key: &Arc<GroupingKey>,
        families: Vec<(String, Block)>,
        replace: bool,
        (now, wall_s): (Moment, f64),
    ) -> Result<Vec<Arc<Block>>, ApplyPushError> {
        let key = self
            .maps
            .groups
            .get_key_value(&grouping_key.rendered)
            .map_or(&grouping_key.rendered, |(key, _)| key)
            .clone();
        let fresh = !self.maps.groups.contains_key(&key);
        let families: Vec<(Name, Block)> =
            families.into_iter().map(|(name, block)| (self.intern_name(&name), block)).collect();
        let pushed: HashMap<&str, MetricKind> =
            families.iter().map(|(name, block)| (&**name, block.kind)).collect();
        let held: Vec<Name> = if fresh {
            Vec::new()
        } else if replace {
            self.families_of(&key).collect()
        } else {
            let is_held = |name: &&Name| self.maps.group_families.contains(&(key.clone(), (*name).clone()));
            families.iter().map(|(name, _)| name).filter(is_held).cloned().collect()
        };
        self.check_kinds(&pushed, &held)?;
        let (mut samples, mut bytes) = (self.samples, self.bytes);
        for name in &held {
            let block = &self.maps.blocks[&(name.clone(), Owner::Group(key.clone()))];
            samples -= block.samples();
            bytes -= block.bytes();
        }
        samples += families.iter().map(|(_, block)| block.samples()).sum::<usize>();
        bytes += families.iter().map(|(_, block)| block.bytes()).sum::<usize>();
        if fresh {
            samples += GROUP_SAMPLES;
            bytes += GROUP_BYTES + key.len();
        }
        self.check_limits(samples, bytes)?;
        let old = self.remove_families(&key, &held);
        if let Err(conflict) = self.insert_hashes(&families) {
            for (name, block) in held.into_iter().zip(old) {
                self.insert(name, Owner::Group(key.clone()), block);
            }
            return Err(conflict);
        }
        for (name, block) in families {
            self.insert_block(name, Owner::Group(key.clone()), Arc::new(block));
        }
        if fresh {
            self.samples += GROUP_SAMPLES;
            self.bytes += GROUP_BYTES + key.len();
        }
        let failure_s = self.maps.groups.get(&key).map_or(0.0, |group| group.last_failure_s);
        let group = MetricGroup {
            grouping_key: grouping_key.clone(),
            last_success_s: wall_s,
            last_failure_s: failure_s,
            last_push: now,
        };
        self.maps.groups.insert(key, group);
        debug_assert_eq!((self.samples, self.bytes), (samples, bytes), "BUG: the counts drift");
        Ok(old)
    }

    /// Records a refused push to a group and creates the group if the limits allow it. Returns
    /// whether the state changed.
    pub fn record_failure(&mut self, grouping_key: &Arc<GroupingKey>, (now, wall_s): (Moment, f64)) -> bool {
        if let Some(group) = self.maps.groups.get_mut(&grouping_key.rendered) {
            group.last_failure_s = wall_s;
            return true;
        }
        let (samples, bytes) =
            (self.samples + GROUP_SAMPLES, self.bytes + GROUP_BYTES + grouping_key.rendered.len());
        if self.check_limits(samples, bytes).is_err() {
            return false;
        }
        (self.samples, self.bytes) = (samples, bytes);
        let group = MetricGroup {
            grouping_key: grouping_key.clone(),
            last_success_s: 0.0,
            last_failure_s: wall_s,
            last_push: now,
        };
        self.maps.groups.insert(grouping_key.rendered.clone(), group);
        true
    }

    /// Sets the times of the last accepted and the last refused push, for recovery.
    pub fn set_times(&mut self, key: &str, push_s: f64, failure_s: f64) {
        if let Some(group) = self.maps.groups.get_mut(key) {
            (group.last_success_s, group.last_failure_s) = (push_s, failure_s);
        }
    }

    /// Deletes a group. Returns its blocks, to be dropped without the lock; `None` if there is no
    /// such group.
    pub fn delete(&mut self, key: &str) -> Option<Vec<Arc<Block>>> {
        let (key, _) = self.maps.groups.get_key_value(key)?;
        let key = key.clone();
        let held: Vec<Name> = self.families_of(&key).collect();
        let old = self.remove_families(&key, &held);
        self.maps.groups.remove(&key);
        self.samples -= GROUP_SAMPLES;
        self.bytes -= GROUP_BYTES + key.len();
        Some(old)
    }

    /// Deletes everything but the idempotency keys. Returns the previous maps.
    pub fn wipe(&mut self) -> Snapshot {
        let fresh = Self::with_limits(self.limits, self.maps.keys.clone());
        std::mem::replace(self, fresh).maps
    }

    /// Applies one update to its series and calls `show` with the result.
    pub fn apply(
        &mut self,
        update: &SampleUpdate,
        (now, wall_s): (Moment, f64),
        show: impl FnOnce(&str, &Block),
    ) -> Result<(), ApplyPushError> {
        let SampleUpdate { name, kind, help, labels, change } = update;
        let name = self.intern_name(name);
        let key = (name.clone(), Owner::Aggregated(labels.clone()));
        if let Some(block) = self.maps.blocks.get_mut(&key) {
            if block.kind != *kind {
                return Err(kind_mismatch(&name, block.kind, *kind));
            }
            let changed = apply(&name, Some(&block.series[0].value), change)?;
            let block = Arc::make_mut(block);
            block.series[0].value = changed;
            (block.last_push, block.last_push_wall_s) = (now, wall_s);
            if !help.is_empty() && *block.help != **help {
                self.bytes = self.bytes + help.len() - block.help.len();
                block.help = help.as_str().into();
            }
            show(&name, block);
            return Ok(());
        }
        if *name == *PUSH_TIME || *name == *FAILURE_TIME {
            return Err(ApplyPushError::GroupMetric(name.to_string()));
        }
        self.check_kinds(&HashMap::from([(&*name, *kind)]), &[])?;
        let value = apply(&name, None, change)?;
        let series = vec![Series { labels: labels.clone(), value }];
        let block = Arc::new(Block {
            kind: *kind,
            help: help.as_str().into(),
            series,
            last_push: now,
            last_push_wall_s: wall_s,
        });
        self.check_limits(self.samples + block.samples(), self.bytes + block.bytes())?;
        let hash = self.hash(&name, labels);
        if !self.series_hashes.insert(hash) {
            return Err(ApplyPushError::Duplicate { name: name.to_string(), labels: labels.to_string() });
        }
        show(&name, &block);
        self.insert_block(name, key.1, block);
        Ok(())
    }

    /// Inserts or replaces an aggregated series without checking the limits, for recovery.
    pub fn restore(&mut self, name: &str, labels: &Arc<str>, block: Block) {
        self.remove(name, labels);
        let name = self.intern_name(name);
        self.insert(name, Owner::Aggregated(labels.clone()), Arc::new(block));
    }

    /// Deletes an aggregated series.
    pub fn remove(&mut self, name: &str, labels: &Arc<str>) -> Option<Arc<Block>> {
        self.remove_block(&(self.intern_name(name), Owner::Aggregated(labels.clone())))
    }

    /// The time of the last push to an aggregated series.
    pub fn last_push(&self, name: &Name, labels: &Arc<str>) -> Option<Moment> {
        let key = (name.clone(), Owner::Aggregated(labels.clone()));
        self.maps.blocks.get(&key).map(|block| block.last_push)
    }

    fn families_of(&self, key: &Arc<str>) -> impl Iterator<Item = Name> + use<> {
        families_of(&self.maps.group_families, key).collect::<Vec<_>>().into_iter()
    }

    fn check_limits(&self, samples: usize, bytes: usize) -> Result<(), ApplyPushError> {
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
    fn check_kinds(&self, pushed: &HashMap<&str, MetricKind>, held: &[Name]) -> Result<(), ApplyPushError> {
        let others = |name: &str| {
            let named = self.names.get(name)?;
            let own = usize::from(held.iter().any(|held| **held == *name));
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
    fn insert_hashes(&mut self, families: &[(Name, Block)]) -> Result<(), ApplyPushError> {
        let all = || {
            families.iter().flat_map(|(name, block)| block.series.iter().map(move |series| (name, series)))
        };
        for (nth, (name, series)) in all().enumerate() {
            let hash = self.hash(name, &series.labels);
            if !self.series_hashes.insert(hash) {
                for (name, series) in all().take(nth) {
                    let hash = self.hash(name, &series.labels);
                    self.series_hashes.remove(&hash);
                }
                return Err(ApplyPushError::Duplicate {
                    name: name.to_string(),
                    labels: series.labels.to_string(),
                });
            }
        }
        Ok(())
    }

    fn remove_families(&mut self, key: &Arc<str>, held: &[Name]) -> Vec<Arc<Block>> {
        let owner = Owner::Group(key.clone());
        let taken = held.iter().map(|name| {
            self.remove_block(&(name.clone(), owner.clone()))
                .expect("BUG: a group lists a family without a block")
        });
        taken.collect()
    }

    fn insert(&mut self, name: Name, owner: Owner, block: Arc<Block>) {
        for series in &block.series {
            let hash = self.hash(&name, &series.labels);
            self.series_hashes.insert(hash);
        }
        self.insert_block(name, owner, block);
    }

    fn insert_block(&mut self, name: Name, owner: Owner, block: Arc<Block>) {
        self.samples += block.samples();
        self.bytes += block.bytes();
        self.names.entry(name.clone()).or_insert(NameUsage { kind: block.kind, blocks: 0 }).blocks += 1;
        if let Owner::Group(key) = &owner {
            self.maps.group_families.insert((key.clone(), name.clone()));
        }
        self.maps.blocks.insert((name, owner), block);
    }

    fn remove_block(&mut self, key: &(Name, Owner)) -> Option<Arc<Block>> {
        let block = self.maps.blocks.remove(key)?;
        for series in &block.series {
            let hash = self.hash(&key.0, &series.labels);
            self.series_hashes.remove(&hash);
        }
        self.samples -= block.samples();
        self.bytes -= block.bytes();
        if let Owner::Group(group) = &key.1 {
            self.maps.group_families.remove(&(group.clone(), key.0.clone()));
        }
        let named = self.names.get_mut(&key.0).expect("BUG: a block without an entry for its name");
        named.blocks -= 1;
        if named.blocks == 0 {
            self.names.remove(&key.0);
        }
        Some(block)
    }
}

/// The names of the families of a group.
pub fn families_of<'a>(
    members: &'a OrdSet<(Arc<str>, Name)>,
    key: &Arc<str>,
) -> impl Iterator<Item = Name> + use<'a> {
    let key = key.clone();
    let first = (key.clone(), Name::from(""));
    members.range(first..).take_while(move |(group, _)| *group == key).map(|(_, name)| name.clone())
}
