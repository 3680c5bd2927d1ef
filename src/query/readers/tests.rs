//! The line and its threads against a repository that does what the test says.

use std::sync::{Barrier, Mutex, mpsc};

use super::*;
use crate::event::Event;
use crate::query::cursor::Cursor;
use crate::storage::breaker::State;
use crate::storage::{
    BreakerLimits, Chunk, Day, DeadLetter, HourCount, Order as Direction, StoreError, StorePath, Stored,
    Sweeping, Tidied, Totals,
};

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

/// What the repository answers, and what it was asked.
#[derive(Debug, Default)]
struct Fake {
    events: Vec<Event>,
    found: Option<Found>,
    error: Option<StoreError>,
    /// Page and count wait here for each other.
    meeting: Option<Barrier>,
    asked: Mutex<Vec<&'static str>>,
}

impl Fake {
    fn ask<T>(&self, what: &'static str, value: T) -> Result<T, StoreError> {
        self.asked.lock().unwrap().push(what);
        if let Some(meeting) = &self.meeting {
            meeting.wait();
        }
        self.error.clone().map_or(Ok(value), Err)
    }
}

impl EventRepository for Fake {
    fn prepare(&self, _now: Timestamp) -> Result<(), StoreError> {
        unimplemented!("queries do not prepare")
    }

    fn store(&self, _: &[&[u8]], _: &[DeadLetter<'_>], _: StorePath) -> Result<Stored, StoreError> {
        unimplemented!("queries do not store")
    }

    fn page(&self, page: &Page) -> Result<Vec<Event>, StoreError> {
        self.ask("page", self.events.iter().take(usize::from(page.limit)).cloned().collect())
    }

    fn chunk(&self, page: &Page, bytes_max: usize) -> Result<Chunk, StoreError> {
        Ok(Chunk::gather(self.page(page)?, page.limit, bytes_max))
    }

    fn count(&self, _filter: &Filter) -> Result<u64, StoreError> {
        self.ask("count", 42)
    }

    fn find(&self, _id: EventId) -> Result<Option<Found>, StoreError> {
        self.ask("find", self.found.clone())
    }

    fn totals(&self, _since: Timestamp, _services_max: u16) -> Result<Totals, StoreError> {
        unimplemented!("queries are not about totals")
    }

    fn ping(&self) -> Result<(), StoreError> {
        unimplemented!("queries do not ping")
    }

    fn hours(&self, _filter: &Filter, _rows_max: u32) -> Result<Vec<HourCount>, StoreError> {
        self.ask("hours", Vec::new())
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        unimplemented!("queries do not ask for partitions")
    }

    fn tidy(&self) -> Result<Tidied, StoreError> {
        unimplemented!("queries do not tidy")
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        unimplemented!("queries do not ask for sweeps")
    }

    fn sweep(&self, _edge: Timestamp) -> Result<Option<Box<dyn Sweeping + '_>>, StoreError> {
        unimplemented!("queries do not sweep")
    }
}

/// A line with its readers, none of which runs by itself, and where the answers come.
struct Bench {
    line: Line,
    readers: Readers,
    fake: Arc<Fake>,
    breaker: Arc<Breaker>,
    clock: Clock,
    sender: mpsc::Sender<Response>,
    answers: mpsc::Receiver<Response>,
}

impl Bench {
    fn new(fake: Fake) -> Self {
        // The first failure opens it.
        let limits = BreakerLimits { failure_threshold: 1, ..BreakerLimits::default() };
        let (fake, breaker) = (Arc::new(fake), Arc::new(Breaker::new(limits)));
        let clock = Clock::manual(NOW, 1);
        let limits = ReaderLimits { jobs_max: 3, wait_max: Duration::from_secs(5) };
        let (line, readers) = line(limits, Arc::clone(&fake) as Arc<_>, Arc::clone(&breaker), clock.clone());
        let (sender, answers) = mpsc::channel();
        Self { line, readers, fake, breaker, clock, sender, answers }
    }

    fn promise(&self) -> Promise {
        let sender = self.sender.clone();
        Promise::new(move |response| sender.send(response).unwrap())
    }

    fn list(&self, query: &str) -> Option<Response> {
        let mut response = Response::default();
        match self.line.list(query, NOW, || self.promise(), &mut response) {
            Answer::Ready => Some(response),
            Answer::Later => None,
            Answer::More(_) => unreachable!(),
        }
    }

    fn find(&self, id: &str) -> Option<Response> {
        let mut response = Response::default();
        match self.line.find(id, || self.promise(), &mut response) {
            Answer::Ready => Some(response),
            Answer::Later => None,
            Answer::More(_) => unreachable!(),
        }
    }

