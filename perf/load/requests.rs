//! Prebuilt requests. Before a request is sent, only the timestamps, the traces and the idempotency
//! keys of its events are overwritten, at offsets known from the building.

use std::io::Write as _;

use chrono::DateTime;
use prost::Message as _;

use crate::events::{Event, EventGenerator, Size};
use crate::log_records;

/// `2026-11-27T18:32:40.123456Z`.
const TIMESTAMP_BYTES: usize = 27;
/// The digits at the end of an event's metadata.
const TRACE_BYTES: usize = 16;
const KEY_BYTES: usize = 16;
/// Microseconds between two events of a batch.
const SPACING: u64 = 10;
/// Take the places of a log record's time and trace until their offsets are known. The bytes of the
/// first occur in no text, and the generator makes no text like the second.
const TIME_MARK: [u8; 8] = [0xff, 0xfe, 0xff, 0xfe, 0xff, 0xfe, 0xff, 0xfe];
const TRACE_MARK: &str = "~~~~~~~~~~~~~~~~";

/// What the events are sent as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One event is JSON, more are NDJSON.
    Json,
    /// An `ExportLogsServiceRequest` in protobuf.
    Otlp,
}

/// The timestamps of the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Times {
    /// The time of sending; the events of a batch are 10 us apart, and the last has the time of sending.
    Advancing,
    /// All events have the time at which the load began.
    Equal,
    /// The time of sending, without its fraction of a second.
    Second,
}

/// The contents of a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestOptions {
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) format: Format,
    /// Events per request.
    pub(crate) batch: usize,
    pub(crate) size: Size,
    pub(crate) times: Times,
    pub(crate) keyed: bool,
    pub(crate) durability: Option<String>,
    pub(crate) seed: u64,
}

#[derive(Debug)]
struct Request {
    bytes: Vec<u8>,
    events: Vec<Offsets>,
}

#[derive(Debug)]
struct Offsets {
    timestamp: usize,
    trace: Option<usize>,
    key: Option<usize>,
}

/// Requests that are sent in turn.
#[derive(Debug)]
pub(crate) struct RequestPool {
    requests: Vec<Request>,
    next: usize,
    sequence: u64,
    format: Format,
    times: Times,
    stamp: Stamp,
    began: u64,
}

impl RequestPool {
    /// `first` is the number of the first event: generators with different numbers send different
    /// traces and keys. `wall_micros` is the time of the beginning.
    pub(crate) fn new(options: &RequestOptions, first: u64, wall_micros: u64) -> Self {
        let mut generator = EventGenerator::new(options.seed ^ first, options.size);
        let count = (4096 / options.batch).max(8);
        let requests = (0..count).map(|_| build(options, &mut generator)).collect();
        Self {
            requests,
            next: 0,
            sequence: first,
            format: options.format,
            times: options.times,
            stamp: Stamp::new(),
            began: wall_micros,
        }
    }

    /// The next request, with the timestamps of events that are sent at `wall_micros`.
    pub(crate) fn next(&mut self, wall_micros: u64) -> &[u8] {
        let index = self.next;
        self.next = if index + 1 == self.requests.len() { 0 } else { index + 1 };
        let request = &mut self.requests[index];
        let mut age = SPACING * (request.events.len() as u64 - 1);
        for event in &request.events {
            let micros = match self.times {
                Times::Advancing => wall_micros - age,
                Times::Equal => self.began,
                Times::Second => wall_micros / 1_000_000 * 1_000_000,
            };
            age = age.saturating_sub(SPACING);
            let time = &mut request.bytes[event.timestamp..];
            match self.format {
                Format::Json => self.stamp.write(micros, &mut time[..TIMESTAMP_BYTES]),
                Format::Otlp => time[..TIME_MARK.len()].copy_from_slice(&(micros * 1000).to_le_bytes()),
            }
            self.sequence += 1;
            if let Some(at) = event.trace {
                write_hex(self.sequence, &mut request.bytes[at..at + TRACE_BYTES]);
            }
            if let Some(at) = event.key {
                write_hex(self.sequence, &mut request.bytes[at..at + KEY_BYTES]);
            }
        }
        &request.bytes
    }
}

