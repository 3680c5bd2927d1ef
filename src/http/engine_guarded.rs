//! The acceptor: an event loop on one thread that owns its listeners, its connections and their
//! timers. A connection stays on its acceptor; there is no work stealing, and only the poll for
//! readiness blocks.
//!
//! Must not depend on what the handler does. A turn is: poll, readiness events, timers, the ready
//! queue, new connections, completions, one slice of a long request, [`Handler::on_turn_end`], the
//! command.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::{Events, Poll, Token};
use slab::Slab;

use super::accept_queue::{AcceptQueue, Accepted, reject};
use super::acceptor_context::AcceptorContext;
use super::acceptor_handle::{AcceptorHandle, Command, CompletionKind, ConnectionStats};
use super::connection::{Connection, ConnectionAction};
use super::encode::DateLine;
use super::limits::HttpLimits;
use super::session::{HttpSession, Progress};
use super::tls::TlsIdentity;
use super::transport::Transport;
use super::{Handler, Response};
use crate::clock::Clock;
use crate::lifecycle::Heartbeat;
use crate::logging::RateLimitedLog;

// Events that many clients can cause at once are logged every few seconds, over all acceptors.
static DROPPED_LOG: RateLimitedLog = RateLimitedLog::new(Duration::from_secs(5));
static SETUP_FAILED_LOG: RateLimitedLog = RateLimitedLog::new(Duration::from_secs(5));

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Readiness events per poll.
const EVENTS_MAX: usize = 1024;
/// Connections above the limit that stay open until the client has read the 503. Further ones get
/// the 503 without a lingering close.
const OVER_LIMIT_MAX: usize = 64;
/// Rounds of [`ACCEPTS_MAX`] accepts at the start of a drain, which empty the listener's backlog.
const DRAIN_ACCEPT_ROUNDS: usize = 64;
/// How long a connection without a request stays open during a drain, since its last use. A client
/// under load sends its next request within that time; a stop is delayed by no more.
const DRAIN_IDLE_TIMEOUT: Duration = Duration::from_millis(250);
/// Connections accepted per turn.
const ACCEPTS_MAX: usize = 64;
/// Size of the shared read buffer. A request that arrives in one read is parsed and handled in
/// place.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Whether the acceptor continues after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnResult {
    Continue,
    Stopped,
}

/// Invariant: every connection has an entry in the timer wheel at or before its deadline, and a
/// connection with work that its socket will not signal is in the ready queue.
#[derive(Debug)]
pub struct Acceptor<H> {
    poll: Poll,
    events: Events,
    accept_queue: AcceptQueue,
    address: SocketAddr,
    /// If set, every connection uses TLS.
    identity: Option<Arc<TlsIdentity>>,
    heartbeat: Heartbeat,
    connections: Slab<Connection>,
    /// Connections with work that their socket will not signal.
    ready_queue: VecDeque<usize>,
    /// Connections whose handler yielded; the first one is resumed, one slice per turn.
    long_queue: VecDeque<usize>,
    /// Connections above the limit, which stay open only to read the 503.
    over_limit_count: usize,
    timers: super::timer_wheel::TimerWheel,
    due: Vec<usize>,
    scratch: Box<[u8]>,
    ctx: AcceptorContext<H>,
    clock: Clock,
}

