//! The server as a service of systemd: the notifications, the log lines for the journal, and the
//! unit. The test is the service manager.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::postgres::free_port;
use crate::harness::process::exit_within;
use crate::harness::server::{PROGRAM, command, run, wait_for_partitions};
use crate::harness::temp::temp_dir;
use crate::harness::{Postgres, Proxy, Server, event, until};

/// No database answers there.
const NO_DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
const SOON: Duration = Duration::from_secs(20);

/// The socket of the service manager.
struct NotifySocket {
    socket: UnixDatagram,
    directory: tempfile::TempDir,
}

impl NotifySocket {
    fn bind() -> Self {
        let directory = temp_dir();
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("a socket can be bound");
        socket.set_read_timeout(Some(SOON)).expect("it can be set");
        Self { socket, directory }
    }

    fn path(&self) -> String {
        self.directory.path().join("notify").to_str().expect("it is UTF-8").to_owned()
    }

    #[track_caller]
    fn next(&self) -> String {
        let mut text = [0; 4096];
        let length = self.socket.recv(&mut text).expect("the server notifies");
        String::from_utf8(text[..length].to_vec()).expect("it is text")
    }

    /// The next message that begins with `start`, and those before it.
    #[track_caller]
    fn until(&self, start: &str) -> (String, Vec<String>) {
        let mut skipped = Vec::new();
        loop {
            let message = self.next();
            if message.starts_with(start) {
                return (message, skipped);
            }
            skipped.push(message);
        }
    }
}

#[test]
fn the_service_manager_is_told_of_the_start_a_reload_and_the_drain() {
    let notify = NotifySocket::bind();
    let mut server = Server::start_unready(&[
        NO_DATABASE,
        ("NOTIFY_SOCKET", &notify.path()),
        ("LINGER", "60000"),
        ("DRAIN_INTERVAL", "60000"),
    ]);
    notify.until("READY=1");
    let (status, _) = notify.until("STATUS=accepting");
    assert!(status.contains("0 not stored yet"), "{status}");
    server.client().post_json(event("s", "m"));
    let (_, between) = notify.until("STATUS=accepting events; 1 not stored yet");
    assert!(
        !between.iter().any(|message| message.starts_with("WATCHDOG")),
        "no watchdog is set: {between:?}"
    );

    server.signal("HUP");
    let (reloading, _) = notify.until("RELOADING=1");
    let usec = reloading.split_once("\nMONOTONIC_USEC=").and_then(|(_, usec)| usec.parse::<u64>().ok());
    assert!(usec.is_some_and(|usec| usec > 0), "{reloading}");
    notify.until("READY=1");

    server.signal("TERM");
    let (stopping, _) = notify.until("STOPPING=1");
    assert_eq!(stopping, "STOPPING=1\nSTATUS=draining; 1 events not stored yet");
    assert_eq!(server.exit_within(SOON).code(), Some(0));
}

#[test]
fn a_drain_asks_the_service_manager_for_more_time() {
    let notify = NotifySocket::bind();
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let url = Postgres::url_through(proxy.port(), "none");
    let mut server = Server::start(&[("DATABASE_URL", &url), ("NOTIFY_SOCKET", &notify.path())]);
    wait_for_partitions(&postgres);
    proxy.hold_next_commit();
    server.client().post_json(event("s", "m"));
    until("a commit is held", || proxy.is_commit_held());
    server.signal("TERM");
    notify.until("STOPPING=1");
    let (more, _) = notify.until("EXTEND_TIMEOUT_USEC=");
    assert_eq!(more, "EXTEND_TIMEOUT_USEC=15000000");
    server.kill();
}

#[test]
fn the_watchdog_is_fed_by_an_idle_server_and_not_while_its_writer_does_not_move() {
    let notify = NotifySocket::bind();
    let postgres = Postgres::start();
    let proxy = Proxy::to(postgres.port());
    let server = Server::start(&[
        ("DATABASE_URL", &Postgres::url_through(proxy.port(), "none")),
        ("NOTIFY_SOCKET", &notify.path()),
        ("WATCHDOG_USEC", "400000"),
        ("CIRCUIT_BREAKER_FAILURE_THRESHOLD", "1000"),
    ]);
    wait_for_partitions(&postgres);
    for _ in 0..10 {
        notify.until("WATCHDOG=1");
    }
    // The writer retries a failed batch itself; then it waits for a database that does not answer.
    proxy.cut();
    server.client().post_json(event("s", "m"));
    until("the batch has failed", || server.log().contains("storing a batch failed"));
    proxy.stall();
    let unfed = "the watchdog is not fed: the thread does not move\" thread=writer";
    until("the watchdog is not fed", || server.log().contains(unfed));
    proxy.repair();
    until("the event is stored", || server.metric("events_stored_total") == 1);
    notify.socket.set_nonblocking(true).unwrap();
    while notify.socket.recv(&mut [0; 4096]).is_ok() {}
    notify.socket.set_nonblocking(false).unwrap();
    notify.until("WATCHDOG=1");
}

