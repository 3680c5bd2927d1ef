//! The corpus on both engines side by side: what the second one cannot do stands in `docs/minihttp.md`, from here.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::acceptor_tests::Server;
use super::rehearsal::{Echo, statuses};
use super::session_tests::{Case, corpus};
use super::*;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/minihttp.md");
/// Longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(4);
/// Longer than most take to notice that their client has nothing more to say. `may_minihttp` does not always; what it
/// answered in the same breath as the last one has come by then.
const END: Duration = Duration::from_millis(300);

fn minihttp() -> SocketAddr {
    // The library does not say which port it was given: take one that was just free.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    engine_minihttp::start(address, 1, Limits::default(), Echo::default).unwrap();
    address
}

/// The statuses of the answers to `request`. When there are as many as `wanted` the client ends its side, and whatever
/// still comes until the server ends its own counts too. Not before: `may_minihttp` answers nothing that it reads together
/// with an end.
fn asked(address: SocketAddr, request: &[u8], wanted: usize) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    let mut answers = Vec::new();
    let mut piece = [0; 4096];
    // A server that hangs up at once may do so before all is said.
    if stream.write_all(request).is_err() {
        return Vec::new();
    }
    loop {
        let said = wanted > 0 && statuses(&String::from_utf8_lossy(&answers)).len() >= wanted;
        if said && stream.shutdown(Shutdown::Write).is_err() {
            break;
        }
        stream.set_read_timeout(Some(if said { END } else { PATIENCE })).unwrap();
        match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => answers.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            Err(error) => panic!("{error} after {}", String::from_utf8_lossy(&answers)),
        }
    }
    statuses(&String::from_utf8_lossy(&answers))
}

/// The same of all `cases`, many at a time, since most of it is waiting.
fn asked_all(address: SocketAddr, cases: &[Case]) -> Vec<Vec<u16>> {
    std::thread::scope(|scope| {
        let ask = |part: &[Case]| -> Vec<_> {
            part.iter().map(|case| asked(address, &case.request, case.statuses.len())).collect()
        };
        let parts: Vec<_> = cases.chunks(12).map(|part| scope.spawn(move || ask(part))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

fn words(statuses: &[u16]) -> String {
    if statuses.is_empty() {
        return "no answer".into();
    }
    statuses.iter().map(u16::to_string).collect::<Vec<_>>().join(" ")
}

fn table() -> String {
    let address = minihttp();
    let mut rows = Vec::new();
    let mut cases = corpus();
    // Those that are answered so often only show the bound of a turn.
    cases.retain(|case| case.statuses.len() <= 8);
    let (mut same, all) = (0, cases.len());
    for (case, found) in cases.iter().zip(asked_all(address, &cases)) {
        if found == case.statuses {
            same += 1;
            continue;
        }
        let wanted = if case.statuses.is_empty() { "waits".into() } else { words(&case.statuses) };
        rows.push(format!("| {} | {wanted} | {} |\n", case.name.replace('|', "\\|"), words(&found)));
    }
    format!(
        "# What `minihttp` does otherwise\n\n\
         `HTTP_ENGINE=minihttp` runs the same handlers on may_minihttp, for trusted networks only. Of {all} requests of\n\
         `tests/corpus/http.txt`, each sent whole on a connection of its own, it answers {same} as `guarded` does. The others\n\
         stand here, written by a test of `src/http/engines_tests.rs` (`cargo test --lib -- --ignored writes_the_table`),\n\
         and another one sees to it that they are still so. Besides, it has no timeouts and no bound on connections,\n\
         headers and waiting answers; it sends no `100 Continue`, knows no client's address, and answers an export with 501.\n\n\
         | request | guarded | minihttp |\n|---|---|---|\n{}",
        rows.concat()
    )
}

#[test]
fn the_guarded_engine_answers_the_corpus_as_wanted_where_the_other_does_not() {
    let server = Server::start(Limits::default());
    let cases = corpus();
    for (case, found) in cases.iter().zip(asked_all(server.address, &cases)) {
        assert_eq!(found, case.statuses, "{}", case.name);
    }
}

#[test]
fn the_table_of_what_minihttp_cannot_do_is_as_it_stands_in_the_docs() {
    let written = std::fs::read_to_string(TABLE).unwrap();
    let found = table();
    for (written, found) in written.lines().zip(found.lines()) {
        assert_eq!(written, found);
    }
    assert_eq!(written, found);
}

#[test]
#[ignore = "writes a file of the source: run it when the corpus has grown"]
fn writes_the_table() {
    std::fs::write(TABLE, table()).unwrap();
}
