//! Connection parameters: from `DATABASE_URL`, or for the socket of the embedded cluster.
//!
//! [`ConnectTarget::parse`] alone decides which text is valid. `tokio-postgres` parses the URL up to
//! the question mark; it knows half of libpq's parameters, so this module applies them. No error
//! message contains a value of the URL, since one of them is the password.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::DbError;

use super::tls::TlsMode;
use super::url_parameters::{self, Parameters};
use super::url_text;

/// Time limit of connecting to one address of the database.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keepalive: idle time before the first probe, interval, and number of lost probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// Maximum time that sent bytes may stay unacknowledged before the kernel drops the connection.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(12);
/// The socket directory of Debian and most other distributions, libpq's default host.
const SOCKET_DIR: &str = "/var/run/postgresql";

/// The parameters of a connection to one database.
#[derive(Clone)]
pub struct ConnectTarget {
    pub(super) config: Config,
    /// A configuration for each host alone.
    singles: Vec<Config>,
    pub(super) tls: TlsMode,
    pub(super) on_notice: NoticeHandler,
    warnings: Vec<String>,
}

/// The callback for notices of the database.
pub(super) type NoticeHandler = Arc<dyn Fn(&DbError) + Send + Sync>;

impl fmt::Debug for ConnectTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectTarget").field(&self.describe()).finish()
    }
}

/// An invalid `DATABASE_URL`.
#[derive(Debug, thiserror::Error)]
pub enum ParseDatabaseUrlError {
    #[error("DATABASE_URL is neither postgresql://user:password@host:port/database nor a list of key=value")]
    Malformed,
    #[error("DATABASE_URL: {0}")]
    Invalid(String),
    #[error("DATABASE_URL: {name} is not supported: {hint}")]
    Unsupported { name: &'static str, hint: &'static str },
    #[error("DATABASE_URL: {name} is a parameter of another driver: {hint}")]
    Foreign { name: &'static str, hint: &'static str },
    #[error("DATABASE_URL: parameter {0} is unknown: libpq has no such parameter")]
    UnknownParameter(usize),
    #[error("DATABASE_URL: sslrootcert: {0}")]
    RootCertificate(String),
}

/// An invalid `DATABASE_READ_URL`.
#[derive(Debug, thiserror::Error)]
pub struct ParseReadUrlError(ParseDatabaseUrlError);

impl fmt::Display for ParseReadUrlError {
    /// The messages begin with the name of the setting, and hints may repeat it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string().replace("DATABASE_URL", "DATABASE_READ_URL"))
    }
}

impl ConnectTarget {
    /// Parses a URL or a list of `key=value`. Reads the file of `sslrootcert`; does not connect.
    pub fn parse(text: &str) -> Result<Self, ParseDatabaseUrlError> {
        Self::parse_with(text, Parameters::default())
    }

    /// Parses `DATABASE_READ_URL`, whose database may be a standby.
    pub fn parse_for_reads(text: &str) -> Result<Self, ParseReadUrlError> {
        Self::parse_with(text, Parameters::for_reads()).map_err(ParseReadUrlError)
    }

    fn parse_with(text: &str, mut parameters: Parameters) -> Result<Self, ParseDatabaseUrlError> {
        let (base, pairs) = url_text::split(text)?;
        parameters.config = base_config(&base);
        parameters.hosts = base.get_hosts().iter().map(host_text).collect();
        parameters.ports = base.get_ports().to_vec();
        for (position, (key, value)) in (1..).zip(&pairs) {
            parameters.apply(position, key, value)?;
        }
        if parameters.hosts.is_empty() && parameters.addresses.is_empty() {
            let socket = Path::new(SOCKET_DIR).is_dir();
            parameters.hosts.push(if socket { SOCKET_DIR } else { "localhost" }.to_owned());
        }
        let tls = parameters.tls()?;
        let (mut config, mut singles, warnings) = parameters.into_config()?;
        for config in std::iter::once(&mut config).chain(&mut singles) {
            config.ssl_mode(match &tls {
                TlsMode::Disabled => SslMode::Disable,
                TlsMode::Enabled { optional: true, .. } => SslMode::Prefer,
                TlsMode::Enabled { optional: false, .. } => SslMode::Require,
            });
        }
        Ok(Self { singles, warnings, ..Self::new(config, tls) })
    }

    /// What the text asks for and has no effect.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the parameters for the Unix socket in `directory`, without a password.
    pub(super) fn unix_socket(directory: &Path, user: &str, database: &str) -> Self {
        let mut config = base_config(&Config::new());
        config.host_path(directory).user(user).dbname(database).ssl_mode(SslMode::Disable);
        config.application_name(url_parameters::APPLICATION_NAME);
        Self::new(config, TlsMode::Disabled)
    }

    fn new(config: Config, tls: TlsMode) -> Self {
        // Notices are meant for interactive sessions ("relation exists, skipping").
        let notices = Arc::new(|notice: &DbError| log::debug!("PostgreSQL: {}", notice.message()));
        Self { config, singles: Vec::new(), tls, on_notice: notices, warnings: Vec::new() }
    }