#[test]
fn a_notify_socket_that_is_gone_does_not_stop_the_server() {
    let path = format!("/tmp/aurore-it-none-{}", free_port());
    let mut server = Server::start(&[NO_DATABASE, ("NOTIFY_SOCKET", &path), ("WATCHDOG_USEC", "400000")]);
    server.stop();
}

#[test]
fn log_lines_begin_with_their_priority_when_standard_error_is_the_journal() {
    let directory = temp_dir();
    let path = directory.path().join("stderr");
    let logged = |stream: &dyn Fn(&fs::Metadata) -> String| {
        let stderr = File::create(&path).unwrap();
        let stream = stream(&stderr.metadata().unwrap());
        let settings = [("JOURNAL_STREAM", stream.as_str()), ("PORT", "0")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut child = command(&settings, directory.path())
            .arg("healthcheck")
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        assert_eq!(exit_within(SOON, "the program", &mut child).code(), Some(1));
        fs::read_to_string(&path).unwrap()
    };
    let journal = logged(&|file| format!("{}:{}", file.dev(), file.ino()));
    assert!(journal.starts_with("<3>ts="), "{journal}");
    for other in ["0:0", "", "x", "1:x"] {
        let plain = logged(&|_| other.to_owned());
        assert!(plain.starts_with("ts="), "{plain}");
    }
}

#[test]
fn database_url_file_has_the_url_and_its_password_is_not_shown() {
    let directory = temp_dir();
    let path = directory.path().join("database-url");
    let file = path.to_str().unwrap();
    fs::write(&path, "postgres://u:hunter2@127.0.0.1:1/none?colour=x\n").unwrap();
    let check = |settings: &[(&str, &str)], message: &str| {
        let ended = run(settings, &["check-config"]);
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(message), "{}", ended.stderr);
        assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("hunter2"), "{}", ended.stderr);
    };
    check(&[("DATABASE_URL_FILE", file)], "parameter 1 is unknown");
    check(&[("DATABASE_URL_FILE", file), NO_DATABASE], "both set");
    check(&[("DATABASE_URL_FILE", "/nowhere/url")], "DATABASE_URL_FILE /nowhere/url");
    fs::write(&path, " \n").unwrap();
    check(&[("DATABASE_URL_FILE", file)], "is empty");
    fs::write(&path, "postgres://u:hunter2@a/b\npostgres://u:hunter2@c/d\n").unwrap();
    check(&[("DATABASE_URL_FILE", file)], "more than one line");

    let postgres = Postgres::start();
    fs::write(&path, format!("{}\n", postgres.url())).unwrap();
    let migrated = run(&[("DATABASE_URL_FILE", file)], &["migrate"]);
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    assert_eq!(postgres.stored(), 0, "the tables are there");
}

/// The largest exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE_TENTHS_MAX: &str = "15";

#[test]
fn the_unit_and_its_drop_ins_are_valid_and_little_exposed() {
    let has_systemd = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has_systemd {
        eprintln!("not run: systemd-analyze (package systemd) is not installed");
        return;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd");
    let directory = temp_dir();
    let unit = directory.path().join("aurore-events.service");
    let socket = directory.path().join("aurore-events.socket");
    fs::copy(source.join("aurore-events.socket"), &socket).unwrap();
    let drop_ins = directory.path().join("aurore-events.service.d");
    fs::create_dir(&drop_ins).unwrap();
    for name in ["tokens.conf", "tls.conf"] {
        fs::copy(source.join(name), drop_ins.join(name)).unwrap();
    }
    let text = fs::read_to_string(source.join("aurore-events.service")).unwrap();
    // The program must exist.
    fs::write(&unit, text.replace("/usr/bin/aurore-events", PROGRAM)).unwrap();
    let security = format!("--threshold={EXPOSURE_TENTHS_MAX}");
    for (arguments, unit) in [
        (&["verify", "--man=no"][..], &unit),
        (&["verify", "--man=no"], &socket),
        (&["security", "--offline=true", "--no-pager", &security], &unit),
    ] {
        let output = Command::new("systemd-analyze")
            .args(arguments)
            .arg(unit)
            .env("SYSTEMD_LOG_LEVEL", "warning")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {stdout}{stderr}");
        assert!(!stderr.contains("aurore-events."), "{arguments:?}: {stderr}");
    }
}
