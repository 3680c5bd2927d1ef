//! The acceptor: one thread's listener, readiness loop, connections and timers. A connection lives its life on
//! one core; nothing is stolen or shared, and nothing here blocks but the wait for readiness.
//!
//! Knows nothing of what the handler does. A turn is: wait, readiness, timers, the ready line, new connections, late
//! answers, a slice of what takes long, then [`Handler::turn_ended`] and orders.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mio::{Events, Poll, Token};
use slab::Slab;

use super::accepting::{Accepting, Arrival, turn_away};
use super::connection::{Connection, Next};
use super::encode::DateLine;
use super::limits::Limits;
use super::remote::{News, Order, Remote, Shared};
use super::session::{Desk, Progress, Session};
use super::tls::Identity;
use super::wire::Wire;
use super::{Handler, Response};
use crate::clock::Clock;
use crate::logging::Thinned;

/// What many clients can bring about at once is said every few seconds, by all acceptors together.
static DROPPED: Thinned = Thinned::new(Duration::from_secs(5));
static NOT_BEGUN: Thinned = Thinned::new(Duration::from_secs(5));

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Readiness events taken at once.
const EVENTS_MAX: usize = 1024;
/// Connections beyond the bound that are told so and given the time to read it. Others are told if they read fast.
const GUESTS_MAX: usize = 64;
/// Rounds of accepting when draining: with [`ACCEPTS_MAX`] they empty the listener's queue, whatever still comes.
const LAST_ACCEPTS_MAX: usize = 64;
/// Connections accepted in one turn, before those that are there have theirs.
const ACCEPTS_MAX: usize = 64;
/// A read takes as much; a request within it is parsed and handled where it lies.
const SCRATCH_BYTES: usize = 64 * 1024;

/// Whether the acceptor goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    More,
    Ended,
}

/// Invariant: every connection has an entry in the wheel at or before its deadline, and one that has work which
/// its socket will not report stands in the ready line.
#[derive(Debug)]
pub struct Acceptor<H> {
    poll: Poll,
    events: Events,
    accepting: Accepting,
    address: SocketAddr,
    /// With it, TLS is spoken on every connection.
    identity: Option<Arc<Identity>>,
    connections: Slab<Connection>,
    /// Connections with something to do though their socket says nothing.
    ready: VecDeque<usize>,
    /// Connections whose request takes more than a turn; the first of them is worked on, a slice a turn.
    long: VecDeque<usize>,
    /// Of the connections, those that are one too many and only stay to be told so.
    guests: usize,
    wheel: super::wheel::Wheel,
    due: Vec<usize>,
    scratch: Box<[u8]>,
    desk: Desk<H>,
    clock: Clock,
}

