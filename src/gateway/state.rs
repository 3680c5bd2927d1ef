//! The in-memory state and its invariants: one kind per name, each series once, limits on series
//! and bytes.
//!
//! The maps are persistent ([`imbl`]): a clone copies a few words and stays unchanged, so a scrape
//! or a snapshot reads it while pushes go on. The cost of a push depends on its own size and on the
//! logarithm of the size of the state.
//!
//! Must not depend on HTTP, files or clocks; callers pass the time.

mod checks;

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::ops::Bound;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::apply::{ApplyPushError, SampleUpdate, apply, kind_mismatch};
use super::grouping_key::GroupingKey;
use super::idempotency::IdempotencyKeys;
use super::metric::{Block, BlockIndex, MetricKind, Series, render_labels};
use super::series_hash::{IdentityHasher, SeriesHasher};
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
    pub families: usize,
    /// Series as Prometheus counts them, without the two that the server adds.
    pub samples: usize,
}

impl MetricGroup {
    /// Whether every push to the group was refused.
    pub fn is_failed(&self) -> bool {
        self.last_success_s <= 0.0
    }
}

/// Groups all of whose pushes were refused. They exist to show the failure and have no series but
/// the server's own two.
const FAILED_GROUPS_MAX: usize = 1000;

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
    /// Families of one group.
    pub group_families_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct NameUsage {
    kind: MetricKind,
    blocks: usize,
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
    failed_groups: usize,
    hasher: SeriesHasher,
}

impl GatewayState {
    /// Without limits, for recovery: the records were within the limits when they were written.
    pub fn new(keys: IdempotencyKeys) -> Self {
        let limits =
            GatewayLimits { series_max: usize::MAX, bytes_max: usize::MAX, group_families_max: usize::MAX };
        Self::with_limits(limits, keys, SeriesHasher::default())
    }

    pub fn limits(&self) -> GatewayLimits {
        self.limits
    }

    pub fn hasher(&self) -> SeriesHasher {
        self.hasher.clone()
    }

    /// Sets the limits for later changes.
    pub fn set_limits(&mut self, limits: GatewayLimits) {
        self.limits = limits;
    }

