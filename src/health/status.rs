//! The responses of `/live`, `/ready`, `/health` and `/metrics`: gathers the metrics that other
//! modules own. It reads memory only and never blocks on the database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::database::DatabaseHealth;
use crate::buffer::Buffer;
use crate::clock::{Clock, Moment};
use crate::gateway::Gateway;
use crate::health::{HealthInputs, HealthStatus, ProbeState};
use crate::http::{ConnectionStats, Response};
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::metrics::history::HistoryEntry;
use crate::metrics::text_format::ExpositionFormat;
use crate::metrics::{
    BusinessCache, BusinessMetrics, DiskSpace, FailoverMetrics, HttpMetrics, Ledger, MetricsSnapshot,
    PartitionMetrics, Process, RetentionMetrics, Sampler, SpillMetrics, StallDetector, TailMetrics,
    WriterMetrics, retry_after,
};
use crate::storage::breaker::BreakerState;
use crate::storage::{Breaker, StandbyState};

/// Business metrics are refreshed every 5 s; older ones than this are stale.
const BUSINESS_STALE_MICROS: i64 = 60_000_000;
/// The number of `top_services` in `/health/business`.
const TOP_SERVICES: usize = 10;

/// References to all components whose state is reported.
#[derive(Debug)]
pub struct Status {
    pub buffer: Arc<Buffer>,
    pub journal: Arc<Journal>,
    pub gateway: Arc<Gateway>,
    pub ledger: Arc<Ledger>,
    pub sampler: Arc<Sampler>,
    pub stall: StallDetector,
    pub writer: Arc<WriterMetrics>,
    pub http: Arc<HttpMetrics>,
    pub retention: Arc<RetentionMetrics>,
    pub tails: Arc<TailMetrics>,
    pub partitions: Arc<PartitionMetrics>,
    /// Restarts of the embedded PostgreSQL cluster.
    pub cluster_restarts: Arc<AtomicU64>,
    /// Connection counts of all acceptors.
    pub connections: Arc<ConnectionStats>,
    pub failover: Arc<FailoverMetrics>,
    pub business: Arc<BusinessCache>,
    pub disk: DiskSpace,
    pub database: Arc<ProbeState>,
    /// The standby of `DATABASE_READ_URL`.
    pub standby: Option<Arc<StandbyState>>,
    pub breaker: Arc<Breaker>,
    pub lifecycle: Lifecycle,
    pub clock: Clock,
}

/// The part of the health report that a route returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthPart {
    Overall,
    /// The status without the checks, for requests that may not read metrics.
    StatusOnly,
    Buffer,
    Database,
    Detailed,
}

#[derive(Serialize)]
struct BufferHealth {
    status: HealthStatus,
    size: u64,
    capacity: usize,
    bytes: usize,
    bytes_capacity: usize,
    /// Events that are in the journal and not in the buffer.
    spilled_events: u64,
    spilled_bytes: u64,
    spill_capacity_bytes: u64,
    utilization_percent: f64,
    drop_rate_percent: f64,
    throughput_per_second: f64,
    /// How long events have waited beyond the linger, while the database is up and none was stored.
    stalled_seconds: f64,
}

#[derive(Serialize)]
struct Checks {
    buffer: HealthStatus,
    database: HealthStatus,
    journal: HealthStatus,
    gateway: HealthStatus,
}

#[derive(Serialize)]
struct GatewayHealth {
    status: HealthStatus,
}

#[derive(Serialize)]
struct JournalHealth {
    status: HealthStatus,
    /// Whether the segments of an earlier process are still being replayed.
    recovering: bool,
    segments: u64,
    bytes: u64,
    disk_free_bytes: u64,
}

/// Counts since the start of the process: received = stored + duplicate + dead + lost + buffered.
#[derive(Serialize)]
struct LedgerHealth {
    received: u64,
    stored: u64,
    duplicate: u64,
    dead: u64,
    lost: u64,
    buffered: u64,
}

#[derive(Serialize)]
struct WriterHealth {
    batches: u64,
    events: u64,
    retries: u64,
    average_batch_ms: f64,
}

#[derive(Serialize)]
struct StatusOnlyBody {
    status: HealthStatus,
}

