//! The parameters of `DATABASE_URL`: each parameter of libpq (PostgreSQL 18) is honoured, ignored
//! with a warning, or refused; those of other drivers are refused with a hint. A parameter is
//! refused if ignoring it would weaken the security of the connection or connect to another place.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, SslNegotiation, TargetSessionAttrs};

use super::target::ParseDatabaseUrlError;
use super::tls::{self, CertificateTrust, TlsMode};

/// Parameters of libpq that have no effect here, with the reason.
const IGNORED: &[(&str, &str)] = &[
    ("gssdelegation", "GSSAPI is not used"),
    ("gsslib", "GSSAPI is not used"),
    ("krbsrvname", "GSSAPI is not used"),
    ("max_protocol_version", "version 3.0 of the protocol is used"),
    ("sslcompression", "TLS is never compressed"),
    ("sslkeylogfile", "no keys are logged"),
    ("sslsni", "the name of the host is sent"),
];

/// Parameters of libpq that are not supported, with a hint.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("oauth_client_id", "use a password"),
    ("oauth_client_secret", "use a password"),
    ("oauth_issuer", "use a password"),
    ("oauth_scope", "use a password"),
    ("passfile", "put the password into DATABASE_URL"),
    ("require_auth", "use sslmode=verify-full, which prevents that another server asks for the password"),
    ("requirepeer", "use a directory for the socket that only PostgreSQL's user may write to"),
    ("scram_client_key", "use a password"),
    ("scram_server_key", "use a password"),
    ("service", "put the parameters of the service into DATABASE_URL"),
    ("servicefile", "put the parameters of the service into DATABASE_URL"),
    ("sslcert", "client certificates are not supported; use a password"),
    ("sslcrl", "revocation lists are not supported"),
    ("sslcrldir", "revocation lists are not supported"),
    ("sslkey", "client certificates are not supported; use a password"),
    ("sslpassword", "client certificates are not supported; use a password"),
];

/// Parameters of other drivers and tools, with a hint.
const FOREIGN: &[(&str, &str)] = &[
    ("ApplicationName", "use application_name"),
    ("binary_parameters", NO_STATEMENTS),
    ("connection_limit", POOL_SIZE),
    ("currentSchema", SCHEMA),
    ("default_query_exec_mode", NO_STATEMENTS),
    ("encoding", "remove it: the connection always uses UTF-8"),
    ("idle_in_transaction_session_timeout", SESSION_SETTING),
    ("lock_timeout", SESSION_SETTING),
    ("loginTimeout", "use connect_timeout"),
    ("max", POOL_SIZE),
    ("max_connections", POOL_SIZE),
    ("pgbouncer", NO_STATEMENTS),
    ("pool_max_conns", POOL_SIZE),
    ("pool_size", POOL_SIZE),
    ("pool_timeout", "remove it: a query waits up to 5 s for a connection"),
    ("prepareThreshold", NO_STATEMENTS),
    ("prepared_statements", NO_STATEMENTS),
    ("schema", SCHEMA),
    ("search_path", SCHEMA),
    ("socketTimeout", NO_SOCKET_TIMEOUT),
    ("socket_timeout", NO_SOCKET_TIMEOUT),
    ("ssl", SSL_MODE),
    ("ssl-mode", SSL_MODE),
    ("sslaccept", SSL_MODE),
    ("sslidentity", "client certificates are not supported; use a password"),
    ("sslrootcertificate", "use sslrootcert"),
    ("statement-cache-capacity", NO_STATEMENTS),
    ("statement_cache_capacity", NO_STATEMENTS),
    ("statement_cache_size", NO_STATEMENTS),
    ("statement_timeout", SESSION_SETTING),
    ("timezone", "remove it: times are exchanged in UTC"),
];

const NO_STATEMENTS: &str =
    "remove it: no prepared statements are used, so a transaction-pooling proxy needs no parameter";
const NO_SOCKET_TIMEOUT: &str = "remove it: every operation has a timeout";
const POOL_SIZE: &str = "remove it, and set DB_POOL_MAX";
const SCHEMA: &str = "to select a schema, use options=-csearch_path%3DNAME";
const SESSION_SETTING: &str = "remove it: every transaction sets its own timeouts";
const SSL_MODE: &str = "use sslmode=require or sslmode=verify-full";

