//! The settings: meaning, unit, default and bounds. The only module that reads the environment.
//!
//! A setting is an environment variable, a flag of the same name in lower case with hyphens, or a
//! line `NAME=value` of the file given by `--env-file`. A flag overrides the environment, the
//! environment overrides the file, the file overrides the default. All errors are reported
//! together.

mod cli;
mod edge;
mod gateway;

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cli::CliCommand;
pub use edge::EdgeSettings;
pub use gateway::{GatewaySettings, http_url};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use crate::access::{Origins, Proxies, Rate, RateLimits};
use crate::journal::Durability;
use crate::logging::LogFormat;
use crate::retention::{Schedule, schedule};

/// The validated settings of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub host: IpAddr,
    /// 0: any free port.
    pub port: u16,
    pub http_engine: HttpEngine,
    pub acceptors: usize,
    pub connections_max: usize,
    pub body_bytes_max: usize,
    pub decompressed_bytes_max: usize,
    /// None: requests need no token.
    pub auth_tokens_file: Option<PathBuf>,
    pub rates: RateLimits,
    pub trusted_proxies: Proxies,
    pub cors_origins: Origins,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    pub edge: EdgeSettings,
    pub gateway: GatewaySettings,
    /// None: a private cluster in the data directory.
    pub database_url: Option<String>,
    pub db_pool_max: u32,
    pub data_dir: PathBuf,
    pub durability: Durability,
    pub journal_write: Duration,
    pub journal_sync: Duration,
    pub journal_segment_bytes: u64,
    pub buffer_rows_max: usize,
    pub buffer_bytes_max: usize,
    /// 0: none.
    pub spill_bytes_max: u64,
    pub batch_rows_max: usize,
    pub batch_bytes_max: usize,
    pub linger: Duration,
    pub retention_days: u32,
    pub retention_schedule: Schedule,
    pub clock_skew_max: Duration,
    pub query_threads: usize,
    pub query_queue_max: usize,
    pub exports_max: usize,
    pub breaker_failures: u32,
    pub breaker_successes: u32,
    pub breaker_timeout: Duration,
    pub shutdown_timeout: Duration,
    /// Zero: no history is written.
    pub history_interval: Duration,
    pub history_bytes_max: u64,
    pub log_level: log::LevelFilter,
    pub log_format: LogFormat,
    /// All settings as `NAME=value`, without passwords.
    pub effective: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpEngine {
    Guarded,
    Minihttp,
}

/// Why the settings could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadSettingsError {
    /// `--help`, `--version`, or flags rejected by clap, with clap's text.
    #[error("{0}")]
    Usage(clap::Error),
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

struct Setting {
    name: &'static str,
    /// None: unset by default.
    default: Option<&'static str>,
    help: &'static str,
}

const fn setting(name: &'static str, default: &'static str, help: &'static str) -> Setting {
    Setting { name, default: Some(default), help }
}

