//! `aurore-events send`: sends the lines of files or of the standard input to a server.
//!
//! A reader divides the input into chunks of whole lines, several connections post them, and the
//! collector reports how far the input is acknowledged. A chunk is sent again until it is answered,
//! with a key made of its file, position and content, so that the server stores it once. With a
//! resume file an interrupted run continues after the last acknowledged chunk. A signal ends the run
//! with its counts, once the requests that are under way are answered.
//!
//! It must not depend on the server's stages: it is a client.

mod args;
mod chunks;
mod post;
mod resume;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, never, select, select_biased};
use indicatif::{ProgressBar, ProgressStyle};

pub use args::{SendCommand, SendFormat, command};

use crate::clock::Clock;
use chunks::{Chunk, ChunkReader};
use post::{ChunkOutcome, Poster};
use resume::ResumeState;

/// Chunks that are read ahead, per connection.
const CHUNKS_AHEAD: usize = 2;
/// Interval between two writes of the resume file.
const RESUME_INTERVAL: Duration = Duration::from_millis(200);
/// Refused chunks of which the first error is logged.
const ERRORS_LOGGED_MAX: u64 = 10;

/// Why not everything was sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("{0}: {1}")]
    Input(PathBuf, std::io::Error),
    #[error("{0}: the line at byte {1} takes more than {max} bytes", max = crate::event::EVENT_BYTES_MAX)]
    LineTooLong(PathBuf, u64),
    #[error("{0}: {1}")]
    Resume(PathBuf, String),
    #[error("{url}: {reason}")]
    Refused { url: String, reason: String },
    #[error("{0} lines were rejected")]
    Rejected(u64),
    #[error("interrupted: {0}")]
    Interrupted(String),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
}

/// Lines that the server has accepted and rejected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct SendCounts {
    accepted: u64,
    rejected: u64,
    /// Requests that were sent again.
    retries: u64,
}

impl SendCommand {
    /// Sends everything, or what is sent before `stop` is disconnected, and prints the counts.
    pub fn run(&self, clock: &Clock, stop: &Receiver<()>, out: &mut impl Write) -> Result<(), SendError> {
        let started = clock.now();
        let resume = ResumeState::open(self, clock)?;
        let bar = self.progress_bar();
        let (counts, result) = self.send_all(clock, stop, resume, &bar);
        bar.finish_and_clear();
        let seconds = clock.now().since(started).as_secs_f64();
        let SendCounts { accepted, rejected, retries } = counts;
        let written = if self.json {
            writeln!(
                out,
                "{{\"accepted\":{accepted},\"rejected\":{rejected},\"retries\":{retries},\"seconds\":{seconds:.3},\"complete\":{}}}",
                result.is_ok()
            )
        } else {
            writeln!(out, "accepted {accepted}, rejected {rejected}, retries {retries}, {seconds:.1} s")
        };
        result?;
        written.map_err(SendError::Output)?;
        if rejected > 0 { Err(SendError::Rejected(rejected)) } else { Ok(()) }
    }

    /// The bar on standard error; nothing is drawn where that is not a terminal.
    fn progress_bar(&self) -> ProgressBar {
        let size = |path: &PathBuf| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
        let sizes: Option<Vec<_>> = self.files.iter().map(|path| size(path).map(|file| file.len())).collect();
        let bar = match sizes {
            Some(sizes) if !sizes.is_empty() => ProgressBar::new(sizes.iter().sum()),
            Some(_) | None => ProgressBar::no_length(),
        };
        let style = ProgressStyle::with_template("{bar:30} {bytes} {bytes_per_sec} {msg} {eta}");
        bar.with_style(style.expect("BUG: the template is valid"))
    }

