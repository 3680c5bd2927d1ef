//! All that was pushed and what must hold of it: one kind a name, each series once, no more than the bounds allow.
//!
//! The maps are persistent: a copy of them costs a few words and shows one moment for good, so a scrape or a snapshot
//! reads at leisure while pushes go on. A push costs what it holds, however much there is already: a map of a million
//! is two levels deeper than one of ten.
//!
//! Knows nothing of HTTP, files or clocks.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::keys::Keys;
use super::metric::{Block, Histogram, Kind, Series, Value};
use super::target::Target;
use crate::clock::Moment;

/// The name of a family, one allocation for all who have it.
pub type Name = Arc<str>;

/// Whose a block is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Nobody's: a series that is added up. Its labels.
    Summed(Arc<str>),
    /// A group's, by its key.
    Group(Arc<str>),
}

#[derive(Clone, Debug)]
pub struct Group {
    pub target: Arc<Target>,
    /// Seconds since 1970 of the last push that was taken; 0 for none.
    pub push_s: f64,
    /// The same of the last that was refused.
    pub failure_s: f64,
    pub touched: Moment,
}

/// The two series that each group has without having pushed them.
pub const PUSH_TIME: &str = "push_time_seconds";
pub const FAILURE_TIME: &str = "push_failure_time_seconds";
const GROUP_SAMPLES: usize = 2;
/// About what a group takes besides its blocks.
const GROUP_BYTES: usize = 400;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Series as Prometheus counts them.
    pub series_max: usize,
    /// Bytes that all of it takes, about.
    pub bytes_max: usize,
}

/// Why a push is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error("{0} is a metric of this server itself")]
    Own(String),
    #[error("{0} is a metric that each group gets from the server")]
    Reserved(String),
    #[error("metric {name} is a {is} already and cannot be a {wanted}")]
    Kind { name: String, is: &'static str, wanted: &'static str },
    #[error("metric {name} collides with the {kind} {with}")]
    Collision { name: String, with: String, kind: &'static str },
    #[error("metric {name}{{{labels}}} is there already with the same name and label values")]
    Duplicate { name: String, labels: String },
    #[error("the buckets differ from those that {0} has")]
    Buckets(String),
    #[error("the sum of {0} would not be a finite number")]
    Overflow(String),
    #[error("there would be more than {0} series; see PUSHED_SERIES_MAX")]
    Series(usize),
    #[error("what was pushed would take more than {0} bytes; see PUSHED_MAX_BYTES")]
    Bytes(usize),
}

impl Conflict {
    /// The value of the label `reason`.
    pub fn reason(&self) -> super::figures::Reason {
        use super::figures::Reason;
        match self {
            Self::Own(_) | Self::Reserved(_) => Reason::OwnName,
            Self::Kind { .. } | Self::Collision { .. } | Self::Buckets(_) => Reason::Type,
            Self::Duplicate { .. } => Reason::Duplicate,
            Self::Overflow(_) => Reason::Invalid,
            Self::Series(_) | Self::Bytes(_) => Reason::Full,
        }
    }
}

/// What a sample of `POST /metrics/push` does to its series.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Add(f64),
    Set(f64),
    Merge(Histogram),
    /// A value observed, into these buckets if the series is new.
    Observe {
        value: f64,
        bounds: Arc<[f64]>,
    },
}

/// One sample of `POST /metrics/push`, checked as far as it can be alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    pub name: String,
    pub kind: Kind,
    pub help: String,
    pub labels: Arc<str>,
    pub change: Change,
}

#[derive(Clone, Copy, Debug)]
struct Named {
    kind: Kind,
    blocks: usize,
}

/// Takes a hash for a hash.
#[derive(Clone, Copy, Debug, Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("BUG: only hashes are put in here")
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// All of it at one moment.
#[derive(Clone, Debug)]
pub struct View {
    pub blocks: OrdMap<(Name, Owner), Arc<Block>>,
    pub groups: OrdMap<Arc<str>, Group>,
    /// Which families each group has.
    pub members: OrdSet<(Arc<str>, Name)>,
    pub keys: Keys,
}

