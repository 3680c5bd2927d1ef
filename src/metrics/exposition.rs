//! The figures as Prometheus reads them (text format 0.0.4) and as JSON.
//!
//! The names are a contract with dashboards and alerts; `View` says where each figure comes from.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};
use serde::Serialize;

use super::business::BusinessFigures;
use super::family::{Value, family};
use super::history::Entry;
use super::http::{HttpFigures, Requests};
use super::ledger::{Balance, Reason};
use super::openmetrics;
use super::rates::{Rates, float};
use super::retention::RetentionFigures;
use super::writer::WriterFigures;
use crate::event::Timestamp;
use crate::gateway::Gateway;
use crate::http::Shared;
use crate::journal::{Figures as JournalFigures, Op};

/// How the figures are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Prometheus text format 0.0.4.
    Text,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The buffer's and the writer's alone.
    Json,
}

/// What lies in the journal only.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spilled {
    pub events: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    pub events_total: u64,
}

/// All figures at one moment.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub wall: Timestamp,
    pub balance: Balance,
    /// Events the buffer holds at most.
    pub capacity: usize,
    pub bytes: usize,
    pub bytes_max: usize,
    pub utilization_percent: f64,
    pub rates: Rates,
    /// 2 healthy, 1 degraded, 0 critical.
    pub buffer_health: u8,
    pub health: u8,
    pub database_up: bool,
    /// 0 closed, 1 half-open, 2 open.
    pub breaker: u8,
    pub breaker_transitions: u64,
    /// What the buffer holds by its own count, with what is spilled: it must be what the ledger has not settled.
    pub occupied: u64,
    pub spill: Spilled,
    /// Free, and in all, on the disk of the data directory; zeros when not known.
    pub disk_bytes: (u64, u64),
    pub business: Option<&'a BusinessFigures>,
    pub connections: &'a Shared,
    pub since_enqueue: Option<Duration>,
    pub since_drain: Option<Duration>,
    pub writer: &'a WriterFigures,
    pub http: &'a HttpFigures,
    pub retention: &'a RetentionFigures,
    pub cluster_restarts: u64,
    pub journal: &'a JournalFigures,
    pub gateway: &'a Gateway,
}

