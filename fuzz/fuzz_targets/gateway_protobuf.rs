//! Bodies of pushes as protobuf, and records of the gateway's log: no bytes panic.
#![no_main]

use aurore_events::clock::Moment;
use aurore_events::gateway::record::Record;
use aurore_events::gateway::target::Target;
use aurore_events::gateway::{group, protobuf};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    drop(Record::decode(body));
    if let Ok(parsed) = protobuf::parse(body) {
        let target = Target::parse("job/fuzz").expect("a path");
        drop(group::prepare(&target, parsed, (Moment::ZERO, 1.0)));
    }
});