impl<H: Handler> Acceptor<H> {
    /// Listens on at least one listener; `make` builds the handler, which receives the acceptor's handle for other threads.
    pub fn new(
        listeners: Vec<std::net::TcpListener>,
        limits: HttpLimits,
        clock: Clock,
        stats: Arc<ConnectionStats>,
        make: impl FnOnce(&AcceptorHandle) -> H,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let first = listeners.first().ok_or(io::ErrorKind::InvalidInput)?;
        let address = first.local_addr()?;
        let accept_queue = AcceptQueue::new(listeners, poll.registry(), LISTENER)?;
        let handle = AcceptorHandle::new(poll.registry(), WAKER)?;
        let now = clock.now();
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            accept_queue,
            address,
            identity: None,
            heartbeat: Heartbeat::default(),
            connections: Slab::new(),
            ready_queue: VecDeque::new(),
            long_queue: VecDeque::new(),
            over_limit_count: 0,
            timers: super::timer_wheel::TimerWheel::new(now),
            due: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            ctx: AcceptorContext {
                handler: make(&handle),
                response: Response::default(),
                out: Vec::new(),
                date: DateLine::new(&clock),
                limits,
                handle,
                stats,
                now,
                token: 0,
                requests_left: 0,
                bytes_left: 0,
                serial: 0,
                buffered_bytes: 0,
                draining: false,
            },
            clock,
        })
    }

    /// Sets the certificate for TLS; `None` disables TLS.
    #[must_use]
    pub fn with_tls(mut self, identity: Option<Arc<TlsIdentity>>) -> Self {
        self.identity = identity;
        self
    }

    /// Sets the heartbeat that counts the turns of [`Acceptor::run`].
    #[must_use]
    pub fn with_heartbeat(mut self, heartbeat: Heartbeat) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// The local address of the first listener.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    pub fn handle(&self) -> AcceptorHandle {
        self.ctx.handle.clone()
    }

    pub fn handler(&mut self) -> &mut H {
        &mut self.ctx.handler
    }

    /// Runs turns until the acceptor is stopped or drained. Fails only if polling for readiness
    /// fails.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn(None)? == TurnResult::Continue {
            self.heartbeat.beat();
        }
        Ok(())
    }

    /// Runs one turn: waits for work for at most `wait_max`, then processes it.
    pub fn turn(&mut self, wait_max: Option<Duration>) -> io::Result<TurnResult> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let idle = self.ctx.handle.prepare_park();
        let wait = if idle { self.poll_timeout(wait_max) } else { Some(Duration::ZERO) };
        let polled = self.poll.poll(&mut events, wait);
        self.ctx.handle.mark_awake();
        self.ctx.now = self.clock.now();
        self.ctx.date.refresh(&self.clock, self.ctx.now);
        match polled {
            Ok(()) => {
                for event in &events {
                    self.on_event(event);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.events = events;
        self.expire();
        self.serve_ready_queue();
        // After the events, so that no event of a closed connection is attributed to a new one that
        // reuses its token.
        self.accept();
        self.deliver_completions();
        self.resume_long();
        self.ctx.handler.on_turn_end();
        // Promises that `on_turn_end` fulfilled are delivered before the next poll.
        self.deliver_completions();
        self.ctx.end_turn();
        Ok(self.apply_command())
    }

    fn poll_timeout(&self, wait_max: Option<Duration>) -> Option<Duration> {
        let command = self.ctx.handle.command();
        let has_command = command == Command::Stop || (command == Command::Drain && !self.ctx.draining);
        if !self.ready_queue.is_empty()
            || !self.long_queue.is_empty()
            || self.accept_queue.is_pending()
            || has_command
        {
            return Some(Duration::ZERO);
        }
        // `now` is from the start of the last turn, so the wait is too long by the duration of that
        // turn, which is negligible compared with a tick of the timer wheel.
        let next = [self.timers.next_due(), self.accept_queue.paused_until()].into_iter().flatten().min();
        let wait = next.map(|next| next.since(self.ctx.now));
        // epoll_wait(2) takes whole milliseconds, rounded down: without one more, the loop would
        // spin through the last one.
        let wait = wait.map(|wait| wait + Duration::from_millis(1));
        [wait, wait_max].into_iter().flatten().min()
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        match event.token() {
            LISTENER => self.accept_queue.mark_pending(),
            WAKER => {}
            Token(token) => {
                let Some(connection) = self.connections.get_mut(token) else { return };
                if event.is_error() || event.is_write_closed() {
                    self.close(token);
                    return;
                }
                connection.readable |= event.is_readable();
                connection.read_closed |= event.is_read_closed();
                self.serve(token);
            }
        }
    }

    /// Starts and runs a turn of connection `token`.
    #[inline]
    fn serve(&mut self, token: usize) {
        self.ctx.begin_turn(token);
        self.drive(token);
    }

    fn drive(&mut self, token: usize) {
        let connection = &mut self.connections[token];
        let next = connection.drive(&mut self.ctx, &mut self.scratch, self.poll.registry());
        match next {
            ConnectionAction::Wait => {}
            ConnectionAction::Requeue if connection.in_ready_queue => {}
            ConnectionAction::Requeue => {
                connection.in_ready_queue = true;
                self.ready_queue.push_back(token);
            }
            ConnectionAction::QueueLong if connection.in_long_queue => {}
            ConnectionAction::QueueLong => {
                connection.in_long_queue = true;
                self.long_queue.push_back(token);
            }
            ConnectionAction::Close => {
                self.close(token);
                return;
            }
        }
        let buffered_bytes = connection.buffered_bytes();
        self.ctx.buffered_bytes = self.ctx.buffered_bytes - connection.accounted_bytes + buffered_bytes;
        connection.accounted_bytes = buffered_bytes;
        if buffered_bytes > HttpLimits::EXEMPT_BYTES
            && self.ctx.buffered_bytes > connection.buffered_bytes_max(&self.ctx.limits)
        {
            if let Some(suppressed) = DROPPED_LOG.due(self.ctx.now) {
                log::warn!(suppressed; "dropping a connection: buffered bytes exceed the connection memory limit");
            }
            self.ctx.stats.rejected.fetch_add(1, Ordering::Relaxed);
            self.close(token);
            return;
        }
        self.timers.schedule_by(token, connection.deadline(&self.ctx.limits));
    }

    fn serve_ready_queue(&mut self) {
        // Connections queued during this loop are served in the next turn.
        for _ in 0..self.ready_queue.len() {
            let Some(token) = self.ready_queue.pop_front() else { return };
            if let Some(connection) = self.connections.get_mut(token)
                && connection.in_ready_queue
            {
                connection.in_ready_queue = false;
                self.serve(token);
            }
        }
    }

    /// Resumes the first request in the queue of long requests for one slice.
    fn resume_long(&mut self) {
        let Some(&token) = self.long_queue.front() else { return };
        self.ctx.begin_turn(token);
        let session = &mut self.connections[token].session;
        if session.progress() == Progress::Yielded {
            session.resume(&mut self.ctx);
            if session.progress() == Progress::Yielded {
                return;
            }
        }
        self.long_queue.pop_front();
        self.connections[token].in_long_queue = false;
        self.drive(token);
    }

    fn close(&mut self, token: usize) {
        let mut connection = self.connections.remove(token);
        if connection.in_long_queue {
            self.long_queue.retain(|other| *other != token);
        }
        if let Some(body) = connection.session.streaming_body() {
            // The client must detect that the body is truncated.
            connection.transport.abort(!body.chunked);
        }
        connection.transport.send_close_notify();
        self.ctx.buffered_bytes -= connection.accounted_bytes;
        if connection.over_limit {
            self.over_limit_count -= 1;
        } else {
            self.ctx.release(connection.session.peer());
        }
    }

    fn accept(&mut self) {
        self.accept_queue.resume_at(self.ctx.now);
        if !self.accept_queue.is_pending() {
            return;
        }
        for _ in 0..ACCEPTS_MAX {
            match self.accept_queue.accept(self.ctx.now) {
                Accepted::Connection(stream, peer) => self.open_connection(stream, peer),
                Accepted::WouldBlock => return,
                Accepted::Failed => {
                    self.ctx.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    fn open_connection(&mut self, stream: mio::net::TcpStream, peer: std::net::IpAddr) {
        let stats = &self.ctx.stats;
        stats.accepted.fetch_add(1, Ordering::Relaxed);
        let refused = self.ctx.admit(peer);
        if refused.is_some() {
            stats.rejected.fetch_add(1, Ordering::Relaxed);
            if self.identity.is_some() {
                // A 503 would require a TLS handshake first.
                return;
            }
            if self.over_limit_count == OVER_LIMIT_MAX {
                reject(stream);
                return;
            }
            self.over_limit_count += 1;
        }
        // Linux inherits TCP_NODELAY from the listener; other systems do not. A failure only adds
        // latency.
        if cfg!(not(target_os = "linux"))
            && let Err(error) = stream.set_nodelay(true)
        {
            log::debug!("setting TCP_NODELAY failed: {error}");
        }
        let tls = match self.identity.as_ref().map(|identity| identity.connection()).transpose() {
            Ok(tls) => tls,
            Err(error) => {
                if let Some(suppressed) = SETUP_FAILED_LOG.due(self.ctx.now) {
                    log::error!(suppressed; "creating a TLS session failed, closing the connection: {error}");
                }
                self.ctx.release(peer);
                return;
            }
        };
        let entry = self.connections.vacant_entry();
        let token = entry.key();
        let session = HttpSession::new(peer, self.ctx.now);
        let transport = Transport::new(stream, tls);
        let connection = entry.insert(Connection::new(transport, session, self.ctx.now));
        connection.over_limit = refused.is_some();
        if let Err(error) = connection.transport.register(self.poll.registry(), token) {
            if let Some(suppressed) = SETUP_FAILED_LOG.due(self.ctx.now) {
                log::error!(suppressed; "registering a connection for readiness failed, closing it: {error}");
            }
            self.close(token);
            return;
        }
        if let Some(detail) = refused {
            self.ctx.begin_turn(token);
            connection.session.reject(detail, &mut self.ctx);
            self.drive(token);
            return;
        }
        // The registration reports input that has already arrived.
        self.timers.schedule_by(token, connection.deadline(&self.ctx.limits));
    }

    fn expire(&mut self) {
        self.timers.advance(self.ctx.now, &mut self.due);
        let mut due = std::mem::take(&mut self.due);
        for token in due.drain(..) {
            let Some(connection) = self.connections.get_mut(token) else { continue };
            let deadline = connection.deadline(&self.ctx.limits);
            if deadline > self.ctx.now {
                self.timers.schedule_by(token, deadline);
                continue;
            }
            let slow = matches!(
                connection.session.progress(),
                Progress::NeedsInput | Progress::Paused | Progress::Streaming
            );
            if slow && (!connection.is_idle() || connection.transport.is_handshaking()) {
                self.ctx.stats.timeouts.fetch_add(1, Ordering::Relaxed);
            }
            if connection.cannot_respond()
                || connection.is_idle()
                || connection.session.streaming_body().is_some()
            {
                self.close(token);
                continue;
            }
            self.ctx.begin_turn(token);
            connection.session.expire(&mut self.ctx);
            self.drive(token);
        }
        self.due = due;
    }

    fn deliver_completions(&mut self) {
        while let Some(completion) = self.ctx.handle.pop_completion() {
            let Some(connection) = self.connections.get_mut(completion.token) else { continue };
            // The connection may be closed or timed out, and another may reuse its token.
            match completion.kind {
                CompletionKind::Response(response) if connection.session.awaits(completion.serial) => {
                    self.ctx.begin_turn(completion.token);
                    connection.session.complete_pending(response, &mut self.ctx);
                    self.drive(completion.token);
                }
                CompletionKind::BodyReady
                    if connection
                        .session
                        .streaming_body()
                        .is_some_and(|body| body.serial == completion.serial) =>
                {
                    self.serve(completion.token);
                }
                CompletionKind::Response(_) | CompletionKind::BodyReady => {}
            }
        }
    }

    fn apply_command(&mut self) -> TurnResult {
        match self.ctx.handle.command() {
            Command::Run => return TurnResult::Continue,
            Command::Drain => {
                if !self.ctx.draining {
                    self.drain();
                }
                if !self.connections.is_empty() {
                    return TurnResult::Continue;
                }
            }
            Command::Stop => {}
        }
        self.accept_queue.close(self.poll.registry());
        let open: Vec<usize> = self.connections.iter().map(|(token, _)| token).collect();
        for token in open {
            self.close(token);
        }
        TurnResult::Stopped
    }

    /// Closes the listeners and idle connections. Connections in the backlog are accepted and
    /// served, since closing the listeners may reset them; requests that have already arrived are
    /// served too. A connection that was used in the last [`DRAIN_IDLE_TIMEOUT`] may have a request on
    /// its way, so it stays open for that long; the response closes it.
    fn drain(&mut self) {
        self.ctx.draining = true;
        self.accept_queue.mark_pending();
        for _ in 0..DRAIN_ACCEPT_ROUNDS {
            self.accept();
        }
        self.accept_queue.close(self.poll.registry());
        let limits = &mut self.ctx.limits;
        limits.idle_timeout = limits.idle_timeout.min(DRAIN_IDLE_TIMEOUT);
        let open: Vec<usize> = self.connections.iter().map(|(token, _)| token).collect();
        for token in open {
            let connection = &mut self.connections[token];
            if connection.is_idle() {
                connection.readable = true;
                self.serve(token);
            }
            let Some(connection) = self.connections.get(token).filter(|one| one.is_idle()) else { continue };
            let deadline = connection.deadline(&self.ctx.limits);
            if deadline <= self.ctx.now || connection.transport.is_handshaking() {
                self.close(token);
            } else {
                self.timers.schedule_by(token, deadline);
            }
        }
    }
}

impl<H> Drop for Acceptor<H> {
    fn drop(&mut self) {
        for (_, connection) in self.connections.iter().filter(|(_, connection)| !connection.over_limit) {
            self.ctx.release(connection.session.peer());
        }
    }
}

/// Pins the calling thread to core `index`, modulo the number of cores. Returns whether that
/// succeeded; some containers do not permit it.
pub fn pin_to_core(index: usize) -> bool {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    !cores.is_empty() && core_affinity::set_for_current(cores[index % cores.len()])
}