#[derive(Serialize)]
struct HealthBody {
    status: HealthStatus,
    checks: Checks,
}

#[derive(Serialize)]
struct DetailedBody {
    status: HealthStatus,
    phase: String,
    uptime_seconds: u64,
    version: &'static str,
    buffer: BufferHealth,
    database: DatabaseHealth,
    journal: JournalHealth,
    gateway: GatewayHealth,
    writer: WriterHealth,
    ledger: LedgerHealth,
}

/// `GET /health/business`: statistics of all events in the table, including those stored by other
/// servers.
#[derive(Serialize)]
struct BusinessHealth<'a> {
    status: HealthStatus,
    as_of: Option<String>,
    total_events: Option<u64>,
    events_last_24h: Option<u64>,
    events_last_hour: Option<u64>,
    /// Average over the last hour.
    average_events_per_minute: Option<f64>,
    /// The 50 largest services, and the sum of the rest as "other".
    events_by_service: BTreeMap<&'a str, u64>,
    top_services: Vec<ServiceCount<'a>>,
    /// The latest 24 hours that have events.
    events_per_hour: Vec<EventsPerHour>,
}

#[derive(Serialize)]
struct ServiceCount<'a> {
    service: &'a str,
    events: u64,
}

#[derive(Serialize)]
struct EventsPerHour {
    hour: String,
    events: u64,
}

#[derive(Serialize)]
struct ReadyBody {
    status: &'static str,
    reasons: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<&'static str>,
}

