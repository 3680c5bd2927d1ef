//! The command line: flags of the settings, and subcommands.

mod flags;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::reader::Setting;
use crate::access::NewToken;
use crate::commands::counts::{self, CountsCommand};
use crate::commands::dead::{self, DeadCommand};
use crate::commands::documentation::{self, DocumentationCommand};
use crate::commands::healthcheck::{self, HealthcheckCommand};
use crate::commands::journal::{self, JournalCommand};
use crate::commands::send::{self, SendCommand};
use crate::commands::tail::{self, TailCommand};
use crate::commands::top::{self, TopCommand};
use crate::gateway::compare::CompareCommand;

/// The id of `--json`.
const JSON: &str = "JSON";

/// The selected subcommand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CliCommand {
    Serve,
    CheckConfig {
        json: bool,
    },
    Migrate,
    History {
        json: bool,
    },
    Journal(JournalCommand),
    Dead(DeadCommand),
    Counts(CountsCommand),
    GatewayCompare(CompareCommand),
    Healthcheck(HealthcheckCommand),
    Send(SendCommand),
    Tail(TailCommand),
    Top(TopCommand),
    CreateToken {
        token: NewToken,
        json: bool,
    },
    Documentation(DocumentationCommand),
    RetentionRun {
        /// Report what would be deleted, without deleting.
        dry_run: bool,
        json: bool,
    },
}

/// What a command line is declared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CliPurpose {
    Parse,
    /// Completions and manual pages. Generators of completions include hidden flags, so these are not
    /// declared.
    Document,
}

impl CliCommand {
    /// Whether the settings have an effect, so that invalid ones are errors.
    pub(super) fn reads_settings(&self) -> bool {
        !matches!(self, Self::CreateToken { .. } | Self::Documentation(_))
    }
}

/// The command line: a flag for every setting, and the subcommands.
pub(super) fn command(settings: &[Setting], purpose: CliPurpose) -> Command {
    let program = Command::new("aurore-events")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Accepts events over HTTP and stores every acknowledged event in PostgreSQL exactly once")
        .max_term_width(110);
    flags::add_settings(add_subcommands(program), settings, purpose)
}

/// Adds the subcommands to `program`, in the order of the help text.
fn add_subcommands(program: Command) -> Command {
    program
        .subcommand(Command::new("serve").about("Run the server (the default)"))
        .subcommand(
            Command::new("check-config")
                .about("Validate and print the settings, and exit")
                .arg(json_flag("Print a JSON object with the members settings and warnings")),
        )
        .subcommand(Command::new("migrate").about("Migrate the database schema and exit"))
        .subcommand(healthcheck::command())
        .subcommand(token_command())
        .subcommand(
            Command::new("history")
                .about("Print the metrics history of DATA_DIR as a table")
                .arg(json_flag("Print JSON, one object per line")),
        )
        .subcommand(dead::command())
        .subcommand(counts::command())
        .subcommand(gateway_command())
        .subcommand(send::command())
        .subcommand(tail::command())
        .subcommand(top::command())
        .subcommand(
            Command::new("retention").about("Remove expired events").subcommand_required(true).subcommand(
                Command::new("run")
                    .about("Remove events older than RETENTION_DAYS now, and exit")
                    .arg(
                        Arg::new("DRY_RUN")
                            .long("dry-run")
                            .action(ArgAction::SetTrue)
                            .help("Print what would be removed, without removing it"),
                    )
                    .arg(json_flag("Print the outcome as a JSON object")),
            ),
        )
        .subcommand(journal::command())
        .subcommands(documentation::commands())
}

fn json_flag(help: &'static str) -> Arg {
    Arg::new(JSON).long("json").action(ArgAction::SetTrue).help(help)
}

fn token_command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("token").about("Tokens for AUTH_TOKENS_FILE").subcommand_required(true).subcommand(
        Command::new("create")
            .about("Create a token: prints it once, and the line with its hash for AUTH_TOKENS_FILE")
            .arg(arg("name", "NAME", "Name of the token's owner, used in the log").required(true))
            .arg(arg("scopes", "LIST", "Scopes of the token: ingest, query, metrics, admin").required(true))
            .arg(arg(
                "services",
                "LIST",
                "Services the token is restricted to, percent-encoded; default: all",
            ))
            .arg(json_flag("Print a JSON object with the members token and line")),
    )
}