/// Invariant: `kinds`, `seen`, `samples`, `bytes` and `members` are what `blocks` and `groups` come to.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    own: &'static [&'static str],
    view: View,
    kinds: HashMap<Name, Named>,
    /// Hashes of name and labels. Two series with one hash, a matter of 2^-44 for a million, are taken for one.
    seen: HashSet<u64, BuildHasherDefault<Same>>,
    samples: usize,
    bytes: usize,
    hasher: RandomState,
}

impl State {
    /// Without bounds, for what was within them when it was taken.
    pub fn new(keys: Keys) -> Self {
        let limits = Limits { series_max: usize::MAX, bytes_max: usize::MAX };
        Self::within_limits(limits, &[], keys)
    }

    /// Sets the bounds on what is pushed from now on. `own` are the names, sorted, that nobody may push.
    pub fn bound(&mut self, limits: Limits, own: &'static [&'static str]) {
        debug_assert!(own.is_sorted(), "BUG: the names are looked up by halving");
        (self.limits, self.own) = (limits, own);
    }

    fn within_limits(limits: Limits, own: &'static [&'static str], keys: Keys) -> Self {
        let view = View { blocks: OrdMap::new(), groups: OrdMap::new(), members: OrdSet::new(), keys };
        Self {
            limits,
            own,
            view,
            kinds: HashMap::new(),
            seen: HashSet::default(),
            samples: 0,
            bytes: 0,
            hasher: RandomState::new(),
        }
    }

    /// A copy that shows this moment for good. Costs next to nothing.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    pub fn keys(&mut self) -> &mut Keys {
        &mut self.view.keys
    }

    pub fn samples(&self) -> usize {
        self.samples
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn groups(&self) -> usize {
        self.view.groups.len()
    }

    pub fn group(&self, key: &str) -> Option<&Group> {
        self.view.groups.get(key)
    }

    fn hash(&self, name: &str, labels: &str) -> u64 {
        self.hasher.hash_one((name, labels))
    }

    /// The name as it is held, if anybody has it.
    fn name(&self, name: &str) -> Name {
        self.kinds.get_key_value(name).map_or_else(|| name.into(), |(known, _)| known.clone())
    }

    /// Takes families into a group: all of them, or none. With `replace` the group has no others afterwards. Each
    /// block's series are sorted and differ, and so do the families' names.
    pub fn push(
        &mut self,
        target: &Arc<Target>,
        families: Vec<(String, Block)>,
        replace: bool,
        (now, wall_s): (Moment, f64),
    ) -> Result<Vec<Arc<Block>>, Conflict> {
        let key = self.view.groups.get_key_value(&target.key).map_or(&target.key, |(key, _)| key).clone();
        let fresh = !self.view.groups.contains_key(&key);
        let families: Vec<(Name, Block)> =
            families.into_iter().map(|(name, block)| (self.name(&name), block)).collect();
        let pushed: HashMap<&str, Kind> =
            families.iter().map(|(name, block)| (&**name, block.kind)).collect();
        let held: Vec<Name> = if fresh {
            Vec::new()
        } else if replace {
            self.families_of(&key).collect()
        } else {
            let is_held = |name: &&Name| self.view.members.contains(&(key.clone(), (*name).clone()));
            families.iter().map(|(name, _)| name).filter(is_held).cloned().collect()
        };
        self.check_kinds(&pushed, &held)?;
        let (mut samples, mut bytes) = (self.samples, self.bytes);
        for name in &held {
            let block = &self.view.blocks[&(name.clone(), Owner::Group(key.clone()))];
            samples -= block.samples();
            bytes -= block.bytes();
        }
        samples += families.iter().map(|(_, block)| block.samples()).sum::<usize>();
        bytes += families.iter().map(|(_, block)| block.bytes()).sum::<usize>();
        if fresh {
            samples += GROUP_SAMPLES;
            bytes += GROUP_BYTES + key.len();
        }
        self.within(samples, bytes)?;
        let old = self.take(&key, &held);
        if let Err(conflict) = self.mark_seen(&families) {
            for (name, block) in held.into_iter().zip(old) {
                self.insert(name, Owner::Group(key.clone()), block);
            }
            return Err(conflict);
        }
        for (name, block) in families {
            self.insert_seen(name, Owner::Group(key.clone()), Arc::new(block));
        }
        if fresh {
            self.samples += GROUP_SAMPLES;
            self.bytes += GROUP_BYTES + key.len();
        }
        let failure_s = self.view.groups.get(&key).map_or(0.0, |group| group.failure_s);
        let group = Group { target: target.clone(), push_s: wall_s, failure_s, touched: now };
        self.view.groups.insert(key, group);
        debug_assert_eq!((self.samples, self.bytes), (samples, bytes), "BUG: the counts drift");
        Ok(old)
    }

    /// Notes that a push to a group was refused. Makes the group if there is room for one. Tells whether it did.
    pub fn fail(&mut self, target: &Arc<Target>, (now, wall_s): (Moment, f64)) -> bool {
        if let Some(group) = self.view.groups.get_mut(&target.key) {
            group.failure_s = wall_s;
            return true;
        }
        let (samples, bytes) = (self.samples + GROUP_SAMPLES, self.bytes + GROUP_BYTES + target.key.len());
        if self.within(samples, bytes).is_err() {
            return false;
        }
        (self.samples, self.bytes) = (samples, bytes);
        let group = Group { target: target.clone(), push_s: 0.0, failure_s: wall_s, touched: now };
        self.view.groups.insert(target.key.clone(), group);
        true
    }

    /// Sets a group's times to what they were.
    pub fn set_times(&mut self, key: &str, push_s: f64, failure_s: f64) {
        if let Some(group) = self.view.groups.get_mut(key) {
            (group.push_s, group.failure_s) = (push_s, failure_s);
        }
    }

    /// Drops a group. Gives what it held, to be dropped elsewhere; None when there is none.
    pub fn delete(&mut self, key: &str) -> Option<Vec<Arc<Block>>> {
        let (key, _) = self.view.groups.get_key_value(key)?;
        let key = key.clone();
        let held: Vec<Name> = self.families_of(&key).collect();
        let old = self.take(&key, &held);
        self.view.groups.remove(&key);
        self.samples -= GROUP_SAMPLES;
        self.bytes -= GROUP_BYTES + key.len();
        Some(old)
    }

    /// Drops everything but the keys.
    pub fn wipe(&mut self) -> View {
        let fresh = Self::within_limits(self.limits, self.own, self.view.keys.clone());
        std::mem::replace(self, fresh).view
    }

    /// Adds one sample to its series, and shows the series as it is then.
    pub fn add(
        &mut self,
        addition: &Addition,
        (now, wall_s): (Moment, f64),
        show: impl FnOnce(&str, &Block),
    ) -> Result<(), Conflict> {
        let Addition { name, kind, help, labels, change } = addition;
        let name = self.name(name);
        let key = (name.clone(), Owner::Summed(labels.clone()));
        if let Some(block) = self.view.blocks.get_mut(&key) {
            if block.kind != *kind {
                return Err(of_kind(&name, block.kind, *kind));
            }
            let changed = apply(&name, Some(&block.series[0].value), change)?;
            let block = Arc::make_mut(block);
            block.series[0].value = changed;
            (block.touched, block.wall_s) = (now, wall_s);
            if !help.is_empty() && *block.help != **help {
                self.bytes = self.bytes + help.len() - block.help.len();
                block.help = help.as_str().into();
            }
            show(&name, block);
            return Ok(());
        }
        if *name == *PUSH_TIME || *name == *FAILURE_TIME {
            return Err(Conflict::Reserved(name.to_string()));
        }
        self.check_kinds(&HashMap::from([(&*name, *kind)]), &[])?;
        let value = apply(&name, None, change)?;
        let series = vec![Series { labels: labels.clone(), value }];
        let block = Arc::new(Block { kind: *kind, help: help.as_str().into(), series, touched: now, wall_s });
        self.within(self.samples + block.samples(), self.bytes + block.bytes())?;
        let hash = self.hash(&name, labels);
        if !self.seen.insert(hash) {
            return Err(Conflict::Duplicate { name: name.to_string(), labels: labels.to_string() });
        }
        show(&name, &block);
        self.insert_seen(name, key.1, block);
        Ok(())
    }

    /// Puts a series back as it was, bounds or no bounds: it was within them when it was taken.
    pub fn restore(&mut self, name: &str, labels: &Arc<str>, block: Block) {
        self.remove(name, labels);
        let name = self.name(name);
        self.insert(name, Owner::Summed(labels.clone()), Arc::new(block));
    }

    /// Drops a series that is added up.
    pub fn remove(&mut self, name: &str, labels: &Arc<str>) -> Option<Arc<Block>> {
        self.remove_block(&(self.name(name), Owner::Summed(labels.clone())))
    }

    /// When a series that is added up was last pushed.
    pub fn touched(&self, name: &Name, labels: &Arc<str>) -> Option<Moment> {
        let key = (name.clone(), Owner::Summed(labels.clone()));
        self.view.blocks.get(&key).map(|block| block.touched)
    }

    fn families_of(&self, key: &Arc<str>) -> impl Iterator<Item = Name> + use<> {
        families_of(&self.view.members, key).collect::<Vec<_>>().into_iter()
    }

    fn within(&self, samples: usize, bytes: usize) -> Result<(), Conflict> {
        // What grows nothing is let through: the bounds may have been lowered.
        if samples > self.limits.series_max && samples > self.samples {
            Err(Conflict::Series(self.limits.series_max))
        } else if bytes > self.limits.bytes_max && bytes > self.bytes {
            Err(Conflict::Bytes(self.limits.bytes_max))
        } else {
            Ok(())
        }
    }

    /// Whether names and kinds would fit together when `held`, families of one group, have made way for `pushed`.
    fn check_kinds(&self, pushed: &HashMap<&str, Kind>, held: &[Name]) -> Result<(), Conflict> {
        let others = |name: &str| {
            let named = self.kinds.get(name)?;
            let own = usize::from(held.iter().any(|held| **held == *name));
            (named.blocks > own).then_some(named.kind)
        };
        let kind_of = |name: &str| pushed.get(name).copied().or_else(|| others(name));
        for (name, kind) in pushed {
            if self.is_own(name) {
                return Err(Conflict::Own((*name).to_owned()));
            }
            if let Some(other) = others(name).filter(|other| other != kind) {
                return Err(of_kind(name, other, *kind));
            }
            for suffix in ["_count", "_sum", "_bucket"] {
                let Some(base) = name.strip_suffix(suffix) else { continue };
                if let Some(other) = kind_of(base).filter(|other| other.suffixes().contains(&suffix)) {
                    return Err(Conflict::Collision {
                        name: (*name).to_owned(),
                        with: base.to_owned(),
                        kind: other.name(),
                    });
                }
            }
            for suffix in kind.suffixes() {
                let part = format!("{name}{suffix}");
                if kind_of(&part).is_some() {
                    return Err(Conflict::Collision {
                        name: part,
                        with: (*name).to_owned(),
                        kind: kind.name(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether a name is of a metric of this server's, or of a part of one.
    fn is_own(&self, name: &str) -> bool {
        let bases = ["_count", "_sum", "_bucket"].iter().filter_map(|suffix| name.strip_suffix(suffix));
        bases.chain([name]).any(|name| self.own.binary_search(&name).is_ok())
    }

    /// Marks all series of these families as there, or none.
    fn mark_seen(&mut self, families: &[(Name, Block)]) -> Result<(), Conflict> {
        let all = || {
            families.iter().flat_map(|(name, block)| block.series.iter().map(move |series| (name, series)))
        };
        for (nth, (name, series)) in all().enumerate() {
            let hash = self.hash(name, &series.labels);
            if !self.seen.insert(hash) {
                for (name, series) in all().take(nth) {
                    let hash = self.hash(name, &series.labels);
                    self.seen.remove(&hash);
                }
                return Err(Conflict::Duplicate {
                    name: name.to_string(),
                    labels: series.labels.to_string(),
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, key: &Arc<str>, held: &[Name]) -> Vec<Arc<Block>> {
        let owner = Owner::Group(key.clone());
        let taken = held.iter().map(|name| {
            self.remove_block(&(name.clone(), owner.clone()))
                .expect("BUG: a group has a family that is not there")
        });
        taken.collect()
    }

    fn insert(&mut self, name: Name, owner: Owner, block: Arc<Block>) {
        for series in &block.series {
            let hash = self.hash(&name, &series.labels);
            self.seen.insert(hash);
        }
        self.insert_seen(name, owner, block);
    }

    fn insert_seen(&mut self, name: Name, owner: Owner, block: Arc<Block>) {
        self.samples += block.samples();
        self.bytes += block.bytes();
        self.kinds.entry(name.clone()).or_insert(Named { kind: block.kind, blocks: 0 }).blocks += 1;
        if let Owner::Group(key) = &owner {
            self.view.members.insert((key.clone(), name.clone()));
        }
        self.view.blocks.insert((name, owner), block);
    }

    fn remove_block(&mut self, key: &(Name, Owner)) -> Option<Arc<Block>> {
        let block = self.view.blocks.remove(key)?;
        for series in &block.series {
            let hash = self.hash(&key.0, &series.labels);
            self.seen.remove(&hash);
        }
        self.samples -= block.samples();
        self.bytes -= block.bytes();
        if let Owner::Group(group) = &key.1 {
            self.view.members.remove(&(group.clone(), key.0.clone()));
        }
        let named = self.kinds.get_mut(&key.0).expect("BUG: a block whose name is not known");
        named.blocks -= 1;
        if named.blocks == 0 {
            self.kinds.remove(&key.0);
        }
        Some(block)
    }
}

/// The families of a group, by name.
pub fn families_of<'a>(
    members: &'a OrdSet<(Arc<str>, Name)>,
    key: &Arc<str>,
) -> impl Iterator<Item = Name> + use<'a> {
    let key = key.clone();
    let first = (key.clone(), Name::from(""));
    members.range(first..).take_while(move |(group, _)| *group == key).map(|(_, name)| name.clone())
}

fn of_kind(name: &str, is: Kind, wanted: Kind) -> Conflict {
    Conflict::Kind { name: name.to_owned(), is: is.name(), wanted: wanted.name() }
}

/// What a series comes to.
fn apply(name: &str, before: Option<&Value>, change: &Change) -> Result<Value, Conflict> {
    let finite = |sum: f64| if sum.is_finite() { Ok(sum) } else { Err(Conflict::Overflow(name.to_owned())) };
    let number = match before {
        Some(Value::Number(number)) => *number,
        Some(Value::Histogram(_) | Value::Summary(_)) | None => 0.0,
    };
    let held = match before {
        Some(Value::Histogram(histogram)) => Some(&**histogram),
        Some(Value::Number(_) | Value::Summary(_)) | None => None,
    };
    Ok(match change {
        Change::Add(by) => Value::Number(finite(number + by)?),
        Change::Set(to) => Value::Number(*to),
        Change::Merge(with) => {
            let Some(held) = held else { return Ok(Value::Histogram(Box::new(with.clone()))) };
            let bounds =
                |histogram: &Histogram| histogram.buckets.iter().map(|(bound, _)| *bound).collect::<Vec<_>>();
            if bounds(held) != bounds(with) {
                return Err(Conflict::Buckets(name.to_owned()));
            }
            let pairs = held.buckets.iter().zip(&with.buckets);
            Value::Histogram(Box::new(Histogram {
                buckets: pairs.map(|((bound, a), (_, b))| (*bound, a.saturating_add(*b))).collect(),
                sum: finite(held.sum + with.sum)?,
                count: held.count.saturating_add(with.count),
            }))
        }
        Change::Observe { value, bounds } => {
            let empty = || Histogram {
                buckets: bounds.iter().map(|bound| (*bound, 0)).collect(),
                sum: 0.0,
                count: 0,
            };
            let mut histogram = held.cloned().unwrap_or_else(empty);
            for (_, count) in histogram.buckets.iter_mut().filter(|(bound, _)| value <= bound) {
                *count = count.saturating_add(1);
            }
            histogram.sum = finite(histogram.sum + value)?;
            histogram.count = histogram.count.saturating_add(1);
            Value::Histogram(Box::new(histogram))
        }
    })
}
