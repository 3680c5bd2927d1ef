//! Protobuf push bodies and records of the gateway's WAL: the parsers never panic, and the
//! steps of a push are bounded by the length of the body.
#![no_main]

use aurore_events::clock::Moment;
use aurore_events::gateway::grouping_key::GroupingKey;
use aurore_events::gateway::record::WalRecord;
use aurore_events::gateway::validate::ParseLimits;
use aurore_events::gateway::{protobuf, steps, validate};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    drop(WalRecord::decode(body));
    steps::take();
    let parsed = protobuf::parse(body, ParseLimits::NONE);
    assert!(steps::take() <= steps::PER_BYTE_MAX * (body.len() as u64 + 1));
    if let Ok(parsed) = parsed {
        let grouping_key = GroupingKey::parse("job/fuzz").expect("a valid path");
        drop(validate::validate_push(&grouping_key, parsed, (Moment::ZERO, 1.0)));
    }
});
