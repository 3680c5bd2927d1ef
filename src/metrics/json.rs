//! The JSON form of `GET /metrics`: the metrics of buffer, writer and ledger.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;

use super::exposition::MetricsSnapshot;
use super::rates::to_f64;
use crate::event::Timestamp;

impl MetricsSnapshot<'_> {
    /// The metrics of buffer, writer and ledger as JSON.
    pub fn encode_json(&self) -> Vec<u8> {
        let (insert_ms, total_ms) = self.writer.totals_ms();
        let batches = self.writer.batches.load(Ordering::Relaxed);
        let mean = |sum: f64| if batches == 0 { 0.0 } else { sum / to_f64(batches) };
        let ms = |since: Option<Duration>| since.map(|since| since.as_secs_f64() * 1e3);
        let time = |since: Option<Duration>| {
            let micros = i64::try_from(since?.as_micros()).ok()?;
            Some(Timestamp::from_micros(self.wall.micros() - micros).to_string())
        };
        let metrics = MetricsJson {
            size: self.size(),
            capacity: self.capacity,
            bytes: self.bytes,
            bytes_capacity: self.bytes_max,
            spilled_events: self.spilled_events(),
            spilled_bytes: self.spill.bytes,
            spill_capacity_bytes: self.spill.bytes_max,
            utilization_percent: self.utilization_percent,
            health_status: ["critical", "degraded", "healthy"][usize::from(self.buffer_health)],
            total_enqueued: self.balance.received,
            total_dropped: self.balance.dropped.iter().sum(),
            drop_rate_percent: self.rates.drop_percent,
            throughput_per_second: self.rates.received,
            last_enqueue_time: time(self.since_enqueue),
            last_drain_time: time(self.since_drain),
            time_since_last_enqueue_ms: ms(self.since_enqueue),
            time_since_last_drain_ms: ms(self.since_drain),
            total_batches_processed: batches,
            total_events_processed: self.writer.events.load(Ordering::Relaxed),
            total_insert_time_ms: insert_ms,
            total_processing_time_ms: total_ms,
            average_batch_processing_time_ms: mean(total_ms),
            average_insert_time_ms: mean(insert_ms),
            total_retries: self.writer.retries.load(Ordering::Relaxed),
            ledger: LedgerJson {
                received: self.balance.received,
                stored: self.balance.stored,
                duplicate: self.balance.duplicate,
                dead: self.balance.dead,
                lost: self.balance.lost,
                buffered: self.balance.buffered(),
            },
        };
        sonic_rs::to_vec(&metrics).expect("BUG: numbers and strings are serializable")
    }
}

/// `GET /metrics` as JSON. Timestamps are RFC 3339 in UTC, null before the first event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MetricsJson {
    size: u64,
    capacity: usize,
    bytes: usize,
    bytes_capacity: usize,
    spilled_events: u64,
    spilled_bytes: u64,
    spill_capacity_bytes: u64,
    utilization_percent: f64,
    health_status: &'static str,
    total_enqueued: u64,
    total_dropped: u64,
    drop_rate_percent: f64,
    throughput_per_second: f64,
    last_enqueue_time: Option<String>,
    last_drain_time: Option<String>,
    time_since_last_enqueue_ms: Option<f64>,
    time_since_last_drain_ms: Option<f64>,
    total_batches_processed: u64,
    total_events_processed: u64,
    total_insert_time_ms: f64,
    total_processing_time_ms: f64,
    average_batch_processing_time_ms: f64,
    average_insert_time_ms: f64,
    total_retries: u64,
    ledger: LedgerJson,
}

#[derive(Serialize)]
struct LedgerJson {
    received: u64,
    stored: u64,
    duplicate: u64,
    dead: u64,
    lost: u64,
    buffered: u64,
}
