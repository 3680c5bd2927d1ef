//! The options of `aurore-events send`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::event::{SERVICE_BYTES_MAX, Timestamp};

const CONNECTIONS_MAX: u64 = 64;
const LINES_MAX: u64 = 10_000;
/// A day: longer than any restart.
const RETRY_S_MAX: u64 = 86_400;
/// The parameters of the mapping: the flag, the parameter, its meaning.
const MAPPING: [(&str, &str, &str); 3] = [
    ("time-field", "time_field", "Field that has the time"),
    ("message-field", "message_field", "Field that has the message"),
    ("service-field", "service_field", "Field that has the service"),
];

/// The input of the command and its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendCommand {
    /// Empty: the standard input.
    pub(super) files: Vec<PathBuf>,
    /// Without a trailing slash.
    pub(super) server: String,
    pub(super) token: Option<String>,
    pub(super) format: SendFormat,
    pub(super) connections: usize,
    pub(super) lines_max: u64,
    pub(super) gzip: bool,
    pub(super) resume: Option<PathBuf>,
    pub(super) retry_for: Duration,
    pub(super) json: bool,
}

/// The format of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendFormat {
    /// A JSON object, mapped by this query; strict if it is empty.
    Json { query: String },
    /// The message of an event of this service.
    Text { service: String },
}

/// The subcommand.
pub fn command() -> Command {
    let option = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(id(name)).long(name).value_name(value).help(help)
    };
    let number = |name: &'static str, value: &'static str, default: &'static str, max: u64| {
        option(name, value, "").default_value(default).value_parser(clap::value_parser!(u64).range(1..=max))
    };
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(id(name)).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new("send")
        .about("Send the lines of files, or of the standard input, as events; exit code 1 if not all were accepted")
        .arg(
            Arg::new(id("files"))
                .value_name("FILE")
                .num_args(0..)
                .value_parser(clap::value_parser!(PathBuf))
                .help("Files of NDJSON, or of text with --text; default, or `-`: the standard input"),
        )
        .arg(option("server", "URL", "The server; default: http://HOST:PORT"))
        .arg(option("token", "TOKEN", "A token with the scope ingest, if the server requires one"))
        .args(MAPPING.map(|(name, _, help)| option(name, "NAME", help)))
        .arg(option("service", "NAME", "Service of lines that name none"))
        .arg(option("extra", "WHAT", "`metadata`: keep other fields as metadata").value_parser(["metadata"]))
        .arg(flag("text", "Each line is a message as it is; needs --service").requires(id("service")))
        .arg(number("connections", "COUNT", "4", CONNECTIONS_MAX).help("Connections in parallel [1 to 64]"))
        .arg(number("lines", "COUNT", "1000", LINES_MAX).help("Maximum lines of a request [1 to 10000]"))
        .arg(flag("gzip", "Compress the requests"))
        .arg(
            option("resume", "PATH", "File with the position: an interrupted run continues from it")
                .value_parser(clap::value_parser!(PathBuf))
                .requires(id("files")),
        )
        .arg(
            number("retry-for", "SECONDS", "3600", RETRY_S_MAX)
                .help("How long a request is sent again before the command gives up"),
        )
        .arg(flag("json", "Print the counts as JSON"))
}

/// The id of an option; the settings have ids of their own names.
fn id(name: &str) -> String {
    format!("SEND_{name}")
}

impl SendCommand {
    /// The command of the matches. `server` is the default.
    pub fn of(
        matches: &ArgMatches,
        server: impl FnOnce(Option<&str>) -> Result<String, String>,
    ) -> Result<Self, String> {
        let text = |name: &str| matches.get_one::<String>(&id(name)).map(String::as_str);
        let number = |name: &str| matches.get_one::<u64>(&id(name)).copied().unwrap_or(1);
        let service = text("service");
        if service.is_some_and(|name| name.is_empty() || name.len() > SERVICE_BYTES_MAX) {
            return Err(format!("--service must be 1 to {SERVICE_BYTES_MAX} bytes"));
        }
        let resume = matches.get_one::<PathBuf>(&id("resume")).cloned();
        let mut files: Vec<_> =
            matches.get_many::<PathBuf>(&id("files")).into_iter().flatten().cloned().collect();
        if files.iter().any(|file| file.as_os_str() == "-") {
            if files.len() > 1 || resume.is_some() {
                return Err("`-`, the standard input, goes neither with files nor with --resume".to_owned());
            }
            files.clear();
        }
        let mut query = Vec::new();
        for (flag, parameter, _) in MAPPING {
            query.extend(text(flag).map(|value| (parameter, value)));
        }
        query.extend(service.map(|value| ("service", value)));
        query.extend(text("extra").map(|value| ("extra", value)));
        let format = if matches.get_flag(&id("text")) {
            if query.len() > 1 {
                return Err("--text has no fields to map".to_owned());
            }
            SendFormat::Text { service: service.unwrap_or_default().to_owned() }
        } else {
            let encode = |(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
            SendFormat::Json { query: query.into_iter().map(encode).collect::<Vec<_>>().join("&") }
        };
        Ok(Self {
            files,
            server: server(text("server"))?,
            token: text("token").map(str::to_owned),
            format,
            connections: usize::try_from(number("connections")).unwrap_or(1),
            lines_max: number("lines"),
            gzip: matches.get_flag(&id("gzip")),
            resume,
            retry_for: Duration::from_secs(number("retry-for")),
            json: matches.get_flag(&id("json")),
        })
    }

    /// The URL of the requests.
    pub(super) fn url(&self) -> String {
        match &self.format {
            SendFormat::Json { query } if !query.is_empty() => format!("{}/events?{query}", self.server),
            SendFormat::Json { .. } | SendFormat::Text { .. } => format!("{}/events", self.server),
        }
    }

    /// What an interrupted run tells about a next one. Everything before this byte of the file with this
    /// index is acknowledged.
    pub(super) fn how_to_continue(&self, (file, byte): (usize, u64)) -> String {
        let Some(path) = self.files.get(file).or(self.files.last()) else {
            return format!("byte {byte} of the standard input and what follows are not acknowledged");
        };
        let path = path.display();
        match (&self.resume, &self.format) {
            (Some(state), _) => format!(
                "the same command continues at byte {byte} of {path}, which {} contains",
                state.display()
            ),
            (None, SendFormat::Json { .. }) => format!(
                "everything before byte {byte} of {path} is acknowledged; the same command sends all again, and \
                 events that have a time of their own are stored once"
            ),
            (None, SendFormat::Text { .. }) => format!(
                "everything before byte {byte} of {path} is acknowledged; the same command would store it again, \
                 since it began without --resume"
            ),
        }
    }

    /// The body of a request with these lines, which were read at `time`.
    pub(super) fn body(&self, lines: &[u8], time: Timestamp) -> Vec<u8> {
        let SendFormat::Text { service } = &self.format else { return lines.to_vec() };
        let mut body = Vec::with_capacity(lines.len() * 2);
        for line in lines.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            body.extend_from_slice(b"{\"timestamp\":");
            body.extend_from_slice(time.millis().to_string().as_bytes());
            body.extend_from_slice(b",\"service\":");
            crate::json::text::quote(&mut body, service);
            body.extend_from_slice(b",\"message\":");
            crate::json::text::quote(&mut body, &String::from_utf8_lossy(line));
            body.extend_from_slice(b"}\n");
        }
        body
    }
}
