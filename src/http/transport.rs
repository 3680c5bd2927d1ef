//! The transport of a connection: a plain or a TLS stream over a non-blocking socket. Must not
//! depend on requests.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ServerConnection;

use super::encode::closing_response;
use super::problem::ProblemKind;

/// The first byte of a TLS handshake record, with which every TLS connection begins.
const TLS_HANDSHAKE_RECORD: u8 = 22;
/// Records without application data that one read processes, so that a client that sends only those
/// cannot monopolize a turn.
const EMPTY_READS_MAX: u32 = 16;
/// The most that rustls reads at a time, and space that it allocates for.
const TLS_READ_BYTES: usize = 4096;
/// Limit on buffered TLS records; plaintext beyond it stays in the connection's output buffer.
const TLS_OUTPUT_BYTES_MAX: usize = 64 * 1024;

/// The socket, with or without a TLS layer.
#[derive(Debug)]
pub(super) struct Transport {
    stream: TcpStream,
    tls: Option<Box<TlsTransport>>,
}

struct TlsTransport {
    connection: ServerConnection,
    /// The first byte was received and is that of a handshake record.
    handshake_seen: bool,
    /// Bytes received since a message was last complete: an upper bound of those that rustls buffers,
    /// up to 64 KiB during a handshake.
    incomplete_bytes: usize,
    /// No `close_notify` may be sent any more: it was sent, or the client violated the protocol.
    closed: bool,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport")
            .field("handshake_seen", &self.handshake_seen)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Transport {
    pub(super) fn new(stream: TcpStream, tls: Option<ServerConnection>) -> Self {
        let tls = tls.map(|mut connection| {
            connection.set_buffer_limit(Some(TLS_OUTPUT_BYTES_MAX));
            Box::new(TlsTransport { connection, handshake_seen: false, incomplete_bytes: 0, closed: false })
        });
        Self { stream, tls }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: usize) -> io::Result<()> {
        registry.register(&mut self.stream, Token(token), Interest::READABLE)
    }

    /// Registers for write readiness. A registration reports readiness that already exists, so no
    /// event is lost.
    pub(super) fn watch_writable(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.reregister(&mut self.stream, token, Interest::READABLE | Interest::WRITABLE)
    }

    /// Reads once. Returns `WouldBlock` if no data is available, `Ok(0)` at the end of the stream.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.stream.read(into),
            Some(tls) => tls.read(&mut self.stream, into),
        }
    }

    /// Whether a read that did not fill its buffer implies that the socket is empty (epoll(7)).
    /// This does not hold under TLS, where a read returns at the end of a record.
    pub(super) fn short_read_means_empty(&self) -> bool {
        self.tls.is_none()
    }

    /// Reads raw bytes from the socket, without TLS decryption, to discard them.
    pub(super) fn discard(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
    }

    /// Returns how many bytes were accepted; 0 if the socket buffer is full.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => write_some(&mut self.stream, bytes),
            Some(tls) => tls.write(&mut self.stream, bytes),
        }
    }

    /// Sends buffered TLS records. Returns whether none is left.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        self.tls.as_mut().map_or(Ok(true), |tls| tls.flush(&mut self.stream))
    }

    /// Whether TLS records are buffered that the socket has not accepted.
    pub(super) fn has_unsent_records(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.wants_write())
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.connection.is_handshaking())
    }

    /// An upper bound of the bytes buffered in the TLS layer.
    pub(super) fn buffered_bytes(&self) -> usize {
        let Some(tls) = &self.tls else { return 0 };
        let unsent = if tls.connection.wants_write() { TLS_OUTPUT_BYTES_MAX } else { 0 };
        unsent + tls.incomplete_capacity()
    }

    /// Shuts down the write side, after a `close_notify` under TLS.
    pub(super) fn shutdown(&mut self) -> io::Result<()> {
        self.send_close_notify();
        self.stream.shutdown(Shutdown::Write)
    }

    /// Makes the close detectable as a truncation: suppresses the `close_notify` and, with `reset`,
    /// sends a RST. `reset` is required if the end of the response is marked only by the end of the
    /// connection.
    pub(super) fn abort(&mut self, reset: bool) {
        if let Some(tls) = &mut self.tls {
            tls.closed = true;
        }
        if reset && let Err(error) = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)) {
            log::debug!("setting SO_LINGER to reset a connection failed: {error}");
        }
    }

    /// Sends a TLS `close_notify`, without waiting until the socket accepts it. A no-op during the
    /// handshake.
    pub(super) fn send_close_notify(&mut self) {
        if let Some(tls) = &mut self.tls
            && !tls.closed
            && !tls.connection.is_handshaking()
        {
            tls.closed = true;
            tls.connection.send_close_notify();
            if let Err(error) = tls.flush(&mut self.stream) {
                log::debug!("sending close_notify failed: {error}");
            }
        }
    }
}

impl TlsTransport {
    /// Bytes allocated for an incomplete message: the buffer of rustls doubles.
    fn incomplete_capacity(&self) -> usize {
        match self.incomplete_bytes {
            0 => 0,
            bytes => (bytes + TLS_READ_BYTES).next_power_of_two(),
        }
    }

    fn read(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
        if !self.handshake_seen {
            let mut first = [0];
            match stream.peek(&mut first)? {
                0 => return Ok(0),
                _ if first[0] == TLS_HANDSHAKE_RECORD => self.handshake_seen = true,
                _ => return self.reject_plaintext(stream, into),
            }
        }
        for _ in 0..EMPTY_READS_MAX {
            match self.connection.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Closed without close_notify. Requests are self-delimiting, so a truncated one is
                // detected.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            let received = self.connection.read_tls(stream)?;
            if received == 0 {
                return Ok(0);
            }
            let good = self.connection.process_new_packets();
            // Plaintext, or an answer of the handshake, shows that a message was complete. At most the
            // rest of this read is left.
            let is_complete = good
                .as_ref()
                .is_ok_and(|state| state.plaintext_bytes_to_read() + state.tls_bytes_to_write() > 0);
            self.incomplete_bytes = if is_complete { 0 } else { self.incomplete_bytes + received };
            // The next handshake message, or the alert for the error.
            let sent = self.flush(stream);
            if let Err(error) = good {
                self.closed = true;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            sent?;
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// Answers a plaintext request on a TLS port with a plaintext 400 and closes the connection.
    fn reject_plaintext(&mut self, stream: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
        self.closed = true;
        // Closing a socket with unread data sends a RST, which may overtake the response.
        let read = stream.read(into)?;
        log::debug!("answered {read} bytes of plaintext on a TLS port with 400");
        let detail = "this port requires TLS: use https://";
        write_some(stream, &closing_response(ProblemKind::Invalid, detail))?;
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

/// Calls write(2) once. Returns how many bytes the socket accepted, 0 if its buffer is full.
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