    fn with_limits(limits: GatewayLimits, keys: IdempotencyKeys, hasher: SeriesHasher) -> Self {
        let maps =
            Snapshot { blocks: OrdMap::new(), groups: OrdMap::new(), group_families: OrdSet::new(), keys };
        Self {
            limits,
            maps,
            names: HashMap::new(),
            series_hashes: HashSet::default(),
            samples: 0,
            bytes: 0,
            failed_groups: 0,
            hasher,
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

    /// The hash of the series that the server adds to a group. Groups that differ only in labels with
    /// an empty value would have the same.
    fn group_hash(&self, grouping_key: &GroupingKey) -> u64 {
        let mut labels = Vec::new();
        grouping_key.apply_to(&mut labels);
        self.hasher.hash(PUSH_TIME, &render_labels(&mut labels))
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
        let before = self.maps.groups.get_key_value(&grouping_key.rendered);
        let key = before.map_or(&grouping_key.rendered, |(key, _)| key).clone();
        let before = before.map(|(_, group)| group.clone());
        let owner = Owner::Group(key.clone());
        let families: Vec<(Name, Block)> = families
            .into_iter()
            .map(|(name, mut block)| {
                self.hasher.index(&name, &mut block);
                (self.intern_name(&name), block)
            })
            .collect();
        let pushed: HashMap<&str, MetricKind> =
            families.iter().map(|(name, block)| (&**name, block.kind)).collect();
        let replaced: Vec<Name> = match &before {
            None => Vec::new(),
            Some(_) if replace => self.families_of(&key).collect(),
            Some(_) => families.iter().map(|(name, _)| name.clone()).collect(),
        };
        let held = replaced.into_iter().filter_map(|name| {
            let block = self.maps.blocks.get(&(name.clone(), owner.clone()))?.clone();
            Some((name, block))
        });
        let held: HashMap<Name, Arc<Block>> = held.collect();
        self.check_kinds(&pushed, &held)?;
        let dropped: Vec<Name> = held.keys().filter(|name| !pushed.contains_key(&***name)).cloned().collect();

        let sum = |of: fn(&Block) -> usize| {
            let (old, new) =
                (held.values().map(|block| of(block)), families.iter().map(|(_, block)| of(block)));
            (old.sum::<usize>(), new.sum::<usize>())
        };
        let (held_samples, pushed_samples) = sum(|block| block.index.samples);
        let (held_bytes, pushed_bytes) = sum(|block| block.index.bytes);
        let mut samples = self.samples - held_samples + pushed_samples;
        let mut bytes = self.bytes - held_bytes + pushed_bytes;
        if before.is_none() {
            samples += GROUP_SAMPLES;
            bytes += GROUP_BYTES + key.len();
        }
        self.check_limits(samples, bytes)?;
        let (families_before, samples_before) =
            before.as_ref().map_or((0, 0), |group| (group.families, group.samples));
        let group_families = families_before - held.len() + families.len();
        let group_families_max = self.limits.group_families_max;
        if group_families > group_families_max && group_families > families_before {
            return Err(ApplyPushError::TooManyFamilies(group_families_max));
        }

        self.replace_hashes(before.is_none().then_some(grouping_key), &held, &families)?;
        for name in &dropped {
            self.unlink(&(name.clone(), owner.clone()));
        }
        for (name, block) in families {
            if held.contains_key(&name) {
                // The name stays where it is, which saves most of the work of a usual push.
                if let Some(usage) = self.names.get_mut(&name) {
                    usage.kind = block.kind;
                }
                self.maps.blocks.insert((name, owner.clone()), Arc::new(block));
            } else {
                self.link(name, owner.clone(), Arc::new(block));
            }
        }
        (self.samples, self.bytes) = (samples, bytes);
        let group = MetricGroup {
            grouping_key: grouping_key.clone(),
            last_success_s: wall_s,
            last_failure_s: before.map_or(0.0, |group| group.last_failure_s),
            last_push: now,
            families: group_families,
            samples: samples_before - held_samples + pushed_samples,
        };
        self.insert_group(key, group);
        Ok(held.into_values().collect())
    }

    /// Replaces the hashes of `held` by those of `families`, and adds that of a new group. Changes
    /// nothing if one of them exists.
    fn replace_hashes(
        &mut self,
        new_group: Option<&Arc<GroupingKey>>,
        held: &HashMap<Name, Arc<Block>>,
        families: &[(Name, Block)],
    ) -> Result<(), ApplyPushError> {
        let group_hash = new_group.map(|grouping_key| (self.group_hash(grouping_key), grouping_key));
        if let Some((hash, grouping_key)) = group_hash
            && !self.series_hashes.insert(hash)
        {
            let labels = grouping_key.rendered.to_string();
            return Err(ApplyPushError::Duplicate { name: PUSH_TIME.to_owned(), labels });
        }
        for hash in held.values().flat_map(|block| &block.index.hashes) {
            self.series_hashes.remove(hash);
        }
        let inserted = self.insert_hashes(families);
        if inserted.is_err() {
            self.series_hashes.extend(held.values().flat_map(|block| &block.index.hashes));
            if let Some((hash, _)) = group_hash {
                self.series_hashes.remove(&hash);
            }
        }
        inserted
    }

    /// Records a refused push to a group and creates the group if the limits allow it. Returns
    /// whether the state changed.
    pub fn record_failure(&mut self, grouping_key: &Arc<GroupingKey>, (now, wall_s): (Moment, f64)) -> bool {
        if let Some(group) = self.maps.groups.get_mut(&grouping_key.rendered) {
            group.last_failure_s = wall_s;
            if group.is_failed() {
                group.last_push = now;
            }
            return true;
        }
        if self.failed_groups >= FAILED_GROUPS_MAX {
            return false;
        }
        let (samples, bytes) =
            (self.samples + GROUP_SAMPLES, self.bytes + GROUP_BYTES + grouping_key.rendered.len());
        if self.check_limits(samples, bytes).is_err() {
            return false;
        }
        let hash = self.group_hash(grouping_key);
        if !self.series_hashes.insert(hash) {
            return false;
        }
        (self.samples, self.bytes) = (samples, bytes);
        let group = MetricGroup {
            grouping_key: grouping_key.clone(),
            last_success_s: 0.0,
            last_failure_s: wall_s,
            last_push: now,
            families: 0,
            samples: 0,
        };
        self.insert_group(grouping_key.rendered.clone(), group);
        true
    }

    fn insert_group(&mut self, key: Arc<str>, group: MetricGroup) {
        self.failed_groups += usize::from(group.is_failed());
        let old = self.maps.groups.insert(key, group);
        self.failed_groups -= usize::from(old.is_some_and(|old| old.is_failed()));
    }

    /// Sets the times of the last accepted and the last refused push, for recovery.
    pub fn set_times(&mut self, key: &str, push_s: f64, failure_s: f64) {
        if let Some((key, group)) = self.maps.groups.get_key_value(key) {
            let group = MetricGroup { last_success_s: push_s, last_failure_s: failure_s, ..group.clone() };
            self.insert_group(key.clone(), group);
        }
    }

    /// Deletes a group. Returns its blocks, to be dropped without the lock; `None` if there is no
    /// such group.
    pub fn delete(&mut self, key: &str) -> Option<Vec<Arc<Block>>> {
        let (key, _) = self.maps.groups.get_key_value(key)?;
        let key = key.clone();
        let owner = Owner::Group(key.clone());
        let names = self.families_of(&key);
        let old = names.filter_map(|name| self.remove_block(&(name, owner.clone()))).collect();
        if let Some(group) = self.maps.groups.remove(&key) {
            let hash = self.group_hash(&group.grouping_key);
            self.series_hashes.remove(&hash);
            self.failed_groups -= usize::from(group.is_failed());
        }
        self.samples -= GROUP_SAMPLES;
        self.bytes -= GROUP_BYTES + key.len();
        Some(old)
    }

    /// Deletes everything but the idempotency keys. Returns the previous maps.
    pub fn wipe(&mut self) -> Snapshot {
        let fresh = Self::with_limits(self.limits, self.maps.keys.clone(), self.hasher.clone());
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
                block.index.bytes = block.index.bytes + help.len() - block.help.len();
                block.help = help.as_str().into();
            }
            show(&name, block);
            return Ok(());
        }
        if *name == *PUSH_TIME || *name == *FAILURE_TIME {
            return Err(ApplyPushError::GroupMetric(name.to_string()));
        }
        self.check_kinds(&HashMap::from([(&*name, *kind)]), &HashMap::new())?;
        let value = apply(&name, None, change)?;
        let series = vec![Series { labels: labels.clone(), value }];
        let mut block = Block {
            kind: *kind,
            help: help.as_str().into(),
            series,
            last_push: now,
            last_push_wall_s: wall_s,
            index: BlockIndex::default(),
        };
        self.hasher.index(&name, &mut block);
        self.check_limits(self.samples + block.index.samples, self.bytes + block.index.bytes)?;
        if !self.series_hashes.insert(block.index.hashes[0]) {
            return Err(ApplyPushError::Duplicate { name: name.to_string(), labels: labels.to_string() });
        }
        show(&name, &block);
        self.insert(name, key.1, block);
        Ok(())
    }

