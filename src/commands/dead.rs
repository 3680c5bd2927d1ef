//! `aurore-events dead`: lists what PostgreSQL refused, tries it again once the cause is gone, or removes it.
//!
//! Works beside a running server: each try is a transaction of its own. Knows no SQL.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde::Serialize;

use crate::clock::Clock;
use crate::event::{EventId, Timestamp};
use crate::storage::StoreError;
use crate::storage::postgres::{DeadEvent, DeadFilter, PostgresRepository, Replayed};
use crate::writer::Verdict;

/// Dead letters tried together.
const CHUNK: u32 = 500;
const LIMIT_DEFAULT: &str = "100";
const LIMIT_MAX: i64 = 100_000;
const DAYS_MAX: i64 = 36_500;

/// What to do with which dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadTask {
    action: Action,
    which: Which,
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    List { limit: u32 },
    Replay,
    Purge { confirmed: bool },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Which {
    sqlstate: Option<String>,
    service: Option<String>,
    older_than: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    #[error("{0} dead events match; say --yes to remove them for good")]
    Unconfirmed(u64),
}

/// The subcommand.
pub fn command() -> Command {
    let which = [
        Arg::new("DEAD_SQLSTATE")
            .long("sqlstate")
            .value_name("CODE")
            .help("Only those refused with this SQLSTATE"),
        Arg::new("DEAD_SERVICE").long("service").value_name("NAME").help("Only those of this service"),
        Arg::new("DEAD_DAYS")
            .long("older-than-days")
            .value_name("DAYS")
            .value_parser(clap::value_parser!(u32).range(0..=DAYS_MAX))
            .help("Only those that died so many days ago or earlier"),
        Arg::new("DEAD_JSON")
            .long("json")
            .action(ArgAction::SetTrue)
            .help("Answer in JSON, an object a line"),
    ];
    let limit = Arg::new("DEAD_LIMIT")
        .long("limit")
        .value_name("COUNT")
        .default_value(LIMIT_DEFAULT)
        .value_parser(clap::value_parser!(u32).range(1..=LIMIT_MAX))
        .help("How many, the latest first [1 to 100000]");
    let all = Arg::new("DEAD_ALL").long("all").action(ArgAction::SetTrue).help("All of them");
    let yes = Arg::new("DEAD_YES").long("yes").action(ArgAction::SetTrue).help("Do it: there is no way back");
    Command::new("dead")
        .about("List, replay or purge the events that PostgreSQL refused (dead_events)")
        .subcommand_required(true)
        .subcommand(Command::new("list").about("Show them, with the reason").args(&which).arg(limit))
        .subcommand(
            Command::new("replay")
                .about("Try to store them again: those that are stored leave dead_events")
                .args(&which),
        )
        .subcommand(
            Command::new("purge").about("Remove them for good").args(&which).args([all, yes]).group(
                ArgGroup::new("DEAD_WHICH")
                    .args(["DEAD_SQLSTATE", "DEAD_SERVICE", "DEAD_DAYS", "DEAD_ALL"])
                    .multiple(true)
                    .required(true),
            ),
        )
}

impl DeadTask {
    /// From the matches of `dead`, and with them those of its own subcommand, which hold the settings too.
    pub fn of(matches: &ArgMatches) -> Option<(Self, ArgMatches)> {
        let (name, of_action) = matches.subcommand()?;
        let action = match name {
            "list" => Action::List { limit: of_action.get_one("DEAD_LIMIT").copied()? },
            "replay" => Action::Replay,
            "purge" => Action::Purge { confirmed: of_action.get_flag("DEAD_YES") },
            _ => return None,
        };
        let which = Which {
            sqlstate: of_action.get_one("DEAD_SQLSTATE").cloned(),
            service: of_action.get_one("DEAD_SERVICE").cloned(),
            older_than: of_action
                .get_one::<u32>("DEAD_DAYS")
                .map(|days| Duration::from_hours(24 * u64::from(*days))),
        };
        Some((Self { action, which, json: of_action.get_flag("DEAD_JSON") }, of_action.clone()))
    }

