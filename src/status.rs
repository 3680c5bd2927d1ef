//! What the server says of itself: gathers the figures that others hold, for health, readiness and metrics. Answers
//! at once, from memory.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::buffer::Buffer;
use crate::clock::{Clock, Moment};
use crate::health::{Condition, Database, Facts};
use crate::http::Response;
use crate::journal::Journal;
use crate::lifecycle::Lifecycle;
use crate::metrics::{HttpFigures, Ledger, RetentionFigures, Sampler, View, WriterFigures, retry_after};
use crate::storage::Breaker;
use crate::storage::breaker::State;

/// Everything that can be asked about.
#[derive(Debug)]
pub struct Status {
    pub buffer: Arc<Buffer>,
    pub journal: Arc<Journal>,
    pub ledger: Arc<Ledger>,
    pub sampler: Arc<Sampler>,
    pub writer: Arc<WriterFigures>,
    pub http: Arc<HttpFigures>,
    pub retention: Arc<RetentionFigures>,
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
                let checks = Checks { buffer: facts.buffer(), database: facts.database() };
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
                };
                write(response, &detailed);
            }
        }
    }

    /// `GET /metrics/prometheus`.
    pub fn metrics_text(&self, response: &mut Response) {
        response.content_type = "text/plain; version=0.0.4; charset=utf-8";
        response.body = self.view().text();
    }

    /// `GET /metrics` for those who do not ask for text.
    pub fn metrics_json(&self, response: &mut Response) {
        response.content_type = "application/json";
        response.body = self.view().json();
    }

    /// Seconds that a producer refused for want of room is told to wait.
    pub fn retry_after(&self) -> u64 {
        let retry_at = self.breaker.retry_at();
        let stalled = retry_at.map_or(Duration::ZERO, |retry_at| retry_at.since(self.clock.now()));
        let settled = self.sampler.rates().settled;
        retry_after(self.buffer.occupied().rows, self.buffer.limits().rows_max, settled, stalled)
    }

    fn buffer_health(&self, facts: &Facts) -> BufferHealth {
        let (occupied, limits, rates) = (self.buffer.occupied(), self.buffer.limits(), self.sampler.rates());
        BufferHealth {
            status: facts.buffer(),
            size: self.ledger.balance().buffered(),
            capacity: limits.rows_max,
            bytes: occupied.bytes,
            bytes_capacity: limits.bytes_max,
            utilization_percent: facts.utilization_percent,
            drop_rate_percent: rates.drop_percent,
            throughput_per_second: rates.received,
        }
    }

    fn facts(&self) -> Facts {
        let breaker = self.breaker.state();
        Facts {
            phase: self.lifecycle.phase(),
            utilization_percent: self.buffer.utilization_percent(),
            room: !self.buffer.is_full(),
            recovering: self.journal.is_recovering(),
            journal: self.journal.trouble(),
            // The writer notices sooner than the probe.
            database_up: self.database.is_up(self.clock.now()) && breaker != State::Open,
            breaker,
        }
    }

    fn view(&self) -> View<'_> {
        let (facts, now) = (self.facts(), self.clock.now());
        let (enqueue, drain) = self.buffer.last_moments();
        let since = |moment: Moment| (moment != Moment::ZERO).then(|| now.since(moment));
        View {
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
            since_enqueue: since(enqueue),
            since_drain: since(drain),
            writer: &self.writer,
            http: &self.http,
            retention: &self.retention,
            journal: &self.journal.figures,
        }
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
