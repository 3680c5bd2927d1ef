//! Settings of the metrics gateway: limits, TTLs, and the Pushgateway to forward to.

use std::time::Duration;

use super::reader::{Setting, SettingsReader};
use crate::gateway::Ttl;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    pub series_max: usize,
    pub bytes_max: usize,
    pub lifetimes: Ttl,
    /// Without a trailing slash. None: pushes are not forwarded.
    pub pushgateway_url: Option<String>,
}

/// The longest TTL.
const TTL_DAYS_MAX: u64 = 3650;

const DAY_MS: u64 = 86_400_000;

impl GatewaySettings {
    pub(super) fn read(from: &mut SettingsReader<'_>) -> Self {
        Self {
            series_max: from.number(
                "PUSHED_SERIES_MAX",
                100_000,
                1..=100_000_000,
                "Maximum pushed series; each histogram bucket is a series",
            ),
            bytes_max: from.number(
                "PUSHED_MAX_BYTES",
                256 << 20,
                1 << 16..=1 << 35,
                "Approximate maximum memory of pushed series in bytes",
            ),
            lifetimes: Ttl {
                aggregated: ttl(
                    from,
                    "PUSHED_TTL",
                    "1h",
                    "Time to live of a series of /metrics/push after its last push: milliseconds, or with \
                     s, m, h or d; 0 is forever",
                ),
                groups: ttl(
                    from,
                    "PUSHED_GROUP_TTL",
                    "0",
                    "Time to live of groups of the Pushgateway protocol; 0 is forever, as in Pushgateway",
                ),
            },
            pushgateway_url: from.read(
                Setting::optional(
                    "PUSHGATEWAY_URL",
                    "Pushgateway to which every push is also forwarded, such as http://pushgateway:9091. \
                     Unset: pushes are not forwarded",
                )
                .secret(),
                |text| match text {
                    "" => Ok(None),
                    url => http_url(url).map(Some).ok_or("a URL such as http://pushgateway:9091".into()),
                },
            ),
        }
    }
}

fn ttl(
    from: &mut SettingsReader<'_>,
    name: &'static str,
    default: &str,
    help: &'static str,
) -> Option<Duration> {
    let setting = Setting::new(name, default, help).bounds(format!("0 to {TTL_DAYS_MAX}d"));
    let ttl = from.read(setting, |text| {
        parse_duration(text)
            .ok_or_else(|| format!("milliseconds, or a number with ms, s, m, h or d, up to {TTL_DAYS_MAX}d"))
    });
    Some(ttl).filter(|ttl| !ttl.is_zero())
}

/// Parses `90000`, `90s`, `1h`; without a unit, milliseconds.
fn parse_duration(text: &str) -> Option<Duration> {
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
    let millis = number.parse::<u64>().ok()?.checked_mul(factor)?;
    (millis <= TTL_DAYS_MAX * DAY_MS).then(|| Duration::from_millis(millis))
}

/// Returns `text` without trailing slashes if it is an HTTP base URL.
pub fn http_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    let good = !rest.is_empty() && !rest.starts_with('/') && !text.contains(['?', '#', ' ']);
    good.then(|| text.trim_end_matches('/').to_owned())
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
