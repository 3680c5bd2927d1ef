//! Posts chunks on one connection, and sends a chunk again until the server has answered for it.

use std::io::Write;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError};
use flate2::Compression;
use flate2::write::GzEncoder;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::Deserialize;

use super::chunks::Chunk;
use super::{SendCommand, SendError};
use crate::clock::{Clock, Moment};
use crate::commands::server_answer;
use crate::gateway::forward::http_client;

const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The longest `Retry-After` that is followed.
const RETRY_AFTER_S_MAX: u64 = 300;
/// The ids of a response of 10,000 lines take less.
const RESPONSE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The answer of the server for one chunk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ChunkAnswer {
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) first_error: String,
}

#[derive(Debug)]
pub(super) struct ChunkOutcome {
    pub(super) number: u64,
    pub(super) file: usize,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) bytes: u64,
    pub(super) retries: u64,
    pub(super) result: Result<ChunkAnswer, SendError>,
}

/// The members of a response that are used.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseBody {
    accepted: u64,
    rejected: u64,
    detail: String,
    errors: Vec<ErrorItem>,
    errors_omitted: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorItem {
    index: Option<u64>,
    detail: String,
}

/// The consequence of one attempt.
enum Attempt {
    Answered(ChunkAnswer),
    /// The server, or the way to it, is not able to now.
    Retry {
        reason: String,
        after: Option<Duration>,
    },
    /// Sending again changes nothing.
    Refused(String),
}

pub(super) struct Poster<'a> {
    command: &'a SendCommand,
    clock: &'a Clock,
    agent: ureq::Agent,
    rng: StdRng,
    url: String,
    stop: Receiver<()>,
}

impl<'a> Poster<'a> {
    pub(super) fn new(command: &'a SendCommand, clock: &'a Clock, stop: Receiver<()>) -> Self {
        Self { command, clock, agent: http_client(), rng: clock.rng(), url: command.url(), stop }
    }

    /// Sends the chunk until it is answered, refused, or `--retry-for` has passed.
    pub(super) fn post(&mut self, chunk: &Chunk) -> ChunkOutcome {
        let (begin, end) = (chunk.begin, chunk.end);
        let mut outcome = ChunkOutcome {
            number: chunk.number,
            file: chunk.file,
            begin,
            end,
            bytes: end - begin,
            retries: 0,
            result: Ok(ChunkAnswer::default()),
        };
        let body = self.command.body(&chunk.lines, chunk.time);
        if body.trim_ascii().is_empty() {
            return outcome;
        }
        let body = if self.command.gzip { compressed(&body) } else { body };
        let started = self.clock.now();
        let mut backoff = BACKOFF_FIRST;
        loop {
            match self.attempt(&chunk.key, &body) {
                Attempt::Answered(answer) => {
                    outcome.result = Ok(answer);
                    return outcome;
                }
                Attempt::Refused(reason) => {
                    outcome.result = Err(self.refused(reason));
                    return outcome;
                }
                Attempt::Retry { reason, after } => {
                    // Full jitter, so that connections that failed together do not retry together.
                    let jittered = backoff.mul_f64(self.rng.random_range(0.0..1.0));
                    let wait = after.unwrap_or_default() + jittered;
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    if self.gives_up(started, wait) {
                        outcome.result = Err(self.refused(reason));
                        return outcome;
                    }
                    outcome.retries += 1;
                }
            }
        }
    }

    /// Waits before the next attempt. Returns whether there is none.
    fn gives_up(&self, started: Moment, wait: Duration) -> bool {
        self.clock.now().since(started) + wait > self.command.retry_for
            || self.stop.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected)
    }

    fn refused(&self, reason: String) -> SendError {
        SendError::Refused { url: self.url.clone(), reason }
    }

    fn attempt(&self, key: &str, body: &[u8]) -> Attempt {
        let mut request = self
            .agent
            .post(&self.url)
            .header("Content-Type", "application/x-ndjson")
            .header("Idempotency-Key", key);
        if self.command.gzip {
            request = request.header("Content-Encoding", "gzip");
        }
        if let Some(token) = &self.command.token {
            request = request.header("Authorization", server_answer::bearer(token));
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return Attempt::Retry { reason: error.to_string(), after: None },
        };
        let status = response.status().as_u16();
        let after = server_answer::retry_after(&response, RETRY_AFTER_S_MAX);
        match response.body_mut().with_config().limit(RESPONSE_BYTES_MAX).read_to_vec() {
            Ok(body) => interpret(status, after, &body),
            Err(error) => Attempt::Retry { reason: error.to_string(), after: None },
        }
    }
}

/// Decides on a response.
fn interpret(status: u16, after: Option<Duration>, body: &[u8]) -> Attempt {
    let ResponseBody { accepted, rejected, detail, errors, errors_omitted } =
        sonic_rs::from_slice(body).unwrap_or_default();
    let first_error = errors.first().map(|error| error.detail.clone()).unwrap_or_default();
    match status {
        202 => Attempt::Answered(ChunkAnswer { accepted, rejected, first_error }),
        // Every event is rejected, each with its index.
        400 | 403 if errors.iter().any(|error| error.index.is_some()) => {
            let mut indexes: Vec<_> = errors.iter().filter_map(|error| error.index).collect();
            indexes.dedup();
            let rejected = indexes.len() as u64 + errors_omitted;
            Attempt::Answered(ChunkAnswer { accepted: 0, rejected, first_error })
        }
        408 | 429 | 500.. => Attempt::Retry { reason: format!("{status}: {detail}"), after },
        _ => Attempt::Refused(format!("{status}: {detail}")),
    }
}

fn compressed(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    let result = encoder.write_all(body).and_then(|()| encoder.finish());
    result.expect("writing to a vector cannot fail")
}