impl<H: Handler> Acceptor<H> {
    /// `make` gets the handle by which other threads reach this acceptor.
    pub fn new(
        listener: std::net::TcpListener,
        limits: Limits,
        clock: Clock,
        shared: Arc<Shared>,
        make: impl FnOnce(&Remote) -> H,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let address = listener.local_addr()?;
        let accepting = Accepting::new(listener, poll.registry(), LISTENER)?;
        let remote = Remote::new(poll.registry(), WAKER)?;
        let now = clock.now();
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            accepting,
            address,
            identity: None,
            connections: Slab::new(),
            ready: VecDeque::new(),
            long: VecDeque::new(),
            guests: 0,
            wheel: super::wheel::Wheel::new(now),
            due: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            desk: Desk {
                handler: make(&remote),
                response: Response::default(),
                out: Vec::new(),
                date: DateLine::new(&clock),
                limits,
                remote,
                shared,
                now,
                token: 0,
                budget: 0,
                bytes_left: 0,
                serial: 0,
                held: 0,
                draining: false,
            },
            clock,
        })
    }

    /// Speaks TLS with this certificate, or none with `None`.
    #[must_use]
    pub fn with_tls(mut self, identity: Option<Arc<Identity>>) -> Self {
        self.identity = identity;
        self
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn remote(&self) -> Remote {
        self.desk.remote.clone()
    }

    pub fn handler(&mut self) -> &mut H {
        &mut self.desk.handler
    }

    /// Takes turns until it is told to end, or has drained. An error is the operating system's: the readiness
    /// loop itself does not work.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn(None)? == Turn::More {}
        Ok(())
    }

    /// Waits, no longer than `wait_max`, until there is something to do, and does it.
    pub fn turn(&mut self, wait_max: Option<Duration>) -> io::Result<Turn> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        let idle = self.desk.remote.doze();
        let wait = if idle { self.wait(wait_max) } else { Some(Duration::ZERO) };
        let polled = self.poll.poll(&mut events, wait);
        self.desk.remote.rise();
        self.desk.now = self.clock.now();
        self.desk.date.refresh(&self.clock, self.desk.now);
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
        self.serve_ready_line();
        // After the events: none of them may be taken for one of a connection that got the place of a closed one.
        self.accept();
        self.deliver();
        self.work();
        self.desk.handler.turn_ended();
        // What the handler itself gave in that moment goes out before the wait.
        self.deliver();
        Ok(self.obey())
    }

    fn wait(&self, wait_max: Option<Duration>) -> Option<Duration> {
        let ordered = self.desk.remote.ordered();
        let news = ordered == Order::End || (ordered == Order::Drain && !self.desk.draining);
        if !self.ready.is_empty() || !self.long.is_empty() || self.accepting.is_pending() || news {
            return Some(Duration::ZERO);
        }
        // The last reading of the clock: handling the last turn took from the wait, which a grain late outweighs.
        let next = [self.wheel.next(), self.accepting.paused_until()].into_iter().flatten().min();
        let wait = next.map(|next| next.since(self.desk.now));
        // poll(2) counts in whole milliseconds and rounds down: without one more it would spin through the last.
        let wait = wait.map(|wait| wait + Duration::from_millis(1));
        [wait, wait_max].into_iter().flatten().min()
    }

    fn on_event(&mut self, event: &mio::event::Event) {
        match event.token() {
            LISTENER => self.accepting.announced(),
            WAKER => {}
            Token(token) => {
                let Some(connection) = self.connections.get_mut(token) else { return };
                if event.is_error() || event.is_write_closed() {
                    self.close(token);
                    return;
                }
                connection.readable |= event.is_readable();
                connection.end_announced |= event.is_read_closed();
                self.serve(token);
            }
        }
    }

    /// Gives a connection its turn.
    #[inline]
    fn serve(&mut self, token: usize) {
        self.desk.begin(token);
        self.drive(token);
    }

    fn drive(&mut self, token: usize) {
        let connection = &mut self.connections[token];
        let next = connection.drive(&mut self.desk, &mut self.scratch, self.poll.registry());
        match next {
            Next::Sleep => {}
            Next::Again if connection.queued => {}
            Next::Again => {
                connection.queued = true;
                self.ready.push_back(token);
            }
            Next::Line if connection.lined => {}
            Next::Line => {
                connection.lined = true;
                self.long.push_back(token);
            }
            Next::Close => {
                self.close(token);
                return;
            }
        }
        let held = connection.held();
        self.desk.held = self.desk.held - connection.counted + held;
        connection.counted = held;
        if held > Limits::HELD_FREE && self.desk.held > self.desk.limits.held_bytes_max.saturating_mul(2) {
            if let Some(held_back) = DROPPED.due(self.desk.now) {
                log::warn!(held_back; "a connection is dropped: too much waits for clients that do not read");
            }
            self.desk.shared.turned_away.fetch_add(1, Ordering::Relaxed);
            self.close(token);
            return;
        }
        self.wheel.ensure(token, connection.deadline(&self.desk.limits));
    }

    fn serve_ready_line(&mut self) {
        // Those that join the line now have their turn in the next round.
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { return };
            if let Some(connection) = self.connections.get_mut(token)
                && connection.queued
            {
                connection.queued = false;
                self.serve(token);
            }
        }
    }

    /// Works on the request that is first in the line of those that take long, for a slice.
    fn work(&mut self) {
        let Some(&token) = self.long.front() else { return };
        self.desk.begin(token);
        let session = &mut self.connections[token].session;
        if session.progress() == Progress::Working {
            session.go_on(&mut self.desk);
            if session.progress() == Progress::Working {
                return;
            }
        }
        self.long.pop_front();
        self.connections[token].lined = false;
        self.drive(token);
    }

    fn close(&mut self, token: usize) {
        let mut connection = self.connections.remove(token);
        if connection.lined {
            self.long.retain(|other| *other != token);
        }
        if let Some(sending) = connection.session.sending() {
            // Whoever reads the answer must not take it for whole.
            connection.wire.break_off(!sending.chunked);
        }
        connection.wire.farewell();
        self.desk.held -= connection.counted;
        if connection.guest {
            self.guests -= 1;
        } else {
            self.desk.dismiss(connection.session.peer());
        }
    }

    fn accept(&mut self) {
        self.accepting.resume_at(self.desk.now);
        if !self.accepting.is_pending() {
            return;
        }
        for _ in 0..ACCEPTS_MAX {
            match self.accepting.next(self.desk.now) {
                Arrival::Connection(stream, peer) => self.open(stream, peer),
                Arrival::Nobody => return,
                Arrival::Failed => {
                    self.desk.shared.accept_errors.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    fn open(&mut self, stream: mio::net::TcpStream, peer: std::net::IpAddr) {
        let shared = &self.desk.shared;
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let refused = self.desk.admit(peer);
        if refused.is_some() {
            shared.turned_away.fetch_add(1, Ordering::Relaxed);
            if self.identity.is_some() {
                // To be told, it would have to be shaken hands with first.
                return;
            }
            if self.guests == GUESTS_MAX {
                turn_away(stream);
                return;
            }
            self.guests += 1;
        }
        // It is inherited from the listener on Linux; elsewhere it is not, and costs an answer its promptness only.
        if cfg!(not(target_os = "linux"))
            && let Err(error) = stream.set_nodelay(true)
        {
            log::debug!("TCP_NODELAY: {error}");
        }
        let tls = match self.identity.as_ref().map(|identity| identity.connection()).transpose() {
            Ok(tls) => tls,
            Err(error) => {
                if let Some(held_back) = NOT_BEGUN.due(self.desk.now) {
                    log::error!(held_back; "a connection could not begin to speak TLS and is closed: {error}");
                }
                self.desk.dismiss(peer);
                return;
            }
        };
        let entry = self.connections.vacant_entry();
        let token = entry.key();
        let session = Session::new(peer, self.desk.now);
        let wire = Wire::new(stream, tls);
        let connection = entry.insert(Connection::new(wire, session, self.desk.now));
        connection.guest = refused.is_some();
        if let Err(error) = connection.wire.register(self.poll.registry(), token) {
            if let Some(held_back) = NOT_BEGUN.due(self.desk.now) {
                log::error!(held_back; "a connection could not be watched and is closed: {error}");
            }
            self.close(token);
            return;
        }
        if let Some(why) = refused {
            self.desk.begin(token);
            connection.session.turn_away(why, &mut self.desk);
            self.drive(token);
            return;
        }
        // Whatever is already there is reported by the registration.
        self.wheel.ensure(token, connection.deadline(&self.desk.limits));
    }

    fn expire(&mut self) {
        self.wheel.advance(self.desk.now, &mut self.due);
        let mut due = std::mem::take(&mut self.due);
        for token in due.drain(..) {
            let Some(connection) = self.connections.get_mut(token) else { continue };
            let deadline = connection.deadline(&self.desk.limits);
            if deadline > self.desk.now {
                self.wheel.ensure(token, deadline);
                continue;
            }
            let slow = matches!(
                connection.session.progress(),
                Progress::Hungry | Progress::Paused | Progress::Streaming
            );
            if slow && (!connection.is_idle() || connection.wire.is_handshaking()) {
                self.desk.shared.timeouts.fetch_add(1, Ordering::Relaxed);
            }
            if connection.is_past_words() || connection.is_idle() || connection.session.sending().is_some() {
                self.close(token);
                continue;
            }
            self.desk.begin(token);
            connection.session.expire(&mut self.desk);
            self.drive(token);
        }
        self.due = due;
    }

    fn deliver(&mut self) {
        while let Some(late) = self.desk.remote.next_late() {
            let Some(connection) = self.connections.get_mut(late.token) else { continue };
            // The connection it was meant for may be gone, or have given up, and another have its place.
            match late.news {
                News::Answer(response) if connection.session.awaits(late.serial) => {
                    self.desk.begin(late.token);
                    connection.session.conclude_late(response, &mut self.desk);
                    self.drive(late.token);
                }
                News::More
                    if connection.session.sending().is_some_and(|sending| sending.serial == late.serial) =>
                {
                    self.serve(late.token);
                }
                News::Answer(_) | News::More => {}
            }
        }
    }

    fn obey(&mut self) -> Turn {
        match self.desk.remote.ordered() {
            Order::Serve => return Turn::More,
            Order::Drain => {
                if !self.desk.draining {
                    self.drain();
                }
                if !self.connections.is_empty() {
                    return Turn::More;
                }
            }
            Order::End => {}
        }
        self.accepting.close();
        let open: Vec<usize> = self.connections.iter().map(|(token, _)| token).collect();
        for token in open {
            self.close(token);
        }
        Turn::Ended
    }

    /// Closes what is idle and the listener. Whoever is in its queue has connected and is served, since closing
    /// would reset it; a request that has already arrived is answered too.
    fn drain(&mut self) {
        self.desk.draining = true;
        self.accepting.announced();
        for _ in 0..LAST_ACCEPTS_MAX {
            self.accept();
        }
        self.accepting.close();
        let open: Vec<usize> = self.connections.iter().map(|(token, _)| token).collect();
        for token in open {
            let connection = &mut self.connections[token];
            if connection.is_idle() {
                connection.readable = true;
                self.serve(token);
            }
            if self.connections.get(token).is_some_and(Connection::is_idle) {
                self.close(token);
            }
        }
    }
}

impl<H> Drop for Acceptor<H> {
    fn drop(&mut self) {
        for (_, connection) in self.connections.iter().filter(|(_, connection)| !connection.guest) {
            self.desk.dismiss(connection.session.peer());
        }
    }
}

/// Pins the calling thread to a core, the cores counted round. Says whether it did: in some containers it may not.
pub fn pin_to_core(index: usize) -> bool {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    !cores.is_empty() && core_affinity::set_for_current(cores[index % cores.len()])
}