    /// Inserts or replaces an aggregated series without checking the limits, for recovery.
    pub fn restore(&mut self, name: &str, labels: &Arc<str>, mut block: Block) {
        self.remove(name, labels);
        let name = self.intern_name(name);
        self.hasher.index(&name, &mut block);
        self.insert(name, Owner::Aggregated(labels.clone()), block);
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
        families_of(&self.maps.group_families, key, Bound::Unbounded).collect::<Vec<_>>().into_iter()
    }

    /// Inserts an indexed block.
    fn insert(&mut self, name: Name, owner: Owner, block: Block) {
        self.series_hashes.extend(&block.index.hashes);
        self.samples += block.index.samples;
        self.bytes += block.index.bytes;
        self.link(name, owner, Arc::new(block));
    }

    fn remove_block(&mut self, key: &(Name, Owner)) -> Option<Arc<Block>> {
        let block = self.unlink(key)?;
        for hash in &block.index.hashes {
            self.series_hashes.remove(hash);
        }
        self.samples -= block.index.samples;
        self.bytes -= block.index.bytes;
        Some(block)
    }

    /// Inserts a block into the maps by name and by group.
    fn link(&mut self, name: Name, owner: Owner, block: Arc<Block>) {
        self.names.entry(name.clone()).or_insert(NameUsage { kind: block.kind, blocks: 0 }).blocks += 1;
        if let Owner::Group(key) = &owner {
            self.maps.group_families.insert((key.clone(), name.clone()));
        }
        self.maps.blocks.insert((name, owner), block);
    }

    /// Removes a block from the maps by name and by group.
    fn unlink(&mut self, key: &(Name, Owner)) -> Option<Arc<Block>> {
        let block = self.maps.blocks.remove(key)?;
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

/// The names of the families of a group, beginning at `from`.
pub fn families_of<'a>(
    members: &'a OrdSet<(Arc<str>, Name)>,
    key: &Arc<str>,
    from: Bound<&Name>,
) -> impl Iterator<Item = Name> + use<'a> {
    let key = key.clone();
    let from = match from {
        Bound::Included(name) => Bound::Included((key.clone(), name.clone())),
        Bound::Excluded(name) => Bound::Excluded((key.clone(), name.clone())),
        Bound::Unbounded => Bound::Included((key.clone(), Name::from(""))),
    };
    members
        .range((from, Bound::Unbounded))
        .take_while(move |(group, _)| *group == key)
        .map(|(_, name)| name.clone())
}