    /// The parameters for each host alone; none unless there are several.
    pub(super) fn each_host(&self) -> Vec<Self> {
        let of = |single: &Config| Self { config: single.clone(), singles: Vec::new(), ..self.clone() };
        if self.singles.len() > 1 { self.singles.iter().map(of).collect() } else { Vec::new() }
    }

    /// Converts the parameters for the blocking `postgres` crate.
    pub(super) fn to_blocking_config(&self) -> postgres::Config {
        let mut config = postgres::Config::from(self.config.clone());
        let notices = Arc::clone(&self.on_notice);
        config.notice_callback(move |notice| notices(&notice));
        config
    }

    /// Formats host, port and database for messages and logs. Never includes the password.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for host in self.config.get_hosts() {
            let separator = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            _ = match host {
                Host::Tcp(host) => write!(text, "{separator}{host}"),
                Host::Unix(path) => write!(text, "{separator}{}", path.display()),
            };
        }
        if let Some(port) = self.config.get_ports().first() {
            _ = write!(text, ":{port}");
        }
        _ = write!(text, "/{}", self.config.get_dbname().or(self.config.get_user()).unwrap_or("?"));
        text
    }
}

/// The login and the database of `base`, with the timeouts of every connection. Parameters override
/// them.
fn base_config(base: &Config) -> Config {
    let mut config = Config::new();
    config
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_user_timeout(TCP_USER_TIMEOUT)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES);
    if let Some(user) = base.get_user() {
        config.user(user);
    }
    if let Some(password) = base.get_password() {
        config.password(password);
    }
    if let Some(database) = base.get_dbname() {
        config.dbname(database);
    }
    config
}

