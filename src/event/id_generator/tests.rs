//! Order and uniqueness of ids and arrival numbers, whatever the clock does.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// 2026-11-23T12:00:00Z.
const NOW: i64 = 1_795_435_200_000_000;
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

fn generator(seed: u64) -> IdGenerator {
    IdGenerator::new(StdRng::seed_from_u64(seed))
}

/// The arrival number and id of an event of `millis` that arrives at `micros`.
fn next(generator: &mut IdGenerator, millis: u64, micros: i64) -> (ArrivalNumber, EventId) {
    let arrival = generator.next_arrival(Timestamp::from_micros(micros));
    (arrival, generator.event_id(millis))
}

fn millis_of(micros: i64) -> u64 {
    micros.div_euclid(1000).cast_unsigned()
}

/// A distance of every magnitude, with boundaries of levels and both signs more often than by chance.
fn distance() -> impl Strategy<Value = i64> {
    let magnitude = (0_u32..=53, any::<u64>(), -2_i64..=2).prop_map(|(bits, random, step)| {
        let boundary = 1_i64 << bits;
        [boundary + step, (random & ((1 << bits) - 1)).cast_signed(), boundary]
    });
    (magnitude, 0_usize..3, any::<bool>()).prop_map(|(values, which, is_future)| {
        let value = values[which].clamp(0, DISTANCE_MAX.cast_signed());
        if is_future { -value.min(1 << 48) } else { value }
    })
}

#[test]
fn distance_code_is_as_documented() {
    for (micros, expected) in [
        (0, (1 << 27, 0)),
        (1, (1 << 27 | 1, 0)),
        (-1, ((1 << 27) - 1, 0)),
        ((1 << 22) - 1, (1 << 27 | 0x3f_ffff, 0)),
        (1 << 22, (1 << 27 | 1 << 22, 0)),
        ((1 << 23) - 1, (1 << 27 | 1 << 22 | 0x3f_ffff, 0)),
        (1 << 23, (1 << 28 | 2 << 23, 1)),
        (-(1 << 23) - 1, ((1 << 28) - 1 - (2 << 23), 1)),
        ((1 << 53) - 1, ((1 << 58) - 1, 30)),
    ] {
        assert_eq!(encode_distance(micros), expected, "{micros}");
    }
    // Beyond the highest level: no overflow.
    assert_eq!(encode_distance(i64::MAX), encode_distance((1 << 53) - 1));
    assert_eq!(encode_distance(i64::MIN), (0, 30));
    let bits_left = |micros| SEQUENCE_BITS - encode_distance(micros).1;
    let hour = 3600 * SECOND;
    assert_eq!([8 * SECOND, hour, DAY, 30 * DAY, 36_500 * DAY].map(bits_left), [46, 37, 32, 27, 17]);
}

#[test]
fn event_id_has_the_documented_layout() {
    let (_, id) = next(&mut generator(1), millis_of(NOW), NOW + 5);
    let id = u128::from_be_bytes(*id.bytes());
    let tail = (id >> 64 & 0xfff) << 62 | id & ((1 << 62) - 1);
    assert_eq!(id >> 80, u128::from(millis_of(NOW)));
    assert_eq!((id >> 76 & 0xf, id >> 62 & 3), (7, 2), "version and variant");
    assert_eq!(tail >> SEQUENCE_BITS, 1 << 27 | 5);
}

#[test]
fn first_id_of_each_microsecond_is_unpredictable() {
    let mut generator = generator(1);
    let sequences: Vec<u64> = (0..1000)
        .map(|step| {
            let (_, id) = next(&mut generator, millis_of(NOW), NOW + step);
            let low = u128::from_be_bytes(*id.bytes()) & ((1 << SEQUENCE_BITS) - 1);
            u64::try_from(low).unwrap()
        })
        .collect();
    for bit in 0..SEQUENCE_BITS {
        let ones = sequences.iter().filter(|sequence| *sequence >> bit & 1 == 1).count();
        // The highest bit is 1 a little less often, since the room for increments is at the top.
        assert!((400..600).contains(&ones), "bit {bit} is 1 in {ones} of 1000");
    }
}

#[test]
fn a_clock_that_steps_back_keeps_the_order_and_one_that_steps_forward_is_followed() {
    let mut generator = generator(1);
    let millis = millis_of(NOW);
    let times = [NOW, NOW + 1, NOW - 3600 * SECOND, NOW - 1, NOW + 2, NOW + DAY, NOW + 3, NOW + DAY + 1];
    let made: Vec<_> = times.iter().map(|micros| next(&mut generator, millis, *micros)).collect();
    assert!(made.is_sorted_by(|one, other| one.0 < other.0 && one.1 < other.1), "{made:?}");
    let arrivals: Vec<_> = made.iter().map(|(arrival, _)| arrival.nanos() - NOW * 1000).collect();
    let day = DAY * 1000;
    assert_eq!(arrivals, [0, 1000, 1001, 1002, 2000, day, day + 1, day + 1000]);
}

