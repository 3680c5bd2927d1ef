//! Tests of the query queue and the readers against a fake repository.

use std::sync::{Barrier, Mutex, mpsc};

use super::*;
use crate::clock::Clock;
use crate::event::{ArrivalNumber, Event, Timestamp};
use crate::query::cursor::Cursor;
use crate::storage::breaker::BreakerState;
use crate::storage::{
    Breaker, BreakerLimits, Chunk, CountInterval, CreatePartitionLimits, CreatePartitionOutcome, Day,
    DeadLetter, DefaultPartition, EventRepository, IntervalCount, RetentionSweep, SortOrder as Direction,
    StoreError, StorePath, Stored, SweepConditions, Totals,
};

const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

/// Returns preset results and records the calls.
#[derive(Debug, Default)]
struct FakeRepository {
    events: Vec<Event>,
    found: Option<EventStatus>,
    error: Option<StoreError>,
    /// Makes page and count wait for each other.
    meeting: Option<Barrier>,
    asked: Mutex<Vec<&'static str>>,
}

impl FakeRepository {
    fn ask<T>(&self, what: &'static str, value: T) -> Result<T, StoreError> {
        self.asked.lock().unwrap().push(what);
        if let Some(meeting) = &self.meeting {
            meeting.wait();
        }
        self.error.clone().map_or(Ok(value), Err)
    }
}

impl EventRepository for FakeRepository {
    fn prepare(&self) -> Result<(), StoreError> {
        unimplemented!("queries do not prepare")
    }

    fn store(&self, _: &[&[u8]], _: &[DeadLetter<'_>], _: StorePath) -> Result<Stored, StoreError> {
        unimplemented!("queries do not store")
    }

    fn trial_insert(&self, _now: Timestamp) -> Result<(), StoreError> {
        unimplemented!("queries do not store")
    }

    fn page(&self, page: &EventPage, bytes_max: usize) -> Result<Chunk, StoreError> {
        let events = self.events.iter().take(usize::from(page.limit)).cloned().collect();
        self.ask("page", Chunk::from_events(events, page.limit, bytes_max))
    }

    fn count(&self, _filter: &Filter) -> Result<u64, StoreError> {
        self.ask("count", 42)
    }

    fn find(&self, _id: EventId) -> Result<Option<EventStatus>, StoreError> {
        self.ask("find", self.found.clone())
    }

    fn totals(&self, _since: Timestamp, _services_max: u16) -> Result<Totals, StoreError> {
        unimplemented!("queries do not read totals")
    }

    fn ping(&self) -> Result<(), StoreError> {
        unimplemented!("queries do not ping")
    }

    fn interval_counts(
        &self,
        _filter: &Filter,
        _interval: CountInterval,
        _rows_max: u32,
    ) -> Result<Vec<IntervalCount>, StoreError> {
        self.ask("counts", Vec::new())
    }

    fn partition_days(&self) -> Result<Vec<Day>, StoreError> {
        unimplemented!("queries do not list partitions")
    }

    fn create_partition(
        &self,
        _day: Day,
        _limits: CreatePartitionLimits,
    ) -> Result<CreatePartitionOutcome, StoreError> {
        unimplemented!("queries do not create partitions")
    }

    fn default_partition(&self) -> Result<DefaultPartition, StoreError> {
        unimplemented!("queries do not read the default partition")
    }

    fn sweep_conditions(&self) -> Result<SweepConditions, StoreError> {
        unimplemented!("queries do not sweep")
    }

    fn last_sweep(&self) -> Result<Option<Timestamp>, StoreError> {
        unimplemented!("queries do not read sweeps")
    }

    fn begin_sweep(&self, _edge: Timestamp) -> Result<Option<Box<dyn RetentionSweep + '_>>, StoreError> {
        unimplemented!("queries do not sweep")
    }
}

/// A queue and its readers, run by the test's thread, and the responses.
struct ReaderFixture {
    queue: QueryQueue,
    readers: Readers,
    fake: Arc<FakeRepository>,
    breaker: Arc<Breaker>,
    clock: Clock,
    sender: mpsc::Sender<Response>,
    answers: mpsc::Receiver<Response>,
}

