//! A TCP proxy between server and database that can be told to misbehave.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How much is passed on at once.
const PIECE_BYTES: usize = 4096;
/// A throttled piece is this small, so that what is under way stays little.
const THROTTLED_PIECE_BYTES: usize = 512;
/// The simple query that commits, as the client sends it.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
const COPY: &[u8] = b"COPY events ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Connections are closed, and new ones at once.
    Cut,
    /// Connections are accepted and held, and nothing passes.
    Silent,
    /// So many bytes a second, each way and connection.
    Throttled(u32),
}

#[derive(Debug)]
struct State {
    mode: Mode,
    /// The answer to the next COMMIT of a batch is swallowed, and its connection cut.
    swallow: bool,
    swallowed: u64,
    /// Raised by each cut.
    generation: u64,
    ended: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    database: u16,
}

/// Ends with its owner, and its connections with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// In front of the database on this port.
    pub(crate) fn to(database: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let state = State { mode: Mode::Pass, swallow: false, swallowed: 0, generation: 0, ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), database });
        let accepting = Arc::clone(&shared);
        spawn("proxy", move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.lock().ended {
                    return;
                }
                Shared::take(&accepting, client);
            }
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn heal(&self) {
        self.turn(Mode::Pass);
    }

    pub(crate) fn cut(&self) {
        self.turn(Mode::Cut);
    }

    pub(crate) fn fall_silent(&self) {
        self.turn(Mode::Silent);
    }

    pub(crate) fn throttle(&self, bytes_per_second: u32) {
        self.turn(Mode::Throttled(bytes_per_second));
    }

    pub(crate) fn swallow_next_commit(&self) {
        self.shared.lock().swallow = true;
    }

    /// How many answers to COMMIT were swallowed.
    pub(crate) fn swallowed(&self) -> u64 {
        self.shared.lock().swallowed
    }

    fn turn(&self, mode: Mode) {
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
        // Wakes the thread that accepts.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(this: &Arc<Self>, client: TcpStream) {
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
            // How soon a pump looks up: a cut must reach one that waits for bytes.
            stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket takes options");
        }
        let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be copied");
        let link = Arc::new(Link { shared: Arc::clone(this), generation, doomed: Mutex::new(false) });
        let up = Pump { link: Arc::clone(&link), from: copy(&client), to: copy(&server), is_up: true };
        let down = Pump { link, from: server, to: client, is_up: false };
        spawn("up", move || up.run());
        spawn("down", move || down.run());
    }
}

/// One connection.
struct Link {
    shared: Arc<Shared>,
    generation: u64,
    /// Its COMMIT has passed: the next that the database says is swallowed.
    doomed: Mutex<bool>,
}

impl Link {
    fn is_cut(&self) -> bool {
        self.shared.lock().generation != self.generation
    }

    fn doomed(&self) -> MutexGuard<'_, bool> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Pump {
    link: Arc<Link>,
    from: TcpStream,
    to: TcpStream,
    is_up: bool,
}

impl Pump {
    fn run(mut self) {
        self.pass();
        // Whichever way ends ends the other.
        for stream in [&self.from, &self.to] {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    fn pass(&mut self) {
        let mut bytes = [0; PIECE_BYTES];
        let mut is_batch = false;
        while !self.link.is_cut() {
            let throttled = matches!(self.link.shared.lock().mode, Mode::Throttled(_));
            let most = if throttled { THROTTLED_PIECE_BYTES } else { PIECE_BYTES };
            let piece = match self.from.read(&mut bytes[..most]) {
                Ok(0) => return,
                Ok(read) => &bytes[..read],
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_reset) => return,
            };
            if self.is_up {
                is_batch |= has(piece, COPY);
                if has(piece, COMMIT) && std::mem::take(&mut is_batch) {
                    let mut state = self.link.shared.lock();
                    if std::mem::take(&mut state.swallow) {
                        *self.link.doomed() = true;
                    }
                }
            } else if *self.link.doomed() {
                self.link.shared.lock().swallowed += 1;
                return;
            }
            if !self.admitted(piece.len()) || self.to.write_all(piece).is_err() {
                return;
            }
        }
    }

    /// Waits until so many bytes may pass; not when they never may.
    fn admitted(&self, bytes: usize) -> bool {
        let shared = &self.link.shared;
        let mut state = shared.lock();
        loop {
            if state.generation != self.link.generation {
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

fn has(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.into()).spawn(body).expect("a thread starts");
}
