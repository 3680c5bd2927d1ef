//! The options of `aurore-events top`.

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::commands::tail::{allows_color, no_color};

/// The server to observe, and how to print its rates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopCommand {
    /// Without a trailing slash.
    pub(super) server: String,
    pub(super) token: Option<String>,
    /// Reports after which the command ends.
    pub(super) count: Option<u64>,
    pub(super) services_max: usize,
    pub(super) json: bool,
    pub(super) colours: bool,
}

/// The subcommand.
pub fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(id(name)).long(name).value_name(value).help(help)
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(id(name)).long(name).action(ArgAction::SetTrue).help(help)
    };
    let number = |name: &'static str, help: &'static str| {
        option(name, "COUNT", help).value_parser(clap::value_parser!(u64).range(1..))
    };
    Command::new("top")
        .about("Print the rate of each service every second, until interrupted")
        .arg(option("server", "URL", "The server; default: http://HOST:PORT").alias("url"))
        .arg(option("token", "TOKEN", "A token with the scope metrics, if the server requires one"))
        .arg(number("count", "End after this many reports"))
        .arg(flag("once", "End after one report, as --count 1").conflicts_with(id("count")))
        .arg(number("services", "Services in a table, at most").default_value("20"))
        .arg(flag("json", "Print one JSON object per report, with all services"))
        .arg(no_color(id("no-color")))
}

/// The id of an option; the settings have ids of their own names.
fn id(name: &str) -> String {
    format!("TOP_{name}")
}

impl TopCommand {
    /// The command of the matches. `server` is the URL of a server without a trailing slash, given an
    /// option or the default.
    pub fn of(
        matches: &ArgMatches,
        server: impl FnOnce(Option<&str>) -> Result<String, String>,
    ) -> Result<Self, String> {
        let text = |name: &str| matches.get_one::<String>(&id(name)).map(String::as_str);
        let number = |name: &str| matches.get_one::<u64>(&id(name)).copied();
        Ok(Self {
            server: server(text("server"))?,
            token: text("token").map(str::to_owned),
            count: if matches.get_flag(&id("once")) { Some(1) } else { number("count") },
            services_max: number("services").and_then(|count| count.try_into().ok()).unwrap_or(usize::MAX),
            json: matches.get_flag(&id("json")),
            colours: allows_color(matches, &id("no-color")),
        })
    }
}
