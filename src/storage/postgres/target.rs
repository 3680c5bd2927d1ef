//! Where the database is: `DATABASE_URL`, or the socket of the embedded cluster.
//!
//! `tokio-postgres` reads most of the URL; it does not know `verify-ca`, `verify-full` and `sslrootcert`, so
//! those are taken out first. No message from here holds a value of the URL: one of them is the password.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::error::DbError;

use super::error::chain;
use super::tls::{self, Tls, Trust};

/// How long one attempt to reach one address of the database may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After how much silence an idle connection is probed; how often; and how many probes may be lost.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// How long bytes that were sent may stay unacknowledged before the connection counts as lost.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(12);
/// Where Debian and most others put the server's socket; what libpq would use without a host.
const SOCKET_DIR: &str = "/var/run/postgresql";

/// Options of libpq that a URL may hold and that nothing here can honour: named in the message.
const NOT_SUPPORTED: &[&str] = &[
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

/// A database that can be connected to.
#[derive(Clone)]
pub struct Target {
    pub(super) config: Config,
    pub(super) tls: Tls,
    pub(super) notices: Notices,
}

/// Who is told what the database remarks upon.
pub(super) type Notices = Arc<dyn Fn(&DbError) + Send + Sync>;

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Target").field(&self.describe()).finish()
    }
}

/// Why `DATABASE_URL` is no use.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("DATABASE_URL is neither postgresql://user:password@host:port/database nor a list of key=value")]
    Form,
    #[error("DATABASE_URL: {0}")]
    Invalid(String),
    #[error("DATABASE_URL: the option {0} is not supported")]
    NotSupported(&'static str),
    #[error("DATABASE_URL: sslmode must be disable, prefer, require, verify-ca or verify-full")]
    SslMode,
    #[error("DATABASE_URL: sslrootcert: {0}")]
    RootCertificate(String),
}

