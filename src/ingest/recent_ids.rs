//! The ids of an acceptor's recent events with an idempotency key, so that the response to an event
//! that is sent again can say so. It is a hint for the producer: the database decides what is
//! stored.

use super::DecodedRequest;
use crate::event::EventId;

/// 128 KiB per acceptor, allocated with the first key. At 1,000 keyed events a second and acceptor
/// it holds those of about 8 s, the time in which clients retry.
const SLOTS: usize = 8192;
/// Duplicates of one request for which the capacity is kept.
const RETAINED_DUPLICATES: usize = 10_000;

/// Ids of admitted events, each in the slot that its hash selects; a later id replaces an earlier
/// one.
#[derive(Debug, Default)]
pub struct RecentIds {
    /// All zeros: a free slot. No keyed id is all zeros.
    slots: Vec<[u8; 16]>,
    duplicates: Vec<EventId>,
}

impl RecentIds {
    /// Adds the ids of a request whose rows were admitted. Returns those that had been admitted
    /// before or that occur earlier in the request, in body order.
    #[inline]
    pub fn admit(&mut self, decoded: &DecodedRequest<'_>) -> &[EventId] {
        self.duplicates.clear();
        if decoded.has_keyed_ids() {
            self.admit_keyed(decoded.ids());
        }
        &self.duplicates
    }

    fn admit_keyed(&mut self, ids: &[EventId]) {
        self.duplicates.shrink_to(RETAINED_DUPLICATES);
        self.slots.resize(SLOTS, [0; 16]);
        for id in ids.iter().filter(|id| id.is_keyed()) {
            let bytes = id.bytes();
            let slot = &mut self.slots[usize::from(u16::from_be_bytes([bytes[14], bytes[15]])) % SLOTS];
            if slot == bytes {
                self.duplicates.push(*id);
            }
            *slot = *bytes;
        }
    }
}
