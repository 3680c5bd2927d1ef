use super::*;
use crate::buffer::RowBlock;
use crate::clock::Moment;
use crate::event::{ArrivalNumber, EventId, Timestamp, row};
use crate::http::BodyStream;
use crate::http::streaming_body::NextBlock;
use crate::lifecycle::LifecyclePhase;

struct Fixture {
    tails: Tails,
    thread: TailThread,
    metrics: Arc<TailMetrics>,
    lifecycle: Lifecycle,
    clock: Clock,
}

impl Fixture {
    fn new() -> Self {
        let limits = TailLimits { tails_max: 2, queued_bytes_max: 1 << 20, heartbeat: HEARTBEAT };
        let (metrics, (lifecycle, _)) = (Arc::<TailMetrics>::default(), Lifecycle::new());
        lifecycle.advance_to(LifecyclePhase::Serving);
        let clock = Clock::manual(Timestamp::from_millis(90_000_000), 1);
        let (tails, thread) = tails(limits, metrics.clone(), lifecycle.clone(), clock.clone());
        Self { tails, thread, metrics, lifecycle, clock }
    }

    fn start(&self, query: &str) -> Response {
        let mut response = Response::default();
        let request = QueryRequest { query, now: self.clock.wall(), services: None };
        assert!(matches!(self.tails.start(request, false, &mut response), HandlerResult::Done));
        response
    }

    fn open(&self, query: &str) -> BodyStream {
        let response = self.start(query);
        assert_eq!((response.status, response.content_type), (200, "text/event-stream"));
        response.stream.expect("it streams")
    }

    fn admit(&self, messages: &[&str]) {
        assert!(self.tails.tap().is_open());
        let (mut bytes, time) = (Vec::new(), Timestamp::from_millis(1));
        for message in messages {
            row::append_header(&mut bytes, EventId::floor(1), time, time, ArrivalNumber::default());
            row::append_text(&mut bytes, b"s");
            row::append_text(&mut bytes, message.as_bytes());
            row::append_metadata(&mut bytes, Some(b"{\r\n\"k\": 1\n}"));
        }
        let rows = u32::try_from(messages.len()).unwrap();
        self.tails.tap().offer(&RowBlock::new(&bytes, rows, Moment::ZERO));
    }
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
    assert_eq!(
        events[0],
        "id: 00000000-0001-0000-0000-000000000000\n\
         data: {\"event_id\":\"00000000-0001-0000-0000-000000000000\",\"timestamp\":\"1970-01-01T00:00:00.001000Z\",\
         \"service\":\"s\",\"message\":\"m1\",\"metadata\":{  \"k\": 1 },\"ingested_at\":\"1970-01-01T00:00:00.001000Z\"}"
    );
    assert!(events[1].contains("\"M2\"") && events.len() == 2, "{text}");
    assert_eq!(fixture.metrics.sent.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[test]
fn silent_tail_gets_a_comment_at_once_and_a_heartbeat_later() {
    let mut fixture = Fixture::new();
    let stream = fixture.open("");
    fixture.admit(&[]);
    fixture.thread.tick();
    assert!(text(&stream).starts_with(": "));
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