    /// Does what is in the line, in this thread.
    fn work(&self) {
        while let Ok(job) = self.readers.jobs.try_recv() {
            self.readers.tick(job);
        }
        assert_eq!(self.line.waiting(), 0);
    }

    fn answer(&self) -> Response {
        let answer = self.answers.try_recv().unwrap();
        assert!(self.answers.try_recv().is_err(), "one answer a request");
        answer
    }

    fn asked(&self) -> Vec<&'static str> {
        self.fake.asked.lock().unwrap().clone()
    }
}

fn event(nth: u64) -> Event {
    Event {
        event_id: EventId::keyed(nth, [0; 10]),
        timestamp: Timestamp::from_micros(1_700_000_000_123_456),
        service: "check\"out".to_owned(),
        message: "a\nb\u{1}\\é".to_owned(),
        metadata: (nth == 1).then(|| "{\"a\": [1, null]}".to_owned()),
        ingested_at: NOW,
    }
}

fn error(sqlstate: Option<&str>) -> StoreError {
    StoreError { sqlstate: sqlstate.map(str::to_owned), ..StoreError::unreachable("it broke") }
}

#[track_caller]
fn check_later(response: &Response, status: u16, retry: &str) {
    assert_eq!(response.status, status);
    assert_eq!(response.content_type, problem::CONTENT_TYPE);
    assert_eq!(str::from_utf8(&response.headers).unwrap(), format!("Retry-After: {retry}\r\n"));
}

#[test]
fn a_page_and_its_total_answer_together() {
    let bench = Bench::new(Fake { events: vec![event(1), event(2), event(3)], ..Fake::default() });
    assert!(bench.list("limit=2").is_none());
    bench.work();
    let cursor =
        Cursor { order: Direction::Desc, timestamp: event(2).timestamp, event_id: event(2).event_id }
            .encode();
    let answer = bench.answer();
    assert_eq!((answer.status, answer.content_type), (200, "application/json"));
    assert_eq!(
        str::from_utf8(&answer.body).unwrap(),
        format!(
            r#"{{"events":[{{"event_id":"00000000-0001-8000-8000-000000000000","timestamp":"2023-11-14T22:13:20.123456Z","service":"check\"out","message":"a\nb\u0001\\é","metadata":{{"a": [1, null]}},"ingested_at":"2026-11-23T12:00:00.000000Z"}},{{"event_id":"00000000-0002-8000-8000-000000000000","timestamp":"2023-11-14T22:13:20.123456Z","service":"check\"out","message":"a\nb\u0001\\é","metadata":null,"ingested_at":"2026-11-23T12:00:00.000000Z"}}],"page":{{"limit":2,"next_cursor":"{cursor}","total":42}}}}"#
        )
    );
}

