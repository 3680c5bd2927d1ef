//! Forwards what was pushed to a Pushgateway, for as long as both are run side by side. One thread sends, one push after
//! the other, so that the order within a group is kept; a push that fails is tried again with full jitter. The queue is
//! bounded: when it is full the oldest pushes go, and are counted. No request ever waits for it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use rand::RngExt;
use rand::rngs::StdRng;

use super::Gateway;
use super::exposition::series_of;
use super::figures::ForwardFigures;
use super::metric::{Block, escape, rendered};
use crate::clock::Clock;
use crate::logging::Thinned;

/// Pushes that wait, and their bytes.
const QUEUE_MAX: usize = 10_000;
const QUEUE_BYTES_MAX: usize = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(30);
/// How often an idle thread looks for a push, and whether it is to end.
const IDLE: Duration = Duration::from_millis(50);
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// The job of a series of `POST /metrics/push` that has none: a Pushgateway must have one.
pub const DEFAULT_JOB: &str = "aurore-events";

/// A request as it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    pub method: &'static str,
    /// With its leading slash, percent-encoded.
    pub path: String,
    pub content_type: Option<String>,
    pub coding: Option<String>,
    pub body: Vec<u8>,
}

impl Forwarded {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.path.len() + self.body.len()
    }

    /// A series that is added up here: its total, in a group of all its labels.
    pub fn of_series(name: &str, block: &Block) -> Self {
        let labels: Vec<(&str, Cow<'_, str>)> = rendered(&block.series[0].labels).collect();
        let job = labels.iter().find(|(name, _)| *name == "job").map_or(DEFAULT_JOB, |(_, job)| job);
        let mut path = "/metrics".to_owned();
        write_pair(&mut path, "job", job);
        labels
            .iter()
            .filter(|(name, _)| *name != "job")
            .for_each(|(name, value)| write_pair(&mut path, name, value));
        let mut body = String::new();
        if !block.help.is_empty() {
            write!(body, "# HELP {name} ").expect("a string takes it");
            escape(&mut body, &block.help, false);
            body.push('\n');
        }
        writeln!(body, "# TYPE {name} {}", block.kind.name()).expect("a string takes it");
        body.push_str(&series_of(name, block));
        Self { method: "POST", path, content_type: None, coding: None, body: body.into_bytes() }
    }
}

/// A label in a path. Where a value has a slash or is nothing, only base64 can say it.
fn write_pair(path: &mut String, name: &str, value: &str) {
    if value.is_empty() || value.contains('/') {
        write!(path, "/{name}@base64/{}", base64(value.as_bytes())).expect("a string takes it");
        return;
    }
    write!(path, "/{name}/").expect("a string takes it");
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            write!(path, "%{byte:02X}").expect("a string takes it");
        }
    }
}

/// Of the alphabet that is safe in URLs; a single `=` for nothing.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    if bytes.is_empty() {
        return "=".to_owned();
    }
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for nth in 0..=chunk.len() {
            out.push(char::from(DIGITS[(bits >> (18 - 6 * nth)) as usize & 63]));
        }
    }
    out
}

/// What waits to be sent. Its lock is held for a step of the queue and no longer.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<(VecDeque<Forwarded>, usize)>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Forwarded>, usize)> {
        self.waiting.lock().expect("BUG: a step of the queue panicked")
    }

    /// Adds a push, and drops the oldest while there are too many.
    pub fn push(&self, forwarded: Forwarded, figures: &ForwardFigures) {
        let mut waiting = self.lock();
        waiting.1 += forwarded.bytes();
        waiting.0.push_back(forwarded);
        while waiting.0.len() > QUEUE_MAX || (waiting.1 > QUEUE_BYTES_MAX && waiting.0.len() > 1) {
            let Some(oldest) = waiting.0.pop_front() else { break };
            waiting.1 -= oldest.bytes();
            figures.dropped.fetch_add(1, Ordering::Relaxed);
        }
        figures.queued.store(waiting.0.len() as u64, Ordering::Relaxed);
    }

    fn pop(&self, figures: &ForwardFigures) -> Option<Forwarded> {
        let mut waiting = self.lock();
        let oldest = waiting.0.pop_front()?;
        waiting.1 -= oldest.bytes();
        figures.queued.store(waiting.0.len() as u64, Ordering::Relaxed);
        Some(oldest)
    }
}

/// What became of a try.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sent {
    Taken,
    /// It will never take this one.
    Refused(String),
    /// It may take it later.
    Failed(String),
}

/// The client that is used towards a Pushgateway. Blocking, for threads of their own; answers of any status are no
/// errors.
pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .new_agent()
}

#[derive(Debug)]
pub struct Forwarder {
    pub gateway: Arc<Gateway>,
    pub queue: Arc<Queue>,
    /// Without a slash at its end.
    pub url: String,
    pub clock: Clock,
}

