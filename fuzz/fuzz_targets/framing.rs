//! Requests: no bytes panic, and no split of them changes an answer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aurore_events::http::fuzzing::framing(data));
