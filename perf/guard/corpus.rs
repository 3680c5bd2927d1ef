//! The bodies that the stages run on: the same in each run, and like those of ordinary producers.
//! 20 services; messages of which some have escapes or characters beyond ASCII; metadata in three of
//! four events; both forms of timestamps.

use aurore_events::event::Timestamp;

/// The time at which all requests arrive: 2026-11-23T12:00:00Z.
pub(super) const NOW: Timestamp = Timestamp::from_millis(1_795_435_200_000);

const SERVICES: u64 = 20;
/// Bytes of a single event.
const SINGLE_BYTES: (f64, f64) = (100.0, 16_384.0);
/// Bytes of an event in a batch.
const BATCHED_BYTES: (f64, f64) = (100.0, 1024.0);
/// Events of a batch.
pub(super) const BATCH_EVENTS: usize = 100;
/// Bytes of the shortest event's other fields.
const OTHER_BYTES: usize = 80;

const WORDS: [&str; 16] = [
    "payment",
    "accepted",
    "in",
    "128",
    "ms",
    "for",
    "order",
    "4711",
    "retry",
    "timeout",
    "user",
    "session",
    "GET",
    "/api/v1/items",
    "status=200",
    "cache",
];
/// As in a JSON string: escapes, and characters of two to four bytes.
const SPECIAL_WORDS: [&str; 6] = [
    "\\\"quoted\\\"",
    "line\\nline",
    "C:\\\\temp",
    "na\u{ef}ve",
    "\\u00e9t\\u00e9",
    "\u{65e5}\u{672c}\u{1f600}",
];

/// One body, with the number of its events.
#[derive(Debug)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) events: usize,
}

/// Which events of the corpus have an `idempotency_key`, or an invalid field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    Plain,
    Keyed,
    Invalid,
}

/// Bodies of one event each, as `application/json`.
pub(super) fn singles(count: usize, kind: EventKind) -> Vec<Body> {
    let mut events = Events::new(SINGLE_BYTES, kind);
    (0..count).map(|_| Body { bytes: events.next().into_bytes(), events: 1 }).collect()
}

/// Bodies of [`BATCH_EVENTS`] events each, as `application/x-ndjson`.
pub(super) fn batches(count: usize, kind: EventKind) -> Vec<Body> {
    batches_of(BATCH_EVENTS, count, kind)
}

/// Bodies of `events` events each, as `application/x-ndjson`.
pub(super) fn batches_of(events: usize, count: usize, kind: EventKind) -> Vec<Body> {
    let mut source = Events::new(BATCHED_BYTES, kind);
    let mut batch = || (0..events).map(|_| source.next() + "\n").collect::<String>();
    (0..count).map(|_| Body { bytes: batch().into_bytes(), events }).collect()
}

/// The fields of `count` events as they stand in a body: service, message, and metadata.
pub(super) fn fields(count: usize) -> Vec<[String; 3]> {
    let mut events = Events::new(BATCHED_BYTES, EventKind::Plain);
    (0..count).map(|_| events.fields()).collect()
}

/// The events of [`batches`], by their fields and milliseconds.
pub(super) fn timed_fields(count: usize) -> Vec<([String; 3], i64)> {
    let mut events = Events::new(BATCHED_BYTES, EventKind::Plain);
    (0..count).map(|_| (events.fields(), events.millis())).collect()
}

/// The event of these fields in the server's own format.
fn event_text([service, message, metadata]: &[String; 3], timestamp: &str) -> String {
    let mut event =
        format!("{{\"timestamp\":{timestamp},\"service\":\"{service}\",\"message\":\"{message}\"");
    if !metadata.is_empty() {
        event.push_str(",\"metadata\":");
        event.push_str(metadata);
    }
    event
}

/// Makes events from a fixed seed.
struct Events {
    /// The state of a linear congruential generator. A generator of a crate may change with it.
    random: u64,
    bytes: (f64, f64),
    kind: EventKind,
    made: u64,
}

impl Events {
    fn new(bytes: (f64, f64), kind: EventKind) -> Self {
        Self { random: 0x5eed, bytes, kind, made: 0 }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % end
    }

    /// A length whose logarithm is evenly distributed: most events are short.
    fn length(&mut self) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "a number below 1000")]
        let share = self.below(1000) as f64 / 1000.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between the two bounds")]
        let length = (self.bytes.0 * (self.bytes.1 / self.bytes.0).powf(share)) as usize;
        length
    }

    fn fields(&mut self) -> [String; 3] {
        let length = self.length();
        let service = format!("service-{}", self.below(SERVICES));
        let metadata = if self.below(4) == 0 { String::new() } else { self.metadata() };
        let message = self.message(length.saturating_sub(OTHER_BYTES + metadata.len()));
        [service, message, metadata]
    }

    fn millis(&mut self) -> i64 {
        NOW.millis() - i64::try_from(self.below(5_000)).expect("a number below 5,000")
    }

    fn next(&mut self) -> String {
        let fields = self.fields();
        let millis = self.millis();
        let timestamp = if self.below(4) == 0 {
            millis.to_string()
        } else {
            let time = chrono::DateTime::from_timestamp_millis(millis).expect("a time of this century");
            format!("\"{}\"", time.format("%Y-%m-%dT%H:%M:%S%.3fZ"))
        };
        let mut event = event_text(&fields, &timestamp);
        self.made += 1;
        match self.kind {
            EventKind::Plain => {}
            EventKind::Keyed => {
                event.extend([",\"idempotency_key\":\"", &format!("{:032x}", self.made), "\""]);
            }
            EventKind::Invalid => event.push_str(self.invalid_field()),
        }
        event.push('}');
        event
    }

    /// A field that makes the event invalid.
    fn invalid_field(&self) -> &'static str {
        match self.made % 4 {
            0 => ",\"severity\":\"info\"",
            1 => ",\"service\":\"again\"",
            2 => ",\"idempotency_key\":7",
            _ => ",\"idempotency_key\":\"\"",
        }
    }

    fn message(&mut self, bytes: usize) -> String {
        let special = self.below(4) == 0;
        let mut message = String::from("order");
        while message.len() < bytes {
            message.push(' ');
            let words: &[&str] = if special && self.below(8) == 0 { &SPECIAL_WORDS } else { &WORDS };
            message.push_str(self.choose(words));
        }
        message
    }

    fn choose<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[usize::try_from(self.below(words.len() as u64)).expect("an index")]
    }

    fn metadata(&mut self) -> String {
        let (region, attempt, trace) = (self.below(4), self.below(5), self.below(1 << 30));
        let short = format!(r#"{{"region":"eu-west-{region}","attempt":{attempt},"trace":"{trace:016x}""#);
        if self.below(2) == 0 {
            return short + "}";
        }
        let (millis, tenths, user) = (self.below(2000), self.below(10), self.below(1 << 20));
        let tags = r#""tags":["a","b"],"admin":false"#;
        format!(r#"{short},"duration_ms":{millis}.{tenths},"user":{{"id":{user},{tags}}},"parent":null}}"#)
    }
}
