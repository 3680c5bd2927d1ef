//! Deletes the groups that have some labels. Pushgateway has no such operation: its DELETE takes a whole
//! grouping key.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::forward::ForwardRequest;
use super::grouping_key::GroupingKey;
use super::state::MetricGroup;
use super::{Gateway, PushMetricsError, record};

impl Gateway {
    /// Deletes the groups that have all of these labels; an empty value equals an absent label. Returns
    /// their number. Groups that are pushed meanwhile may stay.
    pub fn delete_groups(&self, labels: &[(String, String)]) -> Result<usize, PushMetricsError> {
        if !self.is_log_available() {
            return Err(PushMetricsError::LogUnavailable);
        }
        let matches = |group: &MetricGroup| {
            labels.iter().all(|(name, value)| {
                let own = group.grouping_key.labels.iter().find(|(own, _)| own == name);
                own.map_or("", |(_, own)| own) == value
            })
        };
        let snapshot = self.snapshot();
        let found = snapshot.groups.values().filter(|group| matches(group));
        let found: Vec<Arc<GroupingKey>> = found.map(|group| Arc::clone(&group.grouping_key)).collect();
        drop(snapshot);
        // One group under one acquisition of the lock.
        let deleted = found.iter().filter(|grouping_key| self.delete_found_group(grouping_key)).count();
        self.metrics.deletes.fetch_add(deleted as u64, Ordering::Relaxed);
        Ok(deleted)
    }

    /// Returns whether the group was still there.
    fn delete_found_group(&self, grouping_key: &GroupingKey) -> bool {
        let mut inner = self.lock();
        let Some(old) = inner.state.delete(&grouping_key.rendered) else { return false };
        let mut record = Vec::new();
        record::encode_delete(&mut record, &grouping_key.rendered);
        self.queue_record(&mut inner, record);
        self.publish_metrics(&inner.state);
        if let Some(queue) = &self.forward {
            queue.push(ForwardRequest::delete_group(grouping_key), &self.metrics.forward);
        }
        drop(inner);
        // Freed without the lock, since it may be large.
        drop(old);
        true
    }
}
