//! The arrival numbers of all events, and the ids of those without an idempotency key. Both ascend
//! in the order in which an acceptor decodes events. It must not read a clock.
//!
//! # Arrival number
//! Column `id`: nanoseconds since 1970. It is the time of the request, or the last number of the
//! generator plus one if that is greater. Numbers ascend strictly within a generator, also after the
//! clock stepped back; between generators they ascend by clock. A microsecond, the resolution of the
//! clock, has a thousand numbers. The events of a longer request get the numbers of the next
//! microseconds, which have passed by the time the request is decoded.
//!
//! # Id
//! A UUIDv7. Its first 48 bits are the event's own milliseconds, which a producer chooses, so the
//! other 74 bits have to ascend on their own among the events of a millisecond:
//!
//! | bits | part |
//! |---|---|
//! | 1 | 1 if the event arrived at the beginning of its millisecond or later, 0 if before that |
//! | 5 | level: by how many bits the distance is longer than 22, or 0 |
//! | 22 + e | the distance in microseconds, without its leading 1 from level 1 on |
//! | 46 - e | the sequence: random start for each microsecond of arrival, random increments |
//!
//! The distance d lies between the beginning of the millisecond and the arrival; for an event of the
//! future, the level and the distance are those of -1 - d, with all bits inverted. e is the level
//! minus one, or 0: a distance up to 8 s leaves all 46 bits to the sequence, an hour 37, a day 32,
//! thirty days 27. A longer distance has a greater level, and equal levels have equally many bits,
//! so ids of one millisecond compare as their times of arrival do, exactly to the microsecond,
//! whatever the age of the event. Within a microsecond the sequence decides.
//!
//! In the terms of RFC 9562, section 6.2, the time of arrival is method 3 (leftmost random bits
//! replaced by increased clock precision), and the sequence is method 2 (monotonic random).
//!
//! # Collisions
//! Two generators can make the same id only for events of one millisecond that arrive within one
//! microsecond. Two that each make 100,000 ids a second, all of one recent millisecond, in batches
//! of any size, have 10,000 such pairs a second, each equal with a probability of 2^-45.8: once in
//! 190 years.
//!
//! Rejected: a distance rounded to 22 significant bits, which leaves 46 bits to every sequence. As
//! many more events then share a rounded time as the sequence has values, so ids of old events
//! collide as often; and the order of events within the rounded time needs a sequence for each
//! precision.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::event::{EventId, Timestamp};

/// The lengths of the parts, before the distance takes bits from the sequence.
const LEVEL_BITS: u32 = 5;
const DISTANCE_BITS: u32 = 22;
const SEQUENCE_BITS: u32 = 46;
/// The bits of the id after the variant.
const RAND_B_BITS: u32 = 62;
/// The longest distance of the highest level, 285 years. Longer ones count as this one, so that ids
/// of such events are unique and not ordered. The settings bound the age of an event to 100 years.
const DISTANCE_MAX: u64 = (1 << (DISTANCE_BITS + (1 << LEVEL_BITS) - 1)) - 1;
/// The sequence starts below this. The rest is room for the increments of a microsecond: a thousand,
/// each less than 2^32 + 2^30.
const SEQUENCE_START_END: u64 = (1 << SEQUENCE_BITS) - (1 << 43);
const NUMBERS_PER_MICROSECOND: i64 = 1000;

/// Makes the arrival numbers and ids of one acceptor.
#[derive(Debug)]
pub struct IdGenerator {
    /// Cryptographically secure.
    rng: StdRng,
    /// The microsecond of the last number, and how many numbers of it came before.
    micros: i64,
    nth: i64,
    /// The last value of the sequence, and the microsecond of arrival for which it was started.
    sequence: u64,
    sequence_micros: i64,
}

/// The position of an event in the order of arrival: nanoseconds since 1970, until the year 2262.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArrivalNumber(i64);

impl ArrivalNumber {
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// The time of the arrival.
    pub const fn time(self) -> Timestamp {
        Timestamp::from_micros(self.0.div_euclid(NUMBERS_PER_MICROSECOND))
    }

    /// The first number of a time.
    pub const fn first_at(time: Timestamp) -> Self {
        Self(time.micros().saturating_mul(NUMBERS_PER_MICROSECOND))
    }
}

