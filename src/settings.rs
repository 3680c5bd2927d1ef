//! The settings: meaning, unit, default and bounds. The only module that reads the environment.
//!
//! A setting is an environment variable, a flag of the same name in lower case with hyphens, or a
//! line `NAME=value` of the file given by `--env-file`. A flag overrides the environment, the
//! environment overrides the file, the file overrides the default. All errors are reported
//! together.

mod cli;
mod database_url;
mod edge;
mod env_file;
mod gateway;
mod reader;
mod redact;
mod systemd;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use cli::CliCommand;
pub use edge::EdgeSettings;
pub use gateway::{GatewaySettings, http_url};
pub use redact::redact_password;
pub use systemd::SystemdEnvironment;

use cli::CliPurpose;
use reader::{HOUR_MS, Setting, SettingsReader};

use crate::access::{Origins, Proxies, RateLimits};
use crate::journal::{Durability, RetainLimits};
use crate::logging::LogFormat;
use crate::retention::{Schedule, schedule};
use crate::storage::postgres::SynchronousCommit;

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
    pub database_read_url: Option<String>,
    pub database_read_lag_max: Duration,
    pub db_pool_max: u32,
    /// Batches that are stored at a time, as the pool allows.
    pub writer_connections: u32,
    pub synchronous_commit: SynchronousCommit,
    pub data_dir: PathBuf,
    pub durability: Durability,
    pub journal_write: Duration,
    pub journal_sync: Duration,
    pub journal_segment_bytes: u64,
    pub journal_retain: RetainLimits,
    pub buffer_rows_max: usize,
    pub buffer_bytes_max: usize,
    /// 0: none.
    pub spill_bytes_max: u64,
    pub batch_rows_max: usize,
    pub batch_bytes_max: usize,
    pub linger: Duration,
    pub drain_interval: Duration,
    pub retention_days: u32,
    pub retention_schedule: Schedule,
    pub clock_skew_max: Duration,
    pub query_threads: usize,
    pub query_queue_max: usize,
    pub query_response_bytes_max: usize,
    pub exports_max: usize,
    pub tails_max: usize,
    pub breaker_failures: u32,
    pub breaker_successes: u32,
    pub breaker_timeout: Duration,
    pub shutdown_timeout: Duration,
    /// Zero: no history is written.
    pub history_interval: Duration,
    pub history_bytes_max: u64,
    pub log_level: log::LevelFilter,
    pub log_format: LogFormat,
    pub systemd: SystemdEnvironment,
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

impl Settings {
    /// Reads the command line, the environment and the `--env-file`.
    pub fn load(args: impl IntoIterator<Item = OsString>) -> Result<(CliCommand, Self), LoadSettingsError> {
        let declared = Self::declarations();
        let matches = cli::command(&declared, CliPurpose::Parse)
            .try_get_matches_from(args)
            .map_err(LoadSettingsError::Usage)?;
        let (command, matches) =
            cli::parse(matches).map_err(|error| LoadSettingsError::Invalid(vec![error]))?;
        let mut reader = SettingsReader { matches: Some(&matches), ..SettingsReader::default() };
        if let Some(path) = matches.get_one::<PathBuf>("ENV_FILE") {
            reader.file = env_file::read(path, &declared, &mut reader.errors);
        }
        let mut settings = Self::read(&mut reader);
        settings.effective = reader.effective;
        settings.systemd = SystemdEnvironment::read();
        if reader.errors.is_empty() || !command.reads_settings() {
            Ok((command, settings))
        } else {
            Err(LoadSettingsError::Invalid(reader.errors))
        }
    }

    /// The command line without hidden flags, from which completions and manual pages are generated.
    pub fn documented_command_line() -> clap::Command {
        cli::command(&Self::declarations(), CliPurpose::Document)
    }

