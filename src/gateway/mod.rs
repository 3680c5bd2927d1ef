//! The metrics gateway: accepts pushed metrics by Pushgateway's protocol and by
//! `POST /metrics/push`, which aggregates, and exposes them for Prometheus to scrape.
//!
//! This module owns [`Gateway`], the state that acceptors, the push thread, the scrape thread and
//! the log thread share. One mutex guards it. The mutex is held for in-memory operations only, in
//! time proportional to the series of one push; a scrape or a snapshot clones persistent maps under
//! it. Parsing a body, hashing its series and encoding the log record happen before the lock is
//! taken, and no thread blocks while it holds the lock.
//!
//! Rejected: a thread that owns the state and receives changes, since every push would cost two
//! wakeups; shards by hash, since the kind of a name, the owner of a series and the families of a
//! group must be checked together.

pub mod api_v1;
pub mod apply;
pub mod compare;
mod delete_groups;
pub mod exposition;
pub mod file;
pub mod forward;
pub mod grouping_key;
pub mod handlers;
pub mod idempotency;
mod log_queue;
pub mod metric;
pub mod names;
pub mod native;
mod native_protobuf;
pub mod openapi;
pub mod openmetrics;
mod page_format;
mod page_names;
pub mod protobuf;
pub mod protobuf_page;
mod protobuf_writer;
pub mod push;
pub mod push_thread;
pub mod record;
pub mod recovery;
mod request_head;
pub mod responses;
pub mod scrape;
mod series_hash;
pub mod state;
pub mod steps;
pub mod text;
pub mod validate;
pub mod wal;

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod chunk_tests;
#[cfg(test)]
mod names_tests;
#[cfg(test)]
mod page_tests;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam::sync::{Parker, Unparker};

use crate::clock::{Clock, Moment};
use crate::http::problem::{FieldError, FieldErrors};
use crate::metrics::gateway::{GatewayMetrics, PushApi, RefusalReason};
use apply::ApplyPushError;
use forward::{ForwardQueue, ForwardRequest};
use grouping_key::GroupingKey;
use idempotency::{KeyHash, PushCounts};
pub use log_queue::{PendingRecords, WalWaiter};
use metric::{Block, ParsedBody};
use push::ParsedPush;
use series_hash::SeriesHasher;
use state::{GatewayState, MetricGroup, Name, Owner, Snapshot};
use validate::{ValidatePushError, validate_push};

/// Bytes of records that may wait for the log thread. More wait only if the disk has stalled.
const PENDING_BYTES_MAX: usize = 64 << 20;
/// How long a group is exposed after its last push if all of its pushes were refused.
const FAILED_GROUP_TTL: Duration = Duration::from_hours(1);
/// Series that are deleted under one acquisition of the lock.
const SERIES_PER_LOCK: usize = 256;

/// How long series and groups are exposed after their last push; `None` is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ttl {
    /// Series of `POST /metrics/push`.
    pub aggregated: Option<Duration>,
    /// Groups of Pushgateway's protocol.
    pub groups: Option<Duration>,
}

#[derive(Debug)]
struct GatewayInner {
    state: GatewayState,
    /// Changes that are not in the log yet, in the order in which they were made.
    records: PendingRecords,
    waiters: Vec<WalWaiter>,
}

/// The reason for refusing a whole request.
#[derive(Debug, thiserror::Error)]
pub enum PushMetricsError {
    #[error("{0}")]
    Invalid(#[from] ValidatePushError),
    #[error("{0}")]
    Conflict(#[from] ApplyPushError),
    #[error("the log cannot be written at the moment")]
    LogUnavailable,
}

impl PushMetricsError {
    fn reason(&self) -> RefusalReason {
        match self {
            Self::Invalid(ValidatePushError::Timestamps) => RefusalReason::Timestamps,
            Self::Invalid(ValidatePushError::Duplicate(..) | ValidatePushError::DuplicateBound { .. }) => {
                RefusalReason::Duplicate
            }
            Self::Invalid(_) => RefusalReason::Invalid,
            Self::Conflict(conflict) => conflict.reason(),
            Self::LogUnavailable => RefusalReason::Log,
        }
    }
}

/// The result of a push that is aggregated.
#[derive(Debug)]
pub struct Aggregated {
    pub counts: PushCounts,
    pub errors: FieldErrors,
    /// The idempotency key is known, so nothing was added again.
    pub is_duplicate: bool,
}

/// The state of the gateway, shared by acceptors, the scrape thread and the log thread.
#[derive(Debug)]
pub struct Gateway {
    inner: Mutex<GatewayInner>,
    log_thread: Unparker,
    log_failed: AtomicBool,
    finishing: AtomicBool,
    pub metrics: GatewayMetrics,
    /// `PUSHED_SERIES_MAX`
    series_max: usize,
    hasher: SeriesHasher,
    ttl: Ttl,
    forward: Option<Arc<ForwardQueue>>,
    clock: Clock,
}

impl Gateway {
    /// Wraps a recovered state. The log thread must sleep on the returned parker.
    pub fn new(
        state: GatewayState,
        ttl: Ttl,
        forward: Option<Arc<ForwardQueue>>,
        clock: Clock,
    ) -> (Arc<Self>, Parker) {
        let parker = Parker::new();
        let (series_max, hasher) = (state.limits().series_max, state.hasher());
        let gateway = Self {
            inner: Mutex::new(GatewayInner {
                state,
                records: PendingRecords::default(),
                waiters: Vec::new(),
            }),
            log_thread: parker.unparker().clone(),
            log_failed: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            metrics: GatewayMetrics::default(),
            series_max,
            hasher,
            ttl,
            forward,
            clock,
        };
        gateway.metrics.forward.mismatched.store(-1, Ordering::Relaxed);
        gateway.publish_metrics(&gateway.lock().state);
        (Arc::new(gateway), parker)
    }

    fn lock(&self) -> MutexGuard<'_, GatewayInner> {
        self.inner.lock().expect("BUG: a panic while the gateway was locked")
    }

    pub fn is_forwarding(&self) -> bool {
        self.forward.is_some()
    }

    /// An immutable copy of the current state.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().state.snapshot()
    }

