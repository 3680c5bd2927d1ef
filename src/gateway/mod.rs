//! Takes metrics that programs and web pages push, and shows them to Prometheus: by the protocol of Pushgateway, whose
//! clients need no change, and by `POST /metrics/push`, which adds counters up.
//!
//! One lock guards the state. It is held for operations on memory alone, as long as a push has series, and never by a
//! thread that waits for anything: acceptors take it, and a scrape or a snapshot copies a few words under it. What
//! takes long, reading a body and encoding the change for the log, is done before.
//!
//! Lost: a thread that owns the state and is sent changes, which would cost every push two wakes, and shards by hash,
//! since a name's kind, a series' owner and a group's families must be judged together.

pub mod changelog;
pub mod compare;
pub mod exposition;
pub mod figures;
pub mod file;
pub mod forward;
pub mod group;
pub mod keys;
pub mod listing;
pub mod metric;
pub mod names;
pub mod pages;
pub mod protobuf;
pub mod push;
pub mod record;
pub mod recovery;
pub mod scrape;
pub mod state;
pub mod target;
pub mod text;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam::sync::{Parker, Unparker};

use crate::clock::{Clock, Moment};
use crate::http::problem::{Errors, FieldError};
use crate::journal::{Level, Told};
use figures::{Api, Figures, Reason};
use forward::{Forwarded, Queue};
use group::{Flaw, prepare};
use keys::{Key, Verdict};
use metric::{Block, Parsed};
use push::Pushed;
use state::{Conflict, Name, Owner, State, View};
use target::Target;

/// Bytes of changes that may wait to be written. More wait only when the disk has come to a halt.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// Expired series that are dropped under one hold of the lock.
const EXPIRED_AT_ONCE: usize = 256;

/// How long what is not pushed again is shown; none for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of series of `POST /metrics/push`.
    pub summed: Option<Duration>,
    /// Of Pushgateway's groups.
    pub groups: Option<Duration>,
}

/// Somebody who waits until what was changed before is on disk.
pub struct Waiter {
    pub level: Level,
    pub told: Told,
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waiter").field(&self.level).finish()
    }
}

/// Changes in their order, each encoded.
#[derive(Debug, Default)]
pub struct Records(Vec<Vec<u8>>, usize);

impl Records {
    fn add(&mut self, record: Vec<u8>) {
        self.1 += record.len();
        self.0.push(record);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn bytes(&self) -> usize {
        self.1
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Vec::as_slice)
    }
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Changes that are not in the log yet, in the order in which they were made.
    records: Records,
    waiters: Vec<Waiter>,
}