/// In the order in which an event passes the stages. `Settings::read` holds and checks the bounds.
const SETTINGS: &[Setting] = &[
    setting(
        "HOST",
        "127.0.0.1",
        "Address to listen on. The default, loopback, is not reachable from a network",
    ),
    setting("PORT", "3000", "Port to listen on; 0 is any free port [0 to 65535]"),
    setting(
        "HTTP_ENGINE",
        "guarded",
        "HTTP engine: guarded (for untrusted networks) or minihttp (trusted networks only)",
    ),
    setting("ACCEPTORS", "0", "Acceptor threads; 0 is one per core [0 to 256]"),
    setting("MAX_CONNECTIONS", "10000", "Maximum open connections, over all acceptors [1 to 1000000]"),
    setting("MAX_BODY_BYTES", "8388608", "Maximum bytes of a request body [1024 to 1073741824]"),
    setting(
        "MAX_DECOMPRESSED_BYTES",
        "33554432",
        "Maximum bytes of a gzip or zstd body after decompression [1024 to 1073741824]",
    ),
    Setting {
        name: "AUTH_TOKENS_FILE",
        default: None,
        help: "File of tokens, one per line: name sha256:HEX scopes [services]; see `token create`. \
               Reloaded on SIGHUP. Unset: requests need no token",
    },
    setting(
        "RATE_LIMIT_GLOBAL",
        "0",
        "Requests per second and client, except /live and /ready; 0 is no limit [0 to 1000000]",
    ),
    setting(
        "RATE_LIMIT_QUERY",
        "100",
        "Requests per second and client on GET /events and below; 0 is no limit [0 to 1000000]",
    ),
    setting(
        "RATE_LIMIT_HEALTH",
        "50",
        "Requests per second and client on /health and below; 0 is no limit [0 to 1000000]",
    ),
    setting(
        "TRUSTED_PROXIES",
        "",
        "Comma-separated addresses and networks whose X-Forwarded-For or Forwarded is trusted, such as 10.0.0.0/8",
    ),
    setting(
        "CORS_ORIGINS",
        "",
        "Comma-separated origins of web pages that may read responses, such as https://app.example; * is all",
    ),
    setting("HEADER_TIMEOUT_MS", "10000", "Milliseconds to receive a complete request header [1 to 3600000]"),
    setting("BODY_TIMEOUT_MS", "30000", "Milliseconds to receive a complete request body [1 to 3600000]"),
    setting(
        "IDLE_TIMEOUT_MS",
        "75000",
        "Milliseconds a connection may be idle between requests [1 to 3600000]",
    ),
    setting("WRITE_TIMEOUT_MS", "30000", "Milliseconds a client may leave a response unread [1 to 3600000]"),
    Setting {
        name: "DATABASE_URL",
        default: None,
        help: "PostgreSQL database, as postgres://user@host/database?sslmode=… \
               Unset: a private cluster in DATA_DIR/postgres, started and stopped with the server",
    },
    setting("DB_POOL_MAX", "20", "Maximum connections to PostgreSQL [2 to 1000]"),
    setting("DATA_DIR", "data", "Directory of the server's files"),
    setting(
        "DURABILITY",
        "memory",
        "Guarantee of a 202 without the request header Durability: memory (in the buffer), \
         written (handed to the kernel: survives kill -9) or synced (on disk: survives a power cut)",
    ),
    setting(
        "JOURNAL_WRITE_MS",
        "10",
        "Maximum milliseconds until an event is written to the journal [1 to 60000]",
    ),
    setting(
        "CHECKPOINT_INTERVAL_MS",
        "5000",
        "Milliseconds between syncs of the journal to disk, unless a request waits for one [1 to 600000]",
    ),
    setting(
        "JOURNAL_SEGMENT_BYTES",
        "67108864",
        "Bytes after which the journal starts a new segment [4096 to 4294967296]",
    ),
    setting("BUFFER_MAX_SIZE", "50000", "Maximum events in the buffer [1 to 100000000]"),
    setting(
        "BUFFER_MAX_BYTES",
        "268435456",
        "Maximum bytes of events in the buffer [1048576 to 34359738367]",
    ),
    setting(
        "SPILL_MAX_BYTES",
        "1073741824",
        "Maximum bytes of events kept in the journal only when the buffer is full; 0 is none [0 to 1099511627776]",
    ),
    setting("BATCH_SIZE", "5000", "Maximum events of a batch [1 to 100000]"),
    setting("BATCH_MAX_BYTES", "33554432", "Maximum bytes of a batch [65536 to 1073741824]"),
    setting(
        "DRAIN_INTERVAL",
        "1000",
        "Maximum milliseconds an event waits for its batch to fill [1 to 600000]",
    ),
    setting("RETENTION_DAYS", "30", "Days that events are kept; older events are rejected [1 to 36500]"),
    setting(
        "RETENTION_CRON_SCHEDULE",
        schedule::DEFAULT,
        "When expired events are removed: a cron expression of 5 fields, or 6 with seconds first, in UTC",
    ),
    setting(
        "MAX_CLOCK_SKEW_MS",
        "300000",
        "Milliseconds an event's timestamp may be in the future [0 to 86400000]",
    ),
    setting("QUERY_THREADS", "4", "Threads that run queries [1 to 256]"),
    setting(
        "QUERY_QUEUE_MAX",
        "128",
        "Maximum queries that wait for a thread; others are answered 503 [1 to 100000]",
    ),
    setting(
        "EXPORTS_MAX",
        "4",
        "Maximum concurrent exports (GET /events as NDJSON or CSV), 2 MiB each; others are answered 503 [1 to 1000]",
    ),
    setting(
        "CIRCUIT_BREAKER_FAILURE_THRESHOLD",
        "5",
        "Consecutive failures of the database that open the breaker [1 to 1000]",
    ),
    setting(
        "CIRCUIT_BREAKER_SUCCESS_THRESHOLD",
        "2",
        "Consecutive successes that close a half-open breaker [1 to 1000]",
    ),
    setting(
        "CIRCUIT_BREAKER_TIMEOUT_MS",
        "30000",
        "Milliseconds until an open breaker becomes half-open [1 to 3600000]",
    ),
    setting("SHUTDOWN_TIMEOUT_MS", "30000", "Milliseconds to drain the buffer at shutdown [0 to 3600000]"),
    setting(
        "METRICS_HISTORY_INTERVAL_MS",
        "60000",
        "Milliseconds between lines of DATA_DIR/metrics/metrics-history.jsonl; 0 writes none [0 to 86400000]",
    ),
    setting(
        "METRICS_HISTORY_MAX_BYTES",
        "16777216",
        "Bytes after which the metrics history is rotated; one old file is kept [4096 to 1073741824]",
    ),
    setting("LOG_LEVEL", "info", "Log level: error, warn, info, debug, trace or off"),
    setting("LOG_FORMAT", "logfmt", "Log format: logfmt or json"),
];

