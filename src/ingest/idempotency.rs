//! Ids of events with an idempotency key, and the header `Idempotency-Key`. An event without a key
//! gets a random id.
//!
//! # The hash
//! Every server and every version must compute the same id for the same event, so this format is
//! fixed: the first 10 bytes of SHA-256 over
//!
//! | part | bytes |
//! |---|---|
//! | domain | `aurore-events/id/1` and a zero byte, 19 in all |
//! | service | its length as 32 bits, big-endian, then its UTF-8 bytes, unescaped |
//! | key | its length as 32 bits, big-endian, then its bytes, unescaped |
//! | index | 32 bits, big-endian: only for an event of a batch (an array, or NDJSON) keyed by the header |
//!
//! [`EventId::keyed`] appends these bytes to the event's milliseconds. A single event with the
//! header key K therefore has the same id as with the field key K. Two timestamps within one
//! millisecond give the same id.

use sha2::{Digest, Sha256};

use crate::event::{EventId, KEY_BYTES_MAX};
use crate::http::Headers;

const DOMAIN: &[u8; 19] = b"aurore-events/id/1\0";

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

/// The id of an event with a key. The module documentation specifies the hash.
pub fn keyed_event_id(millis: u64, service: &[u8], key: &[u8], index: Option<u32>) -> EventId {
    let length = |text: &[u8]| u32::try_from(text.len()).expect("services and keys are short").to_be_bytes();
    let mut hash = Sha256::new();
    hash.update(DOMAIN);
    hash.update(length(service));
    hash.update(service);
    hash.update(length(key));
    hash.update(key);
    if let Some(index) = index {
        hash.update(index.to_be_bytes());
    }
    let digest = hash.finalize();
    let mut tail = [0; 10];
    tail.copy_from_slice(&digest[..10]);
    EventId::keyed(millis, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_event_id_format_is_stable() {
        let id = |service: &str, key: &str, index| {
            keyed_event_id(1_700_000_000_123, service.as_bytes(), key.as_bytes(), index).to_string()
        };
        assert_eq!(id("checkout", "k", None), "018bcfe5-687b-8dc4-af3d-33f3f649bc00");
        assert_eq!(id("checkout", "k", Some(0)), "018bcfe5-687b-8b90-b5f1-859f169da8da");
        assert_ne!(id("ab", "c", None), id("a", "bc", None), "lengths keep the parts apart");
        assert_ne!(id("a", "b", Some(1)), id("a", "b", Some(2)));
    }
}
