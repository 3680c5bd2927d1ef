//! A connection's bytes on their way: straight over the socket, or through TLS. Knows no request.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

/// The first byte of every TLS conversation: a handshake record.
const HANDSHAKE: u8 = 22;
/// Records without content that are worked off in one read: a client that sends nothing else takes turns like all.
const EMPTY_READS_MAX: u32 = 16;
/// Encrypted bytes that wait for the socket, at most; what does not fit stays with the connection.
const SEALED_BYTES_MAX: usize = 64 * 1024;

/// The socket, and what is between it and the conversation.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    connection: ServerConnection,
    /// The first byte has been seen, and it was that of a handshake.
    begun: bool,
    /// Nothing more is said: the end was announced, or the client breaks the protocol.
    over: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("begun", &self.begun).field("over", &self.over).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(stream: TcpStream, tls: Option<ServerConnection>) -> Self {
        let tls = tls.map(|mut connection| {
            connection.set_buffer_limit(Some(SEALED_BYTES_MAX));
            Box::new(Tls { connection, begun: false, over: false })
        });
        Self { stream, tls }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        registry.register(&mut self.stream, Token(token), Interest::READABLE)
    }

    /// Asks to be told when the socket takes more. It cannot get lost: a new registration reports what is already so.
    pub(super) fn watch_writable(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.reregister(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// One read. `WouldBlock` when nothing more has come, `Ok(0)` at the end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(into),
            Some(tls) => tls.read(&mut self.stream, into),
        }
    }

    /// Whether a read that did not fill its buffer means that the socket is empty (epoll(7)). Records end where they
    /// like.
    pub(super) fn reads_short_when_empty(&self) -> bool {
        self.tls.is_none()
    }

    /// Reads and throws away what comes, without a look at it.
    pub(super) fn discard(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
    }

    /// How many bytes were taken, 0 when there is no room now.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => write_some(&mut self.stream, bytes),
            Some(tls) => tls.write(&mut self.stream, bytes),
        }
    }

    /// Sends what was taken and is still here. Says whether nothing is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.tls.as_mut().map_or(Ok(true), |tls| tls.flush(&mut self.stream))
    }

    /// Something was taken and is not sent.
    pub(super) fn is_pending(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.wants_write())
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.is_handshaking())
    }

    /// Bytes that wait here, at most.
    pub(super) fn held(&self) -> usize {
        if self.is_pending() { SEALED_BYTES_MAX } else { 0 }
    }

    /// Ends the sending side, with TLS's own word for it.
    pub(super) fn shutdown(&mut self) -> io::Result<()> {
        self.farewell();
        self.stream.shutdown(Shutdown::Write)
    }

    /// Lets the end look like the accident that it is: without TLS's word for it, and with a reset where only the
    /// connection's end would tell the end of an answer.
    pub(super) fn break_off(&mut self, reset: bool) {
        if let Some(tls) = &mut self.tls {
            tls.over = true;
        }
        if reset && let Err(error) = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            log::debug!("a connection could not be reset: {error}");
        }
    }

    /// Tells a TLS client that the end is meant. Not waited for: who does not take it learns it from the socket.
    pub(super) fn farewell(&mut self) {
        if let Some(tls) = &mut self.tls
            && !tls.over
            && !tls.connection.is_handshaking()
        {
            tls.over = true;
            tls.connection.send_close_notify();
            if let Err(error) = tls.flush(&mut self.stream) {
                log::debug!("a client was gone before it was said goodbye: {error}");
            }
        }
    }
}

impl Tls {
    fn read(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
        if !self.begun {
            let mut first = [0];
            match stream.peek(&mut first)? {
                0 => return Ok(0),
                _ if first[0] == HANDSHAKE => self.begun = true,
                _ => return self.refuse_plain(stream, into),
            }
        }
        for _ in 0..EMPTY_READS_MAX {
            match self.connection.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Cut off without a word. Requests say themselves where they end, so that none is taken for whole.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if self.connection.read_tls(stream)? == 0 {
                return Ok(0);
            }
            let good = self.connection.process_new_packets();
            // The next part of the handshake, or the alert that says what is wrong.
            let sent = self.flush(stream);
            if let Err(error) = good {
                self.over = true;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            sent?;
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// HTTP without TLS where TLS is spoken: says so in clear, and that is the end.
    fn refuse_plain(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
        self.over = true;
        // What is unread when the socket is closed would become a reset, which may overtake the answer.
        let read = stream.read(into)?;
        log::debug!("{read} bytes without TLS were answered 400");
        write_some(stream, PLAIN)?;
        stream.shutdown(Shutdown::Write)?;
        Ok(0)
    }

    fn write(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while self.flush(stream)? && taken < bytes.len() {
            taken += self.connection.writer().write(&bytes[taken..])?;
        }
        Ok(taken)
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// One write(2): how many bytes the socket took, 0 when it is full.
fn write_some(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n\
Content-Length: 139\r\nConnection: close\r\n\r\n\
{\"type\":\"urn:aurore-events:problem:invalid\",\
\"title\":\"The request is not valid\",\"status\":400,\"detail\":\"this port speaks TLS: use https://\"}\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_made_answer_states_its_own_length() {
        let text = std::str::from_utf8(PLAIN).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