    /// Reading without sources collects the declarations.
    fn declarations() -> Vec<Setting> {
        let mut declarations = SettingsReader::default();
        Self::read(&mut declarations);
        declarations.declared
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// Declares and reads every setting. The order of the calls is the order of `--help`, of
    /// `check-config` and of errors: as an event passes the stages, then `edge` and `gateway`.
    #[expect(clippy::too_many_lines, reason = "a table with an entry for each setting")]
    fn read(from: &mut SettingsReader<'_>) -> Self {
        let settings = Self {
            host: from.section("HTTP server").parsed(
                "HOST",
                "127.0.0.1",
                "an IP address",
                "Address to listen on. The default, loopback, is not reachable from a network",
            ),
            port: from.number("PORT", 3000, 0..=65_535, "Port to listen on; 0 is any free port"),
            http_engine: from.one_of(
                "HTTP_ENGINE",
                &[("guarded", HttpEngine::Guarded), ("minihttp", HttpEngine::Minihttp)],
                "HTTP engine: guarded (for untrusted networks) or minihttp (trusted networks only)",
            ),
            acceptors: match from.number("ACCEPTORS", 0, 0..=256, "Acceptor threads; 0 is one per core") {
                0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
                count => count,
            },
            connections_max: from.section("Limits on clients").number(
                "MAX_CONNECTIONS",
                10_000,
                1..=1_000_000,
                "Maximum open connections, over all acceptors",
            ),
            body_bytes_max: from.number(
                "MAX_BODY_BYTES",
                8 << 20,
                1024..=1 << 30,
                "Maximum bytes of a request body",
            ),
            decompressed_bytes_max: from.number(
                "MAX_DECOMPRESSED_BYTES",
                32 << 20,
                1024..=1 << 30,
                "Maximum bytes of a gzip or zstd body after decompression",
            ),
            auth_tokens_file: from
                .section("Access")
                .optional(Setting::optional(
                    "AUTH_TOKENS_FILE",
                    "File of tokens, one per line: name sha256:HEX scopes [services]; see `token create`. \
                     Reloaded on SIGHUP. Unset: requests need no token",
                ))
                .map(PathBuf::from),
            rates: RateLimits {
                global: from.rate(
                    "RATE_LIMIT_GLOBAL",
                    0,
                    "Requests per second and client, except /live and /ready; 0 is no limit",
                ),
                query: from.rate(
                    "RATE_LIMIT_QUERY",
                    100,
                    "Requests per second and client on GET /events and below; 0 is no limit",
                ),
                health: from.rate(
                    "RATE_LIMIT_HEALTH",
                    50,
                    "Requests per second and client on /health and below; 0 is no limit",
                ),
            },
            trusted_proxies: from.list(
                "TRUSTED_PROXIES",
                "Comma-separated addresses and networks whose X-Forwarded-For or Forwarded is trusted, \
                 such as 10.0.0.0/8; a server on loopback without tokens also takes any Host from them",
            ),
            cors_origins: from.list(
                "CORS_ORIGINS",
                "Comma-separated origins of web pages that may send POST, PUT and DELETE and read responses, \
                 such as https://app.example; * is all",
            ),
            header_timeout: from.section("Limits on clients").millis(
                "HEADER_TIMEOUT_MS",
                10_000,
                1..=HOUR_MS,
                "Milliseconds to receive a complete request header",
            ),
            body_timeout: from.millis(
                "BODY_TIMEOUT_MS",
                30_000,
                1..=HOUR_MS,
                "Milliseconds to receive a complete request body",
            ),
            idle_timeout: from.millis(
                "IDLE_TIMEOUT_MS",
                75_000,
                1..=HOUR_MS,
                "Milliseconds a connection may be idle between requests",
            ),
            write_timeout: from.millis(
                "WRITE_TIMEOUT_MS",
                30_000,
                1..=HOUR_MS,
                "Milliseconds a client may leave a response unread",
            ),
            database_url: database_url::read(from.section("Database")),
            database_read_url: from.optional(
                Setting::optional(
                    "DATABASE_READ_URL",
                    "Standby of DATABASE_URL that queries and exports read from, as a URL of the same kind. \
                     Unset: they read from DATABASE_URL",
                )
                .secret(),
            ),
            database_read_lag_max: from.millis(
                "DATABASE_READ_MAX_LAG_MS",
                10_000,
                0..=HOUR_MS,
                "Milliseconds the standby of DATABASE_READ_URL may lag; beyond it queries read from \
                 DATABASE_URL",
            ),
            db_pool_max: from.number("DB_POOL_MAX", 20, 2..=1000, "Maximum connections to PostgreSQL"),
            writer_connections: from.number(
                "WRITER_CONNECTIONS",
                2,
                1..=16,
                "Maximum batches that are stored at a time, each by a connection of the pool; a pool of \
                 fewer than 10 connections allows fewer",
            ),
            synchronous_commit: from.one_of(
                "DATABASE_SYNCHRONOUS_COMMIT",
                &SynchronousCommit::ALL.map(|level| (level.name(), level)),
                "synchronous_commit of the transactions that store events, whatever the default of the \
                 database: on, off (a crash of PostgreSQL loses the events of its last moments, even \
                 those acknowledged at synced), local, remote_write or remote_apply",
            ),
            data_dir: PathBuf::from(from.section("Files and durability").text(
                "DATA_DIR",
                "data",
                "Directory of the server's files",
            )),
            durability: from.one_of(
                "DURABILITY",
                &Durability::ALL.map(|level| (level.name(), level)),
                "Guarantee of a 202 without the request header Durability: memory (in the buffer), \
                 written (handed to the kernel: survives kill -9) or synced (on disk: survives a power cut)",
            ),
            journal_write: from.millis(
                "JOURNAL_WRITE_MS",
                10,
                1..=60_000,
                "Maximum milliseconds until an event is written to the journal",
            ),
            journal_sync: from.millis(
                "CHECKPOINT_INTERVAL_MS",
                5000,
                1..=600_000,
                "Milliseconds between syncs of the journal to disk, unless a request waits for one",
            ),
            journal_segment_bytes: from.number(
                "JOURNAL_SEGMENT_BYTES",
                64 << 20,
                4096..=1 << 32,
                "Bytes after which the journal starts a new segment",
            ),
            journal_retain: RetainLimits {
                time: from.millis(
                    "JOURNAL_RETAIN_MS",
                    60_000,
                    0..=7 * 86_400_000,
                    "Milliseconds for which committed events are kept in the journal, to be stored again \
                     after a failover of the database; 0 is none",
                ),
                bytes_max: from.number(
                    "JOURNAL_RETAIN_BYTES",
                    256 << 20,
                    0..=1 << 40,
                    "Maximum bytes of committed events kept in the journal; 0 is none",
                ),
            },
            buffer_rows_max: from.section("Buffer and batches").number(
                "BUFFER_MAX_SIZE",
                50_000,
                1..=100_000_000,
                "Maximum events in the buffer",
            ),
            buffer_bytes_max: from.number(
                "BUFFER_MAX_BYTES",
                256 << 20,
                1 << 20..=(1 << 35) - 1,
                "Maximum bytes of events in the buffer",
            ),
            spill_bytes_max: from.number(
                "SPILL_MAX_BYTES",
                1 << 30,
                0..=1 << 40,
                "Maximum bytes of events kept in the journal only when the buffer is full; 0 is none",
            ),
            batch_rows_max: from.number("BATCH_SIZE", 5000, 1..=100_000, "Maximum events of a batch"),
            batch_bytes_max: from.number(
                "BATCH_MAX_BYTES",
                32 << 20,
                1 << 16..=1 << 30,
                "Maximum bytes of a batch",
            ),
            linger: from.millis(
                "LINGER",
                20,
                0..=600_000,
                "Milliseconds an event waits for others while no batch is being stored; up to five times \
                 that when it fills the batch, not at all when no event was stored for that long",
            ),
            drain_interval: from.millis(
                "DRAIN_INTERVAL",
                1000,
                1..=600_000,
                "Maximum milliseconds an event waits for its batch to fill, also while another batch is \
                 being stored",
            ),
            retention_days: from.section("Retention").number(
                "RETENTION_DAYS",
                30,
                1..=36_500,
                "Days that events are kept; older events are rejected",
            ),
            retention_schedule: from.described(
                "RETENTION_CRON_SCHEDULE",
                schedule::DEFAULT,
                "When expired events are removed, in UTC: a cron expression as in crontab(5), of 5 fields, \
                 or 6 with seconds first, or @hourly, @daily, @weekly, @monthly, @yearly",
            ),
            clock_skew_max: from.section("Limits on clients").millis(
                "MAX_CLOCK_SKEW_MS",
                300_000,
                0..=86_400_000,
                "Milliseconds an event's timestamp may be in the future",
            ),
            query_threads: from.section("Queries").number(
                "QUERY_THREADS",
                4,
                1..=256,
                "Threads that run queries",
            ),
            query_queue_max: from.number(
                "QUERY_QUEUE_MAX",
                128,
                1..=100_000,
                "Maximum queries that wait for a thread; others are answered 503",
            ),
            query_response_bytes_max: from.number(
                "QUERY_RESPONSE_MAX_BYTES",
                8 << 20,
                1 << 16..=1 << 30,
                "Maximum bytes of a response of GET /events and GET /stats; a page with more ends early, \
                 with a cursor",
            ),
            exports_max: from.number(
                "EXPORTS_MAX",
                4,
                1..=1000,
                "Maximum concurrent exports (GET /events as NDJSON or CSV), 2 MiB each; others are \
                 answered 503",
            ),
            tails_max: from.number(
                "TAILS_MAX",
                16,
                1..=1000,
                "Maximum open tails (GET /events/tail), 1 MiB each; others are answered 503",
            ),
            breaker_failures: from.section("Database").number(
                "CIRCUIT_BREAKER_FAILURE_THRESHOLD",
                5,
                1..=1000,
                "Consecutive failures of the database that open the breaker",
            ),
            breaker_successes: from.number(
                "CIRCUIT_BREAKER_SUCCESS_THRESHOLD",
                2,
                1..=1000,
                "Consecutive successes that close a half-open breaker",
            ),
            breaker_timeout: from.millis(
                "CIRCUIT_BREAKER_TIMEOUT_MS",
                30_000,
                1..=HOUR_MS,
                "Milliseconds until an open breaker becomes half-open",
            ),
            shutdown_timeout: from.section("HTTP server").millis(
                "SHUTDOWN_TIMEOUT_MS",
                30_000,
                0..=HOUR_MS,
                "Milliseconds to drain the buffer at shutdown",
            ),
            history_interval: from.section("Log and history").millis(
                "METRICS_HISTORY_INTERVAL_MS",
                60_000,
                0..=86_400_000,
                "Milliseconds between lines of DATA_DIR/metrics/metrics-history.jsonl; 0 writes none",
            ),
            history_bytes_max: from.number(
                "METRICS_HISTORY_MAX_BYTES",
                16 << 20,
                4096..=1 << 30,
                "Bytes after which the metrics history is rotated; one old file is kept",
            ),
            log_level: from.parsed(
                "LOG_LEVEL",
                "info",
                "one of error, warn, info, debug, trace, off",
                "Log level: error, warn, info, debug, trace or off",
            ),
            log_format: from.one_of(
                "LOG_FORMAT",
                &[("logfmt", LogFormat::Logfmt), ("json", LogFormat::Json)],
                "Log format: logfmt or json",
            ),
            edge: EdgeSettings::read(from),
            gateway: GatewaySettings::read(from.section("Metrics gateway")),
            systemd: SystemdEnvironment::default(),
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

#[cfg(test)]
mod tests;
