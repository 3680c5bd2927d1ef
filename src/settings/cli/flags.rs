//! The flags of the settings, for the program and for each subcommand.
//!
//! The program has a flag for every setting. A subcommand accepts the same flags, since scripts pass
//! the same ones to all, but its help has only those that it reads.

use std::path::PathBuf;

use clap::{Arg, Command};

use super::CliPurpose;
use crate::settings::reader::Setting;

/// The id of `--env-file`.
const ENV_FILE: &str = "ENV_FILE";
/// The settings in the short help (`-h`) of the program.
const BASIC: &[&str] = &[
    "HOST",
    "PORT",
    "AUTH_TOKENS_FILE",
    "TLS_CERT",
    "TLS_KEY",
    "DATABASE_URL",
    "DATA_DIR",
    "DURABILITY",
    "RETENTION_DAYS",
    "LOG_LEVEL",
    ENV_FILE,
];
const DATABASE: &[&str] = &["DATABASE_URL", "DATABASE_URL_FILE", "DATA_DIR", ENV_FILE];
const SERVER: &[&str] = &["HOST", "PORT", ENV_FILE];
/// The settings that a subcommand reads. Those of `serve` are in [`ShownFlags::of`].
const READ_BY: &[(&str, &[&str])] = &[
    ("migrate", DATABASE),
    ("healthcheck", &["HOST", "PORT", "TLS_CERT", "TLS_KEY", ENV_FILE]),
    ("history", &["DATA_DIR", "METRICS_HISTORY_MAX_BYTES", ENV_FILE]),
    ("dead", DATABASE),
    ("counts", DATABASE),
    ("gateway", SERVER),
    ("send", SERVER),
    ("tail", SERVER),
    ("top", SERVER),
    ("retention", &["RETENTION_DAYS", "DATABASE_URL", "DATABASE_URL_FILE", "DATA_DIR", ENV_FILE]),
    ("journal", DATABASE),
];
/// The heading of the settings in the help of a subcommand.
const SUBCOMMAND_HEADING: &str = "Settings";
const ALL_ACCEPTED: &str = "All settings of the server are accepted, too: `aurore-events --help` lists them.";

/// The settings in the help of a subcommand.
#[derive(Clone, Copy)]
enum ShownFlags {
    All,
    Read(&'static [&'static str]),
}

impl ShownFlags {
    fn of(subcommand: &str) -> Self {
        if subcommand == "serve" {
            return Self::All;
        }
        Self::Read(READ_BY.iter().find(|(name, _)| *name == subcommand).map_or(&[], |(_, read)| read))
    }
}

/// Adds the flags of the settings to `program` and to its subcommands.
pub(super) fn add_settings(program: Command, settings: &[Setting], purpose: CliPurpose) -> Command {
    let flags: Vec<Arg> = settings.iter().map(setting_flag).chain([env_file_flag()]).collect();
    // A value that is given before the subcommand is valid for the subcommand. Where that declares the
    // flag itself, its declaration has precedence, but for the value.
    let is_global = purpose == CliPurpose::Parse;
    program.args(flags.iter().map(|flag| program_flag(flag).global(is_global))).mut_subcommands(|command| {
        let shown = ShownFlags::of(command.get_name());
        add_to_subcommand(command, &flags, shown, purpose)
    })
}

fn add_to_subcommand(command: Command, flags: &[Arg], shown: ShownFlags, purpose: CliPurpose) -> Command {
    let is_group = command.has_subcommands();
    let command = command.mut_subcommands(|inner| add_to_subcommand(inner, flags, shown, purpose));
    let declared = flags.iter().filter_map(|flag| match shown {
        ShownFlags::All => Some(program_flag(flag)),
        ShownFlags::Read(read) if !is_group && read.contains(&flag.get_id().as_str()) => {
            Some(flag.clone().help_heading(SUBCOMMAND_HEADING).hide_short_help(true))
        }
        ShownFlags::Read(_) => (purpose == CliPurpose::Parse).then(|| flag.clone().hide(true)),
    });
    let command = command.args(declared.collect::<Vec<_>>());
    match shown {
        ShownFlags::Read(&[_, ..]) if !is_group && purpose == CliPurpose::Parse => {
            command.after_long_help(ALL_ACCEPTED)
        }
        ShownFlags::Read(_) | ShownFlags::All => command,
    }
}

/// The flag as the program and `serve` show it.
fn program_flag(flag: &Arg) -> Arg {
    flag.clone().hide_short_help(!BASIC.contains(&flag.get_id().as_str()))
}

fn setting_flag(setting: &Setting) -> Arg {
    let flag = Arg::new(setting.name)
        .long(setting.name.to_ascii_lowercase().replace('_', "-"))
        .env(setting.name)
        // DATABASE_URL may contain a password, which --help must not print.
        .hide_env_values(true)
        .value_name("VALUE")
        .help_heading(setting.section)
        .help(setting.help())
        // Manual pages have no short help.
        .long_help(setting.help());
    match &setting.default {
        Some(default) => flag.default_value(default.clone()),
        None => flag,
    }
}

fn env_file_flag() -> Arg {
    let help = "File of NAME=value lines; flags and the environment override it";
    Arg::new(ENV_FILE)
        .long("env-file")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help(help)
        .long_help(help)
}