pub(super) const APPLICATION_NAME: &str = "aurore-events";

/// Parameters that are applied together, after all were read.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) config: Config,
    pub(super) hosts: Vec<String>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<u16>,
    ssl_mode: Option<String>,
    root_certificate: Option<String>,
    fallback_application_name: Option<String>,
    /// The connections only read, so that they may lead to a standby.
    only_reads: bool,
    /// Parameters without an effect, with the reason.
    pub(super) warnings: Vec<String>,
}

impl Parameters {
    pub(super) fn for_reads() -> Self {
        Self { only_reads: true, ..Self::default() }
    }

    /// Applies the parameter at `position`, counted from 1. An empty value is the default.
    pub(super) fn apply(
        &mut self,
        position: usize,
        key: &str,
        value: &str,
    ) -> Result<(), ParseDatabaseUrlError> {
        let find =
            |list: &[(&'static str, &'static str)]| list.iter().find(|(known, _)| *known == key).copied();
        if let Some((name, hint)) = find(UNSUPPORTED) {
            return Err(ParseDatabaseUrlError::Unsupported { name, hint });
        }
        if let Some((name, hint)) = find(FOREIGN) {
            return Err(ParseDatabaseUrlError::Foreign { name, hint });
        }
        if let Some((name, reason)) = find(IGNORED) {
            // Values that mean what happens anyway need no warning.
            if !matches!((name, value), (_, "") | ("sslcompression", "0") | ("sslsni", "1")) {
                self.warnings.push(format!("{name} has no effect: {reason}"));
            }
            return Ok(());
        }
        if self.apply_to_socket(key, value)?
            || self.apply_to_session(key, value)?
            || self.apply_to_security(key, value)?
        {
            return Ok(());
        }
        // The key may be a part of a password that is not percent-encoded.
        Err(ParseDatabaseUrlError::UnknownParameter(position))
    }

