//! `aurore-events healthcheck`: asks the server of these settings whether it lives, or is ready.
//!
//! It must not read the database or the data directory: it runs beside the server, every few
//! seconds.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use ureq::tls::TlsConfig;

use crate::logging::is_display_control;

/// Shorter than the timeouts that container runtimes commonly give a check.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The reasons of a server that is not ready take less.
const RESPONSE_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthcheckCommand {
    /// Ask for `/ready` instead of `/live`.
    ready: bool,
}

/// Why the server is not healthy.
#[derive(Debug, thiserror::Error)]
pub enum HealthcheckError {
    #[error("PORT is 0: the server listens on a port that the settings do not tell")]
    PortUnknown,
    #[error("{url}: {reason}")]
    Unreachable { url: String, reason: String },
    #[error("{url}: status {status}: {body}")]
    Unhealthy { url: String, status: u16, body: String },
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

/// The subcommand.
pub fn command() -> Command {
    Command::new("healthcheck")
        .about("Ask the server at HOST and PORT whether it lives; exit code 1 if not, or if no answer came in 2 s")
        .arg(
            Arg::new("HEALTHCHECK_READY")
                .long("ready")
                .action(ArgAction::SetTrue)
                .help("Ask whether the server accepts events (GET /ready instead of GET /live)"),
        )
}

impl HealthcheckCommand {
    pub fn of(matches: &ArgMatches) -> Self {
        Self { ready: matches.get_flag("HEALTHCHECK_READY") }
    }

    /// Asks the server that listens on `address`, and prints its answer.
    pub fn run(self, address: SocketAddr, tls: bool, out: &mut impl Write) -> Result<(), HealthcheckError> {
        let url = self.url(address, tls)?;
        let unreachable = |error: ureq::Error| HealthcheckError::Unreachable {
            url: url.clone(),
            reason: error.to_string(),
        };
        let mut response = client().get(&url).call().map_err(unreachable)?;
        let body = response.body_mut().with_config().limit(RESPONSE_BYTES_MAX).read_to_vec();
        let body = String::from_utf8_lossy(&body.map_err(unreachable)?).replace(is_display_control, " ");
        if response.status() != 200 {
            return Err(HealthcheckError::Unhealthy { url, status: response.status().as_u16(), body });
        }
        Ok(writeln!(out, "{body}")?)
    }

    fn url(self, address: SocketAddr, tls: bool) -> Result<String, HealthcheckError> {
        if address.port() == 0 {
            return Err(HealthcheckError::PortUnknown);
        }
        // A server that listens on all addresses listens on loopback.
        let host = match address.ip().to_canonical() {
            IpAddr::V4(host) if host.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(host) if host.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            host @ (IpAddr::V4(_) | IpAddr::V6(_)) => host,
        };
        let scheme = if tls { "https" } else { "http" };
        let path = if self.ready { "ready" } else { "live" };
        Ok(format!("{scheme}://{}/{path}", SocketAddr::new(host, address.port())))
    }
}

/// A client without a proxy, since the server is on this machine. It verifies no certificate: the
/// server's is for the name that its clients use, and the request contains no secret.
fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .tls_config(TlsConfig::builder().disable_verification(true).build())
        .build()
        .new_agent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_that_of_the_listening_server_on_this_machine() {
        for (address, tls, ready, url) in [
            ("127.0.0.1:3000", false, false, "http://127.0.0.1:3000/live"),
            ("0.0.0.0:3000", false, true, "http://127.0.0.1:3000/ready"),
            ("[::]:1", true, false, "https://[::1]:1/live"),
            ("[::ffff:0.0.0.0]:1", false, false, "http://127.0.0.1:1/live"),
            ("10.0.0.7:443", true, true, "https://10.0.0.7:443/ready"),
            ("[2001:db8::1]:443", true, true, "https://[2001:db8::1]:443/ready"),
        ] {
            let built = HealthcheckCommand { ready }.url(address.parse().unwrap(), tls);
            assert_eq!(built.unwrap(), url);
        }
        let unknown = HealthcheckCommand { ready: false }.url("127.0.0.1:0".parse().unwrap(), false);
        assert!(matches!(unknown, Err(HealthcheckError::PortUnknown)));
    }
}
