//! Reads server-sent events (WHATWG HTML, 9.2) from a response body. Lines end with a line feed, with
//! or without a carriage return before it; the server ends none with a carriage return alone.
//!
//! It must not depend on connections.

use std::io::{self, BufRead, Read};

use crate::event::EVENT_BYTES_MAX;

/// Maximum bytes of a line. JSON takes up to six bytes for one of an event.
const LINE_BYTES_MAX: u64 = 8 * EVENT_BYTES_MAX as u64;
/// Maximum lines of one event. The server sends three.
const LINES_MAX: u32 = 1000;

/// One event of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StreamEvent {
    /// The last id that the stream has stated; ids hold until the next one.
    pub(super) id: String,
    /// The type; empty for the default, `message`.
    pub(super) kind: String,
    pub(super) data: String,
}

/// A stream of events.
#[derive(Debug)]
pub(super) struct EventStream<R> {
    input: R,
    line: Vec<u8>,
    last_id: String,
}

impl<R: BufRead> EventStream<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), last_id: String::new() }
    }

    /// The next event; none at the end of the stream. An event that the end cuts off is dropped.
    pub(super) fn next_event(&mut self) -> io::Result<Option<StreamEvent>> {
        let mut event = StreamEvent::default();
        let (mut lines, mut has_data) = (0, false);
        while self.read_line()? {
            if self.line.is_empty() {
                lines = 0;
                if has_data {
                    event.id.clone_from(&self.last_id);
                    return Ok(Some(event));
                }
                event.kind.clear();
                continue;
            }
            lines += 1;
            if lines > LINES_MAX {
                return Err(invalid(format!("an event has more than {LINES_MAX} lines")));
            }
            let line = String::from_utf8_lossy(&self.line);
            let (field, value) = line.split_once(':').unwrap_or((&*line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => {
                    if has_data {
                        event.data.push('\n');
                    }
                    has_data = true;
                    event.data.push_str(value);
                }
                "event" => value.clone_into(&mut event.kind),
                "id" if !value.contains('\0') => value.clone_into(&mut self.last_id),
                // Comments have an empty field name; others are unknown.
                _ => {}
            }
        }
        Ok(None)
    }

    /// Reads a line without its end. Returns false at the end of the stream.
    fn read_line(&mut self) -> io::Result<bool> {
        self.line.clear();
        let read = self.input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut self.line)?;
        if !self.line.ends_with(b"\n") {
            return if read as u64 > LINE_BYTES_MAX {
                Err(invalid(format!("a line takes more than {LINE_BYTES_MAX} bytes")))
            } else {
                Ok(false)
            };
        }
        self.line.pop();
        if self.line.ends_with(b"\r") {
            self.line.pop();
        }
        Ok(true)
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id, type and data of each event.
    #[track_caller]
    fn check(stream: &str, expected: &[(&str, &str, &str)]) {
        let mut events = EventStream::new(stream.as_bytes());
        let mut found = Vec::new();
        while let Some(StreamEvent { id, kind, data }) = events.next_event().unwrap() {
            found.push((id, kind, data));
        }
        let found: Vec<_> = found.iter().map(|(id, kind, data)| (&**id, &**kind, &**data)).collect();
        assert_eq!(found, expected, "{stream:?}");
    }

    #[test]
    fn fields_make_an_event_and_an_id_holds_for_the_next() {
        check("", &[]);
        check(": comment\n\n: heartbeat\n\n", &[]);
        check("id: 1\ndata: a\n\ndata: b\n\n", &[("1", "", "a"), ("1", "", "b")]);
        check("id: 1\nevent: skipped\ndata: {}\n\ndata:b\n\n", &[("1", "skipped", "{}"), ("1", "", "b")]);
        check("data: one\r\ndata:  two\r\n\r\n", &[("", "", "one\n two")]);
        check("data\n\nunknown: x\ndata: \n\n", &[("", "", ""), ("", "", "")]);
    }

    #[test]
    fn event_without_data_or_without_its_end_is_none() {
        check("event: x\n\ndata: a\n\n", &[("", "", "a")]);
        check("id: 2\n\ndata: a\n\n", &[("2", "", "a")]);
        check("data: a\n\ndata: cut off\n", &[("", "", "a")]);
        check("data: a\n\ndata: cut off", &[("", "", "a")]);
    }

    #[test]
    fn lines_are_bounded() {
        let longest = usize::try_from(LINE_BYTES_MAX).unwrap();
        let line = format!("data: {}\n\n", "x".repeat(longest - "data: \n".len()));
        assert!(EventStream::new(line.as_bytes()).next_event().unwrap().is_some());
        let line = format!("data: {}\n\n", "x".repeat(longest - "data: ".len() + 1));
        assert!(EventStream::new(line.as_bytes()).next_event().is_err());
        let (most, more) = (LINES_MAX as usize, LINES_MAX as usize + 1);
        assert!(EventStream::new(("data\n".repeat(most) + "\n").as_bytes()).next_event().unwrap().is_some());
        assert!(EventStream::new(("data\n".repeat(more) + "\n").as_bytes()).next_event().is_err());
    }
}