impl View<'_> {
    pub fn written(&self, form: Form) -> Vec<u8> {
        match form {
            Form::Text => self.text(),
            Form::OpenMetrics => openmetrics::encode(&self.families()).into_bytes(),
            Form::Json => self.json(),
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
        let mut families = self.plain();
        families.extend(self.retention());
        families.push(self.dropped());
        families.extend(journal(self.journal));
        families.extend(self.spilled());
        families.extend(self.gateway.figures.families(self.gateway.forwards()));
        families.extend(self.writer.processing_ms.collect());
        families.extend(self.writer.insert_ms.collect());
        families.extend(self.business.map(business).into_iter().flatten());
        families.extend(self.connections());
        families.extend(self.disk());
        families.extend(self.requests());
        families
    }

    fn plain(&self) -> Vec<MetricFamily> {
        let balance = self.balance;
        let count = |count: u64| Value::Counter(float(count));
        let loaded = |count: &AtomicU64| Value::Counter(float(count.load(Ordering::Relaxed)));
        let gauge = Value::Gauge;
        [
            ("buffer_size", "Events in the buffer and not yet committed.", gauge(float(self.size()))),
            (
                "events_buffered",
                "Events admitted and not yet committed, in the buffer or spilled to the journal.",
                gauge(float(balance.buffered())),
            ),
            ("buffer_capacity", "Events the buffer holds at most.", gauge(float(self.capacity as u64))),
            (
                "buffer_bytes",
                "Bytes of the events admitted and not yet committed.",
                gauge(float(self.bytes as u64)),
            ),
            ("buffer_bytes_capacity", "Bytes the buffer holds at most.", gauge(float(self.bytes_max as u64))),
            (
                "buffer_utilization_percent",
                "How full the buffer is, by events or by bytes, whichever is more.",
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
            ("events_duplicate_total", "Events that were stored already.", count(balance.duplicate)),
            (
                "events_dead_total",
                "Events that PostgreSQL refused, kept as dead letters.",
                count(balance.dead),
            ),
            ("events_lost_total", "Spilled events that the disk has not kept.", count(balance.lost)),
            (
                "events_drop_rate_percent",
                "Valid events refused for want of room, of all valid ones, over the last 10 s.",
                gauge(self.rates.drop_percent),
            ),
            (
                "events_throughput_per_second",
                "Events admitted per second, over the last 10 s.",
                gauge(self.rates.received),
            ),
            ("batches_processed_total", "Batches settled.", loaded(&self.writer.batches)),
            ("events_processed_total", "Events settled in batches.", loaded(&self.writer.events)),
            (
                "batch_retries_total",
                "Tries at the database that failed and were made again.",
                loaded(&self.writer.retries),
            ),
            (
                "health_status",
                "The server: 2 healthy, 1 degraded, 0 critical.",
                gauge(f64::from(self.health)),
            ),
            (
                "database_connection_status",
                "Whether the database answered when it was last asked: 1 yes, 0 no.",
                gauge(f64::from(u8::from(self.database_up))),
            ),
            (
                "embedded_postgres_restarts_total",
                "Starts of the private cluster after somebody else had ended it.",
                count(self.cluster_restarts),
            ),
            ("circuit_breaker_state", "0 closed, 1 half-open, 2 open.", gauge(f64::from(self.breaker))),
            (
                "circuit_breaker_transitions_total",
                "Changes of the circuit breaker's state.",
                count(self.breaker_transitions),
            ),
            (
                "ledger_imbalance_events",
                "Events by which ledger and buffer disagree. For a moment, under load, a few do.",
                gauge(float(balance.buffered().abs_diff(self.occupied))),
            ),
            (
                "process_cpu_usage_percent",
                "CPU time over the last 10 s, in percent of one core.",
                gauge(self.rates.cpu_percent),
            ),
            ("process_memory_usage_bytes", "Resident memory.", gauge(float(self.rates.memory_bytes))),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    /// Of what is not committed, what is in memory.
    fn size(&self) -> u64 {
        self.balance.buffered() - self.spilled_events()
    }

    /// The rest. Counts are read one after the other: they are made to add up.
    fn spilled_events(&self) -> u64 {
        let (buffered, spilled) = (self.balance.buffered(), self.spill.events);
        let beyond = buffered.saturating_sub(self.capacity as u64);
        if spilled == 0 { 0 } else { spilled.max(beyond).min(buffered) }
    }

    fn spilled(&self) -> Vec<MetricFamily> {
        [
            (
                "journal_spilled_events",
                "Events that lie in the journal only, since the buffer had no room.",
                Value::Gauge(float(self.spilled_events())),
            ),
            ("journal_spilled_bytes", "Their bytes.", Value::Gauge(float(self.spill.bytes))),
            (
                "journal_spill_capacity_bytes",
                "Bytes that may be spilled: SPILL_MAX_BYTES.",
                Value::Gauge(float(self.spill.bytes_max)),
            ),
            (
                "journal_spill_events_total",
                "Events ever spilled.",
                Value::Counter(float(self.spill.events_total)),
            ),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    fn retention(&self) -> Vec<MetricFamily> {
        let figures = self.retention;
        let count =
            |count: &std::sync::atomic::AtomicU64| Value::Counter(float(count.load(Ordering::Relaxed)));
        let last = u64::try_from(figures.last_run_s.load(Ordering::Relaxed)).unwrap_or(0);
        [
            ("retention_runs_total", "Sweeps that came to their end.", count(&figures.runs)),
            ("retention_failures_total", "Sweeps that failed.", count(&figures.failures)),
            (
                "retention_events_deleted_total",
                "Events removed as too old, with their partition or row by row.",
                count(&figures.events),
            ),
            ("retention_dead_deleted_total", "Dead letters removed as too old.", count(&figures.dead)),
            ("retention_partitions_dropped_total", "Partitions dropped.", count(&figures.partitions)),
            (
                "events_default_moved_total",
                "Events moved out of the default partition into those of their days.",
                count(&figures.default_moved),
            ),
            (
                "events_default_partition_rows",
                "Events in the default partition, counted up to 10000; it is looked at every minute.",
                Value::Gauge(float(figures.default_rows.load(Ordering::Relaxed))),
            ),
            (
                "retention_last_run_timestamp_seconds",
                "When the last sweep came to its end; 0 when none has.",
                Value::Gauge(float(last)),
            ),
        ]
        .into_iter()
        .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
        .collect()
    }

    fn dropped(&self) -> MetricFamily {
        let metrics = Reason::ALL
            .into_iter()
            .zip(self.balance.dropped)
            .map(|(reason, events)| (vec![("reason", reason.label())], Value::Counter(float(events))))
            .collect();
        family("events_dropped_total", "Events refused at the edge, by reason.", metrics)
    }

    fn connections(&self) -> Vec<MetricFamily> {
        let count = |name, help, count| family(name, help, vec![(Vec::new(), Value::Counter(float(count)))]);
        let http = self.connections;
        vec![
            family(
                "http_connections",
                "Connections open now.",
                vec![(Vec::new(), Value::Gauge(float(http.connections() as u64)))],
            ),
            count("http_connections_accepted_total", "Connections accepted.", http.accepted()),
            count(
                "http_connections_rejected_total",
                "Connections closed at once because there were too many.",
                http.turned_away(),
            ),
            count("http_accept_errors_total", "Failures to accept a connection.", http.accept_errors()),
            count(
                "http_timeouts_total",
                "Connections closed because their client was too slow.",
                http.timeouts(),
            ),
            count("http_panics_total", "Requests whose handler panicked.", http.panics()),
        ]
    }

    fn disk(&self) -> Vec<MetricFamily> {
        let (free, all) = self.disk_bytes;
        if all == 0 {
            return Vec::new();
        }
        let gauge = |name, help, bytes| family(name, help, vec![(Vec::new(), Value::Gauge(float(bytes)))]);
        vec![
            gauge("data_dir_free_bytes", "Bytes free on the disk of DATA_DIR.", free),
            gauge("data_dir_capacity_bytes", "Bytes of the disk of DATA_DIR.", all),
        ]
    }

    fn requests(&self) -> Vec<MetricFamily> {
        let all = self.http.collect();
        if all.is_empty() {
            return Vec::new();
        }
        let statuses: Vec<_> = all.iter().map(|(.., status, _)| status_label(*status)).collect();
        let labelled = |value: fn(&Requests) -> Value| {
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
                "Milliseconds from a whole request to its answer.",
                labelled(Value::histogram),
            ),
            family(
                "http_request_total",
                "Requests answered.",
                labelled(|requests| Value::Counter(float(requests.count()))),
            ),
        ]
    }

    /// A line of the history.
    pub fn entry(&self) -> Entry {
        Entry {
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

    /// The buffer's and the writer's figures for `GET /metrics`.
    fn json(&self) -> Vec<u8> {
        let (insert_ms, total_ms) = self.writer.totals_ms();
        let batches = self.writer.batches.load(Ordering::Relaxed);
        let mean = |sum: f64| if batches == 0 { 0.0 } else { sum / float(batches) };
        let ms = |since: Option<Duration>| since.map(|since| since.as_secs_f64() * 1e3);
        let time = |since: Option<Duration>| {
            let micros = i64::try_from(since?.as_micros()).ok()?;
            Some(Timestamp::from_micros(self.wall.micros() - micros).to_string())
        };
        let figures = FiguresJson {
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
        sonic_rs::to_vec(&figures).expect("numbers and words can be written as JSON")
    }
}

/// `GET /metrics` as JSON. Times of day are RFC 3339 in UTC, null before the first event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FiguresJson {
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

/// Of all events in the table, whichever server stored them.
fn business(figures: &BusinessFigures) -> Vec<MetricFamily> {
    let gauge = |name, help, events| family(name, help, vec![(Vec::new(), Value::Gauge(float(events)))]);
    let mut families = vec![
        family(
            "business_events_total",
            "Events stored by all servers on this database. It does not shrink when old ones are dropped.",
            vec![(Vec::new(), Value::Counter(float(figures.counted)))],
        ),
        gauge(
            "business_events_last_24h",
            "Stored events of the last 24 hours, by their timestamps.",
            figures.last_24h,
        ),
        gauge(
            "business_events_last_hour",
            "Stored events of the last hour, by their timestamps.",
            figures.last_hour,
        ),
    ];
    if !figures.services.is_empty() {
        let services = figures.services.iter();
        let metrics = services
            .map(|(service, events)| (vec![("service", service.as_str())], Value::Gauge(float(*events))));
        families.push(family(
            "business_events_by_service",
            "Events in the table, by service: the 50 largest, and all others together.",
            metrics.collect(),
        ));
    }
    families
}

fn journal(figures: &JournalFigures) -> Vec<MetricFamily> {
    let load = |figure: &AtomicU64| float(figure.load(Ordering::Relaxed));
    let failures = Op::ALL.into_iter().zip(&figures.failures);
    let failures =
        failures.map(|(op, count)| (vec![("op", op.label())], Value::Counter(load(count)))).collect();
    let mut families: Vec<_> = [
        ("journal_segments", "Files of the journal.", Value::Gauge(load(&figures.segments))),
        ("journal_bytes", "Bytes in them.", Value::Gauge(load(&figures.bytes))),
        (
            "journal_segments_pending",
            "Files from before the start that are still to be replayed.",
            Value::Gauge(load(&figures.unread)),
        ),
        ("journal_written_total", "Events written to the journal.", Value::Counter(load(&figures.written))),
        (
            "journal_synced_total",
            "Events synced to disk. Those committed before that need it no more and are not counted.",
            Value::Counter(load(&figures.synced)),
        ),
        (
            "journal_recovered_total",
            "Events brought back from the journal after the start.",
            Value::Counter(load(&figures.recovered)),
        ),
        (
            "journal_corrupt_ranges_total",
            "Damaged stretches of the journal that were skipped.",
            Value::Counter(load(&figures.skipped)),
        ),
        (
            "journal_torn_bytes_total",
            "Bytes cut off at the end of segments: what was being written when the process went.",
            Value::Counter(load(&figures.torn_bytes)),
        ),
        (
            "journal_lag_ms",
            "How long the oldest event waited when the journal was last written.",
            Value::Gauge(load(&figures.lag_nanos) / 1e6),
        ),
    ]
    .into_iter()
    .map(|(name, help, value)| family(name, help, vec![(Vec::new(), value)]))
    .collect();
    families.push(family("journal_failures_total", "Failures of the journal's files.", failures));
    families
}

fn status_label(status: u16) -> String {
    if status == 0 { "other".to_owned() } else { status.to_string() }
}