    /// A push with more series is refused: it exceeds the limit and what is there.
    pub fn push_series_max(&self) -> usize {
        let series = self.metrics.series.load(Ordering::Relaxed);
        usize::try_from(series).unwrap_or(usize::MAX).max(self.series_max)
    }

    /// The series of a group, as Prometheus counts them.
    pub fn group_series(&self, grouping_key: &GroupingKey) -> usize {
        self.lock().state.group(&grouping_key.rendered).map_or(0, |group| group.samples)
    }

    /// The monotonic time, and the wall clock in seconds since 1970.
    fn timestamps(&self) -> (Moment, f64) {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of this century are below 2^53")]
        let wall_s = self.clock.wall().micros() as f64 / 1e6;
        (self.clock.now(), wall_s)
    }

    fn publish_metrics(&self, state: &GatewayState) {
        let metrics = &self.metrics;
        metrics.series.store(state.samples() as u64, Ordering::Relaxed);
        metrics.bytes.store(state.bytes() as u64, Ordering::Relaxed);
        metrics.groups.store(state.groups() as u64, Ordering::Relaxed);
    }

    /// Whether the log can be written. Pushes are refused while it cannot.
    pub fn is_log_available(&self) -> bool {
        !self.log_failed.load(Ordering::Acquire)
    }

    /// Queues a record for the log and wakes the log thread if the queue was empty.
    fn queue_record(&self, inner: &mut GatewayInner, record: Vec<u8>) {
        if inner.records.is_empty() {
            self.log_thread.unpark();
        }
        inner.records.push(record);
    }

    /// Pushgateway's PUT (`replace`) or POST. Applies the whole push or nothing.
    pub fn push_group(
        &self,
        grouping_key: GroupingKey,
        parsed: ParsedBody<'_>,
        replace: bool,
        forwarded: impl FnOnce() -> ForwardRequest,
    ) -> Result<(), PushMetricsError> {
        let refuse = |refused: PushMetricsError| {
            self.metrics.record_refused(refused.reason(), 1);
            Err(refused)
        };
        if !self.is_log_available() {
            return refuse(PushMetricsError::LogUnavailable);
        }
        let (grouping_key, times) = (Arc::new(grouping_key), self.timestamps());
        let mut families = match validate_push(&grouping_key, parsed, times) {
            Ok(families) => families,
            Err(error) => {
                self.record_failure(&mut self.lock(), &grouping_key, times);
                return refuse(error.into());
            }
        };
        for (name, block) in &mut families {
            self.hasher.index(name, block);
        }
        let mut record = Vec::new();
        let named = families.iter().map(|(name, block)| (name.as_str(), block));
        record::encode_group(&mut record, &grouping_key, (times.1, f64::NAN), replace, named);
        let forwarded = self.forward.as_ref().map(|queue| (queue, forwarded()));
        let mut inner = self.lock();
        if inner.records.bytes() > PENDING_BYTES_MAX {
            drop(inner);
            return refuse(PushMetricsError::LogUnavailable);
        }
        match inner.state.push(&grouping_key, families, replace, times) {
            Ok(old) => {
                self.queue_record(&mut inner, record);
                if let Some((queue, forwarded)) = forwarded {
                    queue.push(forwarded, &self.metrics.forward);
                }
                self.publish_metrics(&inner.state);
                drop(inner);
                // Freed without the lock, since it may be large.
                drop(old);
                self.metrics.record_push(PushApi::Group);
                Ok(())
            }
            Err(conflict) => {
                self.record_failure(&mut inner, &grouping_key, times);
                drop(inner);
                refuse(conflict.into())
            }
        }
    }

