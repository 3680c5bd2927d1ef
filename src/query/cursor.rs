//! The pagination cursor: the position after a page, opaque to the client and stateless on the
//! server.
//!
//! A cursor is unpadded base64url of 39 bytes: version, order, timestamp, arrival number and id of the
//! last event, and the first five bytes of SHA-256 over those fields. The checksum detects accidental
//! changes. A forged cursor does no harm: it reaches no event that a query could not select, and its
//! timestamp is bounded to the range of event timestamps.

use sha2::{Digest, Sha256};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::event::{ArrivalNumber, EventId, EventKey, MILLIS_END, Timestamp};
use crate::storage::SortOrder;

/// A cursor of version 1 has no arrival number, so it names no position among events of one
/// timestamp: it is refused.
const VERSION: u8 = 2;
const BODY_BYTES: usize = 34;
const CHECKSUM_BYTES: usize = 5;
const BYTES: usize = BODY_BYTES + CHECKSUM_BYTES;
/// Four characters for three bytes, without a remainder.
const TEXT_BYTES: usize = BYTES / 3 * 4;
const _: () = assert!(BYTES.is_multiple_of(3));

/// The key of the last event of a page, and the page's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub order: SortOrder,
    pub last: EventKey,
}

/// The text is not a cursor of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a next_cursor of an earlier page, unchanged")]
pub struct ParseCursorError;

impl Cursor {
    pub fn encode(&self) -> String {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1] = match self.order {
            SortOrder::Desc => 0,
            SortOrder::Asc => 1,
        };
        bytes[2..10].copy_from_slice(&self.last.timestamp.micros().to_be_bytes());
        bytes[10..18].copy_from_slice(&self.last.arrival.nanos().to_be_bytes());
        bytes[18..BODY_BYTES].copy_from_slice(self.last.event_id.bytes());
        let (body, stored) = bytes.split_at_mut(BODY_BYTES);
        stored.copy_from_slice(&checksum(body));
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    pub fn decode(text: &str) -> Result<Self, ParseCursorError> {
        if text.len() != TEXT_BYTES {
            return Err(ParseCursorError);
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_not_base64| ParseCursorError)?;
        let bytes: [u8; BYTES] = bytes.try_into().map_err(|_wrong_length| ParseCursorError)?;
        let (body, stored) = bytes.split_at(BODY_BYTES);
        let order = match (body[0], body[1]) {
            (VERSION, 0) => SortOrder::Desc,
            (VERSION, 1) => SortOrder::Asc,
            _ => return Err(ParseCursorError),
        };
        if stored != checksum(body) {
            return Err(ParseCursorError);
        }
        let integer_at =
            |at: usize| i64::from_be_bytes(body[at..at + 8].try_into().expect("the slice has 8 bytes"));
        let timestamp = Timestamp::from_micros(integer_at(2));
        if !(0..MILLIS_END).contains(&timestamp.millis()) {
            return Err(ParseCursorError);
        }
        let mut event_id = [0; 16];
        event_id.copy_from_slice(&body[18..]);
        let arrival = ArrivalNumber::from_nanos(integer_at(10));
        Ok(Self { order, last: EventKey { timestamp, arrival, event_id: EventId::from_bytes(event_id) } })
    }
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&Sha256::digest(body)[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    use proptest::prelude::*;

    #[test]
    fn decode_rejects_malformed_cursors() {
        let last = EventKey {
            timestamp: Timestamp::from_micros(1),
            arrival: ArrivalNumber::from_nanos(-1),
            event_id: EventId::random(1, [7; 10]),
        };
        let good = Cursor { order: SortOrder::Asc, last }.encode();
        assert!(Cursor::decode(&good).is_ok());
        for text in
            ["", "abc", &"A".repeat(52), &good[1..], &format!("{good}A"), &good.replace(&good[..4], "é++")]
        {
            assert_eq!(Cursor::decode(text), Err(ParseCursorError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn cursor_round_trips_and_rejects_any_changed_character(
            asc in any::<bool>(),
            micros in 0..MILLIS_END * 1000,
            arrival: i64,
            id in any::<[u8; 16]>(),
            at in 0..TEXT_BYTES,
            with in 0..64_usize,
        ) {
            let cursor = Cursor {
                order: if asc { SortOrder::Asc } else { SortOrder::Desc },
                last: EventKey {
                    timestamp: Timestamp::from_micros(micros),
                    arrival: ArrivalNumber::from_nanos(arrival),
                    event_id: EventId::from_bytes(id),
                },
            };
            let text = cursor.encode();
            prop_assert_eq!(Cursor::decode(&text), Ok(cursor));
            let mut changed = text.clone().into_bytes();
            changed[at] = ALPHABET[with];
            let changed = String::from_utf8(changed).unwrap();
            prop_assert_eq!(Cursor::decode(&changed).is_ok(), changed == text);
        }

        #[test]
        fn decode_does_not_panic(text in "\\PC{0,60}") {
            prop_assert_eq!(Cursor::decode(&text), Err(ParseCursorError));
        }
    }
}