impl ReaderFixture {
    fn new(fake: FakeRepository) -> Self {
        // The first failure opens the breaker.
        let limits = BreakerLimits { failure_threshold: 1, ..BreakerLimits::default() };
        let (fake, breaker) = (Arc::new(fake), Arc::new(Breaker::new(limits)));
        let clock = Clock::manual(NOW, 1);
        let limits = ReaderLimits { jobs_max: 3, wait_max: Duration::from_secs(5), response_bytes_max: 1000 };
        let (queue, readers) = query_queue(
            limits,
            QueryDatabase::new(Arc::clone(&fake) as Arc<_>, Arc::clone(&breaker), clock.clone()),
        );
        let (sender, answers) = mpsc::channel();
        Self { queue, readers, fake, breaker, clock, sender, answers }
    }

    fn promise(&self) -> Promise {
        let sender = self.sender.clone();
        Promise::new(move |response| sender.send(response).unwrap())
    }

    fn list(&self, query: &str) -> Option<Response> {
        let mut response = Response::default();
        match self.queue.list(request(query), || self.promise(), &mut response) {
            HandlerResult::Done => Some(response),
            HandlerResult::Pending => None,
            HandlerResult::Yield(_) => unreachable!(),
        }
    }

    fn find(&self, id: &str) -> Option<Response> {
        let mut response = Response::default();
        match self.queue.find(id, None, || self.promise(), &mut response) {
            HandlerResult::Done => Some(response),
            HandlerResult::Pending => None,
            HandlerResult::Yield(_) => unreachable!(),
        }
    }

    /// Runs all queued jobs in this thread.
    fn work(&self) {
        while let Ok(job) = self.readers.jobs.try_recv() {
            self.readers.tick(job);
        }
        assert_eq!(self.queue.waiting(), 0);
    }

    fn answer(&self) -> Response {
        let answer = self.answers.try_recv().unwrap();
        assert!(self.answers.try_recv().is_err(), "one response per request");
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
        arrival: ArrivalNumber::default(),
    }
}

fn error(sqlstate: Option<&str>) -> StoreError {
    StoreError { sqlstate: sqlstate.map(str::to_owned), ..StoreError::client_side("it broke") }
}

#[track_caller]
fn check_later(response: &Response, status: u16, retry: &str) {
    assert_eq!(response.status, status);
    assert_eq!(response.content_type, problem::CONTENT_TYPE);
    assert_eq!(str::from_utf8(&response.headers).unwrap(), format!("Retry-After: {retry}\r\n"));
}

#[test]
fn page_and_total_complete_one_response() {
    let fixture = ReaderFixture::new(FakeRepository {
        events: vec![event(1), event(2), event(3)],
        ..FakeRepository::default()
    });
    assert!(fixture.list("limit=2").is_none());
    fixture.work();
    let cursor = Cursor { order: Direction::Desc, last: event(2).key() }.encode();
    let answer = fixture.answer();
    assert_eq!((answer.status, answer.content_type), (200, "application/json"));
    assert_eq!(
        str::from_utf8(&answer.body).unwrap(),
        format!(
            r#"{{"events":[{{"event_id":"00000000-0001-8000-8000-000000000000","timestamp":"2023-11-14T22:13:20.123456Z","service":"check\"out","message":"a\nb\u0001\\é","metadata":{{"a": [1, null]}},"ingested_at":"2026-11-23T12:00:00.000000Z"}},{{"event_id":"00000000-0002-8000-8000-000000000000","timestamp":"2023-11-14T22:13:20.123456Z","service":"check\"out","message":"a\nb\u0001\\é","metadata":null,"ingested_at":"2026-11-23T12:00:00.000000Z"}}],"page":{{"limit":2,"next_cursor":"{cursor}","total":42}}}}"#
        )
    );
}

