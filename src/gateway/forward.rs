//! Forwards pushes to a Pushgateway during a migration. One thread sends the pushes in order and
//! retries failures with full jitter, so that the order within a group is kept. The queue is
//! bounded: when it is full the oldest pushes are dropped and counted. Requests never wait for the
//! forwarding.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rand::RngExt;
use rand::rngs::StdRng;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::config::ConfigBuilder;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::typestate::AgentScope;

use super::Gateway;
use super::exposition::render_block;
use super::grouping_key::GroupingKey;
use super::metric::{Block, Label, rendered_labels};
use super::names::{NameEscaping, NameKind, escape_name};
use crate::clock::Clock;
use crate::logging::RateLimitedLog;
use crate::metrics::gateway::ForwardMetrics;

/// Limits of the queue: pushes and their bytes.
const QUEUE_MAX: usize = 10_000;
const QUEUE_BYTES_MAX: usize = 64 << 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often an idle thread polls the queue and `stop`.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const ERROR_LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The job of an aggregated series without a label `job`: Pushgateway requires one.
pub const DEFAULT_JOB: &str = "aurore-events";

/// A request to forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRequest {
    pub method: &'static str,
    /// Percent-encoded, with the leading slash.
    pub path: String,
    pub content_type: Option<String>,
    pub content_encoding: Option<String>,
    pub body: Vec<u8>,
}

impl ForwardRequest {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.path.len() + self.body.len()
    }

    /// The deletion of a group.
    pub fn delete_group(grouping_key: &GroupingKey) -> Self {
        let labels = grouping_key.labels.iter().map(|(name, value)| (&**name, &**value));
        let path = group_path(grouping_key.job(), labels);
        Self { method: "DELETE", path, content_type: None, content_encoding: None, body: Vec::new() }
    }

    /// The current value of an aggregated series, pushed to a group of all its labels.
    pub fn from_series(name: &str, block: &Block) -> Self {
        let labels: Vec<Label<'_>> = rendered_labels(&block.series[0].labels).collect();
        let job = labels.iter().find(|(name, _)| *name == "job").map_or(DEFAULT_JOB, |(_, job)| job);
        let path = group_path(job, labels.iter().map(|(name, value)| (&**name, &**value)));
        let body = render_block(name, block);
        Self { method: "POST", path, content_type: None, content_encoding: None, body: body.into_bytes() }
    }
}

/// The path of the group with these labels; `job` may be among them.
fn group_path<'a>(job: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut path = "/metrics".to_owned();
    write_label(&mut path, "job", job);
    for (name, value) in labels.filter(|(name, _)| *name != "job") {
        write_label(&mut path, name, value);
    }
    path
}

/// All but the unreserved characters of RFC 3986, section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Appends a label to a path. An empty value or one with a slash needs base64.
fn write_label(path: &mut String, name: &str, value: &str) {
    let name = escape_name(name, NameKind::Label, NameEscaping::Values);
    if value.is_empty() || value.contains('/') {
        write!(path, "/{name}@base64/{}", base64(value.as_bytes())).expect("writing to a string cannot fail");
        return;
    }
    write!(path, "/{name}/").expect("writing to a string cannot fail");
    path.extend(utf8_percent_encode(value, RESERVED));
}

/// Base64 with the URL-safe alphabet; Pushgateway writes an empty value as a single `=`.
fn base64(bytes: &[u8]) -> String {
    if bytes.is_empty() { "=".to_owned() } else { URL_SAFE_NO_PAD.encode(bytes) }
}

/// The pushes to send, and their bytes. The lock is held for single queue operations.
#[derive(Debug, Default)]
pub struct ForwardQueue {
    waiting: Mutex<(VecDeque<ForwardRequest>, usize)>,
}

impl ForwardQueue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<ForwardRequest>, usize)> {
        self.waiting.lock().expect("BUG: a panic while the queue was locked")
    }

    /// Adds a push and drops the oldest ones beyond the limits.
    pub fn push(&self, forwarded: ForwardRequest, metrics: &ForwardMetrics) {
        let mut waiting = self.lock();
        waiting.1 += forwarded.bytes();
        waiting.0.push_back(forwarded);
        while waiting.0.len() > QUEUE_MAX || (waiting.1 > QUEUE_BYTES_MAX && waiting.0.len() > 1) {
            let Some(oldest) = waiting.0.pop_front() else { break };
            waiting.1 -= oldest.bytes();
            metrics.dropped.fetch_add(1, Ordering::Relaxed);
        }
        metrics.queued.store(waiting.0.len() as u64, Ordering::Relaxed);
    }

    fn pop(&self, metrics: &ForwardMetrics) -> Option<ForwardRequest> {
        let mut waiting = self.lock();
        let oldest = waiting.0.pop_front()?;
        waiting.1 -= oldest.bytes();
        metrics.queued.store(waiting.0.len() as u64, Ordering::Relaxed);
        Some(oldest)
    }
}

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SendOutcome {
    Accepted,
    /// A permanent error: not retried.
    Rejected(String),
    /// A transient error: retried.
    Failed(String),
}

/// The blocking HTTP client for a Pushgateway. Responses of any status are returned as `Ok`.
pub fn http_client() -> ureq::Agent {
    http_client_config().timeout_global(Some(REQUEST_TIMEOUT)).build().new_agent()
}

/// The configuration of every client, without timeouts.
pub fn http_client_config() -> ConfigBuilder<AgentScope> {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // The system's certificate store, so that a company's own CA is trusted.
        .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
}

