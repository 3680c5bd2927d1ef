//! An end to waiting for a database that says nothing: a socket that fails after a silence too long.
//!
//! The database ends a slow statement itself, and the kernel notices a peer that is gone. Neither helps against one
//! that takes our bytes and never answers: a process that was stopped, a storage that hangs, a proxy without a
//! server. The `postgres` crate has no timeout for that, but it lets encryption wrap its TCP socket, and here a
//! time limit comes in between. (A Unix socket it does not let us wrap; there the database is this machine.)

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

use super::tls::Tls;

/// Asks for encryption: a length of 8 and the number of that request.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

type Fault = Box<dyn std::error::Error + Sync + Send>;

/// How long a connection may be silent now: shared by who uses it and its socket.
#[derive(Debug)]
pub(super) struct Pace {
    patience_ms: AtomicU64,
    /// Which use of the connection this is. Silence between two uses is no silence.
    turn: AtomicU64,
}

impl Pace {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience_ms: AtomicU64::new(millis(patience)), turn: AtomicU64::new(0) }
    }

    /// From now on the database is waited for, this long at a time.
    pub(super) fn begin(&self, patience: Duration) {
        self.patience_ms.store(millis(patience), Ordering::Relaxed);
        self.turn.fetch_add(1, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Makes connections over TCP, with or without encryption, each with a time limit.
#[derive(Clone)]
pub(super) struct Patiently {
    tls: Tls,
    /// Encryption is begun without asking for it first: `sslnegotiation=direct`, or somebody has asked.
    direct: bool,
    pace: Arc<Pace>,
}

impl Patiently {
    pub(super) fn new(tls: Tls, direct: bool, pace: Arc<Pace>) -> Self {
        Self { tls, direct, pace }
    }

    async fn negotiate(self, socket: Socket, host: String) -> Result<Channel, Fault> {
        let mut socket = Patient::new(socket, self.pace);
        let Tls::On { optional, config } = self.tls else {
            return Ok(Channel::Plain(socket));
        };
        if !self.direct {
            socket.write_all(&SSL_REQUEST).await?;
            let mut answer = [0];
            socket.read_exact(&mut answer).await?;
            if answer != *b"S" {
                return if optional {
                    Ok(Channel::Plain(socket))
                } else {
                    Err("the server does not offer TLS, and sslmode asks for it".into())
                };
            }
        }
        let mut rustls = MakeRustlsConnect::new(rustls::ClientConfig::clone(&config));
        let connect = MakeTlsConnect::<Patient>::make_tls_connect(&mut rustls, &host)?;
        Ok(Channel::Encrypted(Box::new(connect.connect(socket).await?)))
    }
}

impl MakeTlsConnect<Socket> for Patiently {
    type Stream = Channel;
    type TlsConnect = PatientlyTo;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, host: &str) -> Result<PatientlyTo, Self::Error> {
        Ok(PatientlyTo { patiently: self.clone(), host: host.to_owned() })
    }
}

pub(super) struct PatientlyTo {
    patiently: Patiently,
    host: String,
}

impl TlsConnect<Socket> for PatientlyTo {
    type Stream = Channel;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<Channel, Fault>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(self.patiently.negotiate(socket, self.host))
    }
}

/// A socket that fails with `TimedOut` when nothing came and nothing could be sent for too long.
pub(super) struct Patient {
    socket: Socket,
    pace: Arc<Pace>,
    turn: u64,
    /// When bytes last went either way, or this use of the connection began.
    moved_at: Instant,
    limit: Pin<Box<Sleep>>,
    /// The limit was reached: nothing is waited for on this socket any more, not even for an answer to ROLLBACK.
    over: bool,
}

impl Patient {
    fn new(socket: Socket, pace: Arc<Pace>) -> Self {
        let limit = Box::pin(sleep(Duration::from_millis(pace.patience_ms.load(Ordering::Relaxed))));
        Self {
            socket,
            turn: pace.turn.load(Ordering::Relaxed),
            pace,
            moved_at: Instant::now(),
            limit,
            over: false,
        }
    }

    fn silence(&self) -> io::Error {
        let patience = self.pace.patience_ms.load(Ordering::Relaxed);
        io::Error::new(io::ErrorKind::TimedOut, format!("the database has not answered for {patience} ms"))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.over {
            return Poll::Ready(Err(self.silence()));
        }
        if let Poll::Ready(result) = Pin::new(&mut self.socket).poll_read(cx, out) {
            self.moved_at = Instant::now();
            return Poll::Ready(result);
        }
        let turn = self.pace.turn.load(Ordering::Relaxed);
        if turn != self.turn {
            self.turn = turn;
            self.moved_at = Instant::now();
        }
        // A write says so only here, maybe no sooner than the limit of before is reached.
        let end = self.moved_at + Duration::from_millis(self.pace.patience_ms.load(Ordering::Relaxed));
        if self.limit.deadline() != end {
            self.limit.as_mut().reset(end);
        }
        ready!(self.limit.as_mut().poll(cx));
        self.over = true;
        Poll::Ready(Err(self.silence()))
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.over {
            return Poll::Ready(Err(self.silence()));
        }
        let result = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes));
        self.moved_at = Instant::now();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

pub(super) enum Channel {
    Plain(Patient),
    Encrypted(Box<<MakeRustlsConnect as MakeTlsConnect<Patient>>::Stream>),
}

impl TlsStream for Channel {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Self::Plain(_) => ChannelBinding::none(),
            Self::Encrypted(stream) => stream.channel_binding(),
        }
    }
}

impl AsyncRead for Channel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, out),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Channel {
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
