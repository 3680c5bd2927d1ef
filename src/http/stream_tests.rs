//! Streamed answers over loopback sockets: what a client sees of one that goes well, breaks, or is not taken.

use std::io::{ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::acceptor_tests::{Client, Server};
use super::*;

const LATER: &[u8] = b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n";
const OLD: &[u8] = b"GET /later HTTP/1.0\r\n\r\n";
const BLOCK_BYTES: usize = 64 * 1024;

/// Promises the answer to what `client` has asked, and gives the feed of its body.
fn begin(server: &Server) -> Feed {
    let (feed, body) = stream();
    let response = Response { content_type: "text/csv", stream: Some(body), ..Response::default() };
    server.promise().fulfil(response);
    feed
}

/// Everything until the connection ends, and how it ended.
fn rest(client: &mut Client) -> (String, Option<ErrorKind>) {
    let mut all = Vec::new();
    let end = client.0.read_to_end(&mut all).err().map(|error| error.kind());
    (String::from_utf8_lossy(&all).into_owned(), end)
}

/// Hands over `blocks` as there is room for them, then `end`s.
fn feed_on(feed: Feed, blocks: usize, made: &'static AtomicUsize, end: fn(Feed)) {
    if blocks == 0 {
        return end(feed);
    }
    feed.push(vec![b'x'; BLOCK_BYTES]);
    made.fetch_add(1, Ordering::SeqCst);
    feed.when_room(move |feed| feed_on(feed, blocks - 1, made, end));
}

/// Hands over blocks without end.
#[expect(clippy::only_used_in_recursion, reason = "it tells when the feed is let go")]
fn fill(feed: Feed, dropped: Sender<()>) {
    feed.push(vec![b'x'; BLOCK_BYTES]);
    feed.when_room(move |feed| fill(feed, dropped));
}

#[test]
fn blocks_are_sent_as_they_come_and_the_connection_goes_on() {
    let server = Server::start(Limits::default());
    let mut client = server.say(LATER);
    // What stands behind the request waits for the whole answer.
    client.say(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nokGET /nothing HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let feed = begin(&server);
    let head = client.head();
    assert!(head.contains("Transfer-Encoding: chunked\r\n") && !head.contains("Content-Length"), "{head}");
    feed.push(b"first,".to_vec());
    let mut piece = [0; 11];
    client.0.read_exact(&mut piece).unwrap();
    assert_eq!(&piece, b"6\r\nfirst,\r\n", "before there is more");
    feed.push(b"second".to_vec());
    feed.push(Vec::new());
    feed.finish();
    let (rest, end) = rest(&mut client);
    assert!(rest.starts_with("6\r\nsecond\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n"), "{rest}");
    assert!(rest.contains("ok") && rest.contains("HTTP/1.1 404 Not Found\r\n"), "{rest}");
    assert_eq!(end, None);
}

#[test]
fn an_old_client_has_the_body_until_the_connection_ends() {
    let server = Server::start(Limits::default());
    let mut client = server.say(OLD);
    let feed = begin(&server);
    feed.push(b"all of it".to_vec());
    feed.finish();
    let head = client.head();
    assert!(head.contains("Connection: close\r\n") && !head.contains("chunked"), "{head}");
    assert_eq!(rest(&mut client), ("all of it".to_owned(), None));
}

#[test]
fn a_head_has_no_body_and_the_connection_goes_on() {
    let server = Server::start(Limits::default());
    let mut client = server.say(b"HEAD /later HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let feed = begin(&server);
    assert!(client.head().contains("Transfer-Encoding: chunked\r\n"));
    assert!(client.head().contains("Content-Length: 0\r\n"), "the next answer");
    assert!(feed.is_gone(), "nobody wants the body");
}

#[test]
fn an_answer_that_is_broken_off_cannot_be_taken_for_whole() {
    let server = Server::start(Limits::default());
    for (request, wanted) in [(LATER, "4\r\nhalf\r\n"), (OLD, "half")] {
        let mut client = server.say(request);
        let feed = begin(&server);
        feed.push(b"half".to_vec());
        client.head();
        let mut piece = vec![0; wanted.len()];
        client.0.read_exact(&mut piece).unwrap();
        assert_eq!(piece, wanted.as_bytes());
        drop(feed);
        let reset = (request == OLD).then_some(ErrorKind::ConnectionReset);
        assert_eq!(rest(&mut client), (String::new(), reset), "no last chunk, or a reset");
    }
}

#[test]
fn no_more_is_made_than_the_client_takes() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    const BLOCKS: usize = 1000;
    let server = Server::start(Limits::default());
    let mut client = server.say(LATER);
    let feed = begin(&server);
    feed_on(feed, BLOCKS, &MADE, Feed::finish);
    client.head();
    // A conversation on another connection goes on, round after round, and nothing more is made.
    let mut before = usize::MAX;
    let mut other = server.connect();
    let mut rounds = 0;
    while rounds < 50 {
        other.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        other.head();
        let made = MADE.load(Ordering::SeqCst);
        rounds = if made == before { rounds + 1 } else { 0 };
        before = made;
    }
    // The kernel's buffers take some 6 MiB on loopback.
    assert!(before < BLOCKS / 2, "{before} blocks were made for a client that reads nothing");
    let (mut bytes, mut piece) = (0, vec![0; 1 << 20]);
    let whole = BLOCKS * (BLOCK_BYTES + "10000\r\n\r\n".len()) + "0\r\n\r\n".len();
    while bytes < whole {
        bytes += client.0.read(&mut piece).unwrap();
    }
    assert_eq!((bytes, MADE.load(Ordering::SeqCst)), (whole, BLOCKS));
}

#[test]
fn the_maker_is_let_go_when_the_client_leaves() {
    let server = Server::start(Limits::default());
    let mut client = server.say(LATER);
    let (dropped, when_dropped) = channel::<()>();
    let feed = begin(&server);
    client.head();
    feed.push(vec![b'x'; BLOCK_BYTES]);
    // Until the socket is full; then it stands aside, until it is dropped with the connection.
    feed.when_room(move |feed| fill(feed, dropped));
    drop(client);
    assert!(when_dropped.recv_timeout(Duration::from_secs(20)).is_err());
    assert!(when_dropped.try_recv().is_err());
}

#[test]
fn who_takes_nothing_and_who_makes_nothing_are_given_up() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let limits = Limits {
        slow_reader_timeout: Duration::from_millis(200),
        answer_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Server::start(limits);
    let mut client = server.say(LATER);
    let feed = begin(&server);
    client.head();
    let (_ended, end) = rest(&mut client);
    assert_eq!(end, None, "nothing came, and no last chunk");
    // The client may see the end a moment before the maker does.
    while !feed.is_gone() {
        std::thread::yield_now();
    }

    let client = server.say(LATER);
    feed_on(begin(&server), 1000, &MADE, Feed::finish);
    let timeouts = server.shared.timeouts();
    while server.shared.timeouts() == timeouts {
        std::thread::yield_now();
    }
    assert!(MADE.load(Ordering::SeqCst) < 1000);
    drop(client);
}