/// All settings; those of `edge` and `gateway` come last.
fn all() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain(edge::SETTINGS).chain(gateway::SETTINGS)
}

impl Settings {
    /// Reads the command line, the environment and the `--env-file`.
    pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<(CliCommand, Self), LoadSettingsError> {
        let matches = command().try_get_matches_from(args).map_err(LoadSettingsError::Usage)?;
        let (command, matches) =
            cli::parse(matches).map_err(|error| LoadSettingsError::Invalid(vec![error]))?;
        let mut errors = Vec::new();
        let file = match matches.get_one::<PathBuf>("ENV_FILE") {
            Some(path) => read_env_file(path, &mut errors),
            None => HashMap::new(),
        };
        let mut reader = SettingsReader { matches: &matches, file, errors: &mut errors };
        let mut settings = Self::read(&mut reader);
        settings.effective = all().map(|setting| reader.redacted(setting.name)).collect();
        if errors.is_empty() { Ok((command, settings)) } else { Err(LoadSettingsError::Invalid(errors)) }
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    fn read(from: &mut SettingsReader<'_>) -> Self {
        const HOUR_MS: u64 = 3_600_000;
        let acceptors = match from.number("ACCEPTORS", 0..=256) {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            count => count,
        };
        let settings = Self {
            host: from.parsed("HOST", "an IP address", IpAddr::from([127, 0, 0, 1])),
            port: from.number("PORT", 0..=65_535),
            http_engine: from.one_of(
                "HTTP_ENGINE",
                &[("guarded", HttpEngine::Guarded), ("minihttp", HttpEngine::Minihttp)],
            ),
            acceptors,
            connections_max: from.number("MAX_CONNECTIONS", 1..=1_000_000),
            body_bytes_max: from.number("MAX_BODY_BYTES", 1024..=1 << 30),
            decompressed_bytes_max: from.number("MAX_DECOMPRESSED_BYTES", 1024..=1 << 30),
            auth_tokens_file: Some(from.text("AUTH_TOKENS_FILE"))
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            rates: RateLimits {
                global: from.rate("RATE_LIMIT_GLOBAL"),
                query: from.rate("RATE_LIMIT_QUERY"),
                health: from.rate("RATE_LIMIT_HEALTH"),
            },
            trusted_proxies: from.read("TRUSTED_PROXIES"),
            cors_origins: from.read("CORS_ORIGINS"),
            header_timeout: from.millis("HEADER_TIMEOUT_MS", 1..=HOUR_MS),
            body_timeout: from.millis("BODY_TIMEOUT_MS", 1..=HOUR_MS),
            idle_timeout: from.millis("IDLE_TIMEOUT_MS", 1..=HOUR_MS),
            write_timeout: from.millis("WRITE_TIMEOUT_MS", 1..=HOUR_MS),
            edge: EdgeSettings::read(from),
            gateway: GatewaySettings::read(from),
            database_url: Some(from.text("DATABASE_URL")).filter(|url| !url.is_empty()),
            db_pool_max: from.number("DB_POOL_MAX", 2..=1000),
            data_dir: PathBuf::from(from.text("DATA_DIR")),
            durability: from.one_of("DURABILITY", &Durability::ALL.map(|level| (level.name(), level))),
            journal_write: from.millis("JOURNAL_WRITE_MS", 1..=60_000),
            journal_sync: from.millis("CHECKPOINT_INTERVAL_MS", 1..=600_000),
            journal_segment_bytes: from.number("JOURNAL_SEGMENT_BYTES", 4096..=1 << 32),
            buffer_rows_max: from.number("BUFFER_MAX_SIZE", 1..=100_000_000),
            buffer_bytes_max: from.number("BUFFER_MAX_BYTES", 1 << 20..=(1 << 35) - 1),
            spill_bytes_max: from.number("SPILL_MAX_BYTES", 0..=1 << 40),
            batch_rows_max: from.number("BATCH_SIZE", 1..=100_000),
            batch_bytes_max: from.number("BATCH_MAX_BYTES", 1 << 16..=1 << 30),
            linger: from.millis("DRAIN_INTERVAL", 1..=600_000),
            retention_days: from.number("RETENTION_DAYS", 1..=36_500),
            retention_schedule: from.parsed(
                "RETENTION_CRON_SCHEDULE",
                "a cron expression of 5 or 6 fields that matches any time",
                Schedule::default(),
            ),
            clock_skew_max: from.millis("MAX_CLOCK_SKEW_MS", 0..=86_400_000),
            query_threads: from.number("QUERY_THREADS", 1..=256),
            query_queue_max: from.number("QUERY_QUEUE_MAX", 1..=100_000),
            exports_max: from.number("EXPORTS_MAX", 1..=1000),
            breaker_failures: from.number("CIRCUIT_BREAKER_FAILURE_THRESHOLD", 1..=1000),
            breaker_successes: from.number("CIRCUIT_BREAKER_SUCCESS_THRESHOLD", 1..=1000),
            breaker_timeout: from.millis("CIRCUIT_BREAKER_TIMEOUT_MS", 1..=HOUR_MS),
            shutdown_timeout: from.millis("SHUTDOWN_TIMEOUT_MS", 0..=HOUR_MS),
            history_interval: from.millis("METRICS_HISTORY_INTERVAL_MS", 0..=86_400_000),
            history_bytes_max: from.number("METRICS_HISTORY_MAX_BYTES", 4096..=1 << 30),
            log_level: from.parsed(
                "LOG_LEVEL",
                "one of error, warn, info, debug, trace, off",
                log::LevelFilter::Info,
            ),
            log_format: from
                .one_of("LOG_FORMAT", &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)]),
            effective: Vec::new(),
        };
        if settings.edge.tls.is_some() && settings.http_engine == HttpEngine::Minihttp {
            from.errors.push("HTTP_ENGINE=minihttp does not support TLS: unset TLS_CERT and TLS_KEY".into());
        }
        if settings.data_dir.as_os_str().is_empty() {
            from.errors.push("DATA_DIR is empty: it must name a directory".into());
        }
        settings
    }
}

