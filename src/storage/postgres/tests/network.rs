//! TCP connections through a relay with fault injection.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use super::super::{ConnectTarget, PostgresLimits, PostgresRepository};
use super::*;
use crate::storage::StoreError;

const PASS: u8 = 0;
/// The relay holds back responses of the database.
const SILENCE: u8 = 1;
/// The relay forwards COMMIT and then closes the connection.
const CUT_AFTER_COMMIT: u8 = 2;

struct Relay {
    port: u16,
    mode: Arc<AtomicU8>,
}

fn thread(work: impl FnOnce() + Send + 'static) {
    drop(std::thread::Builder::new().spawn(work).unwrap());
}

impl Relay {
    fn to(database: &TestDatabase) -> Self {
        let socket = format!("{}/.s.PGSQL.5432", database.target().describe().rsplit_once('/').unwrap().0);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(PASS));
        let shared = Arc::clone(&mode);
        thread(move || {
            for client in listener.incoming() {
                // The cluster stops at the end of the test.
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&socket)) else { return };
                relay(client, server, &shared);
            }
        });
        Self { port, mode }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    fn url(&self, database: &TestDatabase, options: &str) -> String {
        let name = database.target().describe().rsplit_once('/').unwrap().1.to_owned();
        format!("postgres://postgres@127.0.0.1:{}/{name}?{options}", self.port)
    }

    fn repository(&self, database: &TestDatabase, options: &str) -> PostgresRepository {
        let limits = PostgresLimits {
            store_timeout: Duration::from_millis(400),
            query_timeout: Duration::from_millis(400),
            response_grace: Duration::from_millis(200),
            ..PostgresLimits::default()
        };
        PostgresRepository::new(&ConnectTarget::parse(&self.url(database, options)).unwrap(), limits)
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
                // Wait for the database to commit; the response is not forwarded.
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
            // The response to COMMIT contains its command tag.
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
    #[expect(clippy::disallowed_methods, reason = "the test measures real time")]
    let begin = Instant::now();
    let value = work();
    assert!(begin.elapsed() < most, "{:?}", begin.elapsed());
    value
}

#[test]
fn store_over_tcp_works_with_each_available_sslmode() {
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
    // PostgreSQL does not support TLS on its Unix socket, to which the relay connects.
    for mode in ["require", "verify-full&sslrootcert=system"] {
        let Ok(target) = ConnectTarget::parse(&relay.url(&database, &format!("sslmode={mode}"))) else {
            continue;
        };
        let error = PostgresRepository::new(&target, PostgresLimits::default()).ping().unwrap_err();
        assert!(error.message.contains("does not support TLS"), "{error}");
    }
}

#[test]
fn connect_times_out_when_the_database_never_responds() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for mode in ["disable", "prefer", "require"] {
        let port = listener.local_addr().unwrap().port();
        let url = format!("postgres://u@127.0.0.1:{port}/d?connect_timeout=1&sslmode={mode}");
        let repository =
            PostgresRepository::new(&ConnectTarget::parse(&url).unwrap(), PostgresLimits::default());
        let error = timed(Duration::from_secs(3), || repository.ping().unwrap_err());
        assert_eq!(error.sqlstate, None);
        assert!(error.message.contains("no response"), "{error}");
    }
}

#[test]
fn store_times_out_on_a_silent_database_and_then_recovers() {
    let (database, _) = prepared();
    let relay = Relay::to(&database);
    let repository = relay.repository(&database, "sslmode=disable");
    let rows = |tail| -> Vec<u8> {
        (0..500).flat_map(|step| event((NOON + step) * 1000, tail, "a", &"m".repeat(9_000))).collect()
    };
    store(&repository, &[&rows(1)], StorePath::Copy, (500, 0));
    // Longer than the I/O timeout, which does not apply to an idle connection.
    std::thread::sleep(Duration::from_millis(800));
    store(&repository, &[&rows(2)], StorePath::Copy, (500, 0));
    relay.set(SILENCE);
    let check = |error: StoreError| {
        assert_eq!((error.sqlstate, error.in_doubt), (None, false), "{}", error.message);
    };
    check(timed(Duration::from_secs(8), || repository.store(&[&rows(3)], &[], StorePath::Copy).unwrap_err()));
    relay.set(PASS);
    store(&repository, &[&rows(3)], StorePath::Staging, (500, 0));
    assert_eq!(database.number("SELECT count(*) FROM events"), 1500);
}

#[test]
fn store_is_in_doubt_when_the_commit_result_is_lost() {
    let (database, _) = prepared();
    let relay = Relay::to(&database);
    let repository = relay.repository(&database, "sslmode=disable");
    let one = event(NOON * 1000, 1, "a", "m");
    relay.set(CUT_AFTER_COMMIT);
    let error = repository.store(&[&one], &[], StorePath::Copy).unwrap_err();
    assert!(error.in_doubt && error.sqlstate.is_none(), "{error:?}");
    relay.set(PASS);
    store(&repository, &[&one], StorePath::Staging, (0, 1));
}