    fn record_failure(
        &self,
        inner: &mut GatewayInner,
        grouping_key: &Arc<GroupingKey>,
        times: (Moment, f64),
    ) {
        if inner.state.record_failure(grouping_key, times) {
            let mut record = Vec::new();
            record::encode_group(&mut record, grouping_key, (f64::NAN, times.1), false, std::iter::empty());
            self.queue_record(inner, record);
            self.publish_metrics(&inner.state);
        }
    }

    /// Pushgateway's DELETE.
    pub fn delete_group(
        &self,
        grouping_key: &GroupingKey,
        forwarded: impl FnOnce() -> ForwardRequest,
    ) -> Result<(), PushMetricsError> {
        if !self.is_log_available() {
            return Err(PushMetricsError::LogUnavailable);
        }
        let forwarded = self.forward.as_ref().map(|queue| (queue, forwarded()));
        let mut inner = self.lock();
        let old = inner.state.delete(&grouping_key.rendered);
        if old.is_some() {
            let mut record = Vec::new();
            record::encode_delete(&mut record, &grouping_key.rendered);
            self.queue_record(&mut inner, record);
            self.publish_metrics(&inner.state);
        }
        if let Some((queue, forwarded)) = forwarded {
            queue.push(forwarded, &self.metrics.forward);
        }
        drop(inner);
        drop(old);
        self.metrics.deletes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// `POST /metrics/push`: applies each valid metric to its series, once per idempotency key.
    pub fn push_aggregated(
        &self,
        pushed: ParsedPush,
        key: Option<KeyHash>,
    ) -> Result<Aggregated, PushMetricsError> {
        let refuse = || {
            self.metrics.record_refused(RefusalReason::Log, 1);
            Err(PushMetricsError::LogUnavailable)
        };
        if !self.is_log_available() {
            return refuse();
        }
        let times = self.timestamps();
        let ParsedPush { updates, mut errors, rejected } = pushed;
        let mut counts = PushCounts { accepted: 0, rejected };
        let mut forwarded = Vec::new();
        let mut record = Vec::with_capacity(64 + 128 * updates.len());
        let start = record::begin_aggregated(&mut record);
        let mut inner = self.lock();
        if inner.records.bytes() > PENDING_BYTES_MAX {
            drop(inner);
            return refuse();
        }
        if let Some(counts) = key.and_then(|key| inner.state.keys().get(&key, times.0)) {
            self.metrics.duplicate_pushes.fetch_add(1, Ordering::Relaxed);
            return Ok(Aggregated { counts, errors, is_duplicate: true });
        }
        for (index, update) in &updates {
            let added = inner.state.apply(update, times, |name, block| {
                record::encode_series(&mut record, name, block);
                if self.forward.is_some() {
                    forwarded.push(ForwardRequest::from_series(name, block));
                }
            });
            match added {
                Ok(()) => counts.accepted += 1,
                Err(conflict) => {
                    counts.rejected += 1;
                    self.metrics.record_refused(conflict.reason(), 1);
                    let field = field_name(&conflict);
                    errors.push(|| FieldError {
                        index: Some(*index),
                        field: field.into(),
                        detail: conflict.to_string(),
                    });
                }
            }
        }
        if counts.accepted > 0 {
            record::finish_aggregated(&mut record, start, counts.accepted, key.map(|key| (key, counts)));
            if let Some(key) = key {
                inner.state.keys().insert(key, counts, times.0);
            }
            self.queue_record(&mut inner, record);
            if let Some(queue) = &self.forward {
                for forwarded in forwarded {
                    queue.push(forwarded, &self.metrics.forward);
                }
            }
            self.publish_metrics(&inner.state);
            self.metrics.record_push(PushApi::Push);
        }
        drop(inner);
        self.metrics.record_refused(RefusalReason::Invalid, u64::from(rejected));
        Ok(Aggregated { counts, errors, is_duplicate: false })
    }

    /// Deletes the aggregated series that have this name and these labels. Returns their number.
    pub fn delete_series(&self, name: &str, labels: &[(String, String)]) -> Result<usize, PushMetricsError> {
        if !self.is_log_available() {
            return Err(PushMetricsError::LogUnavailable);
        }
        let snapshot = self.snapshot();
        let first = (Name::from(name), Owner::Aggregated("".into()));
        let of_name = snapshot.blocks.range(first..).take_while(|((found, _), _)| **found == *name);
        let wanted = of_name.filter_map(|((name, owner), _)| match owner {
            Owner::Aggregated(own) => {
                let has = |(wanted, value): &(String, String)| {
                    metric::rendered_labels(own).any(|(label, found)| label == *wanted && found == *value)
                };
                labels.iter().all(has).then(|| (name.clone(), own.clone()))
            }
            Owner::Group(_) => None,
        });
        let wanted: Vec<_> = wanted.collect();
        let removed = self.drop_series(&wanted, |_| true);
        self.metrics.deletes.fetch_add(removed as u64, Ordering::Relaxed);
        Ok(removed)
    }

    /// Deletes the series for whose last push `may_go` returns true. Returns their number.
    fn drop_series(&self, series: &[(Name, Arc<str>)], may_go: impl Fn(Moment) -> bool) -> usize {
        let mut dropped = 0;
        for chunk in series.chunks(SERIES_PER_LOCK) {
            let mut inner = self.lock();
            for (name, labels) in chunk {
                if inner.state.last_push(name, labels).is_some_and(&may_go) {
                    inner.state.remove(name, labels);
                    let mut record = Vec::new();
                    record::encode_remove(&mut record, name, labels);
                    self.queue_record(&mut inner, record);
                    dropped += 1;
                }
            }
            self.publish_metrics(&inner.state);
        }
        dropped
    }

    /// Deletes all series and groups.
    pub fn wipe(&self) -> Result<(), PushMetricsError> {
        if !self.is_log_available() {
            return Err(PushMetricsError::LogUnavailable);
        }
        let mut inner = self.lock();
        let old = inner.state.wipe();
        let mut record = Vec::new();
        record::encode_wipe(&mut record);
        self.queue_record(&mut inner, record);
        self.publish_metrics(&inner.state);
        drop(inner);
        log::warn!(groups = old.groups.len(); "all pushed series and groups have been deleted by request");
        Ok(())
    }

    /// Deletes series and groups whose TTL has passed.
    pub fn expire(&self) {
        let now = self.clock.now();
        let (mut series, mut groups) = (Vec::new(), Vec::new());
        {
            // The scan runs without the lock; each deletion checks the TTL again under the lock.
            let snapshot = self.snapshot();
            if let Some(ttl) = self.ttl.aggregated {
                let old = |block: &Block| now.since(block.last_push) >= ttl;
                let found = snapshot.blocks.iter().filter_map(|((name, owner), block)| match owner {
                    Owner::Aggregated(labels) if old(block) => Some((name.clone(), labels.clone())),
                    Owner::Aggregated(_) | Owner::Group(_) => None,
                });
                series.extend(found);
            }
            let old = snapshot.groups.iter().filter(|(_, group)| self.is_group_expired(group, now));
            groups.extend(old.map(|(key, _)| key.clone()));
        }
        let mut expired = 0;
        if let Some(ttl) = self.ttl.aggregated {
            expired += self.drop_series(&series, |touched| now.since(touched) >= ttl);
        }
        for key in groups {
            let mut inner = self.lock();
            if inner.state.group(&key).is_some_and(|group| self.is_group_expired(group, now)) {
                let old = inner.state.delete(&key);
                let mut record = Vec::new();
                record::encode_delete(&mut record, &key);
                self.queue_record(&mut inner, record);
                self.publish_metrics(&inner.state);
                drop(inner);
                drop(old);
                expired += 1;
            }
        }
        if expired > 0 {
            self.metrics.expired.fetch_add(expired as u64, Ordering::Relaxed);
        }
    }

    fn is_group_expired(&self, group: &MetricGroup, now: Moment) -> bool {
        let failed_ttl = group.is_failed().then_some(FAILED_GROUP_TTL);
        let ttl = self.ttl.groups.into_iter().chain(failed_ttl).min();
        ttl.is_some_and(|ttl| now.since(group.last_push) >= ttl)
    }

    /// The interval between calls of [`Self::expire`].
    pub fn expire_interval(&self) -> Duration {
        let ttls = self.ttl.aggregated.into_iter().chain(self.ttl.groups);
        let shortest = ttls.fold(FAILED_GROUP_TTL, Duration::min);
        (shortest / 8).clamp(Duration::from_millis(50), Duration::from_secs(30))
    }
}

/// The field of the metric that the error is reported for.
fn field_name(conflict: &ApplyPushError) -> &'static str {
    match conflict {
        ApplyPushError::GroupMetric(_) | ApplyPushError::Collision { .. } => "name",
        ApplyPushError::KindMismatch { .. } => "type",
        ApplyPushError::Duplicate { .. }
        | ApplyPushError::TooManySeries(_)
        | ApplyPushError::TooManyFamilies(_)
        | ApplyPushError::TooManyBytes(_) => "labels",
        ApplyPushError::BucketMismatch(_) => "buckets",
        ApplyPushError::Overflow(_) => "value",
    }
}
