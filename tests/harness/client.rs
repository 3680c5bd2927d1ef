//! An HTTP client that sends arbitrary bytes and reads one response at a time.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sonic_rs::Value;

/// Longer than any response takes: the server never waits for the database on a POST.
const READ_MAX: Duration = Duration::from_secs(15);
pub(crate) const JSON: &str = "application/json";
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// One connection, kept alive.
pub(crate) struct Client {
    stream: TcpStream,
    /// Bytes read and not yet part of a response.
    buffer: Vec<u8>,
}

/// One response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Client {
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).expect("the server takes connections")
    }

    pub(crate) fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, READ_MAX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_MAX))?;
        stream.set_write_timeout(Some(READ_MAX))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    #[track_caller]
    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.exchange(&request("GET", path, &[], b""))
    }

    #[track_caller]
    pub(crate) fn get_json(&mut self, path: &str) -> Value {
        let reply = self.get(path);
        assert_eq!(reply.status, 200, "GET {path}: {}", reply.text());
        reply.json()
    }

    /// POST /events.
    #[track_caller]
    pub(crate) fn post(&mut self, content_type: &str, body: impl AsRef<[u8]>) -> Reply {
        self.exchange(&post(content_type, body.as_ref()))
    }

    /// POST /events of JSON: an event or an array of them.
    #[track_caller]
    pub(crate) fn post_json(&mut self, body: impl AsRef<[u8]>) -> Reply {
        self.post(JSON, body)
    }

    #[track_caller]
    pub(crate) fn post_ndjson(&mut self, events: &[String]) -> Reply {
        self.post(NDJSON, events.join("\n"))
    }

    #[track_caller]
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Reply {
        self.send(request);
        self.reply()
    }

    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Reads the next response on this connection.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Reply {
        self.try_reply(false).expect("the server answers")
    }

    /// Reads the response to a HEAD request, which has a Content-Length and no body.
    #[track_caller]
    pub(crate) fn head_reply(&mut self) -> Reply {
        self.try_reply(true).expect("the server answers")
    }

    /// An exchange that may fail, since the server may be stopping or down.
    pub(crate) fn try_exchange(&mut self, request: &[u8]) -> std::io::Result<Reply> {
        self.stream.write_all(request)?;
        self.try_reply(false)
    }

    /// Whether the server closes the connection without sending another byte.
    #[track_caller]
    pub(crate) fn is_closed(&mut self) -> bool {
        assert!(
            self.buffer.is_empty(),
            "bytes after the response: {:?}",
            self.buffer.escape_ascii().to_string()
        );
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(0) => true,
            Ok(_) => panic!("bytes after the response, beginning with {byte:?}"),
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    }

    /// Whether a byte of a response has arrived. Does not wait.
    #[track_caller]
    pub(crate) fn has_answered(&self) -> bool {
        self.stream.set_nonblocking(true).expect("the mode of a socket can be changed");
        let answered = self.stream.peek(&mut [0]).is_ok();
        self.stream.set_nonblocking(false).expect("the mode of a socket can be changed");
        answered || !self.buffer.is_empty()
    }

    fn try_reply(&mut self, is_head: bool) -> std::io::Result<Reply> {
        let head_end = loop {
            match self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => self.more()?,
            }
        };
        let head: Vec<u8> = self.buffer.drain(..head_end).collect();
        let mut reply = Reply::parse(&head);
        if is_head || matches!(reply.status, 100..=199 | 204 | 304) {
            return Ok(reply);
        }
        if reply.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            self.read_chunks(&mut reply.body)?;
        } else if let Some(length) = reply.header("content-length") {
            let length = length.parse().unwrap_or_else(|error| panic!("Content-Length {length}: {error}"));
            reply.body = self.take(length)?;
        } else {
            while self.more().is_ok() {}
            reply.body = std::mem::take(&mut self.buffer);
        }
        Ok(reply)
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> std::io::Result<()> {
        loop {
            let line_end = loop {
                match self.buffer.windows(2).position(|window| window == b"\r\n") {
                    Some(at) => break at,
                    None => self.more()?,
                }
            };
            let line = self.take(line_end + 2)?;
            let digits = String::from_utf8_lossy(&line[..line_end]);
            let size = usize::from_str_radix(digits.trim(), 16).expect("a chunk begins with its size");
            let chunk = self.take(size + 2)?;
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return Ok(());
            }
        }
    }

    fn take(&mut self, bytes: usize) -> std::io::Result<Vec<u8>> {
        while self.buffer.len() < bytes {
            self.more()?;
        }
        Ok(self.buffer.drain(..bytes).collect())
    }

    fn more(&mut self) -> std::io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            read => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(())
            }
        }
    }
}

impl Reply {
    fn parse(head: &[u8]) -> Self {
        let text = str::from_utf8(head).expect("a response header is ASCII");
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {status_line:?}"));
        let headers = lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("not a header: {line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Self { status, headers, body: Vec::new() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The values of all lines with this name.
    pub(crate) fn headers(&self, name: &str) -> Vec<&str> {
        let lines = self.headers.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        lines.map(|(_, value)| value.as_str()).collect()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        sonic_rs::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

/// The bytes of a request. It has a Content-Length when it has a body or is a POST.
pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() || method == "POST" {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes of a POST to /events.
pub(crate) fn post(content_type: &str, body: &[u8]) -> Vec<u8> {
    request("POST", "/events", &[("Content-Type", content_type)], body)
}
