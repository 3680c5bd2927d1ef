//! I/O timeout of database connections: a socket wrapper that fails with `TimedOut` after too long
//! without traffic.
//!
//! `statement_timeout` ends a slow statement, and the kernel detects a dead peer. Neither covers a
//! peer that acknowledges bytes and never responds: a stopped process, hanging storage, a proxy
//! without a server. The `postgres` crate has no such timeout, but its TLS hook wraps the TCP
//! socket, and this module implements the timeout in that hook. The crate does not wrap Unix
//! sockets; a database behind one runs on the same machine.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use postgres::Socket;
use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::tls::TlsMode;
use super::types::BoxError;

/// The `SSLRequest` message: its length, 8, and the request code.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// The current I/O timeout of a connection, shared by its user and its socket.
#[derive(Debug)]
pub(super) struct IoDeadline {
    timeout_ms: AtomicU64,
    /// Increments with each use of the connection, so that idle time between two uses does not
    /// count.
    generation: AtomicU64,
}

impl IoDeadline {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout_ms: AtomicU64::new(millis(timeout)), generation: AtomicU64::new(0) }
    }

    /// Sets the timeout and restarts it.
    pub(super) fn restart(&self, timeout: Duration) {
        self.timeout_ms.store(millis(timeout), Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Opens TCP connections with an I/O timeout, with or without TLS.
#[derive(Clone)]
pub(super) struct TimeoutConnector {
    tls: TlsMode,
    /// Starts TLS without an `SSLRequest`: `sslnegotiation=direct`, or the crate has negotiated TLS.
    skip_ssl_request: bool,
    io_deadline: Arc<IoDeadline>,
}

impl TimeoutConnector {
    pub(super) fn new(tls: TlsMode, skip_ssl_request: bool, io_deadline: Arc<IoDeadline>) -> Self {
        Self { tls, skip_ssl_request, io_deadline }
    }

    async fn negotiate(self, socket: Socket, host: String) -> Result<PostgresStream, BoxError> {
        let mut socket = TimeoutStream::new(socket, self.io_deadline);
        let TlsMode::Enabled { optional, config } = self.tls else {
            return Ok(PostgresStream::Plain(socket));
        };
        if !self.skip_ssl_request {
            socket.write_all(&SSL_REQUEST).await?;
            let mut response = [0];
            socket.read_exact(&mut response).await?;
            if response != *b"S" {
                return if optional {
                    Ok(PostgresStream::Plain(socket))
                } else {
                    Err("the server does not support TLS, but sslmode requires it".into())
                };
            }
        }
        let mut rustls = MakeRustlsConnect::new(rustls::ClientConfig::clone(&config));
        let connect = MakeTlsConnect::<TimeoutStream>::make_tls_connect(&mut rustls, &host)?;
        Ok(PostgresStream::Encrypted(Box::new(connect.connect(socket).await?)))
    }
}

impl MakeTlsConnect<Socket> for TimeoutConnector {
    type Stream = PostgresStream;
    type TlsConnect = HostConnector;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<HostConnector, Self::Error> {
        Ok(HostConnector { connector: self.clone(), host: host.to_owned() })
    }
}

pub(super) struct HostConnector {
    connector: TimeoutConnector,
    host: String,
}

impl TlsConnect<Socket> for HostConnector {
    type Stream = PostgresStream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<PostgresStream, BoxError>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(self.connector.negotiate(socket, self.host))
    }
}

/// A socket that fails with `TimedOut` after no byte was received or sent for the I/O timeout.
pub(super) struct TimeoutStream {
    socket: Socket,
    io_deadline: Arc<IoDeadline>,
    generation: u64,
    /// The time of the last received or sent byte, or of the start of this use.
    last_io_at: Instant,
    timer: Pin<Box<Sleep>>,
    /// The timeout expired: all further I/O fails at once, including that of ROLLBACK.
    timed_out: bool,
}

impl TimeoutStream {
    fn new(socket: Socket, io_deadline: Arc<IoDeadline>) -> Self {
        let timer = Box::pin(sleep(Duration::from_millis(io_deadline.timeout_ms.load(Ordering::Relaxed))));
        Self {
            socket,
            generation: io_deadline.generation.load(Ordering::Relaxed),
            io_deadline,
            last_io_at: Instant::now(),
            timer,
            timed_out: false,
        }
    }

    fn timeout_error(&self) -> io::Error {
        let timeout = self.io_deadline.timeout_ms.load(Ordering::Relaxed);
        io::Error::new(io::ErrorKind::TimedOut, format!("no response from the database for {timeout} ms"))
    }
}

impl AsyncRead for TimeoutStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.timed_out {
            return Poll::Ready(Err(self.timeout_error()));
        }
        if let Poll::Ready(result) = Pin::new(&mut self.socket).poll_read(cx, out) {
            self.last_io_at = Instant::now();
            return Poll::Ready(result);
        }
        let generation = self.io_deadline.generation.load(Ordering::Relaxed);
        if generation != self.generation {
            self.generation = generation;
            self.last_io_at = Instant::now();
        }
        // A write updates `last_io_at` only; the timer is reset here, at the latest when it fires.
        let end =
            self.last_io_at + Duration::from_millis(self.io_deadline.timeout_ms.load(Ordering::Relaxed));
        if self.timer.deadline() != end {
            self.timer.as_mut().reset(end);
        }
        ready!(self.timer.as_mut().poll(cx));
        self.timed_out = true;
        Poll::Ready(Err(self.timeout_error()))
    }
}

impl AsyncWrite for TimeoutStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.timed_out {
            return Poll::Ready(Err(self.timeout_error()));
        }
        let result = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes));
        self.last_io_at = Instant::now();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

pub(super) enum PostgresStream {
    Plain(TimeoutStream),
    Encrypted(Box<<MakeRustlsConnect as MakeTlsConnect<TimeoutStream>>::Stream>),
}

impl TlsStream for PostgresStream {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Self::Plain(_) => ChannelBinding::none(),
            Self::Encrypted(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for PostgresStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for PostgresStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
