//! The errors that end the server, and their exit codes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::resolved::ResolveSettingsError;
use crate::commands::counts::RunCountsError;
use crate::commands::dead::RunDeadError;
use crate::commands::documentation::DocumentationError;
use crate::commands::healthcheck::HealthcheckError;
use crate::commands::journal::RunReplayError;
use crate::commands::send::SendError;
use crate::commands::tail::TailError;
use crate::commands::top::TopError;
use crate::gateway::compare::CompareError;
use crate::gateway::recovery;
use crate::journal::OpenJournalError;
use crate::partitions::MaintainPartitionsError;
use crate::retention::SweepError;
use crate::service_manager::TakeSocketError;
use crate::storage::StoreError;
use crate::storage::postgres::ParseDatabaseUrlError;
use crate::storage::postgres::embedded::ClusterError;

/// Why the server or a command failed.
#[derive(Debug, thiserror::Error)]
pub enum RunServerError {
    #[error("cannot use DATA_DIR {path}: {error}")]
    DataDir { path: PathBuf, error: io::Error },
    #[error("DATA_DIR {0} is in use by another aurore-events")]
    DataDirInUse(PathBuf),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("{0}")]
    PassedSocket(#[from] TakeSocketError),
    #[error("HTTP_ENGINE=minihttp binds its own socket: it cannot use those of a socket unit")]
    MinihttpSocket,
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot create the event loop of an acceptor: {0}")]
    Acceptor(io::Error),
    #[error("NOTIFY_SOCKET is not the address of a socket: {0}")]
    NotifySocket(io::Error),
    #[error("cannot handle signals: {0}")]
    Signals(String),
    #[error("{0}")]
    Settings(#[from] ResolveSettingsError),
    #[error("{0}")]
    Target(#[from] ParseDatabaseUrlError),
    #[error("{0}")]
    Cluster(#[from] ClusterError),
    #[error("the database migration failed: {0}")]
    Migrate(#[from] StoreError),
    #[error("the schema is up to date, but partitions are missing: {0}")]
    Partitions(Box<MaintainPartitionsError>),
    #[error("{0}")]
    Retention(Box<SweepError>),
    #[error("this role does not own the tables; run `aurore-events retention run` as their owner")]
    RetentionNotOwner,
    #[error("{0}")]
    Journal(#[from] OpenJournalError),
    #[error("the journal is corrupt")]
    JournalCorrupt,
    #[error("{0}")]
    Replay(Box<RunReplayError>),
    #[error("{0}")]
    Counts(Box<RunCountsError>),
    #[error("{0}")]
    Gateway(#[from] recovery::RecoverGatewayError),
    #[error("{0}")]
    Compare(#[from] CompareError),
    #[error("{0}")]
    Send(#[from] SendError),
    #[error("{0}")]
    Documentation(#[from] DocumentationError),
    #[error("{0}")]
    Tail(#[from] TailError),
    #[error("{0}")]
    Top(#[from] TopError),
    #[error("{0}")]
    Healthcheck(#[from] HealthcheckError),
    #[error("{0}")]
    Dead(Box<RunDeadError>),
    #[error("there is no database: DATABASE_URL is not set, and {0} contains no cluster")]
    NoCluster(PathBuf),
    #[error("the thread {0} died; its state may be inconsistent")]
    ThreadDied(String),
    #[error(
        "shutdown forced by a second signal; {0} acknowledged events are not stored, and remain in the journal for the next start"
    )]
    StopForced(u64),
    #[error(
        "SHUTDOWN_TIMEOUT_MS has passed and the journal is unavailable; {0} acknowledged events are not stored"
    )]
    Undrained(u64),
}

impl RunServerError {
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // The exit code of invalid settings: these errors are in files or URLs given by
            // settings.
            Self::Target(_) | Self::Settings(_) | Self::MinihttpSocket => ExitCode::from(2),
            // EX_SOFTWARE of sysexits(3).
            Self::ThreadDied(_) => ExitCode::from(70),
            Self::DataDir { .. }
            | Self::DataDirInUse(_)
            | Self::Listen { .. }
            | Self::PassedSocket(_)
            | Self::Thread(_)
            | Self::Acceptor(_)
            | Self::NotifySocket(_)
            | Self::Signals(_)
            | Self::Cluster(_)
            | Self::Migrate(_)
            | Self::Partitions(_)
            | Self::Retention(_)
            | Self::RetentionNotOwner
            | Self::Journal(_)
            | Self::JournalCorrupt
            | Self::Replay(_)
            | Self::Counts(_)
            | Self::Gateway(_)
            | Self::Compare(_)
            | Self::Send(_)
            | Self::Documentation(_)
            | Self::Tail(_)
            | Self::Top(_)
            | Self::Healthcheck(_)
            | Self::Dead(_)
            | Self::NoCluster(_)
            | Self::StopForced(_)
            | Self::Undrained(_) => ExitCode::FAILURE,
        }
    }
}
