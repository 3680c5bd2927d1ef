//! Over TCP, through a relay that can be told to misbehave.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::super::{Limits, PostgresRepository, Target};
use super::*;
use crate::storage::StoreError;

const PASS: u8 = 0;
/// What the database says is kept back.
const SILENCE: u8 = 1;
/// COMMIT goes through, and then the connection is cut.
const CUT_AFTER_COMMIT: u8 = 2;

struct Relay {
    port: u16,
    mode: Arc<AtomicU8>,
}

fn thread(work: impl FnOnce() + Send + 'static) {
    drop(std::thread::Builder::new().spawn(work).unwrap());
}

impl Relay {
    fn to(database: &Database) -> Self {
        let socket = format!("{}/.s.PGSQL.5432", database.target().describe().rsplit_once('/').unwrap().0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(PASS));
        let shared = Arc::clone(&mode);
        thread(move || {
            for client in listener.incoming() {
                // The test is over when its cluster is.
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else { return };
                relay(client, server, &shared);
            }
        });
        Self { port, mode }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    fn url(&self, database: &Database, options: &str) -> String {
        let name = database.target().describe().rsplit_once('/').unwrap().1.to_owned();
        format!("postgres://postgres@127.0.0.1:{}/{name}?{options}", self.port)
    }

    fn repository(&self, database: &Database, options: &str) -> PostgresRepository {
        let limits = Limits {
            store_timeout: Duration::from_millis(400),
            query_timeout: Duration::from_millis(400),
            grace: Duration::from_millis(200),
            ..Limits::default()
        };
        PostgresRepository::new(&Target::parse(&self.url(database, options)).unwrap(), limits)
    }
}

fn relay(client: TcpStream, server: UnixStream, mode: &Arc<AtomicU8>) {
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let (mut from_server, mut to_client) = (server, client);
    let up = Arc::clone(mode);
    thread(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok(length @ 1..) = from_client.read(&mut bytes) {
            if to_server.write_all(&bytes[..length]).is_err() {
                break;
            }
            if up.load(Ordering::SeqCst) == CUT_AFTER_COMMIT
                && bytes[..length].windows(7).any(|part| part == b"COMMIT\0")
            {
                // Once the database has said that it is done, and without passing that on.
                std::thread::sleep(Duration::from_millis(300));
                break;
            }
        }
        drop((from_client.shutdown(Shutdown::Both), to_server.shutdown(Shutdown::Both)));
    });
    let down = Arc::clone(mode);
    thread(move || {
        let mut bytes = vec![0; 65_536];
        let mut uncertain = Vec::new();
        while let Ok(length @ 1..) = from_server.read(&mut bytes) {
            while down.load(Ordering::SeqCst) == SILENCE {
                std::thread::sleep(Duration::from_millis(10));
            }
            // The answer to COMMIT is what the command tag of that name is in.
            if down.load(Ordering::SeqCst) == CUT_AFTER_COMMIT
                && bytes[..length].windows(7).any(|part| part == b"COMMIT\0")
            {
                uncertain.extend_from_slice(&bytes[..length]);
                continue;
            }
            if to_client.write_all(&bytes[..length]).is_err() {
                break;
            }
        }
    });
}

#[track_caller]
fn timed<T>(most: Duration, work: impl FnOnce() -> T) -> T {
    #[expect(clippy::disallowed_methods, reason = "how long it really takes is what is tested")]
    let begin = Instant::now();
    let value = work();
    assert!(begin.elapsed() < most, "{:?}", begin.elapsed());
    value
}

#[test]
fn events_pass_over_tcp_with_the_encryption_that_there_is() {
    let (database, _) = prepared();
    let relay = Relay::to(&database);
    for (tail, options) in ["sslmode=disable", "sslmode=prefer", ""].iter().enumerate() {
        let repository = relay.repository(&database, options);
        let rows: Vec<u8> = (0..200)
            .flat_map(|step| {
                event((NOON + step) * 1000, u8::try_from(tail).unwrap(), "a", &"m".repeat(9_000))
            })
            .collect();
        store(&repository, &[&rows], StorePath::Copy, (200, 0));
    }
    // PostgreSQL has no TLS on its own socket, so behind the relay it says no.
    for mode in ["require", "verify-full&sslrootcert=system"] {
        let Ok(target) = Target::parse(&relay.url(&database, &format!("sslmode={mode}"))) else { continue };
        let error = PostgresRepository::new(&target, Limits::default()).ping().unwrap_err();
        assert!(error.message.contains("does not offer TLS"), "{error}");
    }
}

#[test]
fn a_database_that_accepts_and_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for mode in ["disable", "prefer", "require"] {
        let port = listener.local_addr().unwrap().port();
        let url = format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1&sslmode={mode}");
        let repository = PostgresRepository::new(&Target::parse(&url).unwrap(), Limits::default());
        let error = timed(Duration::from_secs(3), || repository.ping().unwrap_err());
        assert_eq!(error.sqlstate, None);
        assert!(error.message.contains("not answered"), "{error}");
    }
}

#[test]
fn a_database_that_falls_silent_is_given_up_and_found_again() {
    let (database, _) = prepared();
    let relay = Relay::to(&database);
    let repository = relay.repository(&database, "sslmode=disable");
    let rows = |tail| -> Vec<u8> {
        (0..500).flat_map(|step| event((NOON + step) * 1000, tail, "a", &"m".repeat(9_000))).collect()
    };
    store(&repository, &[&rows(1)], StorePath::Copy, (500, 0));
    // Longer than its patience; but nobody is waiting.
    std::thread::sleep(Duration::from_millis(800));
    store(&repository, &[&rows(2)], StorePath::Copy, (500, 0));
    relay.set(SILENCE);
    let check = |error: StoreError| {
        assert_eq!((error.sqlstate, error.in_doubt), (None, false), "{}", error.message);
    };
    check(timed(Duration::from_secs(8), || repository.store(&[&rows(3)], &[], StorePath::Copy).unwrap_err()));
    relay.set(PASS);
    store(&repository, &[&rows(3)], StorePath::Stage, (500, 0));
    assert_eq!(database.number("SELECT count(*) FROM events"), 1500);
}

#[test]
fn a_lost_answer_to_commit_leaves_the_batch_in_doubt() {
    let (database, _) = prepared();
    let relay = Relay::to(&database);
    let repository = relay.repository(&database, "sslmode=disable");
    let one = event(NOON * 1000, 1, "a", "m");
    relay.set(CUT_AFTER_COMMIT);
    let error = repository.store(&[&one], &[], StorePath::Copy).unwrap_err();
    assert!(error.in_doubt && error.sqlstate.is_none(), "{error:?}");
    relay.set(PASS);
    store(&repository, &[&one], StorePath::Stage, (0, 1));
}