#[derive(Debug)]
pub struct Forwarder {
    pub gateway: Arc<Gateway>,
    pub queue: Arc<ForwardQueue>,
    /// Without a trailing slash.
    pub url: String,
    pub clock: Clock,
}

impl Forwarder {
    /// Runs until the sender of `stop` is dropped, then sends the queued pushes up to the first
    /// failure.
    pub fn run(&self, stop: &Receiver<()>) {
        let (agent, metrics) = (http_client(), &self.gateway.metrics.forward);
        let (mut rng, error_log) = (self.clock.rng(), RateLimitedLog::new(ERROR_LOG_INTERVAL));
        let stopped = |wait| stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        let mut stopping = false;
        loop {
            let Some(next) = self.queue.pop(metrics) else {
                if stopping {
                    return;
                }
                stopping = stopped(POLL_INTERVAL);
                continue;
            };
            let mut backoff = BACKOFF_FIRST;
            loop {
                match self.send(&agent, &next) {
                    SendOutcome::Accepted => {
                        metrics.sent.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    SendOutcome::Rejected(reason) => {
                        metrics.refused.fetch_add(1, Ordering::Relaxed);
                        if let Some(suppressed) = error_log.due(self.clock.now()) {
                            log::warn!(suppressed; "the Pushgateway refused a forwarded push, which is dropped: {reason}");
                        }
                        break;
                    }
                    SendOutcome::Failed(reason) => {
                        metrics.retries.fetch_add(1, Ordering::Relaxed);
                        if let Some(suppressed) = error_log.due(self.clock.now()) {
                            log::warn!(suppressed; "cannot forward a push to the Pushgateway, will retry: {reason}");
                        }
                        if stopping || stopped(jittered(backoff, &mut rng)) {
                            return;
                        }
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                    }
                }
            }
        }
    }

    fn send(&self, agent: &ureq::Agent, push: &ForwardRequest) -> SendOutcome {
        let url = format!("{}{}", self.url, push.path);
        let result = if push.method == "DELETE" {
            agent.delete(&url).call()
        } else {
            let mut request = if push.method == "PUT" { agent.put(&url) } else { agent.post(&url) };
            if let Some(kind) = &push.content_type {
                request = request.header("Content-Type", kind);
            }
            if let Some(coding) = &push.content_encoding {
                request = request.header("Content-Encoding", coding);
            }
            request.send(&push.body[..])
        };
        match result {
            Ok(response) if response.status().is_success() => SendOutcome::Accepted,
            Ok(mut response) => {
                let status = response.status();
                let body = response.body_mut().with_config().limit(4096).read_to_string().unwrap_or_default();
                let reason = format!("{status}: {}", body.trim());
                if status.is_client_error() && status != 408 && status != 429 {
                    SendOutcome::Rejected(reason)
                } else {
                    SendOutcome::Failed(reason)
                }
            }
            Err(error) => SendOutcome::Failed(error.to_string()),
        }
    }
}

/// Full jitter, so that clients that failed together do not retry together.
fn jittered(wait: Duration, rng: &mut StdRng) -> Duration {
    wait.mul_f64(rng.random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::metric::{BlockIndex, MetricKind, Series, SeriesValue};

    #[test]
    fn forwarded_series_path_parses_to_the_same_labels() {
        let labels = r#"a="x/y",empty="",job="j","x.y"="dots",z="ä \"q\"""#;
        let series = vec![Series { labels: labels.into(), value: SeriesValue::Number(3.0) }];
        let block = Block {
            kind: MetricKind::Counter,
            help: "h".into(),
            series,
            last_push: crate::clock::Moment::ZERO,
            last_push_wall_s: 0.0,
            index: BlockIndex::default(),
        };
        let forwarded = ForwardRequest::from_series("c_total", &block);
        let path = crate::http::percent::decode(&forwarded.path).unwrap();
        let grouping_key = GroupingKey::parse(path.strip_prefix("/metrics/").unwrap()).unwrap();
        assert_eq!(&*grouping_key.rendered, labels);
        let deleted = ForwardRequest::delete_group(&grouping_key);
        assert_eq!((deleted.method, deleted.path), ("DELETE", forwarded.path));
        let body = String::from_utf8(forwarded.body).unwrap();
        assert!(body.starts_with("# HELP c_total h\n# TYPE c_total counter\nc_total{"), "{body}");
    }

    #[test]
    fn full_queue_drops_and_counts_the_oldest_pushes() {
        let (queue, metrics) = (ForwardQueue::default(), ForwardMetrics::default());
        let push = |nth: usize, bytes| ForwardRequest {
            method: "POST",
            path: nth.to_string(),
            content_type: None,
            content_encoding: None,
            body: vec![0; bytes],
        };
        (0..QUEUE_MAX + 3).for_each(|nth| queue.push(push(nth, 0), &metrics));
        assert_eq!(metrics.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(queue.pop(&metrics).unwrap().path, "3");
        (0..70).for_each(|nth| queue.push(push(nth, 1 << 20), &metrics));
        let mut left = 0;
        while queue.pop(&metrics).is_some() {
            left += 1;
        }
        assert_eq!(left, 63, "the pushes that fit into 64 MiB");
        queue.push(push(0, QUEUE_BYTES_MAX + 1), &metrics);
        assert!(queue.pop(&metrics).is_some(), "one is always kept");
        assert_eq!(queue.lock().1, 0);
    }
}
