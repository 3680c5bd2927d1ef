//! Why the server ended, and with which exit code.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::storage::StoreError;
use crate::storage::postgres::TargetError;
use crate::storage::postgres::embedded::ClusterError;

/// Why the server ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("cannot use DATA_DIR {path}: {error}")]
    DataDir { path: PathBuf, error: io::Error },
    #[error("DATA_DIR {0} is in use by another aurore-events")]
    DataDirInUse(PathBuf),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot make a readiness loop: {0}")]
    Acceptor(io::Error),
    #[error("cannot handle signals: {0}")]
    Signals(String),
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    #[error("the database could not be brought up to date: {0}")]
    Migrate(#[from] StoreError),
    #[error("{0}")]
    Command(StoreError),
    #[error("the thread {0} died: what it held can no longer be vouched for")]
    ThreadDied(String),
    #[error("stopped at once, as asked; {0} acknowledged events were not stored")]
    Interrupted(usize),
    #[error("the time to shut down is over; {0} acknowledged events were not stored")]
    Undrained(usize),
}

impl Failed {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // As for wrong settings, since that is what it is.
            Self::Target(_) => ExitCode::from(2),
            // EX_SOFTWARE of sysexits(3).
            Self::ThreadDied(_) => ExitCode::from(70),
            Self::DataDir { .. }
            | Self::DataDirInUse(_)
            | Self::Listen { .. }
            | Self::Thread(_)
            | Self::Acceptor(_)
            | Self::Signals(_)
            | Self::Cluster(_)
            | Self::Migrate(_)
            | Self::Command(_)
            | Self::Interrupted(_)
            | Self::Undrained(_) => ExitCode::FAILURE,
        }
    }
}
