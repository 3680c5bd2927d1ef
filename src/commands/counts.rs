//! `aurore-events counts`: compares the counts per service and hour with the events, and puts them right.
//!
//! Works beside running servers, an hour at a time. Knows no SQL.

use std::io::{self, Write};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use crate::storage::StoreError;
use crate::storage::postgres::{Difference, PostgresRepository};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CountsTask {
    repair: bool,
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum CountsError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
    #[error("{0} counts differ from the events; `aurore-events counts repair` puts them right")]
    Differ(u64),
}

/// The subcommand.
pub fn command() -> Command {
    let json = Arg::new("COUNTS_JSON")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Answer in JSON, an object a line");
    Command::new("counts")
        .about("Compare the counts per service and hour (event_counts) with the events")
        .subcommand_required(true)
        .subcommand(
            Command::new("check")
                .about("Say where they differ; exit code 1 if they do anywhere")
                .arg(json.clone()),
        )
        .subcommand(Command::new("repair").about("Put the counts right, while servers write").arg(json))
}

#[derive(Serialize)]
struct Shown<'a> {
    hour: String,
    service: &'a str,
    events: i64,
    counted: i64,
}

#[derive(Serialize)]
struct Sum {
    hours: u64,
    different: u64,
    repaired: bool,
}

impl CountsTask {
    /// From the matches of `counts`, and with them those of its own subcommand, which hold the settings too.
    pub fn of(matches: &ArgMatches) -> Option<(Self, ArgMatches)> {
        let (name, of_action) = matches.subcommand()?;
        let task = Self { repair: name == "repair", json: of_action.get_flag("COUNTS_JSON") };
        Some((task, of_action.clone()))
    }

    /// Prints every difference, and a line of what came of it all.
    pub fn run(self, repository: &PostgresRepository, out: &mut impl Write) -> Result<(), CountsError> {
        let mut sum = Sum { hours: 0, different: 0, repaired: self.repair };
        for hour in repository.counted_hours()? {
            let differences =
                if self.repair { repository.counts_repair(hour)? } else { repository.counts_check(hour)? };
            sum.hours += 1;
            sum.different += differences.len() as u64;
            for difference in &differences {
                self.tell(difference, out)?;
            }
        }
        if self.json {
            json(out, &sum)?;
        } else {
            let what = if self.repair { "were put right" } else { "differ" };
            writeln!(out, "{} hours compared, {} counts {what}", sum.hours, sum.different)?;
        }
        out.flush()?;
        if self.repair || sum.different == 0 { Ok(()) } else { Err(CountsError::Differ(sum.different)) }
    }

    fn tell(self, difference: &Difference, out: &mut impl Write) -> io::Result<()> {
        let Difference { hour, service, events, counted } = difference;
        if self.json {
            let shown = Shown { hour: hour.to_string(), service, events: *events, counted: *counted };
            return json(out, &shown);
        }
        // A service may hold anything; a terminal and `cut` want one line.
        let service = service.replace(char::is_control, " ");
        writeln!(out, "{hour}\t{service}\tevents {events}\tcounted {counted}")
    }
}

fn json(out: &mut impl Write, what: &impl Serialize) -> io::Result<()> {
    writeln!(out, "{}", sonic_rs::to_string(what).map_err(io::Error::other)?)
}
