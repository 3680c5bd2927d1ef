//! Tests of streaming responses over loopback sockets: complete, aborted and unread ones.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::acceptor_tests::{TestAcceptor, TestClient};
use super::*;

const GET_LATER: &[u8] = b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n";
const GET_LATER_1_0: &[u8] = b"GET /later HTTP/1.0\r\n\r\n";
const BLOCK_BYTES: usize = 64 * 1024;

/// Fulfils the pending promise with a streaming response and returns the sender of its body.
fn start_body(server: &TestAcceptor) -> BodySender {
    let (sender, body) = body_channel();
    let response = Response { content_type: "text/csv", stream: Some(body), ..Response::default() };
    server.promise().fulfil(response);
    sender
}

/// Reads until the connection closes. Returns the data and the error, if any.
fn read_to_close(client: &mut TestClient) -> (String, Option<ErrorKind>) {
    let mut all = Vec::new();
    let end = client.0.read_to_end(&mut all).err().map(|error| error.kind());
    (String::from_utf8_lossy(&all).into_owned(), end)
}

/// Sends `blocks` blocks as the channel has capacity, then calls `end`.
fn send_blocks(sender: BodySender, blocks: usize, sent: &'static AtomicUsize, end: fn(BodySender)) {
    if blocks == 0 {
        return end(sender);
    }
    sender.send(vec![b'x'; BLOCK_BYTES]);
    sent.fetch_add(1, Ordering::SeqCst);
    sender.on_capacity(move |sender| send_blocks(sender, blocks - 1, sent, end));
}

/// Sends blocks endlessly.
#[expect(clippy::only_used_in_recursion, reason = "detects when the sender is dropped")]
fn fill(sender: BodySender, dropped: Sender<()>) {
    sender.send(vec![b'x'; BLOCK_BYTES]);
    sender.on_capacity(move |sender| fill(sender, dropped));
}

#[test]
fn blocks_are_sent_as_they_arrive_and_the_connection_stays_open() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(GET_LATER);
    // Pipelined requests wait for the end of the streaming response.
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nokGET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let sender = start_body(&server);
    let head = client.head();
    assert!(head.contains("Transfer-Encoding: chunked\r\n") && !head.contains("Content-Length"), "{head}");
    sender.send(b"first,".to_vec());
    let mut piece = [0; 11];
    client.0.read_exact(&mut piece).unwrap();
    assert_eq!(&piece, b"6\r\nfirst,\r\n", "before the next block exists");
    sender.send(b"second".to_vec());
    sender.send(Vec::new());
    sender.finish();
    let (rest, end) = read_to_close(&mut client);
    assert!(rest.starts_with("6\r\nsecond\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n"), "{rest}");
    assert!(rest.contains("ok") && rest.contains("HTTP/1.1 404 Not Found\r\n"), "{rest}");
    assert_eq!(end, None);
}

#[test]
fn http_1_0_body_ends_with_the_connection() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(GET_LATER_1_0);
    let sender = start_body(&server);
    sender.send(b"all of it".to_vec());
    sender.finish();
    let head = client.head();
    assert!(head.contains("Connection: close\r\n") && !head.contains("chunked"), "{head}");
    assert_eq!(read_to_close(&mut client), ("all of it".to_owned(), None));
}

#[test]
fn head_response_has_no_body_and_the_connection_stays_open() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client =
        server.connect_and_send(b"HEAD /later HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let sender = start_body(&server);
    assert!(client.head().contains("Transfer-Encoding: chunked\r\n"));
    assert!(client.head().contains("Content-Length: 0\r\n"), "the next response");
    assert!(sender.is_closed(), "the body is not sent");
}

#[test]
fn aborted_body_is_detectable_as_truncated() {
    let server = TestAcceptor::start(HttpLimits::default());
    for (request, wanted) in [(GET_LATER, "4\r\nhalf\r\n"), (GET_LATER_1_0, "half")] {
        let mut client = server.connect_and_send(request);
        let sender = start_body(&server);
        sender.send(b"half".to_vec());
        client.head();
        let mut piece = vec![0; wanted.len()];
        client.0.read_exact(&mut piece).unwrap();
        assert_eq!(piece, wanted.as_bytes());
        drop(sender);
        let reset = (request == GET_LATER_1_0).then_some(ErrorKind::ConnectionReset);
        assert_eq!(read_to_close(&mut client), (String::new(), reset), "no last chunk, or a reset");
    }
}

#[test]
fn producer_stops_while_the_client_does_not_read() {
    static SENT: AtomicUsize = AtomicUsize::new(0);
    const BLOCKS: usize = 1000;
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(GET_LATER);
    let sender = start_body(&server);
    send_blocks(sender, BLOCKS, &SENT, BodySender::finish);
    client.head();
    // Another connection is served for many turns while no further block is sent.
    let mut before = usize::MAX;
    let mut other = server.connect();
    let mut rounds = 0;
    while rounds < 50 {
        other.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        other.head();
        let sent = SENT.load(Ordering::SeqCst);
        rounds = if sent == before { rounds + 1 } else { 0 };
        before = sent;
    }
    // The kernel buffers about 6 MiB on loopback.
    assert!(before < BLOCKS / 2, "{before} blocks were sent for a client that reads nothing");
    let (mut bytes, mut piece) = (0, vec![0; 1 << 20]);
    let whole = BLOCKS * (BLOCK_BYTES + "10000\r\n\r\n".len()) + "0\r\n\r\n".len();
    while bytes < whole {
        bytes += client.0.read(&mut piece).unwrap();
    }
    assert_eq!((bytes, SENT.load(Ordering::SeqCst)), (whole, BLOCKS));
}

#[test]
fn producer_is_dropped_when_the_client_closes() {
    let server = TestAcceptor::start(HttpLimits::default());
    let mut client = server.connect_and_send(GET_LATER);
    let (dropped, when_dropped) = channel::<()>();
    let sender = start_body(&server);
    client.head();
    sender.send(vec![b'x'; BLOCK_BYTES]);
    // Sends until the socket is full; then the callback waits until it is dropped with the
    // connection.
    sender.on_capacity(move |sender| fill(sender, dropped));
    drop(client);
    assert!(when_dropped.recv_timeout(Duration::from_secs(20)).is_err());
    assert!(when_dropped.try_recv().is_err());
}

#[test]
fn streaming_response_times_out_if_either_end_stalls() {
    static SENT: AtomicUsize = AtomicUsize::new(0);
    let limits = HttpLimits {
        write_timeout: Duration::from_millis(200),
        response_timeout: Duration::from_millis(200),
        ..HttpLimits::default()
    };
    let server = TestAcceptor::start(limits);
    let mut client = server.connect_and_send(GET_LATER);
    let sender = start_body(&server);
    client.head();
    let (_ended, end) = read_to_close(&mut client);
    assert_eq!(end, None, "nothing came, and no last chunk");
    // The client may detect the close slightly before the producer.
    while !sender.is_closed() {
        std::thread::yield_now();
    }

    let client = server.connect_and_send(GET_LATER);
    send_blocks(start_body(&server), 1000, &SENT, BodySender::finish);
    let timeouts = server.stats.timeouts();
    while server.stats.timeouts() == timeouts {
        std::thread::yield_now();
    }
    assert!(SENT.load(Ordering::SeqCst) < 1000);
    drop(client);
}
