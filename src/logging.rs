//! Formats log lines: time, level, thread, message, then key-value pairs.
//!
//! Callers write `log::warn!(batch = n, sqlstate = code; "what happened")`. Callers must not log
//! tokens or event bodies. The module must not depend on the settings.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::kv::{Key, Value, VisitSource};

use crate::clock::{Clock, Moment};

/// Encoding of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Logfmt,
    Json,
}

/// Whether standard error is the stream of the systemd journal that `stream`, the value of
/// `JOURNAL_STREAM`, names as `DEVICE:INODE`.
pub fn is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else { return false };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else { return false };
    rustix::fs::fstat(std::io::stderr()).is_ok_and(|stderr| stderr.st_dev == device && stderr.st_ino == inode)
}

/// The prefix of a line that the journal takes as the priority, see sd-daemon(3).
fn priority(level: log::Level) -> &'static str {
    match level {
        log::Level::Error => "<3>",
        log::Level::Warn => "<4>",
        log::Level::Info => "<6>",
        log::Level::Debug | log::Level::Trace => "<7>",
    }
}

/// Initializes the logger on standard error, and a panic hook that logs panics. With `to_journal` a
/// line begins with its priority.
pub fn init(level: log::LevelFilter, format: LogFormat, to_journal: bool, clock: &Clock) {
    let wall = clock.clone();
    let started = env_logger::Builder::new()
        // The level is filtered by `log::max_level`, which may change at run time.
        .filter_level(log::LevelFilter::Trace)
        // These crates log single statements and connections; the server logs their effect.
        .filter_module("tokio_postgres", log::LevelFilter::Warn)
        .filter_module("postgres", log::LevelFilter::Warn)
        .filter_module("refinery_core", log::LevelFilter::Warn)
        .filter_module("r2d2", log::LevelFilter::Off)
        .format(move |out, record| {
            let mut line = LogLine { format, text: String::with_capacity(200) };
            line.begin();
            line.pair("ts", &wall.wall().to_string());
            line.pair("level", &record.level().as_str().to_ascii_lowercase());
            line.pair("thread", std::thread::current().name().unwrap_or("-"));
            line.pair("msg", &record.args().to_string());
            // `LogLine` never fails to visit a pair.
            let visited = record.key_values().visit(&mut line);
            line.end();
            visited.map_err(std::io::Error::other)?;
            if to_journal {
                line.text.insert_str(0, priority(record.level()));
            }
            out.write_all(line.text.as_bytes())
        })
        .try_init();
    if let Err(error) = started {
        log::debug!("the logger is initialized already: {error}");
    }
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("(no message)");
        log::error!(at = place.as_str(); "a thread panicked: {message}");
    }));
}

/// Raises or lowers the log level by one step; never below error.
pub fn adjust_level(more_verbose: bool) {
    let from = log::max_level();
    let to = adjusted_level(from, more_verbose);
    log::set_max_level(to);
    log::log!(
        to.to_level().unwrap_or(log::Level::Error),
        "the log level is now {}",
        to.as_str().to_ascii_lowercase()
    );
}

fn adjusted_level(from: log::LevelFilter, more_verbose: bool) -> log::LevelFilter {
    use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
    match (from, more_verbose) {
        (Off, _) | (Error | Warn, false) => Error,
        (Error, true) | (Info, false) => Warn,
        (Warn, true) | (Debug, false) => Info,
        (Info, true) | (Trace, false) => Debug,
        (Debug | Trace, true) => Trace,
    }
}

/// A log line being built.
struct LogLine {
    format: LogFormat,
    text: String,
}

impl LogLine {
    fn begin(&mut self) {
        if self.format == LogFormat::Json {
            self.text.push('{');
        }
    }

    fn end(&mut self) {
        self.text.push_str(if self.format == LogFormat::Json { "}\n" } else { "\n" });
    }

