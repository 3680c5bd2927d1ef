//! Runs the corpus on both engines. `docs/minihttp.md` lists the differences and is written from
//! here.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::acceptor_tests::TestAcceptor;
use super::sans_io_harness::{EchoHandler, statuses};
use super::session_tests::{CorpusCase, corpus};
use super::*;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/minihttp.md");
/// Longer than any response takes.
const RESPONSE_WAIT: Duration = Duration::from_secs(4);
/// Wait for the end of the connection after the client has shut down its write side. `may_minihttp`
/// does not always close; further responses have arrived by then.
const CLOSE_WAIT: Duration = Duration::from_millis(300);

fn minihttp() -> SocketAddr {
    // The library does not report its port, so the test uses one that was just free.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    engine_minihttp::start(address, 1, HttpLimits::default(), EchoHandler::default).unwrap();
    address
}

/// Returns the statuses of the responses to `request`. After `wanted` responses the client shuts
/// down its write side and reads until the server closes. Not earlier, because `may_minihttp` does
/// not respond to a request that it reads together with the end.
fn statuses_of(address: SocketAddr, request: &[u8], wanted: usize) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut received = Vec::new();
    let mut piece = [0; 4096];
    // The server may close the connection before the whole request is sent.
    if stream.write_all(request).is_err() {
        return Vec::new();
    }
    loop {
        let complete = wanted > 0 && statuses(&String::from_utf8_lossy(&received)).len() >= wanted;
        if complete && stream.shutdown(Shutdown::Write).is_err() {
            break;
        }
        stream.set_read_timeout(Some(if complete { CLOSE_WAIT } else { RESPONSE_WAIT })).unwrap();
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => received.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error} after {}", String::from_utf8_lossy(&received)),
        }
    }
    statuses(&String::from_utf8_lossy(&received))
}

/// Runs [`statuses_of`] for all `cases`, many at a time, because most of the time is waiting.
fn statuses_of_all(address: SocketAddr, cases: &[CorpusCase]) -> Vec<Vec<u16>> {
    std::thread::scope(|scope| {
        let ask = |part: &[CorpusCase]| -> Vec<_> {
            part.iter().map(|case| statuses_of(address, &case.request, case.statuses.len())).collect()
        };
        let parts: Vec<_> = cases.chunks(12).map(|part| scope.spawn(move || ask(part))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

fn format_statuses(statuses: &[u16]) -> String {
    if statuses.is_empty() {
        return "no answer".into();
    }
    statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" ")
}

fn table() -> String {
    let address = minihttp();
    let mut rows = Vec::new();
    let mut cases = corpus();
    // Cases with many responses only test the limit of a turn.
    cases.retain(|case| case.statuses.len() <= 8);
    let (mut same, all) = (0, cases.len());
    for (case, found) in cases.iter().zip(statuses_of_all(address, &cases)) {
        if found == case.statuses {
            same += 1;
            continue;
        }
        let wanted = if case.statuses.is_empty() { "waits".into() } else { format_statuses(&case.statuses) };
        rows.push(format!(
            "| {} | {wanted} | {} |\n",
            case.name.replace('|', "\\|"),
            format_statuses(&found)
        ));
    }
    format!(
        "# Differences of `minihttp`\n\n\
         `HTTP_ENGINE=minihttp` runs the same handlers on may_minihttp, for trusted networks only. Of {all}\n\
         requests of `tests/corpus/http.txt`, each sent whole on a connection of its own, it answers {same} as\n\
         `guarded` does. The table lists the others. A test of `src/http/engines_tests.rs` writes it\n\
         (`cargo test --lib -- --ignored writes_the_table`), and another test checks it. `minihttp` also has no\n\
         timeouts and no limit on connections, headers and buffered responses, sends no `100 Continue`, sends\n\
         a refusal by the header after the body (of which more than 16 KiB are not kept), has no client\n\
         addresses, and answers an export or a tail with 501.\n\n\
         | request | guarded | minihttp |\n|---|---|---|\n{}",
        rows.concat()
    )
}

#[test]
fn guarded_engine_answers_the_corpus_as_expected() {
    let server = TestAcceptor::start(HttpLimits::default());
    let cases = corpus();
    for (case, found) in cases.iter().zip(statuses_of_all(server.address, &cases)) {
        assert_eq!(found, case.statuses, "{}", case.name);
    }
}

#[test]
fn minihttp_differences_match_the_documented_table() {
    let written = std::fs::read_to_string(TABLE).unwrap();
    let found = table();
    for (written, found) in written.lines().zip(found.lines()) {
        assert_eq!(written, found);
    }
    assert_eq!(written, found);
}

#[test]
#[ignore = "rewrites docs/minihttp.md: run it after a change of the corpus"]
fn writes_the_table() {
    std::fs::write(TABLE, table()).unwrap();
}