impl Target {
    /// Reads a URL or a list of `key=value`. Connects to nothing; reads the file of `sslrootcert`.
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TargetError::Form);
        }
        let (rest, options) = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            split_url(text)?
        } else {
            split_pairs(text)?
        };
        let mut config: Config = rest.parse().map_err(|error| invalid(&error))?;
        let tls = options.tls()?;
        config.ssl_mode(match &tls {
            Tls::Off => SslMode::Disable,
            Tls::On { optional: true, .. } => SslMode::Prefer,
            Tls::On { optional: false, .. } => SslMode::Require,
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

    /// A database behind the socket in `directory`, without a password.
    pub(super) fn socket(directory: &Path, user: &str, database: &str) -> Self {
        let mut config = Config::new();
        config.host_path(directory).user(user).dbname(database).ssl_mode(SslMode::Disable);
        Self::new(config, Tls::Off)
    }

    fn new(config: Config, tls: Tls) -> Self {
        // Notices are for people at a terminal ("relation exists, skipping").
        let notices = Arc::new(|notice: &DbError| log::debug!("PostgreSQL: {}", notice.message()));
        Self { config: with_timeouts(config), tls, notices }
    }

    /// The same for the `postgres` crate.
    pub(super) fn blocking(&self) -> postgres::Config {
        let mut config = postgres::Config::from(self.config.clone());
        let notices = Arc::clone(&self.notices);
        config.notice_callback(move |notice| notices(&notice));
        config
    }

    /// For messages and logs: where it is, and as whom. Never the password.
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

/// The bounds on waiting that hold for every connection. What the URL says itself is kept.
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

/// What the `postgres` crate does not know.
#[derive(Debug, Default)]
struct SslOptions {
    mode: Option<String>,
    root_certificate: Option<String>,
}

impl SslOptions {
    /// Keeps `value` when `key` is one of ours.
    fn take(&mut self, key: &str, value: &str) -> Result<bool, TargetError> {
        match key {
            "sslmode" => self.mode = Some(value.to_owned()),
            "sslrootcert" => self.root_certificate = Some(value.to_owned()),
            _ => match NOT_SUPPORTED.iter().find(|known| **known == key) {
                Some(known) => return Err(TargetError::NotSupported(known)),
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    fn tls(&self) -> Result<Tls, TargetError> {
        let authorities = || match self.root_certificate.as_deref() {
            None | Some("system") => tls::system_authorities().map_err(TargetError::RootCertificate),
            Some(path) => tls::authorities(&PathBuf::from(path)).map_err(TargetError::RootCertificate),
        };
        let (optional, trust) = match self.mode.as_deref().unwrap_or("prefer") {
            "disable" => return Ok(Tls::Off),
            "prefer" => (true, Trust::Anyone),
            // As libpq does: with a root certificate at hand, `require` looks at it.
            "require" if self.root_certificate.is_some() => (false, Trust::Chain(authorities()?)),
            "require" => (false, Trust::Anyone),
            "verify-ca" => (false, Trust::Chain(authorities()?)),
            "verify-full" => (false, Trust::ChainAndName(authorities()?)),
            _ => return Err(TargetError::SslMode),
        };
        Tls::on(optional, trust).map_err(TargetError::Invalid)
    }
}

fn invalid(error: &postgres::Error) -> TargetError {
    let text = chain(error);
    // The crate quotes an option that it does not know; after a slip in quoting that may be part of a password.
    TargetError::Invalid(if text.contains("unknown option") {
        "it holds an unknown option".to_owned()
    } else {
        text
    })
}

fn split_url(url: &str) -> Result<(String, SslOptions), TargetError> {
    let mut options = SslOptions::default();
    let Some((base, query)) = url.split_once('?') else {
        return Ok((url.to_owned(), options));
    };
    let mut rest = base.to_owned();
    let mut separator = '?';
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(TargetError::Form)?;
        if !options.take(key, &percent_decoded(value)?)? {
            rest.push(separator);
            rest.push_str(pair);
            separator = '&';
        }
    }
    Ok((rest, options))
}

fn percent_decoded(text: &str) -> Result<String, TargetError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(TargetError::Form);
        let value = digit()? << 4 | digit()?;
        bytes.push(u8::try_from(value).expect("two hexadecimal digits fit a byte"));
    }
    String::from_utf8(bytes).map_err(|_invalid| TargetError::Form)
}

/// `key=value key='a value with \' in it'`, taken apart as libpq does and put together again without ours.
fn split_pairs(text: &str) -> Result<(String, SslOptions), TargetError> {
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
            return Err(TargetError::Form);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.peek() {
                None if quoted => return Err(TargetError::Form),
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
        let target = Target::parse(text).unwrap();
        (target.config.get_ssl_mode(), matches!(target.tls, Tls::On { .. }))
    }

    #[test]
    fn each_sslmode_is_honoured_in_both_forms() {
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
    fn the_rest_of_the_options_reaches_the_connection() {
        let target = Target::parse(
            "postgresql://me:s%40crt@db1.example:6432/events?sslmode=disable&connect_timeout=2&application_name=x",
        )
        .unwrap();
        assert_eq!(target.config.get_user(), Some("me"));
        assert_eq!(target.config.get_password(), Some(b"s@crt".as_slice()));
        assert_eq!(target.config.get_dbname(), Some("events"));
        assert_eq!(target.config.get_connect_timeout(), Some(&Duration::from_secs(2)));
        assert_eq!(target.config.get_application_name(), Some("x"));
        assert_eq!(target.describe(), "db1.example:6432/events");
        let pairs =
            Target::parse(r"host=h user = me password='a \'b\\ c' sslmode = disable dbname=d").unwrap();
        assert_eq!(pairs.config.get_password(), Some(br"a 'b\ c".as_slice()));
        assert_eq!(pairs.config.get_connect_timeout(), Some(&CONNECT_TIMEOUT), "bounded without being asked");
    }

    #[track_caller]
    fn refused(text: &str, part: &str) {
        let message = Target::parse(text).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("hunter2"), "the password is in: {message}");
        assert!(message.starts_with("DATABASE_URL"), "{message}");
    }

    #[test]
    fn a_wrong_url_is_named_without_its_password() {
        refused("postgres://u:hunter2@h/d?sslmode=maybe", "sslmode must be");
        refused("postgres://u:hunter2@h:port/d", "port");
        refused("postgres://u:hunter2@h/d?sslcert=x", "sslcert is not supported");
        refused("postgres://u:hunter2@h/d?nosuch=hunter2", "unknown option");
        refused("hunter2", "neither");
        refused("", "neither");
        refused("host=h password='hunter2", "neither");
        refused("host=h password=it hunter2=x", "unknown option");
        refused("mysql://u:hunter2@h/d", "neither");
        refused("postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/no/such/file", "/no/such/file");
    }
}
