//! The pagination cursor: the position after a page, opaque to the client and stateless on the
//! server.
//!
//! A cursor is unpadded base64url of 30 bytes: version, order, timestamp and id of the last event,
//! and the first four bytes of SHA-256 over those fields. The checksum detects accidental changes.
//! A forged cursor does no harm: it reaches no event that a query could not select, and its
//! timestamp is bounded to the range of event timestamps.

use sha2::{Digest, Sha256};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::event::{EventId, MILLIS_END, Timestamp};
use crate::storage::SortOrder;

const VERSION: u8 = 1;
const BODY_BYTES: usize = 26;
const BYTES: usize = BODY_BYTES + 4;
/// Four characters for three bytes, without a remainder.
const TEXT_BYTES: usize = BYTES / 3 * 4;
const _: () = assert!(BYTES.is_multiple_of(3));

/// Position of the last event of a page, and the page's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub order: SortOrder,
    pub timestamp: Timestamp,
    pub event_id: EventId,
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
        bytes[2..10].copy_from_slice(&self.timestamp.micros().to_be_bytes());
        bytes[10..BODY_BYTES].copy_from_slice(self.event_id.bytes());
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
        let (head, id) = body.split_at(10);
        let mut micros = [0; 8];
        micros.copy_from_slice(&head[2..]);
        let timestamp = Timestamp::from_micros(i64::from_be_bytes(micros));
        if !(0..MILLIS_END).contains(&timestamp.millis()) {
            return Err(ParseCursorError);
        }
        let mut event_id = [0; 16];
        event_id.copy_from_slice(id);
        Ok(Self { order, timestamp, event_id: EventId::from_bytes(event_id) })
    }
}

fn checksum(body: &[u8]) -> [u8; 4] {
    let digest = Sha256::digest(body);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    use proptest::prelude::*;

    #[test]
    fn decode_rejects_malformed_cursors() {
        let good = Cursor {
            order: SortOrder::Asc,
            timestamp: Timestamp::from_micros(1),
            event_id: EventId::random(1, [7; 10]),
        }
        .encode();
        assert!(Cursor::decode(&good).is_ok());
        for text in
            ["", "abc", &"A".repeat(40), &good[1..], &format!("{good}A"), &good.replace(&good[..4], "é++")]
        {
            assert_eq!(Cursor::decode(text), Err(ParseCursorError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn cursor_round_trips_and_rejects_any_changed_character(
            asc in any::<bool>(),
            micros in 0..MILLIS_END * 1000,
            id in any::<[u8; 16]>(),
            at in 0..TEXT_BYTES,
            with in 0..64_usize,
        ) {
            let cursor = Cursor {
                order: if asc { SortOrder::Asc } else { SortOrder::Desc },
                timestamp: Timestamp::from_micros(micros),
                event_id: EventId::from_bytes(id),
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
