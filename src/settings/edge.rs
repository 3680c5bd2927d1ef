//! Settings of the HTTP edge: limits on clients beyond the basic ones, and the TLS files.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::{HOUR_MS, Setting, SettingsReader};

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
    /// 0: no minimum.
    pub response_rate_min: u32,
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

impl EdgeSettings {
    pub(super) fn read(from: &mut SettingsReader<'_>) -> Self {
        Self {
            header_bytes_max: from.section("Limits on clients").number(
                "MAX_HEADER_BYTES",
                32 << 10,
                1024..=1 << 18,
                "Maximum bytes of a request line and its headers",
            ),
            headers_max: from.number("MAX_HEADERS", 100, 8..=256, "Maximum header fields of a request"),
            connections_per_address_max: from.number(
                "MAX_CONNECTIONS_PER_ADDRESS",
                0,
                0..=1_000_000,
                "Maximum connections of a client address (IPv6: a /64); 0 is no limit per address",
            ),
            body_rate_min: from.number(
                "MIN_BODY_RATE",
                1024,
                0..=1_000_000_000,
                "Minimum bytes per second of a request body; 0 is no minimum",
            ),
            body_rate_grace: from.millis(
                "MIN_BODY_RATE_GRACE_MS",
                5000,
                0..=HOUR_MS,
                "Milliseconds a body may stay below MIN_BODY_RATE",
            ),
            response_rate_min: from.number(
                "MIN_RESPONSE_RATE",
                1024,
                0..=1_000_000_000,
                "Minimum bytes per second at which a client must read a response, after WRITE_TIMEOUT_MS; \
                 0 is no minimum",
            ),
            pipelined_max: from.number(
                "MAX_PIPELINED",
                32,
                1..=10_000,
                "Maximum pipelined requests of a connection handled before other connections",
            ),
            response_buffer_bytes_max: from.number(
                "MAX_RESPONSE_BUFFER_BYTES",
                256 << 10,
                1024..=1 << 30,
                "Unsent response bytes above which a connection's next request is not read",
            ),
            connection_memory_bytes_max: from.number(
                "MAX_CONNECTION_MEMORY_BYTES",
                256 << 20,
                1 << 20..=(1 << 35) - 1,
                "Maximum bytes of incomplete requests and TLS messages, and of unsent responses, over all \
                 connections",
            ),
            response_timeout: from.millis(
                "RESPONSE_TIMEOUT_MS",
                60_000,
                1..=HOUR_MS,
                "Milliseconds a request may wait for the response of another thread",
            ),
            linger_timeout: from.millis(
                "LINGER_TIMEOUT_MS",
                2000,
                1..=60_000,
                "Milliseconds a rejected client has to read the response before the connection is \
                 closed",
            ),
            linger_bytes_max: from.number(
                "MAX_LINGER_BYTES",
                16 << 20,
                0..=1 << 30,
                "Maximum bytes read and discarded during LINGER_TIMEOUT_MS",
            ),
            tls: tls(from),
        }
    }
}

fn tls(from: &mut SettingsReader<'_>) -> Option<TlsFiles> {
    let certificate = from.section("Access").optional(Setting::optional(
        "TLS_CERT",
        "Certificate chain (PEM file), reloaded on SIGHUP; if set, all connections use TLS",
    ));
    let key =
        from.optional(Setting::optional("TLS_KEY", "Private key of TLS_CERT (PEM file), reloaded on SIGHUP"));
    match (certificate, key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some(TlsFiles { certificate: certificate.into(), key: key.into() }),
        (None, Some(_)) => {
            from.errors.push("TLS_KEY is set and TLS_CERT is not: set both or neither".into());
            None
        }
        (Some(_), None) => {
            from.errors.push("TLS_CERT is set and TLS_KEY is not: set both or neither".into());
            None
        }
    }
}
