//! The commands, and which of them the command line asks for.

use clap::{ArgMatches, Command};

use crate::dead::{self, DeadTask};

/// What the program was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Serve,
    CheckConfig,
    Migrate,
    History,
    JournalInspect,
    Dead(DeadTask),
}

/// Adds the commands to `program`, in the order of its help.
pub(super) fn add_to(program: Command) -> Command {
    program
        .subcommand(Command::new("serve").about("Run the server (the default)"))
        .subcommand(Command::new("check-config").about("Check the settings, print them and exit"))
        .subcommand(Command::new("migrate").about("Bring the database's schema up to date and exit"))
        .subcommand(Command::new("history").about("Print the metrics history of DATA_DIR as a table"))
        .subcommand(dead::command())
        .subcommand(
            Command::new("journal")
                .about("Look at the journal in DATA_DIR")
                .subcommand_required(true)
                .subcommand(Command::new("inspect").about("Say what lies in each segment; touch nothing")),
        )
}

/// The task, and the matches that hold its flags and the settings.
pub(super) fn of(matches: ArgMatches) -> (Task, ArgMatches) {
    let Some((name, of_command)) = matches.subcommand() else { return (Task::Serve, matches) };
    let own = || of_command.clone();
    // Where a command has commands of its own, the innermost holds the flags.
    let inner = || of_command.subcommand().map_or_else(own, |(_, inner)| inner.clone());
    match name {
        "check-config" => (Task::CheckConfig, own()),
        "migrate" => (Task::Migrate, own()),
        "history" => (Task::History, own()),
        "dead" => {
            let (task, of_action) = DeadTask::of(of_command).expect("clap demands one of its commands");
            (Task::Dead(task), of_action)
        }
        "journal" => (Task::JournalInspect, inner()),
        _ => (Task::Serve, own()),
    }
}
