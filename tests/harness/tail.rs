//! A client of `GET /events/tail`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::client::request;

/// Longer than the server takes for any event.
const READ_MAX: Duration = Duration::from_secs(15);

/// An open tail, and what has been read of it.
pub(crate) struct Tail {
    stream: TcpStream,
    text: Vec<u8>,
}

impl Tail {
    /// Opens a tail and reads until the server has begun its body, or has refused it.
    #[track_caller]
    pub(crate) fn open(address: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(address).expect("the server takes connections");
        stream.set_read_timeout(Some(READ_MAX)).expect("it is not zero");
        let path = format!("/events/tail{query}");
        stream.write_all(&request("GET", &path, headers, b"")).expect("the server reads");
        let mut tail = Self { stream, text: Vec::new() };
        tail.read_until("the head", |text| text.contains("\r\n\r\n"));
        tail
    }

    pub(crate) fn status(&self) -> u16 {
        self.text().split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    /// Reads until the text satisfies `holds`.
    #[track_caller]
    pub(crate) fn read_until(&mut self, what: &str, holds: impl Fn(&str) -> bool) {
        while !holds(&self.text()) {
            assert!(self.read_piece() > 0, "the tail ended before {what}: {}", self.text());
        }
    }

    /// Reads once and returns the number of bytes; 0 at the end.
    #[track_caller]
    pub(crate) fn read_piece(&mut self) -> usize {
        let mut piece = vec![0; 64 * 1024];
        let read = self.stream.read(&mut piece).expect("the server sends");
        self.text.extend_from_slice(&piece[..read]);
        read
    }

    /// Forgets what was read up to the last whole event and returns the numbers of events in it: sent
    /// and skipped.
    pub(crate) fn take_counts(&mut self) -> (u64, u64) {
        let text = self.text();
        let whole = text.rfind("\n\n").map_or(0, |at| at + 2);
        self.text.drain(..whole);
        let skipped = text[..whole].split("data: {\"events\":").skip(1);
        let skipped = skipped.map(|rest| rest.split('}').next().unwrap_or_default().parse::<u64>());
        let skipped = skipped.map(|events| events.expect("a number")).sum();
        (text[..whole].matches("id: ").count() as u64, skipped)
    }
}
