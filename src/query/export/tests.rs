//! Tests of exports against an in-memory repository.

use std::sync::mpsc;

use super::*;
use crate::clock::Clock;
use crate::event::{ArrivalNumber, EventId, row};
use crate::http::BodyStream;
use crate::http::streaming_body::NextBlock;
use crate::storage::memory::{InjectedFault, MemoryRepository};
use crate::storage::{Breaker, BreakerLimits, EventRepository, StoreError, StorePath};

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

/// A repository with one event every ten seconds, every 50th with a large message.
fn filled(events: u64) -> MemoryRepository {
    let repository = MemoryRepository::new();
    let mut rows = Vec::new();
    for index in 0..events {
        let millis = NOW.millis() - i64::try_from(index).unwrap() * 10_000 - 1;
        let time = Timestamp::from_millis(millis);
        let id = EventId::keyed(u64::try_from(millis).unwrap(), [0; 10]);
        row::append_header(&mut rows, id, time, NOW, ArrivalNumber::default());
        row::append_text(&mut rows, b"s");
        let message = format!("m{index}{}", "x".repeat(if index % 50 == 0 { 40_000 } else { 100 }));
        row::append_text(&mut rows, message.as_bytes());
        row::append_metadata(&mut rows, None);
    }
    repository.store(&[&rows], &[], StorePath::Copy).unwrap();
    repository
}

struct ExportFixture {
    exports: Exports,
    exporters: Exporters,
    repository: Arc<MemoryRepository>,
}

impl ExportFixture {
    fn new(repository: MemoryRepository, running_max: usize) -> Self {
        let repository = Arc::new(repository);
        let breaker = Arc::new(Breaker::new(BreakerLimits::default()));
        let clock = Clock::manual(NOW, 1);
        let (exports, exporters) =
            exports(running_max, QueryDatabase::new(repository.clone(), breaker, clock));
        Self { exports, exporters, repository }
    }

    /// Returns the immediate response, or the promised one after the exporters ran.
    fn start(&self, query: &str) -> Response {
        let options = ExportOptions {
            format: ExportFormat::Ndjson,
            content_type: "application/x-ndjson",
            gzipped: false,
            head_only: false,
        };
        let (sender, promised) = mpsc::channel();
        let promise = || Promise::new(move |response| sender.send(response).unwrap());
        let mut response = Response::default();
        match self.exports.start(request(query), options, promise, &mut response) {
            HandlerResult::Yield(_) => panic!("an export must not yield to the acceptor"),
            HandlerResult::Done => response,
            HandlerResult::Pending => {
                self.work();
                promised.try_recv().expect("the first page responds")
            }
        }
    }

    /// Runs all queued exports, as the exporter threads would.
    fn work(&self) {
        while let Ok(export) = self.exporters.jobs.try_recv() {
            self.exporters.tick(export);
        }
    }

    /// The whole body and the end of its stream.
    fn collect(&self, stream: &BodyStream) -> (String, NextBlock) {
        let mut body = Vec::new();
        loop {
            match stream.next() {
                NextBlock::Block(block) => {
                    assert!(block.len() < BLOCK_BYTES + 100_000, "{} bytes", block.len());
                    body.extend(block);
                }
                NextBlock::Pending => self.work(),
                end @ (NextBlock::End | NextBlock::Aborted) => {
                    return (String::from_utf8(body).unwrap(), end);
                }
            }
        }
    }

