//! Encodes a snapshot of all metrics as Prometheus text (0.0.4) or OpenMetrics.
//!
//! Metric names are a contract with dashboards and alerts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};

use super::business::{BusinessMetrics, business_families};
use super::failover::{FailoverMetrics, failover_families};
use super::family::{MetricValue, family};
use super::gateway::GatewayMetrics;
use super::history::HistoryEntry;
use super::http::{HttpMetrics, RequestCounts};
use super::journal::{JournalMetrics, journal_families};
use super::ledger::{Balance, DropReason, EventInput};
use super::openmetrics;
use super::partitions::PartitionMetrics;
use super::rates::{WindowRates, to_f64};
use super::retention::RetentionMetrics;
use super::standby::standby_families;
use super::tail::{TailMetrics, tail_families};
use super::text_format::ExpositionFormat;
use super::writer::WriterMetrics;
use crate::event::Timestamp;
use crate::http::ConnectionStats;
use crate::storage::StandbyState;

/// Events that are in the journal only.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpillMetrics {
    pub events: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    pub events_total: u64,
}

/// All metrics at one point in time.
#[derive(Clone, Copy, Debug)]
pub struct MetricsSnapshot<'a> {
    pub wall: Timestamp,
    pub balance: Balance,
    /// In the order of [`EventInput::ALL`].
    pub received_by_input: [u64; EventInput::ALL.len()],
    /// Maximum number of events in the buffer.
    pub capacity: usize,
    pub bytes: usize,
    pub bytes_max: usize,
    pub utilization_percent: f64,
    pub rates: WindowRates,
    /// 2 healthy, 1 degraded, 0 critical.
    pub buffer_health: u8,
    pub health: u8,
    pub database_up: bool,
    /// 0 closed, 1 half-open, 2 open.
    pub breaker: u8,
    pub breaker_transitions: u64,
    /// Buffered and spilled events by the buffer's own count. Must equal the ledger's `buffered`.
    pub occupied: u64,
    pub spill: SpillMetrics,
    /// Free and total bytes of the data directory's file system; zeros if unknown.
    pub disk_bytes: (u64, u64),
    pub business: Option<&'a BusinessMetrics>,
    pub connections: &'a ConnectionStats,
    pub since_enqueue: Option<Duration>,
    pub since_drain: Option<Duration>,
    pub stalled: Duration,
    pub stalls: u64,
    pub writer: &'a WriterMetrics,
    pub http: &'a HttpMetrics,
    pub retention: &'a RetentionMetrics,
    pub tails: &'a TailMetrics,
    pub partitions: &'a PartitionMetrics,
    pub cluster_restarts: u64,
    /// The standby that serves queries, if there is one; only then its metrics are shown.
    pub standby: Option<&'a StandbyState>,
    pub journal: &'a JournalMetrics,
    pub failover: &'a FailoverMetrics,
    pub gateway: &'a GatewayMetrics,
    /// Whether pushes are forwarded to a Pushgateway; only then the metrics of forwarding are
    /// shown.
    pub is_forwarding: bool,
}

