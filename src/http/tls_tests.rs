//! TLS over loopback sockets, from outside, with certificates made here.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::acceptor_tests::{Server, await_that};
use super::tls::Identity;
use super::*;

const GET: &[u8] = b"GET /peer HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// The two files, and their directory, which goes with the test.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("aurore-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    fn certificate(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }

    fn key(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    /// Writes a fresh self-signed certificate and its key.
    fn write(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(self.certificate(), made.cert.pem()).unwrap();
        std::fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    fn identity(&self) -> Result<Identity, tls::IdentityError> {
        Identity::read(&self.certificate(), &self.key())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

type Secure<S = TcpStream> = StreamOwned<ClientConnection, S>;

fn secure<S: Read + Write>(stream: S, trusted: &CertificateDer<'static>) -> Secure<S> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

/// What comes until the client is told that it is all.
fn all(stream: &mut impl Read) -> String {
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).unwrap();
    String::from_utf8(answers).unwrap()
}

fn served(name: &str, limits: Limits) -> (Server, CertificateDer<'static>, Files, Arc<Identity>) {
    let files = Files::new(name);
    let trusted = files.write();
    let identity = Arc::new(files.identity().unwrap());
    (Server::start_with(limits, Some(Arc::clone(&identity))), trusted, files, identity)
}

#[test]
fn requests_are_answered_over_tls_and_the_end_is_announced() {
    let (server, trusted, _files, _) = served("answers", Limits::default());
    let mut client = secure(server.connect().0, &trusted);
    client.write_all(GET).unwrap();
    client.write_all(LAST).unwrap();
    let answers = all(&mut client);
    assert!(answers.contains("\r\n\r\n127.0.0.1HTTP/1.1 200 OK\r\n"), "{answers}");
    assert!(client.conn.alpn_protocol().is_none());
}

#[test]
fn large_bodies_and_answers_pass_and_pipelined_ones_stay_in_order() {
    let (server, trusted, _files, _) = served("large", Limits { pipelined_max: 3, ..Limits::default() });
    let body = "abcdefgh".repeat(1 << 15);
    let mut client = secure(server.connect().0, &trusted);
    let post = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.write_all(post.as_bytes()).unwrap();
    // Its end comes only when it is read, so that the server has to wait for this client in between.
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    for n in 0..20 {
        write!(client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n<{n:02}>").unwrap();
    }
    client.write_all(LAST).unwrap();
    let answers = all(&mut client);
    assert!(answers.contains(&body) && answers.contains(&"x".repeat(8 << 20)));
    let order: Vec<_> =
        answers.match_indices('<').map(|(at, _)| answers[at + 1..at + 3].to_owned()).collect();
    assert_eq!(order, (0..20).map(|n| format!("{n:02}")).collect::<Vec<_>>());
}

/// Sends a byte at a time.
struct Dribble(TcpStream);

impl Read for Dribble {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Dribble {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn records_may_come_byte_by_byte() {
    let (server, trusted, _files, _) = served("dribble", Limits::default());
    let stream = server.connect().0;
    stream.set_nodelay(true).unwrap();
    let mut client = secure(Dribble(stream), &trusted);
    client.write_all(GET).unwrap();
    client.write_all(LAST).unwrap();
    assert_eq!(rehearsal::statuses(&all(&mut client)), [200, 200]);
}

#[test]
fn the_corpus_is_answered_over_tls_as_in_clear() {
    let (server, trusted, _files, _) = served("corpus", Limits::default());
    for case in session_tests::corpus().iter().step_by(7) {
        let mut client = secure(server.connect().0, &trusted);
        client.write_all(&case.request).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        let answers = all(&mut client);
        assert_eq!(rehearsal::statuses(&answers), case.statuses, "{}: {answers}", case.name);
    }
}

#[test]
fn a_request_in_clear_is_told_that_tls_is_spoken() {
    let (server, trusted, _files, _) = served("clear", Limits::default());
    let mut plain = server.say(GET);
    let (status, body) = plain.answer();
    assert!(status == 400 && body.contains("this port speaks TLS"), "{body}");
    plain.closed();
    // And what only looks like TLS costs nobody else anything.
    let mut garbage = server.say(&[22; 500]);
    let mut rest = Vec::new();
    // The end may come as a reset: what it sent is not read.
    garbage.0.read_to_end(&mut rest).ok();
    await_that(|| server.shared.connections() == 0);
    let mut client = secure(server.connect().0, &trusted);
    client.write_all(LAST).unwrap();
    assert_eq!(rehearsal::statuses(&all(&mut client)), [200]);
}

#[test]
fn a_tls_client_on_a_port_without_tls_is_refused_at_its_first_byte() {
    let server = Server::start(Limits::default());
    let (status, body) = server.say(&[22]).answer();
    assert!(status == 400 && body.contains("without TLS"), "{body}");
}

#[test]
fn a_handshake_has_the_time_of_a_header() {
    let limits = Limits { header_timeout: Duration::from_millis(150), ..Limits::default() };
    let (server, trusted, _files, _) = served("slow", limits);
    let mut silent = server.connect();
    let mut begun = server.say(&[22, 3, 1]);
    silent.closed();
    begun.0.read_to_end(&mut Vec::new()).ok();
    await_that(|| server.shared.timeouts() == 2 && server.shared.connections() == 0);
    // Once it is done, the connection may be idle for as long as any other.
    let mut client = secure(server.connect().0, &trusted);
    client.conn.complete_io(&mut client.sock).unwrap();
    std::thread::park_timeout(Duration::from_millis(400));
    client.write_all(LAST).unwrap();
    assert_eq!(rehearsal::statuses(&all(&mut client)), [200]);
}

#[test]
fn a_new_certificate_is_for_new_connections_and_a_bad_one_for_none() {
    let (server, trusted, files, identity) = served("reload", Limits::default());
    let mut old = secure(server.connect().0, &trusted);
    old.write_all(GET).unwrap();
    let renewed = files.write();
    identity.reload().unwrap();
    let mut new = secure(server.connect().0, &renewed);
    new.write_all(LAST).unwrap();
    assert_eq!(rehearsal::statuses(&all(&mut new)), [200]);
    old.write_all(LAST).unwrap();
    assert_eq!(rehearsal::statuses(&all(&mut old)), [200, 200]);

    std::fs::write(files.certificate(), "nonsense").unwrap();
    assert!(identity.reload().unwrap_err().to_string().contains("holds no certificate"));
    let mut still = secure(server.connect().0, &renewed);
    still.write_all(LAST).unwrap();
    assert_eq!(rehearsal::statuses(&all(&mut still)), [200]);
}

#[track_caller]
fn check(files: &Files, words: &[&str]) {
    let error = files.identity().unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn files_that_cannot_be_used_are_named_with_the_reason() {
    let files = Files::new("files");
    check(&files, &["TLS_CERT", "cert.pem"]);
    files.write();
    std::fs::write(files.key(), "nonsense").unwrap();
    check(&files, &["TLS_KEY", "key.pem"]);
    files.write();
    let key = std::fs::read(files.key()).unwrap();
    files.write();
    std::fs::write(files.key(), key).unwrap();
    check(&files, &["TLS_CERT", "TLS_KEY"]);
}

#[test]
fn draining_ends_an_idle_tls_connection_with_a_word() {
    let (server, trusted, _files, _) = served("drain", Limits::default());
    let mut client = secure(server.connect().0, &trusted);
    client.conn.complete_io(&mut client.sock).unwrap();
    client.sock.shutdown(Shutdown::Write).ok();
    server.remote.drain();
    assert_eq!(all(&mut client), "");
}