fn flag(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

fn command() -> Command {
    let settings = all().map(|setting| {
        let arg = Arg::new(setting.name)
            .long(flag(setting.name))
            .env(setting.name)
            // DATABASE_URL may contain a password, which --help must not print.
            .hide_env_values(true)
            .value_name("VALUE")
            .global(true)
            .help(setting.help);
        match setting.default {
            Some(default) => arg.default_value(default),
            None => arg,
        }
    });
    let program = Command::new("aurore-events")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Accepts events over HTTP and stores every acknowledged event in PostgreSQL exactly once")
        .max_term_width(110)
        .args(settings)
        .arg(
            Arg::new("ENV_FILE")
                .long("env-file")
                .value_name("FILE")
                .global(true)
                .value_parser(clap::value_parser!(PathBuf))
                .help("File of NAME=value lines; flags and the environment override it"),
        );
    cli::add_subcommands(program)
}

/// Reads settings and collects the errors of invalid ones.
struct SettingsReader<'a> {
    matches: &'a ArgMatches,
    file: HashMap<String, String>,
    errors: &'a mut Vec<String>,
}

impl SettingsReader<'_> {
    fn text(&self, name: &str) -> String {
        let given = self.matches.get_one::<String>(name).cloned();
        match self.matches.value_source(name) {
            Some(ValueSource::CommandLine | ValueSource::EnvVariable) => given,
            _ => self.file.get(name).cloned().or(given),
        }
        .unwrap_or_default()
    }

    fn redacted(&self, name: &str) -> String {
        let text = self.text(name);
        let secret = name == "DATABASE_URL" || name == "PUSHGATEWAY_URL" && !text.is_empty();
        let text = if secret { redact_password(&text) } else { text };
        format!("{name}={text}")
    }

    fn push_error(&mut self, name: &str, value: &str, wanted: &str) {
        self.errors.push(format!("{name}={value:?} is not {wanted}"));
    }

    fn number<T: TryFrom<u64> + Default>(&mut self, name: &str, bounds: RangeInclusive<u64>) -> T {
        let text = self.text(name);
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        if let Some(number) = number.and_then(|number| T::try_from(number).ok()) {
            return number;
        }
        self.push_error(name, &text, &format!("a whole number from {} to {}", bounds.start(), bounds.end()));
        T::default()
    }

    fn rate(&mut self, name: &str) -> Option<Rate> {
        Rate::per_second(self.number(name, 0..=1_000_000))
    }

    /// Parses a value whose parse error describes the expected form.
    fn read<T: std::str::FromStr<Err: std::fmt::Display> + Default>(&mut self, name: &str) -> T {
        let text = self.text(name);
        text.parse().unwrap_or_else(|wanted: T::Err| {
            self.push_error(name, &text, &wanted.to_string());
            T::default()
        })
    }

    fn millis(&mut self, name: &str, bounds: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.number(name, bounds))
    }

    fn parsed<T: std::str::FromStr>(&mut self, name: &str, wanted: &str, otherwise: T) -> T {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| {
            self.push_error(name, &text, wanted);
            otherwise
        })
    }

    fn one_of<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(name);
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == text) {
            return *choice;
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        self.push_error(name, &text, &format!("one of {}", words.join(", ")));
        choices[0].1
    }
}

