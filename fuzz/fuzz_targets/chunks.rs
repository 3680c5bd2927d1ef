//! Chunked bodies: the decoder never panics, its output does not depend on how the input is split,
//! and the output stays within the bound.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| aurore_events::http::fuzzing::chunks(data));