    fn pair(&mut self, key: &str, value: &str) {
        match self.format {
            LogFormat::Logfmt => {
                if !self.text.is_empty() {
                    self.text.push(' ');
                }
                self.text.push_str(key);
                self.text.push('=');
                let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
                if !value.is_empty() && value.bytes().all(plain) {
                    self.text.push_str(value);
                } else {
                    quote(&mut self.text, value);
                }
            }
            LogFormat::Json => {
                if self.text.len() > 1 {
                    self.text.push(',');
                }
                quote(&mut self.text, key);
                self.text.push(':');
                quote(&mut self.text, value);
            }
        }
    }
}

impl<'kvs> VisitSource<'kvs> for LogLine {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        self.pair(key.as_str(), &value.to_string());
        Ok(())
    }
}

/// Whether a character changes how a terminal shows the text around it: a control character, or one
/// of Unicode's bidirectional controls, line and paragraph separators.
pub(crate) fn is_display_control(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Writes a quoted string that is valid in both logfmt and JSON. Characters of
/// [`is_display_control`] are escaped, so that a value can neither start a new line nor reorder the
/// text of its line.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if is_display_control(c) => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("a write to a String does not fail");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Rate limiter of a repeated log line: admits one line per `every` and counts the suppressed ones.
#[derive(Debug)]
pub struct RateLimitedLog {
    every: Duration,
    /// Nanoseconds of the last line's moment plus one; zero before the first line.
    last: AtomicU64,
    suppressed: AtomicU64,
}

impl RateLimitedLog {
    pub const fn new(every: Duration) -> Self {
        Self { every, last: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// If a line may be logged now, returns the number suppressed since the last line.
    pub fn due(&self, now: Moment) -> Option<u64> {
        let last = self.last.load(Ordering::Acquire);
        let early = last != 0 && now.since(Moment::from_nanos(last - 1)) < self.every;
        let won =
            || self.last.compare_exchange(last, now.nanos() + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !early && won() {
            Some(self.suppressed.swap(0, Ordering::AcqRel))
        } else {
            self.suppressed.fetch_add(1, Ordering::AcqRel);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat, pairs: &[(&str, &str)]) -> String {
        let mut line = LogLine { format, text: String::new() };
        line.begin();
        for (key, value) in pairs {
            line.pair(key, value);
        }
        line.end();
        line.text
    }

    #[test]
    fn log_line_quotes_values_and_escapes_line_breaks() {
        let pairs =
            [("level", "warn"), ("msg", "a \"b\"\nc"), ("empty", ""), ("x", "\u{7f}\\"), ("y", "ä\u{202e}")];
        assert_eq!(
            line(LogFormat::Logfmt, &pairs),
            "level=warn msg=\"a \\\"b\\\"\\nc\" empty=\"\" x=\"\\u007f\\\\\" y=\"ä\\u202e\"\n"
        );
        assert_eq!(
            line(LogFormat::Json, &pairs),
            "{\"level\":\"warn\",\"msg\":\"a \\\"b\\\"\\nc\",\"empty\":\"\",\"x\":\"\\u007f\\\\\",\"y\":\"ä\\u202e\"}\n"
        );
    }

    #[test]
    fn adjusted_level_moves_one_step_and_stays_in_range() {
        use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
        for pair in [Error, Warn, Info, Debug, Trace].windows(2) {
            assert_eq!((adjusted_level(pair[0], true), adjusted_level(pair[1], false)), (pair[1], pair[0]));
        }
        assert_eq!(
            (adjusted_level(Trace, true), adjusted_level(Error, false), adjusted_level(Off, true)),
            (Trace, Error, Error)
        );
    }

    #[test]
    fn rate_limited_log_counts_suppressed_lines() {
        let limited = RateLimitedLog::new(Duration::from_secs(1));
        let at = |ms| Moment::ZERO.plus(Duration::from_millis(ms));
        assert_eq!(limited.due(at(0)), Some(0));
        assert_eq!(limited.due(at(1)), None);
        assert_eq!(limited.due(at(999)), None);
        assert_eq!(limited.due(at(1000)), Some(2));
        assert_eq!(limited.due(at(5000)), Some(0));
    }
}
