//! The shape of a log line, the same for all: time, level, thread, message, then the context as key-value pairs.
//!
//! Callers write `log::warn!(batch = n, sqlstate = code; "what happened")`. Logs never hold tokens or event bodies.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use log::kv::{Key, Value, VisitSource};

use crate::clock::{Clock, Moment};
use crate::settings::LogFormat;

/// Starts the log on standard error. A panic anywhere becomes a line of it.
pub fn start(level: log::LevelFilter, format: LogFormat, clock: &Clock) {
    let wall = clock.clone();
    let started = env_logger::Builder::new()
        // What is let through is said by the level of the `log` crate, which may change.
        .filter_level(log::LevelFilter::Trace)
        // Theirs are about single statements and connections; ours say what it meant.
        .filter_module("tokio_postgres", log::LevelFilter::Warn)
        .filter_module("postgres", log::LevelFilter::Warn)
        .filter_module("refinery_core", log::LevelFilter::Warn)
        .filter_module("r2d2", log::LevelFilter::Off)
        .format(move |out, record| {
            let mut line = Line { format, text: String::with_capacity(200) };
            line.begin();
            line.pair("ts", &wall.wall().to_string());
            line.pair("level", &record.level().as_str().to_ascii_lowercase());
            line.pair("thread", std::thread::current().name().unwrap_or("-"));
            line.pair("msg", &record.args().to_string());
            // Our own visitor never fails.
            let visited = record.key_values().visit(&mut line);
            line.end();
            visited.map_err(std::io::Error::other)?;
            out.write_all(line.text.as_bytes())
        })
        .try_init();
    if let Err(error) = started {
        log::debug!("the log had been started before: {error}");
    }
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload_as_str().unwrap_or("(no message)");
        log::error!(at = place.as_str(); "a thread panicked: {said}");
    }));
}

/// Logs one level more, or one less, from here on; never less than errors.
pub fn shift(louder: bool) {
    let from = log::max_level();
    let to = shifted(from, louder);
    log::set_max_level(to);
    log::log!(
        to.to_level().unwrap_or(log::Level::Error),
        "the log level is now {}",
        to.as_str().to_ascii_lowercase()
    );
}

fn shifted(from: log::LevelFilter, louder: bool) -> log::LevelFilter {
    use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
    match (from, louder) {
        (Off, _) | (Error | Warn, false) => Error,
        (Error, true) | (Info, false) => Warn,
        (Warn, true) | (Debug, false) => Info,
        (Info, true) | (Trace, false) => Debug,
        (Debug | Trace, true) => Trace,
    }
}

/// One line in the making.
struct Line {
    format: LogFormat,
    text: String,
}

impl Line {
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

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), log::kv::Error> {
        self.pair(key.as_str(), &value.to_string());
        Ok(())
    }
}

/// A string in quotes, as both logfmt and JSON read it. Control characters cannot break out of the line.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => {
                write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes all that is written");
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Thins out a line that would repeat: lets one through per `every`, and tells how many it held back.
#[derive(Debug)]
pub struct Thinned {
    every: Duration,
    /// Nanoseconds of the moment of the last line, plus one; zero before the first.
    last: AtomicU64,
    held_back: AtomicU64,
}

impl Thinned {
    pub const fn new(every: Duration) -> Self {
        Self { every, last: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// Whether to log now; if so, how many were held back since the last.
    pub fn due(&self, now: Moment) -> Option<u64> {
        let last = self.last.load(Ordering::Acquire);
        let early = last != 0 && now.since(Moment::from_nanos(last - 1)) < self.every;
        let ours =
            || self.last.compare_exchange(last, now.nanos() + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !early && ours() {
            Some(self.held_back.swap(0, Ordering::AcqRel))
        } else {
            self.held_back.fetch_add(1, Ordering::AcqRel);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat, pairs: &[(&str, &str)]) -> String {
        let mut line = Line { format, text: String::new() };
        line.begin();
        for (key, value) in pairs {
            line.pair(key, value);
        }
        line.end();
        line.text
    }

    #[test]
    fn values_are_quoted_when_they_must_be_and_cannot_break_the_line() {
        let pairs = [("level", "warn"), ("msg", "a \"b\"\nc"), ("empty", ""), ("x", "\u{7f}\\")];
        assert_eq!(
            line(LogFormat::Logfmt, &pairs),
            "level=warn msg=\"a \\\"b\\\"\\nc\" empty=\"\" x=\"\\u007f\\\\\"\n"
        );
        assert_eq!(
            line(LogFormat::Json, &pairs),
            "{\"level\":\"warn\",\"msg\":\"a \\\"b\\\"\\nc\",\"empty\":\"\",\"x\":\"\\u007f\\\\\"}\n"
        );
    }

    #[test]
    fn the_level_goes_up_and_down_a_step_at_a_time_and_stays_within_its_ends() {
        use log::LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
        for pair in [Error, Warn, Info, Debug, Trace].windows(2) {
            assert_eq!((shifted(pair[0], true), shifted(pair[1], false)), (pair[1], pair[0]));
        }
        assert_eq!((shifted(Trace, true), shifted(Error, false), shifted(Off, true)), (Trace, Error, Error));
    }

    #[test]
    fn repeats_are_held_back_and_counted() {
        let thinned = Thinned::new(Duration::from_secs(1));
        let at = |ms| Moment::ZERO.plus(Duration::from_millis(ms));
        assert_eq!(thinned.due(at(0)), Some(0));
        assert_eq!(thinned.due(at(1)), None);
        assert_eq!(thinned.due(at(999)), None);
        assert_eq!(thinned.due(at(1000)), Some(2));
        assert_eq!(thinned.due(at(5000)), Some(0));
    }
}
