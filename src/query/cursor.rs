//! Where a page ended: an opaque text for the client, and nothing the server has to remember.
//!
//! It is base64url, without padding, of 30 bytes: version, order, time and id of the last event, and the first four
//! bytes of SHA-256 over what comes before. The checksum is against accidents, not against malice: a forged cursor
//! shows nothing that a query could not ask for, and its time is one that an event can have.

use sha2::{Digest, Sha256};

use super::params::MILLIS_END;
use crate::event::{EventId, Timestamp};
use crate::storage::Order;

const VERSION: u8 = 1;
const BODY_BYTES: usize = 26;
const BYTES: usize = BODY_BYTES + 4;
/// Four characters for three bytes; nothing is left over.
const TEXT_BYTES: usize = BYTES / 3 * 4;
const _: () = assert!(BYTES.is_multiple_of(3));

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The last event of a page, in the order of that page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub order: Order,
    pub timestamp: Timestamp,
    pub event_id: EventId,
}

/// The text is no cursor of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a next_cursor of an earlier page, unchanged")]
pub struct NotACursor;

impl Cursor {
    pub fn encode(&self) -> String {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1] = match self.order {
            Order::Desc => 0,
            Order::Asc => 1,
        };
        bytes[2..10].copy_from_slice(&self.timestamp.micros().to_be_bytes());
        bytes[10..BODY_BYTES].copy_from_slice(self.event_id.bytes());
        let (body, checksum) = bytes.split_at_mut(BODY_BYTES);
        checksum.copy_from_slice(&check(body));
        let mut text = String::with_capacity(TEXT_BYTES);
        for three in bytes.chunks_exact(3) {
            let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
            text.extend([18, 12, 6, 0].map(|shift| char::from(ALPHABET[(bits >> shift & 63) as usize])));
        }
        text
    }

    pub fn decode(text: &str) -> Result<Self, NotACursor> {
        let text: &[u8; TEXT_BYTES] = text.as_bytes().try_into().map_err(|_length| NotACursor)?;
        let mut bytes = [0; BYTES];
        for (four, three) in text.chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
            let bits = four.iter().try_fold(0, |bits, &char| Ok(bits << 6 | sextet(char)?))?;
            three.copy_from_slice(&u32::to_be_bytes(bits)[1..]);
        }
        let (body, checksum) = bytes.split_at(BODY_BYTES);
        let order = match (body[0], body[1]) {
            (VERSION, 0) => Order::Desc,
            (VERSION, 1) => Order::Asc,
            _ => return Err(NotACursor),
        };
        if checksum != check(body) {
            return Err(NotACursor);
        }
        let (head, id) = body.split_at(10);
        let mut micros = [0; 8];
        micros.copy_from_slice(&head[2..]);
        let timestamp = Timestamp::from_micros(i64::from_be_bytes(micros));
        if !(0..MILLIS_END).contains(&timestamp.millis()) {
            return Err(NotACursor);
        }
        let mut event_id = [0; 16];
        event_id.copy_from_slice(id);
        Ok(Self { order, timestamp, event_id: EventId::from_bytes(event_id) })
    }
}

fn sextet(char: u8) -> Result<u32, NotACursor> {
    Ok(u32::from(match char {
        b'A'..=b'Z' => char - b'A',
        b'a'..=b'z' => char - b'a' + 26,
        b'0'..=b'9' => char - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return Err(NotACursor),
    }))
}

fn check(body: &[u8]) -> [u8; 4] {
    let digest = Sha256::digest(body);
    [digest[0], digest[1], digest[2], digest[3]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_cursor_is_refused() {
        let good = Cursor {
            order: Order::Asc,
            timestamp: Timestamp::from_micros(1),
            event_id: EventId::random(1, [7; 10]),
        }
        .encode();
        assert!(Cursor::decode(&good).is_ok());
        for text in
            ["", "abc", &"A".repeat(40), &good[1..], &format!("{good}A"), &good.replace(&good[..4], "é++")]
        {
            assert_eq!(Cursor::decode(text), Err(NotACursor), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_cursor_reads_back_and_no_changed_one_does(
            asc in any::<bool>(),
            micros in 0..MILLIS_END * 1000,
            id in any::<[u8; 16]>(),
            at in 0..TEXT_BYTES,
            with in 0..64_usize,
        ) {
            let cursor = Cursor {
                order: if asc { Order::Asc } else { Order::Desc },
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
        fn no_text_makes_it_panic(text in "\\PC{0,60}") {
            prop_assert_eq!(Cursor::decode(&text), Err(NotACursor));
        }
    }
}
