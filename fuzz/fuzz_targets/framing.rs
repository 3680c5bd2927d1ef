//! Requests: the parser never panics, and the responses do not depend on how the input is split.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aurore_events::http::fuzzing::framing(data));
