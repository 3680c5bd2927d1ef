//! Real senders: OpenTelemetry's exporters for Python and Node, the CloudEvents SDKs for Python and
//! JavaScript, and syslog-ng send through a relay that loses answers, while the server is killed.
//! Each record is stored once.
//!
//! `scripts/test` installs the senders. A test without them fails there, and reports that it did not run
//! elsewhere.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::harness::postgres::free_port;
use crate::harness::process::{exit_within, not_tried, pdeathsig_command, signal};
use crate::harness::temp::temp_dir;
use crate::harness::wait::until_within;
use crate::harness::{TestServer, until};

const RECORDS: usize = 40;
const BATCHES: usize = 3;
/// Exporters wait up to some seconds before they send again.
const SEND_MAX: Duration = Duration::from_secs(90);
/// Answers that a relay loses, in all.
const LOST_MAX: usize = 4;

/// Forwards connections to a server. It loses every third answer, beginning with the first: it closes
/// the connection once the server has begun to answer.
struct Relay {
    address: SocketAddr,
    state: Arc<RelayState>,
}

struct RelayState {
    server: Mutex<SocketAddr>,
    answers: AtomicUsize,
    lost: AtomicUsize,
}

impl Relay {
    fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let state = Arc::new(RelayState {
            server: Mutex::new(server),
            answers: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&state);
        spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                spawn(move || shared.forward(&client));
            }
        });
        Self { address, state }
    }

    fn set_server(&self, server: SocketAddr) {
        *self.state.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    fn lost(&self) -> usize {
        self.state.lost.load(Ordering::Relaxed)
    }
}

