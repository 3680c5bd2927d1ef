//! Divides the input into chunks of whole lines. The same file gives the same chunks in every run
//! that begins at the same position.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::resume::ResumeState;
use super::{SendCommand, SendError};
use crate::clock::Clock;
use crate::event::{EVENT_BYTES_MAX, Timestamp};

/// Bytes from which a chunk is not continued.
const CHUNK_BYTES: usize = 1024 * 1024;
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// Lines that are sent in one request.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The position among all chunks of this run.
    pub(super) number: u64,
    /// The index of the file, and the chunk's range in it.
    pub(super) file: usize,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) lines: Vec<u8>,
    /// The time of lines that have none.
    pub(super) time: Timestamp,
    /// The value of `Idempotency-Key`.
    pub(super) key: String,
}

pub(super) struct ChunkReader {
    files: Vec<PathBuf>,
    lines_max: u64,
    is_stdin: bool,
    /// The open file, its index and the position in it.
    current: Option<Box<dyn BufferedInput>>,
    file: usize,
    at: u64,
    number: u64,
    started: Timestamp,
}

/// A reader that tells what it has read ahead.
trait BufferedInput: BufRead + Send {
    fn has_buffered_line(&self) -> bool;
}

impl<R: Read + Send> BufferedInput for BufReader<R> {
    fn has_buffered_line(&self) -> bool {
        memchr::memchr(b'\n', self.buffer()).is_some()
    }
}

impl ChunkReader {
    pub(super) fn new(command: &SendCommand, resume: &ResumeState) -> Self {
        let is_stdin = command.files.is_empty();
        let files = if is_stdin { vec![PathBuf::from("-")] } else { command.files.clone() };
        let (file, at) = resume.position();
        let lines_max = resume.lines_max();
        Self { files, lines_max, is_stdin, current: None, file, at, number: 0, started: resume.started() }
    }

    /// The next chunk; none at the end of the last file.
    pub(super) fn next_chunk(&mut self, clock: &Clock) -> Result<Option<Chunk>, SendError> {
        while self.file < self.files.len() {
            let lines = self.read_lines()?;
            if lines.is_empty() {
                (self.current, self.at) = (None, 0);
                self.file += 1;
                continue;
            }
            // Lines of a file have the time of the first run, so that a chunk that is sent again after
            // an interruption is the same.
            let time = if self.is_stdin { clock.wall() } else { self.started };
            let begin = self.at;
            self.at += lines.len() as u64;
            let chunk = Chunk {
                number: self.number,
                file: self.file,
                begin,
                end: self.at,
                key: self.key(begin, &lines),
                lines,
                time,
            };
            self.number += 1;
            return Ok(Some(chunk));
        }
        Ok(None)
    }

    /// Identifies the chunk by its file, position and content; a pipe by the time of the run.
    fn key(&self, begin: u64, lines: &[u8]) -> String {
        let mut hash = Sha256::new();
        let name = self.files[self.file].to_string_lossy();
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name.as_bytes());
        if self.is_stdin {
            hash.update(self.started.micros().to_be_bytes());
        }
        hash.update(begin.to_be_bytes());
        hash.update(lines);
        hash.finalize()[..16].iter().fold("send-".to_owned(), |key, byte| format!("{key}{byte:02x}"))
    }

    /// Reads the lines of a chunk; nothing at the end of the file.
    fn read_lines(&mut self) -> Result<Vec<u8>, SendError> {
        let path = &self.files[self.file];
        let input_error = |error| SendError::Input(path.clone(), error);
        let input = match &mut self.current {
            Some(input) => input,
            None if self.is_stdin => {
                self.current.insert(Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, std::io::stdin())))
            }
            None => {
                let mut file = File::open(path).map_err(input_error)?;
                file.seek(SeekFrom::Start(self.at)).map_err(input_error)?;
                self.current.insert(Box::new(BufReader::with_capacity(READ_BUFFER_BYTES, file)))
            }
        };
        let (mut lines, mut count) = (Vec::new(), 0);
        while count < self.lines_max && lines.len() < CHUNK_BYTES {
            let before = lines.len();
            let limit = EVENT_BYTES_MAX as u64 + 1;
            let read = input.by_ref().take(limit).read_until(b'\n', &mut lines).map_err(input_error)?;
            if read as u64 == limit && !lines.ends_with(b"\n") {
                return Err(SendError::LineTooLong(path.clone(), self.at + before as u64));
            }
            if read == 0 {
                break;
            }
            count += 1;
            // Lines of a pipe do not wait for others.
            if self.is_stdin && !input.has_buffered_line() {
                break;
            }
        }
        Ok(lines)
    }
}