    pub fn run(
        &self,
        repository: &PostgresRepository,
        clock: &Clock,
        out: &mut impl Write,
    ) -> Result<(), DeadError> {
        let filter = DeadFilter {
            sqlstate: self.which.sqlstate.clone(),
            service: self.which.service.clone(),
            before: self.which.older_than.map(|age| before(clock.wall(), age)),
        };
        match self.action {
            Action::List { limit } => {
                for event in repository.dead_list(&filter, limit)? {
                    list(&event, self.json, out)?;
                }
            }
            Action::Replay => {
                let sum = replay(repository, &filter)?;
                tell(out, self.json, &sum, || {
                    format!(
                        "stored {}, stored already {}, refused again {}, unreadable {}",
                        sum.stored, sum.duplicate, sum.refused, sum.unreadable
                    )
                })?;
            }
            Action::Purge { confirmed: false } => {
                return Err(DeadError::Unconfirmed(repository.dead_count(&filter)?));
            }
            Action::Purge { confirmed: true } => {
                let purged = repository.dead_purge(&filter)?;
                tell(out, self.json, &Purged { purged }, || format!("purged {purged}"))?;
            }
        }
        out.flush()?;
        Ok(())
    }
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.micros().saturating_sub(micros))
}

/// What became of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Sum {
    stored: u64,
    duplicate: u64,
    refused: u64,
    unreadable: u64,
}

#[derive(Serialize)]
struct Purged {
    purged: u64,
}

#[derive(Serialize)]
struct Shown<'a> {
    event_id: String,
    timestamp: String,
    service: &'a str,
    sqlstate: &'a str,
    reason: &'a str,
    died_at: String,
}

/// Walks over all that match, once: what is refused again stays behind.
fn replay(repository: &PostgresRepository, filter: &DeadFilter) -> Result<Sum, StoreError> {
    let mut sum = Sum::default();
    let mut after = None;
    loop {
        let ids = repository.dead_ids(filter, after, CHUNK)?;
        let Some(last) = ids.last() else { return Ok(sum) };
        after = Some(*last);
        replay_chunk(repository, ids, &mut sum)?;
    }
}

/// Halves what is refused until the refused stand alone.
fn replay_chunk(repository: &PostgresRepository, ids: Vec<EventId>, sum: &mut Sum) -> Result<(), StoreError> {
    let mut todo = vec![ids];
    while let Some(mut piece) = todo.pop() {
        match repository.dead_replay(&piece) {
            Ok(Replayed { stored, duplicate, unreadable }) => {
                sum.stored += stored;
                sum.duplicate += duplicate;
                sum.unreadable += unreadable;
            }
            Err(error) if Verdict::of(&error) != Verdict::Split => return Err(error),
            Err(error) => {
                if let [id] = piece[..] {
                    sum.refused += 1;
                    let sqlstate = error.sqlstate.unwrap_or_default();
                    repository.dead_blame(id, &sqlstate, &error.message.replace('\0', "\u{fffd}"))?;
                } else {
                    todo.push(piece.split_off(piece.len() / 2));
                    todo.push(piece);
                }
            }
        }
    }
    Ok(())
}

fn list(event: &DeadEvent, json: bool, out: &mut impl Write) -> io::Result<()> {
    let shown = Shown {
        event_id: event.event_id.to_string(),
        timestamp: event.timestamp.to_string(),
        service: &event.service,
        sqlstate: &event.sqlstate,
        reason: &event.reason,
        died_at: event.died_at.to_string(),
    };
    tell(out, json, &shown, || {
        // A service or a reason may hold anything; a terminal and `cut` want one line.
        let plain = |text: &str| text.replace(char::is_control, " ");
        let (service, reason) = (plain(shown.service), plain(shown.reason));
        format!("{}\t{}\t{}\t{service}\t{reason}", shown.event_id, shown.died_at, shown.sqlstate)
    })
}

fn tell(
    out: &mut impl Write,
    json: bool,
    what: &impl Serialize,
    text: impl Fn() -> String,
) -> io::Result<()> {
    let line = if json { sonic_rs::to_string(what).map_err(io::Error::other)? } else { text() };
    writeln!(out, "{line}")
}