impl Status {
    /// `GET /live`: 200 as long as the process answers.
    pub fn live(response: &mut Response) {
        response.content_type = "application/json";
        response.body.extend_from_slice(br#"{"status":"alive"}"#);
    }

    /// `GET /ready`: 200, or 503 with the reasons.
    pub fn ready(&self, response: &mut Response) {
        let inputs = self.health_inputs();
        let (reasons, warnings) = (inputs.not_ready_reasons(), inputs.warnings());
        if !reasons.is_empty() {
            response.status = 503;
            response.header("Retry-After", 1);
        }
        let status = if reasons.is_empty() { "ready" } else { "not ready" };
        write_json(response, &ReadyBody { status, reasons, warnings });
    }

    /// `GET /health…`: 200, or 503 if the requested part is critical.
    pub fn health(&self, part: HealthPart, response: &mut Response) {
        let inputs = self.health_inputs();
        let status = match part {
            HealthPart::Overall | HealthPart::StatusOnly | HealthPart::Detailed => inputs.overall(),
            HealthPart::Buffer => inputs.buffer(),
            HealthPart::Database => inputs.database(),
        };
        if status == HealthStatus::Critical {
            response.status = 503;
        }
        match part {
            HealthPart::Overall => {
                let checks = Checks {
                    buffer: inputs.buffer(),
                    database: inputs.database(),
                    journal: inputs.journal(),
                    gateway: inputs.gateway(),
                };
                write_json(response, &HealthBody { status, checks });
            }
            HealthPart::StatusOnly => write_json(response, &StatusOnlyBody { status }),
            HealthPart::Buffer => write_json(response, &self.buffer_health(&inputs)),
            HealthPart::Database => write_json(response, &self.database_health(&inputs)),
            HealthPart::Detailed => {
                let detailed = DetailedBody {
                    status,
                    phase: format!("{:?}", inputs.phase).to_lowercase(),
                    uptime_seconds: self.clock.now().since(Moment::ZERO).as_secs(),
                    version: env!("CARGO_PKG_VERSION"),
                    buffer: self.buffer_health(&inputs),
                    database: self.database_health(&inputs),
                    journal: self.journal_health(&inputs),
                    gateway: GatewayHealth { status: inputs.gateway() },
                    writer: self.writer_health(),
                    ledger: self.ledger_health(),
                };
                write_json(response, &detailed);
            }
        }
    }

    /// `GET /metrics/prometheus`; and `GET /metrics`, if `Accept` prefers this format.
    pub fn metrics_exposition(&self, format: ExpositionFormat, response: &mut Response) {
        response.content_type = format.content_type();
        response.body = self.with_view(|view| view.encode(format));
    }

    /// `GET /metrics` as JSON, the default.
    pub fn metrics_json(&self, response: &mut Response) {
        response.content_type = "application/json";
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method itself is not general enough"
        )]
        let body = self.with_view(|view| view.encode_json());
        response.body = body;
    }

    /// `Retry-After` in seconds for a producer that is refused because the buffer is full.
    pub fn retry_after(&self) -> u64 {
        let spill = self.buffer.spill();
        if spill.is_disk_behind() {
            return 1;
        }
        let retry_at = self.breaker.retry_at();
        let stalled = retry_at.map_or(Duration::ZERO, |retry_at| retry_at.since(self.clock.now()));
        let settled = self.sampler.rates().settled;
        retry_after(self.buffer.occupied().rows, self.buffer.limits().rows_max, settled, stalled)
    }

    /// `GET /health/business`: statistics of the stored events, at most a few seconds old; degraded
    /// if they are missing or stale.
    pub fn health_business(&self, response: &mut Response) {
        let latest = self.business.latest();
        let age = latest.as_ref().map(|metrics| self.clock.wall().micros() - metrics.as_of.micros());
        let fresh = age.is_some_and(|micros| micros < BUSINESS_STALE_MICROS);
        let metrics = latest.as_deref();
        let hours = metrics.map_or(&[][..], |metrics| &metrics.hours);
        let services = metrics.map_or(&[][..], |metrics| &metrics.services);
        let business = BusinessHealth {
            status: if fresh { HealthStatus::Healthy } else { HealthStatus::Degraded },
            as_of: metrics.map(|metrics| metrics.as_of.to_string()),
            total_events: metrics.map(|metrics| metrics.total),
            events_last_24h: metrics.map(|metrics| metrics.last_24h),
            events_last_hour: metrics.map(|metrics| metrics.last_hour),
            average_events_per_minute: metrics.map(BusinessMetrics::per_minute),
            events_by_service: services.iter().map(|(service, events)| (service.as_str(), *events)).collect(),
            top_services: services
                .iter()
                .filter(|(service, _)| service != "other")
                .take(TOP_SERVICES)
                .map(|(service, events)| ServiceCount { service, events: *events })
                .collect(),
            events_per_hour: hours
                .iter()
                .map(|(hour, events)| EventsPerHour { hour: hour.to_string(), events: *events })
                .collect(),
        };
        write_json(response, &business);
    }

    fn buffer_health(&self, inputs: &HealthInputs) -> BufferHealth {
        let (occupied, limits, rates) = (self.buffer.occupied(), self.buffer.limits(), self.sampler.rates());
        BufferHealth {
            status: inputs.buffer(),
            size: occupied.rows as u64,
            capacity: limits.rows_max,
            bytes: occupied.bytes,
            bytes_capacity: limits.bytes_max,
            spilled_events: self.buffer.spill().events(),
            spilled_bytes: self.buffer.spill().bytes(),
            spill_capacity_bytes: limits.spill_bytes_max,
            utilization_percent: inputs.utilization_percent,
            drop_rate_percent: rates.drop_percent,
            throughput_per_second: rates.received,
            stalled_seconds: self.stall.stalled(self.clock.now()).as_secs_f64(),
        }
    }

    fn database_health(&self, inputs: &HealthInputs) -> DatabaseHealth {
        DatabaseHealth::new(inputs, self.database.down_since(), &self.failover, self.standby.as_deref())
    }

    fn journal_health(&self, inputs: &HealthInputs) -> JournalHealth {
        let metrics = &self.journal.metrics;
        JournalHealth {
            status: inputs.journal(),
            recovering: self.journal.is_recovering(),
            segments: metrics.segments.load(Ordering::Relaxed),
            bytes: metrics.bytes.load(Ordering::Relaxed),
            disk_free_bytes: self.disk.bytes().0,
        }
    }

    fn writer_health(&self) -> WriterHealth {
        let batches = self.writer.batches.load(Ordering::Relaxed);
        let (_, total_ms) = self.writer.totals_ms();
        WriterHealth {
            batches,
            events: self.writer.events.load(Ordering::Relaxed),
            retries: self.writer.retries.load(Ordering::Relaxed),
            #[expect(clippy::cast_precision_loss, reason = "a mean needs no more than 52 bits")]
            average_batch_ms: if batches == 0 { 0.0 } else { total_ms / batches as f64 },
        }
    }

    fn ledger_health(&self) -> LedgerHealth {
        let balance = self.ledger.balance();
        LedgerHealth {
            received: balance.received,
            stored: balance.stored,
            duplicate: balance.duplicate,
            dead: balance.dead,
            lost: balance.lost,
            buffered: balance.buffered(),
        }
    }

    fn health_inputs(&self) -> HealthInputs {
        let (breaker, now) = (self.breaker.state(), self.clock.now());
        HealthInputs {
            phase: self.lifecycle.phase(),
            utilization_percent: self.buffer.utilization_percent(),
            has_room: !self.buffer.is_full(),
            spill_percent: self.buffer.spill().utilization_percent(),
            recovering: self.journal.is_recovering() && !self.journal.is_stalled(),
            journal_fault: self.journal.fault(),
            // The writer opens the breaker before the probe detects an outage.
            database_up: self.database.is_up(now) && breaker != BreakerState::Open,
            breaker,
            stalled: self.stall.is_stalled(now),
            gateway_log_available: self.gateway.is_log_available(),
        }
    }

    /// Takes a sample of the rates and of the progress of the writer.
    pub fn sample(&self, process: &Process) {
        let (now, balance) = (self.clock.now(), self.ledger.balance());
        self.sampler.sample(now, balance, process);
        let database_up = self.health_inputs().database_up;
        self.database.record(database_up, self.clock.wall());
        self.stall.sample(now, balance, database_up);
    }

    /// The current metrics as an entry of the metrics history.
    pub fn history_entry(&self) -> HistoryEntry {
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method itself is not general enough"
        )]
        self.with_view(|view| view.history_entry())
    }

    /// Calls `read` with the current values of all metrics.
    fn with_view<T>(&self, read: impl FnOnce(&MetricsSnapshot<'_>) -> T) -> T {
        let business = self.business.latest();
        let (inputs, now) = (self.health_inputs(), self.clock.now());
        let (enqueue, drain) = self.buffer.last_enqueue_and_drain();
        let since = |moment: Moment| (moment != Moment::ZERO).then(|| now.since(moment));
        read(&MetricsSnapshot {
            wall: self.clock.wall(),
            balance: self.ledger.balance(),
            received_by_input: self.ledger.received_by_input(),
            capacity: self.buffer.limits().rows_max,
            bytes: self.buffer.occupied().bytes,
            bytes_max: self.buffer.limits().bytes_max,
            utilization_percent: inputs.utilization_percent,
            rates: self.sampler.rates(),
            buffer_health: inputs.buffer() as u8,
            health: inputs.overall() as u8,
            database_up: inputs.database_up,
            breaker: match inputs.breaker {
                BreakerState::Closed => 0,
                BreakerState::HalfOpen => 1,
                BreakerState::Open => 2,
            },
            breaker_transitions: self.breaker.transitions(),
            occupied: self.buffer.occupied().rows as u64 + self.buffer.spill().events(),
            spill: SpillMetrics {
                events: self.buffer.spill().events(),
                bytes: self.buffer.spill().bytes(),
                bytes_max: self.buffer.spill().bytes_max(),
                events_total: self.buffer.spill().events_total(),
            },
            disk_bytes: self.disk.bytes(),
            business: business.as_deref(),
            connections: &self.connections,
            since_enqueue: since(enqueue),
            since_drain: since(drain),
            stalled: self.stall.stalled(now),
            stalls: self.stall.stalls(),
            writer: &self.writer,
            http: &self.http,
            retention: &self.retention,
            tails: &self.tails,
            partitions: &self.partitions,
            cluster_restarts: self.cluster_restarts.load(Ordering::Relaxed),
            standby: self.standby.as_deref(),
            journal: &self.journal.metrics,
            failover: &self.failover,
            gateway: &self.gateway.metrics,
            is_forwarding: self.gateway.is_forwarding(),
        })
    }
}

fn write_json(response: &mut Response, body: &impl Serialize) {
    response.content_type = "application/json";
    sonic_rs::to_writer(&mut response.body, body).expect("BUG: the body cannot be serialized as JSON");
}