fn gateway_command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("gateway").about("The metrics gateway").subcommand_required(true).subcommand(
        Command::new("compare")
            .about("Print the series that differ between a Pushgateway and this server; exit code 1 if there are any")
            .arg(arg("pushgateway", "URL", "The Pushgateway, such as http://pushgateway:9091").required(true))
            .arg(arg("server", "URL", "This server; default: http://HOST:PORT"))
            .arg(arg("token", "TOKEN", "A token with the scope metrics, if the server requires one"))
            .arg(json_flag("Print JSON, one object per line")),
    )
}

/// The URL of the server that these settings describe.
fn own_url(matches: &ArgMatches) -> String {
    let of = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let (host, port) = (of("HOST"), of("PORT"));
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("http://{host}:{port}")
}

/// The URL of the option `name`.
fn option_url(name: &str, given: &str) -> Result<String, String> {
    super::http_url(given)
        .ok_or_else(|| format!("--{name} {given:?} is not a URL such as http://localhost:9091"))
}

/// The URL of the option `server`; by default that of the server that these settings describe.
fn server_url(matches: &ArgMatches, given: Option<&str>) -> Result<String, String> {
    match given {
        Some(given) => option_url("server", given),
        None => Ok(own_url(matches)),
    }
}

fn gateway_compare(matches: &ArgMatches) -> Result<CliCommand, String> {
    let url = |name: &str, default: String| {
        option_url(name, matches.get_one::<String>(name).map_or(&default, |given| given))
    };
    Ok(CliCommand::GatewayCompare(CompareCommand {
        pushgateway: url("pushgateway", String::new())?,
        server: url("server", own_url(matches))?,
        token: matches.get_one::<String>("token").cloned(),
        json: matches.get_flag(JSON),
    }))
}

fn create_token(matches: &ArgMatches) -> Result<CliCommand, String> {
    let text = |name| matches.get_one::<String>(name).map(String::as_str);
    let (name, scopes) = (text("name").unwrap_or_default(), text("scopes").unwrap_or_default());
    let token = NewToken::new(name, scopes, text("services"))?;
    Ok(CliCommand::CreateToken { token, json: matches.get_flag(JSON) })
}

/// Returns the subcommand and the matches with its flags and the settings, or the error in its
/// arguments.
pub(super) fn parse(matches: ArgMatches) -> Result<(CliCommand, ArgMatches), String> {
    let Some((name, command_matches)) = matches.subcommand() else { return Ok((CliCommand::Serve, matches)) };
    let own = || command_matches.clone();
    // For nested subcommands, the innermost matches contain the flags.
    let inner = || command_matches.subcommand().map_or_else(own, |(_, inner)| inner.clone());
    Ok(match name {
        "check-config" => (CliCommand::CheckConfig { json: command_matches.get_flag(JSON) }, own()),
        "migrate" => (CliCommand::Migrate, own()),
        "history" => (CliCommand::History { json: command_matches.get_flag(JSON) }, own()),
        "healthcheck" => (CliCommand::Healthcheck(HealthcheckCommand::of(command_matches)), own()),
        "dead" => {
            let (command, action_matches) =
                DeadCommand::of(command_matches).expect("BUG: clap requires a subcommand");
            (CliCommand::Dead(command), action_matches)
        }
        "counts" => {
            let (command, action_matches) =
                CountsCommand::of(command_matches).expect("BUG: clap requires a subcommand");
            (CliCommand::Counts(command), action_matches)
        }
        "journal" => {
            let (command, action_matches) =
                JournalCommand::of(command_matches).expect("BUG: clap requires a subcommand");
            (CliCommand::Journal(command), action_matches)
        }
        "gateway" => {
            let inner = inner();
            (gateway_compare(&inner)?, inner)
        }
        "token" => {
            let inner = inner();
            (create_token(&inner)?, inner)
        }
        "completions" | "man" => {
            let command = DocumentationCommand::of(command_matches).expect("BUG: clap requires the argument");
            (CliCommand::Documentation(command), own())
        }
        "send" => {
            let command = SendCommand::of(command_matches, |given| server_url(command_matches, given))?;
            (CliCommand::Send(command), own())
        }
        "tail" => {
            let command = TailCommand::of(command_matches, |given| server_url(command_matches, given))?;
            (CliCommand::Tail(command), own())
        }
        "top" => {
            let command = TopCommand::of(command_matches, |given| server_url(command_matches, given))?;
            (CliCommand::Top(command), own())
        }
        "retention" => {
            let run_matches = inner();
            let (dry_run, json) = (run_matches.get_flag("DRY_RUN"), run_matches.get_flag(JSON));
            (CliCommand::RetentionRun { dry_run, json }, run_matches)
        }
        _ => (CliCommand::Serve, own()),
    })
}
