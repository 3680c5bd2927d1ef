use super::*;
use crate::buffer::RowBlock;
use crate::clock::Moment;
use crate::event::{ArrivalNumber, EventId, Timestamp, row};
use crate::http::BodyStream;
use crate::http::streaming_body::NextBlock;
use crate::lifecycle::LifecyclePhase;
use crate::query::{QueryDatabase, ReaderLimits, Readers, query_queue};
use crate::storage::memory::MemoryRepository;
use crate::storage::{Breaker, BreakerLimits, EventRepository as _, StorePath};

struct Fixture {
    tails: Tails,
    thread: TailThread,
    metrics: Arc<TailMetrics>,
    lifecycle: Lifecycle,
    queue: QueryQueue,
    readers: Readers,
    stored: Arc<MemoryRepository>,
    clock: Clock,
}

impl Fixture {
    fn new() -> Self {
        let limits = TailLimits { tails_max: 2, queued_bytes_max: 1 << 20, heartbeat: HEARTBEAT };
        let (metrics, (lifecycle, _)) = (Arc::<TailMetrics>::default(), Lifecycle::new());
        lifecycle.advance_to(LifecyclePhase::Serving);
        let clock = Clock::manual(Timestamp::from_millis(90_000_000), 1);
        let (tails, thread) = tails(limits, "host:1", metrics.clone(), lifecycle.clone(), clock.clone());
        let stored = Arc::<MemoryRepository>::default();
        let limits =
            BreakerLimits { failure_threshold: 1, success_threshold: 1, timeout: Duration::from_secs(1) };
        let database = QueryDatabase::new(stored.clone(), Arc::new(Breaker::new(limits)), clock.clone());
        let limits =
            ReaderLimits { jobs_max: 1, wait_max: Duration::from_secs(1), response_bytes_max: 1 << 20 };
        let (queue, readers) = query_queue(limits, database);
        Self { tails, thread, metrics, lifecycle, queue, readers, stored, clock }
    }

    fn start_after(&self, query: &str, last: Option<&str>) -> Response {
        let mut response = Response::default();
        let request = QueryRequest { query, now: self.clock.wall(), services: None };
        let options = (false, last.map(str::as_bytes));
        let result = self.tails.start(request, options, &self.queue, &mut response);
        assert!(matches!(result, HandlerResult::Done));
        response
    }

    fn start(&self, query: &str) -> Response {
        self.start_after(query, None)
    }

    fn open(&self, query: &str) -> BodyStream {
        self.open_after(query, None)
    }

    fn open_after(&self, query: &str, last: Option<&str>) -> BodyStream {
        let response = self.start_after(query, last);
        assert_eq!((response.status, response.content_type), (200, "text/event-stream"));
        response.stream.expect("it streams")
    }

    fn admit(&self, messages: &[&str]) {
        assert!(self.tails.tap().is_open());
        let bytes: Vec<u8> = messages.iter().flat_map(|message| row(1, message)).collect();
        let rows = u32::try_from(messages.len()).unwrap();
        self.tails.tap().offer(&RowBlock::new(&bytes, rows, Moment::ZERO));
    }

    /// Stores an event that arrived at its timestamp.
    fn store(&self, millis: u64, message: &str) {
        self.stored.store(&[&row(millis, message)], &[], StorePath::Copy).unwrap();
    }
}

/// The row of the event `EventId::floor(millis)`.
fn row(millis: u64, message: &str) -> Vec<u8> {
    let (mut bytes, time) = (Vec::new(), Timestamp::from_millis(i64::try_from(millis).unwrap()));
    row::append_header(&mut bytes, EventId::floor(millis), time, time, ArrivalNumber::first_at(time));
    row::append_text(&mut bytes, b"s");
    row::append_text(&mut bytes, message.as_bytes());
    row::append_metadata(&mut bytes, Some(b"{\r\n\"k\": 1\n}"));
    bytes
}

