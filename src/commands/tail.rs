//! `aurore-events tail`: prints the events of `GET /events/tail` as a server admits them.
//!
//! A thread reads the tail and opens it again when it ends (`connection`); this thread prints, until it
//! is interrupted, its reader is gone, or it has printed as many events as asked for.
//!
//! It must not depend on the server's stages: it is a client.

mod args;
mod connection;
mod event_stream;
mod line;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded, select};

pub use args::{TailCommand, command};
pub(super) use args::{allows_color, no_color};

use super::terminal::is_closed;
use crate::clock::Clock;
use connection::{TailConnection, TailMessage};
use line::LineFormat;

/// Events between the two threads. An event has 2 MiB at most.
const MESSAGES_MAX: usize = 16;
/// How often a silent tail checks whether anybody reads its output.
const CLOSED_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the tail cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error("{url}: {reason}")]
    Refused { url: String, reason: String },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl TailCommand {
    /// Follows the tail until `stop` is disconnected, the output is closed, or `count` is reached.
    pub fn run(&self, clock: &Clock, stop: &Receiver<()>) -> Result<(), TailError> {
        let out = io::stdout();
        let format = if self.json {
            LineFormat::Json
        } else {
            LineFormat::Text { colours: self.colours && out.is_terminal() }
        };
        let (sender, messages) = bounded(MESSAGES_MAX);
        let mut connection = TailConnection::new(self.clone(), clock.clone(), sender);
        // It is not joined: it may be reading.
        std::thread::Builder::new()
            .name("tail".to_owned())
            .spawn(move || connection.run())
            .map_err(TailError::Thread)?;
        match self.print(format, &messages, stop, &mut BufWriter::new(out.lock())) {
            Err(TailError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    fn print(
        &self,
        format: LineFormat,
        messages: &Receiver<TailMessage>,
        stop: &Receiver<()>,
        out: &mut impl Write,
    ) -> Result<(), TailError> {
        let mut events = 0;
        while self.count.is_none_or(|count| events < count) {
            let message = select! {
                recv(messages) -> message => message.map_err(RecvTimeoutError::from),
                recv(stop) -> _ => break,
                default(CLOSED_CHECK_INTERVAL) => Err(RecvTimeoutError::Timeout),
            };
            match message {
                Ok(TailMessage::Event(json)) => {
                    events += 1;
                    format.write_event(&json, out).map_err(TailError::Output)?;
                }
                Ok(TailMessage::Skipped(events)) => {
                    format.write_skipped(events, out).map_err(TailError::Output)?;
                }
                Ok(TailMessage::Gap(reason)) => {
                    format.write_gap(&reason, out).map_err(TailError::Output)?;
                }
                Ok(TailMessage::Failed(error)) => {
                    out.flush().map_err(TailError::Output)?;
                    return Err(error);
                }
                Err(RecvTimeoutError::Timeout) if is_closed(&io::stdout()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                // The thread has panicked, and has said so.
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if messages.is_empty() {
                out.flush().map_err(TailError::Output)?;
            }
        }
        out.flush().map_err(TailError::Output)
    }
}