impl MetricsSnapshot<'_> {
    pub fn encode(&self, format: ExpositionFormat) -> Vec<u8> {
        match format {
            ExpositionFormat::Text => self.text(),
            ExpositionFormat::OpenMetrics => openmetrics::encode(&self.families()).into_bytes(),
        }
    }

    fn text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new()
            .encode(&self.families(), &mut text)
            .expect("BUG: every family has a name and a metric");
        text
    }

    fn families(&self) -> Vec<MetricFamily> {
        let mut families = self.ledger_families();
        families.extend(self.operational_families());
        families.extend(self.standby.map(standby_families).into_iter().flatten());
        families.extend(self.retention_families());
        families.extend(self.partitions.families(self.wall));
        families.push(self.input_family());
        families.push(self.dropped_family());
        families.extend(journal_families(self.journal));
        families.extend(failover_families(self.failover));
        families.extend(self.spill_families());
        families.extend(self.gateway.families(self.is_forwarding));
        families.extend(self.writer.processing_ms.collect());
        families.extend(self.writer.insert_ms.collect());
        families.extend(self.business.map(business_families).into_iter().flatten());
        families.extend(tail_families(self.tails));
        families.extend(self.connection_families());
        families.extend(self.disk_families());
        families.extend(self.request_families());
        families
    }

    /// The buffer and the ledger.
    fn ledger_families(&self) -> Vec<MetricFamily> {
        let balance = self.balance;
        let count = |count: u64| MetricValue::Counter(to_f64(count));
        let gauge = MetricValue::Gauge;
        [
            ("buffer_size", "Events in the buffer and not yet committed.", gauge(to_f64(self.size()))),
            (
                "events_buffered",
                "Events admitted and not yet committed, in the buffer or spilled to the journal.",
                gauge(to_f64(balance.buffered())),
            ),
            (
                "buffer_capacity",
                "Maximum number of events in the buffer.",
                gauge(to_f64(self.capacity as u64)),
            ),
            (
                "buffer_bytes",
                "Bytes of the events admitted and not yet committed.",
                gauge(to_f64(self.bytes as u64)),
            ),
            ("buffer_bytes_capacity", "Maximum bytes in the buffer.", gauge(to_f64(self.bytes_max as u64))),
            (
                "buffer_utilization_percent",
                "Buffer utilization by events or by bytes, whichever is higher.",
                gauge(self.utilization_percent),
            ),
            (
                "buffer_health_status",
                "Buffer: 2 healthy, 1 degraded (from 80 %), 0 critical (from 95 %).",
                gauge(f64::from(self.buffer_health)),
            ),
            ("events_enqueued_total", "Events put into the buffer.", count(balance.received)),
            (
                "events_received_total",
                "Events admitted. Ledger: received = stored + duplicate + dead + buffered (+ lost).",
                count(balance.received),
            ),
            ("events_stored_total", "Events committed to the table.", count(balance.stored)),
            ("events_duplicate_total", "Events found stored already.", count(balance.duplicate)),
            (
                "events_dead_total",
                "Events that PostgreSQL rejected, stored as dead letters.",
                count(balance.dead),
            ),
            (
                "events_lost_total",
                "Spilled events that could not be read back from the journal.",
                count(balance.lost),
            ),
            (
                "events_drop_rate_percent",
                "Percentage of valid events rejected by a full buffer, over the last 10 s.",
                gauge(self.rates.drop_percent),
            ),
            (
                "events_throughput_per_second",
                "Events admitted per second, over the last 10 s.",
                gauge(self.rates.received),
            ),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    /// The writer, the database and the process.
    fn operational_families(&self) -> Vec<MetricFamily> {
        let count = |count: u64| MetricValue::Counter(to_f64(count));
        let loaded = |count: &AtomicU64| MetricValue::Counter(to_f64(count.load(Ordering::Relaxed)));
        let gauge = MetricValue::Gauge;
        [
            ("batches_processed_total", "Batches settled.", loaded(&self.writer.batches)),
            ("events_processed_total", "Events settled in batches.", loaded(&self.writer.events)),
            (
                "batch_retries_total",
                "Database calls of the writer that failed and were retried.",
                loaded(&self.writer.retries),
            ),
            (
                "buffer_stalled_seconds",
                "Seconds, beyond DRAIN_INTERVAL, that events wait while the database is up and none is stored.",
                gauge(self.stalled.as_secs_f64()),
            ),
            ("buffer_stalls_total", "Such stalls of at least 5 s.", count(self.stalls)),
            (
                "health_status",
                "Health of the server: 2 healthy, 1 degraded, 0 critical.",
                gauge(f64::from(self.health)),
            ),
            (
                "database_connection_status",
                "Whether the last health probe reached the database: 1 yes, 0 no.",
                gauge(f64::from(u8::from(self.database_up))),
            ),
            (
                "embedded_postgres_restarts_total",
                "Restarts of the private cluster after it ended unexpectedly.",
                count(self.cluster_restarts),
            ),
            ("circuit_breaker_state", "0 closed, 1 half-open, 2 open.", gauge(f64::from(self.breaker))),
            (
                "circuit_breaker_transitions_total",
                "State transitions of the circuit breaker.",
                count(self.breaker_transitions),
            ),
            (
                "ledger_imbalance_events",
                "Difference between ledger and buffer in events. Briefly nonzero under load.",
                gauge(to_f64(self.balance.buffered().abs_diff(self.occupied))),
            ),
            (
                "process_cpu_usage_percent",
                "CPU time over the last 10 s, in percent of one core.",
                gauge(self.rates.cpu_percent),
            ),
            ("process_memory_usage_bytes", "Resident memory.", gauge(to_f64(self.rates.memory_bytes))),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    /// Uncommitted events in memory.
    pub(super) fn size(&self) -> u64 {
        self.balance.buffered() - self.spilled_events()
    }

    /// Uncommitted events in the journal only. The counts are read one after the other, so the
    /// result is bounded to add up with `size`.
    pub(super) fn spilled_events(&self) -> u64 {
        let (buffered, spilled) = (self.balance.buffered(), self.spill.events);
        let beyond = buffered.saturating_sub(self.capacity as u64);
        if spilled == 0 { 0 } else { spilled.max(beyond).min(buffered) }
    }

    fn spill_families(&self) -> Vec<MetricFamily> {
        [
            (
                "journal_spilled_events",
                "Events in the journal only, spilled by a full buffer.",
                MetricValue::Gauge(to_f64(self.spilled_events())),
            ),
            (
                "journal_spilled_bytes",
                "Bytes of the events in the journal only.",
                MetricValue::Gauge(to_f64(self.spill.bytes)),
            ),
            (
                "journal_spill_capacity_bytes",
                "Maximum bytes of spilled events: SPILL_MAX_BYTES.",
                MetricValue::Gauge(to_f64(self.spill.bytes_max)),
            ),
            (
                "journal_spill_events_total",
                "Events spilled.",
                MetricValue::Counter(to_f64(self.spill.events_total)),
            ),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    fn retention_families(&self) -> Vec<MetricFamily> {
        let metrics = self.retention;
        let count = |count: &AtomicU64| MetricValue::Counter(to_f64(count.load(Ordering::Relaxed)));
        let last = u64::try_from(metrics.last_run_s.load(Ordering::Relaxed)).unwrap_or(0);
        [
            ("retention_runs_total", "Sweeps completed.", count(&metrics.runs)),
            ("retention_failures_total", "Sweeps that failed.", count(&metrics.failures)),
            (
                "retention_events_deleted_total",
                "Expired events removed, with their partition or row by row.",
                count(&metrics.events),
            ),
            ("retention_dead_deleted_total", "Expired dead letters removed.", count(&metrics.dead)),
            ("retention_partitions_dropped_total", "Partitions dropped.", count(&metrics.partitions)),
            (
                "retention_last_run_timestamp_seconds",
                "End of the last completed sweep; 0: none.",
                MetricValue::Gauge(to_f64(last)),
            ),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    fn input_family(&self) -> MetricFamily {
        let metrics = EventInput::ALL
            .into_iter()
            .zip(self.received_by_input)
            .map(|(input, events)| (vec![("input", input.label())], MetricValue::Counter(to_f64(events))))
            .collect();
        family(
            "events_received_by_input_total",
            "Events admitted from clients, by the format in which they were sent.",
            metrics,
        )
    }

    fn dropped_family(&self) -> MetricFamily {
        let metrics = DropReason::ALL
            .into_iter()
            .zip(self.balance.dropped)
            .map(|(reason, events)| (vec![("reason", reason.label())], MetricValue::Counter(to_f64(events))))
            .collect();
        family("events_dropped_total", "Events rejected before admission, by reason.", metrics)
    }

    fn connection_families(&self) -> Vec<MetricFamily> {
        let count =
            |name, help, count| family(name, help, vec![(Vec::new(), MetricValue::Counter(to_f64(count)))]);
        let http = self.connections;
        vec![
            family(
                "http_connections",
                "Connections open now.",
                vec![(Vec::new(), MetricValue::Gauge(to_f64(http.connections() as u64)))],
            ),
            count("http_connections_accepted_total", "Connections accepted.", http.accepted()),
            count(
                "http_connections_rejected_total",
                "Connections closed at once, above the maximum.",
                http.rejected(),
            ),
            count("http_accept_errors_total", "Failures to accept a connection.", http.accept_errors()),
            count("http_timeouts_total", "Connections closed by a timeout of the client.", http.timeouts()),
            count("http_panics_total", "Requests whose handler panicked.", http.panics()),
        ]
    }

    fn disk_families(&self) -> Vec<MetricFamily> {
        let (free, all) = self.disk_bytes;
        if all == 0 {
            return Vec::new();
        }
        let gauge =
            |name, help, bytes| family(name, help, vec![(Vec::new(), MetricValue::Gauge(to_f64(bytes)))]);
        vec![
            gauge("data_dir_free_bytes", "Free bytes on the file system of DATA_DIR.", free),
            gauge("data_dir_capacity_bytes", "Total bytes of the file system of DATA_DIR.", all),
        ]
    }

    fn request_families(&self) -> Vec<MetricFamily> {
        let all = self.http.collect();
        if all.is_empty() {
            return Vec::new();
        }
        let statuses: Vec<_> = all.iter().map(|(.., status, _)| status_label(*status)).collect();
        let labelled = |value: fn(&RequestCounts) -> MetricValue| {
            all.iter()
                .zip(&statuses)
                .map(|((method, route, _, requests), status)| {
                    let labels =
                        vec![("method", method.name()), ("route", *route), ("status", status.as_str())];
                    (labels, value(requests))
                })
                .collect()
        };
        vec![
            family(
                "http_request_duration_ms",
                "Milliseconds from the complete request to its response.",
                labelled(MetricValue::histogram),
            ),
            family(
                "http_request_total",
                "Responses sent.",
                labelled(|requests| MetricValue::Counter(to_f64(requests.count()))),
            ),
        ]
    }

    /// The history line of this snapshot.
    pub fn history_entry(&self) -> HistoryEntry {
        HistoryEntry {
            ts: self.wall.to_string(),
            received: self.balance.received,
            stored: self.balance.stored,
            duplicate: self.balance.duplicate,
            dead: self.balance.dead,
            dropped: self.balance.dropped.iter().sum(),
            buffered: self.balance.buffered(),
            utilization_percent: self.utilization_percent,
            throughput_per_second: self.rates.received,
            drop_rate_percent: self.rates.drop_percent,
            batches: self.writer.batches.load(Ordering::Relaxed),
            database_up: self.database_up,
            breaker: self.breaker,
            cpu_percent: self.rates.cpu_percent,
            memory_bytes: self.rates.memory_bytes,
        }
    }
}

fn status_label(status: u16) -> String {
    if status == 0 { "other".to_owned() } else { status.to_string() }
}
