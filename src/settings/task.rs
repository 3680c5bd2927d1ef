//! The commands, and which of them the command line asks for.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::access::NewToken;
use crate::commands::counts::{self, CountsTask};
use crate::commands::dead::{self, DeadTask};
use crate::gateway::compare::CompareTask;

/// What the program was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Serve,
    CheckConfig,
    Migrate,
    History,
    JournalInspect,
    Dead(DeadTask),
    Counts(CountsTask),
    GatewayCompare(CompareTask),
    CreateToken(NewToken),
    RetentionRun {
        /// Say what would go, and change nothing.
        dry_run: bool,
    },
}

/// Adds the commands to `program`, in the order of its help.
pub(super) fn add_to(program: Command) -> Command {
    program
        .subcommand(Command::new("serve").about("Run the server (the default)"))
        .subcommand(Command::new("check-config").about("Check the settings, print them and exit"))
        .subcommand(Command::new("migrate").about("Bring the database's schema up to date and exit"))
        .subcommand(token_command())
        .subcommand(Command::new("history").about("Print the metrics history of DATA_DIR as a table"))
        .subcommand(dead::command())
        .subcommand(counts::command())
        .subcommand(gateway_command())
        .subcommand(
            Command::new("retention").about("Remove old events").subcommand_required(true).subcommand(
                Command::new("run").about("Remove what is older than RETENTION_DAYS now, and exit").arg(
                    Arg::new("DRY_RUN")
                        .long("dry-run")
                        .action(ArgAction::SetTrue)
                        .help("Say what would go, and change nothing"),
                ),
            ),
        )
        .subcommand(
            Command::new("journal")
                .about("Look at the journal in DATA_DIR")
                .subcommand_required(true)
                .subcommand(Command::new("inspect").about("Say what lies in each segment; touch nothing")),
        )
}

fn token_command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("token").about("Tokens for AUTH_TOKENS_FILE").subcommand_required(true).subcommand(
        Command::new("create")
            .about("Make a token: prints it, this once, and the line with its hash for AUTH_TOKENS_FILE")
            .arg(arg("name", "NAME", "Whose it is, for the log and for you").required(true))
            .arg(arg("scopes", "LIST", "What it allows: ingest, query, metrics, admin").required(true))
            .arg(arg("services", "LIST", "The services it is for, percent-encoded; without it, all")),
    )
}

fn gateway_command() -> Command {
    let arg = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    Command::new("gateway").about("The metrics gateway").subcommand_required(true).subcommand(
        Command::new("compare")
            .about("Print the series that a Pushgateway has otherwise than this server; exit 1 while there are any")
            .arg(arg("pushgateway", "URL", "The Pushgateway, such as http://pushgateway:9091").required(true))
            .arg(arg("server", "URL", "This server; without it, http://HOST:PORT"))
            .arg(arg("token", "TOKEN", "A token with the scope metrics, where the server asks for one")),
    )
}

fn gateway_compare(matches: &ArgMatches) -> Result<Task, String> {
    let url = |name: &str, default: String| {
        let given = matches.get_one::<String>(name).cloned().unwrap_or(default);
        super::http_url(&given)
            .ok_or_else(|| format!("--{name} {given:?} is not a URL such as http://localhost:9091"))
    };
    let of = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let (host, port) = (of("HOST"), of("PORT"));
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Ok(Task::GatewayCompare(CompareTask {
        pushgateway: url("pushgateway", String::new())?,
        server: url("server", format!("http://{host}:{port}"))?,
        token: matches.get_one::<String>("token").cloned(),
    }))
}

fn create_token(matches: &ArgMatches) -> Result<Task, String> {
    let text = |name| matches.get_one::<String>(name).map(String::as_str);
    let (name, scopes) = (text("name").unwrap_or_default(), text("scopes").unwrap_or_default());
    NewToken::new(name, scopes, text("services")).map(Task::CreateToken)
}

/// The task, and the matches that hold its flags and the settings; or the mistake in what it was given.
pub(super) fn of(matches: ArgMatches) -> Result<(Task, ArgMatches), String> {
    let Some((name, of_command)) = matches.subcommand() else { return Ok((Task::Serve, matches)) };
    let own = || of_command.clone();
    // Where a command has commands of its own, the innermost holds the flags.
    let inner = || of_command.subcommand().map_or_else(own, |(_, inner)| inner.clone());
    Ok(match name {
        "check-config" => (Task::CheckConfig, own()),
        "migrate" => (Task::Migrate, own()),
        "history" => (Task::History, own()),
        "dead" => {
            let (task, of_action) = DeadTask::of(of_command).expect("clap demands one of its commands");
            (Task::Dead(task), of_action)
        }
        "counts" => {
            let (task, of_action) = CountsTask::of(of_command).expect("clap demands one of its commands");
            (Task::Counts(task), of_action)
        }
        "journal" => (Task::JournalInspect, inner()),
        "gateway" => {
            let inner = inner();
            (gateway_compare(&inner)?, inner)
        }
        "token" => {
            let inner = inner();
            (create_token(&inner)?, inner)
        }
        "retention" => {
            let of_run = inner();
            (Task::RetentionRun { dry_run: of_run.get_flag("DRY_RUN") }, of_run)
        }
        _ => (Task::Serve, own()),
    })
}