#[test]
fn the_last_page_has_no_cursor_and_without_count_no_total() {
    let bench = Bench::new(Fake { events: vec![event(1)], ..Fake::default() });
    assert!(bench.list("limit=1&count=none").is_none());
    bench.work();
    let body = String::from_utf8(bench.answer().body).unwrap();
    assert!(body.ends_with(r#""page":{"limit":1,"next_cursor":null,"total":null}}"#), "{body}");
    assert_eq!(bench.asked(), ["page"]);
    let bench = Bench::new(Fake::default());
    assert!(bench.list("").is_none());
    bench.work();
    let body = String::from_utf8(bench.answer().body).unwrap();
    assert_eq!(body, r#"{"events":[],"page":{"limit":100,"next_cursor":null,"total":42}}"#);
}

#[test]
fn page_and_count_run_at_the_same_time() {
    let bench = Bench::new(Fake { meeting: Some(Barrier::new(2)), ..Fake::default() });
    let threads = [(); 2].map(|()| {
        let readers = bench.readers.clone();
        std::thread::Builder::new().spawn(move || readers.run()).unwrap()
    });
    for _ in 0..20 {
        assert!(bench.list("").is_none());
        // Neither gets past the barrier unless the other is there.
        assert_eq!(bench.answers.recv_timeout(Duration::from_secs(20)).unwrap().status, 200);
    }
    let Bench { line, .. } = bench;
    drop(line);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_full_line_refuses_at_once_and_whole() {
    let bench = Bench::new(Fake::default());
    assert!(bench.list("").is_none());
    check_later(&bench.list("").unwrap(), 503, "1");
    assert_eq!(bench.line.waiting(), 2, "the refused query took no place");
    assert!(bench.list("count=none").is_none());
    check_later(&bench.find("00000000-0001-8000-8000-000000000000").unwrap(), 503, "1");
    bench.work();
    assert_eq!(bench.answers.try_iter().count(), 2);
    assert!(bench.list("").is_none());
}

#[test]
fn an_open_breaker_refuses_at_once_and_says_until_when() {
    for (elapsed, retry) in [(999, "30"), (29_000, "1"), (28_000, "2")] {
        let bench = Bench::new(Fake::default());
        bench.breaker.failed(bench.clock.now());
        bench.clock.advance(Duration::from_millis(elapsed));
        check_later(&bench.list("").unwrap(), 503, retry);
        assert_eq!((bench.line.waiting(), bench.asked().len()), (0, 0));
    }
}

#[test]
fn a_query_is_the_probe_of_a_breaker_whose_time_is_over() {
    let bench = Bench::new(Fake::default());
    bench.breaker.failed(bench.clock.now());
    bench.clock.advance(Duration::from_secs(30));
    for state in [State::HalfOpen, State::Closed] {
        assert!(bench.list("count=none").is_none());
        bench.work();
        assert_eq!((bench.answer().status, bench.breaker.state()), (200, state));
    }
}

#[test]
fn a_query_that_takes_too_long_is_503_and_leaves_the_breaker_alone() {
    let bench = Bench::new(Fake { error: Some(error(Some("57014"))), ..Fake::default() });
    assert!(bench.list("count=none").is_none());
    bench.work();
    check_later(&bench.answer(), 503, "1");
    assert_eq!(bench.breaker.state(), State::Closed);
}

#[test]
fn a_database_in_trouble_is_503_and_feeds_the_breaker() {
    for sqlstate in [None, Some("08006"), Some("53300"), Some("57P01"), Some("42P01"), Some("x")] {
        let bench = Bench::new(Fake { error: Some(error(sqlstate)), ..Fake::default() });
        assert!(bench.list("").is_none());
        bench.work();
        check_later(&bench.answer(), 503, "1");
        assert_eq!(bench.asked(), ["count"], "the other half is spared");
        assert_eq!(bench.breaker.state(), State::Open);
    }
}

#[test]
fn a_query_at_fault_is_500_and_leaves_the_breaker_alone() {
    let bench = Bench::new(Fake { error: Some(error(Some("22008"))), ..Fake::default() });
    assert!(bench.list("count=none").is_none());
    bench.work();
    let answer = bench.answer();
    assert_eq!(answer.status, 500);
    assert!(
        !String::from_utf8(answer.body).unwrap().contains("it broke"),
        "the client does not see the chain"
    );
    assert_eq!(bench.breaker.state(), State::Closed);
}

#[test]
fn a_job_that_waited_too_long_is_refused() {
    let bench = Bench::new(Fake::default());
    assert!(bench.list("").is_none());
    bench.clock.advance(Duration::from_millis(5001));
    bench.work();
    check_later(&bench.answer(), 503, "1");
    assert_eq!(bench.asked().len(), 0);
}

#[test]
fn mistakes_are_answered_without_the_line() {
    let bench = Bench::new(Fake::default());
    for response in [bench.list("limit=0"), bench.find("nonsense"), bench.find("")] {
        let response = response.unwrap();
        assert_eq!((response.status, response.content_type), (400, problem::CONTENT_TYPE));
    }
    assert_eq!(bench.line.waiting(), 0);
}

#[test]
fn a_receipt_says_what_became_of_an_event() {
    let receipt = |found| {
        let bench = Bench::new(Fake { found, ..Fake::default() });
        assert!(bench.find("00000000-0001-8000-8000-000000000000").is_none());
        bench.work();
        let answer = bench.answer();
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let (status, body) = receipt(Some(Found::Stored(event(1))));
    assert_eq!(status, 200);
    assert!(body.starts_with(
        r#"{"event_id":"00000000-0001-8000-8000-000000000000","status":"stored","timestamp":"2023"#
    ));
    assert!(body.ends_with(r#""metadata":{"a": [1, null]},"ingested_at":"2026-11-23T12:00:00.000000Z"}"#));
    let dead = Found::Dead { sqlstate: "22P05".to_owned(), reason: "no \"such\" thing".to_owned() };
    assert_eq!(
        receipt(Some(dead)),
        (200, r#"{"event_id":"00000000-0001-8000-8000-000000000000","status":"dead","reason":"no \"such\" thing","sqlstate":"22P05"}"#.to_owned())
    );
    assert_eq!(receipt(None).0, 404);
}

#[test]
fn when_the_readers_have_ended_the_answer_is_500() {
    let Bench { line, readers, sender, answers, .. } = Bench::new(Fake::default());
    drop(readers);
    let promise = || Promise::new(move |response| sender.send(response).unwrap());
    assert!(matches!(line.list("", NOW, promise, &mut Response::default()), Answer::Later));
    assert_eq!(answers.try_recv().unwrap().status, 500);
    assert_eq!(line.waiting(), 0);
}