/// Why a push was refused whole.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("{0}")]
    Flaw(#[from] Flaw),
    #[error("{0}")]
    Conflict(#[from] Conflict),
    #[error("the change log cannot be written now")]
    LogUnavailable,
}

impl Refused {
    fn reason(&self) -> Reason {
        match self {
            Self::Flaw(Flaw::Timestamps) => Reason::Timestamps,
            Self::Flaw(Flaw::Duplicate(..)) => Reason::Duplicate,
            Self::Flaw(_) => Reason::Invalid,
            Self::Conflict(conflict) => conflict.reason(),
            Self::LogUnavailable => Reason::Log,
        }
    }
}

/// What came of a push to be added up.
#[derive(Debug)]
pub struct Summed {
    pub verdict: Verdict,
    pub errors: Errors,
    /// It had a key that was known: nothing was added again.
    pub repeated: bool,
}

/// Shared by all that push, scrape and keep.
#[derive(Debug)]
pub struct Gateway {
    inner: Mutex<Inner>,
    log_thread: Unparker,
    trouble: AtomicBool,
    finishing: AtomicBool,
    pub figures: Figures,
    lifetimes: Lifetimes,
    forward: Option<Arc<Queue>>,
    clock: Clock,
}

impl Gateway {
    /// Around a state that has been read back. The parker is the log's thread's.
    pub fn new(
        state: State,
        lifetimes: Lifetimes,
        forward: Option<Arc<Queue>>,
        clock: Clock,
    ) -> (Arc<Self>, Parker) {
        let parker = Parker::new();
        let gateway = Self {
            inner: Mutex::new(Inner { state, records: Records::default(), waiters: Vec::new() }),
            log_thread: parker.unparker().clone(),
            trouble: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            figures: Figures::default(),
            lifetimes,
            forward,
            clock,
        };
        gateway.figures.forward.mismatched.store(-1, Ordering::Relaxed);
        gateway.show(&gateway.lock().state);
        (Arc::new(gateway), parker)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("BUG: a push panicked half-way")
    }

    pub fn forwards(&self) -> bool {
        self.forward.is_some()
    }

    /// All of it as it is now, for good.
    pub fn view(&self) -> View {
        self.lock().state.view()
    }

    /// Now, and in seconds since 1970.
    fn times(&self) -> (Moment, f64) {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of this century are below 2^53")]
        let wall_s = self.clock.wall().micros() as f64 / 1e6;
        (self.clock.now(), wall_s)
    }

    fn show(&self, state: &State) {
        let figures = &self.figures;
        figures.series.store(state.samples() as u64, Ordering::Relaxed);
        figures.bytes.store(state.bytes() as u64, Ordering::Relaxed);
        figures.groups.store(state.groups() as u64, Ordering::Relaxed);
    }

    /// Whether the log works.
    pub fn promises(&self) -> bool {
        !self.trouble.load(Ordering::Acquire)
    }

    /// Notes a change that was made, and wakes the log's thread if it sleeps.
    fn note(&self, inner: &mut Inner, record: Vec<u8>) {
        if inner.records.is_empty() {
            self.log_thread.unpark();
        }
        inner.records.add(record);
    }

    /// Pushgateway's PUT (`replace`) or POST: all of it is taken, or nothing.
    pub fn push_group(
        &self,
        target: Target,
        parsed: Parsed<'_>,
        replace: bool,
        forwarded: impl FnOnce() -> Forwarded,
    ) -> Result<(), Refused> {
        let refuse = |refused: Refused| {
            self.figures.refused(refused.reason(), 1);
            Err(refused)
        };
        if !self.promises() {
            return refuse(Refused::LogUnavailable);
        }
        let (target, times) = (Arc::new(target), self.times());
        let families = match prepare(&target, parsed, times) {
            Ok(families) => families,
            Err(flaw) => {
                self.fail(&mut self.lock(), &target, times);
                return refuse(flaw.into());
            }
        };
        let mut record = Vec::new();
        let named = families.iter().map(|(name, block)| (name.as_str(), block));
        record::group(&mut record, &target, (times.1, f64::NAN), replace, named);
        let forwarded = self.forward.as_ref().map(|queue| (queue, forwarded()));
        let mut inner = self.lock();
        if inner.records.bytes() > PENDING_BYTES_MAX {
            drop(inner);
            return refuse(Refused::LogUnavailable);
        }
        match inner.state.push(&target, families, replace, times) {
            Ok(old) => {
                self.note(&mut inner, record);
                if let Some((queue, forwarded)) = forwarded {
                    queue.push(forwarded, &self.figures.forward);
                }
                self.show(&inner.state);
                drop(inner);
                // Outside of the lock, since it may be much.
                drop(old);
                self.figures.pushed(Api::Group);
                Ok(())
            }
            Err(conflict) => {
                self.fail(&mut inner, &target, times);
                drop(inner);
                refuse(conflict.into())
            }
        }
    }

    fn fail(&self, inner: &mut Inner, target: &Arc<Target>, times: (Moment, f64)) {
        if inner.state.fail(target, times) {
            let mut record = Vec::new();
            record::group(&mut record, target, (f64::NAN, times.1), false, std::iter::empty());
            self.note(inner, record);
            self.show(&inner.state);
        }
    }

    /// Pushgateway's DELETE.
    pub fn delete_group(
        &self,
        target: &Target,
        forwarded: impl FnOnce() -> Forwarded,
    ) -> Result<(), Refused> {
        if !self.promises() {
            return Err(Refused::LogUnavailable);
        }
        let forwarded = self.forward.as_ref().map(|queue| (queue, forwarded()));
        let mut inner = self.lock();
        let old = inner.state.delete(&target.key);
        if old.is_some() {
            let mut record = Vec::new();
            record::delete(&mut record, &target.key);
            self.note(&mut inner, record);
            self.show(&inner.state);
        }
        if let Some((queue, forwarded)) = forwarded {
            queue.push(forwarded, &self.figures.forward);
        }
        drop(inner);
        drop(old);
        self.figures.deletes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// `POST /metrics/push`: each good metric is added to its series, once for each key.
    pub fn push_sums(&self, pushed: Pushed, key: Option<Key>) -> Result<Summed, Refused> {
        let refuse = || {
            self.figures.refused(Reason::Log, 1);
            Err(Refused::LogUnavailable)
        };
        if !self.promises() {
            return refuse();
        }
        let times = self.times();
        let Pushed { additions, mut errors, rejected } = pushed;
        let mut verdict = Verdict { accepted: 0, rejected };
        let mut forwarded = Vec::new();
        let mut record = Vec::with_capacity(64 + 128 * additions.len());
        let start = record::begin_sum(&mut record);
        let mut inner = self.lock();
        if inner.records.bytes() > PENDING_BYTES_MAX {
            drop(inner);
            return refuse();
        }
        if let Some(verdict) = key.and_then(|key| inner.state.keys().get(&key, times.0)) {
            self.figures.repeated.fetch_add(1, Ordering::Relaxed);
            return Ok(Summed { verdict, errors, repeated: true });
        }
        for (index, addition) in &additions {
            let added = inner.state.add(addition, times, |name, block| {
                record::summed(&mut record, name, block);
                if self.forward.is_some() {
                    forwarded.push(Forwarded::of_series(name, block));
                }
            });
            match added {
                Ok(()) => verdict.accepted += 1,
                Err(conflict) => {
                    verdict.rejected += 1;
                    self.figures.refused(conflict.reason(), 1);
                    let field = field_of(&conflict);
                    errors.push(|| FieldError {
                        index: Some(*index),
                        field: field.into(),
                        detail: conflict.to_string(),
                    });
                }
            }
        }
        if verdict.accepted > 0 {
            record::finish_sum(&mut record, start, verdict.accepted, key.map(|key| (key, verdict)));
            if let Some(key) = key {
                inner.state.keys().put(key, verdict, times.0);
            }
            self.note(&mut inner, record);
            if let Some(queue) = &self.forward {
                for forwarded in forwarded {
                    queue.push(forwarded, &self.figures.forward);
                }
            }
            self.show(&inner.state);
            self.figures.pushed(Api::Push);
        }
        drop(inner);
        self.figures.refused(Reason::Invalid, u64::from(rejected));
        Ok(Summed { verdict, errors, repeated: false })
    }

    /// Drops the series of a name that are added up and have these labels. Tells how many.
    pub fn remove(&self, name: &str, labels: &[(String, String)]) -> Result<usize, Refused> {
        if !self.promises() {
            return Err(Refused::LogUnavailable);
        }
        let view = self.view();
        let first = (Name::from(name), Owner::Summed("".into()));
        let of_name = view.blocks.range(first..).take_while(|((found, _), _)| **found == *name);
        let wanted = of_name.filter_map(|((name, owner), _)| match owner {
            Owner::Summed(own) => {
                let has = |(wanted, value): &(String, String)| {
                    metric::rendered(own).any(|(label, found)| label == wanted && found == *value)
                };
                labels.iter().all(has).then(|| (name.clone(), own.clone()))
            }
            Owner::Group(_) => None,
        });
        let wanted: Vec<_> = wanted.collect();
        let removed = self.drop_series(&wanted, |_| true);
        self.figures.deletes.fetch_add(removed as u64, Ordering::Relaxed);
        Ok(removed)
    }

    /// Drops those of the series that `may_go`, being last pushed at that moment.
    fn drop_series(&self, series: &[(Name, Arc<str>)], may_go: impl Fn(Moment) -> bool) -> usize {
        let mut dropped = 0;
        for some in series.chunks(EXPIRED_AT_ONCE) {
            let mut inner = self.lock();
            for (name, labels) in some {
                if inner.state.touched(name, labels).is_some_and(&may_go) {
                    inner.state.remove(name, labels);
                    let mut record = Vec::new();
                    record::remove(&mut record, name, labels);
                    self.note(&mut inner, record);
                    dropped += 1;
                }
            }
            self.show(&inner.state);
        }
        dropped
    }

    /// Drops everything that was pushed.
    pub fn wipe(&self) -> Result<(), Refused> {
        if !self.promises() {
            return Err(Refused::LogUnavailable);
        }
        let mut inner = self.lock();
        let old = inner.state.wipe();
        let mut record = Vec::new();
        record::wipe(&mut record);
        self.note(&mut inner, record);
        self.show(&inner.state);
        drop(inner);
        log::warn!(series_groups = old.groups.len(); "all that was pushed has been wiped, as asked");
        Ok(())
    }

    /// Drops what nobody has pushed for too long.
    pub fn expire(&self) {
        let now = self.clock.now();
        let (mut series, mut groups) = (Vec::new(), Vec::new());
        {
            // Looked through without the lock; whatever is pushed meanwhile is looked at again under it.
            let view = self.view();
            if let Some(ttl) = self.lifetimes.summed {
                let old = |block: &Block| now.since(block.touched) >= ttl;
                let found = view.blocks.iter().filter_map(|((name, owner), block)| match owner {
                    Owner::Summed(labels) if old(block) => Some((name.clone(), labels.clone())),
                    Owner::Summed(_) | Owner::Group(_) => None,
                });
                series.extend(found);
            }
            if let Some(ttl) = self.lifetimes.groups {
                let old = view.groups.iter().filter(|(_, group)| now.since(group.touched) >= ttl);
                groups.extend(old.map(|(key, _)| key.clone()));
            }
        }
        let mut expired = 0;
        if let Some(ttl) = self.lifetimes.summed {
            expired += self.drop_series(&series, |touched| now.since(touched) >= ttl);
        }
        if let Some(ttl) = self.lifetimes.groups {
            for key in groups {
                let mut inner = self.lock();
                if inner.state.group(&key).is_some_and(|group| now.since(group.touched) >= ttl) {
                    let old = inner.state.delete(&key);
                    let mut record = Vec::new();
                    record::delete(&mut record, &key);
                    self.note(&mut inner, record);
                    self.show(&inner.state);
                    drop(inner);
                    drop(old);
                    expired += 1;
                }
            }
        }
        if expired > 0 {
            self.figures.expired.fetch_add(expired as u64, Ordering::Relaxed);
        }
    }

    /// How often to look for what has expired; none where nothing ever does.
    pub fn expire_every(&self) -> Option<Duration> {
        let shortest = self.lifetimes.summed.into_iter().chain(self.lifetimes.groups).min()?;
        Some((shortest / 8).clamp(Duration::from_millis(50), Duration::from_secs(30)))
    }

    /// Has `told` called when all that was changed so far has reached `level`, or cannot.
    pub fn when(&self, level: Level, told: Told) {
        self.lock().waiters.push(Waiter { level, told });
    }

    pub fn wake(&self) {
        self.log_thread.unpark();
    }

    /// Has the log's thread write and sync what it has and end.
    pub fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        self.wake();
    }

    fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::Acquire)
    }

    fn is_waited_for(&self) -> bool {
        !self.lock().waiters.is_empty()
    }

    fn take_pending(&self) -> (Records, Vec<Waiter>) {
        let mut inner = self.lock();
        (std::mem::take(&mut inner.records), std::mem::take(&mut inner.waiters))
    }

    /// A view, and what of it is not in the log.
    fn take_view(&self) -> (View, Records, Vec<Waiter>) {
        let mut inner = self.lock();
        (inner.state.view(), std::mem::take(&mut inner.records), std::mem::take(&mut inner.waiters))
    }

    /// A view that stands for all changes so far.
    fn take_all(&self) -> (View, Vec<Waiter>) {
        let (view, _, waiters) = self.take_view();
        (view, waiters)
    }

    /// Tells those who wait whether their level holds, `level` being reached.
    fn tell(waiters: Vec<Waiter>, level: Level) {
        for waiter in waiters {
            (waiter.told)(waiter.level <= level);
        }
    }

    fn disappoint(&self) {
        let waiters = std::mem::take(&mut self.lock().waiters);
        Self::tell(waiters, Level::Memory);
    }

    fn failed(&self) {
        self.trouble.store(true, Ordering::Release);
    }

    fn healed(&self) {
        self.trouble.store(false, Ordering::Release);
    }
}

/// Which field of a metric a conflict is about.
fn field_of(conflict: &Conflict) -> &'static str {
    match conflict {
        Conflict::Own(_) | Conflict::Reserved(_) | Conflict::Collision { .. } => "name",
        Conflict::Kind { .. } => "type",
        Conflict::Duplicate { .. } | Conflict::Series(_) | Conflict::Bytes(_) => "labels",
        Conflict::Buckets(_) => "buckets",
        Conflict::Overflow(_) => "value",
    }
}