    fn send_all(
        &self,
        clock: &Clock,
        stop: &Receiver<()>,
        resume: ResumeState,
        bar: &ProgressBar,
    ) -> (SendCounts, Result<(), SendError>) {
        let (chunk_sender, chunk_receiver) = bounded(self.connections * CHUNKS_AHEAD);
        let (outcome_sender, outcome_receiver) = bounded(self.connections * CHUNKS_AHEAD);
        // Dropping the sender wakes the connections that wait before they send again.
        let (stop_sender, stop_receiver) = bounded::<()>(0);
        let stopped = Arc::new(AtomicBool::new(false));
        let reader = ChunkReader::new(self, &resume);
        // Not scoped: a read of the standard input may last forever.
        let (read_clock, read_stopped) = (clock.clone(), Arc::clone(&stopped));
        let read = std::thread::Builder::new()
            .name("reader".to_owned())
            .spawn(move || read_chunks(reader, &chunk_sender, &read_clock, &read_stopped));
        let read = match read {
            Ok(read) => read,
            Err(error) => return (SendCounts::default(), Err(SendError::Thread(error))),
        };
        let mut collector = Collector {
            command: self,
            counts: SendCounts::default(),
            resume,
            bar,
            ahead: BTreeMap::new(),
            next: 0,
            resume_written: clock.now(),
            error: None,
            is_interrupted: false,
            errors_logged: 0,
        };
        std::thread::scope(|scope| {
            for _ in 0..self.connections {
                let poster = Poster::new(self, clock, stop_receiver.clone());
                let (chunks, outcomes) = (chunk_receiver.clone(), outcome_sender.clone());
                let stop = stop_receiver.clone();
                scope.spawn(move || post_chunks(poster, &chunks, &outcomes, &stop));
            }
            drop((chunk_receiver, outcome_sender));
            let (mut stop_sender, mut stop) = (Some(stop_sender), stop.clone());
            loop {
                select! {
                    recv(outcome_receiver) -> outcome => match outcome {
                        Ok(outcome) => match collector.add(outcome, clock) {
                            Ok(()) => continue,
                            Err(error) => _ = collector.error.get_or_insert(error),
                        },
                        Err(_all_connections_ended) => break,
                    },
                    recv(stop) -> _ => {
                        stop = never();
                        collector.is_interrupted = collector.error.is_none();
                    }
                }
                stopped.store(true, Ordering::Relaxed);
                stop_sender.take();
            }
        });
        let read = if stopped.load(Ordering::Relaxed) {
            Ok(())
        } else {
            read.join().expect("BUG: the reader does not panic")
        };
        collector.finish(read)
    }
}

fn read_chunks(
    mut reader: ChunkReader,
    chunks: &Sender<Chunk>,
    clock: &Clock,
    stopped: &AtomicBool,
) -> Result<(), SendError> {
    while !stopped.load(Ordering::Relaxed)
        && let Some(chunk) = reader.next_chunk(clock)?
    {
        if chunks.send(chunk).is_err() {
            break;
        }
    }
    Ok(())
}

fn post_chunks(
    mut poster: Poster<'_>,
    chunks: &Receiver<Chunk>,
    outcomes: &Sender<ChunkOutcome>,
    stop: &Receiver<()>,
) {
    loop {
        // A stop comes first, whatever waits to be sent.
        let chunk = select_biased! {
            recv(stop) -> _ => return,
            recv(chunks) -> chunk => match chunk {
                Ok(chunk) => chunk,
                Err(_no_more) => return,
            },
        };
        let outcome = poster.post(&chunk);
        let failed = outcome.result.is_err();
        if outcomes.send(outcome).is_err() || failed {
            return;
        }
    }
}

/// Adds up the outcomes and knows up to where all chunks are acknowledged.
struct Collector<'a> {
    command: &'a SendCommand,
    counts: SendCounts,
    resume: ResumeState,
    bar: &'a ProgressBar,
    /// Acknowledged chunks after one that is not: their number, and the position after them.
    ahead: BTreeMap<u64, (usize, u64)>,
    next: u64,
    resume_written: crate::clock::Moment,
    error: Option<SendError>,
    /// By a signal, before any error.
    is_interrupted: bool,
    errors_logged: u64,
}

impl Collector<'_> {
    fn add(&mut self, outcome: ChunkOutcome, clock: &Clock) -> Result<(), SendError> {
        self.counts.retries += outcome.retries;
        let answer = outcome.result?;
        self.counts.accepted += answer.accepted;
        self.counts.rejected += answer.rejected;
        if answer.rejected > 0 && self.errors_logged < ERRORS_LOGGED_MAX {
            self.errors_logged += 1;
            let (byte, rejected) = (outcome.begin, answer.rejected);
            log::warn!(byte, rejected; "lines of a request were rejected, the first one: {}", answer.first_error);
        }
        self.bar.inc(outcome.bytes);
        self.bar.set_message(format!("accepted {}, rejected {}", self.counts.accepted, self.counts.rejected));
        self.ahead.insert(outcome.number, (outcome.file, outcome.end));
        while let Some(position) = self.ahead.remove(&self.next) {
            self.next += 1;
            self.resume.set_position(position);
        }
        if clock.now().since(self.resume_written) >= RESUME_INTERVAL {
            self.resume_written = clock.now();
            self.resume.write()?;
        }
        Ok(())
    }

    /// Keeps the resume file of an incomplete run, and removes that of a complete one.
    fn finish(self, read: Result<(), SendError>) -> (SendCounts, Result<(), SendError>) {
        let Self { command, counts, resume, error, is_interrupted, .. } = self;
        // Errors after the signal are those of requests that were not sent again.
        let error = if is_interrupted {
            Some(SendError::Interrupted(command.how_to_continue(resume.position())))
        } else {
            error
        };
        let result = match (error, read) {
            (Some(error), _) | (None, Err(error)) => resume.write().and(Err(error)),
            (None, Ok(())) => resume.remove(),
        };
        (counts, result)
    }
}

#[cfg(test)]
mod tests;
