//! The metrics gateway: bounds, lifetimes, and the Pushgateway that is forwarded to.

use std::time::Duration;

use super::{Reader, Setting, setting};
use crate::gateway::Lifetimes;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    pub series_max: usize,
    pub bytes_max: usize,
    pub lifetimes: Lifetimes,
    /// Of a Pushgateway, without a slash at its end. None: nothing is forwarded.
    pub pushgateway_url: Option<String>,
}

pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "PUSHED_SERIES_MAX",
        "100000",
        "Series that may be pushed, each bucket of a histogram being one [1 to 100000000]",
    ),
    setting(
        "PUSHED_MAX_BYTES",
        "268435456",
        "Bytes that what was pushed may take in memory, about [65536 to 34359738368]",
    ),
    setting(
        "PUSHED_TTL",
        "1h",
        "How long a series of /metrics/push is shown after its last push: milliseconds, or with s, m, h or d; \
         0 is for ever [0 to 3650d]",
    ),
    setting(
        "PUSHED_GROUP_TTL",
        "0",
        "The same for groups of Pushgateway's protocol; 0 is for ever, as Pushgateway has it [0 to 3650d]",
    ),
    Setting {
        name: "PUSHGATEWAY_URL",
        default: None,
        help: "Pushgateway that every push is forwarded to as well, such as http://pushgateway:9091. \
               Unset: nothing is forwarded",
    },
];

impl Gateway {
    pub(super) fn read(from: &mut Reader<'_>) -> Self {
        Self {
            series_max: from.number("PUSHED_SERIES_MAX", 1..=100_000_000),
            bytes_max: from.number("PUSHED_MAX_BYTES", 1 << 16..=1 << 35),
            lifetimes: Lifetimes {
                summed: lifetime(from, "PUSHED_TTL"),
                groups: lifetime(from, "PUSHED_GROUP_TTL"),
            },
            pushgateway_url: url(from),
        }
    }
}

fn lifetime(from: &mut Reader<'_>, name: &str) -> Option<Duration> {
    let text = from.text(name);
    match duration(&text) {
        Some(found) if found.is_zero() => None,
        Some(found) => Some(found),
        None => {
            from.mistake(name, &text, "milliseconds, or a number with ms, s, m, h or d, up to 3650d");
            None
        }
    }
}

/// `90000`, `90s`, `1h`: milliseconds unless a unit stands behind it.
fn duration(text: &str) -> Option<Duration> {
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

/// Whether it is an address that requests can be sent to; the slash at its end is taken off.
pub fn http_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"))?;
    let good = !rest.is_empty() && !rest.starts_with('/') && !text.contains(['?', '#', ' ']);
    good.then(|| text.trim_end_matches('/').to_owned())
}

fn url(from: &mut Reader<'_>) -> Option<String> {
    let text = from.text("PUSHGATEWAY_URL");
    if text.is_empty() {
        return None;
    }
    let url = http_url(&text);
    if url.is_none() {
        let shown = super::without_password(&text);
        from.mistake("PUSHGATEWAY_URL", &shown, "a URL such as http://pushgateway:9091");
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_milliseconds_unless_it_has_a_unit() {
        for (text, millis) in [
            ("0", 0),
            ("1500", 1500),
            ("15ms", 15),
            ("2s", 2000),
            ("3m", 180_000),
            ("1h", 3_600_000),
            ("3650d", 315_360_000_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "h", "1 h", "-1", "1.5h", "3651d", "99999999999999999999h", "1w"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_url_is_of_http_and_loses_its_slash() {
        assert_eq!(http_url("http://a:9091/").as_deref(), Some("http://a:9091"));
        assert_eq!(http_url("https://a/base//").as_deref(), Some("https://a/base"));
        for bad in ["", "a:9091", "ftp://a", "http://", "http:///x", "http://a?b", "http://a b"] {
            assert_eq!(http_url(bad), None, "{bad}");
        }
    }
}
