//! Sockets of the service manager: it passes them, keeps them open over a restart, and no client
//! notices the restart but by a pause. The test is the service manager.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::harness::process::exit_within;
use crate::harness::server::{command, wait_for_partitions, with_sockets};
use crate::harness::temp::temp_dir;
use crate::harness::{Client, Postgres, Producer, Server, check_stored, until, wait_for_drain};

/// No database answers there.
const NO_DATABASE: (&str, &str) = ("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
const SOON: Duration = Duration::from_secs(20);
const RESTARTS: u64 = 4;
/// Acknowledgements between two restarts.
const ACKNOWLEDGED_BETWEEN: u64 = 500;

fn socket(address: &str) -> TcpListener {
    TcpListener::bind(address).expect("a port is free")
}

#[test]
fn passed_sockets_are_used_instead_of_host_and_port() {
    let sockets = vec![socket("127.0.0.1:0"), socket("127.0.0.2:0")];
    let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    // More acceptors than sockets of an address: they share.
    let server = Server::start_with_sockets(
        &[NO_DATABASE, ("HOST", "127.0.0.3"), ("PORT", "1"), ("ACCEPTORS", "3")],
        sockets,
    );
    assert_eq!(server.address(), addresses[0]);
    for address in addresses {
        for _ in 0..20 {
            assert_eq!(Client::connect(address).get("/live").status, 200);
        }
    }
    assert!(server.log().contains("using the listening sockets of the service manager"), "{}", server.log());
}

#[test]
fn sockets_that_cannot_be_used_fail_the_start_with_a_reason() {
    let refused = |settings: &[(&str, &str)], socket: OwnedFd, code: i32, reason: &str| {
        let data = temp_dir();
        let mut owned: Vec<_> =
            settings.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        owned.push(("LISTEN_FDNAMES".to_owned(), "mine".to_owned()));
        let mut child = with_sockets(command(&owned, data.path()), &[socket.into()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell runs");
        assert_eq!(exit_within(SOON, "the server", &mut child).code(), Some(code));
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
        assert!(stderr.contains(reason), "{stderr}");
    };
    let file = std::fs::File::open("/dev/null").unwrap();
    refused(&[NO_DATABASE], file.into(), 1, "the socket \\\"mine\\\" as descriptor 3, which is not a socket");
    refused(
        &[NO_DATABASE, ("HTTP_ENGINE", "minihttp")],
        socket("127.0.0.1:0").into(),
        2,
        "HTTP_ENGINE=minihttp binds its own socket",
    );
}

#[test]
fn restarts_under_load_refuse_no_connection_and_leave_no_request_unanswered() {
    let postgres = Postgres::start();
    let passed = socket("127.0.0.1:0");
    let address = passed.local_addr().unwrap();
    let url = postgres.url();
    let mut server = Server::start_with_sockets(&[("DATABASE_URL", &url)], vec![passed]);
    wait_for_partitions(&postgres);
    let producer = Producer::start(address, 8);
    let short = Producer::start(address, 2);
    for _ in 0..RESTARTS {
        let before = producer.acknowledged();
        until("it is under load", || producer.acknowledged() >= before + ACKNOWLEDGED_BETWEEN);
        server.stop();
        server.restart();
    }
    let before = producer.acknowledged();
    until("it is under load", || producer.acknowledged() >= before + ACKNOWLEDGED_BETWEEN);
    let mut record = producer.stop();
    record.merge(short.stop());
    wait_for_drain(&server);
    assert_eq!(record.refused, 0, "connections were refused");
    // A request of an open connection that comes while the server stops is answered 503, and sent again.
    let is_expected = |status: &u16| [202, 503].contains(status);
    assert!(record.statuses.keys().all(is_expected), "{:?}", record.statuses);
    // A request that met the end of its connection was not read: the server answers what it reads.
    let acknowledged = i64::try_from(record.acknowledged.len()).unwrap();
    assert_eq!(postgres.stored(), acknowledged, "{} requests were unanswered", record.unanswered);
    check_stored(&record, &postgres);
}

/// The next message to the service manager, and the descriptors that came with it.
fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .expect("the server notifies");
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    (String::from_utf8(text[..received.bytes].to_vec()).expect("it is text"), descriptors)
}

/// The next message that begins with `start`, and its descriptors.
fn receive_until(socket: &UnixDatagram, start: &str) -> (String, Vec<OwnedFd>) {
    loop {
        let (message, descriptors) = receive(socket);
        if message.starts_with(start) {
            return (message, descriptors);
        }
    }
}

#[test]
fn own_sockets_are_stored_with_the_service_manager_and_used_by_the_next_process() {
    let directory = temp_dir();
    let path = directory.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(SOON)).unwrap();
    let mut server = Server::start_unready(&[
        NO_DATABASE,
        ("ACCEPTORS", "2"),
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("LISTEN_FDNAMES", "aurore-events-listener:aurore-events-listener"),
    ]);
    let (message, descriptors) = receive_until(&notify, "FDSTORE=1");
    assert_eq!(message, "FDSTORE=1\nFDNAME=aurore-events-listener\nFDPOLL=0");
    assert_eq!(descriptors.len(), 2, "one for each acceptor");
    let stored: Vec<TcpListener> = descriptors.into_iter().map(TcpListener::from).collect();
    let address = server.address();
    server.stop();

    // The connection waits for the next process, which has another number of acceptors.
    let mut waiting = Client::connect(address);
    server.set_sockets(stored);
    server.set("ACCEPTORS", "1");
    server.set("PORT", &address.port().to_string());
    server.restart();
    assert_eq!(server.address(), address);
    assert_eq!(waiting.get("/live").status, 200);
    for _ in 0..20 {
        assert_eq!(server.client().get("/live").status, 200);
    }
    assert!(server.log().contains("using the listening sockets of the process before"), "{}", server.log());
    server.stop();

    // Another address: the sockets are of no use.
    server.set("HOST", "127.0.0.2");
    let port = socket("127.0.0.2:0").local_addr().unwrap().port().to_string();
    server.set("PORT", &port);
    // `restart` would wait for the address of the log, which is that of 127.0.0.1.
    let mut child = server.spawn();
    let (message, _) = receive_until(&notify, "FDSTOREREMOVE=1");
    assert_eq!(message, "FDSTOREREMOVE=1\nFDNAME=aurore-events-listener");
    let (_, descriptors) = receive_until(&notify, "FDSTORE=1");
    let bound = TcpListener::from(descriptors.into_iter().next().expect("a socket is stored"));
    assert_eq!(bound.local_addr().unwrap().to_string(), format!("127.0.0.2:{port}"));
    child.kill().unwrap();
    child.wait().unwrap();
}
