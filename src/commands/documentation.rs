//! `aurore-events completions` and `aurore-events man`: the completions of a shell and the manual
//! pages, generated from the declarations of the command line.
//!
//! For packages. It must not know the declarations.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;

/// Flags above which the synopsis of a manual page does not list them.
const SYNOPSIS_FLAGS_MAX: usize = 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentationCommand {
    Completions(Shell),
    /// The directory of the manual pages.
    Man(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum DocumentationError {
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
    #[error("cannot write the manual pages to {0}: {1}")]
    Directory(PathBuf, io::Error),
}

/// The subcommands.
pub fn commands() -> [Command; 2] {
    [
        Command::new("completions").about("Print the completions of a shell").arg(
            Arg::new("COMPLETIONS_SHELL")
                .value_name("SHELL")
                .required(true)
                .value_parser(clap::value_parser!(Shell))
                .help("Shell that reads the completions"),
        ),
        Command::new("man").about("Write the manual pages, one for each command, and exit").arg(
            Arg::new("MAN_OUT")
                .long("out")
                .value_name("DIRECTORY")
                .required(true)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Directory of the pages; created if it is missing"),
        ),
    ]
}

impl DocumentationCommand {
    /// Parses the matches of `completions` or `man`; one of them is given.
    pub fn of(matches: &ArgMatches) -> Option<Self> {
        if let Ok(Some(shell)) = matches.try_get_one::<Shell>("COMPLETIONS_SHELL") {
            return Some(Self::Completions(*shell));
        }
        matches.get_one::<PathBuf>("MAN_OUT").cloned().map(Self::Man)
    }

    /// Generates from `program`, which declares no hidden flags.
    pub fn run(&self, mut program: Command, out: &mut impl Write) -> Result<(), DocumentationError> {
        match self {
            Self::Completions(shell) => {
                let name = program.get_name().to_owned();
                // `generate` panics if `out` fails, as a closed pipe does.
                let mut text = Vec::new();
                clap_complete::generate(*shell, &mut program, name, &mut text);
                out.write_all(&text)?;
                Ok(out.flush()?)
            }
            Self::Man(directory) => std::fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(manual(program), directory))
                .map_err(|error| DocumentationError::Directory(directory.clone(), error)),
        }
    }
}

/// The commands that have a page, with an abbreviated synopsis where they have many flags.
fn manual(program: Command) -> Command {
    let mut program = without_help_command(program);
    // Gives the nested commands their full names.
    program.build();
    abbreviate_synopsis(program)
}

/// Each group has a command `help`, which needs no page.
fn without_help_command(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help_command)
}

fn abbreviate_synopsis(mut command: Command) -> Command {
    let has_many = command.get_arguments().count() > SYNOPSIS_FLAGS_MAX;
    if has_many {
        let usage = command.render_usage().to_string();
        command = command.override_usage(usage.trim_start_matches("Usage: ").to_owned());
    }
    command.mut_subcommands(abbreviate_synopsis)
}
