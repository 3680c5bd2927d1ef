//! Formats the lines that a tail prints.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Deserialize;
use sonic_rs::LazyValue;

use crate::json::text;
use crate::logging::is_display_control;

/// SGR parameters of services that are told apart by colour: green, yellow, blue, magenta, cyan and
/// their bright variants; red looks like an error.
const SERVICE_COLOURS: [u8; 10] = [32, 33, 34, 35, 36, 92, 93, 94, 95, 96];
const DIM: u8 = 2;
const RED: u8 = 31;

/// How a line is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineFormat {
    /// As the server sends it.
    Json,
    /// For people.
    Text { colours: bool },
}

/// The members of an event that are printed.
#[derive(Debug, Deserialize)]
struct TailedEvent<'a> {
    timestamp: String,
    service: String,
    message: String,
    #[serde(borrow)]
    metadata: LazyValue<'a>,
}

impl LineFormat {
    pub(super) fn write_event(self, json: &str, out: &mut impl Write) -> io::Result<()> {
        let Self::Text { colours } = self else { return writeln!(out, "{json}") };
        let Ok(event) = sonic_rs::from_str::<TailedEvent<'_>>(json) else {
            // Of another version of the server.
            return writeln!(out, "{}", printable(json));
        };
        let mut line = String::with_capacity(json.len() + 32);
        push(&mut line, colours, DIM, &event.timestamp);
        line.push(' ');
        push(&mut line, colours, service_colour(&event.service), &event.service);
        line.push(' ');
        line.push_str(&printable(&event.message));
        let metadata = event.metadata.as_raw_str();
        if metadata != "null" {
            line.push(' ');
            push(&mut line, colours, DIM, metadata);
        }
        writeln!(out, "{line}")
    }

    pub(super) fn write_skipped(self, events: u64, out: &mut impl Write) -> io::Result<()> {
        let Self::Text { colours } = self else { return writeln!(out, "{{\"skipped\":{events}}}") };
        let mut line = String::new();
        push(&mut line, colours, RED, &format!("... skipped {events} events ..."));
        writeln!(out, "{line}")
    }

    pub(super) fn write_gap(self, reason: &str, out: &mut impl Write) -> io::Result<()> {
        let Self::Text { colours } = self else {
            let mut quoted = Vec::new();
            text::quote(&mut quoted, reason);
            return writeln!(out, "{{\"gap\":{}}}", String::from_utf8_lossy(&quoted));
        };
        let mut line = String::new();
        push(&mut line, colours, RED, &format!("... events may be missing: {reason} ..."));
        writeln!(out, "{line}")
    }
}

fn push(line: &mut String, colours: bool, colour: u8, text: &str) {
    let text = printable(text);
    let pushed = if colours { write!(line, "\x1b[{colour}m{text}\x1b[0m") } else { line.write_str(&text) };
    pushed.expect("a write to a String does not fail");
}

/// The same colour for a service in every run.
fn service_colour(service: &str) -> u8 {
    // FNV-1a.
    let hash = service
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    SERVICE_COLOURS[hash as usize % SERVICE_COLOURS.len()]
}

/// Escapes what would change how a terminal shows the text around it, also the line breaks.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_display_control(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(format: LineFormat, json: &str) -> String {
        let mut out = Vec::new();
        format.write_event(json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    const EVENT: &str = r#"{"event_id":"i","timestamp":"2026-01-01T00:00:00Z","service":"shop","message":"a\n\u001b[2Jb","metadata":{"k":"\n"},"ingested_at":"t"}"#;

    #[test]
    fn text_has_no_control_characters_of_an_event() {
        let plain = event(LineFormat::Text { colours: false }, EVENT);
        assert_eq!(plain, "2026-01-01T00:00:00Z shop a\\n\\u{1b}[2Jb {\"k\":\"\\n\"}\n");
        let coloured = event(LineFormat::Text { colours: true }, EVENT);
        let colour = service_colour("shop");
        let expected = format!(
            "\x1b[2m2026-01-01T00:00:00Z\x1b[0m \x1b[{colour}mshop\x1b[0m a\\n\\u{{1b}}[2Jb \x1b[2m{{\"k\":\"\\n\"}}\x1b[0m\n"
        );
        assert_eq!(coloured, expected);
        let without = EVENT.replace(r#"{"k":"\n"}"#, "null");
        assert!(event(LineFormat::Text { colours: false }, &without).ends_with("[2Jb\n"));
        assert_eq!(event(LineFormat::Text { colours: true }, "{\"a\u{202e}\":1}"), "{\"a\\u{202e}\":1}\n");
    }

    #[test]
    fn json_is_printed_as_it_came() {
        assert_eq!(event(LineFormat::Json, EVENT), format!("{EVENT}\n"));
        let mut out = Vec::new();
        LineFormat::Json.write_skipped(12, &mut out).unwrap();
        LineFormat::Text { colours: false }.write_skipped(12, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{\"skipped\":12}\n... skipped 12 events ...\n");
        let mut out = Vec::new();
        LineFormat::Json.write_gap("too-\"many\"", &mut out).unwrap();
        LineFormat::Text { colours: false }.write_gap("too-many", &mut out).unwrap();
        let gaps = "{\"gap\":\"too-\\\"many\\\"\"}\n... events may be missing: too-many ...\n";
        assert_eq!(String::from_utf8(out).unwrap(), gaps);
    }
}