impl Forwarder {
    /// Runs until the other end of `stop` is dropped; then what waits is sent as long as all goes well.
    pub fn run(&self, stop: &Receiver<()>) {
        let (agent, figures) = (agent(), &self.gateway.figures.forward);
        let (mut rng, complaint) = (self.clock.rng(), Thinned::new(COMPLAIN_EVERY));
        let ended = |wait| stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        let mut ending = false;
        loop {
            let Some(next) = self.queue.pop(figures) else {
                if ending {
                    return;
                }
                ending = ended(IDLE);
                continue;
            };
            let mut backoff = BACKOFF_FIRST;
            loop {
                match self.send(&agent, &next) {
                    Sent::Taken => {
                        figures.sent.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Sent::Refused(why) => {
                        figures.refused.fetch_add(1, Ordering::Relaxed);
                        if let Some(held_back) = complaint.due(self.clock.now()) {
                            log::warn!(held_back = held_back; "the Pushgateway refused a push that was taken here: {why}");
                        }
                        break;
                    }
                    Sent::Failed(why) => {
                        figures.retries.fetch_add(1, Ordering::Relaxed);
                        if let Some(held_back) = complaint.due(self.clock.now()) {
                            log::warn!(held_back = held_back; "the Pushgateway does not take what is forwarded: {why}");
                        }
                        if ending || ended(jittered(backoff, &mut rng)) {
                            return;
                        }
                        backoff = (backoff * 2).min(BACKOFF_LONGEST);
                    }
                }
            }
        }
    }

    fn send(&self, agent: &ureq::Agent, push: &Forwarded) -> Sent {
        let url = format!("{}{}", self.url, push.path);
        let answered = if push.method == "DELETE" {
            agent.delete(&url).call()
        } else {
            let mut request = if push.method == "PUT" { agent.put(&url) } else { agent.post(&url) };
            if let Some(kind) = &push.content_type {
                request = request.header("Content-Type", kind);
            }
            if let Some(coding) = &push.coding {
                request = request.header("Content-Encoding", coding);
            }
            request.send(&push.body[..])
        };
        match answered {
            Ok(answer) if answer.status().is_success() => Sent::Taken,
            Ok(mut answer) => {
                let status = answer.status();
                let body = answer.body_mut().with_config().limit(4096).read_to_string().unwrap_or_default();
                let why = format!("{status}: {}", body.trim());
                if status.is_client_error() && status != 408 && status != 429 {
                    Sent::Refused(why)
                } else {
                    Sent::Failed(why)
                }
            }
            Err(error) => Sent::Failed(error.to_string()),
        }
    }
}

/// Anything up to the wait, so that many who failed together do not come back together.
fn jittered(wait: Duration, rng: &mut StdRng) -> Duration {
    wait.mul_f64(rng.random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::metric::{Kind, Series, Value};
    use crate::gateway::target::Target;

    #[test]
    fn a_series_goes_to_a_group_of_its_labels_that_can_be_read_back() {
        let labels = r#"a="x/y",empty="",job="j",z="ä \"q\"""#;
        let series = vec![Series { labels: labels.into(), value: Value::Number(3.0) }];
        let block = Block {
            kind: Kind::Counter,
            help: "h".into(),
            series,
            touched: crate::clock::Moment::ZERO,
            wall_s: 0.0,
        };
        let forwarded = Forwarded::of_series("c_total", &block);
        let path = crate::http::percent::decode(&forwarded.path).unwrap();
        let target = Target::parse(path.strip_prefix("/metrics/").unwrap()).unwrap();
        assert_eq!(&*target.key, labels);
        let body = String::from_utf8(forwarded.body).unwrap();
        assert!(body.starts_with("# HELP c_total h\n# TYPE c_total counter\nc_total{"), "{body}");
    }

    #[test]
    fn a_full_queue_drops_the_oldest_and_counts_them() {
        let (queue, figures) = (Queue::default(), ForwardFigures::default());
        let push = |nth: usize, bytes| Forwarded {
            method: "POST",
            path: nth.to_string(),
            content_type: None,
            coding: None,
            body: vec![0; bytes],
        };
        (0..QUEUE_MAX + 3).for_each(|nth| queue.push(push(nth, 0), &figures));
        assert_eq!(figures.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(queue.pop(&figures).unwrap().path, "3");
        (0..70).for_each(|nth| queue.push(push(nth, 1 << 20), &figures));
        let mut left = 0;
        while queue.pop(&figures).is_some() {
            left += 1;
        }
        assert_eq!(left, 63, "as many as fit into 64 MiB");
        queue.push(push(0, QUEUE_BYTES_MAX + 1), &figures);
        assert!(queue.pop(&figures).is_some(), "one is always kept");
        assert_eq!(queue.lock().1, 0);
    }
}
