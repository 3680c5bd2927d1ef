//! `aurore-events dead`: lists, replays or purges dead letters.
//!
//! Runs beside a running server: each replay is a transaction of its own. Must not depend on SQL.

use std::io::{self, Write};

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command};
use serde::Serialize;

use crate::clock::Clock;
use crate::dead_letters::{CHUNK, DAYS_MAX, died_before, replay};
use crate::event::EventId;
use crate::logging::is_display_control;
use crate::storage::StoreError;
use crate::storage::dead::{DeadEvent, DeadFilter, DeadLetters};

const LIMIT_DEFAULT: &str = "100";
const LIMIT_MAX: i64 = 100_000;

/// The action and the dead letters it applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadCommand {
    action: DeadAction,
    selection: DeadSelection,
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeadAction {
    List { limit: u32 },
    Replay,
    Purge { confirmed: bool },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct DeadSelection {
    sqlstate: Option<String>,
    service: Option<String>,
    older_than_days: Option<u32>,
    event_id: Option<EventId>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunDeadError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0} dead events match; pass --yes to delete them permanently")]
    Unconfirmed(u64),
}

/// The subcommand.
pub fn command() -> Command {
    let filter_args = [
        Arg::new("DEAD_SQLSTATE")
            .long("sqlstate")
            .value_name("CODE")
            .help("Only events rejected with this SQLSTATE"),
        Arg::new("DEAD_SERVICE").long("service").value_name("NAME").help("Only events of this service"),
        Arg::new("DEAD_DAYS")
            .long("older-than-days")
            .value_name("DAYS")
            .value_parser(clap::value_parser!(u32).range(0..=i64::from(DAYS_MAX)))
            .help("Only events dead-lettered at least this many days ago"),
        Arg::new("DEAD_EVENT_ID")
            .long("event-id")
            .value_name("ID")
            .value_parser(clap::value_parser!(EventId))
            .help("Only the event with this id"),
        Arg::new("DEAD_JSON").long("json").action(ArgAction::SetTrue).help("Print JSON, one object per line"),
    ];
    let limit = Arg::new("DEAD_LIMIT")
        .long("limit")
        .value_name("COUNT")
        .default_value(LIMIT_DEFAULT)
        .value_parser(clap::value_parser!(u32).range(1..=LIMIT_MAX))
        .help("Maximum number of events, newest first [1 to 100000]");
    let all = Arg::new("DEAD_ALL").long("all").action(ArgAction::SetTrue).help("All dead events");
    let yes = Arg::new("DEAD_YES")
        .long("yes")
        .action(ArgAction::SetTrue)
        .help("Confirm the deletion; it cannot be undone");
    Command::new("dead")
        .about("List, replay or purge the events that PostgreSQL rejected (dead_events)")
        .subcommand_required(true)
        .subcommand(
            Command::new("list").about("Print dead events with the reason").args(&filter_args).arg(limit),
        )
        .subcommand(
            Command::new("replay")
                .about("Store dead events again; stored ones are removed from dead_events")
                .args(&filter_args),
        )
        .subcommand(
            Command::new("purge")
                .about("Delete dead events permanently")
                .args(&filter_args)
                .args([all, yes])
                .group(
                    ArgGroup::new("DEAD_WHICH")
                        .args(["DEAD_SQLSTATE", "DEAD_SERVICE", "DEAD_DAYS", "DEAD_EVENT_ID", "DEAD_ALL"])
                        .multiple(true)
                        .required(true),
                ),
        )
}

