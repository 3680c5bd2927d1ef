//! What the server says of itself: gathers the figures that others hold, for health, readiness and metrics. Answers
//! at once, from memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::buffer::Buffer;
use crate::clock::{Clock, Moment};
use crate::gateway::Gateway;
use crate::health::{Condition, Database, Facts};
use crate::http::{Response, Shared};
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::metrics::history::Entry;
use crate::metrics::{
    Business, BusinessFigures, DiskRoom, Form, HttpFigures, Ledger, RetentionFigures, Sampler, Spilled, View,
    WriterFigures, retry_after,
};
use crate::storage::Breaker;
use crate::storage::breaker::State;

/// Business figures are refreshed every 5 s: older than this, something keeps them from being.
const BUSINESS_OLD_MICROS: i64 = 60_000_000;
/// How many services `/health/business` calls the top.
const TOP_SERVICES: usize = 10;

/// Everything that can be asked about.
#[derive(Debug)]
pub struct Status {
    pub buffer: Arc<Buffer>,
    pub journal: Arc<Journal>,
    pub gateway: Arc<Gateway>,
    pub ledger: Arc<Ledger>,
    pub sampler: Arc<Sampler>,
    pub writer: Arc<WriterFigures>,
    pub http: Arc<HttpFigures>,
    pub retention: Arc<RetentionFigures>,
    /// How often a private cluster was started again.
    pub cluster_restarts: Arc<AtomicU64>,
    /// What the acceptors count together.
    pub connections: Arc<Shared>,
    pub business: Arc<Business>,
    pub disk: DiskRoom,
    pub database: Arc<Database>,
    pub breaker: Arc<Breaker>,
    pub lifecycle: Lifecycle,
    pub clock: Clock,
}

/// Which part `/health/…` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Overall,
    /// No more than how it is, for everybody.
    Word,
    Buffer,
    Database,
    Detailed,
}

#[derive(Serialize)]
struct BufferHealth {
    status: Condition,
    size: u64,
    capacity: usize,
    bytes: usize,
    bytes_capacity: usize,
    /// In the journal only, beside these.
    spilled_events: u64,
    spilled_bytes: u64,
    spill_capacity_bytes: u64,
    utilization_percent: f64,
    drop_rate_percent: f64,
    throughput_per_second: f64,
}

#[derive(Serialize)]
struct DatabaseHealth {
    status: Condition,
    connected: bool,
    circuit_breaker: &'static str,
}

#[derive(Serialize)]
struct Checks {
    buffer: Condition,
    database: Condition,
    journal: Condition,
}

#[derive(Serialize)]
struct JournalHealth {
    status: Condition,
    /// Whether what an earlier process left is still being replayed.
    recovering: bool,
    segments: u64,
    bytes: u64,
    disk_free_bytes: u64,
}

/// Since the start: received = stored + duplicate + dead + lost + buffered.
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
struct Word {
    status: Condition,
}

#[derive(Serialize)]
struct Health {
    status: Condition,
    checks: Checks,
}

#[derive(Serialize)]
struct Detailed {
    status: Condition,
    phase: String,
    uptime_seconds: u64,
    version: &'static str,
    buffer: BufferHealth,
    database: DatabaseHealth,
    journal: JournalHealth,
    writer: WriterHealth,
    ledger: LedgerHealth,
}

/// `GET /health/business`. Of all events in the table, whichever server stored them.
#[derive(Serialize)]
struct BusinessHealth<'a> {
    status: Condition,
    as_of: Option<String>,
    total_events: Option<u64>,
    events_last_24h: Option<u64>,
    events_last_hour: Option<u64>,
    /// Over the last hour.
    average_events_per_minute: Option<f64>,
    /// The 50 largest, and "other" for the rest.
    events_by_service: BTreeMap<&'a str, u64>,
    top_services: Vec<TopService<'a>>,
    /// The last 24 hours that have events.
    events_per_hour: Vec<PerHour>,
}

#[derive(Serialize)]
struct TopService<'a> {
    service: &'a str,
    events: u64,
}