    /// Applies a parameter of the addresses or the sockets. Returns false for any other.
    fn apply_to_socket(&mut self, key: &str, value: &str) -> Result<bool, ParseDatabaseUrlError> {
        match key {
            "host" => self.hosts = list(value).map(str::to_owned).collect(),
            "hostaddr" => {
                let addresses: Result<_, _> = list(value).map(str::parse).collect();
                self.addresses = addresses.map_err(|_invalid| must_be("hostaddr", "IP addresses"))?;
            }
            "port" => {
                let port = |text: &str| if text.is_empty() { Ok(5432) } else { text.parse() };
                let ports: Result<_, _> = list(value).map(port).collect();
                self.ports = ports.map_err(|_invalid| must_be("port", "port numbers"))?;
            }
            "connect_timeout" => {
                if let Some(seconds) = number(key, value, "a number of seconds")? {
                    self.config.connect_timeout(Duration::from_secs(seconds));
                }
            }
            // In milliseconds, unlike the others.
            "tcp_user_timeout" => {
                if let Some(millis) = number(key, value, "a number of milliseconds")? {
                    self.config.tcp_user_timeout(Duration::from_millis(millis));
                }
            }
            "keepalives" => {
                self.config.keepalives(one_of(key, value, &["1", "0"])? == "1");
            }
            "keepalives_idle" => {
                if let Some(seconds) = number(key, value, "a number of seconds")? {
                    self.config.keepalives_idle(Duration::from_secs(seconds));
                }
            }
            "keepalives_interval" => {
                if let Some(seconds) = number(key, value, "a number of seconds")? {
                    self.config.keepalives_interval(Duration::from_secs(seconds));
                }
            }
            // `keepalives_retries` is the name of `tokio-postgres`.
            "keepalives_count" | "keepalives_retries" => {
                if let Some(count) = number(key, value, "a number of probes")? {
                    self.config.keepalives_retries(u32::try_from(count).unwrap_or(u32::MAX));
                }
            }
            "load_balance_hosts" => {
                self.config.load_balance_hosts(match one_of(key, value, &["disable", "random"])? {
                    "random" => LoadBalanceHosts::Random,
                    _ => LoadBalanceHosts::Disable,
                });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies a parameter of the login or the session. Returns false for any other.
    fn apply_to_session(&mut self, key: &str, value: &str) -> Result<bool, ParseDatabaseUrlError> {
        match key {
            "user" if !value.is_empty() => {
                self.config.user(value);
            }
            "password" if !value.is_empty() => {
                self.config.password(value);
            }
            "dbname" if !value.is_empty() => {
                self.config.dbname(value);
            }
            "options" if !value.is_empty() => {
                self.config.options(value);
            }
            "application_name" if !value.is_empty() => {
                self.config.application_name(value);
            }
            "fallback_application_name" if !value.is_empty() => {
                self.fallback_application_name = Some(value.to_owned());
            }
            "user" | "password" | "dbname" | "options" | "application_name" | "fallback_application_name" => {
            }
            "target_session_attrs" => {
                let all = ["any", "read-write", "primary", "read-only", "standby", "prefer-standby"];
                self.config.target_session_attrs(match one_of(key, value, &all)? {
                    "any" => TargetSessionAttrs::Any,
                    "read-write" | "primary" => TargetSessionAttrs::ReadWrite,
                    "read-only" | "standby" if self.only_reads => TargetSessionAttrs::ReadOnly,
                    _ if self.only_reads => {
                        return Err(must_be(key, "any, read-write, primary, read-only or standby"));
                    }
                    _ => return Err(must_be(key, "any, read-write or primary: events are written")),
                });
            }
            "client_encoding" => {
                let normal: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
                if !matches!(normal.to_ascii_lowercase().as_str(), "" | "utf8" | "unicode") {
                    return Err(must_be(key, "UTF8"));
                }
            }
            "replication" => {
                if !matches!(value, "" | "false" | "off" | "no" | "0") {
                    return Err(must_be(key, "false: events are not replicated"));
                }
            }
            "min_protocol_version" => {
                one_of(key, value, &["3.0"])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Applies a parameter of authentication or encryption. Returns false for any other.
    fn apply_to_security(&mut self, key: &str, value: &str) -> Result<bool, ParseDatabaseUrlError> {
        match key {
            "sslmode" => self.ssl_mode = Some(value.to_owned()).filter(|mode| !mode.is_empty()),
            "requiressl" if one_of(key, value, &["0", "1"])? == "1" => {
                self.ssl_mode.get_or_insert_with(|| "require".to_owned());
            }
            "requiressl" => {}
            "sslrootcert" => self.root_certificate = Some(value.to_owned()).filter(|path| !path.is_empty()),
            "sslnegotiation" => {
                self.config.ssl_negotiation(match one_of(key, value, &["postgres", "direct"])? {
                    "direct" => SslNegotiation::Direct,
                    _ => SslNegotiation::Postgres,
                });
            }
            "channel_binding" => {
                self.config.channel_binding(match one_of(key, value, &["prefer", "disable", "require"])? {
                    "disable" => ChannelBinding::Disable,
                    "require" => ChannelBinding::Require,
                    _ => ChannelBinding::Prefer,
                });
            }
            // `prefer` falls back to a connection without GSSAPI.
            "gssencmode" => {
                if one_of(key, value, &["prefer", "disable", "require"])? == "require" {
                    return Err(must_be(key, "disable or prefer: GSSAPI is not supported; use sslmode"));
                }
            }
            "sslcertmode" => {
                if one_of(key, value, &["allow", "disable", "require"])? == "require" {
                    return Err(must_be(key, "disable or allow: client certificates are not supported"));
                }
            }
            // TLS 1.2 and 1.3 are supported.
            "ssl_min_protocol_version" => {
                one_of(key, value, &["TLSv1.2", "TLSv1.1", "TLSv1"])?;
            }
            "ssl_max_protocol_version" => {
                one_of(key, value, &["TLSv1.3"])?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The TLS mode of `sslmode` and `sslrootcert`. Reads the root certificates.
    pub(super) fn tls(&mut self) -> Result<TlsMode, ParseDatabaseUrlError> {
        let root_certificates = || match self.root_certificate.as_deref() {
            None | Some("system") => {
                tls::load_system_root_certificates().map_err(ParseDatabaseUrlError::RootCertificate)
            }
            Some(path) => tls::load_root_certificates(&PathBuf::from(path))
                .map_err(ParseDatabaseUrlError::RootCertificate),
        };
        let (optional, trust) = match self.ssl_mode.as_deref().unwrap_or("prefer") {
            "disable" => return Ok(TlsMode::Disabled),
            "allow" => {
                self.warnings.push("sslmode=allow is treated as prefer: TLS is tried first".to_owned());
                (true, CertificateTrust::Any)
            }
            "prefer" => (true, CertificateTrust::Any),
            // As in libpq, `require` with a root certificate verifies the chain.
            "require" if self.root_certificate.is_some() => {
                (false, CertificateTrust::Chain(root_certificates()?))
            }
            "require" => (false, CertificateTrust::Any),
            "verify-ca" => (false, CertificateTrust::Chain(root_certificates()?)),
            "verify-full" => (false, CertificateTrust::ChainAndName(root_certificates()?)),
            _ => {
                return Err(must_be("sslmode", "disable, allow, prefer, require, verify-ca or verify-full"));
            }
        };
        TlsMode::enabled(optional, trust).map_err(ParseDatabaseUrlError::Invalid)
    }

    /// Completes the configuration with the addresses, which must match in number. Returns it with
    /// the warnings, and with a configuration for each host alone.
    pub(super) fn into_config(self) -> Result<(Config, Vec<Config>, Vec<String>), ParseDatabaseUrlError> {
        let Self {
            mut config,
            hosts,
            addresses,
            ports,
            fallback_application_name,
            only_reads,
            mut warnings,
            ..
        } = self;
        if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
            return Err(must_be("hostaddr", "one address for each host"));
        }
        if ports.len() > 1 && ports.len() != hosts.len().max(addresses.len()) {
            return Err(must_be("port", "one port, or one for each host"));
        }
        if hosts.iter().any(String::is_empty) {
            return Err(must_be("host", "a list without empty elements"));
        }
        let is_any = config.get_target_session_attrs() == TargetSessionAttrs::Any;
        if hosts.len().max(addresses.len()) > 1 && is_any && !only_reads {
            warnings.push(
                "several hosts without target_session_attrs=read-write: nothing is stored while the first \
                 that answers is a standby"
                    .to_owned(),
            );
        }
        if config.get_application_name().is_none() {
            config.application_name(fallback_application_name.as_deref().unwrap_or(APPLICATION_NAME));
        }
        // Without a host, the address is its name, by which a connection over TCP is known.
        let hosts =
            if hosts.is_empty() { addresses.iter().map(ToString::to_string).collect() } else { hosts };
        let mut singles = vec![config.clone(); hosts.len()];
        for (nth, (host, single)) in hosts.iter().zip(&mut singles).enumerate() {
            for target in [&mut config, &mut *single] {
                target.host(host);
                if let Some(address) = addresses.get(nth) {
                    target.hostaddr(*address);
                }
            }
            if let Some(port) = ports.get(nth).or(ports.first()) {
                single.port(*port);
            }
        }
        for port in ports {
            config.port(port);
        }
        Ok((config, singles, warnings))
    }
}

/// The elements of a list, none for an empty text.
fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').filter(move |_| !value.is_empty())
}

/// The number of `value`. None for the default: empty, zero or, as in libpq, negative.
fn number(key: &str, value: &str, wanted: &str) -> Result<Option<u64>, ParseDatabaseUrlError> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = value.trim().parse::<i64>().map_err(|_invalid| must_be(key, wanted))?;
    Ok(u64::try_from(number).ok().filter(|number| *number > 0))
}

/// Returns `value` if it is one of `choices`; the first is the default.
fn one_of<'a>(key: &str, value: &'a str, choices: &[&'a str]) -> Result<&'a str, ParseDatabaseUrlError> {
    if value.is_empty() {
        return Ok(choices[0]);
    }
    if choices.contains(&value) { Ok(value) } else { Err(must_be(key, &choices.join(" or "))) }
}

/// The error of a parameter's value, which is not quoted.
fn must_be(key: &str, wanted: &str) -> ParseDatabaseUrlError {
    ParseDatabaseUrlError::Invalid(format!("{key} must be {wanted}"))
}
