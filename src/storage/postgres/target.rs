//! Connection parameters: from `DATABASE_URL`, or for the socket of the embedded cluster.
//!
//! `tokio-postgres` parses most of the URL; it does not support `verify-ca`, `verify-full` and
//! `sslrootcert`, so this module extracts them first. No error message contains a value of the URL,
//! since one of them is the password.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::DbError;

use super::error::error_chain;
use super::tls::{self, CertificateTrust, TlsMode};

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

/// libpq options that are valid in a URL and not supported; the error names them.
const UNSUPPORTED_OPTIONS: &[&str] = &[
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslcrl",
    "sslcrldir",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "sslcompression",
    "sslsni",
    "requirepeer",
    "krbsrvname",
    "gssencmode",
    "gsslib",
    "service",
    "passfile",
    "fallback_application_name",
    "client_encoding",
    "replication",
    "requiressl",
    "ssl_passphrase_command",
    "require_auth",
    "sslcertmode",
    "gssdelegation",
];

/// The parameters of a connection to one database.
#[derive(Clone)]
pub struct ConnectTarget {
    pub(super) config: Config,
    pub(super) tls: TlsMode,
    pub(super) on_notice: NoticeHandler,
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
    #[error("DATABASE_URL: the option {0} is not supported")]
    UnsupportedOption(&'static str),
    #[error("DATABASE_URL: sslmode must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    #[error("DATABASE_URL: sslrootcert: {0}")]
    RootCertificate(String),
}

impl ConnectTarget {
    /// Parses a URL or a list of `key=value`. Reads the file of `sslrootcert`; does not connect.
    pub fn parse(text: &str) -> Result<Self, ParseDatabaseUrlError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ParseDatabaseUrlError::Malformed);
        }
        let (rest, options) = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            split_url(text)?
        } else {
            split_pairs(text)?
        };
        let mut config: Config = rest.parse().map_err(|error| invalid(&error))?;
        let tls = options.tls()?;
        config.ssl_mode(match &tls {
            TlsMode::Disabled => SslMode::Disable,
            TlsMode::Enabled { optional: true, .. } => SslMode::Prefer,
            TlsMode::Enabled { optional: false, .. } => SslMode::Require,
        });
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            if Path::new(SOCKET_DIR).is_dir() {
                config.host_path(SOCKET_DIR);
            } else {
                config.host("localhost");
            }
        }
        Ok(Self::new(config, tls))
    }

    /// Returns the parameters for the Unix socket in `directory`, without a password.
    pub(super) fn unix_socket(directory: &Path, user: &str, database: &str) -> Self {
        let mut config = Config::new();
        config.host_path(directory).user(user).dbname(database).ssl_mode(SslMode::Disable);
        Self::new(config, TlsMode::Disabled)
    }

    fn new(config: Config, tls: TlsMode) -> Self {
        // Notices are meant for interactive sessions ("relation exists, skipping").
        let notices = Arc::new(|notice: &DbError| log::debug!("PostgreSQL: {}", notice.message()));
        Self { config: with_timeouts(config), tls, on_notice: notices }
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

/// Sets the timeouts of every connection. Values from the URL take precedence.
fn with_timeouts(mut config: Config) -> Config {
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    config
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES);
    if config.get_application_name().is_none() {
        config.application_name("aurore-events");
    }
    config
}

/// The TLS options that the `postgres` crate does not support.
#[derive(Debug, Default)]
struct SslOptions {
    mode: Option<String>,
    root_certificate: Option<String>,
}

impl SslOptions {
    /// Stores `value` and returns true when `key` is a TLS option. Fails for an unsupported option.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, ParseDatabaseUrlError> {
        match key {
            "sslmode" => self.mode = Some(value.to_owned()),
            "sslrootcert" => self.root_certificate = Some(value.to_owned()),
            _ => match UNSUPPORTED_OPTIONS.iter().find(|option| **option == key) {
                Some(option) => return Err(ParseDatabaseUrlError::UnsupportedOption(option)),
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    fn tls(&self) -> Result<TlsMode, ParseDatabaseUrlError> {
        let root_certificates = || match self.root_certificate.as_deref() {
            None | Some("system") => {
                tls::load_system_root_certificates().map_err(ParseDatabaseUrlError::RootCertificate)
            }
            Some(path) => tls::load_root_certificates(&PathBuf::from(path))
                .map_err(ParseDatabaseUrlError::RootCertificate),
        };
        let (optional, trust) = match self.mode.as_deref().unwrap_or("prefer") {
            "disable" => return Ok(TlsMode::Disabled),
            "prefer" => (true, CertificateTrust::Any),
            // As in libpq, `require` with a root certificate verifies the chain.
            "require" if self.root_certificate.is_some() => {
                (false, CertificateTrust::Chain(root_certificates()?))
            }
            "require" => (false, CertificateTrust::Any),
            "verify-ca" => (false, CertificateTrust::Chain(root_certificates()?)),
            "verify-full" => (false, CertificateTrust::ChainAndName(root_certificates()?)),
            _ => return Err(ParseDatabaseUrlError::SslMode),
        };
        TlsMode::enabled(optional, trust).map_err(ParseDatabaseUrlError::Invalid)
    }
}

fn invalid(error: &postgres::Error) -> ParseDatabaseUrlError {
    let text = error_chain(error);
    // The crate quotes an unknown option, which may be part of a password that is quoted wrongly.
    ParseDatabaseUrlError::Invalid(if text.contains("unknown option") {
        "it contains an unknown option".to_owned()
    } else {
        text
    })
}

fn split_url(url: &str) -> Result<(String, SslOptions), ParseDatabaseUrlError> {
    let mut options = SslOptions::default();
    let Some((base, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), options));
    };
    let mut rest = base.to_owned();
    let mut separator = '?';
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(ParseDatabaseUrlError::Malformed)?;
        if !options.take(key, &percent_decoded(value)?)? {
            rest.push(separator);
            rest.push_str(pair);
            separator = '&';
        }
    }
    Ok((rest, options))
}

fn percent_decoded(text: &str) -> Result<String, ParseDatabaseUrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(ParseDatabaseUrlError::Malformed)
        };
        let value = digit()? << 4 | digit()?;
        bytes.push(u8::try_from(value).expect("two hexadecimal digits fit a byte"));
    }
    String::from_utf8(bytes).map_err(|_invalid| ParseDatabaseUrlError::Malformed)
}

/// Parses `key=value key='a value with \' in it'` as libpq does, and returns the pairs without the
/// TLS options.
fn split_pairs(text: &str) -> Result<(String, SslOptions), ParseDatabaseUrlError> {
    let mut options = SslOptions::default();
    let mut rest = String::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok((rest, options));
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(ParseDatabaseUrlError::Malformed);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.peek() {
                None if quoted => return Err(ParseDatabaseUrlError::Malformed),
                Some('\'') if quoted => break,
                None => break,
                Some(c) if !quoted && c.is_whitespace() => break,
                Some(_) => {}
            }
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                other => value.extend(other),
            }
        }
        if quoted {
            chars.next();
        }
        if !options.take(&key, &value)? {
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            _ = write!(rest, "{key}='{value}' ");
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert_rejected("postgres://u:hunter2@h/d?nosuch=hunter2", "unknown option");
        assert_rejected("hunter2", "neither");
        assert_rejected("", "neither");
        assert_rejected("host=h password='hunter2", "neither");
        assert_rejected("host=h password=it hunter2=x", "unknown option");
        assert_rejected("mysql://u:hunter2@h/d", "neither");
        assert_rejected(
            "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/no/such/file",
            "/no/such/file",
        );
    }
}
