//! Settings of the HTTP edge: limits on clients beyond the basic ones, and the TLS files.

use std::path::PathBuf;
use std::time::Duration;

use super::{Setting, SettingsReader, setting};

/// Limits on memory and time per client, and the TLS files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EdgeSettings {
    pub header_bytes_max: usize,
    pub headers_max: usize,
    /// 0: only `MAX_CONNECTIONS` applies.
    pub connections_per_address_max: u32,
    /// 0: no minimum.
    pub body_rate_min: u32,
    pub body_rate_grace: Duration,
    pub pipelined_max: u32,
    pub response_buffer_bytes_max: usize,
    pub connection_memory_bytes_max: usize,
    pub response_timeout: Duration,
    pub linger_timeout: Duration,
    pub linger_bytes_max: usize,
    pub tls: Option<TlsFiles>,
}

/// Certificate and key files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub(super) const SETTINGS: &[Setting] = &[
    setting("MAX_HEADER_BYTES", "32768", "Maximum bytes of a request line and its headers [1024 to 262144]"),
    setting("MAX_HEADERS", "100", "Maximum header fields of a request [8 to 256]"),
    setting(
        "MAX_CONNECTIONS_PER_ADDRESS",
        "0",
        "Maximum connections of a client address (IPv6: a /64); 0 is no limit per address [0 to 1000000]",
    ),
    setting(
        "MIN_BODY_RATE",
        "1024",
        "Minimum bytes per second of a request body; 0 is no minimum [0 to 1000000000]",
    ),
    setting(
        "MIN_BODY_RATE_GRACE_MS",
        "5000",
        "Milliseconds a body may stay below MIN_BODY_RATE [0 to 3600000]",
    ),
    setting(
        "MAX_PIPELINED",
        "32",
        "Maximum pipelined requests of a connection handled before other connections [1 to 10000]",
    ),
    setting(
        "MAX_RESPONSE_BUFFER_BYTES",
        "262144",
        "Unsent response bytes above which a connection's next request is not read [1024 to 1073741824]",
    ),
    setting(
        "MAX_CONNECTION_MEMORY_BYTES",
        "268435456",
        "Maximum bytes of incomplete requests and unsent responses, over all connections [1048576 to 34359738367]",
    ),
    setting(
        "RESPONSE_TIMEOUT_MS",
        "60000",
        "Milliseconds a request may wait for the response of another thread [1 to 3600000]",
    ),
    setting(
        "LINGER_TIMEOUT_MS",
        "2000",
        "Milliseconds a rejected client has to read the response before the connection is closed [1 to 60000]",
    ),
    setting(
        "MAX_LINGER_BYTES",
        "16777216",
        "Maximum bytes read and discarded during LINGER_TIMEOUT_MS [0 to 1073741824]",
    ),
    Setting {
        name: "TLS_CERT",
        default: None,
        help: "Certificate chain (PEM file), reloaded on SIGHUP; if set, all connections use TLS",
    },
    Setting {
        name: "TLS_KEY",
        default: None,
        help: "Private key of TLS_CERT (PEM file), reloaded on SIGHUP",
    },
];

impl EdgeSettings {
    pub(super) fn read(from: &mut SettingsReader<'_>) -> Self {
        const HOUR_MS: u64 = 3_600_000;
        Self {
            header_bytes_max: from.number("MAX_HEADER_BYTES", 1024..=1 << 18),
            headers_max: from.number("MAX_HEADERS", 8..=256),
            connections_per_address_max: from.number("MAX_CONNECTIONS_PER_ADDRESS", 0..=1_000_000),
            body_rate_min: from.number("MIN_BODY_RATE", 0..=1_000_000_000),
            body_rate_grace: from.millis("MIN_BODY_RATE_GRACE_MS", 0..=HOUR_MS),
            pipelined_max: from.number("MAX_PIPELINED", 1..=10_000),
            response_buffer_bytes_max: from.number("MAX_RESPONSE_BUFFER_BYTES", 1024..=1 << 30),
            connection_memory_bytes_max: from.number("MAX_CONNECTION_MEMORY_BYTES", 1 << 20..=(1 << 35) - 1),
            response_timeout: from.millis("RESPONSE_TIMEOUT_MS", 1..=HOUR_MS),
            linger_timeout: from.millis("LINGER_TIMEOUT_MS", 1..=60_000),
            linger_bytes_max: from.number("MAX_LINGER_BYTES", 0..=1 << 30),
            tls: tls(from),
        }
    }
}

fn tls(from: &mut SettingsReader<'_>) -> Option<TlsFiles> {
    let (certificate, key) = (from.text("TLS_CERT"), from.text("TLS_KEY"));
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => None,
        (false, false) => Some(TlsFiles { certificate: certificate.into(), key: key.into() }),
        (true, false) => {
            from.errors.push("TLS_KEY is set and TLS_CERT is not: set both or neither".into());
            None
        }
        (false, true) => {
            from.errors.push("TLS_CERT is set and TLS_KEY is not: set both or neither".into());
            None
        }
    }
}
