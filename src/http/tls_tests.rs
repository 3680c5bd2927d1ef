//! Tests of TLS over loopback sockets, with generated certificates.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::acceptor_tests::{TestAcceptor, wait_until};
use super::tls::TlsIdentity;
use super::*;

const GET: &[u8] = b"GET /peer HTTP/1.1\r\nHost: localhost\r\n\r\n";
const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// A certificate file and a key file in a directory that is deleted with the test.
struct CertificateFiles {
    directory: PathBuf,
}

impl CertificateFiles {
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

    /// Writes a new self-signed certificate and its key.
    fn write(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(self.certificate(), made.cert.pem()).unwrap();
        std::fs::write(self.key(), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    fn identity(&self) -> Result<TlsIdentity, tls::LoadIdentityError> {
        TlsIdentity::read(&self.certificate(), &self.key())
    }
}

impl Drop for CertificateFiles {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            eprintln!("{}: {error}", self.directory.display());
        }
    }
}

type TlsClient<S = TcpStream> = StreamOwned<ClientConnection, S>;

fn tls_client<S: Read + Write>(stream: S, trusted: &CertificateDer<'static>) -> TlsClient<S> {
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

/// Reads until the `close_notify`.
fn read_all(stream: &mut impl Read) -> String {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    String::from_utf8(received).unwrap()
}

fn start_tls(
    name: &str,
    limits: HttpLimits,
) -> (TestAcceptor, CertificateDer<'static>, CertificateFiles, Arc<TlsIdentity>) {
    let files = CertificateFiles::new(name);
    let trusted = files.write();
    let identity = Arc::new(files.identity().unwrap());
    (TestAcceptor::start_with(limits, Some(Arc::clone(&identity))), trusted, files, identity)
}

#[test]
fn tls_connection_serves_requests_and_ends_with_close_notify() {
    let (server, trusted, _files, _) = start_tls("received", HttpLimits::default());
    let mut client = tls_client(server.connect().0, &trusted);
    client.write_all(GET).unwrap();
    client.write_all(LAST).unwrap();
    let received = read_all(&mut client);
    assert!(received.contains("\r\n\r\n127.0.0.1HTTP/1.1 200 OK\r\n"), "{received}");
    assert!(client.conn.alpn_protocol().is_none());
}

#[test]
fn tls_transfers_large_bodies_and_keeps_pipelined_responses_in_order() {
    let (server, trusted, _files, _) =
        start_tls("large", HttpLimits { pipelined_max: 3, ..HttpLimits::default() });
    let body = "abcdefgh".repeat(1 << 15);
    let mut client = tls_client(server.connect().0, &trusted);
    let post = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.write_all(post.as_bytes()).unwrap();
    // The response exceeds the socket buffers, so the server has to wait for this client.
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    for n in 0..20 {
        write!(client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n<{n:02}>").unwrap();
    }
    client.write_all(LAST).unwrap();
    let received = read_all(&mut client);
    assert!(received.contains(&body) && received.contains(&"x".repeat(8 << 20)));
    let order: Vec<_> =
        received.match_indices('<').map(|(at, _)| received[at + 1..at + 3].to_owned()).collect();
    assert_eq!(order, (0..20).map(|n| format!("{n:02}")).collect::<Vec<_>>());
}

/// Writes one byte at a time.
struct OneByteWriter(TcpStream);

impl Read for OneByteWriter {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for OneByteWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn tls_records_may_arrive_byte_by_byte() {
    let (server, trusted, _files, _) = start_tls("dribble", HttpLimits::default());
    let stream = server.connect().0;
    stream.set_nodelay(true).unwrap();
    let mut client = tls_client(OneByteWriter(stream), &trusted);
    client.write_all(GET).unwrap();
    client.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut client)), [200, 200]);
}

#[test]
fn tls_answers_the_corpus_as_plaintext_does() {
    let (server, trusted, _files, _) = start_tls("corpus", HttpLimits::default());
    for case in session_tests::corpus().iter().step_by(7) {
        let mut client = tls_client(server.connect().0, &trusted);
        client.write_all(&case.request).unwrap();
        client.conn.send_close_notify();
        client.flush().unwrap();
        let received = read_all(&mut client);
        assert_eq!(sans_io_harness::statuses(&received), case.statuses, "{}: {received}", case.name);
    }
}

