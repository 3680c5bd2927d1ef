//! The resume file: how far an interrupted run was acknowledged. It is replaced whole, so that it is
//! complete at any time.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{SendCommand, SendError};
use crate::clock::Clock;
use crate::event::Timestamp;

/// The contents of the file, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ResumeFile {
    version: u32,
    /// The input; another input is refused.
    files: Vec<PathBuf>,
    /// The bound of a chunk. Another one would give other chunks, and other keys.
    lines_max: u64,
    /// The time of text lines, in milliseconds.
    started_ms: i64,
    /// Everything before this position is acknowledged.
    file: usize,
    byte: u64,
}

const VERSION: u32 = 1;

/// The position of a run, with its file if it has one.
#[derive(Debug)]
pub(super) struct ResumeState {
    path: Option<PathBuf>,
    contents: ResumeFile,
}

impl ResumeState {
    /// The state of the interrupted run whose file exists, or that of a new run.
    pub(super) fn open(command: &SendCommand, clock: &Clock) -> Result<Self, SendError> {
        let fresh = ResumeFile {
            version: VERSION,
            files: command.files.clone(),
            lines_max: command.lines_max,
            started_ms: clock.wall().millis(),
            file: 0,
            byte: 0,
        };
        let Some(path) = &command.resume else { return Ok(Self { path: None, contents: fresh }) };
        let error = |reason: String| SendError::Resume(path.clone(), reason);
        let contents = match std::fs::read(path) {
            Ok(bytes) => sonic_rs::from_slice(&bytes).map_err(|invalid| error(invalid.to_string()))?,
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => fresh.clone(),
            Err(unreadable) => return Err(error(unreadable.to_string())),
        };
        if contents.version != VERSION || contents.files != fresh.files {
            return Err(error("is of another input; remove it to begin again".to_owned()));
        }
        let state = Self { path: Some(path.clone()), contents };
        state.write()?;
        Ok(state)
    }

    pub(super) fn position(&self) -> (usize, u64) {
        (self.contents.file, self.contents.byte)
    }

    pub(super) fn set_position(&mut self, (file, byte): (usize, u64)) {
        (self.contents.file, self.contents.byte) = (file, byte);
    }

    pub(super) fn lines_max(&self) -> u64 {
        self.contents.lines_max
    }

    pub(super) fn started(&self) -> Timestamp {
        Timestamp::from_millis(self.contents.started_ms)
    }

    pub(super) fn write(&self) -> Result<(), SendError> {
        let Some(path) = &self.path else { return Ok(()) };
        let error = |reason: String| SendError::Resume(path.clone(), reason);
        let text = sonic_rs::to_string(&self.contents).map_err(|invalid| error(invalid.to_string()))?;
        let mut new = path.clone().into_os_string();
        new.push(".new");
        let replaced = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path));
        replaced.map_err(|failed| error(failed.to_string()))
    }

    /// Removes the file of a complete run.
    pub(super) fn remove(&self) -> Result<(), SendError> {
        let Some(path) = &self.path else { return Ok(()) };
        std::fs::remove_file(path).map_err(|failed| SendError::Resume(path.clone(), failed.to_string()))
    }
}