impl DeadCommand {
    /// Parses the matches of `dead`. Also returns the matches of its subcommand, which contain the
    /// settings.
    pub fn of(matches: &ArgMatches) -> Option<(Self, ArgMatches)> {
        let (name, action_matches) = matches.subcommand()?;
        let action = match name {
            "list" => DeadAction::List { limit: action_matches.get_one("DEAD_LIMIT").copied()? },
            "replay" => DeadAction::Replay,
            "purge" => DeadAction::Purge { confirmed: action_matches.get_flag("DEAD_YES") },
            _ => return None,
        };
        let which = DeadSelection {
            sqlstate: action_matches.get_one("DEAD_SQLSTATE").cloned(),
            service: action_matches.get_one("DEAD_SERVICE").cloned(),
            older_than_days: action_matches.get_one("DEAD_DAYS").copied(),
            event_id: action_matches.get_one("DEAD_EVENT_ID").copied(),
        };
        Some((
            Self { action, selection: which, json: action_matches.get_flag("DEAD_JSON") },
            action_matches.clone(),
        ))
    }

    pub fn run(
        &self,
        repository: &dyn DeadLetters,
        clock: &Clock,
        out: &mut impl Write,
    ) -> Result<(), RunDeadError> {
        let filter = DeadFilter {
            sqlstate: self.selection.sqlstate.clone(),
            service: self.selection.service.clone(),
            before: self.selection.older_than_days.map(|days| died_before(clock.wall(), days)),
            event_id: self.selection.event_id,
        };
        match self.action {
            DeadAction::List { limit } => {
                // Not on standard output, which contains events only.
                if list(repository, &filter, limit, self.json, out)? == 0 {
                    eprintln!("no dead events match");
                }
            }
            DeadAction::Replay => {
                let (summary, _) = replay(repository, &filter, None, u32::MAX, || true)?;
                print(out, self.json, &summary, || {
                    format!(
                        "stored {}, duplicate {}, rejected {}, unreadable {}",
                        summary.stored, summary.duplicate, summary.refused, summary.unreadable
                    )
                })?;
            }
            DeadAction::Purge { confirmed: false } => {
                return Err(RunDeadError::Unconfirmed(repository.count_dead(&filter)?));
            }
            DeadAction::Purge { confirmed: true } => {
                let purged = repository.purge_dead(&filter)?;
                print(out, self.json, &PurgeSummary { purged }, || format!("purged {purged}"))?;
            }
        }
        out.flush()?;
        Ok(())
    }
}

#[derive(Serialize)]
struct PurgeSummary {
    purged: u64,
}

#[derive(Serialize)]
struct DeadRow<'a> {
    event_id: String,
    timestamp: String,
    service: &'a str,
    sqlstate: &'a str,
    reason: &'a str,
    died_at: String,
}

/// Prints the latest `limit` matches, a chunk in memory at a time, and returns their number.
fn list(
    repository: &dyn DeadLetters,
    filter: &DeadFilter,
    limit: u32,
    json: bool,
    out: &mut impl Write,
) -> Result<u32, RunDeadError> {
    let (mut left, mut after) = (limit, None);
    while left > 0 {
        let events = repository.list_dead(filter, after, left.min(CHUNK))?;
        let Some(last) = events.last() else { break };
        after = Some(last.key());
        left = left.saturating_sub(u32::try_from(events.len()).unwrap_or(left));
        for event in &events {
            print_dead_event(event, json, out)?;
        }
    }
    Ok(limit - left)
}

fn print_dead_event(event: &DeadEvent, json: bool, out: &mut impl Write) -> io::Result<()> {
    let row = DeadRow {
        event_id: event.event_id.to_string(),
        timestamp: event.timestamp.to_string(),
        service: &event.service,
        sqlstate: &event.sqlstate,
        reason: &event.reason,
        died_at: event.died_at.to_string(),
    };
    print(out, json, &row, || {
        // The output must stay one line, whatever service and reason contain.
        let plain = |text: &str| text.replace(is_display_control, " ");
        let (service, reason) = (plain(row.service), plain(row.reason));
        format!("{}\t{}\t{}\t{service}\t{reason}", row.event_id, row.died_at, row.sqlstate)
    })
}

fn print(
    out: &mut impl Write,
    json: bool,
    value: &impl Serialize,
    text: impl Fn() -> String,
) -> io::Result<()> {
    let line = if json { sonic_rs::to_string(value).map_err(io::Error::other)? } else { text() };
    writeln!(out, "{line}")
}
