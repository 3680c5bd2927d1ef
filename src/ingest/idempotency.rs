//! Ids of events with an idempotency key, and the header `Idempotency-Key`.
//! [`IdGenerator`](crate::event::id_generator::IdGenerator) makes the ids of other events.
//!
//! # The hash
//! The field `idempotency_key` names one event: the same service, timestamp and key are one id,
//! whatever else the event holds. The header names a request, of which a corrected version may be
//! sent, with other events or in another order. So the id of an event of that request depends on
//! the key and on the event's content, not on its position. Equal events of a request are told
//! apart by their number: the second one has another id than the first.
//!
//! Every server and every version must compute the same id for the same event, so this format is
//! fixed: the first 10 bytes of SHA-256 over
//!
//! | part | bytes |
//! |---|---|
//! | domain | `aurore-events/id/2` and a zero byte, 19 in all |
//! | kind | one byte: `e` for the key of an event, `r` for the key of a request, `b` for the body of a request, `c` for a record's content |
//! | key | its length as 32 bits, big-endian, then its bytes, unescaped; for a body its BLAKE3 hash, of 32 bytes |
//! | timestamp | microseconds since 2000 as 64 bits, big-endian, as in the row |
//! | service | its length as 32 bits, big-endian, then its UTF-8 bytes, unescaped |
//! | message | the same; not for the key of an event |
//! | metadata | -1 as 32 bits if absent; else its length and 1 as 32 bits, a byte 1, and the JSON text as sent; not for the key of an event |
//!
//! The last four parts are the bytes of the row. For the second of equal events the hash is SHA-256
//! over the domain, the kind `n`, the 32 bytes of the first event's hash, and 1 as 32 bits,
//! big-endian; for the third it has 2, and so on.
//!
//! [`EventId::keyed`] appends these bytes to the event's milliseconds.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::event::row;
use crate::event::{EventId, KEY_BYTES_MAX, Timestamp};
use crate::http::Headers;

const DOMAIN: &[u8; 19] = b"aurore-events/id/2\0";

/// The value of the header `Idempotency-Key`: 1 to 128 visible ASCII characters or spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderKey<'a>(&'a [u8]);

/// The header occurs more than once, or its value is not visible ASCII of 1 to 128 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseHeaderKeyError;

impl<'a> HeaderKey<'a> {
    pub const NAME: &'static str = "Idempotency-Key";

    pub fn from_headers(headers: Headers<'a>) -> Result<Option<Self>, ParseHeaderKeyError> {
        let mut values = headers.all(Self::NAME);
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => Self::new(value).map(Some),
            (Some(_), Some(_)) => Err(ParseHeaderKeyError),
        }
    }

    pub fn new(value: &'a [u8]) -> Result<Self, ParseHeaderKeyError> {
        let visible = value.iter().all(|byte| matches!(byte, b' '..=b'~'));
        if visible && (1..=KEY_BYTES_MAX).contains(&value.len()) {
            Ok(Self(value))
        } else {
            Err(ParseHeaderKeyError)
        }
    }

    /// The key of bytes that [`Self::new`] has accepted before.
    pub(super) fn from_validated(value: &'a [u8]) -> Self {
        debug_assert!(Self::new(value).is_ok(), "BUG: a retained key was not validated");
        Self(value)
    }

    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Begins the hash of a key. The module documentation specifies it.
fn begin_hash(kind: u8, key: &[u8]) -> Sha256 {
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    hash.update([kind]);
    update_with_length(&mut hash, key);
    hash
}

fn update_with_length(hash: &mut Sha256, text: &[u8]) {
    hash.update(u32::try_from(text.len()).expect("services and keys are short").to_be_bytes());
    hash.update(text);
}

fn keyed_id(timestamp: Timestamp, digest: &[u8; 32]) -> EventId {
    let mut tail = [0; 10];
    tail.copy_from_slice(&digest[..10]);
    EventId::keyed(timestamp.millis().cast_unsigned(), tail)
}

/// The id of an event with the field `idempotency_key`.
pub fn event_key_id(timestamp: Timestamp, service: &[u8], key: &[u8]) -> EventId {
    let mut hash = begin_hash(b'e', key);
    hash.update(timestamp.to_postgres().to_be_bytes());
    update_with_length(&mut hash, service);
    keyed_id(timestamp, &hash.finalize().into())
}

/// The id of the event at `index` of a request whose body has this BLAKE3 hash: the digest's first 10
/// bytes, to the last 6 of which the index is added. No two events of a request have the same id, and
/// those of other requests have others, since the digests differ.
pub fn position_id(timestamp: Timestamp, body_digest: &[u8; 32], index: u32) -> EventId {
    let mut tail = [0; 10];
    tail.copy_from_slice(&body_digest[..10]);
    let mut low = [0; 8];
    low[2..].copy_from_slice(&tail[4..]);
    let sum = u64::from_be_bytes(low).wrapping_add(u64::from(index)).to_be_bytes();
    tail[4..].copy_from_slice(&sum[2..]);
    EventId::keyed(timestamp.millis().cast_unsigned(), tail)
}

