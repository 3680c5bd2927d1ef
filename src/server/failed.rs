//! Why the server ended, and with which exit code.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::access::tokens::Mistakes;
use crate::commands::counts::CountsError;
use crate::commands::dead::DeadError;
use crate::gateway::compare::CompareError;
use crate::gateway::recovery;
use crate::http::tls::IdentityError;
use crate::journal::StartFailed;
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
    #[error("{0}")]
    Identity(#[from] IdentityError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot make a readiness loop: {0}")]
    Acceptor(io::Error),
    #[error("cannot handle signals: {0}")]
    Signals(String),
    #[error("{0}")]
    Tokens(#[from] Mistakes),
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    #[error("the database could not be brought up to date: {0}")]
    Migrate(#[from] StoreError),
    #[error("{0}")]
    Command(Box<StoreError>),
    #[error("{0}")]
    Journal(#[from] StartFailed),
    #[error("the journal is damaged")]
    JournalDamaged,
    #[error("{0}")]
    Counts(Box<CountsError>),
    #[error("{0}")]
    Gateway(#[from] recovery::StartFailed),
    #[error("{0}")]
    Compare(#[from] CompareError),
    #[error("{0}")]
    Dead(Box<DeadError>),
    #[error("there is no database: DATABASE_URL is not set, and {0} holds no cluster")]
    NoCluster(PathBuf),
    #[error("the thread {0} died: what it held can no longer be vouched for")]
    ThreadDied(String),
    #[error(
        "stopped at once, as asked; {0} acknowledged events are not stored, and wait in the journal for the next start"
    )]
    Interrupted(u64),
    #[error(
        "the time to shut down is over and the journal does not work; {0} acknowledged events are not stored"
    )]
    Undrained(u64),
}

impl Failed {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // As for wrong settings, since that is what it is.
            Self::Target(_) | Self::Identity(_) | Self::Tokens(_) => ExitCode::from(2),
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
            | Self::Journal(_)
            | Self::JournalDamaged
            | Self::Counts(_)
            | Self::Gateway(_)
            | Self::Compare(_)
            | Self::Dead(_)
            | Self::NoCluster(_)
            | Self::Interrupted(_)
            | Self::Undrained(_) => ExitCode::FAILURE,
        }
    }
}
