//! Follows a tail on a thread of its own: connects, reads, and connects again when the connection
//! ends, with the id of the last event, so that a server that has kept what follows can send it.
//!
//! It must not print.

use std::io::{BufReader, Read};
use std::time::Duration;

use crossbeam::channel::Sender;
use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::Deserialize;

use super::event_stream::{EventStream, StreamEvent};
use super::{TailCommand, TailError};
use crate::clock::Clock;
use crate::commands::server_answer;
use crate::gateway::forward::http_client_config;

/// The server sends a heartbeat every 15 s at most.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A connection that lasted longer than this was not refused: the backoff begins again.
const SETTLED: Duration = Duration::from_secs(5);
/// The longest `Retry-After` that is followed.
const RETRY_AFTER_S_MAX: u64 = 60;
/// A problem document takes less.
const PROBLEM_BYTES_MAX: u64 = 64 << 10;

/// What the thread passes on.
#[derive(Debug)]
pub(super) enum TailMessage {
    /// An event as JSON.
    Event(String),
    /// Events that the server has skipped, since this client or the tail was too slow.
    Skipped(u64),
    /// Why events before the next one may be missing, after the tail was opened again.
    Gap(String),
    /// Following is impossible. The last message.
    Failed(TailError),
}

/// The end of one connection.
#[derive(Debug)]
enum ConnectionEnd {
    /// The receiver is gone.
    Unwanted,
    /// Another attempt may succeed.
    Lost { reason: String, after: Option<Duration> },
    /// Another attempt would not.
    Refused(String),
}

#[derive(Debug)]
pub(super) struct TailConnection {
    command: TailCommand,
    clock: Clock,
    agent: ureq::Agent,
    rng: StdRng,
    messages: Sender<TailMessage>,
    last_id: String,
}

impl TailConnection {
    pub(super) fn new(command: TailCommand, clock: Clock, messages: Sender<TailMessage>) -> Self {
        let agent = http_client_config()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .build()
            .new_agent();
        let rng = clock.rng();
        Self { command, clock, agent, rng, messages, last_id: String::new() }
    }

    /// Follows until the receiver of the messages is gone, or following is impossible.
    pub(super) fn run(&mut self) {
        let url = self.command.url.clone();
        let mut backoff = BACKOFF_FIRST;
        loop {
            let started = self.clock.now();
            let (reason, after) = match self.follow() {
                ConnectionEnd::Unwanted => return,
                ConnectionEnd::Refused(reason) => {
                    let failed = TailMessage::Failed(TailError::Refused { url, reason });
                    if self.messages.send(failed).is_err() {
                        log::debug!("nobody waits for the tail any more");
                    }
                    return;
                }
                ConnectionEnd::Lost { reason, after } => (reason, after),
            };
            if self.clock.now().since(started) > SETTLED {
                backoff = BACKOFF_FIRST;
            }
            // Half of it is jitter, so that clients of a server that restarts do not return together.
            let wait = after.unwrap_or_default() + backoff.mul_f64(self.rng.random_range(0.5..1.0));
            backoff = (backoff * 2).min(BACKOFF_MAX);
            let wait_s = format!("{:.1}", wait.as_secs_f64());
            log::warn!(url = url.as_str(), wait_s = wait_s.as_str(); "the tail is interrupted, and is opened again: {reason}");
            std::thread::sleep(wait);
        }
    }

    /// Opens the tail once and passes its events on until it ends.
    fn follow(&mut self) -> ConnectionEnd {
        let mut request = self.agent.get(&self.command.url).header("Accept", "text/event-stream");
        if let Some(token) = &self.command.token {
            request = request.header("Authorization", server_answer::bearer(token));
        }
        let is_again = !self.last_id.is_empty();
        if is_again {
            request = request.header("Last-Event-ID", &self.last_id);
        }
        let mut response = match request.call() {
            Ok(response) => response,
            Err(error) => return ConnectionEnd::Lost { reason: error.to_string(), after: None },
        };
        if response.status() != 200 {
            return refusal(&mut response);
        }
        if is_again {
            log::info!(after = self.last_id.as_str(); "the tail is open again");
        }
        let mut events = EventStream::new(BufReader::new(response.into_body().into_reader()));
        loop {
            let event = match events.next_event() {
                Ok(Some(event)) => event,
                Ok(None) => return lost("the server has ended it"),
                Err(error) => return lost(&error.to_string()),
            };
            let Some(message) = self.message(event) else { continue };
            if self.messages.send(message).is_err() {
                return ConnectionEnd::Unwanted;
            }
        }
    }

    /// The message of an event; none if its type is unknown.
    fn message(&mut self, event: StreamEvent) -> Option<TailMessage> {
        let StreamEvent { id, kind, data } = event;
        if !id.is_empty() {
            self.last_id = id;
        }
        match &*kind {
            "" | "message" => Some(TailMessage::Event(data)),
            "skipped" => {
                let Skipped { events } = sonic_rs::from_str(&data).unwrap_or_default();
                Some(TailMessage::Skipped(events))
            }
            "gap" => {
                let Gap { reason } = sonic_rs::from_str(&data).unwrap_or_default();
                Some(TailMessage::Gap(reason))
            }
            // Each server has a tail of its own events.
            "tail" => {
                let Opened { instance } = sonic_rs::from_str(&data).unwrap_or_default();
                log::info!(instance = instance.as_str(); "the tail shows what this server admits");
                None
            }
            other => {
                log::debug!("an event of the unknown type {other:?} is ignored");
                None
            }
        }
    }
}

/// The data of an event `skipped`.
#[derive(Debug, Default, Deserialize)]
struct Skipped {
    events: u64,
}

/// The data of an event `gap`.
#[derive(Debug, Default, Deserialize)]
struct Gap {
    reason: String,
}

/// The data of an event `tail`, the first one.
#[derive(Debug, Default, Deserialize)]
struct Opened {
    instance: String,
}

fn lost(reason: &str) -> ConnectionEnd {
    ConnectionEnd::Lost { reason: reason.to_owned(), after: None }
}

/// The end of a connection whose response is no tail.
fn refusal(response: &mut ureq::http::Response<ureq::Body>) -> ConnectionEnd {
    let status = response.status().as_u16();
    let after = server_answer::retry_after(response, RETRY_AFTER_S_MAX);
    let mut body = Vec::new();
    let mut reader = response.body_mut().as_reader().take(PROBLEM_BYTES_MAX);
    let reason = match reader.read_to_end(&mut body) {
        Ok(_) => server_answer::reason(status, &body),
        Err(error) => format!("{status}: {error}"),
    };
    match status {
        // A server that cannot stream says 501.
        408 | 429 | 500 | 502..=599 => ConnectionEnd::Lost { reason, after },
        _ => ConnectionEnd::Refused(reason),
    }
}