#[derive(Serialize)]
struct PerHour {
    hour: String,
    events: u64,
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    reasons: Vec<&'static str>,
}

impl Status {
    /// `GET /live`: the process answers, whatever else is the matter.
    pub fn live(response: &mut Response) {
        response.content_type = "application/json";
        response.body.extend_from_slice(br#"{"status":"alive"}"#);
    }

    /// `GET /ready`: 200, or 503 with the reasons.
    pub fn ready(&self, response: &mut Response) {
        let reasons = self.facts().not_ready();
        if !reasons.is_empty() {
            response.status = 503;
            response.header("Retry-After", 1);
        }
        let status = if reasons.is_empty() { "ready" } else { "not ready" };
        write(response, &Ready { status, reasons });
    }

    /// `GET /health…`: 200, or 503 when what is asked for is critical.
    pub fn health(&self, part: Part, response: &mut Response) {
        let facts = self.facts();
        let condition = match part {
            Part::Overall | Part::Word | Part::Detailed => facts.overall(),
            Part::Buffer => facts.buffer(),
            Part::Database => facts.database(),
        };
        if condition == Condition::Critical {
            response.status = 503;
        }
        match part {
            Part::Overall => {
                let checks =
                    Checks { buffer: facts.buffer(), database: facts.database(), journal: facts.journal() };
                write(response, &Health { status: condition, checks });
            }
            Part::Word => write(response, &Word { status: condition }),
            Part::Buffer => write(response, &self.buffer_health(&facts)),
            Part::Database => write(response, &database_health(&facts)),
            Part::Detailed => {
                let detailed = Detailed {
                    status: condition,
                    phase: format!("{:?}", facts.phase).to_lowercase(),
                    uptime_seconds: self.clock.now().since(Moment::ZERO).as_secs(),
                    version: env!("CARGO_PKG_VERSION"),
                    buffer: self.buffer_health(&facts),
                    database: database_health(&facts),
                    journal: self.journal_health(&facts),
                    writer: self.writer_health(),
                    ledger: self.ledger_health(),
                };
                write(response, &detailed);
            }
        }
    }

    /// `GET /metrics/prometheus`.
    pub fn metrics_text(&self, response: &mut Response) {
        response.content_type = "text/plain; version=0.0.4; charset=utf-8";
        response.body = self.figures(Form::Text);
    }

    /// `GET /metrics` for those who ask for `OpenMetrics` first.
    pub fn metrics_openmetrics(&self, response: &mut Response) {
        response.content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.body = self.figures(Form::OpenMetrics);
    }

    /// `GET /metrics` for those who do not ask for text.
    pub fn metrics_json(&self, response: &mut Response) {
        response.content_type = "application/json";
        response.body = self.figures(Form::Json);
    }

    /// Seconds that a producer refused for want of room is told to wait.
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

    /// `GET /health/business`: what is stored, as it was a few seconds ago; degraded while that is not known, or old.
    pub fn health_business(&self, response: &mut Response) {
        let latest = self.business.latest();
        let age = latest.as_ref().map(|figures| self.clock.wall().micros() - figures.as_of.micros());
        let fresh = age.is_some_and(|micros| micros < BUSINESS_OLD_MICROS);
        let figures = latest.as_deref();
        let hours = figures.map_or(&[][..], |figures| &figures.hours);
        let services = figures.map_or(&[][..], |figures| &figures.services);
        let business = BusinessHealth {
            status: if fresh { Condition::Healthy } else { Condition::Degraded },
            as_of: figures.map(|figures| figures.as_of.to_string()),
            total_events: figures.map(|figures| figures.total),
            events_last_24h: figures.map(|figures| figures.last_24h),
            events_last_hour: figures.map(|figures| figures.last_hour),
            average_events_per_minute: figures.map(BusinessFigures::per_minute),
            events_by_service: services.iter().map(|(service, events)| (service.as_str(), *events)).collect(),
            top_services: services
                .iter()
                .filter(|(service, _)| service != "other")
                .take(TOP_SERVICES)
                .map(|(service, events)| TopService { service, events: *events })
                .collect(),
            events_per_hour: hours
                .iter()
                .map(|(hour, events)| PerHour { hour: hour.to_string(), events: *events })
                .collect(),
        };
        write(response, &business);
    }

    fn buffer_health(&self, facts: &Facts) -> BufferHealth {
        let (occupied, limits, rates) = (self.buffer.occupied(), self.buffer.limits(), self.sampler.rates());
        BufferHealth {
            status: facts.buffer(),
            size: occupied.rows as u64,
            capacity: limits.rows_max,
            bytes: occupied.bytes,
            bytes_capacity: limits.bytes_max,
            spilled_events: self.buffer.spill().events(),
            spilled_bytes: self.buffer.spill().bytes(),
            spill_capacity_bytes: limits.spill_bytes_max,
            utilization_percent: facts.utilization_percent,
            drop_rate_percent: rates.drop_percent,
            throughput_per_second: rates.received,
        }
    }

    fn journal_health(&self, facts: &Facts) -> JournalHealth {
        let figures = &self.journal.figures;
        JournalHealth {
            status: facts.journal(),
            recovering: self.journal.is_recovering(),
            segments: figures.segments.load(Ordering::Relaxed),
            bytes: figures.bytes.load(Ordering::Relaxed),
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

    fn facts(&self) -> Facts {
        let breaker = self.breaker.state();
        Facts {
            phase: self.lifecycle.phase(),
            utilization_percent: self.buffer.utilization_percent(),
            room: !self.buffer.is_full(),
            spill_percent: self.buffer.spill().utilization_percent(),
            recovering: self.journal.is_recovering() && !self.journal.is_stalled(),
            journal: self.journal.trouble(),
            // The writer notices sooner than the probe.
            database_up: self.database.is_up(self.clock.now()) && breaker != State::Open,
            breaker,
        }
    }

    /// A line of the history, of this moment.
    pub fn entry(&self) -> Entry {
        #[expect(
            clippy::redundant_closure_for_method_calls,
            reason = "the method itself is not general enough"
        )]
        self.view(|view| view.entry())
    }

    fn figures(&self, form: Form) -> Vec<u8> {
        self.view(|view| view.written(form))
    }

    /// All figures of this moment.
    fn view<T>(&self, read: impl FnOnce(&View<'_>) -> T) -> T {
        let business = self.business.latest();
        let (facts, now) = (self.facts(), self.clock.now());
        let (enqueue, drain) = self.buffer.last_moments();
        let since = |moment: Moment| (moment != Moment::ZERO).then(|| now.since(moment));
        read(&View {
            wall: self.clock.wall(),
            balance: self.ledger.balance(),
            capacity: self.buffer.limits().rows_max,
            bytes: self.buffer.occupied().bytes,
            bytes_max: self.buffer.limits().bytes_max,
            utilization_percent: facts.utilization_percent,
            rates: self.sampler.rates(),
            buffer_health: facts.buffer() as u8,
            health: facts.overall() as u8,
            database_up: facts.database_up,
            breaker: match facts.breaker {
                State::Closed => 0,
                State::HalfOpen => 1,
                State::Open => 2,
            },
            breaker_transitions: self.breaker.transitions(),
            occupied: self.buffer.occupied().rows as u64 + self.buffer.spill().events(),
            spill: Spilled {
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
            writer: &self.writer,
            http: &self.http,
            retention: &self.retention,
            cluster_restarts: self.cluster_restarts.load(Ordering::Relaxed),
            journal: &self.journal.figures,
            gateway: &self.gateway,
        })
    }
}

fn database_health(facts: &Facts) -> DatabaseHealth {
    DatabaseHealth {
        status: facts.database(),
        connected: facts.database_up,
        circuit_breaker: facts.breaker.name(),
    }
}

fn write(response: &mut Response, body: &impl Serialize) {
    response.content_type = "application/json";
    sonic_rs::to_writer(&mut response.body, body).expect("numbers and words can be written as JSON");
}