#[test]
fn last_page_has_no_cursor_and_count_none_has_no_total() {
    let fixture = ReaderFixture::new(FakeRepository { events: vec![event(1)], ..FakeRepository::default() });
    assert!(fixture.list("limit=1&count=none").is_none());
    fixture.work();
    let body = String::from_utf8(fixture.answer().body).unwrap();
    assert!(body.ends_with(r#""page":{"limit":1,"next_cursor":null,"total":null}}"#), "{body}");
    assert_eq!(fixture.asked(), ["page"]);
    let fixture = ReaderFixture::new(FakeRepository::default());
    assert!(fixture.list("").is_none());
    fixture.work();
    let body = String::from_utf8(fixture.answer().body).unwrap();
    assert_eq!(body, r#"{"events":[],"page":{"limit":100,"next_cursor":null,"total":42}}"#);
}

#[test]
fn page_ends_early_at_the_byte_bound_and_the_next_one_continues() {
    let events = (1..=4).map(event).collect();
    let fixture = ReaderFixture::new(FakeRepository { events, ..FakeRepository::default() });
    assert!(fixture.list("limit=100&count=none").is_none());
    fixture.work();
    let body = String::from_utf8(fixture.answer().body).unwrap();
    assert!(body.len() <= 1000 && body.matches("event_id").count() == 3, "{body}");
    let last = event(3);
    let cursor = Cursor { order: Direction::Desc, last: last.key() }.encode();
    assert!(body.ends_with(&format!(r#""page":{{"limit":100,"next_cursor":"{cursor}","total":null}}}}"#)));
    // An event that is longer than the bound is a page of its own.
    let events = vec![Event { message: "m".repeat(2000), ..event(1) }, event(2)];
    let fixture = ReaderFixture::new(FakeRepository { events, ..FakeRepository::default() });
    assert!(fixture.list("").is_none());
    fixture.work();
    let body = String::from_utf8(fixture.answer().body).unwrap();
    assert_eq!((body.matches("event_id").count(), body.contains(r#""next_cursor":null"#)), (1, false));
}

#[test]
fn page_and_count_run_at_the_same_time() {
    let fixture =
        ReaderFixture::new(FakeRepository { meeting: Some(Barrier::new(2)), ..FakeRepository::default() });
    let threads = [(); 2].map(|()| {
        let readers = fixture.readers.clone();
        std::thread::Builder::new().spawn(move || readers.run()).unwrap()
    });
    for _ in 0..20 {
        assert!(fixture.list("").is_none());
        // Both must be at the barrier for either to continue.
        assert_eq!(fixture.answers.recv_timeout(Duration::from_secs(20)).unwrap().status, 200);
    }
    let ReaderFixture { queue, .. } = fixture;
    drop(queue);
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn full_queue_rejects_all_jobs_of_a_request_at_once() {
    let fixture = ReaderFixture::new(FakeRepository::default());
    assert!(fixture.list("").is_none());
    check_later(&fixture.list("").unwrap(), 503, "1");
    assert_eq!(fixture.queue.waiting(), 2, "the rejected query took no slot");
    assert!(fixture.list("count=none").is_none());
    check_later(&fixture.find("00000000-0001-8000-8000-000000000000").unwrap(), 503, "1");
    fixture.work();
    assert_eq!(fixture.answers.try_iter().count(), 2);
    assert!(fixture.list("").is_none());
}

#[test]
fn open_breaker_rejects_at_once_with_retry_after() {
    for (elapsed, retry) in [(999, "30"), (29_000, "1"), (28_000, "2")] {
        let fixture = ReaderFixture::new(FakeRepository::default());
        fixture.breaker.record_failure(fixture.clock.now());
        fixture.clock.advance(Duration::from_millis(elapsed));
        check_later(&fixture.list("").unwrap(), 503, retry);
        assert_eq!((fixture.queue.waiting(), fixture.asked().len()), (0, 0));
    }
}

#[test]
fn query_probes_a_breaker_after_its_timeout() {
    let fixture = ReaderFixture::new(FakeRepository::default());
    fixture.breaker.record_failure(fixture.clock.now());
    fixture.clock.advance(Duration::from_secs(30));
    for state in [BreakerState::HalfOpen, BreakerState::Closed] {
        assert!(fixture.list("count=none").is_none());
        fixture.work();
        assert_eq!((fixture.answer().status, fixture.breaker.state()), (200, state));
    }
}

#[test]
fn query_timeout_is_503_and_does_not_count_against_the_breaker() {
    let fixture =
        ReaderFixture::new(FakeRepository { error: Some(error(Some("57014"))), ..FakeRepository::default() });
    assert!(fixture.list("count=none").is_none());
    fixture.work();
    check_later(&fixture.answer(), 503, "1");
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
}

#[test]
fn database_failure_is_503_and_counts_against_the_breaker() {
    for sqlstate in [None, Some("08006"), Some("53300"), Some("57P01"), Some("42P01"), Some("x")] {
        let fixture =
            ReaderFixture::new(FakeRepository { error: Some(error(sqlstate)), ..FakeRepository::default() });
        assert!(fixture.list("").is_none());
        fixture.work();
        check_later(&fixture.answer(), 503, "1");
        assert_eq!(fixture.asked(), ["count"], "the other job is skipped");
        assert_eq!(fixture.breaker.state(), BreakerState::Open);
    }
}

#[test]
fn rejected_statement_is_500_and_does_not_count_against_the_breaker() {
    let fixture =
        ReaderFixture::new(FakeRepository { error: Some(error(Some("22008"))), ..FakeRepository::default() });
    assert!(fixture.list("count=none").is_none());
    fixture.work();
    let answer = fixture.answer();
    assert_eq!(answer.status, 500);
    assert!(
        !String::from_utf8(answer.body).unwrap().contains("it broke"),
        "the response must not contain the error chain"
    );
    assert_eq!(fixture.breaker.state(), BreakerState::Closed);
}

#[test]
fn expired_job_is_rejected() {
    let fixture = ReaderFixture::new(FakeRepository::default());
    assert!(fixture.list("").is_none());
    fixture.clock.advance(Duration::from_millis(5001));
    fixture.work();
    check_later(&fixture.answer(), 503, "1");
    assert_eq!(fixture.asked().len(), 0);
}

#[test]
fn invalid_queries_are_rejected_without_the_queue() {
    let fixture = ReaderFixture::new(FakeRepository::default());
    for response in [fixture.list("limit=0"), fixture.find("nonsense"), fixture.find("")] {
        let response = response.unwrap();
        assert_eq!((response.status, response.content_type), (400, problem::CONTENT_TYPE));
    }
    assert_eq!(fixture.queue.waiting(), 0);
}

#[test]
fn find_returns_the_status_of_an_event() {
    let receipt = |found| {
        let fixture = ReaderFixture::new(FakeRepository { found, ..FakeRepository::default() });
        assert!(fixture.find("00000000-0001-8000-8000-000000000000").is_none());
        fixture.work();
        let answer = fixture.answer();
        (answer.status, String::from_utf8(answer.body).unwrap())
    };
    let (status, body) = receipt(Some(EventStatus::Stored(event(1))));
    assert_eq!(status, 200);
    assert!(body.starts_with(
        r#"{"event_id":"00000000-0001-8000-8000-000000000000","status":"stored","timestamp":"2023"#
    ));
    assert!(body.ends_with(r#""metadata":{"a": [1, null]},"ingested_at":"2026-11-23T12:00:00.000000Z"}"#));
    let dead = EventStatus::Dead { sqlstate: "22P05".to_owned(), reason: "no \"such\" thing".to_owned() };
    assert_eq!(
        receipt(Some(dead)),
        (200, r#"{"event_id":"00000000-0001-8000-8000-000000000000","status":"dead","reason":"no \"such\" thing","sqlstate":"22P05"}"#.to_owned())
    );
    assert_eq!(receipt(None).0, 404);
}

#[test]
fn query_is_500_when_the_readers_have_ended() {
    let ReaderFixture { queue, readers, sender, answers, .. } = ReaderFixture::new(FakeRepository::default());
    drop(readers);
    let promise = || Promise::new(move |response| sender.send(response).unwrap());
    assert!(matches!(queue.list(request(""), promise, &mut Response::default()), HandlerResult::Pending));
    assert_eq!(answers.try_recv().unwrap().status, 500);
    assert_eq!(queue.waiting(), 0);
}

fn request(query: &str) -> QueryRequest<'_> {
    QueryRequest { query, now: NOW, services: None }
}