impl RelayState {
    fn forward(&self, client: &TcpStream) {
        let address = *self.server.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(server) = TcpStream::connect(address) else { return };
        let (mut from, mut to) =
            (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
        spawn(move || {
            // The end of either side ends the other.
            drop(std::io::copy(&mut from, &mut to));
            drop(to.shutdown(Shutdown::Both));
        });
        self.return_answers(&server, client);
        drop(client.shutdown(Shutdown::Both));
        drop(server.shutdown(Shutdown::Both));
    }

    fn return_answers(&self, mut server: &TcpStream, mut client: &TcpStream) {
        // An answer to a post is short: it arrives as a whole.
        let mut answer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = server.read(&mut answer) {
            let nth = self.answers.fetch_add(1, Ordering::Relaxed);
            if nth.is_multiple_of(3) && self.lost.load(Ordering::Relaxed) < LOST_MAX {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if client.write_all(&answer[..length]).is_err() {
                return;
            }
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name("relay".into()).spawn(work).expect("a thread starts");
}

fn target(path: &str) -> PathBuf {
    // In the target directory, where scripts/test installs it.
    let target =
        Path::new(env!("CARGO_BIN_EXE_aurore-events")).ancestors().nth(2).expect("a target directory");
    target.join("senders").join(path)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/senders").join(name)
}

/// A sender, the service of its events, and their number.
struct Sender {
    service: &'static str,
    events: usize,
    relay: Relay,
    child: Child,
}

/// Starts a script with the URL of a relay.
fn start(test: &TestServer, service: &'static str, file: &str, arguments: &[&str], events: usize) -> Sender {
    let relay = Relay::start(test.server.address());
    let is_python = Path::new(file).extension().is_some_and(|extension| extension == "py");
    let program = if is_python { target("python/bin/python") } else { "node".into() };
    let child = pdeathsig_command("KILL", None, program)
        .arg(script(file))
        .arg(format!("http://{}", relay.address))
        .args(arguments)
        .env("NODE_PATH", target("node/node_modules"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv (util-linux) runs");
    Sender { service, events, relay, child }
}

/// Kills the server once each relay has lost an answer, and starts it again.
fn kill_and_restart(test: &mut TestServer, relays: &[&Relay]) {
    until_within(SEND_MAX, "answers are lost", || relays.iter().all(|relay| relay.lost() > 0));
    test.server.kill();
    test.server.restart();
    for relay in relays {
        relay.set_server(test.server.address());
    }
}

#[track_caller]
fn check_stored_once(test: &TestServer, service: &str, events: usize) {
    let count = |what: &str| {
        let sql = format!("SELECT count({what}) FROM events WHERE service = '{service}'");
        usize::try_from(test.postgres.value::<i64>(&sql)).expect("a count")
    };
    until(&format!("all events of {service} are stored"), || count("DISTINCT message") >= events);
    assert_eq!((count("DISTINCT message"), count("*")), (events, events), "{service}");
}

#[test]
fn records_of_real_senders_are_stored_once_across_lost_answers_and_a_kill() {
    if !target("python/bin/python").exists() || !target("node/node_modules/cloudevents").exists() {
        not_tried(&format!("the senders are not in {}; scripts/test puts them there", target("").display()));
        return;
    }
    let mut test = TestServer::start(&[("DURABILITY", "written")]);
    let (batches, records) = (BATCHES.to_string(), RECORDS.to_string());
    let (otel, size) = (BATCHES * RECORDS, [&*batches, &*records]);
    let senders = [
        start(&test, "otel-python", "otel_logs.py", &size, otel),
        start(&test, "otel-node-json", "otel_logs.js", &["json", size[0], size[1]], otel),
        start(&test, "otel-node-proto", "otel_logs.js", &["proto", size[0], size[1]], otel),
        start(&test, "cloudevents-python", "cloudevents_http.py", &[&*records], RECORDS),
        start(&test, "cloudevents-node", "cloudevents_http.js", &[&*records], RECORDS),
    ];
    kill_and_restart(&mut test, &senders.each_ref().map(|sender| &sender.relay));
    for Sender { service, events, mut child, .. } in senders {
        let status = exit_within(SEND_MAX, service, &mut child);
        let mut errors = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut errors).expect("text");
        assert!(status.success(), "{service}: {errors}");
        check_stored_once(&test, service, events);
    }
}

/// A configuration with an idempotency key per message, so that a retry is stored once however the
/// messages are batched then. docs/senders/syslog-ng.md has the same.
fn syslog_ng_config(port: u16, relay: SocketAddr) -> String {
    format!(
        r#"@version: 3.35
options {{ use-uniqid(yes); keep-hostname(yes); frac-digits(6); time-reopen(1); stats-freq(0); }};
source s_net {{ network(ip("127.0.0.1") port({port}) transport("tcp") flags(syslog-protocol)); }};
destination d_events {{
  http(
    url("http://{relay}/events") method("POST") headers("Content-Type: application/x-ndjson")
    body("$(format-json --scope none timestamp=${{ISODATE}} service=${{PROGRAM:-unknown_service}} message=${{MESSAGE}}
      idempotency_key=${{UNIQID}} metadata.host=${{HOST}} metadata.severity=${{LEVEL}})")
    delimiter("\n") batch-lines(10) batch-timeout(200) workers(1) retries(100)
  );
}};
log {{ source(s_net); destination(d_events); flags(flow-control); }};
"#
    )
}

#[test]
fn messages_of_syslog_ng_are_stored_once_across_lost_answers_and_a_kill() {
    let is_installed = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join("syslog-ng").exists())
    });
    if !is_installed {
        not_tried("syslog-ng is not installed; on Debian: apt-get install syslog-ng-core syslog-ng-mod-http");
        return;
    }
    let mut test = TestServer::start(&[("DURABILITY", "written")]);
    let relay = Relay::start(test.server.address());
    let (directory, port) = (temp_dir(), free_port());
    let file = |name: &str| directory.path().join(name);
    fs::write(file("syslog-ng.conf"), syslog_ng_config(port, relay.address)).expect("a file can be written");
    let mut child = pdeathsig_command("KILL", None, "syslog-ng")
        .args(["--foreground", "--no-caps", "--cfgfile"])
        .arg(file("syslog-ng.conf"))
        .arg("--persist-file")
        .arg(file("persist"))
        .arg("--control")
        .arg(file("control"))
        .arg("--pidfile")
        .arg(file("pid"))
        .stdout(Stdio::null())
        .spawn()
        .expect("setpriv (util-linux) runs");
    let mut connection = None;
    until("syslog-ng listens", || {
        connection = TcpStream::connect(("127.0.0.1", port)).ok();
        connection.is_some()
    });
    let mut connection = connection.expect("just connected");
    let time = crate::harness::now();
    let send = |connection: &mut TcpStream, number: usize| {
        let line = format!("<14>1 {time} host syslog-ng 1 - - message {number} of \"syslog-ng\"");
        writeln!(connection, "{line}").expect("syslog-ng reads");
    };
    (0..60).for_each(|number| send(&mut connection, number));
    kill_and_restart(&mut test, &[&relay]);
    (60..120).for_each(|number| send(&mut connection, number));
    check_stored_once(&test, "syslog-ng", 120);
    signal("TERM", child.id());
    exit_within(SEND_MAX, "syslog-ng", &mut child);
}
