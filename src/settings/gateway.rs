//! Settings of the metrics gateway: limits, TTLs, and the Pushgateway to forward to.

use std::time::Duration;

use super::{Setting, SettingsReader, setting};
use crate::gateway::Ttl;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    pub series_max: usize,
    pub bytes_max: usize,
    pub lifetimes: Ttl,
    /// Without a trailing slash. None: pushes are not forwarded.
    pub pushgateway_url: Option<String>,
}

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "PUSHED_SERIES_MAX",
        "100000",
        "Maximum pushed series; each histogram bucket is a series [1 to 100000000]",
    ),
    setting(
        "PUSHED_MAX_BYTES",
        "268435456",
        "Approximate maximum memory of pushed series in bytes [65536 to 34359738368]",
    ),
    setting(
        "PUSHED_TTL",
        "1h",
        "Time to live of a series of /metrics/push after its last push: milliseconds, or with s, m, h or d; \
         0 is forever [0 to 3650d]",
    ),
    setting(
        "PUSHED_GROUP_TTL",
        "0",
        "Time to live of groups of the Pushgateway protocol; 0 is forever, as in Pushgateway [0 to 3650d]",
    ),
    Setting {
        name: "PUSHGATEWAY_URL",
        default: None,
        help: "Pushgateway to which every push is also forwarded, such as http://pushgateway:9091. \
               Unset: pushes are not forwarded",
    },
];

impl GatewaySettings {
    pub(super) fn read(from: &mut SettingsReader<'_>) -> Self {
        Self {
            series_max: from.number("PUSHED_SERIES_MAX", 1..=100_000_000),
            bytes_max: from.number("PUSHED_MAX_BYTES", 1 << 16..=1 << 35),
            lifetimes: Ttl { aggregated: ttl(from, "PUSHED_TTL"), groups: ttl(from, "PUSHED_GROUP_TTL") },
            pushgateway_url: pushgateway_url(from),
        }
    }
}

fn ttl(from: &mut SettingsReader<'_>, name: &str) -> Option<Duration> {
    let text = from.text(name);
    match parse_duration(&text) {
        Some(found) if found.is_zero() => None,
        Some(found) => Some(found),
        None => {
            from.push_error(name, &text, "milliseconds, or a number with ms, s, m, h or d, up to 3650d");
            None
        }
    }
}

/// Parses `90000`, `90s`, `1h`; without a unit, milliseconds.
fn parse_duration(text: &str) -> Option<Duration> {
    const DAY_MS: u64 = 86_400_000;
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => DAY_MS,
        _ => return None,
    };
    let millis = number.parse::<u64>().ok()?.checked_mul(factor).filter(|millis| *millis <= 3650 * DAY_MS)?;
    Some(Duration::from_millis(millis))
}

/// Returns `text` without trailing slashes if it is an HTTP base URL.
pub fn http_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    let good = !rest.is_empty() && !rest.starts_with('/') && !text.contains(['?', '#', ' ']);
    good.then(|| text.trim_end_matches('/').to_owned())
}

fn pushgateway_url(from: &mut SettingsReader<'_>) -> Option<String> {
    let text = from.text("PUSHGATEWAY_URL");
    if text.is_empty() {
        return None;
    }
    let url = http_url(&text);
    if url.is_none() {
        let shown = super::redact_password(&text);
        from.push_error("PUSHGATEWAY_URL", &shown, "a URL such as http://pushgateway:9091");
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_duration_defaults_to_milliseconds() {
        for (text, millis) in [
            ("0", 0),
            ("1500", 1500),
            ("15ms", 15),
            ("2s", 2000),
            ("3m", 180_000),
            ("1h", 3_600_000),
            ("3650d", 315_360_000_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "h", "1 h", "-1", "1.5h", "3651d", "99999999999999999999h", "1w"] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn http_url_accepts_http_and_strips_trailing_slashes() {
        assert_eq!(http_url("http://a:9091/").as_deref(), Some("http://a:9091"));
        assert_eq!(http_url("https://a/base//").as_deref(), Some("https://a/base"));
        for bad in ["", "a:9091", "ftp://a", "http://", "http:///x", "http://a?b", "http://a b"] {
            assert_eq!(http_url(bad), None, "{bad}");
        }
    }
}
