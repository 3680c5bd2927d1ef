//! A TCP proxy in front of a database that injects network faults.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The largest piece that is forwarded at once.
const PIECE_BYTES: usize = 4096;
/// The largest piece of a throttled connection; small, so that few bytes are in flight.
const THROTTLED_PIECE_BYTES: usize = 512;
/// The simple query COMMIT in the protocol of PostgreSQL.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
const COPY: &[u8] = b"COPY events ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Open connections are closed, and new ones are closed at once.
    Cut,
    /// Connections are accepted and kept open, and no byte is forwarded.
    Silent,
    /// Bytes per second, for each direction of each connection.
    Throttled(u32),
}

/// The hold of one COMMIT of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    None,
    /// The next COMMIT is held.
    Armed,
    /// A COMMIT is held.
    Held,
    /// The connection of the held COMMIT is closed, and the COMMIT is not forwarded.
    Cut,
}

#[derive(Debug)]
struct State {
    mode: Mode,
    hold: Hold,
    /// The reply to the next COMMIT of a batch is dropped, and its connection closed.
    drop_next_reply: bool,
    dropped_replies: u64,
    /// Incremented by each cut.
    generation: u64,
    ended: bool,
}

#[derive(Debug)]
struct ProxyShared {
    state: Mutex<State>,
    changed: Condvar,
    database: u16,
}

/// The proxy. Drop closes it and its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<ProxyShared>,
}

impl Proxy {
    /// Starts a proxy in front of the database on this port.
    pub(crate) fn to(database: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let state = State {
            mode: Mode::Pass,
            hold: Hold::None,
            drop_next_reply: false,
            dropped_replies: 0,
            generation: 0,
            ended: false,
        };
        let shared = Arc::new(ProxyShared { state: Mutex::new(state), changed: Condvar::new(), database });
        let accept_shared = Arc::clone(&shared);
        spawn("proxy", move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accept_shared.lock().ended {
                    return;
                }
                ProxyShared::connect(&accept_shared, client);
            }
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn repair(&self) {
        self.set_mode(Mode::Pass);
    }

    pub(crate) fn cut(&self) {
        self.set_mode(Mode::Cut);
    }

    pub(crate) fn stall(&self) {
        self.set_mode(Mode::Silent);
    }

    pub(crate) fn throttle(&self, bytes_per_second: u32) {
        self.set_mode(Mode::Throttled(bytes_per_second));
    }

    /// Holds the next COMMIT of a batch, until `release_commit` or `cut_held_commit`.
    pub(crate) fn hold_next_commit(&self) {
        self.set_hold(Hold::Armed);
    }

    pub(crate) fn is_commit_held(&self) -> bool {
        self.shared.lock().hold == Hold::Held
    }

    pub(crate) fn release_commit(&self) {
        self.set_hold(Hold::None);
    }

    /// Closes the connection of the held COMMIT.
    pub(crate) fn cut_held_commit(&self) {
        self.set_hold(Hold::Cut);
    }

    fn set_hold(&self, hold: Hold) {
        self.shared.lock().hold = hold;
        self.shared.changed.notify_all();
    }

    pub(crate) fn drop_next_commit_reply(&self) {
        self.shared.lock().drop_next_reply = true;
    }

    /// The number of dropped replies to COMMIT.
    pub(crate) fn dropped_replies(&self) -> u64 {
        self.shared.lock().dropped_replies
    }

    fn set_mode(&self, mode: Mode) {
        let mut state = self.shared.lock();
        state.mode = mode;
        if mode == Mode::Cut {
            state.generation += 1;
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.generation += 1;
        self.shared.changed.notify_all();
        drop(state);
        // Wakes the accepting thread.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl ProxyShared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(this: &Arc<Self>, client: TcpStream) {
        let (mode, generation) = {
            let state = this.lock();
            (state.mode, state.generation)
        };
        if mode == Mode::Cut {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", this.database)) else { return };
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a socket takes options");
            // A cut must also end a pump that waits for bytes.
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket takes options");
        }
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be copied");
        let connection = Arc::new(ProxiedConnection {
            shared: Arc::clone(this),
            generation,
            drop_reply: Mutex::new(false),
        });
        let up = Pump {
            connection: Arc::clone(&connection),
            from: copy(&client),
            to: copy(&server),
            to_database: true,
        };
        let down = Pump { connection, from: server, to: client, to_database: false };
        spawn("up", move || up.run());
        spawn("down", move || down.run());
    }
}

/// One connection of a client to the database.
struct ProxiedConnection {
    shared: Arc<ProxyShared>,
    generation: u64,
    /// COMMIT was forwarded: the next bytes of the database are dropped.
    drop_reply: Mutex<bool>,
}

impl ProxiedConnection {
    fn is_cut(&self) -> bool {
        self.shared.lock().generation != self.generation
    }

    fn drop_reply(&self) -> MutexGuard<'_, bool> {
        self.drop_reply.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Pump {
    connection: Arc<ProxiedConnection>,
    from: TcpStream,
    to: TcpStream,
    to_database: bool,
}

impl Pump {
    fn run(mut self) {
        self.forward();
        // The end of one direction ends the other.
        for stream in [&self.from, &self.to] {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn forward(&mut self) {
        let mut bytes = [0; PIECE_BYTES];
        let mut is_batch = false;
        while !self.connection.is_cut() {
            let throttled = matches!(self.connection.shared.lock().mode, Mode::Throttled(_));
            let most = if throttled { THROTTLED_PIECE_BYTES } else { PIECE_BYTES };
            let piece = match self.from.read(&mut bytes[..most]) {
                Ok(0) => return,
                Ok(read) => &bytes[..read],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_reset) => return,
            };
            if self.to_database {
                is_batch |= contains(piece, COPY);
                if contains(piece, COMMIT) && std::mem::take(&mut is_batch) {
                    let mut state = self.connection.shared.lock();
                    if state.hold == Hold::Armed {
                        state.hold = Hold::Held;
                        if !self.wait_for_release(state) {
                            return;
                        }
                    } else if std::mem::take(&mut state.drop_next_reply) {
                        *self.connection.drop_reply() = true;
                    }
                }
            } else if *self.connection.drop_reply() {
                self.connection.shared.lock().dropped_replies += 1;
                return;
            }
            if !self.wait_to_forward(piece.len()) || self.to.write_all(piece).is_err() {
                return;
            }
        }
    }

    /// Waits until the held COMMIT may be forwarded; false if its connection is cut.
    fn wait_for_release(&self, mut state: MutexGuard<'_, State>) -> bool {
        let shared = &self.connection.shared;
        while state.hold == Hold::Held && state.generation == self.connection.generation {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.hold == Hold::None && state.generation == self.connection.generation
    }

    /// Waits until this many bytes may be forwarded; false if the connection is cut.
    fn wait_to_forward(&self, bytes: usize) -> bool {
        let shared = &self.connection.shared;
        let mut state = shared.lock();
        loop {
            if state.generation != self.connection.generation {
                return false;
            }
            match state.mode {
                Mode::Pass => return true,
                Mode::Cut => return false,
                Mode::Silent => {
                    state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Mode::Throttled(bytes_per_second) => {
                    drop(state);
                    let bytes = u32::try_from(bytes).expect("a piece is small");
                    thread::sleep(Duration::from_secs(1) * bytes / bytes_per_second);
                    return true;
                }
            }
        }
    }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.into()).spawn(body).expect("a thread starts");
}