#[test]
fn plaintext_request_on_a_tls_port_gets_a_plaintext_400() {
    let (server, trusted, _files, _) = start_tls("clear", HttpLimits::default());
    let mut plain = server.connect_and_send(GET);
    let (status, body) = plain.response();
    assert!(status == 400 && body.contains("this port requires TLS"), "{body}");
    plain.expect_close();
    // Invalid TLS records do not affect other connections.
    let mut garbage = server.connect_and_send(&[22; 500]);
    let mut rest = Vec::new();
    // The close may be a reset, because its input is unread.
    garbage.0.read_to_end(&mut rest).ok();
    wait_until(|| server.stats.connections() == 0);
    let mut client = tls_client(server.connect().0, &trusted);
    client.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut client)), [200]);
}

#[test]
fn tls_client_on_a_plaintext_port_is_refused_at_its_first_byte() {
    let server = TestAcceptor::start(HttpLimits::default());
    let (status, body) = server.connect_and_send(&[22]).response();
    assert!(status == 400 && body.contains("without TLS"), "{body}");
}

#[test]
fn handshake_is_bounded_by_the_header_timeout() {
    let limits = HttpLimits { header_timeout: Duration::from_millis(150), ..HttpLimits::default() };
    let (server, trusted, _files, _) = start_tls("slow", limits);
    let mut silent = server.connect();
    let mut begun = server.connect_and_send(&[22, 3, 1]);
    silent.expect_close();
    begun.0.read_to_end(&mut Vec::new()).ok();
    wait_until(|| server.stats.timeouts() == 2 && server.stats.connections() == 0);
    // After the handshake, the idle timeout applies.
    let mut client = tls_client(server.connect().0, &trusted);
    client.conn.complete_io(&mut client.sock).unwrap();
    std::thread::park_timeout(Duration::from_millis(400));
    client.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut client)), [200]);
}

/// The first 60,000 bytes of a client hello of 65,000.
fn unfinished_client_hello() -> Vec<u8> {
    let mut message = vec![1, 0, 0xfd, 0xe8, 3, 3];
    message.resize(60_000, 0);
    let records = message.chunks(16_384);
    records
        .flat_map(|part| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1], &length[..], part].concat()
        })
        .collect()
}

#[test]
fn unfinished_handshakes_count_toward_the_memory_limit() {
    const HELD_MAX: usize = 4;
    let limits = HttpLimits { connection_memory_bytes_max: HELD_MAX * 65_536, ..HttpLimits::default() };
    let (server, trusted, _files, _) = start_tls("hello", limits);
    let clients: Vec<_> = (0..40)
        .map(|_| {
            let mut client = server.connect();
            // The server may drop it before it has sent everything.
            client.0.write_all(&unfinished_client_hello()).ok();
            client
        })
        .collect();
    wait_until(|| server.stats.rejected() >= 40 - HELD_MAX as u64);
    // Small handshakes are served meanwhile.
    let mut client = tls_client(server.connect().0, &trusted);
    client.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut client)), [200]);
    drop(clients);
    wait_until(|| server.stats.connections() == 0);
}

#[test]
fn reloaded_certificate_applies_to_new_connections_and_a_bad_one_is_ignored() {
    let (server, trusted, files, identity) = start_tls("reload", HttpLimits::default());
    let mut old = tls_client(server.connect().0, &trusted);
    old.write_all(GET).unwrap();
    let renewed = files.write();
    identity.reload().unwrap();
    let mut new = tls_client(server.connect().0, &renewed);
    new.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut new)), [200]);
    old.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut old)), [200, 200]);

    std::fs::write(files.certificate(), "nonsense").unwrap();
    assert!(identity.reload().unwrap_err().to_string().contains("holds no certificate"));
    let mut still = tls_client(server.connect().0, &renewed);
    still.write_all(LAST).unwrap();
    assert_eq!(sans_io_harness::statuses(&read_all(&mut still)), [200]);
}

#[track_caller]
fn check(files: &CertificateFiles, words: &[&str]) {
    let error = files.identity().unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn identity_error_names_the_file_and_the_reason() {
    let files = CertificateFiles::new("files");
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
fn drain_closes_an_idle_tls_connection_with_close_notify() {
    let (server, trusted, _files, _) = start_tls("drain", HttpLimits::default());
    let mut client = tls_client(server.connect().0, &trusted);
    client.conn.complete_io(&mut client.sock).unwrap();
    client.sock.shutdown(Shutdown::Write).ok();
    server.handle.drain();
    assert_eq!(read_all(&mut client), "");
}
