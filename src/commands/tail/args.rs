//! The options of `aurore-events tail`.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// The tail to follow, and how to print it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailCommand {
    /// Of `GET /events/tail`, with the filters.
    pub(super) url: String,
    pub(super) token: Option<String>,
    /// Events after which the command ends.
    pub(super) count: Option<u64>,
    pub(super) json: bool,
    /// Whether a terminal may be written to in colours.
    pub(super) colours: bool,
}

/// The subcommand.
pub fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(id(name)).long(name).value_name(value).help(help)
    };
    Command::new("tail")
        .about("Print events as a server admits them, before they are stored, until interrupted")
        .arg(option("server", "URL", "The server; default: http://HOST:PORT").alias("url"))
        .arg(option("token", "TOKEN", "A token with the scope query, if the server requires one"))
        .arg(option("service", "NAME", "Only events of this service"))
        .arg(option("q", "TEXT", "Only events whose message contains this text, in any case"))
        .arg(
            option("metadata", "KEY=VALUE", "Only events with this member of the metadata; may be repeated")
                .action(ArgAction::Append)
                .value_parser(|text: &str| match text.split_once('=') {
                    Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
                    _ => Err("must be KEY=VALUE"),
                }),
        )
        .arg(
            option("count", "COUNT", "End after this many events")
                .value_parser(clap::value_parser!(u64).range(1..)),
        )
        .arg(
            Arg::new(id("json"))
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print one JSON object per line, as the server sends it"),
        )
        .arg(no_color(id("no-color")))
}

/// The flag `--no-color`, also set by a value of `NO_COLOR` that is not empty (<https://no-color.org>).
pub(in crate::commands) fn no_color(id: String) -> Arg {
    Arg::new(id)
        .long("no-color")
        .env("NO_COLOR")
        .hide_env_values(true)
        .value_name("ANY")
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("1")
        .help("Print no colours to a terminal")
}

/// Whether [`no_color`] of this id allows colours.
pub(in crate::commands) fn allows_color(matches: &ArgMatches, id: &str) -> bool {
    matches.get_one::<String>(id).is_none_or(String::is_empty)
}

/// The id of an option; the settings have ids of their own names.
fn id(name: &str) -> String {
    format!("TAIL_{name}")
}

impl TailCommand {
    /// The command of the matches. `server` is the URL of a server without a trailing slash, given an
    /// option or the default.
    pub fn of(
        matches: &ArgMatches,
        server: impl FnOnce(Option<&str>) -> Result<String, String>,
    ) -> Result<Self, String> {
        let text = |name: &str| matches.get_one::<String>(&id(name)).map(String::as_str);
        let mut url = server(text("server"))? + "/events/tail";
        let mut separator = '?';
        let mut add = |name: &str, value: &str| {
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            write!(url, "{separator}{name}={value}").expect("a write to a String does not fail");
            separator = '&';
        };
        for name in ["service", "q"] {
            if let Some(value) = text(name) {
                add(name, value);
            }
        }
        for (key, value) in matches.get_many::<(String, String)>(&id("metadata")).into_iter().flatten() {
            add(&format!("metadata.{}", utf8_percent_encode(key, NON_ALPHANUMERIC)), value);
        }
        Ok(Self {
            url,
            token: text("token").map(str::to_owned),
            count: matches.get_one::<u64>(&id("count")).copied(),
            json: matches.get_flag(&id("json")),
            colours: allows_color(matches, &id("no-color")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn parse(arguments: &[&str]) -> TailCommand {
        let matches = command().get_matches_from([&["tail"], arguments].concat());
        TailCommand::of(&matches, |given| Ok(given.unwrap_or("http://h").to_owned())).unwrap()
    }

    #[test]
    fn filters_become_a_query() {
        for (arguments, url) in [
            (&[][..], "http://h/events/tail"),
            (&["--server", "https://x"], "https://x/events/tail"),
            (&["--service", "a b&c"], "http://h/events/tail?service=a%20b%26c"),
            (
                &["--q", "é", "--metadata", "k.1=v=2", "--metadata", "n="],
                "http://h/events/tail?q=%C3%A9&metadata.k%2E1=v%3D2&metadata.n=",
            ),
        ] {
            assert_eq!(parse(arguments).url, url);
        }
        for wrong in ["key", "=value"] {
            assert!(command().try_get_matches_from(["tail", "--metadata", wrong]).is_err(), "{wrong}");
        }
        assert!(command().try_get_matches_from(["tail", "--count", "0"]).is_err());
    }

    #[test]
    fn colours_are_switched_off_by_flag() {
        assert!(!parse(&["--no-color"]).colours);
        assert!(!parse(&["--no-color=yes"]).colours);
        assert!(parse(&["--no-color="]).colours);
    }
}
