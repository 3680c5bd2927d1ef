//! The one-shot commands: each opens the data directory or the database, runs to its end, and
//! prints its result.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};

use super::error::RunServerError;
use super::{JOURNAL_DIR, breaker, lock_data_dir, open_database, stages, stop};
use crate::clock::Clock;
use crate::commands::counts::CountsCommand;
use crate::commands::dead::DeadCommand;
use crate::commands::documentation::DocumentationCommand;
use crate::commands::healthcheck::HealthcheckCommand;
use crate::commands::journal::{JournalCommand, RunReplayError};
use crate::commands::send::SendCommand;
use crate::commands::stop_signal;
use crate::commands::tail::TailCommand;
use crate::commands::top::TopCommand;
use crate::gateway::compare::CompareCommand;
use crate::journal::filesystem::OsDirectory;
use crate::journal::{self, OpenJournalError};
use crate::metrics::history::{History, format_json, format_table};
use crate::partitions::{self, MaintainPartitionsError, PartitionMaintenance};
use crate::retention::SweepOutcome;
use crate::settings::Settings;
use crate::storage::EventRepository;
use crate::storage::postgres::embedded::{Cluster, ClusterLimits};
use crate::storage::postgres::{ConnectTarget, PostgresLimits, PostgresRepository};

/// Attempts of `migrate` to create the partitions while other sessions hold locks, and the pause
/// between two.
const PARTITION_TRIES: u32 = 10;
const PARTITION_PAUSE: Duration = Duration::from_millis(500);

/// `aurore-events migrate`: also creates the partitions of the coming days, for servers whose role
/// may not.
pub fn migrate(settings: &Settings, clock: &Clock) -> Result<(), RunServerError> {
    let target = settings.database_url.as_deref().map(ConnectTarget::parse).transpose()?;
    let _lock = if target.is_none() { Some(lock_data_dir(&settings.data_dir)?) } else { None };
    let (repository, cluster) = open_database(settings, target, None, clock)?;
    let repository: Arc<dyn EventRepository> = repository;
    let migrated = repository.prepare();
    let maintained = migrated.is_ok().then(|| create_partitions(&repository, clock));
    drop(repository);
    stop(cluster);
    migrated?;
    maintained.transpose().map_err(|error| RunServerError::Partitions(Box::new(error)))?;
    log::info!("the database schema is up to date");
    Ok(())
}

/// Creates the missing partitions and empties the default partition. Waits some seconds in all for
/// locks, each for a moment only.
fn create_partitions(
    repository: &Arc<dyn EventRepository>,
    clock: &Clock,
) -> Result<(), MaintainPartitionsError> {
    let maintenance = PartitionMaintenance::new(repository.clone(), Arc::default(), clock.clone());
    let mut tries = 1;
    loop {
        match maintenance.maintain(partitions::command_limits(clock.wall())) {
            Err(error) if tries < PARTITION_TRIES && error.is_lock_conflict() => {
                tries += 1;
                log::info!("{error}; trying again");
                std::thread::sleep(PARTITION_PAUSE);
            }
            result => return result,
        }
    }
}

/// `aurore-events history`: returns the table, or a JSON object per line. Read-only; a server may be
/// running.
pub fn history(settings: &Settings, json: bool) -> Result<String, RunServerError> {
    let failed = |error| RunServerError::DataDir { path: settings.data_dir.clone(), error };
    let history = History::new(&settings.data_dir, settings.history_bytes_max);
    let (entries, unreadable) = history.read().map_err(failed)?;
    if unreadable > 0 {
        log::warn!(lines = unreadable; "some lines of the metrics history are unreadable");
    }
    if entries.is_empty() {
        eprintln!("DATA_DIR {} contains no metrics history", settings.data_dir.display());
    }
    if json { format_json(&entries).map_err(failed) } else { Ok(format_table(&entries)) }
}

/// `aurore-events journal`.
pub fn journal(settings: &Settings, clock: &Clock, command: JournalCommand) -> Result<(), RunServerError> {
    let path = settings.data_dir.join(JOURNAL_DIR);
    let failed = |error| RunServerError::from(OpenJournalError::Io { path: path.clone(), error });
    let disk = OsDirectory::open_existing(path.clone()).map_err(failed)?;
    let mut out = std::io::stdout().lock();
    match command {
        JournalCommand::Inspect { json } => {
            let whole = journal::inspect::inspect(&disk, json, &mut out).map_err(failed)?;
            if whole { Ok(()) } else { Err(RunServerError::JournalCorrupt) }
        }
        JournalCommand::Replay(replay) => {
            let database = CommandDatabase::open(settings, clock)?;
            let prepared = database.repository.prepare();
            let done = prepared
                .map_err(RunReplayError::from)
                .and_then(|()| replay.run(&disk, &*database.repository, clock, &mut out));
            database.close();
            done.map_err(|error| RunServerError::Replay(Box::new(error)))
        }
    }
}