impl IdGenerator {
    /// `rng` must be cryptographically secure and seeded by the operating system, so that ids are
    /// unpredictable and do not collide.
    pub fn new(rng: StdRng) -> Self {
        Self { rng, micros: i64::MIN, nth: 0, sequence: 0, sequence_micros: i64::MIN }
    }

    /// A generator for one request of at most `events_max` events that arrives at `now` and is
    /// decoded in between others. Its numbers follow those of this generator, and precede those
    /// that this one makes for later requests.
    #[must_use]
    pub fn fork(&mut self, now: Timestamp, events_max: i64) -> Self {
        let mut fork = Self::new(StdRng::from_rng(&mut self.rng));
        // Sequences of two generators are not in order, so that no microsecond is of both.
        let first = self.micros.saturating_add(1).max(now.micros());
        fork.skip_to(first);
        // After a step back the clock does not pass the numbers of the request in time.
        let reserved = if first > now.micros() { events_max / NUMBERS_PER_MICROSECOND + 1 } else { 1 };
        self.skip_to(first.saturating_add(reserved));
        fork
    }

    /// Makes `micros` the earliest microsecond of the next number.
    fn skip_to(&mut self, micros: i64) {
        (self.micros, self.nth) = (micros.saturating_sub(1), NUMBERS_PER_MICROSECOND - 1);
    }

    /// The number of the next event, which arrives at `now`.
    #[inline]
    pub fn next_arrival(&mut self, now: Timestamp) -> ArrivalNumber {
        if now.micros() > self.micros {
            (self.micros, self.nth) = (now.micros(), 0);
        } else if self.nth < NUMBERS_PER_MICROSECOND - 1 {
            self.nth += 1;
        } else {
            (self.micros, self.nth) = (self.micros.saturating_add(1), 0);
        }
        ArrivalNumber(self.micros.saturating_mul(NUMBERS_PER_MICROSECOND).saturating_add(self.nth))
    }

    /// The id of an event of `millis` that has the number which [`Self::next_arrival`] returned last.
    #[inline]
    pub fn event_id(&mut self, millis: u64) -> EventId {
        let micros = self.micros;
        let (distance, extra_bits) = encode_distance(micros.wrapping_sub(millis.cast_signed() * 1000));
        if self.sequence_micros == micros {
            // The shortest part of the sequence that an id has ascends too.
            self.sequence += (1 << extra_bits) + u64::from(self.rng.next_u32());
        } else {
            self.sequence_micros = micros;
            self.sequence = random_below(SEQUENCE_START_END, self.rng.next_u64());
        }
        debug_assert!(self.sequence >> SEQUENCE_BITS == 0, "BUG: a microsecond has too many ids");
        let rand_a = distance >> (RAND_B_BITS - SEQUENCE_BITS + extra_bits);
        let rand_b = distance << (SEQUENCE_BITS - extra_bits) | self.sequence >> extra_bits;
        EventId::ordered(millis, rand_a, rand_b)
    }
}

/// Encodes the time from an event's millisecond to its arrival. Returns the code and its length
/// beyond 28 bits. Codes compare as the distances do, if the shorter one is extended by any bits.
#[inline]
fn encode_distance(micros: i64) -> (u64, u32) {
    if (0..1 << DISTANCE_BITS).contains(&micros) {
        // Most events are seconds old.
        return (1 << (DISTANCE_BITS + LEVEL_BITS) | micros.cast_unsigned(), 0);
    }
    encode_long_distance(micros)
}

fn encode_long_distance(micros: i64) -> (u64, u32) {
    let is_future = micros < 0;
    let distance = (if is_future { !micros } else { micros }).cast_unsigned().min(DISTANCE_MAX);
    let level = (u64::BITS - DISTANCE_BITS).saturating_sub(distance.leading_zeros());
    let extra_bits = level.saturating_sub(1);
    let bits = DISTANCE_BITS + extra_bits;
    // The leading 1 of the distance is followed by as many bits as the level says.
    let leading = if level == 0 { 0 } else { 1 << bits };
    let code = u64::from(level) << bits | (distance ^ leading);
    let sign = 1 << (bits + LEVEL_BITS);
    (if is_future { sign - 1 - code } else { sign | code }, extra_bits)
}

/// A uniform number below `end`, from 64 random bits.
#[inline]
fn random_below(end: u64, random: u64) -> u64 {
    let (_low, high) = random.carrying_mul(end, 0);
    high
}

#[cfg(test)]
mod tests;
