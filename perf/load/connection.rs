//! One client connection: sends a request, reads a response. Non-blocking.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// The rest of a request that the socket did not take at once.
    unsent: Vec<u8>,
    /// A head that arrived in pieces.
    head: Vec<u8>,
    /// The status of a response whose body has not arrived whole, and the bytes that are missing.
    body: Option<(u16, usize)>,
}

impl Connection {
    /// Connects, and waits for it: loopback answers at once.
    pub(crate) fn open(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<Self> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, unsent: Vec::new(), head: Vec::new(), body: None })
    }

    pub(crate) fn send(&mut self, request: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        while sent < request.len() {
            match self.stream.write(&request[sent..]) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent.extend_from_slice(&request[sent..]);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends the rest of a request when the socket takes bytes again.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.unsent.is_empty() {
            return Ok(());
        }
        let rest = std::mem::take(&mut self.unsent);
        self.send(&rest)
    }

    /// Reads all that has arrived. Returns the status of a response that is complete.
    pub(crate) fn receive(&mut self, scratch: &mut [u8]) -> io::Result<Option<u16>> {
        let mut status = None;
        loop {
            match self.stream.read(scratch) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    status = self.take(&scratch[..bytes])?.or(status);
                    // A short read has emptied the socket; the next bytes raise an event.
                    if bytes < scratch.len() {
                        return Ok(status);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(status),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<Option<u16>> {
        if let Some((status, missing)) = self.body {
            return Ok(self.body_arrived(status, missing, bytes.len()));
        }
        if self.head.is_empty() {
            let Some((head, status, length)) = parse_head(bytes)? else {
                self.head.extend_from_slice(bytes);
                return Ok(None);
            };
            return Ok(self.body_arrived(status, length, bytes.len() - head));
        }
        self.head.extend_from_slice(bytes);
        let Some((head, status, length)) = parse_head(&self.head)? else { return Ok(None) };
        let arrived = self.head.len() - head;
        self.head.clear();
        Ok(self.body_arrived(status, length, arrived))
    }

    fn body_arrived(&mut self, status: u16, missing: usize, arrived: usize) -> Option<u16> {
        if arrived >= missing {
            self.body = None;
            return Some(status);
        }
        self.body = Some((status, missing - arrived));
        None
    }
}

/// Bytes of the head, status and length of the body. `None` if the head is incomplete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<(usize, u16, usize)>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let invalid = || io::Error::new(ErrorKind::InvalidData, "not a response with a status and a length");
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_not_utf8| invalid())?;
    let status: u16 = text.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(invalid)?;
    let mut length = 0;
    for line in text.split("\r\n").skip(1) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(|_not_a_number| invalid())?;
        }
    }
    Ok(Some((end + 4, status, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_gives_status_and_length() {
        let response = b"HTTP/1.1 202 Accepted\r\ncontent-length: 12\r\nServer: x\r\n\r\nhello";
        assert_eq!(parse_head(response).expect("a head"), Some((response.len() - 5, 202, 12)));
        assert_eq!(parse_head(&response[..40]).expect("a part of a head"), None);
        parse_head(b"HTTP/1.1 abc\r\n\r\n").expect_err("no status");
    }
}
