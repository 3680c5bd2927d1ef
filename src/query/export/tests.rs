//! Exports against a repository in memory: all events, in order, whatever happens between two blocks.

use std::sync::mpsc;

use super::*;
use crate::event::row;
use crate::http::Stream;
use crate::http::stream::Next;
use crate::storage::memory::{Fault, MemoryRepository};
use crate::storage::{BreakerLimits, StoreError, StorePath};

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

/// An event every ten seconds, some with a large message.
fn filled(events: u64) -> MemoryRepository {
    let repository = MemoryRepository::new();
    let mut rows = Vec::new();
    for index in 0..events {
        let millis = NOW.millis() - i64::try_from(index).unwrap() * 10_000 - 1;
        let time = Timestamp::from_millis(millis);
        let id = EventId::keyed(u64::try_from(millis).unwrap(), [0; 10]);
        row::begin(&mut rows, id, time, NOW);
        row::text(&mut rows, b"s");
        let message = format!("m{index}{}", "x".repeat(if index % 50 == 0 { 40_000 } else { 100 }));
        row::text(&mut rows, message.as_bytes());
        row::metadata(&mut rows, None);
    }
    repository.store(&[&rows], &[], StorePath::Copy).unwrap();
    repository
}

struct Bench {
    exports: Exports,
    exporters: Exporters,
    repository: Arc<MemoryRepository>,
}

impl Bench {
    fn new(repository: MemoryRepository, running_max: usize) -> Self {
        let repository = Arc::new(repository);
        let breaker = Arc::new(Breaker::new(BreakerLimits::default()));
        let clock = Clock::manual(NOW, 1);
        let (exports, exporters) = exports(running_max, repository.clone(), breaker, clock);
        Self { exports, exporters, repository }
    }

    /// The answer that comes at once, or the promised one once a block is made.
    fn start(&self, query: &str) -> Response {
        let how = How { format: Format::Ndjson, gzipped: false, head_only: false };
        let (sender, promised) = mpsc::channel();
        let promise = || Promise::new(move |response| sender.send(response).unwrap());
        let mut response = Response::default();
        match self.exports.start(query, NOW, how, promise, &mut response) {
            Answer::More(_) => panic!("an export is no work for an acceptor"),
            Answer::Ready => response,
            Answer::Later => {
                self.work();
                promised.try_recv().expect("the first page is read")
            }
        }
    }

    /// What the threads would do now.
    fn work(&self) {
        while let Ok(export) = self.exporters.jobs.try_recv() {
            self.exporters.tick(export);
        }
    }

    /// The whole body and how it ends.
    fn collect(&self, stream: &Stream) -> (String, Next) {
        let mut body = Vec::new();
        loop {
            match stream.next() {
                Next::Block(block) => {
                    assert!(block.len() < BLOCK_BYTES + 100_000, "{} bytes", block.len());
                    body.extend(block);
                }
                Next::NotYet => self.work(),
                end @ (Next::End | Next::Broken) => return (String::from_utf8(body).unwrap(), end),
            }
        }
    }

    /// The messages' numbers of a whole export.
    #[track_caller]
    fn numbers(&self, query: &str) -> Vec<u64> {
        let mut response = self.start(query);
        assert_eq!((response.status, response.content_type), (200, "application/x-ndjson"));
        let (body, end) = self.collect(&response.stream.take().unwrap());
        assert_eq!(end, Next::End);
        let number = |line: &str| {
            let (_, rest) = line.split_once(r#""message":"m"#).unwrap();
            rest[..rest.find(['x', '"']).unwrap()].parse().unwrap()
        };
        body.lines().map(number).collect()
    }
}

fn timeout() -> Fault {
    Fault::Fail(StoreError { sqlstate: Some("57014".into()), ..StoreError::unreachable("too slow") })
}

#[test]
fn all_events_of_the_query_come_once_and_in_order() {
    let bench = Bench::new(filled(3000), 1);
    let newest_first: Vec<u64> = (0..3000).collect();
    let oldest_first: Vec<u64> = (0..3000).rev().collect();
    assert_eq!(bench.numbers(""), newest_first);
    assert_eq!(bench.numbers("order=asc"), oldest_first);
    assert_eq!(bench.numbers("limit=1777"), newest_first[..1777]);
    assert_eq!(bench.numbers("limit=1"), [0]);
    assert_eq!(bench.numbers("service=nobody"), [0; 0]);
    // In windows of time, the last of which goes past the oldest event.
    for (query, expected) in [("q=M", &newest_first), ("q=m&order=asc&from=0", &oldest_first)] {
        assert_eq!(&bench.numbers(query), expected, "{query}");
    }
    assert_eq!(bench.numbers("q=m29&limit=3"), [29, 290, 291]);
    assert_eq!(bench.numbers("q=nowhere&from=0"), [0; 0]);
}

#[test]
fn a_search_that_takes_too_long_goes_on_in_shorter_steps_and_another_query_does_not() {
    let bench = Bench::new(filled(3000), 1);
    bench.repository.meet([timeout(), timeout()]);
    assert_eq!(bench.numbers("q=m29&limit=4"), [29, 290, 291, 292]);
    // Down to the shortest window, and then it is over.
    bench.repository.meet(std::iter::repeat_with(timeout).take(20));
    let mut response = bench.start("q=m29");
    assert_eq!(response.status, 200, "it had begun");
    assert_eq!(bench.collect(&response.stream.take().unwrap()), (String::new(), Next::Broken));
    bench.repository.meet([timeout()]);
    while bench.start("limit=5000").status != 503 {}
}

#[test]
fn a_failure_is_an_answer_at_first_and_breaks_off_later() {
    let bench = Bench::new(filled(3000), 1);
    bench.repository.meet([Fault::Fail(StoreError::unreachable("down"))]);
    let response = bench.start("");
    assert_eq!((response.status, response.stream.is_none()), (503, true));
    let mut response = bench.start("");
    bench.repository.set_outage(Some(StoreError::unreachable("down")));
    let (body, end) = bench.collect(&response.stream.take().unwrap());
    assert_eq!(end, Next::Broken);
    assert!(body.ends_with('\n') && body.lines().count() < 3000, "whole lines, not all of them");
    bench.repository.set_outage(None);
    assert_eq!(bench.numbers("limit=2"), [0, 1], "its place is free again");
}

#[test]
fn only_so_many_run_at_once() {
    let bench = Bench::new(filled(3000), 2);
    let (first, second) = (bench.start(""), bench.start(""));
    let refused = bench.start("");
    assert_eq!(refused.status, 503);
    assert!(String::from_utf8_lossy(&refused.headers).contains("Retry-After"));
    assert_eq!(bench.start("limit=0").status, 400);
    drop(first);
    assert_eq!(bench.numbers("limit=1"), [0], "a client that leaves gives its place back");
    drop(second);
    assert_eq!(bench.exports.running.load(Ordering::Relaxed), 0);
}

#[test]
fn the_head_alone_asks_nothing() {
    let bench = Bench::new(filled(1), 1);
    let how = How { format: Format::Csv, gzipped: true, head_only: true };
    let mut response = Response::default();
    let promise = || -> Promise { panic!("nothing is promised") };
    let answer = bench.exports.start("", NOW, how, promise, &mut response);
    assert!(matches!(answer, Answer::Ready));
    let headers = String::from_utf8_lossy(&response.headers);
    assert!(headers.contains("Content-Encoding: gzip") && headers.contains("Vary: Accept, Accept-Encoding"));
    assert_eq!(response.content_type, "text/csv; charset=utf-8; header=present");
    assert_eq!(response.stream.take().unwrap().next(), Next::End);
}