/// The messages of the events in a text, and the data of all others.
fn shown(text: &str) -> Vec<String> {
    let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
    let shown = events.map(|event| match event.split_once("\"message\":\"") {
        Some((_, rest)) => rest.split('"').next().unwrap().to_owned(),
        None => event.split_once("data: ").unwrap().1.to_owned(),
    });
    shown.collect()
}

#[track_caller]
fn text(stream: &BodyStream) -> String {
    match stream.next() {
        NextBlock::Block(block) => String::from_utf8(block).unwrap(),
        other @ (NextBlock::Pending | NextBlock::End | NextBlock::Aborted) => panic!("{other:?}"),
    }
}

#[test]
fn tail_gets_matching_events_as_server_sent_events() {
    let mut fixture = Fixture::new();
    assert!(!fixture.tails.tap().is_open());
    let stream = fixture.open("q=m");
    // Not yet known to the thread when the events are admitted.
    fixture.admit(&["m1", "other", "M2"]);
    fixture.thread.tick();
    let text = text(&stream);
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events[0], "event: tail\ndata: {\"instance\":\"host:1\",\"sample\":1,\"resumed\":false}");
    assert_eq!(
        events[1],
        "id: 00000000-0001-0000-0000-000000000000\n\
         data: {\"event_id\":\"00000000-0001-0000-0000-000000000000\",\"timestamp\":\"1970-01-01T00:00:00.001000Z\",\
         \"service\":\"s\",\"message\":\"m1\",\"metadata\":{  \"k\": 1 },\"ingested_at\":\"1970-01-01T00:00:00.001000Z\"}"
    );
    assert!(events[2].contains("\"M2\"") && events.len() == 3, "{text}");
    assert_eq!(fixture.metrics.sent.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[test]
fn silent_tail_names_its_server_at_once_and_gets_a_heartbeat_later() {
    let mut fixture = Fixture::new();
    let stream = fixture.open("");
    fixture.admit(&[]);
    fixture.thread.tick();
    assert!(text(&stream).starts_with("event: tail\ndata: {\"instance\":\"host:1\""));
    fixture.thread.tick();
    assert_eq!(stream.next(), NextBlock::Pending);
    fixture.clock.advance(HEARTBEAT);
    fixture.thread.tick();
    assert_eq!(text(&stream), ": heartbeat\n\n");
}

#[test]
fn tail_that_is_not_read_has_bounded_memory_and_learns_what_it_skipped() {
    let mut fixture = Fixture::new();
    let stream = fixture.open("");
    let message = "m".repeat(1000);
    for _ in 0..1000 {
        fixture.admit(&[message.as_str(); 10]);
        fixture.thread.tick();
    }
    let (mut bytes, mut events, mut skipped) = (0, 0, 0);
    for _ in 0..3 {
        let block = text(&stream);
        bytes += block.len();
        events += block.matches("id: ").count();
        let told = block.split("data: {\"events\":").skip(1);
        skipped += told.map(|rest| rest.split('}').next().unwrap().parse::<usize>().unwrap()).sum::<usize>();
        fixture.thread.tick();
    }
    assert!(bytes < 3 * 300 * 1024, "{bytes}");
    assert_eq!(events + skipped, 10_000);
    assert_eq!(fixture.metrics.skipped.load(std::sync::atomic::Ordering::Relaxed), skipped as u64);
}

#[test]
fn tails_are_bounded_and_a_closed_one_makes_room() {
    let mut fixture = Fixture::new();
    let (first, _second) = (fixture.open(""), fixture.open(""));
    let refused = fixture.start("");
    assert_eq!((refused.status, refused.stream.is_some()), (503, false));
    assert_eq!(fixture.start("limit=1").status, 400);
    drop(first);
    fixture.admit(&["m"]);
    fixture.thread.tick();
    fixture.open("");
}

#[test]
fn tail_ends_when_the_server_stops_and_when_it_is_old() {
    for is_old in [true, false] {
        let mut fixture = Fixture::new();
        let stream = fixture.open("");
        fixture.admit(&["m"]);
        if is_old {
            fixture.clock.advance(Duration::from_hours(1));
        } else {
            fixture.lifecycle.advance_to(LifecyclePhase::Draining);
        }
        fixture.thread.tick();
        assert!(text(&stream).contains("\"m\""));
        assert_eq!(stream.next(), NextBlock::End);
        assert!(!fixture.tails.tap().is_open());
    }
}

#[test]
fn one_of_the_stated_number_of_events_is_sampled() {
    let mut fixture = Fixture::new();
    let stream = fixture.open("sample=3&q=m");
    fixture.admit(&["m1", "x", "m2", "m3", "m4", "x", "m5", "m6", "m7"]);
    fixture.thread.tick();
    let hello = r#"{"instance":"host:1","sample":3,"resumed":false}"#;
    assert_eq!(shown(&text(&stream)), [hello, "m1", "m4", "m7"]);
    assert_eq!(fixture.start("sample=0").status, 400);
}

#[test]
fn resumed_tail_gets_missed_events_once_before_later_ones() {
    const SECOND: u64 = 1000;
    let mut fixture = Fixture::new();
    fixture.store(10 * SECOND, "long before");
    fixture.store(99 * SECOND + 500, "within the overlap");
    fixture.store(100 * SECOND, "last");
    fixture.store(101 * SECOND, "missed m");
    fixture.store(102 * SECOND, "other");
    let last = EventId::floor(100 * SECOND).to_string();
    let stream = fixture.open_after("q=m", Some(&last));
    // Admitted while the missed ones are read; one of them is stored by then.
    let both = [row(103 * SECOND, "m stored"), row(104 * SECOND, "m admitted")].concat();
    fixture.tails.tap().offer(&RowBlock::new(&both, 2, Moment::ZERO));
    fixture.store(103 * SECOND, "m stored");
    fixture.thread.tick();
    let hello = r#"{"instance":"host:1","sample":1,"resumed":true}"#;
    assert_eq!(shown(&text(&stream)), [hello]);
    fixture.readers.run_waiting();
    fixture.thread.tick();
    assert_eq!(shown(&text(&stream)), ["missed m", "m stored", "m admitted"]);
    // It was in the queue of blocks when the missed events were read.
    fixture.tails.tap().offer(&RowBlock::new(&both, 2, Moment::ZERO));
    fixture.thread.tick();
    assert_eq!(shown(&text(&stream)), ["m admitted"]);
    // The overlap: without the filter.
    let stream = fixture.open_after("", Some(&last));
    fixture.readers.run_waiting();
    fixture.thread.tick();
    let all = [hello, "within the overlap", "missed m", "other", "m stored"];
    assert_eq!(shown(&text(&stream)), all);
}

#[test]
fn resumed_tail_states_a_gap_and_goes_on() {
    let check = |reason: &str, prepare: &dyn Fn(&mut Fixture), last: u64| {
        let mut fixture = Fixture::new();
        prepare(&mut fixture);
        let stream = fixture.open_after("", Some(&EventId::floor(last).to_string()));
        fixture.readers.run_waiting();
        fixture.admit(&["next"]);
        fixture.thread.tick();
        let mut all = Vec::new();
        while let NextBlock::Block(block) = stream.next() {
            all.extend(shown(&String::from_utf8(block).unwrap()));
            fixture.thread.tick();
        }
        assert!(all.contains(&format!("{{\"reason\":\"{reason}\"}}")), "{reason}: {:?}", &all[..2]);
        assert_eq!(all.last().map(String::as_str), Some("next"), "{reason}");
        all.len()
    };
    check("unknown-id", &|_| (), 5);
    let many = |fixture: &mut Fixture| {
        for millis in 1..=5002 {
            fixture.store(millis, "m");
        }
    };
    // The server's part of the tail, the gap, the bound, and the next event.
    assert_eq!(check("too-many", &many, 1), 1 + 1 + 5000 + 1);
    let full = |fixture: &mut Fixture| fixture.queue.run_detached(|_, _| ());
    check("queries-full", &full, 5);
    assert_eq!(Fixture::new().start_after("", Some("x")).status, 400);
    assert!(Fixture::new().start_after("", Some("")).stream.is_some());
}