fn build(options: &RequestOptions, generator: &mut EventGenerator) -> Request {
    let events: Vec<_> = (0..options.batch).map(|_| generator.event()).collect();
    let (body, mut events) = match options.format {
        Format::Json => json(&events, options.keyed),
        Format::Otlp => otlp(&events),
    };
    let kind = match options.format {
        Format::Otlp => "application/x-protobuf",
        Format::Json if options.batch == 1 => "application/json",
        Format::Json => "application/x-ndjson",
    };
    let durability =
        options.durability.as_ref().map(|level| format!("Durability: {level}\r\n")).unwrap_or_default();
    let mut bytes = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\n{durability}Content-Length: {}\r\n\r\n",
        options.path,
        options.host,
        body.len()
    )
    .into_bytes();
    let head = bytes.len();
    for event in &mut events {
        event.timestamp += head;
        event.trace = event.trace.map(|at| at + head);
        event.key = event.key.map(|at| at + head);
    }
    bytes.extend_from_slice(&body);
    Request { bytes, events }
}

fn json(events: &[Event], keyed: bool) -> (Vec<u8>, Vec<Offsets>) {
    let (mut body, mut offsets) = (Vec::new(), Vec::with_capacity(events.len()));
    for event in events {
        offsets.push(append_event(&mut body, event, keyed));
        if events.len() > 1 {
            body.push(b'\n');
        }
    }
    (body, offsets)
}

fn otlp(events: &[Event]) -> (Vec<u8>, Vec<Offsets>) {
    let records = events.iter().map(|event| {
        let metadata = event.metadata.as_deref().unwrap_or_default();
        let metadata = metadata.replace(&format!("{:016}\"}}", 0), &format!("{TRACE_MARK}\"}}"));
        let record = log_records::record(event.message.clone(), &metadata, u64::from_le_bytes(TIME_MARK));
        (event.service.clone(), record)
    });
    let body = log_records::request(records).encode_to_vec();
    let times = offsets_of(&TIME_MARK, &body);
    let ends = times[1..].iter().copied().chain([body.len()]);
    let offsets = times.iter().zip(ends).map(|(&timestamp, end)| {
        let trace = offsets_of(TRACE_MARK.as_bytes(), &body[timestamp..end]).first().map(|at| timestamp + at);
        Offsets { timestamp, trace, key: None }
    });
    let offsets = offsets.collect();
    (body, offsets)
}

fn offsets_of(mark: &[u8], bytes: &[u8]) -> Vec<usize> {
    let marks = bytes.windows(mark.len()).enumerate().filter(|(_, window)| *window == mark);
    marks.map(|(at, _)| at).collect()
}

fn append_event(body: &mut Vec<u8>, event: &Event, keyed: bool) -> Offsets {
    body.extend_from_slice(b"{\"timestamp\":\"");
    let timestamp = body.len();
    body.extend_from_slice(&[b'0'; TIMESTAMP_BYTES]);
    write!(body, "\",\"service\":\"{}\",\"message\":\"{}\"", event.service, event.message)
        .expect("a vector takes all bytes");
    let key = keyed.then(|| {
        body.extend_from_slice(b",\"idempotency_key\":\"");
        let at = body.len();
        body.extend_from_slice(&[b'0'; KEY_BYTES]);
        body.push(b'"');
        at
    });
    let trace = event.metadata.as_ref().map(|metadata| {
        body.extend_from_slice(b",\"metadata\":");
        body.extend_from_slice(metadata.as_bytes());
        body.len() - 2 - TRACE_BYTES
    });
    body.push(b'}');
    Offsets { timestamp, trace, key }
}

fn write_hex(value: u64, out: &mut [u8]) {
    for (nth, byte) in out.iter_mut().rev().enumerate() {
        *byte = b"0123456789abcdef"[(value >> (4 * nth) & 0xf) as usize];
    }
}

/// Formats timestamps. Date, hour, minute and second are formatted once per second.
#[derive(Debug)]
struct Stamp {
    second: u64,
    text: String,
}

impl Stamp {
    fn new() -> Self {
        Self { second: u64::MAX, text: String::new() }
    }

