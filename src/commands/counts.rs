//! `aurore-events counts`: compares the counters per service and hour with the events, and repairs
//! them.
//!
//! Runs beside running servers, one hour per transaction. Must not depend on SQL.

use std::io::{self, Write};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use crate::logging::is_display_control;
use crate::storage::StoreError;
use crate::storage::postgres::{CountMismatch, PostgresRepository};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountsCommand {
    repair: bool,
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RunCountsError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("{0} counts differ from the events; `aurore-events counts repair` repairs them")]
    Differ(u64),
}

/// The subcommand.
pub fn command() -> Command {
    let json = Arg::new("COUNTS_JSON")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON, one object per line");
    Command::new("counts")
        .about("Compare the counts per service and hour (event_counts) with the events")
        .subcommand_required(true)
        .subcommand(
            Command::new("check")
                .about("Print the counts that differ; exit code 1 if there are any")
                .arg(json.clone()),
        )
        .subcommand(Command::new("repair").about("Repair the counts; servers may be running").arg(json))
}

#[derive(Serialize)]
struct DifferenceRow<'a> {
    hour: String,
    service: &'a str,
    events: i64,
    counted: i64,
}

#[derive(Serialize)]
struct CountsSummary {
    hours: u64,
    different: u64,
    repaired: bool,
}

impl CountsCommand {
    /// Parses the matches of `counts`. Also returns the matches of its subcommand, which contain
    /// the settings.
    pub fn of(matches: &ArgMatches) -> Option<(Self, ArgMatches)> {
        let (name, action_matches) = matches.subcommand()?;
        let command = Self { repair: name == "repair", json: action_matches.get_flag("COUNTS_JSON") };
        Some((command, action_matches.clone()))
    }

    /// Prints every difference and a summary line.
    pub fn run(self, repository: &PostgresRepository, out: &mut impl Write) -> Result<(), RunCountsError> {
        let mut summary = CountsSummary { hours: 0, different: 0, repaired: self.repair };
        for hour in repository.counted_hours()? {
            let differences =
                if self.repair { repository.repair_counts(hour)? } else { repository.check_counts(hour)? };
            summary.hours += 1;
            summary.different += differences.len() as u64;
            for difference in &differences {
                self.print_difference(difference, out)?;
            }
        }
        if self.json {
            write_json(out, &summary)?;
        } else {
            let outcome = if self.repair { "repaired" } else { "differ" };
            writeln!(out, "{} hours compared, {} counts {outcome}", summary.hours, summary.different)?;
        }
        out.flush()?;
        if self.repair || summary.different == 0 {
            Ok(())
        } else {
            Err(RunCountsError::Differ(summary.different))
        }
    }

    fn print_difference(self, difference: &CountMismatch, out: &mut impl Write) -> io::Result<()> {
        let CountMismatch { hour, service, events, counted } = difference;
        if self.json {
            let row = DifferenceRow { hour: hour.to_string(), service, events: *events, counted: *counted };
            return write_json(out, &row);
        }
        // The output must stay one line, whatever the service contains.
        let service = service.replace(is_display_control, " ");
        writeln!(out, "{hour}\t{service}\tevents {events}\tcounted {counted}")
    }
}

fn write_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", sonic_rs::to_string(value).map_err(io::Error::other)?)
}
