//! `aurore-events journal`: prints the segments of the journal, or stores their events again.
//!
//! A replay stores each event once, since those that the database has are found by their ids. It may run
//! beside the server. It changes no file.

use std::io::{self, Write};

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use crate::clock::Clock;
use crate::event::Timestamp;
use crate::event::timestamp::parse_rfc3339;
use crate::failover::{BATCH_ROWS_MAX, Restored, read_batches, restore};
use crate::journal::filesystem::Filesystem;
use crate::journal::inspect::{SegmentFile, segment_files};
use crate::journal::reader::SegmentDamage;
use crate::storage::{EventRepository, StoreError};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalCommand {
    Inspect { json: bool },
    Replay(ReplayCommand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayCommand {
    /// Only events that were received since.
    since: Option<Timestamp>,
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RunReplayError {
    #[error("{0}; what was stored stays, and another replay stores the rest")]
    Store(#[from] StoreError),
    #[error("cannot read the journal: {0}")]
    Journal(#[from] io::Error),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    #[error("parts of the journal are corrupt; all intact events are stored")]
    Corrupt,
}

/// The subcommand.
pub fn command() -> Command {
    let json = Arg::new("JOURNAL_JSON")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON, one object per line");
    Command::new("journal")
        .about("Inspect the journal in DATA_DIR, or store its events again")
        .subcommand_required(true)
        .subcommand(
            Command::new("inspect").about("Print the contents of each segment; read-only").arg(json.clone()),
        )
        .subcommand(
            Command::new("replay")
                .about(
                    "Store the events of the journal again, those that were committed too, for a database \
                     that lost them; each is stored once",
                )
                .arg(
                    Arg::new("JOURNAL_SINCE")
                        .long("since")
                        .value_name("TIME")
                        .value_parser(|text: &str| {
                            parse_rfc3339(text.as_bytes()).map_err(|error| format!("the time {error}"))
                        })
                        .help("Only events received since this time, in RFC 3339"),
                )
                .arg(json),
        )
}

#[derive(Serialize)]
struct ReplayRow<'a> {
    segment: &'a str,
    restored: u64,
    present: u64,
}

#[derive(Serialize)]
struct ReplaySummary {
    segments: usize,
    restored: u64,
    present: u64,
}

impl JournalCommand {
    /// Parses the matches of `journal`. Also returns the matches of its subcommand, which contain the
    /// settings.
    pub fn of(matches: &ArgMatches) -> Option<(Self, ArgMatches)> {
        let (name, action) = matches.subcommand()?;
        let command = match name {
            "replay" => Self::Replay(ReplayCommand {
                since: action.get_one("JOURNAL_SINCE").copied(),
                json: action.get_flag("JOURNAL_JSON"),
            }),
            _ => Self::Inspect { json: action.get_flag("JOURNAL_JSON") },
        };
        Some((command, action.clone()))
    }
}

impl ReplayCommand {
    /// Stores the events of all segments, and prints a line for each and a total.
    pub fn run(
        self,
        disk: &dyn Filesystem,
        repository: &dyn EventRepository,
        clock: &Clock,
        out: &mut impl Write,
    ) -> Result<(), RunReplayError> {
        let (files, _) = segment_files(disk)?;
        let (mut all, mut corrupt) = (Restored::default(), false);
        for file in &files {
            let (restored, damage) = self.replay(file, disk, repository, clock)?;
            corrupt |= damage.corrupt_ranges > 0 || damage.header_corrupt;
            all += restored;
            let Restored { restored, present, .. } = restored;
            let name = file.name.as_str();
            let written = if self.json {
                write_json(out, &ReplayRow { segment: name, restored, present })
            } else {
                writeln!(out, "{name}: {restored} events stored, {present} were there")
            };
            written.map_err(RunReplayError::Output)?;
        }
        let Restored { restored, present, .. } = all;
        let written = if self.json {
            write_json(out, &ReplaySummary { segments: files.len(), restored, present })
        } else {
            writeln!(out, "{} segments: {restored} events stored, {present} were there", files.len())
        };
        written.map_err(RunReplayError::Output)?;
        if corrupt { Err(RunReplayError::Corrupt) } else { Ok(()) }
    }

    fn replay(
        self,
        file: &SegmentFile,
        disk: &dyn Filesystem,
        repository: &dyn EventRepository,
        clock: &Clock,
    ) -> Result<(Restored, SegmentDamage), RunReplayError> {
        let mut all = Restored::default();
        let damage = read_batches(disk, (file.number, &file.name), BATCH_ROWS_MAX, &mut |rows| {
            let is_wanted = |time: Timestamp| self.since.is_none_or(|since| time >= since);
            let rows: Vec<_> = rows.iter().filter(|row| is_wanted(row.ingested_at())).copied().collect();
            if !rows.is_empty() {
                all += restore(repository, clock, &rows, &mut |error| Err(error.clone()))?;
            }
            Ok::<_, RunReplayError>(())
        });
        match damage {
            Ok(damage) => Ok((all, damage)),
            // The server has removed or renamed it meanwhile, so its events are stored.
            Err(RunReplayError::Journal(error)) if error.kind() == io::ErrorKind::NotFound => {
                Ok((all, SegmentDamage::default()))
            }
            Err(error) => Err(error),
        }
    }
}

fn write_json(out: &mut impl Write, row: &impl Serialize) -> io::Result<()> {
    let text = sonic_rs::to_string(row).expect("BUG: the row cannot be serialized as JSON");
    writeln!(out, "{text}")
}
