//! The event, its id, its timestamp, and the bounds on its fields. It must not depend on ingest,
//! storage or queries.

pub mod id_generator;
pub mod row;
pub mod timestamp;

use std::fmt;
use std::str::FromStr;

pub use id_generator::ArrivalNumber;

/// Maximum bytes of an event in the request body. An event whose fields are all at their bounds and
/// fully escaped takes a quarter of it; the rest allows white space, and field errors for longer
/// events.
pub const EVENT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Ids contain 48 bits of milliseconds: timestamps end before this, in the year 10889.
pub const MILLIS_END: i64 = 1 << 48;
pub const MINUTE_MICROS: i64 = 60_000_000;
pub const HOUR_MICROS: i64 = 60 * MINUTE_MICROS;
pub const DAY_MICROS: i64 = 24 * HOUR_MICROS;
/// Maximum bytes of `service` after unescaping; the minimum is 1.
pub const SERVICE_BYTES_MAX: usize = 100;
/// Maximum bytes of `message` after unescaping; the minimum is 1.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Maximum bytes of `metadata` in the request body.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Maximum nesting depth of `metadata`; the object itself counts as 1.
pub const METADATA_DEPTH_MAX: u32 = 64;
/// Maximum bytes of an idempotency key; the minimum is 1.
pub const KEY_BYTES_MAX: usize = 128;