/// The key that is hashed with the content of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentKey<'a> {
    /// The header `Idempotency-Key` of the request.
    Request(HeaderKey<'a>),
    /// The BLAKE3 hash of the request's body.
    Body(&'a [u8; 32]),
    /// What a record of another format has beyond the event's content. May be empty.
    Record(&'a [u8]),
}

impl ContentKey<'_> {
    fn begin_hash(&self) -> Sha256 {
        match self {
            Self::Request(key) => begin_hash(b'r', key.bytes()),
            Self::Body(digest) => begin_hash(b'b', *digest),
            Self::Record(key) => begin_hash(b'c', key),
        }
    }
}

/// The hash of the content of one event with a [`ContentKey`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// `row` must be the bytes of one row. Its id and its time of ingestion do not count.
    pub fn new(key: ContentKey<'_>, row: &[u8]) -> Self {
        let mut hash = key.begin_hash();
        for part in row::content(row) {
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The id of the event after `before` equal events of the same request.
    pub fn event_id(&self, timestamp: Timestamp, before: u32) -> EventId {
        if before == 0 {
            return keyed_id(timestamp, &self.0);
        }
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(b"n");
        hash.update(self.0);
        hash.update(before.to_be_bytes());
        keyed_id(timestamp, &hash.finalize().into())
    }
}

/// Counts the equal events of one request, by the first half of their digests.
///
/// It has at most one entry per event of the request, and none between requests. Rejected: a hash
/// table, which moves all its entries at once when it grows, and of which a client could choose the
/// collisions.
#[derive(Debug, Default)]
pub struct ContentCounts(BTreeMap<u128, u32>);

impl ContentCounts {
    /// Counts an event. Returns the number of equal events before it.
    pub fn count(&mut self, digest: ContentDigest) -> u32 {
        let (half, _) = digest.0.split_first_chunk().expect("a digest has 32 bytes");
        let count = self.0.entry(u128::from_be_bytes(*half)).or_default();
        *count += 1;
        *count - 1
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ArrivalNumber;

    const TIME: Timestamp = Timestamp::from_micros(1_700_000_000_123_456);

    #[test]
    fn event_key_id_format_is_stable() {
        let id = |micros: i64, service: &str, key: &str| {
            let time = Timestamp::from_micros(TIME.micros() + micros);
            event_key_id(time, service.as_bytes(), key.as_bytes()).to_string()
        };
        assert_eq!(id(0, "checkout", "k"), "018bcfe5-687b-82fa-a404-8c87e967fcf8");
        assert_ne!(id(0, "ab", "c"), id(0, "a", "bc"), "lengths keep the parts apart");
        assert_ne!(id(0, "a", "b"), id(1, "a", "b"), "another microsecond is another time");
    }

    #[test]
    fn position_id_format_is_stable() {
        let id = |index| position_id(TIME, &[0xff; 32], index).to_string();
        assert_eq!(id(0), "018bcfe5-687b-8fff-bfff-ffffffffffff");
        assert_eq!(id(1), "018bcfe5-687b-8fff-bfff-000000000000");
        assert_eq!(id(u32::MAX), "018bcfe5-687b-8fff-bfff-0000fffffffe");
    }

    #[test]
    fn request_key_id_format_is_stable() {
        let digest = |key: &str, metadata: Option<&str>| {
            let mut bytes = Vec::new();
            row::append_header(
                &mut bytes,
                EventId::floor(9),
                TIME,
                Timestamp::default(),
                ArrivalNumber::default(),
            );
            row::append_text(&mut bytes, b"checkout");
            row::append_text(&mut bytes, b"m");
            row::append_metadata(&mut bytes, metadata.map(str::as_bytes));
            let key = HeaderKey::new(key.as_bytes()).unwrap();
            ContentDigest::new(ContentKey::Request(key), &bytes)
        };
        let first = digest("k", Some("{}"));
        assert_eq!(first.event_id(TIME, 0).to_string(), "018bcfe5-687b-8805-a8c9-7286acc5f887");
        assert_eq!(first.event_id(TIME, 1).to_string(), "018bcfe5-687b-829f-9fb4-11023236b06c");
        assert_eq!(digest("k", None).event_id(TIME, 0).to_string(), "018bcfe5-687b-8279-932b-e490965995c0");
        assert_ne!(first, digest("l", Some("{}")));
    }
}
