//! Protobuf push bodies and records of the gateway's WAL: the parsers never panic.
#![no_main]

use aurore_events::clock::Moment;
use aurore_events::gateway::grouping_key::GroupingKey;
use aurore_events::gateway::record::WalRecord;
use aurore_events::gateway::{protobuf, validate};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    drop(WalRecord::decode(body));
    if let Ok(parsed) = protobuf::parse(body) {
        let grouping_key = GroupingKey::parse("job/fuzz").expect("a valid path");
        drop(validate::validate_push(&grouping_key, parsed, (Moment::ZERO, 1.0)));
    }
});