/// Microseconds from the Unix epoch to the epoch of PostgreSQL's binary format (2000-01-01).
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A UTC time in microseconds since the Unix epoch, the resolution of PostgreSQL's `timestamptz`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Saturates at the ends of the range, about 292,000 years from the epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    pub const fn to_postgres(self) -> i64 {
        self.0.wrapping_sub(POSTGRES_EPOCH_MICROS)
    }

    pub const fn from_postgres(micros: i64) -> Self {
        Self(micros.wrapping_add(POSTGRES_EPOCH_MICROS))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with six decimals, as `2026-11-23T14:05:09.123456Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match chrono::DateTime::from_timestamp_micros(self.0) {
            Some(time) => write!(f, "{}", time.format("%Y-%m-%dT%H:%M:%S%.6fZ")),
            None => write!(f, "{}us", self.0),
        }
    }
}

/// The id of an event: a UUID (RFC 9562, versions 7 and 8) whose first 48 bits are the event's
/// timestamp in milliseconds, so that one key serves uniqueness, locality, partition pruning and
/// retention.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId([u8; 16]);

impl EventId {
    /// The length of the textual form.
    pub const TEXT_BYTES: usize = 36;

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// A UUIDv7: the event's `millis` and 74 of the 80 bits of `random`. The server makes ordered ids
    /// instead; measurements compare both.
    pub fn random(millis: u64, random: [u8; 10]) -> Self {
        Self::compose(millis, 0x70, random)
    }

    /// A UUIDv7: the event's `millis`, the lower 12 bits of `rand_a` and the lower 62 of `rand_b`, by
    /// which the ids of one millisecond are ordered. RFC 9562 names these fields.
    #[inline]
    pub fn ordered(millis: u64, rand_a: u64, rand_b: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(millis << 16 | 0x7000 | rand_a & 0xfff).to_be_bytes());
        bytes[8..].copy_from_slice(&(1 << 63 | rand_b & ((1 << 62) - 1)).to_be_bytes());
        Self(bytes)
    }

    /// A UUIDv8: the event's `millis` and 74 bits of `hash`, so that every server computes the same
    /// id for the same event.
    pub fn keyed(millis: u64, hash: [u8; 10]) -> Self {
        Self::compose(millis, 0x80, hash)
    }

    /// Whether the id is derived from an idempotency key: version 8.
    pub const fn is_keyed(&self) -> bool {
        self.0[6] >> 4 == 8
    }

    /// Whether the id has the version and the variant of the ids that this server makes.
    pub const fn is_composed(&self) -> bool {
        matches!(self.0[6] >> 4, 7 | 8) && self.0[8] >> 6 == 0b10
    }

    /// The lower bound of the ids of events of `millis` or later: the start of a partition or
    /// range.
    pub fn floor(millis: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        Self(bytes)
    }

    fn compose(millis: u64, version: u8, tail: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&tail);
        bytes[6] = (bytes[6] & 0x0f) | version;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }

    /// The first 48 bits of the id: milliseconds since the Unix epoch.
    pub fn millis(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        u64::from_be_bytes(bytes)
    }

    /// The textual form, lower case with hyphens.
    pub fn text(&self) -> [u8; Self::TEXT_BYTES] {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; Self::TEXT_BYTES];
        let mut at = 0;
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                at += 1;
            }
            text[at] = HEX[usize::from(byte >> 4)];
            text[at + 1] = HEX[usize::from(byte & 15)];
            at += 2;
        }
        text
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.text()).expect("hexadecimal digits and hyphens are UTF-8"))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a UUID of 36 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a UUID of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx")]
pub struct ParseEventIdError;

impl FromStr for EventId {
    type Err = ParseEventIdError;

    fn from_str(text: &str) -> Result<Self, ParseEventIdError> {
        let text: &[u8; Self::TEXT_BYTES] =
            text.as_bytes().try_into().map_err(|_length| ParseEventIdError)?;
        let digit = |at: usize| char::from(text[at]).to_digit(16).ok_or(ParseEventIdError);
        let mut bytes = [0; 16];
        let mut at = 0;
        for (index, byte) in bytes.iter_mut().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                if text[at] != b'-' {
                    return Err(ParseEventIdError);
                }
                at += 1;
            }
            *byte =
                u8::try_from(digit(at)? << 4 | digit(at + 1)?).expect("two hexadecimal digits fit a byte");
            at += 2;
        }
        Ok(Self(bytes))
    }
}

/// The key by which queries order events: by timestamp, events of one timestamp by arrival. The
/// derived order compares the fields in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventKey {
    pub timestamp: Timestamp,
    pub arrival: ArrivalNumber,
    /// Servers whose clocks agree may make equal numbers.
    pub event_id: EventId,
}

/// A stored event, as queries return it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub event_id: EventId,
    pub timestamp: Timestamp,
    pub service: String,
    pub message: String,
    /// The JSON text of an object.
    pub metadata: Option<String>,
    pub ingested_at: Timestamp,
    /// Column `id`. Queries order by it and do not return it.
    pub arrival: ArrivalNumber,
}

impl Event {
    /// Bytes of the event as JSON without its text fields, rounded up.
    const JSON_OVERHEAD_BYTES: usize = 256;

    pub fn key(&self) -> EventKey {
        EventKey { timestamp: self.timestamp, arrival: self.arrival, event_id: self.event_id }
    }

    /// An upper bound of the bytes of the event as JSON: each character that needs an escape counts
    /// as the longest one.
    pub fn json_bytes_max(&self) -> usize {
        let quoted = |text: &str| {
            let escaped = text.bytes().filter(|byte| *byte < b' ' || matches!(byte, b'"' | b'\\')).count();
            text.len() + 5 * escaped
        };
        let metadata = self.metadata.as_ref().map_or(0, String::len);
        Self::JSON_OVERHEAD_BYTES + quoted(&self.service) + quoted(&self.message) + metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_id_begins_with_the_milliseconds_and_parses_back() {
        let id = EventId::random(0x0123_4567_89ab, [0xff; 10]);
        assert_eq!(id.to_string(), "01234567-89ab-7fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.millis(), 0x0123_4567_89ab);
        let keyed = EventId::keyed(1, [0; 10]);
        assert_eq!(keyed.to_string(), "00000000-0001-8000-8000-000000000000");
        assert!(EventId::floor(1) < keyed && keyed < EventId::floor(2));
    }

    #[test]
    fn ordered_event_id_has_version_variant_and_both_fields() {
        let id = |rand_a, rand_b| EventId::ordered(0x0123_4567_89ab, rand_a, rand_b).to_string();
        assert_eq!(id(0, 0), "01234567-89ab-7000-8000-000000000000");
        assert_eq!(id(u64::MAX, u64::MAX), "01234567-89ab-7fff-bfff-ffffffffffff");
        assert_eq!(id(0xabc, 0x1234), "01234567-89ab-7abc-8000-000000001234");
    }

    #[test]
    fn event_id_parser_rejects_malformed_uuids() {
        for text in [
            "",
            "0123456789ab7fffbfffffffffffffff",
            "01234567-89ab-7fff-bfff-fffffffffffg",
            "01234567+89ab-7fff-bfff-ffffffffffff",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(ParseEventIdError), "{text}");
        }
    }

    #[test]
    fn timestamp_displays_as_rfc_3339_and_rounds_down_to_milliseconds() {
        let time = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(time.millis(), 1_700_000_000_123);
        assert_eq!(Timestamp::from_micros(-1).millis(), -1);
        assert_eq!(Timestamp::from_postgres(time.to_postgres()), time);
    }
}
