//! What the edge of the server grants its clients beyond the usual: sizes, rates, waits, and its certificate.

use std::path::PathBuf;
use std::time::Duration;

use super::{Reader, Setting, setting};

/// The bounds on what a client may make the server hold or wait for, and the files of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    pub header_bytes_max: usize,
    pub headers_max: usize,
    /// 0: no bound but that on all connections.
    pub connections_per_address_max: u32,
    /// 0: none.
    pub body_rate_min: u32,
    pub body_grace: Duration,
    pub pipelined_max: u32,
    pub output_bytes_max: usize,
    pub held_bytes_max: usize,
    pub answer_timeout: Duration,
    pub linger_timeout: Duration,
    pub linger_bytes_max: usize,
    pub tls: Option<Tls>,
}

/// The files that TLS is spoken with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub(super) const SETTINGS: &[Setting] = &[
    setting("MAX_HEADER_BYTES", "32768", "Bytes of a request line and its headers [1024 to 262144]"),
    setting("MAX_HEADERS", "100", "Header fields of a request [8 to 256]"),
    setting(
        "MAX_CONNECTIONS_PER_ADDRESS",
        "0",
        "Connections of one client address (IPv6: one /64), 0 for no bound of its own [0 to 1000000]",
    ),
    setting(
        "MIN_BODY_RATE",
        "1024",
        "Bytes per second that a body must bring, 0 for no such bound [0 to 1000000000]",
    ),
    setting("MIN_BODY_RATE_GRACE_MS", "5000", "Milliseconds a body may be behind MIN_BODY_RATE [0 to 3600000]"),
    setting(
        "MAX_PIPELINED",
        "32",
        "Requests of one connection that are answered before others have their turn [1 to 10000]",
    ),
    setting(
        "MAX_RESPONSE_BUFFER_BYTES",
        "262144",
        "Bytes of answers to one connection above which it has no further request taken up [1024 to 1073741824]",
    ),
    setting(
        "MAX_CONNECTION_MEMORY_BYTES",
        "268435456",
        "Bytes of unfinished requests and unread answers over all connections [1048576 to 34359738367]",
    ),
    setting(
        "RESPONSE_TIMEOUT_MS",
        "60000",
        "Milliseconds a request may wait for an answer that another thread works out [1 to 3600000]",
    ),
    setting(
        "LINGER_TIMEOUT_MS",
        "2000",
        "Milliseconds a refused client has to read the answer before the connection is closed [1 to 60000]",
    ),
    setting(
        "MAX_LINGER_BYTES",
        "16777216",
        "Bytes that are read and thrown away in that time [0 to 1073741824]",
    ),
    Setting {
        name: "TLS_CERT",
        default: None,
        help: "File of the certificate chain (PEM), read again on SIGHUP; with it all connections speak TLS",
    },
    Setting {
        name: "TLS_KEY",
        default: None,
        help: "File of the key of TLS_CERT (PEM), read again on SIGHUP",
    },
];

impl Edge {
    pub(super) fn read(from: &mut Reader<'_>) -> Self {
        const HOUR_MS: u64 = 3_600_000;
        Self {
            header_bytes_max: from.number("MAX_HEADER_BYTES", 1024..=1 << 18),
            headers_max: from.number("MAX_HEADERS", 8..=256),
            connections_per_address_max: from.number("MAX_CONNECTIONS_PER_ADDRESS", 0..=1_000_000),
            body_rate_min: from.number("MIN_BODY_RATE", 0..=1_000_000_000),
            body_grace: from.millis("MIN_BODY_RATE_GRACE_MS", 0..=HOUR_MS),
            pipelined_max: from.number("MAX_PIPELINED", 1..=10_000),
            output_bytes_max: from.number("MAX_RESPONSE_BUFFER_BYTES", 1024..=1 << 30),
            held_bytes_max: from.number("MAX_CONNECTION_MEMORY_BYTES", 1 << 20..=(1 << 35) - 1),
            answer_timeout: from.millis("RESPONSE_TIMEOUT_MS", 1..=HOUR_MS),
            linger_timeout: from.millis("LINGER_TIMEOUT_MS", 1..=60_000),
            linger_bytes_max: from.number("MAX_LINGER_BYTES", 0..=1 << 30),
            tls: tls(from),
        }
    }
}

fn tls(from: &mut Reader<'_>) -> Option<Tls> {
    let (certificate, key) = (from.text("TLS_CERT"), from.text("TLS_KEY"));
    match (certificate.is_empty(), key.is_empty()) {
        (true, true) => None,
        (false, false) => Some(Tls { certificate: certificate.into(), key: key.into() }),
        (true, false) => {
            from.mistakes.push("TLS_KEY is set and TLS_CERT is not: both or neither".into());
            None
        }
        (false, true) => {
            from.mistakes.push("TLS_CERT is set and TLS_KEY is not: both or neither".into());
            None
        }
    }
}