    /// The message numbers of a whole export.
    #[track_caller]
    fn numbers(&self, query: &str) -> Vec<u64> {
        let mut response = self.start(query);
        assert_eq!((response.status, response.content_type), (200, "application/x-ndjson"));
        let (body, end) = self.collect(&response.stream.take().unwrap());
        assert_eq!(end, NextBlock::End);
        let number = |line: &str| {
            let (_, rest) = line.split_once(r#""message":"m"#).unwrap();
            rest[..rest.find(['x', '"']).unwrap()].parse().unwrap()
        };
        body.lines().map(number).collect()
    }
}

fn timeout() -> InjectedFault {
    InjectedFault::Fail(StoreError { sqlstate: Some("57014".into()), ..StoreError::client_side("too slow") })
}

#[test]
fn export_returns_all_events_once_and_in_order() {
    let fixture = ExportFixture::new(filled(3000), 1);
    let newest_first: Vec<u64> = (0..3000).collect();
    let oldest_first: Vec<u64> = (0..3000).rev().collect();
    assert_eq!(fixture.numbers(""), newest_first);
    assert_eq!(fixture.numbers("order=asc"), oldest_first);
    assert_eq!(fixture.numbers("limit=1777"), newest_first[..1777]);
    assert_eq!(fixture.numbers("limit=1"), [0]);
    assert_eq!(fixture.numbers("service=nobody"), [0; 0]);
    // In time windows, the last of which extends past the oldest event.
    for (query, expected) in [("q=M", &newest_first), ("q=m&order=asc&from=0", &oldest_first)] {
        assert_eq!(&fixture.numbers(query), expected, "{query}");
    }
    assert_eq!(fixture.numbers("q=m29&limit=3"), [29, 290, 291]);
    assert_eq!(fixture.numbers("q=nowhere&from=0"), [0; 0]);
}

#[test]
fn export_shrinks_its_window_after_a_timeout_and_fails_without_a_window() {
    let fixture = ExportFixture::new(filled(3000), 1);
    fixture.repository.inject_faults([timeout(), timeout()]);
    assert_eq!(fixture.numbers("q=m29&limit=4"), [29, 290, 291, 292]);
    // Shrinks to the shortest window, then fails.
    fixture.repository.inject_faults(std::iter::repeat_with(timeout).take(20));
    let mut response = fixture.start("q=m29");
    assert_eq!(response.status, 200, "it had begun");
    assert_eq!(fixture.collect(&response.stream.take().unwrap()), (String::new(), NextBlock::Aborted));
    fixture.repository.inject_faults([timeout()]);
    while fixture.start("limit=5000").status != 503 {}
}

#[test]
fn export_failure_is_503_before_the_first_block_and_aborts_the_stream_after() {
    let fixture = ExportFixture::new(filled(3000), 1);
    fixture.repository.inject_faults([InjectedFault::Fail(StoreError::client_side("down"))]);
    let response = fixture.start("");
    assert_eq!((response.status, response.stream.is_none()), (503, true));
    let mut response = fixture.start("");
    fixture.repository.set_outage(Some(StoreError::client_side("down")));
    let (body, end) = fixture.collect(&response.stream.take().unwrap());
    assert_eq!(end, NextBlock::Aborted);
    assert!(body.ends_with('\n') && body.lines().count() < 3000, "whole lines, not all of them");
    fixture.repository.set_outage(None);
    assert_eq!(fixture.numbers("limit=2"), [0, 1], "its permit is released");
}

#[test]
fn exports_above_the_maximum_are_rejected() {
    let fixture = ExportFixture::new(filled(3000), 2);
    let (first, second) = (fixture.start(""), fixture.start(""));
    let refused = fixture.start("");
    assert_eq!(refused.status, 503);
    assert!(String::from_utf8_lossy(&refused.headers).contains("Retry-After"));
    assert_eq!(fixture.start("limit=0").status, 400);
    drop(first);
    assert_eq!(fixture.numbers("limit=1"), [0], "a client that disconnects releases its permit");
    drop(second);
    assert_eq!(fixture.exports.running.load(Ordering::Relaxed), 0);
}

#[test]
fn head_request_runs_no_query() {
    let fixture = ExportFixture::new(filled(1), 1);
    let options = ExportOptions {
        format: ExportFormat::Csv,
        content_type: "text/csv; charset=utf-8; header=present",
        gzipped: true,
        head_only: true,
    };
    let mut response = Response::default();
    let promise = || -> Promise { panic!("no promise is needed") };
    let answer = fixture.exports.start(request(""), options, promise, &mut response);
    assert!(matches!(answer, HandlerResult::Done));
    let headers = String::from_utf8_lossy(&response.headers);
    assert!(headers.contains("Content-Encoding: gzip") && headers.contains("Vary: Accept, Accept-Encoding"));
    assert_eq!(response.content_type, "text/csv; charset=utf-8; header=present");
    assert_eq!(response.stream.take().unwrap().next(), NextBlock::End);
}

fn request(query: &str) -> QueryRequest<'_> {
    QueryRequest { query, now: NOW, services: None }
}