    fn write(&mut self, micros: u64, out: &mut [u8]) {
        let second = micros / 1_000_000;
        if second != self.second {
            self.second = second;
            self.text = i64::try_from(second)
                .ok()
                .and_then(|second| DateTime::from_timestamp(second, 0))
                .map(|time| time.format("%Y-%m-%dT%H:%M:%S.").to_string())
                .unwrap_or_default();
        }
        let seconds = self.text.len();
        out[..seconds].copy_from_slice(self.text.as_bytes());
        let mut left = micros % 1_000_000;
        for byte in out[seconds..seconds + 6].iter_mut().rev() {
            *byte = b"0123456789"[(left % 10) as usize];
            left /= 10;
        }
        out[seconds + 6] = b'Z';
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;

    use super::*;

    fn options(batch: usize, times: Times, keyed: bool) -> RequestOptions {
        let (path, host) = ("/events".to_owned(), "localhost".to_owned());
        let (format, size) = (Format::Json, Size::Life);
        RequestOptions { path, host, format, batch, size, times, keyed, durability: None, seed: 1 }
    }

    fn lines(request: &[u8]) -> Vec<line::Line> {
        let text = std::str::from_utf8(request).expect("UTF-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        body.lines().map(line::Line::parse).collect()
    }

    /// The fields that the tests look at, found by their names.
    mod line {
        #[derive(Debug, PartialEq, Eq)]
        pub(super) struct Line {
            pub(super) timestamp: String,
            pub(super) key: Option<String>,
            pub(super) bytes: usize,
        }

        impl Line {
            pub(super) fn parse(line: &str) -> Self {
                sonic_rs::from_str::<sonic_rs::Value>(line).expect("JSON");
                let after = |name: &str| line.split_once(name).map(|(_, rest)| rest);
                let timestamp = after("\"timestamp\":\"").expect("a timestamp")[..27].to_owned();
                let key = after("\"idempotency_key\":\"").map(|rest| rest[..16].to_owned());
                Self { timestamp, key, bytes: line.len() }
            }
        }
    }

    #[test]
    fn the_events_of_a_batch_end_with_the_time_of_sending() {
        let mut pool = RequestPool::new(&options(100, Times::Advancing, true), 0, 0);
        let sent = lines(pool.next(1_795_804_360_123_456));
        assert_eq!(sent[99].timestamp, "2026-11-27T18:32:40.123456Z");
        assert_eq!(sent[0].timestamp, "2026-11-27T18:32:40.122466Z");
        assert_eq!(sent[99].key.as_deref(), Some("0000000000000064"));
        let other = lines(pool.next(1_795_804_361_000_000));
        assert_eq!(other[99].timestamp, "2026-11-27T18:32:41.000000Z");
    }

    #[test]
    fn equal_and_whole_seconds_are_what_they_say() {
        let mut pool = RequestPool::new(&options(10, Times::Equal, false), 0, 1_795_804_360_123_456);
        assert!(
            lines(pool.next(1_795_804_370_000_001))
                .iter()
                .all(|line| line.timestamp == "2026-11-27T18:32:40.123456Z" && line.key.is_none())
        );
        let mut pool = RequestPool::new(&options(10, Times::Second, false), 0, 0);
        assert_eq!(lines(pool.next(1_795_804_360_999_999))[0].timestamp, "2026-11-27T18:32:40.000000Z");
    }

    #[test]
    fn log_records_have_the_times_and_traces_of_their_sending() {
        let options = RequestOptions { format: Format::Otlp, ..options(512, Times::Advancing, false) };
        let mut pool = RequestPool::new(&options, 0, 0);
        let sent = pool.next(1_795_804_360_123_456);
        let body = &sent[offsets_of(b"\r\n\r\n", sent)[0] + 4..];
        let decoded = ExportLogsServiceRequest::decode(body).expect("protobuf");
        let scopes = decoded.resource_logs.into_iter().flat_map(|resource| resource.scope_logs);
        let records: Vec<_> = scopes.flat_map(|scope| scope.log_records).collect();
        assert_eq!(records.len(), 512);
        let mut traced = 0;
        for (nth, record) in (1_u64..).zip(&records) {
            assert_eq!(record.time_unix_nano, (1_795_804_360_123_456 - 10 * (512 - nth)) * 1000);
            let trace = record.attributes.iter().find(|attribute| attribute.key == "trace");
            if let Some(Value::StringValue(trace)) =
                trace.and_then(|trace| trace.value.as_ref()?.value.as_ref())
            {
                assert_eq!(trace[16..], format!("{nth:016x}"));
                traced += 1;
            }
        }
        assert!((256..512).contains(&traced), "{traced}");
    }

    #[test]
    fn the_median_size_is_some_240_bytes() {
        let mut pool = RequestPool::new(&options(1000, Times::Advancing, false), 0, 0);
        let mut sizes: Vec<usize> =
            (0..8).flat_map(|_| lines(pool.next(1_795_804_360_123_456))).map(|line| line.bytes).collect();
        sizes.sort_unstable();
        assert!((220..260).contains(&sizes[sizes.len() / 2]), "{}", sizes[sizes.len() / 2]);
        assert!(
            sizes[0] >= 98 && sizes[sizes.len() - 1] <= 16_500,
            "{} {}",
            sizes[0],
            sizes[sizes.len() - 1]
        );
    }
}
