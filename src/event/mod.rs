//! An event, its id, its time, and the bounds on its fields. Knows nothing of where events come from or go.

pub mod row;
pub mod timestamp;

use std::fmt;
use std::str::FromStr;

/// Bytes of an event as it was sent. All of its fields at their bounds and escaped throughout take a quarter of it; the
/// rest is for white space, and for telling what is wrong with longer ones.
pub const EVENT_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of `service`, once unescaped: 1 to this.
pub const SERVICE_BYTES_MAX: usize = 100;
/// Bytes of `message`, once unescaped: 1 to this.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of `metadata` as it was sent.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Objects and arrays of `metadata` within each other, itself counted.
pub const METADATA_DEPTH_MAX: u32 = 64;
/// Bytes of an idempotency key: 1 to this.
pub const KEY_BYTES_MAX: usize = 128;

/// Microseconds between the Unix epoch and PostgreSQL's (2000-01-01), which its binary format counts from.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A time of day in UTC, in microseconds since the Unix epoch: the resolution PostgreSQL keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Saturates at the ends of the range, some 292,000 years away.
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

/// The server's id of an event: a UUID whose first 48 bits are the event's own time in milliseconds
/// (RFC 9562, versions 7 and 8), so that uniqueness, locality, pruning and retention come from one key.
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

    /// A UUIDv7: `millis` of the event, and 74 of the 80 bits of `chance`.
    pub fn random(millis: u64, chance: [u8; 10]) -> Self {
        Self::compose(millis, 0x70, chance)
    }

    /// A UUIDv8: as above with bits of a hash, so that the same event gets the same id anywhere.
    pub fn keyed(millis: u64, hash: [u8; 10]) -> Self {
        Self::compose(millis, 0x80, hash)
    }

    /// The lowest id that an event of `millis` or later can have: where a partition or a range begins.
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

    /// The milliseconds since the Unix epoch that the id begins with.
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
pub struct NotAnEventId;

impl FromStr for EventId {
    type Err = NotAnEventId;

    fn from_str(text: &str) -> Result<Self, NotAnEventId> {
        let text: &[u8; Self::TEXT_BYTES] = text.as_bytes().try_into().map_err(|_length| NotAnEventId)?;
        let digit = |at: usize| char::from(text[at]).to_digit(16).ok_or(NotAnEventId);
        let mut bytes = [0; 16];
        let mut at = 0;
        for (index, byte) in bytes.iter_mut().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                if text[at] != b'-' {
                    return Err(NotAnEventId);
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

/// A stored event, as queries give it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub event_id: EventId,
    pub timestamp: Timestamp,
    pub service: String,
    pub message: String,
    /// JSON text of an object.
    pub metadata: Option<String>,
    pub ingested_at: Timestamp,
}

impl Event {
    /// Bytes of its texts.
    pub fn bytes(&self) -> usize {
        self.service.len() + self.message.len() + self.metadata.as_ref().map_or(0, String::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_begins_with_the_events_milliseconds_and_reads_back() {
        let id = EventId::random(0x0123_4567_89ab, [0xff; 10]);
        assert_eq!(id.to_string(), "01234567-89ab-7fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.millis(), 0x0123_4567_89ab);
        let keyed = EventId::keyed(1, [0; 10]);
        assert_eq!(keyed.to_string(), "00000000-0001-8000-8000-000000000000");
        assert!(EventId::floor(1) < keyed && keyed < EventId::floor(2));
    }

    #[test]
    fn what_is_not_a_uuid_is_no_id() {
        for text in [
            "",
            "0123456789ab7fffbfffffffffffffff",
            "01234567-89ab-7fff-bfff-fffffffffffg",
            "01234567+89ab-7fff-bfff-ffffffffffff",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(NotAnEventId), "{text}");
        }
    }

    #[test]
    fn times_print_as_rfc_3339_and_round_down_to_milliseconds() {
        let time = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.123456Z");
        assert_eq!(time.millis(), 1_700_000_000_123);
        assert_eq!(Timestamp::from_micros(-1).millis(), -1);
        assert_eq!(Timestamp::from_postgres(time.to_postgres()), time);
    }
}