fn host_text(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, TargetSessionAttrs};

    use super::*;

    fn mode(text: &str) -> (SslMode, bool) {
        let target = ConnectTarget::parse(text).unwrap();
        (target.config.get_ssl_mode(), matches!(target.tls, TlsMode::Enabled { .. }))
    }

    #[test]
    fn target_parse_applies_sslmode_in_urls_and_pairs() {
        for (name, expected) in [
            ("disable", (SslMode::Disable, false)),
            ("prefer", (SslMode::Prefer, true)),
            ("require", (SslMode::Require, true)),
        ] {
            assert_eq!(mode(&format!("postgres://u:p@db.example/x?sslmode={name}")), expected, "{name}");
            assert_eq!(mode(&format!("host=db.example sslmode='{name}' user=u")), expected, "{name}");
        }
        assert_eq!(mode("postgresql://u@h/x"), (SslMode::Prefer, true), "the default of libpq");
    }

    #[test]
    fn target_parse_passes_other_options_to_the_config() {
        let target = ConnectTarget::parse(
            "postgresql://me:s%40crt@db1.example:6432/events?sslmode=disable&connect_timeout=2&application_name=x",
        )
        .unwrap();
        assert_eq!(target.config.get_user(), Some("me"));
        assert_eq!(target.config.get_password(), Some(b"s@crt".as_slice()));
        assert_eq!(target.config.get_dbname(), Some("events"));
        assert_eq!(target.config.get_connect_timeout(), Some(&Duration::from_secs(2)));
        assert_eq!(target.config.get_application_name(), Some("x"));
        assert_eq!(target.describe(), "db1.example:6432/events");
        let pairs = ConnectTarget::parse(r"host=h user = me password='a \'b\\ c' sslmode = disable dbname=d")
            .unwrap();
        assert_eq!(pairs.config.get_password(), Some(br"a 'b\ c".as_slice()));
        assert_eq!(pairs.config.get_connect_timeout(), Some(&CONNECT_TIMEOUT), "a default applies");
    }

    #[track_caller]
    fn assert_rejected(text: &str, part: &str) {
        let message = ConnectTarget::parse(text).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("hunter2"), "the message contains the password: {message}");
        assert!(message.starts_with("DATABASE_URL"), "{message}");
    }

    #[test]
    fn target_parse_errors_never_contain_the_password() {
        assert_rejected("postgres://u:hunter2@h/d?sslmode=maybe", "sslmode must be");
        assert_rejected("postgres://u:hunter2@h:port/d", "port");
        assert_rejected("postgres://u:hunter2@h/d?sslcert=x", "sslcert is not supported");
        assert_rejected("postgres://u:hunter2@h/d?sslmode=disable&nosuch=hunter2", "parameter 2 is unknown");
        assert_rejected("hunter2", "neither");
        assert_rejected("", "neither");
        assert_rejected("host=h password='hunter2", "neither");
        assert_rejected("host=h password=it hunter2=x", "parameter 3 is unknown");
        assert_rejected("mysql://u:hunter2@h/d", "neither");
        assert_rejected(
            "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/no/such/file",
            "/no/such/file",
        );
    }

    #[test]
    fn target_parse_honours_the_parameters_of_libpq() {
        let config = |query: &str| {
            let target = ConnectTarget::parse(&format!("postgres://u@h/d?{query}")).unwrap();
            assert_eq!(target.warnings(), [""; 0], "{query}");
            target.config
        };
        let all = config(
            "application_name=a&fallback_application_name=b&connect_timeout=7&options=-csearch_path%3Dx\
             &keepalives_idle=11&keepalives_interval=12&keepalives_count=13&tcp_user_timeout=14000\
             &target_session_attrs=read-write&channel_binding=require&load_balance_hosts=random",
        );
        assert_eq!((all.get_application_name(), all.get_options()), (Some("a"), Some("-csearch_path=x")));
        assert_eq!(all.get_connect_timeout(), Some(&Duration::from_secs(7)));
        assert_eq!(all.get_keepalives_idle(), Duration::from_secs(11));
        assert_eq!(all.get_keepalives_interval(), Some(Duration::from_secs(12)));
        assert_eq!(all.get_keepalives_retries(), Some(13));
        assert_eq!(all.get_tcp_user_timeout(), Some(&Duration::from_secs(14)), "it is in milliseconds");
        assert_eq!(all.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(all.get_channel_binding(), ChannelBinding::Require);
        assert_eq!(all.get_load_balance_hosts(), LoadBalanceHosts::Random);
        let fallback = config("fallback_application_name=b&keepalives=0");
        assert_eq!((fallback.get_application_name(), fallback.get_keepalives()), (Some("b"), false));
        assert_eq!(config("").get_application_name(), Some("aurore-events"));
        assert_eq!(config("connect_timeout=0").get_connect_timeout(), Some(&CONNECT_TIMEOUT));
        assert_eq!(config("sslmode=&port=").get_ssl_mode(), SslMode::Prefer, "empty is the default");
        // Parameters replace host and port of the URL.
        let replaced = config("host=a,b&port=1,2&target_session_attrs=read-write");
        assert_eq!(replaced.get_hosts(), [Host::Tcp("a".to_owned()), Host::Tcp("b".to_owned())]);
        assert_eq!(replaced.get_ports(), [1, 2]);
        assert_eq!(config("host=/tmp").get_hosts(), [Host::Unix("/tmp".into())]);
        let address = ConnectTarget::parse("hostaddr=::1 user=u").unwrap().config;
        assert_eq!(address.get_hosts(), [Host::Tcp("::1".to_owned())]);
        // Values that mean what happens anyway.
        for query in [
            "gssencmode=disable",
            "gssencmode=prefer",
            "sslcertmode=allow",
            "sslcompression=0",
            "sslsni=1",
            "client_encoding=UTF-8",
            "replication=false",
            "min_protocol_version=3.0",
            "ssl_min_protocol_version=TLSv1.2",
            "ssl_max_protocol_version=TLSv1.3",
        ] {
            config(query);
        }
        assert_eq!(config("requiressl=1").get_ssl_mode(), SslMode::Require);
    }

    #[test]
    fn target_parse_warns_of_parameters_without_an_effect() {
        for name in ["sslmode=allow", "krbsrvname=x", "gsslib=x", "sslcompression=1", "sslsni=0"] {
            let target = ConnectTarget::parse(&format!("postgres://u@h/d?{name}")).unwrap();
            let (name, _) = name.split_once('=').unwrap();
            assert!(target.warnings().len() == 1 && target.warnings()[0].starts_with(name), "{target:?}");
        }
        // Two hosts, of which one may be a standby.
        let warnings = |text: &str| ConnectTarget::parse(text).unwrap().warnings().len();
        assert_eq!(warnings("postgres://u@a,b/d"), 1);
        assert_eq!(warnings("postgres://u@a,b/d?target_session_attrs=primary"), 0);
        assert_eq!(ConnectTarget::parse_for_reads("postgres://u@a,b/d").unwrap().warnings().len(), 0);
    }

    #[test]
    fn target_parse_refuses_parameters_with_a_hint() {
        for (query, part) in [
            ("pgbouncer=true", "pgbouncer is a parameter of another driver: remove it"),
            ("schema=public", "options=-csearch_path"),
            ("connection_limit=5", "DB_POOL_MAX"),
            ("ssl=true", "sslmode=require"),
            ("service=x", "service is not supported: put the parameters"),
            ("gssencmode=require", "gssencmode must be disable or prefer"),
            ("require_auth=scram-sha-256", "require_auth is not supported"),
            ("sslcrl=x", "sslcrl is not supported"),
            ("client_encoding=LATIN1", "client_encoding must be UTF8"),
            ("target_session_attrs=standby", "target_session_attrs must be any, read-write or primary"),
            ("target_session_attrs=nearest", "target_session_attrs must be any or read-write"),
            ("channel_binding=maybe", "channel_binding must be prefer or disable or require"),
            ("connect_timeout=soon", "connect_timeout must be a number of seconds"),
            ("keepalives=yes", "keepalives must be 1 or 0"),
            ("port=1,2", "port must be one port, or one for each host"),
            ("hostaddr=::1,::2", "hostaddr must be one address for each host"),
            ("hostaddr=db", "hostaddr must be IP addresses"),
            ("host=a,,b", "host must be"),
            ("replication=database", "replication must be false"),
            ("ssl_min_protocol_version=TLSv1.3", "ssl_min_protocol_version must be"),
        ] {
            assert_rejected(&format!("postgres://u:hunter2@h/d?{query}"), part);
        }
    }
}