/// `aurore-events dead`.
pub fn dead(settings: &Settings, clock: &Clock, command: &DeadCommand) -> Result<(), RunServerError> {
    let database = CommandDatabase::open(settings, clock)?;
    let done = command.run(&*database.repository, clock, &mut std::io::stdout().lock());
    database.close();
    done.map_err(|error| RunServerError::Dead(Box::new(error)))
}

/// `aurore-events counts`.
pub fn counts(settings: &Settings, clock: &Clock, command: CountsCommand) -> Result<(), RunServerError> {
    let database = CommandDatabase::open(settings, clock)?;
    let done = command.run(&database.repository, &mut std::io::stdout().lock());
    database.close();
    done.map_err(|error| RunServerError::Counts(Box::new(error)))
}

/// `aurore-events retention run`.
pub fn retention(
    settings: &Settings,
    clock: &Clock,
    dry_run: bool,
    json: bool,
) -> Result<(), RunServerError> {
    let database = CommandDatabase::open(settings, clock)?;
    database.repository.prepare()?;
    let retention =
        stages::retention(settings, database.repository.clone(), breaker(settings), Arc::default(), clock);
    let done = if dry_run {
        retention.preview().map(|preview| {
            print_line(&if json { preview.json() } else { preview.to_string() });
            None
        })
    } else {
        // There is no graceful stop: a signal ends the process, and the next sweep continues.
        let (_stop, stopped) = bounded::<()>(0);
        retention.sweep(&stopped).map(|outcome| {
            if json {
                print_line(&outcome.json());
            }
            Some(outcome)
        })
    };
    drop(retention);
    database.close();
    match done.map_err(|error| RunServerError::Retention(Box::new(error)))? {
        Some(SweepOutcome::NotOwner) => Err(RunServerError::RetentionNotOwner),
        Some(SweepOutcome::Completed(_) | SweepOutcome::AlreadyRunning | SweepOutcome::Stopped(_)) | None => {
            Ok(())
        }
    }
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
fn print_line(text: &str) {
    println!("{text}");
}

/// The database of a command. Connects to the private cluster of a running server if there is one;
/// otherwise starts the cluster for the duration of the command.
struct CommandDatabase {
    repository: Arc<PostgresRepository>,
    cluster: Option<Cluster>,
    _lock: Option<File>,
}

impl CommandDatabase {
    fn open(settings: &Settings, clock: &Clock) -> Result<Self, RunServerError> {
        let own_cluster = settings.data_dir.join("postgres");
        let (lock, target, cluster) = match &settings.database_url {
            Some(url) => (None, ConnectTarget::parse(url)?, None),
            None if !own_cluster.is_dir() => {
                return Err(RunServerError::NoCluster(settings.data_dir.clone()));
            }
            None => match lock_data_dir(&settings.data_dir) {
                Ok(lock) => {
                    let cluster = Cluster::start(&settings.data_dir, ClusterLimits::default(), clock)?;
                    (Some(lock), cluster.target(), Some(cluster))
                }
                Err(RunServerError::DataDirInUse(_)) => {
                    (None, Cluster::running_target(&settings.data_dir)?, None)
                }
                Err(error) => return Err(error),
            },
        };
        let limits = PostgresLimits {
            connections_max: 2,
            synchronous_commit: settings.synchronous_commit,
            ..PostgresLimits::default()
        };
        let repository = Arc::new(PostgresRepository::new(&target, limits));
        Ok(Self { repository, cluster, _lock: lock })
    }

    fn close(self) {
        drop(self.repository);
        stop(self.cluster);
    }
}

/// `aurore-events send`.
pub fn send(command: &SendCommand, clock: &Clock) -> Result<(), RunServerError> {
    Ok(command.run(clock, &stop_of_command()?, &mut std::io::stdout().lock())?)
}

/// `aurore-events tail`.
pub fn tail(command: &TailCommand, clock: &Clock) -> Result<(), RunServerError> {
    Ok(command.run(clock, &stop_of_command()?)?)
}

/// `aurore-events top`.
pub fn top(command: &TopCommand, clock: &Clock) -> Result<(), RunServerError> {
    Ok(command.run(clock, &stop_of_command()?)?)
}

/// Disconnected by SIGINT or SIGTERM.
fn stop_of_command() -> Result<Receiver<()>, RunServerError> {
    stop_signal().map_err(|error| RunServerError::Signals(error.to_string()))
}

/// `aurore-events healthcheck`.
pub fn healthcheck(settings: &Settings, command: HealthcheckCommand) -> Result<(), RunServerError> {
    Ok(command.run(settings.address(), settings.edge.tls.is_some(), &mut std::io::stdout().lock())?)
}

/// `aurore-events gateway compare`.
pub fn compare(command: &CompareCommand) -> Result<(), RunServerError> {
    Ok(command.run(&mut std::io::stdout().lock())?)
}

/// `aurore-events completions` and `aurore-events man`.
pub fn documentation(command: &DocumentationCommand) -> Result<(), RunServerError> {
    Ok(command.run(Settings::documented_command_line(), &mut std::io::stdout().lock())?)
}