/// Reads `NAME=value` lines. An unknown name is an error, since it is most likely a typing error.
fn read_env_file(path: &Path, errors: &mut Vec<String>) -> HashMap<String, String> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            errors.push(format!("--env-file {}: {error}", path.display()));
            return HashMap::new();
        }
    };
    let mut values = HashMap::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = || format!("{}:{number}", path.display());
        let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else {
            errors.push(format!("{}: not of the form NAME=value", at()));
            continue;
        };
        let (name, value) = (name.trim(), unquoted(value.trim()));
        if !all().any(|setting| setting.name == name) {
            errors.push(format!("{}: there is no setting {name}", at()));
        } else if values.insert(name.to_owned(), value.to_owned()).is_some() {
            errors.push(format!("{}: {name} is set twice", at()));
        }
    }
    values
}

fn unquoted(value: &str) -> &str {
    ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote)).unwrap_or(value)
}

/// Removes the password from a connection URL, for logging.
pub fn redact_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        // The key=value form: keep every word but the password.
        let words = url.split_whitespace().filter(|word| !word.starts_with("password"));
        return words.collect::<Vec<_>>().join(" ");
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split_once(':').map_or(user, |(name, _password)| name);
            format!("{scheme}://{user}@{host}{path}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<(CliCommand, Settings), LoadSettingsError> {
        Settings::load(["aurore-events"].iter().chain(args).map(OsString::from))
    }

    #[test]
    fn defaults_match_the_specification() {
        let (command, settings) = load(&[]).unwrap();
        assert_eq!(command, CliCommand::Serve);
        assert_eq!(settings.host, IpAddr::from([127, 0, 0, 1]));
        assert_eq!((settings.port, settings.buffer_rows_max, settings.batch_rows_max), (3000, 50_000, 5000));
        assert_eq!((settings.buffer_bytes_max, settings.body_bytes_max), (256 << 20, 8 << 20));
        assert_eq!((settings.linger, settings.retention_days), (Duration::from_secs(1), 30));
        assert_eq!((settings.breaker_failures, settings.breaker_successes), (5, 2));
        assert_eq!(settings.http_engine, HttpEngine::Guarded);
        let rates = [settings.rates.global, settings.rates.query, settings.rates.health];
        assert_eq!(rates.map(|rate| rate.map(Rate::count)), [None, Some(100), Some(50)]);
        assert!(settings.auth_tokens_file.is_none() && settings.trusted_proxies.is_empty());
        assert!(settings.cors_origins.is_none());
    }

    #[test]
    fn load_reports_all_errors_with_setting_and_bounds() {
        let Err(LoadSettingsError::Invalid(errors)) = load(&[
            "--port",
            "65536",
            "--batch-size=0",
            "check-config",
            "--http-engine",
            "fast",
            "--host",
            "x",
        ]) else {
            panic!("wrong settings were accepted");
        };
        assert_eq!(
            errors,
            [
                "HOST=\"x\" is not an IP address",
                "PORT=\"65536\" is not a whole number from 0 to 65535",
                "HTTP_ENGINE=\"fast\" is not one of guarded, minihttp",
                "BATCH_SIZE=\"0\" is not a whole number from 1 to 100000",
            ]
        );
    }

    #[test]
    fn env_file_is_overridden_by_flags_and_rejects_unknown_names() {
        let file = std::env::temp_dir().join(format!("aurore-env-{}", std::process::id()));
        std::fs::write(&file, "# comment\nPORT=4000\nexport BATCH_SIZE=\"7\"\n").unwrap();
        let flag = format!("--env-file={}", file.display());
        let (_, settings) = load(&[&flag, "--port=5000"]).unwrap();
        assert_eq!((settings.port, settings.batch_rows_max), (5000, 7));
        std::fs::write(&file, "PROT=4000\nPORT\n").unwrap();
        let Err(LoadSettingsError::Invalid(errors)) = load(&[&flag]) else {
            panic!("a wrong file was accepted")
        };
        std::fs::remove_file(&file).unwrap();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].ends_with(":1: there is no setting PROT"), "{errors:?}");
    }

    #[test]
    fn load_parses_the_retention_schedule_and_command() {
        let (command, settings) =
            load(&["retention", "run", "--dry-run", "--retention-cron-schedule", "1 2 3 * * *"]).unwrap();
        assert_eq!(command, CliCommand::RetentionRun { dry_run: true });
        assert_eq!(settings.retention_schedule, "1 2 3 * * *".parse().unwrap());
        assert_eq!(load(&["retention", "run"]).unwrap().0, CliCommand::RetentionRun { dry_run: false });
        assert!(matches!(load(&["retention"]), Err(LoadSettingsError::Usage(_))));
        assert!(matches!(load(&["--retention-cron-schedule", "never"]), Err(LoadSettingsError::Invalid(_))));
    }

    #[test]
    fn setting_bounds_are_inclusive() {
        #[track_caller]
        fn check(flag: &str, good: bool) {
            assert_eq!(load(&[flag]).is_ok(), good, "{flag}");
        }
        check("--buffer-max-size=1", true);
        check("--buffer-max-size=0", false);
        check("--buffer-max-size=100000000", true);
        check("--buffer-max-size=100000001", false);
        check("--port=0", true);
        check("--port=-1", false);
        check("--nonsense=1", false);
        check("--max-header-bytes=1024", true);
        check("--max-header-bytes=1023", false);
        check("--max-headers=256", true);
        check("--max-headers=257", false);
        check("--tls-cert=a", false);
        check("--tls-key=a", false);
        assert!(load(&["--tls-cert=a", "--tls-key=b"]).is_ok());
        assert!(load(&["--tls-cert=a", "--tls-key=b", "--http-engine=minihttp"]).is_err());
    }

    #[test]
    fn redact_password_removes_passwords_from_urls_and_key_values() {
        assert_eq!(
            redact_password("postgres://a:s3cret@db:5432/x?sslmode=require"),
            "postgres://a@db:5432/x?sslmode=require"
        );
        assert_eq!(redact_password("postgres://a:p@ss@db/x"), "postgres://a@db/x");
        assert_eq!(redact_password("host=db password=s3cret user=a"), "host=db user=a");
        assert_eq!(redact_password("postgres://db/x"), "postgres://db/x");
    }
}