#[test]
fn a_request_of_any_length_has_ascending_ids_for_events_of_any_age() {
    for age in [-DAY, 0, 7 * SECOND, 60 * SECOND, DAY, 30 * DAY, 36_500 * DAY] {
        let mut generator = generator(1);
        let millis = millis_of(NOW - age);
        let made: Vec<_> = (0..100_000).map(|_| next(&mut generator, millis, NOW)).collect();
        assert!(made.is_sorted_by(|one, other| one.0 < other.0 && one.1 < other.1), "{age}");
        // The next request keeps the order though its time is within that of the first.
        assert!(next(&mut generator, millis, NOW + 10) > made[made.len() - 1]);
    }
}

#[test]
fn arrival_numbers_do_not_overflow() {
    let mut generator = generator(1);
    for micros in [i64::MIN, -1, i64::MAX / 1000, i64::MAX, i64::MAX, 0] {
        assert_eq!(next(&mut generator, 0, micros).1.millis(), 0);
    }
    let mut fork = generator.fork(Timestamp::from_micros(i64::MAX), i64::MAX);
    for generator in [&mut generator, &mut fork] {
        assert_eq!(next(generator, 0, 0).0.nanos(), i64::MAX);
    }
}

#[test]
fn numbers_of_a_fork_lie_between_those_before_and_after_it() {
    let mut generator = generator(1);
    for (time, expected) in [(NOW + 1, 1000), (NOW - DAY, 7000), (NOW - DAY, 10_000), (NOW + 20, 20_000)] {
        let time = Timestamp::from_micros(time);
        let mut fork = generator.fork(time, 1500);
        let numbers: Vec<_> = (0..1500).map(|_| fork.next_arrival(time)).collect();
        assert_eq!(numbers[0].nanos() - NOW * 1000, expected);
        // The clock is past the numbers when the request is decoded, unless it stepped back.
        let after = generator.next_arrival(Timestamp::from_micros(time.micros() + 5));
        assert!(numbers.is_sorted_by(|one, other| one < other) && numbers[1499] < after, "{after:?}");
    }
}

#[test]
fn ids_of_generators_with_equal_clocks_are_unique() {
    let made: Vec<EventId> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let mut generator = IdGenerator::new(rand::make_rng());
                    // Batches of a hundred, one a microsecond, all of one millisecond.
                    (0..1000)
                        .flat_map(|step| vec![NOW + step; 100])
                        .map(|micros| next(&mut generator, millis_of(NOW), micros).1)
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().collect::<HashSet<_>>().len(), made.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Of two events of one millisecond the later one has the greater id, also when another event in
    /// between has another level.
    #[test]
    fn ids_of_one_millisecond_ascend_with_arrival(
        seed: u64,
        millis in 0..(1_u64 << 48),
        one in distance(),
        other in distance(),
        between in distance(),
        step in 0..3_i64,
    ) {
        let start = millis.cast_signed() * 1000;
        // Arrival numbers are nanoseconds in 64 bits.
        let end = i64::MAX / 1000 - 10;
        let later = (one + step).min(DISTANCE_MAX.cast_signed());
        for (first, second) in [(one.min(other), one.max(other)), (one, later)] {
            let mut generator = generator(seed);
            let (first, second) = ((start + first).min(end), (start + second).min(end));
            let (before, id) = next(&mut generator, millis, first);
            let other_millis = millis_of((first - between).max(0));
            next(&mut generator, other_millis, first);
            let (after, later) = next(&mut generator, millis, second);
            prop_assert!(before < after);
            prop_assert!(id < later, "{} at {}, {} at {}", id, first - start, later, second - start);
        }
    }

    /// Codes of distances are in the order of distances, and none is the beginning of another.
    #[test]
    fn distance_codes_ascend_whatever_follows_them(one in distance(), other in distance(), step in 1..3_i64) {
        let align = |micros: i64| {
            let (code, extra_bits) = encode_distance(micros);
            (u128::from(code) << (SEQUENCE_BITS - extra_bits), (1_u128 << (SEQUENCE_BITS - extra_bits)) - 1)
        };
        let next = (one + step).min(DISTANCE_MAX.cast_signed());
        for (low, high) in [(one.min(other), one.max(other)), (one, next)] {
            if low < high {
                let ((low_code, ones), (high_code, _)) = (align(low), align(high));
                prop_assert!(low_code | ones < high_code, "{low} {high}");
                prop_assert!(high_code < 1 << 74);
            }
        }
    }

    /// A run of requests with a clock that steps in both directions, and events of few milliseconds.
    #[test]
    fn ids_ascend_and_are_unique_over_clock_steps(
        seed: u64,
        requests in prop::collection::vec(
            (prop_oneof![-5_i64..5, -2_000_000_i64..2_000_000, distance()], 1_usize..4, 0_u64..3),
            1..40,
        ),
    ) {
        let mut generator = generator(seed);
        let (mut clock, mut last, mut all) = (NOW, [None; 3], HashSet::new());
        for (step, events, of) in requests {
            // Times that occur: PostgreSQL's own range is wider, the settings' is far narrower.
            clock = (clock + step).clamp(0, 2 * NOW);
            for event in 0..events {
                let which = (usize::try_from(of).unwrap() + event) % 3;
                let millis = millis_of(NOW) - u64::try_from(which).unwrap() * 86_400_000;
                let (_, id) = next(&mut generator, millis, clock);
                prop_assert!(last[which] < Some(id));
                last[which] = Some(id);
                prop_assert!(all.insert(id));
            }
        }
    }
}
